"""Our structured worlds beside SAELens' generator: one law, two samplers, compared by z-scores of 262,144 samples each.

Both sides get the same densities, correlation factor and magnitudes; the hierarchy each makes by its own rules. The
controls change one thing on our side and must be seen by the same z-scores. The variable SUPERPOSE_PEERS names the
Python that has SAELens 6.54.
"""

import functools
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from superpose.worlds import prng
from superpose.worlds import structured as st

BATCHES, BATCH = 32, 8192
SAMPLES = BATCHES * BATCH
PAIRS = 40
"""Features whose pairs are compared: 20 roots and the children of five of them."""
Z = 5.0

N, SEED, RANK, SCALE = 600, 3, 25, 0.15
ROOTS, BRANCHING, DEPTH = 20, 4, 3
LAW = (0.5, 0.4, 5e-4)
WANTED = st.zipf(N, *LAW)
MEAN, STD = np.linspace(5, 4, N), np.abs(np.random.default_rng([SEED, 1]).normal(0.5, 0.5, N))
SETTINGS = dict(seed=SEED, roots=ROOTS, branching=BRANCHING, depth=DEPTH, rank=RANK, correlation=SCALE)

SHARE = 0.1
"""Of its parent's samples, wanted by each of four exclusive siblings of a small binary world."""
SMALL = st.breadth_first(84, 4, 4, 2)
LEVEL = np.repeat([0, 1, 2], [4, 16, 64])
WANTED_SMALL = 0.4 * SHARE**LEVEL


@functools.cache
def benchmark():
    return st.synthetic(N, exponent=LAW[0], highest=LAW[1], lowest=LAW[2], **SETTINGS)


def small(density):
    case = {"wanted": WANTED_SMALL, "density": density, "factor": np.zeros((84, 0)), "mean": np.ones(84)}
    return case | {"std": np.zeros(84), "forest": np.array([4, 4, 2, True, False])}


