"""SAEs of an MLP's activations, by the store that harvest.py wrote with sites="('mlp_post.0',)".

Command: python -m experiments.run --config=configs/lm/sae_mlp.py --config.store=STORE   (also :quick)
Everything else as in sae.py.
"""

from ml_collections import ConfigDict

from configs.lm import sae


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (few steps, small)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of sae_mlp: choose quick")
    c = sae.get_config(variant)
    c.sites = ("mlp_post.0",)
    return c
