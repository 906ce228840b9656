"""The fast path against dense products: selection, reconstruction, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from superpose.sae import sparse


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pre_of(array):
    return sparse.Pre(array, jnp.zeros(array.shape[-1]))


@pytest.mark.parametrize(("F", "k"), [(10, 3), (64, 1), (512, 4), (4096, 32), (1000, 7), (96, 96)])
def test_top_k_is_exact(F, k):
    x = normal(20, F)
    bias, weight = normal(F, seed=1), jnp.exp(0.3 * normal(F, seed=2))
    for signed in (False, True):
        found = jax.jit(sparse.top_scores, static_argnums=(2, 3))(sparse.Pre(x, bias), weight, k, signed)
        scores = weight * (x + bias)
        want = lax.top_k(jnp.abs(scores) if signed else scores, k)
        np.testing.assert_allclose(found.values, want[0], rtol=1e-6)
        np.testing.assert_array_equal(found.indices, want[1])


def test_top_k_ranks_groups_when_rows_are_wide():
    """No ranking of the whole row is left: 64 groups and the 32 x 16 candidates are ranked in its place."""
    lines = (
        jax.jit(lambda x: sparse.top_scores(pre_of(x), jnp.ones(8192), 32))
        .lower(normal(4, 8192))
        .as_text()
        .splitlines()
    )
    ranked = [line for line in lines if "top_k" in line]
    assert len(ranked) == 2
    assert not any("4x8192" in line for line in ranked)


def sorted_sizes(jaxpr):
    """Sizes of all that a program sorts or ranks."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("sort", "top_k", "approx_top_k"):
            found.append(max(v.aval.size for v in eqn.invars))
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += sorted_sizes(inner)
    return found


@pytest.mark.parametrize("columns", [1, 64])
def test_the_flattened_batch_is_never_sorted(columns):
    """Whatever is sorted or ranked is smaller than the batch's scores by a factor of the group's size."""
    batch, wide = 16, 8192
    x = normal(batch, wide)
    found = sorted_sizes(jax.make_jaxpr(lambda x: sparse.batch_scores(pre_of(x), jnp.ones(wide), 32, columns))(x).jaxpr)
    assert found
    assert max(found) <= batch * wide / 4
    flat = sorted_sizes(jax.make_jaxpr(jax.jit(lambda x: jnp.sort(x, None)))(x).jaxpr)
    assert max(flat) == batch * wide  # it would be seen


@pytest.mark.parametrize("n", [1, 2, 17, 399])
def test_nth_largest(n):
    x = normal(800)
    assert sparse.nth_largest(jnp.int32(n), x) == max(np.sort(x)[-n], 0)
    assert sparse.nth_largest(n, x[:99], x[99:]) == sparse.nth_largest(n, x)
    assert sparse.nth_largest(n, -jnp.abs(x)) == 0  # none is positive
    assert sparse.nth_largest(n, jnp.full(9, 2.0)) == (2.0 if n <= 9 else 0.0)
    rows = normal(20, 70)  # each row its own
    want = np.sort(np.c_[np.zeros((20, n)), np.maximum(rows, 0)], 1)[:, -n]
    np.testing.assert_array_equal(sparse.nth_largest(n, rows), want)
    np.testing.assert_array_equal(sparse.nth_largest(n, rows[:, :9], rows[:, 9:]), want)


