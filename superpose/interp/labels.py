"""Units against labels: which latent, neuron or direction says best that a token carries a label?

A unit with a threshold (and a side of it) is a detector. Unit, threshold and side are chosen by F1 on one half of the
documents and scored on the other half, whose intervals come from resampling documents. Thresholds are fractions of each
unit's largest value in the first half.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Thresholds, of a unit's largest value."""


class Batch(NamedTuple):
    """Some tokens: values of the units [B, U], labels [B, L], documents [B], and token ids [B]."""

    values: Any
    labels: Any
    documents: Any
    tokens: Any


class Best(NamedTuple):
    """The best detector of each label [L], and how it does on the half that it was not chosen on.

    Attributes:
        unit, threshold, below: the detector is value > threshold, or value <= threshold where ``below``.
        chosen_f1: on the half that it was chosen on.
        precision, recall, f1: on the other half; 0 where undefined.
        correlation: with the label, there, of the unit that correlates best on the first half, which may be another
            than ``unit``; where both sides are tried, times the sign that it had there. 0 where undefined.
        low, high: 95 % interval of f1 over documents.
        draws: [draws, L], f1 in each resampling, the same documents for all units: differences have intervals too.
        tokens, share: [L], tokens with the label in that half, and their share of all; a detector that is always on
            has F1 = 2 share / (1 + share).
    """

    unit: Int[np.ndarray, " L"]
    threshold: Float[np.ndarray, " L"]
    below: Bool[np.ndarray, " L"]
    chosen_f1: Float[np.ndarray, " L"]
    precision: Float[np.ndarray, " L"]
    recall: Float[np.ndarray, " L"]
    f1: Float[np.ndarray, " L"]
    correlation: Float[np.ndarray, " L"]
    low: Float[np.ndarray, " L"]
    high: Float[np.ndarray, " L"]
    draws: Float[np.ndarray, "draws L"]
    tokens: Int[np.ndarray, " L"]
    share: Float[np.ndarray, " L"]


def first_half(documents: Any) -> np.ndarray:
    """Which documents detectors are chosen on: those of even number."""
    return np.asarray(documents) % 2 == 0


class Resampling(NamedTuple):
    """Documents drawn anew, by groups: the group of each row [N], and how often each group is drawn [draws, G]."""

    group: Int[np.ndarray, " N"]
    weights: Int[np.ndarray, "draws G"]


def resampling(documents: Int[np.ndarray, " N"], groups: int = 40, draws: int = 500, seed: int = 0) -> Resampling:
    """Of rows of some documents: those of each half go to ``groups`` groups by turn, or to one each where there are
    fewer. An interval over groups is one over documents: of documents that are alike both have the same width.

    Raises:
        ValueError: a half has fewer than two documents.

    >>> resampling(np.array([4, 4, 5, 6, 7]), groups=2).group.tolist()
    [0, 0, 0, 1, 1]
    """
    names, row = np.unique(documents, return_inverse=True)
    first = first_half(names)
    if min(first.sum(), (~first).sum()) < 2:
        raise ValueError("documents are drawn anew from each half, and one has fewer than two: give more documents")
    turn = np.where(first, np.cumsum(first), np.cumsum(~first))[row.reshape(-1)] - 1
    groups = min(groups, int(first.sum()), int((~first).sum()))
    weights = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), draws)
    return Resampling(turn % groups, weights)


DENSE = 0.05
"""Where more than this share of the values is above 0, they are counted as a whole, else as a sparse matrix."""


def _sparse(place: Any, places: int, weights: Any, token: Any, y: Any) -> np.ndarray:
    """[places, L]: sums over entries of weight times the labels of their token."""
    return sparse.csr_array((weights, (place, token)), shape=(places, len(y))) @ y


def _tally(values: Any, labels: Any, half: Any, thresholds: Any) -> tuple[Any, Any, tuple[Any, Any, Any]]:
    """Over the tokens in the first half: true positives [Q, U, L] and positives [Q, U] of value > threshold [Q, U], and
    sums of x and x^2 [U] and of x y [U, L]."""
    x = np.asarray(values)[half]
    flat = np.flatnonzero(x)
    if len(flat) > DENSE * x.size or x.min(initial=0) < 0 or np.any(thresholds < 0):
        whole, carried = jnp.asarray(values), jnp.asarray(labels)
        found = _count(jnp.where(half[:, None], whole, -jnp.inf), carried & half[:, None], thresholds)
        return *found, _moments(jnp.where(half[:, None], whole, 0.0), carried)
    y, (levels, units) = np.asarray(labels)[half].astype(np.float32), thresholds.shape
    token, unit = np.divmod(flat, units)
    x = x.ravel()[flat]
    passed = (x > thresholds[:, unit]).sum(0)  # a unit's thresholds ascend from 0: those below x are the first ones
    place, ones = (passed - 1) * units + unit, np.ones(len(x), np.float32)
    hits = _sparse(place, levels * units, ones, token, y).reshape(levels, units, -1)
    fires = np.bincount(place, minlength=levels * units).reshape(levels, units)
    moments = (np.bincount(unit, x, units), np.bincount(unit, x * x, units), _sparse(unit, units, x, token, y))
    above = lambda counts: np.cumsum(counts[::-1], 0)[::-1]  # noqa: E731
    return above(hits), above(fires), moments


