"""How models get there: features jump between energy levels; bundles open into triangles, which rotate.

TMS, "Learning Dynamics".
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import optimize

from experiments import check
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry
from superpose.toy.models import grid, population
from superpose.train.fit import fit
from superpose.worlds import expect
from superpose.worlds.sparse import sets

LEVELS = 'TMS, Learning Dynamics: Discrete "Energy Level" Jumps'
SETS = "TMS, Learning Dynamics: Learning as Geometric Transformations"
NEAR = 0.05
"""Distance from a level at which a feature counts as on it."""
WINDOW = 0.05
"""Share of training within which features that change places do so at once."""
JUMP, SETTLED = 0.15, 0.1
"""Change of a dimensionality that is a jump; share of training after which features have settled."""
BUNDLE, PAIR = 0.95, -0.9
"""Cosine within a set above which it is a bundle, and W_i . W_j below which two features are antipodes."""
FINER = 8
"""So many times the points of training are those by which solutions of the two sets are compared."""


def run(config, key, workdir):
    """Dimensionalities of the run of levels over time [K + 1, n], of all seeds at the end; W of the two sets [K + 1, 6,
    3] and the Gram matrices of all seeds at the end; losses [K]."""
    check.whole(config, "records")
    check.whole(config.levels, "n", "batch")
    check.whole(config.sets, "sizes", "points")
    if config.sets.m != 3 or len(config.sets.sizes) != 2:
        raise ValueError(
            f"two sets are drawn in space and need sets.m=3 and two sizes, got {config.sets.m} and {config.sets.sizes}"
        )
    parts = {"levels": config.levels, "sets": config.sets}
    for name, c in parts.items():
        check.whole(c, "m", "seeds", "steps")
        check.positive(c, "density")
        if c.steps % config.records:
            raise ValueError(f"records must divide {name}.steps, got {config.records} for {c.steps}")
    keys = jax.random.split(key, 2)
    world = sets(config.sets.sizes, "correlated", "sobol")
    fine = expect.expectation("quadrature", world, FINER * config.sets.points)(key, config.sets.density)
    out: dict[str, Any] = {}
    for k, (name, c) in zip(keys, parts.items(), strict=True):
        every, hyper = c.steps // config.records, grid(density=np.asarray([c.density], np.float32), seed=range(c.seeds))
        more = (
            {"expectation": "conditional", "size": c.batch, "n": c.n, "init_scale": c.init_scale}
            if name == "levels"
            else {"expectation": "quadrature", "size": c.points, "n": world.n, "init_scale": c.init_scale,
                  "world": world}
        )  # fmt: skip
        pop = population(m=c.m, hyper=hyper, recipe=check.recipe(c), record=lambda params: params["W"], block=4, **more)
        result = fit(pop, steps=c.steps, key=k, workdir=workdir / name, log_every=every,
                     record_at=range(0, c.steps + 1, every), title=name)  # fmt: skip
        check.some_sound(np.where(result.frozen_at >= 0, np.inf, 0)[None], "density", [c.density])
        W, loss = np.asarray(result.records), result.history["loss"]
        out |= {f"{name}_steps": result.record_steps} | (_levels(W, loss) if name == "levels" else _sets(W, loss, c))
        out[f"{name}_last_b"] = np.asarray(result.params["b"])
    c = config.sets
    out["judged"] = np.array([_loss(*model, fine) for model in zip(out["sets_last"], out["sets_last_b"], strict=True)])
    if world.n == 2 * c.m:  # an octahedron from the start: where training takes it
        corners = jnp.concatenate([jnp.eye(c.m), -jnp.eye(c.m)])
        pop = population(
            world.n, c.m, grid(density=np.asarray([c.density], np.float32), seed=range(4)), check.recipe(c),
            expectation="quadrature", size=c.points, world=world, block=4,
            init=lambda params, key, _: params | {"W": corners + 1e-3 * jax.random.normal(key, corners.shape)},
        )  # fmt: skip
        result = fit(pop, steps=c.steps, key=jax.random.fold_in(key, 1), workdir=workdir / "octahedron",
                     log_every=c.steps, title="from an octahedron")  # fmt: skip
        W, b = np.asarray(result.params["W"]), np.asarray(result.params["b"])
        out |= {
            "octahedron_W": W, "octahedron_loss": result.history["loss"][-1],
            "judged_from_octahedron": np.array([_loss(*model, fine) for model in zip(W, b, strict=True)]),
            "judged_octahedron": np.asarray(_octahedron(corners, fine)),
        }  # fmt: skip
    return out


def _loss(W, b, batch):
    x, w = (np.asarray(a, np.float64) for a in batch)
    return float(np.square(x - np.maximum(W @ (W.T @ x) + np.reshape(b, (-1, 1)), 0)).sum(0) @ w)


def _octahedron(corners, batch):
    """The lowest loss of octahedra of any size and any one bias."""
    corners = np.asarray(corners, np.float64)
    return optimize.minimize(lambda v: _loss(v[0] * corners, v[1], batch), [1.0, 0.0], method="Nelder-Mead").fun


def _levels(W, loss):
    D = np.asarray(jax.vmap(jax.vmap(geometry.dimensionality))(jnp.asarray(W)))
    off = np.minimum(np.abs(D[-1]), np.abs(D[-1] - 0.5)).max(1)
    last = loss[-max(1, len(loss) // 20) :].mean(0)
    jumps = np.array([_jumps(D[:, s])[0] for s in range(D.shape[1])])
    chosen = int(np.lexsort((last, -jumps, off > NEAR))[0])
    swaps = np.array([_swaps(D[:, s], 0.1, 0.4)[0] for s in range(D.shape[1])])
    return {"levels_D": D[:, chosen], "levels_loss": loss[:, chosen], "levels_last": D[-1], "levels_first": D[0],
            "levels_swaps": swaps, "levels_jumps": jumps, "levels_chosen": np.asarray(chosen)}  # fmt: skip


def _jumps(D):
    """Of dimensionalities [K + 1, n]: the most features that jump within the window once training has settled, and the
    first record of the window that has them in its middle."""
    wide = max(1, round(WINDOW * (len(D) - 1)))
    moved = (np.abs(D[wide:] - D[:-wide]) > JUMP).sum(1)
    moved[: round(SETTLED * (len(D) - 1))] = 0
    first = int(moved.argmax())
    last = first + int((np.append(moved[first:], -1) != moved[first]).argmax()) - 1
    return int(moved[first]), (first + last) // 2


def _swaps(D, low, high):
    """Of dimensionalities [K + 1, n]: the most features that change places within the window (as many rise from below
    ``low`` to above ``high`` as fall), and the first record of that window."""
    wide = max(1, round(WINDOW * (len(D) - 1)))
    up = ((D[:-wide] < low) & (D[wide:] > high)).sum(1)
    down = ((D[:-wide] > high) & (D[wide:] < low)).sum(1)
    both = 2 * np.minimum(up, down)
    return int(both.max()), int(both.argmax())


def _sets(W, loss, c):
    within, across = _cosines(W, c.sizes)
    bundled = (within.min(-1) > BUNDLE) & (np.square(W).sum((-2, -1)) > 1)
    opposed = np.where(bundled, across.mean(-1), np.inf).min(0)  # of each seed, where it has two bundles
    tied = within.min(-1) > BUNDLE
    together = np.where(tied, across.mean(-1), -np.inf).argmax(0)  # of each seed, the record at which sets are closest
    seeds = np.arange(W.shape[1])
    later = np.arange(len(W))[:, None] > together
    parted = np.where(tied & later, across.mean(-1), np.inf).min(0)
    last = loss[-1]
    good = last <= 1.02 * last.min()
    chosen = int(np.lexsort((opposed, ~good))[0])
    return {"sets_W": W[:, chosen], "sets_loss": loss[:, chosen], "sets_last": W[-1], "sets_last_loss": last,
            "sets_opposed": opposed, "sets_chosen": np.asarray(chosen),
            "sets_together": across.mean(-1)[together, seeds], "sets_parted": parted}  # fmt: skip


def _cosines(W, sizes):
    """Cosines of features of one set [..., pairs] and of different sets [..., pairs]."""
    unit = W / np.maximum(np.linalg.norm(W, axis=-1, keepdims=True), 1e-12)
    C, owner = unit @ np.swapaxes(unit, -1, -2), np.repeat(np.arange(len(sizes)), sizes)
    same = owner[:, None] == owner[None]
    upper = np.triu(np.ones_like(same), 1)
    return C[..., same & upper], C[..., ~same & upper]


def _triangles(W, sizes):
    """Of two sets of three: gaps between neighbours around the axis that joins their centres [..., 6], and the angle
    by which one is turned against the other [...], 0 in a prism and 60 in an antiprism, in degrees."""
    parts = W[..., :3, :], W[..., 3:, :]
    axis = parts[0].mean(-2) - parts[1].mean(-2)
    axis = axis / np.maximum(np.linalg.norm(axis, axis=-1, keepdims=True), 1e-12)
    e = np.cross(axis, np.eye(3)[np.abs(axis).argmin(-1)])
    e = e / np.linalg.norm(e, axis=-1, keepdims=True)
    angles = [np.degrees(np.arctan2(*((part * v[..., None, :]).sum(-1) for v in (np.cross(axis, e), e))))
              for part in parts]  # fmt: skip
    gaps = [np.diff(s := np.sort(a, -1), append=s[..., :1] + 360) for a in angles]
    phase = [np.angle(np.exp(3j * np.radians(a)).sum(-1), deg=True) / 3 for a in angles]
    return np.concatenate(gaps, -1), np.abs((phase[0] - phase[1] + 60) % 120 - 60)


def _regimes(results, config):
    """First records of the regimes B, C and D: B begins where 95 % of the way to its plateau is gone, C where bundles
    open, D where 95 % of the way from B's plateau to the last loss is gone."""
    within, _ = _cosines(results["sets_W"], config.sets.sizes)
    tied = within.min(-1) > BUNDLE
    loss = results["sets_loss"]
    K = len(tied)
    opens = int(np.flatnonzero(tied).max(initial=0)) + 1
    level = loss[max(0, opens - 2) : opens].mean() if opens < K else loss[-1]
    grown = next((k for k in range(1, K) if loss[k - 1] <= level + 0.05 * (loss[0] - level)), K - 1)
    settled = next((k for k in range(opens, K) if loss[k - 1] <= loss[-1] + 0.05 * (level - loss[-1])), K - 1)
    return [min(grown, K - 1), min(opens, K - 1), settled]


