"""Are features cleaner than neurons? Labels held against latents, neurons, principal components, random directions.

Claim: for most labels the best latent says better than the best neuron that a token carries them.
Command: python -m experiments.run --config=configs/lm/monosemantic.py   (also :scripts and :quick)
Reads the model that one_layer.py (:scripts: scripts.py) left in its work directory; :quick trains its own. Time:
REPRODUCTION.md.
"""

from ml_collections import ConfigDict

from configs.lm import one_layer, scripts


def subject(variant: str, name: str) -> ConfigDict:
    """What the four questions are asked of: the model of another experiment, and SAEs of several seeds.

    Variants: "full" (one layer on Python source), "scripts" (mixed scripts), "quick" (a small model of its own).
    """
    c = scripts.get_config() if variant == "scripts" else one_layer.get_config(variant)
    c.experiment, c.variant = f"lm.{name}", variant
    c.base = {"scripts": "runs/scripts", "quick": ""}.get(variant, "runs/one_layer")  # whose model; "" trains one here
    c.saes = {"scripts": "runs/monosemantic_scripts", "quick": ""}.get(variant, "runs/monosemantic")  # "" trains them
    c.seeds = 3  # SAEs
    c.kind.d_sae = 1024  # twice the neurons
    del c.widths
    if variant == "quick":
        c.seeds, c.kind.d_sae = 2, 256
    return c


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "scripts", "quick" (see ``subject``)."""
    variant = variant or "full"
    if variant not in ("full", "scripts", "quick"):
        raise ValueError(f"unknown variant {variant!r} of monosemantic: choose scripts or quick")
    c = subject(variant, "monosemantic")
    c.saes = ""  # those made here are the ones that the other questions are asked of
    c.ks = (1, 2, 5)  # units that a probe reads
    return c
