"""A pentagon whose first feature is made denser, sparser, or of another importance.

TMS, "Non-Uniform Superposition": the solutions stretch, and their losses cross.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry
from superpose.toy.models import grid, population
from superpose.train.fit import evaluate, fit
from superpose.worlds import expect

NON_UNIFORM = "TMS, Non-Uniform Superposition"
DERIVED = "derived for this project: population loss over all 32 activity patterns, gradient descent from both"
PENTAGON, DIGONS = 0, 1


def _solution(start: int) -> np.ndarray:
    """[5, 2]: a regular pentagon, or two digons without the first feature."""
    if start == PENTAGON:
        angle = np.pi / 2 + 2 * np.pi * np.arange(5) / 5
        return 1.13 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.array([[0, 0], [0, 1], [0, -1], [1, 0], [-1, 0]], float)


STARTS = np.stack([_solution(PENTAGON), _solution(DIGONS)]).astype(np.float32)


def run(config, key, workdir):
    """Losses and weights from both solutions over [bases, relative densities], over importances, and random starts."""
    n, m = config.n, config.m
    if (n, m) != (5, 2):
        raise ValueError(f"this figure is of a pentagon and needs n=5, m=2, got n={n}, m={m}")
    check.whole(config, "seeds", "batch", "nodes")
    check.positive(config, "density", "relative", "bases", "nudge")
    check.listed(config, expected_pentagon=2, expected_digons=2, expected_crossings=2, expected_equal=3)
    recipe, nodes = check.recipe(config), tuple(config.nodes)
    if len(nodes) != n:
        raise ValueError(f"nodes must hold one number for each of 1 to n={n} active features, got {config.nodes}")
    bases = np.asarray(sorted({config.density, *config.bases}), np.float32)
    relative = np.asarray(config.relative, np.float32)
    if bases.max() * relative.max() > 1:
        raise ValueError(
            f"density times relative must not exceed 1, got {bases.max():g} and {relative.max():g}: lower one of them"
        )
    first = np.arange(n) == 0

    def members(base, rel, what):
        """Densities and importances [N, n] of members whose first feature differs by ``rel`` in one of them."""
        ones = np.ones((len(rel), n), np.float32)
        varied = np.where(first, rel[:, None], 1).astype(np.float32)
        by = {"density": varied if what == "density" else ones, "importance": varied if what == "importance" else ones}
        return {"density": by["density"] * np.asarray(base, np.float32)[:, None], "importance": by["importance"]}

    grids = {
        "density": grid(base=bases, rel=relative, start=[PENTAGON, DIGONS], seed=[0]),
        "importance": grid(
            base=np.asarray([config.density], np.float32), rel=relative, start=[PENTAGON, DIGONS], seed=[0]
        ),
    }

    def begin(params, key, hyper):
        nudge = config.nudge * jax.random.normal(key, (n, m))
        return params | {"W": jax.numpy.asarray(STARTS)[hyper["start"]] + nudge}

    def exact(what, size):
        g = grids[what]
        return population(n, m, {**g, **members(g["base"], g["rel"], what)}, recipe, expectation="quadrature",
                          size=size, init=begin, block=4)  # fmt: skip

    keys = jax.random.split(key, 3)
    results = fit({what: exact(what, nodes) for what in grids}, steps=config.steps, key=keys[0],
                  workdir=workdir / "exact", log_every=config.log_every, title="from both solutions")  # fmt: skip
    out = {"bases": bases, "relative": relative}
    for what, result in results.items():
        params = jax.device_get(result.params)
        shape = (len(grids[what]["seed"]) // (2 * len(relative)), len(relative), 2)
        fine, coarse = (evaluate(exact(what, size), params, key=keys[1])["loss"] for size in
                        (expect.doubled(nodes), nodes))  # fmt: skip
        out |= {
            f"{what}_loss": np.where(result.frozen_at >= 0, np.nan, fine).reshape(shape),
            f"{what}_error": np.abs(fine - coarse).reshape(shape),
            f"{what}_W": params["W"].reshape(*shape, n, m),
            f"{what}_b": params["b"].reshape(*shape, n),
        }
    g = grid(rel=relative, seed=range(config.seeds))
    random = {**g, "base": np.full(len(g["seed"]), config.density, np.float32)}
    random |= members(random["base"], random["rel"], "density")
    pop = population(n, m, random, recipe, expectation="conditional", size=config.batch)
    judge = population(n, m, random, recipe, expectation="quadrature", size=nodes, block=4)
    trained = toys.trained(pop, judge, config, keys[2], workdir / "random", seeds=config.seeds,
                           of=("relative density", relative), title="random starts")  # fmt: skip
    return out | {"random_loss": trained.loss, "random_W": trained.params["W"]}


def _kept(out, what):
    """[bases, relative, 2]: losses, NaN where a run left its solution: the digons' first feature came back, or the
    pentagon's went."""
    loss = np.array(out[f"{what}_loss"], float)
    first = np.linalg.norm(out[f"{what}_W"][..., 0, :], axis=-1)
    loss[..., DIGONS][first[..., DIGONS] > 0.1] = np.nan
    loss[..., PENTAGON][first[..., PENTAGON] < 0.5] = np.nan
    return loss