def draw(results, config):
    """D_i of every feature over time and the loss under it; the loss of the two sets with W at its four regimes."""
    figure = plt.figure(figsize=(15, 7.4), dpi=105)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 1.25])[0]
    top, bottom = left.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    steps, D = results["levels_steps"], results["levels_D"]
    most, first = _jumps(D)
    for i, path in enumerate(D.T):
        top.plot(steps, path, color=plt.get_cmap("turbo")(i / max(1, D.shape[1] - 1)), lw=0.9)
    for level, name in ((0.0, "not represented"), (0.5, "digon")):
        top.axhline(level, color="0.6", lw=0.7, ls=":")
        top.annotate(name, (steps[-1], level), (-3, 7), textcoords="offset points", ha="right", fontsize=8, color="0.3")
    bottom.plot(steps[1:], results["levels_loss"], color=plot.WARM, lw=1)
    wide = max(1, round(WINDOW * (len(D) - 1)))
    for ax in (top, bottom):
        ax.axvspan(steps[first], steps[first + wide], color="0.85", lw=0, zorder=0)
    c = config.levels
    top.set(ylabel="dimensionality $D_i$", ylim=(-0.04, max(0.84, float(D[1:].max()) + 0.04)))
    top.set_title(f"{c.n} features, {c.m} dimensions, $1-S$ = {c.density:g}\ngrey: {most} features jump "
                  f"within {WINDOW:.0%} of training", fontsize=10)  # fmt: skip
    low, high = results["levels_loss"][len(D) // 20 :].min(), results["levels_loss"][len(D) // 20 :].max()
    bottom.set(
        xlabel="step", ylabel="loss", xlim=(0, steps[-1]), ylim=(low - 0.1 * (high - low), high + 0.3 * (high - low))
    )
    left.subplots_adjust(left=0.1, right=0.97, top=0.875, bottom=0.08, hspace=0.08)

    steps, loss, W = results["sets_steps"], results["sets_loss"], results["sets_W"]
    ends = [0, *_regimes(results, config), len(W) - 1]
    places = [ends[1] // 2, (ends[1] + ends[2]) // 2, ends[3], len(W) - 1]
    owner = np.repeat(np.arange(len(config.sets.sizes)), config.sets.sizes)
    says = ("two bundles grow", "they stay apart", "each opens (at its end)", "antipodes (at the end)")
    for j, (k, letter, said) in enumerate(zip(places, "ABCD", says, strict=True)):
        ax = right.add_axes((0.02 + 0.245 * j, 0.5, 0.235, 0.4), projection="3d")
        reach = max(0.2, float(np.abs(W[k]).max()))
        for row, o in zip(W[k], owner, strict=True):
            colour = (plot.WARM, plot.COOL)[o % 2]
            ax.plot(*np.stack([np.zeros(3), row]).T, color=colour, lw=1.6)
            ax.scatter(*row, color=colour, s=16)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach), xticklabels=[], yticklabels=[],
               zticklabels=[])  # fmt: skip
        ax.set_box_aspect((1, 1, 1), zoom=1.05)
        ax.view_init(22, 35)
        ax.set_title(f"{letter}: {said}\nstep {steps[k]:,}, axes ±{reach:.2f}", fontsize=8.5)
    ax = right.add_axes((0.09, 0.1, 0.81, 0.36))
    ax.plot(steps[1:], loss, color="k", lw=1.3, label="loss")
    far = int(ends[-1])
    if tuple(config.sets.sizes) == (3, 3):
        _, turned = _triangles(W, config.sets.sizes)
        still = int(np.flatnonzero(np.abs(turned - turned[-1]) > 1).max(initial=0)) + 1
        far = min(far, max(2 * ends[3], still + still // 6))
        other = ax.twinx()
        other.plot(steps[ends[3] :], turned[ends[3] :], color="0.5", ls="--", lw=1.2)
        other.axhline(60, color="0.7", lw=0.8, ls=":")
        other.set(ylim=(-2, 66), yticks=[0, 20, 40, 60])
        other.set_ylabel("angle between triangles (degrees)\n0: a prism, 60: an octahedron", color="0.4", fontsize=9)
        other.spines["top"].set_visible(False)
        ax.plot([], [], color="0.5", ls="--", lw=1.2, label="angle between the triangles")
    for one in range(len(config.sets.sizes)):
        ax.plot([], [], color=(plot.WARM, plot.COOL)[one % 2], marker="o", ms=4, lw=1.6, label=f"above: set {one + 1}")
    ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.42, 0.98))
    for (a, b), letter, shade in zip(pairwise(ends), "ABCD", (0.97, 0.9, 0.97, 0.9), strict=True):
        ax.axvspan(steps[a], steps[b], color=str(shade), lw=0, zorder=0)
        if b > a:
            ax.annotate(letter, ((steps[a] + steps[min(b, far)]) / 2, 1.02), xycoords=("data", "axes fraction"),
                        ha="center")  # fmt: skip
    shown = np.minimum(places, far)
    ax.plot(steps[shown], loss[np.maximum(shown - 1, 0)], "o", ms=4, color="k", clip_on=False, zorder=5)
    ax.set(xlabel="step" if far == ends[-1] else f"step (of {steps[-1]:,}; nothing moves after these)", ylabel="loss",
           xlim=(0, steps[far]), ylim=(0, None))  # fmt: skip
    c = config.sets
    right.suptitle(f"two sets of {' and '.join(map(str, c.sizes))} correlated features in {c.m} dimensions, $1-S$ = "
                   f"{c.density:g}", fontsize=10, y=0.945)  # fmt: skip
    plot.plain((top, bottom, ax))
    figure.suptitle("Learning dynamics: energy levels, and geometric transformations", fontsize=12, y=0.995)
    return {"": figure}


