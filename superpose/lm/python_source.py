"""The Python source on the machine as a corpus: real text everywhere, and what each token is, from ``tokenize`` and
``ast``.

Versions of Python differ in their library, so a claim on this corpus is a band, and its digest stands beside it.
"""

import ast
import builtins
import importlib.machinery
import io
import keyword
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from superpose.lm.text import Corpus, Document, Span, TextError

MODULES = tuple(
    """
    abc aifc argparse ast asyncio base64 bdb bisect bz2 cProfile calendar cgi cgitb chunk cmd code codecs codeop
    collections colorsys compileall concurrent configparser contextlib contextvars copy copyreg csv ctypes
    dataclasses datetime dbm decimal difflib dis doctest email enum filecmp fileinput fnmatch fractions ftplib
    functools genericpath getopt getpass gettext glob graphlib gzip hashlib heapq hmac html http idlelib imaplib
    imghdr importlib inspect io ipaddress json linecache locale logging lzma mailbox mailcap mimetypes modulefinder
    multiprocessing netrc nntplib ntpath numbers opcode operator optparse os pathlib pdb pickle pickletools pipes
    pkgutil platform plistlib poplib posixpath pprint profile pstats pty py_compile pyclbr pydoc queue quopri random
    re reprlib rlcompleter runpy sched secrets selectors shelve shlex shutil signal site smtpd smtplib sndhdr socket
    socketserver sqlite3 ssl stat statistics string stringprep struct subprocess sunau symtable sysconfig tabnanny
    tarfile telnetlib tempfile textwrap threading timeit tkinter token tokenize tomllib trace traceback tracemalloc
    tty turtle turtledemo types typing unittest urllib uu uuid venv warnings wave weakref webbrowser wsgiref xdrlib
    xml xmlrpc zipapp zipfile zipimport zoneinfo
    """.split()
)
"""Modules and packages of the standard library of Python 3.11; what a later version dropped is listed as skipped."""

DEPTHS = 6
LABELS = (
    "comment", "docstring", "string", "f-string", "number", "keyword", "operator", "bracket", "newline", "indentation",
    "name", "def name", "class name", "argument", "keyword argument", "called name", "method called", "attribute",
    "decorator", "import", "imported name", "annotation", "builtin", "constant", "self", "dunder", "private name",
    "CONSTANT_CASE", "CamelCase", "snake_case", "assigned name", "loop variable", "exception", "inside call",
    "inside subscript", "inside list", "inside dict", "inside comparison", "inside condition", "inside return",
    "inside raise", "inside with", "inside try", "inside except", "inside loop", "inside lambda",
    "inside comprehension", "inside signature", "inside class", "inside function", "inside async",
    "string in call", "string in dict", "escape in string", "todo or note",
    *(f"depth {d}" for d in range(DEPTHS)), f"depth {DEPTHS} or more",
)  # fmt: skip
_NUMBER = {name: i for i, name in enumerate(LABELS)}


class _Places:
    """Rows and columns of a text as offsets; columns of ``ast`` count UTF-8 bytes."""

    def __init__(self, text: str):
        self.lines = [f"{line}\n" for line in text.split("\n")]  # as tokenize and ast do: a form feed ends no line
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))

    def at(self, row: int, column: int) -> int:
        return self.starts[min(row - 1, len(self.starts) - 1)] + column

    def at_bytes(self, row: int, column: int) -> int:
        line = self.lines[row - 1] if row <= len(self.lines) else ""
        if not line.isascii():
            column = len(line.encode()[:column].decode("utf-8", "ignore"))
        return self.at(row, column)


def spans(text: str) -> list[Span]:
    """The labelled spans of a Python file, in no order; none where the file is no Python of this version."""
    text_lines = _Places(text)
    out: list[Span] = []

    def mark(start: int, end: int, *labels: str) -> None:
        out.extend(Span(start, end, _NUMBER[label]) for label in labels if end > start)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
        _by_token(text, text_lines, mark)
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError, IndentationError):
        return []
    _by_tree(text, tree, text_lines, mark)
    return out


