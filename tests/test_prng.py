"""Statistical and structural tests of the hash generator; every p-value limit is 1e-6, and the draws are fixed."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from superpose.worlds import prng

LIMIT = 1e-6
MASK = 2**32 - 1
GOLDEN = {
    "key(0)": [1126890044, 2757923708],
    "split": [[3833732895, 1095277392], [455479329, 289482821]],
    "fold_in": [849174915, 1507503152],
    "bits": [855604978, 113169125, 2822541834],
}


def words(key, shape) -> np.ndarray:
    return np.asarray(jax.random.bits(key, shape))


def data(keys) -> np.ndarray:
    return np.asarray(jax.random.key_data(keys))


def pair_p(a: np.ndarray, b: np.ndarray, bits: int = 4) -> float:
    """p-value of chi2 on the joint table of two streams: the worse of their top bits and their bottom bits."""
    tops = a.ravel() >> (32 - bits), b.ravel() >> (32 - bits)
    bottoms = a.ravel() & (2**bits - 1), b.ravel() & (2**bits - 1)
    counts = [np.bincount((u << bits) | v, minlength=4**bits) for u, v in (tops, bottoms)]
    return min(stats.chisquare(c).pvalue for c in counts) * 2


def shared_p(streams: np.ndarray) -> float:
    """Two-sided p-value of the number of repeated words in all streams together, Poisson for random words."""
    flat = streams.ravel()
    repeats = flat.size - np.unique(flat).size
    mean = flat.size * (flat.size - 1) / 2 / 2**32
    return 2 * min(stats.poisson.cdf(repeats, mean), stats.poisson.sf(repeats - 1, mean))


def shifted_streams(count: int, length: int) -> np.ndarray:
    """A BAD split: child j moves k0 by j steps of the counter, so its stream is its parent's, j words later."""
    k0, k1 = data(prng.key(0))
    shift = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9)
    keys = np.stack([k0 + shift, np.full(count, k1)], axis=1)
    return words_of(jax.random.wrap_key_data(keys, impl=prng.IMPL), length)


def words_of(keys, length: int) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(lambda k: jax.random.bits(k, (length,))))(keys))


FAMILIES = {
    "split": lambda: jax.random.split(prng.key(0), 64),
    "seeds": lambda: jax.vmap(lambda s: jax.random.key(s, impl=prng.IMPL))(jnp.arange(64)),
    "fold_in": lambda: jax.vmap(jax.random.fold_in, (None, 0))(prng.key(0), jnp.arange(64)),
    "chain": lambda: jax.lax.scan(lambda k, _: tuple(jax.random.split(k)), prng.key(1), length=64)[1],
}


@pytest.fixture(scope="module", params=FAMILIES)
def streams(request) -> np.ndarray:
    """Words [64 keys, 2^14 counters] of keys that are close relatives."""
    return words_of(FAMILIES[request.param](), 2**14)


# ---- distribution


@pytest.mark.parametrize("shift", [0, 12, 24])
def test_bytes_are_uniform(streams, shift):
    counts = np.bincount(((streams >> shift) & 255).ravel(), minlength=256)
    assert stats.chisquare(counts).pvalue > LIMIT


def test_every_bit_is_balanced(streams):
    ones = np.array([((streams >> b) & 1).sum() for b in range(32)])
    z = (ones - streams.size / 2) / np.sqrt(streams.size / 4)
    assert np.abs(z).max() < 6


def test_bits_of_a_word_are_uncorrelated(streams):
    bits = ((streams.ravel()[: 2**17, None] >> np.arange(32, dtype=np.uint32)) & 1).astype(np.float32)
    z = np.corrcoef(bits.T) * np.sqrt(len(bits))
    assert np.abs(z[np.triu_indices(32, 1)]).max() < 6


def test_neighbouring_counters_are_independent(streams):
    for lag in (1, 2, 256):
        assert pair_p(streams[:, :-lag], streams[:, lag:]) > LIMIT


def test_neighbouring_keys_are_independent(streams):
    assert pair_p(streams[:-1], streams[1:]) > LIMIT
    assert pair_p(streams[:-1, 1:], streams[1:, :-1]) > LIMIT