def crossing(x, pentagon, digons):
    """Where two losses over x are equal, the logarithm of their ratio taken as linear in log x between the points.

    >>> round(float(crossing(np.array([0.1, 1.0, 10.0]), np.array([1.0, 1.0, 1.0]), np.array([0.1, 1.0, 10.0]))), 6)
    1.0
    """
    keep = np.isfinite(pentagon) & np.isfinite(digons)
    gap, at = np.log(digons[keep] / pentagon[keep]), np.log(x[keep])
    change = np.flatnonzero((gap[:-1] < 0) & (gap[1:] >= 0))
    if not change.size:
        return float("nan")
    i = change[0]
    return float(np.exp(at[i] - gap[i] * (at[i + 1] - at[i]) / (gap[i + 1] - gap[i])))


def draw(results, config):
    """Overlaid solutions and the two losses, over relative density above and relative importance below."""
    relative = results["relative"]
    own = int(np.argmin(np.abs(results["bases"] - config.density)))
    figure, axes = plt.subplots(2, 3, figsize=(13, 8.4), dpi=110, width_ratios=[1, 1, 1.55])
    for row, what in enumerate(("density", "importance")):
        base = own if what == "density" else 0
        loss = _kept(results, what)[base]
        W = results[f"{what}_W"][base]
        for column, (start, name) in enumerate(((PENTAGON, "pentagon"), (DIGONS, "two digons"))):
            keep = np.isfinite(loss[:, start])
            plot.solutions(axes[row, column], _aligned(W[keep, start], start), relative[keep], relative)
            axes[row, column].set_title(f"{name}: {what} of feature 1 varied", fontsize=10)
        ax = axes[row, 2]
        if what == "density":
            kept = np.linalg.norm(results["random_W"], axis=-1) > 0.5
            which = np.where(kept.all(-1), "all", np.where(kept[..., 0], "other", "first"))
            for name, colour, label in (("all", plot.WARM, "random starts that keep all"),
                                        ("first", plot.COOL, "that drop feature 1"),
                                        ("other", "0.45", "that drop another")):  # fmt: skip
                x = np.broadcast_to(relative[:, None], which.shape)[which == name]
                y = results["random_loss"][which == name]
                ax.plot(x, y, "o", ms=6, mew=0.7, mfc="none", alpha=0.6, color=colour, label=label)
        plot.log_line(ax, relative, loss[:, PENTAGON], "pentagon")
        plot.log_line(ax, relative, loss[:, DIGONS], "two digons")
        for line, colour in zip(ax.get_lines()[-2:], (plot.WARM, plot.COOL), strict=True):
            line.set_color(colour)
        at = crossing(relative, loss[:, PENTAGON], loss[:, DIGONS])
        if np.isfinite(at):
            ax.axvline(at, color="0.4", lw=0.9, ls=":")
            ax.annotate(f"they cross\nat {at:.3f}", (at, 0.03), xycoords=("data", "axes fraction"), fontsize=8,
                        ha="right", xytext=(-4, 0), textcoords="offset points")  # fmt: skip
        if what == "density":
            ax.axvline(0.4, color="0.75", lw=0.9, ls="--")
            ax.annotate("the paper's 2.5 times sparser", (0.4, 0.96), xycoords=("data", "axes fraction"), fontsize=8,
                        color="0.45", xytext=(4, 0), textcoords="offset points")  # fmt: skip
        ax.set(yscale="log", xlabel=f"relative {what} of feature 1", ylabel="population loss")
        plot.plain_ticks(ax.xaxis, (0.1, 0.2, 0.4, 1, 2, 4))
        plot.plain_ticks(ax.yaxis, (0.003, 0.005, 0.01, 0.02, 0.03))
        ax.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(
        f"Five features in two dimensions, $1-S$ = {config.density:g}, one feature varied: the pentagon stretches, and "
        "two digons without that feature win when it is rare", fontsize=12,
    )  # fmt: skip
    figure.subplots_adjust(left=0.035, right=0.985, top=0.9, bottom=0.155, wspace=0.15, hspace=0.28)
    bar = figure.add_axes((0.12, 0.065, 0.36, 0.014))
    plot.log_key(figure, bar, plot.DENSER, float(relative.min()), float(relative.max()),
                 "relative density or importance of feature 1 (blue: less, yellow: more)")  # fmt: skip
    return {"": figure}


