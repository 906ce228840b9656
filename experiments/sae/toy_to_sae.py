"""The features in superposition, taken out of a toy model's neurons again.

The models of superposition_demo are trained, and SAEs on their hidden activations h = W^T x; TMS, "Superposition as a
way to simulate larger sparse networks".
"""

import dataclasses
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, kinds
from experiments.ledger import Claim
from experiments.toy import superposition_demo
from superpose import plot
from superpose.sae import objective, recovery
from superpose.sae.model import SAE
from superpose.train.fit import Sampler
from superpose.worlds import sparse

TMS = "TMS, simulating larger networks"
DENSE = "the claim is TMS's for sparse inputs; here {on:.2g} of {n} represented features are on at once"
NEIGHBOURS = "the directions are found; W_i . W_j of two of them from {low:.2f} to {high:.2f}"


def _unit(W):
    return W / np.maximum(np.linalg.norm(W, axis=-1, keepdims=True), 1e-30)


def run(config, key, workdir):
    """Per density (first axis): W, norms, and of each SAE the signed cosines [latents, n] and F1 of each feature."""
    check.whole(config, "seeds", "batch", "steps", "log_every", "eval_batch", "eval_batches")
    if config.kind.scale != "none" or config.kind.centre != "zero":
        raise ValueError("each density has inputs of its own: leave kind.scale=none and kind.centre=zero")
    toy_key, train_key, eval_key, start_key = jax.random.split(key, 4)
    toy = superposition_demo.run(config.toy, toy_key, workdir / "toy")
    W, density = toy["relu_W"], toy["densities"]
    n, m = W.shape[1:]
    draw_active: Any = sparse.independent(n).sample_active  # samples with at least one active feature
    norms = np.linalg.norm(W, axis=2)
    any_active = -np.expm1(n * np.log1p(-np.minimum(density.astype(float), 1 - 1e-9)))
    on = density / any_active  # P(a feature is active | one is)
    c = config.kind.copy_and_resolve_references()
    c.sweep = {"k": tuple((np.maximum((norms > 0.5).sum(1), 0.1) * on).tolist())}
    made = kinds.kind(c, m, config.steps, config.seeds, np.ones((1, m)))
    extra = {"W": np.repeat(W, config.seeds, 0), "density": np.repeat(density, config.seeds, 0)}

    def sample(key, hyper):
        return draw_active(key, hyper["density"], config.batch).T @ hyper["W"]

    pop = dataclasses.replace(made.population, hyper={**made.population.hyper, **extra}, source=Sampler(sample))
    made = made._replace(population=pop)
    trained = kinds.train({"sae": made}, config, train_key, None, workdir / "fit", "SAEs of toys")["sae"]
    error = np.where(trained.frozen_at >= 0, np.inf, trained.history["error"][-1]).reshape(len(density), -1)
    check.some_sound(error, "density", density)
    best = error.argmin(1)

    @jax.jit
    def counts(params, W, density, key):
        x = draw_active(key, density, config.eval_batch).T
        return recovery.coactivation(SAE(plain, params).encode(x @ W), x)

    rows = []
    for d, p in enumerate(density):
        for s in range(config.seeds):
            i = d * config.seeds + s
            start = objective.objective(made.arch, made.training).init(jax.random.fold_in(start_key, i), {})[0]
            plain, params = objective.inference(made.arch, made.training, *objective.member(trained, i))
            untrained = {**params, **{k: np.asarray(start[k]) for k in ("W_enc", "b_enc", "W_dec", "b_dec")}}
            scores = []
            for weights in (params, untrained):
                total: Any = None
                for b in range(config.eval_batches):
                    total = recovery.add(total, counts(weights, W[d], p, jax.random.fold_in(eval_key, b)))
                scores.append(recovery.f1(total).max(0))
            rows.append((_unit(params["W_dec"]) @ _unit(W[d]).T, *scores))
    cosines, f1, chance = (
        np.asarray(r).reshape(len(density), config.seeds, *r[0].shape) for r in zip(*rows, strict=True)
    )
    return {
        "density": density, "W": W, "norms": norms, "on": on, "k": np.asarray(c.sweep.k), "best": best, "error": error,
        "cosines": cosines, "f1": f1, "f1_untrained": chance,
    }  # fmt: skip


def _mean(values):
    """Of nothing it is NaN: a claim about no feature does not hold."""
    return float(np.mean(values)) if values.size else float("nan")


def _random(W, latents):
    """Cosines [100, latents, n] of random rows with W."""
    rows = np.random.default_rng(0).normal(size=(100, latents, W.shape[1]))
    return _unit(rows) @ _unit(W).T


def _best(results):
    """Cosines [densities, latents, n] and F1 [densities, n] of the best SAE of each density."""
    rows = np.arange(len(results["density"]))
    return results["cosines"][rows, results["best"]], results["f1"][rows, results["best"]]


