"""Toy models with a hidden nonlinearity or with weights on both sides, and what the experiments look for in them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from experiments.toy import dynamics, nonlinear_compression
from experiments.toy.absolute_value import motif
from experiments.toy.perturbed_pentagon import crossing
from experiments.toy.privileged_basis import monosemantic
from superpose.toy import attack, capacity
from superpose.toy.models import ACTIVATIONS, ToyModel, TwoLayers, normalised, objective
from superpose.worlds import prng
from superpose.worlds.expect import Batch

X = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 7)), jnp.float32)


@pytest.mark.parametrize("hidden", ACTIVATIONS)
def test_the_hidden_layer_has_its_nonlinearity_and_no_bias(hidden):
    model = ToyModel(4, 3, hidden=hidden, rngs=nnx.Rngs(0))
    W = np.asarray(model.W[...])
    pre = W.T @ np.asarray(X)
    h = {"linear": pre, "relu": np.maximum(pre, 0), "gelu": pre * stats.norm.cdf(pre)}[hidden]
    np.testing.assert_allclose(model.encode(X), h, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(X), np.maximum(W @ h, 0), rtol=1e-5, atol=1e-6)
    assert {path[0] for path, _ in nnx.to_flat_state(nnx.state(model))} == {"W", "b"}


def test_two_layers_have_weights_of_their_own():
    model = TwoLayers(4, 3, rngs=nnx.Rngs(1))
    W_in, W_out = np.asarray(model.W_in[...]), np.asarray(model.W_out[...])
    assert W_in.shape == (3, 4)
    assert W_out.shape == (4, 3)
    np.testing.assert_allclose(model(X), np.maximum(W_out @ np.maximum(W_in @ X, 0), 0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="at least one feature and one neuron, got n=4, m=0"):
        TwoLayers(4, 0, rngs=nnx.Rngs(1))


def test_scaling_neurons_changes_nothing_but_their_weights():
    model = TwoLayers(4, 3, rngs=nnx.Rngs(2))
    W_in, W_out = normalised(model.W_in[...], model.W_out[...])
    np.testing.assert_allclose(np.abs(W_in).max(1), 1, rtol=1e-6)
    other = W_out @ jnp.maximum(W_in @ X, 0)
    np.testing.assert_allclose(jnp.maximum(other, 0), model(X), rtol=1e-5, atol=1e-6)
    W_in, W_out = normalised(jnp.zeros((1, 2)), jnp.ones((2, 1)))
    assert not np.asarray(W_in).any()
    assert not np.asarray(W_out).any()


def test_a_target_is_what_the_model_is_judged_by():
    """Two neurons a feature compute |x| without error; the same weights are wrong where x itself is asked for."""
    exact = {"W_in": jnp.array([[1.0], [-1.0]]), "W_out": jnp.array([[1.0, 1.0]]), "b": jnp.zeros(1)}
    batch, hyper = Batch(jnp.array([[-0.5, 0.25]]), jnp.array([0.5, 0.5])), {"importance": jnp.ones(1)}
    make = lambda rngs: TwoLayers(1, 2, rngs=rngs)  # noqa: E731
    for target, loss in ((jnp.abs, 0.0), (None, 0.5)):
        got, _ = objective(make, target=target).loss(exact, (), batch, prng.key(0), 0, hyper)
        np.testing.assert_allclose(got, loss, atol=1e-7)


def planted(inhibit=-4.0):
    """The motif as the paper draws it: a = 0 and b = 1 on neuron 0; a drives neuron 1, which inhibits b."""
    W_in, W_out = np.zeros((4, 3)), np.zeros((3, 4))
    W_in[0, [0, 1]], W_out[[0, 1], 0] = (2, -0.5), (0.5, 2)
    W_in[1, 0], W_out[1, 1] = 1, inhibit
    W_in[2, 2], W_out[2, 2] = 1, 1
    return W_in, W_out


def test_the_asymmetric_motif_is_found_where_it_is_planted_and_nowhere_else():
    found = motif(*planted())
    assert found[:4] == (0, 1, 0, 1)
    assert found[4] == pytest.approx(4.0)
    assert found[5] == pytest.approx(1.0)
    assert motif(*planted(inhibit=-1.0)) is None
    assert motif(*planted(inhibit=4.0)) is None
    W_in, W_out = planted()
    W_in[1, 0] = -1  # driven by the other sign of a
    assert motif(W_in, W_out) is None
    W_in, W_out = planted()
    W_in[0, 1], W_out[1, 0] = -2, 0.5  # two features of one size
    assert motif(W_in, W_out) is None
    rng = np.random.default_rng(0)
    assert motif(rng.normal(size=(6, 3)), rng.normal(size=(3, 6)) * 0.1) is None


def test_monosemantic_neurons_have_one_feature():
    W = np.array([[1.0, 0.8, 0.0, 0.05], [0.05, -0.8, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert monosemantic(W, 0.1).tolist() == [True, False, False, False]


def test_losses_cross_where_their_logarithms_do():
    x = np.array([0.1, 0.2, 0.4])
    np.testing.assert_allclose(crossing(x, np.full(3, 0.3), x), 0.3, rtol=1e-12)
    assert np.isnan(crossing(x, np.ones(3), x))
    np.testing.assert_allclose(crossing(x, np.array([np.nan, 0.3, 0.3]), x), 0.3, rtol=1e-12)


def test_a_penalty_on_hidden_activations_is_its_mean_times_the_weight():
    make = lambda rngs: ToyModel(4, 2, hidden="relu", rngs=rngs)  # noqa: E731
    model, loss = make(nnx.Rngs(0)), objective(make).loss
    x = jax.random.uniform(jax.random.key(1), (4, 32))
    batch = Batch(x, jnp.full(32, 1 / 32))
    params = nnx.to_pure_dict(nnx.state(model))
    losses = [
        loss(params, (), batch, None, 0, {"importance": jnp.ones(4), "hidden_l1": weight})[0] for weight in (0.0, 0.3)
    ]
    h = np.maximum(np.asarray(model.W[...]).T @ np.asarray(x), 0)
    assert float(losses[1] - losses[0]) == pytest.approx(0.3 * h.sum(0).mean(), rel=1e-5)
    assert h.sum() > 0


def test_the_model_sees_a_perturbed_input_and_is_judged_by_the_other():
    make = lambda rngs: ToyModel(4, 2, rngs=rngs)  # noqa: E731
    model, x = make(nnx.Rngs(0)), jax.random.uniform(jax.random.key(1), (4, 8))
    params, hyper = nnx.to_pure_dict(nnx.state(model)), {"importance": jnp.ones(4), "attack": 0.5}
    moved = lambda params, key, x, hyper: x + hyper["attack"] * params["W"][:, :1]  # noqa: E731
    loss = lambda p: objective(make, perturb=moved).loss(p, (), Batch(x, jnp.full(8, 1 / 8)), None, 0, hyper)[0]  # noqa: E731
    fixed = x + 0.5 * params["W"][:, :1]
    want = lambda p: jnp.square(x - nnx.merge(nnx.graphdef(model), p)(fixed)).sum(0).mean()  # noqa: E731
    assert float(loss(params)) == pytest.approx(float(want(params)), rel=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(params)["W"], jax.grad(want)(params)["W"], rtol=1e-5, atol=1e-6)


def test_no_direction_raises_a_feature_more_than_its_attack():
    W = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    W[5] = 0
    found = np.asarray(attack.directions(jnp.asarray(W)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 1, 1, 0], atol=1e-6)
    other = np.random.default_rng(1).normal(size=(6, 500))
    other /= np.linalg.norm(other, axis=0)
    for i in range(5):
        assert (W[i] @ W.T @ found[i]) > (W[i] @ W.T @ other).max()


def test_errors_after_attacks_are_those_of_the_model():
    rng = np.random.default_rng(0)
    W, b = rng.normal(size=(20, 4)).astype(np.float32) * 0.5, rng.normal(size=20).astype(np.float32) * 0.1
    x = (rng.random((20, 7)) * (rng.random((20, 7)) < 0.3)).astype(np.float32)
    of = lambda x, seen: np.square(x - np.maximum(W @ W.T @ seen + b[:, None], 0)).sum(0)  # noqa: E731
    own = jnp.asarray(W), jnp.asarray(b), jnp.asarray(x)
    found = np.asarray(attack.errors(*own, jnp.float32(0.3)))
    step = np.asarray(attack.directions(own[0]))
    want = np.stack([of(x, x + 0.3 * step[i][:, None]) for i in range(20)])
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    climbed, blind = attack.ascended(*own, jnp.float32(0.3), 10)
    assert (np.asarray(climbed) > of(x, x)).all()
    assert not np.asarray(blind).any()
    still, blind = attack.ascended(own[0], own[1] - 9, own[2], jnp.float32(0.3), 10)  # every ReLU is off: masked
    np.testing.assert_allclose(still, np.square(x).sum(0), rtol=1e-6)
    assert np.asarray(blind).all()
    same, _ = attack.ascended(*own, jnp.float32(0), 10)
    np.testing.assert_allclose(same, of(x, x), rtol=1e-4, atol=1e-5)


def test_attacks_in_training_have_their_norm_and_hit_every_feature():
    W = jax.random.normal(jax.random.key(0), (5, 3))
    moved = attack.on_random_feature({"W": W}, jax.random.key(1), jnp.zeros((5, 400)), {"attack": 0.25})
    np.testing.assert_allclose(np.linalg.norm(moved, axis=0), 0.25, rtol=1e-5)
    cosines = np.asarray(attack.directions(W) @ moved) / 0.25
    hit, count = np.unique(cosines.argmax(0), return_counts=True)
    assert hit.tolist() == [0, 1, 2, 3, 4]
    assert count.min() > 50
    np.testing.assert_allclose(cosines.max(0), 1, rtol=1e-5)


def test_two_numbers_come_back_but_for_the_level_and_the_network_is_that_code():
    x, y = nonlinear_compression._square(40)
    t = nonlinear_compression.compressed(x, y, 4, 0)
    assert len(np.unique(t)) == 160  # no level meets another
    low, back = nonlinear_compression.restored(t, 4, 0)
    np.testing.assert_allclose(low, np.floor(4 * x) / 4)
    np.testing.assert_allclose(back, y)
    wide = nonlinear_compression.compressed(np.array([0.5, 0.525, 0.475]), np.zeros(3), 2, 0.1)
    np.testing.assert_allclose(wide, [0.25, 0.5, 0])
    exact = nonlinear_compression.restored(nonlinear_compression.compressed(x, y, 4, 0.2), 4, 0.2)
    found, count = nonlinear_compression.built(x, y, 4, 0.2)
    np.testing.assert_allclose(found, exact, atol=1e-9)
    assert count == 14  # two bends for each of three jumps on both sides, and two that carry on


def test_features_that_change_places_within_a_window_are_counted():
    D = np.full((41, 5), 0.5)
    D[:, 2:] = 0.0
    D[20:, 0], D[21:, 2] = 0.0, 0.5  # one falls, another rises, two records apart at most
    assert dynamics._swaps(D, 0.1, 0.4) == (2, 19)
    D[30:, 1] = 0.0  # falls alone
    assert dynamics._swaps(D, 0.1, 0.4) == (2, 19)
    late = np.where(np.arange(41)[:, None] < 20, D, D[:1])
    late[28:, 0], late[36:, 2] = 0.0, 0.5  # too far apart
    assert dynamics._swaps(late, 0.1, 0.4)[0] == 0


def test_jumps_are_late_and_sudden():
    D = np.full((101, 4), 0.5)
    D[:, 2:] = 0.0
    D[:8, 1] = 0.0  # settling
    D[60:, 0], D[62:, 2] = 0.9, 0.5
    assert dynamics._jumps(D) == (2, 58)
    D[70:, 2] = 0.0
    D[:, 3] = np.linspace(0.0, 0.5, 101)  # slow
    assert dynamics._jumps(D) == (2, 58)


def test_regimes_of_two_sets_are_told_by_their_angles():
    config = SimpleNamespace(sets=SimpleNamespace(sizes=(3, 3)))
    axes = np.eye(3)
    bundle = np.repeat([axes[0], -axes[0]], 3, 0)
    half = bundle + 0.5 * np.concatenate([axes, -axes])
    frames = [0.1 * bundle, 0.5 * bundle, *[bundle] * 4, half, half, *[np.concatenate([axes, -axes])] * 3]
    loss = np.array([9.0, 5.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.1, 0.1])
    found = dynamics._regimes({"sets_W": np.stack(frames), "sets_loss": loss}, config)
    assert found == [3, 6, 9]


def test_the_quadratic_loss_is_that_of_its_inputs():
    rng, n, kurtosis = np.random.default_rng(0), 5, 4.0
    x = rng.choice([-1, 1], (n, 400_000)) * (rng.random((n, 400_000)) < 1 / kurtosis) * np.sqrt(kurtosis)
    W, v = rng.normal(size=(n, 2)).astype(np.float32) * 0.5, (rng.random(n) + 0.5).astype(np.float32)
    error = (v[:, None] * x**2).sum(0) - np.square(W.T @ x).sum(0)
    found = capacity.quadratic_loss(jnp.asarray(W), jnp.asarray(v), kurtosis)
    assert float(found) == pytest.approx(error.var(), rel=0.02)


@pytest.mark.parametrize("kurtosis", [1.5, 3.0, 4.0, 9.0])
def test_no_other_allocation_of_capacity_loses_less(kurtosis):
    rng = np.random.default_rng(0)
    v = np.sort(rng.random(6) + 0.05)[::-1]
    best = capacity.allocation(v, 2, kurtosis)
    assert best.sum() == pytest.approx(2)
    lost = lambda C: float(capacity.loss_at(C, v, kurtosis).sum())  # noqa: E731
    for _ in range(300):
        other = rng.dirichlet(np.full(6, 0.5)) * 2
        if other.max() <= 1:
            assert lost(other) >= lost(best) - 1e-5
    C = np.linspace(0.05, 0.95, 7)
    slope = (capacity.loss_at(C + 1e-3, 1.0, kurtosis) - capacity.loss_at(C - 1e-3, 1.0, kurtosis)) / 2e-3
    np.testing.assert_allclose(-slope, capacity.marginal_benefit(C, 1.0, kurtosis), rtol=0.01)


def test_what_a_feature_loses_adds_up_where_rows_are_frames():
    W = np.array([[1, 0, 0], [-0.5, 3**0.5 / 2, 0], [-0.5, -(3**0.5) / 2, 0], [0, 0, 1]])  # a triangle, and one alone
    C = np.array([2 / 3, 2 / 3, 2 / 3, 1.0])
    v, kurtosis = np.array([1.0, 1.0, 1.0, 2.0]), 5.0
    r = (kurtosis - 1) / 2
    own = v * r * C / (r * C + 1 - C)  # the best squared length at that capacity
    rows = jnp.asarray(W * np.sqrt(own)[:, None], jnp.float32)
    assert float(capacity.quadratic_loss(rows, jnp.asarray(v, jnp.float32), kurtosis)) == pytest.approx(
        float(capacity.loss_at(C, v, kurtosis).sum()), rel=1e-5
    )
