"""A four-layer transformer of the Llama kind, trained on any corpus: its losses, and what it writes.

Claim: it does better than token frequencies on held-out text, and better at the end of a context than near its start.
Command: python -m experiments.run --config=configs/lm/small.py   (also :quick)
Another corpus: --config.corpus.kind=files --config.corpus.path=TEXTS, or kind=dataset and path=NAME. The model and its
tokenizer stay in the work directory (model/), where harvest.py and sae.py read them. Time: REPRODUCTION.md.
"""

from ml_collections import ConfigDict

from configs import corpus, model, recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (few modules, few steps)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of small: choose quick")
    c = ConfigDict()
    c.experiment = "lm.small"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key, and of the order of the texts
    c.corpus = corpus(kind="python source")
    c.vocab = 2048  # byte-level tokens, trained on the corpus
    c.context = 256  # tokens, the first is <|endoftext|>
    c.hold = 8  # every 8th document is held out
    c.model = model(d_model=128, layers=4, heads=4, d_head=32, d_mlp=352)
    c.lm = ConfigDict()
    c.lm.batch = 16  # contexts per step
    c.lm.steps = 1500
    c.lm.log_every = 100
    c.lm.recipe = recipe(optimizer="adamw", lr=3e-3, warmup=200, schedule="cosine", clip_norm=1.0, weight_decay=0.01)
    c.judged = 1600  # held-out contexts for the loss by position
    c.written = 4  # samples
    c.temperature = 0.7
    if variant == "quick":
        c.corpus = corpus(kind="python source", modules=("argparse", "json", "tokenize", "inspect", "email", "logging"))
        c.vocab, c.hold, c.context, c.judged = 600, 4, 64, 400
        c.lm.steps, c.lm.log_every = 300, 50
    return c
