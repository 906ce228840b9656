"""Capacity and its allocation (Scherlis et al. 2022, "Polysemanticity and Capacity in Neural Networks").

Claim: trained networks give each feature the share of a dimension at which its marginal benefit equals that of the
others, so that important features are alone, middling ones share and the least are ignored; sharing grows with kurtosis
and hangs on the activation.
Command: python -m experiments.run --config=configs/toy/capacity.py   (also :quick)
Expected: capacities of the quadratic model within 0.02 of the theory. Time: see REPRODUCTION.md.
The paper's own hyperparameters were not at hand, so that there is no :published grid; the quadratic model and its
theory are derived in superpose/toy/capacity.py, and those of other activations are the models of TMS with one hidden
dimension.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (fewer cells and steps)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of capacity: choose quick")
    c = ConfigDict()
    c.experiment = "toy.capacity"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 16  # features of the larger model
    c.d = 4  # its dimensions
    c.decay = 0.9  # v_i = decay^i
    c.kurtosis = (2.0, 3.5, 5.0, 8.0, 16.0, 40.0)  # of its inputs
    c.cells = 32  # along each axis of the maps of two features in one dimension
    c.ratio = (0.1, 0.98)  # ends of v_2 / v_1, and of I_2 / I_1
    c.kurtoses = (1.2, 30.0)  # ends, of the map of the quadratic model
    c.density = (0.02, 1.0)  # ends of 1-S, of the maps of other activations
    c.activations = ("relu", "gelu")  # of the output
    c.nodes = 8  # quadrature nodes per feature, for these
    c.seeds = 8  # models per setting
    c.steps = 2000
    c.log_every = 500  # steps per chunk
    c.block = 128  # members per vmapped block
    c.recipe = recipe(
        optimizer="adam",
        lr=0.02,  # peak
        schedule="cosine",  # to zero
    )
    if variant == "quick":
        c.cells, c.seeds, c.steps = 10, 4, 1500
    return c
