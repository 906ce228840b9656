"""Loss against width, by how much superposition weight decay leaves and by how fast frequencies fall.

Liu, Liu, Gore 2025, "Superposition Yields Robust Neural Scaling".
"""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry
from superpose.toy.models import population
from superpose.worlds.sparse import independent

PAPER = "Liu, Liu, Gore 2025"
KEPT = 0.5
"""Length from which a row of W represents its feature."""
HIGH = 2.0
"""Values of active features are uniform on [0, HIGH]."""
NANOSECONDS = 1.5
"""Of a training step, for each feature of each column of each model, on 2 CPU cores (this project)."""


def run(config, key, workdir):
    """Of each width, decay and alpha: loss, norms of rows, mean squared overlap; arrays [m, decay, alpha, ...]."""
    check.whole(config, "n", "widths", "seeds", "batch", "eval_batch", "block")
    check.rising(config, "widths", "decays", least=2)
    check.rising(config, "alphas")
    check.not_negative(config, "alphas")
    if max(config.widths) >= config.n:
        raise ValueError(f"this figure needs widths below n={config.n}, got {tuple(config.widths)}")
    for name in ("strong", "weak"):
        if config[name] not in config.decays:
            raise ValueError(f"{name} must be one of decays={tuple(config.decays)}, got {config[name]:g}")
    settings = [(d, a) for d in config.decays for a in config.alphas]
    models = len(config.widths) * len(settings) * config.seeds
    toys.announce(models * config.n * config.batch * config.steps * NANOSECONDS)
    every = lambda values: np.repeat(np.asarray(values, np.float32), config.seeds, 0)  # noqa: E731
    hyper = {"density": every([frequencies(config.n, a) for _, a in settings]), "push": every([d for d, _ in settings]),
             "seed": np.tile(np.arange(config.seeds), len(settings))}  # fmt: skip
    loss, norms, overlap = [], [], []
    for m, one in zip(config.widths, jax.random.split(key, len(config.widths)), strict=True):
        pop, judge = (_population(config, m, hyper, size) for size in (config.batch, config.eval_batch))
        got = toys.trained(pop, judge, config, one, workdir / f"m_{m}", seeds=config.seeds,
                           of=("decay, alpha", settings), title=f"m={m}")  # fmt: skip
        W = jnp.asarray(got.chosen("W"))
        shape = (len(config.decays), len(config.alphas))
        loss.append(got.loss.min(1).reshape(shape))
        norms.append(np.asarray(jax.vmap(geometry.norms)(W)).reshape(*shape, -1))
        overlap.append(np.asarray(jax.vmap(_overlap)(W)).reshape(shape))
    return {"loss": np.stack(loss), "norms": np.stack(norms).astype(np.float16), "overlap": np.stack(overlap)}


def frequencies(n, alpha):
    """p_i ~ i^-(1 + alpha), scaled to one active feature on average."""
    p = np.arange(1, n + 1) ** -(1.0 + alpha)
    return (p / p.sum()).astype(np.float32)


def _population(config, m, hyper, size):
    """Toy models started as in the paper, with the push beside the optimiser.

    A positive one is decoupled weight decay of W; a negative one takes the part of a row beyond length 1 away, or fills
    it up, at the same rate.
    """
    recipe = check.recipe(config)

    def start(params, key, hyper):
        w, b = jax.random.split(key)
        return {"W": jax.random.normal(w, (config.n, m)) / jnp.sqrt(m), "b": jax.random.normal(b, (config.n,))}

    def project(params, hyper, step):
        W, rate = params["W"], recipe.lr * recipe.multiplier()(step) * hyper["push"]
        length = geometry.norms(W)[:, None]
        excess = jnp.where(length > 0, 1 - 1 / jnp.where(length > 0, length, 1), 0)
        return {**params, "W": W + jnp.where(hyper["push"] > 0, -rate * W, rate * W * excess)}

    pop = population(config.n, m, hyper, recipe, expectation="monte_carlo", size=size, init=start, block=config.block,
                     world=independent(config.n, 0.0, HIGH))  # fmt: skip
    return dataclasses.replace(pop, objective=dataclasses.replace(pop.objective, project=project))


def _overlap(W):
    """Mean over pairs of represented rows of their squared cosine; 0 where there is no pair."""
    length = geometry.norms(W)[:, None]
    unit = jnp.where(length > KEPT, W / jnp.where(length > 0, length, 1), 0)
    many = (length > KEPT).sum()
    return (jnp.sum(geometry.gram(unit) ** 2) - many) / jnp.maximum(many * (many - 1), 1)


def left_out(p, norms):
    """What features that are not represented cost: sum of p_i E[x^2] - (p_i E[x])^2, x uniform on [0, HIGH]."""
    cost = p * HIGH**2 / 3 - (p * HIGH / 2) ** 2
    return np.where(norms > KEPT, 0, cost).sum(-1)


