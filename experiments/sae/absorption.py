"""Feature absorption: a child's latent takes over its parent's direction.

Chanin et al. 2024 (arXiv 2409.14507): decoder and encoder against the true directions, in a world where a child implies
its parent, in the same one with varying magnitudes, and in one where all features are independent (the control).
"""

import dataclasses
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, kinds
from experiments.ledger import Claim
from superpose import plot
from superpose.sae import recovery
from superpose.sae.model import SAE
from superpose.train.fit import Sampler
from superpose.worlds import structured

PAPER = "Chanin et al. 2024"
PARTIAL = (
    "the parent's latent keeps firing with the child; a gap counts only where it is silent, so it hardly shows what "
    "the decoder shows; its size there was not measured"
)
TITLES = {
    "nested": "child only with its parent",
    "noisy": "the same, magnitudes vary",
    "independent": "independent (control)",
}


def run(config, key, workdir):
    """Per world: cosines of decoder and encoder with the truth [seeds, latents, n], and when the parent's latent fires.

    Latents are in the order of the features that they are matched with.
    """
    check.whole(config, "d", "n", "seeds", "batch", "steps", "log_every", "eval_batch", "eval_batches")
    check.positive(config, "parent", "child", "other", "noise")
    if config.kind.d_sae != config.n:
        raise ValueError(f"this figure has a latent for each feature: set kind.d_sae to n={config.n}")
    train_key, eval_key, direction_key = jax.random.split(key, 3)
    directions = structured.orthonormal(direction_key, config.n, config.d)
    rates = (config.parent, config.child, config.other)
    worlds = {
        "nested": structured.parent_child(config.n, *rates),
        "noisy": structured.parent_child(config.n, *rates, noise=config.noise),
        "independent": structured.hedging(
            config.parent, (config.parent * config.child, *[config.other] * (config.n - 2)), nested=False
        ),
    }
    embeddings = {name: world.embed(directions) for name, world in worlds.items()}
    made = {}
    for name, e in embeddings.items():
        k = kinds.kind(config.kind, config.d, config.steps, config.seeds, np.asarray(e.sample(eval_key, 1024)))
        source = Sampler(lambda key, hyper, e=e: e.sample(key, config.batch))
        made[name] = k._replace(population=dataclasses.replace(k.population, source=source))
    trained = kinds.train(made, config, train_key, None, workdir / "fit", "absorption")
    out: dict[str, Any] = {}
    for name, kind in made.items():
        rows = []
        for arch, params in kinds.plain(kind, trained[name]):
            decoder = np.asarray(recovery.cosines(params["W_dec"], directions))
            encoder = np.asarray(recovery.cosines(params["W_enc"].T, directions))
            pairs = recovery.matching(decoder)
            order = pairs.latents[np.argsort(pairs.features)]
            total: Any = None
            for b in range(config.eval_batches):
                x, features = embeddings[name].both(jax.random.fold_in(eval_key, b), config.eval_batch)
                acts = SAE(arch, params).encode(x)
                edge = ([0], [1], [int(order[0])])
                total = recovery.add(total, recovery.edges(acts, features, *map(np.asarray, edge)))
            fires = [total.alone_on[0] / max(total.alone[0], 1), total.both_on[0] / max(total.both[0], 1)]
            rows.append((decoder[order], encoder[order], fires, recovery.absorption_gap(total)[0]))
        error = np.where(trained[name].frozen_at >= 0, np.inf, trained[name].history["loss"][-1])
        check.some_sound(error[None], "world", [0])
        out |= {
            f"{name}_{what}": np.asarray([r[i] for r in rows])
            for i, what in enumerate(("decoder", "encoder", "fires", "gap"))
        } | {f"{name}_loss": error, f"{name}_best": error.argmin()}
    return out


