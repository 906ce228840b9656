"""SAEs of every kind: what each part promises, by closed forms, degenerate cases and controls that fail."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from train_script import KEY, Batches, compile_cache, differing, leaves

from superpose.sae import activations, losses, model, objective, recovery
from superpose.sae.activations import ACTIVATIONS
from superpose.sae.model import SAE, Architecture
from superpose.sae.objective import Training, inference, member, population, resample
from superpose.train.checkpoint import Stopped
from superpose.train.fit import Members, Sampler, evaluate, fit
from superpose.train.recipe import Recipe
from superpose.worlds.sparse import independent

D, F, N = 20, 48, 30
DIRECTIONS = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)
WORLD = independent(N)
P = 0.06
SOURCE = Sampler(lambda key: WORLD.sample(key, P, 256).T @ DIRECTIONS, shared=True)
KINDS = {
    "relu": ({}, Training(penalty="l1", coefficient=0.4)),
    "topk": ({"k": 3}, Training()),
    "batch_topk": ({"k": 3}, Training(threshold_rate=0.1)),
    "jumprelu": ({}, Training(penalty="l0", coefficient=0.05, bandwidth=0.1, threshold=0.1)),
    "gated": ({}, Training(penalty="l1", coefficient=1.0)),
    "abs_topk": ({"k": 3}, Training()),
    "matching_pursuit": ({"k": 3}, Training()),
}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Equal programs are compiled once."""
    with compile_cache(tmp_path_factory.mktemp("compiled")):
        yield


def test_every_activation_is_tried_here():
    assert KINDS.keys() == ACTIVATIONS.keys()


def arch_of(kind, **changes):
    return Architecture(**{"d_in": D, "d_sae": F, "activation": kind, **KINDS[kind][0], **changes})


def params_of(kind, seed=0, **changes):
    """Weights with power."""
    arch = arch_of(kind, **changes)
    rng = np.random.default_rng(seed)
    params = {k: 0.5 * rng.normal(size=s).astype(np.float32) for k, s in arch.shapes().items()}
    if "threshold" in params:
        params["threshold"] = np.abs(params["threshold"])
    if kind == "matching_pursuit":
        params["W_dec"] /= np.linalg.norm(params["W_dec"], axis=1, keepdims=True)
    return arch, params


def trained(kind, steps=300, training=None, hyper=None, arch=None, source=SOURCE, lr=3e-3, **settings):
    arch = arch or arch_of(kind)
    pop = population(
        arch, training or KINDS[kind][1], {"seed": np.arange(1)} | (hyper or {}), Recipe(steps=steps, lr=lr)
    )
    return fit(pop, steps=steps, key=KEY, source=source, log_every=max(1, steps // 4), mesh=None, **settings), arch


@pytest.fixture(scope="module")
def of_each_kind():
    return {kind: trained(kind) for kind in KINDS}


def ci(kind):
    """One kind more for CI alone."""
    return pytest.param(kind, marks=pytest.mark.ci)


def rows(n=512, seed=7):
    return WORLD.sample(jax.random.key(seed), P, n).T @ DIRECTIONS


# ---- every kind


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_directions_that_an_untrained_one_has_not(of_each_kind, kind):
    result, arch = of_each_kind[kind]
    assert result.history["error"][-1] < 0.5 * result.history["error"][0]
    before = objective.objective(arch, KINDS[kind][1]).init(jax.random.key(5), {})[0]["W_dec"]
    score = lambda W: recovery.mmcs(recovery.cosines(np.asarray(W), DIRECTIONS))[0]  # noqa: E731
    assert score(result.params["W_dec"][0]) > 0.8 > 0.7 > score(before)


@pytest.mark.parametrize("kind", KINDS)
def test_inference_says_what_training_said(of_each_kind, kind):
    """On fresh data: the same reconstruction row by row; a batch_topk SAE's threshold gives its k on average."""
    result, arch = of_each_kind[kind]
    plain, params = inference(arch, KINDS[kind][1], *member(result, 0))
    sae, x = SAE(plain, params), rows(4096)
    acts = sae.encode(x)
    np.testing.assert_allclose(sae.encode(x[:3]), acts[:3], atol=1e-5)  # no row looks at another
    np.testing.assert_allclose(sae.encode(x.reshape(64, 64, -1)), acts.reshape(64, 64, -1), atol=1e-5)
    fresh = Sampler(lambda key: x, shared=True)
    pop = population(arch, KINDS[kind][1], {"seed": np.arange(1)}, Recipe(steps=1))
    judged = evaluate(pop, result.params, result.state, key=KEY, source=fresh, mesh=None)
    error = float(jnp.mean(jnp.sum((x - sae(x)) ** 2, 1)))
    l0 = float(jnp.mean(jnp.sum(acts != 0, 1)))
    if kind == "batch_topk":
        assert plain.activation == "jumprelu"
        assert l0 == pytest.approx(3, rel=0.1)
        assert error == pytest.approx(judged["error"][0], rel=0.1)
        with pytest.raises(ValueError, match="chooses among a whole batch"):
            SAE(arch, member(result, 0)[0]).encode(x)
    else:
        assert error == pytest.approx(judged["error"][0], rel=1e-4)
        assert l0 == pytest.approx(judged["l0"][0], rel=1e-4)


def test_what_an_activation_leaves_on():
    x = rows()
    count = lambda kind: np.asarray(jnp.sum(SAE(*params_of(kind)).encode(x) != 0, 1))  # noqa: E731
    for kind in ("topk", "abs_topk", "matching_pursuit"):
        assert count(kind).max() == 3
    assert (SAE(*params_of("topk")).encode(x) >= 0).all()
    assert (SAE(*params_of("abs_topk")).encode(x) < 0).any()
    arch, params = params_of("jumprelu")
    acts = np.asarray(SAE(arch, params).encode(x))
    pre = (x - params["b_dec"]) @ params["W_enc"] + params["b_enc"]
    np.testing.assert_allclose(acts, np.where(pre > params["threshold"], pre, 0), atol=1e-5)
    arch, params = params_of("gated")
    gate = (x - params["b_dec"]) @ params["W_enc"] + params["b_gate"]
    size = ((x - params["b_dec"]) @ params["W_enc"]) * np.exp(params["r_mag"]) + params["b_mag"]
    np.testing.assert_allclose(SAE(arch, params).encode(x), np.where(gate > 0, np.maximum(size, 0), 0), atol=1e-4)


def test_matching_pursuit_on_orthonormal_rows_is_projection():
    """The largest k coordinates; on few rows (products known at once) and on many alike."""
    eye = {"W_dec": np.eye(D, dtype=np.float32), "b_dec": np.zeros(D, np.float32)}
    x = np.abs(np.random.default_rng(0).normal(size=(6, D))).astype(np.float32)
    want = np.where(x >= np.sort(x, 1)[:, [-3]], x, 0)
    for batch in (x, x[:1]):
        acts = SAE(Architecture(D, D, "matching_pursuit", 3), eye).encode(jnp.asarray(batch))
        np.testing.assert_allclose(acts, want[: len(batch)], atol=1e-6)
    assert (SAE(Architecture(D, D, "matching_pursuit", 3), eye).encode(jnp.asarray(-x)) == 0).all()


# ---- folding


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("matching_pursuit", "batch_topk")])
def test_folded_norms_and_scales_change_no_output(kind):
    arch, params = params_of(kind)
    if "topk" in kind and arch.k:  # their choice is by activations: only among equal norms it stays
        params["W_dec"] *= 2 / np.linalg.norm(params["W_dec"], axis=1, keepdims=True)
    x = rows(64)
    whole = SAE(arch, params)
    folded = SAE(arch, model.fold_norms(arch, params))
    np.testing.assert_allclose(folded(x), whole(x), atol=2e-5)
    np.testing.assert_allclose(folded.norms(), 1, rtol=1e-5)
    np.testing.assert_allclose(folded.encode(x), whole.encode(x) * whole.norms(), atol=2e-4)
    scaled = SAE(arch, model.fold_scale(arch, params, 3.0))
    np.testing.assert_allclose(scaled(x), whole(3 * x) / 3, atol=2e-5)
    np.testing.assert_allclose(scaled.encode(x), whole.encode(3 * x), atol=2e-4)


