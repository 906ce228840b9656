"""k-sparse probes: how well a label can be read off the k units that tell most of it (Gurnee et al. 2023, SAEBench).

Units are ranked by the difference of their means between tokens with and without the label, over their standard
deviation, on the documents of even number; a logistic regression of the best k is fitted there, on as many tokens with
the label as without, and scored on the documents of odd number.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from superpose.interp.labels import Resampling


class Probed(NamedTuple):
    """Of each label and k [L, K], on the other half: balanced accuracy, F1, area under the ROC curve; NaN where a half
    has fewer than ``least`` tokens of either kind. ``units`` [L, max k], the chosen ones, best first. ``draws``, that
    area in resamplings of documents, by levels of the probe's score."""

    accuracy: Float[np.ndarray, "L K"]
    f1: Float[np.ndarray, "L K"]
    auroc: Float[np.ndarray, "L K"]
    units: np.ndarray
    draws: Float[np.ndarray, "draws L K"]


LEVELS = 500
"""Of each kind of token: the score's values are ranked by so many of its quantiles, each a level of its own."""


def _drawn(said: np.ndarray, true: np.ndarray, group: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[draws], area under the ROC curve where groups of tokens count so often. Scores between the same two of the
    quantiles are ties; those are of distinct values, for most tokens may share one (silence)."""
    share = np.linspace(0, 1, LEVELS + 1)
    edges = np.unique(np.concatenate([np.quantile(np.unique(said[y]), share) for y in (true, ~true) if y.any()]))
    place = np.searchsorted(edges, said, "left") + np.searchsorted(edges, said, "right")
    Q, G = 2 * len(edges) + 1, weights.shape[1]
    counts = [np.bincount(group[y] * Q + place[y], minlength=G * Q).reshape(G, Q) for y in (true, ~true)]
    up, down = (weights.astype(np.float64) @ c for c in counts)
    below = np.cumsum(down, 1) - 0.5 * down
    total = up.sum(1) * down.sum(1)
    return np.divide((up * below).sum(1), total, out=np.full(len(weights), np.nan), where=total > 0)


def probe(
    values: Any, labels: Bool[np.ndarray, "N L"], fit: Bool[np.ndarray, " N"], score: Bool[np.ndarray, " N"], *,
    ks: Sequence[int] = (1, 2, 5), least: int = 30, most: int = 4000, seed: int = 0, again: Resampling | None = None,
) -> Probed:  # fmt: skip
    """Probes each label from the k best units.

    Args:
        values: [N, U], dense or sparse; one unit or more.
        fit, score: tokens on which units are chosen and probes fitted, and those on which they are scored.
        ks: how many units.
        least: tokens with and without a label that each half needs.
        most: of each kind that a probe is fitted on.
        seed: of the choice of tokens.
        again: resamplings of the rows' documents.
    """
    thin = sparse.issparse(values)
    U = values.shape[1]
    ks = [min(k, U) for k in ks]
    fitted = values.tocsr()[fit] if thin else values[fit]
    n = fitted.shape[0]
    mean = np.asarray(fitted.sum(0, dtype=np.float64)) / n
    square = fitted.power(2) if thin else np.square(fitted)
    spread = np.sqrt(np.maximum(np.asarray(square.sum(0, dtype=np.float64)) / n - mean**2, 0))
    with_label = labels[fit].T.astype(np.float32) @ fitted
    columns = values.tocsc() if thin else values
    counts = labels[fit].sum(0)
    out = np.full((3, labels.shape[1], len(ks)), np.nan)
    draws = np.full((0 if again is None else len(again.weights), labels.shape[1], len(ks)), np.nan)
    chosen = np.zeros((labels.shape[1], max(ks)), int)
    rng = np.random.default_rng(seed)
    for i in range(labels.shape[1]):
        y, positives = labels[:, i], int(counts[i])
        scored = np.flatnonzero(score)
        enough = (positives, n - positives, y[scored].sum(), len(scored) - y[scored].sum())
        if min(enough) < least:
            continue
        inside = with_label[i] / positives
        outside = (mean * n - with_label[i]) / (n - positives)
        apart = np.where(spread > 0, np.abs(inside - outside) / np.where(spread > 0, spread, 1), 0)
        chosen[i] = np.argsort(-apart, kind="stable")[: max(ks)]
        size = min(most, positives, int(n) - positives)
        kinds = [np.flatnonzero(fit & y), np.flatnonzero(fit & ~y)]
        rows = np.concatenate([rng.choice(kind, size, replace=False) for kind in kinds])
        x = columns[:, chosen[i]].toarray() if thin else columns[:, chosen[i]]
        x = x / np.where(spread[chosen[i]] > 0, spread[chosen[i]], 1)
        for j, k in enumerate(ks):
            model = LogisticRegression(max_iter=1000).fit(x[rows, :k], y[rows])
            said = model.decision_function(x[scored, :k])
            true, on = y[scored], said > 0
            hits = (true & on).sum()
            out[:, i, j] = (
                0.5 * (hits / true.sum() + (~true & ~on).sum() / (~true).sum()),
                2 * hits / max(true.sum() + on.sum(), 1), roc_auc_score(true, said),
            )  # fmt: skip
            if again is not None:
                draws[:, i, j] = _drawn(said, true, again.group[scored], again.weights)
    return Probed(out[0], out[1], out[2], chosen, draws)
