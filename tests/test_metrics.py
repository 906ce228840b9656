"""Scores without truth: float64 loops as reference, and each formula that is known to be wrong shown to be another."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from superpose.sae import metrics


def stream(x, x_hat, acts, cuts=(), mask=None):
    """The total of a stream cut into batches at ``cuts``, each filled up to N tokens by masked ones that hold NaN."""
    total, N = None, len(x)
    for a, b in itertools.pairwise([0, *cuts, N]):
        batch = (np.asarray(v[a:b], np.float32) for v in (x, x_hat, acts))
        keep = np.ones(b - a, bool) if mask is None else mask[a:b]
        if b - a < N:
            batch = (np.pad(v, ((0, N - b + a), (0, 0)), constant_values=np.nan) for v in batch)
            keep = np.pad(keep, (0, N - b + a))
        total = metrics.add(total, metrics.sums(*batch, None if keep.all() else keep))
    return total


def score(x, x_hat, acts=None, **options):
    return metrics.scores(stream(x, x_hat, np.zeros((len(x), 1)) if acts is None else acts, **options))


def data(N=600, d=8, F=12, mean=2.0, noise=0.4, seed=0):
    rng = np.random.default_rng(seed)
    x = mean * rng.normal(size=d) + rng.normal(size=(N, d)) * np.linspace(0.2, 2, d)
    x_hat = 0.8 * x + noise * rng.normal(size=(N, d)) + 0.1
    acts = rng.normal(size=(N, F)) * (rng.random((N, F)) < np.linspace(0, 0.6, F))
    return tuple(v.astype(np.float32).astype(np.float64) for v in (x, x_hat, acts))


def reference(x, x_hat, acts):
    """The scores token by token in float64."""
    mu = sum(x) / len(x)
    err = [sum((a - b) ** 2) for a, b in zip(x, x_hat, strict=True)]
    c, c_hat = x - mu, x_hat - mu
    norm, norm_hat = np.sqrt([a @ a for a in x]), np.sqrt([a @ a for a in x_hat])
    dot = np.array([a @ b for a, b in zip(x, x_hat, strict=True)])
    l0 = np.array([sum(1 for f in row if f != 0) for row in acts])
    fvu = sum(err) / sum(a @ a for a in c)
    return {
        "l0": np.mean(l0),
        "l0_percentiles": np.percentile(l0, metrics.PERCENTILES, method="inverted_cdf"),
        "l1": np.mean([sum(abs(f) for f in row) for row in acts]),
        "mse": np.mean(err),
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "cosine": np.mean(dot / norm / norm_hat),
        "cosine_centred": np.sum(c * c_hat) / np.sqrt(np.sum(c * c) * np.sum(c_hat * c_hat)),
        "l2_ratio": np.mean(norm_hat / norm),
        "relative_bias": np.mean(norm_hat**2) / np.mean(dot),
        "density": [np.mean(column != 0) for column in acts.T],
    }


# ---- against the reference, and against the cut of the stream


def test_scores_equal_a_float64_loop():
    x, x_hat, acts = data()
    got = score(x, x_hat, acts)
    for name, value in reference(x, x_hat, acts).items():
        np.testing.assert_allclose(getattr(got, name), value, rtol=1e-6, err_msg=name)
    assert got.tokens == 600
    assert got.dead == metrics.Dead(latents=1, tokens=600)


@pytest.mark.parametrize("cuts", [(300,), (1, 2, 3, 599), tuple(range(37, 600, 37)), (599,)])
def test_scores_do_not_depend_on_where_the_stream_is_cut(cuts):
    x, x_hat, acts = data()
    x[300:] += 5  # the mean of a batch is not that of the stream
    whole, cut = score(x, x_hat, acts), score(x, x_hat, acts, cuts=cuts)
    for name, a, b in zip(whole._fields, whole, cut, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-6, err_msg=name)
    assert (cut.density == whole.density).all()


def test_two_hosts_make_the_total_of_one():
    x, x_hat, acts = data()
    halves = [stream(*(v[part] for v in (x, x_hat, acts))) for part in (slice(0, 300), slice(300, 600))]
    for a, b in zip(metrics.merge(*halves), stream(x, x_hat, acts, cuts=(300,)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-4)


def test_masked_tokens_do_not_exist():
    x, x_hat, acts = data()
    mask = np.random.default_rng(1).random(600) < 0.7
    mask[:100] = False  # a batch with no token at all
    kept = score(*(v[mask] for v in (x, x_hat, acts)))
    assert kept.tokens == mask.sum()
    for v in (x, x_hat, acts):
        v[~mask] = np.nan
    for name, a, b in zip(kept._fields, kept, score(x, x_hat, acts, mask=mask, cuts=(100, 350)), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-6, err_msg=name)


def test_sums_can_be_mapped():
    x, x_hat, acts = (np.float32(v) for v in data())
    both = jax.vmap(metrics.sums)(np.stack([x, 2 * x]), np.stack([x_hat, x_hat]), np.stack([acts, acts]))
    second = metrics.scores(metrics.add(None, jax.tree.map(lambda v: v[1], both)))
    np.testing.assert_allclose(second.fvu, reference(2 * np.float64(x), np.float64(x_hat), acts)["fvu"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"sums of \(2,\) members"):
        metrics.add(None, both)


@pytest.mark.parametrize("r", [1.0, 100.0, 3000.0])
def test_a_long_mean_costs_no_digits(r):
    rng = np.random.default_rng(0)
    x = (r + rng.normal(size=(4096, 16))).astype(np.float32)
    x_hat = (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32)
    exact = np.sum((np.float64(x) - x_hat) ** 2) / np.sum((np.float64(x) - np.mean(np.float64(x), 0)) ** 2)
    got = score(x, x_hat, cuts=(1000, 1001)).fvu
    assert abs(got / exact - 1) < 2e-6
    if r == 3000:  # negative control: the same sums about 0 in float32
        naive = np.sum(x * x, dtype=np.float32) / len(x) - np.sum(np.square(np.mean(x, 0)))
        assert abs(np.sum(np.var(np.float64(x), 0)) / naive - 1) > 1e-3


def test_narrow_inputs_are_widened_before_anything_is_added():
    x, x_hat, acts = (jnp.asarray(v, jnp.bfloat16) for v in data(N=4096))
    wide = [np.asarray(v, np.float64) for v in (x, x_hat, acts)]
    got = metrics.scores(metrics.add(None, metrics.sums(x, x_hat, acts)))
    for name, value in reference(*wide).items():
        np.testing.assert_allclose(getattr(got, name), value, rtol=2e-6, err_msg=name)


# ---- what explained variance must do, and the versions that do not


def second_moment_version(x, x_hat):
    """Averages x^2 where it should average x, over all dimensions (evaluation code of two public libraries)."""
    total = np.mean(np.sum(x**2, -1)) - np.mean(x**2) ** 2
    return 1 - np.mean(np.sum((x - x_hat) ** 2, -1)) / total


def per_token_version(x, x_hat):
    """Mean over tokens of a ratio per token."""
    return np.mean(1 - np.sum((x - x_hat) ** 2, -1) / np.sum((x - x.mean(0)) ** 2, -1))


def variance_of_error_version(x, x_hat):
    """Takes the mean of the error away."""
    return 1 - np.var(x - x_hat, axis=0).sum() / np.var(x, axis=0).sum()


def test_the_example_with_a_mean_of_three():
    rng = np.random.default_rng(0)
    x = 3 + rng.normal(size=(20000, 64))
    x_hat = x + 0.3 * rng.normal(size=x.shape)
    for c, wrong in ((1, 0.9893), (10, 1.0006)):
        # 64 * 20000 squares: a relative error of 0.1 % in the share of 0.09
        assert score(c * x, c * x_hat, cuts=(3000, 11000)).explained_variance == pytest.approx(0.910, abs=4e-4)
        assert second_moment_version(c * x, c * x_hat) == pytest.approx(wrong, abs=1e-4)


def test_predicting_the_mean_explains_nothing_and_x_itself_everything():
    x, _, _ = data(mean=5)
    mean = np.broadcast_to(x.mean(0), x.shape)
    assert score(x, mean, cuts=(50, 51)).explained_variance == pytest.approx(0, abs=1e-6)
    perfect = score(x, x)
    assert (perfect.explained_variance, perfect.fvu, perfect.mse) == (1, 0, 0)
    assert perfect.cosine == pytest.approx(1, abs=1e-6)
    assert perfect.cosine_centred == pytest.approx(1, abs=1e-6)
    assert perfect.l2_ratio == pytest.approx(1, abs=1e-6)
    assert perfect.relative_bias == pytest.approx(1, abs=1e-6)
    assert second_moment_version(x, mean) > 0.5


@pytest.mark.parametrize("c", [1e-6, 1e-3, 7.0, -1.0, 1e6])
def test_the_unit_of_x_is_of_no_account(c):
    x, x_hat, _ = data()
    one, other = score(x, x_hat), score(c * x, c * x_hat)
    for name in ("fvu", "cosine", "cosine_centred", "l2_ratio", "relative_bias"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=3e-6, err_msg=name)
    np.testing.assert_allclose(other.mse, c**2 * one.mse, rtol=3e-6)
    # A scaled input against an unscaled output is another number: nothing here can undo that.
    assert abs(score(c * x, x_hat).fvu - one.fvu) > 0.1


def test_a_constant_offset_costs_its_square():
    x, _, _ = data()
    b = np.linspace(-1, 1, 8)
    assert score(x, x + b).fvu == pytest.approx(b @ b / np.sum(np.var(x, 0)), rel=1e-5)
    assert variance_of_error_version(x, x + b) == pytest.approx(1, abs=1e-9)


def test_tokens_near_the_mean_do_not_rule_the_score():
    x, x_hat, _ = data()
    x[0] = x[1:].mean(0) + 1e-6
    assert per_token_version(x, x_hat) < -1000
    assert score(x, x_hat).explained_variance == pytest.approx(reference(x, x_hat, x)["explained_variance"], rel=1e-5)


def test_the_mean_is_that_of_all_tokens_not_of_a_batch():
    x, _, _ = data(mean=0)
    x[300:] += 4
    x_hat = np.where(np.arange(600)[:, None] < 300, x[:300].mean(0), x[300:].mean(0))
    by_batch = np.mean([per_token_version(x[part], x_hat[part]) for part in (slice(0, 300), slice(300, 600))])
    assert by_batch == pytest.approx(0, abs=1e-9)
    between = 8 * 4  # (4 / 2)^2 in each of 8 dimensions
    within = np.sum(np.var(x[:300], 0) + np.var(x[300:], 0)) / 2
    got = score(x, x_hat, cuts=(300,)).explained_variance
    assert got == pytest.approx(between / (between + within), rel=0.05)
    assert got == pytest.approx(score(x, x_hat).explained_variance, rel=1e-6)


def test_without_spread_there_is_no_share_of_it():
    x = np.full((7, 3), 1.1)
    for value, cuts in itertools.product((0.1, 1.1, 1e4 / 3), ((), (3,), (1, 2, 5))):
        constant = np.full((7, 3), value)
        assert score(constant, constant + 1, cuts=cuts).fvu == np.inf, (value, cuts)
    assert np.isnan(score(x, x).fvu)
    assert np.isnan(score(x, x).cosine_centred)


def test_mse_is_a_sum_over_dimensions_and_no_function_of_the_batch():
    x = np.zeros((64, 4))
    for cuts in ((), tuple(range(1, 64))):  # divided by the batch as well, it would be 1 / 64 and 1
        assert score(x, x + 0.5, cuts=cuts).mse == pytest.approx(1.0, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (2, 9, 3), elements=st.floats(-8, 8, width=16)))
def test_bounds_for_any_reconstruction(both):
    x, x_hat = both
    got = score(x, x_hat)
    if np.isfinite(got.fvu):
        assert got.fvu >= 0
        assert got.explained_variance <= got.cosine_centred**2 + 1e-5 or np.isnan(got.cosine_centred)
    for cosine in (got.cosine, got.cosine_centred):
        assert np.isnan(cosine) or abs(cosine) <= 1 + 1e-5
    assert got.mse >= 0


# ---- shrinkage


def test_shrinkage_by_one_factor_is_that_factor():
    x, _, _ = data()
    got = score(x, 0.6 * x)
    assert got.l2_ratio == pytest.approx(0.6, rel=1e-6)
    assert got.relative_bias == pytest.approx(0.6, rel=1e-6)
    assert got.cosine == pytest.approx(1, abs=1e-6)


def test_relative_bias_is_the_best_divisor():
    x, x_hat, _ = data()
    gamma = score(x, x_hat, cuts=(10, 300)).relative_bias

    def loss(g):
        return np.sum((x_hat / g - x) ** 2)

    assert loss(gamma) < min(loss(gamma * 1.001), loss(gamma * 0.999))


def test_bias_pools_sums_and_not_ratios():
    x = np.array([[1.0], [100.0]])
    x_hat = np.array([[2.0], [100.0]])
    assert score(x, x_hat, cuts=(1,)).relative_bias == pytest.approx(10004 / 10002, rel=1e-6)
    by_batch = [score(x[:1], x_hat[:1]).relative_bias, score(x[1:], x_hat[1:]).relative_bias]
    assert np.mean(by_batch) == pytest.approx(1.5, rel=1e-6)


def test_tokens_at_zero_have_no_direction():
    x = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    x_hat = np.array([[1.0, 1.0], [6.0, 8.0], [0.0, 0.0]])
    got = score(x, x_hat)
    assert got.cosine == pytest.approx(0.5)  # 1 and, for a reconstruction of nothing, 0
    assert got.l2_ratio == pytest.approx(1.0)  # 2 and 0
    assert np.isnan(score(x[:1], x_hat[:1]).cosine)


# ---- sparsity


def test_signed_codes_count_and_have_a_size():
    acts = np.array([[-1.0, 0.0, 2.0], [0.0, 0.0, -3.0]])
    x = np.eye(2)
    got = score(x, x, acts)
    assert got.l0 == 1.5
    assert got.l1 == 3.0
    np.testing.assert_array_equal(got.density, [0.5, 0, 1])
    assert got.dead == metrics.Dead(latents=1, tokens=2)
    assert np.mean(np.sum(acts > 0, 1)) == 0.5  # what f > 0 sees
    assert np.mean(np.sum(acts, 1)) == -1.0  # and a sum without abs


def test_l1_weighted_by_norms_does_not_change_when_norms_are_folded():
    x, _, acts = data()
    norms = np.linspace(0.5, 3, 12)
    weighted = metrics.scores(stream(x, x, acts), norms).l1
    assert weighted == pytest.approx(score(x, x, acts * norms).l1, rel=1e-6)
    assert abs(weighted / score(x, x, acts).l1 - 1) > 0.1


def test_the_histogram_of_l0_holds_every_token():
    x, _, acts = data()
    total = stream(x, x, acts, cuts=(17, 400))
    np.testing.assert_array_equal(total.l0, np.bincount((acts != 0).sum(1), minlength=13))
    q = [0, 1, 33.3, 50, 99, 100]
    expected = np.percentile((acts != 0).sum(1), q, method="inverted_cdf")
    np.testing.assert_array_equal(metrics.percentiles(total.l0, q), expected)
    np.testing.assert_array_equal(metrics.percentiles(np.array([1, 1, 1]), (33, 34, 50, 67)), [0, 1, 1, 2])


def test_dead_latents_come_with_their_window():
    acts = np.zeros((1000, 3))
    acts[:, 0] = 1
    acts[700, 1] = 1e-20
    x = np.eye(1000, 2)
    assert score(x[:500], x[:500], acts[:500]).dead == metrics.Dead(latents=2, tokens=500)
    assert score(x, x, acts).dead == metrics.Dead(latents=1, tokens=1000)
    total = stream(x, x, acts)
    assert metrics.ultra_low(total, below=0.002) == metrics.Dead(latents=1, tokens=1000)
    with pytest.raises(ValueError, match=r"1000 tokens can't show a density below 1e-06: score more than 1000000"):
        metrics.ultra_low(total)


# ---- bad input


@pytest.mark.parametrize(("where", "name"), [(0, "x"), (1, "x_hat"), (2, "acts")])
def test_what_is_not_a_number_is_counted_named_and_refused(where, name):
    x, x_hat, acts = data()
    total = stream(x, x_hat, acts)
    before = jax.tree.map(np.copy, total)
    bad = [v.copy() for v in (x, x_hat, acts)]
    bad[where][3, 0], bad[where][5, 1] = np.nan, -np.inf
    batch = metrics.sums(*(jnp.asarray(v, jnp.float32) for v in bad))
    with pytest.raises(ValueError, match=rf"NaN or infinite values in a batch of 600 tokens \(2 of {name}\): mask"):
        metrics.add(total, batch)
    jax.tree.map(np.testing.assert_array_equal, total, before)


def test_squares_beyond_float32_are_refused():
    x = np.full((2, 2), 1e30)
    with pytest.raises(ValueError, match="exceed the range of float32: scale both down"):
        stream(x, -x, x)


def test_squares_that_vanish_in_float32_are_refused():
    x, x_hat, acts = data(mean=0)
    with pytest.raises(ValueError, match=r"vanish in float32 at 600 of 600 tokens: scale x and x_hat up"):
        stream(1e-25 * x, 1e-25 * x_hat, acts)
    zeros = np.where(np.arange(600)[:, None] % 2, 1e-12 * x, 0)  # small ones, and zeros themselves, are fine
    exact = 0.25 * np.sum(zeros**2) / np.sum((zeros - zeros.mean(0)) ** 2)
    assert score(zeros, 0.5 * zeros).fvu == pytest.approx(exact, rel=2e-6)


def test_bad_shapes_and_empty_streams_are_said():
    x = jnp.ones((4, 3))
    plain = inspect.unwrap(metrics.sums)  # the checks of a user's run, without those of the tests' type checker
    for args in ((x, x[:, :1], x), (x, x[0], x), (x, x, x[:3]), (x[:0], x[:0], x[:0])):
        with pytest.raises(ValueError, match=r"must both be \[B, d\] and acts \[B, F\] with B >= 1"):
            plain(*args)
    # Numbers as a mask would be summed: 2 for one token, or 0.5 for each of two.
    for mask in (jnp.ones(3, bool), jnp.array([2, 0, 1, 1]), jnp.array([0.5, 0.5, 0, 0])):
        with pytest.raises(ValueError, match=r"mask must be \[B\] = \(4,\) of True and False, got"):
            inspect.unwrap(metrics.kept)(mask, 4)
    with pytest.raises(ValueError, match="keep one total for each SAE"):
        metrics.add(stream(x, x, x), metrics.sums(x, x, x[:, :2]))
    with pytest.raises(ValueError, match="no token was counted"):
        metrics.scores(stream(x, x, x, mask=np.zeros(4, bool)))
    with pytest.raises(ValueError, match="one entry for each of 3 latents"):
        metrics.scores(stream(x, x, x), np.ones(2))
    for norm in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="norms must be finite and not below 0"):
            metrics.scores(stream(x, x, x), np.array([1, norm, 1]))
    for q in (150, -5, np.nan):
        with pytest.raises(ValueError, match=r"percentiles need q in \[0, 100\]"):
            metrics.percentiles(np.array([1, 1]), (50, q))
    for empty in (np.zeros(3, int), np.zeros(0, int)):
        with pytest.raises(ValueError, match=r"at least one token, got .* of 0 tokens"):
            metrics.percentiles(empty)
    for below in (0, -1, np.nan, 2):
        with pytest.raises(ValueError, match=rf"below must be a share of the tokens in \(0, 1\], got {below}"):
            metrics.ultra_low(stream(x, x, x), below)
    with pytest.raises(ValueError, match=r"W_enc must be \[d, F\] for W_dec \[F, d\], got \(3,\) and \(3,\)"):
        inspect.unwrap(metrics.encoder_decoder_cosine)(jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"at least 2 rows by blocks of at least 1, got \(3,\)"):
        inspect.unwrap(metrics.max_cosine)(jnp.ones(3))


# ---- weights


def test_encoder_and_decoder_of_one_direction():
    rng = np.random.default_rng(0)
    W_dec = rng.normal(size=(6, 4))
    W_dec[5] = 0
    scale = np.array([1, 2, -3, 1e-20, 1e15, 1])
    got = metrics.encoder_decoder_cosine(jnp.asarray((scale[:, None] * W_dec).T), jnp.asarray(W_dec))
    np.testing.assert_allclose(got, [1, 1, -1, 1, 1, 0], atol=1e-6)
    W_dec[1, 2] = np.nan  # never taken for a row of zeros
    assert np.isnan(metrics.encoder_decoder_cosine(jnp.asarray(W_dec.T), jnp.asarray(W_dec))[1])


@pytest.mark.parametrize("block", [1, 3, 7, 10, 1024])
def test_max_cosine_equals_the_whole_matrix(block):
    W = np.random.default_rng(0).normal(size=(10, 4))
    W[4] = 3 * W[2]
    W[7] = 0
    unit = W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), 1e-300)
    whole = unit @ unit.T
    np.fill_diagonal(whole, -np.inf)
    got = metrics.max_cosine(jnp.asarray(W, jnp.float32), block)
    np.testing.assert_allclose(got, whole.max(1), atol=1e-6)
    assert got[2] == pytest.approx(1)
    assert got[7] == 0
    np.testing.assert_allclose(metrics.max_cosine(jnp.array([[1.0, 0.5], [-2.0, -1.0]]), block), -1, atol=1e-6)


def test_max_cosine_never_holds_all_pairs():
    lowered = metrics._max_cosine.lower(jax.ShapeDtypeStruct((8192, 8), jnp.float32), 128)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 8192 * 8192 * 4 / 4  # a GPU's products take 32 MB
    assert "8192x8192" not in lowered.as_text()
    with pytest.raises(ValueError, match="at least 2 rows"):
        metrics.max_cosine(jnp.ones((1, 3)))