@jax.jit
def _count(values, labels, thresholds):
    """True positives [Q, U, L] and positives [Q, U] of value > threshold [Q, U]."""
    y = labels.astype(jnp.float32)

    def one(threshold):
        fires = (values > threshold).astype(jnp.float32)
        return fires.T @ y, fires.sum(0)

    return jax.lax.map(one, thresholds)


@jax.jit
def _moments(values, labels):
    """Sums of x and x^2 [U], and of x y [U, L]."""
    return values.sum(0), (values * values).sum(0), values.T @ labels.astype(jnp.float32)


def pearson(n: Any, sx: Any, sxx: Any, sxy: Any, sy: Any, syy: Any) -> np.ndarray:
    """Pearson's r from sums over n tokens; 0 where one of the two does not vary."""
    x, y = np.maximum(sxx / n - (sx / n) ** 2, 0), np.maximum(syy / n - (sy / n) ** 2, 0)
    spread = np.sqrt(x * y)
    return np.where(spread > 0, (sxy / n - sx * sy / n**2) / np.where(spread > 0, spread, 1), 0.0)


def _f1(hits: Any, fires: Any, carries: Any) -> np.ndarray:
    total = fires + carries
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), 0.0)


def best_units(stream: Callable[[], Iterable[Batch]], *, sides: bool = False, draws: int = 1000, seed: int = 0) -> Best:
    """The best detector of each label among the units.

    Args:
        stream: () -> batches of the same tokens in the same order each time; it is read three times.
        sides: whether "at most the threshold" may be a detector too; thresholds below 0 are tried then.
        draws: resamplings of documents.
        seed: of the resampling.

    Raises:
        ValueError: there is no token in one of the halves.
    """
    top: Any = 0.0
    low: Any = 0.0
    seen = False
    for batch in stream():
        half = first_half(batch.documents)
        if half.any():
            values, seen = np.asarray(batch.values)[half], True
            top, low = np.maximum(top, values.max(0)), np.minimum(low, values.min(0))
    if not seen:
        raise ValueError("there is no document of even number to choose detectors on: give more documents")
    ends = (top, low) if sides and np.any(low < 0) else (top,)
    thresholds = np.concatenate([np.array(FRACTIONS)[:, None] * end for end in ends]).astype(np.float32)
    hits: Any = 0.0
    fires: Any = 0.0
    carries: Any = 0.0
    sums: list[Any] = [0.0, 0.0, 0.0]
    count = 0
    for batch in stream():
        half = first_half(batch.documents)
        true, positive, moments = _tally(batch.values, batch.labels, half, thresholds)
        sums = [total + np.asarray(part, np.float64) for total, part in zip(sums, moments, strict=True)]
        hits, fires = hits + np.asarray(true, np.float64), fires + np.asarray(positive, np.float64)
        carries, count = carries + np.asarray(batch.labels)[half].sum(0), count + int(half.sum())
    above = _f1(hits, fires[..., None], carries)
    scores = above[None]
    if sides:
        scores = np.stack([above, _f1(carries - hits, (count - fires)[..., None], carries)])
    flat = scores.reshape(-1, scores.shape[-1])
    chosen = flat.argmax(0)
    side, level, unit = np.unravel_index(chosen, scores.shape[:-1])
    detector = (unit, thresholds[level, unit], side.astype(bool))
    r = pearson(count, sums[0][:, None], sums[1][:, None], sums[2], carries, carries)
    near = (np.abs(r) if sides else r).argmax(0)
    sign = np.sign(r[near, np.arange(len(near))]) if sides else 1.0
    tables = judge(
        stream, lambda batch: _says(batch.values, *detector), lambda batch: sign * np.asarray(batch.values)[:, near]
    )
    return _best(*detector, flat[chosen, np.arange(flat.shape[1])], tables, draws, seed)


