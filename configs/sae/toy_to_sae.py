"""From the toy model to the SAE: the features in superposition, taken out of five neurons again.

Claim: an SAE on the hidden activations of the models of superposition_demo finds the features that they represent
(||W_i|| > 0.5) at every sparse density, as if the network were a projection of a larger one without superposition (TMS,
"Superposition as a way to simulate larger sparse networks"); those that they do not represent stay absent.
Command: python -m experiments.run --config=configs/sae/toy_to_sae.py   (also :quick)
Expected: a decoder row at cosine > 0.9 to W_i and F1 > 0.8 for at least 9 in 10 represented features at 1-S <= 0.1
(the directions are found there, F1 does not keep up everywhere: REPRODUCTION.md).
Time: REPRODUCTION.md.
"""

from ml_collections import ConfigDict

from configs import kind, recipe
from configs.toy import superposition_demo


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (two densities, small)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of toy_to_sae: choose quick")
    c = ConfigDict()
    c.experiment = "sae.toy_to_sae"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.toy = superposition_demo.get_config()  # the toy models; the best seed of each density is taken
    c.toy.seeds = 8
    c.seeds = 4  # SAEs per density; the one with the lowest error is drawn
    c.batch = 512  # samples per step, of those with at least one feature active
    c.steps = 6000
    c.log_every = 500
    c.kind = kind(
        activation="batch_topk",  # its k is the mean number of represented features that are active, per density
        d_sae=20,  # as many as there are features
        revival="auxk",
        auxk_k=5,
        dead_tokens=50_000,
        recipe=recipe(lr=3e-3, schedule="linear", decay_from=0.5),
    )
    c.eval_batch, c.eval_batches = 8192, 8  # held-out samples
    if variant == "quick":
        c.toy = superposition_demo.get_config("quick")
        c.toy.densities, c.toy.seeds = (0.1, 0.03), 4
        c.seeds, c.steps = 2, 2000
    return c
