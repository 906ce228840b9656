"""Regular polygons as critical points, and SGD that stays near them.

Chen, Lau, Mendel, Wei, Murfet 2023, "Dynamical versus Bayesian Phase Transitions in a Toy Model of Superposition".
"""

from itertools import groupby

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import kgons, theory
from superpose.toy.models import grid, population
from superpose.train.fit import fit
from superpose.worlds.sparse import sets

PAPER = "Chen et al. 2023"
FLAT = 0.05
"""Slope of the loss in the step, both in logarithms, below which a run is on a plateau."""
ALIVE, PAYS = 0.5, 0.5
"""Length from which a row of W is a corner, and share of 1/(2c) from which the bias of a dead feature is positive."""


def run(config, key, workdir):
    """Of SGD on c features: exact losses [c, records, seeds], and W and b at the end."""
    check.whole(config, "features", least=5)
    check.rising(config, "features")
    check.listed(config, losses=4)
    check.whole(config, "seeds", "batch", "steps", "shown")
    check.whole(config, "records", least=2)
    check.positive(config, "near")
    steps = np.unique(np.geomspace(1, config.steps, config.records).round().astype(int))
    out = {"steps": steps}
    for one, c in zip(jax.random.split(key, len(config.features)), config.features, strict=True):
        pop = population(
            c, 2, grid(density=np.ones(1, np.float32), seed=range(config.seeds)), check.recipe(config),
            world=sets((c,), "anticorrelated"), expectation="monte_carlo", size=config.batch,
            record=lambda params: params,
        )  # fmt: skip
        result = fit(pop, steps=config.steps, key=one, workdir=workdir / f"c_{c}", log_every=config.log_every,
                     record_at=steps.tolist(), title=f"{c} features")  # fmt: skip
        check.some_sound(np.where(result.frozen_at >= 0, np.inf, 0)[None], "features", [c])
        exact = jax.jit(jax.vmap(jax.vmap(lambda W, b: theory.one_active_loss(W, b, jnp.ones(b.shape)) / len(b))))
        records = {name: jnp.asarray(value) for name, value in result.records.items()}
        out |= {f"loss_{c}": np.asarray(exact(records["W"], records["b"])),
                f"W_{c}": np.asarray(records["W"][-1]), f"b_{c}": np.asarray(records["b"][-1])}  # fmt: skip
    return out


def _levels(c):
    """Names of k-gons, a plus for each positive bias -> (k, positive biases, loss)."""
    return {f"{k}{'+' * p}": (k, p, kgons.level(k, c, p)) for k in range(4, c + 1) for p in range(c - k + 1)}


def _ends(results, c):
    """Of every run at its end: corners, and dead features with the bias that pays [seeds]."""
    alive = np.linalg.norm(results[f"W_{c}"], axis=-1) > ALIVE
    return alive.sum(-1), (~alive & (results[f"b_{c}"] > PAYS / (2 * c))).sum(-1)


def _on(loss, levels, near):
    """Number of the level that each loss is on, the nearest; -1 for none."""
    values = np.array([value for *_, value in levels.values()])
    off = np.abs(loss[..., None] / values - 1)
    return np.where(off.min(-1) <= near, off.argmin(-1), -1)