def _aligned(W, start):
    """Solutions [k, 5, 2] turned and mirrored, which no loss sees: the varied feature up, or the first digon up."""
    out = []
    lead, second = (0, 1) if start == PENTAGON else (1, 3)
    for rows in W:
        turn = np.pi / 2 - np.arctan2(rows[lead, 1], rows[lead, 0])
        c, s = np.cos(turn), np.sin(turn)
        rows = rows @ np.array([[c, s], [-s, c]])
        out.append(rows * [-1.0 if (rows[second, 0] > 0) == (start == PENTAGON) else 1.0, 1.0])
    return np.asarray(out)


def claims(results, config):
    """Losses of both solutions, their crossing by base density, and how the pentagon stretches."""
    relative, bases = results["relative"], results["bases"]
    at = {round(float(r), 6): i for i, r in enumerate(relative)}
    by_base = {round(float(p), 6): i for i, p in enumerate(bases)}
    loss, own = _kept(results, "density"), by_base[round(config.density, 6)]
    W, b = results["density_W"][own, :, PENTAGON], results["density_b"][own, :, PENTAGON]
    cross = {p: crossing(relative, loss[i, :, PENTAGON], loss[i, :, DIGONS]) for p, i in by_base.items()}
    out = []
    for name, start, rows in (("pentagon", PENTAGON, config.expected_pentagon),
                              ("two digons", DIGONS, config.expected_digons)):  # fmt: skip
        rows = [(r, v) for r, v in rows if r in at]
        if rows and config.density == 0.05:
            places = ", ".join(f"{r:g}" for r, _ in rows)
            got = [1e3 * float(loss[own, at[r], start]) for r, _ in rows]
            out.append(
                Claim(f"{name}: loss (1e-3) at relative density {places}", DERIVED, [v for _, v in rows], got, 0.06)
            )
    if 1.0 in at:
        equal = at[1.0]
        out += [
            Claim("pentagon of equal features: lengths", DERIVED, [1.134] * 5,
                  np.asarray(geometry.norms(jax.numpy.asarray(W[equal]))), 0.01),
            Claim("pentagon of equal features: biases", DERIVED, [-0.245] * 5, b[equal], 0.01),
            Claim("pentagon of equal features: D_i", "TMS, The Geometry of Superposition", [0.4] * 5,
                  np.asarray(geometry.dimensionality(jax.numpy.asarray(W[equal]))), 0.01),
        ]  # fmt: skip
        rows = [row for row in config.expected_equal if row[0] in by_base]
        if rows:
            got = [1e3 * float(results["density_loss"][by_base[p], equal, s]) for p, *_ in rows for s in (0, 1)]
            out.append(Claim("all five equal, losses (1e-3) of pentagon and digons at 1-S = "
                             + ", ".join(f"{p:g}" for p, *_ in rows), DERIVED, [v for _, *pair in rows for v in pair],
                             got, 0.3))  # fmt: skip
        if {0.2, 0.24} <= by_base.keys():
            gaps = [
                float(np.log(loss[by_base[p], equal, DIGONS] / loss[by_base[p], equal, PENTAGON])) for p in (0.2, 0.24)
            ]
            text = "all five equal: log of the digons' loss over the pentagon's at 1-S = "
            out += [Claim(text + "0.2, the pentagon still the better one", DERIVED, 0.0, gaps[0], 0.0, ">="),
                    Claim(text + "0.24, the digons the better ones", DERIVED, 0.0, gaps[1], 0.0, "<=")]  # fmt: skip
    rows = [(p, v) for p, v in config.expected_crossings if round(p, 6) in cross]
    whats = ("density", "importance")
    error = max(float(np.nanmax(results[f"{what}_error"] / results[f"{what}_loss"])) for what in whats)
    out += [
        Claim("the loss is not of the nodes that it is taken at (largest difference to that at half as many, over it)",
              "numerics", 0.0, error, 0.005),
        Claim("relative density at which the losses cross, at 1-S = " + ", ".join(f"{p:g}" for p, _ in rows), DERIVED,
              [v for _, v in rows], [cross[round(p, 6)] for p, _ in rows], 0.012),
        Claim("the losses cross where the varied feature is 2.5 times sparser", NON_UNIFORM, 1 / 2.5,
              cross[round(config.density, 6)], 0.05,
              note=f"the losses cross at {1 / cross[round(config.density, 6)]:.1f} times sparser for 1-S = "
              f"{config.density:g}" + _where(cross)),
        Claim("a crossing exists between 2 and 5 times sparser (relative density)", NON_UNIFORM, [0.2, 0.5],
              cross[round(config.density, 6)], 0.0, "in"),
    ]  # fmt: skip
    below = np.flatnonzero(relative < cross[round(config.density, 6)])
    if below.size and below[-1] + 1 < len(relative):
        i = below[-1]
        slope = (loss[own, i + 1] - loss[own, i]) / (relative[i + 1] - relative[i])
        ratio = float(slope[DIGONS] / slope[PENTAGON])
        out.append(Claim("first order: slope of the digons' loss over the pentagon's at the crossing", NON_UNIFORM, 1.5,
                         ratio, 0.0, ">="))  # fmt: skip
    if 2.0 in at and 0.5 in at and 1.0 in at:
        angles = [_neighbours(W[at[r]]) for r in (0.5, 1.0, 2.0)]
        out += [
            Claim("equal features: angle of feature 1 and its neighbours (degrees)", NON_UNIFORM, 72.0, angles[1], 0.5),
            Claim("twice as dense, feature 1 pushes its neighbours away (degrees more)", NON_UNIFORM, 1.0,
                  angles[2] - angles[1], 0.0, ">="),
            Claim("half as dense, they come closer (degrees less)", NON_UNIFORM, 1.0, angles[1] - angles[0], 0.0, ">="),
        ]  # fmt: skip
        best = results["random_loss"].min(1)
        exact = np.nanmin(loss[own], 1)
        out.append(Claim("best of the random starts over the better of the two solutions, largest over the densities",
                         DERIVED, 1.0, float((best / exact).max()), 0.03, "<="))  # fmt: skip
    return out + _importance(results, config, at)


