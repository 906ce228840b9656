"""Feature absorption (Chanin et al. 2024, arXiv 2409.14507): a child's latent takes over its parent's direction.

Claim: where feature 1 is active only together with feature 0, an L1 SAE with a latent for each feature learns
f0 + f1 as one direction and silences the parent's latent there; where they are independent it does not.
Command: python -m experiments.run --config=configs/sae/absorption.py   (also :quick)
Expected: child's decoder at cos 0.71 to both; the parent's latent never fires with the child. Time: REPRODUCTION.md.
Sizes are those of the authors' toy (50 dimensions, 4 orthogonal features, 4 latents, P = 0.25 and 0.05); the recipe is
ours, on fewer samples.
"""

from ml_collections import ConfigDict

from configs import kind, recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (fewer steps and seeds)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of absorption: choose quick")
    c = ConfigDict()
    c.experiment = "sae.absorption"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.d = 50  # dimensions
    c.n = 4  # features, orthogonal: parent, child, others
    c.parent, c.child, c.other = 0.25, 0.2, 0.05  # P(parent), P(child | parent), P(others)
    c.noise = 0.15  # standard deviation of the values in the world whose magnitudes vary
    c.seeds = 8  # SAEs per world
    c.batch = 512  # samples per step
    c.steps = 6000
    c.log_every = 500  # steps per chunk
    c.kind = kind(
        activation="relu",
        d_sae=4,
        penalty="l1",
        coefficient=0.02,
        warmup=1000,
        decoder="free",  # penalties are weighted by the decoder's norms
        start_norm=0.1,
        recipe=recipe(lr=3e-3, schedule="linear", decay_from=0.8),
    )
    c.eval_batch, c.eval_batches = 8192, 16  # held-out samples
    if variant == "quick":
        c.seeds, c.steps = 3, 3000
    return c
