"""The fast path for activations that leave few latents on: selection, reconstruction, and their gradients.

A dense step multiplies [batch, d_sae] matrices that are nearly all zero five times. Here the encoder's product is the
only one left: latents are chosen from it, and the reconstruction and all gradients touch the chosen rows alone.
``dense_reconstruct`` is the same function written plainly; tests hold the two together in value and gradient.
"""

from collections.abc import Callable
from functools import partial, reduce
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
        indices: [batch, K], each latent at most once in a row (but for those of value 0).
    """

    values: Float[Array, "batch K"]
    indices: Int[Array, "batch K"]


class Pre(NamedTuple):
    """Pre-activations, the bias not yet added: it is added where they are read, and the sum is never written out.

    Attributes:
        product: (x - b_dec) @ W_enc [batch, F].
        bias: b_enc [F].
    """

    product: Float[Array, "batch F"]
    bias: Float[Array, " F"]

    def all(self) -> Float[Array, "batch F"]:
        return self.product + self.bias

    def rows(self, which: Int[Array, " R"]) -> Float[Array, "R F"]:
        """Whole rows; -inf where there is none of this number."""
        return jnp.take(self.product, which, 0, mode="fill", fill_value=-jnp.inf) + self.bias

    def columns(self, which: Int[Array, " M"]) -> Float[Array, "batch M"]:
        return self.product[:, which] + self.bias[which]

    def at(self, indices: Int[Array, "batch K"]) -> Float[Array, "batch K"]:
        return jnp.take_along_axis(self.product, indices, 1) + self.bias[indices]


class Chosen(NamedTuple):
    """What is on: as a code, as a few rows that hold more than it, and always as a rule on the pre-activations.

    Attributes:
        code: the largest K of each row, values that are off set to 0; all 0 in an overfull row.
        ranks: how many columns of the code any row uses, [].
        overfull: [R], rows with more than K latents on, then ``batch``, which no row is; R = 0 where there can be none.
        spilled: how many rows are overfull, []; above R the code and ``overfull`` are not read.
        weight: [F], what pre-activations are multiplied with before they are compared.
        threshold: latent i is on where weight_i pre_i >= threshold; only read of overfull rows.
    """

    code: Code
    ranks: Int[Array, ""]
    overfull: Int[Array, " R"]
    spilled: Int[Array, ""]
    weight: Float[Array, " F"]
    threshold: Float[Array, ""]

    def rest(self, pre: Pre) -> Float[Array, "R F"]:
        """Activations of the overfull rows."""
        rows = pre.rows(self.overfull)
        return jnp.where(self.weight * rows >= self.threshold, rows, 0.0)


SPILL = 8
"""A batch of a batch-wide choice may have one in so many rows overfull before the step is a dense one."""


def top_scores(pre: Pre, weight: Float[Array, " F"], k: int, signed: bool = False) -> Code:
    """The k largest weight * pre of each row (|weight * pre| if ``signed``), exactly; ties go to any of the equal ones.

    Wide rows are cut into groups: the k groups with the largest maxima hold the k largest entries, so only those are
    ranked. At [2048, 32768], k = 32 that takes less than half of ``lax.top_k``'s time on CPU. A group is a column of
    the row folded into a matrix, so that maxima run along memory.

    >>> top_scores(Pre(jnp.array([[3.0, 1.0, 2.0]]), jnp.zeros(3)), jnp.ones(3), 2).indices.tolist()
    [[0, 2]]
    """
    batch, F = pre.product.shape
    group = 2 ** max(0, round(np.log2(max(1.0, F / k)) / 2))  # balances the two rankings: sqrt(F / k)

    def score(product, bias, weight):
        return jnp.abs(weight * (product + bias)) if signed else weight * (product + bias)

    if group < 4 or F % group or F // group <= k:
        return Code(*lax.top_k(score(*pre, weight), k))
    parts = (pre.product.reshape(batch, group, -1), pre.bias.reshape(group, -1), weight.reshape(group, -1))
    maxima = reduce(jnp.maximum, (score(p[:, j], b[j], w[j]) for p, b, w in [parts] for j in range(group)))
    _, groups = lax.top_k(maxima, k)
    inside = score(
        jnp.take_along_axis(parts[0], groups[:, None], 2), *(jnp.moveaxis(a[:, groups], 0, 1) for a in parts[1:])
    )
    values, places = lax.top_k(inside.reshape(batch, group * k), k)
    indices = jnp.take_along_axis(groups, places % k, 1) + places // k * (F // group)
    return Code(values, indices.astype(jnp.int32))


def nth_largest(n: int | Num[Array, ""], *arrays: Float[Array, "*rows _"]) -> Float[Array, "*rows"]:
    """The n-th largest of the positive entries along the last axis of all arrays together, without sorting; 0 if there
    are fewer.

    Positive floats are ordered like their bits, so 31 counts find the largest bound that n entries reach: 10 ms each
    for 2^26 entries on two cores, which flat sorting takes a minute for.

    >>> float(nth_largest(jnp.int32(2), jnp.array([3.0, -9.0]), jnp.array([1.0, 2.0])))
    2.0
    """
    lanes = 64  # added as slices, which the compiler makes one loop of; a sum over an axis is several times slower
    bits = []
    for x in arrays:
        held = jnp.pad(jnp.maximum(x, 0.0).astype(jnp.float32), [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % lanes)])
        bits.append(lax.bitcast_convert_type(held, jnp.int32).reshape(*x.shape[:-1], lanes, -1))

    def narrow(i, low):
        trial = low | (jnp.int32(1) << (30 - i))
        reached = ((b >= trial[..., None, None]).astype(jnp.int32) for b in bits)
        counts = (jnp.sum(reduce(jnp.add, (r[..., j, :] for j in range(lanes))), -1) for r in reached)
        return jnp.where(sum(counts) >= n, trial, low)

    start = jnp.zeros(arrays[0].shape[:-1], jnp.int32)
    return lax.bitcast_convert_type(lax.fori_loop(0, 31, narrow, start), jnp.float32)


def rank_scores(
    pre: Pre, weight: Float[Array, " F"], k: int | Num[Array, ""], k_max: int, signed: bool = False
) -> Chosen:
    """TopK: the k largest weight * pre of each row (or |weight * pre|), those that are positive.

    Args:
        k: how many, at most k_max; may be traced, so that members of a population differ in it.
    """
    code = top_scores(pre, weight, k_max, signed)
    kept = (jnp.arange(k_max) < k) & (code.values > 0)
    values = jnp.where(kept, pre.at(code.indices), 0.0)
    return of_code(Code(values, code.indices), k_max, weight)


def of_code(code: Code, ranks: Any, weight: Float[Array, " F"]) -> Chosen:
    """What a code says in its first columns, and nothing else, is on."""
    values, nobody = code.values, jnp.zeros(0, jnp.int32)
    return Chosen(code, jnp.asarray(ranks, jnp.int32), nobody, jnp.int32(0), weight, jnp.asarray(jnp.inf, values.dtype))


def batch_scores(
    pre: Pre, weight: Float[Array, " F"], k: int | float | Num[Array, ""], columns: int
) -> tuple[Chosen, Float[Array, ""]]:
    """BatchTopK: the k * batch largest positive weight * pre of the whole batch (Bussmann et al. 2024).

    The flattened batch is never sorted: each row gives its largest ``columns`` candidates, and the bound is found by
    counting among them, and among everything in rows that have more latents on than candidates; where those rows are
    too many (``SPILL``), among everything. So one column asks for the rule alone, without a code.

    Args:
        k: mean number per row; may be traced, and fractional.

    Returns:
        (what is on, the smallest score that is on).
    """
    batch, F = pre.product.shape
    tiny = jnp.finfo(jnp.float32).tiny
    wanted = jnp.maximum(1, jnp.floor(k * batch * (1 + 1e-6))).astype(jnp.int32)  # 2.1 * 100 in float32 is below 210
    code = top_scores(pre, weight, min(columns, F))
    threshold = nth_largest(wanted, code.values.reshape(-1))
    spilled, overfull = jnp.zeros(batch, bool), jnp.zeros(0, jnp.int32)
    if columns < F:
        # no row below the bound of the candidates alone can have more: that bound only rises
        last = code.values.min(1)  # the last column; as a slice of it, XLA would no longer see a top-k, and sort
        full = lambda threshold: last >= jnp.maximum(threshold, tiny)  # noqa: E731
        rows = lambda spilled: jnp.nonzero(spilled, size=-(-batch // SPILL), fill_value=batch)[0].astype(jnp.int32)  # noqa: E731
        spilled = full(threshold)
        some = rows(spilled)

        def few(pre):
            everything = jnp.where(some[:, None] < batch, weight * pre.rows(some), 0.0)
            return nth_largest(
                wanted, jnp.where(spilled[:, None], 0.0, code.values).reshape(-1), everything.reshape(-1)
            )

        case = jnp.where(jnp.sum(spilled) > some.size, 2, jnp.minimum(jnp.sum(spilled), 1))
        threshold = lax.switch(
            case, [lambda pre: threshold, few, lambda pre: nth_largest(wanted, (weight * pre.all()).reshape(-1))], pre
        )
        spilled = full(threshold)
        overfull = rows(spilled)
    threshold = jnp.maximum(threshold, tiny).astype(code.values.dtype)
    on = (code.values >= threshold) & ~spilled[:, None]
    values = jnp.where(on, pre.at(code.indices), 0.0)
    ranks = jnp.max(jnp.sum(on, 1)).astype(jnp.int32)
    count = jnp.sum(spilled).astype(jnp.int32)
    return Chosen(Code(values, code.indices), ranks, overfull, count, weight, threshold), threshold


def dense(acts: Any, d_sae: int) -> Float[Array, "batch d_sae"]:
    """[batch, d_sae] of a code; what is dense already comes back as it is."""
    if not isinstance(acts, Code):
        return acts
    rows = jnp.arange(acts.values.shape[0])[:, None]
    return jnp.zeros((acts.values.shape[0], d_sae), acts.values.dtype).at[rows, acts.indices].add(acts.values)


def dense_chosen(pre: Float[Array, "batch F"], chosen: Chosen) -> Float[Array, "batch F"]:
    """Dense activations of what was chosen, with the plain gradient to ``pre``; the code's rule is not touched."""
    rows = jnp.arange(pre.shape[0])[:, None]
    on = jnp.zeros(pre.shape, bool).at[rows, chosen.code.indices].max(chosen.code.values != 0)
    if chosen.overfull.size:
        on = jnp.where(chosen.spilled == 0, on, chosen.weight * pre >= chosen.threshold)
    return jnp.where(lax.stop_gradient(on), pre, 0.0)


