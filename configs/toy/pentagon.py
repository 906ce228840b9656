"""Five features in two dimensions (TMS, introduction): 0 %, 80 %, 90 % sparsity and the way between.

Claim: dense features give the two most important ones, orthogonal; at 80 % sparsity two antipodal pairs; at 90 % all
five as a pentagon. Best of the seeds: with the notebook's recipe only 3 of 10 runs find the pentagon at 90 %.
Command: python -m experiments.run --config=configs/toy/pentagon.py   (also :quick)
Expected: 2, 4, 5 features at 1-S = 1, 0.2, 0.1. Time: see REPRODUCTION.md.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (the paper's three densities, fewer seeds)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of pentagon: choose quick")
    c = ConfigDict()
    c.experiment = "toy.pentagon"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 5  # features
    c.m = 2  # hidden dimensions
    c.decay = 0.9  # importance of feature i is decay^i
    c.densities = (1.0, 0.5, 0.3, 0.2, 0.17, 0.15, 0.1, 0.07)  # 1-S
    c.seeds = 32  # models per density; the best one is drawn
    c.expectation = "conditional"  # row of worlds.expect.EXPECTATIONS
    c.batch = 512  # columns per step
    c.eval_batch = 8192  # held-out columns per batch
    c.eval_batches = 8  # to choose the best seed
    c.nodes = (64, 64, 24, 10, 7)  # quadrature nodes for 1, ..., 5 active features; twice as many are taken
    c.steps = 3000
    c.log_every = 250  # steps per chunk
    c.recipe = recipe(
        optimizer="adam",
        lr=1e-2,  # peak
        schedule="cosine",  # to zero
    )
    c.expected_counts = ((1.0, 2), (0.5, 4), (0.3, 4), (0.2, 4), (0.1, 5), (0.07, 5))  # (1-S, features)
    c.expected_losses = ((0.2, 59.7e-3), (0.17, 48.8e-3), (0.15, 41.0e-3), (0.1, 21.4e-3), (0.07, 12.2e-3))
    c.crossing = True  # claim the change from digons to pentagon between 0.17 and 0.15
    if variant == "quick":
        c.densities, c.seeds, c.steps, c.log_every = (1.0, 0.2, 0.1), 12, 1500, 100
    return c
