"""Computation in superposition: networks that compute |x| (TMS, "Computation in Superposition").

Claim: with enough neurons every feature has one neuron for each sign; with too few, dense features get neurons of their
own and the rest is ignored, and as features grow sparser neurons become polysemantic, those of important features last.
Among them is the asymmetric superposition motif: a neuron of two features of unlike size, and one that inhibits.
Command: python -m experiments.run --config=configs/toy/absolute_value.py   (also :quick)
Expected: 6 monosemantic neurons for 3 features; 40 of 40 when dense; a motif. Time: see REPRODUCTION.md.
The paper's text gives one density of the panels (0.01) and neither n, m nor density of the motif's model.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (n=20, m=10)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of absolute_value: choose quick")
    c = ConfigDict()
    c.experiment = "toy.absolute_value"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 100  # features, from -1 to 1 where they are active
    c.m = 40  # neurons
    c.decay = 0.8  # importance of feature i is decay^i
    c.densities = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # 1-S
    c.seeds = 4  # models per density and learning rate
    c.small = ConfigDict()  # the model with room for all
    c.small.n = 3
    c.small.m = 6
    c.small.density = 0.3
    c.small.seeds = 16
    c.init_scale = 0.1  # of Xavier; a small start ends in better optima more often. Output weights start positive
    c.batch = 256  # columns per step
    c.steps = 20_000
    c.log_every = 250  # steps per chunk
    c.eval_batch = 4096  # held-out columns per batch
    c.eval_batches = 8
    c.mono = 0.1  # a neuron is monosemantic whose second largest input weight is below this part of its largest
    c.lrs = (3e-2, 1e-2, 5e-3, 2e-3)  # peaks; the first is better for dense features, the last for sparse ones
    c.recipe = recipe(
        optimizer="adam",
        lr=0.0,  # stands in lrs
        schedule="cosine",  # to zero
    )
    if variant == "quick":
        c.n, c.m, c.densities, c.seeds, c.small.seeds = 20, 10, (1.0, 0.1, 0.01), 3, 3
        c.steps, c.log_every, c.eval_batches, c.lrs = 1500, 250, 2, (2e-2, 5e-3)
    return c
