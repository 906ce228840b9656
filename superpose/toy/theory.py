"""Closed forms for the toy models of superposition.

Elhage et al. 2022, "Toy Models of Superposition" (TMS below). One common setting:

- n features, m hidden dimensions, `W [n, m]` with row i = direction of feature i (TMS: column W_i), bias `b [n]`.
- x_i = 0 with probability S and uniform on [0, 1] otherwise, all independent. `p` = 1 - S is the density.
- loss L = E[sum_i I_i (x_i - x'_i)^2]: a sum over features, weighted by importance, and a mean over inputs. The demo
  notebook of TMS divides by n as well.
- linear model x' = W^T W x + b; ReLU model x' = ReLU(W^T W x + b).

Losses are in units of x^2. Functions of p and importances are jnp, broadcast, and can be differentiated; the digon
bookkeeping (counts and lists of features) is numpy on the host. Formulas marked "derived here" are not in TMS.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Real

# ---- one feature, one pair -------------------------------------------------------------------------------------------


def optimal_bias(p: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
    """Best bias for a feature the model drops: its mean, b_i = E[x_i] = (1 - S) / 2 = p / 2.

    TMS, section "Demonstrating Superposition". The same for the linear and the ReLU model, since the mean is >= 0.

    Args:
      p: density, 0 <= p <= 1.

    Returns:
      The bias, in units of x.

    >>> float(optimal_bias(1.0))
    0.5
    """
    return jnp.asarray(p) / 2


def dropped_loss(p: Real[ArrayLike, "..."], bias: bool = True) -> Float[Array, "..."]:
    """Loss of a dropped feature at importance 1: q(p) = Var[x_i] = p/3 - p^2/4, or E[x_i^2] = p/3 if b = 0.

    Derived here: E[x_i] = p/2 and E[x_i^2] = p/3, and the best constant prediction is the mean.

    Args:
      p: density, 0 <= p <= 1.
      bias: whether the model may use the optimal bias.

    Returns:
      The loss q.

    For a dense feature, the variance of a uniform variable, 1/12:

    >>> round(12 * float(dropped_loss(1.0)), 4)
    1.0
    """
    p = jnp.asarray(p)
    return p / 3 - p**2 / 4 if bias else p / 3


def digon_loss(
    p: Real[ArrayLike, "..."], first: Real[ArrayLike, "..."] = 1.0, second: Real[ArrayLike, "..."] = 1.0
) -> Float[Array, "..."]:
    """Exact ReLU loss of an antipodal pair with unit norms and b = 0: (I_1 + I_2) p^2 / 6.

    This is the n = 2, m = 1 model with W = [1, -1] (TMS, section "Superposition as a Phase Change"; derived here).
    One active feature is returned exactly. With both active, each is off by min(x_1, x_2), and E[min^2] = 1/6.

    Args:
      p: density, 0 <= p <= 1.
      first: importance I_1.
      second: importance I_2.

    Returns:
      The loss of the pair.

    >>> round(float(digon_loss(1.0)), 4)
    0.3333
    """
    return (jnp.asarray(first) + second) * jnp.asarray(p) ** 2 / 6


def digon_ratio(p: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
    """Smallest ratio I_new / I_old at which a dropped feature gains by pairing with a dedicated one: r = 2p / (4 - 5p).

    Derived here from (I_new + I_old) p^2/6 = I_new q(p). About p/2 when p is small, 1 at p = 4/7, and infinite from
    p = 4/5 on, where pairing never pays.

    Args:
      p: density, 0 <= p <= 1.

    Returns:
      The ratio r(p).

    >>> round(float(digon_ratio(4 / 7)), 4)
    1.0
    """
    p = jnp.asarray(p)
    pays = p < 0.8
    return jnp.where(pays, 2 * p / jnp.where(pays, 4 - 5 * p, 1.0), jnp.inf)


# ---- the linear model ------------------------------------------------------------------------------------------------


def linear_loss(
    W: Float[Array, "n m"], b: Float[Array, " n"], importance: Real[ArrayLike, " n"], p: Real[ArrayLike, "..."]
) -> Float[Array, ""]:
    """Exact population loss of the linear model, from the first two moments of x.

    With A = 1 - W^T W:  L = sum_i I_i [ sum_j A_ij^2 q(p_j) + (sum_j A_ij p_j/2 - b_i)^2 ].
    Derived here; TMS, section "Mathematical Understanding", gives the part that depends on W for centred inputs.

    Args:
      W: directions, row i = feature i.
      b: output bias.
      importance: I_i.
      p: density, one value or one per feature.

    Returns:
      The loss.

    A perfect map has none; a dead one feature model has E[x^2] = 1/3:

    >>> float(linear_loss(jnp.eye(2), jnp.zeros(2), jnp.ones(2), 0.5))
    0.0
    >>> round(float(linear_loss(jnp.zeros((1, 1)), jnp.zeros(1), jnp.ones(1), 1.0)), 4)
    0.3333
    """
    n = W.shape[0]
    p = jnp.broadcast_to(jnp.asarray(p, W.dtype), (n,))
    A = jnp.eye(n, dtype=W.dtype) - jnp.matmul(W, W.T, precision=jax.lax.Precision.HIGHEST)
    variance = jnp.sum(A**2 * dropped_loss(p), axis=1)
    mean = jnp.sum(A * optimal_bias(p), axis=1) - b
    return jnp.sum(jnp.asarray(importance) * (variance + mean**2))


def linear_optimum_loss(importance: Real[ArrayLike, " n"], m: int, p: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
    """Lowest loss of the linear model: sum_{i >= m} I_(i) (p/3 - p^2/4), importances sorted downwards from i = 0.

    The best rank-m map keeps the m most important features and drops the rest, at every sparsity (TMS, section
    "Demonstrating Superposition"). The dense ReLU model reaches the same value when importances fall off.

    Args:
      importance: I_i, in any order.
      m: hidden dimensions, >= 0.
      p: density.

    Returns:
      The loss, of the shape of p.

    Raises:
      ValueError: if m < 0.

    Two dropped features of importance 1 and 2, each with variance 1/12:

    >>> round(float(linear_optimum_loss(np.array([1.0, 3.0, 2.0]), 1, 1.0)), 4)
    0.25
    """
    if m < 0:
        raise ValueError(f"m must be >= 0, got {m}")
    tail = jnp.sort(jnp.asarray(importance, float), descending=True)[m:]
    return jnp.sum(tail) * dropped_loss(p)


# ---- digon bookkeeping: how many features fit ------------------------------------------------------------------------


class Allocation(NamedTuple):
    """Who lives where: `represented` features in all, some `dedicated`, the others in antipodal `pairs`."""

    represented: int
    dedicated: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]


def _ranked(importance: Real[ArrayLike, " n"], m: int) -> tuple[np.ndarray, np.ndarray]:
    """Feature indices from the most to the least important, and their importances in that order."""
    values = np.asarray(importance, np.float64)
    if values.ndim != 1 or not np.all(values > 0):
        raise ValueError("importance must be one positive value per feature")
    if not 1 <= m <= len(values):
        raise ValueError(f"m must be between 1 and n = {len(values)}, got {m}")
    order = np.argsort(-values, kind="stable")
    return order, values[order]


def digon_thresholds(importance: Real[ArrayLike, " n"], m: int) -> Float[np.ndarray, " k"]:
    """Densities below which R = m+1, m+2, ... features are represented: p = 4 rho / (2 + 5 rho).

    Feature number R-1 (from 0, by importance) pairs with number 2m-R, so rho = I_(R-1) / I_(2m-R), and p solves
    r(p) = rho (see `digon_ratio`). Derived here, from digons with unit norms only; it ends when all m dimensions hold
    a pair. There are k = min(m, n - m) thresholds, and they fall.

    Args:
      importance: I_i > 0, in any order.
      m: hidden dimensions, 1 <= m <= n.

    Returns:
      The densities, largest first.

    Raises:
      ValueError: if an importance is not positive or m is out of range.

    Equal importances all switch at the triple point, p = 4/7:

    >>> digon_thresholds(np.ones(4), 2).round(4).tolist()
    [0.5714, 0.5714]
    """
    values = _ranked(importance, m)[1]
    added = np.arange(m, min(2 * m, len(values)))
    rho = values[added] / values[2 * m - 1 - added]
    return 4 * rho / (2 + 5 * rho)


def represented_count(importance: Real[ArrayLike, " n"], m: int, p: float) -> Allocation:
    """How many features the ReLU model represents, by digon bookkeeping, and which ones share.

    Start with the m most important features, each in its own dimension. Add feature R by pairing it with the least
    important dedicated one, number 2m-1-R, while I_R / I_(2m-1-R) > r(p) = 2p / (4 - 5p). Derived here; it gives the
    order that TMS reports in section "Demonstrating Superposition" (the least important represented features pair up
    first). Valid for m <= R <= 2m: at R = 2m the true count may be larger. Who pairs with whom inside the shared set
    does not change the loss.

    Args:
      importance: I_i > 0, in any order.
      m: hidden dimensions, 1 <= m <= n.
      p: density, 0 < p <= 1.

    Returns:
      An `Allocation` with the feature indices of the input.

    Raises:
      ValueError: if an importance is not positive, or m or p is out of range.

    r(0.3) = 0.24: feature 2 joins feature 1 (ratio 0.8), feature 3 is too unimportant to join feature 0 (ratio 0.1):

    >>> represented_count(np.array([1.0, 0.5, 0.4, 0.1]), 2, 0.3)
    Allocation(represented=3, dedicated=(0,), pairs=((1, 2),))
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must be in (0, 1], got {p}")
    order, values = _ranked(importance, m)
    R = m
    while R < min(2 * m, len(values)) and values[R] * (4 - 5 * p) > 2 * p * values[2 * m - 1 - R]:
        R += 1
    pairs = tuple((int(order[2 * m - 1 - j]), int(order[j])) for j in range(m, R))
    return Allocation(R, tuple(order[: 2 * m - R].tolist()), pairs)


