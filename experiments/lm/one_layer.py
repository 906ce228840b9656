"""Are latents cleaner than neurons? A one-layer transformer on Python source, SAEs of its MLP, labels of every token.

The central claim of Towards Monosemanticity (Bricken et al. 2023), measured without a judge: for each thing that a
token can be (comment, string, argument, ...), the best latent against the best neuron.
"""

import matplotlib.pyplot as plt
import numpy as np

from experiments import language, latents
from experiments.ledger import Claim
from superpose import plot

PAPER = "Towards Monosemanticity"
RARE, BROAD = 50, 0.1
"""Labels that fewer tokens carry in the half that is scored are left out of the claims. Of those that more than a tenth
of all tokens carry, a unit that is always on has a high F1: claims are made for the others, too, by themselves."""


def run(config, key, workdir):
    """Losses of the model; fidelity of SAEs and baselines; of each label the best latent, neuron, token ids."""
    found = latents.study(config, key, workdir)
    texts, out = found.texts, found.arrays
    return out | latents.detectors(config, found.model, texts, config.site, {
        "latent": found.saes[found.names[-1]], "neuron": None,
    })  # fmt: skip


def _of(results, name, part="recovered_zero"):
    return results[f"fidelity_{part}"][list(results["fidelity_names"]).index(name)]


def _common(results):
    return results["latent_tokens"] >= RARE


def draw(results, config):
    """Loss of the model; fidelity; best latent against best neuron for each label; densities."""
    figure, axes = plt.subplots(2, 2, figsize=(13.5, 10.5), dpi=110, layout="constrained")
    plot.training_line(axes[0, 0], results["lm_steps"], results["lm_loss"], language.levels(results))
    axes[0, 0].set_title("the language model")

    ax = axes[0, 1]
    order = [n for n in results["fidelity_names"] if n not in ("clean", "zero", "mean")]
    plot.interval_bars(ax, *latents.recovered_bars(results, order))
    ax.set(ylim=(0, 1.02), title=f"cross-entropy recovered at {config.site} (95 % over documents)")
    ax.legend(fontsize=8, loc="lower left", framealpha=0.9)

    ax = axes[1, 0]
    common = _common(results)
    neuron, latent = results["neuron_f1"], results["latent_f1"]
    ax.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    gain, narrow = latent - neuron, results["latent_share"] <= BROAD
    for which, marker, label in (
        (common & narrow, "o", f"at most {BROAD:.0%} of tokens"), (common & ~narrow, "D", "more"),
    ):  # fmt: skip
        colours = np.where(gain[which] > 0, "#3f6fb5", "#c4462f")
        fill = {"c": colours} if marker == "o" else {"facecolors": "none", "edgecolors": colours}
        ax.scatter(neuron[which], latent[which], s=16, marker=marker, alpha=0.85, label=label, **fill)
    ax.legend(fontsize=8, frameon=False, title="blue: the latent is better,\nred: the neuron; labels of",
              title_fontsize=8, loc="lower right")  # fmt: skip
    shown = np.flatnonzero(common)[np.argsort(-np.abs(gain[common]))[:11]]
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="F1 of the best neuron", ylabel="F1 of the best latent",
           title=f"{common.sum()} labels, chosen on half the documents, scored on the others")  # fmt: skip

    ax = axes[1, 1]
    for i, name in enumerate(results["names"]):
        density = results[f"density_{name}"]
        live = density > 0
        text = f"{name}: L0 {results['l0'][i]:.1f}, {(~live).sum()} silent"
        ax.hist(np.log10(density[live]), bins=np.linspace(-5.5, 0, 45), histtype="step", lw=1.4, label=text)
    ax.set(xlabel="log10 of the share of tokens on which a latent is on", ylabel="latents", title="densities")
    ax.legend(fontsize=8, frameon=False)
    plot.plain(axes.flat)
    figure.suptitle(
        f"One-layer transformer (MLP of {config.model.d_mlp}) on {results['sizes'][0] / 1e6:.1f} M tokens of Python "
        f"source (digest {results['digest']}); SAEs of its MLP, {config.steps * config.batch / 1e6:.1f} M tokens",
        fontsize=12,
    )
    plot.names(axes[1, 0], neuron[shown], latent[shown], [str(results["labels"][i]) for i in shown])
    return {"": figure}


