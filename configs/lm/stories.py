"""SAEs on every layer of stories260K (llama2.c's smallest model, trained on TinyStories), in one pass.

Claim: on every layer an SAE with 16 active latents costs the model less than 16 principal components or the 16 largest
values, and keeps at least 0.9 of what mean ablation costs.
Command: python -m experiments.run --config=configs/lm/stories.py   (also :quick), with stories260K.bin and tok512.bin
in this folder, or --config.model=PATH. Its corpus is what the model writes. Time: REPRODUCTION.md.
"""

from ml_collections import ConfigDict

from configs import kind, recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (few stories, few steps)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of stories: choose quick")
    c = ConfigDict()
    c.experiment = "lm.stories"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.model = "stories260K.bin"  # the tokenizer tok512.bin beside it
    c.stories = 6000  # written by the model, temperature 1
    c.at_once = 500
    c.context = 256  # tokens of a story, at most
    c.hold = 8  # every 8th story is held out
    c.judged = 400  # of them, for fidelity
    c.passes = 16  # contexts per pass
    c.generation = 512  # stories that are mixed
    c.batch = 2048  # tokens per step
    c.steps = 3000
    c.log_every = 200
    c.kind = kind(
        activation="batch_topk",
        k=16,
        d_sae=512,
        centre="geometric_median",
        scale="sqrt_d",
        revival="auxk",
        dead_tokens=200_000,
        recipe=recipe(lr=2e-3, warmup=100, schedule="linear", decay_from=0.7, clip_norm=1.0),
    )
    if variant == "quick":
        c.stories, c.at_once, c.context, c.steps, c.log_every, c.generation = 120, 60, 96, 100, 50, 60
        c.kind.d_sae, c.batch, c.kind.recipe.warmup = 128, 512, 10
    return c
