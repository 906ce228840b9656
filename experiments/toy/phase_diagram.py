"""Superposition as a phase change: one extra feature, its importance and density varied, theory beside experiment.

TMS, "Superposition as a Phase Change": n=2, m=1 and n=3, m=2. The expectation is exact (quadrature), so the only
randomness is the start.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import optimize

from experiments import check
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry, theory
from superpose.toy.models import population
from superpose.train.fit import evaluate, fit
from superpose.worlds import expect, prng
from superpose.worlds.sparse import independent

PHASES = {
    (2, 1): (theory.phase_2_1, theory.phase_2_1_boundaries),
    (3, 2): (theory.phase_3_2, theory.phase_3_2_boundaries),
}
STARTS = 32
"""Models at each point where a number is expected."""
PAPER = "TMS, Superposition as a Phase Change"
DERIVED = "derived for this project: exact loss, best of 16 starts"


def run(config, key, workdir):
    """Maps [density, importance]: outcomes and losses, by the paper's protocol and of the best model."""
    n, m, models = config.n, config.m, config.models
    if (n, m) not in PHASES:
        raise ValueError(f"theory is known for n=2, m=1 and n=3, m=2, got n={n}, m={m}")
    if models < 2:
        raise ValueError(f"the paper's protocol drops the worst model of a cell: at least 2 are needed, got {models}")
    check.whole(config, "nodes", "eval_nodes", "block")
    check.whole(config, "cells", least=2)
    check.ends(config, "importance", "density")
    check.listed(config, expected=1 + len(config.expected_at), expected_losses=3, expected_optima=2 + n)
    cells = config.cells
    axis = lambda ends: np.geomspace(ends[0], ends[1], cells).astype(np.float32)  # noqa: E731
    importance, density = axis(config.importance), axis(config.density)
    at = np.array(_points(config), np.float32).reshape(-1, 2)  # where the table's numbers are, STARTS models each
    where = np.concatenate([
        np.stack(np.meshgrid(density, importance, indexing="ij"), -1).reshape(-1, 2).repeat(models, 0),
        at.repeat(STARTS, 0),
    ])  # fmt: skip
    # every second start mirrors the one before: two features that start on the same side never separate
    seed, mirror = np.divmod(np.arange(len(where)), 2)
    hyper = {"density": where[:, 0], "extra": where[:, 1], "seed": seed, "mirror": mirror}
    hyper["importance"] = np.ones((len(where), n), np.float32)
    hyper["importance"][:, -1] = hyper["extra"]

    def start(params, key, hyper):
        flip = jnp.where(hyper["mirror"] == 1, -1.0, 1.0)
        return {**params, "W": params["W"].at[-1].multiply(flip)}

    recipe = check.recipe(config)
    common = dict(expectation="quadrature", bias=config.bias)
    pop = population(n, m, hyper, recipe, size=config.nodes, init=start, block=config.block, **common)
    result = fit(pop, steps=config.steps, key=key, workdir=workdir / "fit", log_every=config.log_every,
                 title=f"n={n} m={m}")  # fmt: skip
    params = result.params
    judge = population(n, m, hyper, recipe, size=config.nodes, block=config.block, **common)
    loss = np.where(result.frozen_at >= 0, np.inf, evaluate(judge, params, key=key)["loss"])
    size = cells * cells * models
    check.some_sound(loss[:size].reshape(-1, models), "cell", np.arange(cells * cells))
    W = jnp.asarray(params["W"])
    norms = np.asarray(jax.jit(jax.vmap(geometry.norms))(W))[:, -1]
    shared = np.asarray(jax.jit(jax.vmap(geometry.superposition))(W))[:, -1]
    label = np.asarray(jax.jit(jax.vmap(lambda w: geometry.outcome(w, n - 1)))(W))

    ordered = np.argsort(loss[:size].reshape(cells, cells, models), -1)
    kept = ordered[..., :-1]  # the paper drops the worst and averages the rest
    by_cell = lambda a: np.take_along_axis(a[:size].reshape(cells, cells, models), kept, -1)  # noqa: E731
    share = np.stack([(by_cell(label) == i).mean(-1) for i in range(3)], -1)

    # the best model of every cell and point on a finer rule, and the error of that one by doubling its nodes
    best = np.concatenate([
        np.arange(0, size, models) + ordered[..., 0].ravel(),
        size + np.arange(0, len(at) * STARTS, STARTS) + loss[size:].reshape(len(at), STARTS).argmin(1),
    ])  # fmt: skip
    chosen = {k: v[best] for k, v in hyper.items()}
    best_params = jax.tree.map(lambda x: np.asarray(x)[best], params)

    def exactly(nodes):
        fine = population(n, m, chosen, recipe, size=nodes, block=16, **common)
        return evaluate(fine, best_params, key=key)["loss"]

    exact, finer = exactly(config.eval_nodes), exactly(2 * config.eval_nodes)
    found = {"label": label[best], "loss": exact, "norm": norms[best], "superposition": shared[best], **best_params}
    square = lambda a: a[: cells * cells].reshape(cells, cells, *a.shape[1:])  # noqa: E731
    return {
        "importance": importance, "density": density, "share": share, "mean_loss": by_cell(loss).mean(-1),
        "quadrature_error": np.abs(exact - finer), "points": at,
        **{f"best_{k}": square(v) for k, v in found.items()},
        **{f"point_{k}": v[cells * cells :] for k, v in found.items()},
    }  # fmt: skip