def bookkeeping_loss(importance: Real[ArrayLike, " n"], m: int, p: float, count: int) -> float:
    """Loss of `count` = R features: the top 2m-R alone, the next 2(R-m) in unit digons, the rest dropped.

    L = p^2/6 sum_{2m-R <= i < R} I_(i) + q(p) sum_{i >= R} I_(i). Derived here. An upper bound on the best ReLU loss,
    since norms and biases inside a digon are not tuned. At R = m it is `linear_optimum_loss`.

    Args:
      importance: I_i > 0, in any order.
      m: hidden dimensions, 1 <= m <= n.
      p: density.
      count: R, m <= R <= min(2m, n).

    Returns:
      The loss.

    Raises:
      ValueError: if an importance is not positive, or m or count is out of range.

    One pair of importance 1 + 1 in one dimension:

    >>> round(bookkeeping_loss(np.ones(2), 1, 0.5, 2), 4)
    0.0833
    """
    values = _ranked(importance, m)[1]
    if not m <= count <= min(2 * m, len(values)):
        raise ValueError(f"count must be between m = {m} and min(2m, n) = {min(2 * m, len(values))}, got {count}")
    shared, dropped = values[2 * m - count : count].sum(), values[count:].sum()
    return float(p**2 / 6 * shared + (p / 3 - p**2 / 4) * dropped)


