"""Does a latent know a script by its letters? Mixed scripts, byte-level tokens that several of them share.

Towards Monosemanticity found latents for Arabic and Hebrew script that no neuron is. Here every character's script is
known: best latent, best neuron (either sign), random direction, set of token ids, and an SAE of an untrained model.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import latents
from experiments.ledger import Claim
from superpose import plot
from superpose.lm import scripts

PAPER = "Towards Monosemanticity, section 3"
WRITTEN = tuple(scripts.SCRIPTS)
CLAIMED = ("Arabic", "Hebrew")
BESIDES = ("hex", "base64", "DNA")
"""Other texts whose characters several kinds share, claimed by point: a gain over documents is kept of two labels."""
KINDS = {"latent": "best latent", "neuron": "best neuron", "random": "best random direction", "token": "token ids",
         "control": "SAE, untrained model"}  # fmt: skip


def run(config, key, workdir):
    """What ``latents.study`` says, the best unit of every kind for every label, and precision by activation."""
    found = latents.study(config, key, workdir)
    widest = found.saes[found.names[-1]]
    width, d = widest.arch.d_sae, widest.arch.d_in
    directions = jax.random.normal(jax.random.fold_in(key, 9), (d, width)) / np.sqrt(d)
    out = found.arrays | latents.detectors(
        config, found.model, found.texts, config.site, {"latent": widest, "neuron": None, "random": directions},
        sides=("neuron", "random"),
    )  # fmt: skip
    claimed = [list(found.texts.corpus.labels).index(name) for name in CLAIMED]
    draws = {name: out.pop(f"{name}_draws") for name in ("latent", "neuron", "random")}  # 1,000 of every label: large
    out["gain_draws"] = draws["latent"][:, claimed] - draws["neuron"][:, claimed]
    units = [int(out["latent_unit"][list(found.texts.corpus.labels).index(name)]) for name in WRITTEN]
    return out | latents.by_bin(config, found.model, found.texts, config.site, widest, units, WRITTEN)


def _place(results, name):
    return list(results["labels"]).index(name)


def draw(results, config):
    """F1 by script and kind of unit; precision by activation; every label, latent against neuron."""
    figure = plt.figure(figsize=(14, 9.5), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[1, 1.1])
    ax = figure.add_subplot(grid[0, :])
    at, colours = [_place(results, name) for name in WRITTEN], plt.get_cmap("tab10")
    plot.interval_bars(ax, WRITTEN, {
        label: (np.stack([results[f"{kind}_{part}"][at] for part in ("f1", "low", "high")], 1), colour)
        for (kind, label), colour in zip(KINDS.items(), (plot.COOL, plot.WARM, "0.75", "0.5", "0.2"), strict=True)
    })  # fmt: skip
    ax.set(ylim=(0, 1.12), ylabel="F1 on the other half", title="a token of the script (95 % over documents)")
    ax.legend(fontsize=8, ncols=5, loc="upper center", frameon=False)
    ax2 = figure.add_subplot(grid[1, 0])
    for i, name in enumerate(WRITTEN):
        hits, tokens = results["bin_hits"][i], results["bin_tokens"][i]
        seen = tokens >= 20
        middle = (np.arange(len(hits)) + 0.5) / len(hits)
        strong = name in CLAIMED
        ax2.plot(middle[seen], (hits / np.maximum(tokens, 1))[seen], "o-", ms=3, lw=2 if strong else 0.9,
                 alpha=1 if strong else 0.55, color=colours(i), label=name)  # fmt: skip
    ax2.set(xlabel="activation of the best latent, share of its largest", ylabel="precision", ylim=(0, 1.02),
            title="how often the script is there, by activation")  # fmt: skip
    ax2.legend(fontsize=7, ncols=2, frameon=False, loc="lower right")
    ax3 = figure.add_subplot(grid[1, 1])
    common = results["latent_tokens"] >= 50
    ax3.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    ax3.scatter(results["neuron_f1"][common], results["latent_f1"][common], s=10, color="#3f6fb5", alpha=0.7)
    ax3.set(xlim=(0, 1), ylim=(0, 1), xlabel="F1 of the best neuron, either sign", ylabel="F1 of the best latent",
            title=f"the {common.sum()} labels of 50 tokens or more")  # fmt: skip
    plot.plain(figure.axes)
    rare = f", {' and '.join(CLAIMED)} made rare" if config.variant == "rare" else ""
    figure.suptitle(
        f"Mixed scripts{rare}: {config.corpus.documents:,} made-up documents, vocabulary of {config.vocab}; "
        f"{results['names'][-1]} of {config.site}", fontsize=12,
    )  # fmt: skip
    marked = [_place(results, name) for name in (*CLAIMED, *BESIDES) if name in results["labels"]]
    plot.names(
        ax3, results["neuron_f1"][marked], results["latent_f1"][marked], [str(results["labels"][i]) for i in marked]
    )
    return {"": figure}


def claims(results, config):
    """Latents for Arabic and Hebrew that no neuron, token set, random direction or untrained model has, each on its
    own, and for some other texts that no neuron has."""
    out = []
    for name in CLAIMED:
        at = _place(results, name)
        low, high = np.percentile(results["gain_draws"][:, CLAIMED.index(name)], (2.5, 97.5))
        others = {k: float(results[f"{k}_f1"][at]) for k in KINDS if k != "latent"}
        f1 = float(results["latent_f1"][at])
        said = ", ".join(f"{KINDS[k]} {v:.2f}" for k, v in others.items())
        i = WRITTEN.index(name)
        seen = results["bin_tokens"][i] >= 20
        precision = (results["bin_hits"][i] / np.maximum(results["bin_tokens"][i], 1))[seen]
        gain = float(precision[-1] - precision[0]) if len(precision) else float("nan")
        fall = float((np.maximum.accumulate(precision) - precision).max()) if len(precision) else float("nan")
        bins = ", ".join(f"{v:.3f}" for v in precision)
        surely = lambda other, at=at: float(results["latent_low"][at] - results[f"{other}_high"][at])  # noqa: E731
        out += [
            Claim(f"{name}: F1 of the best latent less that of the best neuron of either sign (low end of 95 % over "
                  "documents)", PAPER, 0.2, float(low), 0.0, ">=",
                  note=f"latent {f1:.2f} (precision {results['latent_precision'][at]:.2f}, recall "
                       f"{results['latent_recall'][at]:.2f}); {said}; difference "
                       f"{low:.2f} to {high:.2f}"),
            Claim(f"{name}: precision of the highest activation bin less that of the lowest", f"{PAPER}: 25 % when "
                  "barely on, 98 % above 5", 0.0, gain, 0.0, ">="),
            Claim(f"{name}: precision rises with the activation (largest fall from a bin to a later one; in place of a "
                  "rank correlation, which equal bins spoil: changed after the result)", f"{PAPER}: rising", 0.05, fall,
                  0.0, "<=", note=f"precision by bin {bins}"),
            Claim(f"{name}: F1 of the best latent less that of the best random direction (low end of the one less high "
                  "end of the other)", "control", 0.0, surely("random"), 0.0, ">="),
            Claim(f"{name}: the same, of an SAE of an untrained model", "control (arXiv 2501.17727)", 0.0,
                  surely("control"), 0.0, ">=",
                  note=f"{f1:.2f} and {others['control']:.2f}; " + latents.beside_untrained(results)),
            Claim(f"{name}: the same, of the best set of token ids", "control: what no context is needed for", 0.0,
                  surely("token"), 0.0, ">=", note=f"{f1:.2f} and {others['token']:.2f}"),
            Claim(f"{name}: correlation with the script, best latent less best neuron", PAPER, 0.0,
                  float(results["latent_correlation"][at] - results["neuron_correlation"][at]), 0.0, ">=",
                  note=f"{results['latent_correlation'][at]:.3f} and {results['neuron_correlation'][at]:.3f}"),
        ]  # fmt: skip
    for name in (name for name in BESIDES if name in results["labels"]):
        at = _place(results, name)
        latent, neuron = (float(results[f"{kind}_f1"][at]) for kind in ("latent", "neuron"))
        out.append(Claim(f"{name}: F1 of the best latent less that of the best neuron of either sign", PAPER, 0.2,
                         latent - neuron, 0.0, ">=", note=f"latent {latent:.2f}, neuron {neuron:.2f}"))  # fmt: skip
    return out
