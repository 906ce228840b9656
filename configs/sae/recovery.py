"""Taking features out of superposition (Sharkey, Braun & Millidge, Dec 2022): MMCS over L1 coefficient and size.

Claim: an autoencoder with an L1 penalty recovers the directions that made its data (MMCS above 0.9) in a band of
coefficients, once it has a latent for each feature; dictionaries of two sizes agree best near where they recover the
truth best, so that the band is found without knowing the truth; too strong a penalty leaves latents dead.
Command: python -m experiments.run --config=configs/sae/recovery.py   (also :quick)
Expected: MMCS above 0.99 for K >= G, and for K = G/2 below sqrt((1 + largest overlap) / 2) < 0.9; two sizes agree best
within two steps of the best coefficient (one was claimed). Time: REPRODUCTION.md.
Scaled: the authors have d = 256 and G = 512; here both are a quarter of that, active and decay are theirs. Their loss
divides L1 by K, which Sharkey later regretted in a comment on the post; ours is |x - x_hat|^2 + coefficient |f|_1, sums
over dimensions and latents. As theirs, the decoder has no bias (it is frozen at 0). They start from an orthogonal
decoder; we start from random unit rows, the encoder their transpose, with a learning rate (5e-3) of our own.
"""

from ml_collections import ConfigDict

from configs import kind, recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (fewer sizes, steps and seeds)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of recovery: choose quick")
    c = ConfigDict()
    c.experiment = "sae.recovery"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.d = 64  # dimensions
    c.G = 128  # features, random unit directions
    c.active = 5.0  # features active on average, before silent samples are drawn again
    c.decay = 0.99  # density of feature i ~ decay^i
    c.correlation_seed = 0  # of the random correlation matrix
    c.ratios = (0.5, 1.0, 2.0, 4.0, 8.0)  # K / G, ascending
    c.seeds = 2  # SAEs for each size and coefficient
    c.batch = 128  # samples per step
    c.steps = 3000
    c.log_every = 300  # steps per chunk; the loss is that of the last chunk
    c.kind = kind(
        activation="relu",
        penalty="l1",
        decoder="unit",
        sweep={"coefficient": (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)},  # ascending
        recipe=recipe(lr=5e-3, schedule="linear", decay_from=0.5, groups=({"pattern": "b_dec", "lr_scale": 0.0},)),
    )
    c.eval_batch, c.eval_batches = 256, 10  # held-out samples; dead is who never fires in them (10 batches: HoagyC)
    if variant == "quick":
        c.ratios, c.seeds, c.steps, c.log_every = (0.5, 1.0), 1, 1000, 100
    return c
