"""A transcoder across an MLP (Dunefsky et al. 2024), by a store with sites="('mlp_in.0', 'mlp_out.0')".

Command: python -m experiments.run --config=configs/lm/sae_transcoder.py --config.store=STORE   (also :quick)
Everything else as in sae.py.
"""

from ml_collections import ConfigDict

from configs.lm import sae


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (few steps, small)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of sae_transcoder: choose quick")
    c = sae.get_config(variant)
    c.reads, c.sites = "mlp_in.0", ("mlp_out.0",)
    c.kind.update({"center": False, "scale": "none", "centre": "zero"})  # what is read is not what is written
    return c
