"""How an SAE is trained: ``Training`` states it in plain values, ``population`` makes members of ``train.fit`` of it.

    arch = Architecture(d_in=64, d_sae=512, activation="batch_topk", k=8)
    pop = population(arch, Training(), {"seed": np.arange(4), "k": np.array([4, 8, 4, 8])}, Recipe(steps=1000, lr=1e-3))
    result = fit(pop, steps=1000, key=key, source=Sampler(lambda key: world.sample(key, 1024), shared=True))
    arch, params = inference(arch, Training(), *member(result, 0))

A batch is x [batch, d_in], or (x, y) for a transcoder, which reconstructs y [batch, d_out] from x.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from superpose.sae import losses, sparse
from superpose.sae.activations import ACTIVATIONS, Knobs
from superpose.sae.model import SAE, Architecture, as_jumprelu, fold_norms, fold_scale, norms
from superpose.train.fit import Objective, Population, Result, Sampler
from superpose.train.recipe import Recipe

NEVER = 2**30
"""Tokens at which the counter of silence stops."""
CHOOSING = ("topk", "batch_topk", "abs_topk")
"""Activations that have the fast path of ``sparse.reconstruct``."""
PER_MEMBER = ("coefficient", "target_l0", "k", "scale", "scale_out")
"""Values of which a population's hyper may hold one for each member, in place of those of Training and Architecture."""


