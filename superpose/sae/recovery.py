"""Scores of an SAE against the features that made its data: which it found, and how well each latent detects one.

By direction: `cosines` of decoder rows [F, d] with the true directions [n, d]; then `mmcs`, `mcc`, `uniqueness`,
`recovered` and `matched_mass` read only that matrix [F, n]. Its absolute value counts everywhere: a signed latent may
point against its feature.

By activity, over a stream of latents ``acts`` [B, F] and true features [B, n], both active where != 0:

    total = None
    for acts, features in batches:
        total = recovery.add(total, recovery.coactivation(acts, features))
    recovery.f1(total)                                                    # every latent with every feature, [F, n]
    recovery.macro(recovery.detection(recovery.confusion(total, match)))  # each latent with its own feature

`coactivation` counts all pairs and costs a product of [F, B] and [B, n]. `pairs` counts each latent with one feature
only, at a cost of B F, and adds the correlation of magnitudes. `firings` keeps what the best threshold needs.

``live`` [F] marks the latents that live; the others can match nothing. None: all live. What is undefined (0 / 0) counts
as 0, as in SAELens' ``synthetic.evals``, so that dead latents pull a mean down; only `absorption_gap` says NaN, where 0
would claim something. Counts are exact: below 2^24 tokens a batch on the device, in int64 on the host.

A score says little without its chance level. F random rows in d dimensions reach an MMCS a little below
sqrt(1 - F^(-2/d)) (0.45 for F = 4096, d = 64), and independent firing with densities p and q an F1 of 2 p q / (p + q).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num
from scipy.optimize import linear_sum_assignment

from superpose.sae.metrics import NO_SPREAD, kept, unit_rows

LARGEST_BATCH = 2**24
"""Float32 counts every whole number up to this one."""


# ---- by direction


def cosines(W_dec: Float[ArrayLike, "F d"], directions: Float[ArrayLike, "n d"]) -> Float[Array, "F n"]:
    """cos(row j of W_dec, direction i), in float32 or wider; 0 for a row or direction of zeros. Pure.

    >>> print(cosines(jnp.array([[0.0, 2.0], [0.0, 0.0]]), jnp.eye(2)))
    [[0. 1.]
     [0. 0.]]
    """
    W_dec, directions = jnp.asarray(W_dec), jnp.asarray(directions)
    if W_dec.ndim != 2 or directions.ndim != 2 or W_dec.shape[1] != directions.shape[1]:
        raise ValueError(f"W_dec must be [F, d] and directions [n, d], got {W_dec.shape} and {directions.shape}")
    return jnp.matmul(unit_rows(W_dec), unit_rows(directions).T, precision=lax.Precision.HIGHEST)


class Best(NamedTuple):
    """For each latent and each feature, its best partner by |cos|, and that |cos|.

    Attributes:
        feature: best feature of each latent, [F].
        latent_cosine: its |cos|, [F]; 0 for latents that don't live.
        latent: best live latent of each feature, [n].
        feature_cosine: its |cos|, [n].
    """

    feature: Int[np.ndarray, " F"]
    latent_cosine: Float[np.ndarray, " F"]
    latent: Int[np.ndarray, " n"]
    feature_cosine: Float[np.ndarray, " n"]


def best(cosines: Float[ArrayLike, "F n"], live: Bool[ArrayLike, " F"] | None = None) -> Best:
    """Best partners, many to one both ways. Equal ones: the first. Host only.

    Two latents that both point to feature 1, one of them against it:

    >>> found = best(np.array([[0.0, 0.8], [0.6, -0.9]]))
    >>> print(found.feature, found.latent)
    [1 1] [1 1]
    """
    size, _ = _sizes(cosines, live)
    feature, latent = size.argmax(1), size.argmax(0)
    return Best(feature, size[np.arange(len(size)), feature], latent, size[latent, np.arange(len(latent))])


def _sizes(
    cosines: Float[ArrayLike, "F n"], live: Bool[ArrayLike, " F"] | None
) -> tuple[Float[np.ndarray, "F n"], Bool[np.ndarray, " F"]]:
    """|cos|, 0 in the rows of latents that don't live, and which live."""
    size = np.abs(np.asarray(cosines))
    if size.ndim != 2 or 0 in size.shape:
        raise ValueError(f"cosines must be [F, n] with at least one latent and one feature, got {size.shape}")
    if not np.isfinite(size).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(size).all(1))} of {len(size)} latents have NaN or infinite cosines: "
            "look for such values in W_dec and the directions"
        )
    live = _living(live, len(size))
    return np.where(live[:, None], size, 0), live


