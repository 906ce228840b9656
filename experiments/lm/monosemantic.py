"""Are features cleaner than neurons? Labels held against latents, neurons, principal components and random directions.

Three measures, none of which needs a judge: F1 of the best unit of each kind for each label, probes of the k best
units, and the other way round, how well the best predicate says when a unit is on. All are chosen on one half of the
held-out documents and scored on the other (Bricken et al. 2023; Gurnee et al. 2023; SAEBench).
"""

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from scipy import sparse

from experiments import language, latents, reading
from superpose import plot
from superpose.interp import explain, fidelity, labels, probe

PAPER = "Towards Monosemanticity"
KINDS = {"latents": "#3f6fb5", "neurons": "#e08a3c", "PCA": "#5a9e6f", "random": "#999999", "control": "#c44e52"}
RARE, BROAD = 50, 0.1
"""Labels of fewer tokens are left out; of those that more than a tenth of all tokens carry, see ``one_layer``."""
EXPLAINED = {name: KINDS.get(name, "#8d6bb8") for name in ("latents", "neurons", "random", "shuffled", "control")}
WORDS = {"neurons": "neurons of either sign", "control": "latents, shuffled weights"}
SAID = {"latents": "latents", "neurons": "the neuron that correlates best, as often on",
        "random": "random direction, as often on", "shuffled": "the latent, moved to other tokens",
        "control": "latents of a model with shuffled weights"}  # fmt: skip
BRIEFLY = {"latents": "latents", "neurons": "neurons", "random": "random\ndirections",
           "shuffled": "moved to\nother tokens", "control": "shuffled\nweights"}  # fmt: skip
FAMILIES = ("token", "token before", "pair", "triple", "label")


def run(config, key, workdir):
    """Of each kind of unit and each label: F1 of the best unit, and scores of k-sparse probes; of each unit: the scores
    of its best predicate; latents by seed."""
    keys = jax.random.split(key, 5)
    texts, model = reading.model(config, keys[0], workdir)
    found = reading.subject(config, model, texts, keys[1], workdir)
    source = latents.harvest(config, model, texts, texts.train, [config.site])
    moments = fidelity.moments(source.rows(np.arange(min(len(texts.train.tokens), config.generation))), config.site)
    components = np.linalg.eigh(moments.covariance)[1][:, ::-1].astype(np.float32)
    d, F = found[0].arch.d_in, found[0].arch.d_sae
    random = np.asarray(jax.random.normal(keys[2], (d, F))) / np.sqrt(d)
    changed = shuffled(model, keys[3])
    control = reading.saes(
        config, changed, texts, {"control": config.kind}, keys[4], workdir / "control",
        "SAEs of a model with shuffled weights",
    )["control"]  # fmt: skip
    units: dict[str, Any] = {f"seed {i}": one for i, one in enumerate(found)}
    units |= {"neurons": None, "PCA": np.concatenate([components, -components], 1), "random": random}
    best = latents.detectors(config, model, texts, config.site, units, sides=("neurons", "PCA", "random"))
    others = {f"control {i}": one for i, one in enumerate(control)}
    best |= {k: v for k, v in latents.detectors(config, changed, texts, config.site, others).items()
             if k.startswith("control ")}  # fmt: skip
    x, y, half = _probed(config, model, texts)
    dense = {"neurons": x, "PCA": (x - moments.mean.astype(np.float32)) @ components, "random": x @ random}

    def code(of, name, one):
        return reading.coded(config, of, texts, one, workdir / "codes" / name).block(0, F)

    own = {f"seed {i}": code(model, f"seed {i}", one) for i, one in enumerate(found)}
    silent = {name: code(changed, name, one) for name, one in others.items()}
    dense |= own | silent
    held = language.judged(config, texts)
    again = labels.resampling(np.repeat(held.documents, held.tokens.shape[1]).astype(int), seed=config.seed)
    probes = {name: probe.probe(values, y, *half, ks=config.ks, again=again) for name, values in dense.items()}
    here = _shown(best)
    median = {name: np.stack([np.nanmedian(probes[one].draws[:, here], 1) for one in _ones(config, name)])
              for name in KINDS}  # fmt: skip
    return {
        "labels": np.array(texts.corpus.labels), "digest": np.array(texts.digest),
        **{f"gain_{name}_draws": _gains(best, config, name, here) for name in KINDS if name != "latents"},
        "better_neurons_draws": _gains(best, config, "neurons", here, lambda gain: np.mean(gain > 0, 1)),
        **{f"probe_{name}_draws": found for name, found in median.items()},
        **{k: v for k, v in best.items() if k.rsplit("_", 1)[1] in ("f1", "tokens", "share")},
        **{f"probe_{name}_{part}": getattr(p, part) for name, p in probes.items() for part in ("auroc", "f1")},
        **_explained(config, texts, list(own.values()), list(silent.values()), x, random, again),
    }  # fmt: skip