def _says(values: Any, unit: Any, threshold: Any, below: Any) -> np.ndarray:
    """[B, L]: what the detector of each label says."""
    return (np.asarray(values)[:, unit] > threshold) != below


class Tables(NamedTuple):
    """Sums over the second half: per document [D, L], and of x, x^2, x y, y and y^2 [L] for the correlation."""

    hits: Float[np.ndarray, "D L"]
    fires: Float[np.ndarray, "D L"]
    carries: Float[np.ndarray, "D L"]
    moments: Float[np.ndarray, "5 L"]
    tokens: int


def judge(stream: Callable[[], Iterable[Batch]], says: Callable, value: Callable) -> Tables:
    """Counts detectors [B, L] of each label on the second half.

    Raises:
        ValueError: there is no token in it.
    """
    parts: dict[int, list[np.ndarray]] = {}
    moments: Any = 0.0
    tokens = 0
    for batch in stream():
        half = ~first_half(batch.documents)
        if not half.any():
            continue
        y, said = np.asarray(batch.labels)[half], says(batch)[half]
        x = np.asarray(value(batch), np.float64)[half]
        moments = moments + np.stack([x.sum(0), (x * x).sum(0), (x * y).sum(0), y.sum(0), y.sum(0)])
        tokens += int(half.sum())
        held = np.asarray(batch.documents)[half]
        for document in np.unique(held):
            here = held == document
            row = np.stack([(said[here] & y[here]).sum(0), said[here].sum(0), y[here].sum(0)]).astype(np.float64)
            parts.setdefault(int(document), []).append(row)
    if not parts:
        raise ValueError("there is no document of odd number to score detectors on: give more documents")
    rows = np.stack([np.sum(p, 0) for p in parts.values()])
    return Tables(rows[:, 0], rows[:, 1], rows[:, 2], moments, tokens)


def _best(unit, threshold, below, chosen_f1, t: Tables, draws: int, seed: int) -> Best:
    hits, fires, carries = t.hits.sum(0), t.fires.sum(0), t.carries.sum(0)
    weights = np.random.default_rng(seed).multinomial(len(t.hits), np.full(len(t.hits), 1 / len(t.hits)), draws)
    drawn = _f1(weights @ t.hits, weights @ t.fires, weights @ t.carries)
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    correlation = pearson(t.tokens, *t.moments)
    over = lambda a, b: np.where(b > 0, a / np.maximum(b, 1), 0.0)  # noqa: E731
    precision, recall, f1 = over(hits, fires), over(hits, carries), _f1(hits, fires, carries)
    return Best(
        unit, np.asarray(threshold), below, chosen_f1, precision, recall, f1, correlation, low, high, drawn,
        carries.astype(np.int64), carries / t.tokens,
    )  # fmt: skip


def by_token(stream: Callable[[], Iterable[Batch]], vocab: int, *, draws: int = 1000, seed: int = 0) -> Best:
    """The best classifier that sees the token's id alone: for each label, the set of ids that has the largest F1 on the
    first half. A unit that is not above it may be a unit for tokens. ``unit`` is -1, ``threshold`` the least share."""
    seen, carried = np.zeros(vocab), None
    for batch in stream():
        half = first_half(batch.documents)
        ids, y = np.asarray(batch.tokens)[half], np.asarray(batch.labels)[half]
        carried = np.zeros((vocab, y.shape[1])) if carried is None else carried
        seen += np.bincount(ids, minlength=vocab)
        carried += _sparse(ids, vocab, np.ones(len(ids)), np.arange(len(ids)), y.astype(np.float64))
    if carried is None:
        raise ValueError("there is no text to choose on")
    share = carried / np.maximum(seen, 1)[:, None]
    L = carried.shape[1]
    accept, least, score = np.zeros((vocab, L), bool), np.zeros(L), np.zeros(L)
    for label in range(L):
        order = np.argsort(-share[:, label], kind="stable")
        hits, fires = np.cumsum(carried[order, label]), np.cumsum(seen[order])
        f1 = _f1(hits, fires, carried[:, label].sum())
        cut = int(f1.argmax())
        accept[order[: cut + 1], label] = True
        least[label], score[label] = share[order[cut], label], f1[cut]
    says = lambda batch: accept[np.asarray(batch.tokens)]  # noqa: E731
    tables = judge(stream, says, lambda batch: share[np.asarray(batch.tokens)])
    return _best(np.full(L, -1), least, np.zeros(L, bool), score, tables, draws, seed)
