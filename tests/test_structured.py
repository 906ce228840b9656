"""Structured worlds against closed forms, brute force and SciPy; every draw is fixed by its key."""

import inspect
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from superpose.worlds import prng, sparse
from superpose.worlds import structured as st

Z = 5.0
LIMIT = 1e-6
CI = pytest.mark.ci  # what another case covers too
DRAWS = 2**16
DENSITIES = np.array([0.5, 0.3, 0.1, 0.02, 0.2, 0.4])
FACTOR = st.random_factor(6, 3, 0.6, seed=1)
#         0        1  2    3  4  5    6   7  8
PARENT = np.array([-1, 0, 0, 0, 1, 1, 1, -1, 7])
MIXED = np.array([True, False, True, True, True, True, True, True, True])  # the children of 1 may be active together


@pytest.fixture(scope="module", autouse=True)
def hasty():
    """Every test has a world of its own to compile: compiling is what they wait for."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def draw(world, density, batch=DRAWS, seed=0):
    return np.asarray(jax.jit(world.sample, static_argnums=2)(prng.key(seed), jnp.asarray(density), batch))


def z_of_share(hits, p):
    """z-scores of the shares of independent columns, hits [k, batch], against probabilities p [k]."""
    p = np.asarray(p, float)
    return np.abs(hits.mean(-1) - p) / np.sqrt(np.maximum(p * (1 - p), 1e-12) / hits.shape[-1])


def brute_force(q, parent, exclusive):
    """P(active) by all patterns before the tree and all choices among exclusive siblings."""
    n, total = len(q), np.zeros(len(q))
    families = [np.flatnonzero(parent == j) for j in range(n) if exclusive[j] and (parent == j).sum() > 1]
    for pattern in itertools.product([0, 1], repeat=n):
        on = np.array(pattern)
        weight = np.prod(np.where(on, q, 1 - q))
        options = [[i for i in f if on[i]] or [None] for f in families]
        for picks in itertools.product(*options):
            kept = on.copy()
            for family, pick in zip(families, picks, strict=True):
                kept[[i for i in family if i != pick]] = 0
            for _ in range(n):  # as many rounds as any depth
                kept = np.where((parent >= 0) & (kept[parent] == 0), 0, kept)
            total += weight * kept / np.prod([len(o) for o in options])
    return total


# ---- correlated activity


@pytest.mark.parametrize("gate", st.GATES)
@pytest.mark.parametrize(
    "factor",
    [
        pytest.param(None, marks=CI),
        FACTOR,
        pytest.param(np.linalg.cholesky(st.random_correlation(6, seed=2)), marks=CI),
    ],
)
def test_marginals_of_the_copula_are_exact(gate, factor):
    x = draw(st.copula(6, factor, gate=gate), DENSITIES)
    assert z_of_share(x != 0, DENSITIES).max() < Z
    assert z_of_share(x != 0, 1.1 * DENSITIES).max() > Z  # the test sees 10 %


def both_active(gate, p, q, rho):
    if gate == "threshold":
        return stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf(stats.norm.ppf([p, q]))
    return p * q * (1 + 2 / np.pi * np.arcsin(rho / 2))


@pytest.mark.parametrize("gate", st.GATES)
@pytest.mark.parametrize("kind", ["low rank", "full"])
def test_pairs_are_active_together_as_often_as_their_correlation_says(gate, kind):
    if kind == "full":
        a = np.random.default_rng(0).normal(size=(6, 7))
        R = np.corrcoef(a)
        factor = np.linalg.cholesky(R)
    else:
        factor = FACTOR
        R = factor @ factor.T
    x, free = (draw(st.copula(6, f, gate=gate), DENSITIES, seed=4) != 0 for f in (factor, None))
    pairs = list(itertools.combinations(range(6), 2))
    expected = [both_active(gate, DENSITIES[i], DENSITIES[j], R[i, j]) for i, j in pairs]
    correlated, independent = (np.stack([a[i] & a[j] for i, j in pairs]) for a in (x, free))
    assert z_of_share(correlated, expected).max() < Z
    assert z_of_share(independent, expected).max() > 1.4 * Z  # the control: no correlation


def test_equal_gaussians_are_active_together():
    """Factor rows of norm 1 and correlation 1: two features of one density are the same event."""
    x = draw(st.copula(3, np.array([[1.0], [1.0], [-1.0]])), 0.3, 2**12)
    assert ((x[0] != 0) == (x[1] != 0)).all()
    assert not ((x[0] != 0) & (x[2] != 0)).any()


@pytest.mark.parametrize("factor", [pytest.param(None, marks=CI), FACTOR])
def test_densities_zero_and_one(factor):
    x = draw(st.copula(6, factor), np.array([0.0, 1.0, 0.0, 1.0, 0.5, 0.5]), 2**12)
    assert (x[[0, 2]] == 0).all()
    assert (x[[1, 3]] > 0).all()
    assert np.isfinite(x).all()


def test_features_beyond_a_block_are_drawn_like_the_first():
    """n = 130 is drawn in four blocks of 33: all marginals, and no block repeats another's draws."""
    x = draw(st.copula(130), np.linspace(0.1, 0.9, 130), 2**13) != 0
    assert z_of_share(x, np.linspace(0.1, 0.9, 130)).max() < Z
    agree = np.corrcoef(x)[np.triu_indices(130, 1)] * np.sqrt(x.shape[1])
    assert np.abs(agree).max() < Z


