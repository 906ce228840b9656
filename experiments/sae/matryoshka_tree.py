"""The toy tree of Matryoshka SAEs: nested dictionaries keep the children's latents free of their parents.

Nabeshima 2024; Bussmann et al. 2025 (arXiv 2503.17547): a plain L1 SAE and one with random prefixes, both with a latent
for each feature, on one stream of batches and with L1 steered to the truth's mean L0.
"""

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

PAPER = "Nabeshima 2024; Bussmann et al. 2025"
TITLES = {"vanilla": "vanilla", "matryoshka": "Matryoshka"}


def tree(config) -> structured.Truth:
    """The world that the config states."""
    return structured.matryoshka_tree(
        config.parents, config.parent, config.children, config.child, config.free, config.other
    )


def run(config, key, workdir):
    """Per kind: cosines with the truth [seeds, n, n], places [seeds, n], mean L0 [seeds], activations [shown, n].

    Latents are in the order of the features that they are matched with, by the sum of |cos|; a place is a latent's own
    index, from which prefixes count. Activations are those of the best seed: the one of least error on the last steps.
    """
    check.whole(config, "d", "parents", "children", "free", "prefixes", "seeds", "batch", "steps", "log_every")
    check.whole(config, "eval_batch", "eval_batches", "shown")
    check.positive(config, "parent", "child", "other")
    if config.shown > config.eval_batch:
        raise ValueError(f"shown must be at most eval_batch={config.eval_batch}, got {config.shown}")
    train_key, eval_key, direction_key = jax.random.split(key, 3)
    truth = tree(config)
    n = truth.world.n
    directions = structured.orthonormal(direction_key, n, config.d)
    embedding = truth.embed(directions)
    sample = np.asarray(embedding.sample(eval_key, 1024))
    made = {
        name: kinds.kind(
            config.kind, config.d, config.steps, config.seeds, sample,
            d_sae=n, target_l0=embedding.mean_l0(), random_prefixes=prefixes,
        )
        for name, prefixes in (("vanilla", 0), ("matryoshka", config.prefixes - 1))
    }  # fmt: skip
    batches = Sampler(lambda key: embedding.sample(key, config.batch), shared=True)
    trained = kinds.train(made, config, train_key, batches, workdir / "fit", "matryoshka_tree")
    held = [embedding.both(jax.random.fold_in(eval_key, b), config.eval_batch) for b in range(config.eval_batches)]
    out: dict[str, Any] = {"truth_acts": np.asarray(held[0][1])[: config.shown]}
    for name, kind in made.items():
        error = np.where(trained[name].frozen_at >= 0, np.inf, trained[name].history["error"][-1])
        check.some_sound(error[None], "kind", [list(made).index(name)])
        best, cosines, places, l0 = int(error.argmin()), [], [], []
        for i, (arch, params) in enumerate(kinds.plain(kind, trained[name])):
            found = np.asarray(recovery.cosines(params["W_dec"], directions))
            match = recovery.matching(found)
            order = match.latents[np.argsort(match.features)]
            acts = [np.asarray(SAE(arch, params).encode(x)) for x, _ in held]
            cosines.append(found[order])
            places.append(order)
            l0.append(np.mean([np.sum(a != 0, 1).mean() for a in acts]))
            if i == best:
                out[f"{name}_acts"] = acts[0][: config.shown, order]
        out |= {
            f"{name}_cosines": np.asarray(cosines), f"{name}_places": np.asarray(places), f"{name}_l0": np.asarray(l0),
            f"{name}_error": error, f"{name}_best": best,
        }  # fmt: skip
    return out


def pairs(config) -> tuple[np.ndarray, np.ndarray]:
    """Children, and the parent of each."""
    parent = tree(config).parent
    children = np.flatnonzero(parent >= 0)
    return children, parent[children]