def _gains(best, config, name, here, of=lambda gain: np.median(gain, 1)):
    """[seeds, draws], median over labels (or what else ``of`` makes of [draws, labels]) of the latent's F1 less that of
    the best unit of a kind, documents drawn anew."""
    pairs = [(one, f"control {i}" if name == "control" else name) for i, one in enumerate(_seeds(config))]
    return np.stack([of(best[f"{a}_draws"][:, here] - best[f"{b}_draws"][:, here]) for a, b in pairs])


def shuffled(model, key):
    """The model with the entries of each of its arrays in random order (Bricken et al. 2023: what an SAE finds in it
    comes from the texts and the shapes alone)."""
    graph, params = nnx.split(model)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [jax.random.permutation(k, x.ravel()).reshape(x.shape) for k, x in zip(keys, leaves, strict=True)]
    return nnx.merge(graph, jax.tree.unflatten(tree, moved))


def _explained(config, texts, blocks, control, x, random, again):
    """``explained_{kind}_{part}`` [seeds, F] of the best predicate of each unit; ``explained_{kind}_draws`` [seeds,
    draws], their median F1 in resamplings of documents, and that of those which are no single-token features; and
    ``explained_{kind}_single_without`` [seeds, GROUPS], their share without each group of documents."""
    held = language.judged(config, texts)
    tokens = explain.Tokens(held, texts.corpus.labels, texts.tokenizer.special, pieces=texts.tokenizer.pieces)
    group = reading.groups(np.repeat(held.documents, held.tokens.shape[1]))
    keep, total = tokens.keep, int(tokens.keep.sum())
    parts = ("kind", "f1", "auroc", "precision", "recall", "members", "named_f1", "tokens", "single")
    made: dict[str, list] = {name: [] for name in EXPLAINED}
    for seed, block in enumerate(blocks):
        density = np.diff(block.indptr) / total
        cross = block.T @ x
        close = labels.pearson(
            total, block.sum(0)[:, None], block.power(2).sum(0)[:, None], cross, x.sum(0, dtype=np.float64),
            (x.astype(np.float64) ** 2).sum(0),
        ).argmax(1)  # fmt: skip
        made["latents"].append(block)
        made["neurons"].append(_loud(lambda at, c=close: x[:, c[at]], keep, density))
        made["random"].append(_loud(lambda at: x @ random[:, at], keep, density))
        made["shuffled"].append(explain.shuffled(block, keep, config.seed + seed))
    made["control"] = control
    why = {name: [explain.explain(one, tokens, again) for one in ones] for name, ones in made.items()}
    out = {f"explained_{name}_{part}": np.stack([getattr(one, part) for one in ones])
           for name, ones in why.items() for part in parts}  # fmt: skip
    for name, ones in why.items():
        live = _live(out, name)
        out[f"explained_{name}_draws"] = np.stack([
            np.median(one.draws[here], 0) for one, here in zip(ones, live, strict=True)
        ])  # fmt: skip
        out[f"explained_{name}_many_draws"] = np.stack([
            np.median(one.draws[here & ~one.single.astype(bool)], 0) for one, here in zip(ones, live, strict=True)
        ])  # fmt: skip
    for name in ("latents", "control"):
        out[f"explained_{name}_single_without"] = np.stack(
            [
                _single_without(units[:, here], tokens.ids, group)
                for units, here in zip(made[name], _live(out, name), strict=True)
            ]
        )
    return out