def test_random_factor_and_correlation():
    factor = st.random_factor(2000, 25, 0.1, seed=0)
    assert abs(factor.std() / 0.1 - 1) < 0.02
    assert np.all((st.random_factor(50, 25, 1.0, seed=0) ** 2).sum(1) <= 0.99 + 1e-12)
    off = (factor @ factor.T)[np.triu_indices(2000, 1)]
    assert abs(off.std() / (0.1**2 * 5) - 1) < 0.05
    R = st.random_correlation(40, seed=0)
    np.testing.assert_allclose(np.diag(R), 1, rtol=1e-12)
    assert np.linalg.eigvalsh(R)[0] > 0
    assert R.min() > 0


# ---- magnitudes

MEAN, STD = np.array([1.0, 5.0]), np.array([1.0, 0.5])
LAWS = {
    "constant": (st.constant(MEAN), None, MEAN, 0 * MEAN),
    "uniform": (st.uniform(MEAN), lambda i: stats.uniform(0, MEAN[i]), MEAN / 2, MEAN / np.sqrt(12)),
    "folded_normal": (
        st.folded_normal(MEAN, STD),
        lambda i: stats.foldnorm(MEAN[i] / STD[i], scale=STD[i]),
        STD * np.sqrt(2 / np.pi) * np.exp(-((MEAN / STD) ** 2) / 2) + MEAN * (1 - 2 * stats.norm.cdf(-MEAN / STD)),
        None,
    ),
    "rectified_normal": (
        st.rectified_normal(MEAN, STD),
        lambda i: stats.truncnorm(-MEAN[i] / STD[i], np.inf, MEAN[i], STD[i]),
        MEAN + STD * stats.norm.pdf(MEAN / STD) / stats.norm.cdf(MEAN / STD),
        None,
    ),
}


def test_every_magnitude_has_its_law_tested():
    assert set(LAWS) == set(st.MAGNITUDES)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("correlated", [pytest.param(False, marks=CI), True])
def test_values_follow_their_law(name, correlated):
    magnitude, law, mean, std = LAWS[name]
    p = np.array([0.3, 0.05])
    x = draw(st.copula(2, np.array([[0.7], [0.5]]) if correlated else None, magnitude), p)
    active = np.where(name == "rectified_normal", p * stats.norm.cdf(MEAN / STD), p)
    assert z_of_share(x != 0, active).max() < Z
    if std is None:
        std = np.sqrt(MEAN**2 + STD**2 - mean**2) if name == "folded_normal" else STD
    for i in range(2):
        values = x[i][x[i] != 0].astype(np.float64)
        assert values.min() > 0
        assert abs(values.mean() - mean[i]) <= Z * std[i] / np.sqrt(values.size) + 1e-6
        if law is not None:
            assert stats.kstest(values, law(i).cdf).pvalue > LIMIT


def test_folded_is_not_rectified():
    """The control of the laws: at mean = std the two differ, and the Kolmogorov-Smirnov test sees it."""
    x = draw(st.copula(2, magnitude=st.folded_normal(MEAN, STD)), 0.3)[0]
    assert stats.kstest(x[x != 0], LAWS["rectified_normal"][1](0).cdf).pvalue < LIMIT


def test_values_do_not_depend_on_what_made_the_feature_active():
    """u / P(z) is uniform for every z: the value of feature 0 is uncorrelated with the activity of feature 1."""
    x = draw(st.copula(2, np.array([[0.9], [0.9]])), 0.3)
    value, other = x[0][x[0] > 0], x[1][x[0] > 0] > 0
    assert abs(np.corrcoef(value, other)[0, 1]) * np.sqrt(value.size) < Z


# ---- never silent


@pytest.mark.parametrize("factor", [None, pytest.param(np.array([[0.8], [0.8], [-0.5]]), marks=CI)])
def test_conditioned_follows_the_law_given_activity(factor):
    """All patterns of three features, in one fixed column over many keys and over a batch."""
    p = np.array([0.05, 0.02, 0.1])
    world = st.copula(3, factor)
    given = draw(st.conditioned(world), p, 2**15, seed=8) != 0
    assert given.any(0).all()
    plain = draw(world, p, 2**20, seed=9) != 0
    counts, free = (np.bincount(np.array([4, 2, 1]) @ a, minlength=8)[1:] for a in (given, plain))
    seen = free > 50
    assert seen.sum() >= 4
    table = np.stack([counts[seen], free[seen]])
    assert stats.chi2_contingency(table).pvalue > LIMIT
    if factor is None:
        pattern = np.indices((2, 2, 2)).reshape(3, -1)[:, 1:]
        law = np.prod(np.where(pattern == 1, p[:, None], 1 - p[:, None]), 0)
        common = law * 2**15 / law.sum() > 5
        z = z_of_share(np.eye(8, dtype=bool)[np.array([4, 2, 1]) @ given].T[1:][common], (law / law.sum())[common])
        assert z.max() < Z