def _by_case(chosen: Chosen, none: Callable, few: Callable, many: Callable, *args):
    """Calls the cheapest function that is right: no row is overfull, few enough are, or more."""
    if not chosen.overfull.size:
        return none(*args)
    case = jnp.where(chosen.spilled > chosen.overfull.size, 2, jnp.minimum(chosen.spilled, 1))
    return lax.switch(case, [none, few, many], *args)


def fired(pre: Pre, chosen: Chosen) -> tuple[Bool[Array, " F"], Float[Array, ""]]:
    """(which latents are on in any row, mean number on per row)."""
    batch, F = pre.product.shape

    def by_code(pre):
        on = chosen.code.values != 0
        return jnp.zeros(F, bool).at[chosen.code.indices.reshape(-1)].max(on.reshape(-1)), jnp.sum(on) / batch

    def and_rest(pre):
        (seen, l0), more = by_code(pre), chosen.rest(pre) != 0
        return seen | more.any(0), l0 + jnp.sum(more) / batch

    def by_rule(pre):
        on = chosen.weight * pre.all() >= chosen.threshold
        return on.any(0), jnp.sum(on) / batch

    return _by_case(chosen, by_code, and_rest, by_rule, pre)


def prefix_edges(d_sae: int, prefixes: tuple[int, ...] = ()) -> Int[Array, " P"]:
    """Sizes of the nested dictionaries, the whole one last."""
    return jnp.asarray([*prefixes, d_sae] if d_sae not in prefixes else prefixes, jnp.int32)


