"""The recipes of the papers, side by side on one world, at one L0."""

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, kinds
from experiments.ledger import Claim
from superpose import plot
from superpose.sae.model import Architecture
from superpose.train.fit import Sampler

LABELS = {
    "bricken2023": "Bricken\n2023", "april2024": "Anthropic\nApr 2024", "gao2024": "TopK\nGao 2024",
    "gated2024": "Gated\n2024", "jumprelu2024": "JumpReLU\n2024", "batchtopk2024": "BatchTopK\n2024",
    "matryoshka2025": "Matryoshka\n2025", "january2025": "Anthropic\nJan 2025",
}  # fmt: skip
RISING = "its penalty rises over the whole run, while the rate falls; that this is why was not measured"
PAPERS = "ours: no paper has this world"


def run(config, key, workdir):
    """``{recipe}_{score}`` [seeds] of every recipe, and of TopK SAEs with random directions, ``random``."""
    check.whole(config, "n", "d", "d_sae", "roots", "seeds", "batch", "steps", "log_every", "block")
    check.whole(config, "eval_batch", "eval_batches")
    check.positive(config, "true_l0", "l0")
    if unknown := set(config.resample) - set(config.kinds):
        raise ValueError(f"resample names {', '.join(sorted(unknown))}, which is no recipe of kinds")
    if bool(config.resample) != bool(config.resample_at) or max(config.resample_at, default=0) > config.steps:
        raise ValueError(f"resample needs resample_at, steps up to {config.steps}, got {tuple(config.resample_at)}")
    world_key, sample_key, train_key, eval_key = jax.random.split(key, 4)
    embedding = kinds.world(config, world_key)
    sample = np.asarray(embedding.sample(sample_key, 4096))
    made = kinds.at_l0(config, config.d, sample, block=config.block)
    arch = Architecture(config.d, config.d_sae, "topk", max(1, round(config.l0)))
    source = Sampler(lambda key: embedding.sample(key, config.batch), shared=True)
    trained = kinds.train(made, config, train_key, source, workdir / "fit", "papers' recipes")
    judge = kinds.judge(embedding, config.eval_batch, config.eval_batches, eval_key)
    out = kinds.scored(made, trained, judge)
    scores = []
    for s in range(config.seeds):
        W = np.asarray(jax.random.normal(jax.random.fold_in(sample_key, s), (config.d_sae, config.d)))
        W = W / np.linalg.norm(W, axis=1, keepdims=True)
        zeros = np.zeros(config.d_sae, np.float32)
        scores.append(judge(arch, {"W_enc": W.T, "b_enc": zeros, "W_dec": W, "b_dec": sample.mean(0)}))
    out |= {f"random_{s}": np.asarray([v[s] for v in scores]) for s in kinds.SCORES}
    return out | {"order": np.asarray(list(made))}


def draw(results, config):
    """F1, MCC, explained variance and L0: a bar a recipe, a dot a seed; a rule: random directions."""
    order = [k for k in LABELS if k in results["order"]]
    dead = max(float(results[f"{k}_dead"].max()) for k in order)
    panels = (("f1", "F1, mean over latents"), ("mcc", "MCC"), ("explained_variance", "explained variance"),
              ("l0", "$L_0$ on held-out samples; dashed: asked"))  # fmt: skip
    figure, axes = plt.subplots(2, 2, figsize=(12, 7), dpi=110, layout="constrained")
    for ax, (score, title) in zip(axes.flat, panels, strict=True):
        values = np.stack([results[f"{k}_{score}"] for k in order])
        plot.score_bars(ax, values, [LABELS[k] for k in order], title)
        if score == "l0":
            ax.axhline(config.l0, color="k", lw=0.8, ls="--")
            ax.set_ylim(0, 1.15 * max(config.l0, np.nanmax(values)))
        else:
            ax.axhline(results[f"random_{score}"].mean(), color="k", lw=0.8, ls=":")
            ax.set_ylim(0, 1)
    figure.suptitle(
        f"The papers' recipes on one world: {config.n} features in {config.d} dimensions, {config.d_sae} latents, "
        f"$L_0$ = {config.l0:g}, {config.seeds} seeds (dots)\ndotted: random directions; "
        f"latents that never fire: at most {dead:.1%}",
        fontsize=11,
    )
    return {"": figure}


def claims(results, config):
    """Each recipe reaches its L0, finds more than random directions do, and keeps its latents alive."""
    out = []
    for k in results["order"]:
        f1, dead = results[f"{k}_f1"], results[f"{k}_dead"]
        out += [
            Claim(f"{k}: L0 on held-out samples is the target's", "configs state it", [config.l0] * config.seeds,
                  results[f"{k}_l0"], 0.05 * config.l0, note=RISING if k == "january2025" else ""),
            Claim(f"{k}: F1 above that of random directions (smallest minus largest)", PAPERS, 0.2,
                  float(f1.min() - results["random_f1"].max()), 0.0, ">="),
            Claim(f"{k}: share of dead latents (largest)", PAPERS, 0.1, float(dead.max()), 0.0, "<="),
        ]  # fmt: skip
    return out
