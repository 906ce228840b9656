"""Scores against the truth: cases worked by hand, loops over tokens as reference, dictionaries that know nothing."""

import inspect
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.stats import beta

from superpose.sae import recovery as rec


def f32(v):
    return np.asarray(v, np.float32)


def unit(rng, n, d):
    W = rng.normal(size=(n, d))
    return W / np.linalg.norm(W, axis=1, keepdims=True)


def activity(N=400, F=7, n=5, seed=0):
    """Latents that know something of the features: latent j is feature j % n, noisy, often missing, sometimes negative;
    the last latent is dead and the last feature never active."""
    rng = np.random.default_rng(seed)
    features = rng.random((N, n)) * (rng.random((N, n)) < np.linspace(0.1, 0.6, n))
    features[:, -1] = 0
    acts = features[:, np.arange(F) % n] * (rng.random((N, F)) < 0.8) * np.where(np.arange(F) % 3, 1, -1)
    acts += 0.3 * rng.random((N, F)) * (rng.random((N, F)) < 0.15)
    acts[:, -1] = 0
    return acts.astype(np.float32), features.astype(np.float32)


def batches(arrays, cuts=(), mask=None):
    """A stream cut at ``cuts`` into batches (arrays and mask), each filled up to N tokens by masked ones with NaN."""
    N = len(arrays[0])
    for a, b in itertools.pairwise([0, *cuts, N]):
        keep = np.ones(b - a, bool) if mask is None else mask[a:b]
        fill = N - b + a
        filled = [np.pad(np.float32(v[a:b]), ((0, fill), (0, 0)), constant_values=np.nan) for v in arrays]
        yield filled, np.pad(keep, (0, fill))


def stream(batch, arrays, *rest, cuts=(), mask=None):
    total = None
    for filled, keep in batches(arrays, cuts, mask):
        total = rec.add(total, batch(*filled, *rest, None if keep.all() else keep))
    return total


CUTS = [(), (200,), (1, 2, 399), tuple(range(50, 400, 50))]
MATCH = np.array([0, 1, 2, 3, 4, 0, 1])


# ---- by direction, worked by hand


def by_direction(cosines, live=None):
    return {
        **rec.mmcs(cosines, live)._asdict(),
        "mcc": rec.mcc(cosines, live),
        "uniqueness": rec.uniqueness(cosines, live),
        "recovered": float(rec.recovered(cosines, live=live)),
        **rec.matched_mass(cosines, live)._asdict(),
    }


def test_the_truth_itself_scores_one_everywhere():
    directions = unit(np.random.default_rng(0), 6, 4)
    sizes = np.array([1e-25, 1e-3, 1, 2, 1e3, 1e25])
    turn = np.array([1, -1, 1, 1, -1, 1])  # a signed latent may point against its feature
    order = np.array([3, 0, 5, 1, 4, 2])
    for W in (directions, directions[order], (sizes * turn)[:, None] * directions):
        for name, value in by_direction(rec.cosines(f32(W), f32(directions))).items():
            assert value == pytest.approx(1, abs=1e-6), name
    pairs = rec.matching(rec.cosines(f32(directions[order]), f32(directions)))
    np.testing.assert_array_equal(pairs.features, order)
    np.testing.assert_array_equal(pairs.latents, np.arange(6))


def test_duplicates_cost_the_matching_and_not_mmcs():
    cosines = np.eye(3)[[0, 0, 1, 1]]  # four latents, three orthogonal features, the third not found
    got = by_direction(cosines)
    assert got["latent_to_true"] == 1
    assert got["true_to_latent"] == pytest.approx(2 / 3)
    assert got["mcc"] == pytest.approx(2 / 3)
    assert got["uniqueness"] == 0.5
    assert got["recovered"] == pytest.approx(2 / 3)
    assert (got["precision"], got["recall"]) == (pytest.approx(2 / 4), pytest.approx(2 / 3))
    assert got["f1"] == pytest.approx(4 / 7)
    assert got["jaccard"] == pytest.approx(2 / 5)
    assert rec.mmcs(np.eye(3)[[0, 0, 1, 2]]) == (1, 1)
    assert rec.mcc(np.eye(3)[[0, 0, 1, 2]]) == 1  # blind to surplus, which the mass sees
    assert rec.matched_mass(np.eye(3)[[0, 0, 1, 2]]).precision == 0.75


