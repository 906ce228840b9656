"""Mixed scripts: latents of an MLP that know Arabic or Hebrew, and no neuron that does (Bricken et al. 2023).

Claim: for Arabic and Hebrew the best latent's F1 is more than 0.2 above that of the best neuron of either sign, and its
precision rises with its activation.
Command: python -m experiments.run --config=configs/lm/scripts.py   (also :quick)
Expected: the paper's Arabic latent is 81 % precise when on and 98 % above activation 5. Time: REPRODUCTION.md.
The corpus is made up: words of each script's own syllables by Zipf's law, small grammars, hexadecimal, base64, DNA,
numbers and code between them, several scripts in each document. Arabic and Hebrew are rare, as they are on the web (in
the paper Arabic is 0.13 % of the tokens; where all ten scripts were alike, a tenth of the text each, neurons had room
for them and latents shared them: the claims failed in a full run). The vocabulary is small, so that most tokens are
bytes or short pieces that scripts share.
"""

from ml_collections import ConfigDict

from configs import corpus
from configs.lm import one_layer


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (few documents, short runs)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of scripts: choose quick")
    c = one_layer.get_config(variant)
    c.experiment = "lm.scripts"  # module under experiments/
    c.corpus = corpus(kind="scripts", documents=10_000)  # about 550 characters each
    c.corpus.rare, c.corpus.weight = ("Arabic", "Hebrew"), 0.1  # chosen a tenth as often as each of the others
    c.vocab = 400  # 256 bytes, 143 pieces, the end of text
    c.widths = (512, 4096)
    c.steps = 2000
    c.lm.steps = 3000
    if variant == "quick":
        c.corpus.documents = 500
        c.widths, c.steps, c.lm.steps = (256, 512), 300, 300
    return c
