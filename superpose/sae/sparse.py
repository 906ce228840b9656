"""The fast path for activations that leave few latents on: selection, reconstruction, and their gradients.

A dense step multiplies [batch, d_sae] matrices that are nearly all zero five times. Here the encoder's product is the
only one left: latents are chosen from it, and the reconstruction and all gradients touch the chosen rows alone.
``dense_reconstruct`` is the same function written plainly; tests hold the two together in value and gradient.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num


class Code(NamedTuple):
    """Chosen latents of each row, the largest first.

    Attributes:
        values: [batch, K], 0 where fewer are active.
        indices: [batch, K], each latent at most once in a row.
    """

    values: Float[Array, "batch K"]
    indices: Int[Array, "batch K"]


class Chosen(NamedTuple):
    """What is on, as a code where it holds all of it, and always as a rule on the pre-activations.

    Attributes:
        code: the largest K of each row, values that are off set to 0.
        ranks: how many columns of the code any row uses, [].
        complete: whether no row has more than K latents on, [].
        weight: [d_sae], what pre-activations are multiplied with before they are compared.
        threshold: latent i is on where weight_i pre_i >= threshold; only read where the code is not complete.
    """

    code: Code
    ranks: Int[Array, ""]
    complete: Bool[Array, ""]
    weight: Float[Array, " d_sae"]
    threshold: Float[Array, ""]


def top_k(scores: Float[Array, "batch F"], k: int) -> Code:
    """The k largest of each row, exactly; ties go to any of the equal ones.

    Wide rows are cut into groups: the k groups with the largest maxima hold the k largest entries, so only those are
    ranked. At [2048, 32768], k = 32 that takes less than half of ``lax.top_k``'s time on CPU.

    >>> top_k(jnp.array([[3.0, 1.0, 2.0]]), 2).indices.tolist()
    [[0, 2]]
    """
    batch, F = scores.shape
    group = 2 ** max(0, round(np.log2(max(1.0, F / k)) / 2))  # balances the two rankings: sqrt(F / k)
    if group < 4 or F % group or F // group <= k:
        return Code(*lax.top_k(scores, k))
    grouped = scores.reshape(batch, F // group, group)
    _, groups = lax.top_k(grouped.max(-1), k)
    inside = jnp.take_along_axis(grouped, groups[..., None], 1).reshape(batch, k * group)
    values, places = lax.top_k(inside, k)
    indices = jnp.take_along_axis(groups, places // group, 1) * group + places % group
    return Code(values, indices.astype(jnp.int32))


def nth_largest(x: Float[Array, "batch F"], n: Num[Array, ""]) -> Float[Array, ""]:
    """The n-th largest of the positive entries of x, without sorting; 0 if there are fewer.

    Positive floats are ordered like their bits, so 31 counts find the largest bound that n entries reach. 2^20 entries
    take 4 ms on one core, sorting them 250 ms.

    >>> float(nth_largest(jnp.array([[3.0, -9.0, 1.0, 2.0]]), jnp.int32(2)))
    2.0
    """
    bits = lax.bitcast_convert_type(jnp.maximum(x, 0.0).astype(jnp.float32), jnp.int32)

    def narrow(i, low):
        trial = low | (jnp.int32(1) << (30 - i))
        columns = jnp.sum((bits >= trial).astype(jnp.float32), 0)  # floats are summed faster, and exactly below 2^24
        return jnp.where(jnp.sum(columns.astype(jnp.int32)) >= n, trial, low)

    return lax.bitcast_convert_type(lax.fori_loop(0, 31, narrow, jnp.int32(0)), jnp.float32)


def rank_scores(
    pre: Float[Array, "batch F"], weight: Float[Array, " F"], k: int | Num[Array, ""], k_max: int, signed: bool = False
) -> Chosen:
    """TopK: the k largest weight * pre of each row (or |weight * pre|), those that are positive.

    Args:
        k: how many, at most k_max; may be traced, so that members of a population differ in it.
    """
    scores = weight * pre
    code = top_k(jnp.abs(scores) if signed else scores, k_max)
    kept = (jnp.arange(k_max) < k) & (code.values > 0)
    values = jnp.where(kept, jnp.take_along_axis(pre, code.indices, 1), 0.0)
    inf = jnp.asarray(jnp.inf, pre.dtype)
    return Chosen(Code(values, code.indices), jnp.asarray(k_max, jnp.int32), jnp.bool_(True), weight, inf)


def batch_scores(
    pre: Float[Array, "batch F"], weight: Float[Array, " F"], k: int | float | Num[Array, ""], columns: int
) -> tuple[Chosen, Float[Array, ""]]:
    """BatchTopK: the k * batch largest positive weight * pre of the whole batch (Bussmann et al. 2024).

    The flattened batch is never sorted: each row gives its largest ``columns`` candidates, and the bound is found by
    counting among them. Where a row has more latents on than it has candidates, the bound is counted over everything;
    so one column asks for the rule alone, without a code.

    Args:
        k: mean number per row; may be traced, and fractional.

    Returns:
        (what is on, the smallest score that is on).
    """
    batch, F = pre.shape
    tiny = jnp.finfo(jnp.float32).tiny
    scores = weight * pre
    wanted = jnp.maximum(1, jnp.floor(k * batch)).astype(jnp.int32)
    code = top_k(scores, min(columns, F))
    threshold = nth_largest(code.values, wanted)
    complete = jnp.bool_(True)
    if columns < F:
        complete = jnp.all(code.values[:, -1] < jnp.maximum(threshold, tiny))
        threshold = lax.cond(complete, lambda: threshold, lambda: nth_largest(scores, wanted))
    threshold = jnp.maximum(threshold, tiny).astype(pre.dtype)
    on = code.values >= threshold
    values = jnp.where(on, jnp.take_along_axis(pre, code.indices, 1), 0.0)
    ranks = jnp.max(jnp.sum(on, 1)).astype(jnp.int32)
    return Chosen(Code(values, code.indices), ranks, complete, weight, threshold), threshold


def dense(acts: Any, d_sae: int) -> Float[Array, "batch d_sae"]:
    """[batch, d_sae] of a code; what is dense already comes back as it is."""
    if not isinstance(acts, Code):
        return acts
    rows = jnp.arange(acts.values.shape[0])[:, None]
    return jnp.zeros((acts.values.shape[0], d_sae), acts.values.dtype).at[rows, acts.indices].add(acts.values)


def dense_chosen(pre: Float[Array, "batch F"], chosen: Chosen) -> Float[Array, "batch F"]:
    """Dense activations of what was chosen, with the plain gradient to ``pre``; the code's rule is not touched."""
    rows = jnp.arange(pre.shape[0])[:, None]
    by_code = jnp.zeros(pre.shape, bool).at[rows, chosen.code.indices].max(chosen.code.values != 0)
    on = jnp.where(chosen.complete, by_code, chosen.weight * pre >= chosen.threshold)
    return jnp.where(lax.stop_gradient(on), pre, 0.0)