def claims(results, config):
    """Levels at the end, features that change places and the loss there; regimes and the last shape of the two sets."""
    D, last, loss = results["levels_D"], results["levels_last"], results["levels_loss"]
    near = lambda x: np.minimum(np.abs(x), np.abs(x - 0.5)) <= NEAR  # noqa: E731
    most, first = _jumps(D)
    wide = max(1, round(WINDOW * (len(D) - 1)))
    before, after = loss[max(0, first - wide) : first + 1], loss[first + wide - 1 : first + 2 * wide]
    fall, noise = float(after.mean() - before.mean()), float(np.hypot(after.std(), before.std()))
    gone = np.flatnonzero(np.abs(D[first + wide] - D[first]) > JUMP)
    ways = ", ".join(f"{D[max(0, first - 1), i]:.2f} to {D[min(first + 2 * wide, len(D) - 1), i]:.2f}" for i in gone)
    jumps = results["levels_jumps"]
    strict = results["levels_swaps"]
    out = [
        Claim("levels: largest distance of a feature from 0 or 1/2 at the end of the run", LEVELS, NEAR,
              float(np.minimum(np.abs(D[-1]), np.abs(D[-1] - 0.5)).max()), 0.0, "<=",
              note=f"{int(near(last).all(1).sum())} of {len(last)} seeds end so"),
        Claim("levels: features in digons at the end", LEVELS, 2 * config.levels.m, int((D[-1] > 0.25).sum())),
        Claim("levels, control: share of features on one at the start, all seeds", "negative control", 0.3,
              float(near(results["levels_first"]).mean()), 0.0, "<="),
        Claim(f"levels: features whose D_i jumps by over {JUMP:g} within {WINDOW:.0%} of training, after the first "
              f"{SETTLED:.0%} (claimed after a run)", LEVELS, 2, most, 0, ">=",
              note=f"from step {results['levels_steps'][first]}: {ways}; {int((jumps >= 2).sum())} of {len(jumps)} "
              "seeds have two or more"),
        Claim("the loss falls in that window: mean of as long before less that after, over the spread of both (claimed "
              "after a run)", LEVELS,
              1.0, -fall / max(noise, 1e-12), 0.0, ">=", note=f"by {-fall:.4f} of {before.mean():.4f}"),
        Claim(f"levels: seeds in which features that stand on levels change places within {WINDOW:.0%} (from below 0.1 "
              "to above 0.4 and as many back)", f"{LEVELS}; the paper shows one run", 1, int((strict > 0).sum()), 0,
              ">=", note=f"of {len(strict)} seeds; what jumps in the run shown: {ways}"),
    ]  # fmt: skip
    W, ends = results["sets_W"], _regimes(results, config)
    G, owner = W[-1] @ W[-1].T, np.repeat(np.arange(len(config.sets.sizes)), config.sets.sizes)
    joined = [(i, j) for i, j in geometry.antipodal_pairs(W[-1], PAIR) if owner[i] != owner[j]]
    off = ~np.eye(len(G), dtype=bool)
    for i, j in joined:
        off[i, j] = off[j, i] = False
    middle = (ends[0] + ends[1]) // 2
    within, across = _cosines(W[middle], config.sets.sizes)
    ours = results["sets_last"]
    cross = [sum(owner[i] != owner[j] for i, j in geometry.antipodal_pairs(V, PAIR)) for V in ours]
    lowest = results["sets_last_loss"].min()
    note = f"of seeds within 0.1 % of the lowest loss: {_skew(ours, results['sets_last_loss'], owner)}"
    if "octahedron_W" in results:
        skew, finer = _skew(results["octahedron_W"], results["octahedron_loss"], owner), results["judged"]
        note += (f"; started from an octahedron: {skew}; the loss by {FINER} times the points is "
                 f"{float(results['judged_octahedron']):.6f} for the best exact octahedron, "
                 f"{results['judged_from_octahedron'].min():.6f} for what was started from one, {finer.min():.6f} for "
                 "the others")  # fmt: skip
    together, parted = results["sets_together"], results["sets_parted"]
    joint = (together > BUNDLE) & (parted < 0.5)
    middle_note = f"of {len(cross)} seeds {int((results['sets_opposed'] < -0.5).sum())} have bundles so far apart"
    shapes = []
    if tuple(config.sets.sizes) == (3, 3):
        gaps, turned = _triangles(W, config.sets.sizes)
        shapes = [
            Claim("sets, end of regime C: each is a triangle (gaps between neighbours, degrees)",
                  SETS, [120.0] * 6, gaps[ends[2]], 15.0),
            Claim("sets, regime D: triangles rotate from a prism, 0, into an antiprism, 60 (angle between them at its "
                  "beginning and its end, degrees)", SETS, [0.0, 60.0], turned[[ends[2], -1]], 10.0,
                  note="the loss falls by "
                  f"{1 - results['sets_loss'][-1] / results['sets_loss'][min(ends[2], len(turned) - 2)]:.1%} in it"),
        ]  # fmt: skip
    final, judged = results["sets_last_loss"], results["judged"]
    return [
        *out,
        Claim("sets: the loss at the end is not of the points that it is taken at (largest difference to that at "
              f"{FINER} times as many, over it)", "numerics", 0.0,
              float(np.abs(final / judged - 1).max()), 0.01),
        Claim("sets: antipodes (W_i . W_j < -0.9) at the end, all of different sets", SETS, 3, len(joined)),
        Claim("sets: largest |W_i . W_j| besides them", f"{SETS}; an octahedron", 0.1,
              float(np.abs(G[off]).max()), 0.0, "<=", note=note),
        Claim("sets: dimensionality of each feature at the end", SETS, [0.5] * len(G),
              np.asarray(geometry.dimensionality(jnp.asarray(W[-1]))), 0.02),
        Claim("sets, regime B: smallest cosine within a set", SETS, BUNDLE, float(within.min()), 0.0, ">="),
        Claim("sets, regime B: mean cosine across sets", f"{SETS}: split apart along one axis", -0.5,
              float(across.mean()), 0.0, "<=",
              note=middle_note),
        Claim("sets, regimes A and B: seeds whose bundles are together first (mean cosine across sets above "
              f"{BUNDLE:g}) and then part to below 0.5", f"{SETS}: at first all features are together", 1,
              int(joint.sum()), 0, ">=", note=f"of {len(joint)} seeds; they part to a mean cosine of "
              + (f"{parted[joint].min():.2f} to {parted[joint].max():.2f} before they open" if joint.any() else "-")),
        *shapes,
        Claim("sets: steps at which B, C and D begin rise", SETS, 1,
              int(np.diff(results["sets_steps"][[0, *ends]]).min()), 0, ">=",
              note=f"at {', '.join(str(s) for s in results['sets_steps'][ends])}"),
        Claim("sets: share of seeds whose antipodes are three, of different sets", SETS, 0.9,
              float(np.mean(np.array(cross) == 3)), 0.0, ">=",
              note=f"losses from {lowest:.6f} to {results['sets_last_loss'].max():.6f}"),
    ]  # fmt: skip


def _skew(ours, loss, owner):
    """The largest |W_i . W_j| that is of no antipodes, of each seed near the best, smallest to largest."""
    found = []
    for V in ours[loss <= 1.001 * loss.min()]:
        G = np.abs(V @ V.T)
        for i, j in geometry.antipodal_pairs(V, PAIR):
            G[i, j] = G[j, i] = 0
        found.append(float((G - np.diag(np.diag(G))).max()))
    return f"{min(found):.3f} to {max(found):.3f} ({len(found)} seeds)"
