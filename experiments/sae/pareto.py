"""Every activation on one world: sparsity against reconstruction and against the truth, with baselines."""

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, kinds
from experiments.ledger import Claim
from experiments.sae.synth_benchmark import NAMES
from superpose import plot
from superpose.sae.model import Architecture
from superpose.train.fit import Sampler

SOURCES = {
    "gated": "Rajamanoharan et al. 2024, arXiv 2404.16014",
    "jumprelu": "Rajamanoharan et al. 2024, arXiv 2407.14435",
    "batch_topk": "Bussmann et al. 2024, arXiv 2412.06410",
    "topk": "Gao et al. 2024, arXiv 2406.04093",
}
BASELINES = {"truth": "true directions, TopK", "random": "random directions, TopK", "pca": "PCA"}


def _baselines(embedding, config, sample, key):
    """name -> for each L0, SAEs that nobody trained: directions as encoder and decoder, principal components."""
    mean = sample.mean(0)
    frequent = np.argsort(-np.asarray(embedding.active))[: config.d_sae]
    components = np.linalg.svd(sample - mean, full_matrices=False)[2]
    unit = lambda W: np.asarray(W, np.float32) / np.linalg.norm(W, axis=1, keepdims=True)  # noqa: E731
    random = [
        unit(jax.random.normal(jax.random.fold_in(key, s), (config.d_sae, config.d))) for s in range(config.seeds)
    ]

    def tied(W, k, centre=mean, activation="topk"):
        W = unit(W)
        zeros = np.zeros(len(W), np.float32)
        params = {"W_enc": W.T, "b_enc": zeros, "W_dec": W, "b_dec": np.asarray(centre, np.float32)}
        return Architecture(config.d, len(W), activation, k), params

    return {
        "truth": [[tied(np.asarray(embedding.directions)[frequent], k, embedding.bias)] for k in config.l0],
        "random": [[tied(W, k) for W in random] for k in config.l0],
        "pca": [[tied(components[:k], k, activation="abs_topk")] for k in config.l0],
    }


def run(config, key, workdir):
    """``{kind}_{score}`` [sparsities, seeds] of every kind and baseline."""
    check.whole(config, "n", "d", "d_sae", "roots", "l0", "seeds", "batch", "steps", "log_every", "block")
    check.whole(config, "eval_batch", "eval_batches")
    check.positive(config, "true_l0")
    if max(config.l0) > min(config.d, config.d_sae):
        raise ValueError(f"l0 must not exceed d={config.d} and d_sae={config.d_sae}, got {tuple(config.l0)}")
    world_key, sample_key, train_key, eval_key = jax.random.split(key, 4)
    embedding = kinds.world(config, world_key)
    sample = np.asarray(embedding.sample(sample_key, 2**14))
    made = {
        name: kinds.kind(c, config.d, config.steps, config.seeds, sample, block=config.block, d_sae=config.d_sae)
        for name, c in config.kinds.items()
    }
    for name, c in config.kinds.items():
        if [list(map(float, v)) for v in c.sweep.values()] != [list(map(float, config.l0))]:
            raise ValueError(f"kinds.{name}.sweep must hold one list, the same as l0={tuple(config.l0)}: change both")
    source = Sampler(lambda key: embedding.sample(key, config.batch), shared=True)
    trained = kinds.train(made, config, train_key, source, workdir / "fit", "all activations")
    judge = kinds.judge(embedding, config.eval_batch, config.eval_batches, eval_key)
    out = kinds.scored(made, trained, judge)
    for name, table in _baselines(embedding, config, sample, sample_key).items():
        scores = [[judge(*model) for model in row] for row in table]
        out |= {f"{name}_{s}": np.asarray([[v[s] for v in row] for row in scores]) for s in kinds.SCORES}
    return out | {"order": np.asarray(list(made))}


