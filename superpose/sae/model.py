"""Sparse autoencoders as encode -> activation -> decode; also transcoders and crosscoders, which differ in shapes only.

Rows are samples: x [batch, d_in]. Row i of ``W_dec`` [d_sae, d_out] is the direction of latent i, column i of ``W_enc``
[d_in, d_sae] reads it. A crosscoder is an SAE of its sites' activations side by side: site s owns columns
s d_in / sites to (s + 1) d_in / sites, and the norm of a latent is the sum of its norms over the sites.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from superpose.sae import activations


@dataclass(frozen=True)
class Architecture:
    """What of an SAE is no number that training changes.

    Attributes:
        d_in: width of what is encoded; for a crosscoder the sum over its sites.
        d_sae: latents.
        activation: a row of ``activations.ACTIVATIONS``.
        k: active latents per sample of the activations that choose so many (the largest k, where members differ).
        d_out: width of what is reconstructed; None is d_in. Another width, or another target, makes a transcoder.
        sites: models or layers of a crosscoder; 1 for all others.
        skip: adds x @ W_skip to the output (skip transcoder, Paulo et al. 2025, arXiv 2501.18823).
        center: the encoder sees x - b_dec. Only where input and output are the same space.
    """

    d_in: int
    d_sae: int
    activation: str = "batch_topk"
    k: int | None = None
    d_out: int | None = None
    sites: int = 1
    skip: bool = False
    center: bool = True

    def __post_init__(self):
        if self.activation not in activations.ACTIVATIONS:
            known = ", ".join(activations.ACTIVATIONS)
            raise ValueError(f"unknown activation {self.activation!r}: choose one of {known}")
        for name in ("d_in", "d_sae", "sites", "out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.out % self.sites or self.d_in % self.sites:
            raise ValueError(f"{self.sites} sites must divide d_in={self.d_in} and d_out={self.out}")
        if activations.ACTIVATIONS[self.activation].takes_k:
            if self.k is None or not 1 <= self.k <= self.d_sae or self.k != int(self.k):
                raise ValueError(f"{self.activation} needs 1 <= k <= d_sae={self.d_sae}, got k={self.k}")
        elif self.k is not None:
            raise ValueError(f"{self.activation} takes no k, got k={self.k}: leave it out")
        if self.center and self.out != self.d_in:
            raise ValueError(f"center needs d_out = d_in, got d_in={self.d_in}, d_out={self.out}: set center=False")
        if self.activation == "matching_pursuit" and (self.skip or self.out != self.d_in or not self.center):
            raise ValueError("matching_pursuit encodes by its decoder: it takes no skip, no d_out and needs center")

    @property
    def out(self) -> int:
        return self.d_in if self.d_out is None else self.d_out

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape; what a file or checkpoint must hold."""
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (self.d_in, self.d_sae), "b_enc": (self.d_sae,),
            "W_dec": (self.d_sae, self.out), "b_dec": (self.out,),
        }  # fmt: skip
        extra = activations.ACTIVATIONS[self.activation]
        shapes = {k: v for k, v in shapes.items() if k not in extra.without}
        shapes |= {name: (self.d_sae,) for name in extra.params}
        return shapes | ({"W_skip": (self.d_in, self.out)} if self.skip else {})


