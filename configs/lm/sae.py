"""SAEs on activations, exported, scored and spliced into the model: the second and third of three commands.

Command: python -m experiments.run --config=configs/lm/sae.py --config.store=STORE
Without a store, --config.model=FOLDER --config.corpus.path=TEXTS trains on the model's activations without a disk; with
one, the two splice the SAEs into the model: give texts that were not harvested. A folder of .npy or .safetensors
[rows, d] is a store too. sae_mlp.py, sae_transcoder.py and sae_crosscoder.py are the same for other sites.
"""

from ml_collections import ConfigDict

from configs import corpus, kind, recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (few steps, small)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of sae: choose quick")
    c = ConfigDict()
    c.experiment = "lm.sae"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key and of the order of the rows
    c.store = ""  # what harvest wrote, or a folder of .npy or .safetensors [rows, d]; "" is straight from the model
    c.skip_damaged = False  # whether damaged, missing or unfinished parts of it are passed over
    c.sites = ("resid_post.0",)  # what is reconstructed
    c.reads = ""  # what is encoded, if another site: a transcoder
    c.model = ""  # to splice the SAEs into: the model that was harvested
    c.corpus = corpus(kind="files")  # texts to splice them in; without a store also those that are trained on
    c.context, c.bos, c.leave_special, c.first, c.outlier = 0, True, True, 0, 0.0  # without a store: as of harvest.py
    c.tokens, c.passes = 0, 32  # the same
    c.generation = 512  # without a store: contexts that are mixed
    c.judged = 512  # contexts of those texts
    c.window = 64  # blocks that are mixed
    c.batch = 2048  # rows per step
    c.steps = 5000
    c.log_every = 250
    c.held = 16  # batches that are scored, at most; of the last 20th of the store, which is not trained on
    c.seeds = 1
    c.kind = kind(
        activation="batch_topk",
        k=64,  # the largest; each member has one of sweep.k
        sweep={"k": (16, 32, 64)},
        d_sae=4096,
        centre="geometric_median",
        scale="sqrt_d",
        revival="auxk",
        dead_tokens=500_000,
        recipe=recipe(lr=1e-3, warmup=100, schedule="linear", decay_from=0.8, clip_norm=1.0),
    )
    if variant == "quick":
        c.steps, c.log_every, c.batch, c.window = 200, 50, 512, 16
        c.kind.d_sae, c.kind.k, c.kind.recipe.warmup = 256, 16, 10
        c.kind.sweep.k = (8, 16)
    return c