def _points(config) -> list[tuple[float, float]]:
    """The (1-S, importance) at which numbers are expected, each once."""
    rows = [(row[0], extra) for row in config.expected for extra in config.expected_at]
    return sorted({*rows, *((row[0], row[1]) for row in (*config.expected_losses, *config.expected_optima))})


def _theory(results, config):
    phase, boundaries = PHASES[config.n, config.m]
    p, extra = results["density"][:, None], results["importance"][None]
    found = phase(jnp.asarray(p), jnp.asarray(extra), config.bias)
    fine = np.geomspace(results["density"][0], results["density"][-1], 400)
    lower, upper = (np.asarray(x) for x in boundaries(jnp.asarray(fine), config.bias))
    return np.asarray(found.label), np.asarray(found.losses).min(-1), (fine, lower, upper)


def _digon_from(p: float, bias: bool, near: float, nodes: int = 48) -> tuple[float, float]:
    """(relative importance, ||W_extra||) from which the best digon of a feature and the extra one, of any lengths and
    biases, has a lower loss than dropping the extra one (its mean in its place, where there is a bias), by bisection
    between half and twice ``near``."""
    x, w = (np.asarray(a, float) for a in expect.expectation("quadrature", independent(2), nodes)(prng.key(0), p))
    dropped = p / 3 - (p * p / 4 if bias else 0)

    def best(extra):
        def loss(z):
            b = z[2:, None] if bias else 0.0
            return w @ (np.array([1, extra]) @ np.square(x - np.maximum(z[:2, None] * (z[:2] @ x) + b, 0)))

        return optimize.minimize(loss, [1, -0.8, *[0.0] * 2 * bias], method="Nelder-Mead",
                                 options={"xatol": 1e-7, "fatol": 1e-12, "maxiter": 5000})  # fmt: skip

    low, high = near / 2, 2 * near
    for _ in range(16):
        at = np.sqrt(low * high)
        found = best(at)
        pays = abs(found.x[1]) > 0.1 and found.fun < at * dropped
        low, high = (low, at) if pays else (at, high)
    return float(high), float(abs(best(high).x[1]))


def draw(results, config):
    """Theory, the paper's protocol, and the best model, side by side, the theory's boundaries over all three."""
    label, _, (fine, lower, upper) = _theory(results, config)
    importance, density = results["importance"], results["density"]
    figure, axes = plt.subplots(1, 3, figsize=(13.2, 4.9), dpi=120, sharey=True)
    one_hot = lambda a: np.eye(3)[a]  # noqa: E731
    lines = [(lower, fine), (upper, fine)]
    panels = (
        ("Theory: the best of the written-down solutions", one_hot(label)),
        (f"Experiment: {config.models} models a cell, worst dropped, rest averaged", results["share"]),
        (f"Experiment: the best of {config.models} models", one_hot(results["best_label"])),
    )
    for ax, (title, share) in zip(axes, panels, strict=True):
        plot.phase_map(ax, importance, density, share, lines)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("relative importance of the extra feature", fontsize=9)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("$1-S$ (sparser upwards)", fontsize=10)
    figure.suptitle(
        f"What becomes of the extra feature: n={config.n} features, m={config.m} "
        f"hidden dimension{'s' * (config.m > 1)}, ReLU output{'' if config.bias else ' without bias'}, "
        f"{config.cells} x {config.cells} cells",
        fontsize=12,
    )
    plot.outcome_legend(figure, loc="lower center", bbox_to_anchor=(0.5, 0.035))
    figure.text(0.5, 0.012, "black: the theory's boundaries", ha="center", fontsize=8, color="0.35")
    figure.subplots_adjust(left=0.06, right=0.985, top=0.86, bottom=0.215, wspace=0.1)
    return {"": figure}


