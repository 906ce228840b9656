"""What happens to features when an SAE gets eight times as wide?

Claim: features split into several, some have more than one parent, and nested labels are absorbed more.
Command: python -m experiments.run --config=configs/lm/splitting.py   (also :scripts and :quick)
The model is that of one_layer.py (:scripts: scripts.py). Time: REPRODUCTION.md.
"""

from ml_collections import ConfigDict

from configs.lm import monosemantic


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "scripts", "quick" (see ``monosemantic.subject``)."""
    variant = variant or "full"
    if variant not in ("full", "scripts", "quick"):
        raise ValueError(f"unknown variant {variant!r} of splitting: choose scripts or quick")
    c = monosemantic.subject(variant, "splitting")
    c.saes = ""  # all are made here, for they are of other widths
    c.seeds, c.width, c.times = 3, 512, 8  # latents of the small SAE; how many times as many the large one has
    if variant == "quick":
        c.seeds, c.width, c.times = 2, 64, 4
    return c