def test_the_matching_is_the_best_one_and_not_the_greedy_one():
    cosines = np.array([[0.9, 0.8], [0.8, 0.0]])
    assert rec.mcc(cosines) == pytest.approx(0.8)  # greedy: (0.9 + 0) / 2
    assert rec.mmcs(cosines).true_to_latent == pytest.approx(0.85)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, (3, 5), elements=st.floats(-1, 1)), st.booleans())
def test_the_matching_beats_every_other_assignment(cosines, flip):
    cosines = cosines.T if flip else cosines
    size = np.abs(cosines if len(cosines) == 3 else cosines.T)
    every = max(sum(size[i, p[i]] for i in range(3)) for p in itertools.permutations(range(5), 3))
    assert rec.mcc(cosines) == pytest.approx(every / 3)
    assert rec.mcc(cosines) <= max(rec.mmcs(cosines)) + 1e-12


def test_dead_latents_find_nothing_and_are_paid_for():
    cosines = np.eye(3)
    live = np.array([True, False, True])
    got = by_direction(cosines, live)
    assert got["true_to_latent"] == pytest.approx(2 / 3)
    assert got["latent_to_true"] == 1
    assert got["mcc"] == 1
    assert got["uniqueness"] == pytest.approx(2 / 3)
    assert got["recovered"] == pytest.approx(2 / 3)
    assert (got["precision"], got["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert got["jaccard"] == pytest.approx(2 / 4)
    np.testing.assert_array_equal(rec.matching(cosines, live).latents, [0, 2])
    assert set(by_direction(cosines, np.zeros(3, bool)).values()) == {0}


def test_rows_of_zeros_have_no_direction():
    cosines = rec.cosines(f32([[0, 0], [0, 3]]), f32([[1, 0], [0, 0]]))
    np.testing.assert_array_equal(cosines, np.zeros((2, 2)))
    assert rec.mcc(cosines) == 0


def test_thresholds_are_strict():
    cosines = np.array([[0.9, 0.0, 0.0], [0.0, -0.96, 0.7]])
    np.testing.assert_allclose(rec.recovered(cosines, (0.8, 0.9, 0.95)), [2 / 3, 1 / 3, 1 / 3])
    assert rec.recovered(cosines).shape == ()


def test_best_partners_are_many_to_one():
    cosines = np.array([[0.1, -0.9, 0.3], [0.2, 0.8, 0.4]])
    got = rec.best(cosines, np.array([False, True]))
    np.testing.assert_array_equal(got.latent, [1, 1, 1])
    np.testing.assert_allclose(got.feature_cosine, [0.2, 0.8, 0.4])
    np.testing.assert_allclose(got.latent_cosine, [0, 0.8])
    np.testing.assert_array_equal(rec.best(cosines).feature, [1, 1])
    np.testing.assert_array_equal(rec.best(cosines).latent, [1, 0, 1])


def test_reordered_rows_make_a_staircase():
    rng = np.random.default_rng(0)
    order = rng.permutation(9)
    cosines = (np.repeat(np.eye(3), 3, 0) * np.tile([0.9, -0.8, 0.7], 3)[:, None])[order]
    cosines[order == 4] = 0
    live = np.arange(9) != int(np.flatnonzero(order == 0)[0])
    back = rec.reorder(cosines, live)
    assert sorted(back) == list(range(9))
    np.testing.assert_array_equal(order[back][:7], [1, 2, 3, 5, 6, 7, 8])
    assert set(order[back][7:]) == {0, 4}
    stairs = np.abs(cosines[back][:7]).argmax(1)
    assert (np.diff(stairs) >= 0).all()


# ---- chance


@pytest.mark.parametrize(("F", "d"), [(64, 16), (256, 32)])
def test_a_random_dictionary_scores_at_chance(F, d):
    rng = np.random.default_rng(0)
    got = by_direction(rec.cosines(f32(unit(rng, F, d)), f32(unit(rng, 2 * F, d))))
    # cos^2 of two random directions is Beta(1/2, (d - 1) / 2); max over F of them.
    chance = [
        quad(lambda t, k=k: 1 - beta.cdf(t * t, 0.5, (d - 1) / 2) ** k, 0, 1, points=[0.4], limit=200)[0]
        for k in (F, 2 * F)
    ]
    # The spread of one maximum is about 0.06 and its 64 to 512 copies are nearly independent.
    assert got["true_to_latent"] == pytest.approx(chance[0], abs=0.02)
    assert got["latent_to_true"] == pytest.approx(chance[1], abs=0.02)
    assert chance[0] < np.sqrt(1 - F ** (-2 / d)) < 1.1 * chance[0]
    assert got["recovered"] == 0
    assert got["mcc"] < got["latent_to_true"]
    # F draws of one of 2 F features: 2 (1 - exp(-1/2)) of F are different ones.
    assert got["uniqueness"] == pytest.approx(2 * (1 - np.exp(-0.5)), abs=0.1)


def test_independent_firing_detects_at_chance():
    rng = np.random.default_rng(0)
    p, q, N = 0.2, 0.05, 40000
    acts, features = (rng.random((N, k)) < v for k, v in ((6, p), (4, q)))
    counts = stream(rec.coactivation, (f32(acts), f32(features)))
    np.testing.assert_allclose(rec.f1(counts), 2 * p * q / (p + q), atol=0.01)
    np.testing.assert_allclose(rec.precision(counts), q, atol=0.01)
    np.testing.assert_allclose(rec.recall(counts), p, atol=0.04)
    total = stream(rec.pairs, (f32(acts), f32(features)), np.zeros(6, int))
    np.testing.assert_allclose(rec.correlation(total), 0, atol=4 / np.sqrt(N))


# ---- by activity, against loops


@pytest.mark.parametrize("cuts", CUTS, ids=len)
def test_counts_equal_a_loop_over_tokens(cuts):
    acts, features = activity()
    mask = np.random.default_rng(3).random(400) < 0.8
    got = stream(rec.coactivation, (acts, features), cuts=cuts, mask=mask)
    both = np.zeros((7, 5), int)
    for a, x in zip(acts[mask], features[mask], strict=True):
        for j, i in itertools.product(np.flatnonzero(a), np.flatnonzero(x)):
            both[j, i] += 1
    np.testing.assert_array_equal(got.both, both)
    np.testing.assert_array_equal(got.latent, np.count_nonzero(acts[mask], 0))
    np.testing.assert_array_equal(got.feature, np.count_nonzero(features[mask], 0))
    assert got.tokens == mask.sum()
    assert got.both.dtype == np.int64


def test_batches_may_be_added_on_the_device_first():
    acts, features = activity()
    parts = [rec.coactivation(*filled, keep) for filled, keep in batches((acts, features), (200,))]
    there = rec.add(None, jax.tree.map(jnp.add, *parts))
    jax.tree.map(np.testing.assert_array_equal, there, stream(rec.coactivation, (acts, features), cuts=(200,)))


def detector(acts, features, match):
    """TP, FP, FN, TN of every latent, token by token."""
    table = np.zeros((4, acts.shape[1]), int)
    for a, x in zip(acts, features, strict=True):
        for j, i in enumerate(match):
            table[{(1, 1): 0, (1, 0): 1, (0, 1): 2, (0, 0): 3}[int(a[j] != 0), int(x[i] != 0)], j] += 1
    return table


@pytest.mark.parametrize("cuts", CUTS, ids=len)
def test_both_streams_give_the_table_of_a_loop(cuts):
    acts, features = activity()
    mask = np.arange(400) % 7 != 0
    expected = detector(acts[mask], features[mask], MATCH)
    light = stream(rec.pairs, (acts, features), MATCH, cuts=cuts, mask=mask).table
    full = rec.confusion(stream(rec.coactivation, (acts, features), cuts=cuts, mask=mask), MATCH)
    for table in (light, full):
        np.testing.assert_array_equal(np.stack(table), expected)
    tp, fp, fn, tn = expected
    got = rec.detection(light)
    for j in range(7):
        said = [v[j] for v in got]
        wanted = [
            tp[j] / (tp[j] + fp[j]) if tp[j] + fp[j] else 0,
            tp[j] / (tp[j] + fn[j]) if tp[j] + fn[j] else 0,
            tp[j] / (tp[j] + (fp[j] + fn[j]) / 2) if tp[j] + fp[j] + fn[j] else 0,
            (tp[j] + tn[j]) / mask.sum(),
        ]
        np.testing.assert_allclose(said, wanted, rtol=1e-12)


def test_f1_of_all_pairs_holds_that_of_the_matched_ones():
    acts, features = activity()
    counts = stream(rec.coactivation, (acts, features))
    matrix = rec.f1(counts)
    np.testing.assert_allclose(matrix[np.arange(7), MATCH], rec.detection(rec.confusion(counts, MATCH)).f1)
    p, r = rec.precision(counts), rec.recall(counts)
    np.testing.assert_allclose(matrix * (p + r), 2 * p * r, atol=1e-12)
    assert (matrix[:, -1] == 0).all()  # a feature that never is active
    assert (matrix[-1] == 0).all()  # a latent that never fires
    np.testing.assert_array_equal(matrix.argmax(0)[:4] % 5, np.arange(4))


def test_dead_latents_pull_the_mean_over_all_down():
    perfect = np.array([10, 10]), np.zeros(2, int), np.zeros(2, int), np.array([90, 90])
    dead = np.array([0]), np.array([0]), np.array([10]), np.array([90])
    values = rec.detection(rec.Confusion(*(np.append(a, b) for a, b in zip(perfect, dead, strict=True))))
    assert rec.macro(values).f1 == pytest.approx(2 / 3)
    assert rec.macro(values).accuracy == pytest.approx((1 + 1 + 0.9) / 3)
    assert rec.macro(values, np.array([True, True, False])) == (1, 1, 1, 1)
    assert rec.macro(values, np.zeros(3, bool)) == (0, 0, 0, 0)


@pytest.mark.parametrize("cuts", CUTS, ids=len)
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_correlation_is_pearsons(cuts, offset):
    acts, features = activity()
    acts[:, 1] += offset  # dense and far from 0: sums about 0 in float32 would lose it
    acts[:, 3] = offset + 0.1  # constant
    mask = np.arange(400) % 7 != 0
    got = rec.correlation(stream(rec.pairs, (acts, features), MATCH, cuts=cuts, mask=mask))
    for j, i in enumerate(MATCH[:6]):
        if j == 3 or i == 4:
            assert got[j] == 0  # it or its feature is constant
        else:
            expected = np.corrcoef(np.float64(acts[mask, j]), np.float64(features[mask, i]))[0, 1]
            assert got[j] == pytest.approx(expected, abs=2e-6)
    assert got[6] == 0  # dead
    assert got[0] < -0.5 < 0.5 < got[2]


# ---- best threshold


def try_all(acts, on):
    """Best F1 and its largest threshold, by trying every value."""
    best = (0.0, np.inf)
    for t in sorted(set(np.abs(acts[acts != 0])), reverse=True):
        fires = np.abs(acts) >= t
        f1 = 2 * np.sum(fires & on) / (np.sum(fires) + np.sum(on))
        best = max(best, (f1, t), key=lambda b: b[0])
    return best


@pytest.mark.parametrize("cuts", CUTS, ids=len)
@pytest.mark.parametrize("digits", [1, 7])
def test_best_threshold_is_the_best_of_all(cuts, digits):
    acts, features = activity()
    acts = np.round(acts, digits)  # one digit: many equal values, which no threshold parts
    mask = np.arange(400) % 7 != 0
    got = rec.best_threshold(
        rec.firings(*filled, MATCH, keep) for filled, keep in batches((acts, features), cuts, mask)
    )
    for j, i in enumerate(MATCH):
        f1, threshold = try_all(acts[mask, j], features[mask, i] != 0)
        assert got.f1[j] == pytest.approx(f1, abs=1e-12)
        assert got.threshold[j] == pytest.approx(threshold)
    plain = rec.detection(stream(rec.pairs, (acts, features), MATCH, mask=mask).table).f1
    assert (got.f1 >= plain - 1e-12).all()
    assert (got.f1 > plain + 0.01).any()
    assert got.f1[6] == 0
    assert np.isinf(got.threshold[6])


def test_of_equally_good_thresholds_the_largest_is_given():
    acts, on = f32([[4.0], [3.0], [2.0], [1.0]]), f32([[1.0], [0.0], [0.0], [1.0]])
    got = rec.best_threshold([rec.firings(acts, on, np.array([0]))])  # 2 / (1 + 2) at 4 and 4 / (4 + 2) at 1
    assert got.f1[0] == pytest.approx(2 / 3)
    assert got.threshold[0] == 4


# ---- absorption


def tree(N, absorbed, seed=0):
    """Parent 0 with children 1 and 2; latent 3 is the parent's, silent at a share ``absorbed`` of the first child."""
    rng = np.random.default_rng(seed)
    features = np.zeros((N, 3), np.float32)
    features[:, 0] = rng.random(N) < 0.5
    features[:, 1] = features[:, 0] * (rng.random(N) < 0.4)
    features[:, 2] = features[:, 0] * (rng.random(N) < 0.3)
    acts = np.zeros((N, 4), np.float32)
    acts[:, 3] = -features[:, 0] * np.where(features[:, 1] > 0, rng.random(N) >= absorbed, 1)
    return acts, features


@pytest.mark.parametrize("absorbed", [0.0, 0.5, 1.0])
def test_absorption_is_what_was_put_in(absorbed):
    acts, features = tree(4000, absorbed)
    edge = np.array([0, 0]), np.array([1, 2]), np.array([3, 3])
    gaps = [rec.absorption_gap(stream(rec.edges, (acts, features), *edge, cuts=c)) for c in ((), (1, 2500))]
    np.testing.assert_array_equal(*gaps)
    # 800 tokens with parent and child: a standard error of 0.018 at a half, and none at 0 and 1
    assert gaps[0][0] == pytest.approx(absorbed, abs=0.06 if absorbed == 0.5 else 0)
    assert gaps[0][1] == pytest.approx(0, abs=0.08)  # the other child comes as often with the first one as without


def test_absorption_counts_equal_a_loop():
    acts, features = activity()
    parent, child, latent = np.array([0, 2, 3]), np.array([1, 3, 4]), np.array([5, 2, 3])
    mask = np.arange(400) % 3 != 0
    got = stream(rec.edges, (acts, features), parent, child, latent, cuts=(100,), mask=mask)
    gap = rec.absorption_gap(got)
    for e in range(3):
        rows = [(x[child[e]] != 0, a[latent[e]] != 0) for a, x in zip(acts[mask], features[mask], strict=True)
                if x[parent[e]] != 0]  # fmt: skip
        alone, both = [on for kid, on in rows if not kid], [on for kid, on in rows if kid]
        assert (got.alone[e], got.alone_on[e], got.both[e], got.both_on[e]) == (
            len(alone), sum(alone), len(both), sum(both),
        )  # fmt: skip
        if both:
            assert gap[e] == pytest.approx(np.mean(alone) - np.mean(both))
        else:
            assert np.isnan(gap[e])
    assert np.isnan(gap[2])  # the child of edge 2 never is active


# ---- bad input


def test_nan_counts_as_no_firing():
    acts, features = activity()
    acts[3, 2], features[5:7, 1] = np.nan, np.inf
    for batch, rest in ((rec.coactivation, ()), (rec.pairs, (MATCH,))):
        with pytest.raises(ValueError, match=r"1 NaN or infinite values of acts, 2 NaN or infinite values of features"):
            stream(batch, (acts, features), *rest)
        keep = np.ones(400, bool)
        keep[[3, 5, 6]] = False
        assert stream(batch, (acts, features), *rest, mask=keep).tokens == 397
    with pytest.raises(ValueError, match="1 NaN or infinite values of acts"):
        rec.firings(acts, features, MATCH)


def test_squares_beyond_float32_are_no_missing_correlation():
    a, b = f32([[1e20], [0], [2e20]]), f32([[1], [0], [1]])
    with pytest.raises(ValueError, match="squares of acts or features exceed the range of float32"):
        stream(rec.pairs, (a, b), np.array([0]))
    assert rec.correlation(stream(rec.pairs, (a / 1e10, b), np.array([0])))[0] == pytest.approx(
        np.sqrt(3) / 2, abs=1e-6
    )


def test_two_hosts_make_the_total_of_one():
    acts, features = activity()
    i = np.array([0])
    for batch, rest in ((rec.coactivation, ()), (rec.pairs, (MATCH,)), (rec.edges, (i, i + 1, i))):
        one, other = (stream(batch, (acts[part], features[part]), *rest) for part in (slice(0, 150), slice(150, 400)))
        whole = stream(batch, (acts, features), *rest, cuts=(150,))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), rec.add(one, other), whole)


