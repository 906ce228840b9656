"""Superposition appears with sparsity: linear and ReLU models side by side.

TMS, "Demonstrating superposition": W_i . W_j, the bias, and ||W_i|| coloured by superposition, per density.
"""

from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry, theory
from superpose.toy.models import decay, grid, population
from superpose.train.fit import evaluate, fit

BASIC = "TMS, Basic Results"
JUDGED = (
    "the best of 3 runs on samples of their own; on ours the same recipe's best of 16 seeds is in benchmarks/results, "
    "3.2e-4"
)
UNDER = "those runs were under-trained at 1-S = 0.003 and 0.001: their losses are higher than ours"
TRAINED = "derived for this project: 3 runs of the notebook's recipe, 10,000 steps"


def run(config, key, workdir):
    """Arrays over [columns]: the linear model at every density, then the ReLU model at every density."""
    n, m, seeds = config.n, config.m, config.seeds
    if m >= n:
        raise ValueError(f"this figure needs fewer hidden dimensions than features, got m={m}, n={n}")
    check.whole(config, "seeds", "batch", "eval_batch", "eval_batches")
    check.positive(config, "decay", "init_scale")
    check.listed(config, expected_counts=3, expected_squares=3, expected_losses=2)
    densities = np.asarray(config.densities, np.float32)
    hyper = grid(density=densities, seed=range(seeds))
    importance = np.asarray(decay(n, config.decay))
    recipe = check.recipe(config)

    def pops(expectation, size):
        make = partial(
            population, n, m, hyper, recipe, importance=importance, init_scale=config.init_scale,
            expectation=expectation, size=size,
        )  # fmt: skip
        return {output: make(output=output) for output in ("linear", "relu")}

    train_key, eval_key = jax.random.split(key)
    trained = fit(
        pops(config.expectation, config.batch),
        steps=config.steps,
        key=train_key,
        workdir=workdir / "fit",
        log_every=config.log_every,
        title=f"n={n} m={m}",
    )
    judges = pops("conditional", config.eval_batch)
    out = {"densities": densities, "importance": importance}
    for name, result in trained.items():
        params = jax.device_get(result.params)
        loss = evaluate(judges[name], params, key=eval_key, batches=config.eval_batches)["loss"]
        loss = np.where(result.frozen_at >= 0, np.inf, loss).reshape(len(densities), seeds)
        check.some_sound(loss, "density", densities)
        best = loss.argmin(1)
        W = params["W"].reshape(len(densities), seeds, n, m)
        b = params["b"].reshape(len(densities), seeds, n)
        rows = np.arange(len(densities))
        out |= {
            f"{name}_loss": loss,
            f"{name}_best": best,
            f"{name}_W": W[rows, best],
            f"{name}_b": b[rows, best],
            f"{name}_count": np.asarray(jax.vmap(jax.vmap(geometry.represented))(W)).sum(-1),
            f"{name}_superposition": np.asarray(jax.vmap(jax.vmap(geometry.superposition))(jnp.asarray(W))),
            f"{name}_norms": np.asarray(jax.vmap(jax.vmap(geometry.norms))(jnp.asarray(W))),
        }
    return out