# --- what dead latents make of the residual --------------------------------------------------------------------------


class Dead(NamedTuple):
    """Latents that have been silent for long, and what they are ranked by.

    Attributes:
        dead: [F].
        weight: [F], what pre-activations are multiplied with before they are compared.
    """

    dead: Bool[Array, " F"]
    weight: Float[Array, " F"]


ROOM = 4
"""Dead latents are looked at among the first so many that there is room for: k, 4 k, 16 k, ... of them."""


def _rooms(k: int, F: int) -> list[int]:
    sizes = []
    while k < F:
        sizes.append(k)
        k *= ROOM
    return [*sizes, F]


def among_dead(k: int, of: Dead, nothing: Callable, made: Callable, *args) -> Any:
    """Calls made(which, there, *args) for the smallest room M that holds all dead latents, or nothing(*args).

    ``which`` [M] are their numbers, ``there`` [M] says which of these places are filled.
    """
    count, sizes = jnp.sum(of.dead), _rooms(k, of.dead.shape[0])

    def within(M):
        def call(*args):
            which = jnp.nonzero(of.dead, size=M, fill_value=0)[0].astype(jnp.int32)
            return made(which, jnp.arange(M) < count, *args)

        return call

    case = jnp.where(count == 0, 0, 1 + sum((count > size).astype(jnp.int32) for size in sizes[:-1]))
    return lax.switch(case, [nothing, *map(within, sizes)], *args)


