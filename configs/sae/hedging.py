"""Feature hedging (Chanin, Dulka and Garriga-Alonso 2025, arXiv 2505.11756): a narrow SAE mixes correlated features.

Claim: a one-latent L1 SAE keeps feature 0 pure where a second feature is independent (b_dec takes the mean of that
one), and mixes part of the child into it where the second feature is a child. With two latents the same hierarchical
data give absorption instead, and independent features no mixture at all (the control).
Command: python -m experiments.run --config=configs/sae/hedging.py   (also :quick)
Expected: one latent on a child and its parent: cosines 0.970 and 0.244, the exact optimum. Time: REPRODUCTION.md.
Sizes and probabilities are the authors' (50 dimensions, 2 orthogonal features, P = 0.25 and 0.2), and so is the start
near the truth: from random directions about half of these narrow SAEs die. They train on 100M samples with an L1 of
1e-3; here it is 0.02, on fewer samples, and the exact optimum is that of this value.
"""

from ml_collections import ConfigDict

from configs import kind, recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (fewer steps and seeds)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of hedging: choose quick")
    c = ConfigDict()
    c.experiment = "sae.hedging"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.d = 50  # dimensions; 2 features, orthogonal
    c.parent = 0.25  # P(feature 0)
    c.child = 0.2  # P(feature 1 | feature 0) where it is a child, P(feature 1) where it is independent
    c.start_noise = 0.25  # per dimension, on the true directions at which the rows start
    c.seeds = 8  # SAEs per case
    c.batch = 512  # samples per step
    c.steps = 3000
    c.log_every = 500  # steps per chunk
    c.kind = kind(  # d_sae is the experiment's own: one latent, and one for each feature
        activation="relu",
        penalty="l1",
        coefficient=0.02,
        decoder="free",  # penalties are weighted by the decoder's norms
        start_norm=1.0,
        recipe=recipe(lr=3e-3, schedule="linear", decay_from=0.5),
    )
    if variant == "quick":
        c.seeds, c.steps = 3, 1500
    return c