def draw(results, config):
    """The paper's figure: one column per model, W_i . W_j and b above, norms below, and the seeds under them."""
    densities = results["densities"]
    columns = [("linear", 0)] + [("relu", i) for i in range(len(densities))]
    width = 2.15 * len(columns) + 1.2
    figure = plt.figure(figsize=(width, 6.1), dpi=110)
    spec = figure.add_gridspec(
        3, len(columns) + 1, width_ratios=[*[1] * len(columns), 0.07], height_ratios=[2.0, 1.0, 0.7],
        left=0.045, right=0.955, top=0.83, bottom=0.075, wspace=0.2, hspace=0.16,
    )  # fmt: skip
    top = max(1.25, max(results[f"{name}_norms"][i, results[f"{name}_best"][i]].max() for name, i in columns) * 1.05)
    for c, (name, i) in enumerate(columns):
        W, b, best = results[f"{name}_W"][i], results[f"{name}_b"][i], results[f"{name}_best"][i]
        loss, counts = results[f"{name}_loss"][i], results[f"{name}_count"][i]
        ax = figure.add_subplot(spec[0, c])
        plot.gram_matrix(ax, W @ W.T, b)
        kind = "Linear model" if name == "linear" else "ReLU output"
        ax.set_title(f"{kind}\n$1-S$ = {densities[i]:g}", fontsize=11)
        bars = figure.add_subplot(spec[1, c])
        plot.norm_bars(bars, results[f"{name}_norms"][i, best], results[f"{name}_superposition"][i, best], config.m)
        bars.set_ylim(0, top)
        bars.set_xlabel(f"{counts[best]} features represented", fontsize=8)
        strip = figure.add_subplot(spec[2, c])
        fine = np.isfinite(loss)
        plot.seed_strip(strip, loss[fine] / loss[best], int(np.flatnonzero(np.flatnonzero(fine) == best)[0]))
        strip.set_ylim(0.98, max(1.1, 1.03 * np.max(loss[fine] / loss[best])))
        strip.set_xlabel(f"best loss {loss[best]:.3g}\n{counts.min()}-{counts.max()} features", fontsize=8)
        for a in (bars, strip):
            a.tick_params(labelsize=7)
        if c:
            bars.set_yticklabels([])
        if c == 0:
            ax.text(-0.12, 0.5, r"$W_i\cdot W_j$ and bias $b$", rotation=90, va="center", transform=ax.transAxes)
            bars.set_ylabel(r"$\|W_i\|$", fontsize=10)
            strip.set_ylabel(f"loss / best,\n{len(loss)} seeds", fontsize=8)
    plot.colour_key(figure, figure.add_subplot(spec[0, -1]), plot.GRAM, -1.0, 1.0, r"$W_i\cdot W_j$, $b_i$")
    label = "superposition\n" + r"$\sum_{j\neq i}(\hat W_i\cdot W_j)^2$"
    plot.colour_key(figure, figure.add_subplot(spec[1, -1]), plot.SHARED, 0.0, 1.0, label)
    figure.suptitle(
        f"Superposition appears with sparsity: {config.n} features, {config.m} hidden dimensions, "
        f"importance ${config.decay}^i$",
        fontsize=14,
        y=0.985,
    )
    figure.text(
        0.5,
        0.925,
        "best of the seeds per column; features in order of importance; dotted rule after feature $m$; "
        "red dot = the model drawn",
        ha="center",
        fontsize=9,
        color="0.35",
    )
    return {"": figure}


