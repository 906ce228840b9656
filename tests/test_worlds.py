"""Statistical tests of the sparse worlds and of the ways to take an expectation; every draw is fixed by its key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from superpose.worlds import expect, prng, sparse

LIMIT = 1e-6
RANGES = [(0.0, 1.0), (-1.0, 1.0), (0.0, 2.0), (-0.5, 0.5)]
DENSITIES = [1.0, 0.3, 0.03, 0.001]
UNEVEN = np.array([0.5, 0.02, 0.2], np.float32)
ALL_DENSITIES = np.array([*[[d] * 3 for d in DENSITIES], UNEVEN], np.float32)

W = np.array([[0.9, -0.6, 0.3], [0.2, 0.7, -0.8]], np.float32)
B = np.array([0.05, -0.1, 0.02], np.float32)


def relu_loss(x):
    """Squared error of relu(W^T W x + b) per column, x [3, R] -> [R]."""
    return jnp.sum((x - jax.nn.relu(W.T @ (W @ x) + B[:, None])) ** 2, 0)


def features(x):
    """Statistics whose means are compared, x [n, R] -> [F, R]; the products see dependence between features."""
    pairs = [x[i] * x[j] for i in range(len(x)) for j in range(i)]
    return jnp.concatenate([x, x**2, jnp.abs(x), jnp.stack([*pairs, *[jnp.abs(p) for p in pairs], relu_loss(x)])])


def means(sampler, density, count, seed=0):
    """Estimates [count, F] of E[features], one per key."""

    def one(key):
        x, w = sampler(key, density)
        return features(x) @ w

    return jax.jit(jax.vmap(one))(jax.random.split(prng.key(seed), count))


def z_scores(estimates, exact):
    estimates = np.asarray(estimates, np.float64)
    se = estimates.std(0, ddof=1) / np.sqrt(len(estimates))
    return np.abs(estimates.mean(0) - exact) / np.maximum(se, 1e-7 * np.abs(exact) + 1e-12)


def exact_means(world, density, nodes=24):
    x, w = world.enumerate(density, nodes)
    return np.asarray(features(jnp.asarray(x)), np.float64) @ np.asarray(w, np.float64)


# ---- samples


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("density", [1.0, 0.3, 1e-2, 1e-4])
def test_density_and_values(low, high, density):
    world = sparse.independent(4, low, high)
    x = np.asarray(jax.jit(world.sample, static_argnums=2)(prng.key(1), density, 2**20))
    active = x != 0
    z = (active.mean(1) - density) / np.sqrt(max(density * (1 - density), 1e-30) / x.shape[1])
    assert np.abs(z).max() < 5
    values = x[active].astype(np.float64)
    assert values.min() >= low
    assert values.max() <= high
    assert stats.kstest(values[: 2**18], stats.uniform(low, high - low).cdf).pvalue > LIMIT
    for k in (1, 2, 3):
        expected = (high ** (k + 1) - low ** (k + 1)) / ((k + 1) * (high - low))
        assert abs((values**k).mean() - expected) < 5 * (values**k).std() / np.sqrt(values.size)


@pytest.mark.ci
def test_values_at_low_density_are_fine_grained():
    """u / p of a 23-bit uniform has only 839 values at p = 1e-4."""
    x = np.asarray(sparse.independent(8).sample(prng.key(2), 1e-4, 2**21))
    values = x[x != 0]
    assert np.unique(values).size > 0.99 * values.size


@pytest.mark.ci
def test_density_zero_and_one():
    world = sparse.independent(3)
    x = np.asarray(world.sample(prng.key(0), jnp.array([0.0, 1.0, 0.5]), 2**14))
    assert (x[0] == 0).all()
    assert (x[1] != 0).all()
    assert np.isfinite(x).all()
    x = np.asarray(world.sample_active(prng.key(0), jnp.array([0.0, 0.0, 1e-4]), 2**14))
    assert (x[:2] == 0).all()
    assert (x[2] != 0).all()
    x = np.asarray(world.sample_active(prng.key(0), 1.0, 2**14))
    assert (x != 0).all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("density", [1.0, 0.3, 1e-2, 1e-4, "uneven"])
def test_sample_active_is_never_silent(signed, density):
    density = jnp.geomspace(1e-4, 0.5, 20) if density == "uneven" else density
    world = sparse.independent(20, -1.0 if signed else 0.0)
    x = np.asarray(jax.jit(world.sample_active, static_argnums=2)(prng.key(3), density, 2**16))
    assert (x != 0).any(0).all()
    assert np.isfinite(x).all()


@pytest.mark.parametrize("density", [0.9, 0.3, 1e-2, 1e-4, "uneven"])
def test_first_active_feature_follows_its_law(density):
    """Stratified: each feature leads its expected number of columns within one, of a law computed in float64."""
    p = np.geomspace(0.3, 1e-4, 6) if density == "uneven" else np.full(6, density)
    survive = np.concatenate([[0], np.cumsum(np.log1p(-p))])
    law = p * np.exp(survive[:-1]) / -np.expm1(survive[-1])
    size = 2**14
    given = jnp.asarray(p, jnp.float32) if density == "uneven" else density
    x = np.asarray(sparse.independent(6).sample_active(prng.key(4), given, size))
    counts = np.bincount((x != 0).argmax(0), minlength=6)
    assert np.abs(counts - size * law).max() <= 1.01


def test_each_column_alone_follows_the_law():
    """One fixed column over many keys: the whole conditional law of the pattern of active features, by chi2."""
    p = np.array([0.5, 0.2, 0.4])
    world = sparse.independent(3)
    keys = jax.random.split(prng.key(5), 2**14)
    x = np.asarray(jax.jit(jax.vmap(lambda k: world.sample_active(k, jnp.asarray(p, jnp.float32), 5)))(keys))
    patterns = np.indices((2, 2, 2)).reshape(3, -1)[:, 1:]
    law = np.prod(np.where(patterns == 1, p[:, None], 1 - p[:, None]), 0)
    for column in range(5):
        counts = np.bincount((x[:, :, column] != 0) @ np.array([4, 2, 1]), minlength=8)[1:]
        assert stats.chisquare(counts, law / law.sum() * len(keys)).pvalue > LIMIT
    assert stats.kstest(x[x != 0], "uniform").pvalue > LIMIT


@pytest.mark.ci
def test_density_per_member_under_vmap():
    world = sparse.independent(3)
    density, keys = jnp.array([1.0, 0.3, 1e-4]), jax.random.split(prng.key(6), 3)
    for draw in (world.sample, world.sample_active):
        mapped = jax.jit(jax.vmap(lambda k, d, draw=draw: draw(k, d, 64)))(keys, density)
        for i in range(3):
            np.testing.assert_allclose(mapped[i], draw(keys[i], density[i], 64), rtol=1e-6)


@pytest.mark.parametrize("density", [1.0, 0.3, 1e-4])
def test_silent_and_awake(density):
    world = sparse.independent(20)
    per_feature = jnp.full(20, density, jnp.float32)
    p = float(np.float32(density))
    silent = 0.0 if p == 1 else np.exp(20 * np.log1p(-p))
    for d in (density, per_feature):
        np.testing.assert_allclose(world.silent(d), silent, rtol=2e-6)
        np.testing.assert_allclose(world.awake(d), 1.0 if p == 1 else -np.expm1(20 * np.log1p(-p)), rtol=2e-6)


# ---- quadrature


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_quadrature_is_exact_for_polynomials(low, high):
    nodes, p = 4, np.array([0.3, 0.9], np.float32)
    x, w = sparse.independent(2, low, high).enumerate(p, nodes)
    assert isinstance(x, np.ndarray)
    x64, w64 = x.astype(np.float64), np.asarray(w, np.float64)

    def moment(k, q):
        return (high ** (k + 1) - low ** (k + 1)) / ((k + 1) * (high - low)) * q if k else 1.0

    for i in range(2 * nodes):
        for j in range(2 * nodes):
            expected = moment(i, p[0]) * moment(j, p[1])
            np.testing.assert_allclose(w64 @ (x64[0] ** i * x64[1] ** j), expected, rtol=1e-5, atol=1e-6)


def test_absolute_value_is_exact_with_the_kink_at_zero():
    x, w = sparse.independent(1, -1.0, 1.0).enumerate(0.4, 2)
    np.testing.assert_allclose(np.abs(x[0]) @ np.asarray(w), 0.4 / 2, rtol=1e-6)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_nodes_by_pattern_agree_with_the_full_grid(low):
    """With as many nodes for every number of active features the columns are the same, the weights too."""
    world, p = sparse.independent(3, low), np.array([0.2, 1.0, 0.6], np.float32)
    full, patterns = (world.enumerate(p, nodes) for nodes in (4, (4, 4, 4)))
    order = [np.lexsort(x) for x, _ in (full, patterns)]
    np.testing.assert_allclose(full[0][:, order[0]], patterns[0][:, order[1]], rtol=1e-6)
    np.testing.assert_allclose(full[1][order[0]], patterns[1][order[1]], rtol=1e-5, atol=1e-9)
    world_3 = sparse.independent(3, low)
    assert expect.quadrature_error(relu_loss, world_3, 0.05, (64, 12, 4)) < 1e-5
    assert expect.quadrature_error(relu_loss, world_3, 0.05, 4) > 1e-5
    with pytest.raises(ValueError, match="3 features need nodes for 1 to 3 active ones"):
        world.enumerate(p, (4, 4))
    with pytest.raises(ValueError, match="more than the"):
        world.enumerate(p, (4, 4, 400))


def test_quadrature_against_scipy():
    """One feature: E[loss] = (1-p) f(0) + p int_0^1 f, with the kink given to scipy."""
    x, w = sparse.independent(1).enumerate(0.3, 128)

    def f(v):
        return (v - np.maximum(1.3 * v - 0.2, 0)) ** 2

    integral = integrate.quad(f, 0, 1, points=[0.2 / 1.3])[0]
    np.testing.assert_allclose(f(x[0]) @ np.asarray(w), 0.3 * integral, rtol=3e-4)


@pytest.mark.parametrize(("low", "nodes"), [(0.0, 24), (-1.0, 12)])
def test_doubling_the_nodes_changes_little(low, nodes):
    world = sparse.independent(3, low)
    error = jax.jit(jax.vmap(lambda d: expect.quadrature_error(relu_loss, world, d, nodes)))
    assert error(ALL_DENSITIES).max() < 1e-4
    assert expect.quadrature_error(lambda x: x[0] ** 2, world, 0.3, 2) < 1e-6
    assert expect.quadrature_error(relu_loss, world, 0.3, 1) > 1e-4


def test_weights_and_grid_agree():
    """Marginal weight of each level of each feature: catches weights laid out in another order than the columns."""
    p = np.array([0.5, 0.02, 0.2], np.float32)
    x, w = sparse.independent(3).enumerate(p, 3)
    assert x.shape == (3, 64)
    for i in range(3):
        np.testing.assert_allclose(np.asarray(w)[x[i] == 0].sum(), 1 - p[i], rtol=1e-5)


# ---- expectations


@pytest.mark.parametrize("name", expect.EXPECTATIONS)
@pytest.mark.parametrize("density", [1.0, 0.3, 1e-4, UNEVEN])
def test_weights_sum_to_one(name, density):
    x, w = expect.expectation(name, sparse.independent(3), 8)(prng.key(0), jnp.asarray(density))
    assert x.shape == (3, w.size)
    assert w.size == (9**3 if name == "quadrature" else 8)
    assert (np.asarray(w) >= 0).all()
    np.testing.assert_allclose(np.asarray(w, np.float64).sum(), 1, atol=2e-6)


@pytest.mark.parametrize("low", [0.0, -1.0])
@pytest.mark.parametrize(("name", "size"), [("monte_carlo", 1024), ("conditional", 64), ("conditional", 2)])
def test_samplers_are_unbiased(name, size, low):
    """Means over many batches of moments, products and the ReLU toy loss against quadrature."""
    world = sparse.independent(3, low)
    sampler, count = expect.expectation(name, world, size), 4096 if size < 1024 else 1024
    estimates = jax.lax.map(lambda d: means(sampler, d, count), ALL_DENSITIES)
    for p, found in zip(ALL_DENSITIES, np.asarray(estimates, np.float64), strict=True):
        z = z_scores(found, exact_means(world, p, 10 if low else 20))
        columns = count * size if name == "monte_carlo" else count * (size - 1) / float(world.awake(p))
        rare = [columns * float(p[i] * p[j]) < 50 for i in range(3) for j in range(i)]  # too few to be normal
        seen = ~np.array([False] * 9 + rare * 2 + [False])
        assert z[seen].max() < 5, p


def test_a_biased_sampler_is_caught():
    """The same test on a conditional sampler whose zero sample has no weight, and on one that drops a stratum."""
    world = sparse.independent(3)

    def no_silence(key, density):
        return expect.Batch(world.sample_active(key, density, 64), jnp.full(64, 1 / 64))

    def ordered(key, density):
        x = world.sample_active(key, density, 64)
        x = jnp.take_along_axis(x, jnp.argsort(jnp.argmax(x != 0, 0))[None], 1)  # strata in order, as without a turn
        silent = world.silent(density)
        x = jnp.where(jnp.arange(64) == 0, 0, x)
        return expect.Batch(x, jnp.concatenate([silent[None], jnp.full(63, (1 - silent) / 63)]))

    for sampler in (no_silence, ordered):
        estimates = means(sampler, jnp.float32(0.3), 4096)
        assert z_scores(estimates, exact_means(world, 0.3)).max() > 5


def test_conditional_has_less_variance():
    """Of the toy loss at 64 columns."""
    world = sparse.independent(3)
    density = jnp.array([0.1, 0.03, 0.001])
    plain, given = (
        np.asarray(jax.lax.map(lambda d, s=s: means(s(world, 64), d, 4096)[:, -1], density)).var(1)
        for s in (expect.monte_carlo, expect.conditional)
    )
    assert (given < np.array([0.5, 0.2, 0.02]) * plain).all(), given / plain


def test_conditional_column_zero_is_the_zero_sample():
    world = sparse.independent(5)
    x, w = expect.conditional(world, 16)(prng.key(0), 0.2)
    assert (np.asarray(x)[:, 0] == 0).all()
    assert (np.asarray(x)[:, 1:] != 0).any(0).all()
    np.testing.assert_allclose(w[0], 0.8**5, rtol=1e-5)


def test_world_without_awake():
    world = sparse.independent(3)
    bare = sparse.World(world.n, world.sample, world.silent, world.sample_active, world.enumerate)
    mine, theirs = (expect.conditional(v, 8)(prng.key(0), 0.2).w for v in (bare, world))
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_quadrature_ignores_the_key():
    sampler = expect.expectation("quadrature", sparse.independent(2), 3)
    for a, b in zip(sampler(prng.key(0), 0.1), sampler(prng.key(1), 0.1), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.ci
def test_gradients_with_respect_to_weights_are_finite():
    def loss(w, density):
        x, weight = expect.conditional(sparse.independent(3), 16)(prng.key(0), density)
        return jnp.sum((x - jax.nn.relu(w.T @ (w @ x))) ** 2 @ weight)

    for density in (1.0, 0.0, 1e-4):
        assert np.isfinite(jax.grad(loss)(jnp.asarray(W), density)).all()


# ---- sets of features

PAIRS = np.array([0.3, 0.05], np.float32)


@pytest.mark.parametrize("how", ["correlated", "anticorrelated"])
@pytest.mark.parametrize("sizes", [(2, 3), (1, 2)])
def test_sets_are_on_or_off_as_one(how, sizes):
    world, owner = sparse.sets(sizes, how), np.repeat([0, 1], sizes)
    for draw in (world.sample, world.sample_active):
        x = np.asarray(jax.jit(draw, static_argnums=2)(prng.key(1), jnp.asarray(PAIRS), 2**18))
        active = np.stack([(x[owner == s] != 0).sum(0) for s in (0, 1)])
        for count, size in zip(active, sizes, strict=True):
            assert set(np.unique(count)) == {0, size if how == "correlated" else 1}
        on = (active > 0).mean(1)
        expected = PAIRS / (1 if draw == world.sample else 1 - np.prod(1 - PAIRS))
        np.testing.assert_allclose(on, expected, atol=5 * np.sqrt(0.25 / 2**18))
        for s, size in enumerate(sizes):
            members = (x[owner == s] != 0).mean(1) / on[s]
            np.testing.assert_allclose(members, 1 if how == "correlated" else 1 / size, atol=0.02)
        values = x[x != 0]
        assert stats.kstest(values[: 2**16], "uniform").pvalue > LIMIT
        if draw == world.sample_active:
            assert active.any(0).all()


@pytest.mark.parametrize("how", ["correlated", "anticorrelated"])
@pytest.mark.parametrize(("name", "size"), [("monte_carlo", 1024), ("conditional", 64)])
def test_sets_are_drawn_as_they_are_enumerated(how, name, size):
    """Means of moments, products and a toy loss; a world of independent features of the same densities is seen."""
    world = sparse.sets((2, 1), how)
    sampler = expect.expectation(name, world, size)
    found = means(sampler, jnp.asarray(PAIRS), 2048)
    exact = exact_means(world, jnp.asarray(PAIRS))
    keep = exact > 0  # the product of two that are never on together
    assert z_scores(found, exact)[keep].max() < 5
    assert (np.asarray(found)[:, ~keep] == 0).all()
    share = PAIRS * (1 if how == "correlated" else [0.5, 1])
    alone = exact_means(sparse.independent(3), jnp.asarray([share[0], share[0], share[1]]))
    assert z_scores(found, alone).max() > 5
    np.testing.assert_allclose(alone[:3], exact[:3], rtol=1e-5)


def test_sets_of_one_are_independent_features():
    def in_order(world):
        x, w = map(np.asarray, world.enumerate(UNEVEN, 3))
        order = np.lexsort(x)
        return x[:, order], w[order]

    for how in ("correlated", "anticorrelated"):
        for a, b in zip(in_order(sparse.sets((1, 1, 1), how)), in_order(sparse.independent(3)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def mean_by(f, how, rule, nodes):
    x, w = sparse.sets((3, 1), how, rule).enumerate(PAIRS, nodes)
    return np.asarray(f(x) @ w)


@pytest.mark.parametrize("how", ["correlated", "anticorrelated"])
def test_sobol_points_take_the_moments_that_nodes_take(how):
    moments = lambda x: jnp.stack([x[0], x[0] * x[3], x[0] ** 2 * x[1]])  # noqa: E731
    sobol, exact = mean_by(moments, how, "sobol", 1024), mean_by(moments, how, "legendre", 8)
    np.testing.assert_allclose(sobol, exact, rtol=1e-3, atol=1e-7)


def test_sobol_points_are_closer_than_nodes_where_relu_bends():
    """(x_0 - x_1)+ (x_1 - x_2 + x_3)+: 1/120 with x_3 off and 1/18 with it on, by hand."""
    bent = lambda x: jnp.maximum(x[0] - x[1], 0) * jnp.maximum(x[1] - x[2] + x[3], 0)  # noqa: E731
    exact = PAIRS[0] * ((1 - PAIRS[1]) / 120 + PAIRS[1] / 18)
    assert abs(mean_by(bent, "correlated", "sobol", 2048) / exact - 1) < 0.015  # 6,145 columns
    assert abs(mean_by(bent, "correlated", "legendre", 8) / exact - 1) > 0.04  # 5,841


# ---- bad input


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: sparse.independent(0), r"^a world needs at least one feature, but n is 0\.$"),
        (lambda: sparse.sets((2, 0), "correlated"), r"^a world of sets needs at least one set of .* is \(2, 0\)\.$"),
        (lambda: sparse.sets((2, 2), "correlated", "even"), r"^sets are enumerated by .* but rule is 'even'\.$"),
        (lambda: sparse.sets((2,), "correlated", "sobol").enumerate(0.1, 96), r"^a Sobol .* but it has 96 points\.$"),
        (lambda: sparse.sets((2, 2), "linked"), r"^sets are correlated or anticorrelated, but how is 'linked'\.$"),
        (lambda: sparse.sets((2, 2), "correlated").silent(jnp.ones(4)), r"^density must be .* shape \(2,\), but .*\.$"),
        (lambda: sparse.sets((2, 2), "correlated").enumerate(0.1, (2, 2)), r"^a world of sets takes one number .*\.$"),
        (lambda: sparse.sets((9, 9), "correlated").enumerate(0.1, 9), r"^sets of .* columns, more than the .*\.$"),
        (lambda: sparse.independent(3, 0.5), r"^low must be 0 or -high, but low is 0.5 and high is 1.0\.$"),
        (lambda: sparse.independent(3, -1.0, 2.0), r"^low must be 0 or -high, but low is -1.0 and high is 2.0\.$"),
        (lambda: sparse.independent(3, 0.0, -1.0), r"^high must be positive and finite, but it is -1.0\.$"),
        (
            lambda: sparse.independent(3).silent(jnp.ones(2)),
            r"^density must be a scalar or have shape \(3,\), but .*\.$",
        ),
        (
            lambda: sparse.independent(20).enumerate(0.1, 8),
            r"^20 features with 9 levels each are \d+ columns, more .*\.$",
        ),
        (
            lambda: sparse.independent(2).enumerate(0.1, 0),
            r"^quadrature needs at least one node per feature, but .*\.$",
        ),
        (
            lambda: expect.expectation("exact", sparse.independent(2), 4),
            r"^unknown expectation 'exact': choose one of conditional, monte_carlo, quadrature\.$",
        ),
        (
            lambda: expect.expectation("conditional", sparse.independent(2), 1),
            r"^expectation 'conditional' needs a size of at least 2, but size is 1\.$",
        ),
        (
            lambda: expect.expectation("monte_carlo", sparse.independent(2), 0),
            r"^expectation 'monte_carlo' needs a size of at least 1, but size is 0\.$",
        ),
    ],
)
def test_bad_input_is_named_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_world_that_cannot_be_enumerated():
    world = sparse.independent(2)
    blind = sparse.World(2, world.sample, world.silent)
    with pytest.raises(ValueError, match=r"^this world cannot be enumerated: choose monte_carlo or conditional"):
        expect.expectation("quadrature", blind, 3)(prng.key(0), 0.1)
    with pytest.raises(ValueError, match=r"^this world cannot be sampled given activity: choose monte_carlo"):
        expect.expectation("conditional", blind, 3)
