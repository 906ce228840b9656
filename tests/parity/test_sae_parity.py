"""Same parameters and batch, same loss and gradients as SAELens and dictionary_learning; where a peer differs, how."""

import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from superpose.sae.model import Architecture
from superpose.sae.objective import NEVER, Training, objective

BATCH, D, F = 64, 16, 48
DEAD = np.arange(F) >= 44
"""Too few for AuxK's k, so that its scale counts."""
FREE = dict(decoder="free")
JUMP = dict(bandwidth=0.5, penalty="l0", coefficient=0.3, **FREE)
PEERED = dict(prefix_mean=False)
AUX = dict(revival="auxk", dead_tokens=1000)
CASES = {
    "relu": ("relu", {}, Training(penalty="l1", coefficient=0.3, **FREE)),
    "topk": ("topk", {"k": 4}, Training(revival_coefficient=0.7, auxk_normalise=False, **AUX, **FREE)),
    "abs_topk": ("abs_topk", {"k": 4}, Training(**FREE)),
    "batch_topk": ("batch_topk", {"k": 4}, Training(revival_coefficient=0.7, auxk_normalise=False, **AUX, **FREE)),
    "matryoshka": ("batch_topk", {"k": 4}, Training(prefixes=(5, 20), **PEERED, **FREE)),
    "gated": ("gated", {}, Training(penalty="l1", coefficient=0.3, **FREE)),
    "jumprelu l0": ("jumprelu", {}, Training(revival="pre_act", revival_coefficient=0.2, dead_tokens=1000, **JUMP)),
    "jumprelu tanh": ("jumprelu", {}, Training(**{**JUMP, "penalty": "tanh"}, to_encoder=True)),
    "jumprelu quadratic": (
        "jumprelu", {}, Training(**{**JUMP, "penalty": "quadratic"}, target_l0=6.0, to_encoder=True),
    ),
    "matching_pursuit": ("matching_pursuit", {"k": 4}, Training()),
    "dl topk": ("topk", {"k": 4}, Training(**AUX)),
    "dl batch_topk": ("batch_topk", {"k": 4}, Training(**AUX)),
    "dl matryoshka": ("batch_topk", {"k": 4}, Training(prefixes=(5, 20), **AUX)),
    "dl standard": ("relu", {}, Training(penalty="l1", coefficient=0.3)),
    "dl april": ("relu", {}, Training(penalty="l1", coefficient=0.3, **FREE)),
    "dl p_anneal": ("relu", {}, Training(penalty="lp", coefficient=0.3, p_end=0.5, steps=10)),
    "dl gated": ("gated", {}, Training(penalty="l1", coefficient=0.3)),
    "dl gated_anneal": ("gated", {}, Training(penalty="lp", coefficient=0.3, p_end=0.5, steps=10)),
    "dl jumprelu": (
        "jumprelu", {"center": False},
        Training(penalty="quadratic_mean", coefficient=3.0, target_l0=6.0, bandwidth=0.5),
    ),
}  # fmt: skip
UNIT = [name for name, (*_, t) in CASES.items() if t.decoder == "unit"]


def parameters(name):
    """Weights with power: biases, norms and thresholds all differ from their start."""
    kind, settings, _ = CASES[name]
    rng = np.random.default_rng(sorted(CASES).index(name))
    arch = Architecture(D, F, kind, **settings)
    params = {k: 0.3 * rng.normal(size=s).astype(np.float32) for k, s in arch.shapes().items()}
    if name in UNIT:
        params["W_dec"] /= np.linalg.norm(params["W_dec"], axis=1, keepdims=True)
    if "threshold" in params:
        params["threshold"] = np.abs(params["threshold"]) + 0.1
    if (
        CASES[name][2].revival != "none"
    ):  # dead ones stay silent: positive (SAELens lets negative ones guess), but small
        params["b_enc"][DEAD] = 0.4 if CASES[name][2].revival == "auxk" else -2.0
        params["W_enc"][:, DEAD] *= 0.05
    return arch, jax.tree.map(jnp.asarray, params)


def batch():
    return np.random.default_rng(99).normal(size=(BATCH, D)).astype(np.float32)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    python = os.environ.get("SUPERPOSE_PEERS")
    if not python:
        pytest.skip("needs the peers' Python: run `make test-parity`, or set SUPERPOSE_PEERS to it")
    folder = tmp_path_factory.mktemp("peers")
    arrays = {f"{name}/{k}": v for name in CASES for k, v in parameters(name)[1].items()}
    np.savez(folder / "in.npz", x=batch(), dead=DEAD, **arrays)
    script = Path(__file__).parent / "sae_peer.py"
    command = [python, str(script), str(folder / "in.npz"), str(folder / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "out.npz"))


