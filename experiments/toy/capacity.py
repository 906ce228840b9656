"""How capacity is shared: marginal benefits, two features in one dimension, and many in a few.

Scherlis et al. 2022, "Polysemanticity and Capacity in Neural Networks".
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import capacity, geometry
from superpose.toy.models import ACTIVATIONS, decay, population
from superpose.train.fit import Population, Sampler

PAPER = "Scherlis et al. 2022"
DERIVED = "derived: superpose/toy/capacity.py"
WHOLE = 0.05
"""Distance from 0 and from 1 within which a feature counts as ignored, or as whole."""
SPELT = {"relu": "ReLU", "gelu": "GELU"}
CASES = [(kurtosis, ratio) for ratio in (0.8, 0.35) for kurtosis in (2.0, 3.0, 8.0)]
"""Kurtosis and v_2 / v_1 of the six pairs of marginal benefits that are drawn."""


def run(config, key, workdir):
    """Capacities: of the second of two features in one dimension [kurtosis, ratio], and for each activation [density,
    ratio]; of many features [kurtosis, n], with W [kurtosis, n, d] and losses."""
    check.whole(config, "n", "d", "seeds", "nodes", "block")
    check.whole(config, "cells", least=2)
    check.positive(config, "decay", "kurtosis")
    check.rising(config, "kurtosis", least=2)
    check.ends(config, "ratio", "kurtoses", "density")
    if min(*config.kurtosis, config.kurtoses[0]) < 1 or config.kurtosis[-1] <= 3:
        raise ValueError("no kurtosis is below 1, and the last of the list must be above 3, where features share, got "
                         f"{tuple(config.kurtosis)} and {tuple(config.kurtoses)}")  # fmt: skip
    if config.d >= config.n:
        raise ValueError(f"this figure needs fewer dimensions than features, got d={config.d}, n={config.n}")
    if unknown := sorted(set(config.activations) - ACTIVATIONS.keys()):
        raise ValueError(f"unknown activation {unknown[0]!r}: choose from {', '.join(ACTIVATIONS)}")
    axis = lambda ends: np.geomspace(ends[0], ends[1], config.cells).astype(np.float32)  # noqa: E731
    ratio, kurtoses, density = axis(config.ratio), axis(config.kurtoses), axis(config.density)
    keys = dict(
        zip(("pair", "many", *config.activations), jax.random.split(key, 2 + len(config.activations)), strict=True)
    )
    out = {"ratio": ratio, "kurtoses": kurtoses, "density": density}
    grown, across = (a.ravel() for a in np.meshgrid(kurtoses, ratio, indexing="ij"))
    got = _quadratic(np.stack([np.ones_like(across), across], 1), grown, 1, config, keys["pair"], workdir / "pair")
    out["pair_C"] = _capacities(got.chosen("W"))[:, 1].reshape(config.cells, -1)
    out["pair_best"] = np.array([
        [capacity.allocation(np.array([1.0, second]), 1, float(k))[1] for second in ratio] for k in kurtoses
    ])  # fmt: skip
    v, large = np.asarray(decay(config.n, config.decay)), np.asarray(config.kurtosis, np.float32)
    got = _quadratic(np.tile(v, (len(large), 1)), large, config.d, config, keys["many"], workdir / "many")
    best = np.stack([capacity.allocation(v, config.d, float(k)) for k in large])
    lost = [float(capacity.loss_at(c, v, float(k)).sum()) for c, k in zip(best, large, strict=True)]
    out |= {"v": v, "W": got.chosen("W"), "C": _capacities(got.chosen("W")), "best": best, "loss": got.loss.min(1),
            "best_loss": np.array(lost)}  # fmt: skip
    thin, across = (a.ravel() for a in np.meshgrid(density, ratio, indexing="ij"))
    every = lambda a: np.repeat(a, config.seeds, 0)  # noqa: E731
    hyper = {"density": every(thin), "seed": np.tile(np.arange(config.seeds), len(thin)),
             "importance": every(np.stack([np.ones_like(across), across], 1))}  # fmt: skip
    for name in config.activations:
        pop = population(2, 1, hyper, check.recipe(config), output=name, expectation="quadrature", size=config.nodes,
                         block=config.block)  # fmt: skip
        got = toys.trained(pop, pop, config, keys[name], workdir / name, seeds=config.seeds, title=name)
        out[f"{name}_C"] = _capacities(got.chosen("W"))[:, 1].reshape(config.cells, -1)
    return out


def _quadratic(v, kurtosis, d, config, key, workdir):
    """The quadratic model at each row of v [settings, n] and its kurtosis, ``seeds`` starts each."""
    every = lambda a: np.repeat(np.asarray(a, np.float32), config.seeds, 0)  # noqa: E731
    hyper = {"v": every(v), "kurtosis": every(kurtosis), "seed": np.tile(np.arange(config.seeds), len(v))}
    pop = Population(capacity.objective(v.shape[1], d), check.recipe(config), hyper, block=config.block,
                     source=Sampler(lambda key, hyper: jnp.zeros(())))  # fmt: skip
    return toys.trained(pop, pop, config, key, workdir, seeds=config.seeds, title=f"quadratic, {v.shape[1]} features")


def _capacities(W):
    return np.asarray(jax.vmap(geometry.dimensionality)(jnp.asarray(W)))


def draw(results, config):
    """Six pairs of marginal benefits; maps of two features in one dimension; many features in a few, by kurtosis."""
    figure = plt.figure(figsize=(13.5, 14), dpi=105, layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[0.9, 1, 1.5], squeeze=False)[:, 0]
    C = np.linspace(0, 1, 200)
    for ax, (kurtosis, ratio) in zip(top.subplots(2, 3, sharex=True).T.ravel(), sorted(CASES), strict=True):
        ax.plot(C, capacity.marginal_benefit(C, 1.0, kurtosis), color=plot.COOL, label="feature 1")
        other = capacity.marginal_benefit(1 - C, ratio, kurtosis)
        ax.plot(C, other, color="k", label="feature 2, which has the rest")
        best = capacity.allocation(np.array([1.0, ratio]), 1, kurtosis)[0]
        ax.plot(best, capacity.marginal_benefit(best, 1.0, kurtosis), "o", color=plot.WARM, ms=6, label="best")
        ax.set_title(rf"$\kappa$ = {kurtosis:g}, $v_2/v_1$ = {ratio:g}", fontsize=9)
        ax.set(ylim=(0, 1.12 * ax.get_ylim()[1]), xlim=(-0.03, 1.03))
        plot.plain([ax])
    ax.legend(frameon=False, fontsize=7)
    top.supxlabel("capacity of feature 1", fontsize=9)
    top.supylabel("marginal benefit", fontsize=9)
    maps = [("quadratic neurons: theory", "pair_best", "kurtoses", r"kurtosis $\kappa$"),
            ("quadratic neurons: trained", "pair_C", "kurtoses", r"kurtosis $\kappa$"),
            *((f"output {SPELT.get(one, one)}: trained", f"{one}_C", "density", r"$1-S$")
              for one in config.activations)]  # fmt: skip
    for ax, (says, name, axis, label) in zip(middle.subplots(1, len(maps)), maps, strict=True):
        image = ax.pcolormesh(results["ratio"], results[axis], results[name], vmin=0, vmax=1, cmap="viridis")
        ax.set(xscale="log", yscale="log", xlabel="$v_2/v_1$" if axis == "kurtoses" else "$I_2/I_1$", ylabel=label)
        if axis == "density":
            ax.invert_yaxis()  # sparse above, as high kurtosis is
        else:
            ax.plot(2 / (results[axis] - 1), results[axis], color="w", ls="--", lw=1,
                    label=r"$v_2/v_1 = 2/(\kappa - 1)$")  # fmt: skip
            ax.legend(fontsize=7, loc="lower left", labelcolor="w", frameon=False)
            ax.set_xlim(results["ratio"][0], results["ratio"][-1])
        within = lambda axis, values: [v for v in values if results[axis][0] <= v <= results[axis][-1] * 1.001]  # noqa: E731
        plot.plain_ticks(ax.xaxis, within("ratio", (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)))
        plot.plain_ticks(
            ax.yaxis, within(axis, (2, 3, 5, 10, 20) if axis == "kurtoses" else (0.02, 0.05, 0.1, 0.2, 0.5, 1))
        )
        ax.set_title(says, fontsize=9)
    middle.colorbar(image, ax=middle.axes, label="capacity of feature 2", shrink=0.9)
    count = len(config.kurtosis)
    axes = bottom.subplots(2, count, sharey="row", squeeze=False, height_ratios=[1.35, 1])
    for square, W in zip(axes[1], results["W"], strict=True):
        image = square.imshow(W @ W.T / np.square(W).sum(1).max(), cmap=plot.GRAM, vmin=-1, vmax=1)
        square.set(xticks=[0, 5, 10, 15], yticks=[0, 5, 10, 15], xlabel="feature")
    axes[1, 0].set_ylabel("feature")
    bottom.colorbar(image, ax=axes[1], label=r"$W_i\cdot W_j$, largest 1", shrink=0.9)
    for ax, kurtosis, got, best in zip(axes[0], config.kurtosis, results["C"], results["best"], strict=True):
        ax.bar(np.arange(config.n), got, 0.8, color=plot.COOL, alpha=0.8, label="trained")
        ax.step(np.arange(config.n + 1) - 0.5, np.append(best, best[-1]), where="post", color=plot.WARM, lw=1.3,
                label="theory")  # fmt: skip
        ax.set_title(rf"$\kappa$ = {kurtosis:g}, sum {got.sum():.3f}", fontsize=9)
        ax.set_xlabel("feature")
        plot.plain([ax])
    axes[0, 0].set_ylabel("capacity")
    axes[0, -1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Capacity. Above and middle: two features, one dimension. Below: {config.n} features, {config.d} "
                    rf"dimensions, $v_i = {config.decay:g}^i$, quadratic neurons", fontsize=12)  # fmt: skip
    return {"": figure}


def claims(results, config):
    """Trained capacities against the allocation of equal marginal benefits; maps; the geometry of the optimum."""
    C, best, v = results["C"], results["best"], results["v"]
    kurtosis = np.asarray(config.kurtosis)
    shares = (C > WHOLE) & (C < 1 - WHOLE)
    spread = []
    for c, k, some in zip(C, kurtosis, shares, strict=True):
        if some.sum() > 1:
            benefit = np.asarray(capacity.marginal_benefit(c, v, float(k)))[some]
            spread.append(float(benefit.max() / benefit.min() - 1))
    heavy = kurtosis > 3
    off = np.abs(C - best).max(1)
    out = [
        Claim(f"{config.n} features: capacities sum to the dimensions, smallest and largest sum over them", PAPER,
              [1.0, 1.0], [float(f(C.sum(1))) / config.d for f in (np.min, np.max)], 0.01),
        Claim("kurtosis above 3: largest difference from the allocation of equal marginal benefits",
              f"{PAPER}; {DERIVED}", 0.0, float(off[heavy].max()), 0.02, note=_by(kurtosis, off)),
        Claim("loss over that of the best allocation (largest)", DERIVED, 1.0,
              float((results["loss"] / results["best_loss"]).max()), 0.001),
        Claim("features that share have one marginal benefit: largest over smallest, less 1", PAPER, 0.0,
              max(spread, default=float("nan")), 0.05),
        Claim("features neither whole nor ignored: never fewer with more kurtosis (smallest step)",
              f"{PAPER}: polysemanticity grows with kurtosis", 0, int(np.diff(shares.sum(1)).min(initial=0)), 0, ">=",
              note=_by(kurtosis, shares.sum(1))),
    ]  # fmt: skip
    if (light := kurtosis < 3).any():
        far = np.minimum(C, 1 - C)[light].max()
        out.append(Claim("kurtosis below 3: every feature is whole or ignored (largest distance)",
                         f"{PAPER}: rising marginal benefits", 0.0, float(far), 0.02))  # fmt: skip
    mixed = np.abs(results["pair_C"] - results["pair_best"])
    quiet, loud = (_bends(w) for w in (_random(results["W"].shape), results["W"]))
    out += [
        Claim("two features, one dimension: share of cells within 0.03 of the theory", f"{PAPER}; {DERIVED}", 0.98,
              float((mixed < 0.03).mean()), 0.0, ">=", note=f"largest difference {mixed.max():.3f}"),
        Claim("every row of W is an eigenvector of W^T W, so that blocks are scaled projections: largest sine of its "
              "angle, of rows longer than a tenth", f"{PAPER}: block-semi-orthogonal", 0.0, loud, 0.02,
              note=f"random W: {quiet:.2f}"),
    ]  # fmt: skip
    if {"relu", "gelu"} <= set(config.activations):
        a, b = results["relu_C"], results["gelu_C"]
        out.append(Claim("the map hangs on the activation: share of cells where ReLU and GELU differ by more than 0.1",
                         PAPER, 0.05, float((np.abs(a - b) > 0.1).mean()), 0.0, ">="))  # fmt: skip
    return out


def _by(kurtosis, values):
    return "by kurtosis " + ", ".join(f"{k:g}: {x:.3g}" for k, x in zip(kurtosis, values, strict=True))


def _bends(W):
    """Largest sine of the angle between W^T W w and w, over rows w [..., n, d] longer than a tenth."""
    out = [0.0]
    for w in W:
        rows = w[np.linalg.norm(w, axis=1) > 0.1].astype(float)
        moved = rows @ (w.T @ w)
        cosine = (moved * rows).sum(1) / np.linalg.norm(moved, axis=1) / np.linalg.norm(rows, axis=1)
        out.append(float(np.sqrt(np.maximum(0, 1 - cosine**2)).max(initial=0)))
    return max(out)


def _random(shape):
    return np.random.default_rng(0).normal(size=shape) / np.sqrt(shape[-1])
