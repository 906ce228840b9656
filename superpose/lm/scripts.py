"""Made-up text in many scripts, mixed inside documents, with the label of every character known.

Ten writing systems have a lexicon (words made of the script's own syllables, drawn by Zipf's law within a part of
speech and a topic), a small grammar (word order, articles, plural and past endings) and their own stops; between their
sentences stand hexadecimal, base64, DNA, numbers, code, addresses. A byte-level tokenizer splits letters of Arabic,
Hebrew, Cyrillic and Greek into a lead byte, which is the script's own, and a continuation byte, which several scripts
share: of the second alone nobody can tell the script. A document is a pure function of (seed, number).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from superpose.lm.text import Corpus, Document, Span

TOPICS = (
    "animals", "body", "colours", "food", "home", "law", "money", "music", "sea", "sky", "tools", "war",
)  # fmt: skip
PARTS = ("noun", "verb", "adjective", "adverb", "preposition", "article", "plural", "past", "first word", "negation")
NOUNS, VERBS, ADJECTIVES, ADVERBS, PREPOSITIONS = 40, 15, 60, 25, 12
"""Words of a lexicon; nouns and verbs are those of one topic."""


@dataclass(frozen=True)
class Script:
    """How words of a writing system are made and put in order.

    Attributes:
        onsets, nuclei, codas: what syllables are made of.
        syllables: fewest and most in a word.
        order: of subject S, verb V and object O.
        article: before a noun; joined to it when it ends in "+".
        plural, past: endings.
        negation: a word before the verb.
        stop, comma, space: signs.
    """

    onsets: Sequence[str]
    nuclei: Sequence[str]
    codas: Sequence[str]
    syllables: tuple[int, int]
    order: str
    article: str
    plural: str
    past: str
    negation: str
    stop: str = ". "
    comma: str = ", "
    space: str = " "


def _chars(first: int, count: int) -> list[str]:
    return [chr(first + i) for i in range(count)]


_HANGUL = [
    chr(0xAC00 + 588 * a + 28 * b + c) for a in (0, 2, 3, 5, 6, 7, 9, 11) for b in (0, 4, 8, 13, 20) for c in (0, 4)
]
_DEVANAGARI = [c for c in _chars(0x0915, 37) if c not in "\u0929\u0931\u0933\u0934"]
SCRIPTS = {
    "Latin": Script("b c d f g h l m n p r s t v".split(), "a e i o u".split(), ["", "", "n", "r", "s"], (1, 3), "SVO",
                    "the", "s", "ed", "not"),
    "accented Latin": Script("b č d f g h k l m ň p ř š t z ž".split(), "á é í ó ů y ä ö".split(), ["", "", "k", "l"],
                             (1, 3), "SVO", "ten", "y", "al", "není"),
    "Cyrillic": Script("б в г д ж з к л м н п р с т ф х ч ш".split(), "а е и о у ы я ю".split(), ["", "", "й", "т"],
                       (1, 3), "SVO", "", "ы", "ла", "не"),
    "Greek": Script("β γ δ ζ θ κ λ μ ν π ρ σ τ φ χ ψ".split(), "α ε η ι ο υ ω ά έ".split(), ["", "", "ς", "ν"], (1, 3),
                    "SVO", "το", "οι", "σε", "δεν"),
    "Arabic": Script(list("بتثجحخدذرزسشصضطظعغفقكلمنهوي"), ["", "", "ا", "و", "ي"], ["", "", "ة"], (2, 3), "VSO", "ال+",
                     "ات", "ت", "لا", ". ", "، "),
    "Hebrew": Script(list("אבגדזחטכלמנסעפצקרשת"), ["", "", "ו", "י", "ה"], ["", "", "ם", "ן"], (2, 3), "SVO", "ה+",
                     "ים", "תי", "לא"),
    "Devanagari": Script(_DEVANAGARI, ["", "ा", "ि", "ी", "ु", "े", "ो"], ["", "", "ं"], (1, 3), "SOV", "", "ओं", "या",
                         "नहीं", "। "),
    "Hangul": Script(_HANGUL, [""], [""], (1, 3), "SOV", "", "들", "었다", "안", ". "),
    "Kana": Script(_chars(0x304B, 40), ["", "ん", "う"], [""], (1, 3), "SOV", "", "たち", "ました", "ない", "。", "、",
                   ""),
    "CJK": Script(_chars(0x4E00, 500), [""], [""], (1, 2), "SVO", "", "們", "了", "不", "。", ",", ""),
}  # fmt: skip
TECHNICAL = (
    "hex", "hash", "colour code", "base64", "base64 padding", "DNA", "DNA start", "protein", "number", "integer",
    "decimal", "date", "time", "money", "percent", "code", "code keyword", "code name", "code string", "code number",
    "code operator", "code bracket", "code comment", "code indentation", "address", "scheme", "domain", "path", "mail",
    "JSON", "JSON key", "JSON value", "year", "exponent", "roman numeral", "binary", "phone", "version",
)  # fmt: skip
OTHER = ("word", "punctuation", "space", "technical", "right to left", "no spaces", "ends a sentence", "heading")
LABELS = (
    *SCRIPTS, *(f"{s} {p}" for s in SCRIPTS for p in PARTS), *(f"{s} {t}" for s in SCRIPTS for t in TOPICS),
    *TECHNICAL, *OTHER,
)  # fmt: skip
_NUMBER = {name: i for i, name in enumerate(LABELS)}
_RIGHT_TO_LEFT, _NO_SPACES = {"Arabic", "Hebrew"}, {"Kana", "CJK"}


class _Page:
    """Text that grows, and what its parts are."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.spans: list[Span] = []
        self.size = 0

    def add(self, text: str, *labels: str) -> None:
        self.spans += [Span(self.size, self.size + len(text), _NUMBER[label]) for label in labels]
        self.parts.append(text)
        self.size += len(text)