def _where(cross):
    """Of crossings by base density, where they pass the paper's 1 / 2.5, linear between the densities."""
    bases, at = (np.array(v) for v in zip(*sorted(cross.items()), strict=True))
    found = at[np.isfinite(at)].size > 1 and np.nanmin(at) <= 1 / 2.5 <= np.nanmax(at)
    return f" and 2.5 times for about {np.interp(1 / 2.5, at, bases):.3f}" if found else ""


def _importance(results, config, at):
    """What the paper's text says may be varied as well, and does not show: the same transition, the same stretch."""
    (loss,), relative = _kept(results, "importance"), results["relative"]
    W = results["importance_W"][0, :, PENTAGON]
    gap = np.log(loss[:, DIGONS] / loss[:, PENTAGON])
    at_all = np.isfinite(gap)
    cross = crossing(relative, loss[:, PENTAGON], loss[:, DIGONS])
    out = [
        Claim("importance varied: the losses cross, too (relative importance)", NON_UNIFORM, [0.2, 0.5], cross, 0.0,
              "in"),
        Claim("importance varied: below the crossing digons are better, above it the pentagon (share of importances)",
              NON_UNIFORM, 1.0, float(np.mean((gap[at_all] > 0) == (relative[at_all] > cross)))),
    ]  # fmt: skip
    if {0.5, 1.0, 2.0} <= at.keys():
        angles = [_neighbours(W[at[r]]) for r in (0.5, 1.0, 2.0)]
        out.append(Claim("importance varied: twice as important, feature 1 pushes its neighbours away, half as "
                         "important they come closer (degrees, the smaller of the two)", NON_UNIFORM, 0.5,
                         min(angles[2] - angles[1], angles[1] - angles[0]), 0.0, ">="))  # fmt: skip
    own = int(np.argmin(np.abs(results["bases"] - config.density)))
    W, b, loss = (a[own, :, PENTAGON] for a in (results["density_W"], results["density_b"], _kept(results, "density")))
    norms, kept = np.linalg.norm(W, axis=-1), np.isfinite(loss)
    if kept.sum() > 1:
        r = float(np.corrcoef(-b[kept].ravel(), norms[kept].ravel())[0, 1])
        out.append(Claim("lengths grow as biases get more negative: Pearson's r of -b_i and ||W_i|| over pentagons "
                         "of all densities", f"{NON_UNIFORM}: a negative bias cuts noise, the norm makes up for it",
                         0.8, r, 0.0, ">=",
                         note=f"at the most negative bias, {b[kept].min():.2f}, the length is "
                         f"{norms[kept].ravel()[b[kept].argmin()]:.2f}, at most {norms[kept].max():.2f}"))  # fmt: skip
    return out


def _neighbours(W):
    """Mean angle between the first feature and the two closest to it, in degrees."""
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    return float(np.degrees(np.arccos(np.sort(unit[1:] @ unit[0])[-2:])).mean())