def _slopes(x, y):
    """Slope of log y [m, ...] in log x [m]."""
    flat = np.log(y.reshape(len(x), -1))
    return np.polyfit(np.log(x), flat, 1)[0].reshape(y.shape[1:])


def _at(values, wanted):
    return int(np.argmin(np.abs(np.asarray(values) - wanted)))


def draw(results, config):
    """Loss against width, weak beside strong; features represented by decay; exponents by alpha; overlaps."""
    m, alphas, decays = (np.asarray(v, float) for v in (config.widths, config.alphas, config.decays))
    loss, norms = results["loss"], results["norms"].astype(float)
    weak, strong = _at(decays, config.weak), _at(decays, config.strong)
    figure, axes = plt.subplots(2, 3, figsize=(14, 8.6), dpi=105, layout="constrained")
    colours = plot.DENSER(np.linspace(0, 0.85, len(alphas)))
    for ax, i, name in ((axes[0, 0], weak, "weak"), (axes[0, 1], strong, "strong")):
        for j, (alpha, colour) in enumerate(zip(alphas, colours, strict=True)):
            ax.loglog(m, loss[:, i, j], "o-", ms=4, color=colour, label=rf"$\alpha$ = {alpha:g}")
            if i == weak:
                p = frequencies(config.n, alpha)
                ax.loglog(m, [left_out(p, row) for row in norms[:, i, j]], ":", color=colour)
        ax.set(xlabel="hidden dimensions m", ylabel="loss, sum over features", title=f"{name}: decay {decays[i]:g}")
    axes[0, 0].plot([], [], ":", color="0.4", label="cost of those left out")
    middle = len(alphas) // 2
    axes[0, 1].loglog(m, loss[0, strong, middle] * m[0] / m, "--", color="0.4", label="$1/m$")
    for ax in axes[0, :2]:
        plot.plain_ticks(ax.xaxis, m)
        ax.legend(frameon=False, fontsize=8)
    share = (norms > KEPT).mean(-1)
    for k, width in enumerate(m):
        axes[0, 2].plot(decays, share[k, :, middle], "o-", ms=4, color=plot.SHARED(k / len(m)), label=f"m = {width:g}")
    axes[0, 2].set(xlabel="weight decay (below 0: towards length 1)", ylabel=rf"share with $\|W_i\| >$ {KEPT:g}",
                   ylim=(0, 1.05), title=rf"features represented, $\alpha$ = {alphas[middle]:g}")  # fmt: skip
    plot.plain_ticks(axes[0, 2].xaxis, [-1, -0.5, 0, 0.5, 1])
    axes[0, 2].legend(frameon=False, fontsize=8)
    for i, colour, name in ((weak, plot.COOL, "weak"), (strong, plot.WARM, "strong")):
        axes[1, 0].plot(alphas, -_slopes(m, loss[:, i]), "o-", color=colour, label=name)
        axes[1, 1].loglog(m, results["overlap"][:, i, middle], "o-", ms=4, color=colour, label=name)
        axes[1, 2].hist(norms[-1, i, middle], bins=np.linspace(0, 1.6, 65), color=colour, alpha=0.7, label=name)
    axes[1, 0].plot(alphas, alphas, ":", color="0.4", label=r"$\alpha$")
    axes[1, 0].axhline(1, color="0.4", ls="--", lw=1, label="1")
    axes[1, 0].set(xlabel=r"$\alpha$: $p_i \sim i^{-(1+\alpha)}$", ylabel="exponent of the loss in 1/m", ylim=(0, None),
                   title="exponents")  # fmt: skip
    axes[1, 1].loglog(m, 1 / m, "--", color="0.4", label="$1/m$")
    axes[1, 1].set(xlabel="hidden dimensions m", ylabel="mean squared cosine", title="overlaps of features represented")
    plot.plain_ticks(axes[1, 1].xaxis, m)
    axes[1, 2].set(xlabel=r"$\|W_i\|$", ylabel="features", title=f"norms, m = {m[-1]:g}", yscale="log")
    for ax in axes[1]:
        ax.legend(frameon=False, fontsize=8)
    plot.plain(axes.ravel())
    figure.suptitle(f"Loss against width: {config.n} features, one active on average", fontsize=13)
    return {"": figure}