def draw(results, config):
    """Above: activations of the truth and of both SAEs. Below: all seeds, and cosines of decoder rows."""
    figure, axes = plt.subplots(2, 3, figsize=(11.8, 8.0), dpi=110, width_ratios=[1.1, 1, 1.15], layout="constrained")
    children, parents = pairs(config)
    n = results["truth_acts"].shape[1]
    starts = np.append(np.unique(parents), children.max() + 1)
    names = [f"parent {i + 1}" for i in range(config.parents)] + ["free"]
    top = max(results[f"{name}_acts"].max() for name in ("truth", *TITLES))
    for ax, name in zip(axes[0], ("truth", *TITLES), strict=True):
        image = plot.activation_map(ax, results[f"{name}_acts"])
        image.set_clim(0, top)
        ax.set_title("ground truth" if name == "truth" else f"{TITLES[name]}: activations", fontsize=10)
        ax.set_ylabel(f"{config.shown} samples", fontsize=8)
        ax.set(yticks=[])
        ax.set_xlabel("features" if name == "truth" else "latents, in the order of their features", fontsize=8)
    figure.colorbar(image, ax=axes[0, 2], label="activation").ax.tick_params(labelsize=7)
    for ax, name in zip(axes[1, 1:], TITLES, strict=True):
        plot.cosine_map(ax, results[f"{name}_cosines"][results[f"{name}_best"]])
        ax.set_title(f"{TITLES[name]}: cosines of decoder rows", fontsize=10)
        ax.set_ylabel("latents", fontsize=8)
        ax.set_xlabel("features", fontsize=8)
        ax.set_yticks(starts, names, fontsize=7)
    image = axes[1, 2].images[0]
    figure.colorbar(image, ax=axes[1, 2], label="cosine").ax.tick_params(labelsize=7)
    for ax in [*axes[0], *axes[1, 1:]]:
        ax.set_xticks(starts, names, fontsize=7, ha="left")
        for edge in starts[1:]:
            ax.axvline(edge - 0.5, color="0.6", lw=0.6)
            if ax in axes[1]:
                ax.axhline(edge - 0.5, color="0.6", lw=0.6)
    ax = axes[1, 0]
    rows = ("child's row,\nits parent", "parent's row,\nits child", "own feature\n(least)", "mean L0")
    for k, (name, colour) in enumerate(zip(TITLES, ("#e6745f", "#3f6fb5"), strict=True)):
        found = results[f"{name}_cosines"]
        values = np.stack([
            found[:, children, parents].mean(1), found[:, parents, children].mean(1),
            found[:, range(n), range(n)].min(1), results[f"{name}_l0"],
        ])  # fmt: skip
        x = np.arange(len(rows)) + 0.36 * k - 0.18
        ax.bar(x, values[:, results[f"{name}_best"]], width=0.34, color=colour, label=TITLES[name])
        plot.dots(ax, np.repeat(x, values.shape[1]), values.reshape(-1), width=0.1)
    truth = tree(config).active.sum()
    ax.plot([len(rows) - 1.45, len(rows) - 0.55], [truth, truth], color="k", lw=1, ls="--", label="the truth's L0")
    ax.axhline(0, color="0.5", lw=0.6)
    ax.set(xticks=np.arange(len(rows)), facecolor=plot.GROUND)
    ax.set_xticklabels(rows, fontsize=7)
    ax.tick_params(axis="y", labelsize=8)
    ax.set_ylabel("cosine, or active latents", fontsize=8)
    ax.set_title("cosines and L0: best seed (bars), all seeds (dots)", fontsize=10)
    ax.legend(fontsize=7, frameon=False, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"The Matryoshka toy tree: {n} orthogonal features in {config.d} dimensions, {n} latents; "
        f"{config.parents} parents with {config.children} exclusive children each",
        fontsize=12,
    )
    return {"": figure}