def _living(live: Bool[ArrayLike, " F"] | None, F: int) -> Bool[np.ndarray, " F"]:
    """Which latents live; all for None. Numbers are refused: they would be taken for indices."""
    living = np.ones(F, bool) if live is None else np.asarray(live)
    if living.shape != (F,) or living.dtype != bool:
        raise ValueError(
            f"live must have one entry for each of {F} latents, True or False, got {living.shape} of {living.dtype}"
        )
    return living


class MMCS(NamedTuple):
    """Mean max cosine similarity, both ways."""

    true_to_latent: float
    latent_to_true: float


def mmcs(cosines: Float[ArrayLike, "F n"], live: Bool[ArrayLike, " F"] | None = None) -> MMCS:
    """Mean max cosine similarity (Sharkey, Braun & Millidge 2022, with |cos| in place of cos). Host only.

    ``true_to_latent`` = mean over features i of max over live latents j of |cos_ji|: were all features found?
    ``latent_to_true`` = mean over live latents j of max over features i of |cos_ji|: is each latent one feature?
    Both are many to one, so that duplicates cost nothing.

    >>> mmcs(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.5]]), live=np.array([True, True, False]))
    MMCS(true_to_latent=0.5, latent_to_true=1.0)
    """
    size, live = _sizes(cosines, live)
    return MMCS(float(np.mean(size.max(0))), float(np.mean(size.max(1)[live])) if np.any(live) else 0.0)


class Matching(NamedTuple):
    """Pairs (latents[p], features[p]): no latent and no feature is in two of them. Sorted by latent."""

    latents: Int[np.ndarray, " pairs"]
    features: Int[np.ndarray, " pairs"]


def matching(cosines: Float[ArrayLike, "F n"], live: Bool[ArrayLike, " F"] | None = None) -> Matching:
    """The one-to-one matching of live latents with features that has the largest sum of |cos| (Hungarian). Host only.

    It has min(live latents, n) pairs, however small their cosine.

    >>> matching(np.array([[0.9, 0.8], [0.8, 0.0]]))
    Matching(latents=array([0, 1]), features=array([1, 0]))
    """
    size, live = _sizes(cosines, live)
    rows, columns = linear_sum_assignment(size[live], maximize=True)
    return Matching(np.flatnonzero(live)[rows], columns)


def _matched(cosines: Float[ArrayLike, "F n"], live: Bool[ArrayLike, " F"] | None) -> Float[np.ndarray, " pairs"]:
    return np.abs(np.asarray(cosines))[matching(cosines, live)].astype(np.float64)


def mcc(cosines: Float[ArrayLike, "F n"], live: Bool[ArrayLike, " F"] | None = None) -> float:
    """Mean correlation coefficient: the mean |cos| over the pairs of `matching`; 0 without pairs. Host only.

    arXiv 2505.20254, there between two dictionaries. A duplicate takes the place of a feature that was missed, which
    lowers it where F <= n; surplus latents beyond the min(F, n) pairs cost nothing: `matched_mass` counts them.

    >>> mcc(np.array([[1.0, 0.0], [1.0, 0.0]]))
    0.5
    """
    found = _matched(cosines, live)
    return float(np.mean(found)) if found.size else 0.0


def uniqueness(cosines: Float[ArrayLike, "F n"], live: Bool[ArrayLike, " F"] | None = None) -> float:
    """How many different features are the best one of some live latent, over the number F of all latents. Host only.

    SAELens' definition, with all latents live. Each latent points to its own argmax of |cos|; over the pairs of
    `matching` the number would be 1 by construction. At most n / F where F > n.

    >>> uniqueness(np.array([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.9, 0.1]]))
    0.5
    """
    size, live = _sizes(cosines, live)
    return len(np.unique(size.argmax(1)[live])) / len(size)


def recovered(
    cosines: Float[ArrayLike, "F n"],
    threshold: float | Sequence[float] = 0.9,
    live: Bool[ArrayLike, " F"] | None = None,
) -> Float[np.ndarray, "*thresholds"]:
    """Share of features whose best live latent has |cos| > threshold; usual thresholds are 0.8, 0.9, 0.95. Host only.

    >>> print(recovered(np.array([[0.85, 0.0], [0.0, -0.99]]), (0.8, 0.9)))
    [1.  0.5]
    """
    size, _ = _sizes(cosines, live)
    return np.asarray(np.mean(size.max(0)[:, None] > np.ravel(threshold), 0).reshape(np.shape(threshold)))