def test_a_world_that_never_fires_ends():
    x = draw(st.conditioned(st.copula(3), limit=20), 0.0, 64)
    assert (x == 0).all()
    assert (draw(st.copula(3), 1e-3, 64) == 0).all(0).any()  # the control: without the condition there is silence


# ---- hierarchy


@pytest.mark.parametrize("exclusive", [pytest.param(True, marks=CI), pytest.param(False, marks=CI), MIXED])
def test_marginals_agree_with_brute_force_and_with_samples(exclusive):
    q = np.array([0.6, 0.7, 0.5, 0.9, 0.8, 0.3, 0.6, 0.4, 0.5])
    flags = np.broadcast_to(exclusive, 9)
    expected = brute_force(q, PARENT, flags)
    np.testing.assert_allclose(st.marginals(q, PARENT, exclusive), expected, rtol=1e-12)
    x = draw(st.tree(st.copula(9), PARENT, exclusive), q) != 0
    assert z_of_share(x, expected).max() < Z
    assert z_of_share(draw(st.copula(9), q) != 0, expected).max() > Z
    for child, parent in enumerate(PARENT):
        assert parent < 0 or not (x[child] & ~x[parent]).any()
    for j in range(9):
        together = x[PARENT == j].sum(0).max(initial=0)
        assert together <= 1 or not flags[j]
    assert flags[1] or x[PARENT == 1].sum(0).max() == 3


def test_marginals_of_a_correlated_tree():
    """Mean over the factors against samples; the closed form that ignores them is far off."""
    q, factor = np.full(9, 0.5), np.full((9, 1), 0.8)
    factor[7:] = -0.7
    expected = st.marginals(q, PARENT, True, factor, live=0.9)
    world = st.tree(st.copula(9, factor, st.Magnitude(lambda u, i: u, live=0.9)), PARENT, True)
    x = draw(world, q) != 0
    assert z_of_share(x, expected).max() < Z
    assert z_of_share(x, st.marginals(q, PARENT, True, live=0.9)).max() > 3 * Z


def test_each_active_sibling_is_as_likely_to_stay():
    """All five children always active: each stays in 1/5; their parent always active."""
    parent = np.array([-1, *[0] * 5])
    x = draw(st.tree(st.copula(6), parent, True), 1.0, 2**15)
    assert (x[1:] != 0).sum(0).tolist() == [1] * 2**15
    assert stats.chisquare((x[1:] != 0).sum(1)).pvalue > LIMIT


def test_values_and_scaling_against_a_loop():
    """Values after the tree by a plain loop over features, parents before children or after them."""
    rng = np.random.default_rng(0)
    parent = np.array([3, 3, -1, -1, 0, 4, 2, 6, 4])
    unit = rng.uniform(0.5, 2, 9)
    x = np.where(rng.random((9, 400)) < 0.7, rng.uniform(0.1, 3, (9, 400)), 0).astype(np.float32)
    fixed = sparse.World(9, lambda key, density, batch: jnp.asarray(x))

    def value(i, scaled):
        if parent[i] < 0:
            return x[i].astype(float)
        over = value(parent[i], scaled)
        return x[i] * over / unit[parent[i]] if scaled else np.where(over != 0, x[i], 0)

    for scaled in (False, True):
        got = draw(st.tree(fixed, parent, unit=unit if scaled else None), 0.5, 400)
        np.testing.assert_allclose(got, [value(i, scaled) for i in range(9)], rtol=1e-5)
    assert not np.allclose(got, draw(st.tree(fixed, parent), 0.5, 400))


def test_silence_and_enumeration_pass_through_the_tree():
    parent = np.array([-1, 0, -1])
    p = np.array([0.4, 0.5, 0.2], np.float32)
    world = st.tree(sparse.independent(3), parent)
    np.testing.assert_allclose(jax.jit(world.silent)(p), 0.6 * 0.8, rtol=1e-6)
    assert z_of_share((draw(world, p) == 0).all(0)[None], [0.48]).max() < Z
    x, w = jax.jit(lambda p: world.enumerate(p, 3))(p)
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose((np.asarray(x) ** 2) @ np.asarray(w), np.array([0.4, 0.2, 0.2]) / 3, rtol=1e-5)
    np.testing.assert_allclose(np.prod(np.asarray(x)[:2], 0) @ np.asarray(w), 0.2 / 4, rtol=1e-5)
    assert st.tree(sparse.independent(3), np.array([-1, 0, 0]), True).enumerate is None
    assert st.tree(st.copula(3), parent).enumerate is None
    np.testing.assert_allclose(jax.jit(lambda p: st.copula(3).silent(p) + st.copula(3).awake(p))(p), 1, rtol=1e-6)


def test_breadth_first_numbers_level_by_level():
    parent = st.breadth_first(16_384, 128, 4, 3)
    assert (parent >= 0).sum() == 128 * (4 + 16 + 64)
    assert (parent[:128] < 0).all()
    assert parent[[128, 131, 132, 639, 640, 643, 2688]].tolist() == [0, 0, 1, 127, 128, 128, 640]
    assert (parent[128 * 85 :] < 0).all()
    assert st.breadth_first(5, 2, 2, 1).tolist() == [-1, -1, 0, 0, 1]
    assert st.breadth_first(2, 5, 2, 3).tolist() == [-1, -1]