def test_a_match_must_name_a_feature():
    acts, features = activity()
    wrong = MATCH.copy()
    wrong[2], wrong[3] = 5, -1
    with pytest.raises(ValueError, match="2 matches of no feature"):
        stream(rec.pairs, (acts, features), jnp.asarray(wrong))
    with pytest.raises(ValueError, match="one of 5 features for each of 7 latents"):
        rec.confusion(stream(rec.coactivation, (acts, features)), wrong)
    i = np.array([0, 0, 0])
    with pytest.raises(ValueError, match="3 matches of no feature"):
        stream(rec.edges, (acts, features), i, i, i + 7)


def test_nan_weights_are_counted():
    W = np.eye(3)
    W[1, 1] = np.nan
    cosines = rec.cosines(f32(W), f32(np.eye(3)))
    for score in (rec.mmcs, rec.mcc, rec.uniqueness, rec.recovered, rec.matched_mass, rec.reorder, rec.best):
        with pytest.raises(ValueError, match="1 of 3 latents have NaN or infinite cosines"):
            score(cosines)


def test_shapes_that_do_not_fit_are_said():
    acts, features = activity()
    # The checks of a user's run, without those of the tests' type checker.
    cosines, coactivation, pairs = map(inspect.unwrap, (rec.cosines, rec.coactivation, rec.pairs))
    with pytest.raises(ValueError, match=r"W_dec must be \[F, d\] and directions \[n, d\]"):
        cosines(jnp.ones((3, 2)), jnp.ones((3, 4)))
    # Numbers in place of True and False would be indices: latents 1, 0 and 1.
    for live in (np.ones(2, bool), np.array([1, 0, 1])):
        with pytest.raises(ValueError, match=r"live must have one entry for each of 3 latents, True or False, got"):
            inspect.unwrap(rec._living)(live, 3)
    with pytest.raises(ValueError, match=r"cosines must be \[F, n\] with at least one latent"):
        inspect.unwrap(rec._sizes)(np.ones(3), None)
    with pytest.raises(ValueError, match="a feature for each of 7 latents"):
        pairs(acts, features, np.zeros(5, int))
    total = stream(rec.coactivation, (acts, features))
    with pytest.raises(ValueError, match="keep one total for each SAE"):
        rec.add(total, rec.coactivation(acts[:, :3], features))
    with pytest.raises(ValueError, match="a total of Counts can't take PairTotals"):
        rec.add(total, rec.pairs(acts, features, MATCH))
    with pytest.raises(ValueError, match=r"counts of \(2,\) members"):
        rec.add(None, jax.vmap(rec.coactivation)(acts[None].repeat(2, 0), features[None].repeat(2, 0)))
    with pytest.raises(ValueError, match="at least one batch"):
        rec.best_threshold([])
    streams = [rec.firings(acts[:, :k], features, MATCH[:k]) for k in (7, 3)]
    with pytest.raises(ValueError, match="firings are of different numbers of latents"):
        rec.best_threshold(streams)
    for index in (MATCH.astype(float), MATCH > 0):
        with pytest.raises(ValueError, match="named by whole numbers"):
            inspect.unwrap(rec._strays)(jnp.asarray(index), 5)
        with pytest.raises(ValueError, match="one of 5 features for each of 7 latents"):
            inspect.unwrap(rec.confusion)(total, index)
    for size in (0, 2**24):
        shapes = [jax.ShapeDtypeStruct((size, 1), jnp.float32)] * 2
        with pytest.raises(ValueError, match="between 1 and 16777215 tokens"):
            jax.eval_shape(coactivation, *shapes)