def draw(results, config):
    """One row a world: decoder and encoder cosines of its best seed, and how often the parent's latent fires."""
    figure, axes = plt.subplots(3, 3, figsize=(9.6, 8.6), dpi=110, width_ratios=[1, 1, 1.1], layout="constrained")
    names = ["parent", "child"] + [f"other {i}" for i in range(1, config.n - 1)]
    for row, (name, title) in zip(axes, TITLES.items(), strict=True):
        best = results[f"{name}_best"]
        for ax, side in zip(row[:2], ("decoder", "encoder"), strict=True):
            plot.cosine_map(ax, np.round(results[f"{name}_{side}"][best], 2) + 0.0, write=True)
            ax.set(xticks=np.arange(config.n), yticks=np.arange(config.n))
            ax.set_xticklabels(names, fontsize=8)
            ax.set_yticklabels([f"latent {i}" for i in range(config.n)], fontsize=8)
            ax.set_title(
                f"{title}\n{side} rows and true features" if side == "decoder" else f"\n{side} rows", fontsize=9
            )
        ax = row[2]
        fires = results[f"{name}_fires"]
        ax.bar([0, 1], fires[best], width=0.6, color=["#3f6fb5", "#e6745f"])
        plot.dots(ax, np.repeat([0.0, 1.0], len(fires)), fires.T.reshape(-1))
        ax.set(xticks=[0, 1], xlim=(-0.6, 1.6), ylim=(0, 1.05), facecolor=plot.GROUND)
        ax.set_xticklabels(["parent alone", "parent and child"], fontsize=8)
        ax.set_title("\nP(the parent's latent fires); dots: all seeds", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Feature absorption: {config.n} orthogonal features in {config.d} dimensions, {config.n} latents, L1",
        fontsize=12,
    )
    return {"": figure}


def claims(results, config):
    """The child's decoder, the parent's encoder, the silence of the parent's latent; and none of it in the control."""
    best = {name: results[f"{name}_best"] for name in TITLES}
    decoder, encoder = ({n: results[f"{n}_{side}"][best[n]] for n in TITLES} for side in ("decoder", "encoder"))
    gap = {name: results[f"{name}_gap"] for name in TITLES}
    half = float(np.sqrt(0.5))
    off = np.abs(results["independent_decoder"] - np.eye(config.n)).max((1, 2))
    return [
        Claim("nested: the child's decoder row has the same cosine to parent and child",
              f"{PAPER}; derived: f0 + f1", [half, half], decoder["nested"][1, :2], 0.05),
        Claim("nested: the parent's decoder row is the parent's direction (cosine)", PAPER, 1.0,
              float(decoder["nested"][0, 0]), 0.05),
        Claim("nested: the parent's encoder row points against the child (cosine)", PAPER + "; bound ours", -0.2,
              float(encoder["nested"][0, 1]), 0.0, "<="),
        Claim("nested: the parent's latent never fires with the child (largest share of the samples with both, all "
              "seeds)", PAPER, 0.0, float(results["nested_fires"][:, 1].max()), 0.01,
              note=f"of those with the parent alone at least {results['nested_fires'][:, 0].min():.2f}"),
        Claim("magnitudes vary: absorption is partial (cosine of the child's decoder row to the parent, all seeds)",
              PAPER + ", toy models: partial; bounds ours", [0.2, 0.65], results["noisy_decoder"][:, 1, 0], 0.0, "in",
              note="stated after the first quick run"),
        Claim("magnitudes vary: the parent's latent fires with the child less often than alone (smallest gap)",
              PAPER + ", toy models; bound ours", 0.02, float(gap["noisy"].min()), 0.0, ">=",
              note="stated after the first quick run"),
        Claim("magnitudes vary: absorption is partial (gap of the best seed)", PAPER + ", toy models; bounds ours",
              [0.05, 0.98], float(gap["noisy"][best["noisy"]]), 0.0, "in", note=PARTIAL),
        Claim("independent: every latent is one feature (largest deviation of the cosines from 1 and 0, all seeds)",
              f"{PAPER} (negative control)", 0.0, float(off.max()), 0.1, "<="),
        Claim("independent: no gap (largest, all seeds)", f"{PAPER} (negative control)", 0.0,
              float(np.abs(gap["independent"]).max()), 0.05, "<="),
    ]  # fmt: skip
