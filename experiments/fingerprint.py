"""Which code may make an experiment's numbers, and which draws them: what its functions use, directly or through
others, in this project. Names are resolved as they stand in the source. Of other libraries the names
that are used count; documentation, comments, and what a module does only as a command don't."""

import ast
import functools
import hashlib
import io
import tokenize
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PROJECT = ("superpose", "experiments")
NUMBERS = ("run",)
"""Functions of an experiment that make numbers."""
SETTING = ("experiments.start", "superpose.worlds.prng")
"""Modules that the numbers of every run hang on."""
DRAWING = ("claims", "draw", "tables")
"""Functions of an experiment that judge and draw them."""
ALL = "*"
"""In place of a name: everything in a module."""


class _Source(NamedTuple):
    """A module: texts and what they use, by the name that they define ("" is what runs on import); imported names."""

    texts: dict[str, str]
    uses: dict[str, set[tuple[str, ...]]]
    imported: dict[str, tuple[str, ...]]


def code_fingerprint(experiment: str, functions: tuple[str, ...] = NUMBERS) -> str:
    """SHA-256 (12 digits) over what ``definitions`` finds, without regard to its order."""
    h = hashlib.sha256()
    for (module, name), text in sorted(definitions(experiment, functions).items()):
        h.update(f"{module} {name}\n{text}\n".encode() if text else b"")
    return h.hexdigest()[:12]


def definitions(experiment: str, functions: tuple[str, ...] = NUMBERS) -> dict[tuple[str, str], str]:
    """(module, name) -> text of all that these functions of an experiment use.

    A class counts as a whole, and so does what a module does on import. Of numbers, so do ``SETTING`` and the run of
    each experiment that a module in use imports: it may read what that one leaves.
    """
    home = f"experiments.{experiment}"
    left, makes = [(home, name) for name in functions], functions == NUMBERS
    left += [(module, ALL) for module in SETTING] * makes
    found: dict[tuple[str, str], str] = {}
    while left:
        module, name = place = left.pop()
        source = _source(module)
        if place in found or source is None:
            continue
        found[place] = source.texts.get(name, "")
        left.append((module, ""))
        if "." in module:
            left.append((module.rpartition(".")[0], ""))
        if name == ALL:
            left += [(module, own) for own in source.texts]
        elif name not in source.texts and name in source.imported:
            left.append(_place(source.imported[name]))
        for words in source.uses.get(name, ()):
            if words[0] in source.texts:
                left.append((module, words[0]))
            elif words[0] in source.imported and (there := _place(source.imported[words[0]] + words[1:]))[0]:
                left.append(there)
            elif words[0] in source.imported:
                found[module, f"import {words[0]}"] = ".".join(source.imported[words[0]])
        if makes and module.startswith("experiments."):
            left += [(other, "run") for words in source.imported.values() if _is_experiment(other := _place(words)[0])]
    return found


def _is_experiment(module: str) -> bool:
    return module.startswith("experiments.") and module.count(".") == 2 and bool(_file(module))


def _place(words: tuple[str, ...]) -> tuple[str, str]:
    """(module, name in it) of a dotted name: as many words as name a module, and the next one, or all of it."""
    size = max((k for k in range(1, len(words) + 1) if _file(".".join(words[:k]))), default=0)
    return ".".join(words[:size]), words[size] if size < len(words) else ALL


def _file(module: str) -> Path | None:
    """Of a module of this project; None: it is another's, or no module."""
    place = ROOT.joinpath(*(words := module.split(".")))
    paths = (place.with_suffix(".py"), place / "__init__.py") if words[0] in PROJECT else ()
    return next((path for path in paths if path.is_file()), None)


def _source(module: str) -> _Source | None:
    return _read(path.read_text()) if (path := _file(module)) else None


@functools.cache
def _read(text: str) -> _Source:
    tree, lines = ast.parse(text), text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    silent = {k for node in ast.walk(tree) if _says(node) for k in _span(node)}
    inside = {k for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr) for k in _span(node)[1:]}
    bare = (k for k, line in enumerate(lines, 1) if not line.strip())
    silent |= set(bare) - inside
    imported: dict[str, tuple[str, ...]] = {}
    for at in ast.walk(tree):
        if isinstance(at, ast.Import):
            for alias in at.names:
                words = tuple(alias.name.split("."))
                imported[alias.asname or words[0]] = words if alias.asname else words[:1]
        elif isinstance(at, ast.ImportFrom) and at.module:
            for alias in at.names:
                imported[alias.asname or alias.name] = (*at.module.split("."), alias.name)
    texts: dict[str, list[str]] = defaultdict(list)
    uses: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) or _says(node) or _is_command(node):
            continue
        own = "\n".join(lines[k - 1] for k in _span(node) if k not in silent)
        for name in [name for name in _defines(node) if name not in imported] or [""]:
            texts[name].append(own)
            uses[name] |= _names(node)
    return _Source({name: "\n".join(parts) for name, parts in texts.items()}, dict(uses), imported)


def _span(node) -> range:
    """Lines of a statement, its decorators' among them."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    return range(first, node.end_lineno + 1)


def _says(node) -> bool:
    """A text that stands alone: documentation."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_command(node) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def _defines(node) -> list[str]:
    """Names that a statement of a module gives a meaning to, or changes."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return sorted({n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)})


def _names(node) -> set[tuple[str, ...]]:
    """Names that a statement uses, with what it takes from them: ("jnp", "linalg", "norm")."""
    out, left = set(), [node]
    while left:
        at, words = left.pop(), []
        while isinstance(at, ast.Attribute):
            words.append(at.attr)
            at = at.value
        if isinstance(at, ast.Name):
            out.add((at.id, *reversed(words)))
        else:
            left += ast.iter_child_nodes(at)
    return out