def _single_without(units, ids, group):
    """[GROUPS], share of single-token features among units [N, U] without each group of documents."""
    found = np.zeros((reading.GROUPS, units.shape[1]), bool)
    for u in range(units.shape[1]):
        where = slice(units.indptr[u], units.indptr[u + 1])
        rows, values = units.indices[where], units.data[where]
        for g in range(reading.GROUPS):
            left = group[rows] != g
            found[g, u] = explain.single_token(ids[rows[left]], values[left])
    return found.mean(1)


def _loud(values, keep, density, block=128):
    """``explain.loudest`` of units in blocks: all of them at once would not fit."""
    parts = [slice(i, i + block) for i in range(0, len(density), block)]
    return sparse.hstack([explain.loudest(values(at), keep, density[at]) for at in parts], format="csc")


def _probed(config, model, texts):
    """Values [N, d] and labels of the judged tokens, and which of them probes are fitted and scored on."""
    held = language.judged(config, texts)
    keep = reading.kept(config, texts)
    first = np.repeat(labels.first_half(held.documents), held.tokens.shape[1])
    return reading.values(config, model, texts), reading.labelled(config, texts), (keep & first, keep & ~first)


def _seeds(config):
    return [f"seed {i}" for i in range(config.seeds)]


def _shown(results):
    """Labels that enough tokens carry, and few enough."""
    return (results["neurons_tokens"] >= RARE) & (results["neurons_share"] <= BROAD)


def _f1(results, config):
    """Kind -> F1 of the best unit of each label shown [seeds, labels]."""
    here = _shown(results)
    return {name: np.stack([results[f"{one}_f1"][here] for one in _ones(config, name)]) for name in KINDS}


def _ones(config, kind):
    """How the units of a kind are called in the results: latents have seeds."""
    names = {"latents": _seeds(config), "control": [f"control {i}" for i in range(config.seeds)]}
    return names.get(kind, [kind])


def _probes(results, config, kind, part="auroc"):
    """[seeds, ks], median over labels of a score of the probes; labels of which no half has enough tokens are NaN."""
    found = np.stack([results[f"probe_{one}_{part}"][_shown(results)] for one in _ones(config, kind)])
    return np.nanmedian(found, 1)


def draw(results, config):
    """F1 by kind of unit, latents against neurons, and k-sparse probes; how well units are explained."""
    figure, axes = plt.subplots(1, 4, figsize=(18, 4.8), dpi=110, layout="constrained")
    f1 = _f1(results, config)
    for name, colour in KINDS.items():
        values = np.sort(f1[name].mean(0))[::-1]
        axes[0].plot(np.arange(1, len(values) + 1), values, "o-", ms=3, lw=1, color=colour, label=WORDS.get(name, name))
    axes[0].set(xlabel="labels, each kind by its own rank", ylabel="F1 of the best unit, other half", ylim=(0, 1.02),
                title=f"{_shown(results).sum()} labels of at most {BROAD:.0%} of the tokens")  # fmt: skip
    axes[0].legend(frameon=False, fontsize=8)
    low, high = f1["latents"].min(0), f1["latents"].max(0)
    axes[1].plot([0, 1], [0, 1], color="0.6", lw=0.8)
    axes[1].vlines(f1["neurons"][0], low, high, color=KINDS["latents"], alpha=0.4, lw=1)
    axes[1].plot(f1["neurons"][0], f1["latents"].mean(0), "o", ms=3.5, color=KINDS["latents"])
    axes[1].set(xlim=(0, 1), ylim=(0, 1), xlabel="F1 of the best neuron", ylabel="F1 of the best latent",
                title=f"one point a label; bars: {config.seeds} seeds")  # fmt: skip
    at = np.arange(len(config.ks))
    for ax, part, words in zip(axes[2:], ("auroc", "f1"), ("area under the ROC curve", "F1, other half"), strict=True):
        for i, (name, colour) in enumerate(KINDS.items()):
            found = _probes(results, config, name, part)
            ax.plot(at + 0.06 * (i - 2), found.mean(0), "o-", ms=4, lw=1, color=colour, label=WORDS.get(name, name))
            if len(found) > 1:
                ax.vlines(at + 0.06 * (i - 2), found.min(0), found.max(0), color=colour, lw=2, alpha=0.5)
        ax.set(xticks=at, xticklabels=[str(k) for k in config.ks], xlabel="units a probe reads",
               ylabel=f"{words}, median label", title="k-sparse probes (bars: lowest to highest seed)")  # fmt: skip
    axes[2].legend(frameon=False, fontsize=8)
    plot.plain(axes)
    figure.suptitle(f"Are features cleaner than neurons? {config.kind.d_sae} latents of {config.site}, "
                    f"{config.corpus.kind}")  # fmt: skip
    return {"": figure, "_explained": _draw_explained(results, config)}


