"""Are the latents of two SAEs the same? By what they say on the same tokens, by direction, by what they vote for.

Everything that pairs latents with latents goes through blocks of one side, so that no [F, F] array exists. Activations
need no common space: the SAEs may be of other seeds, kinds, widths, layers or models that read the same tokens.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int
from scipy import sparse

from superpose.interp.codes import Codes
from superpose.interp.labels import pearson
from superpose.sae.model import SAE

BLOCK = 512
"""Latents of one side that are paired at once."""


class Matches(NamedTuple):
    """The closest latents of B to each of A: numbers, scores [F_A, k], best first; -1 and 0 where nothing is close.
    k is at most the number of latents of B."""

    number: Int[np.ndarray, "F k"]
    score: Float[np.ndarray, "F k"]


def _blocks(codes: Codes) -> Iterator[tuple[int, int]]:
    for start in range(0, codes.latents, BLOCK):
        yield start, min(codes.latents, start + BLOCK)


def _same_tokens(a: Codes, b: Codes) -> None:
    for name in ("texts", "contexts", "context", "special", "first"):
        if a.about[name] != b.about[name]:
            raise ValueError(f"{a.path} and {b.path} are of other tokens ({name} differ): make both of the same texts")


def _whole(codes: Codes) -> sparse.csc_array:
    return codes.block(0, codes.latents)


def _best(scores: Float[np.ndarray, "F G"], k: int) -> Matches:
    k = min(k, scores.shape[1])
    number = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    score = np.take_along_axis(scores, number, 1)
    order = np.argsort(-score, axis=1, kind="stable")
    return Matches(np.take_along_axis(number, order, 1), np.take_along_axis(score, order, 1))


def correlated(a: Codes, b: Codes, k: int = 1, *, moved: Int[np.ndarray, " N"] | None = None) -> Matches:
    """The latents of B whose activations correlate best with each of A over all tokens: Pearson's r (Bricken et al.
    2023, universality).

    Latents that are silent match nothing. Of the same codes, a latent is not matched with itself.

    Args:
        k: how many.
        moved: where each row of B goes: what is left is chance (``elsewhere``).

    Raises:
        ValueError: the codes are of other tokens.
    """
    _same_tokens(a, b)
    n = a.kept
    other = _whole(b)
    if moved is not None:
        other = sparse.csc_array((other.data, moved[other.indices], other.indptr), shape=other.shape).sorted_indices()
    other = other.astype(np.float64)
    y, yy = other.sum(0), other.power(2).sum(0)
    other = other.tocsr()
    found = []
    for start, end in _blocks(a):
        mine = a.block(start, end).astype(np.float64)
        r = pearson(n, mine.sum(0)[:, None], mine.power(2).sum(0)[:, None], (mine.T @ other).toarray(), y, yy)
        if a.path == b.path and moved is None:
            r[np.arange(end - start), np.arange(start, end)] = -np.inf
        best = _best(r, k)
        silent = ~np.isfinite(best.score) | (best.score <= 0)
        found.append(Matches(np.where(silent, -1, best.number), np.where(silent, 0.0, best.score)))
    return Matches(*(np.concatenate(part) for part in zip(*found, strict=True)))


def elsewhere(keep: Bool[np.ndarray, " N"], shift: int) -> Int[np.ndarray, " N"]:
    """Moves every token that counts by so many of them, the others stay: rows for ``correlated``.

    >>> elsewhere(np.array([True, False, True, True]), 1).tolist()
    [2, 1, 3, 0]
    """
    rows = np.flatnonzero(keep)
    out = np.arange(len(keep))
    out[rows] = np.roll(rows, -shift)
    return out


def resampled(
    a: Codes,
    b: Codes,
    number: Int[np.ndarray, " F"],
    documents: Int[np.ndarray, " N"],
    keep: Bool[np.ndarray, " N"],
    draws: int = 500,
    seed: int = 0,
) -> Float[np.ndarray, "draws F"]:
    """Pearson's r of each latent of A with one of B, in resamplings of the documents: what an interval is made of.

    Args:
        number: which of B, as ``correlated`` found it; -1 gives 0.
        documents, keep: of each row of the codes, its document and whether it counts.

    Raises:
        ValueError: the codes are of other tokens.
    """
    _same_tokens(a, b)
    other, parts = _whole(b), []
    for start, end in _blocks(a):
        x, y = a.block(start, end), other[:, np.maximum(number[start:end], 0)]
        r = resampled_columns(x, y, documents, keep, draws, seed)
        parts.append(np.where(number[start:end] >= 0, r, 0.0))
    return np.concatenate(parts, 1)


def resampled_columns(
    x: Any, y: Any, documents: Int[np.ndarray, " N"], keep: Bool[np.ndarray, " N"], draws: int = 500, seed: int = 0
) -> Float[np.ndarray, "draws n"]:
    """``resampled`` of columns [N, n] side by side, dense or sparse; rows that don't count hold 0.

    Equal seeds draw equal documents, so that differences have intervals too.
    """
    names, place = np.unique(documents, return_inverse=True)
    N, D = len(place), len(names)
    by = sparse.csr_array((np.ones(N), (place, np.arange(N))), shape=(D, N))
    weights = np.random.default_rng(seed).multinomial(D, np.full(D, 1 / D), draws).astype(float)
    x, y = (sparse.csc_array(z, dtype=np.float64) for z in (x, y))
    total = lambda z: weights @ (by @ z).toarray()  # noqa: E731
    n = (weights @ (by @ keep.astype(float)))[:, None]
    return pearson(n, total(x), total(x.power(2)), total(x.multiply(y)), total(y), total(y.power(2)))


def masked_cosine(a: Codes, b: Codes, least: float = 0.4) -> sparse.csr_array:
    """[F_A, F_B], cosine of activations over the tokens on which one of the two is on, whichever gives more (Bricken
    et al. 2023, feature splitting); what is not above ``least`` is left out.

    Of nonnegative latents it is 1 for a latent and itself.
    """
    _same_tokens(a, b)
    return masked(_whole(a), _whole(b), least)


def masked(a: sparse.csc_array, b: sparse.csc_array, least: float = 0.4) -> sparse.csr_array:
    """``masked_cosine`` of activations [N, F_A] and [N, F_B] of the same tokens."""
    other = b.tocsr()
    square = other.power(2)
    on = sparse.csr_array((np.ones(other.nnz, np.float32), other.indices, other.indptr), shape=other.shape)
    yy = square.sum(0)
    parts = []
    for start in range(0, a.shape[1], BLOCK):
        mine = a[:, start : start + BLOCK]
        mine_on = sparse.csc_array((np.ones(mine.nnz, np.float32), mine.indices, mine.indptr), shape=mine.shape)
        cross = (mine.T @ other).toarray()
        where_a = mine.power(2).sum(0)[:, None] * (mine_on.T @ square).toarray()
        where_b = (mine.power(2).T @ on).toarray() * yy
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.nan_to_num(np.maximum(cross / np.sqrt(where_a), cross / np.sqrt(where_b)))
        parts.append(sparse.csr_array(np.where(cosine > least, cosine, 0)))
    return sparse.vstack(parts, format="csr")


def _unit(x: ArrayLike) -> np.ndarray:
    rows = np.asarray(x, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def nearest(a: Float[ArrayLike, "F d"], b: Float[ArrayLike, "G d"], k: int = 1) -> Matches:
    """The directions of B with the largest cosine to each of A; both may be rows of W_dec, or of logit weights less
    their mean, which makes the cosine Pearson's r over the vocabulary."""
    x, y = _unit(a), _unit(b)
    parts = [_best(x[i : i + BLOCK] @ y.T, k) for i in range(0, len(x), BLOCK)]
    return Matches(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@jax.jit
def _stitched(small: SAE, big: SAE, x: Any) -> tuple[Any, Any, Any]:
    left = x - small(x)
    acts, directions = big.encode(x), big.W_dec[...]
    change = acts**2 * jnp.sum(directions**2, -1) - 2 * acts * (left @ directions.T)
    return jnp.sum(change, 0), jnp.sum(acts != 0, 0), jnp.sum(left**2)


class Stitched(NamedTuple):
    """What putting one latent of a large SAE into a small one does to its squared error (Leask et al. 2025).

    Attributes:
        change: [F], of the sum of squared errors over all rows, as a share of it; below 0 the latent is news to the
            small SAE, above 0 it says again what that says already.
        fires: [F], rows on which the latent is on.
        error: that sum, of the small SAE as it is: ``change * error`` adds up over parts of the rows.
    """

    change: Float[np.ndarray, " F"]
    fires: Int[np.ndarray, " F"]
    error: float


def stitch(small: SAE, big: SAE, batches: Any) -> Stitched:
    """Puts each latent of ``big`` into ``small``, one at a time; nothing else of either changes.

    Args:
        batches: rows [B, d] of what both read.
    """
    change: Any = 0.0
    fires: Any = 0
    error = 0.0
    for x in batches:
        parts = _stitched(small, big, jnp.asarray(x, jnp.float32))
        change, fires = change + np.asarray(parts[0], np.float64), fires + np.asarray(parts[1], np.int64)
        error += float(parts[2])
    if not error:
        raise ValueError("the small SAE makes no error, or there are no rows: nothing can be told apart")
    return Stitched(change / error, fires, error)
