"""Loss against width in weak and strong superposition (Liu, Liu, Gore 2025, "Superposition Yields Robust Neural
Scaling").

Claim: with weight decay the m most frequent features are represented and the loss is what the others cost, so that its
exponent is that of the data; with the opposite of decay all are represented and the loss falls as 1/m.
Command: python -m experiments.run --config=configs/toy/scaling.py   (also :quick and :published)
Expected: exponents of alpha and of 1; overlaps of 1/m. Time: see REPRODUCTION.md.
The paper's small sweep (its code, exp-10) is :published, not run here (it says its cost before it starts); this one has
fewer features, steps and settings.
"""

import numpy as np
from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (fewer models and steps) and "published" (the paper's small sweep)."""
    variant = variant or "full"
    if variant not in ("full", "quick", "published"):
        raise ValueError(f"unknown variant {variant!r} of scaling: choose quick or published")
    c = ConfigDict()
    c.experiment = "toy.scaling"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 500  # features of equal importance; feature i is active with p_i ~ i^-(1 + alpha), sum_i p_i = 1
    c.widths = (8, 12, 18, 27, 40, 60)  # m
    c.decays = (-1.0, -0.3, 0.0, 0.1, 0.3, 1.0)  # of W; below 0 its rows are pushed to length 1
    c.alphas = (0.0, 0.5, 1.0)
    c.strong, c.weak = -1.0, 0.3  # of ``decays``, which the claims are about
    c.seeds = 1  # models per setting
    c.batch = 1024  # columns per step
    c.steps = 4000
    c.log_every = 500  # steps per chunk
    c.block = 2  # members per vmapped block
    c.eval_batch = 16_384  # held-out columns
    c.recipe = recipe(
        optimizer="adam",  # decay is applied beside it, as in the paper's code
        lr=1e-2,  # peak
        warmup=400,
        schedule="cosine",
        final=0.05,
    )
    if variant == "quick":
        c.n, c.widths, c.decays, c.alphas = 100, (3, 6, 12), (-1.0, 0.3), (0.0, 1.0)
        c.steps, c.log_every, c.recipe.warmup = 1500, 250, 150
    if variant == "published":
        c.n, c.batch, c.steps, c.log_every, c.recipe.warmup = 1000, 2048, 20_000, 1000, 2000
        c.widths = tuple(int(m) for m in np.geomspace(10, 100, 6).round())
        c.decays = tuple(float(d) for d in np.linspace(-1, 1, 10))
        c.weak = c.decays[6]
        c.alphas = tuple(float(a) for a in np.linspace(0, 1, 9))
    return c