def test_all_pairs_of_keys_are_uncorrelated(streams):
    u = streams.astype(np.float64) / 2**32 - 0.5
    z = np.corrcoef(u) * np.sqrt(u.shape[1])
    off = z[np.triu_indices(len(u), 1)]
    assert np.abs(off).max() < 6
    assert stats.kstest(off, "norm").pvalue > LIMIT


def test_lagged_correlation_of_keys(streams):
    """Circular cross-correlation of the first key with the next ones, at all lags at once."""
    u = np.fft.fft(streams[:9].astype(np.float64) / 2**32 - 0.5, axis=1)
    u[:, 0] = 0
    z = np.fft.ifft(u[1:] * u[0].conj(), axis=1).real * 12 / np.sqrt(streams.shape[1])
    assert np.abs(z).max() < 6.5


def test_repeats_are_as_many_as_of_random_words(streams):
    assert shared_p(streams) > LIMIT


def test_moments():
    u = np.asarray(jax.random.uniform(prng.key(3), (2**20,)), np.float64)
    for k in range(1, 5):
        se = np.sqrt((1 / (2 * k + 1) - 1 / (k + 1) ** 2) / u.size)
        assert abs((u**k).mean() - 1 / (k + 1)) < 5 * se
    g = np.asarray(jax.random.normal(prng.key(4), (2**18,)))
    assert stats.kstest(g, "norm").pvalue > LIMIT


def test_sums_across_keys_vary_as_they_should():
    """Means of 4096 short streams: catches members whose data moves together, which one stream cannot show."""
    u = words_of(jax.random.split(prng.key(5), 4096), 256).astype(np.float64) / 2**32
    z = (u.mean(1) - 0.5) * np.sqrt(12 * 256)
    assert stats.kstest(z, "norm").pvalue > LIMIT


def test_low_bits_of_small_words():
    """The sparse worlds take the sign from bit 0 where the upper bits say active (a word below p 2^32)."""
    w = words(prng.key(6), (2**22,))
    for p in (0.1, 0.01, 0.001):
        small = w[w < p * 2**32]
        for b in range(4):
            ones = ((small >> b) & 1).sum()
            assert abs(ones - small.size / 2) < 5 * np.sqrt(small.size / 4)


@pytest.mark.parametrize("which", ["k0", "k1", "counter"])
def test_avalanche(which):
    """Flipping any input bit flips each output bit half the time."""
    rng = np.random.default_rng(0)
    k, i = rng.integers(0, 2**32, (4096, 2), np.uint32), rng.integers(0, 2**32, 4096, np.uint32)
    core = jax.jit(jax.vmap(prng._words))
    plain = np.asarray(core(k, i))
    for b in range(32):
        flip = np.uint32(1 << b)
        other = core(
            k ^ np.array([flip * (which == "k0"), flip * (which == "k1")], np.uint32), i ^ flip * (which == "counter")
        )
        changed = (((plain ^ np.asarray(other))[:, None] >> np.arange(32, dtype=np.uint32)) & 1).mean(0)
        assert abs(changed.mean() - 0.5) < 0.01
        assert np.abs(changed - 0.5).max() < 0.06


@pytest.mark.parametrize("derive", [lambda k: jax.random.split(k, 3)[2], lambda k: jax.random.fold_in(k, 7)])
def test_derived_keys_mix_both_words(derive):
    rng = np.random.default_rng(1)
    k = rng.integers(0, 2**32, (2048, 2), np.uint32)
    child = jax.jit(lambda d: jax.random.key_data(jax.vmap(derive)(jax.random.wrap_key_data(d, impl=prng.IMPL))))
    plain = np.asarray(child(k))
    for b in range(64):
        flip = np.array([(1 << b) & MASK, (1 << b) >> 32], np.uint32)
        changed = ((plain ^ np.asarray(child(k ^ flip)))[:, :, None] >> np.arange(32, dtype=np.uint32)) & 1
        assert np.abs(changed.mean(0) - 0.5).max() < 0.08


# ---- the tests themselves can fail


