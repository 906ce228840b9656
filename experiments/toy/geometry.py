"""Uniform superposition: dimensions per feature, every feature's dimensionality, and the graphs of features.

TMS, "The Geometry of Superposition": Uniform Superposition, Feature Dimensionality, Understanding the Structure.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry
from superpose.toy.models import grid, population

SECTION = "TMS, The Geometry of Superposition"
DERIVED = "derived: sum_i D_i <= rank(W), with equality for orthogonal sums of tight frames"
SMALL = "a small run for this project: n=100, m=10, 4,000 steps, one seed"
LINES = {"1": 1.0, "3/4": 0.75, "2/3": 2 / 3, "1/2": 0.5, "2/5": 0.4, "3/8": 0.375, "0": 0.0}
"""The figure's lines: a dimension alone, tetrahedron, triangle, digon, pentagon, square antiprism, not learned."""
OWN = 0.03
"""Distance of a component's mean D_i from that of its shape within which it stands alone: overlaps with others lower
it."""


def run(config, key, workdir):
    """Weights [densities, n, m] and what is read off them."""
    n, m = config.n, config.m
    if m >= n:
        raise ValueError(f"this figure needs fewer hidden dimensions than features, got m={m}, n={n}")
    check.whole(config, "densities", "batch", "eval_batch", "block")
    check.positive(config, "sparsest", "graphs", "edge")
    check.listed(config, expected_small=2)
    if config.densities < 2 or config.sparsest >= 1:
        raise ValueError(f"densities must be at least 2, from 1 to a sparsest below 1, got {config.densities} and "
                         f"{config.sparsest:g}")  # fmt: skip
    densities = np.geomspace(1.0, config.sparsest, config.densities).astype(np.float32)
    make = lambda size: population(  # noqa: E731
        n, m, grid(density=densities, seed=[0]), check.recipe(config), expectation=config.expectation, size=size,
        block=config.block,
    )  # fmt: skip
    got = toys.trained(make(config.batch), make(config.eval_batch), config, key, workdir / "fit", seeds=1,
                       of=("density", densities), title=f"n={n} m={m}")  # fmt: skip
    W = jnp.asarray(got.chosen("W"))
    drawn = [_nearest(densities, at) for at in config.graphs]
    shapes = []
    for w in np.asarray(W):
        names, alone = _shapes(w, config)
        shapes.append([[(np.array(names) == s).sum(), ((np.array(names) == s) & alone).sum()] for s in geometry.SHAPES])
    random = jax.random.normal(jax.random.fold_in(key, 1), (n, m)) / np.sqrt(m)
    return {
        "densities": densities, "loss": got.loss[:, 0], "shapes": np.asarray(shapes), "drawn": np.asarray(drawn),
        "W": np.asarray(W)[drawn].astype(np.float16), "b": got.chosen("b"),
        "norms": np.asarray(jax.vmap(geometry.norms)(W)), "D": np.asarray(jax.vmap(geometry.dimensionality)(W)),
        "per_feature": np.asarray(jax.vmap(geometry.dimensions_per_feature)(W)),
        "random_D": np.asarray(geometry.dimensionality(random)),
    }  # fmt: skip


def _nearest(densities, at):
    """Number of the model whose 1/(1-S) is closest."""
    return int(np.argmin(np.abs(np.log(densities * at))))


def _shapes(W, config):
    """Names of the components' shapes, and whether each has the dimensionality of its shape."""
    _, parts, names = _graph(W, config)
    D = np.asarray(geometry.dimensionality(jnp.asarray(W, jnp.float32)))[np.linalg.norm(W, axis=1) > 0.5]
    ideal = {name: corners.shape[1] / len(corners) for name, corners in geometry.SHAPES.items()}
    off = [abs(float(D[part].mean()) - ideal.get(name, np.inf)) for part, name in zip(parts, names, strict=True)]
    return names, np.array(off) <= OWN


def _graph(W, config):
    """W of the represented features, their components, and the names of their shapes."""
    W = W[np.linalg.norm(W, axis=1) > 0.5].astype(float)
    parts = geometry.gram_graph(W, config.edge) if len(W) else []
    return W, parts, [geometry.shape_name(W[part], config.edge) for part in parts]


