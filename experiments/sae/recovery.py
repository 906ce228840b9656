"""Taking features out of superposition: which L1 coefficients and dictionary sizes recover the true directions.

Sharkey, Braun & Millidge (Dec 2022): ReLU autoencoders with an L1 penalty on a world of G correlated sparse features in
d < G dimensions; mean max cosine similarity (MMCS) with the truth, dead latents, loss, and MMCS with the next larger
dictionary, which needs no truth.
"""

import dataclasses
import itertools

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from scipy import special

from experiments import check, kinds
from experiments.ledger import Claim
from superpose import plot
from superpose.sae import recovery
from superpose.sae.model import SAE
from superpose.train.fit import Sampler
from superpose.worlds import structured

PAPER = "Sharkey et al. 2022"
RECOVERED = 0.9
"""MMCS above which a dictionary counts as recovered."""
SCORES = ("mmcs", "mmcs_latents", "dead", "l0", "explained_variance")


def run(config, key, workdir):
    """Scores [sizes, coefficients, seeds] of every SAE, and of untrained ones [sizes, seeds].

    ``mmcs`` is true -> latent and ``mmcs_latents`` latent -> true, both of live latents only. ``larger`` is the MMCS of
    all latents, dead ones included as in the authors' measure, with those of the next larger dictionary;
    ``larger_live`` the same of live latents with live ones.
    """
    check.whole(config, "d", "G", "seeds", "batch", "steps", "log_every", "eval_batch", "eval_batches")
    check.positive(config, "active", "decay", "ratios")
    sizes, coefficients = _axes(config)
    train_key, eval_key, direction_key, start_key = jax.random.split(key, 4)
    directions = structured.directions(direction_key, config.G, config.d, steps=0)
    world = structured.sharkey(config.G, config.active, config.decay, seed=config.correlation_seed)
    embedding = world.embed(directions)
    sample = np.asarray(embedding.sample(eval_key, 1024))
    made = {}
    for i, size in enumerate(sizes):
        made[f"k{size}"] = k = kinds.kind(config.kind, config.d, config.steps, config.seeds, sample, d_sae=int(size))
        # a seed of its own for each member: with the same one, a larger dictionary starts with the smaller one's rows
        hyper = {**k.population.hyper, "seed": k.population.hyper["seed"] + i * config.seeds}
        made[f"k{size}"] = k._replace(population=dataclasses.replace(k.population, hyper=hyper))
    source = Sampler(lambda key: embedding.sample(key, config.batch), shared=True)
    trained = kinds.train(made, config, train_key, source, workdir / "fit", "recovery")
    shape = (len(coefficients), config.seeds)
    loss = np.stack([np.where(r.frozen_at >= 0, np.inf, r.history["loss"][-1]).reshape(shape)
                     for r in trained.values()])  # fmt: skip
    for size, of_size in zip(sizes, loss, strict=True):
        check.some_sound(of_size, f"K={size} with coefficient", coefficients)
    loss = np.where(np.isfinite(loss), loss, np.nan)
    scored = kinds.scored(made, trained, kinds.judge(embedding, config.eval_batch, config.eval_batches, eval_key))
    batch = jax.jit(lambda key: embedding.sample(key, config.eval_batch))
    x = np.concatenate([batch(jax.random.fold_in(eval_key, b)) for b in range(config.eval_batches)])
    rows = [[(params["W_dec"], np.asarray((SAE(arch, params).encode(x) != 0).any(0)))
             for arch, params in kinds.plain(made[name], trained[name])] for name in made]  # fmt: skip
    larger, larger_live = np.moveaxis(np.asarray([
        [_agreement(*a, *b) for a, b in zip(small, large, strict=True)] for small, large in itertools.pairwise(rows)
    ]).reshape(-1, *shape, 2), -1, 0)  # fmt: skip
    both = np.isfinite(loss[:-1] + loss[1:])
    untrained = []
    for i, k in enumerate(made.values()):
        hyper = {name: v[0] for name, v in k.population.hyper.items()}
        starts = [k.population.objective.init(jax.random.fold_in(start_key, i * config.seeds + s), hyper)[0]
                  for s in range(config.seeds)]  # fmt: skip
        untrained.append([recovery.mmcs(recovery.cosines(p["W_dec"], directions)).true_to_latent for p in starts])
    return {
        "sizes": sizes,
        "coefficients": coefficients,
        **{s: np.stack([scored[f"{name}_{s}"] for name in made]) for s in SCORES},
        "loss": loss,
        "larger": np.where(both, larger, np.nan),
        "larger_live": np.where(both, larger_live, np.nan),
        "untrained": np.asarray(untrained),
        "overlap": np.asarray(structured.overlaps(directions).largest).max(),
    }