def dead_bounds(k: int, pre: Float[Array, "batch M"], weight: Float[Array, " M"], there: Any) -> Float[Array, " batch"]:
    """The k-th largest positive weight * pre of each row, of the places that are filled; next to 0 if it has fewer."""
    tiny = jnp.finfo(jnp.float32).tiny
    if pre.shape[1] <= k:
        return jnp.full(pre.shape[0], tiny, pre.dtype)
    pre = lax.stop_gradient(pre)
    return jnp.maximum(nth_largest(k, jnp.where(there, weight * pre, 0.0)), tiny).astype(pre.dtype)


def dead_acts(
    pre: Float[Array, "batch M"], weight: Float[Array, " M"], there: Bool[Array, " M"], bounds: Float[Array, " batch"]
) -> Float[Array, "batch M"]:
    """Pre-activations of the places that are filled and reach their row's bound (equal ones all do); 0 elsewhere."""
    return jnp.where(there & (weight * lax.stop_gradient(pre) >= bounds[:, None]), pre, 0.0)


def dead_guess(
    k: int, of: Dead, pre: Float[Array, "batch F"], W_dec: Float[Array, "F d_out"]
) -> Float[Array, "batch d_out"]:
    """What the dead latents make of dense pre-activations, with the plain gradient; for the path that is not fast."""

    def made(which, there, pre, W):
        pre, weight = pre[:, which], of.weight[which]
        return dead_acts(pre, weight, there, dead_bounds(k, pre, weight, there)) @ W[which]

    nothing = lambda pre, W: jnp.zeros((pre.shape[0], W.shape[1]), W.dtype)  # noqa: E731
    return among_dead(k, of, nothing, made, pre, W_dec)


# --- reconstruction ---------------------------------------------------------------------------------------------------


def dense_reconstruct(k, x, b_dec, W_enc, b_enc, W_dec, product, chosen, edges, of) -> Any:
    """The reference for ``reconstruct``, by dense matrices and JAX's own gradients; ``product`` is not read."""
    pre = (x - b_dec) @ W_enc + b_enc
    nested = jnp.arange(pre.shape[1]) < edges[:, None]
    acts = dense_chosen(pre, chosen)
    out = jnp.einsum("pf,bf,fd->pbd", nested.astype(acts.dtype), acts, W_dec, optimize=True)
    if of is None:
        return out, None
    return out, dead_acts(pre, of.weight, of.dead, dead_bounds(k, pre, of.weight, of.dead)) @ W_dec


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def reconstruct(
    k: int,
    x: Float[Array, "batch d_in"],
    b_dec: Float[Array, " d_in"],
    W_enc: Float[Array, "d_in F"],
    b_enc: Float[Array, " F"],
    W_dec: Float[Array, "F d_out"],
    product: Float[Array, "batch F"],
    chosen: Chosen,
    edges: Int[Array, " P"],
    of: Dead | None,
) -> Any:
    """Chosen latents times their decoder rows, for each nested dictionary, [P, batch, d_out]; without b_dec. And what
    the k dead latents with the largest pre-activations of each row make, [batch, d_out], or None.

    Both are made together, so that their gradients are gathered in the same arrays. They go to b_dec (0 if the encoder
    does not centre by it), W_enc, b_enc and W_dec, through the values of the chosen latents, as those of
    ``dense_reconstruct``. x is data and gets none, the choice gets none.

    Args:
        k: dead latents a row.
        product: (x - b_dec) @ W_enc; with b_enc, that of which the choice was made.
        edges: dictionary p has the latents below edges[p], which ascend.
        of: dead latents, or None.
    """
    return _forward(k, W_dec, Pre(product, b_enc), chosen, edges, of)[:2]


