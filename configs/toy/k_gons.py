"""k-gons and the plateaus of SGD (Chen et al. 2023, "Dynamical versus Bayesian Phase Transitions").

Claim: with one active feature per input and two hidden dimensions, regular polygons with dead features are critical
points of the loss, and SGD spends its time, and ends, near their losses.
Command: python -m experiments.run --config=configs/toy/k_gons.py   (also :quick)
Expected: lengths, biases and losses as published, to their digits. Time: see REPRODUCTION.md.
Not here: the posterior at finite sample sizes, and learning coefficients. The paper has c = 4, too, whose one level is
a loss of 0. Its rate, batch and number of steps of SGD were not at hand, so that there is no :published grid.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (fewer seeds and steps)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of k_gons: choose quick")
    c = ConfigDict()
    c.experiment = "toy.k_gons"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.features = (5, 6)  # c, one figure row each
    c.seeds = 128  # runs for each
    c.batch = 32  # inputs per step
    c.steps = 40_000
    c.log_every = 2000  # steps per chunk
    c.records = 160  # log-spaced steps at which W and b are kept
    c.near = 0.03  # relative distance from a level within which a loss is on it
    c.shown = 24  # runs whose losses are drawn
    # k -> length and bias of its corners, h, in the paper
    c.published = {4: (1.0, 0.0, 0.0), 5: (1.17046, -0.28230, 0.23738), 6: (1.32053, -0.61814, 0.86746),
                   7: (1.44839, -0.96691, 1.74870), 8: (1.5504, -1.2912, 2.77311)}  # fmt: skip
    # (c, k, positive biases of dead features) -> loss, there
    c.losses = ((6, 4, 1, 0.10417), (6, 5, 0, 0.06874), (6, 5, 1, 0.06180), (6, 6, 0, 0.04819), (5, 4, 0, 0.06667),
                (5, 4, 1, 0.05667), (5, 5, 0, 0.01583))  # fmt: skip
    c.recipe = recipe(
        optimizer="sgd",
        lr=0.02,
        schedule="constant",
    )
    if variant == "quick":
        c.seeds, c.batch, c.steps, c.log_every, c.records, c.shown = 16, 32, 8000, 1000, 60, 8
        c.recipe.lr = 0.05
    return c