def fired(pre: Float[Array, "batch F"], chosen: Chosen) -> tuple[Bool[Array, " F"], Float[Array, ""]]:
    """(which latents are on in any row, mean number on per row)."""

    def by_code():
        on = chosen.code.values != 0
        seen = jnp.zeros(pre.shape[1], bool).at[chosen.code.indices.reshape(-1)].max(on.reshape(-1))
        return seen, jnp.sum(on) / pre.shape[0]

    def by_rule():
        on = chosen.weight * pre >= chosen.threshold
        return on.any(0), jnp.sum(on) / pre.shape[0]

    return lax.cond(chosen.complete, by_code, by_rule)


def prefix_edges(d_sae: int, prefixes: tuple[int, ...] = ()) -> Int[Array, " P"]:
    """Sizes of the nested dictionaries, the whole one last."""
    return jnp.asarray([*prefixes, d_sae] if d_sae not in prefixes else prefixes, jnp.int32)


def dense_reconstruct(x, b_dec, W_enc, b_enc, W_dec, pre, chosen, edges) -> Float[Array, "P batch d_out"]:
    """The reference for ``reconstruct``, by products of dense matrices and JAX's own gradients; ``pre`` is not read."""
    pre = (x - b_dec) @ W_enc + b_enc
    acts = dense_chosen(pre, chosen)
    nested = jnp.arange(pre.shape[1]) < edges[:, None]
    return jnp.einsum("pf,bf,fd->pbd", nested.astype(acts.dtype), acts, W_dec, optimize=True)