def _segment(indices, edges):
    """To which stretch between edges each latent belongs, one-hot [..., P]."""
    first = jnp.concatenate([jnp.zeros(1, edges.dtype), edges[:-1]])
    return (indices[..., None] >= first) & (indices[..., None] < edges)


def _stretches(acts, W_dec, edges):
    """acts @ W_dec, of each stretch between edges, [P, rows, d_out]."""
    segment = _segment(jnp.arange(W_dec.shape[0]), edges)
    return lax.map(lambda mine: jnp.where(mine, acts, 0.0) @ W_dec, segment.T)


BLOCKS = 16
"""Rows of a batch-wide choice are worked through in so many blocks, those with as many latents on side by side."""


def _blocks(c: Chosen) -> tuple[Any, Int[Array, " n"]]:
    """(order of the rows or None, columns that each of n blocks of them uses).

    The few rows with many latents on then cost columns of their own block only.
    """
    batch = c.code.values.shape[0]
    if not c.overfull.size or batch % BLOCKS:  # every row has about as many on, or the blocks would not be equal
        return None, c.ranks[None]
    count = jnp.sum(c.code.values != 0, 1)
    order = jnp.argsort(-count)
    return order, count[order].reshape(BLOCKS, -1)[:, 0].astype(c.ranks.dtype)


def _cut(rows: Array, order: Any, n: int) -> Array:
    """Rows [batch, ...] in their order, as n blocks."""
    rows = rows if order is None else rows[order]
    return rows.reshape(n, -1, *rows.shape[1:])


def _column(code: Code, j: Any) -> tuple[Array, Array]:
    values, indices = (lax.dynamic_index_in_dim(a, j, 1, keepdims=False) for a in code)
    return values, indices


def _forward(k, W_dec, pre, chosen, edges, of):
    def by_code(pre):
        order, ranks = _blocks(chosen)

        def block(args):
            code, ranks = args

            def add(j, out):
                v, i = _column(code, j)
                row = jnp.take(W_dec, i, 0)
                share = v[:, None] if edges.shape[0] == 1 else jnp.where(_segment(i, edges), v[:, None], 0.0)
                return out + share.T[..., None] * row

            start = jnp.zeros((edges.shape[0], code.values.shape[0], W_dec.shape[1]), W_dec.dtype)
            return lax.fori_loop(0, ranks, add, start)

        cut = Code(*(_cut(a, order, len(ranks)) for a in chosen.code))
        out = jnp.moveaxis(lax.map(block, (cut, ranks)), 0, 1).reshape(edges.shape[0], -1, W_dec.shape[1])
        return out if order is None else jnp.zeros_like(out).at[:, order].set(out)

    def and_rest(pre):
        return by_code(pre).at[:, chosen.overfull].add(_stretches(chosen.rest(pre), W_dec, edges), mode="drop")

    def by_rule(pre):
        return _stretches(dense_chosen(pre.all(), chosen), W_dec, edges)

    nested = jnp.cumsum(_by_case(chosen, by_code, and_rest, by_rule, pre), 0)
    if of is None:
        return nested, None, None

    def made(which, there, pre):
        mine, weight = pre.columns(which), of.weight[which]
        bounds = dead_bounds(k, mine, weight, there)
        return dead_acts(mine, weight, there, bounds) @ W_dec[which], bounds

    batch = pre.product.shape[0]
    nothing = lambda pre: (jnp.zeros((batch, W_dec.shape[1]), W_dec.dtype), jnp.zeros(batch, pre.product.dtype))  # noqa: E731
    return nested, *among_dead(k, of, nothing, made, pre)