def claims(results, config):
    """Absorption in the vanilla SAE, none in the nested one, what the nesting costs, and the order of latents."""
    children, parents = pairs(config)
    truth = tree(config)
    best = {name: int(results[f"{name}_best"]) for name in TITLES}
    n, mean_l0 = truth.world.n, float(truth.active.sum())
    cosines = {name: results[f"{name}_cosines"] for name in TITLES}
    up = {name: c[:, children, parents] for name, c in cosines.items()}  # of a child's row with its parent
    down = {name: c[:, parents, children] for name, c in cosines.items()}
    both = np.maximum(np.abs(up["matryoshka"]), np.abs(down["matryoshka"])).max(1)
    own = cosines["matryoshka"][:, range(n), range(n)].min(1)
    l0 = {name: float(results[f"{name}_l0"][best[name]]) for name in TITLES}
    places = results["matryoshka_places"][best["matryoshka"]]
    absorbed = mean_l0 - float(truth.active[children].sum())
    v, m = best["vanilla"], best["matryoshka"]
    first = {name: results[f"{name}_places"][best[name]] for name in TITLES}
    gap = {name: int(p[children].min() - p[np.unique(parents)].max()) for name, p in first.items()}
    among = np.zeros((n, n), bool)
    among[children, parents] = among[parents, children] = True
    siblings = (truth.parent[:, None] == truth.parent) & (truth.parent >= 0)[:, None] & ~np.eye(n, dtype=bool)
    size = np.abs(cosines["matryoshka"])
    largest = {name: size[:, some].max(1) for name, some in
               (("of siblings", siblings), ("of others", ~(among | siblings | np.eye(n, dtype=bool))))}  # fmt: skip
    every = size[:, ~np.eye(n, dtype=bool)].max(1)
    heads = f"parents at {places[np.unique(parents)].mean():.1f}, children at {places[children].mean():.1f}"
    hedge = config.child / np.sqrt(1 + config.children * config.child**2)
    return [
        Claim("vanilla: a child's row points along its parent too (cosine, mean over children)",
              f"{PAPER}: about 0.6 to 0.7; derived: 0.707 where absorption is complete", [0.6, float(np.sqrt(0.5))],
              float(up["vanilla"][v].mean()), 0.01, "in", note=f"all seeds: {_range(up['vanilla'].mean(1))}"),
        Claim("Matryoshka: a child's row does not (|cosine|, mean over children)", PAPER, 0.1,
              float(np.abs(up["matryoshka"][m]).mean()), 0.0, "<=",
              note=f"all seeds: {_range(up['matryoshka'].mean(1))}"),
        Claim("Matryoshka: no cosine between a row and the other feature of a parent-child pair (largest)",
              PAPER, 0.1, float(both[m]), 0.0, "<=",
              note=f"a child's row with its parent {np.abs(up['matryoshka'][m]).max():.2f}, a parent's row with its "
              f"child {np.abs(down['matryoshka'][m]).max():.2f}, the share that hedging derives (below); all seeds: "
              f"{_range(both)}"),
        Claim("Matryoshka: no cosine between a row and any other feature (largest)", PAPER, 0.1, float(every[m]), 0.0,
              "<=", note=", ".join(f"{name} {v[m]:.2f}" for name, v in largest.items()) + "; a child's row leans "
              f"against its siblings: {cosines['matryoshka'][m][siblings].mean():.2f} on average; all seeds: "
              f"{_range(every)}"),
        Claim("Matryoshka: a parent's row holds its share of each child (cosine, mean over pairs)",
              "derived: parent + P(child | parent) children, as in feature hedging", float(hedge),
              float(down["matryoshka"][m].mean()), 0.05, note=f"all seeds: {_range(down['matryoshka'].mean(1))}"),
        Claim("Matryoshka: every feature has its latent (least cosine after matching)", PAPER, 0.9, float(own[m]), 0.0,
              ">=", note=f"all seeds: {_range(own)}; {(own > 0.9).sum()} of {len(own)} above 0.9"),
        Claim("Matryoshka: the truth's mean L0 is reached", f"{PAPER}; derived", mean_l0, l0["matryoshka"],
              0.05 * mean_l0, note=f"all seeds: {_range(results['matryoshka_l0'])}"),
        Claim("vanilla: the truth's mean L0 is reached", f"{PAPER}; derived", mean_l0, l0["vanilla"], 0.05 * mean_l0,
              note=f"absorption has the least L1, and its L0 is {absorbed:.2f} at any coefficient above 0, which the "
              f"controller can't raise; all seeds: {_range(results['vanilla_l0'])}"),
        Claim("vanilla: its mean L0 is that of absorption, where a child's latent replaces its parent's", "derived",
              absorbed, l0["vanilla"], 0.05 * absorbed),
        Claim("Matryoshka: every parent's latent comes before every child's (first child's place less last parent's)",
              "derived: prefixes order by importance", 1, gap["matryoshka"], 0, ">=", note=heads),
        Claim("vanilla: they don't (the same)", "control: nothing orders them", 0, gap["vanilla"], 0, "<="),
    ]  # fmt: skip


def _range(values: np.ndarray) -> str:
    return f"{values.min():.2f} to {values.max():.2f}"
