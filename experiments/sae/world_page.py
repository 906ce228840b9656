"""A page of an SAE whose truth is known: each latent beside its generator, examples as the generators that are on."""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, kinds
from experiments.ledger import Claim
from superpose import plot
from superpose.dashboard import page, worlds
from superpose.sae.model import SAE
from superpose.train.fit import Sampler
from superpose.train.progress import say
from superpose.worlds import sparse, structured

GOOD = 0.9
"""Cosine at which a latent is called its generator."""


def run(config, key, workdir):
    """Of each latent: cosine with its closest generator, F1, precision, recall; of each generator the F1 of the best
    threshold along its direction; the page is written."""
    check.whole(config, "n", "d", "steps", "batch", "log_every", "samples")
    keys = jax.random.split(key, 3)
    directions = structured.directions(keys[0], config.n, config.d)
    world = sparse.independent(config.n)

    def sample(key, size):
        features = world.sample(key, config.density, size).T
        return features @ directions, features

    source = Sampler(lambda key: sample(key, config.batch)[0], shared=True)
    made = {"SAE": kinds.kind(config.kind, config.d, config.steps, 1, np.asarray(sample(keys[1], 1024)[0]))}
    results = kinds.train(made, config, keys[1], source, workdir / "fit", "SAE of a world")
    sae = SAE(*kinds.plain(made["SAE"], results["SAE"])[0])
    x, features = map(np.asarray, sample(keys[2], config.samples))
    every = list(worlds.records(sae, x, features, np.asarray(directions), range(sae.arch.d_sae), config.seed))
    place = Path(config.page) if config.page else workdir / "dashboard.html"
    page.write(
        place, every, f"an SAE of {config.n} generators in {config.d} dimensions", worlds.pieces(config.n),
        of="sample",
        note=f"{config.samples:,} samples; each is written as the generators that are on in it, largest first, with "
             "their values in tenths of the largest.",
    )  # fmt: skip
    say(f"page: {place}")
    numbers = {name: [r["confusion"][name] for r in every] for name in ("cosine", "F1", "precision", "recall")}
    closest = [int(r["confusion"]["closest generator"][1:]) for r in every]
    return {
        "closest": np.array(closest), "on": np.array([r["on"] for r in every]),
        "threshold": _thresholds(x @ np.asarray(directions).T, features > 0),
        **{name: np.array(values, float) for name, values in numbers.items()},
    }  # fmt: skip


def _thresholds(along, on):
    """[n], the largest F1 for each generator of a threshold on what stands along its direction."""
    order = np.argsort(-along, axis=0, kind="stable")
    hits = np.cumsum(np.take_along_axis(on, order, 0), 0)
    return (2 * hits / (np.arange(1, len(on) + 1)[:, None] + on.sum(0))).max(0)


def _found(results):
    """Latents that are a generator, the one with the highest F1 for each; and which generators."""
    good = np.flatnonzero((results["on"] > 0) & (results["cosine"] >= GOOD))
    order = good[np.argsort(-results["F1"][good], kind="stable")]
    generators, first = np.unique(results["closest"][order], return_index=True)
    return order[first], generators


def draw(results, config):
    """Each latent: how close its direction is to a generator, and how well it says when that is on."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), dpi=110, layout="constrained")
    live = results["on"] > 0
    axes[0].plot(results["cosine"][live], results["F1"][live], "o", ms=4, alpha=0.7, color="#3f6fb5")
    axes[0].axvline(GOOD, color="0.7", lw=0.8)
    title = f"{live.sum()} live latents, {config.n} generators in {config.d} dimensions"
    axes[0].set(xlabel="cosine with the closest generator", ylabel="F1 for that generator", xlim=(0, 1.02),
                ylim=(0, 1.02), title=title)  # fmt: skip
    latents, generators = _found(results)
    axes[1].plot([0, 1], [0, 1], color="0.6", lw=0.8)
    axes[1].plot(results["threshold"][generators], results["F1"][latents], "o", ms=4, alpha=0.7, color="#3f6fb5")
    axes[1].set(xlabel="F1 of the best threshold along the true direction", ylabel="F1 of the latent", xlim=(0, 1.02),
                ylim=(0, 1.02), title=f"{len(generators)} generators that have a latent")  # fmt: skip
    plot.plain(axes)
    return {"": figure}


def claims(results, config):
    """Most generators have a latent, which says better when they are on than a threshold along their direction."""
    latents, generators = _found(results)
    ours, theirs = results["F1"][latents], results["threshold"][generators]
    more = float(np.median(ours - theirs)) if len(ours) else np.nan
    say = f"medians {np.median(ours):.3f} and {np.median(theirs):.3f}" if len(ours) else "no generator has a latent"
    return [
        Claim(f"share of generators that have a latent with a cosine of {GOOD} or more", "sanity: a sparse world", 0.8,
              len(generators) / config.n, 0.0, ">=", note=f"{int((results['on'] > 0).sum())} of the latents are live"),
        Claim("median over these generators of the latent's F1 less that of the best threshold along the true "
              "direction", "an encoder may look away from what interferes", 0.0, more, 0.0, ">=", note=say),
    ]  # fmt: skip