def claims(results, config):
    """Agreement with the theory's map and envelope, the jump at its boundary, exact optima."""
    label, envelope, _ = _theory(results, config)
    importance, density = results["importance"], results["density"]
    best, loss, norm = results["best_label"], results["best_loss"], results["best_norm"]
    lower, upper = (np.asarray(x) for x in PHASES[config.n, config.m][1](jnp.asarray(density), config.bias))
    cells = best.size
    ratio = loss / envelope
    # solutions of equal features trade places at importance 1
    near = [np.abs(np.log(importance / line)) < np.log(1.35) for line in (lower[:, None], upper[:, None], 1.0)]
    clear = ~(near[0] | near[1] | near[2])
    judged = np.concatenate([loss.ravel(), results["point_loss"]])
    out = [
        Claim(f"quadrature error of every best loss, {config.eval_nodes} nodes against twice as many, over that loss "
              "(largest)", "our own bound", 0.0, float((results["quadrature_error"] / judged).max()), 0.005, "<="),
        Claim("share of cells where the best model has the theory's outcome, away from its boundaries (factor 1.35)",
              PAPER, 1.0, float((best == label)[clear].mean()), 0.01,
              note="" if config.bias else "the written-down solutions leave out the confused feature (both weights of "
              "one sign), which wins when dense features are about equally important"),
        Claim("share of all cells where the best model has the theory's outcome", PAPER, 1.0,
              float((best == label).mean()), 0.1),
        Claim("median over the cells of best loss / theory's envelope", "derived: written-down solutions bound it",
              1.0, float(np.median(ratio)), 0.01),
        Claim("the best model is nowhere worse than the written-down solutions: cells over the envelope by 1 %",
              "derived: an upper bound", 0.0, float((ratio > 1.01).mean() * cells), 0.0, "<=",
              note=f"a cell counts when none of its {config.models} starts reaches the optimum"),
        Claim("paper's protocol agrees with the best-of map: share of cells with the same majority outcome", PAPER, 1.0,
              float((results["share"].argmax(-1) == best).mean()), 0.1,
              note=f"mean loss of the {config.models - 1} over the best one's: median "
              f"{np.median(results['mean_loss'] / loss):.3f}, largest {(results['mean_loss'] / loss).max():.3f}"),
    ]  # fmt: skip
    # the jump of ||W_extra|| across the boundary, row by row, where the paper says first-order
    rows = np.flatnonzero((density <= 0.3) & (lower > 1.4 * importance[0]))
    if len(rows):
        j = np.diff(norm[rows], axis=1).argmax(1)
        jumps, after = norm[rows, j + 1] - norm[rows, j], norm[rows, j + 1]
        places = np.sqrt(importance[j] * importance[j + 1])
        exact = np.array([_digon_from(float(density[i]), config.bias, float(lower[i])) for i in rows])
        span = f"1-S from {density[rows[0]]:.2g} to {density[rows[-1]]:.2g} ({len(rows)} rows of the map)"
        out += [
            Claim(f"{span}: ||W_extra|| jumps between adjacent cells (smallest largest-step of a row, over the exact "
                  "optimum's length where it begins to pay)", PAPER + ": first-order", 0.9,
                  float(np.min(jumps / exact[:, 1])), 0.0, ">=",
                  note=f"to {min(after):.2f} to {max(after):.2f}; exact {min(exact[:, 1]):.2f} to "
                  f"{max(exact[:, 1]):.2f}; the written-down digon's is 1"),
            Claim(f"{span}: importance at which it jumps, over that from which the exact optimum of a digon of any "
                  "lengths and biases beats dropping the feature (median over the rows)", "derived: exact loss", 1.0,
                  float(np.median(places / exact[:, 0])), 0.05,
                  note=f"over that of unit digons, {'2p/(4-5p)' if config.bias else 'p/(2-p)'}: "
                  f"{np.median(places / lower[rows]):.3f}; a cell is {importance[1] / importance[0] - 1:.1%} wide"),
        ]  # fmt: skip
    if config.n == 2:
        sparse = density <= 0.03
        inside = (importance > 0.2) & (importance < 5)
        out.append(Claim("1-S <= 0.03 and relative importance in [0.2, 5]: share of cells in superposition", DERIVED,
                         1.0, float((best[sparse][:, inside] == 1).mean()), 0.005))  # fmt: skip
    else:
        right = importance > 1.1
        out.append(Claim("importance > 1.1: share of cells where the extra feature has a dimension of its own, at any "
                         "density: the asymmetry to n=2, m=1", PAPER, 1.0, float((best[:, right] == 2).mean()),
                         0.01))  # fmt: skip

    point = {at: i for i, at in enumerate(_points(config))}
    for p, *outcomes in config.expected:
        known = [(e, point[p, extra]) for e, extra in zip(outcomes, config.expected_at, strict=True) if e >= 0]
        at = ", ".join(f"{extra:g}" for e, extra in zip(outcomes, config.expected_at, strict=True) if e >= 0)
        out.append(Claim(f"1-S = {p:g}, importance {at}: outcome 0 dropped, 1 superposed, 2 dedicated", DERIVED,
                         [e for e, _ in known], [int(results["point_label"][i]) for _, i in known]))  # fmt: skip
    for p, extra, value in config.expected_losses:
        out.append(Claim(f"1-S = {p:g}, importance {extra:g}: loss", DERIVED, value,
                         float(results["point_loss"][point[p, extra]]), 0.01 * value))  # fmt: skip
    for p, extra, *W in config.expected_optima:
        found = results["point_W"][point[p, extra]][:, 0]
        if extra == 1:  # equally important features may change places
            found = found[np.argsort(np.abs(found))][np.argsort(np.argsort(np.abs(W)))]
        out.append(Claim(f"1-S = {p:g}, importance {extra:g}: W of the optimum, up to its sign", DERIVED, W,
                         found * np.sign(found[0]), 0.05))  # fmt: skip
    return out