# ---- phase diagrams --------------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """Losses of the candidate solutions (last axis) and what the best one does with the extra feature.

    `label` is 0 dropped, 1 in superposition, 2 a dimension of its own, as in `superpose.toy.geometry.outcome`.
    """

    losses: Float[Array, "... solutions"]
    label: Int[Array, "..."]


def _envelope(candidates: Sequence[Float[Array, "..."]], labels: Sequence[int]) -> Phase:
    """Stack the candidate losses on a new last axis and label the smallest; the first one wins a tie."""
    losses = jnp.stack(jnp.broadcast_arrays(*candidates), axis=-1)
    return Phase(losses, jnp.array(labels)[jnp.argmin(losses, axis=-1)])


def _sharing_ratio(p: Real[ArrayLike, "..."], bias: bool) -> Float[Array, "..."]:
    """Importance ratio at which dropping and pairing cost the same: r(p), or p / (2 - p) if b = 0."""
    p = jnp.asarray(p)
    return digon_ratio(p) if bias else p / (2 - p)


def phase_2_1(p: Real[ArrayLike, "..."], I2: Real[ArrayLike, "..."], bias: bool = True) -> Phase:
    """Theory phase diagram of n = 2 features in m = 1 dimension, with I_1 = 1 and the extra feature I_2.

    Three solutions (TMS, section "Superposition as a Phase Change"; loss forms derived here), in this order:

    - W = [1, 0], extra dropped: I_2 q(p)
    - W = [1, -1], antipodal, b = 0: (1 + I_2) p^2 / 6
    - W = [0, 1], extra dedicated: q(p)

    with q from `dropped_loss`. The true optimum is a few percent lower near the boundaries, since norms and biases
    move there.

    Args:
      p: density.
      I2: importance of the extra feature. Broadcasts with p.
      bias: whether dropped features get their optimal bias.

    Returns:
      Losses [..., 3] and the label of the smallest. On a tie (I_2 = 1 above the triple point) the label is 0.

    At p = 0.1 the pair is best, at p = 1 the less important feature goes:

    >>> print(phase_2_1(jnp.array([0.1, 1.0, 1.0]), jnp.array([1.0, 0.5, 2.0])).label)
    [1 0 2]
    """
    q, I2 = dropped_loss(p, bias), jnp.asarray(I2)
    return _envelope((I2 * q, digon_loss(p, 1.0, I2), q), (0, 1, 2))


def phase_2_1_boundaries(
    p: Real[ArrayLike, "..."], bias: bool = True
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Importances I_2 where the phases of `phase_2_1` meet at density p.

    Dropped and superposed meet at I_2 = 2p / (4 - 5p), superposed and dedicated at its inverse; with b = 0 at
    p / (2 - p) and its inverse. Derived here. Above the triple point there is no superposed phase, and both values
    are 1, the border of dropped and dedicated. The losses cross there with different slopes in I_2, so the change is
    first order (TMS, section "Superposition as a Phase Change").

    Args:
      p: density, p > 0.
      bias: whether dropped features get their optimal bias.

    Returns:
      (lower, upper): superposed between them.

    >>> lower, upper = phase_2_1_boundaries(0.4)
    >>> round(float(lower), 4), round(float(upper), 4)
    (0.4, 2.5)
    """
    lower = jnp.minimum(_sharing_ratio(p, bias), 1.0)
    return lower, 1 / lower