def _axes(config) -> tuple[np.ndarray, np.ndarray]:
    """Dictionary sizes and coefficients, both ascending."""
    if list(config.kind.sweep) != ["coefficient"]:
        raise ValueError(f"this figure sweeps the coefficient alone, got kind.sweep of {', '.join(config.kind.sweep)}")
    check.positive(config.kind.sweep, "coefficient")
    coefficients = np.asarray(config.kind.sweep.coefficient, float)
    sizes = np.round(np.asarray(config.ratios, float) * config.G).astype(int)
    for name, values in (("kind.sweep.coefficient", coefficients), ("ratios", sizes)):
        if values.ndim != 1 or len(values) < 2 or np.any(np.diff(values) <= 0):
            raise ValueError(f"{name} must hold at least two different values in ascending order")
    if sizes[0] < 1 or sizes[-1] < config.G:
        raise ValueError(f"ratios must give at least one latent, and at least G={config.G} at the end, got {sizes}")
    return sizes, coefficients


def _agreement(small, live, large, large_live) -> tuple[float, float]:
    """MMCS of the rows of a dictionary with those of a larger one, over all rows and over the live ones."""
    alive = recovery.cosines(small, np.where(large_live[:, None], large, 0))
    every = recovery.mmcs(recovery.cosines(small, large))
    return every.latent_to_true, recovery.mmcs(alive, live).latent_to_true


def ceiling(size, n: int, overlap: float):
    """Bound on the MMCS (true -> latent) that a dictionary of ``size`` < n latents can have.

    A latent that is the best one of s features has sum_i |cos_i| <= |sum_i +-f_i| <= sqrt(s (1 + (s - 1) overlap)) over
    them, ``overlap`` the largest |cos| of two features. That is concave in s and the s add up to n, so that the sum is
    at most that of equal shares s = n / size. Orthogonal features and half as many latents, each between two:

    >>> round(float(ceiling(64, 128, 0.0)), 3)
    0.707
    """
    s = n / np.minimum(size, n)
    return np.sqrt((1 + (s - 1) * overlap) / s)


def chance(size: int, d: int) -> float:
    """Expected MMCS (true -> latent) of ``size`` random directions in d dimensions: the mean of the largest |cos|.

    cos^2 of two random directions follows Beta(1/2, (d - 1)/2). One direction in one dimension:

    >>> round(chance(1, 2), 3)
    0.637
    """
    t = np.linspace(0, 1, 20_001)
    below = special.betainc(0.5, (d - 1) / 2, t**2)
    return float(np.trapezoid(1 - below**size, t))


def draw(results, config):
    """Six heat maps over coefficient and size, means over the seeds; red: the best MMCS with the truth."""
    mean = {k: np.nanmean(results[k], -1) for k in (*SCORES, "loss", "larger")}
    missing = np.full((1, mean["mmcs"].shape[1]), np.nan)
    mean["larger"] = np.concatenate([mean["larger"], missing])
    unit, two = Normalize(0, 1), "{:.2f}".format
    panels = (
        ("mmcs", "MMCS with the truth: feature → latent", unit, two),
        ("larger", "MMCS with the next larger dictionary", unit, two),
        ("mmcs_latents", "MMCS with the truth: live latent → feature", unit, two),
        ("dead", f"dead: share silent in {config.eval_batch * config.eval_batches:,} samples", unit, two),
        ("loss", "loss: squared error + coefficient x L1", Normalize(0, np.nanmax(mean["loss"])), two),
        ("l0", f"active latents a sample (truth: about {config.active:g} features)",
         LogNorm(max(0.01, np.nanmin(mean["l0"])), np.nanmax(mean["l0"])), lambda v: f"{v:.{0 if v > 10 else 2}f}"),
    )  # fmt: skip
    rows = [f"{size}  ({size / config.G:g} G)" for size in results["sizes"]]
    columns = [f"{c:g}" for c in results["coefficients"]]
    height = 1.9 + 0.8 * len(rows)
    figure, axes = plt.subplots(2, 3, figsize=(15.5, height + 0.6), dpi=110, sharex=True, sharey=True,
                                layout="constrained")  # fmt: skip
    row, column = divmod(int(np.nanargmax(mean["mmcs"])), len(columns))
    for ax, (name, title, norm, form) in zip(axes.flat, panels, strict=True):
        image = plot.number_map(ax, mean[name], rows, columns, norm, form)
        figure.colorbar(image, ax=ax, fraction=0.05, pad=0.015).ax.tick_params(labelsize=7)
        ax.set_title(title, fontsize=10)
        if name in ("mmcs", "larger"):
            for i, of_size in enumerate(mean[name]):
                if np.isfinite(of_size).any():
                    plot.outline_cell(ax, i, int(np.nanargmax(of_size)), "k", 1.2)
        if np.isfinite(mean[name][row, column]):
            plot.outline_cell(ax, row, column, "#e6341f", 2.2)
    axes[0, 1].text(
        (len(columns) - 1) / 2, len(rows) - 1, "no larger one", fontsize=8, color="0.4", va="center", ha="center"
    )
    for ax in axes[-1]:
        ax.set_xlabel("L1 coefficient", fontsize=9)
    for ax in axes[:, 0]:
        ax.set_ylabel("latents K", fontsize=9)
    figure.suptitle(
        f"Features out of superposition: {config.G} correlated features in {config.d} dimensions, ReLU autoencoders "
        f"with L1, mean of {config.seeds} seed{'s' * (config.seeds > 1)}",
        fontsize=12,
    )
    figure.supxlabel("red: the best MMCS with the truth; black, in the first two panels: the best coefficient of "
                     "each size, by the panel's own MMCS", fontsize=8.5, color="0.3")  # fmt: skip
    return {"": figure}


