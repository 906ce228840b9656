"""A sweep over model size, density, importance decay and seed, in one call.

Claim: bounds that every trained model keeps (sum_i D_i <= m). The grid is yours:
Command: python -m experiments.run --config=configs/toy/sweep.py --config.grid.density="(1.0, 0.1, 0.01)"
         --config.grid.n="(20, 40)" --config.grid.seeds=8
Writes the table as .csv beside the usual .npz, .json and .png.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (12 small models)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of sweep: choose quick")
    c = ConfigDict()
    c.experiment = "toy.sweep"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.grid = ConfigDict()  # the full product of these
    c.grid.n = (20,)  # features
    c.grid.m = (2, 5, 10)  # hidden dimensions
    c.grid.density = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.01)  # 1-S
    c.grid.decay = (0.7, 0.9, 1.0)  # importance of feature i is decay^i
    c.grid.seeds = 32  # 0, 1, ..., seeds - 1
    c.output = "relu"  # row of toy.models.ACTIVATIONS
    c.bias = True  # whether the models have a bias
    c.expectation = "conditional"  # row of worlds.expect.EXPECTATIONS
    c.batch = 128  # columns per step
    c.steps = 2000
    c.log_every = 250  # steps per chunk
    c.recipe = recipe(
        optimizer="adam",
        lr=1e-2,  # peak
        schedule="cosine",  # to zero
    )
    c.eval_batch = 4096  # held-out columns per batch
    c.eval_batches = 8
    if variant == "quick":
        c.grid.n, c.grid.m, c.grid.density, c.grid.decay, c.grid.seeds = (6,), (2, 3), (1.0, 0.1), (0.9,), 3
        c.steps, c.log_every, c.eval_batches = 500, 100, 2
    return c