def _by_token(text, places, mark) -> None:
    depth, before = 0, 0
    f_strings: list[int] = []  # where those that are open begin

    def escapes(start: int, said: str) -> None:
        for i, ch in enumerate(said[:-1]):
            if ch == "\\":
                mark(start + i, start + i + 2, "escape in string")

    for kind, said, (row, column), (to_row, to_column), _ in tokenize.generate_tokens(io.StringIO(text).readline):
        start, end = places.at(row, column), places.at(to_row, to_column)
        name = tokenize.tok_name[kind]
        if name in ("INDENT", "DEDENT"):
            depth += 1 if name == "INDENT" else -1
        elif name == "COMMENT":
            mark(start, end, "comment")
            if any(word in said for word in ("TODO", "XXX", "FIXME", "NOTE", "HACK")):
                mark(start, end, "todo or note")
        elif name == "STRING":
            is_f = "f" in said[: said.index(said[-1])].lower()
            mark(start, end, "string", *(["f-string"] if is_f else []))
            escapes(start, said)
        elif name == "FSTRING_START":
            f_strings.append(start)
        elif name == "FSTRING_MIDDLE":
            escapes(start, said)
        elif name == "FSTRING_END":
            mark(f_strings.pop(), end, "string", "f-string")
        elif name == "NUMBER":
            mark(start, end, "number")
        elif name in ("NEWLINE", "NL"):
            mark(start, end, "newline")
        elif name == "OP":
            mark(start, end, "bracket" if said in "()[]{}" else "operator")
        elif name == "NAME":
            _by_name(said, start, end, mark)
        if name not in ("INDENT", "DEDENT", "ENDMARKER", "NEWLINE", "NL") and row > before:
            mark(places.at(row, 0), places.at(to_row, to_column), f"depth {depth}" if depth < DEPTHS else _DEEP)
            mark(places.at(row, 0), start, "indentation")
        elif name not in ("INDENT", "DEDENT", "ENDMARKER"):
            mark(start, end, f"depth {depth}" if depth < DEPTHS else _DEEP)
        if name not in ("INDENT", "DEDENT"):  # these stand on the row of the token that follows
            before = max(before, to_row)


_DEEP = f"depth {DEPTHS} or more"


def _by_name(said: str, start: int, end: int, mark) -> None:
    if said in ("True", "False", "None"):
        mark(start, end, "constant")
    elif keyword.iskeyword(said):
        mark(start, end, "keyword")
    else:
        mark(start, end, "name")
        if hasattr(builtins, said):
            mark(start, end, "builtin")
        if said in ("self", "cls"):
            mark(start, end, "self")
        if said.startswith("__") and said.endswith("__"):
            mark(start, end, "dunder")
        elif said.startswith("_"):
            mark(start, end, "private name")
        if said.isupper() and len(said) > 1:
            mark(start, end, "CONSTANT_CASE")
        elif said[0].isupper():
            mark(start, end, "CamelCase")
        elif "_" in said.strip("_"):
            mark(start, end, "snake_case")