def claims(results, config):
    """Fidelity by width and against baselines; latents against neurons, tokens and a model that learnt nothing."""
    names, common = [str(n) for n in results["names"]], _common(results)
    narrow = common & (results["latent_share"] <= BROAD)
    broad = common & ~narrow
    sides = "; ".join(f"{said} a median precision of {np.median(results[f'{kind}_precision'][broad]):.2f} and recall "
                      f"of {np.median(results[f'{kind}_recall'][broad]):.2f}"
                      for kind, said in (("latent", "the latents have"), ("neuron", "the neurons")))  # fmt: skip
    over = f"of the {broad.sum()} broad labels {(results['latent_f1'] > results['neuron_f1'])[broad].sum()}: {sides}"
    f1 = {k: results[f"{k}_f1"][common] for k in ("latent", "neuron", "token", "control")}
    loss = np.where(narrow, results["neuron_f1"] - results["latent_f1"], -1)
    lost = f"{(loss > 0).sum()} of them are lost, most of all " + ", ".join(
        f"{results['labels'][i]} ({results['latent_f1'][i]:.2f} to {results['neuron_f1'][i]:.2f})"
        for i in np.argsort(-loss)[:3]
    )  # fmt: skip
    gain = results["latent_draws"] - results["neuron_draws"]
    spreads = [
        (float(g.mean()), *np.percentile(g, (2.5, 97.5))) for g in (gain[:, common].mean(1), gain[:, narrow].mean(1))
    ]
    by_width = [float(_of(results, n)[0]) for n in names]
    baselines = [str(n) for n in results["fidelity_names"] if str(n).startswith("PCA") or str(n).endswith("neurons")]
    kl = {n: float(_of(results, n, "kl")[0]) for n in (*names, *baselines)}
    gap = float(results["unigram"] - results["lm_held"])
    correlation = results["latent_correlation"][common] - results["neuron_correlation"][common]
    return [
        Claim("the language model has learnt: held-out loss below that of token frequencies (nats)", "sanity", 1.0, gap,
              0.0, ">="),
        Claim("cross-entropy recovered of zero ablation rises with the width (smallest step between widths)",
              f"{PAPER}, CHECK of section 2", 0.0, float(np.diff(by_width).min()), 0.0, ">="),
        Claim(f"cross-entropy recovered of zero ablation, {names[-1]}",
              f"{PAPER}: 0.79 for A/1 (8x, L1), 0.945 for A/5 (256x)", 0.79, by_width[-1], 0.0, ">="),
        Claim(f"KL to the clean model: {names[-1]} below PCA and neurons of as many numbers a token (ratio)",
              "control", 1.0, kl[names[-1]] / min(kl[n] for n in baselines), 0.0, "<=",
              note=latents.beside_untrained(results)),
        Claim(f"share of the {common.sum()} labels whose best latent has a higher F1 than the best neuron",
              f"{PAPER}: features are cleaner than neurons; band, for the source differs by Python", 0.7,
              float((f1["latent"] > f1["neuron"]).mean()), 0.0, ">=", note=over),
        Claim(f"the same share, of the {narrow.sum()} labels that at most {BROAD:.0%} of the tokens carry", PAPER, 0.7,
              float((results["latent_f1"] > results["neuron_f1"])[narrow].mean()), 0.0, ">=", note=lost),
        *(Claim(f"F1 of the best latent less that of the best neuron, mean over {which} (low end of 95 %)",
                PAPER, 0.0, float(low), 0.0, ">=", note=f"mean {mean:.3f}, interval {low:.3f} to {high:.3f}")
          for which, (mean, low, high) in zip(("labels", "the narrow ones of them"), spreads, strict=True)),
        Claim("correlation with the label, best latent less best neuron, mean over labels", PAPER, 0.0,
              float(correlation.mean()), 0.0, ">="),
        Claim("F1 of the best latent less that of an SAE of an untrained model, mean over labels",
              "control (arXiv 2501.17727)", 0.0, float((f1["latent"] - f1["control"]).mean()), 0.0, ">=",
              note=f"latents {f1['latent'].mean():.3f}, these {f1['control'].mean():.3f}"),
        Claim("F1 of the best latent less that of the best set of token ids, mean over labels",
              "control: what no context is needed for", 0.0, float((f1["latent"] - f1["token"]).mean()), 0.0, ">=",
              note=f"latents {f1['latent'].mean():.3f}, token ids {f1['token'].mean():.3f}; above these for "
              f"{(f1['latent'] > f1['token']).mean():.0%} of labels"),
    ]  # fmt: skip


def tables(results, config):
    """Every label: F1 of the best latent, neuron, token set and control, with intervals."""
    rows = ["label,tokens,latent,latent_f1,latent_low,latent_high,latent_precision,latent_recall,neuron,neuron_f1,"
            "neuron_low,neuron_high,token_f1,control_f1,latent_correlation,neuron_correlation"]  # fmt: skip
    for i, label in enumerate(results["labels"]):
        values = [results["latent_tokens"][i], results["latent_unit"][i]]
        values += [results[f"latent_{p}"][i] for p in ("f1", "low", "high", "precision", "recall")]
        values += [results["neuron_unit"][i], *(results[f"neuron_{p}"][i] for p in ("f1", "low", "high"))]
        values += [results["token_f1"][i], results["control_f1"][i]]
        values += [results["latent_correlation"][i], results["neuron_correlation"][i]]
        rows.append(",".join([f'"{label}"', *(f"{v:.5g}" for v in values)]))
    return {"": "\n".join(rows) + "\n"}