@pytest.mark.ci
def test_a_world_of_16k_features_is_sampled_inside_the_jit():
    """The published size: the mean L0 that its densities promise, and densities one by one."""
    truth = st.synthetic(target_l0=34.0)
    x = jax.jit(lambda key: truth.world.sample(key, truth.density, 2048) != 0)(jax.random.key(0))
    assert x.shape == (16_384, 2048)
    l0 = np.asarray(x.sum(0))
    assert abs(l0.mean() - 34.0) < 4 * l0.std() / np.sqrt(2048)
    often = truth.active > 0.02
    assert often.sum() > 50
    share, want = np.asarray(x.mean(1))[often], truth.active[often]
    assert np.abs((share - want) / np.sqrt(want * (1 - want) / 2048)).max() < 4.5


# ---- compensation


def test_exact_compensation_meets_what_is_wanted():
    wanted = np.array([0.6, 0.35, 0.1, 0.1, 0.3, 0.02, 0.01, 0.3, 0.25])
    q = st.exact(wanted, PARENT, True)
    np.testing.assert_allclose(st.marginals(q, PARENT, True), wanted, rtol=1e-10)
    assert z_of_share(draw(st.tree(st.copula(9), PARENT, True), q) != 0, wanted).max() < Z
    assert z_of_share(draw(st.tree(st.copula(9), PARENT, True), wanted) != 0, wanted).max() > 3 * Z
    almost_full = np.array([0.5, 0.3, 0.1, 0.0994])
    q = st.exact(almost_full, PARENT[:4], True)
    np.testing.assert_allclose(st.marginals(q, PARENT[:4], True), almost_full, rtol=1e-9)


def test_compensation_of_saelens_and_how_it_is_off():
    """1 / p_parent, times 1 + the others' share for exclusive siblings: too much by half the others' share."""
    wanted = np.array([0.5, 0.02, 0.01, 0.015, 0.0001, 0.0002, 0.0003, 0.3, 0.2])
    q = st.saelens(wanted, PARENT, True)
    np.testing.assert_allclose(q[1], 0.02 / 0.5 * (1 + 0.025 / 0.5))
    np.testing.assert_allclose(q[4], 0.0001 / 0.02 * (1 + 0.0005 / 0.02))
    np.testing.assert_allclose(q[8], 0.2 / 0.3)
    others = np.array([0.025, 0.03 + 0.005, 0.03]) / 0.5
    np.testing.assert_allclose(st.marginals(q, PARENT, True)[1:4] / wanted[1:4] - 1, others / 2, rtol=0.15)
    free = st.saelens(wanted, PARENT, False)
    np.testing.assert_allclose(free, st.exact(wanted, PARENT, False))
    np.testing.assert_allclose(st.marginals(free, PARENT, False), wanted)
    assert st.saelens(np.array([0.1, 0.09, 0.09]), np.array([-1, 0, 0]), True).tolist() == [0.1, 1, 1]


# ---- densities and the worlds of the papers


def test_zipf():
    p = st.zipf(1000, 0.5, 0.4, 5e-4)
    np.testing.assert_allclose(p[[0, -1]], [0.4, 5e-4])
    assert (np.diff(p) < 0).all()
    power = np.arange(1, 1001) ** -0.5
    np.testing.assert_allclose((p[9] - p[-1]) / (p[0] - p[-1]), (power[9] - power[-1]) / (power[0] - power[-1]))


def test_scale_to_l0():
    np.testing.assert_allclose(st.scale_to_l0(7.0, lambda c: np.minimum(c * np.arange(10) / 9, 1).sum()), 1.8)
    np.testing.assert_allclose(st.scale_to_l0(0.01, lambda c: 5 * c), 0.002)
    with pytest.raises(ValueError, match=r"^a mean L0 of 11 is out of reach: the multipliers tried give .* to 10\.$"):
        st.scale_to_l0(11, lambda c: min(10.0, c))


def test_the_published_benchmark_has_its_published_l0():
    """SynthSAEBench-16k: about 34 active features, about 25 of them among the first 4,096 (SAELens' documentation)."""
    truth = st.synthetic()
    assert abs(truth.active.sum() - 34) < 1
    assert abs(truth.active[:4096].sum() - 25) < 0.5
    assert st.synthetic(compensation="none").active.sum() < 15


@pytest.fixture(scope="module")
def small():
    return st.synthetic(600, roots=20, target_l0=10.0, correlation=0.15, seed=3)


def test_synthetic_meets_its_l0(small):
    np.testing.assert_allclose(small.active.sum(), 10, rtol=1e-6)
    x = draw(small.world, small.density, 2**14)
    l0 = (x != 0).sum(0)
    assert abs(l0.mean() - 10) < Z * l0.std() / np.sqrt(l0.size)
    assert abs(l0.mean() - 10.5) > Z * l0.std() / np.sqrt(l0.size)
    z = z_of_share(x != 0, small.active)
    assert z[small.active * l0.size > 30].max() < Z
    on = x != 0
    child = np.flatnonzero(small.parent >= 0)
    assert not (on[child] & ~on[small.parent[child]]).any()
    assert max(on[small.parent == j].sum(0).max(initial=0) for j in range(200)) == 1