def ours(name, fast=None):
    arch, params = parameters(name)
    training = CASES[name][2]
    target = objective(arch, training if fast is None else Training(**{**vars(training), "fast": fast}))
    key = jax.random.key(0)
    state = target.init(key, {})[1]
    state["silent"] = jnp.where(DEAD, NEVER - BATCH, 0)
    with jax.default_matmul_precision("highest"):
        (loss, (state, _)), grads = jax.jit(jax.value_and_grad(target.loss, has_aux=True))(
            params, state, jnp.asarray(batch()), key, jnp.int32(training.steps or 0), {}
        )
    if training.revival != "none":
        assert (np.asarray(state["silent"]) >= training.dead_tokens).tolist() == DEAD.tolist()
    return float(loss), {k: np.asarray(v) for k, v in grads.items()}, state


def furthest(a, b):
    """Largest difference, relative to the largest entry."""
    return np.abs(a - b).max() / np.abs(b).max()


DIFFERENT = {"gated": {"W_dec", "b_dec"}, "dl matryoshka": None, "dl jumprelu": {"threshold"}}
"""Gradients that differ on purpose; the tests below say how. None: all."""


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_the_peer_s(theirs, name):
    if DIFFERENT.get(name, ()) is None:
        pytest.skip("the peer's loss is another one: see below")
    loss, grads, _ = ours(name)
    assert loss == pytest.approx(float(theirs[f"{name}/loss"]), rel=1e-4)
    for key in grads.keys() - DIFFERENT.get(name, set()):
        assert np.abs(grads[key]).max() > 1e-4, "a gradient without power shows nothing"
        assert furthest(grads[key], theirs[f"{name}/grad/{key}"]) < 1e-4, key


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n == "dl matryoshka" else pytest.mark.ci)
        for n in CASES
        if "topk" in n or "matryoshka" in n
    ],
)
def test_the_fast_path_has_the_same(name):
    loss, grads, _ = ours(name)
    fast_loss, fast_grads, _ = ours(name, fast=True)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    for key in grads:
        assert furthest(fast_grads[key], grads[key]) < 1e-4, key


def test_saelens_lets_the_gate_s_reconstruction_train_the_decoder(theirs):
    """Rajamanoharan et al. 2024 and dictionary_learning (tested above) stop its gradient there."""
    _, grads, _ = ours("gated")
    for key in ("W_dec", "b_dec"):
        assert furthest(grads[key], theirs[f"gated/grad/{key}"]) > 1e-2


def test_dictionary_learning_divides_by_the_number_of_prefixes_twice(theirs):
    """Its group weights are 1/3, and it takes the mean over the three groups: the reconstruction counts a third."""
    arch, params = parameters("dl matryoshka")
    loss, grads, _ = ours("dl matryoshka")
    plain = objective(arch, Training(prefixes=(5, 20)))
    state = plain.init(jax.random.key(0), {})[1]
    with jax.default_matmul_precision("highest"):
        (error, _), slopes = jax.value_and_grad(plain.loss, has_aux=True)(
            params, state, jnp.asarray(batch()), jax.random.key(0), jnp.int32(0), {}
        )
    assert float(theirs["dl matryoshka/loss"]) == pytest.approx(loss - float(error) * 2 / 3, rel=1e-4)
    for key, grad in grads.items():
        want = theirs[f"dl matryoshka/grad/{key}"]
        assert furthest(grad - np.asarray(slopes[key]) * 2 / 3, want) < 1e-4, key
        assert furthest(grad, want) > 1e-2, key


def test_the_running_threshold_is_dictionary_learning_s(theirs):
    """The least activation that was left on in each batch, with weight 0.001 after the first."""
    arch, params = parameters("dl batch_topk")
    target = objective(arch, Training(threshold_rate=0.001, **AUX))
    state = target.init(jax.random.key(0), {})[1]
    for x in (batch(), 2 * batch()):
        with jax.default_matmul_precision("highest"):
            state = target.loss(params, state, jnp.asarray(x), jax.random.key(0), jnp.int32(0), {})[1][0]
        seen = float(state["threshold"])
    assert seen == pytest.approx(float(theirs["dl batch_topk/threshold"]), rel=1e-5)
    first = target.loss(params, target.init(jax.random.key(0), {})[1], jnp.asarray(batch()), jax.random.key(0),
                        jnp.int32(0), {})[1][0]  # fmt: skip
    assert abs(seen / float(first["threshold"]) - 1) > 1e-4, "the second batch left no mark"


def test_dictionary_learning_counts_l0_after_the_jump(theirs):
    """Its step function sees activations that the threshold has zeroed already: half of the kernel is cut off (#55)."""
    _, grads, _ = ours("dl jumprelu")
    assert furthest(grads["threshold"], theirs["dl jumprelu/grad/threshold"]) > 1e-2