@pytest.mark.parametrize("columns", [1, 8, 14, 40])
@pytest.mark.parametrize("k", [1, 2.5, 6])
def test_batch_scores_are_the_largest_of_the_batch(k, columns):
    """Where no row, few rows, or many rows have more on than the code holds."""
    pre = normal(30, 40) * jnp.exp(normal(30, 1, seed=1))  # some rows have many on
    weight = jnp.exp(0.3 * normal(40, seed=2))
    chosen, threshold = sparse.batch_scores(pre_of(pre), weight, jnp.float32(k), columns)
    scores = np.asarray(weight * pre)
    want = np.where(scores >= np.sort(scores, None)[-int(k * 30)], pre, 0)
    np.testing.assert_array_equal(sparse.dense_chosen(pre, chosen), want)
    assert threshold == scores[want != 0].min()
    on, l0 = sparse.fired(pre_of(pre), chosen)
    np.testing.assert_array_equal(on, (want != 0).any(0))
    assert float(l0) == pytest.approx((want != 0).sum() / 30)
    fuller = (want != 0).sum(1) >= columns
    assert int(chosen.spilled) == (fuller.sum() if columns < 40 else 0)
    if chosen.spilled <= chosen.overfull.size:
        kept = want[~fuller] if columns < 40 else want
        found = np.asarray(sparse.dense(chosen.code, 40))
        np.testing.assert_array_equal(found[~fuller] if columns < 40 else found, kept)
        assert int(chosen.ranks) == (kept != 0).sum(1).max()
        if columns < 40:
            assert not found[fuller].any()
            rest = np.asarray(chosen.rest(pre_of(pre)))
            np.testing.assert_array_equal(rest[: fuller.sum()], want[fuller])
            assert not rest[fuller.sum() :].any()


def test_the_cases_of_the_batch_are_all_met():
    """Of the test above: 0, 1 to 4, and more than 4 of 30 rows are overfull."""
    pre = normal(30, 40) * jnp.exp(normal(30, 1, seed=1))
    weight = jnp.exp(0.3 * normal(40, seed=2))
    counts = [
        int(sparse.batch_scores(pre_of(pre), weight, jnp.float32(k), columns)[0].spilled)
        for k in (1, 2.5, 6) for columns in (8, 14, 39)
    ]  # fmt: skip
    assert min(counts) == 0
    assert max(counts) > 4
    assert any(1 <= c <= 4 for c in counts)


def test_negative_scores_are_never_on():
    pre = normal(8, 6) - 1.0
    chosen, threshold = sparse.batch_scores(pre_of(pre), jnp.ones(6), 5, 6)
    np.testing.assert_array_equal(sparse.dense_chosen(pre, chosen), jnp.maximum(pre, 0))
    assert threshold > 0
    chosen = sparse.rank_scores(pre_of(pre), jnp.ones(6), 5, 5)
    np.testing.assert_array_equal(sparse.dense(chosen.code, 6), jnp.maximum(pre, 0))


RULES = {
    "topk": lambda pre, w: sparse.rank_scores(pre, w, 3, 4),
    "abs_topk": lambda pre, w: sparse.rank_scores(pre, w, 3, 3, signed=True),
    "a code that holds all": lambda pre, w: sparse.batch_scores(pre, w, 3, 40)[0],
    "few rows with more than the code holds": lambda pre, w: sparse.batch_scores(pre, w, 3, 7)[0],
    "many rows with more than the code holds": lambda pre, w: sparse.batch_scores(pre, w, 3, 4)[0],
    "no latent on": lambda pre, w: sparse.rank_scores(sparse.Pre(-jnp.abs(pre.all()), 0 * pre.bias), w, 3, 3),
}


