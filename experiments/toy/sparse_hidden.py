"""A penalty on hidden activations: superposition goes, at the price of features.

TMS, "The Strategic Picture of Superposition".
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy.models import decay, grid, population

SECTION = "TMS, The Strategic Picture of Superposition"
ON = 0.1
"""Weight from which a feature switches a neuron on. Negative ones do not, and cost no penalty: neurons that nothing
switches on keep the weights that they began with."""


def run(config, key, workdir):
    """Of the best seed of each weight: W [weights, n, m], its loss without the penalty, and the penalty."""
    n, m = config.n, config.m
    check.whole(config, "seeds", "batch", "eval_batch", "eval_batches")
    check.positive(config, "decay", "density")
    weights = np.asarray(config.weights, np.float32)
    if len(weights) < 2 or weights[0] != 0 or (np.diff(weights) <= 0).any():
        raise ValueError(f"weights must start at 0 and rise, got {tuple(config.weights)}")
    importance, recipe = np.asarray(decay(n, config.decay)), check.recipe(config)
    hyper = grid(hidden_l1=weights, seed=range(config.seeds))
    hyper["density"] = np.full(len(hyper["seed"]), config.density, np.float32)
    pop, judge = (
        population(n, m, hyper, recipe, importance=importance, hidden="relu", expectation="conditional", size=size)
        for size in (config.batch, config.eval_batch)
    )
    train_key, plain_key = jax.random.split(key)
    got = toys.trained(pop, judge, config, train_key, workdir / "models", seeds=config.seeds,
                       batches=config.eval_batches, of=("weight", weights), title="penalties")  # fmt: skip
    alone = population(
        n, m, {**hyper, "hidden_l1": np.zeros_like(hyper["hidden_l1"])}, recipe, importance=importance, hidden="relu",
        expectation="conditional", size=config.eval_batch,
    )  # fmt: skip
    params = {name: value.reshape(-1, *value.shape[2:]) for name, value in got.params.items()}
    loss = toys.evaluate(alone, params, key=plain_key, batches=config.eval_batches)["loss"]
    loss = loss.reshape(len(weights), -1)[np.arange(len(weights)), got.best]
    return {"weights": weights, "W": got.chosen("W"), "b": got.chosen("b"), "loss": loss, "objective": got.loss,
            "importance": importance}  # fmt: skip


def _measured(results):
    """Of each weight: features that alone come back to more than half, those of them that share a neuron with another
    one, and neurons with several of them; and whether a feature is kept, and shares [weights, n]."""
    W = results["W"]
    kept = np.einsum("kim,kim->ki", W, np.maximum(W, 0)) > 0.5
    on = (W > ON) & kept[..., None]
    poly = on.sum(1) > 1
    shared = (on & poly[:, None]).any(-1)
    return kept.sum(-1), shared.sum(-1), poly.sum(-1), kept, shared


def _size(results):
    """Features per dimension by the size of the weights above 0, ||max(W, 0)||_F^2 / m, of each weight of the penalty;
    those below 0 keep a ReLU neuron off, as long as they like."""
    return np.square(np.maximum(results["W"], 0)).sum((1, 2)) / results["W"].shape[-1]


def draw(results, config):
    """Loss, and features with and without superposition, by the weight of the penalty; neurons of some models."""
    weights, (kept, shared, _, here, shares) = results["weights"], _measured(results)
    places = np.unique(np.linspace(0, len(weights) - 1, min(4, len(weights))).astype(int))
    figure = plt.figure(figsize=(13.5, 7.2), dpi=105, layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False)[:, 0]
    axes, x = top.subplots(1, 3, width_ratios=[1, 0.8, 1.3]), np.arange(len(weights))
    size = _size(results)
    axes[1].plot(size, results["loss"], "o-", ms=4, lw=0.8, color=plot.WARM)
    for i in np.unique(np.linspace(0, len(weights) - 1, min(5, len(weights))).astype(int)):
        axes[1].annotate(rf"$\lambda$ = {weights[i]:g}", (size[i], results["loss"][i]), fontsize=7, xytext=(5, 4),
                         textcoords="offset points")  # fmt: skip
    axes[1].axvline(1, color="0.4", lw=0.8, ls="--")
    axes[1].set(xlabel=r"features per dimension $\|\max(W, 0)\|_F^2 / m$", ylabel="loss without the penalty",
                title="and what it leaves", xlim=(0, None), ylim=(0, 1.12 * results["loss"].max()))  # fmt: skip
    axes[0].plot(x, results["loss"], "o-", ms=4, color=plot.WARM, label="loss without the penalty")
    axes[0].plot(x, results["objective"].min(1), "s--", ms=4, color="0.5", label="loss with it")
    axes[0].set(ylabel="loss, sum over features", title="what the penalty costs", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=8)
    axes[2].bar(x, kept - shared, 0.7, color=plot.SHARED(0.0), ec="0.4", lw=0.5, label="with neurons of their own")
    axes[2].bar(x, shared, 0.7, bottom=kept - shared, color=plot.SHARED(1.0), ec="0.4", lw=0.5,
                label="sharing neurons")  # fmt: skip
    axes[2].axhline(config.m, color="0.4", lw=0.8, ls="--", label=f"{config.m} neurons")
    axes[2].set(ylabel="features represented", title="superposition goes", ylim=(0, max(config.n, config.m) * 1.25))
    axes[2].legend(frameon=False, fontsize=8, ncols=3, loc="upper right")
    for ax in axes[::2]:
        ax.set(xticks=x, xticklabels=[f"{w:g}" for w in weights], xlabel=r"weight $\lambda$ of $\|h\|_1$")
    plot.plain(axes)
    bars = np.atleast_1d(bottom.subplots(1, len(places), sharey=True))
    for ax, i in zip(bars, places, strict=True):
        W = np.maximum(results["W"][i] * here[i][:, None], 0)
        W = W[:, np.lexsort((W.argmax(0), W.max(0) <= ON))]
        plot.neuron_bars(ax, W.T, shares[i].astype(float))
        ax.set_title(rf"$\lambda$ = {weights[i]:g}: {kept[i]} features, {shared[i]} share neurons", fontsize=9)
        ax.set_xlabel("neuron", fontsize=8)
    bars[0].set_ylabel("weights above 0, stacked", fontsize=8)
    figure.suptitle(
        f"A penalty on hidden activations: {config.n} features, {config.m} ReLU neurons, importance "
        f"${config.decay}^i$, $1-S$ = {config.density:g}, the best of {config.seeds} models", fontsize=12,
    )  # fmt: skip
    return {"": figure}


def claims(results, config):
    """Superposition without the penalty, none with enough of it, and what it costs."""
    kept, shared, poly, *_ = _measured(results)
    loss, share = results["loss"], shared / np.maximum(kept, 1)
    note = (
        f"features {kept.tolist()}, sharing neurons {shared.tolist()}, neurons of several {poly.tolist()} at weights "
        + ", ".join(f"{w:g}" for w in results["weights"])
    )
    free = np.flatnonzero(shared == 0)
    first = int(free[0]) if len(free) else -1
    return [
        Claim("without the penalty: share of the features represented that share a neuron with another", SECTION, 0.5,
              float(share[0]), 0.0, ">=", note=note),
        Claim("largest weight: features that share a neuron", SECTION, 0, int(shared[-1])),
        Claim("largest weight: neurons that carry several features", SECTION, 0, int(poly[-1])),
        Claim("largest weight: features represented at all", f"{SECTION} (control: nothing is learnt where it is 0)", 1,
              int(kept[-1]), 0, ">="),
        Claim("more weight: never a larger share that shares neurons (largest rise)", SECTION, 0.0,
              float(np.diff(share).max()), 0.05, "<="),
        Claim("features per dimension as the paper counts them, ||W||_F^2 / m, with the largest weight", SECTION, 1.1,
              float(np.square(results["W"][-1]).sum() / results["W"].shape[-1]), 0.0, "<=",
              note="it counts weights below 0 as well, by which ReLU neurons are off"),
        Claim("features per dimension, ||max(W, 0)||_F^2 / m, without a penalty (claimed after a run)", SECTION, 1.1,
              float(_size(results)[0]), 0.0, ">=",
              note="by weight " + ", ".join(f"{v:.2f}" for v in _size(results))),
        Claim("the same with the largest weight (claimed after a run)", SECTION, 1.0,
              float(_size(results)[-1]), 0.0, "<="),
        Claim("the loss without the penalty rises with its weight (smallest step)", SECTION, 0.0,
              float(np.diff(loss).min()), 0.01 * float(loss[0]), ">="),
        Claim("smallest weight without shared neurons: the loss over that without a penalty", f"{SECTION}: \"hurting "
              "performance\"; bound ours", 1.2, float(loss[first] / loss[0]) if first >= 0 else float("nan"), 0.0, ">=",
              note=f"weight {results['weights'][first]:g}" if first >= 0 else "there is none"),
    ]  # fmt: skip