CASES = {
    "benchmark": lambda: {
        "wanted": WANTED,
        "density": benchmark().density,
        "factor": st.random_factor(N, RANK, SCALE, SEED),
        "mean": MEAN,
        "std": STD,
        "forest": np.array([ROOTS, BRANCHING, DEPTH, True, True]),
    },
    "small saelens": lambda: small(st.saelens(WANTED_SMALL, SMALL, True)),
    "small exact": lambda: small(st.exact(WANTED_SMALL, SMALL, True)),
}
N_START, D_START, STEPS, LR = 300, 100, 100, 3e-4


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    python = os.environ.get("SUPERPOSE_PEERS")
    if not python:
        pytest.skip("needs a Python with SAELens: set SUPERPOSE_PEERS to its path")
    folder = tmp_path_factory.mktemp("worlds")
    given = {}
    for name, make in CASES.items():
        case = {k: a.astype(np.float32) if a.dtype.kind == "f" else a for k, a in make().items()}
        case["samples"] = np.array([BATCHES, BATCH, PAIRS])
        given |= {f"{name}/{k}": a for k, a in case.items()}
    start = st.directions(prng.key(0), N_START, D_START, steps=0)
    given |= {"law": np.array([N, *LAW]), "start": start, "steps": STEPS, "lr": LR}
    np.savez(folder / "in.npz", **given)
    script = Path(__file__).with_name("worlds_peer.py")
    command = [python, str(script), str(folder / "in.npz"), str(folder / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "out.npz") as file:
        return {name: file[name] for name in file.files}


@functools.partial(jax.jit, static_argnums=0)
def batch_of(world, density, key):
    x = world.sample(key, density, BATCH)
    on, square = (x != 0).astype(jnp.float32), x * x
    powers = jnp.stack([power.sum(1) for power in (x, square, x * square, square * square)])
    return {"on": on.sum(1), "both": on[:PAIRS] @ on[:PAIRS].T, "powers": powers}, on.sum(0)


def ours(world, density):
    """The sums of worlds_peer.py over as many samples of ours."""
    total, l0 = None, []
    for key in jax.random.split(prng.key(1), BATCHES):
        part, counts = jax.device_get(batch_of(world, jnp.asarray(density, jnp.float32), key))
        part = jax.tree.map(np.float64, part)
        total = part if total is None else jax.tree.map(np.add, total, part)
        l0.append(counts)
    return total | {"l0": np.concatenate(l0)}


def z_of_counts(a, b):
    """Of two counts among SAMPLES each."""
    p = (a + b) / (2 * SAMPLES)
    return (a - b) / np.sqrt(np.maximum(2 * SAMPLES * p * (1 - p), 1e-9))


def z_of_moments(a, b, k):
    """Of E[x^k | active], for the features that were active 100 times on both sides."""
    seen = (a["on"] >= 100) & (b["on"] >= 100)
    difference, variance = 0.0, 0.0
    for sign, side in ((1, a), (-1, b)):
        count, low, high = side["on"][seen], side["powers"][k - 1][seen], side["powers"][2 * k - 1][seen]
        difference = difference + sign * low / count
        variance = variance + (high / count - (low / count) ** 2) / count
    return difference / np.sqrt(variance)


def scores(a, b):
    """What is compared -> z-scores."""
    upper = np.triu_indices(PAIRS, 1)
    l0 = [(x["l0"].mean(), x["l0"].var() / SAMPLES) for x in (a, b)]
    return {
        "densities": z_of_counts(a["on"], b["on"]),
        "pairs": z_of_counts(a["both"][upper], b["both"][upper]),
        "values": z_of_moments(a, b, 1),
        "squares": z_of_moments(a, b, 2),
        "mean L0": np.array([(l0[0][0] - l0[1][0]) / np.sqrt(l0[0][1] + l0[1][1])]),
    }


def theirs_of(theirs, case):
    return {name: theirs[f"{case}/{name}"] for name in ("on", "both", "powers", "l0")}


# ---- what is computed


def test_forests_densities_and_compensation_are_the_peer_s(theirs):
    np.testing.assert_array_equal(theirs["benchmark/parent"], benchmark().parent)
    np.testing.assert_array_equal(theirs["small exact/parent"], SMALL)
    np.testing.assert_allclose(theirs["zipf"], WANTED, rtol=1e-4)
    for name in ("benchmark", "small saelens"):
        np.testing.assert_allclose(theirs[f"{name}/compensated"], CASES[name]()["density"], rtol=1e-5)
    assert np.abs(theirs["small exact/compensated"] / CASES["small exact"]()["density"] - 1).max() > 0.05


# ---- what is sampled


def test_the_benchmark_s_law_is_the_peer_s(theirs):
    truth = benchmark()
    mine, other = ours(truth.world, truth.density), theirs_of(theirs, "benchmark")
    found = scores(mine, other)
    assert len(found["values"]) > 580
    for what, z in found.items():
        assert np.abs(z).max() < Z, what
    for what in ("densities", "pairs", "values", "squares"):  # the z-scores are as wide as they should be
        assert 0.85 < np.sqrt(np.mean(found[what] ** 2)) < 1.15, what
    assert abs(other["l0"].mean() - 8.17) < 0.03
    assert truth.active.sum() == pytest.approx(other["l0"].mean(), abs=0.03)


CONTROLS = {
    "densities are shuffled": {"densities", "pairs", "mean L0"},
    "correlations are weaker": {"pairs"},
    "children keep their values": {"squares"},
}
"""What is changed on our side -> by what it is seen."""


@pytest.mark.parametrize("what", CONTROLS)
def test_another_law_is_seen(theirs, what):
    world, density = benchmark().world, benchmark().density
    if what == "densities are shuffled":
        density = np.random.default_rng(0).permutation(density)
    else:
        changes = {"correlation": 0.12} if what == "correlations are weaker" else {"scaled": False}
        world = st.synthetic(N, **{**SETTINGS, **changes}).world
    found = {name: np.abs(z).max() for name, z in scores(ours(world, density), theirs_of(theirs, "benchmark")).items()}
    for name in CONTROLS[what]:
        assert found[name] > 2 * Z, name
    if what == "children keep their values":  # and nothing else changes
        assert max(found[name] for name in ("densities", "pairs", "mean L0")) < Z


# ---- where the peer's compensation leads


def test_the_exact_compensation_is_exact_in_the_peer_s_own_generator(theirs):
    z = (theirs["small exact/on"] - SAMPLES * WANTED_SMALL) / np.sqrt(SAMPLES * WANTED_SMALL * (1 - WANTED_SMALL))
    assert np.abs(z).max() < Z


def test_the_peer_s_compensation_misses_what_is_wanted(theirs):
    """Children of share s of four: (1 - (1 - s(1 + 3s))^4) / 4s of the wanted, 6.8 % too often at 0.1; grandchildren
    twice that. In the benchmark, where siblings want most of their parent, all children together reach 3/4 of it."""
    excess = (1 - (1 - SHARE * (1 + 3 * SHARE)) ** 4) / (4 * SHARE)
    assert excess == pytest.approx(1.068, abs=1e-3)
    got = theirs["small saelens/on"] / SAMPLES / WANTED_SMALL
    for level in (0, 1, 2):
        here = LEVEL == level
        error = 1 / np.sqrt(SAMPLES * WANTED_SMALL[here].sum())
        assert abs(got[here].mean() / excess**level - 1) < Z * error
        assert level == 0 or abs(got[here].mean() - 1) > Z * error
    child = benchmark().parent >= 0
    reached = theirs["benchmark/on"][child].sum() / SAMPLES / WANTED[child].sum()
    assert reached == pytest.approx(benchmark().active[child].sum() / WANTED[child].sum(), rel=0.005)
    assert reached == pytest.approx(0.756, abs=0.005)


# ---- directions


def test_directions_and_overlaps_are_the_peer_s(theirs):
    start, turned = (np.asarray(st.directions(prng.key(0), N_START, D_START, s, LR)) for s in (0, STEPS))
    assert np.abs(turned - start).max() > 0.02
    np.testing.assert_allclose(turned, theirs["turned"], atol=1e-4)
    overlaps = st.overlaps(jnp.asarray(turned))
    np.testing.assert_allclose(overlaps.largest, theirs["largest"], atol=1e-4)
    assert float(overlaps.largest.mean()) == pytest.approx(theirs["largest"].mean(), rel=1e-4)
    assert float(overlaps.mean) == pytest.approx(float(theirs["mean"]), rel=1e-4)
    before = st.overlaps(jnp.asarray(start)).largest.mean()
    assert theirs["largest"].mean() < 0.97 * float(before)
