"""Compressing two numbers into one: by quantising one of them, and by what networks learn.

TMS, appendix "Nonlinear Compression".
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy.models import grid, population

SECTION = "TMS, appendix: Nonlinear Compression"
LINEAR = 1 / 12
"""Error of x alone with 1/2 for y, and of the average for both: Var y, and twice E[(x - y)^2 / 4]."""
DRAWN = 120
"""Points along each side of a square that is drawn."""


def steps(u, levels, width):
    """floor(u) for u in [0, levels), every jump replaced by a line of this width (in u) about it."""
    jumps = np.arange(1, levels)
    return np.clip((u[..., None] - jumps) / max(width, 1e-9) + 0.5, 0, 1).sum(-1)


def compressed(x, y, levels, width):
    """t = (floor(Z x) + y) / Z."""
    return (steps(levels * x, levels, width) + y) / levels


def restored(t, levels, width):
    """x = floor(Z t) / Z, and y = Z t modulo 1."""
    low = steps(levels * t, levels, width)
    return low / levels, levels * t - low


def built(x, y, levels, width):
    """What a network of ReLUs with these very weights restores, and how many it has: two for each jump on either side,
    and one that carries y, and t."""
    relu = lambda a: np.maximum(a, 0)  # noqa: E731
    bends = (np.arange(1, levels)[:, None] + np.array([-0.5, 0.5]) * width).ravel()
    slopes = np.tile([1.0, -1.0], levels - 1) / width
    t = (relu(levels * x[..., None] - bends) @ slopes + relu(y)) / levels
    low = relu(levels * t[..., None] - bends) @ slopes
    return (low / levels, levels * relu(t) - low), 2 * len(bends) + 2


def _square(side):
    """Midpoints of the unit square, x and y [side, side]."""
    middle = (np.arange(side) + 0.5) / side
    return np.meshgrid(middle, middle, indexing="ij")


def _error(x, y, found):
    """Mean of (x - x')^2 + (y - y')^2."""
    return float((np.square(x - found[0]) + np.square(y - found[1])).mean())


class Network(nnx.Module):
    """t = V relu(A (x, y) + a), and back by as many neurons: (x', y') = U relu(B t + c) + d."""

    def __init__(self, neurons: int, rngs: nnx.Rngs):
        self.inward = nnx.Linear(2, neurons, rngs=rngs)
        self.t = nnx.Linear(neurons, 1, rngs=rngs)
        self.outward = nnx.Linear(1, neurons, rngs=rngs)
        self.back = nnx.Linear(neurons, 2, rngs=rngs)

    def encode(self, x):
        return self.t(jax.nn.relu(self.inward(x.T)))

    def __call__(self, x):
        return self.back(jax.nn.relu(self.outward(self.encode(x)))).T


def run(config, key, workdir):
    """Errors [levels, widths], widths in x and in periods; those of trained networks [sizes, seeds], and what the best
    of the largest ones make of the square: t [side, side]."""
    check.whole(config, "levels", least=2)
    check.whole(config, "widths", "side", "neurons", "seeds", "batch", "eval_batch")
    check.positive(config, "widest")
    check.rising(config, "levels", "neurons")
    if config.widths < 2 or config.widest < 0.1:
        raise ValueError("the claims are about steep pieces of width 0.1: widest must reach it, by two widths or more, "
                         f"got {config.widest:g} and {config.widths}")  # fmt: skip
    widths = np.linspace(0, config.widest, config.widths)
    out: dict[str, Any] = {"widths": widths, "levels": np.asarray(config.levels)}
    x, y = _square(config.side)
    quantised = lambda z, width: _error(x, y, restored(compressed(x, y, z, width), z, width))  # noqa: E731
    out["error"] = np.array([[quantised(z, z * w) for w in widths] for z in config.levels])
    out["error_periods"] = np.array([quantised(z, 0.1) for z in config.levels])
    out["linear"] = np.array([_error(x, y, (x, 0.5)), _error(x, y, ((x + y) / 2, (x + y) / 2))])
    loss, hyper = [], grid(density=np.ones(1, np.float32), seed=range(config.seeds))
    for k, (one, neurons) in enumerate(zip(jax.random.split(key, len(config.neurons)), config.neurons, strict=True)):
        pop, judge = (
            population(2, 1, hyper, check.recipe(config), model=partial(Network, neurons),
                       expectation="monte_carlo", size=size)
            for size in (config.batch, config.eval_batch)
        )  # fmt: skip
        got = toys.trained(pop, judge, config, one, workdir / f"neurons_{k}", seeds=config.seeds,
                           of=("size", [neurons]), title=f"{neurons} + {neurons} neurons")  # fmt: skip
        loss.append(got.loss[0])
    graph, state = nnx.split(Network(neurons, nnx.Rngs(0)))
    best = jax.tree.map(lambda a: a[got.best[0]], got.result.params)
    nnx.replace_by_pure_dict(state, best)
    square = np.stack(_square(DRAWN)).reshape(2, -1).astype(np.float32)
    t = np.asarray(nnx.merge(graph, state).encode(jnp.asarray(square))).reshape(DRAWN, DRAWN)
    return out | {"trained": np.stack(loss), "t": t}


def draw(results, config):
    """The code of the paper, its error by the width of steep pieces, and what trained networks do."""
    figure = plt.figure(figsize=(13, 8.4), dpi=105, layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.15])[:, 0]
    ways, (lines, dots) = top.subplots(1, 3), bottom.subplots(1, 2)
    (x, y), most = _square(DRAWN), config.neurons[-1]
    ranks = results["t"].ravel().argsort().argsort().reshape(DRAWN, DRAWN)
    for ax, t, says in (
        (ways[0], compressed(x, y, 3, 0), "$t = (\\lfloor 3x \\rfloor + y)\\, /\\, 3$"),
        (ways[1], compressed(x, y, 3, 0.3), "the same, steep pieces 0.1 wide"),
        (ways[2], ranks / ranks.max(), f"learned by {most} + {most} neurons, the best of {config.seeds}"),
    ):  # fmt: skip
        image = ax.imshow(t.T, origin="lower", extent=(0, 1, 0, 1), cmap="viridis")
        ax.contour(x, y, t, levels=16, colors="w", linewidths=0.5, alpha=0.6)
        ax.set(xlabel="$x$", ylabel="$y$")
        ax.set_title(says, fontsize=10)
        top.colorbar(image, ax=ax, label="rank of $t$" if ax is ways[2] else "$t$", shrink=0.85)
    colours = plot.DENSER(np.linspace(0, 0.85, len(results["levels"])))
    for z, error, colour in zip(results["levels"], results["error"], colours, strict=True):
        lines.plot(results["widths"], error, color=colour, lw=1.6, label=f"$Z$ = {z}")
    lines.axhline(LINEAR, color=plot.WARM, ls="--", label="linear: 1/12")
    lines.set(xlabel=r"width $\varepsilon$ of the steep pieces", ylabel="mean squared error, x and y", ylim=(0, None),
              xlim=(0, None), title="quantising against linear compression")  # fmt: skip
    lines.legend(frameon=False, fontsize=8, ncols=2)
    sizes, seeds = results["trained"].shape
    plot.dots(dots, np.repeat(np.arange(sizes), seeds), results["trained"].ravel())
    dots.axhline(LINEAR, color=plot.WARM, ls="--")
    dots.annotate("linear: 1/12", (0.99, LINEAR), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                  fontsize=8, color=plot.WARM)  # fmt: skip
    dots.set(xticks=np.arange(sizes), xticklabels=[f"{n} + {n}" for n in config.neurons], ylim=(0, None),
             xlabel="neurons before and after $t$", ylabel="mean squared error, x and y",
             title="trained networks, one point a seed")  # fmt: skip
    plot.plain((lines, dots))
    figure.suptitle("Nonlinear compression: two uniform numbers in one", fontsize=13)
    return {"": figure}


def claims(results, config):
    """Error without jumps blurred, where it meets the linear one, neurons, and whether networks find such codes."""
    levels, error = list(results["levels"]), results["error"]
    at = int(np.argmin(np.abs(results["widths"] - 0.1)))
    x, y = _square(DRAWN)
    sharp = error[:, 0] * 3 * results["levels"] ** 2
    out = [
        Claim("linear compression, x alone and the average: errors over 1/12", "derived: Var y, 2 E[(x - y)^2 / 4]",
              [1.0, 1.0], (results["linear"] / LINEAR).tolist(), 0.001),
        Claim("sharp jumps: error over 1 / (3 Z^2), smallest and largest over Z", "derived: E[(x - floor(Zx) / Z)^2], "
              "y exact", [1.0, 1.0], [float(f(sharp)) for f in (np.min, np.max)], 0.02),
    ]  # fmt: skip
    if 2 in levels:
        out.append(Claim("two levels, sharp jumps: error over the linear one", f"{SECTION}: three are the fewest that "
                         "win", 1.0, float(error[levels.index(2), 0] / LINEAR), 0.001))  # fmt: skip
    if 3 in levels:
        here = levels.index(3)
        found, count = built(x, y, 3, 0.3)
        exact = restored(compressed(x, y, 3, 0.3), 3, 0.3)
        off = max(float(np.abs(a - b).max()) for a, b in zip(found, exact, strict=True))
        out += [
            Claim("three levels, steep pieces 0.1 wide in x and t: error over the linear one", SECTION, 1.0,
                  float(error[here, at] / LINEAR), 0.0, "<="),
            Claim("three levels, steep pieces of 0.1 of a period: the same", SECTION, 1.0,
                  float(results["error_periods"][here] / LINEAR), 0.0, "<="),
            Claim(f"three levels: a network of {count} ReLUs is this code (largest difference of their outputs)",
                  f"{SECTION}: 36 ReLUs, two a piece", 0.0, off, 1e-9, note="one ReLU a bend"),
        ]  # fmt: skip
    for neurons, loss in zip(config.neurons, results["trained"], strict=True):
        if neurons == 18:
            win = float((loss < LINEAR).mean())
            out.append(Claim("trained networks of 18 + 18 neurons: share with a lower error than linear compression",
                             f"{SECTION}: probably difficult to learn", 0.5, win, 0.0, "<=",
                             note=f"errors {loss.min():.4f} to {loss.max():.4f}, linear {LINEAR:.4f}"))  # fmt: skip
    return out