class SAE(nnx.Module):
    """x_hat = decode(encode(x)): h = activation((x - b_dec) W_enc + b_enc), x_hat = h W_dec + b_dec.

    Gated SAEs have ``b_gate``, ``b_mag`` and ``r_mag`` in place of ``b_enc``, JumpReLU SAEs a ``threshold``; matching
    pursuit has no encoder. All parameters are float arrays with the shapes of ``Architecture.shapes``.
    """

    W_enc: nnx.Param
    b_enc: nnx.Param
    W_dec: nnx.Param
    b_dec: nnx.Param
    W_skip: nnx.Param

    def __init__(self, arch: Architecture, params: Mapping[str, Any]):
        """An SAE of these parameters.

        Raises:
            ValueError: a parameter is missing, unknown, or has another shape than ``arch`` says.
        """
        shapes = arch.shapes()
        if shapes.keys() != params.keys():
            missing, unknown = sorted(shapes.keys() - params.keys()), sorted(params.keys() - shapes.keys())
            raise ValueError(f"the parameters of a {arch.activation} SAE: missing {missing}, unknown {unknown}")
        for name, shape in shapes.items():
            if params[name].shape != shape:
                raise ValueError(f"{name} must have shape {shape} by the architecture, got {params[name].shape}")
        self.arch = arch
        for name in shapes:
            setattr(self, name, nnx.Param(jnp.asarray(params[name])))

    def centered(self, x: Float[ArrayLike, "*batch d_in"]) -> Float[Array, "*batch d_in"]:
        """What the encoder sees."""
        return jnp.asarray(x) - self.b_dec[...] if self.arch.center else jnp.asarray(x)

    def norms(self) -> Float[Array, " d_sae"]:
        """Norm of each latent's direction; a crosscoder's is summed over its sites (Lindsey et al. 2024)."""
        return norms(self.W_dec[...], self.arch.sites)

    def encode(self, x: Float[ArrayLike, "*batch d_in"]) -> Float[Array, "*batch d_sae"]:
        """Activations, as at inference.

        Raises:
            ValueError: a batch_topk SAE, whose gate looks at a whole batch: take ``objective.inference`` of it.
        """
        x = jnp.asarray(x)
        return activations.infer(self, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    def decode(self, acts: Float[ArrayLike, "*batch d_sae"]) -> Float[Array, "*batch d_out"]:
        return jnp.asarray(acts) @ self.W_dec[...] + self.b_dec[...]

    def __call__(self, x: Float[ArrayLike, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        x_hat = self.decode(self.encode(x))
        return x_hat + jnp.asarray(x) @ self.W_skip[...] if self.arch.skip else x_hat


def norms(W_dec: Float[ArrayLike, "d_sae d_out"], sites: int = 1) -> Float[Array, " d_sae"]:
    """||W_dec_i||, or the sum over sites of the norms of its parts.

    >>> print(norms(jnp.array([[3.0, 4.0]])), norms(jnp.array([[3.0, 4.0]]), sites=2))
    [5.] [7.]
    """
    W_dec = jnp.asarray(W_dec)
    parts = W_dec.reshape(W_dec.shape[0], sites, -1)
    square = jnp.sum(parts * parts, -1)
    positive = square > 0
    return jnp.sum(jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0), -1)


def fold_norms(arch: Architecture, params: Mapping[str, Any]) -> dict[str, Any]:
    """The same SAE with unit-norm decoder rows: what a latent says is then in the units of x.

    Rows of norm 0 stay. Outputs are equal for every activation but topk, abs_topk and batch_topk SAEs that were not
    trained to choose by norm-weighted activations: there the choice may differ.

    Raises:
        ValueError: matching pursuit, whose rows have unit norm by definition of its encoder.
    """
    if arch.activation == "matching_pursuit":
        raise ValueError("a matching_pursuit SAE has no encoder to fold norms into: keep its rows at unit norm")
    size = norms(jnp.asarray(params["W_dec"]), arch.sites)
    size = jnp.where(size > 0, size, 1.0)
    out = dict(params)
    out["W_dec"] = params["W_dec"] / size[:, None]
    out["W_enc"] = params["W_enc"] * size
    for name in ("b_enc", "b_gate", "b_mag", "threshold"):
        if name in out:
            out[name] = params[name] * size
    return out


def fold_scale(
    arch: Architecture, params: Mapping[str, Any], scale: float, scale_out: float | None = None
) -> dict[str, Any]:
    """An SAE trained on scale * x (and scale_out * target) as one of x itself.

    h stays as it is: h(scale x) of the old one equals h(x) of the new one, and x_hat comes out in the units of x. For
    an SAE (not a transcoder) ``scale_out`` is ``scale``. Matching pursuit has no encoder and keeps its unit rows: its h
    comes out in the units of x too.
    """
    scale_out = scale if scale_out is None else scale_out
    if arch.activation == "matching_pursuit":
        if scale_out != scale:
            raise ValueError("a matching_pursuit SAE has one scale, of x and x_hat: leave scale_out out")
        return {**params, "b_dec": params["b_dec"] / scale}
    if arch.center and scale_out != scale:
        raise ValueError("an SAE that centres its input has one scale: leave scale_out out")
    out = dict(params)
    out["W_enc"] = params["W_enc"] * scale
    out["W_dec"] = params["W_dec"] / scale_out
    out["b_dec"] = params["b_dec"] / scale_out
    if arch.skip:
        out["W_skip"] = params["W_skip"] * (scale / scale_out)
    return out


def as_jumprelu(arch: Architecture, params: Mapping[str, Any], threshold: Any) -> tuple[Architecture, dict]:
    """A batch_topk SAE with the per-token gate that stands for its batch gate at inference: one threshold for all.

    Args:
        threshold: scalar or [d_sae], in the units in which the choice was made (norm-weighted activations).
    """
    per_latent = jnp.broadcast_to(jnp.asarray(threshold), (arch.d_sae,))
    size = norms(jnp.asarray(params["W_dec"]), arch.sites)
    per_latent = per_latent / jnp.where(size > 0, size, 1.0)
    return replace(arch, activation="jumprelu", k=None), {**params, "threshold": per_latent}
