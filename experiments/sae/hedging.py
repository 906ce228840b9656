"""Feature hedging: an SAE with too few latents mixes correlated features into one direction.

Chanin, Dulka and Garriga-Alonso 2025 (arXiv 2505.11756): one latent for two features, independent or child and parent,
and two latents on the same data; all against the exact optimum of the same loss.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import optimize

from experiments import check, kinds
from experiments.ledger import Claim
from superpose import plot
from superpose.sae import recovery
from superpose.train.fit import Sampler
from superpose.worlds import structured

PAPER = "Chanin, Dulka and Garriga-Alonso 2025"
FEATURES = 2


class Case(NamedTuple):
    """A number of latents, whether feature 1 is a child of feature 0, and what is written above."""

    latents: int
    nested: bool
    title: str


CASES = {
    "narrow": Case(1, False, "one latent, independent features"),
    "hedging": Case(1, True, "one latent, parent and child"),
    "absorption": Case(2, True, "two latents, parent and child"),
    "wide": Case(2, False, "two latents, independent (control)"),
}


def optimum(parent: float, child: float, nested: bool, coefficient: float) -> tuple[np.ndarray, np.ndarray]:
    """Exact direction [2] and b_dec [2] of one latent, in the basis of the two features.

    With a unit decoder row v, the best activation at x is h = max(0, (x - b) . v - coefficient / 2), which an affine
    encoder and ReLU reach. What is left, E |x - b - h v|^2 + coefficient h over four samples, is minimised over the
    angle of v and over b. At coefficient 0 v is the first principal direction.
    """
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    alone = 0.0 if nested else child
    p = np.array([(1 - parent) * (1 - alone), parent * (1 - child), (1 - parent) * alone, parent * child])

    def loss(z):
        v, rest = np.array([np.cos(z[0]), np.sin(z[0])]), x - z[1:]
        h = np.maximum(rest @ v - coefficient / 2, 0)
        return p @ (np.sum((rest - np.outer(h, v)) ** 2, 1) + coefficient * h)

    options = {"xatol": 1e-9, "fatol": 1e-15, "maxiter": 10_000}
    found = [
        optimize.minimize(loss, [angle, 0, 0], method="Nelder-Mead", options=options)
        for angle in np.linspace(0, 2 * np.pi, 8, endpoint=False)
    ]
    z = min(found, key=lambda f: f.fun).x
    return np.array([np.cos(z[0]), np.sin(z[0])]), z[1:]


def placed(kind: kinds.Kind, case: Case, directions: jax.Array, config) -> kinds.Kind:
    """The kind in its world, one of the two in a batch, its rows started near the features that they should find."""
    objective = kind.population.objective

    def init(key, hyper):
        params, state = objective.init(key, hyper)
        near = directions[: case.latents] + config.start_noise * jax.random.normal(key, (case.latents, config.d))
        W_dec = config.kind.start_norm * near / jnp.linalg.norm(near, axis=1, keepdims=True)
        return {**params, "W_dec": W_dec, "W_enc": W_dec.T}, state

    def loss(params, state, batch, *rest):
        return objective.loss(params, state, batch[int(case.nested)], *rest)

    started = dataclasses.replace(objective, init=init, loss=loss)
    return kind._replace(population=dataclasses.replace(kind.population, objective=started))


def run(config, key, workdir):
    """Per case: cosines of the decoder with the truth [seeds, latents, 2], and b_dec along the features [seeds, 2].

    Latents are in the order of the features that they are matched with. ``{case}_best`` is the seed of least loss.
    """
    check.whole(config, "d", "seeds", "batch", "steps", "log_every")
    check.positive(config, "parent", "child", "start_noise")
    if max(config.parent, config.child) >= 1:
        raise ValueError(f"parent and child must lie below 1, got {config.parent} and {config.child}")
    if config.kind.decoder != "free" or config.kind.penalty != "l1" or config.kind.control or len(config.kind.sweep):
        raise ValueError(
            "the exact optimum is that of one L1 weighted by norms: set kind.penalty=l1, kind.decoder=free"
        )
    if config.kind.scale != "none":
        raise ValueError("the exact optimum is that of plain inputs: set kind.scale=none")
    train_key, sample_key, direction_key = jax.random.split(key, 3)
    directions = structured.orthonormal(direction_key, FEATURES, config.d)
    worlds = [structured.hedging(config.parent, (config.child,), nested).embed(directions) for nested in (False, True)]
    made = {}
    for name, case in CASES.items():
        sample = np.asarray(worlds[case.nested].sample(sample_key, 1024))
        kind = kinds.kind(config.kind, config.d, config.steps, config.seeds, sample, d_sae=case.latents)
        made[name] = placed(kind, case, directions, config)
    both = Sampler(lambda key: jnp.stack([world.sample(key, config.batch) for world in worlds]), shared=True)
    trained = kinds.train(made, config, train_key, both, workdir / "fit", "hedging")
    out: dict[str, Any] = {}
    for name, kind in made.items():
        cosines, offsets = [], []
        for _, params in kinds.plain(kind, trained[name]):
            decoder = np.asarray(recovery.cosines(params["W_dec"], directions))
            pairs = recovery.matching(decoder)
            cosines.append(decoder[pairs.latents[np.argsort(pairs.features)]])
            offsets.append(np.asarray(directions) @ params["b_dec"])
        loss = np.where(trained[name].frozen_at >= 0, np.inf, trained[name].history["loss"][-1])
        check.some_sound(loss[None], "case", [list(CASES).index(name)])
        out |= {
            f"{name}_decoder": np.asarray(cosines), f"{name}_offset": np.asarray(offsets),
            f"{name}_loss": loss, f"{name}_best": loss.argmin(),
        }  # fmt: skip
    return out


def expected(config) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per case: decoder cosines [latents, 2] and b_dec along the features [2], exact for one latent and for `wide`.

    L1 pulls b_dec a little towards what is active: with a latent for each kind of sample, 2 (1 - p) b = coefficient p v
    of each of them. The absorbing latents themselves are those at a small coefficient.
    """
    p, q, pull = config.parent, config.child, config.kind.coefficient / 2
    found = {name: optimum(p, q, CASES[name].nested, 2 * pull) for name in ("narrow", "hedging")}
    both = np.full(2, np.sqrt(0.5))
    return {name: (v[None], b) for name, (v, b) in found.items()} | {
        "absorption": (np.stack([[1.0, 0.0], both]), pull * p * ((1 - q) * np.eye(2)[0] + q * both) / (1 - p)),
        "wide": (np.eye(2), pull * np.array([p / (1 - p), q / (1 - q)])),
    }