def _reconstruct_forward(k, x, b_dec, W_enc, b_enc, W_dec, product, chosen, edges, of):
    nested, guess, bounds = _forward(k, W_dec, Pre(product, b_enc), chosen, edges, of)
    return (nested, guess), (x, b_dec, W_enc, b_enc, W_dec, product, chosen, edges, of, bounds)


def _reconstruct_backward(k, saved, gs):
    x, b_dec, W_enc, b_enc, W_dec, product, chosen, edges, of, bounds = saved
    centred = x - b_dec
    # what arrives at a latent of stretch p: all dictionaries from p on
    nested = jnp.flip(jnp.cumsum(jnp.flip(gs[0], 0), 0), 0)
    pre = Pre(product, b_enc)

    def zeros():
        return jnp.zeros_like(W_dec), jnp.zeros_like(W_enc.T), jnp.zeros_like(b_enc)

    def of_dead(which, there, pre):
        to_dec, to_enc, to_bias = zeros()
        acts = dead_acts(pre.columns(which), of.weight[which], there, bounds)
        to_pre = jnp.where(acts != 0, gs[1] @ W_dec[which].T, 0.0)
        to_dec, to_enc = to_dec.at[which].add(acts.T @ gs[1]), to_enc.at[which].add(to_pre.T @ centred)
        return to_dec, to_enc, to_bias.at[which].add(to_pre.sum(0))

    # the first of all, so that what follows adds to its arrays: these are as large as the weights, and copies cost
    start = zeros() if of is None else among_dead(k, of, lambda pre: zeros(), of_dead, pre)

    def by_code(pre):
        order, ranks = _blocks(chosen)

        def block(carry, args):
            code, ranks, nested, centred = args

            def add(j, carry):
                to_dec, to_enc, to_bias = carry
                v, i = _column(code, j)
                at = nested[:, 0]
                if edges.shape[0] > 1:
                    at = jnp.einsum("bp,bpd->bd", _segment(i, edges).astype(v.dtype), nested)
                to_pre = jnp.where(v != 0, jnp.sum(at * jnp.take(W_dec, i, 0), -1), 0.0)
                to_dec, to_enc = to_dec.at[i].add(v[:, None] * at), to_enc.at[i].add(to_pre[:, None] * centred)
                return to_dec, to_enc, to_bias.at[i].add(to_pre)

            return lax.fori_loop(0, ranks, add, carry), None

        cut = [_cut(a, order, len(ranks)) for a in (*chosen.code, jnp.moveaxis(nested, 0, 1), centred)]
        return lax.scan(block, start, (Code(*cut[:2]), ranks, *cut[2:]))[0]

    def add_rows(carry, acts, x, nested):
        segment = _segment(jnp.arange(W_dec.shape[0]), edges)

        def add(p, carry):
            to_dec, to_pre = carry
            mine = jnp.where(segment[:, p], acts, 0.0)
            return to_dec + mine.T @ nested[p], to_pre + jnp.where(mine != 0, nested[p] @ W_dec.T, 0.0)

        to_dec, to_enc, to_bias = carry
        to_dec, to_pre = lax.fori_loop(0, edges.shape[0], add, (to_dec, jnp.zeros_like(acts)))
        return to_dec, to_enc + to_pre.T @ x, to_bias + to_pre.sum(0)

    def and_rest(pre):
        take = lambda a, axis: jnp.take(a, chosen.overfull, axis, mode="fill", fill_value=0)  # noqa: E731
        return add_rows(by_code(pre), chosen.rest(pre), take(centred, 0), take(nested, 1))

    def by_rule(pre):
        return add_rows(start, dense_chosen(pre.all(), chosen), centred, nested)

    to_dec, to_enc, to_bias = _by_case(chosen, by_code, and_rest, by_rule, pre)
    zero = partial(jax.tree.map, lambda a: np.zeros(a.shape, jax.dtypes.float0) if a.dtype.kind in "ib" else a * 0)
    return (
        jnp.zeros_like(x), -(W_enc @ to_bias), to_enc.T, to_bias, to_dec, jnp.zeros_like(product), zero(chosen),
        zero(edges), zero(of),
    )  # fmt: skip


reconstruct.defvjp(_reconstruct_forward, _reconstruct_backward)