def claims(results, config):
    """Counts, dedicated features, pairs, losses against closed forms, and what must not be there."""
    n, m = config.n, config.m
    importance, densities = results["importance"], results["densities"]
    best = {k: results[f"{k}_best"] for k in ("linear", "relu")}
    rows = np.arange(len(densities))
    count = {k: results[f"{k}_count"][rows, best[k]] for k in best}
    shared = {k: results[f"{k}_superposition"][rows, best[k]] for k in best}
    norms = {k: results[f"{k}_norms"][rows, best[k]] for k in best}
    loss = {k: results[f"{k}_loss"].min(1) for k in best}
    at = {round(float(d), 6): i for i, d in enumerate(densities)}
    exact = np.array([float(theory.linear_optimum_loss(importance, m, p)) for p in densities])
    W, b = jnp.asarray(results["linear_W"]), jnp.asarray(results["linear_b"])
    linear_exact = np.array([float(theory.linear_loss(W[i], b[i], importance, densities[i])) for i in rows])
    spread = results["linear_superposition"] * (results["linear_norms"] > 0.5)

    def over(values, reduce, kept=True):
        """Reduced over the represented features of column i (or over the others); nan if there are none."""
        chosen = values[(norms["relu"][i] > 0.5) == kept]
        return float(reduce(chosen)) if chosen.size else float("nan")

    out = [
        Claim(
            "the linear model never shows superposition: largest superposition of a represented feature, over all "
            "densities and all seeds",
            f"{BASIC} (negative claim)", 0.0, float(spread.max()), 0.05, "<=",
        ),
        Claim(
            f"the linear model represents the {m} most important features, no other: share of the seeds, per density",
            BASIC, [1.0] * len(densities),
            ((results["linear_norms"] > 0.5) == (np.arange(n) < m)).all(-1).mean(-1), 0,
        ),
        Claim(
            "linear model: exact loss of the best seed over the closed-form optimum, per density",
            "derived: sum of the dropped I_i times (p/3 - p^2/4)", [1.0] * len(densities), linear_exact / exact, 0.005,
        ),
    ]  # fmt: skip
    dropped = [(results["linear_b"][i] - densities[i] / 2)[norms["linear"][i] < 0.5] for i in rows]
    out += [
        Claim("linear model: bias of the dropped features over E[x] = (1-S)/2, per density, mean", BASIC,
              [1.0] * len(rows), [1 + float(d.mean() * 2 / densities[i]) if d.size else np.nan
                                  for i, d in zip(rows, dropped, strict=True)], 0.03),
    ]  # fmt: skip
    if config.expected_thresholds:
        out.append(Claim("densities below which one more feature is represented, by digon bookkeeping",
                         "derived: I_R / I_(2m-1-R) = 2p/(4-5p)", list(config.expected_thresholds),
                         np.asarray(theory.digon_thresholds(importance, m)), 0.0006))  # fmt: skip
    if 1.0 in at:
        i = at[1.0]
        b = results["relu_b"][i]
        out += [
            Claim(f"dense ReLU model: loss equals the linear optimum {exact[i]:.6g}", "derived; " + BASIC,
                  float(exact[i]), float(loss["relu"][i]), 0.005 * float(exact[i])),
            Claim(f"dense ReLU model: {m} features represented", BASIC, m, int(count["relu"][i])),
            Claim("dense ReLU model: largest superposition of a represented feature", BASIC + " (negative claim)",
                  0.0, over(shared["relu"][i], np.max), 0.05, "<="),
            Claim("dense ReLU model: bias of the dropped features is E[x] = 1/2", BASIC, 0.5,
                  over(b, np.mean, kept=False), 0.02),
            Claim("dense ReLU model: bias of the represented features is 0", BASIC, 0.0,
                  over(np.abs(b), np.max), 0.05),
        ]  # fmt: skip
    for p, i in at.items():
        allocation = theory.represented_count(importance, m, p)
        pairs = geometry.antipodal_pairs(results["relu_W"][i], -0.7)
        alone = sorted(np.flatnonzero((norms["relu"][i] > 0.5) & (shared["relu"][i] < 0.05)).tolist())
        if 1 > p >= 0.1:
            G = results["relu_W"][i] @ results["relu_W"][i].T
            expected = sorted(allocation.dedicated)
            is_expected = len(set(expected) ^ set(alone))
            kept = allocation.represented
            digons = theory.bookkeeping_loss(importance, m, p, kept)
            fewer = theory.bookkeeping_loss(importance, m, p, max(m, kept - 1))
            out += [
                Claim(f"1-S = {p:g}: features represented, by digon bookkeeping",
                      "derived: I_R / I_(2m-1-R) > 2p/(4-5p)", allocation.represented, int(count["relu"][i]), 1),
                Claim(f"1-S = {p:g}: the dedicated features are the {len(expected)} most important "
                      "(features in one set and not in the other)", BASIC + "; derived",
                      0, is_expected, note=f"dedicated are {', '.join(map(str, alone))}; a pair fewer costs unit "
                      f"digons {fewer / digons - 1:.2%} more, and the best model's loss is "
                      f"{1 - float(loss['relu'][i]) / digons:.2%} below theirs"),
                Claim(f"1-S = {p:g}: antipodal pairs", "derived", len(allocation.pairs), len(pairs), 1),
                Claim(f"1-S = {p:g}: W_i . W_j of the antipodal pairs, mean", BASIC, -1.0,
                      float(np.mean([G[a] for a in pairs])) if pairs else float("nan"), 0.1),
                Claim(f"1-S = {p:g}: loss no worse than unit digons", "derived: an upper bound",
                      digons, float(loss["relu"][i]), 0.002 * float(loss["relu"][i]), "<="),
            ]  # fmt: skip
        if p <= 0.03:
            out += [
                Claim(f"1-S = {p:g}: every represented feature is in superposition (smallest superposition)",
                      BASIC, 0.05, over(shared["relu"][i], np.min), 0.0, ">=",
                      note=f"{len(alone)} of {int(count['relu'][i])} have a dimension of their own"),
            ]  # fmt: skip
        if p <= 0.01:
            out += [
                Claim(f"1-S = {p:g}: mean bias of the represented features is negative", BASIC, 0.0,
                      over(results["relu_b"][i], np.mean), 0.0, "<="),
            ]  # fmt: skip
    if len(densities) > 1 and min(densities) <= 0.01:
        off = [np.max(G - 9 * np.eye(n)) for G in results["relu_W"] @ np.swapaxes(results["relu_W"], 1, 2)]
        out += [
            Claim("positive interference appears at the sparsest density (largest off-diagonal W_i . W_j)", BASIC,
                  0.1, float(off[-1]), 0.0, ">="),
            Claim("the number of represented features does not fall as density falls (smallest step)", BASIC,
                  0, int(np.diff(count["relu"]).min()), 1, ">="),
        ]  # fmt: skip
    source = TRAINED if n == 20 else "derived: by digon bookkeeping"
    for p, low, high in config.expected_counts:
        if p in at:
            out.append(Claim(f"1-S = {p:g}: features represented", source, [low, high],
                             int(count["relu"][at[p]]), 0, "in"))  # fmt: skip
    for p, low, high in config.expected_squares:
        if p in at:
            square = float((results["relu_W"][at[p]] ** 2).sum())
            out.append(Claim(f"1-S = {p:g}: ||W||_F^2", TRAINED, [low, high], square, 0.3, "in",
                             note=UNDER if p <= 0.003 else ""))  # fmt: skip
    for p, value in config.expected_losses:
        if p in at:
            out.append(Claim(f"1-S = {p:g}: loss of the best seed", TRAINED, value, float(loss["relu"][at[p]]),
                             0.02 * value, "<=", note=JUDGED if p == 0.01 else ""))  # fmt: skip
    return out