def draw(results, config):
    """One column a density: matched cosines of decoder rows with W_i, and F1 of each feature against ||W_i||."""
    cosines, f1 = _best(results)
    columns = len(results["density"])
    figure, axes = plt.subplots(
        2, columns, figsize=(2.2 * columns + 0.8, 5.4), dpi=110, height_ratios=[1.25, 1], squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for c, p in enumerate(results["density"]):
        kept, gone = results["norms"][c] > 0.5, results["norms"][c] < 0.1
        pairs = recovery.matching(np.maximum(cosines[c], 0) * kept)
        matched = pairs.latents[np.argsort(pairs.features)][kept[np.sort(pairs.features)]]
        order = [*matched, *np.setdiff1d(np.arange(len(cosines[c])), matched)]
        ax = axes[0, c]
        image = plot.cosine_map(ax, np.where(gone, np.nan, cosines[c][order]))
        ax.set(xticks=[], yticks=[])
        ax.axhline(len(matched) - 0.5, color="0.3", lw=0.8)
        ax.set_title(f"$1-S$ = {p:g}\n{kept.sum()} features represented", fontsize=9)
        ax.set_xlabel("features by importance", fontsize=8)
        ax = axes[1, c]
        on = results["on"][c]
        ax.axhline(2 * on / (1 + on), color="0.5", lw=0.8, ls="--")
        for which, colour in ((~kept, "0.55"), (kept, "#3f6fb5")):
            ax.plot(results["norms"][c][which], f1[c][which], "o", ms=4.5, color=colour, mew=0, alpha=0.85)
        ax.axvline(0.5, color="0.4", lw=0.8, ls=":")
        ax.set(xlim=(-0.08, 1.35), ylim=(0, 1.04), facecolor=plot.GROUND)
        ax.set_xlabel(r"$\|W_i\|$", fontsize=9)
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
        if c:
            ax.set_yticklabels([])
    axes[0, 0].set_ylabel("latents, matched ones first", fontsize=9)
    axes[1, 0].set_ylabel("F1 of the best latent", fontsize=9)
    figure.colorbar(image, ax=axes[0], label="cosine of decoder row and $W_i$", shrink=0.9, pad=0.005)
    figure.suptitle(
        f"SAEs on the {config.toy.m} neurons of toy models with {config.toy.n} features\n"
        r"above: blank where $W_i$ has no length, below the rule latents without a match; below: blue = represented "
        r"($\|W_i\|$ > 0.5, dotted), grey = not, dashed = a latent that is always on",
        fontsize=10,
    )
    return {"": figure}


def claims(results, config):
    """What is represented is found at sparse densities; what is not represented is absent."""
    cosines, f1 = _best(results)
    kept = results["norms"] > 0.5
    rows = np.arange(len(kept))
    untrained = results["f1_untrained"][rows, results["best"]]
    out = []
    for c, p in enumerate(results["density"]):
        here, on = kept[c], float(results["on"][c])
        gone = ~here
        found = [_mean(of_seed[:, here].max(0) > 0.9) for of_seed in results["cosines"][c]]
        chance = _mean(_random(results["W"][c], len(cosines[c]))[:, :, here].max(1) > 0.9)
        own = _mean(cosines[c][:, here].max(0) > 0.9)
        dense = DENSE.format(on=on * here.sum(), n=here.sum()) if p > 0.1 else ""
        out.append(Claim(f"1-S = {p:g}: share of the {here.sum()} represented features with a decoder row at cosine "
                         "> 0.9", TMS, 0.9, own, 0.0, ">=",
                         note=f"by seed {', '.join(f'{v:.2f}' for v in found)}; of random rows {chance:.2f}"
                         + (f"; {dense}" if dense and own < 0.9 else "")))  # fmt: skip
        if on > 0.99:
            continue  # of what is always on F1 says nothing
        out.append(Claim(f"1-S = {p:g}: mean F1 of the represented features, less that of an untrained SAE at its "
                         "threshold", "negative control", 0.3, _mean(f1[c][here] - untrained[c][here]), 0.0, ">=",
                         note=dense))  # fmt: skip
        G = (results["W"][c] @ results["W"][c].T)[here][:, here][~np.eye(here.sum(), dtype=bool)]
        why = dense or (NEIGHBOURS.format(low=G.min(initial=0), high=G.max(initial=0)) if own >= 0.9 else "")
        out.append(Claim(f"1-S = {p:g}: share of the represented features with F1 > 0.8", TMS, 0.9,
                         _mean(f1[c][here] > 0.8), 0.0, ">=", note=why))  # fmt: skip
        if gone.any():
            always, most = 2 * on / (1 + on), int(np.flatnonzero(gone)[f1[c][gone].argmax()])
            part = f"the largest over latents and features is of one with ||W_i|| = {results['norms'][c][most]:.2f}"
            out.append(Claim(f"1-S = {p:g}: the {gone.sum()} features that are not are absent (largest F1, "
                             "against that of a latent that is always on)", "control; derived: 2p/(1+p)", always,
                             float(f1[c][gone].max()), 0.02, "<=", note=part))  # fmt: skip
    return out
