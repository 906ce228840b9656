"""What an SAE's loss is made of: the error, the sparsity penalties, the losses that keep latents alive, as tables.

A penalty is the mean over the batch of a sum over latents, before its coefficient. Norms stand for ||W_dec_i|| (a
crosscoder's summed over its sites); with unit-norm decoders they are 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from superpose.sae.activations import step


class Seen(NamedTuple):
    """What a penalty may look at.

    Attributes:
        acts: [batch, d_sae] that the penalty falls on; a Gated SAE's are relu of its gate.
        pre: pre-activations [batch, d_sae].
        norms: [d_sae].
        threshold: [d_sae] of a JumpReLU SAE, else None.
        target_l0: wanted number of active latents, or None.
        p: exponent of ``lp`` now.
        bandwidth, to_encoder: of the estimator of ``activations.step``.
        tanh_scale: of ``tanh``.
    """

    acts: Any
    pre: Any
    norms: Any
    threshold: Any
    target_l0: Any
    p: Any
    bandwidth: float
    to_encoder: bool
    tanh_scale: float


def l1(s: Seen) -> Float[Array, ""]:
    """sum_i f_i ||W_dec_i|| (Bricken et al. 2023 with unit norms; Anthropic, April 2024)."""
    return jnp.mean(jnp.sum(jnp.abs(s.acts) * s.norms, -1))


def lp(s: Seen) -> Float[Array, ""]:
    """sum_i (f_i ||W_dec_i||)^p, with p falling in training (p-annealing, Karvonen et al. 2024, arXiv 2408.00113)."""
    on = s.acts > 0
    size = jnp.where(on, s.acts * s.norms, 1.0)
    return jnp.mean(jnp.sum(jnp.where(on, size**s.p, 0.0), -1))


def _count(s: Seen) -> Float[Array, " batch"]:
    return jnp.sum(step(s.pre, s.threshold, s.bandwidth, float(s.to_encoder)), -1)


def l0(s: Seen) -> Float[Array, ""]:
    """sum_i H(pre_i - threshold_i), its gradient estimated (Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 9)."""
    return jnp.mean(_count(s))


def quadratic(s: Seen) -> Float[Array, ""]:
    """2/target (L0 - target)^2 of each row, L0 as in ``l0`` (as in SAELens, there named after Gemma Scope 2)."""
    return jnp.mean(2 / s.target_l0 * (_count(s) - s.target_l0) ** 2)


def quadratic_mean(s: Seen) -> Float[Array, ""]:
    """(L0/target - 1)^2 of the batch's mean L0 (arXiv 2407.14435, "Fixing L0"; dictionary_learning's JumpReLU)."""
    return (jnp.mean(_count(s)) / s.target_l0 - 1) ** 2


def tanh(s: Seen) -> Float[Array, ""]:
    """sum_i tanh(c f_i ||W_dec_i||), c = tanh_scale (Anthropic, January 2025)."""
    return jnp.mean(jnp.sum(jnp.tanh(s.tanh_scale * s.acts * s.norms), -1))


PENALTIES: dict[str, Callable[[Seen], Any]] = {
    "none": lambda s: jnp.zeros(()),
    "l1": l1,
    "lp": lp,
    "l0": l0,
    "quadratic": quadratic,
    "quadratic_mean": quadratic_mean,
    "tanh": tanh,
}
"""name -> penalty before its coefficient."""
OF_THRESHOLDS = {"l0", "quadratic", "quadratic_mean"}
"""Penalties that need a JumpReLU SAE; without its threshold they have no gradient."""


def _spread(y):
    """Mean over the batch of ||y - mean||^2, of a constant."""
    return lax.stop_gradient(jnp.mean(jnp.sum((y - y.mean(0)) ** 2, -1)))


ERRORS: dict[str, Callable] = {
    "sum": lambda y, residual: jnp.mean(jnp.sum(residual**2, -1)),
    "mean": lambda y, residual: jnp.mean(residual**2),
    "fvu": lambda y, residual: jnp.mean(jnp.sum(residual**2, -1)) / jnp.maximum(_spread(y), 1e-30),
}
"""name -> (target, target - x_hat) -> error: squares summed over dimensions (SAELens, Anthropic from April 2024), their
mean (Bricken et al. 2023), or their sum over the batch's variance (Gao et al. 2024)."""


# --- latents that never fire ------------------------------------------------------------------------------------------


def auxk(
    y: Float[Array, "batch d_out"],
    residual: Float[Array, "batch d_out"],
    guess: Float[Array, "batch d_out"],
    dead: Bool[Array, " F"],
    k: int,
    normalise: bool,
) -> Float[Array, ""]:
    """||residual - guess||^2 of the dead latents' attempt at the residual (Gao et al. 2024, arXiv 2406.04093, A.2).

    The residual is a constant. b_dec is no part of the guess: it is in the residual already.

    Args:
        normalise: divided by the residual's own variance (dictionary_learning); otherwise scaled by
            min(1, dead latents / k) (SAELens).
    """
    residual = lax.stop_gradient(residual)
    count = jnp.sum(dead)
    error = jnp.mean(jnp.sum((residual - guess) ** 2, -1))
    scale = 1 / jnp.maximum(_spread(residual), 1e-30) if normalise else jnp.minimum(1.0, count / k)
    return jnp.where(count > 0, scale * error, 0.0)


def pre_act(
    pre: Float[Array, "batch F"], threshold: Float[Array, " F"], norms: Float[Array, " F"], dead: Bool[Array, " F"]
) -> Float[Array, ""]:
    """sum over dead latents of relu(threshold_i - pre_i) ||W_dec_i|| (Anthropic, January 2025)."""
    return jnp.mean(jnp.sum(jnp.where(dead, jax.nn.relu(threshold - pre) * norms, 0.0), -1))


REVIVALS = ("none", "auxk", "pre_act")
"""Losses for dead latents; resampling is a hook between chunks, ``objective.resample``."""
