"""Activations of a downloaded model over a corpus, to a store on disk: the first of three commands.

Command: python -m experiments.run --config=configs/lm/harvest.py --config.model=FOLDER --config.corpus.path=TEXTS
(also :quick, which takes the Python source of the machine as its text)
``--config.plan=True`` says bytes and time and stops. A harvest that was stopped goes on where it was; more texts are
appended by a larger ``tokens``.
"""

from ml_collections import ConfigDict

from configs import corpus


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (a little Python source)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of harvest: choose quick")
    c = ConfigDict()
    c.experiment = "lm.harvest"  # module under experiments/
    c.variant = variant
    c.seed = 0
    c.model = ""  # Hugging Face folder, llama2.c file, or a folder of ours
    c.corpus = corpus(kind="files")  # corpus.path: a text file or a folder of them
    c.sites = ("resid_post.0",)  # names of lm.sites, or TransformerLens'
    c.context = 0  # tokens; 0 is 128, or what the model takes
    c.bos = True  # whether each context starts with the tokenizer's BOS
    c.leave_special = True  # BOS and end of text are not kept
    c.first = 0  # so many tokens at the start of each context are not kept
    c.outlier = 0.0  # tokens of so many times the median norm are not kept; 0 keeps all
    c.tokens = 0  # stop after so many tokens of text; 0 takes all
    c.store = ""  # folder or address; "" is store/ in the work directory
    c.dtype = "bfloat16"
    c.passes = 32  # contexts per pass
    c.shard = 1024  # contexts per file
    c.block = 1024  # rows per checksum
    c.plan = False  # only say what it would take
    if variant == "quick":
        c.corpus = corpus(kind="python source", modules=("argparse", "json", "tokenize", "inspect"))
        c.tokens = 60_000
    return c
