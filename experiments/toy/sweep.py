"""Any grid over n, m, density, importance decay and seed: one table, one picture.

Every (n, m) is a population; all of them train in one call, thousands of models at a time.
"""

import csv
import io

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry, theory
from superpose.toy.models import grid, population
from superpose.train.fit import evaluate, fit

COLUMNS = (
    "n", "m", "density", "decay", "seed", "loss", "features", "dimensions_per_feature", "sum_of_dimensionality",
    "mean_superposition", "diverged_at",
)  # fmt: skip


def run(config, key, workdir):
    """One row per model, columns as in ``COLUMNS``."""
    axes = config.grid
    for name in ("n", "m", "density", "decay", "seeds"):
        if not np.size(axes[name]):
            raise ValueError(f"the sweep is empty: grid.{name} needs at least one value")
    check.whole(axes, "n", "m", "seeds")
    check.whole(config, "batch", "eval_batch", "eval_batches")
    check.positive(axes, "decay")
    for name in ("n", "m", "density", "decay"):
        if len(set(axes[name])) < len(axes[name]):
            raise ValueError(f"grid.{name} lists a value twice, got {tuple(axes[name])}: give each once")
    sizes = [(int(n), int(m)) for n in axes.n for m in axes.m]
    recipe = check.recipe(config)
    train_key, eval_key = jax.random.split(key)

    def members(n, m, size):
        hyper = grid(density=list(axes.density), decay=list(axes.decay), seed=range(axes.seeds))
        hyper["importance"] = hyper["decay"][:, None].astype(np.float32) ** np.arange(n)
        return population(
            n, m, hyper, recipe, output=config.output, bias=config.bias, expectation=config.expectation, size=size
        )

    populations = {f"n{n}_m{m}": members(n, m, config.batch) for n, m in sizes}
    trained = fit(
        populations,
        steps=config.steps,
        key=train_key,
        workdir=workdir / "fit",
        log_every=config.log_every,
        title=f"{sum(p.size for p in populations.values())} models",
    )
    out: dict = {name: [] for name in COLUMNS}
    for n, m in sizes:
        result = trained[f"n{n}_m{m}"]
        judge = members(n, m, config.eval_batch)
        W = jnp.asarray(result.params["W"])
        each = lambda f: np.asarray(jax.jit(jax.vmap(f))(W))  # noqa: E731, B023
        kept, shared = each(geometry.represented), each(geometry.superposition)
        size = len(kept)
        columns = {
            "n": np.full(size, n), "m": np.full(size, m), "density": result.hyper["density"],
            "decay": result.hyper["decay"], "seed": result.hyper["seed"],
            "loss": evaluate(judge, result.params, result.state, key=eval_key, batches=config.eval_batches)["loss"],
            "features": kept.sum(-1), "dimensions_per_feature": each(geometry.dimensions_per_feature),
            "sum_of_dimensionality": each(geometry.dimensionality).sum(-1),
            "mean_superposition": (shared * kept).sum(-1) / np.maximum(kept.sum(-1), 1),
            "diverged_at": result.frozen_at,
        }  # fmt: skip
        for name in COLUMNS:
            out[name].append(columns[name])
    return {name: np.concatenate(parts) for name, parts in out.items()}


def tables(results, config):
    """The same rows as comma-separated text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in zip(*(results[name].tolist() for name in COLUMNS), strict=True):
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])
    return {"": text.getvalue()}


def draw(results, config):
    """Features per dimension and loss over the best linear model, against density; a line per size and decay."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.4), dpi=120)
    kinds = sorted(set(zip(results["n"].tolist(), results["m"].tolist(), results["decay"].tolist(), strict=True)))
    for n, m, decay in kinds:
        mine = (results["n"] == n) & (results["m"] == m) & (results["decay"] == decay) & (results["diverged_at"] < 0)
        densities = np.unique(results["density"][mine])
        best = [np.flatnonzero(mine & (results["density"] == p)) for p in densities]
        best = [i[results["loss"][i].argmin()] for i in best]
        label = f"n={n} m={m} $I_i$=${decay:g}^i$"
        linear = [float(theory.linear_optimum_loss(decay ** np.arange(n), min(m, n), float(p))) for p in densities]
        plot.log_line(axes[0], densities, results["features"][best] / m, label)
        if m < n:
            plot.log_line(axes[1], densities, results["loss"][best] / np.asarray(linear), label)
    axes[0].axhline(1, color="0.5", lw=0.8, ls=":")
    axes[0].set(ylabel="features represented / m", title="dotted: one feature per dimension")
    axes[1].axhline(1, color="0.5", lw=0.8, ls=":")
    axes[1].set(ylabel="loss / loss of the best linear model", title="below the dotted line, superposition pays")
    for ax in axes:
        ax.set_xlabel("density $1-S$ (sparser to the right)")
        ax.invert_xaxis()
    figure.suptitle(
        f"Sweep: {len(results['n'])} models, {config.output} output, best of {config.grid.seeds} seeds", fontsize=12
    )
    figure.tight_layout(rect=(0, 0, 0.86, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="center right")
    return {"": figure}


def claims(results, config):
    """Bounds that every model of any grid must keep."""
    kept = results["diverged_at"] < 0
    excess = results["sum_of_dimensionality"] - np.minimum(results["m"], results["n"])
    return [
        Claim("models that diverged", "our own bound", 0, int((~kept).sum())),
        Claim("sum of D_i minus m, largest over the models", "derived: sum_i D_i <= rank(W)", 0.0,
              float(excess[kept].max()) if kept.any() else float("nan"), 1e-3, "<="),
    ]  # fmt: skip