class _Lexicon:
    def __init__(self, script: Script, rng: np.random.Generator):
        self.script, self.used = script, {script.article.strip("+"), script.negation}
        self.nouns = [self._words(rng, NOUNS) for _ in TOPICS]
        self.verbs = [self._words(rng, VERBS) for _ in TOPICS]
        self.adjectives, self.adverbs = self._words(rng, ADJECTIVES), self._words(rng, ADVERBS)
        self.prepositions = self._words(rng, PREPOSITIONS)

    def _words(self, rng: np.random.Generator, count: int) -> list[str]:
        s = self.script
        out: list[str] = []
        while len(out) < count:
            size = rng.integers(s.syllables[0], s.syllables[1] + 1)
            parts = [rng.choice(s.onsets) + rng.choice(s.nuclei) for _ in range(size)]
            word = "".join(parts) + rng.choice(s.codas)
            if word not in self.used:
                self.used.add(word)
                out.append(str(word))
        return out


class _Zipf:
    """Draws of ranks with P(rank r) in proportion to 1 / (r + 1)."""

    def __init__(self, size: int):
        self.edges = np.cumsum(1 / np.arange(1, size + 1))

    def __call__(self, rng: np.random.Generator) -> int:
        return int(np.searchsorted(self.edges, rng.random() * self.edges[-1]))


_DRAW = {n: _Zipf(n) for n in (NOUNS, VERBS, ADJECTIVES, ADVERBS, PREPOSITIONS)}


def _sentence(page: _Page, name: str, words: _Lexicon, topic: int, rng: np.random.Generator) -> None:
    s, first = words.script, True
    side = (["right to left"] if name in _RIGHT_TO_LEFT else []) + (["no spaces"] if name in _NO_SPACES else [])

    def say(stem: str, part: str, ending: str = "", ending_part: str = "", joined: bool = False, **more: str) -> None:
        nonlocal first
        extra = [f"{name} first word"] if first else []
        labels = [name, "word", f"{name} {part}", *extra, *side, *more.values()]
        page.add(stem, *labels)
        if ending:
            page.add(ending, *labels, f"{name} {ending_part}")
        first = False
        if not joined and s.space:
            page.add(s.space, "space")

    def noun_phrase() -> None:
        now = topic if rng.random() < 0.85 else int(rng.integers(len(TOPICS)))
        if s.article and rng.random() < 0.5:
            say(s.article.strip("+"), "article", joined=s.article.endswith("+"))
        if rng.random() < 0.35:
            say(words.adjectives[_DRAW[ADJECTIVES](rng)], "adjective")
        noun = words.nouns[now][_DRAW[NOUNS](rng)]
        several = rng.random() < 0.3
        say(noun, "noun", s.plural if several else "", "plural", topic=f"{name} {TOPICS[now]}")
        if rng.random() < 0.2:
            say(words.prepositions[_DRAW[PREPOSITIONS](rng)], "preposition")
            say(words.nouns[now][_DRAW[NOUNS](rng)], "noun", topic=f"{name} {TOPICS[now]}")

    def verb() -> None:
        if rng.random() < 0.1:
            say(s.negation, "negation")
        past = rng.random() < 0.4
        stem = words.verbs[topic][_DRAW[VERBS](rng)]
        say(stem, "verb", s.past if past else "", "past", topic=f"{name} {TOPICS[topic]}")
        if rng.random() < 0.25:
            say(words.adverbs[_DRAW[ADVERBS](rng)], "adverb")

    for clause in range(1 if rng.random() < 0.8 else 2):
        if clause:
            _end(page, s.comma)
        for role in s.order:
            if role == "V":
                verb()
            else:
                noun_phrase()
    _end(page, s.stop, "ends a sentence")