def _live(results, name):
    """[seeds, F], units on at enough tokens; those held against a latent follow it."""
    of = name if name == "control" else "latents"
    return results[f"explained_{of}_tokens"] >= RARE


def _of(results, name, part):
    """One array a seed: ``part`` of the units that are live."""
    found, live = results[f"explained_{name}_{part}"], _live(results, name)
    return [values[here] for values, here in zip(found, live, strict=True)]


def _draw_explained(results, config):
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), dpi=110, layout="constrained")
    for name, colour in EXPLAINED.items():
        for i, values in enumerate(_of(results, name, "f1")):
            ranked = np.sort(values)[::-1]
            axes[0].plot(np.arange(1, len(ranked) + 1) / len(ranked), ranked, color=colour, lw=1.2, alpha=0.8,
                         label=SAID[name] if i == 0 else None)  # fmt: skip
    axes[0].set(xlabel="share of the units, best explained first", ylabel="F1 of the best predicate, other half",
                xlim=(0, 1), ylim=(0, 1.02), title=f"units on at {RARE} tokens or more")  # fmt: skip
    axes[0].legend(frameon=False, fontsize=8)
    density = np.concatenate(_of(results, "latents", "tokens"))
    axes[1].plot(density, np.concatenate(_of(results, "neurons", "f1")), "o", ms=2, alpha=0.35,
                 color=EXPLAINED["neurons"], label=SAID["neurons"])  # fmt: skip
    axes[1].plot(density, np.concatenate(_of(results, "latents", "f1")), "o", ms=2, alpha=0.35,
                 color=EXPLAINED["latents"], label="latents")  # fmt: skip
    axes[1].set(xscale="log", xlabel="tokens on which the latent is on", ylabel="F1 of the best predicate",
                ylim=(0, 1.02), title="by how often a latent is on")  # fmt: skip
    axes[1].legend(frameon=False, fontsize=8, markerscale=3)
    names, left = list(EXPLAINED), np.zeros(len(EXPLAINED))
    for family, colour in zip(FAMILIES, ("#3f6fb5", "#8fb0dc", "#e08a3c", "#f2c79a", "#5a9e6f"), strict=True):
        share = np.array([np.mean(np.concatenate(_of(results, name, "kind")) == family) for name in names])
        axes[2].barh([BRIEFLY[name] for name in names], share, left=left, color=colour, height=0.6, label=family)
        left += share
    axes[2].invert_yaxis()
    axes[2].set(xlim=(0, 1), xlabel="share of the units", title="what kind of predicate is best")
    axes[2].legend(frameon=False, fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.14),
                   columnspacing=1, handlelength=1)  # fmt: skip
    plot.plain(axes)
    figure.suptitle(f"How well does a simple predicate say when a unit is on? {config.site}, {config.corpus.kind}")
    return figure


