"""The table of claims: what was expected, from where, what was measured, and whether it holds; and all figures.

python -m experiments.ledger            writes REPRODUCTION.md and docs/gallery.md from figures/*.json
python -m experiments.ledger --check    exits with 1 if they are not what figures/*.json say
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.results import ROOT, ResultError, load
from superpose.train.checkpoint import WorkdirError, write_atomically

RELATIONS = {
    "=": lambda measured, expected, tolerance: np.all(np.abs(measured - expected) <= tolerance),
    "<=": lambda measured, expected, tolerance: np.all(measured <= expected + tolerance),
    ">=": lambda measured, expected, tolerance: np.all(measured >= expected - tolerance),
    "in": lambda measured, expected, tolerance: np.all(
        (measured >= expected[0] - tolerance) & (measured <= expected[1] + tolerance)
    ),
}
"""relation -> does it hold, elementwise over lists; "in" takes expected as [low, high]."""


@dataclass(frozen=True)
class Claim:
    """One checkable sentence.

    Attributes:
        text: the sentence.
        source: where the expectation comes from: paper and section, or "derived" with where.
        expected: number or list of numbers.
        measured: the same shape ("in": any number or list against [low, high]).
        tolerance: absolute, in the unit of the numbers, chosen before the run.
        relation: a row of ``RELATIONS``: measured <relation> expected, within the tolerance.
        note: why, for a claim that fails or needs a word.
    """

    text: str
    source: str
    expected: Any
    measured: Any
    tolerance: float = 0.0
    relation: str = "="
    note: str = ""

    @property
    def holds(self) -> bool:
        """Computed from the other fields; a measurement that is not finite, or of another length, does not hold.

        >>> Claim("two and two", "arithmetic", 4, 2 + 2).holds
        True
        """
        measured, expected, tolerance = (np.asarray(v, float) for v in (self.measured, self.expected, self.tolerance))
        if self.relation != "in" and measured.shape != expected.shape:
            return False
        if not measured.size or not np.all(np.isfinite(measured)) or not np.isfinite(tolerance):
            return False
        return bool(RELATIONS[self.relation](measured, expected, tolerance))

    def as_json(self) -> dict[str, Any]:
        plain = {k: _finite(np.asarray(v).tolist()) if k in ("expected", "measured", "tolerance") else v
                 for k, v in asdict(self).items()}  # fmt: skip
        return {**plain, "holds": self.holds}


def _finite(value):
    """None in place of what JSON has no number for."""
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value if np.isfinite(value) else None


def _number(value) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_number(v) for v in value) + "]"
    if value is None:
        return "not finite"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _after(about: dict) -> str:
    """What the seconds of a run are of, where they are not of all of it."""
    return " after a resume" if about.get("resumed") else ""


def _judged(about: dict) -> str:
    """Where claims were judged again by another commit (--draw_only)."""
    return f" (judged by `{about['judged']}`)" if about.get("judged", about["commit"]) != about["commit"] else ""


def table(results: dict[str, dict]) -> str:
    """REPRODUCTION.md from name -> the .json of a result."""
    claims = {name: [Claim(**{k: v for k, v in c.items() if k != "holds"}) for c in about["claims"]]
              for name, about in results.items()}  # fmt: skip
    total, hold = sum(len(c) for c in claims.values()), sum(c.holds for cs in claims.values() for c in cs)
    lines = [
        "# Reproduction: every claim, checked",
        "",
        "Made by `python -m experiments.ledger` from `figures/*.json`; do not edit. Expected values and tolerances",
        "stand in the code of each experiment (`claims`). A relation other than equality stands before the expected",
        "value. Losses of toy models are importance-weighted sums over features, means over the batch.",
        "",
        f"**{hold} of {total} claims hold.**",
        "",
    ]
    for name, about in results.items():
        corpus = f", corpus `{about['corpus']}`" if "corpus" in about else ""
        lines += [
            f"## {name}",
            "",
            f"`{about['command']}`, {about['seconds']:.0f} s{_after(about)} on {about['device']}, commit "
            f"`{about['commit']}`{_judged(about)}, config `{about['config_digest']}`{corpus}. "
            f"![{name}](figures/{name}.png)",
            "",
            "| claim | source | expected | measured | tolerance | holds |",
            "|---|---|---|---|---|---|",
        ]
        for c in claims[name]:
            relation = "" if c.relation == "=" else {"<=": "≤ ", ">=": "≥ ", "in": "in "}[c.relation]
            text = c.text + (f" *({c.note})*" if c.note else "")
            cells = (text, c.source, relation + _number(c.expected), _number(c.measured), _number(c.tolerance))
            lines.append("| " + " | ".join(_cell(x) for x in cells) + f" | {'yes' if c.holds else '**no**'} |")
        lines.append("")
    return "\n".join(lines)


WINGS = {"toy": "Toy models", "sae": "Sparse autoencoders", "lm": "Language models"}
"""Folder of an experiment -> the heading of its figures."""


def gallery(results: dict[str, dict], pictures: dict[str, list[str]]) -> str:
    """docs/gallery.md: every figure with its command, its time and its claims.

    Args:
        results: name -> the .json of a result.
        pictures: name -> its files in figures/.
    """
    lines = [
        "# Gallery",
        "",
        "Made by `python -m experiments.ledger` from `figures/*.json`; do not edit. Each figure is that of a full",
        "config; its claims, those that fail among them, stand in [REPRODUCTION.md](../REPRODUCTION.md).",
    ]
    for wing, heading in WINGS.items():
        own = {name: about for name, about in results.items() if about["config"]["experiment"].startswith(f"{wing}.")}
        if own:
            lines += ["", f"## {heading}"]
        for name, about in own.items():
            claims = about["claims"]
            lines += [
                "",
                f"### {name}",
                "",
                f"`{about['command']}`, {about['seconds']:.0f} s{_after(about)} on {about['device']}; "
                f"{sum(c['holds'] for c in claims)} of {len(claims)} [claims](../REPRODUCTION.md#{name}) hold.",
                *(line for file in pictures[name] for line in ("", f"![{name}](../figures/{file})")),
            ]
    return "\n".join(lines) + "\n"


def pictures(folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """name -> its .png files: each belongs to the longest name that it starts with."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for path in sorted(folder.glob("*.png")):
        own = [name for name in found if path.stem == name or path.stem.startswith(f"{name}_")]
        if own:
            found[max(own, key=len)].append(path.name)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", type=Path, default=ROOT / "figures", help="folder with the results")
    parser.add_argument("--out", type=Path, default=ROOT / "REPRODUCTION.md", help="the table")
    parser.add_argument("--gallery", type=Path, default=ROOT / "docs" / "gallery.md", help="the page of all figures")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the table is out of date")
    args = parser.parse_args(argv)
    try:
        results = {path.stem: load(path.with_suffix(""))[1] for path in sorted(args.figures.glob("*.json"))}
        for name, about in results.items():
            if about["name"] != name:
                raise ResultError(f"{args.figures / name}.json is a result of {about['name']}: delete it")
        if not results:
            raise ResultError(f"there are no results in {args.figures}: run `make reproduce` first")
        text = table(results)
        pages = {args.out: text, args.gallery: gallery(results, pictures(args.figures, results))}
        for path, page in pages.items():
            if not args.check:
                write_atomically(path, page.encode())
            elif not path.is_file() or path.read_text() != page:
                raise ResultError(f"{path} is not what {args.figures} says: run python -m experiments.ledger")
    except (ResultError, WorkdirError) as error:
        print(error, file=sys.stderr)
        return 1
    print(next(line for line in text.splitlines() if line.startswith("**")).strip("*"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
