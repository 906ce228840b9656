"""Steering: latents of an SAE moved inside its model; what was predicted, what happened, and what is written then.

Command: python -m experiments.run --config=configs/lm/steer.py --config.model=MODEL --config.sae=SAE
--config.features="(17,)" --config.prompts="('def ',)" --config.corpus.kind=files --config.corpus.path=TEXTS
Model and SAE may be downloaded ones (docs/language_models.md) or those that one_layer.py and scripts.py leave in their
work directories (model/, export/). Writes a table (.csv), what was written side by side (_written.csv) and a figure.
"""

from ml_collections import ConfigDict

from configs import corpus


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (few texts, short samples)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of steer: choose quick")
    c = ConfigDict()
    c.experiment = "lm.steer"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.model = ""  # folder or file
    c.sae = ""  # of one of its sites, in any format that superpose.sae.formats reads
    c.site, c.reads = "", ""  # what it writes and reads; "" is what its file says
    c.features = (0,)  # latents, all moved together
    c.rule = "clamp"  # a row of interp.steer.RULES
    c.strengths = (
        -2.0,
        -1.0,
        -0.5,
        0.0,
        0.5,
        1.0,
        2.0,
        4.0,
    )  # in units of each latent's largest activation; of rule scale, factors
    c.where = "all"  # "prompt", "generated": tokens that are steered while writing
    c.keep_error = True  # what the SAE does not explain stays
    c.corpus = corpus(kind="files")  # texts for largest activations and effects
    c.context, c.bos, c.judged = 0, True, 256  # tokens a context (0: 128, or what the model takes); contexts taken
    c.passes = 16  # contexts a pass
    c.wanted = 5  # tokens that the latents vote for most, whose log-probability is followed
    c.prompts = ("",)  # "" is the beginning of a text
    c.samples = 4  # of each prompt and strength
    c.tokens = 40  # written in each
    c.temperature = 0.7
    c.counts = ""  # a regular expression: its share of the tokens written is followed
    if variant == "quick":
        c.judged, c.samples, c.tokens, c.strengths = 16, 2, 12, (-1.0, 0.0, 1.0, 4.0)
    return c