class Mass(NamedTuple):
    """Scores of the matched mass; `matched_mass` gives the formulas."""

    precision: float
    recall: float
    f1: float
    jaccard: float


def matched_mass(cosines: Float[ArrayLike, "F n"], live: Bool[ArrayLike, " F"] | None = None) -> Mass:
    """Recovery with a price on surplus: A = sum of |cos| over the pairs of `matching`, of F latents and n features.

    precision = A / F, recall = A / n, f1 = 2 A / (F + n), jaccard = A / (F + n - A). Latents that don't live are never
    matched and still count in F: a dead latent is a latent spent (definition: SauersML/gam#1434 and #1435). Host only.

    Two features found by three latents, of which one is dead:

    >>> matched_mass(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), live=np.array([True, True, False]))
    Mass(precision=0.666666, recall=1.0, f1=0.8, jaccard=0.666666)
    """
    A = float(np.sum(_matched(cosines, live)))
    F, n = np.shape(np.asarray(cosines))
    return Mass(A / F, A / n, 2 * A / (F + n), A / (F + n - A))


def reorder(cosines: Float[ArrayLike, "F n"], live: Bool[ArrayLike, " F"] | None = None) -> Int[np.ndarray, " F"]:
    """Order of the latents in which ``|cosines[order]|`` is a staircase. Host only.

    By best feature; for equal ones the larger |cos| first; latents that have none (a zero row, or not live) last.

    >>> print(reorder(np.array([[0.0, 0.0], [0.1, 0.9], [1.0, 0.0], [0.2, 0.95]])))
    [2 3 1 0]
    """
    size, _ = _sizes(cosines, live)
    top = size.max(1)
    return np.lexsort((-top, np.where(top > 0, size.argmax(1), size.shape[1])))


# ---- by activity: counts of all pairs


class Counts(NamedTuple):
    """Tokens at which latents and features are active: of one batch on the device, of a stream in int64 on the host.

    Attributes:
        tokens: number of tokens N.
        latent: with latent j active, [F].
        feature: with feature i active, [n].
        both: with both active, [F, n].
        bad: values of acts and of features that are NaN or infinite, [2].
    """

    tokens: Any
    latent: Any
    feature: Any
    both: Any
    bad: Any


def _active(
    acts: Num[ArrayLike, "B F"], features: Num[ArrayLike, "B n"], mask: Bool[ArrayLike, " B"] | None
) -> tuple[Array, Array, Array, Array]:
    """acts and features with zeros where the mask is False, the mask as an array, and counts of bad values."""
    acts, features = jnp.asarray(acts), jnp.asarray(features)
    if acts.ndim != 2 or features.ndim != 2 or len(acts) != len(features):
        raise ValueError(f"acts must be [B, F] and features [B, n], got {acts.shape} and {features.shape}")
    if not 0 < len(acts) < LARGEST_BATCH:
        raise ValueError(f"a batch must have between 1 and {LARGEST_BATCH - 1} tokens, got {len(acts)}: split it")
    keep = kept(mask, len(acts))
    acts, features = jnp.where(keep[:, None], acts, 0), jnp.where(keep[:, None], features, 0)
    return acts, features, keep, jnp.stack([jnp.sum(~jnp.isfinite(v)) for v in (acts, features)])


def _strays(index: Int[Array, " k"], size: int) -> Int[Array, ""]:
    """How many indices name none of ``size`` things."""
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(f"features and latents are named by whole numbers, got {index.dtype}")
    return jnp.sum((index < 0) | (index >= size))


