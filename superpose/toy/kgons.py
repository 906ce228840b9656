"""Critical points of toy models in two dimensions whose inputs have exactly one active feature: regular polygons.

Chen, Lau, Mendel, Wei, Murfet 2023, "Dynamical versus Bayesian Phase Transitions in a Toy Model of Superposition". Each
of c features is the active one as often as another, its value uniform on [0, 1]. At a k-gon k rows of W are the corners
of a regular polygon with one bias; the other c - k features are dead: W_i = 0, and a bias of at most 0, or the one
positive bias that pays. Losses are sums over features, means over inputs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from superpose.toy.theory import relu_error


class Polygon(NamedTuple):
    """Of a k-gon: the length of its rows, their bias, and h, 3 times the error summed over its k active features."""

    length: float
    bias: float
    excess: float


@functools.partial(jax.jit, static_argnums=1)
def _excess(v, k):
    cosines, own = jnp.cos(2 * jnp.pi * jnp.arange(k) / k), (jnp.arange(k) == 0).astype(v.dtype)
    return 3 * k * relu_error(v[0] ** 2 * cosines, v[1], own).sum()


@functools.cache
def polygon(k: int) -> Polygon:
    """The best k-gon, to about 1e-6: the best point of a grid over its length and bias, improved.

    Args:
        k: corners, at least 3.

    Raises:
        ValueError: k is below 3.

    >>> [round(x, 4) for x in polygon(5)]
    [1.1705, -0.2823, 0.2374]
    """
    if k < 3:
        raise ValueError(f"a polygon in the plane has k >= 3 corners, got {k}")
    with jax.enable_x64(True):
        grid = jnp.stack(jnp.meshgrid(jnp.linspace(0.9, 4, 125), jnp.linspace(-8, 0, 161), indexing="ij"), -1)
        rough = jax.vmap(_excess, (0, None))(grid.reshape(-1, 2), k)
        slope = jax.value_and_grad(_excess)
        found = minimize(lambda v: [np.asarray(a, float) for a in slope(jnp.asarray(v), k)],
                         np.asarray(grid.reshape(-1, 2)[rough.argmin()]), jac=True, method="BFGS",
                         options={"gtol": 1e-10})  # fmt: skip
    length, bias = (float(a) for a in found.x)
    return Polygon(length, bias, max(0.0, float(found.fun)))


def level(k: int, c: int, positive: int = 0) -> float:
    """Loss of the k-gon of c features, ``positive`` of whose dead ones have the bias that pays.

    L = (h_k + c - k) / (3c) - positive / (4 c^2): a dead feature loses x^2, and 1/(2c), its mean, wins back the square
    of that (derived here).

    Raises:
        ValueError: more corners than features, or more positive biases than dead features.

    >>> round(level(5, 6), 4), round(level(5, 6, positive=1), 4)
    (0.0687, 0.0618)
    """
    _dead(k, c, positive)
    return (polygon(k).excess + c - k) / (3 * c) - positive / (4 * c * c)


def _dead(k: int, c: int, positive: int) -> None:
    if k > c:
        raise ValueError(f"a {k}-gon needs {k} features, got {c}")
    if not 0 <= positive <= c - k:
        raise ValueError(f"a {k}-gon of {c} features has {c - k} dead ones, got {positive} with a positive bias")


def corners(k: int, c: int, positive: int = 0) -> tuple[Float[np.ndarray, "c 2"], Float[np.ndarray, " c"]]:
    """W and b of that k-gon; the biases of dead features that are not positive are -1.

    Raises:
        ValueError: as ``level``.

    >>> W, b = corners(4, 5)
    >>> W.round(2).tolist(), b.round(2).tolist()
    ([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-0.0, -1.0], [0.0, 0.0]], [0.0, 0.0, 0.0, 0.0, -1.0])
    """
    _dead(k, c, positive)
    length, bias, _ = polygon(k)
    angles = 2 * np.pi * np.arange(k) / k
    W, b = np.zeros((c, 2)), np.full(c, -1.0)
    W[:k], b[:k] = length * np.stack([np.cos(angles), np.sin(angles)], 1), bias
    b[k : k + positive] = 1 / (2 * c)
    return W, b
