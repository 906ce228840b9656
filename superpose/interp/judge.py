"""Detection and fuzzing: scores of an explanation by a judge: any function (a person, a language model, a rule).

The judge reads an explanation and texts and says of each how sure it is that it fits. Detection: does the text hold a
token on which the feature is on? Fuzzing: are the marked tokens those? Both are balanced accuracies, so that a judge
that always says the same gets one half (Paulo et al. 2024, "Automatically Interpreting Millions of Features"; windows,
strata and marks as there: 32 tokens, one text from each tenth of the activations by rank, tokens of at least 0.3 of the
largest activation in the text marked).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from superpose.lm.text import Contexts, written

Judge = Callable[[str, Sequence[str]], Sequence[float]]
"""(explanation, texts) -> how sure it is of each, 0 to 1; more than one half counts as yes."""
WINDOW = 32
MARKED = 0.3
OPEN, CLOSE = b"<<", b">>"


class Answer(ValueError):
    """A judge's answer that is none; the message is one sentence for a person."""


class Judged(NamedTuple):
    """Balanced accuracies of one explanation, NaN where a kind of text is missing, and how many texts were shown."""

    detection: float
    fuzzing: float
    texts: int


def _window(row: int, contexts: Contexts) -> tuple[int, int, int]:
    """Context of a row, and the first and one past the last place of the window around it."""
    C = contexts.tokens.shape[1]
    context, place = divmod(row, C)
    length = int(contexts.lengths[context])
    start = max(0, min(place - WINDOW // 2, length - WINDOW))
    return context, start, min(start + WINDOW, length)


def _text(ids: np.ndarray, pieces: Sequence[bytes], marked: Bool[np.ndarray, " T"] | None = None) -> str:
    """Tokens as one text; neighbours that are marked share one pair of marks."""
    parts, inside = [], False
    for i, token in enumerate(ids):
        now = marked is not None and bool(marked[i])
        parts += [OPEN if now and not inside else CLOSE if inside and not now else b"", pieces[token]]
        inside = now
    return written(b"".join([*parts, CLOSE if inside else b""]))


def _asked(judge: Judge, explanation: str, yes: Sequence[str], no: Sequence[str], rng: np.random.Generator) -> float:
    """Balanced accuracy; the texts are given in random order.

    Raises:
        Answer: the judge's answers are of another number or no numbers from 0 to 1.
    """
    if not yes or not no:
        return float("nan")
    texts, true = [*yes, *no], np.arange(len(yes) + len(no)) < len(yes)
    order = rng.permutation(len(texts))
    answers = judge(explanation, [texts[i] for i in order])
    try:
        said = np.asarray([] if isinstance(answers, str) else answers, float)
    except (TypeError, ValueError):
        raise Answer(f"it must say numbers from 0 to 1, and said {str(answers)[:60]}") from None
    if said.shape != (len(texts),) or not ((said >= 0) & (said <= 1)).all():
        raise Answer(
            f"it must say a number from 0 to 1 of each of the {len(texts)} texts, and said {np.shape(said)} "
            f"numbers, {said.ravel()[:3].tolist()} first"
        )
    right = (said > 0.5) == true[order]
    return float((right[true[order]].mean() + right[~true[order]].mean()) / 2)


def score(
    judge: Judge,
    explanation: str,
    rows: np.ndarray,
    values: Float[np.ndarray, " n"],
    contexts: Contexts,
    keep: Bool[np.ndarray, " N"],
    pieces: Sequence[bytes],
    *,
    each: int = 10,
    seed: int = 0,
) -> Judged:
    """Asks the judge about one feature.

    Args:
        rows, values: [n], where the feature is on and how much, as a column of ``codes.Codes.block``; rows ascend.
        contexts, keep: of the codes, and the tokens that were not left out.
        pieces: bytes of each token.
        each: texts with the feature, and as many without it.

    Raises:
        Answer: see ``Judge``.
    """
    C, rng = contexts.tokens.shape[1], np.random.default_rng(seed)
    acts = np.zeros(len(keep), np.float32)
    acts[rows] = values
    strata = np.array_split(rows[np.argsort(values, kind="stable")], each)
    on = [int(rng.choice(part)) for part in strata if len(part)]
    candidates = np.flatnonzero(keep)
    off: list[int] = []
    for row in rng.permutation(candidates)[: 50 * each]:
        c, start, end = _window(int(row), contexts)
        if not acts[c * C + start : c * C + end].any():
            off.append(int(row))
            if len(off) == each:
                break

    spans = [_window(row, contexts) for row in on]
    ids = [contexts.tokens[c, start:end] for c, start, end in spans]
    said = [acts[c * C + start : c * C + end] for c, start, end in spans]
    true = [a >= MARKED * a.max() for a in said]
    few = int(np.ceil(np.mean([m.sum() for m in true]))) if true else 0
    wrong = []
    for a in said:
        silent = np.flatnonzero(a == 0)
        mark = np.zeros(len(a), bool)
        mark[rng.choice(silent, min(few, len(silent)), replace=False)] = True
        wrong.append(mark)
    without = [contexts.tokens[c, start:end] for c, start, end in (_window(row, contexts) for row in off)]
    detection = _asked(judge, explanation, [_text(x, pieces) for x in ids], [_text(x, pieces) for x in without], rng)
    # half of the texts with the feature are marked rightly, the others wrongly: none is seen twice
    right = [_text(x, pieces, m) for x, m in zip(ids[::2], true[::2], strict=True)]
    false = [_text(x, pieces, m) for x, m in zip(ids[1::2], wrong[1::2], strict=True) if m.any()]
    return Judged(detection, _asked(judge, explanation, right, false, rng), len(on) + len(off))