def _end(page: _Page, sign: str, *labels: str) -> None:
    """A stop or comma, which stands directly after the last word."""
    if page.parts and page.parts[-1] == " ":
        page.parts.pop()
        page.size -= 1
        page.spans = [x for x in page.spans if x.start < page.size]
    page.add(sign.rstrip(), "punctuation", *labels)
    if sign.endswith(" "):
        page.add(" ", "space")


# --- what is no language ----------------------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, alphabet: str, size: int) -> str:
    return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=size))


def _hex(page: _Page, rng: np.random.Generator) -> None:
    match int(rng.integers(3)):
        case 0:
            page.add("0x" + _pick(rng, "0123456789abcdef", int(rng.choice([4, 8, 16]))), "hex", "technical")
        case 1:
            page.add(_pick(rng, "0123456789abcdef", int(rng.choice([32, 40, 64]))), "hex", "hash", "technical")
        case _:
            page.add("#" + _pick(rng, "0123456789abcdef", 6), "hex", "colour code", "technical")


_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def _base64(page: _Page, rng: np.random.Generator) -> None:
    page.add(_pick(rng, _BASE64, 4 * int(rng.integers(6, 25)) - 2), "base64", "technical")
    page.add("==", "base64", "base64 padding", "technical")


def _dna(page: _Page, rng: np.random.Generator) -> None:
    if rng.random() < 0.8:
        page.add("ATG", "DNA", "DNA start", "technical")
        page.add(_pick(rng, "ACGT", 3 * int(rng.integers(8, 30))), "DNA", "technical")
    else:
        page.add("M" + _pick(rng, "ACDEFGHIKLMNPQRSTVWY", int(rng.integers(20, 60))), "protein", "technical")


def _number(page: _Page, rng: np.random.Generator) -> None:
    n = lambda low, high: int(rng.integers(low, high))  # noqa: E731
    said = {
        "integer": f"{n(0, 10 ** n(1, 8))}", "decimal": f"{n(0, 1000)}.{n(0, 10000)}",
        "date": f"{n(1900, 2030)}-{n(1, 13):02d}-{n(1, 29):02d}", "time": f"{n(0, 24):02d}:{n(0, 60):02d}",
        "money": f"${n(1, 10_000)}.{n(0, 100):02d}", "percent": f"{n(0, 101)}%", "year": f"{n(1700, 2030)}",
        "exponent": f"{n(1, 10)}.{n(0, 100)}e{n(-20, 20)}", "binary": "0b" + _pick(rng, "01", n(4, 17)),
        "phone": f"+{n(1, 99)} {n(100, 999)} {n(1000, 9999)}", "version": f"v{n(0, 9)}.{n(0, 30)}.{n(0, 30)}",
        "roman numeral": _pick(rng, "XXIVLC", n(2, 6)),
    }  # fmt: skip
    kind = list(said)[n(0, len(said))]
    page.add(said[kind], "number", kind, "technical")


_NAMES = "count index value total node left right name result items buffer offset size key token state".split()


def _code(page: _Page, rng: np.random.Generator) -> None:
    name = lambda: str(rng.choice(_NAMES))  # noqa: E731

    def add(text: str, kind: str) -> None:
        page.add(text, "code", "technical", f"code {kind}")

    def plain(text: str) -> None:
        page.add(text, "code", "technical")

    def value() -> None:
        match int(rng.integers(3)):
            case 0:
                add(str(int(rng.integers(0, 100))), "number")
            case 1:
                add(f'"{name()}"', "string")
            case _:
                add(name(), "name")

    def call() -> None:
        add(name(), "name")
        add("(", "bracket")
        value()
        if rng.random() < 0.5:
            add(",", "operator")
            plain(" ")
            value()
        add(")", "bracket")

    add("def", "keyword")
    plain(" ")
    add(name(), "name")
    add("(", "bracket")
    add(name(), "name")
    add(")", "bracket")
    add(":", "operator")
    plain("\n")
    for _ in range(int(rng.integers(1, 5))):
        add("    ", "indentation")
        match int(rng.integers(4)):
            case 0:
                add(name(), "name")
                plain(" ")
                add(str(rng.choice(["=", "+=", "-="])), "operator")
                plain(" ")
                call()
            case 1:
                add(str(rng.choice(["if", "while"])), "keyword")
                plain(" ")
                add(name(), "name")
                plain(" ")
                add(str(rng.choice(["<", ">", "=="])), "operator")
                plain(" ")
                value()
                add(":", "operator")
                plain(" ")
                add("pass", "keyword")
            case 2:
                add(f"# {name()} {name()}", "comment")
            case _:
                add("return", "keyword")
                plain(" ")
                value()
        plain("\n")


