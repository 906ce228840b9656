"""The loss as a sum over the number of active features (TMS, "Mathematical Understanding").

Claim: L = (1-S)^n L_n + ... + (1-S) S^(n-1) L_1 + S^n L_0. For sparse features the term of one active feature rules,
and it is a feature benefit plus an interference, which a ReLU makes cheap where overlaps are negative.
Command: python -m experiments.run --config=configs/toy/loss_expansion.py   (also :quick)
Expected: what the terms of none and one leave out falls as (1-S)^2. Time: see REPRODUCTION.md.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (fewer densities, coarser)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of loss_expansion: choose quick")
    c = ConfigDict()
    c.experiment = "toy.loss_expansion"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 5  # features of importance 1
    c.m = 2  # hidden dimensions
    c.density = 0.05  # 1-S at which the three solutions are trained
    c.densities = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # at which their losses are expanded
    c.nodes = (128, 64, 24, 12, 8)  # quadrature nodes for 1 to 5 active features
    c.train_nodes = (24, 12, 6, 4, 3)
    c.steps = 1500
    c.log_every = 250  # steps per chunk
    c.recipe = recipe(
        optimizer="adam",
        lr=1e-2,  # peak
        schedule="cosine",  # to zero
    )
    if variant == "quick":
        c.densities, c.nodes, c.steps, c.log_every = (0.001, 0.01, 0.1, 0.8), (48, 24, 12, 6, 4), 400, 100
    return c
