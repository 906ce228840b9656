"""A ReLU in the hidden layer makes neurons a privileged basis (TMS, "Superposition in a Privileged Basis").

Claim: with a ReLU hidden layer single neurons stand for single features where these are dense, and superposition comes
in steps as they grow sparser: a few features share a few neurons in ways of their own, until every feature is a pair of
neurons. The best of 1,000 models of each density, as in the paper.
Command: python -m experiments.run --config=configs/toy/privileged_basis.py   (also :quick)
Expected: 5, 3, 2, 1, 0, 0 monosemantic neurons, 5, 6, 7, 7, 8, 10 features. Time: see REPRODUCTION.md.
The densities stand for the ranges that the paper's text names; it gives no recipe.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (16 models of three densities)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of privileged_basis: choose quick")
    c = ConfigDict()
    c.experiment = "toy.privileged_basis"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 10  # features
    c.m = 5  # hidden neurons
    c.decay = 0.75  # importance of feature i is decay^i
    c.densities = (0.75, 0.35, 0.15, 0.12, 0.065, 0.03)  # 1-S, one of each regime
    c.seeds = 1000  # models per density; the best one is drawn
    c.linear_density = 0.15  # of the model with a linear hidden layer that stands beside
    c.linear_seeds = 32
    c.batch = 128  # columns per step
    c.steps = 2500
    c.log_every = 250  # steps per chunk
    c.block = 64  # members per vmapped block
    c.eval_batch = 2048  # held-out columns per batch
    c.eval_batches = 128  # the best models differ by half a percent
    c.mono = 0.1  # a neuron is monosemantic whose second largest weight is below this part of its largest
    c.recipe = recipe(
        optimizer="adam",
        lr=1e-2,  # peak
        schedule="cosine",  # to zero
    )
    c.expected_mono = (5, 3, 2, 1, 0, 0)  # monosemantic neurons, per density
    c.expected_features = (5, 6, 7, 7, 8, 10)  # with ||W_i|| > 0.5
    if variant == "quick":
        c.densities, c.expected_mono, c.expected_features = (0.75, 0.35, 0.03), (5, 3, 0), (5, 6, 10)
        c.seeds, c.linear_seeds, c.steps, c.log_every, c.eval_batches = 32, 4, 2500, 250, 2
    return c
