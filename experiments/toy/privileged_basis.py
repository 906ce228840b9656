"""Neurons as a privileged basis: the best of many ReLU-hidden models at each density, neuron by neuron.

TMS, "Superposition in a Privileged Basis".
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry
from superpose.toy.models import decay, grid, population

SECTION = "TMS, Superposition in a Privileged Basis"
COUNTED = "counted from the names of the paper's regimes"


def run(config, key, workdir):
    """W of the best model of each density [densities, n, m], all losses, and W of a linear hidden layer."""
    n, m = config.n, config.m
    check.whole(config, "seeds", "linear_seeds", "batch", "block", "eval_batch", "eval_batches")
    check.positive(config, "decay", "mono", "linear_density")
    if not len(config.densities) == len(config.expected_mono) == len(config.expected_features):
        raise ValueError("expected_mono and expected_features must hold a number for each of densities")
    importance, recipe = np.asarray(decay(n, config.decay)), check.recipe(config)
    out = {"densities": np.asarray(config.densities, np.float32), "importance": importance}
    sides = {
        "relu": (out["densities"], config.seeds),
        "linear": (np.asarray([config.linear_density], np.float32), config.linear_seeds),
    }
    for (hidden, (densities, seeds)), k in zip(sides.items(), jax.random.split(key, 2), strict=True):
        pop, judge = (
            population(n, m, grid(density=densities, seed=range(seeds)), recipe, importance=importance, hidden=hidden,
                       expectation="conditional", size=size, block=config.block)
            for size in (config.batch, config.eval_batch)
        )  # fmt: skip
        got = toys.trained(pop, judge, config, k, workdir / hidden, seeds=seeds, batches=config.eval_batches,
                           of=("density", densities), title=f"{hidden} hidden layer")  # fmt: skip
        out |= {f"{hidden}_W": got.chosen("W"), f"{hidden}_b": got.chosen("b"), f"{hidden}_loss": got.loss}
        if hidden == "relu":
            W = got.params["W"]
            out |= {"mono": monosemantic(W, config.mono).sum(-1).astype(np.int8), "kept": _kept(W).astype(np.int8)}
    return out


def monosemantic(W, part):
    """Of W [..., n, m], for each neuron [..., m]: whether it has one feature alone, its second largest weight being
    below ``part`` of its largest one."""
    size = np.sort(np.abs(W), axis=-2)
    return (size[..., -1, :] > 0.1) & (size[..., -2, :] < part * size[..., -1, :])


def _kept(W):
    """Features that are represented."""
    return (np.linalg.norm(W, axis=-1) > 0.5).sum(-1)


def _order(W, part):
    """Neurons by the most important feature that they carry, monosemantic ones first."""
    first = np.abs(W).argmax(0)
    return np.lexsort((first, ~monosemantic(W, part)))


def draw(results, config):
    """W and a bar for each neuron, per density; and a linear hidden layer beside a ReLU one."""
    columns = len(results["densities"])
    figure = plt.figure(figsize=(2.35 * columns + 4.6, 6.6), dpi=105)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[3.6, 2.35 * columns + 0.6])[0]
    near = int(np.argmin(np.abs(results["densities"] - config.linear_density)))
    axes = left.subplots(2, 1)
    W = results["relu_W"][near]
    both = {"linear": results["linear_W"][0], "ReLU": W[:, _order(W, config.mono)]}
    for ax, (name, shown) in zip(axes, both.items(), strict=True):
        plot.weights(ax, shown)
        ax.set_title(f"{name} hidden layer, $1-S$ = {config.linear_density:g}", fontsize=9)
        ax.set_xlabel("neuron", fontsize=8)
        ax.set_ylabel("feature", fontsize=8)
    left.subplots_adjust(left=0.16, right=0.95, top=0.84, bottom=0.08, hspace=0.35)
    grid_ = right.subplots(2, columns, height_ratios=[1.25, 1])
    for i, (ax, bars) in enumerate(grid_.reshape(2, columns).T):
        W = results["relu_W"][i]
        W = W[:, _order(W, config.mono)]
        shared = np.asarray(geometry.superposition(jax.numpy.asarray(W)))
        plot.weights(ax, W)
        mono, kept = int(monosemantic(W, config.mono).sum()), int(_kept(W))
        ax.set_title(f"$1-S$ = {results['densities'][i]:g}\n{mono} monosemantic neurons\n{kept} features", fontsize=9)
        plot.neuron_bars(bars, W.T, shared)
        bars.set_xlabel("neuron", fontsize=8)
        if i == 0:
            ax.set_ylabel("feature", fontsize=8)
            bars.set_ylabel("weights, stacked", fontsize=8)
    right.subplots_adjust(left=0.04, right=0.93, top=0.84, bottom=0.08, hspace=0.18, wspace=0.22)
    plot.colour_key(right, right.add_axes((0.95, 0.5, 0.008, 0.3)), plot.GRAM, -1.0, 1.0, "weight")
    label = "superposition\n" + r"$\sum_{j\neq i}(\hat W_i\cdot W_j)^2$"
    plot.colour_key(right, right.add_axes((0.95, 0.1, 0.008, 0.3)), plot.SHARED, 0.0, 1.0, label)
    figure.suptitle(
        f"A privileged basis: {config.n} features, {config.m} ReLU neurons, importance ${config.decay}^i$, the best of "
        f"{config.seeds} models", fontsize=12,
    )  # fmt: skip
    return {"": figure}


def claims(results, config):
    """Monosemantic neurons and features of the best model per density, pairs of neurons, and the linear control."""
    Ws, part = results["relu_W"], config.mono
    names = ", ".join(f"{p:g}" for p in results["densities"])
    mono = [int(monosemantic(W, part).sum()) for W in Ws]
    kept = [int(_kept(W)) for W in Ws]
    loss = results["relu_loss"]
    near = loss <= 1.01 * loss.min(1, keepdims=True)
    close = {what: f"of models within 1 % of the best one's loss ({', '.join(map(str, near.sum(1).tolist()))} of "
             f"{near.shape[1]}) from and to " + ", ".join(f"{v[k].min()} {v[k].max()}" for v, k in
                                                         zip(results[what], near, strict=True))
             + "; the lowest loss of one with the number expected, over the best: "
             + ", ".join(f"{_lowest(row, v == want):.3f}" for row, v, want in
                         zip(loss, results[what], wanted, strict=True))
             for what, wanted in (("mono", config.expected_mono), ("kept", config.expected_features))}  # fmt: skip
    out = [
        Claim(f"monosemantic neurons of the best model at 1-S = {names}", SECTION, list(config.expected_mono), mono,
              note=close["mono"]),
        Claim(f"features of the best model at 1-S = {names}", f"{SECTION}; {COUNTED}", list(config.expected_features),
              kept, note=close["kept"]),
        Claim("sparser: never more monosemantic neurons (largest rise)", SECTION, 0, int(np.diff(mono).max(initial=0)),
              0, "<="),
        Claim("sparser: never fewer features (smallest step)", SECTION, 0, int(np.diff(kept).min(initial=0)), 0, ">="),
    ]  # fmt: skip
    if 0.35 in config.densities:
        W = Ws[list(config.densities).index(0.35)]
        poly = W[:, ~monosemantic(W, part)]
        codes = sorted(tuple((np.abs(row) > 0.3).astype(int)) for row in poly if np.abs(row).max() > 0.5)
        out.append(Claim("1-S = 0.35: features that share neurons, and those neurons: three in two", SECTION, [3, 2],
                         [len(codes), poly.shape[1]]))  # fmt: skip
    if results["densities"][-1] <= 0.04:
        W = Ws[-1]
        pairs = [tuple(np.flatnonzero(row > 0.25 * row.max())) for row in W]
        out += [
            Claim("sparsest: features that switch two neurons on", SECTION, config.n, sum(len(p) == 2 for p in pairs)),
            Claim("sparsest: different pairs among them", SECTION, config.n, len({p for p in pairs if len(p) == 2})),
        ]  # fmt: skip
    near = int(np.argmin(np.abs(results["densities"] - config.linear_density)))
    share = [float((np.abs(W) > 0.1 * np.abs(W).max()).mean()) for W in (results["linear_W"][0], Ws[near])]
    out += [
        Claim("no privileged basis in a linear hidden layer: share of weights above a tenth of the largest, over that "
              "of the ReLU layer", SECTION, 1.3, share[0] / share[1], 0.0, ">="),
        Claim("a linear hidden layer: monosemantic neurons", SECTION + " (negative control)", 0,
              int(monosemantic(results["linear_W"][0], part).sum()), 1),
    ]  # fmt: skip
    return out


def _lowest(loss, some):
    """The lowest loss of some models over that of all; NaN: there is none."""
    return float(loss[some].min() / loss.min()) if some.any() else float("nan")
