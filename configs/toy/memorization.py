"""Memorising examples, then representing features (Henighan et al. 2023, "Superposition, Memorization, and Double
Descent").

Claim: trained on few examples, a model in two dimensions arranges these as a regular polygon; trained on many, it does
so with features; in between neither has much of a dimension, and the loss on new examples rises before it falls.
Command: python -m experiments.run --config=configs/toy/memorization.py   (also :quick and :published)
Expected: dimensionalities 2/T of T examples, then 2/5 of five features (here 0.34 on average); a bump of the test
loss. Time: REPRODUCTION.md.
Settings are those that an exercise names as the paper's, reduced: n=10,000 features and 50,000 steps there. The
correction of July 2023 (the middle is in part a failure to optimise) is checked by a sweep over learning rates.
:published is not run here; the paper's largest sets, above 100,000 examples, are left out: a step holds all of them,
and how much memory that takes was not measured.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (fewer sets and steps) and "published" (the paper's size, up to 100,000 examples)."""
    variant = variant or "full"
    if variant not in ("full", "quick", "published"):
        raise ValueError(f"unknown variant {variant!r} of memorization: choose quick or published")
    c = ConfigDict()
    c.experiment = "toy.memorization"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 300  # features of equal importance
    c.density = 0.02  # 1-S; examples are scaled to norm 1
    c.m = 2  # hidden dimensions of all but the map
    c.examples = (3, 4, 5, 6, 8, 12, 20, 35, 60, 100, 200, 400, 800, 1600, 3200, 6400)  # T, a training set each
    c.dimensions = (2, 3, 4, 6, 8, 12)  # m of the map
    c.rates = (1.0, 3.0, 10.0)  # learning rates, over the recipe's
    c.seeds = 2  # models for each T and rate; that of the lowest training loss is kept
    c.test = 4000  # new examples
    c.steps = 10_000
    c.log_every = 1000  # steps per chunk
    c.recipe = recipe(
        optimizer="adamw",
        lr=1e-3,
        weight_decay=1e-2,
        warmup=500,
        schedule="cosine",  # to zero
    )
    if variant == "quick":
        c.n, c.density, c.examples, c.dimensions, c.rates = 100, 0.05, (3, 5, 30, 1000), (2, 4), (3.0,)
        c.steps, c.log_every, c.recipe.warmup, c.test = 3000, 500, 150, 1000
    if variant == "published":
        c.n, c.density, c.steps, c.recipe.warmup, c.test = 10_000, 0.001, 50_000, 2500, 10_000
        c.examples = (3, 5, 6, 8, 10, 15, 30, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
    return c