@jax.jit
def coactivation(
    acts: Num[ArrayLike, "B F"], features: Num[ArrayLike, "B n"], mask: Bool[ArrayLike, " B"] | None = None
) -> Counts:
    """Counts of one batch, for every latent with every feature. Pure. Exact on any device.

    The product of two matrices of 0 and 1, which every matmul precision holds exactly; float32 adds them exactly below
    2^24 tokens. Batches may be added on the device (``jax.tree.map``) before `add` takes them to the host, as long as
    they have fewer than 2^31 tokens together: worth it where F x n is large.

    >>> counts = coactivation(jnp.array([[0.5, 0.0], [-2.0, 0.1]]), jnp.array([[1.0], [0.0]]))
    >>> print(counts.latent, counts.feature, counts.both.T)
    [2 1] [1] [[1 0]]
    """
    acts, features, keep, bad = _active(acts, features, mask)
    on, true = acts != 0, features != 0
    both = jnp.matmul(on.T.astype(jnp.float32), true.astype(jnp.float32))
    return Counts(jnp.sum(keep), jnp.sum(on, 0), jnp.sum(true, 0), both.astype(int), bad)


def _checked(batch: Any) -> Any:
    """The batch on the host, unless it holds what can't be counted."""
    host = jax.device_get(batch)
    if np.ndim(host.tokens):
        raise ValueError(f"these are the counts of {host.tokens.shape} members: add them one member at a time")
    names = ("NaN or infinite values of acts", "NaN or infinite values of features", "matches of no feature")
    bad = [f"{n} {name}" for n, name in zip(host.bad, names, strict=False) if n]
    if bad:
        raise ValueError(f"a batch of {host.tokens} tokens holds {', '.join(bad)}: mend them or mask the tokens out")
    if not all(np.isfinite(v).all() for v in jax.tree.leaves(host)):
        raise ValueError("the squares of acts or features exceed the range of float32: scale them down")
    return host