def claims(results, config):
    """Latents are better detectors than neurons, components, random directions and a shuffled model's latents, and are
    better explained; differences are judged by the lower of their intervals over seeds and documents."""
    f1, here = _f1(results, config), _shown(results)
    out = [
        _above(f"share of {here.sum()} labels whose best latent has a higher F1 than the best neuron of either sign",
               "more than half, stated before the run", 0.5, (f1["latents"] > f1["neurons"]).mean(1),
               results["better_neurons_draws"]),
        *(_above(f"median over labels of the latent's F1 less that of the best {words}", source, 0.0,
                 np.median(f1["latents"] - f1[name], 1), results[f"gain_{name}_draws"],
                 f"latents {np.median(f1['latents']):.3f}, these {np.median(f1[name]):.3f}")
          for name, words, source in (
              ("neurons", "neuron", PAPER), ("PCA", "principal component", "baseline"),
              ("random", "random direction", "baseline"),
              ("control", "latent of a model with shuffled weights",
               "evaluation on a model that has learnt nothing (arXiv 2501.17727)"))),
    ]  # fmt: skip
    token = results["token_f1"][here]
    out.append(reading.above(
        "median over labels of the latent's F1 less that of the best set of token ids",
        "control: what no context is needed for", 0.0, reading.over_seeds(np.median(f1["latents"] - token, 1)),
        note=f"higher for {(f1['latents'] > token).mean():.0%} of labels; latents {np.median(f1['latents']):.3f}, "
        f"token ids {np.median(token):.3f}",
    ))  # fmt: skip
    names = {"neurons": "neurons", "PCA": "principal components", "random": "random directions",
             "control": "latents of a model with shuffled weights"}  # fmt: skip
    for at, k in ((0, config.ks[0]), (-1, config.ks[-1])):
        one = {name: _probes(results, config, name)[:, at] for name in KINDS}
        score = {name: _probes(results, config, name, "f1")[:, at].mean() for name in KINDS}
        for name, words in names.items():
            drawn = results["probe_latents_draws"] - results[f"probe_{name}_draws"]
            out.append(_above(f"probes of {k}: median area under the ROC curve of latents less that of {words}",
                              "k-sparse probing (Gurnee et al. 2023)", 0.0, one["latents"] - one[name],
                              drawn[..., at],
                              f"latents {one['latents'].mean():.3f}, these {one[name].mean():.3f}; median F1 of the "
                              f"same probes {score['latents']:.3f} and {score[name]:.3f}"))  # fmt: skip
    own = np.array([np.median(values) for values in _of(results, "latents", "f1")])
    drawn = lambda name, of="draws": results[f"explained_latents_{of}"] - results[f"explained_{name}_{of}"]  # noqa: E731
    for name in ("neurons", "random"):
        other = np.array([np.median(values) for values in _of(results, name, "f1")])
        out.append(_above(f"explanations: median F1 of latents less that of {SAID[name]}",
                          f"{PAPER}: features are easier to explain than neurons", 0.0, own - other, drawn(name),
                          f"latents {own.mean():.3f}, these {other.mean():.3f}"))  # fmt: skip
    single = {name: [np.asarray(s, bool) for s in _of(results, name, "single")] for name in ("latents", "control")}
    many = {name: np.array([np.median(v[~s]) for v, s in zip(_of(results, name, "f1"), single[name], strict=True)])
            for name in single}  # fmt: skip
    everything = float(np.mean([np.median(values) for values in _of(results, "control", "f1")]))
    moved = np.mean([np.median(values) for values in _of(results, "shuffled", "f1")])
    out.append(_above(
        f"explanations, single-token features left out: median F1 of latents less that of {SAID['control']}",
        "trained beats shuffled; in the paper its single-token features lift the shuffled model above the trained",
        0.0, many["latents"] - many["control"], drawn("control", "many_draws"),
        f"latents {many['latents'].mean():.3f}, these {many['control'].mean():.3f}; with single-token features "
        f"{own.mean():.3f} and {everything:.3f}; latents moved to other tokens {moved:.3f}",
    ))  # fmt: skip
    share = {name: np.array([s.mean() for s in found]) for name, found in single.items()}
    fewer = share["control"] - share["latents"]
    without = results["explained_control_single_without"] - results["explained_latents_single_without"]
    out.append(reading.above(
        "share of single-token features (the 20 largest activations on one token) in a model with shuffled weights "
        "less that in the trained one", f"{PAPER}: the shuffled model has many", 0.0, reading.over_seeds(fewer),
        reading.jackknife(fewer.mean(), without.mean(0))[1:],
        f"trained {share['latents'].mean():.3f}, shuffled {share['control'].mean():.3f}",
    ))  # fmt: skip
    return out


def _above(text, source, least, by_seed, draws, note=""):
    """A claim on the mean of a number [seeds], given the same in resamplings of documents [seeds, draws]."""
    seeds = reading.over_seeds(by_seed)
    return reading.above(text, source, least, seeds, reading.over_draws(seeds[0], draws.mean(0)), note)
