"""Superposition makes models vulnerable (TMS, "Superposition and Adversarial Vulnerability").

Claim: the harm of the best L2 attack, over that to a model without superposition, rises more than threefold as features
grow sparser and follows the number of features per dimension; training under attack takes superposition away, and takes
attacks of 0.8 of the mean input norm to take all of it.
Command: python -m experiments.run --config=configs/toy/adversarial.py   (also :quick)
Expected: correlation above 0.95. Time: see REPRODUCTION.md.
The paper gives neither n, m nor the densities; of attacks on features it takes the most harmful one, here that of each
input. An attacked model is held against the input before the attack.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (fewer models and steps)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of adversarial: choose quick")
    c = ConfigDict()
    c.experiment = "toy.adversarial"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 100  # features, all of importance 1
    c.m = 10  # hidden dimensions
    c.densities = 24  # 1-S, log-spaced from 1 to ``sparsest``
    c.sparsest = 0.01
    c.attack = 0.1  # norm of an attack, over the mean norm of inputs
    c.ascent = 20  # steps of the attack by gradients
    c.trained_at = (0.2, 0.05)  # 1-S of models trained under attack
    c.strengths = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)  # their attacks, as ``attack``
    c.seeds = 3  # models per setting
    c.batch = 512  # columns per step
    c.steps = 4000
    c.log_every = 250  # steps per chunk
    c.block = 4  # members per vmapped block
    c.eval_batch = 4096  # held-out columns
    c.recipe = recipe(
        optimizer="adam",
        lr=3e-3,  # peak
        schedule="cosine",  # to zero
    )
    if variant == "quick":
        c.densities, c.strengths, c.seeds, c.batch, c.steps = 8, (0.0, 0.4, 0.8, 1.2), 1, 256, 1500
        c.eval_batch = 1024
    return c
