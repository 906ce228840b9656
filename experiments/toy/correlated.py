"""Sets of features that are active together, or never together: right angles, opposite directions, collapse.

TMS, "Correlated and Anticorrelated Features".
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry
from superpose.toy.models import grid, population
from superpose.worlds.sparse import sets

SECTION = "TMS, Correlated and Anticorrelated Features"
PANELS = {
    "2 correlated pairs": ((2, 2), "correlated"),
    "2 anticorrelated pairs": ((2, 2), "anticorrelated"),
    "3 correlated pairs": ((2, 2, 2), "correlated"),
}
BASES = ("correlated", "anticorrelated")
COLLAPSED = (
    "the ranges of the paper's text: all three above 0.5, two in 0.15-0.2, one in 0.05-0.15, none below; what it says "
    "of 0.25-0.5 is lost"
)
NOUGHT = 1e-6
"""A loss below which a model counts among the best, as small as they may be."""
SAME = 0.99
"""Cosine above which two partners count as one direction."""


def run(config, key, workdir):
    """Weights of every seed of the panels [seeds], of the collapse [densities, seeds], and of the larger models."""
    check.whole(config, "seeds", "shown", "points")
    check.whole(config.bases, "sizes", "m", "seeds", "batch")
    check.whole(config.crowded, "sizes", "m", "seeds")
    check.positive(config, "density", "collapse")
    check.positive(config.bases, "density")
    check.positive(config.crowded, "density")
    if config.shown > config.seeds:
        raise ValueError(
            f"shown must be at most seeds, the models that there are, got {config.shown} of {config.seeds}"
        )
    if len(config.collapse) != len(config.expected_collapsed):
        raise ValueError(f"expected_collapsed must hold a number for each density of collapse, got {config.collapse}")
    recipe, seeds = check.recipe(config), config.seeds
    keys = jax.random.split(key, len(PANELS) + 1 + len(BASES))
    out = {"collapse": np.asarray(config.collapse, np.float32)}

    def small(title, sizes, how, densities, key):
        densities = np.asarray(densities, np.float32)
        world, hyper = sets(sizes, how, "sobol"), grid(density=densities, seed=range(seeds))
        pop, judge = (
            population(world.n, 2, hyper, recipe, expectation="quadrature", size=size, world=world, block=4)
            for size in (config.points, 4 * config.points)
        )
        return toys.trained(pop, judge, config, key, workdir / title.replace(" ", "_"), seeds=seeds,
                            of=("density", densities), title=title)  # fmt: skip

    for k, (name, (sizes, how)) in zip(keys, PANELS.items(), strict=False):
        got = small(name, sizes, how, [config.density], k)
        out |= {f"{name}/W": got.params["W"][0], f"{name}/loss": got.loss[0]}
    got = small("collapse", *PANELS["3 correlated pairs"], config.collapse, keys[len(PANELS)])
    out |= {"collapse/W": got.params["W"], "collapse/loss": got.loss}

    def larger(name, c, how, key):
        world, hyper = sets(c.sizes, how), grid(density=np.asarray([c.density], np.float32), seed=range(c.seeds))
        pop, judge = (
            population(world.n, c.m, hyper, recipe, expectation="conditional", size=size, world=world)
            for size in (config.bases.batch, 8192)
        )
        got = toys.trained(pop, judge, config, key, workdir / f"bases_{name}", seeds=c.seeds,
                           of=("density", [c.density]), title=f"{name} sets")  # fmt: skip
        return {f"bases/{name}/W": got.chosen("W")[0], f"bases/{name}/b": got.chosen("b")[0]}

    for k, how in zip(keys[len(PANELS) + 1 :], BASES, strict=True):
        out |= larger(how, config.bases, how, k)
    return out | larger("crowded", config.crowded, "correlated", jax.random.fold_in(key, 1))


def _partners(W):
    """Cosines [..., pairs] of features 2i and 2i + 1."""
    unit = W / np.maximum(np.linalg.norm(W, axis=-1, keepdims=True), 1e-9)
    return (unit[..., ::2, :] * unit[..., 1::2, :]).sum(-1)


def _within(W, sizes):
    """Mean cosine of features of one set, for each set."""
    unit = W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), 1e-9)
    parts = np.split(unit, np.cumsum(sizes)[:-1])
    return np.array([((part @ part.T).sum() - len(part)) / (len(part) * (len(part) - 1)) for part in parts])


def _collapsed(W):
    return (_partners(W) > SAME).sum(-1)


def draw(results, config):
    """The three panels with several models each; the collapse over density; and W_i . W_j of the larger models."""
    shown, columns = config.shown, len(config.collapse)
    figure = plt.figure(figsize=(14, 9.6), dpi=105)
    head, top, middle, bottom = figure.subfigures(4, 1, squeeze=False, height_ratios=[0.1, 0.75, 1, 1.55])[:, 0]
    head.suptitle(
        "Features that are active together stand at right angles or side by side, those that never are, opposite",
        fontsize=13, y=0.7,
    )  # fmt: skip
    for part, (name, (sizes, _)) in zip(top.subfigures(1, len(PANELS)), PANELS.items(), strict=True):
        order = np.argsort(results[f"{name}/loss"])[:shown]
        part.suptitle(f"{name}, $1-S$ = {config.density:g}: {shown} best of {config.seeds}", fontsize=10)
        for ax, i in zip(part.subplots(1, shown, squeeze=False)[0], order, strict=False):
            plot.paired_rays(ax, _upright(results[f"{name}/W"][i]), np.repeat(np.arange(len(sizes)), sizes))
            ax.set_title(f"loss {max(0.0, results[f'{name}/loss'][i]):.2g}", fontsize=8)
        part.subplots_adjust(left=0.08, right=0.98, top=0.78, bottom=0.1, wspace=0.35)
    middle.suptitle(
        "3 correlated pairs in 2 dimensions: the best model by density; partners that share a direction are their "
        "first principal component", fontsize=10,
    )  # fmt: skip
    best = results["collapse/loss"].argmin(1)
    for i, ax in enumerate(np.atleast_1d(middle.subplots(1, columns))):
        W = results["collapse/W"][i, best[i]]
        plot.paired_rays(ax, _upright(W), np.repeat(np.arange(3), 2))
        ax.set_title(f"$1-S$ = {results['collapse'][i]:g}: {_collapsed(W)} collapsed", fontsize=9)
    middle.subplots_adjust(left=0.02, right=0.98, top=0.8, bottom=0.08)
    models = {how: (config.bases, how) for how in BASES} | {"crowded": (config.crowded, "correlated")}
    axes = bottom.subplots(1, len(models) + 1, width_ratios=[1] * len(models) + [0.03])
    for ax, (name, (c, how)) in zip(axes, models.items(), strict=False):
        W, b = results[f"bases/{name}/W"], results[f"bases/{name}/b"]
        plot.gram_matrix(ax, W @ W.T, b)
        plot.blocks(ax, np.cumsum(c.sizes)[:-1], len(W))
        within = "" if name != "crowded" else (
            f"\nmean cosine within each set {', '.join(f'{v:.2f}' for v in _within(W, c.sizes))}"
        )  # fmt: skip
        ax.set_title(f"{len(c.sizes)} {how} sets of {c.sizes[0]}, {c.m} dimensions, $1-S$ = {c.density:g}: "
                     f"$W_i\\cdot W_j$, $b$" + within, fontsize=8.5)  # fmt: skip
    plot.colour_key(bottom, axes[-1], plot.GRAM, -1.0, 1.0, r"$W_i\cdot W_j$, $b_i$")
    bottom.subplots_adjust(left=0.05, right=0.94, top=0.92, bottom=0.03, wspace=0.05)
    return {"": figure}


def _upright(W):
    """Turned and mirrored, which no loss sees: feature 1 up, feature 3 to the right."""
    turn = np.pi / 2 - np.arctan2(W[0, 1], W[0, 0])
    c, s = np.cos(turn), np.sin(turn)
    W = W @ np.array([[c, s], [-s, c]])
    return W * np.array([np.sign(W[2, 0]) or 1.0, 1.0])


def claims(results, config):
    """Angles of partners in the best models, blocks of the larger ones, collapsed pairs by density."""
    out = []
    for (name, (sizes, _)), (cosine, tolerance) in zip(
        PANELS.items(), ((0.0, 0.05), (-1.0, 0.05), (0.5, 0.1)), strict=True
    ):
        loss, W = results[f"{name}/loss"], results[f"{name}/W"]
        good = loss <= max(1.02 * loss.min(), NOUGHT)
        out += [
            Claim(f"{name}: cosines of partners in the best model", SECTION, [cosine] * len(sizes),
                  _partners(W[loss.argmin()]), tolerance),
            Claim(f"{name}: of the models within 2 % of the best loss (or below {NOUGHT:g}), share with such partners",
                  SECTION, 0.8, float((np.abs(_partners(W[good]) - cosine) <= tolerance).all(-1).mean()), 0.0, ">=",
                  note=f"{good.sum()} of {len(good)} models"),
            Claim(f"{name}: features represented", SECTION, len(W[0]),
                  int(np.asarray(geometry.represented(jnp.asarray(W[loss.argmin()]))).sum())),
        ]  # fmt: skip
    pairs = results["2 correlated pairs/W"][results["2 correlated pairs/loss"].argmin()]
    own = sum(i // 2 == j // 2 for i, j in geometry.antipodal_pairs(pairs))
    out.append(Claim("2 correlated pairs: antipodes (W_i . W_j < -0.5) that are of one pair", SECTION, 0, own))
    hexagon = results["3 correlated pairs/W"][results["3 correlated pairs/loss"].argmin()]
    angles = np.sort(np.degrees(np.arctan2(hexagon[:, 1], hexagon[:, 0])))
    gaps = np.diff(np.concatenate([angles, angles[:1] + 360]))
    out.append(
        Claim("3 correlated pairs: a hexagon, gaps between neighbours (degrees)", SECTION, [60.0] * 6, gaps, 6.0)
    )
    for how in BASES:
        W = results[f"bases/{how}/W"]
        unit = W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), 1e-9)
        owner = np.repeat(np.arange(len(config.bases.sizes)), config.bases.sizes)
        cosines, one = unit @ unit.T, owner[:, None] == owner[None]
        off = ~np.eye(len(W), dtype=bool)
        within, across = np.abs(cosines[one & off]).mean(), np.abs(cosines[~one]).mean()
        if how == "correlated":
            G, over = W @ W.T, np.triu(~one)
            negative, pairs = (G < -0.1) & np.triu(off), int(over.sum())
            out += [
                Claim("two correlated sets: mean |cos| within a set over that across sets", SECTION, 0.5,
                      float(within / across), 0.0, "<="),
                Claim("two correlated sets: the most negative W_i . W_j within a set", SECTION, -0.1,
                      float((W @ W.T)[one & off].min()), 0.0, ">="),
                Claim("two correlated sets: of the W_i . W_j below -0.1, share across sets", SECTION, 1.0,
                      float(negative[~one].sum() / max(1, negative.sum())),
                      note=f"{int((negative & over).sum())} of {pairs} pairs across sets are below -0.1, "
                      f"{int(((G > 0.1) & over).sum())} above 0.1; from {G[~one].min():.2f} to {G[~one].max():.2f}"),
            ]  # fmt: skip
        else:
            share = _share(geometry.antipodal_pairs(W), owner)
            out.append(Claim("two anticorrelated sets: antipodes that are of one set (share)", SECTION, 1.0, share, 0.1,
                             ">="))  # fmt: skip
    alike = np.sort(_within(results["bases/crowded/W"], config.crowded.sizes))
    out += [
        Claim(f"{len(alike)} correlated sets in few dimensions: mean cosine within the set that collapses to its "
              "first principal component (sizes and density found by a search)", SECTION, 0.9, float(alike[-1]), 0.0,
              ">=", note="within the others " + ", ".join(f"{v:.2f}" for v in alike[:-1])),
        Claim("the same: within the set that comes next", f"{SECTION}: the others keep theirs", 0.8, float(alike[-2]),
              0.0, "<="),
    ]  # fmt: skip
    best = results["collapse/loss"].argmin(1)
    rows, told = np.arange(len(best)), np.asarray(config.expected_collapsed) >= 0
    counts = _collapsed(results["collapse/W"][rows, best])
    number = _collapsed(results["collapse/W"])
    lowest = "; ".join(f"{p:g}: {', '.join(f'{k} {loss[of == k].min():.6f}' for k in np.unique(of))}" for p, of, loss in
                       zip(results["collapse"], number, results["collapse/loss"], strict=True))  # fmt: skip
    cosines = "; ".join(f"{p:g}: {', '.join(f'{v:.3f}' for v in np.sort(row)[::-1])}" for p, row in zip(
        results["collapse"], _partners(results["collapse/W"][rows, best]), strict=True))  # fmt: skip
    rise = int(np.diff(counts).max())
    out.append(
        Claim("collapsed pairs: never more where features are sparser (largest rise)", SECTION, 0, rise, 0, "<=")
    )
    places = ", ".join(f"{p:g}" for p in results["collapse"][told])
    out.append(Claim(f"collapsed pairs (cosine of partners > {SAME}) of the best model at 1-S = {places}", SECTION,
                     np.asarray(config.expected_collapsed)[told], counts[told],
                     note=f"{COLLAPSED}; cosines of partners at {cosines}; the lowest loss by the number collapsed, of "
                     f"{config.seeds} models at {lowest}"))  # fmt: skip
    return out


def _share(pairs, owner):
    return float(np.mean([owner[i] == owner[j] for i, j in pairs])) if pairs else float("nan")
