"""Closed forms against hand-worked values, float64 quadrature, enumeration and Monte Carlo; they share no code."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from superpose.toy import kgons, theory

quick = settings(max_examples=60, deadline=None)
importances = st.lists(st.floats(0.01, 10), min_size=2, max_size=9).map(np.array)
densities = st.floats(0.01, 1.0)


def sample(rng, p, n, count):
    return rng.uniform(size=(count, n)) * (rng.uniform(size=(count, n)) < p)


def relu_model(W, b, x):
    return np.maximum(x @ W @ W.T + b, 0)


def relu_loss(W, b, importance, p, nodes):
    """Population loss by activity pattern, each integrated with the midpoint rule: float64, no shared code."""
    W, b, n = np.asarray(W, float), np.asarray(b, float), len(b)
    t = (np.arange(nodes) + 0.5) / nodes
    total = 0.0
    for active in itertools.product([0, 1], repeat=n):
        k = sum(active)
        grid = np.stack(np.meshgrid(*[t] * k, indexing="ij"), -1).reshape(-1, k) if k else np.zeros((1, 0))
        x = np.zeros((len(grid), n))
        x[:, np.flatnonzero(active)] = grid
        error = ((x - relu_model(W, b, x)) ** 2 @ np.asarray(importance)).mean()
        total += p**k * (1 - p) ** (n - k) * error
    return total


# ---- one feature, one pair


def test_dropped_loss_is_the_variance():
    rng = np.random.default_rng(0)
    for p in (1.0, 0.5, 0.1):
        x = sample(rng, p, 1, 400_000)
        np.testing.assert_allclose(theory.optimal_bias(p), x.mean(), rtol=0.02)
        np.testing.assert_allclose(theory.dropped_loss(p), x.var(), rtol=0.02)
        np.testing.assert_allclose(theory.dropped_loss(p, bias=False), (x**2).mean(), rtol=0.02)


@pytest.mark.parametrize("p", [1.0, 0.4, 0.05])
def test_digon_loss_is_exact(p):
    importance = np.array([1.0, 0.3])
    exact = relu_loss([[1.0], [-1.0]], [0.0, 0.0], importance, p, nodes=400)
    np.testing.assert_allclose(theory.digon_loss(p, 1.0, 0.3), exact, rtol=1e-4)


def test_digon_ratio_balances_the_two_losses():
    p = np.linspace(0.01, 0.79, 50)
    r = theory.digon_ratio(p)
    np.testing.assert_allclose(theory.digon_loss(p, 1.0, r), r * theory.dropped_loss(p), rtol=1e-5)
    assert np.all(np.isinf(theory.digon_ratio(jnp.array([0.8, 0.9, 1.0]))))
    assert np.all(np.isfinite(jax.vmap(jax.grad(theory.digon_ratio))(jnp.array([0.5, 0.8, 0.9]))))


def test_triangle_costs_three_eighths_p_squared():
    """Why phase_3_2 may leave it out."""
    angle = 2 * np.pi * np.arange(3) / 3
    W = np.stack([np.cos(angle), np.sin(angle)], 1)
    p = 1e-3
    ratio = relu_loss(W, np.zeros(3), np.ones(3), p, nodes=40) / p**2
    np.testing.assert_allclose(ratio, 3 / 8, rtol=5e-3)


# ---- the linear model


@pytest.mark.parametrize(("base", "n", "m", "loss"), [(0.7, 20, 5, 0.046464), (0.9, 80, 20, 0.10113)])
def test_linear_optimum_of_the_published_sizes(base, n, m, loss):
    importance = base ** np.arange(n)
    np.testing.assert_allclose(theory.linear_optimum_loss(importance, m, 1.0), loss, atol=6e-6)
    shuffled = np.random.default_rng(0).permutation(importance)
    np.testing.assert_allclose(theory.linear_optimum_loss(shuffled, m, 1.0), loss, atol=6e-6)
    assert theory.linear_optimum_loss(importance, m, jnp.array([1.0, 0.1])).shape == (2,)
    assert float(theory.linear_optimum_loss(importance, n, 1.0)) == 0


@pytest.mark.parametrize("p", [1.0, 0.2])
def test_linear_optimum_is_reached_and_flat_there(p):
    n, m = 20, 5
    importance = 0.7 ** jnp.arange(n)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(m, m)))[0]
    W = jnp.asarray(np.eye(n, m) @ rotation, jnp.float32)
    b = jnp.where(jnp.arange(n) < m, 0.0, theory.optimal_bias(p))
    np.testing.assert_allclose(
        theory.linear_loss(W, b, importance, p), theory.linear_optimum_loss(importance, m, p), rtol=1e-5
    )
    for slope in jax.jit(jax.grad(theory.linear_loss, (0, 1)))(W, b, importance, p):
        np.testing.assert_allclose(slope, 0, atol=1e-6)


@pytest.mark.parametrize("p", [0.3, np.array([0.9, 0.1, 0.5, 0.3])])
def test_linear_loss_matches_monte_carlo(p):
    rng = np.random.default_rng(1)
    W, b, importance = rng.normal(size=(4, 2)) * 0.7, rng.normal(size=4) * 0.3, np.array([1.0, 0.5, 2.0, 0.1])
    x = sample(rng, p, 4, 400_000)
    errors = (x - (x @ W @ W.T + b)) ** 2 @ importance
    got = theory.linear_loss(jnp.asarray(W, jnp.float32), jnp.asarray(b, jnp.float32), importance, p)
    assert abs(float(got) - errors.mean()) < 4 * errors.std() / np.sqrt(len(x))


@quick
@given(st.integers(0, 10_000), densities)
def test_no_linear_model_beats_the_optimum(seed, p):
    rng = np.random.default_rng(seed)
    W, b = rng.normal(size=(5, 2)) * rng.uniform(0.1, 1), rng.normal(size=5) * 0.5
    importance = rng.uniform(0.1, 2, size=5)
    loss = theory.linear_loss(jnp.asarray(W, jnp.float32), jnp.asarray(b, jnp.float32), importance, p)
    assert loss >= theory.linear_optimum_loss(importance, 2, p) * (1 - 1e-5)


def test_linear_optimum_rejects_a_negative_width():
    with pytest.raises(ValueError, match="m must be"):
        theory.linear_optimum_loss(np.ones(3), -1, 1.0)


# ---- digon bookkeeping


def test_thresholds_of_the_small_published_size():
    got = theory.digon_thresholds(0.7 ** np.arange(20), 5)
    np.testing.assert_allclose(got, [0.509, 0.369, 0.237, 0.137, 0.073], atol=5e-4)


@pytest.mark.parametrize(
    ("base", "n", "m", "counts"),
    [(0.7, 20, 5, {1.0: 5, 0.3: 7, 0.1: 9, 0.03: 10}), (0.9, 80, 20, {1.0: 20, 0.3: 27, 0.1: 34, 0.03: 40})],
)
def test_counts_of_the_published_sizes(base, n, m, counts):
    importance = base ** np.arange(n)
    assert {p: theory.represented_count(importance, m, p).represented for p in counts} == counts


def test_who_shares_at_density_one_tenth():
    got = theory.represented_count(0.7 ** np.arange(20), 5, 0.1)
    assert got.dedicated == (0,)
    assert sorted(i for pair in got.pairs for i in pair) == list(range(1, 9))


def test_indices_refer_to_the_input_order():
    got = theory.represented_count(np.array([0.1, 0.4, 1.0, 0.5]), 2, 0.3)
    assert got == theory.Allocation(3, (2,), ((3, 1),))


@quick
@given(importances, st.integers(1, 4), densities)
def test_bookkeeping_finds_the_cheapest_count(importance, m, p):
    """The rule for adding one feature against a search over all counts, and against all choices of what to share."""
    m = min(m, len(importance))
    got = theory.represented_count(importance, m, p)
    losses = {R: theory.bookkeeping_loss(importance, m, p, R) for R in range(m, min(2 * m, len(importance)) + 1)}
    assert losses[got.represented] <= min(losses.values()) * (1 + 1e-9) + 1e-15
    shared = {i for pair in got.pairs for i in pair}
    assert len(got.dedicated) + len(got.pairs) == m
    assert len(got.dedicated) + len(shared) == got.represented
    cost = np.full(len(importance), p / 3 - p**2 / 4)
    cost[list(shared)], cost[list(got.dedicated)] = p**2 / 6, 0
    np.testing.assert_allclose(cost @ importance, losses[got.represented], rtol=1e-9, atol=1e-15)


@quick
@given(importances, st.integers(1, 4), densities)
def test_thresholds_agree_with_counts(importance, m, p):
    m = min(m, len(importance))
    thresholds = theory.digon_thresholds(importance, m)
    assert np.all(np.diff(thresholds) <= 1e-12)
    if np.all(np.abs(thresholds - p) > 1e-9):
        assert theory.represented_count(importance, m, p).represented == m + np.sum(p < thresholds)


def test_bookkeeping_loss_ends_and_trained_values():
    importance = 0.7 ** np.arange(20)
    np.testing.assert_allclose(theory.bookkeeping_loss(importance, 5, 1.0, 5), 0.046464, atol=1e-6)
    # A trained model may move norms and biases: a little below the digons, never far.
    for p, trained in ((0.3, 0.0336), (0.1, 0.0076)):
        loss = theory.bookkeeping_loss(importance, 5, p, theory.represented_count(importance, 5, p).represented)
        assert 0.99 < loss / trained < 1.05


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.digon_thresholds(np.array([1.0, 0.0]), 1),
        lambda: theory.digon_thresholds(np.ones(2), 3),
        lambda: theory.represented_count(np.ones(2), 0, 0.5),
        lambda: theory.represented_count(np.ones(2), 1, 0.0),
        lambda: theory.bookkeeping_loss(np.ones(4), 1, 0.5, 3),
        lambda: theory.kgon_dimensionality(1),
        lambda: theory.simplex_dimensionality(0),
        lambda: theory.tegum_dimensionality([(1, 2)]),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"importance|m must|p must|count|vertices|dimensions|factor"):
        call()


# ---- phase diagrams

SWEEP = np.array([0.1, 0.2, 0.35, 0.6, 1.0, 1.8, 3.2, 10.0])


def away_from(boundaries, importance):
    """Cells at least a factor 1.25 from every boundary: nearer, tuned norms and biases move the true border."""
    return np.all([np.abs(np.log(importance / np.asarray(b))) > np.log(1.25) for b in boundaries], axis=0)


@pytest.mark.parametrize(
    ("p", "optimum"),
    [
        (1.0, "0000SDDD"),
        (0.7, "0000SDDD"),
        (0.57, "0000SDDD"),
        (0.5, "000SSSDD"),
        (0.3, "00SSSSSD"),
        (0.1, "SSSSSSSS"),
        (0.03, "SSSSSSSS"),
        (0.01, "SSSSSSSS"),
    ],
)
def test_phase_2_1_outcomes_match_the_global_optimum(p, optimum):
    """The strings are global optima over all weights and biases by exact quadrature, 16 restarts each."""
    label = np.asarray(theory.phase_2_1(p, SWEEP).label)
    clear = away_from(theory.phase_2_1_boundaries(p), SWEEP)
    assert clear.sum() >= 5
    assert "".join("0SD"[i] for i in label[clear]) == "".join(np.array(list(optimum))[clear])


@pytest.mark.parametrize(
    ("p", "optimum"),
    [
        (0.3, "00SSSDDD"),
        (0.5, "000SDDDD"),
        (0.1, "SSSSSDDD"),
        (0.03, "SSSSSDDD"),
        (0.57, "00000DDD"),
        (1.0, "00000DDD"),
    ],
)
def test_phase_3_2_outcomes_match_the_global_optimum(p, optimum):
    label = np.asarray(theory.phase_3_2(p, SWEEP).label)
    clear = away_from(theory.phase_3_2_boundaries(p), SWEEP)
    assert clear.sum() >= 5
    assert "".join("0SD"[i] for i in label[clear]) == "".join(np.array(list(optimum))[clear])


def test_phase_losses_on_the_tie_line():
    p = jnp.array([1.0, 0.7, 0.57, 0.5, 0.3, 0.1, 0.03, 0.01])
    expected = [0.0833, 0.1108, 0.1083, 0.0833, 0.0300, 0.00333, 3.00e-4, 3.33e-5]
    np.testing.assert_allclose(theory.phase_2_1(p, 1.0).losses.min(-1), expected, rtol=2e-3)
    np.testing.assert_allclose(theory.phase_3_2(0.3, np.array([0.35, 1.0, 3.0])).losses.min(-1), [0.02025, 0.03, 0.03])


@pytest.mark.parametrize(("p", "optimum"), [(0.3, 0.0293), (0.7, 0.1080), (0.1, 0.00332)])
def test_envelope_bounds_a_numerical_search(p, optimum):
    """n = 2, m = 1, I_2 = 1: a direct search over W and b ends a few percent below the best hand-written solution."""

    def loss(theta):
        return relu_loss(theta[:2, None], theta[2:], np.ones(2), p, nodes=16)

    starts = ([1.0, -0.9, 0.0, 0.0], [0.7, -0.8, 0.2, 0.3], [0.6, 0.6, 0.1, 0.1])
    found = min(minimize(loss, s, method="Nelder-Mead", options={"maxfev": 400}).fun for s in starts)
    assert 0.96 < found / theory.phase_2_1(p, 1.0).losses.min() < 1.003
    np.testing.assert_allclose(found, optimum, rtol=0.01)


@pytest.mark.parametrize("bias", [True, False])
def test_boundaries_are_where_the_best_two_solutions_tie(bias):
    p = np.array([0.02, 0.1, 0.3, 0.5])
    lower, upper = theory.phase_2_1_boundaries(p, bias)
    np.testing.assert_allclose(lower * upper, 1, rtol=1e-5)
    for I2, (a, b) in ((lower, (0, 1)), (upper, (1, 2))):
        losses = theory.phase_2_1(p, I2, bias).losses
        np.testing.assert_allclose(losses[:, a], losses[:, b], rtol=1e-5)
    lower3, upper3 = theory.phase_3_2_boundaries(p, bias)
    losses = theory.phase_3_2(p, lower3, bias).losses
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-5)
    np.testing.assert_allclose(upper3, 1)
    closed = 2 * p / (4 - 5 * p) if bias else p / (2 - p)
    np.testing.assert_allclose(lower, closed, rtol=1e-5)


@quick
@given(st.floats(0.02, 1.0), st.floats(0.05, 20.0))
def test_labels_follow_the_boundaries(p, I2):
    for phase, boundaries in (
        (theory.phase_2_1, theory.phase_2_1_boundaries),
        (theory.phase_3_2, theory.phase_3_2_boundaries),
    ):
        lower, upper = (float(b) for b in boundaries(p))
        if min(abs(I2 / lower - 1), abs(I2 / upper - 1)) > 1e-3:
            assert int(phase(p, I2).label) == (0 if I2 < lower else 1 if I2 < upper else 2)


@pytest.mark.parametrize("bias", [True, False])
def test_triple_point(bias):
    I2, p = theory.triple_point(bias)
    losses = theory.phase_2_1(p, I2, bias).losses
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    assert theory.triple_point()[1] == 4 / 7


def test_the_change_is_first_order():
    """At a boundary the two losses cross with different slopes in I_2: q against p^2/6."""
    p = 0.3
    lower = theory.phase_2_1_boundaries(p)[0]
    slopes = jax.jacfwd(lambda I2: theory.phase_2_1(p, I2).losses)(lower)
    np.testing.assert_allclose(slopes, [0.3 / 3 - 0.09 / 4, 0.09 / 6, 0], atol=1e-6)


@pytest.mark.ci
def test_diagrams_broadcast():
    p, I2 = jnp.geomspace(0.01, 1, 5)[:, None], jnp.geomspace(0.1, 10, 7)
    assert theory.phase_2_1(p, I2).losses.shape == (5, 7, 3)
    assert theory.phase_3_2(p, I2).losses.shape == (5, 7, 4)
    assert theory.phase_3_2(p, I2).label.shape == (5, 7)


# ---- polytopes


def test_plateau_values():
    assert [theory.simplex_dimensionality(k) for k in (1, 2, 3)] == [1 / 2, 2 / 3, 3 / 4]
    assert [theory.kgon_dimensionality(k) for k in (2, 3, 4, 5)] == [1 / 2, 2 / 3, 1 / 2, 2 / 5]
    np.testing.assert_allclose(theory.tegum_dimensionality([(5, 2), (2, 1)]), [2 / 5] * 5 + [1 / 2] * 2)
    assert theory.tegum_dimensionality([(4, 3), (8, 3), (3, 2), (1, 1)]).sum() == pytest.approx(9)
    assert theory.tegum_dimensionality([]).shape == (0,)


# ---- the ReLU model at high sparsity


@quick
@given(st.floats(-3, 3), st.floats(-2, 2), st.sampled_from([0.0, 1.0]))
def test_relu_error_matches_quadrature(g, b, t):
    x = (np.arange(20_000) + 0.5) / 20_000
    expected = np.mean((t * x - np.maximum(g * x + b, 0)) ** 2)
    np.testing.assert_allclose(theory.relu_error(g, b, t), expected, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize(("g", "b"), [(0.0, 0.0), (0.0, 0.5), (0.0, -0.5), (1.0, 0.0), (-1.0, 1.0), (2.0, -2.0)])
def test_relu_error_at_its_edges(g, b):
    x = (np.arange(20_000) + 0.5) / 20_000
    expected = np.mean((x - np.maximum(g * x + b, 0)) ** 2)
    np.testing.assert_allclose(theory.relu_error(g, b, 1.0), expected, atol=1e-6)
    assert np.all(np.isfinite(jax.jit(jax.grad(theory.relu_error, (0, 1)))(g, b, 1.0)))


def random_model(n, m):
    rng = np.random.default_rng(n)
    W, b = rng.normal(size=(n, m)) * 0.7, np.abs(rng.normal(size=n)) * 0.2 * (-1) ** np.arange(n)
    return jnp.asarray(W, jnp.float32), jnp.asarray(b, jnp.float32), 0.8 ** np.arange(n)


def test_first_two_orders_of_the_loss():
    """L - (p S^(n-1) L_1 + S^n L_0) must fall as p^2. The control drops interference and falls about as p."""
    W, b, importance = random_model(3, 2)
    p = np.array([0.04, 0.02, 0.01])
    exact = np.array([relu_loss(W, b, importance, q, nodes=60) for q in p])
    own = np.sum(importance * np.asarray(theory.relu_error(jnp.sum(W * W, -1), b, 1.0)))
    without = p * (1 - p) ** 2 * own + (1 - p) ** 3 * float(theory.no_active_loss(b, importance))

    def order(approximation):
        return np.diff(np.log(np.abs(exact - approximation))) / np.diff(np.log(p))

    assert np.all(exact > theory.first_order_loss(W, b, importance, p))
    np.testing.assert_allclose(order(np.asarray(theory.first_order_loss(W, b, importance, p))), 2, atol=0.1)
    assert np.all(order(without) < 1.3)  # c_1 p + c_2 p^2, so a little above 1


def test_first_two_orders_are_the_loss_of_their_own_inputs():
    """Monte Carlo at n = 6: the mean over samples with at most one active feature."""
    W, b, importance = random_model(6, 2)
    p, rng = 0.1, np.random.default_rng(0)
    x = sample(rng, p, 6, 400_000)
    errors = (x - relu_model(np.asarray(W), np.asarray(b), x)) ** 2 @ importance
    errors = np.where((x > 0).sum(1) <= 1, errors, 0)
    got = float(theory.first_order_loss(W, b, importance, p))
    assert abs(got - errors.mean()) < 4 * errors.std() / np.sqrt(len(x))


def test_first_order_terms_by_hand():
    # An antipodal pair costs nothing at first order; parallel features leak 1/3 each, weighted by who is disturbed.
    ones, zeros = jnp.array([[1.0], [1.0]]), jnp.zeros(2)
    assert float(theory.one_active_loss(jnp.array([[1.0], [-1.0]]), zeros, np.ones(2))) == 0
    np.testing.assert_allclose(theory.one_active_loss(ones, zeros, np.array([1.0, 5.0])), 6 / 3, rtol=1e-6)
    np.testing.assert_allclose(theory.no_active_loss(jnp.array([0.5, -0.5]), np.array([4.0, 1.0])), 1.0)
    # W_1 is the wide one: feature 2 (active) pushes output 1 to ReLU(2 x), weighted by I_1 = 1: 4/3 each way.
    W = jnp.array([[2.0], [1.0]])
    np.testing.assert_allclose(theory.one_active_loss(W, zeros, np.array([1.0, 0.0])), 9 / 3 + 4 / 3, rtol=1e-6)


@pytest.mark.ci
def test_expansion_is_differentiable_and_maps():
    W, b, importance = random_model(5, 2)
    loss = jax.jit(theory.first_order_loss)
    slopes = jax.jit(jax.grad(theory.first_order_loss, (0, 1)))(W, b, importance, 0.01)
    step = 1e-2
    for k in range(2):
        bumped = [W, b]
        bumped[k] = bumped[k] - step * slopes[k]
        gain = loss(W, b, importance, 0.01) - loss(*bumped, importance, 0.01)
        np.testing.assert_allclose(gain, step * jnp.sum(slopes[k] ** 2), rtol=0.05)
    stacked = jax.vmap(theory.one_active_loss, (0, 0, None))(jnp.stack([W, 2 * W]), jnp.stack([b, b]), importance)
    assert stacked.shape == (2,)
    assert theory.first_order_loss(W, b, importance, jnp.array([0.1, 0.2])).shape == (2,)


@pytest.mark.parametrize(("k", "c", "positive"), [(4, 5, 0), (4, 6, 2), (5, 5, 0), (5, 6, 1), (6, 6, 0), (7, 9, 1)])
def test_polygons_are_critical_points_of_their_loss(k, c, positive):
    W, b = kgons.corners(k, c, positive)
    with jax.enable_x64(True):
        loss = lambda W, b: theory.one_active_loss(W, b, jnp.ones(c)) / c  # noqa: E731
        value, slopes = jax.value_and_grad(loss, (0, 1))(jnp.asarray(W), jnp.asarray(b))
        off = np.asarray(jax.grad(loss)(jnp.asarray(W * 0.9), jnp.asarray(b)))
        value, slopes = float(value), [np.asarray(s) for s in slopes]
    assert value == pytest.approx(kgons.level(k, c, positive), abs=1e-9)
    assert max(np.abs(s).max() for s in slopes) < 1e-7
    assert np.abs(off).max() > 1e-3


def test_the_bias_that_pays_is_the_best_one_of_a_dead_feature():
    W, b = kgons.corners(5, 6, 1)
    losses = [float(theory.one_active_loss(jnp.asarray(W), jnp.asarray(b).at[5].set(v), jnp.ones(6))) for v in
              (0.0, 1 / 12 - 0.02, 1 / 12, 1 / 12 + 0.02)]  # fmt: skip
    assert losses[2] < min(losses[1], losses[3]) < losses[0]


def test_more_corners_than_features_and_no_polygon_are_refused():
    with pytest.raises(ValueError, match="has 1 dead ones, got 2"):
        kgons.level(5, 6, 2)
    with pytest.raises(ValueError, match="k >= 3"):
        kgons.polygon(2)


@pytest.mark.parametrize("k", [3, 5, 10, 12])
def test_no_other_length_and_bias_makes_a_better_polygon(k):
    length, bias = np.meshgrid(np.linspace(0.5, 3, 60), np.linspace(-4, 0.3, 60), indexing="ij")
    gains = length[..., None] ** 2 * np.cos(2 * np.pi * np.arange(k) / k)
    losses = np.asarray(theory.relu_error(gains, bias[..., None], 1.0 * (np.arange(k) == 0))).sum(-1)
    assert 3 * k * losses.min() >= kgons.polygon(k).excess - 1e-4