def draw(results, config):
    """The sticky line above, the scatter of dimensionalities with its lines below, and graphs of a few models."""
    x = 1 / results["densities"]
    figure = plt.figure(figsize=(13.5, 12.4), dpi=105)
    lines = figure.add_gridspec(
        2, 1, height_ratios=[1, 2.4], left=0.06, right=0.94, top=0.925, bottom=0.245, hspace=0.17
    )
    graphs = figure.add_gridspec(1, len(config.graphs), left=0.06, right=0.94, top=0.15, bottom=0.0, wspace=0.06)
    top, main = (figure.add_subplot(lines[i]) for i in range(2))
    top.plot(x, results["per_feature"], color="k", lw=1.4)
    for y, says in ((1.0, "1: as many features as dimensions"), (0.5, "1/2: two features a dimension")):
        top.axhline(y, color="0.6", lw=0.8, ls=":")
        top.annotate(says, (x[-1], y), ha="right", va="bottom", fontsize=8, color="0.4")
    top.axvline(1.75, color="0.75", lw=0.9, ls="--")
    top.annotate("theory: digons pay from 1.75", (1.75, 0.02), fontsize=8, color="0.45", xytext=(4, 0),
                 textcoords="offset points")  # fmt: skip
    top.set(xscale="log", ylim=(0, 1.12), xlim=(x[0] / 1.03, x[-1] * 1.03), ylabel=r"$D^* = m / \|W\|_F^2$")
    plot.dimensionalities(main, x, results["D"], LINES)
    main.plot(x, results["per_feature"], color="0.35", lw=1, ls="-", label=r"$m / \|W\|_F^2$, as above")
    main.set(xlabel=r"$1/(1-S)$", ylabel=r"dimensionality $D_i$ of each feature", xlim=top.get_xlim())
    main.legend(fontsize=8, frameon=False, loc="upper right")
    for ax in (top, main):
        plot.plain_ticks(ax.xaxis, [v for v in (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20) if v <= x[-1] * 1.01])
    plot.plain((top, main))
    for k, i in enumerate(results["drawn"]):
        ax = figure.add_subplot(graphs[k])
        W, parts, names = _graph(results["W"][k].astype(np.float32), config)
        alone = _shapes(results["W"][k].astype(np.float32), config)[1]
        line = np.full(len(W), -1.0)  # of no line
        for part, name, own in zip(parts, names, alone, strict=True):
            if own:
                line[part] = geometry.SHAPES[name].shape[1] / len(geometry.SHAPES[name])
        plot.shape_graph(ax, W, parts, line, LINES, config.edge)
        common = Counter(name for name, own in zip(names, alone, strict=True) if own).most_common(3)
        said = "\n".join([*(f"{count} × {name}" for name, count in common),
                          f"{len(names) - sum(c for _, c in common)} other components"])  # fmt: skip
        ax.set_title(f"$1/(1-S)$ = {x[i]:.2f}: {len(W)} features\n{said}", fontsize=7.5)
        main.axvline(x[i], color="0.85", lw=0.8, zorder=0)
    figure.suptitle(
        f"Uniform superposition: {config.n} features of equal importance, {config.m} hidden dimensions, "
        f"{len(x)} densities", fontsize=13,
    )  # fmt: skip
    figure.text(
        0.5, 0.947, f"below: features as nodes, overlaps $|W_i\\cdot W_j|$ > {config.edge:g} as edges, named and "
        "coloured by their shape's line where their mean $D_i$ fits it (grey: others)",
        ha="center", fontsize=9, color="0.35",
    )  # fmt: skip
    return {"": figure}