def add(total: Any, batch: Any) -> Any:
    """Adds one batch of `coactivation`, `pairs` or `edges` to the total of its kind, on the host. None starts a stream.

    Another total may stand for the batch, for example that of another host.

    Raises:
        ValueError: NaN, infinite values, or matches out of range in the batch (how many of which); squares beyond
            float32; or another shape or kind than the total.
    """
    host: Any = batch if isinstance(batch, PairTotals) else _checked(batch)
    if isinstance(batch, Pairs):
        host = _about_zero(host)
    host = jax.tree.map(lambda v: np.asarray(v).astype(np.int64 if np.asarray(v).dtype.kind == "i" else float), host)
    if total is None:
        return host
    if type(total) is not type(host):
        raise ValueError(f"a total of {type(total).__name__} can't take {type(host).__name__}: keep one for each kind")
    shapes = [[v.shape for v in jax.tree.leaves(one)] for one in (total, host)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the total has shapes {shapes[0]} and the batch {shapes[1]}: keep one total for each SAE")
    return jax.tree.map(np.add, total, host)


def _over(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """a / b in float64, and 0 where b = 0."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    return np.divide(a, b, out=np.zeros(a.shape), where=b != 0)


def precision(counts: Counts) -> Float[np.ndarray, "F n"]:
    """P(feature i active | latent j active) for every pair; 0 for dead latents."""
    return _over(counts.both, np.asarray(counts.latent)[:, None])


def recall(counts: Counts) -> Float[np.ndarray, "F n"]:
    """P(latent j active | feature i active) for every pair; 0 for features that never were active."""
    return _over(counts.both, np.asarray(counts.feature)[None, :])


def f1(counts: Counts) -> Float[np.ndarray, "F n"]:
    """F1 of latent j as a detector of feature i, 2 both / (latent + feature), for every pair.

    ``f1(counts).max(0)`` is the best of each feature and ``.max(1)`` that of each latent, chosen by activity instead
    of by direction.

    >>> print(f1(add(None, coactivation(jnp.array([[0.5, 0.0], [2.0, 0.1]]), jnp.array([[1.0], [0.0]])))))
    [[0.666666]
     [0.      ]]
    """
    return _over(2 * np.asarray(counts.both), np.asarray(counts.latent)[:, None] + np.asarray(counts.feature))


# ---- by activity: each latent with its own feature


class Confusion(NamedTuple):
    """Tokens at which latent (positive: active) and its feature (true: active) agree or not, each [F]."""

    tp: Any
    fp: Any
    fn: Any
    tn: Any


class Detection(NamedTuple):
    """Each latent as a detector of its feature, [F] each; or their means, from `macro`."""

    precision: Any
    recall: Any
    f1: Any
    accuracy: Any


def confusion(counts: Counts, match: Int[ArrayLike, " F"]) -> Confusion:
    """TP, FP, FN, TN of each latent with feature ``match[j]``, from the counts of all pairs.

    Args:
        counts: of a stream.
        match: the feature of each latent, for example ``best(cosines).feature``.
    """
    match, latent = np.asarray(match), np.asarray(counts.latent)
    if (
        match.shape != latent.shape
        or match.dtype.kind not in "iu"
        or match.min() < 0
        or match.max() >= len(counts.feature)
    ):
        raise ValueError(f"match must name one of {len(counts.feature)} features for each of {latent.size} latents")
    tp, true = np.asarray(counts.both)[np.arange(latent.size), match], np.asarray(counts.feature)[match]
    return Confusion(tp, latent - tp, true - tp, counts.tokens - latent - true + tp)


def detection(table: Confusion) -> Detection:
    """precision TP / (TP + FP), recall TP / (TP + FN), f1 2 TP / (2 TP + FP + FN), accuracy (TP + TN) / N, each [F].

    Undefined is 0: a latent that never fires has precision, recall and f1 0. Accuracy is near 1 for any rare feature.

    >>> detection(Confusion(np.array([1]), np.array([1]), np.array([0]), np.array([2])))
    Detection(precision=array([0.5]), recall=array([1.]), f1=array([0.666666]), accuracy=array([0.75]))
    """
    tp, fp, fn, tn = (np.asarray(v, np.float64) for v in table)
    return Detection(
        _over(tp, tp + fp), _over(tp, tp + fn), _over(2 * tp, 2 * tp + fp + fn), _over(tp + tn, tp + fp + fn + tn)
    )


def macro(values: Detection, live: Bool[ArrayLike, " F"] | None = None) -> Detection:
    """Means over latents, each latent with the same weight: over all (SAELens' numbers), or over the live ones.

    Args:
        values: what `detection` returned.
        live: latents to average over; ``table.tp + table.fp > 0`` are those that fired. 0 if there is none.

    >>> half = np.array([1.0, 0.0])
    >>> macro(Detection(half, half, half, half)).f1, macro(Detection(half, half, half, half), half > 0).f1
    (0.5, 1.0)
    """
    keep = _living(live, len(values.f1))
    return Detection(*(float(np.mean(v[keep])) if keep.any() else 0.0 for v in values))


class Moments(NamedTuple):
    """Sums per latent of its activation a and its feature b: a, b, a^2, a b, b^2, each [F]."""

    a: Any
    b: Any
    aa: Any
    ab: Any
    bb: Any


class Pairs(NamedTuple):
    """One batch of `pairs`, on the device: counts, and moments about ``shift_a`` and ``shift_b`` [F]."""

    tokens: Int[Array, ""]
    table: Confusion
    shift_a: Float[Array, " F"]
    shift_b: Float[Array, " F"]
    moments: Moments
    bad: Int[Array, "3"]


class PairTotals(NamedTuple):
    """A stream of `pairs`, on the host: tokens, `Confusion` in int64, and `Moments` about 0 in float64."""

    tokens: Any
    table: Confusion
    moments: Moments


@jax.jit
def pairs(
    acts: Float[ArrayLike, "B F"],
    features: Float[ArrayLike, "B n"],
    match: Int[ArrayLike, " F"],
    mask: Bool[ArrayLike, " B"] | None = None,
) -> Pairs:
    """Counts and moments of one batch, each latent j with feature ``match[j]``. Pure; cost B F.

    For the one-to-one pairs m of `matching`, pass ``acts[:, m.latents]`` and ``m.features``.

    >>> batch = pairs(jnp.array([[2.0], [0.0], [1.0]]), jnp.array([[0.0, 1.0], [0.0, 0.0], [3.0, 0.0]]), jnp.array([1]))
    >>> [int(v[0]) for v in batch.table]
    [1, 1, 0, 1]
    """
    acts, features, keep, bad = _active(acts, features, mask)
    match = jnp.asarray(match)
    if match.shape != acts.shape[1:]:
        raise ValueError(f"match must name a feature for each of {acts.shape[1]} latents, got shape {match.shape}")
    lost = _strays(match, features.shape[1])
    a, b = (v.astype(jnp.promote_types(v.dtype, jnp.float32)) for v in (acts, features[:, match]))
    on, true = a != 0, b != 0
    tokens, tp = jnp.sum(keep), jnp.sum(on & true, 0)
    fp, fn = jnp.sum(on, 0) - tp, jnp.sum(true, 0) - tp
    shift_a, shift_b = (jnp.sum(v, 0) / jnp.maximum(tokens, 1) for v in (a, b))
    a, b = jnp.where(keep[:, None], a - shift_a, 0), jnp.where(keep[:, None], b - shift_b, 0)
    moments = Moments(*(jnp.sum(v, 0) for v in (a, b, a * a, a * b, b * b)))
    table = Confusion(tp, fp, fn, tokens - tp - fp - fn)
    return Pairs(tokens, table, shift_a, shift_b, moments, jnp.append(bad, lost))


def _about_zero(batch: Pairs) -> PairTotals:
    """The batch's moments about 0, in float64."""
    n, s, t = (np.asarray(v, np.float64) for v in (batch.tokens, batch.shift_a, batch.shift_b))
    a, b, aa, ab, bb = (np.asarray(v, np.float64) for v in batch.moments)
    raw = Moments(
        a + n * s, b + n * t, aa + 2 * s * a + n * s**2, ab + s * b + t * a + n * s * t, bb + 2 * t * b + n * t**2
    )
    return PairTotals(batch.tokens, batch.table, raw)


def correlation(total: PairTotals) -> Float[np.ndarray, " F"]:
    """Pearson correlation over all tokens of each latent's activation with its feature's value. 0 if one is constant,
    or varies by so little (about 1e-19) that its squares vanish in float32.

    Sums are centred per batch in float32 and pooled in float64: within about 1e-6 of float64 arithmetic.

    Args:
        total: a stream of `pairs`.
    """
    n, m = max(int(total.tokens), 1), total.moments
    cov, var_a, var_b = m.ab - m.a * m.b / n, m.aa - m.a**2 / n, m.bb - m.b**2 / n
    spread = np.where((var_a > NO_SPREAD * m.aa) & (var_b > NO_SPREAD * m.bb), var_a, 0) * np.maximum(var_b, 0)
    return _over(cov, np.sqrt(spread))


# ---- by activity: the best threshold


class Firings(NamedTuple):
    """Every activation != 0 of one batch, 9 bytes each, on the host.

    Attributes:
        latent: which latent, [K].
        size: |activation|, [K].
        true: whether the latent's feature was active, [K].
        positives: tokens with the latent's feature active, [F].
    """

    latent: Int[np.ndarray, " K"]
    size: Float[np.ndarray, " K"]
    true: Bool[np.ndarray, " K"]
    positives: Int[np.ndarray, " F"]


def firings(
    acts: Float[ArrayLike, "B F"],
    features: Float[ArrayLike, "B n"],
    match: Int[ArrayLike, " F"],
    mask: Bool[ArrayLike, " B"] | None = None,
) -> Firings:
    """What `best_threshold` needs of one batch. Host only; memory grows with tokens x L0, not with tokens x F.

    Raises:
        ValueError: NaN or infinite values, or a match that names no feature.
    """
    batch = pairs(acts, features, match, mask)
    table = _checked(batch).table
    values = np.asarray(jnp.asarray(acts).astype(jnp.float32))
    if mask is not None:
        values = np.where(np.asarray(mask)[:, None], values, 0)
    token, latent = np.nonzero(values)
    true = np.asarray(features)[token, np.asarray(match)[latent]] != 0
    return Firings(latent.astype(np.int32), np.abs(values[token, latent]), true, np.int64(table.tp) + table.fn)


class Threshold(NamedTuple):
    """The best F1 of each latent over thresholds t on |activation| >= t, and the largest such t; [F] each."""

    f1: Float[np.ndarray, " F"]
    threshold: Float[np.ndarray, " F"]


def best_threshold(stream: Iterable[Firings]) -> Threshold:
    """Best F1 of each latent when it counts as active only at |activation| >= t, the best t for each. Host only.

    Exact: every value that occurred is tried, at the cost of one sort. Never below the f1 of `detection`, which is
    t -> 0. Chosen on the data that it scores, so it is optimistic for latents that fire rarely. A latent that never
    fires, or whose feature never was active, has f1 0 and threshold infinity.

    >>> acts, feature = jnp.array([[0.1], [0.2], [0.9], [1.0]]), jnp.array([[0.0], [0.0], [1.0], [1.0]])
    >>> best_threshold([firings(acts, feature, jnp.array([0]))])
    Threshold(f1=array([1.]), threshold=array([0.9]))
    """
    parts = list(stream)
    if not parts:
        raise ValueError("there are no firings to choose a threshold from: give at least one batch")
    if len({part.positives.shape for part in parts}) > 1:
        raise ValueError("the firings are of different numbers of latents: keep one stream for each SAE")
    latent, size, true = (np.concatenate([p[i] for p in parts]) for i in range(3))
    positives = np.sum([p.positives for p in parts], 0)
    order = np.lexsort((-size, latent))
    latent, size, true = latent[order], size[order], true[order]
    start = np.searchsorted(latent, np.arange(len(positives)))
    rank = np.arange(1, len(latent) + 1) - start[latent]
    hits = np.concatenate([[0], np.cumsum(true)])
    value = 2 * (hits[1:] - hits[start[latent]]) / (rank + positives[latent])
    # A threshold can't part equal values, so only the last of them stands.
    last = np.ones(len(latent), bool)
    last[:-1] = (latent[1:] != latent[:-1]) | (size[1:] != size[:-1])
    latent, size, value = latent[last], size[last], value[last]
    best = np.zeros(len(positives))
    np.maximum.at(best, latent, value)
    threshold = np.full(len(positives), np.inf)
    at_best = (value == best[latent]) & (value > 0)
    # In falling order of size, so the first assignment that should stand is made last.
    threshold[latent[at_best][::-1]] = size[at_best][::-1]
    return Threshold(best, threshold)


# ---- absorption


class Edges(NamedTuple):
    """Per parent -> child edge, tokens [E] with the parent active, on the device or summed on the host.

    Attributes:
        tokens: number of all tokens.
        alone: the child inactive.
        alone_on: of those, with the parent's latent active.
        both: the child active.
        both_on: of those, with the parent's latent active.
        bad: values of acts and of features that are NaN or infinite, and indices that name none, [3].
    """

    tokens: Any
    alone: Any
    alone_on: Any
    both: Any
    both_on: Any
    bad: Any


@jax.jit
def edges(
    acts: Num[ArrayLike, "B F"],
    features: Num[ArrayLike, "B n"],
    parent: Int[ArrayLike, " E"],
    child: Int[ArrayLike, " E"],
    latent: Int[ArrayLike, " E"],
    mask: Bool[ArrayLike, " B"] | None = None,
) -> Edges:
    """Counts of one batch for `absorption_gap`. Pure.

    Args:
        acts: latents.
        features: true features.
        parent: the parent feature of each edge.
        child: its child feature.
        latent: the latent that stands for the parent, for example ``best(cosines).latent[parent]``.
        mask: True for tokens that count.
    """
    acts, features, keep, bad = _active(acts, features, mask)
    parent, child, latent = map(jnp.asarray, (parent, child, latent))
    if not parent.shape == child.shape == latent.shape or parent.ndim != 1:
        raise ValueError(
            f"parent, child and latent must each have one entry per edge, got shapes {parent.shape}, {child.shape}, "
            f"{latent.shape}"
        )
    n, F = features.shape[1], acts.shape[1]
    lost = _strays(parent, n) + _strays(child, n) + _strays(latent, F)
    has, kid, on = features[:, parent] != 0, features[:, child] != 0, acts[:, latent] != 0
    alone, both = has & ~kid, has & kid
    return Edges(
        tokens=jnp.sum(keep),
        alone=jnp.sum(alone, 0),
        alone_on=jnp.sum(alone & on, 0),
        both=jnp.sum(both, 0),
        both_on=jnp.sum(both & on, 0),
        bad=jnp.append(bad, lost),
    )


def absorption_gap(total: Edges) -> Float[np.ndarray, " E"]:
    """P(parent's latent on | parent, no child) - P(parent's latent on | parent and child), per edge.

    0: the latent fires whether or not the child is there. 1: the child's latent has absorbed the parent wherever both
    are active (Chanin et al. 2024, arXiv 2409.14507, describe absorption; the gap as a score: SAELens#729). NaN where
    one of the two conditions never occurred.

    Parent active at 4 tokens, its latent silent at one of the two with the child:

    >>> parent = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    >>> i = jnp.array([0])
    >>> print(absorption_gap(add(None, edges(jnp.array([[1.0], [1.0], [0.0], [1.0]]), parent, i, i + 1, i))))
    [0.5]
    """
    alone, both = np.asarray(total.alone), np.asarray(total.both)
    gap = _over(total.alone_on, alone) - _over(total.both_on, both)
    return np.where((alone > 0) & (both > 0), gap, np.nan)