def test_children_are_scaled_by_their_parents(small):
    """Value of a child over its parent's value / the parent's mean is the child's own draw: its mean is its own."""
    x = draw(small.world, small.density, 2**14, seed=1).astype(float)
    means = np.linspace(5, 4, 600)
    own, scaled = [], []
    for i in np.flatnonzero(small.parent >= 0):
        j = small.parent[i]
        on = x[i] > 0
        own.append(x[i][on] / (x[j][on] / means[j]) / means[i])
        scaled.append(x[i][on] / x[j][on])
    own = np.concatenate(own)
    assert abs(own.mean() - 1) < 0.01
    assert np.concatenate(scaled).mean() > 0.85  # about 1, whatever the scaling: the control is the spread below
    deep = np.flatnonzero(small.parent >= 20)
    values = [x[i][x[i] > 0] / means[i] for i in deep]
    assert np.concatenate(values).std() > 1.2 * own.std()


NAMED = {
    "parent_child": (st.parent_child, 0.25 + 0.05 + 2 * 0.05),
    "absorption with noise": (lambda: st.parent_child(noise=0.2), 0.4),
    "hedging": (st.hedging, 0.25 * 1.2),
    "independent hedging": (lambda: st.hedging(nested=False), 0.45),
    "balance": (lambda: st.hedging(children=(0.15,) * 3), 0.25 * 1.45),
    "matryoshka_tree": (st.matryoshka_tree, 1.12),
    "matryoshka_tree with noise": (lambda: st.matryoshka_tree(noise=0.05), 1.12),
    "sharkey": (lambda: st.sharkey(40, 3, 0.95), None),
    "independent sharkey": (lambda: st.sharkey(40, 3, 0.95, correlated=False), None),
}


ONCE = ("absorption with noise", "hedging", "balance", "matryoshka_tree with noise", "sharkey", "independent sharkey")


@pytest.mark.parametrize("name", [pytest.param(n, marks=CI) if n in ONCE else n for n in NAMED])
def test_named_worlds_are_as_active_as_they_say(name):
    make, l0 = NAMED[name]
    truth = make()
    if l0 is not None:
        np.testing.assert_allclose(truth.active.sum(), l0, rtol=1e-6)
    x = draw(truth.world, truth.density)
    assert z_of_share(x != 0, truth.active).max() < Z
    for i, j in enumerate(truth.parent):
        assert j < 0 or not ((x[i] != 0) & (x[j] == 0)).any()
    same = draw(truth.world, truth.density)
    np.testing.assert_array_equal(x, same)
    assert (x != draw(truth.world, truth.density, seed=1)).any()


def test_noise_that_silences_features_is_in_their_marginals():
    truth = st.parent_child(noise=1.0)
    on = stats.norm.cdf(1)  # P(N(1, 1) > 0)
    np.testing.assert_allclose(truth.active, [0.25 * on, 0.05 * on**2, 0.05 * on, 0.05 * on], rtol=1e-6)


def test_matryoshka_children():
    """Exclusive: P(exactly one child | parent) = 0.6; binary, or with 5 % noise."""
    truth, noisy = st.matryoshka_tree(), st.matryoshka_tree(noise=0.05)
    assert len(truth.density) == 20
    x, y = draw(truth.world, truth.density), draw(noisy.world, noisy.density)
    for k in (0, 4, 8):
        children = (x[k + 1 : k + 4] != 0).sum(0)[x[k] != 0]
        assert children.max() == 1
        assert z_of_share(children[None], [0.6]).max() < Z
    assert set(np.unique(x)) == {0, 1}
    values = y[y != 0].astype(float)
    assert abs(values.mean() - 1) < Z * 0.05 / np.sqrt(values.size)
    assert abs(values.std() / 0.05 - 1) < Z / np.sqrt(2 * values.size)


def test_sharkey_is_never_silent_and_correlated():
    truth, free = (st.sharkey(40, 2, 0.95, correlated=c) for c in (True, False))
    x, y = (draw(t.world, t.density, 2**15) != 0 for t in (truth, free))
    assert x.any(0).all()
    np.testing.assert_allclose(truth.density.sum(), 2)
    assert z_of_share(x, truth.active).max() < Z
    assert z_of_share(x, truth.density)[:8].max() > Z  # the share of silent samples matters
    spread = [np.var(a.sum(0)) / a.sum(0).mean() for a in (x, y)]
    assert spread[0] > 1.05 * spread[1]  # positive correlations: L0 varies more


@pytest.mark.parametrize(
    "name", ["synthetic", pytest.param("sharkey", marks=CI), pytest.param("matryoshka_tree", marks=CI)]
)
def test_vmap_over_keys_and_traced_densities(name, small):
    truth = small if name == "synthetic" else NAMED[name][0]()
    keys = jax.random.split(prng.key(5), 2)
    densities = jnp.asarray(truth.density) * jnp.array([[1.0], [0.5]])
    sample = jax.jit(lambda k, d: truth.world.sample(k, d, 64))
    mapped = jax.jit(jax.vmap(lambda k, d: truth.world.sample(k, d, 64)))(keys, densities)
    for i in range(2):
        np.testing.assert_allclose(sample(keys[i], densities[i]), mapped[i], rtol=1e-4)
    assert (mapped[0] != mapped[1]).any()


