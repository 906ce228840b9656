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
"""F1 and cosine at which a latent is called its generator."""


def run(config, key, workdir):
    """Of each latent: cosine with its closest generator, F1, precision, recall; the page is written."""
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
        note=f"{config.samples:,} samples; each is written as the generators that are on in it, largest first, with "
             "their values in tenths of the largest.",
    )  # fmt: skip
    say(f"page: {place}")
    numbers = {name: [r["confusion"][name] for r in every] for name in ("cosine", "F1", "precision", "recall")}
    closest = [int(r["confusion"]["closest generator"][1:]) for r in every]
    return {"closest": np.array(closest), "on": np.array([r["on"] for r in every])} | {
        name: np.array(values, float) for name, values in numbers.items()
    }


def draw(results, config):
    """Each latent: how close its direction is to a generator, and how well it says when that is on."""
    figure, ax = plt.subplots(figsize=(5.4, 4.6), dpi=110, layout="constrained")
    live = results["on"] > 0
    ax.plot(results["cosine"][live], results["F1"][live], "o", ms=4, alpha=0.7, color="#3f6fb5")
    ax.axhline(GOOD, color="0.7", lw=0.8)
    ax.axvline(GOOD, color="0.7", lw=0.8)
    ax.set(xlabel="cosine with the closest generator", ylabel="F1 for that generator", xlim=(0, 1.02), ylim=(0, 1.02),
           title=f"{live.sum()} live latents, {config.n} generators in {config.d} dimensions")  # fmt: skip
    plot.plain([ax])
    return {"": figure}


def claims(results, config):
    """Most latents are generators."""
    good = (results["cosine"] >= GOOD) & (results["F1"] >= GOOD)
    found = len(np.unique(results["closest"][good]))
    return [
        Claim(f"share of generators that have a latent with cosine and F1 of {GOOD} or more", "sanity: a sparse world",
              0.8, found / config.n, 0.0, ">=", note=f"{good.sum()} latents for {found} generators"),
    ]  # fmt: skip
