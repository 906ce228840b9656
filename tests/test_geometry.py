"""Geometry of feature directions: the exact polytopes of TMS, bounds that any matrix obeys, and controls that fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from superpose.toy import geometry as geo

DIGON = np.array([[1.0], [-1.0]])
TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)


def polygon(k: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(k) / k
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def antiprism(height2: float) -> np.ndarray:
    """Two squares on the unit sphere, one turned by 45 degrees, at z = +-sqrt(height2)."""
    angle = np.pi / 4 * np.arange(8)
    z = np.sqrt(height2) * np.where(np.arange(8) % 2, -1.0, 1.0)
    ring = np.sqrt(1 - height2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)


def direct_sum(*blocks: np.ndarray) -> np.ndarray:
    out = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)))
    row = column = 0
    for block in blocks:
        out[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return out


def rotation(m: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(m, m)))[0]


def f32(W: np.ndarray) -> jax.Array:
    return jnp.asarray(W, jnp.float32)


# Whole numbers: the rank of such a matrix is not a matter of tolerance.
integers = arrays(np.int64, (6, 4), elements=st.integers(-3, 3))
reals = arrays(np.float32, (6, 3), elements=st.floats(-4, 4, width=32))
quick = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("W", "D"),
    [
        (np.eye(3), 1.0),
        (TETRAHEDRON, 3 / 4),
        (polygon(3), 2 / 3),
        (DIGON, 1 / 2),
        (polygon(4), 1 / 2),
        (direct_sum(DIGON, DIGON, DIGON), 1 / 2),
        (polygon(5), 2 / 5),
        (antiprism(1 / 3), 3 / 8),
        (np.tile(polygon(7), (2, 1)), 1 / 7),
    ],
    ids=["basis", "tetrahedron", "triangle", "digon", "square", "octahedron", "pentagon", "antiprism", "doubled"],
)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_tight_frames_share_their_dimensions_equally(W, D, scale):
    got = geo.dimensionality(f32(scale * W @ rotation(W.shape[1], 0)))
    np.testing.assert_allclose(got, D, rtol=1e-5)


def test_only_the_tight_square_antiprism_reaches_three_eighths():
    equal_edges = antiprism(0.26120)  # all edges equal: not a tight frame
    W = f32(equal_edges)
    distance = np.linalg.norm(equal_edges[0] - equal_edges, axis=1)
    assert np.isclose(distance[1], distance[2], atol=1e-3)
    np.testing.assert_allclose(geo.dimensionality(W), 0.3665, atol=5e-4)
    assert geo.dimensionality(W).sum() < 3 - 0.05


def test_a_bipyramid_splits_into_its_factors():
    W = f32(direct_sum(polygon(3), DIGON) @ rotation(3, 1))
    np.testing.assert_allclose(geo.dimensionality(W), [2 / 3] * 3 + [1 / 2] * 2, rtol=1e-5)
    assert geo.gram_graph(W) == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("seed", [0, 1])
def test_orthogonal_sums_of_tight_frames_use_every_dimension(seed):
    blocks = [
        TETRAHEDRON,
        0.5 * polygon(5),
        1.3 * DIGON,
        polygon(3),
        antiprism(1 / 3),
        np.ones((1, 1)),
        np.zeros((2, 0)),
    ]
    W = direct_sum(*blocks)
    m = W.shape[1]
    order = np.random.default_rng(seed).permutation(len(W))
    W = f32((W @ rotation(m, seed))[order])
    np.testing.assert_allclose(geo.dimensionality(W).sum(), m, rtol=1e-5)
    assert sorted(len(part) for part in geo.gram_graph(W)) == [1, 1, 1, 2, 3, 4, 5, 8]


@pytest.mark.parametrize(("n", "m", "total"), [(400, 30, 27.98), (100, 10, 9.19)])
def test_untrained_weights_do_not_fill_the_space(n, m, total):
    """The control: sum_i D_i = m within 1 % is a finding about trained models, not a property of the measure."""
    sums = [geo.dimensionality(jax.random.normal(jax.random.key(seed), (n, m))).sum() for seed in range(4)]
    assert all(s < 0.99 * m for s in sums)
    np.testing.assert_allclose(np.mean(sums), total, rtol=0.02)


@quick
@given(reals)
def test_dimensionality_is_a_share(W):
    D = np.asarray(geo.dimensionality(jnp.asarray(W)))
    assert np.all(np.isfinite(D))
    assert D.min() >= 0
    assert D.max() <= 1 + 1e-5
    assert D.sum() <= W.shape[1] + 1e-4


@quick
@given(integers)
def test_dimensionalities_sum_to_at_most_the_rank(W):
    assert geo.dimensionality(f32(W)).sum() <= np.linalg.matrix_rank(W) + 1e-4


@quick
@given(integers)
def test_dimensionality_equals_capacity(W):
    """Scherlis et al.: C_i = (W_i . W_i)^2 / sum_j (W_i . W_j)^2, in exact integers."""
    G = W @ W.T
    capacity = np.diag(G) ** 2 / np.maximum((G**2).sum(1), 1)
    np.testing.assert_allclose(geo.dimensionality(f32(W)), capacity, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(geo.dimensionality(f32(0.01 * W)), capacity, rtol=1e-5, atol=1e-7)


@quick
@given(integers, st.integers(0, 10))
def test_rotating_the_hidden_space_changes_nothing(W, seed):
    turned = f32(W @ rotation(4, seed))
    for measure in (geo.norms, geo.gram, geo.superposition, geo.interference, geo.dimensionality):
        np.testing.assert_allclose(measure(turned), measure(f32(W)), rtol=1e-4, atol=5e-3)


@quick
@given(integers)
def test_superposition_is_zero_only_for_lonely_features(W):
    G = W @ W.T
    off = G - np.diag(np.diag(G))
    expected = (off**2).sum(1) / np.maximum(np.diag(G), 1)
    got = np.asarray(geo.superposition(f32(W)))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(geo.interference(f32(W)) ** 2, got, rtol=1e-5)
    assert np.array_equal(got == 0, ~off.any(1))


@quick
@given(integers)
def test_components_are_a_partition_without_edges_between(W):
    parts = geo.gram_graph(W.astype(float))
    assert sorted(i for part in parts for i in part) == list(range(len(W)))
    label = np.empty(len(W), int)
    for c, part in enumerate(parts):
        label[part] = c
    assert not (W @ W.T)[label[:, None] != label[None, :]].any()


@pytest.mark.ci
def test_zero_rows_are_safe_and_so_are_their_gradients():
    W = f32([[0.0, 0.0], [2.0, 0.0]])
    assert geo.norms(W).tolist() == [0, 2]
    assert geo.superposition(W).tolist() == [0, 0]
    assert geo.dimensionality(W).tolist() == [0, 1]
    for measure in (geo.norms, geo.superposition, geo.interference, geo.dimensionality):
        assert np.all(np.isfinite(jax.grad(lambda W, f=measure: f(W).sum())(W)))


def test_dimensions_per_feature():
    np.testing.assert_allclose(geo.dimensions_per_feature(f32(TETRAHEDRON)), 3 / 4, rtol=1e-6)
    assert np.isinf(geo.dimensions_per_feature(jnp.zeros((3, 2))))


def test_outcomes_of_trained_looking_weights():
    cases = {(1.0, 0.02): 0, (0.76, -0.76): 1, (0.97, -0.97): 1, (0.7, 0.7): 1, (0.05, 1.0): 2, (-0.3, 0.95): 2}
    W = jnp.array(list(cases))[:, :, None]
    got = jax.vmap(lambda W: geo.outcome(W, 1))(W)
    assert got.tolist() == list(cases.values())


def test_outcome_thresholds_and_traced_feature():
    W = f32(direct_sum(np.ones((1, 1)), DIGON, 0.2 * np.ones((1, 1))))
    assert jax.jit(jax.vmap(geo.outcome, (None, 0)))(W, jnp.arange(4)).tolist() == [2, 1, 1, 0]
    assert int(geo.outcome(W, 3, norm_threshold=0.1)) == geo.DEDICATED
    assert int(geo.outcome(W, 1, superposition_threshold=1.5)) == geo.DEDICATED


@pytest.mark.ci
def test_measures_vmap_over_a_population():
    W = jax.random.normal(jax.random.key(0), (3, 6, 2))
    for measure in (
        geo.norms,
        geo.gram,
        geo.superposition,
        geo.interference,
        geo.represented,
        geo.dimensionality,
        geo.dimensions_per_feature,
    ):
        one_by_one = jnp.stack([measure(w) for w in W])
        np.testing.assert_allclose(jax.vmap(measure)(W), one_by_one, rtol=1e-5)


def test_antipodal_pairs():
    assert geo.antipodal_pairs(direct_sum(DIGON, np.ones((1, 1)), DIGON)) == [(0, 1), (3, 4)]
    assert geo.antipodal_pairs(0.99 * polygon(3)) == []
    assert geo.antipodal_pairs(polygon(5)) == [(0, 2), (0, 3), (1, 3), (1, 4), (2, 4)]  # cos 144 degrees = -0.81
    assert geo.antipodal_pairs(0.5 * DIGON) == []


def test_represented_counts_strictly_above_the_threshold():
    assert geo.represented(f32([[0.5], [0.51], [-0.9]])).tolist() == [False, True, True]


# --- names of shapes


@pytest.mark.parametrize("name", geo.SHAPES)
def test_each_shape_is_a_tight_frame_and_known_by_its_name(name):
    ideal = geo.SHAPES[name]
    N, d = ideal.shape
    np.testing.assert_allclose(np.linalg.norm(ideal, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(ideal.T @ ideal, N / d * np.eye(d), atol=1e-12)
    np.testing.assert_allclose(geo.dimensionality(f32(ideal)), d / N, rtol=1e-5)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        W = np.concatenate([ideal, np.zeros((N, 2))], 1) @ rotation(d + 2, seed)
        W = (1.1 * W + 0.01 * rng.normal(size=W.shape))[rng.permutation(N)]
        assert geo.shape_name(W) == name


@pytest.mark.parametrize(
    ("factors", "name"),
    [
        (("digon", "digon"), "square"),
        (("digon",) * 3, "octahedron"),
        (("triangle", "digon"), "triangular bipyramid"),
        (("digon", "pentagon"), "pentagonal bipyramid"),
        (("triangle", "single", "pentagon"), "pentagon + single + triangle"),
    ],
)
def test_products_are_named_by_their_orthogonal_factors(factors, name):
    W = direct_sum(*(geo.SHAPES[f] for f in factors))
    assert geo.shape_name(W @ rotation(W.shape[1], 4)) == name


def test_what_is_no_shape_gets_its_size_alone():
    rng = np.random.default_rng(0)
    for N, d in ((5, 3), (6, 2), (8, 3), (4, 2)):
        assert geo.shape_name(rng.normal(size=(N, d))) == f"{N} in {d}"
    squashed = polygon(5) * [1.0, 0.5]
    assert geo.shape_name(squashed) == "5 in 2"
    assert geo.shape_name(polygon(5) * [1.0, 0.95]) == "pentagon"
    with pytest.raises(ValueError, match="a row of zeros"):
        geo.shape_name(np.eye(2) * [1, 0])