# ---- directions


def adam_by_hand(W, steps, lr):
    """The loss as SAELens states it, summed over all ordered pairs, by autodiff, and textbook Adam in NumPy."""

    def loss(W):
        G = W @ W.T
        off = G - jnp.diag(jnp.diag(G))
        return jnp.sum(off**2) + len(W) * jnp.sum((jnp.diag(G) - 1) ** 2)

    grad = jax.jit(jax.grad(loss))
    m = v = np.zeros_like(W)
    for t in range(1, steps + 1):
        g = np.asarray(grad(jnp.asarray(W)))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        W = W - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return W / np.linalg.norm(W, axis=1, keepdims=True)


def test_directions_follow_the_stated_loss():
    start = np.asarray(st.directions(prng.key(1), 12, 5, steps=0))
    expected = adam_by_hand(start, 40, 1e-2)
    np.testing.assert_allclose(st.directions(prng.key(1), 12, 5, steps=40, lr=1e-2), expected, atol=2e-3)
    assert np.abs(start - expected).max() > 0.1


def test_directions_are_unit_rows_that_overlap_less():
    random, better = (st.directions(prng.key(2), 200, 100, steps=steps, lr=3e-3) for steps in (0, 100))
    for W in (random, better):
        np.testing.assert_allclose(np.linalg.norm(W, axis=1), 1, rtol=1e-5)
    before, after = st.overlaps(random), st.overlaps(better)
    assert after.largest.mean() < 0.8 * before.largest.mean()
    bound = np.sqrt((200 - 100) / (100 * 199))  # Welch: the largest of all overlaps is at least this
    assert after.largest.max() > bound
    np.testing.assert_allclose(before.mean, np.sqrt(2 / (np.pi * 100)), rtol=0.02)  # |cos| of random directions


def test_overlaps_against_numpy_over_blocks():
    W = np.random.default_rng(0).normal(size=(st.BLOCK + 77, 6)).astype(np.float32)
    W[5] = 0
    unit = W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), 1e-30)
    cos = np.abs(unit @ unit.T)
    np.fill_diagonal(cos, 0)
    got = st.overlaps(jnp.asarray(W))
    np.testing.assert_allclose(got.largest, cos.max(1), rtol=1e-5)
    np.testing.assert_allclose(got.mean, cos.sum() / (len(W) * (len(W) - 1)), rtol=1e-5)


def test_orthonormal():
    W = np.asarray(st.orthonormal(prng.key(0), 20, 50))
    np.testing.assert_allclose(W @ W.T, np.eye(20), atol=1e-5)
    firsts = jax.vmap(lambda k: st.orthonormal(k, 2, 3)[0])(jax.random.split(prng.key(1), 2000))
    z = np.asarray(firsts).mean(0) / np.sqrt(1 / 3 / 2000)  # no side is preferred
    assert np.abs(z).max() < Z


# ---- embedding


def test_embedding_joins_features_and_directions():
    truth = st.parent_child(noise=0.1)
    W = st.directions(prng.key(0), 4, 10, steps=0)
    b = 0.5 * st.directions(prng.key(1), 1, 10, steps=0)[0]
    embedding = truth.embed(W, b)
    h, x = jax.jit(embedding.both, static_argnums=1)(prng.key(2), 256)
    assert h.shape == (256, 10)
    assert x.shape == (256, 4)
    np.testing.assert_allclose(h, np.asarray(x, float) @ np.asarray(W, float) + np.asarray(b), atol=1e-5)
    np.testing.assert_allclose(np.asarray(x).T, draw(truth.world, truth.density, 256, seed=2), rtol=1e-5)
    np.testing.assert_allclose(embedding.mean_l0(), 0.4, rtol=1e-6)
    sampled = jax.jit(lambda key: embedding.sample(key, 256))
    np.testing.assert_allclose(sampled(prng.key(2)), h, atol=1e-5)
    assert np.abs(sampled(prng.key(3)) - h).max() > 0.1


def test_embedding_of_a_toy_model_keeps_the_lengths_of_its_rows():
    W = np.array([[0.9, 0.1], [0.0, 0.3], [-2.0, 0.0]], np.float32)
    toy = st.Embedding(sparse.independent(3), 0.2, W)
    h, x = toy.both(prng.key(0), 64)
    np.testing.assert_allclose(h, np.asarray(x) @ W, atol=1e-6)
    assert toy.mean_l0() is None


# ---- bad input

