"""What turns pre-activations into sparse latents: a table of pure functions.

An activation of your own is one function and one row. In training it returns what the losses need (``Encoded``); at
inference only ``acts`` is read. Batches are rows, x [batch, d_in], pre [batch, d_sae].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

from superpose.sae import sparse

Scalar = float | Num[Array, ""]


class Knobs(NamedTuple):
    """Numbers an activation may need beside the parameters.

    Attributes:
        k: latents per row, at most the architecture's k; may be traced.
        bandwidth: of JumpReLU's estimator.
        to_encoder: whether JumpReLU's estimator also passes gradients to the pre-activations.
        weighted: whether latents are chosen by norm-weighted activations; needs no unit-norm decoder.
        sparse: whether chosen latents are kept as a code (``sparse.reconstruct``).
    """

    k: Any = None
    bandwidth: float = 1.0
    to_encoder: bool = False
    weighted: bool = False
    sparse: bool = False


class Encoded(NamedTuple):
    """What an activation says of a batch.

    Attributes:
        acts: [batch, d_sae], or a ``sparse.Code``, or None where ``chosen`` says it in training.
        pre: pre-activations [batch, d_sae], on the fast path as ``sparse.Pre``; a Gated SAE's are those of its gate.
        chosen: what is on, of activations that choose, in training on the fast path.
        threshold: smallest score that is on, of batch_topk.
    """

    acts: Any
    pre: Any
    chosen: sparse.Chosen | None = None
    threshold: Any = None


# --- the step functions with an estimated gradient --------------------------------------------------------------------


@jax.custom_vjp
def step(
    pre: Float[Array, "batch F"], threshold: Float[Array, " F"], bandwidth: Scalar, to_pre: Scalar
) -> Float[Array, "batch F"]:
    """H(pre - threshold), whose gradient is estimated with a rectangle kernel of this bandwidth.

    d/d threshold = -1/bandwidth where |pre - threshold| < bandwidth / 2 (Rajamanoharan et al. 2024, arXiv 2407.14435,
    eq. 12), and d/d pre its negative times ``to_pre`` (1: Anthropic January 2025; 0: Rajamanoharan et al.).

    >>> step(jnp.array([[0.5, 2.0]]), jnp.ones(2), 0.1, 0.0).tolist()
    [[0.0, 1.0]]
    """
    return (pre > threshold).astype(pre.dtype)


def _near(pre, threshold, bandwidth):
    return (jnp.abs(pre - threshold) < bandwidth / 2) / bandwidth


def _step_forward(pre, threshold, bandwidth, to_pre):
    return step(pre, threshold, bandwidth, to_pre), (pre, threshold, bandwidth, to_pre)


def _step_backward(saved, g):
    pre, threshold, bandwidth, to_pre = saved
    estimate = _near(pre, threshold, bandwidth) * g
    return estimate * to_pre, -estimate.sum(0), None, None


step.defvjp(_step_forward, _step_backward)


@jax.custom_vjp
def jump(
    pre: Float[Array, "batch F"], threshold: Float[Array, " F"], bandwidth: Scalar, to_pre: Scalar
) -> Float[Array, "batch F"]:
    """JumpReLU: pre where pre > threshold, else 0; the gradient to the threshold is estimated as in ``step``.

    d/d threshold = -threshold/bandwidth where |pre - threshold| < bandwidth / 2 (arXiv 2407.14435, eq. 11).

    >>> jump(jnp.array([[0.5, 2.0]]), jnp.ones(2), 0.1, 0.0).tolist()
    [[0.0, 2.0]]
    """
    return jnp.where(pre > threshold, pre, 0.0)


def _jump_forward(pre, threshold, bandwidth, to_pre):
    return jump(pre, threshold, bandwidth, to_pre), (pre, threshold, bandwidth, to_pre)


def _jump_backward(saved, g):
    pre, threshold, bandwidth, to_pre = saved
    estimate = threshold * _near(pre, threshold, bandwidth) * g
    return jnp.where(pre > threshold, g, 0.0) + estimate * to_pre, -estimate.sum(0), None, None


jump.defvjp(_jump_forward, _jump_backward)


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """One row: functions of (sae, x [batch, d_in], knobs) -> Encoded.

    Attributes:
        train: with what training needs.
        infer: per row, without looking at the rest of the batch; None if there is no such rule.
        params: name -> initial value of parameters [d_sae] beyond W_enc, b_enc, W_dec, b_dec; None is the threshold
            that training starts from.
        without: parameters of the common four that this activation does not have.
        takes_k: whether it chooses k latents.
    """

    train: Callable
    infer: Callable | None
    params: dict[str, float | None]
    without: tuple[str, ...] = ()
    takes_k: bool = False


def _pre(sae, x):
    return sae.centered(x) @ sae.W_enc[...] + sae.b_enc[...]


def _relu(sae, x, knobs):
    pre = _pre(sae, x)
    return Encoded(jax.nn.relu(pre), pre)


def _jumprelu(sae, x, knobs):
    pre = _pre(sae, x)
    return Encoded(jump(pre, sae.threshold[...], knobs.bandwidth, float(knobs.to_encoder)), pre)


def _gated(sae, x, knobs):
    """Gate by sign of (x - b_dec) W_enc + b_gate, magnitude by the same rows scaled (arXiv 2404.16014, eq. 3 to 7)."""
    product = sae.centered(x) @ sae.W_enc[...]
    gate = product + sae.b_gate[...]
    magnitude = product * jnp.exp(sae.r_mag[...]) + sae.b_mag[...]
    return Encoded(jnp.where(gate > 0, jax.nn.relu(magnitude), 0.0), gate)


def _choosing(rule):
    """Of a rule (pre, weight, knobs, arch) -> (Chosen, threshold or None), on the fast path or the dense one."""

    def encode(sae, x, knobs):
        pre = sparse.Pre(sae.centered(x) @ sae.W_enc[...], sae.b_enc[...])
        weight = sae.norms() if knobs.weighted else jnp.ones_like(pre.bias)
        still, weight = lax.stop_gradient((pre, weight))
        chosen, threshold = rule(still, weight, knobs, sae.arch)
        if knobs.sparse:
            return Encoded(None, still, chosen, threshold)
        return Encoded(sparse.dense_chosen(pre.all(), chosen), pre.all(), None, threshold)

    return encode


CANDIDATES, LEAST = 4, 32
"""A row of a batch_topk batch gives so many times k candidates, or more; where more are on, the step is a dense one."""


def _topk(pre, weight, knobs, arch):
    return sparse.rank_scores(pre, weight, arch.k if knobs.k is None else knobs.k, arch.k), None


def _abs_topk(pre, weight, knobs, arch):
    return sparse.rank_scores(pre, weight, arch.k if knobs.k is None else knobs.k, arch.k, signed=True), None


def _batch_topk(pre, weight, knobs, arch):
    columns = max(CANDIDATES * arch.k, LEAST) if knobs.sparse else 1
    return sparse.batch_scores(pre, weight, arch.k if knobs.k is None else knobs.k, columns)


def _matching_pursuit(sae, x, knobs):
    """k times: the decoder row with the largest positive product with the residual, which then loses its projection.

    Rows have unit norm. A row may be taken twice; its values add. Gradients flow through values and residuals, not
    through the choice (Costa et al. 2025, arXiv 2506.03093; the iteration of Mallat & Zhang 1993).
    """
    W, residual = sae.W_dec[...], sae.centered(x)
    k = sae.arch.k if knobs.k is None else knobs.k
    still = lax.stop_gradient(W)
    known = W.shape[0] <= sae.arch.k * x.shape[0]  # few rows: their products among each other are worth knowing once
    gram = still @ still.T if known else jnp.zeros((0, 0))

    def take(carry, j):
        residual, products = carry
        index = jnp.argmax(products if known else lax.stop_gradient(residual) @ still.T, 1)
        row = jnp.take(W, index, 0)
        value = jnp.where(j < k, jax.nn.relu(jnp.sum(residual * row, -1)), 0.0)
        if known:
            products = products - lax.stop_gradient(value)[:, None] * jnp.take(gram, index, 0)
        return (residual - value[:, None] * row, products), (value, index)

    start = (residual, lax.stop_gradient(residual) @ still.T if known else gram)
    _, (values, indices) = lax.scan(take, start, jnp.arange(sae.arch.k))
    acts = sparse.dense(sparse.Code(values.T, indices.T), W.shape[0])
    return Encoded(acts, acts)


def _no_rule(sae, x, knobs):
    raise ValueError(
        "a batch_topk SAE chooses among a whole batch: at inference use the jumprelu SAE that objective.inference gives"
    )


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(_relu, _relu, {}),
    "topk": Activation(_choosing(_topk), _choosing(_topk), {}, takes_k=True),
    "batch_topk": Activation(_choosing(_batch_topk), None, {}, takes_k=True),
    "jumprelu": Activation(_jumprelu, _jumprelu, {"threshold": None}),
    "gated": Activation(_gated, _gated, {"b_gate": 0.0, "r_mag": 0.0, "b_mag": 0.0}, without=("b_enc",)),
    "abs_topk": Activation(_choosing(_abs_topk), _choosing(_abs_topk), {}, takes_k=True),
    "matching_pursuit": Activation(_matching_pursuit, _matching_pursuit, {}, without=("W_enc", "b_enc"), takes_k=True),
}
"""name -> activation: ReLU (Bricken et al. 2023), TopK (Gao et al. 2024), BatchTopK (Bussmann et al. 2024), JumpReLU
and Gated (Rajamanoharan et al. 2024), signed TopK, matching pursuit (Costa et al. 2025)."""


def infer(sae, x: Float[Array, "batch d_in"]) -> Float[Array, "batch d_sae"]:
    """Dense activations of a trained SAE, row by row.

    Raises:
        ValueError: the activation has no rule for a single row.
    """
    rule = ACTIVATIONS[sae.arch.activation].infer or _no_rule
    return rule(sae, x, Knobs()).acts