def _by_tree(text, tree, places, mark) -> None:
    def place(node) -> tuple[int, int]:
        return places.at_bytes(node.lineno, node.col_offset), places.at_bytes(node.end_lineno, node.end_col_offset)

    def whole(node, *labels) -> None:
        if node is not None:
            mark(*place(node), *labels)

    def body(nodes, *labels) -> None:
        if nodes:
            mark(place(nodes[0])[0], place(nodes[-1])[1], *labels)

    def word_after(start: int, word: str, *labels) -> None:
        found = text.find(word, start)
        if found >= 0:
            mark(found, found + len(word), *labels)

    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                whole(first, "docstring")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            begin = place(node)[0]
            word_after(text.find("def", begin) + 3, node.name, "def name")
            if node.body:
                mark(begin, place(node.body[0])[0], "inside signature")
            body(node.body, "inside function", *(["inside async"] if isinstance(node, ast.AsyncFunctionDef) else []))
            whole(node.returns, "annotation")
        if isinstance(node, ast.ClassDef):
            word_after(text.find("class", place(node)[0]) + 5, node.name, "class name")
            body(node.body, "inside class")
        for decorator in getattr(node, "decorator_list", []):
            whole(decorator, "decorator")
        match node:
            case ast.arg():
                begin = place(node)[0]
                mark(begin, begin + len(node.arg), "argument")
                whole(node.annotation, "annotation")
            case ast.Call():
                begin, end = place(node)
                mark(place(node.func)[1], end, "inside call")
                if isinstance(node.func, ast.Name):
                    whole(node.func, "called name")
                elif isinstance(node.func, ast.Attribute):
                    last = place(node.func)[1]
                    mark(last - len(node.func.attr), last, "method called")
                for word in node.keywords:
                    if word.arg:
                        mark(place(word)[0], place(word)[0] + len(word.arg), "keyword argument")
                for value in [*node.args, *(w.value for w in node.keywords)]:
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        whole(value, "string in call")
            case ast.Attribute():
                last = place(node)[1]
                mark(last - len(node.attr), last, "attribute")
            case ast.Import() | ast.ImportFrom():
                whole(node, "import")
                for alias in node.names:
                    whole(alias, "imported name")
            case ast.AnnAssign():
                whole(node.annotation, "annotation")
            case ast.Name(ctx=ast.Store()):
                whole(node, "assigned name")
            case ast.Subscript():
                whole(node.slice, "inside subscript")
            case ast.List() | ast.Tuple() | ast.Set():
                whole(node, "inside list")
            case ast.Dict():
                whole(node, "inside dict")
                inside: list[Any] = [*node.keys, *node.values]
                for value in inside:
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        whole(value, "string in dict")
            case ast.Compare():
                whole(node, "inside comparison")
            case ast.If() | ast.While() | ast.IfExp():
                whole(node.test, "inside condition")
            case ast.Return():
                whole(node.value, "inside return")
            case ast.Raise():
                whole(node, "inside raise")
                whole(node.exc.func if isinstance(node.exc, ast.Call) else node.exc, "exception")
            case ast.With() | ast.AsyncWith():
                body(node.body, "inside with")
            case ast.Try():
                body(node.body, "inside try")
            case ast.ExceptHandler():
                whole(node.type, "exception")
                body(node.body, "inside except")
            case ast.Lambda():
                whole(node, "inside lambda")
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                whole(node, "inside comprehension")
        if isinstance(node, ast.For | ast.AsyncFor | ast.While):
            body(node.body, "inside loop")
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            whole(node.target, "loop variable")


def _files(modules: Sequence[str]) -> tuple[list[tuple[str, Path]], list[str]]:
    found, skipped = [], []
    for module in modules:
        spec = importlib.machinery.PathFinder.find_spec(module)
        origin = None if spec is None else spec.origin
        if not origin or not origin.endswith(".py"):
            skipped.append(f"{module}: this Python has no source of it")
            continue
        place = Path(origin)
        if spec is not None and spec.submodule_search_locations:
            root = place.parent
            files = sorted(
                p for p in root.rglob("*.py") if not {"test", "tests", "idle_test", "__pycache__"} & {*p.parts}
            )
            found += [(f"{module}/{p.relative_to(root).as_posix()}", p) for p in files]
        else:
            found.append((place.name, place))
    return found, skipped


def python_source(modules: Sequence[str] = MODULES) -> Corpus:
    """The files of these modules, one document each, labelled; those that can't be decoded are listed as skipped.

    Raises:
        TextError: none of them has source here.
    """
    files, skipped = _files(modules)
    good = []
    for name, path in files:
        try:
            with tokenize.open(path) as handle:
                if handle.read().strip():
                    good.append((name, path))
                else:
                    skipped.append(f"{name}: empty")
        except (SyntaxError, UnicodeDecodeError, OSError) as error:
            skipped.append(f"{name}: {type(error).__name__}")
    if not good:
        raise TextError("this Python has no source of its standard library: give a corpus of text files instead")

    def read() -> Iterator[Document]:
        for name, path in good:
            with tokenize.open(path) as handle:
                text = handle.read()
            yield Document(name, text, partial(spans, text))

    return Corpus("python source", read, LABELS, tuple(skipped))


def label_at(text: str, found: Sequence[Span], offset: int) -> set[str]:
    """Names of the labels that a character carries; for tests and for looking."""
    return {LABELS[s.label] for s in found if s.start <= offset < s.end}
