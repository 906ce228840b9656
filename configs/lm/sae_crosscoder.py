"""A crosscoder over layers (Lindsey et al. 2024), by a store with sites="('resid_post.0', 'resid_post.1')".

Command: python -m experiments.run --config=configs/lm/sae_crosscoder.py --config.store=STORE   (also :quick)
Everything else as in sae.py.
"""

from ml_collections import ConfigDict

from configs.lm import sae


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (few steps, small)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of sae_crosscoder: choose quick")
    c = sae.get_config(variant)
    c.sites = ("resid_post.0", "resid_post.1")
    c.kind.decoder = "free"  # a latent's norm differs from layer to layer
    return c
