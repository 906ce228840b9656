"""The fast path against dense products: selection, reconstruction, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from superpose.sae import sparse


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("F", "k"), [(10, 3), (64, 1), (512, 4), (4096, 32), (1000, 7), (96, 96)])
def test_top_k_is_exact(F, k):
    x = normal(20, F)
    found, want = sparse.top_k(x, k), lax.top_k(x, k)
    np.testing.assert_array_equal(found.values, want[0])
    np.testing.assert_array_equal(found.indices, want[1])


def test_top_k_ranks_groups_when_rows_are_wide():
    """No ranking of the whole row is left: 64 groups and the 32 x 16 candidates are ranked in its place."""
    lines = jax.jit(lambda x: sparse.top_k(x, 32)).lower(normal(4, 8192)).as_text().splitlines()
    ranked = [line for line in lines if "top_k" in line]
    assert len(ranked) == 2
    assert not any("4x8192" in line for line in ranked)


@pytest.mark.parametrize("n", [1, 2, 17, 399])
def test_nth_largest(n):
    x = normal(20, 40)
    assert sparse.nth_largest(x, jnp.int32(n)) == np.sort(x, None)[-n] or np.sort(x, None)[-n] < 0
    assert sparse.nth_largest(-jnp.abs(x), jnp.int32(n)) == 0  # none is positive
    assert sparse.nth_largest(jnp.full((3, 3), 2.0), jnp.int32(n)) == (2.0 if n <= 9 else 0.0)


@pytest.mark.parametrize("columns", [1, 8, 40])
@pytest.mark.parametrize("k", [1, 2.5, 6])
def test_batch_scores_are_the_largest_of_the_batch(k, columns):
    pre = normal(30, 40) * jnp.exp(normal(30, 1, seed=1))  # some rows have many on
    weight = jnp.exp(0.3 * normal(40, seed=2))
    chosen, threshold = sparse.batch_scores(pre, weight, jnp.float32(k), columns)
    scores = np.asarray(weight * pre)
    want = np.where(scores >= np.sort(scores, None)[-int(k * 30)], pre, 0)
    np.testing.assert_array_equal(sparse.dense_chosen(pre, chosen), want)
    assert threshold == scores[want != 0].min()
    on, l0 = sparse.fired(pre, chosen)
    np.testing.assert_array_equal(on, (want != 0).any(0))
    assert float(l0) == pytest.approx((want != 0).sum() / 30)
    assert bool(chosen.complete) == bool(((want != 0).sum(1) < columns).all() or columns == 40)
    if chosen.complete:
        np.testing.assert_array_equal(sparse.dense(chosen.code, 40), want)
        assert int(chosen.ranks) == (want != 0).sum(1).max()


def test_negative_scores_are_never_on():
    pre = normal(8, 6) - 1.0
    chosen, threshold = sparse.batch_scores(pre, jnp.ones(6), 5, 6)
    np.testing.assert_array_equal(sparse.dense_chosen(pre, chosen), jnp.maximum(pre, 0))
    assert threshold > 0
    chosen = sparse.rank_scores(pre, jnp.ones(6), 5, 5)
    np.testing.assert_array_equal(sparse.dense(chosen.code, 6), jnp.maximum(pre, 0))


RULES = {
    "topk": lambda pre, w: sparse.rank_scores(pre, w, 3, 4),
    "abs_topk": lambda pre, w: sparse.rank_scores(pre, w, 3, 3, signed=True),
    "a code that holds all": lambda pre, w: sparse.batch_scores(pre, w, 3, 40)[0],
    "rows with more than the code holds": lambda pre, w: sparse.batch_scores(pre, w, 3, 4)[0],
    "no latent on": lambda pre, w: sparse.rank_scores(-jnp.abs(pre), w, 3, 3),
}


@pytest.mark.parametrize("prefixes", [(), (5, 20)])
@pytest.mark.parametrize("rule", RULES)
def test_reconstruction_and_gradients_are_the_dense_ones(rule, prefixes):
    B, d, F, out = 32, 8, 64, 6
    x, b_dec, W_enc, b_enc, W_dec = (normal(*s, seed=i) for i, s in enumerate([(B, d), (d,), (d, F), (F,), (F, out)]))
    edges = sparse.prefix_edges(F, prefixes)
    weight = jnp.exp(0.3 * normal(F, seed=9))
    away = normal(len(edges), B, out, seed=8)

    def value(reconstruct, b_dec, W_enc, b_enc, W_dec):
        pre = lax.stop_gradient((x - b_dec) @ W_enc + b_enc)
        chosen = jax.tree.map(lax.stop_gradient, RULES[rule](pre, weight))
        return jnp.sum((reconstruct(x, b_dec, W_enc, b_enc, W_dec, pre, chosen, edges) - away) ** 2), chosen.complete

    with jax.default_matmul_precision("highest"):
        found, want = (
            jax.jit(jax.value_and_grad(lambda *p, f=f: value(f, *p), (0, 1, 2, 3), has_aux=True))(
                b_dec, W_enc, b_enc, W_dec
            )
            for f in (sparse.reconstruct, sparse.dense_reconstruct)
        )
    assert bool(found[0][1]) == (rule != "rows with more than the code holds")
    np.testing.assert_allclose(found[0][0], want[0][0], rtol=1e-5)
    for a, b in zip(found[1], want[1], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max() + 1e-30)
        assert (np.abs(b).max() > 0) == (rule != "no latent on")


def test_members_of_a_block_may_differ_in_k():
    """Under vmap too, where conditions become choices."""
    pre = normal(3, 16, 32)
    ks = jnp.array([1, 2, 4])
    together = jax.vmap(lambda p, k: sparse.dense(sparse.rank_scores(p, jnp.ones(32), k, 4).code, 32))(pre, ks)
    assert (together != 0).sum(-1).tolist() == [[1] * 16, [2] * 16, [4] * 16]
    by_batch = jax.vmap(lambda p, k: sparse.dense_chosen(p, sparse.batch_scores(p, jnp.ones(32), k, 4)[0]))(pre, ks)
    assert (by_batch != 0).sum((1, 2)).tolist() == [16, 32, 64]