def claims(results, config):
    """What is represented, exponents, overlaps, in weak and in strong superposition."""
    m, alphas, decays = (np.asarray(v, float) for v in (config.widths, config.alphas, config.decays))
    loss, norms, n = results["loss"], results["norms"].astype(float), config.n
    weak, strong = _at(decays, config.weak), _at(decays, config.strong)
    share = (norms > KEPT).mean(-1)
    cost = np.stack(
        [[left_out(frequencies(n, a), norms[k, weak, j]) for j, a in enumerate(alphas)] for k in range(len(m))]
    )
    flat, half = alphas <= 0.5, max(2, len(m) // 2)
    own, tails = _slopes(m, loss[:, weak]), _slopes(m, np.stack([[_tail(n, a, int(k)) for a in alphas] for k in m]))
    order = np.argsort(decays)
    by = lambda values: ", ".join(f"{a:g}: {v:.3f}" for a, v in zip(alphas, values, strict=True))  # noqa: E731
    steep = alphas >= 0.5
    most = np.stack([(norms[k, weak, :, : int(width)] > KEPT).mean(-1) for k, width in enumerate(m)])
    small = ("features represented at m = " + "; ".join(
        f"{width:g}: {', '.join(f'{v:.0f}' for v in row * n)}" for width, row in zip(m, share[:, weak], strict=True))
        + f" (at alpha = {', '.join(f'{a:g}' for a in alphas)})")  # fmt: skip
    overlaps, whole = _slopes(m, results["overlap"][:, strong]), _slopes(m, loss[:, strong])
    parts = [_slopes(m[part], loss[part, strong]) for part in (slice(half), slice(-half, None))]
    least = (n - m) / (m * (n - 1))  # Welch's bound
    over = results["overlap"][:, strong] / least[:, None]
    some = norms[:, weak] > 0.25
    between = (some & (norms[:, weak] < 0.75)).sum(-1) / np.maximum(some.sum(-1), 1)
    return [
        Claim("strong: share of features represented (smallest)", PAPER, 0.95, float(share[:, strong].min()), 0.0,
              ">="),
        Claim("weak: features represented, over dimensions (smallest and largest)", f"{PAPER}: about m", [0.5, 2.0],
              [float(f(share[:, weak] * n / m[:, None])) for f in (np.min, np.max)], 0.0, "in", note=small),
        Claim("weak: of the m most frequent features, share represented (smallest)", f"{PAPER}: the most frequent", 0.5,
              float(most.min()), 0.0, ">=", note="smallest by m " + ", ".join(
                  f"{width:g}: {v:.2f}" for width, v in zip(m, most.min(1), strict=True))),
        Claim("share of features represented never rises with decay (largest rise, middle width and alpha)", PAPER, 0.0,
              float(np.diff(share[len(m) // 2, order, len(alphas) // 2]).max()), 0.02, "<="),
        Claim(f"strong: slope of log loss in log m at alpha = {', '.join(f'{a:g}' for a in alphas[flat])}",
              f"{PAPER}: -1", [-1.0] * int(flat.sum()), whole[flat].tolist(), 0.1,
              note=f"by alpha {by(whole)}; of the lower half of the widths {by(parts[0])}, of the upper half "
              + by(parts[1])),
        Claim("strong: slope of the log of the mean squared overlap in log m at alpha = "
              + ", ".join(f"{a:g}" for a in alphas[flat]), f"{PAPER}: -1", [-1.0] * int(flat.sum()),
              overlaps[flat].tolist(), 0.1, note=f"by alpha {by(overlaps)}; of the least possible for {n} rows "
              f"{_slopes(m, least[:, None])[0]:.3f}; overlaps over that one, by alpha " + "; ".join(
                  f"{a:g}: {', '.join(f'{v:.2f}' for v in row)}" for a, row in zip(alphas, over.T, strict=True))),
        Claim("weak: loss over what the features that are not represented cost (median over m and alpha)",
              f"{PAPER}: the loss is that of what is left out", [0.8, 1.25], float(np.median(loss[:, weak] / cost)),
              0.0, "in", note=f"{(loss[:, weak] / cost).min():.2f} to {(loss[:, weak] / cost).max():.2f}"),
        Claim(f"weak: slope of log loss in log m at alpha = {', '.join(f'{a:g}' for a in alphas[steep])}",
              f"{PAPER}: -alpha", (-alphas[steep]).tolist(), own[steep].tolist(), 0.15,
              note=f"by alpha {by(own)}; of what all but the m most frequent cost at this n {by(tails)}"),
        Claim("weak: that slope less the slope of what all but the m most frequent cost, at this n (largest size)",
              "derived: the sum over the features left out", 0.0, float(np.abs(own - tails).max()), 0.15),
        Claim("weak: norms are near 0 or 1 (of those above 0.25, share below 0.75, largest)", PAPER, 0.1,
              float(between.max()), 0.0, "<=", note=f"median {np.median(between):.2f}; of all features at most "
              f"{((norms[:, weak] > 0.25) & (norms[:, weak] < 0.75)).mean(-1).max():.2f}"),
    ]  # fmt: skip


def _tail(n, alpha, m):
    return float(left_out(frequencies(n, alpha), np.where(np.arange(n) < m, 1.0, 0.0)))