def longest_run(on) -> int:
    """Most neighbours in a row that are True.

    >>> longest_run([True, False, True, True])
    2
    """
    longest = run = 0
    for here in on:
        run = run + 1 if here else 0
        longest = max(longest, run)
    return longest


def claims(results, config):
    """The band and its ends, its proxy without the truth, dead latents, and what too few or untrained latents do."""
    sizes, G = results["sizes"], config.G
    mmcs, larger, live, dead = (np.nanmean(results[k], -1) for k in ("mmcs", "larger", "larger_live", "dead"))
    enough, few = sizes >= G, sizes < G
    peak, chosen, alive = (np.where(np.isfinite(v), v, -1).argmax(1) for v in (mmcs, larger, live))
    steps, best = chosen - peak[:-1], dead[np.arange(len(sizes)), peak]
    proxied = enough[:-1]
    named = lambda chosen: ", ".join(f"{k}" for k in sizes[chosen])  # noqa: E731
    many = int(enough.sum())
    out = [
        Claim(f"K = {named(enough)} (K >= G): MMCS with the truth at the best coefficient", PAPER, [RECOVERED] * many,
              mmcs[enough].max(1), 0.0, ">="),
        Claim(f"K = {named(enough)}: the band is wide: neighbouring coefficients with MMCS above {RECOVERED:g}", PAPER,
              [2] * many, [longest_run(row > RECOVERED) for row in mmcs[enough]], 0.0, ">="),
        Claim(f"K = {named(enough)}: the band ends: MMCS at the lowest and at the highest coefficient, the larger one",
              f"{PAPER} (negative control)", [RECOVERED] * many, mmcs[enough][:, [0, -1]].max(1), 0.0, "<="),
        Claim(f"K = {named(slice(0, -1))}: steps of the coefficient between the peaks of the MMCS with the next larger "
              "dictionary and of the MMCS with the truth", PAPER, [0] * len(larger), steps, 1.0,
              note=f"above 0: at more L1; over live latents alone {(alive - peak[:-1]).tolist()}; share of dead ones "
              f"at the truth's best coefficient {', '.join(f'{v:.2f}' for v in best[:-1])}; why, was not measured"),
        Claim(f"K = {named(slice(None))}: share of dead latents at the highest coefficient, less that at the best one",
              PAPER, [0.3] * len(sizes), dead[:, -1] - best, 0.0, ">=",
              note=f"at the highest {', '.join(f'{v:.2f}' for v in dead[:, -1])}; at the best "
              f"{', '.join(f'{v:.2f}' for v in best)}"),
        Claim(f"K = {sizes[enough][0]}: share of dead latents at the best coefficient", f"{PAPER} (negative control)",
              0.1, float(dead[enough][0, peak[enough][0]]), 0.0, "<="),
    ]  # fmt: skip
    if proxied.any():
        found = mmcs[:-1][proxied, chosen[proxied]]
        out.append(
            Claim(f"K = {named(np.flatnonzero(proxied))}: MMCS with the truth at the coefficient that the next larger "
                  "dictionary agrees with best", PAPER, [RECOVERED] * len(found), found, 0.0, ">=",
                  note="what the proxy is for; stated after the first full run, in which its peak was up to two steps "
                  "off")
        )  # fmt: skip
    if few.any():
        bound = ceiling(sizes[few], G, float(results["overlap"]))
        out += [
            Claim(f"K = {named(few)} (K < G): too few latents (largest MMCS with the truth)",
                  f"{PAPER} (negative control)", [RECOVERED] * int(few.sum()), np.nanmax(results["mmcs"][few], (1, 2)),
                  0.0, "<=", note="no dictionary of so many exceeds "
                  + ", ".join(f"{v:.3f}" for v in np.atleast_1d(bound)) + " (derived: ceiling)"),
        ]  # fmt: skip
    out.append(
        Claim(f"K = {named(slice(None))}: MMCS of untrained dictionaries is that of random directions",
              "derived: experiments/sae/recovery.py, chance (negative control)",
              [chance(int(k), config.d) for k in sizes], results["untrained"].mean(1), 0.02)
    )  # fmt: skip
    return out
