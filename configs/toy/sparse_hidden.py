"""A penalty on hidden activations removes superposition (TMS, "The Strategic Picture of Superposition").

Claim: adding lambda times the mean of ||h||_1 to the loss leads to solutions without superposition, at the price of a
higher loss: with more weight, features that shared neurons are given up.
Command: python -m experiments.run --config=configs/toy/sparse_hidden.py   (also :quick)
Expected: no represented feature shares a neuron at the largest weight. Time: see REPRODUCTION.md.
The figure's other axis is ||max(W, 0)||_F^2 / m, not ||W||_F^2 / m: weights below 0 keep a ReLU neuron off and may be
as long as they like (both stand in the claims). The paper shows no figure of it and gives no weight; the model is that
of "Superposition in a Privileged Basis".
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (three weights, fewer seeds)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of sparse_hidden: choose quick")
    c = ConfigDict()
    c.experiment = "toy.sparse_hidden"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 20  # features
    c.m = 10  # hidden neurons
    c.decay = 0.9  # importance of feature i is decay^i
    c.density = 0.05  # 1-S
    c.weights = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # lambda, of the mean of ||h||_1
    c.seeds = 32  # models per weight
    c.batch = 256  # columns per step
    c.steps = 3000
    c.log_every = 250  # steps per chunk
    c.eval_batch = 4096  # held-out columns per batch
    c.eval_batches = 8
    c.recipe = recipe(
        optimizer="adam",
        lr=1e-2,  # peak
        schedule="cosine",  # to zero
    )
    if variant == "quick":
        c.weights, c.seeds, c.steps, c.eval_batches = (0.0, 0.05, 0.3), 4, 1000, 2
    return c