def triple_point(bias: bool = True) -> tuple[float, float]:
    """Where dropped, superposed and dedicated cost the same in `phase_2_1`: (I_2, p) = (1, 4/7), or (1, 1) if b = 0.

    Derived here from q(p) = p^2/3. It is also where a uniform model goes from one to two features per dimension, at
    1 / (1-S) = 7/4 (TMS, section "The Geometry of Superposition", shows the two plateaus).

    Args:
      bias: whether dropped features get their optimal bias.

    Returns:
      (I_2, p).

    >>> importance, p = triple_point()
    >>> importance, round(p, 4)
    (1.0, 0.5714)
    """
    return (1.0, 4 / 7) if bias else (1.0, 1.0)


def phase_3_2(p: Real[ArrayLike, "..."], I3: Real[ArrayLike, "..."], bias: bool = True) -> Phase:
    """Theory phase diagram of n = 3 features in m = 2 dimensions, with I_1 = I_2 = 1 and the extra feature I_3.

    Four solutions, named in TMS, section "Superposition as a Phase Change", by the direction they ignore (loss forms
    derived here), in this order:

    - [0, 0, 1], extra dropped: I_3 q(p)
    - [0, 1, 1], extra paired with another: (1 + I_3) p^2 / 6
    - [1, 0, 0], another dropped, extra dedicated: q(p)
    - [1, 1, 0], the other two paired, extra dedicated: p^2 / 3

    The triangle [1, 1, 1] is left out, as in TMS: at I_3 = 1 it costs 3/8 p^2 to leading order, more than 1/3 p^2.

    Args:
      p: density.
      I3: importance of the extra feature. Broadcasts with p.
      bias: whether dropped features get their optimal bias.

    Returns:
      Losses [..., 4] and the label of the smallest. On a tie (I_3 = 1) the earlier solution gives the label.

    >>> print(phase_3_2(0.3, jnp.array([0.1, 0.5, 2.0])).label)
    [0 1 2]
    """
    q, I3 = dropped_loss(p, bias), jnp.asarray(I3)
    return _envelope((I3 * q, digon_loss(p, 1.0, I3), q, digon_loss(p)), (0, 1, 2, 2))


