"""Are the same features found again? In another seed, another kind of SAE, another model.

Claim: features of two models are more alike than their neurons (the paper's medians: 0.72 and 0.46).
Command: python -m experiments.run --config=configs/lm/universality.py   (also :scripts and :quick)
Model A is that of one_layer.py (:scripts: scripts.py); model B is trained here, from another seed. Time:
REPRODUCTION.md.
"""

from ml_collections import ConfigDict

from configs import kind, recipe
from configs.lm import monosemantic


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "scripts", "quick" (see ``monosemantic.subject``)."""
    variant = variant or "full"
    if variant not in ("full", "scripts", "quick"):
        raise ValueError(f"unknown variant {variant!r} of universality: choose scripts or quick")
    c = monosemantic.subject(variant, "universality")
    c.seeds = 2 if variant == "quick" else 3  # SAEs of each model
    c.other = kind(
        activation="relu",
        penalty="l1",
        coefficient=0.01,
        control=True,
        target_l0=16.0,
        d_sae=c.kind.d_sae,
        centre="geometric_median",
        scale="sqrt_d",
        recipe=recipe(lr=1e-3, warmup=100, schedule="linear", decay_from=0.7, clip_norm=1.0),
    )
    return c