def _address(page: _Page, rng: np.random.Generator) -> None:
    word = lambda: _pick(rng, "abcdefghiklmnoprstuw", int(rng.integers(3, 9)))  # noqa: E731
    domain = f"{word()}.{rng.choice(['com', 'org', 'net', 'io'])}"
    if rng.random() < 0.3:
        page.add(f"{word()}@{domain}", "address", "mail", "technical")
        return
    page.add("https://", "address", "scheme", "technical")
    page.add(domain, "address", "domain", "technical")
    page.add("".join(f"/{word()}" for _ in range(int(rng.integers(1, 4)))), "address", "path", "technical")


def _json(page: _Page, rng: np.random.Generator) -> None:
    page.add("{", "JSON", "technical")
    for i in range(int(rng.integers(1, 5))):
        if i:
            page.add(", ", "JSON", "technical")
        page.add(f'"{rng.choice(_NAMES)}"', "JSON", "JSON key", "technical")
        page.add(": ", "JSON", "technical")
        value = str(int(rng.integers(0, 1000))) if rng.random() < 0.5 else f'"{rng.choice(_NAMES)}"'
        page.add(value, "JSON", "JSON value", "technical")
    page.add("}", "JSON", "technical")


_OTHERS: tuple[Callable[[_Page, np.random.Generator], None], ...] = (
    _hex, _base64, _dna, _number, _number, _code, _address, _json,
)  # fmt: skip


def document(number: int, seed: int, lexicons: dict[str, Any], weights: np.ndarray | None = None) -> Document:
    """One document: a heading, then pieces of two to four scripts and of what is no language, in turn.

    Args:
        weights: how likely each script is to be chosen, adding up to 1; None makes all alike.
    """
    rng = np.random.default_rng([seed, 1, number])
    names = list(lexicons)
    chosen = [names[i] for i in rng.choice(len(names), size=int(rng.integers(2, 5)), replace=False, p=weights)]
    page, topic = _Page(), int(rng.integers(len(TOPICS)))
    heading = chosen[0]
    page.add("# ", "heading", "punctuation")
    page.add(
        lexicons[heading].nouns[topic][0], heading, "word", "heading", f"{heading} noun", f"{heading} {TOPICS[topic]}"
    )
    page.add("\n", "space")
    for _ in range(int(rng.integers(4, 12))):
        if rng.random() < 0.3:
            _OTHERS[int(rng.integers(len(_OTHERS)))](page, rng)
        else:
            name = chosen[int(rng.integers(len(chosen)))]
            topic = int(rng.integers(len(TOPICS))) if rng.random() < 0.3 else topic
            for _ in range(int(rng.integers(1, 5))):
                _sentence(page, name, lexicons[name], topic, rng)
                if rng.random() < 0.08:
                    _number(page, rng)
                    page.add(" ", "space")
        page.add("\n" if rng.random() < 0.6 else " ", "space")
    return Document(f"scripts {seed}/{number}", "".join(page.parts), lambda: page.spans)


def scripts(documents: int, seed: int = 0, rare: Sequence[str] = (), weight: float = 1.0) -> Corpus:
    """A corpus of so many documents (each of about 550 characters), with ``LABELS``.

    Args:
        rare: scripts that are chosen ``weight`` times as often as each of the others, as some are on the web (Bricken
            et al. 2023: Arabic is 0.13 % of the tokens).

    Raises:
        ValueError: an unknown script, or a weight that is not above 0.

    >>> len(LABELS) >= 200, next(scripts(1).read()).text.startswith("# ")
    (True, True)
    """

    if unknown := sorted(set(rare) - set(SCRIPTS)):
        raise ValueError(f"there is no script {unknown[0]!r}: they are {', '.join(SCRIPTS)}")
    if not (np.isfinite(weight) and weight > 0):
        raise ValueError(f"the weight of rare scripts must be a number above 0, got {weight}")
    sizes = np.array([weight if name in rare else 1.0 for name in SCRIPTS])
    weights = sizes / sizes.sum() if rare else None

    def read():
        lexicons = {
            name: _Lexicon(script, np.random.default_rng([seed, 0, i]))
            for i, (name, script) in enumerate(SCRIPTS.items())
        }
        for number in range(documents):
            yield document(number, seed, lexicons, weights)

    some = f", rare={', '.join(rare)}, weight={weight:g}" if rare else ""
    return Corpus(f"scripts(documents={documents}, seed={seed}{some})", read, LABELS)
