"""Mixed scripts: latents of an MLP that know Arabic or Hebrew, and no neuron that does (Bricken et al. 2023).

Claim: for Arabic and Hebrew the best latent's F1 is more than 0.2 above that of the best neuron of either sign, and its
precision rises with its activation.
Command: python -m experiments.run --config=configs/lm/scripts.py   (also :rare and :quick)
Expected: the paper's Arabic latent is 81 % precise when on and 98 % above activation 5. Time: REPRODUCTION.md.
The corpus is made up: words of each script's own syllables by Zipf's law, small grammars, hexadecimal, base64, DNA,
numbers and code between them, several scripts in each document. The vocabulary is small, so that most tokens are bytes
or short pieces that scripts share. All ten scripts are alike, a tenth of the text each; in the paper Arabic is 0.13 %
of the tokens, and :rare, added after the full run had failed, chooses Arabic and Hebrew a tenth as often as the others.
"""

from ml_collections import ConfigDict

from configs import corpus
from configs.lm import one_layer


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "rare" (Arabic and Hebrew are), "quick" (few documents, short runs)."""
    variant = variant or "full"
    if variant not in ("full", "rare", "quick"):
        raise ValueError(f"unknown variant {variant!r} of scripts: choose rare or quick")
    c = one_layer.get_config("quick" if variant == "quick" else "full")
    c.variant = variant
    c.experiment = "lm.scripts"  # module under experiments/
    c.corpus = corpus(kind="scripts", documents=10_000, digest="5ed1f63ba894372f")  # about 550 characters each
    c.vocab = 400  # 256 bytes, 143 pieces, the end of text
    c.widths = (512, 4096)
    c.steps = 2000
    c.lm.steps = 3000
    if variant == "rare":
        c.corpus.rare, c.corpus.weight, c.corpus.digest = ("Arabic", "Hebrew"), 0.1, "bdc8de81842debdc"
        c.judged = 5600  # nearly all that are held out: few of their documents hold these scripts
    if variant == "quick":
        c.corpus = corpus(kind="scripts", documents=500)
        c.widths, c.steps, c.lm.steps = (256, 512), 300, 300
    return c