def draw(results, config):
    """Explained variance and F1 over L0: a line a kind, bars from the lowest to the highest seed; baselines grey."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.2), dpi=110, layout="constrained")
    order = list(results["order"])
    colours = dict(zip(NAMES, plt.get_cmap("Dark2")(np.arange(len(NAMES))), strict=True))
    panels = (("explained_variance", "explained variance"), ("f1", "F1, mean over latents"))
    for ax, (score, title) in zip(axes, panels, strict=True):
        for name in [*BASELINES, *order]:
            x, y = results[f"{name}_l0"].mean(1), results[f"{name}_{score}"]
            spread = np.abs(np.stack([y.min(1), y.max(1)]) - y.mean(1))
            if name in BASELINES:
                if score == "f1" and name == "pca":  # its k components are always on
                    continue
                style = {"truth": "-", "random": ":", "pca": "--"}[name]
                ax.errorbar(x, y.mean(1), spread, color="k", ls=style, lw=1.1, label=BASELINES[name])
            else:
                at = order.index(name)
                ax.errorbar(
                    x * 1.025 ** (at - (len(order) - 1) / 2), y.mean(1), spread, color=colours[name], ms=4, lw=1.2,
                    marker="os^vDPX*"[at % 8], capsize=2, label=NAMES[name].replace("\n", " "),
                )  # fmt: skip
        ax.set(xscale="log", xlabel="$L_0$ on held-out samples", title=title, facecolor=plot.GROUND, ylim=(0, 1))
        ax.set_xticks(config.l0, [str(k) for k in config.l0])
        ax.minorticks_off()
        ax.axvline(config.true_l0, color="k", lw=0.8, ls=":")
        ax.text(config.true_l0, 0.01, " truth's $L_0$", fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right center")
    figure.suptitle(
        f"Every activation on one world: {config.n} features in {config.d} dimensions, {config.d_sae} latents, "
        f"{config.seeds} seeds (bars: lowest to highest; points moved apart a little in $L_0$)",
        fontsize=12,
    )
    return {"": figure}


def claims(results, config):
    """Equal L0; who reconstructs better than whom; what baselines can and can't."""
    order = list(results["order"])
    l0, variance, f1 = (
        {k: results[f"{k}_{s}"] for k in [*BASELINES, *order]} for s in ("l0", "explained_variance", "f1")
    )
    wanted = np.asarray(config.l0, float)[:, None]
    off = float(np.max([np.abs(l0[k] / wanted - 1) for k in order]))
    middle = {k: variance[k].mean(1) for k in variance}
    out = [
        Claim("every SAE's L0 on held-out samples is the target's (largest relative difference)", "fair comparison",
              0.0, off, 0.05, "<="),
        Claim("explained variance grows with L0 for every kind (smallest step, means over seeds)", "derived", 0.0,
              float(np.min([np.diff(middle[k]) for k in order])), 0.0, ">="),
        Claim("no kind reconstructs worse than PCA with as many components (smallest difference, per L0)",
              "every library's baseline", 0.0, float(np.min([middle[k] - middle["pca"] for k in order])), 0.0, ">="),
        Claim("random directions score below every trained SAE in F1 at its L0 (largest difference, extreme seeds)",
              "negative control", 0.0,
              float(np.max([f1["random"].max(1) - f1[k].min(1) for k in order])), 0.0, "<=",
              note="by L0 not below: " + _by(config.l0, [
                  " and ".join(NAMES[k].replace("\n", " ") for k in order if f1[k].min(1)[i] < f1["random"].max(1)[i])
                  or "none" for i in range(len(config.l0))])),
        Claim("true directions score above every trained SAE in F1 (smallest difference, per L0)", "upper reference",
              0.0, float(np.min([f1["truth"].mean(1) - f1[k].mean(1) for k in order])), 0.0, ">=",
              note="precision, recall and L0 of the true directions by L0 asked "
              + _by(config.l0, [f"{p:.2f} {r:.2f} {k:.2f}" for p, r, k in zip(
                  *(results[f"truth_{s}"].mean(1) for s in ("precision", "recall", "l0")), strict=True)])
              + "; the best F1 of others " + _by(config.l0, [
                  f"{f1[k].mean(1)[i]:.2f} ({NAMES[k]}, precision {results[f'{k}_precision'].mean(1)[i]:.2f}, recall "
                  f"{results[f'{k}_recall'].mean(1)[i]:.2f})" for i in range(len(config.l0))
                  for k in [order[int(np.argmax([f1[one].mean(1)[i] for one in order]))]]])),
    ]  # fmt: skip
    for k, source in SOURCES.items():
        if k in order and "l1" in order:
            out.append(Claim(f"{NAMES[k]} reconstructs better than L1 at each L0 (smallest difference)",
                             source, 0.0, float((middle[k] - middle["l1"]).min()), 0.0, ">="))  # fmt: skip
    if "matching_pursuit" in order:
        rest = np.max([middle[k] for k in order if k not in ("matching_pursuit", "abs_topk")], 0)
        out.append(
            Claim(
                "matching pursuit reconstructs better than all others with positive activations, at each L0",
                "SynthSAEBench",
                0.0,
                float((middle["matching_pursuit"] - rest).min()),
                0.0,
                ">=",
                note="by L0 " + _by(config.l0, [f"{v:.3f}" for v in middle["matching_pursuit"] - rest]),
            )
        )
        others = np.max([f1["matching_pursuit"].mean(1) - f1[k].mean(1) for k in order if k != "matching_pursuit"], 0)
        out.append(Claim("and finds worst: F1 below that of every other kind, at each L0 above 1 (largest difference)",
                         "SynthSAEBench: 0.446 and 0.556", 0.0, float(others[np.asarray(config.l0) > 1].max()), 0.0,
                         "<=", note="by L0 " + _by(config.l0, [f"{v:.3f}" for v in others])))  # fmt: skip
    return out


def _by(wanted, values) -> str:
    return ", ".join(f"{k:g}: {v}" for k, v in zip(wanted, values, strict=True))