def draw(results, config):
    """Above the best seed's decoder and b_dec as heat maps; below all seeds with what was expected."""
    figure, axes = plt.subplots(
        2, 4, figsize=(11.5, 6.2), dpi=110, width_ratios=[2, 2, 3, 3], height_ratios=[1, 1.25], layout="constrained"
    )
    for (name, case), (decoder, offset), (top, bottom) in zip(
        CASES.items(), expected(config).values(), axes.T, strict=True
    ):
        best = results[f"{name}_best"]
        rows = [f"latent {i}" for i in range(case.latents)] + ["b_dec"]
        shown = np.vstack([results[f"{name}_decoder"][best], results[f"{name}_offset"][best]])
        plot.cosine_map(top, shown.round(2) + 0.0, write=True)  # no cell says -0.00
        top.axhline(case.latents - 0.5, color=plot.GROUND, lw=4)
        top.set(xticks=np.arange(FEATURES), yticks=np.arange(len(rows)))
        top.set_xticklabels(["feature 0", "child" if case.nested else "feature 1"], fontsize=8)
        top.set_yticklabels(rows, fontsize=8)
        top.set_title(case.title.replace(", ", ",\n"), fontsize=9)
        seen = np.concatenate([results[f"{name}_decoder"], results[f"{name}_offset"][:, None]], 1)
        for i, (value, truth) in enumerate(zip(seen.reshape(len(seen), -1).T, [*decoder.flat, *offset], strict=True)):
            bottom.plot([i - 0.35, i + 0.35], [truth, truth], color="#c0392b", lw=1.5, zorder=1)
            plot.dots(bottom, np.full(len(value), i), value, width=0.25)
        ends = np.arange(2 * len(rows))
        bottom.axhline(0, color="0.8", lw=0.6, zorder=0)
        bottom.set(xticks=ends, xlim=(-0.6, len(ends) - 0.4), ylim=(-0.15, 1.1), facecolor=plot.GROUND)
        bottom.set_xticklabels([f"{row}\non f{j}" for row in rows for j in range(FEATURES)], fontsize=7)
        bottom.tick_params(axis="y", labelsize=8)
        bottom.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("cosine (b_dec: component), best seed", fontsize=8)
    axes[1, 0].set_ylabel("the same: dots all seeds, red expected", fontsize=8)
    figure.suptitle(
        f"Feature hedging: 2 orthogonal features in {config.d} dimensions, P(f0) = {config.parent:g}, "
        f"P(f1) = {config.child:g} (of a child: given f0); L1",
        fontsize=11,
    )
    return {"": figure}


def claims(results, config):
    """Every case against its expectation, at the seed that is farthest from it."""

    def worst(name: str, what: int, i: Any = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        truth, found = expected(config)[name][what][i], results[f"{name}_{('decoder', 'offset')[what]}"][:, i]
        return truth, found[np.abs(found - truth).reshape(len(found), -1).max(1).argmax()]

    # 0.01: three standard errors of the principal angle (0.54 / sqrt(N)) and of a mean of 0.2 (0.4 / sqrt(N)) over the
    # last 25,000 samples, those that the falling learning rate still weighs
    exact = "derived: exact optimum of this loss"
    return [
        Claim("one latent, independent: its direction is feature 0 (cosines to both, worst seed)",
              f"{PAPER}; {exact}", *worst("narrow", 0, 0), 0.01),
        Claim("one latent, independent: b_dec is P(f1) f1 (components, worst seed)",
              f"{PAPER}; {exact}", *worst("narrow", 1), 0.01),
        Claim("one latent, child only with its parent: its direction holds part of the child (cosines, worst seed)",
              f"{PAPER}; {exact}", *worst("hedging", 0, 0), 0.01,
              note="f0 + 0.2 f1, with cosines 0.981 and 0.196, is the optimum for a latent of one size; a free encoder "
              "makes it larger where the child is active, and the optimum is near the first principal direction"),
        Claim("one latent, child only with its parent: b_dec is the exact optimum's (components, worst seed)",
              exact, *worst("hedging", 1), 0.01),
        Claim("two latents, child only with its parent: absorption (the child's row to parent and child, worst seed)",
              f"{PAPER}; derived: f0 + f1", *worst("absorption", 0, 1), 0.05),
        Claim("two latents, child only with its parent: the other row is the parent's (cosines, worst seed)",
              PAPER, *worst("absorption", 0, 0), 0.05),
        Claim("two latents, independent: every row is one feature (cosines, worst seed)",
              f"{PAPER} (negative control)", *worst("wide", 0), 0.05),
        Claim("two latents, independent: b_dec holds neither feature (components, worst seed)",
              f"{exact} (negative control)", *worst("wide", 1), 0.01),
    ]  # fmt: skip