def test_bad_split_is_caught():
    bad = shifted_streams(64, 2**14)
    assert shared_p(bad) < LIMIT
    assert pair_p(bad[:-1, 1:], bad[1:, :-1]) < LIMIT
    u = np.fft.fft(bad[:2].astype(np.float64) / 2**32 - 0.5, axis=1)
    u[:, 0] = 0
    assert np.abs(np.fft.ifft(u[1] * u[0].conj()).real * 12 / np.sqrt(bad.shape[1])).max() > 6.5


def test_bad_words_are_caught():
    weyl = np.arange(2**18, dtype=np.uint32) * np.uint32(0x9E3779B9)
    assert pair_p(weyl[:-1], weyl[1:]) < LIMIT
    assert shared_p(np.arange(2**20, dtype=np.uint32)) < LIMIT


# ---- keys


@pytest.mark.parametrize("derive", ["split", "fold_in"])
def test_children_are_distinct(derive):
    k = prng.key(0)
    many = jnp.arange(2**17)
    keys = jax.random.split(k, many.size) if derive == "split" else jax.vmap(jax.random.fold_in, (None, 0))(k, many)
    packed = data(keys).astype(np.uint64) @ np.array([2**32, 1], np.uint64)
    assert np.unique(packed).size == many.size
    for column in data(keys).T:
        assert shared_p(column) > LIMIT
        assert stats.chisquare(np.bincount(column >> 24, minlength=256)).pvalue > LIMIT


def test_split_is_prefix_stable_and_takes_any_shape():
    k = prng.key(9)
    full = data(jax.random.split(k, 100))
    for n in (1, 2, 99):
        np.testing.assert_array_equal(data(jax.random.split(k, n)), full[:n])
    np.testing.assert_array_equal(data(jax.random.split(k, (4, 5, 5))).reshape(100, 2), full)
    assert jax.random.split(k, (3, 0)).shape == (3, 0)


def test_split_fold_in_seed_and_bits_have_domains_of_their_own():
    k = prng.key(0)
    made = [data(jax.random.split(k, 64)), data(jax.vmap(jax.random.fold_in, (None, 0))(k, jnp.arange(64)))]
    made += [data(FAMILIES["seeds"]()), words(k, (64, 2)), data(k)[None]]
    rows = np.unique(np.concatenate(made[:3]), axis=0)
    assert len(rows) == 3 * 64
    every = np.concatenate([m.ravel() for m in made])
    assert np.unique(every).size >= every.size - 2 - 1  # key(0) itself is among the seeds


def test_seed_uses_64_bits():
    seeds = [0, 1, 2**31, 2**32, 2**32 + 1, 2**63, -1, -(2**31)]
    rows = np.stack([data(prng.key(s)) for s in seeds])
    assert len(np.unique(rows, axis=0)) == len(seeds)
    np.testing.assert_array_equal(data(prng.key(-1)), data(prng.key(2**64 - 1)))
    for s in (0, 5, -1, 2**31 - 1):
        np.testing.assert_array_equal(data(prng.key(s)), data(jax.random.key(s, impl=prng.IMPL)))
    with jax.enable_x64(True):
        for s in (2**40 + 3, -(2**40), -1):
            np.testing.assert_array_equal(data(prng.key(s)), data(jax.random.key(s, impl=prng.IMPL)))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seed_out_of_range(seed):
    with pytest.raises(ValueError, match="must fit in 64 bits"):
        prng.key(seed)


def test_seed_of_a_float():
    with pytest.raises(TypeError, match="must be an integer"):
        jax.random.key(1.5, impl=prng.IMPL)


def test_key_data_round_trip():
    keys = jax.random.split(prng.key(2), 3)
    back = jax.random.wrap_key_data(jax.random.key_data(keys), impl=prng.IMPL)
    assert back.dtype == keys.dtype
    np.testing.assert_array_equal(words_of(back, 5), words_of(keys, 5))


def test_reload_keeps_the_implementation():
    before = prng.IMPL, prng.key(0)
    again = importlib.reload(prng)
    assert again.IMPL is before[0]
    assert again.key(0).dtype == before[1].dtype
    jnp.stack([again.key(0), before[1]])


