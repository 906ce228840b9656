"""How features share a hidden space: norms, overlaps, dimensionality, graphs.

Everything here reads one matrix `W` of shape `[n, m]`. Row i is the direction of feature i in the m hidden dimensions.
(Elhage et al. 2022, "Toy Models of Superposition", TMS below, write it as column W_i of an m x n matrix.)
The jnp functions take one model; use `jax.vmap` for a population. `antipodal_pairs` and `gram_graph` run on the host.
All quantities are dimensionless. A row whose squared norm underflows to 0 counts as a zero row.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int
from scipy.sparse.csgraph import connected_components

DROPPED, SUPERPOSED, DEDICATED = 0, 1, 2


def _safe_sqrt(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Square root whose gradient at 0 is 0, not infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _overlaps(W: Float[Array, "n m"]) -> Float[Array, "n n"]:
    """Entry (i, j) is What_i . W_j, with What_i = W_i / ||W_i||, and 0 where W_i = 0."""
    length = norms(W)[:, None]
    unit = jnp.where(length > 0, W / jnp.where(length > 0, length, 1.0), 0.0)
    return jnp.matmul(unit, W.T, precision=jax.lax.Precision.HIGHEST)


def norms(W: Float[Array, "n m"]) -> Float[Array, " n"]:
    """Length of each feature direction, ||W_i||.

    About 1 for a represented feature and 0 for a dropped one (TMS, section "Demonstrating Superposition").

    Args:
      W: directions, row i = feature i.

    Returns:
      ||W_i|| for each i.

    >>> print(norms(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
    [5. 0.]
    """
    return _safe_sqrt(jnp.sum(W * W, axis=-1))


def gram(W: Float[Array, "n m"]) -> Float[Array, "n n"]:
    """Overlap of every two features, W_i . W_j: the map from x to x' before bias and nonlinearity.

    This is W^T W of TMS, section "Demonstrating Superposition". Computed at full float precision on every device.

    Args:
      W: directions, row i = feature i.

    Returns:
      The symmetric matrix of dot products.

    >>> print(gram(jnp.array([[1.0], [-1.0]])))
    [[ 1. -1.]
     [-1.  1.]]
    """
    return jnp.matmul(W, W.T, precision=jax.lax.Precision.HIGHEST)


def superposition(W: Float[Array, "n m"]) -> Float[Array, " n"]:
    """How much the other features project onto each direction, sum_{j != i} (What_i . W_j)^2.

    What_i = W_i / ||W_i||. 0: feature i is alone in its dimension. 1 or more: the others can activate the direction as
    strongly as the feature does (TMS, section "Demonstrating Superposition"). 0 for a zero row.

    Args:
      W: directions, row i = feature i.

    Returns:
      One value >= 0 per feature.

    An antipodal pair, and a feature alone:

    >>> print(superposition(jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])))
    [1. 1. 0.]
    """
    n = W.shape[0]
    return jnp.sum(jnp.where(jnp.eye(n, dtype=bool), 0.0, _overlaps(W)) ** 2, axis=-1)


def interference(W: Float[Array, "n m"]) -> Float[Array, " n"]:
    """Root of `superposition`: sqrt(sum_{j != i} (What_i . W_j)^2), in the units of a norm.

    The public demo notebook of TMS colours its norm bars by this value, clipped to [0, 1].

    Args:
      W: directions, row i = feature i.

    Returns:
      One value >= 0 per feature, 0 for a zero row.

    >>> print(interference(jnp.array([[2.0], [-0.5]])))
    [0.5 2. ]
    """
    return _safe_sqrt(superposition(W))


def represented(W: Float[Array, "n m"], threshold: float = 0.5) -> Bool[Array, " n"]:
    """Whether the model keeps each feature, ||W_i|| > threshold.

    Norms are near 0 or near 1 in a trained sparse model (TMS, section "Demonstrating Superposition"), so 0.5 splits
    them. In a dense uniform model the solution is rotated and norms are about sqrt(m / n): there this count means
    little.

    Args:
      W: directions, row i = feature i.
      threshold: smallest norm that counts.

    Returns:
      True where the feature is represented.

    >>> print(represented(jnp.array([[1.0, 0.0], [0.0, 0.1]])))
    [ True False]
    """
    return norms(W) > threshold


def dimensionality(W: Float[Array, "n m"]) -> Float[Array, " n"]:
    """Share of a dimension that each feature gets, D_i = ||W_i||^2 / sum_j (What_i . W_j)^2, with j = i included.

    TMS, section "The Geometry of Superposition". The same number as the capacity C_i of Scherlis et al.
    (arXiv 2210.01892). 0 <= D_i <= 1 and sum_i D_i <= rank(W) <= m, with equality for an orthogonal sum of tight
    frames. N unit vectors that form a tight frame in d dimensions have D_i = d / N. 0 for a zero row.

    Args:
      W: directions, row i = feature i.

    Returns:
      D_i for each feature.

    An antipodal pair shares one dimension:

    >>> print(dimensionality(jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])))
    [0.5 0.5 1. ]
    """
    square = jnp.sum(W * W, axis=-1)
    total = jnp.sum(_overlaps(W) ** 2, axis=-1)
    return jnp.where(total > 0, square / jnp.where(total > 0, total, 1.0), 0.0)


def dimensions_per_feature(W: Float[Array, "n m"]) -> Float[Array, ""]:
    """Hidden dimensions per learned feature, D* = m / ||W||_F^2.

    Reads ||W||_F^2 as the number of learned features (TMS, section "The Geometry of Superposition").

    Args:
      W: directions, row i = feature i.

    Returns:
      D*, infinite when W = 0.

    Four unit vectors in two dimensions:

    >>> print(dimensions_per_feature(jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])))
    0.5
    """
    return W.shape[1] / jnp.sum(W * W)


def outcome(
    W: Float[Array, "n m"],
    feature: int | Int[Array, ""],
    norm_threshold: float = 0.5,
    superposition_threshold: float = 0.25,
) -> Int[Array, ""]:
    """What became of one feature: 0 dropped, 1 in superposition, 2 a dimension of its own.

    The three colours of TMS, section "Superposition as a Phase Change". Dropped: ||W_i|| <= norm_threshold.
    In superposition: sum_{j != i} (What_i . W_j)^2 > superposition_threshold. Dedicated: the rest. The default 0.25 is
    0.5^2: with m = 1 and n = 2 the feature shares its dimension exactly when the other one is `represented`.

    Args:
      W: directions, row i = feature i.
      feature: index i; may be traced.
      norm_threshold: smallest norm that counts as represented.
      superposition_threshold: largest value of `superposition` that counts as alone.

    Returns:
      An integer: DROPPED, SUPERPOSED or DEDICATED.

    >>> [int(outcome(jnp.array(rows), 1)) for rows in ([[1.0], [0.0]], [[1.0], [-1.0]], [[0.0], [1.0]])]
    [0, 1, 2]
    """
    kept = jnp.where(superposition(W)[feature] > superposition_threshold, SUPERPOSED, DEDICATED)
    return jnp.where(norms(W)[feature] > norm_threshold, kept, DROPPED)


def antipodal_pairs(W: Float[ArrayLike, "n m"], threshold: float = -0.5) -> list[tuple[int, int]]:
    """Pairs of features that point against each other, W_i . W_j < threshold. Runs on the host.

    A unit digon has W_i . W_j = -1 and a triangle exactly -0.5, which does not count (TMS, section "The Geometry of
    Superposition"). A larger polygon with norms above 1 can still hold such pairs.

    Args:
      W: directions, row i = feature i.
      threshold: the dot product must be below this.

    Returns:
      Pairs (i, j) with i < j, in order.

    >>> antipodal_pairs(jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    [(0, 2)]
    """
    W = np.asarray(W)
    rows, columns = np.nonzero(np.triu(W @ W.T < threshold, k=1))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True)]


def gram_graph(W: Float[ArrayLike, "n m"], threshold: float = 0.1) -> list[list[int]]:
    """Groups of features that overlap: the connected components of the graph |W_i . W_j| > threshold. Host only.

    Nodes are features, edges are overlaps. Features in different factors of a tegum product are orthogonal, so each
    component is one factor (TMS, section "The Geometry of Superposition"). A dropped or dedicated feature is a
    component of size 1; use `represented` to tell them apart.

    Args:
      W: directions, row i = feature i.
      threshold: smallest overlap that makes an edge.

    Returns:
      Components as sorted lists of features, ordered by their first feature. Together they hold every feature once.

    >>> gram_graph(jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    [[0, 2], [1]]
    """
    W = np.asarray(W)
    count, labels = connected_components(np.abs(W @ W.T) > threshold, directed=False)
    return sorted(np.flatnonzero(labels == c).tolist() for c in range(count))


def _polygon(k: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(k) / k
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _simplex(d: int) -> np.ndarray:
    """d + 1 unit vectors in d dimensions, each at the same angle to each other."""
    centred = np.eye(d + 1) - 1 / (d + 1)
    left, size, _ = np.linalg.svd(centred)
    corners = (left * size)[:, :d]
    return corners / np.linalg.norm(corners, axis=1, keepdims=True)


def _antiprism() -> np.ndarray:
    """Two squares, one above the other and turned by 45 degrees, in the one proportion that is a tight frame."""
    squares = np.concatenate([_polygon(8)[::2], _polygon(8)[1::2]])
    return np.concatenate([np.sqrt(2 / 3) * squares, np.repeat([[1.0], [-1.0]], 4, 0) / np.sqrt(3)], 1)


SHAPES: dict[str, np.ndarray] = {
    "single": np.ones((1, 1)),
    "digon": _simplex(1),
    "triangle": _simplex(2),
    "tetrahedron": _simplex(3),
    "5-cell": _simplex(4),
    "pentagon": _polygon(5),
    "hexagon": _polygon(6),
    "heptagon": _polygon(7),
    "octagon": _polygon(8),
    "square antiprism": _antiprism(),
}
"""name -> its unit vectors [N, d], a tight frame, so that D_i = d / N: the solutions of "uniform superposition" (TMS,
"The Geometry of Superposition") and the polygons of "Exploring the Geometry"; none is a product of others."""
PRODUCTS: dict[tuple[str, ...], str] = {
    ("digon", "digon"): "square",
    ("digon", "digon", "digon"): "octahedron",
    ("digon", "triangle"): "triangular bipyramid",
    ("digon", "pentagon"): "pentagonal bipyramid",
}
"""Names of the factors, in alphabetical order -> the name of their tegum product: its factors are orthogonal."""


def _cosines(W: np.ndarray) -> np.ndarray:
    """W_i . W_j / (||W_i|| ||W_j||) of all pairs i < j, in order of size."""
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    return np.sort((unit @ unit.T)[np.triu_indices(len(W), 1)])


def shape_name(W: Float[ArrayLike, "n m"], threshold: float = 0.1, tolerance: float = 0.15) -> str:
    """The name of the polytope whose corners are the rows of W, whatever its rotation and scale. Runs on the host.

    Rows that ``gram_graph`` leaves unconnected are factors of a tegum product (TMS, "The Geometry of Superposition"),
    and each factor is the row of ``SHAPES`` that has as many corners in as many dimensions and the same angles.

    Args:
      W: represented features alone, row i = feature i: a row of zeros is no corner.
      threshold: see ``gram_graph``.
      tolerance: the largest difference of a cosine, among all of a factor in order of size, from that of the shape.

    Returns:
      A row of ``SHAPES``, of ``PRODUCTS``, the factors joined by " + ", or "N in d" for a factor that is no row.

    Raises:
      ValueError: a row of zeros.

    >>> shape_name(jnp.array([[2.0, 0.0], [-2.0, 0.1]])), shape_name(jnp.eye(3)[:2])
    ('digon', 'single + single')
    """
    W = np.asarray(W, float)
    if not np.linalg.norm(W, axis=1).all():
        raise ValueError("a row of zeros has no direction: give the represented features alone")
    names = []
    for factor in gram_graph(W, threshold):
        rows = W[factor] / np.linalg.norm(W[factor], axis=1, keepdims=True)
        size = np.linalg.svd(rows, compute_uv=False)
        d = int((size > 0.25 * size[0]).sum())
        near = [
            name for name, ideal in SHAPES.items()
            if ideal.shape == (len(rows), d) and np.abs(_cosines(rows) - _cosines(ideal)).max(initial=0) <= tolerance
        ]  # fmt: skip
        names.append(near[0] if near else f"{len(rows)} in {d}")
    names.sort()
    return PRODUCTS.get(tuple(names), " + ".join(names))
