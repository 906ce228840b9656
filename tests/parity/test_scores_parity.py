"""Our scores beside SAELens' on one fixed case: equal where the definitions are, and the difference where they are not.

The case has all that the definitions could disagree about: more features than latents, a duplicated latent, a dead
latent, a decoder row of zeros, signed activations, tokens at zero, a mean. The variable SUPERPOSE_PEERS names the
Python that has SAELens 6.54.
"""

import os
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from superpose.sae import metrics, recovery

N, F, n, d = 1500, 24, 40, 16
NEGATIVE = 5
"""A feature whose values are negative in the second case."""


def case(negative: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(n, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    W_dec = (directions[:F] + 0.08 * rng.normal(size=(F, d))) * rng.choice([-1, 0.5, 2], F)[:, None]
    W_dec[7] = 3 * W_dec[6]
    W_dec[9] = 0
    features = rng.random((N, n)) * (rng.random((N, n)) < np.geomspace(0.3, 0.01, n))
    features[:10] = 0
    if negative:
        features[:, NEGATIVE] *= -1
    acts = features[:, :F] * (rng.random((N, F)) < 0.8) + 0.2 * rng.random((N, F)) * (rng.random((N, F)) < 0.05)
    acts[:, ::4] *= -1
    acts[:, 8] = 0
    x = features @ directions
    x[10:] += 0.3
    x_hat = 0.8 * x + 0.1 * rng.normal(size=x.shape)
    made = {"W_dec": W_dec, "directions": directions, "acts": acts, "features": features, "x": x, "x_hat": x_hat}
    return {name: value.astype(np.float32) for name, value in made.items()}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "negative feature"])
def both(request, tmp_path_factory):
    """The case, SAELens' numbers and ours."""
    python = os.environ.get("SUPERPOSE_PEERS")
    if not python:
        pytest.skip("needs a Python with SAELens: set SUPERPOSE_PEERS to its path")
    folder = tmp_path_factory.mktemp("scores")
    given = case(request.param)
    np.savez(folder / "case.npz", **given)
    script = Path(__file__).with_name("scores_peer.py")
    command = [python, str(script), str(folder / "case.npz"), str(folder / "scores.npz")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "scores.npz") as file:
        theirs = {name: file[name] for name in file.files}

    cosines = recovery.cosines(jnp.asarray(given["W_dec"]), jnp.asarray(given["directions"]))
    match = jnp.asarray(recovery.best(cosines).feature)
    pairs = truth_free = None
    for a in range(0, N, 256):
        x, x_hat, acts, features = (jnp.asarray(given[k][a : a + 256]) for k in ("x", "x_hat", "acts", "features"))
        pairs = recovery.add(pairs, recovery.pairs(acts, features, match))
        truth_free = metrics.add(truth_free, metrics.sums(x, x_hat, acts))
    return given, theirs, cosines, pairs, truth_free


def test_equal_definitions_give_equal_numbers(both):
    given, theirs, cosines, pairs, truth_free = both
    got = metrics.scores(truth_free)
    ours = {
        "mcc": recovery.mcc(cosines),
        "uniqueness": recovery.uniqueness(cosines),
        "explained_variance": got.explained_variance,
        "l0": got.l0,
        "dead": got.dead.latents,
        "shrinkage": got.l2_ratio,
    }
    if (given["features"] >= 0).all():
        ours |= recovery.macro(recovery.detection(pairs.table))._asdict()
        ours |= pairs.table._asdict()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, err_msg=name)
    assert theirs["dead"] == 1
    assert 0.3 < theirs["explained_variance"] < 0.99


def test_a_negative_feature_is_active_for_us_and_not_for_saelens(both):
    """They ask feature > 0, we ask feature != 0: true values of either sign are activity."""
    given, theirs, cosines, pairs, _ = both
    negative = (given["features"] < 0).any()
    own = np.flatnonzero(recovery.best(cosines).feature == NEGATIVE)
    assert own.size
    assert (theirs["tp"][own] + theirs["fn"][own] > 0).all() != negative
    true = np.count_nonzero(given["features"][:, NEGATIVE])
    np.testing.assert_array_equal((pairs.table.tp + pairs.table.fn)[own], true)


def test_dead_latents_leave_our_matching_when_they_are_named(both):
    """Their MCC reads weights only, so that a dead latent can stand for a feature; ours leaves out what is not live."""
    _, theirs, cosines, pairs, _ = both
    live = pairs.table.tp + pairs.table.fp > 0
    assert (~live).sum() == theirs["dead"]
    assert 8 not in recovery.matching(cosines, live).latents
    assert recovery.uniqueness(cosines, live) == pytest.approx(theirs["uniqueness"] - 1 / F)
    assert recovery.macro(recovery.detection(pairs.table), live).accuracy != pytest.approx(theirs["accuracy"], abs=1e-4)