@dataclass(frozen=True)
class Training:
    """Everything about the objective that is not the architecture; the optimiser's part is ``train.recipe.Recipe``.

    Attributes:
        error: a row of ``losses.ERRORS``.
        penalty: a row of ``losses.PENALTIES``.
        coefficient: of the penalty.
        warmup: steps over which the coefficient rises linearly to its value.
        target_l0: of the quadratic penalties and of the controller.
        control: whether the coefficient is steered so that the batch's mean L0 meets ``target_l0``.
        control_rate: growth of the log coefficient per step and unit of log(L0 / target).
        decoder: "unit" keeps rows of W_dec at norm 1 and drops the part of their gradient along them before the
            optimiser (Bricken et al. 2023); "free" weighs penalties and choices by the norms (Anthropic, April 2024).
        start_norm: norm of the decoder's rows at the start; of a unit decoder it is 1.
        threshold: JumpReLU's at the start.
        bandwidth, to_encoder: of JumpReLU's gradient estimator.
        tanh_scale: of the tanh penalty.
        p_end, p_from: ``lp``'s exponent falls linearly from 1 to p_end, from this fraction of the run on.
        k_start, k_steps: the k of the choosing activations falls linearly from k_start over so many steps.
        threshold_rate: of the running mean of BatchTopK's threshold.
        prefixes: sizes of the nested dictionaries of a Matryoshka SAE, ascending; the whole one is added.
        random_prefixes: so many sizes are drawn anew at each step instead, log-uniform; the whole one is added (random
            sizes: Bussmann et al. 2025, arXiv 2503.17547; their law in public code is a Pareto one).
        prefix_mean: whether the nested errors are averaged (dictionary_learning) or summed (SAELens). The penalty falls
            on the whole dictionary, once.
        revival: "none", "auxk" (Gao et al. 2024) or "pre_act" (Anthropic, January 2025), for dead latents.
        revival_coefficient: of that loss.
        auxk_k: dead latents that guess the residual; None is d_in // 2.
        auxk_normalise: see ``losses.auxk``.
        dead_tokens: a latent is dead after so many tokens of silence.
        fast: whether choosing activations take the fast path; None decides by the sizes.
        steps: length of the run, which annealing by fractions needs.
    """

    error: str = "sum"
    penalty: str = "none"
    coefficient: int | float = 0.0
    warmup: int = 0
    target_l0: int | float | None = None
    control: bool = False
    control_rate: float = 0.02
    decoder: str = "unit"
    start_norm: float = 0.1
    threshold: float = 0.001
    bandwidth: float = 0.001
    to_encoder: bool = False
    tanh_scale: float = 4.0
    p_end: float = 1.0
    p_from: float = 0.0
    k_start: int | float | None = None
    k_steps: int = 0
    threshold_rate: float = 0.01
    prefixes: tuple[int, ...] = ()
    random_prefixes: int = 0
    prefix_mean: bool = True
    revival: str = "none"
    revival_coefficient: int | float = 1 / 32
    auxk_k: int | None = None
    auxk_normalise: bool = True
    dead_tokens: int = 10_000_000
    fast: bool | None = None
    steps: int | None = None

    def __post_init__(self):
        for name, table in (
            ("error", losses.ERRORS), ("penalty", losses.PENALTIES), ("revival", losses.REVIVALS),
            ("decoder", ("unit", "free")),
        ):  # fmt: skip
            if getattr(self, name) not in table:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(table)}")
        for name in ("coefficient", "warmup", "k_steps", "random_prefixes", "revival_coefficient"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        for name in ("bandwidth", "control_rate", "start_norm", "tanh_scale", "dead_tokens"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.dead_tokens >= NEVER:
            raise ValueError(f"dead_tokens must be below {NEVER}, where counting stops, got {self.dead_tokens}")
        if not 0 < self.threshold_rate <= 1 or not 0 < self.p_end <= 1 or not 0 <= self.p_from < 1:
            raise ValueError(
                "threshold_rate and p_end lie in (0, 1], p_from in [0, 1), got "
                f"{self.threshold_rate}, {self.p_end}, {self.p_from}"
            )
        if self.penalty == "lp" and self.p_end < 1 and not self.steps:
            raise ValueError("penalty 'lp' needs steps, the length of the run: p falls by fractions of it")
        if (self.k_start is None) != (self.k_steps == 0):
            raise ValueError(f"k_start and k_steps need each other, got {self.k_start} and {self.k_steps}")
        if self.prefixes and self.random_prefixes:
            raise ValueError("prefixes and random_prefixes exclude each other: give one of them")
        if list(self.prefixes) != sorted(set(self.prefixes)) or any(p < 1 for p in self.prefixes):
            raise ValueError(f"prefixes must be ascending sizes of at least 1, got {self.prefixes}")


class Defaults(NamedTuple):
    """What the field agrees on: the first three are for ``population``, the last two for ``prepared``."""

    arch: Architecture
    training: Training
    recipe: Recipe
    scale: str
    centre: str


def defaults(
    d_in: int,
    d_sae: int,
    steps: int,
    *,
    activation: str = "batch_topk",
    k: int | None = None,
    coefficient: float | None = None,
    prefixes: Sequence[int] = (),
) -> Defaults:
    """Settings that the published recipes share, for activations of a language model, in batches of 2,000 to 8,000.

    All: W_enc starts as W_dec^T, inputs scaled to mean norm sqrt(d), b_dec their geometric median, Adam clipped at 1,
    1,000 steps of warm-up (a quarter of a short run), the rate falling to 0 over the last fifth, latents dead after 10
    million silent tokens: what most of the recipes below do, each of which departs somewhere.
    topk, batch_topk, abs_topk (Gao et al. 2024, arXiv 2406.04093; Bussmann et al. 2024, arXiv 2412.06410): unit rows,
    AuxK at 1/32, rate 2e-4 / sqrt(d_sae / 2^14); the running threshold moves by 0.01 from the first batch on, whose
    share after 1,000 steps is 4e-5. relu (Anthropic, April 2024): free rows that start at norm 0.1, L1 weighted by
    them. gated (Rajamanoharan et al. 2024, arXiv 2404.16014): unit rows, L1 on the gate. jumprelu (Anthropic, January
    2025): free rows from 0.1, tanh penalty, bandwidth 2, thresholds from 0.1, gradients through to the encoder, the
    pre-activation loss at 3e-6 for dead latents. The
    last three: rate 3e-4, coefficient rising over the whole run (jumprelu) or its first twentieth; gated and jumprelu
    take Adam's b1 = 0; the encoders of relu and jumprelu see x and not x - b_dec.

    Args:
        d_in, d_sae: widths.
        steps: of the run.
        activation: batch_topk is the safe choice, with prefixes (Matryoshka) where features matter more than error.
        k: active latents, for activations that choose so many.
        coefficient: of the penalty, for those that have one.
        prefixes: sizes of nested dictionaries.

    Raises:
        ValueError: no recipe for the activation, or k or coefficient missing, or given where the other belongs.

    >>> defaults(64, 1024, 10_000, k=8).recipe.lr
    0.0008
    """
    chooses = activation in CHOOSING
    if not chooses and activation not in ("relu", "gated", "jumprelu"):
        raise ValueError(f"no defaults for {activation!r}: choose one of {', '.join(CHOOSING)}, relu, gated, jumprelu")
    if (k is None) == chooses or (coefficient is None) != chooses:
        raise ValueError(f"{activation} takes {'k' if chooses else 'a coefficient'} and nothing else of the two")
    free = Training(decoder="free", start_norm=0.1, prefixes=tuple(prefixes), coefficient=coefficient or 0.0)
    unit, soon = replace(free, decoder="unit"), max(1, steps // 20)
    training = {
        "relu": replace(free, penalty="l1", warmup=soon),
        "gated": replace(unit, penalty="l1", warmup=soon),
        "jumprelu": replace(
            free, penalty="tanh", tanh_scale=4.0, bandwidth=2.0, threshold=0.1, to_encoder=True, warmup=steps,
            revival="pre_act", revival_coefficient=3e-6,
        ),
    }.get(activation, replace(unit, revival="auxk"))  # fmt: skip
    recipe = Recipe(
        steps=steps, lr=2e-4 / math.sqrt(d_sae / 2**14) if chooses else 3e-4, clip_norm=1.0, schedule="linear",
        decay_from=0.8, warmup=min(1000, steps // 4), b1=0.0 if activation in ("gated", "jumprelu") else 0.9,
    )  # fmt: skip
    arch = Architecture(d_in, d_sae, activation, k, center=activation not in ("relu", "jumprelu"))
    return Defaults(arch, training, recipe, "sqrt_d", "geometric_median")


def _check(arch: Architecture, t: Training) -> None:
    jumps = arch.activation == "jumprelu"
    if (t.penalty in losses.OF_THRESHOLDS or t.revival == "pre_act") and not jumps:
        what = t.penalty if t.penalty in losses.OF_THRESHOLDS else "pre_act"
        raise ValueError(f"{what} works on a JumpReLU threshold, which a {arch.activation} SAE has not")
    if t.penalty != "none" and (arch.activation in CHOOSING or arch.activation == "matching_pursuit"):
        raise ValueError(f"{arch.activation} sets its own sparsity: penalty must be 'none', got {t.penalty!r}")
    if t.revival == "auxk" and arch.activation in ("gated", "matching_pursuit"):
        raise ValueError(f"auxk needs the pre-activations that a {arch.activation} SAE has not: choose another revival")
    if t.control and (t.penalty == "none" or t.penalty in ("quadratic", "quadratic_mean")):
        raise ValueError(f"control steers a penalty's coefficient (l1, lp, l0, tanh), got penalty {t.penalty!r}")
    if t.k_start is not None and arch.k is None:
        raise ValueError(f"k_start is of activations that choose k latents, not of {arch.activation}")
    if t.k_start is not None and t.k_start > (arch.k or 0):
        raise ValueError(f"k_start must be at most the architecture's k={arch.k}, got {t.k_start}")
    if t.decoder == "unit" and arch.sites > 1:
        raise ValueError("a crosscoder's rows have a norm at each site: choose decoder='free'")
    if arch.activation == "matching_pursuit" and t.decoder != "unit":
        raise ValueError("matching_pursuit needs unit-norm rows: choose decoder='unit'")
    if t.prefixes and t.prefixes[-1] > arch.d_sae:
        raise ValueError(f"prefixes must not exceed d_sae={arch.d_sae}, got {t.prefixes}")


# --- one step of one member -------------------------------------------------------------------------------------------


def _fast(arch: Architecture, t: Training) -> bool:
    """Whether the fast path pays: measured on CPU at batch 2048 with the figures of docs/saes.md."""
    if t.fast is not None:
        return t.fast and arch.activation in CHOOSING
    return arch.activation in CHOOSING and arch.d_sae >= 64 * (arch.k or 1) and arch.d_sae >= 4096


def _edges(arch: Architecture, t: Training, key):
    if not t.random_prefixes:
        return sparse.prefix_edges(arch.d_sae, t.prefixes)
    drawn = jnp.exp(jax.random.uniform(key, (t.random_prefixes,)) * jnp.log(float(arch.d_sae)))
    return jnp.append(jnp.sort(drawn).astype(jnp.int32), arch.d_sae)


def _nested(acts, W_dec, edges, t: Training):
    """acts @ W_dec of each nested dictionary, [P, batch, d_out]."""
    if edges.shape[0] == 1:
        return (acts @ W_dec)[None]
    if not t.random_prefixes:  # known sizes: each stretch is multiplied once
        ends = [0, *t.prefixes, W_dec.shape[0]]
        parts = [acts[:, a:b] @ W_dec[a:b] for a, b in itertools.pairwise(ends) if b > a]
        return jnp.cumsum(jnp.stack(parts), 0)
    return jax.vmap(lambda edge: jnp.where(jnp.arange(W_dec.shape[0]) < edge, acts, 0.0) @ W_dec)(edges)


def objective(arch: Architecture, t: Training, between: Callable | None = None) -> Objective:
    """The objective of one SAE: error + coefficient x penalty + revival.

    State: ``silent`` [d_sae], tokens since each latent fired; ``threshold`` of batch_topk, the running mean of its
    smallest activation that is on, -1 before the first batch; ``log_coefficient`` and ``level`` of the controller,
    ``lp_scale`` of p-annealing.
    Metrics: ``error`` of the whole dictionary, ``fvu`` within the batch, ``l0``, ``dead``, ``coefficient``.

    Args:
        between: see ``train.fit.Objective``; ``resample`` makes one.

    Raises:
        ValueError: a combination that has no meaning, in one sentence.
    """
    _check(arch, t)
    row, fast = ACTIVATIONS[arch.activation], _fast(arch, t)
    k_aux = min(arch.d_sae, max(1, arch.d_in // 2) if t.auxk_k is None else t.auxk_k)

    def init(key, hyper):
        W_dec = jax.random.normal(key, (arch.d_sae, arch.sites, arch.out // arch.sites))
        W_dec = W_dec / jnp.linalg.norm(W_dec, axis=-1, keepdims=True)
        W_dec = W_dec.reshape(arch.d_sae, arch.out) * (1.0 if t.decoder == "unit" else t.start_norm)
        if arch.out == arch.d_in:
            W_enc = W_dec.T
        else:
            W_enc = jax.random.normal(jax.random.fold_in(key, 1), (arch.d_in, arch.d_sae))
            W_enc = W_enc / jnp.linalg.norm(W_enc, axis=0) * (1.0 if t.decoder == "unit" else t.start_norm)
        params = {
            "W_enc": W_enc, "b_enc": jnp.zeros(arch.d_sae), "W_dec": W_dec,
            "b_dec": jnp.asarray(hyper.get("b_dec", jnp.zeros(arch.out)), jnp.float32),
        }  # fmt: skip
        params = {k: v for k, v in params.items() if k not in row.without}
        for name, value in row.params.items():
            params[name] = jnp.full(arch.d_sae, t.threshold if value is None else value)
        if arch.skip:
            params["W_skip"] = jnp.zeros((arch.d_in, arch.out))
        state = {"silent": jnp.zeros(arch.d_sae, jnp.int32)}
        if arch.activation == "batch_topk":
            state["threshold"] = jnp.float32(-1)
        if t.control:
            state |= {"log_coefficient": jnp.float32(0), "level": jnp.float32(-1)}
        if t.penalty == "lp":
            state["lp_scale"] = jnp.float32(1)
        return params, state

    def loss(params, state, batch, key, step, hyper):
        value = lambda name, default: hyper.get(name, default)  # noqa: E731
        sae = SAE(arch, params)
        x, y = batch if isinstance(batch, tuple) else (batch, batch)
        scale = value("scale", 1.0)
        x, y = x * scale, y * value("scale_out", scale)
        k = value("k", arch.k)
        if t.k_start is not None:
            k = k + (t.k_start - k) * jnp.clip(1 - step / t.k_steps, 0, 1)
        knobs = Knobs(
            k=k, bandwidth=t.bandwidth, to_encoder=t.to_encoder, weighted=t.decoder == "free", sparse=fast,
        )  # fmt: skip
        seen = row.train(sae, x, knobs)
        edges = _edges(arch, t, key)
        W_dec, b_dec = params["W_dec"], params["b_dec"]
        size = sae.norms() if t.decoder == "free" else jnp.ones(arch.d_sae)
        if fast:
            on, l0 = sparse.fired(seen.pre, seen.chosen)
        else:
            on, l0 = (seen.acts != 0).any(0), jnp.mean(jnp.sum(seen.acts != 0, -1))
        # how long each latent has been silent, in tokens, this batch included
        silent = jnp.where(on, 0, jnp.minimum(state["silent"] + x.shape[0], NEVER))
        dead = silent >= t.dead_tokens
        state = {**state, "silent": silent}

        of = sparse.Dead(dead, lax.stop_gradient(size)) if t.revival == "auxk" else None
        if fast:
            encoder = (x, b_dec if arch.center else jnp.zeros(arch.d_in), params["W_enc"], params["b_enc"])
            nested, guess = sparse.reconstruct(k_aux, *encoder, W_dec, seen.pre.product, seen.chosen, edges, of)
        else:
            nested, guess = _nested(seen.acts, W_dec, edges, t), None
            if of is not None:
                guess = sparse.dead_guess(k_aux, of, seen.pre, W_dec)
        nested = nested + b_dec
        if arch.skip:
            nested = nested + x @ params["W_skip"]
        residual = y - nested[-1]
        errors = jax.vmap(lambda x_hat: losses.ERRORS[t.error](y, y - x_hat))(nested)
        total = errors.mean() if t.prefix_mean else errors.sum()
        metrics = {"error": errors[-1], "fvu": losses.ERRORS["fvu"](y, residual), "l0": l0, "dead": jnp.sum(dead)}

        if seen.threshold is not None:
            old, rate = state["threshold"], t.threshold_rate
            now = lax.stop_gradient(jnp.float32(seen.threshold))
            state["threshold"] = jnp.where(old < 0, now, (1 - rate) * old + rate * now)

        if arch.activation == "gated":  # the gate alone must reconstruct too, with a decoder it can't change (eq. 8)
            gate = jax.nn.relu(seen.pre)
            by_gate = gate @ lax.stop_gradient(W_dec) + lax.stop_gradient(b_dec)
            total += losses.ERRORS[t.error](y, y - by_gate)

        if t.penalty != "none":
            falls = jnp.float32(1)
            if t.penalty == "lp" and t.p_end < 1:
                falls = lambda step: 1 - (1 - t.p_end) * jnp.clip((step / t.steps - t.p_from) / (1 - t.p_from), 0, 1)  # noqa: E731
            p = falls(step) if callable(falls) else falls
            acts = jax.nn.relu(seen.pre) if arch.activation == "gated" else seen.acts
            facts = losses.Seen(
                acts, seen.pre, size, params.get("threshold"), value("target_l0", t.target_l0), p, t.bandwidth,
                t.to_encoder, t.tanh_scale,
            )  # fmt: skip
            coefficient = jnp.float32(value("coefficient", t.coefficient))
            if t.control:
                coefficient, state = _steered(coefficient, l0, facts.target_l0, state, t.control_rate)
            penalty = losses.PENALTIES[t.penalty](facts)
            if t.penalty == "lp":  # the penalty is as large after p has fallen as before (Karvonen et al. 2024)
                coefficient = coefficient * state["lp_scale"]
                if callable(falls):
                    after = losses.lp(facts._replace(p=falls(step + 1)))
                    kept = lax.stop_gradient(penalty / jnp.maximum(after, 1e-30))
                    state["lp_scale"] = jnp.where(after > 0, state["lp_scale"] * kept, state["lp_scale"])
            metrics["coefficient"] = coefficient
            warm = jnp.minimum(1.0, (step + 1) / t.warmup) if t.warmup else 1.0
            total += warm * coefficient * penalty

        if guess is not None:
            auxk = losses.auxk(y, residual, guess, dead, k_aux, t.auxk_normalise)
            total += t.revival_coefficient * auxk
        if t.revival == "pre_act":
            total += t.revival_coefficient * losses.pre_act(seen.pre, params["threshold"], size, dead)
        return total, (state, metrics)

    def grads(params, grads):
        W, g = params["W_dec"], grads["W_dec"]
        along = jnp.sum(g * W, -1, keepdims=True) / jnp.maximum(jnp.sum(W * W, -1, keepdims=True), 1e-30)
        return {**grads, "W_dec": g - along * W}

    def project(params, hyper, step):
        params = dict(params)
        if t.decoder == "unit":
            size = norms(params["W_dec"])[:, None]
            params["W_dec"] = params["W_dec"] / jnp.where(size > 0, size, 1.0)
        if "threshold" in params:
            params["threshold"] = jnp.maximum(params["threshold"], 0.0)
        return params

    unit = t.decoder == "unit"
    projects = unit or "threshold" in arch.shapes()
    return Objective(init, loss, grads if unit else None, project if projects else None, between=between)


FORCE, SMOOTH = 0.5, 0.1
"""Of the controller: its proportional part, and how much of the smoothed L0 is the newest batch's."""


def _steered(coefficient, l0, target, state, rate):
    """A controller with an integral and a proportional part on log(L0 / target); returns (coefficient, state)."""
    l0 = lax.stop_gradient(jnp.float32(l0))
    level = jnp.where(state["level"] < 0, l0, (1 - SMOOTH) * state["level"] + SMOOTH * l0)
    off = jnp.clip(jnp.log(jnp.maximum(level, 1e-3) / target), -2.0, 2.0)
    log_coefficient = state["log_coefficient"] + rate * off
    state = {**state, "level": level, "log_coefficient": log_coefficient}
    return coefficient * jnp.exp(log_coefficient + FORCE * off), state


# --- populations ------------------------------------------------------------------------------------------------------


def population(
    arch: Architecture,
    training: Training,
    hyper: Mapping[str, Any],
    recipe: Any,
    *,
    between: Callable | None = None,
    block: int | None = None,
    param_spec: Callable | None = None,
) -> Population:
    """N SAEs of one architecture for ``train.fit.fit``, on one shared stream of batches.

    Args:
        hyper: ``seed`` [N]; any of ``PER_MEMBER`` [N]; ``b_dec`` [N, d_out] to start from; ``lr``, ``weight_decay``.
        recipe: a ``train.recipe.Recipe``.
        between, block, param_spec: see ``train.fit``. One member a block is the default: the products of an SAE are
            large, and a step can then skip what it does not need.

    Raises:
        ValueError: values without meaning, in one sentence.
    """
    known = {"seed", "lr", "weight_decay", "b_dec", *PER_MEMBER}
    if unknown := sorted(hyper.keys() - known):
        raise ValueError(f"unknown values in hyper: {', '.join(unknown)}; an SAE knows {', '.join(sorted(known))}")
    hyper = {k: np.asarray(v) for k, v in hyper.items()}
    for name in (*PER_MEMBER, "b_dec"):
        if name in hyper:
            if not np.all(np.isfinite(hyper[name])):
                raise ValueError(f"{name} must be finite, got {hyper[name]}")
            if hyper[name].dtype.kind == "f":
                hyper[name] = hyper[name].astype(np.float32)
    if "k" in hyper and (arch.k is None or hyper["k"].min() <= 0 or hyper["k"].max() > arch.k):
        raise ValueError(f"each member's k must lie in (0, {arch.k}], the architecture's k, got {hyper['k'].tolist()}")
    if "b_dec" in hyper and hyper["b_dec"].shape[1:] != (arch.out,):
        raise ValueError(f"b_dec must be [N, {arch.out}] in hyper, got {hyper['b_dec'].shape}")
    target = hyper.get("target_l0", training.target_l0)
    if training.control or training.penalty.startswith("quadratic"):
        if target is None or np.min(target) <= 0 or np.max(target) > arch.d_sae:
            raise ValueError(f"target_l0 must lie in (0, {arch.d_sae}], got {target}")
    if training.control and np.min(hyper.get("coefficient", training.coefficient)) <= 0:
        raise ValueError("control multiplies the coefficient: give one above 0 to start from")
    return Population(objective(arch, training, between), recipe, hyper, block=block or 1, param_spec=param_spec)


def member(result: Result, i: int) -> tuple[dict, dict, dict]:
    """(params, state, hyper) of member i of a result, as NumPy arrays."""
    take = lambda tree: jax.tree.map(lambda x: np.asarray(x)[i], tree)  # noqa: E731
    return take(result.params), take(result.state), {k: np.asarray(v)[i] for k, v in result.hyper.items()}


def inference(
    arch: Architecture, training: Training, params: Mapping, state: Mapping, hyper: Mapping
) -> tuple[Architecture, dict]:
    """The trained SAE as one that reads plain inputs, row by row, with nothing left of its training.

    Scales are folded into the weights; a batch_topk SAE becomes a JumpReLU SAE with the running threshold; norms are
    folded where the choice was made by norm-weighted activations; Matryoshka prefixes leave no trace.

    Args:
        params, state, hyper: of one member (``member``).

    Raises:
        ValueError: a batch_topk SAE that has not seen a batch.
    """
    if arch.activation == "batch_topk":
        if state["threshold"] < 0:
            raise ValueError("this batch_topk SAE has seen no batch and has no threshold: train it first")
        arch, params = (
            as_jumprelu(arch, params, state["threshold"])
            if training.decoder == "free"
            else (
                replace(arch, activation="jumprelu", k=None),
                {**params, "threshold": np.broadcast_to(state["threshold"], (arch.d_sae,))},
            )
        )
        # what equals the threshold is on in training, and JumpReLU's inequality is strict
        params["threshold"] = np.nextafter(np.asarray(params["threshold"], np.float32), np.float32(0))
    elif arch.k is not None:
        k = math.ceil(hyper.get("k", arch.k))  # so many ranks are on in training too
        arch = replace(arch, k=max(1, k))
    if training.decoder == "free":
        params = fold_norms(arch, params)
    scale = float(hyper.get("scale", 1.0))
    scale_out = float(hyper.get("scale_out", scale))
    if scale != 1.0 or scale_out != 1.0:
        params = fold_scale(arch, params, scale, None if scale == scale_out else scale_out)
    return arch, {k: np.asarray(v, np.float32) for k, v in params.items()}


# --- before training and between chunks -------------------------------------------------------------------------------


def geometric_median(x: Float[np.ndarray, "batch d"], steps: int = 100, tolerance: float = 1e-8) -> np.ndarray:
    """The point with the least summed distance to the rows, [d], by Weiszfeld's iteration (Bricken et al. 2023: b_dec).

    >>> print(geometric_median(np.array([[0.0], [0.0], [9.0]])).round(3))
    [0.]
    """
    rows = np.asarray(x, np.float64)
    middle = rows.mean(0)
    for _ in range(steps):
        distance = np.linalg.norm(rows - middle, axis=1)
        weight = 1 / np.maximum(distance, 1e-12)
        new = weight @ rows / weight.sum()
        if np.linalg.norm(new - middle) <= tolerance * (1 + np.linalg.norm(middle)):
            return new
        middle = new
    return middle


CENTRES: dict[str, Callable] = {
    "zero": lambda x: np.zeros(x.shape[1]),
    "mean": lambda x: x.mean(0),
    "geometric_median": geometric_median,
}
"""name -> sample [batch, d] -> where b_dec starts."""
SCALES: dict[str, Callable] = {
    "none": lambda x: 1.0,
    "sqrt_d": lambda x: math.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1).mean(),
    "mean_square": lambda x: 1 / math.sqrt((x**2).sum(1).mean()),
}
"""name -> sample [batch, d] -> factor: mean norm sqrt(d) (Anthropic, April 2024), mean square 1 (arXiv 2407.14435)."""


def prepared(sample: Float[np.ndarray, "batch d"], scale: str = "none", centre: str = "zero") -> dict[str, np.ndarray]:
    """{"scale": [], "b_dec": [d]} of a sample of activations, to be repeated over members in hyper.

    b_dec is in scaled units. ``np.repeat(v[None], N, 0)`` makes them [N, ...].

    Raises:
        ValueError: unknown names, or values that are not finite, counted.
    """
    for what, name, table in (("scale", scale, SCALES), ("centre", centre, CENTRES)):
        if name not in table:
            raise ValueError(f"unknown {what} {name!r}: choose one of {', '.join(table)}")
    rows = np.asarray(sample, np.float64)
    if bad := int((~np.isfinite(rows)).sum()):
        raise ValueError(f"the sample has {bad} of {rows.size} values that are not finite: mend or drop them")
    if not rows.any():
        raise ValueError("the sample is all zeros: there is nothing to scale by")
    factor = float(SCALES[scale](rows))
    return {"scale": np.asarray(factor, np.float32), "b_dec": np.asarray(CENTRES[centre](rows * factor), np.float32)}


def resample(arch: Architecture, training: Training, rows: int = 8192, share: float = 0.2) -> Callable:
    """A ``between`` hook that gives dead latents to badly reconstructed inputs (Bricken et al. 2023, Appendix).

    Dead: silent for ``training.dead_tokens``. Each gets an input (none that is 0), drawn with probability proportional
    to the square of its error: as decoder row at unit norm, as encoder column at ``share`` of the mean norm of the
    living ones; its bias and its entries in the optimiser's state become 0, a threshold what it was at the start.

    Args:
        rows: inputs among which it draws; taken from the source as whole batches.

    Raises:
        ValueError: an activation without the encoder that this needs.
    """
    if arch.activation in ("gated", "matching_pursuit") or arch.out != arch.d_in or arch.sites > 1 or arch.skip:
        raise ValueError("resampling is for SAEs with an encoder of their own: choose another revival")
    row = ACTIVATIONS[arch.activation]

    @jax.jit
    def errors(params, x, k, scale):
        sae = SAE(arch, params)
        knobs = Knobs(k=k, bandwidth=training.bandwidth, weighted=training.decoder == "free")
        x = x * scale
        return jnp.sum((x - sae.decode(row.train(sae, x, knobs).acts)) ** 2, -1), x

    def between(members, hyper, source, key, step):
        if isinstance(source, Sampler) and not source.shared:
            raise ValueError("resampling draws inputs for all members: give fit a shared Sampler or a Stream")
        dead = members.state["silent"] >= training.dead_tokens
        if not dead.any():
            return members
        draw_key, pick_key = jax.random.split(key)
        batches: list[Any] = []
        count = 0
        while count < rows:
            if isinstance(source, Sampler):
                batches.append(source.sample(jax.random.fold_in(draw_key, len(batches))))
            else:
                batches.append(next(source))
            if isinstance(batches[-1], tuple):
                raise ValueError("resampling is for SAEs: a transcoder's batches (x, y) give no row for its decoder")
            count += len(batches[-1])
            if bad := int((~np.isfinite(batches[-1])).sum()):
                raise ValueError(
                    f"what resampling drew after step {step} has {bad} of {batches[-1].size} values that are not "
                    "finite: mend or drop them before training"
                )
        for i in np.flatnonzero(dead.any(1)).tolist():
            params = jax.tree.map(lambda a, i=i: a[i], members.params)
            pick = lambda name, default, i=i: hyper[name][i] if name in hyper else default  # noqa: E731
            found = [errors(params, jnp.asarray(b), pick("k", arch.k), pick("scale", 1.0)) for b in batches]
            error, x = (np.concatenate([np.asarray(f[j], np.float64) for f in found]) for j in (0, 1))
            gone, odds = np.flatnonzero(dead[i]), error**2 * x.any(1)  # a row of zeros has no direction
            if not odds.sum() > 0:
                continue
            u = np.asarray(jax.random.uniform(jax.random.fold_in(pick_key, i), (len(gone),)), np.float64)
            edges = np.cumsum(odds)
            chosen = x[np.minimum(np.searchsorted(edges, u * edges[-1], side="right"), len(x) - 1)]
            unit = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-30)
            living = ~dead[i]
            lengths = np.linalg.norm(params["W_enc"], axis=0)
            length = lengths[living].mean() if living.any() else lengths.mean()
            members.params["W_dec"][i, gone] = unit
            members.params["W_enc"][i][:, gone] = (share * length * unit).T
            members.params["b_enc"][i, gone] = 0
            if "threshold" in members.params:
                members.params["threshold"][i, gone] = training.threshold
            _forget(members.opt_state, i, gone)
            members.state["silent"][i, gone] = 0
        return members

    return between


def _forget(opt_state: Any, i: int, gone: np.ndarray) -> None:
    """Sets the optimiser's entries for some latents of member i to 0, in place."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        name = getattr(path[-1], "key", None)
        if name in ("W_dec", "b_enc", "threshold"):
            leaf[i, gone] = 0
        if name == "W_enc":
            leaf[i][:, gone] = 0