def phase_3_2_boundaries(
    p: Real[ArrayLike, "..."], bias: bool = True
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Importances I_3 where the phases of `phase_3_2` meet at density p.

    Dropped and superposed meet at I_3 = 2p / (4 - 5p) (p / (2 - p) if b = 0), and above I_3 = 1 the extra feature is
    always dedicated: a vertical line, unlike `phase_2_1`. Derived here. Above the triple point both values are 1.

    Args:
      p: density, p > 0.
      bias: whether dropped features get their optimal bias.

    Returns:
      (lower, upper): superposed between them, upper = 1.

    >>> lower, upper = phase_3_2_boundaries(0.4)
    >>> round(float(lower), 4), float(upper)
    (0.4, 1.0)
    """
    lower = jnp.minimum(_sharing_ratio(p, bias), 1.0)
    return lower, jnp.ones_like(lower)


# ---- polytopes -------------------------------------------------------------------------------------------------------


def kgon_dimensionality(k: int) -> float:
    """Dimensionality of each vertex of a regular k-gon, D = 2 / k for k >= 3; 1/2 for the digon k = 2, which is a line.

    A regular k-gon is a tight frame in 2 dimensions (TMS, section "The Geometry of Superposition").

    Args:
      k: number of vertices, >= 2.

    Returns:
      D.

    Raises:
      ValueError: if k < 2.

    >>> kgon_dimensionality(5)
    0.4
    """
    if k < 2:
        raise ValueError(f"a polygon has k >= 2 vertices, got {k}")
    return 0.5 if k == 2 else 2 / k


def simplex_dimensionality(k: int) -> float:
    """Dimensionality of each vertex of the regular simplex, k + 1 points in k dimensions: D = k / (k + 1).

    Digon 1/2, triangle 2/3, tetrahedron 3/4 (TMS, section "The Geometry of Superposition").

    Args:
      k: dimensions, >= 1.

    Returns:
      D.

    Raises:
      ValueError: if k < 1.

    >>> simplex_dimensionality(3)
    0.75
    """
    if k < 1:
        raise ValueError(f"a simplex has k >= 1 dimensions, got {k}")
    return k / (k + 1)


def tegum_dimensionality(factors: Sequence[tuple[int, int]]) -> Float[np.ndarray, " points"]:
    """Dimensionality of every vertex of a tegum product of unit-norm tight frames: d / N in a factor of N points in d.

    The factors live in orthogonal spaces, so each keeps its own value. A triangular bipyramid is triangle x digon:
    three points at 2/3 and two at 1/2, not five at 3/5 (TMS, section "The Geometry of Superposition").

    Args:
      factors: (N points, d dimensions) of each factor, N >= d >= 1.

    Returns:
      D of each vertex, factor after factor; they sum to the total dimension.

    Raises:
      ValueError: if a factor has N < d or d < 1.

    >>> tegum_dimensionality([(3, 2), (2, 1)]).round(2).tolist()
    [0.67, 0.67, 0.67, 0.5, 0.5]
    """
    if any(not 1 <= d <= N for N, d in factors):
        raise ValueError(f"each factor needs N >= d >= 1, got {list(factors)}")
    return np.concatenate([np.zeros(0), *(np.full(N, d / N) for N, d in factors)])


# ---- the ReLU model at high sparsity ---------------------------------------------------------------------------------


def relu_error(
    gain: Real[ArrayLike, "..."], bias: Real[ArrayLike, "..."], target: Real[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """Exact error of one output with one active input: int_0^1 (t x - ReLU(g x + b))^2 dx.

    The output is on where g x + b > 0, an interval [u, v] of [0, 1] that ends at the kink -b/g. So the integral is
    t^2/3 + int_u^v [(g x + b)^2 - 2 t x (g x + b)] dx, a cubic in u and v. Derived here.

    Args:
      gain: g, the slope before the ReLU.
      bias: b.
      target: t, the slope wanted: 1 for the active feature, 0 for the others.

    Returns:
      The integral, broadcast over the arguments.

    A line with the right slope has no error; ReLU(-x) is 0, so all of int x^2 = 1/3 is lost:

    >>> print(relu_error(jnp.array([1.0, -1.0]), 0.0, 1.0).round(4))
    [0.     0.3333]
    """
    g, b, t = jnp.broadcast_arrays(*(jnp.asarray(x, float) for x in (gain, bias, target)))
    flat = jnp.abs(g) < jnp.finfo(g.dtype).tiny
    kink = jnp.clip(-b / jnp.where(flat, 1.0, g), 0.0, 1.0)
    always = jnp.where(b > 0, 1.0, 0.0)
    u = jnp.where(~flat & (g > 0), kink, 0.0)
    v = jnp.where(flat, always, jnp.where(g > 0, 1.0, kink))
    square, linear = g * (g - 2 * t) * (u * u + u * v + v * v) / 3, (g - t) * b * (u + v)
    return t * t / 3 + (v - u) * (square + linear + b * b)


def no_active_loss(b: Float[Array, " n"], importance: Real[ArrayLike, " n"]) -> Float[Array, ""]:
    """Loss of the ReLU model on the zero input: L_0 = sum_i I_i ReLU(b_i)^2.

    TMS, section "Mathematical Understanding".

    Args:
      b: output bias.
      importance: I_i.

    Returns:
      L_0.

    Only positive biases cost:

    >>> float(no_active_loss(jnp.array([0.5, -1.0]), jnp.array([2.0, 1.0])))
    0.5
    """
    return jnp.sum(jnp.asarray(importance) * jax.nn.relu(b) ** 2)


def one_active_loss(
    W: Float[Array, "n m"], b: Float[Array, " n"], importance: Real[ArrayLike, " n"]
) -> Float[Array, ""]:
    """Loss of the ReLU model on inputs with one active feature, summed over which one it is.

    L_1 = sum_i I_i int_0^1 (x - ReLU(||W_i||^2 x + b_i))^2 dx
        + sum_{i != j} I_j int_0^1 ReLU(W_j . W_i x + b_j)^2 dx.

    TMS, section "Mathematical Understanding": feature benefit and interference. The integrals are exact, with
    `relu_error`.

    Args:
      W: directions, row i = feature i.
      b: output bias.
      importance: I_i.

    Returns:
      L_1.

    Antipodal unit directions reconstruct every single feature; parallel ones leak 1/3 each:

    >>> float(one_active_loss(jnp.array([[1.0], [-1.0]]), jnp.zeros(2), jnp.ones(2)))
    0.0
    >>> round(float(one_active_loss(jnp.array([[1.0], [1.0]]), jnp.zeros(2), jnp.ones(2))), 4)
    0.6667
    """
    overlap = jnp.matmul(W, W.T, precision=jax.lax.Precision.HIGHEST)
    error = relu_error(overlap, b[:, None], jnp.eye(W.shape[0]))
    return jnp.sum(jnp.asarray(importance)[:, None] * error)


def first_order_loss(
    W: Float[Array, "n m"], b: Float[Array, " n"], importance: Real[ArrayLike, " n"], p: Real[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """ReLU loss to first order in the density: L = p S^(n-1) L_1 + S^n L_0 + O(p^2), with S = 1 - p.

    TMS, section "Mathematical Understanding". Inputs with two or more active features are left out, so this is a
    lower bound on the loss.

    Args:
      W: directions, row i = feature i.
      b: output bias.
      importance: I_i.
      p: density.

    Returns:
      The first two terms, of the shape of p.

    One dead feature with no bias loses p E[x^2] = p/3:

    >>> round(float(first_order_loss(jnp.zeros((1, 1)), jnp.zeros(1), jnp.ones(1), 0.3)), 4)
    0.1
    """
    n, p = W.shape[0], jnp.asarray(p)
    S = 1 - p
    return p * S ** (n - 1) * one_active_loss(W, b, importance) + S**n * no_active_loss(b, importance)
