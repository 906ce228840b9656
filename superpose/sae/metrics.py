"""Scores of an SAE that need no known truth, each defined once, from sums over a stream of batches.

    total = None
    for x in batches:
        acts = sae.encode(x)
        total = metrics.add(total, metrics.sums(x, sae.decode(acts), acts))
    result = metrics.scores(total)

`sums` is pure, runs inside jit and vmap and returns the sums of one batch; `add` moves them to the host and adds in
float64, so that a score depends neither on the size of a batch nor on where the stream is cut; `scores` divides at the
very end. Nothing is ever an average of ratios of batches.

Symbols: x input (a transcoder's target), x_hat its reconstruction, f latents (``acts``, of any sign), d_i row i of
W_dec, <.> mean over all tokens that the mask keeps, mu = <x>. A latent is active where f_i != 0: signed codes count.
x and x_hat must be in the same units: undo a scaling of the inputs on both, or on neither.

Errors. On the device a batch is summed in float32 (float64 if the inputs are; narrower inputs are widened first) about
its own mean, by blocks of 32 tokens. On the host the centre is put back in float64. Explained variance, MSE, cosine
and the bias then agree with float64 arithmetic on the same inputs to about 1e-6 relative; a mean r times as long as
the spread adds r^2 1e-16 to the error of the variance. Counts are exact below 2^31 tokens a batch.
A batch of another shape is compiled again: fill the last one up, and mask what was filled in.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

PERCENTILES = (5, 25, 50, 75, 95)
BLOCK = 32
NO_SPREAD = 2.0**-46
"""Variance below this share of the mean square is rounding of float32, not variance."""


class Sums(NamedTuple):
    """Sums over the kept tokens of one batch, on the device. `add` reads them; their fields are not scores.

    ``shift`` is the batch mean of x up to rounding; ``x`` and ``x_hat`` are sums of x - shift and x_hat - shift, and
    ``xx``, ``xy``, ``yy`` of their dot products. ``vanished`` counts tokens with x != shift whose square is 0 in
    float32, ``bad`` values that are NaN or infinite in x, x_hat and acts.
    """

    tokens: Int[Array, ""]
    shift: Float[Array, " d"]
    x: Float[Array, " d"]
    x_hat: Float[Array, " d"]
    xx: Float[Array, ""]
    xy: Float[Array, ""]
    yy: Float[Array, ""]
    err: Float[Array, ""]
    nonzero: Int[Array, ""]
    cosine: Float[Array, ""]
    ratio: Float[Array, ""]
    l0: Int[Array, " levels"]
    fired: Int[Array, " F"]
    magnitude: Float[Array, " F"]
    vanished: Int[Array, ""]
    bad: Int[Array, "3"]


class Totals(NamedTuple):
    """Sums over all tokens so far, on the host: integers in int64, the rest in float64.

    Attributes:
        tokens: number of tokens N.
        x: sum of x, [d].
        x_hat: sum of x_hat, [d].
        xx: sum of ||x||^2.
        xy: sum of x . x_hat.
        yy: sum of ||x_hat||^2.
        err: sum of ||x - x_hat||^2.
        nonzero: tokens with x != 0, those for which cosine and ratio exist.
        cosine: sum over them of cos(x, x_hat), 0 where x_hat = 0.
        ratio: sum over them of ||x_hat|| / ||x||.
        l0: tokens with 0, 1, ..., F active latents, [F + 1].
        fired: tokens at which each latent is active, [F].
        magnitude: sum of |f_i|, [F].
    """

    tokens: int
    x: Float[np.ndarray, " d"]
    x_hat: Float[np.ndarray, " d"]
    xx: float
    xy: float
    yy: float
    err: float
    nonzero: int
    cosine: float
    ratio: float
    l0: Int[np.ndarray, " levels"]
    fired: Int[np.ndarray, " F"]
    magnitude: Float[np.ndarray, " F"]


class Dead(NamedTuple):
    """How many latents, and at how many tokens that was seen: the first number means nothing without the second."""

    latents: int
    tokens: int


class Scores(NamedTuple):
    """Scores of one stream; `scores` gives the formulas."""

    tokens: int
    l0: float
    l0_percentiles: Int[np.ndarray, "5"]
    l1: float
    mse: float
    explained_variance: float
    fvu: float
    cosine: float
    cosine_centred: float
    l2_ratio: float
    relative_bias: float
    density: Float[np.ndarray, " F"]
    dead: Dead


def _total(v: Float[Array, "B *rest"]) -> Float[Array, "*rest"]:
    """Sum over the first axis by blocks of blocks: the rounding error grows with log B instead of B."""
    while v.shape[0] > 1:
        v = jnp.pad(v, [(0, -v.shape[0] % BLOCK)] + [(0, 0)] * (v.ndim - 1))
        v = v.reshape(-1, BLOCK, *v.shape[1:]).sum(1)
    return v[0]


def _divide(a: Array, b: Array) -> Array:
    """a / b, and 0 where b = 0. NaN stays NaN."""
    return jnp.where(b != 0, a / jnp.where(b != 0, b, 1), 0)


def kept(mask: Bool[ArrayLike, " B"] | None, tokens: int) -> Bool[Array, " B"]:
    """The mask of a batch as an array; all True for None.

    Raises:
        ValueError: another length, or numbers, which would be summed instead of asked.
    """
    keep = jnp.ones(tokens, bool) if mask is None else jnp.asarray(mask)
    if keep.shape != (tokens,) or keep.dtype != bool:
        raise ValueError(f"mask must be [B] = ({tokens},) of True and False, got {keep.shape} of {keep.dtype}")
    return keep


@jax.jit
def sums(
    x: Float[ArrayLike, "B d"],
    x_hat: Float[ArrayLike, "B d"],
    acts: Float[ArrayLike, "B F"],
    mask: Bool[ArrayLike, " B"] | None = None,
) -> Sums:
    """What one batch adds to the scores. Pure: for use inside jit, scan and vmap.

    Args:
        x: inputs (what is reconstructed).
        x_hat: reconstructions.
        acts: latents, dense, of any sign.
        mask: True for tokens that count. What the others hold has no effect, NaN included.

    Raises:
        ValueError: the shapes don't fit together, the batch is empty, or the mask is not of True and False.

    >>> batch = sums(jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.zeros((2, 2)), jnp.array([[0.0, -1.0, 2.0], [0, 0, 0]]))
    >>> print(batch.err, batch.fired, batch.l0)
    26.0 [0 1 1] [1 0 1 0]
    """
    x, x_hat, acts = (v.astype(jnp.promote_types(v.dtype, jnp.float32)) for v in map(jnp.asarray, (x, x_hat, acts)))
    if x.ndim != 2 or x.shape != x_hat.shape or acts.ndim != 2 or len(acts) != len(x) or len(x) == 0:
        raise ValueError(
            f"x and x_hat must both be [B, d] and acts [B, F] with B >= 1, got {x.shape}, {x_hat.shape}, {acts.shape}"
        )
    keep = kept(mask, len(x))
    x, x_hat, acts = (jnp.where(keep[:, None], v, 0) for v in (x, x_hat, acts))
    bad = jnp.stack([jnp.sum(~jnp.isfinite(v)) for v in (x, x_hat, acts)])
    tokens = jnp.sum(keep)
    shift = jnp.sum(x, 0) / jnp.maximum(tokens, 1)
    dx, dy = (jnp.where(keep[:, None], v - shift, 0) for v in (x, x_hat))

    def dot(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, -1)

    length, length_hat = jnp.sqrt(dot(x, x)), jnp.sqrt(dot(x_hat, x_hat))
    per_token = [dot(dx, dx), dot(dx, dy), dot(dy, dy), dot(x - x_hat, x - x_hat)]
    per_token += [_divide(dot(x, x_hat), length * length_hat), _divide(length_hat, length)]
    xx, xy, yy, err, cosine, ratio = _total(jnp.stack(per_token, 1))
    active = acts != 0
    return Sums(
        tokens=tokens,
        shift=shift,
        x=jnp.sum(dx, 0),
        x_hat=jnp.sum(dy, 0),
        xx=xx,
        xy=xy,
        yy=yy,
        err=err,
        nonzero=jnp.sum(length > 0),
        cosine=cosine,
        ratio=ratio,
        l0=jnp.zeros(acts.shape[1] + 1, int).at[jnp.sum(active, 1)].add(keep.astype(int)),
        fired=jnp.sum(active, 0),
        magnitude=_total(jnp.abs(acts)),
        vanished=jnp.sum((per_token[0] == 0) & jnp.any(dx != 0, 1)),
        bad=bad,
    )


def add(total: Totals | None, batch: Sums) -> Totals:
    """Adds the sums of one batch to the total, on the host. ``None`` starts a stream.

    Raises:
        ValueError: the batch holds NaN or infinite values (how many, and in what), its squares leave the range of
            float32 at either end, or it has another width than the total. The total is as it was.
    """
    host: Any = jax.device_get(batch)
    if host.tokens.ndim:
        raise ValueError(f"these are the sums of {host.tokens.shape} members: add them one member at a time")
    counts = [f"{n} of {name}" for n, name in zip(host.bad, ("x", "x_hat", "acts"), strict=True) if n]
    if counts:
        raise ValueError(
            f"NaN or infinite values in a batch of {host.tokens} tokens ({', '.join(counts)}): "
            "mask those tokens out, or find where the values come from"
        )
    if not all(np.isfinite(v).all() for v in host):
        raise ValueError("the squares of x or x_hat exceed the range of float32: scale both down by the same factor")
    if host.vanished:
        raise ValueError(
            f"the squares of x - <x> vanish in float32 at {host.vanished} of {host.tokens} tokens: scale x and x_hat "
            "up by the same factor"
        )
    n, s, a, b = int(host.tokens), *(v.astype(np.float64) for v in (host.shift, host.x, host.x_hat))
    return merge(
        total,
        Totals(
            tokens=n,
            x=a + n * s,
            x_hat=b + n * s,
            xx=float(host.xx + 2 * s @ a + n * s @ s),
            xy=float(host.xy + s @ (a + b) + n * s @ s),
            yy=float(host.yy + 2 * s @ b + n * s @ s),
            err=float(host.err),
            nonzero=int(host.nonzero),
            cosine=float(host.cosine),
            ratio=float(host.ratio),
            l0=host.l0.astype(np.int64),
            fired=host.fired.astype(np.int64),
            magnitude=host.magnitude.astype(np.float64),
        ),
    )


def merge(a: Totals | None, b: Totals) -> Totals:
    """The total of two streams, for example of two hosts.

    Raises:
        ValueError: the streams have different widths.
    """
    if a is None:
        return b
    if a.x.shape != b.x.shape or a.fired.shape != b.fired.shape:
        raise ValueError(
            f"a stream of d={a.x.size}, F={a.fired.size} can't take d={b.x.size}, F={b.fired.size}: "
            "keep one total for each SAE"
        )
    return jax.tree.map(operator.add, a, b)


def percentiles(l0: Int[ArrayLike, " levels"], q: Sequence[float | int] = PERCENTILES) -> Int[np.ndarray, " q"]:
    """The smallest L0 that at least q percent of the tokens do not exceed, from the histogram ``Totals.l0``.

    Raises:
        ValueError: q outside [0, 100], or no token in the histogram.

    Four tokens with L0 of 0, 2, 2 and 3:

    >>> print(percentiles(np.array([1, 0, 2, 1]), (25, 50, 100)))
    [0 2 3]
    """
    below, percent = np.cumsum(np.asarray(l0)), np.asarray(q)
    if not below.size or below[-1] < 1 or not ((percent >= 0) & (percent <= 100)).all():
        raise ValueError(
            f"percentiles need q in [0, 100] and at least one token, got q={q} of {below[-1:].sum()} tokens"
        )
    rank = np.maximum(np.ceil(percent / 100 * below[-1]), 1)
    return np.searchsorted(below, rank)


def scores(total: Totals, norms: Float[ArrayLike, " F"] | None = None) -> Scores:
    """All scores of a stream, in the units of the x that `sums` saw.

    - ``l0`` = <#{i: f_i != 0}>, and the percentiles ``PERCENTILES`` of the same count.
    - ``l1`` = <sum_i |f_i|>, or <sum_i ||d_i|| |f_i|> with ``norms``, which compares SAEs whose rows differ in length
      (Anthropic, April 2024 update, section "Update on how we train SAEs").
    - ``mse`` = <||x - x_hat||^2>, summed over dimensions.
    - ``fvu`` = sum ||x - x_hat||^2 / sum ||x - mu||^2 over all tokens, ``explained_variance`` = 1 - fvu. This is the
      normalised MSE of Gao et al. 2024 (arXiv 2406.04093, section 2.1): 1 for predicting the mean. Where x has no
      spread that float32 can show, fvu is infinite, or NaN if the error is 0 as well.
    - ``cosine`` = mean of cos(x, x_hat) over tokens with x != 0. Near 1 for free where mu is long.
    - ``cosine_centred`` = sum (x - mu).(x_hat - mu) / sqrt(sum ||x - mu||^2 sum ||x_hat - mu||^2): the same angle about
      the mean, from pooled sums (mu is known at the end of the stream only). Its square is at least
      explained_variance, and equal when no rescaling of x_hat - mu lowers the error.
    - ``l2_ratio`` = mean of ||x_hat|| / ||x|| over tokens with x != 0; below 1 means shrinkage or noise left out.
    - ``relative_bias`` = gamma = <||x_hat||^2> / <x . x_hat>, the gamma' that minimises <||x_hat / gamma' - x||^2>
      (Rajamanoharan et al. 2024, Gated SAEs, arXiv 2404.16014v2, eq. 9 and 10). 1: unbiased, below 1: shrinkage.
    - ``density`` = share of tokens at which each latent is active; ``dead`` = those with density 0, and the window.

    Args:
        total: what `add` returned.
        norms: lengths ||d_i|| of the decoder rows.

    Raises:
        ValueError: no token was counted, or norms has another length than acts, or are no lengths.

    One token, x = 2 and x_hat = 1, and then x = 0 with x_hat = 1:

    >>> x = jnp.array([[2.0], [0.0]])
    >>> result = scores(add(None, sums(x, jnp.ones((2, 1)), jnp.array([[0.5, 0.0], [0.5, 0.0]]))))
    >>> result.mse, result.explained_variance, result.l2_ratio, result.relative_bias, result.dead
    (1.0, 0.0, 0.5, 1.0, Dead(latents=1, tokens=2))
    """
    n = total.tokens
    if n == 0:
        raise ValueError("no token was counted, so there is nothing to score: check the mask")
    weight = np.ones(total.fired.size) if norms is None else np.asarray(norms, np.float64)
    if weight.shape != total.fired.shape:
        raise ValueError(f"norms must have one entry for each of {total.fired.size} latents, got shape {weight.shape}")
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError(f"norms must be finite and not below 0, got {weight.min()} to {weight.max()}: look into W_dec")
    mu = total.x / n

    def about_mean(raw: float, a: np.ndarray, b: np.ndarray) -> float:
        """sum (a - mu).(b - mu) of the raw sum of a.b and the sums of a and b."""
        return raw - mu @ a - mu @ b + n * mu @ mu

    spread = about_mean(total.xx, total.x, total.x)
    spread = spread if spread > NO_SPREAD * total.xx else 0.0
    spread_hat = max(about_mean(total.yy, total.x_hat, total.x_hat), 0.0)
    fvu = _ratio(total.err, spread)
    return Scores(
        tokens=n,
        l0=float(total.fired.sum() / n),
        l0_percentiles=percentiles(total.l0),
        l1=float(total.magnitude @ weight / n),
        mse=total.err / n,
        explained_variance=1 - fvu,
        fvu=fvu,
        cosine=_ratio(total.cosine, total.nonzero),
        cosine_centred=_ratio(about_mean(total.xy, total.x, total.x_hat), math.sqrt(spread) * math.sqrt(spread_hat)),
        l2_ratio=_ratio(total.ratio, total.nonzero),
        relative_bias=_ratio(total.yy, total.xy),
        density=total.fired / n,
        dead=Dead(int(np.sum(total.fired == 0)), n),
    )


def _ratio(a: float, b: float | int) -> float:
    """a / b; a / 0 is infinite and 0 / 0 is NaN, without a warning."""
    return float(a / b) if b else math.copysign(math.inf, a) if a else math.nan


def ultra_low(total: Totals, below: float | int = 1e-6) -> Dead:
    """Latents that are active, but at fewer than a share ``below`` of the tokens; with the window.

    Bricken et al. 2023, "Towards Monosemanticity", call the mode of the density histogram below 1e-6 the ultralow
    density cluster: nearly none of it could be interpreted. Dead latents are not among them.

    Args:
        total: what `add` returned.
        below: densities in (0, below) count.

    Raises:
        ValueError: ``below`` is no share, or the window is too short to show such a density.
    """
    if not 0 < below <= 1:
        raise ValueError(f"below must be a share of the tokens in (0, 1], got {below}")
    if total.tokens * below <= 1:
        raise ValueError(
            f"{total.tokens} tokens can't show a density below {below:g}: score more than {math.ceil(1 / below)} "
            "tokens, or raise the bound"
        )
    return Dead(int(np.sum((total.fired > 0) & (total.fired < below * total.tokens))), total.tokens)


def unit_rows(W: Float[ArrayLike, "rows d"]) -> Float[Array, "rows d"]:
    """Rows of length 1; a row of zeros stays. The squares of tiny and huge rows neither vanish nor overflow.

    >>> print(unit_rows(jnp.array([[3e-30, 4e-30], [0.0, 0.0]])))
    [[0.6 0.8]
     [0.  0. ]]
    """
    W = jnp.asarray(W)
    W = W.astype(jnp.promote_types(W.dtype, jnp.float32))
    W = _divide(W, jnp.max(jnp.abs(W), 1, keepdims=True))
    return _divide(W, jnp.sqrt(jnp.sum(W * W, 1, keepdims=True)))


@jax.jit
def encoder_decoder_cosine(W_enc: Float[ArrayLike, "d F"], W_dec: Float[ArrayLike, "F d"]) -> Float[Array, " F"]:
    """cos(column i of W_enc, row i of W_dec): how far reading a latent and writing it use one direction.

    0 where one of the two is zero. An SAE's alone: a transcoder reads one space and writes another. Low values with
    low densities mark latents that mean little (Bricken et al. 2023).

    >>> print(encoder_decoder_cosine(jnp.array([[1.0, 0.0], [0.0, 4.0]]), jnp.array([[2.0, 0.0], [0.0, -1.0]])))
    [ 1. -1.]
    """
    W_enc, W_dec = jnp.asarray(W_enc), jnp.asarray(W_dec)
    if W_enc.ndim != 2 or W_enc.shape != W_dec.shape[::-1]:
        raise ValueError(f"W_enc must be [d, F] for W_dec [F, d], got {W_enc.shape} and {W_dec.shape}")
    return jnp.sum(unit_rows(W_enc.T) * unit_rows(W_dec), 1)


def max_cosine(W_dec: Float[ArrayLike, "F d"], block: int = 1024) -> Float[Array, " F"]:
    """Largest cosine of each row with any other row: near 1 for a latent that another one doubles.

    Computed for ``block`` rows at a time, so that block x F values are held and never F x F. A zero row has cosine 0
    with all others.

    Args:
        W_dec: rows d_i, at least two.
        block: rows at a time.

    Raises:
        ValueError: fewer than two rows, or block < 1.

    >>> print(max_cosine(jnp.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])))
    [ 1.  1. -1.]
    """
    W_dec = jnp.asarray(W_dec)
    if W_dec.ndim != 2 or W_dec.shape[0] < 2 or block < 1:
        raise ValueError(f"max_cosine compares at least 2 rows by blocks of at least 1, got {W_dec.shape}, {block}")
    return _max_cosine(W_dec, min(block, W_dec.shape[0]))


@jax.jit(static_argnums=1)
def _max_cosine(W_dec: Float[Array, "F d"], block: int) -> Float[Array, " F"]:
    unit = unit_rows(W_dec)
    F = unit.shape[0]

    def largest(start: Int[Array, ""]) -> Float[Array, " block"]:
        # The last block starts early enough to be whole: its first rows are done twice and dropped below.
        cosine = jnp.matmul(lax.dynamic_slice_in_dim(unit, start, block), unit.T, precision=lax.Precision.HIGHEST)
        own = start + jnp.arange(block)
        return jnp.max(cosine.at[jnp.arange(block), own].set(-jnp.inf), 1)

    starts = jnp.minimum(jnp.arange(0, F, block), F - block)
    rows = (starts[:, None] + jnp.arange(block)).reshape(-1)
    return jnp.zeros(F, unit.dtype).at[rows].set(lax.map(largest, starts).reshape(-1))