# ---- shapes and transformations


def reference(key: tuple[int, int], i: int) -> int:
    """The core in Python integers, apart from JAX."""

    def lowbias32(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D & MASK
        x ^= x >> 15
        x = x * 0x846CA68B & MASK
        return x ^ (x >> 16)

    y = lowbias32((i * 0x9E3779B9 + key[0]) & MASK)
    return (lowbias32(y ^ key[1]) + y) & MASK


def test_bits_are_the_documented_function():
    k = prng.key(11)
    pair = tuple(int(v) for v in data(k))
    expected = [reference(pair, i) for i in range(24)]
    assert words(k, (2, 3, 4)).ravel().tolist() == expected
    assert np.asarray(jax.random.bits(k, (24,), jnp.uint16)).tolist() == [e >> 16 for e in expected]
    assert np.asarray(jax.random.bits(k, (24,), jnp.uint8)).tolist() == [e >> 24 for e in expected]
    assert int(words(k, ())) == expected[0]


def test_golden_bits():
    k = prng.key(0)
    assert data(k).tolist() == GOLDEN["key(0)"]
    assert data(jax.random.split(k)).tolist() == GOLDEN["split"]
    assert data(jax.random.fold_in(k, 1)).tolist() == GOLDEN["fold_in"]
    assert words(k, (3,)).tolist() == GOLDEN["bits"]


@pytest.mark.ci
def test_64_bit_words():
    with jax.enable_x64(True):
        k = prng.key(0)
        wide = np.asarray(jax.random.bits(k, (2**14,), jnp.uint64))
    assert wide.dtype == np.uint64
    high, low = (wide >> np.uint64(32)).astype(np.uint32), wide.astype(np.uint32)
    np.testing.assert_array_equal(high, words(k, (2**14,)))
    assert pair_p(high, low) > LIMIT
    assert pair_p(high[1:], low[:-1]) > LIMIT
    assert stats.chisquare(np.bincount(low >> 24, minlength=256)).pvalue > LIMIT


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (2**16, 0, 2**16)])
def test_empty_shapes(shape):
    assert jax.random.uniform(prng.key(0), shape).shape == shape


@pytest.mark.parametrize("draw", [jax.random.bits, jax.random.split])
def test_too_many_draws(draw):
    with pytest.raises(ValueError, match="the counter has only 32 bits"):
        draw(prng.key(0), (2**16, 2**16))


@pytest.mark.ci
def test_vmap_jit_and_loops_give_the_same_bits():
    keys = jax.random.split(prng.key(7), (2, 3))

    def draw(k):
        return jax.random.bits(jax.random.fold_in(jax.random.split(k)[1], 3), (5, 2))

    loop = np.stack([[np.asarray(draw(k)) for k in row] for row in keys])
    mapped = jax.vmap(jax.vmap(draw))
    np.testing.assert_array_equal(mapped(keys), loop)
    np.testing.assert_array_equal(jax.jit(mapped)(keys), loop)
    flat = keys.reshape(6)
    np.testing.assert_array_equal(jax.lax.map(draw, flat).reshape(loop.shape), loop)
    start = jnp.zeros((6, 5, 2), jnp.uint32)
    looped = jax.lax.fori_loop(0, 6, lambda i, out: out.at[i].set(draw(flat[i])), start)
    np.testing.assert_array_equal(looped.reshape(loop.shape), loop)


SHARDED = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from superpose.worlds import prng
assert jax.device_count() == 2
mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
keys = jax.random.split(prng.key(0), 4)
draw = jax.vmap(lambda k: jax.random.bits(jax.random.split(k)[0], (8,)))
expected = np.asarray(draw(keys))
mapped = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=P("d"), out_specs=P("d")))
np.testing.assert_array_equal(mapped(keys), expected)
spread = jax.jit(draw, out_shardings=NamedSharding(mesh, P(None, "d")))(keys)
np.testing.assert_array_equal(spread, expected)
"""


@pytest.mark.ci
def test_two_devices_give_the_same_bits():
    """In a process of its own: the number of CPU devices is fixed at the first use of JAX."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", SHARDED]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
