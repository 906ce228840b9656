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


class Probed(NamedTuple):
    """Of each label and k [L, K], on the other half: balanced accuracy, F1, area under the ROC curve; NaN where a half
    has fewer than ``least`` tokens of either kind. ``units`` [L, max k], the chosen ones, best first."""

    accuracy: Float[np.ndarray, "L K"]
    f1: Float[np.ndarray, "L K"]
    auroc: Float[np.ndarray, "L K"]
    units: np.ndarray


def probe(
    values: Any, labels: Bool[np.ndarray, "N L"], fit: Bool[np.ndarray, " N"], score: Bool[np.ndarray, " N"], *,
    ks: Sequence[int] = (1, 2, 5), least: int = 30, most: int = 4000, seed: int = 0,
) -> Probed:  # fmt: skip
    """Probes each label from the k best units.

    Args:
        values: [N, U], dense or sparse; one unit or more.
        fit, score: tokens on which units are chosen and probes fitted, and those on which they are scored.
        ks: how many units.
        least: tokens with and without a label that each half needs.
        most: of each kind that a probe is fitted on.
        seed: of the choice of tokens.
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
    return Probed(out[0], out[1], out[2], chosen)