@pytest.mark.parametrize(
    ("rule", "prefixes", "dead", "k"),
    [
        *((rule, (5, 20), 9, 2) for rule in RULES),
        *(pytest.param(rule, (), 40, 2, marks=pytest.mark.ci) for rule in RULES),
        *(
            pytest.param(rule, *case, marks=pytest.mark.ci)
            for rule in ("topk", "few rows with more than the code holds")
            for case in (((), 9, 12), ((), 0, 2))
        ),
    ],
)
def test_reconstruction_and_gradients_are_the_dense_ones(rule, prefixes, dead, k):
    """Of a choice, and of the guess of dead latents beside it: none, as many as the guess takes, more, many more."""
    B, d, F, out = 32, 8, 64, 6
    x, b_dec, W_enc, b_enc, W_dec = (normal(*s, seed=i) for i, s in enumerate([(B, d), (d,), (d, F), (F,), (F, out)]))
    edges = sparse.prefix_edges(F, prefixes)
    weight = jnp.exp(0.3 * normal(F, seed=9))
    of = sparse.Dead(jnp.isin(jnp.arange(F), np.random.default_rng(3).permutation(F)[:dead]), weight)
    away, other = normal(len(edges), B, out, seed=8), normal(B, out, seed=10)

    def value(reconstruct, b_dec, W_enc, b_enc, W_dec):
        pre = lax.stop_gradient(sparse.Pre((x - b_dec) @ W_enc, b_enc))
        chosen = jax.tree.map(lax.stop_gradient, RULES[rule](pre, weight))
        found, guess = reconstruct(k, x, b_dec, W_enc, b_enc, W_dec, pre.product, chosen, edges, of)
        return jnp.sum((found - away) ** 2) + jnp.sum((guess - other) ** 2), (chosen.spilled, guess)

    with jax.default_matmul_precision("highest"):
        found, want = (
            jax.jit(jax.value_and_grad(lambda *p, f=f: value(f, *p), (0, 1, 2, 3), has_aux=True))(
                b_dec, W_enc, b_enc, W_dec
            )
            for f in (sparse.reconstruct, sparse.dense_reconstruct)
        )
        plain = sparse.dead_guess(k, of, (x - b_dec) @ W_enc + b_enc, W_dec)
    count = int(found[0][1][0])
    assert {"few": 1 <= count <= 4, "many": count > 4}.get(rule.split()[0], count == 0)
    np.testing.assert_allclose(found[0][0], want[0][0], rtol=1e-5)
    for guess in (found[0][1][1], plain):
        np.testing.assert_allclose(guess, want[0][1][1], atol=1e-5)
    assert np.any(plain) == (dead > 0)
    for a, b in zip(found[1], want[1], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())
        assert np.any(b) == (dead > 0 or rule != "no latent on")


def test_a_guess_takes_the_largest_of_the_dead():
    pre, weight = normal(20, 40), jnp.exp(0.3 * normal(40, seed=2))
    dead = np.isin(np.arange(40), [1, 5, 8, 20, 33])
    for k in (2, 5, 9):
        scores = np.where(dead, weight * pre, -np.inf)
        least = np.sort(scores, 1)[:, -min(k, 5)][:, None]
        want = np.where((scores >= least) & (scores > 0), pre, 0)
        got = sparse.dead_guess(k, sparse.Dead(jnp.asarray(dead), weight), pre, jnp.eye(40))
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_what_is_off_gets_no_gradient():
    """Nothing is on: no gradient at all, on the fast path as on the dense one."""
    B, d, F = 8, 4, 32
    x, W_enc, W_dec = normal(B, d), normal(d, F, seed=1), normal(F, d, seed=2)
    pre = sparse.Pre(x @ W_enc, jnp.full(F, -1e6))
    chosen = jax.tree.map(lax.stop_gradient, sparse.rank_scores(pre, jnp.ones(F), 3, 3))
    for f in (sparse.reconstruct, sparse.dense_reconstruct):
        value = lambda *p, f=f: f(1, x, *p, pre.product, chosen, sparse.prefix_edges(F), None)[0].sum()  # noqa: E731
        for g in jax.grad(value, (0, 1, 2, 3))(jnp.zeros(d), W_enc, pre.bias, W_dec):
            assert not g.any()


def test_members_of_a_block_may_differ_in_k():
    """Under vmap too, where conditions become choices."""
    pre = normal(3, 16, 32)
    ks = jnp.array([1, 2, 4])
    together = jax.vmap(lambda p, k: sparse.dense(sparse.rank_scores(pre_of(p), jnp.ones(32), k, 4).code, 32))(pre, ks)
    assert (together != 0).sum(-1).tolist() == [[1] * 16, [2] * 16, [4] * 16]
    by_batch = jax.vmap(lambda p, k: sparse.dense_chosen(p, sparse.batch_scores(pre_of(p), jnp.ones(32), k, 4)[0]))(
        pre, ks
    )
    assert (by_batch != 0).sum((1, 2)).tolist() == [16, 32, 64]