@jax.custom_vjp
def reconstruct(
    x: Float[Array, "batch d_in"],
    b_dec: Float[Array, " d_in"],
    W_enc: Float[Array, "d_in F"],
    b_enc: Float[Array, " F"],
    W_dec: Float[Array, "F d_out"],
    pre: Float[Array, "batch F"],
    chosen: Chosen,
    edges: Int[Array, " P"],
) -> Float[Array, "P batch d_out"]:
    """Chosen latents times their decoder rows, for each nested dictionary; without b_dec.

    Gradients go to b_dec (0 if the encoder does not centre by it), W_enc, b_enc and W_dec, through the values of the
    chosen latents, as those of ``dense_reconstruct``. x is data and gets none, the choice gets none.

    Args:
        pre: (x - b_dec) @ W_enc + b_enc, of which the choice was made.
        edges: dictionary p has the latents below edges[p]; ascending.
    """
    return _forward(W_dec, pre, chosen, edges)


def _segment(indices, edges):
    """To which stretch between edges each latent belongs, one-hot [..., P]."""
    first = jnp.concatenate([jnp.zeros(1, edges.dtype), edges[:-1]])
    return (indices[..., None] >= first) & (indices[..., None] < edges)


def _forward(W_dec, pre, chosen, edges):
    values, indices = chosen.code

    def by_code():
        def add(j, out):
            v, i = (lax.dynamic_index_in_dim(a, j, 1, keepdims=False) for a in (values, indices))
            row = jnp.take(W_dec, i, 0)
            share = v[:, None] if edges.shape[0] == 1 else jnp.where(_segment(i, edges), v[:, None], 0.0)
            return out + share.T[..., None] * row

        zero = jnp.zeros((edges.shape[0], values.shape[0], W_dec.shape[1]), values.dtype)
        return jnp.cumsum(lax.fori_loop(0, chosen.ranks, add, zero), 0)

    def by_rule():
        acts = dense_chosen(pre, chosen)
        return lax.map(lambda edge: jnp.where(jnp.arange(pre.shape[1]) < edge, acts, 0.0) @ W_dec, edges)

    return lax.cond(chosen.complete, by_code, by_rule)


def _reconstruct_forward(x, b_dec, W_enc, b_enc, W_dec, pre, chosen, edges):
    return _forward(W_dec, pre, chosen, edges), (x, b_dec, W_enc, b_enc, W_dec, pre, chosen, edges)


def _reconstruct_backward(saved, g):
    x, b_dec, W_enc, b_enc, W_dec, pre, chosen, edges = saved
    centred = x - b_dec
    d_out = W_dec.shape[1]
    nested = jnp.flip(
        jnp.cumsum(jnp.flip(g, 0), 0), 0
    )  # what arrives at a latent of stretch p: all dictionaries from p on

    def by_code():
        values, indices = chosen.code

        def add(j, carry):
            both, bias = carry
            v, i = (lax.dynamic_index_in_dim(a, j, 1, keepdims=False) for a in (values, indices))
            at = nested[0]
            if edges.shape[0] > 1:
                at = jnp.einsum("bp,pbd->bd", _segment(i, edges).astype(g.dtype), nested)
            to_pre = jnp.where(v != 0, jnp.sum(at * jnp.take(W_dec, i, 0), -1), 0.0)
            both = both.at[i].add(jnp.concatenate([v[:, None] * at, to_pre[:, None] * centred], 1))
            return both, bias.at[i].add(to_pre)

        both = jnp.zeros((W_dec.shape[0], d_out + x.shape[1]), W_dec.dtype)
        both, bias = lax.fori_loop(0, chosen.ranks, add, (both, jnp.zeros_like(b_enc)))
        return both[:, :d_out], both[:, d_out:].T, bias

    def by_rule():
        acts = dense_chosen(pre, chosen)
        segment = _segment(jnp.arange(pre.shape[1]), edges)

        def add(p, carry):
            to_dec, to_pre = carry
            mine = jnp.where(segment[:, p], acts, 0.0)
            return to_dec + mine.T @ nested[p], to_pre + jnp.where(mine != 0, nested[p] @ W_dec.T, 0.0)

        to_dec, to_pre = lax.fori_loop(0, edges.shape[0], add, (jnp.zeros_like(W_dec), jnp.zeros_like(pre)))
        return to_dec, centred.T @ to_pre, to_pre.sum(0)

    to_dec, to_enc, to_bias = lax.cond(chosen.complete, by_code, by_rule)
    nothing = partial(jax.tree.map, lambda a: np.zeros(a.shape, jax.dtypes.float0) if a.dtype.kind in "ib" else a * 0)
    return (
        jnp.zeros_like(x), -(W_enc @ to_bias), to_enc, to_bias, to_dec, jnp.zeros_like(pre), nothing(chosen),
        nothing(edges),
    )  # fmt: skip


reconstruct.defvjp(_reconstruct_forward, _reconstruct_backward)