def draw(results, config):
    """Where runs end, by number of corners, above the losses of some on their way, the levels of k-gons beside them."""
    rows = len(config.features)
    figure = plt.figure(figsize=(13, 4.6 * rows), dpi=105, layout="constrained")
    for part, c in zip(figure.subfigures(rows, 1, squeeze=False)[:, 0], config.features, strict=True):
        levels, (corners, positive) = _levels(c), _ends(results, c)
        loss, W = results[f"loss_{c}"], results[f"W_{c}"]
        found = [name for name, (k, p, _) in levels.items() if ((corners == k) & (positive == p)).any()]
        left, right = part.subfigures(1, 2, width_ratios=[1.9, 1])
        axes = right.subplots(2, 2).ravel()
        for ax in axes[len(found) :]:
            ax.set_axis_off()
        for ax, name in zip(axes, found, strict=False):
            k, p, value = levels[name]
            here = np.flatnonzero((corners == k) & (positive == p))
            best = here[np.argmin(loss[-1, here])]
            plot.paired_rays(ax, W[best], np.full(c, list(levels).index(name)), limit=1.8)
            ax.set_title(f"{name}: {len(here)} of {len(corners)} runs\nloss {loss[-1, best]:.5f}, exact {value:.5f}",
                         fontsize=8)  # fmt: skip
        ax, shown = left.subplots(), min(config.shown, loss.shape[1])
        final = _on(loss[-1], levels, config.near)
        for s in range(shown):
            colour = plt.get_cmap("tab10")(final[s] % 10) if final[s] >= 0 else "0.6"
            ax.plot(results["steps"], loss[:, s], lw=0.9, alpha=0.75, color=colour)
        for name, (_, _, value) in levels.items():
            ax.axhline(value, color="0.4", lw=0.8, ls=":")
            ax.annotate(name, (1.005, value), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        low = min(value for *_, value in levels.values())
        ax.set(xscale="log", yscale="log", xlabel="step of SGD", ylabel="exact loss", ylim=(low * 0.9, 0.4),
               xlim=(min(10, results["steps"][-1] / 2), results["steps"][-1]))  # fmt: skip
        ax.set_title(f"{c} features: {shown} runs, coloured by where they end; +: a dead feature with a positive "
                     "bias", fontsize=9)  # fmt: skip
        plot.plain_ticks(ax.yaxis, [v for v in (0.02, 0.03, 0.05, 0.1, 0.2, 0.4) if v > low * 0.9])
        plot.plain([ax])
    figure.suptitle("One active feature an input, two dimensions: SGD passes and ends at k-gons (dotted: their exact "
                    "losses)", fontsize=12)  # fmt: skip
    return {"": figure}


def claims(results, config):
    """Critical points and losses as published; where SGD ends and how long it stays."""
    out = []
    for k, (length, bias, excess) in sorted((int(k), v) for k, v in config.published.items()):
        own = kgons.polygon(k)
        out.append(
            Claim(f"{k}-gon: length and bias of its corners", PAPER, [length, bias], [own.length, own.bias], 1e-4)
        )
        out.append(Claim(f"{k}-gon: 3 c L less its dead features", PAPER, excess, own.excess, 1e-4))
    out += [
        Claim(f"{c} features, {k} corners, {p} positive biases: loss", PAPER, loss, kgons.level(k, c, p), 1e-5)
        for c, k, p, loss in config.losses
    ]
    slopes = [_slope(*kgons.corners(k, c, p)) for c, k, p, _ in config.losses]
    if slopes:
        out.append(Claim("each of these is a critical point: largest partial derivative of the exact loss", PAPER, 0.0,
                     max(slopes), 1e-6, note=f"a 5-gon with corners of length 1: {_slope(*_wrong()):.3f}"))  # fmt: skip
    for c in config.features:
        levels, loss = _levels(c), results[f"loss_{c}"]
        on, (corners, positive) = _on(loss, levels, config.near), _ends(results, c)
        names = np.array([*levels, "none"])
        shape = [f"{k}{'+' * p}" for k, p in zip(corners.tolist(), positive.tolist(), strict=True)]
        same = [a == b for a, b in zip(names[on[-1]], shape, strict=True) if a != "none"]
        here = results["steps"] >= 0.01 * config.steps
        late = on[here]
        ahead = np.maximum.accumulate((late != on[-1])[::-1])[::-1]  # the run has yet to come to where it ends
        slope = np.abs(np.gradient(np.log(loss), np.log(results["steps"]), axis=0))[here]
        flat = ahead & (slope < FLAT)
        passed = float((late >= 0)[flat].mean()) if flat.any() else float("nan")
        many = [len({level for level, part in groupby(column) if level >= 0 and len(list(part)) >= 0.05 * len(column)})
                for column in late.T.tolist()]  # fmt: skip
        values = np.array([value for *_, value in levels.values()])
        probe = np.geomspace(values.min(), values.max(), 10_001)
        out += [
            Claim(f"{c} features: share of SGD runs that end within {config.near:g} of a level", PAPER, 0.95,
                  float((on[-1] >= 0).mean()), 0.0, ">=",
                  note=", ".join(f"{name} {(names[on[-1]] == name).sum()}" for name in names)),
            Claim(f"{c} features: of those, share with the corners and positive biases of that level", PAPER, 0.95,
                  float(np.mean(same or [np.nan])), 0.0, ">="),
            Claim(f"{c} features: plateaus that runs pass (slope of log loss in log step below {FLAT:g}, after the "
                  "first hundredth of the steps and before a run comes to where it ends): share of their records on a "
                  "level",
                  f"{PAPER}: plateaus on the way", 0.8, passed, 0.0, ">=",
                  note=f"{flat.sum()} records of {flat.any(0).sum()} runs; of the range of levels, in its logarithm, "
                       f"{(_on(probe, levels, config.near) >= 0).mean():.2f} counts as on one"),
            Claim(f"{c} features: share of runs that stay on two levels or more, each for 0.05 of the records (equal "
                  "in log step) on end", f"{PAPER}: plateaus on the way", 0.1, float(np.mean([n > 1 for n in many])),
                  0.0, ">="),
        ]  # fmt: skip
    return out


def _slope(W, b):
    with jax.enable_x64(True):
        W, b = jnp.asarray(W), jnp.asarray(b)
        loss = lambda W, b: theory.one_active_loss(W, b, jnp.ones(len(b))) / len(b)  # noqa: E731
        return max(float(jnp.abs(g).max()) for g in jax.grad(loss, (0, 1))(W, b))


def _wrong():
    W, b = kgons.corners(5, 6)
    return W / np.linalg.norm(W, axis=1).max(), b