TWO = np.array([-1, 0])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: st.copula(0), r"^a world needs at least one feature, but n is 0\.$"),
        (lambda: st.copula(2, gate="hard"), r"^unknown gate 'hard': choose one of proportional, threshold\.$"),
        (lambda: st.copula(3, np.zeros((2, 1))), r"^the factor must have shape \(3, r\), but its shape is \(2, 1\)\.$"),
        (lambda: st.copula(2, np.array([[0.1], [1.5]])), r"^rows of the factor .*, but that of row 1 is 1\.5\.$"),
        (
            lambda: st.copula(3, magnitude=st.rectified_normal(MEAN, STD)),
            r"^3 features need a magnitude for each, but it has 2\.$",
        ),
        (
            lambda: st.copula(3, magnitude=st.constant(MEAN)),  # JAX would take the last value for feature 2
            r"^3 features need a magnitude for each, but it has 2\.$",
        ),
        (lambda: st.copula(3, magnitude=st.uniform(MEAN)), r"^3 features need a magnitude for each, but it has 2\.$"),
        (lambda: st.copula(3, magnitude=st.folded_normal(MEAN, 1.0)), r"^3 features need a magnitude for each, but"),
        (
            lambda: st.constant(np.zeros(0)),
            r"^parameters must be scalars or have one entry for each feature, but their",
        ),
        (lambda: st.folded_normal(np.nan, 1.0), r"^\|mean\| \+ std must be positive and finite, but it is nan\.$"),
        (lambda: st.folded_normal(0.0, 0.0), r"^\|mean\| \+ std must be positive and finite, but it is 0.0\.$"),
        (lambda: st.copula(2, magnitude=st.Magnitude(lambda u, i: u, live=2.0)), r"^live must lie in \[0, 1\], but"),
        (lambda: st.copula(2, magnitude=st.Magnitude(lambda u, i: u, live=np.ones(3))), r"^live must be a scalar or"),
        (lambda: st.constant(0.0), r"^value must be positive and finite, but it is 0.0\.$"),
        (lambda: st.folded_normal(1.0, -1.0), r"^std must be non-negative and finite, but it is -1.0\.$"),
        (lambda: st.conditioned(st.copula(2), 0), r"^silent samples need at least one draw, but limit is 0\.$"),
        (lambda: st.random_factor(2, 0, 0.1, 0), r"^a factor needs rank >= 1 and scale >= 0, but rank is 0 and"),
        (
            lambda: st.random_factor(2, 1, np.inf, 0),
            r"^a factor needs rank >= 1 and scale >= 0, but rank is 1 and scale",
        ),
        (lambda: st.random_correlation(0, 0), r"^a correlation matrix needs at least one feature, but n is 0\.$"),
        (
            lambda: st.marginals(0.1, np.zeros(0, int)),
            r"^parent must be one index from -1 \(a root\) to -1 for each fea",
        ),
        (lambda: st.marginals(1.5, TWO), r"^density must lie in \[0, 1\], but it goes from 1\.5 to 1\.5\.$"),
        (lambda: st.marginals(np.nan, TWO), r"^density must lie in \[0, 1\], but it goes from nan to nan\.$"),
        (lambda: st.marginals(0.1, TWO, live=2.0), r"^live must lie in \[0, 1\], but it goes from 2 to 2\.$"),
        (
            lambda: st.marginals(0.1, TWO, gate="hard"),
            r"^unknown gate 'hard': choose one of proportional, threshold\.$",
        ),
        (
            lambda: st.marginals(0.8, TWO, factor=np.full((2, 1), 0.5), gate="proportional"),
            r"^gate 'proportional' is exact for densities up to 1/2, but the largest is 0\.8\.$",
        ),
        (
            lambda: st.matryoshka_tree(parents=-1),
            r"^a tree needs parents, children and free >= 0 and a feature, but th",
        ),
        (lambda: st.matryoshka_tree(children=-1), r"^a tree needs parents, children and free >= 0 and a feature, but"),
        (lambda: st.matryoshka_tree(parents=0, free=0), r"^a tree needs parents, children and free >= 0 and a feature"),
        (
            lambda: st.sharkey(8, -3),
            r"^it needs n >= 1, active > 0 and decay in \(0, 1\], but they are 8, -3, 0\.99\.$",
        ),
        (
            lambda: st.sharkey(8, 1, np.nan),
            r"^it needs n >= 1, active > 0 and decay in \(0, 1\], but they are 8, 1, nan",
        ),
        (lambda: st.sharkey(0, 1), r"^it needs n >= 1, active > 0 and decay in \(0, 1\], but they are 0, 1, 0\.99\.$"),
        (lambda: st.directions(prng.key(0), 3, 3, lr=np.nan), r"^lr must be non-negative and finite, but it is nan\.$"),
        (
            lambda: st.overlaps(jnp.ones((1, 3))),
            r"^directions overlap with one another: at least 2 are needed, but the",
        ),
        (
            lambda: st.Embedding(st.copula(2), 1.5, np.ones((2, 4))),
            r"^density must lie in \[0, 1\], but it goes from 1",
        ),
        (
            lambda: st.Embedding(st.copula(2), np.nan, np.ones((2, 4))),
            r"^density must lie in \[0, 1\], but it goes from",
        ),
        (lambda: st.tree(st.copula(3), TWO), r"^parent must have shape \(3,\), but its shape is \(2,\)\.$"),
        (lambda: st.tree(st.copula(2), np.array([1, 0])), r"^parent has a loop: "),
        (lambda: st.tree(st.copula(2), np.array([-1, 2])), r"^parent must be one index from -1 \(a root\) to 1 for"),
        (lambda: st.tree(st.copula(2), TWO, np.array([True])), r"^exclusive must be one bool or 2, but its shape is"),
        (lambda: st.tree(st.copula(2), TWO, unit=0.0), r"^unit must be positive and finite, but it is 0.0\.$"),
        (lambda: st.breadth_first(4, 0, 2, 1), r"^a forest needs n, roots, branching >= 1 and depth >= 0, but they"),
        (lambda: st.exact(np.array([0.1, 0.2]), TWO, False), r"^feature 1 is wanted more often \(0\.2\) than its par"),
        (
            lambda: st.exact(np.array([0.1, 0.06, 0.05]), np.array([-1, 0, 0]), True),
            r"^the exclusive features \[1, 2\] are wanted together in 1\.1 of their parent's samples, more than 0\.999",
        ),
        (
            lambda: st.exact(np.array([0.1, 0.0]), TWO, False),
            r"^wanted densities must lie in \(0, 1\], but they go fro",
        ),
        (lambda: st.marginals(0.1, TWO, factor=np.zeros((2, 1)), points=3), r"^Sobol points come in powers of 2, but"),
        (lambda: st.zipf(10, 0.5, 0.1, 0.2), r"^Zipf densities need n >= 2, exponent > 0 and 0 < lowest <= highest"),
        (lambda: st.parent_child(1), r"^a parent and a child are two features, but n is 1\.$"),
        (lambda: st.hedging(1.5), r"^probabilities must lie in \(0, 1\], but they are \[1\.5, 0\.2\]\.$"),
        (lambda: st.matryoshka_tree(child=0.5), r"^the exclusive features \[1, 2, 3\] are wanted together in 1\.5 of"),
        (lambda: st.sharkey(8, 5.0, 0.5), r"^densities must be at most 1/2, but the largest is 2\.51: lower act"),
        (
            lambda: st.synthetic(8, compensation="all"),
            r"^unknown compensation 'all': choose one of exact, none, saelens",
        ),
        (lambda: st.synthetic(8, magnitude="normal"), r"^magnitude must be 'rectified_normal' or 'folded_normal', but"),
        (lambda: st.orthonormal(prng.key(0), 3, 2), r"^3 orthonormal directions do not fit in 2 dimensions: choose"),
        (
            lambda: st.directions(prng.key(0), 3, 0),
            r"^directions need n, d >= 1 and steps >= 0, but they are 3, 0, 100",
        ),
        (lambda: st.Embedding(st.copula(3), 0.1, np.ones((2, 4))), r"^directions need one row for each of 3 features"),
        (
            lambda: st.Embedding(st.copula(3), 0.1, np.ones((3, 4)), np.ones(3)),
            r"^the bias must have shape \(4,\), but its shape is \(3,\)\.$",
        ),
    ],
)
def test_bad_input_is_named_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def bare(function):
    """As a user calls it, whom no type checker watches."""
    return inspect.unwrap(function)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: bare(st._length)(MEAN, np.ones(3)), r"^parameters must be scalars or have one entry for each feature"),
        (
            lambda: bare(st._probabilities)("p", np.ones(3), 2),
            r"^p must be a scalar or have shape \(2,\), but its shape",
        ),
        (
            lambda: bare(st.tree)(st.copula(2), TWO, unit=np.ones(3)),
            r"^unit must be a scalar or have shape \(2,\), but",
        ),
        (
            lambda: bare(st._shares)(np.full(3, 0.1), TWO, False),
            r"^wanted needs one density for each of 2 features, but",
        ),
        (
            lambda: bare(st._forest)(np.array([-1.0, 0.0]), False),
            r"^parent must be one index from -1 \(a root\) to 1 for",
        ),
        (lambda: bare(st._forest)(np.array(-1), False), r"^parent must be one index from -1 \(a root\) to 0 for each"),
        (
            lambda: bare(st._forest)(TWO, "no"),
            r"^exclusive must be one bool or 2, but its shape is \(\), its type <U2\.$",
        ),
        (
            lambda: bare(st.Embedding.__post_init__)(SimpleNamespace(directions=np.ones(2))),
            r"^directions must have shape \(n, d\), but their shape is \(2,\)\.$",
        ),
    ],
)
def test_shapes_and_types_that_no_checker_stopped_are_named(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_an_embedding_may_be_made_of_traced_densities():
    W = np.eye(2, 3, dtype=np.float32)
    sample = jax.jit(lambda p: st.Embedding(st.copula(2), p, W).sample(prng.key(0), 8))
    np.testing.assert_array_equal(sample(0.5), st.Embedding(st.copula(2), 0.5, W).sample(prng.key(0), 8))


def test_overlaps_of_tiny_and_huge_rows():
    W = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    sizes = np.array([1e-25, 1e25, 1, 1e-30], np.float32)[:, None]
    np.testing.assert_allclose(
        st.overlaps(jnp.asarray(sizes * W)).largest, st.overlaps(jnp.asarray(W)).largest, rtol=1e-5
    )
