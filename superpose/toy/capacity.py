"""Capacity: what share of a dimension each feature gets, and what it gains by it.

Scherlis, Sachan, Jermyn, Benton, Shlegeris 2022, "Polysemanticity and Capacity in Neural Networks". The capacity of a
feature, C_i = (W_i.W_i)^2 / sum_j (W_i.W_j)^2, is ``geometry.dimensionality``; all of them sum to at most the number of
dimensions. Their model with quadratic neurons has a loss that is a sum over features of what each loses at its
capacity, so that the best allocation is known. Setting and formulas as derived here:

    y = sum_i v_i x_i^2,    y_hat = ||W^T x||^2 + c,    x independent of mean 0, variance 1 and fourth moment kappa,
    E (y - y_hat)^2 = (kappa - 1) sum_i (v_i - G_ii)^2 + 2 sum_{i != j} G_ij^2,    G = W W^T, c at its best.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from superpose.toy import geometry
from superpose.train.fit import Objective


def quadratic_loss(
    W: Float[Array, "n d"], v: Float[Array, " n"], kurtosis: float | Float[Array, ""]
) -> Float[Array, ""]:
    """Exact mean squared error of the quadratic model, its constant at its best.

    Nothing is lost where every feature has a dimension:

    >>> float(quadratic_loss(jnp.eye(2), jnp.ones(2), 3.0))
    0.0
    """
    gram = geometry.gram(W)
    own = jnp.diagonal(gram)
    return (kurtosis - 1) * jnp.sum((v - own) ** 2) + 2 * (jnp.sum(gram**2) - jnp.sum(own**2))


def loss_at(C: Float[ArrayLike, "*n"], v: Float[ArrayLike, "*n"], kurtosis: float) -> Float[Array, "*n"]:
    """What a feature loses at capacity C, ||W_i|| at its best: v^2 (kappa - 1)(1 - C) / (1 + (r - 1) C), with r =
    (kappa - 1) / 2. The losses of all features add up to that of the model.

    >>> [round(float(loss_at(C, 1.0, 5.0)), 3) for C in (0.0, 0.5, 1.0)]
    [4.0, 1.333, 0.0]
    """
    C, v = jnp.asarray(C, float), jnp.asarray(v, float)
    return v**2 * (kurtosis - 1) * (1 - C) / (1 + ((kurtosis - 1) / 2 - 1) * C)


def marginal_benefit(C: Float[ArrayLike, "*n"], v: Float[ArrayLike, "*n"], kurtosis: float) -> Float[Array, "*n"]:
    """- d loss_at / dC = v^2 (kappa - 1) r / (1 + (r - 1) C)^2: falling where kappa > 3, rising where it is below."""
    r = (kurtosis - 1) / 2
    C, v = jnp.asarray(C, float), jnp.asarray(v, float)
    return v**2 * (kurtosis - 1) * r / (1 + (r - 1) * C) ** 2


def allocation(v: Float[np.ndarray, " n"], d: int, kurtosis: float) -> Float[np.ndarray, " n"]:
    """The best capacities that sum to d (or to n, where n is less).

    Where marginal benefits fall (kurtosis above 3), all features that are neither whole (C = 1) nor ignored (C = 0)
    have the same one: C_i = (v_i s - 1) / (r - 1), clipped to [0, 1], s such that they sum to d. Otherwise the d
    largest v get a dimension each; where v are equal this is one of many best ones.

    Raises:
        ValueError: d or kurtosis below 1, or a v that is not positive.

    >>> allocation(np.array([1.0, 0.8, 0.1]), 1, 9.0).round(3).tolist()
    [0.593, 0.407, 0.0]
    >>> allocation(np.array([1.0, 0.8]), 1, 2.0).tolist()
    [1.0, 0.0]
    """
    v = np.asarray(v, float)
    if d < 1 or kurtosis < 1 or not (v > 0).all():
        raise ValueError(f"d and the kurtosis must be at least 1 and all v positive, got {d}, {kurtosis:g} and "
                         f"{v.min():g}")  # fmt: skip
    if d >= len(v):
        return np.ones(len(v))
    r = (kurtosis - 1) / 2
    if r <= 1:
        out = np.zeros(len(v))
        out[np.argsort(-v, kind="stable")[:d]] = 1.0
        return out
    low, high = 0.0, r / v.min()  # at s = r / v_min all features are whole
    for _ in range(200):
        s = (low + high) / 2
        low, high = (low, s) if np.clip((v * s - 1) / (r - 1), 0, 1).sum() > d else (s, high)
    return np.clip((v * high - 1) / (r - 1), 0, 1)


def objective(n: int, d: int) -> Objective:
    """The quadratic model on its exact loss: params {"W": [n, d]}, hyper ``v`` [N, n] and ``kurtosis`` [N]; whatever
    the source gives is left aside."""

    def init(key, hyper):
        return {"W": jax.random.normal(key, (n, d)) * jnp.sqrt(0.5 / d)}, ()

    def loss(params, state, batch, key, step, hyper):
        return quadratic_loss(params["W"], hyper["v"], hyper["kurtosis"]), (state, {})

    return Objective(init=init, loss=loss)