def claims(results, config):
    """Plateaus, the place of the change, peaks of the histogram, shapes of components, bounds, and a control."""
    x, D, norms, per = 1 / results["densities"], results["D"], results["norms"], results["per_feature"]
    m = config.m
    kept = norms > 0.5
    on = (x >= 2.0) & (x <= 3.0)
    low = np.flatnonzero(per < 0.75)
    change = float("nan")
    if low.size and low[0] > 0:
        i = low[0]
        share = (per[i - 1] - 0.75) / (per[i - 1] - per[i])
        change = float(np.exp(np.log(x[i - 1]) + share * np.log(x[i] / x[i - 1])))
    out = [
        Claim("dense: one dimension a feature (D*)", SECTION, 1.0, float(per[0]), 0.02),
        Claim("plateau at 1/2: mean D* over 1/(1-S) from 2.0 to 3.0", SECTION, [0.5, 0.55], float(per[on].mean()), 0.0,
              "in"),
        Claim("plateau at 1/2: 1/(1-S) from which D* is below 0.55 (tolerance set after a run)", SECTION, 2.0,
              float(x[np.flatnonzero(per < 0.55)[0]]) if (per < 0.55).any() else float("nan"), 0.25),
        Claim("plateau at 1/2: flat, |slope| of D* in log 1/(1-S) from 2.1 to 2.9 over that of the drop from 1.5 to 2",
              SECTION, 0.35, _slope(x, per, 2.1, 2.9) / _slope(x, per, 1.5, 2.0), 0.0, "<="),
        Claim("1/(1-S) at which D* is halfway between 1 and 1/2", "derived: p/3 - p^2/4 = p^2/3 at p = 4/7", 1.75,
              change, 0.15),
        Claim("sum_i D_i over m, per model: smallest and largest", DERIVED, [1.0, 1.0],
              [float((D.sum(1) / m).min()), float((D.sum(1) / m).max())], 0.01),
        Claim("control: sum_i D_i over m of a random Gaussian W", DERIVED, 0.98, float(results["random_D"].sum() / m),
              0.0, "<="),
    ]  # fmt: skip
    for at, value in config.expected_small:
        i = _nearest(results["densities"], at)
        out.append(Claim(f"D* at 1/(1-S) = {at:g}", SMALL, value, float(per[i]), 0.12 * value))
    values = D[kept & (x < 6)[:, None]]
    count = lambda centre, width=0.01: float((np.abs(values - centre) < width).sum())  # noqa: E731
    between = {
        a: (LINES[a] + LINES[b]) / 2 for a, b in (("3/4", "2/3"), ("2/3", "1/2"), ("2/5", "1/2"), ("3/8", "2/5"))
    }
    digon, below = count(0.5), ((values > 0.69) & (values < 0.74)).sum()
    near = f"{below} features lie between 0.69 and 0.74, {count(0.75):.0f} within 0.01 of 3/4; {_lone(results, config)}"
    half = {name: min(0.01, abs(LINES[name] - middle) / 2) for name, middle in between.items()}
    places = np.broadcast_to(x[:, None], D.shape)[kept & (x < 6)[:, None]]
    order = [
        float(np.median(places[np.abs(values - LINES[a]) < half.get(a, 0.01)]))
        if (np.abs(values - LINES[a]) < half.get(a, 0.01)).any()
        else float("nan")
        for a in ("2/3", "1/2", "2/5", "3/8")
    ]
    out += [
        Claim("1/2 is the most frequent dimensionality (its share of all features with ||W_i|| > 0.5 and 1/(1-S) < 6, "
              "over the share of the next most frequent of 50 bins that does not touch it)", SECTION, 1.0,
              digon / max(1.0, _next(values)), 0.0, ">="),
        *(Claim(f"features near {name}: those within {half[name]:g} of it, over those as near to the middle between it "
                "and the next line towards 1/2", SECTION, 1.5,
                count(LINES[name], half[name]) / max(1.0, count(middle, half[name])), 0.0, ">=",
                note=near if name == "3/4" else f"{count(LINES[name], half[name]):.0f} and "
                f"{count(middle, half[name]):.0f}")
          for name, middle in between.items()),
        Claim("features near 2/3, 1/2, 2/5, 3/8 are found in this order as density falls (median 1/(1-S), smallest "
              "ratio of neighbours)", SECTION, 1.0, float(np.exp(np.diff(np.log(order)).min())), 0.0, ">=",
              note=", ".join(f"{v:.2f}" for v in order)),
    ]  # fmt: skip
    names = dict(zip(geometry.SHAPES, results["shapes"][(x > 1.2) & (x < 6)].sum(0).tolist(), strict=True))
    for name in ("digon", "triangle", "tetrahedron", "pentagon", "square antiprism"):
        form, own = names[name]
        out.append(Claim(f"components that are a {name} and have its dimensionality within {OWN:g}: at least one, "
                         "1.2 < 1/(1-S) < 6 (how many)", SECTION, 1, own, 0, ">=",
                         note=f"{form} have the form, overlaps |W_i . W_j| above {config.edge:g} as edges"
                         + (f"; {near}" if name == "tetrahedron" else "")))  # fmt: skip
    out.append(Claim("features not learned (D_i < 0.05) stay also at the sparsest density (share)", SECTION, 0.01,
                     float((D[-1] < 0.05).mean()), 0.0, ">="))  # fmt: skip
    return out


def _lone(results, config):
    """In words, on what features between 2/3 and 3/4 lean, in the models drawn."""
    edges, small = [], []
    for W, D in zip(results["W"].astype(float), results["D"][results["drawn"]], strict=True):
        norms, G = np.linalg.norm(W, axis=1), W @ W.T
        np.fill_diagonal(G, 0)
        some = np.flatnonzero((norms > 0.5) & (D > 0.69) & (D < 0.74))
        edges += (np.abs(G[some]) > config.edge).sum(1).tolist()
        small += (np.square(G[some])[:, norms <= 0.5].sum(1) / np.maximum(np.square(G[some]).sum(1), 1e-12)).tolist()
    if not edges:
        return "in the models drawn there is none"
    return (f"in the models drawn {edges.count(0)} of {len(edges)} such ones have no edge, and {np.median(small):.0%} "
            "(median) of their squared overlaps are with rows of norm below 0.5")  # fmt: skip


def _slope(x, y, low, high):
    keep = (x >= low) & (x <= high)
    return float(abs(np.polyfit(np.log(x[keep]), y[keep], 1)[0])) if keep.sum() > 1 else float("nan")


def _next(values):
    count, edges = np.histogram(values, bins=np.linspace(0, 1, 51) - 0.01)
    far = np.abs((edges[:-1] + edges[1:]) / 2 - 0.5) > 0.021
    return float(count[far].max(initial=0))