@pytest.mark.parametrize("decoder", ["unit", "free"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_batch_topk_sae_s_threshold_is_its_gate(decoder, scale):
    """On is what its score, by the rule of training, brings over the running threshold; then it is an SAE of x."""
    arch, params = params_of("batch_topk")
    if decoder == "unit":
        params["W_dec"] /= np.linalg.norm(params["W_dec"], axis=1, keepdims=True)
    state = {"threshold": np.float32(0.8)}
    plain, folded = inference(arch, Training(decoder=decoder), params, state, {"scale": np.float32(scale)})
    x = np.asarray(rows(256))
    pre = (scale * x - params["b_dec"]) @ params["W_enc"] + params["b_enc"]
    norms = np.linalg.norm(params["W_dec"], axis=1) if decoder == "free" else np.ones(F)
    on = pre * norms >= state["threshold"]
    assert 0.02 < on.mean() < 0.98
    want = (np.where(on, pre, 0) @ params["W_dec"] + params["b_dec"]) / scale
    np.testing.assert_allclose(SAE(plain, folded)(x), want, atol=2e-5)
    assert ((np.asarray(SAE(plain, folded).encode(x)) != 0) == on).all()


def test_a_transcoder_s_two_scales_fold():
    arch, params = params_of("relu", d_out=5, center=False, skip=True)
    x = rows(64)
    folded = SAE(arch, model.fold_scale(arch, params, 3.0, 0.5))
    np.testing.assert_allclose(folded(x), SAE(arch, params)(3 * x) / 0.5, atol=1e-4)


@pytest.mark.parametrize("decoder", ["unit", "free"])
def test_a_scaled_run_comes_back_in_plain_units(decoder):
    """b_dec from the data, a scale in the stream, a free decoder that chooses by norms: one SAE of x in the end."""
    t = Training(decoder=decoder)
    start = objective.prepared(10 * np.asarray(rows()) + 1, "sqrt_d", "mean")
    hyper = {k: v[None] for k, v in start.items()}
    source = Sampler(lambda key: 10 * SOURCE.sample(key) + 1, shared=True)
    result, arch = trained("batch_topk", training=t, hyper=hyper, source=source)
    plain, params = inference(arch, t, *member(result, 0))
    x = 10 * rows(4096) + 1
    x_hat = SAE(plain, params)(x)
    fvu = float(jnp.sum((x - x_hat) ** 2) / jnp.sum((x - x.mean(0)) ** 2))
    assert fvu == pytest.approx(result.history["fvu"][-1, 0], rel=0.2)
    assert result.history["fvu"][-1, 0] < 0.5
    np.testing.assert_allclose(model.norms(params["W_dec"]) * start["scale"], 1, rtol=1e-4)


# ---- estimators and penalties


def test_jumprelu_s_estimated_gradients_by_hand():
    pre, threshold, g = jnp.array([[0.9, 1.2, 3.0]]), jnp.ones(3), jnp.array([[1.0, 2.0, 4.0]])
    _, back = jax.vjp(lambda p, t: activations.jump(p, t, 0.5, 0.0), pre, threshold)
    to_pre, to_threshold = back(g)
    assert to_pre.tolist() == [[0.0, 2.0, 4.0]]
    assert to_threshold.tolist() == [-2.0, -4.0, 0.0]  # -threshold / bandwidth inside the window
    _, back = jax.vjp(lambda p, t: activations.step(p, t, 0.5, 1.0), pre, threshold)
    to_pre, to_threshold = back(g)
    assert to_threshold.tolist() == [-2.0, -4.0, 0.0]
    assert to_pre.tolist() == [[2.0, 4.0, 0.0]]


def test_the_estimate_is_the_gradient_of_the_expected_l0():
    """d/dt P(z > t) = -density(t): over many z, the rectangle's mean is the smoothed density."""
    z = jax.random.normal(jax.random.key(0), (400_000, 1))
    slope = jax.grad(lambda t: jnp.mean(activations.step(z, t, 0.2, 0.0)))(jnp.full(1, 0.5))
    assert float(slope[0]) == pytest.approx(-np.exp(-0.125) / np.sqrt(2 * np.pi), rel=0.02)


def seen(**changes):
    acts = jnp.array([[0.0, 2.0, 0.5], [1.0, 0.0, 0.0]])
    base = dict(
        acts=acts, pre=acts - 0.1, norms=jnp.array([1.0, 2.0, 1.0]), threshold=jnp.full(3, 0.3), target_l0=2.0, p=0.5,
        bandwidth=0.1, to_encoder=False, tanh_scale=1.0,
    )  # fmt: skip
    return losses.Seen(**{**base, **changes})


def test_penalties_by_hand():
    want = {
        "none": 0.0, "l1": (4.5 + 1) / 2, "lp": (2 + np.sqrt(0.5) + 1) / 2, "l0": 1.5,
        "quadratic": (0 + 1) / 2, "quadratic_mean": (1.5 / 2 - 1) ** 2,
        "tanh": (np.tanh(4) + np.tanh(0.5) + np.tanh(1)) / 2,
    }  # fmt: skip
    assert want.keys() == losses.PENALTIES.keys()
    for name, value in want.items():
        assert float(losses.PENALTIES[name](seen())) == pytest.approx(value, rel=1e-6), name
    assert float(losses.lp(seen(p=1.0))) == float(losses.l1(seen()))
    slope = jax.grad(lambda a: losses.lp(seen(acts=a, p=0.3)))(seen().acts)
    assert np.isfinite(slope).all()  # at 0 too, where the derivative of a^p is infinite


def test_errors_by_hand():
    y, residual = jnp.array([[0.0, 0.0], [2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
    found = {name: float(error(y, residual)) for name, error in losses.ERRORS.items()}
    assert found == {"sum": 2.5, "mean": 1.25, "fvu": 2.5}
    assert float(losses.ERRORS["fvu"](y, y - y.mean(0))) == 1.0


def test_p_annealing_keeps_the_penalty_s_size():
    """As p falls, the coefficient grows so that on one and the same batch the penalty stays."""
    t = Training(penalty="lp", coefficient=0.1, p_end=0.5, p_from=0.5, steps=100)
    x = rows(64)
    result, _ = trained("relu", steps=100, training=t, lr=0.0, source=Sampler(lambda key: x, shared=True))
    assert result.state["lp_scale"][0] != 1
    acts = jax.nn.relu((x - result.params["b_dec"][0]) @ result.params["W_enc"][0])
    size = lambda p: float(losses.lp(seen(acts=acts, norms=jnp.ones(F), p=p)))  # noqa: E731
    # p at the last step is 0.51, one further 0.5
    assert result.state["lp_scale"][0] * size(0.5) == pytest.approx(size(1.0), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["relu", "gated", "jumprelu"])
def test_the_controller_meets_its_target(kind):
    """Within 5 % on fresh data, from a coefficient that is far off, for two targets at once."""
    penalty = "l0" if kind == "jumprelu" else "l1"
    t = Training(penalty=penalty, coefficient=1e-3, control=True, bandwidth=0.1, threshold=0.1)
    targets = np.float32([1.5, 3.0])
    arch = arch_of(kind)
    pop = population(
        arch, t, {"seed": np.zeros(2, int), "target_l0": targets},
        Recipe(steps=2500, lr=3e-3, schedule="linear", decay_from=0.7),
    )  # fmt: skip
    result = fit(pop, steps=2500, key=KEY, source=SOURCE, log_every=500, mesh=None)
    for i, target in enumerate(targets):
        plain, params = inference(arch, t, *member(result, i))
        l0 = float(jnp.mean(jnp.sum(SAE(plain, params).encode(rows(20_000)) != 0, 1)))
        assert l0 == pytest.approx(target, rel=0.05)


# ---- decoders


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_a_unit_decoder_stays_one_and_its_gradient_is_across(kind):
    result, arch = trained(kind, steps=20)
    np.testing.assert_allclose(model.norms(result.params["W_dec"][0]), 1, atol=1e-5)
    target = objective.objective(arch, KINDS[kind][1])
    params = {k: v[0] for k, v in result.params.items()}
    state = jax.tree.map(lambda s: s[0], result.state)
    grads = jax.grad(lambda p: target.loss(p, state, rows(), KEY, jnp.int32(0), {})[0])(params)
    along = jnp.sum(target.grads(params, grads)["W_dec"] * params["W_dec"], 1)
    assert float(jnp.abs(along).max()) < 1e-6
    assert float(jnp.abs(jnp.sum(grads["W_dec"] * params["W_dec"], 1)).max()) > 1e-3


def test_thresholds_stay_at_or_above_zero():
    t = Training(penalty="none", threshold=0.01, bandwidth=1.0)  # nothing holds the threshold up
    result, _ = trained("jumprelu", steps=50, training=t, lr=1e-2)
    assert (result.params["threshold"] >= 0).all()
    assert (result.params["threshold"] == 0).any()


# ---- latents that never fire


def lame(kind, **changes):
    """A start in which the last eight latents can't fire; with a rate of 0 they never will."""
    arch = arch_of(kind)
    t = Training(**{**vars(KINDS[kind][1]), "dead_tokens": 512, **changes})
    target = objective.objective(arch, t)
    params, state = target.init(jax.random.key(1), {})
    params["b_enc"] = jnp.where(jnp.arange(F) >= F - 8, -50.0, 0.3)
    return target, params, state


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_silence_is_counted_in_tokens(kind):
    """The window closes after 512 tokens, in batches of whatever size."""
    for size in (64, 256):
        target, params, state = lame(kind)
        dead = []
        for i in range(1024 // size):
            _, (state, metrics) = target.loss(params, state, rows(size, i), KEY, jnp.int32(i), {})
            dead.append(int(metrics["dead"]))
        assert (state["silent"][-8:] == 1024).all()
        assert [d >= 8 for d in dead] == [size * (i + 1) >= 512 for i in range(1024 // size)]
        assert (state["silent"] < 1024).any()
    state["silent"] = state["silent"].at[0].set(objective.NEVER)  # the counter stops and does not turn over
    _, (state, _) = target.loss({**params, "b_enc": params["b_enc"] - 99}, state, rows(64), KEY, jnp.int32(0), {})
    assert state["silent"][0] == objective.NEVER


@pytest.mark.parametrize("fast", [False, True])
def test_auxk_teaches_dead_latents_the_residual_and_nothing_else(fast):
    """By hand: gradients reach the dead alone, from the residual that stands still."""
    target, params, state = lame(
        "topk", revival="auxk", revival_coefficient=1.0, fast=fast, auxk_normalise=False, dead_tokens=5000
    )
    params["b_enc"] = jnp.where(jnp.arange(F) >= F - 8, 0.05, 0.3 + 0.01 * jnp.arange(F))  # never among the three
    params["W_enc"] = params["W_enc"].at[:, -8:].mul(0.01)
    state["silent"] = jnp.where(jnp.arange(F) >= F - 8, 10**6, 0)
    without = objective.objective(arch_of("topk"), Training(fast=fast))
    grad = lambda o: jax.grad(lambda p: o.loss(p, state, rows(), KEY, jnp.int32(0), {})[0])(params)  # noqa: E731
    both, alone = grad(target), grad(without)
    for name in ("W_dec", "b_enc"):
        np.testing.assert_allclose(both[name][:-8], alone[name][:-8], atol=1e-6)
        assert (jnp.abs(both[name][-8:]).max() > 1e-3).all()
        assert (alone[name][-8:] == 0).all()
    # b_dec is no part of the guess: the gradient in the guess is that of ||residual - acts W_dec||^2
    x = rows()
    pre = x @ params["W_enc"] + params["b_enc"]
    three = jnp.sort(pre, 1)[:, [-3]]
    residual = x - jnp.where(pre >= three, pre, 0) @ params["W_dec"]
    eight = jnp.maximum(pre[:, -8:], 0)
    off = residual - eight @ params["W_dec"][-8:]
    np.testing.assert_allclose(both["W_dec"][-8:], -2 * 0.8 * eight.T @ off / len(x), atol=1e-5)


def test_auxk_revives():
    """Half of the latents start dead; with AuxK most come back, without it none."""

    def dead(revival):
        t = Training(revival=revival, dead_tokens=2000, revival_coefficient=1.0)
        between = lambda members, *_: members._replace(  # noqa: E731
            params={**members.params, "b_enc": np.where(np.arange(F) < F // 2, -0.6, 0.0)[None].astype(np.float32)}
        )
        pop = population(arch_of("topk"), t, {"seed": np.arange(1)}, Recipe(steps=1000, lr=3e-3), between=between)
        result = fit(pop, steps=1000, key=KEY, source=SOURCE, log_every=100, between_at=[0], mesh=None)
        return result.history["dead"][-1, 0]

    assert dead("auxk") < 12 < 20 < dead("none")


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu"])
def test_resampling_changes_the_dead_and_nothing_else(kind):
    arch, t = arch_of(kind), Training(**{**vars(KINDS[kind][1]), "dead_tokens": 1000})
    pop = population(
        arch, t, {"seed": np.arange(2)}, Recipe(steps=20, lr=1e-3), between=objective.resample(arch, t, rows=1000)
    )
    result = fit(pop, steps=20, key=KEY, source=SOURCE, log_every=20, between_at=[20], mesh=None)
    calls = []

    def between(members, *rest):
        members.state["silent"][:, :5] = 5000
        members.params["b_enc"][:, :5] = 3.0
        before = jax.tree.map(np.copy, members)
        calls.append((before, objective.resample(arch, t, rows=1000)(members, *rest)))
        return calls[-1][1]

    pop = population(arch, t, {"seed": np.arange(2)}, Recipe(steps=20, lr=1e-3), between=between)
    result = fit(pop, steps=20, key=KEY, source=SOURCE, log_every=20, between_at=[20], mesh=None)
    before, after = calls[0]
    rest = np.arange(F) >= 5
    for i in range(2):
        W_enc, W_dec = after.params["W_enc"][i], after.params["W_dec"][i]
        living = np.linalg.norm(before.params["W_enc"][i], axis=0)[rest].mean()
        np.testing.assert_allclose(np.linalg.norm(W_enc[:, :5], axis=0), 0.2 * living, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(W_dec[:5], axis=1), 1, rtol=1e-5)
        assert (after.params["b_enc"][i, :5] == 0).all()
        if kind == "jumprelu":
            assert (before.params["threshold"][i] != t.threshold).all()
            np.testing.assert_array_equal(after.params["threshold"][i, :5], np.float32(t.threshold))
            np.testing.assert_array_equal(after.params["threshold"][i, 5:], before.params["threshold"][i, 5:])
        assert (np.abs(W_dec[:5] @ DIRECTIONS.T).max(1) > 0.6).all()  # inputs, not noise
        for name, axis in (("W_enc", 1), ("W_dec", 0), ("b_enc", 0)):
            changed = np.any(
                np.moveaxis(after.params[name][i] != before.params[name][i], axis, 0).reshape(F, -1), axis=1
            )
            assert changed.tolist() == (~rest).tolist()
    moments = after.opt_state[0][0]
    assert (moments.mu["W_dec"][:, :5] == 0).all()
    assert (moments.nu["W_enc"][:, :, :5] == 0).all()
    assert (moments.mu["W_dec"][:, 5:] != 0).any()
    assert (after.state["silent"][:, :5] == 0).all()
    assert len({str(row) for row in after.params["W_dec"][:, :5].reshape(10, -1).round(4)}) >= 8
    np.testing.assert_array_equal(result.params["W_dec"], after.params["W_dec"])


# ---- nested dictionaries, other inputs and outputs


@pytest.mark.ci
@pytest.mark.parametrize("nested", [dict(prefixes=(8,)), dict(random_prefixes=2)])
def test_matryoshka_s_inner_dictionary_stands_alone(nested):
    """The first 8 latents reconstruct by themselves better than the first 8 of a plain SAE."""

    def inner(t):
        result, arch = trained("batch_topk", training=t, steps=500)
        plain, params = inference(arch, t, *member(result, 0))
        acts, x = SAE(plain, params).encode(rows(2048)), rows(2048)
        x_hat = acts[:, :8] @ params["W_dec"][:8] + params["b_dec"]
        return float(jnp.mean(jnp.sum((x - x_hat) ** 2, 1)))

    assert inner(Training(**nested)) < 0.9 * inner(Training())


@pytest.mark.parametrize("kind", [k if k in ("relu", "batch_topk") else ci(k) for k in KINDS])
def test_matryoshka_s_loss_by_hand(kind):
    """Over every activation: errors of the nested reconstructions in place of the whole one's, summed or averaged."""
    arch, params = params_of(kind)
    x, params = rows(64), jax.tree.map(jnp.asarray, params)
    loss = lambda **nested: float(  # noqa: E731
        objective.objective(arch, Training(**{**vars(KINDS[kind][1]), "fast": False, **nested})).loss(
            params, objective.objective(arch, KINDS[kind][1]).init(KEY, {})[1], x, KEY, jnp.int32(0), {}
        )[0]
    )
    acts = ACTIVATIONS[kind].train(SAE(arch, params), x, activations.Knobs(k=arch.k, bandwidth=0.1)).acts

    def error(e):
        return float(np.mean(np.sum((x - acts[:, :e] @ params["W_dec"][:e] - params["b_dec"]) ** 2, 1)))

    errors = [error(8), error(20), error(F)]
    assert len({round(e, 3) for e in errors}) == 3
    assert loss(prefixes=(8, 20), prefix_mean=False) - loss() == pytest.approx(sum(errors[:2]), rel=1e-4)
    assert loss(prefixes=(8, 20)) - loss() == pytest.approx(np.mean(errors) - errors[2], rel=1e-3)


def test_a_crosscoder_s_loss_by_hand():
    """The error over both sites, L1 weighted by the sum of the two norms (Lindsey et al. 2024)."""
    arch = Architecture(2 * D, F, "relu", sites=2, center=False)
    rng = np.random.default_rng(3)
    params = {k: 0.5 * rng.normal(size=s).astype(np.float32) for k, s in arch.shapes().items()}
    target = objective.objective(arch, Training(penalty="l1", coefficient=0.3, decoder="free"))
    x = np.asarray(jnp.concatenate([rows(64), -2 * rows(64, seed=8)], 1))
    loss = target.loss(params, target.init(KEY, {})[1], x, KEY, jnp.int32(0), {})[0]
    acts = np.maximum(x @ params["W_enc"] + params["b_enc"], 0)
    both = np.linalg.norm(params["W_dec"][:, :D], axis=1) + np.linalg.norm(params["W_dec"][:, D:], axis=1)
    error = np.sum((x - acts @ params["W_dec"] - params["b_dec"]) ** 2, 1)
    assert float(loss) == pytest.approx(float(np.mean(error + 0.3 * acts @ both)), rel=1e-5)


def test_a_crosscoder_is_an_sae_of_its_sites_side_by_side():
    """Two models that share directions: one latent reads and writes both; its norm is the sum of two."""
    double = Sampler(lambda key: jnp.concatenate([SOURCE.sample(key), -2 * SOURCE.sample(key)], 1), shared=True)
    t = Training(penalty="l1", coefficient=0.1, decoder="free")
    arch = Architecture(2 * D, F, "relu", sites=2)
    result, _ = trained("relu", arch=arch, training=t, source=double, steps=600)
    _, params = inference(arch, t, *member(result, 0))
    first, second = params["W_dec"][:, :D], params["W_dec"][:, D:]
    np.testing.assert_allclose(np.linalg.norm(first, axis=1) + np.linalg.norm(second, axis=1), 1, rtol=1e-4)
    live = result.state["silent"][0] < 10_000
    cosine = np.sum(first * second, 1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert np.median(cosine[live]) < -0.9
    ratio = np.linalg.norm(second, axis=1) / np.linalg.norm(first, axis=1)
    assert np.median(ratio[live]) == pytest.approx(2, rel=0.1)


@pytest.mark.ci
def test_a_skip_transcoder_learns_a_linear_map_by_its_skip():
    M = np.random.default_rng(3).normal(size=(D, 7)).astype(np.float32)
    pairs = Sampler(lambda key: ((x := SOURCE.sample(key)), x @ M), shared=True)
    error = {}
    for skip in (False, True):
        arch = Architecture(D, F, "topk", 1, d_out=7, center=False, skip=skip)
        result, _ = trained("topk", arch=arch, training=Training(decoder="free"), source=pairs, steps=500, lr=1e-2)
        error[skip] = result.history["fvu"][-1, 0]
        _, params = inference(arch, Training(decoder="free"), *member(result, 0))
        assert SAE(Architecture(D, F, "topk", 1, d_out=7, center=False, skip=skip), params)(rows(5)).shape == (5, 7)
    assert error[True] < 0.1 * error[False]


# ---- populations


def test_k_is_data():
    """Members that differ in k are those of their own populations, in one program."""
    pop = lambda k: population(  # noqa: E731
        arch_of("batch_topk", k=4), Training(), {"seed": np.zeros(len(k), int), "k": np.array(k)}, Recipe(steps=20)
    )
    run = lambda p: fit(p, steps=20, key=KEY, source=SOURCE, log_every=10, mesh=None)  # noqa: E731
    both = run(pop([2, 4]))
    for i, k in enumerate((2, 4)):
        alone = run(pop([k]))
        np.testing.assert_array_equal(alone.params["W_dec"][0], both.params["W_dec"][i])
        assert both.history["l0"][-1, i] == pytest.approx(k, rel=0.02)


def test_k_falls_as_stated():
    t = Training(k_start=4, k_steps=20)
    result, _ = trained("batch_topk", steps=40, training=t, hyper={"k": np.array([2])}, arch=arch_of("batch_topk", k=4))
    assert result.history["l0"][:, 0] == pytest.approx([3.55, 2.55, 2, 2], abs=0.06)


def test_coefficients_warm_up():
    t = Training(penalty="l1", coefficient=0.5, warmup=10)
    target = objective.objective(arch_of("relu"), t)
    params, state = target.init(jax.random.key(0), {})
    loss = lambda step: float(target.loss(params, state, rows(), KEY, jnp.int32(step), {})[0])  # noqa: E731
    plain = objective.objective(arch_of("relu"), Training())
    error = float(plain.loss(params, state, rows(), KEY, jnp.int32(0), {})[0])
    rises = [(loss(step) - error) / (loss(99) - error) for step in (0, 4, 9, 50)]
    assert rises == pytest.approx([0.1, 0.5, 1, 1], rel=1e-3)


@pytest.mark.ci
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    """Silence, threshold, controller and the stream's position are part of the checkpoint."""

    def pops():
        t = Training(revival="auxk", dead_tokens=100)
        steered = Training(penalty="l1", coefficient=0.1, control=True, target_l0=3.0)
        recipe = Recipe(steps=40, lr=3e-3)
        return {
            "chosen": population(arch_of("batch_topk"), t, {"seed": np.arange(2)}, recipe),
            "steered": population(arch_of("relu"), steered, {"seed": np.arange(2)}, recipe),
        }  # one program, one stream

    run = lambda stream, **kw: fit(pops(), steps=40, key=KEY, source=stream, log_every=10, mesh=None, **kw)  # noqa: E731
    whole = run(Batches((32, D)))
    with pytest.raises(Stopped):
        run(Batches((32, D), signals={15: [signal.SIGTERM]}), workdir=tmp_path)
    again = run(Batches((32, D)), workdir=tmp_path)
    for name in whole:
        assert not differing(leaves(whole[name]), leaves(again[name]))
    assert (whole["chosen"].state["threshold"] > 0).all()
    assert (whole["steered"].state["log_coefficient"] != 0).all()


# ---- preparation


def test_geometric_median_is_the_minimum_of_summed_distances():
    x = np.random.default_rng(0).standard_t(2, size=(200, 3))
    found = objective.geometric_median(x)
    best = minimize(lambda m: np.linalg.norm(x - m, axis=1).sum(), x.mean(0), tol=1e-10).x
    np.testing.assert_allclose(found, best, atol=1e-4)
    assert np.abs(found - x.mean(0)).max() > 0.01


def test_prepared_scales_by_hand():
    x = np.array([[3.0, 4.0], [0.0, 5.0]])
    assert objective.prepared(x, "sqrt_d")["scale"] == pytest.approx(np.sqrt(2) / 5)
    assert objective.prepared(x, "mean_square")["scale"] == pytest.approx(1 / 5)
    found = objective.prepared(x, "mean_square", "mean")
    np.testing.assert_allclose(found["b_dec"], [0.3, 0.9], rtol=1e-6)  # in scaled units


# ---- bad input

GOOD = Architecture(D, F, "topk", 3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Architecture(D, F, "topk", F + 1), "topk needs 1 <= k <= d_sae=48, got k=49"),
        (lambda: Architecture(D, F, "topk"), "topk needs 1 <= k <= d_sae=48, got k=None"),
        (lambda: Architecture(D, F, "relu", 3), "relu takes no k, got k=3"),
        (lambda: Architecture(D, F, "rleu"), "unknown activation 'rleu': choose one of"),
        (lambda: Architecture(0, F, "relu"), "d_in must be at least 1, got 0"),
        (lambda: Architecture(D, F, "relu", d_out=3), "center needs d_out = d_in"),
        (lambda: Architecture(D, F, "relu", sites=3), "3 sites must divide d_in=20"),
        (lambda: SAE(GOOD, {"W_enc": np.zeros((D, F))}), r"missing \['W_dec', 'b_dec', 'b_enc'\], unknown \[\]"),
        (
            lambda: SAE(GOOD, {k: np.zeros(s[::-1]) for k, s in GOOD.shapes().items()}),
            r"W_enc must have shape \(20, 48\) by the architecture, got \(48, 20\)",
        ),
        (lambda: Training(penalty="L1"), "unknown penalty 'L1': choose one of none, l1"),
        (lambda: Training(coefficient=-1.0), "coefficient must be finite and at least 0, got -1.0"),
        (lambda: Training(prefixes=(8, 4)), r"prefixes must be ascending sizes of at least 1, got \(8, 4\)"),
        (lambda: Training(k_start=4), "k_start and k_steps need each other"),
        (lambda: objective.objective(GOOD, Training(penalty="l1")), "topk sets its own sparsity"),
        (
            lambda: objective.objective(arch_of("relu"), Training(penalty="l0")),
            "l0 works on a JumpReLU threshold, which a relu SAE has not",
        ),
        (lambda: objective.objective(arch_of("relu"), Training(control=True)), "control steers a penalty's"),
        (lambda: objective.objective(GOOD, Training(prefixes=(F + 1,))), "prefixes must not exceed d_sae=48"),
        (
            lambda: objective.objective(Architecture(2 * D, F, "relu", sites=2), Training()),
            "a crosscoder's rows have a norm at each site: choose decoder='free'",
        ),
        (
            lambda: population(GOOD, Training(), {"seed": np.arange(2), "k": np.array([1, 4])}, Recipe(steps=1)),
            r"each member's k must lie in \(0, 3\], the architecture's k, got \[1, 4\]",
        ),
        (
            lambda: population(GOOD, Training(), {"seed": np.arange(1), "l1": np.ones(1)}, Recipe(steps=1)),
            "unknown values in hyper: l1; an SAE knows",
        ),
        (
            lambda: population(
                arch_of("relu"), Training(penalty="l1", control=True, coefficient=1.0), {"seed": np.arange(1)},
                Recipe(steps=1),
            ),
            r"target_l0 must lie in \(0, 48\], got None",
        ),
        (lambda: objective.prepared(np.array([[1.0, np.nan]])), "the sample has 1 of 2 values that are not finite"),
        (lambda: objective.prepared(np.zeros((3, 2))), "the sample is all zeros"),
        (lambda: objective.resample(arch_of("gated"), Training()), "resampling is for SAEs with an encoder"),
        (
            lambda: inference(arch_of("batch_topk"), Training(), {}, {"threshold": np.float32(-1)}, {}),
            "has seen no batch and has no threshold",
        ),
        (lambda: model.fold_norms(arch_of("matching_pursuit"), {}), "has no encoder to fold norms into"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


def test_bad_activations_are_counted_and_refused():
    class Broken(Batches):
        def __next__(self):
            x = super().__next__()
            x[:2, 0] = np.nan
            return x

    pop = population(GOOD, Training(), {"seed": np.arange(1)}, Recipe(steps=2))
    with pytest.raises(ValueError, match="batch for step 0 has 2 of 640 values that are not finite"):
        fit(pop, steps=2, key=KEY, source=Broken((32, D)), mesh=None)


def test_a_fractional_k_leaves_as_many_on_at_inference_as_in_training():
    arch = Architecture(D, F, "topk", 3)
    pop = population(arch, Training(), {"seed": np.arange(1), "k": np.array([2.4])}, Recipe(steps=2, lr=1e-3))
    result = fit(pop, steps=2, key=KEY, source=Sampler(lambda key: rows(64), shared=True), mesh=None)
    plain, params = inference(arch, Training(), *member(result, 0))
    assert 2.4 < result.history["l0"][-1, 0] <= 3  # of some rows fewer are positive
    assert (SAE(plain, params).encode(rows(64)) != 0).sum(1).max() == plain.k == 3


def test_what_resampling_draws_is_looked_at():
    arch, training = Architecture(8, 16, "relu"), Training(penalty="l1", coefficient=1.0, dead_tokens=1)
    draw = lambda key: jax.random.normal(key, (32, 8))  # noqa: E731
    source = Sampler(lambda key: jnp.where(draw(key) > 0, jnp.nan, 1.0), shared=True)
    pop = population(arch, training, {"seed": np.arange(1)}, Recipe(steps=1))
    params, state = pop.objective.init(KEY, {})
    members = jax.tree.map(lambda x: np.asarray(x)[None].copy(), Members(params, (), state, 0.0, -1))
    members.state["silent"][:] = 5
    with pytest.raises(
        ValueError, match=r"^what resampling drew after step 3 has \d+ of 256 values that are not finite"
    ):
        resample(arch, training, rows=32)(members, {}, source, KEY, 3)


REVIVED = {
    "controlled": ("relu", Training(penalty="l1", coefficient=0.4, control=True, target_l0=3.0)),
    "auxk": ("topk", Training(revival="auxk", dead_tokens=64)),
    "pre_act": ("jumprelu", Training(penalty="l0", coefficient=0.05, revival="pre_act", dead_tokens=64)),
}


@pytest.mark.parametrize("kind", ["batch_topk", *map(ci, sorted(KINDS.keys() - {"batch_topk"} | {*REVIVED}))])
def test_a_world_that_never_fires_trains_to_silence(kind):
    """Zeros in, zeros out: no NaN, no member lost; and a person is told before (``prepared``)."""
    activation, training = REVIVED.get(kind) or (kind, KINDS[kind][1])
    arch = arch_of(activation)
    still = Sampler(lambda key: jnp.zeros((16, D)), shared=True)
    result, _ = trained(arch.activation, steps=20, training=training, arch=arch, source=still)
    if kind == "pre_act":  # which pushes the dead up until they fire
        assert (result.history["error"] < 0.01).all()
    else:
        assert (result.history["error"] == 0).all()
        assert not result.history["l0"].any()
    for leaf in jax.tree.leaves((result.params, result.state)):
        assert np.isfinite(leaf).all()
    with pytest.raises(ValueError, match="all zeros: there is nothing to scale by"):
        objective.prepared(np.zeros((16, D)))


def test_defaults_are_what_the_published_recipes_share():
    arch, training, recipe, scale, centre = objective.defaults(8, 2**16, 10_000, k=4)
    assert (arch, scale, centre) == (Architecture(8, 2**16, "batch_topk", 4), "sqrt_d", "geometric_median")
    assert (recipe.lr, recipe.b1, recipe.warmup, recipe.clip_norm) == (1e-4, 0.9, 1000, 1.0)
    assert (recipe.schedule, recipe.decay_from, recipe.final) == ("linear", 0.8, 0.0)
    assert (training.decoder, training.revival, training.revival_coefficient) == ("unit", "auxk", 1 / 32)
    assert (training.auxk_k, training.auxk_normalise, training.dead_tokens) == (None, True, 10_000_000)
    assert (1 - training.threshold_rate) ** 1000 < 1e-4
    for activation in ("topk", "abs_topk"):
        assert objective.defaults(8, 64, 100, activation=activation, k=4, prefixes=(8, 16)).training.prefixes == (8, 16)
    relu, gated, jump = (
        objective.defaults(8, 64, 400, activation=a, coefficient=5.0) for a in ("relu", "gated", "jumprelu")
    )
    assert (relu.training.penalty, relu.training.decoder, relu.training.start_norm) == ("l1", "free", 0.1)
    assert [d.recipe.b1 for d in (relu, gated, jump)] == [0.9, 0.0, 0.0]
    assert [d.training.warmup for d in (relu, gated, jump)] == [20, 20, 400]
    assert (jump.training.penalty, jump.training.bandwidth, jump.training.to_encoder) == ("tanh", 2.0, True)
    assert (jump.training.threshold, jump.training.revival_coefficient) == (0.1, 3e-6)
    for wrong in ({"activation": "relu"}, {"k": 4, "coefficient": 1.0}, {"activation": "matching_pursuit", "k": 4}, {}):
        with pytest.raises(ValueError, match=r"takes|no defaults"):
            objective.defaults(8, 64, 100, **wrong)


@pytest.mark.ci
def test_defaults_train():
    x = jax.random.normal(KEY, (64, 8))
    weak = [objective.defaults(8, 64, 400, activation=a, coefficient=0.01) for a in ("relu", "gated", "jumprelu")]
    for arch, training, recipe, *_ in (*weak, objective.defaults(8, 64, 400, k=4)):
        pop = population(arch, training, {"seed": np.arange(1)}, recipe)
        result = fit(pop, steps=400, key=KEY, source=Sampler(lambda key: x, shared=True), log_every=20)
        error = result.history["error"][:, 0]
        assert error[-1] < error[0]
