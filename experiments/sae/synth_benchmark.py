"""Which kind of SAE finds the features of a world with hierarchy, correlation and superposition, at equal L0?

SynthSAEBench (Chanin & Garriga-Alonso 2026, arXiv 2602.14687) at smaller sizes.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from experiments import check, kinds
from experiments.ledger import Claim
from superpose import plot
from superpose.train.fit import Sampler
from superpose.worlds import structured

PAPER = "SynthSAEBench, 16k features, L0 = 25"
PUBLISHED = {
    "l1": (0.556, 0.604, 0.765),
    "jumprelu": (0.732, 0.753, 0.795),
    "batch_topk": (0.732, 0.757, 0.792),
    "matryoshka": (0.879, 0.793, 0.779),
    "matching_pursuit": (0.446, 0.693, 0.835),
}
"""(F1, MCC, explained variance) of the published benchmark, there 16 times as many features."""
NAMES = {
    "l1": "L1", "gated": "Gated", "jumprelu": "JumpReLU", "topk": "TopK", "batch_topk": "BatchTopK",
    "matryoshka": "Matryoshka", "abs_topk": "signed TopK", "matching_pursuit": "matching\npursuit",
}  # fmt: skip
LATER = (
    "JumpReLU's controller and the number of held-out batches were set after a first full run that missed this by "
    "26 %; a run with seed 1 after that keeps to it"
)
SHORT = (
    "the 4k run sees a million samples, the published one 200 million; which of both makes the difference, and not "
    "the world's size, was not measured"
)


def run(config, key, workdir):
    """``{kind}_{score}`` [seeds] of every kind, and the truth's mean L0 and overlap."""
    check.whole(
        config, "n", "d", "d_sae", "roots", "seeds", "batch", "steps", "log_every", "eval_batch", "eval_batches"
    )
    check.positive(config, "true_l0", "l0")
    world_key, sample_key, train_key, eval_key = jax.random.split(key, 4)
    embedding = kinds.world(config, world_key)
    sample = np.asarray(embedding.sample(sample_key, 4096))
    made = kinds.at_l0(config, config.d, sample)
    source = Sampler(lambda key: embedding.sample(key, config.batch), shared=True)
    trained = kinds.train(made, config, train_key, source, workdir / "fit", f"{config.n} features")
    features = np.asarray(embedding.both(sample_key, 2**14)[1])
    out = kinds.scored(made, trained, kinds.judge(embedding, config.eval_batch, config.eval_batches, eval_key))
    return out | {
        "true_l0": (features > 0).sum(1).mean(),
        "rho": np.asarray(structured.overlaps(embedding.directions).largest).mean(),
        "order": np.asarray(list(made)),
    }


def draw(results, config):
    """F1, MCC, explained variance and L0: a bar a kind, a dot a seed, an open circle for the published 16k number."""
    order = [k for k in NAMES if k in results["order"]]
    panels = (
        ("f1", "F1, mean over latents"),
        ("mcc", "MCC"),
        ("explained_variance", "explained variance"),
        ("l0", "$L_0$"),
    )
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), dpi=110, layout="constrained")
    for p, (ax, (score, title)) in enumerate(zip(axes.flat, panels, strict=True)):
        values = np.stack([results[f"{k}_{score}"] for k in order])
        plot.score_bars(ax, values, [NAMES[k] for k in order], title, [list(NAMES).index(k) for k in order])
        if score == "l0":
            ax.axhline(config.l0, color="k", lw=0.8, ls="--")
            ax.text(len(order) - 0.4, config.l0, "target", fontsize=8, va="bottom", ha="right")
        else:
            known = [(i, PUBLISHED[k][p]) for i, k in enumerate(order) if k in PUBLISHED]
            ax.plot(*zip(*known, strict=True), "o", mfc="none", mec="k", ms=8, ls="none")
            ax.set_ylim(0, 1)
    figure.suptitle(
        f"SynthSAEBench at {config.n:,} features in {config.d} dimensions, {config.d_sae} latents; {config.seeds} seeds"
        "\ndots: seeds; open circles: the published benchmark, 16,384 features in 768 dimensions, L0 = 25",
        fontsize=11,
    )
    return {"": figure}


def _order(results, score, place):
    """Spearman's rank correlation of the kinds' means with the published, and both orders in words."""
    known = [k for k in results["order"] if k in PUBLISHED]
    ours = np.array([results[f"{k}_{score}"].mean() for k in known])
    theirs = np.array([PUBLISHED[k][place] for k in known])
    rho = float(stats.spearmanr(ours, theirs).statistic)
    return rho, ", ".join(f"{known[i]} {ours[i]:.3f} ({theirs[i]:.3f})" for i in np.argsort(-ours))


def claims(results, config):
    """The order of the kinds in F1 and explained variance, and that the comparison is fair: equal L0."""
    order = list(results["order"])
    f1, variance, l0 = ({k: results[f"{k}_{s}"] for k in order} for s in ("f1", "explained_variance", "l0"))
    others = [k for k in order if k != "matching_pursuit"]
    worst, best = np.min([f1[k].mean() for k in others]), np.max([variance[k].mean() for k in others])
    off = float(np.max([np.abs(v / config.l0 - 1).max() for v in l0.values()]))
    rest = np.max([f1[k].mean() for k in order if k != "matryoshka"])
    ranks = [
        Claim(f"{said}: the kinds stand in the published order (Spearman's rank correlation of their means)",
              f"{PAPER}: {PUBLISHED['batch_topk'][place]} of BatchTopK, and so on", 0.8, rho, 0.0, ">=",
              note=f"ours (published) {words}")
        for said, place, (rho, words) in (
            (said, place, _order(results, score, place))
            for place, (score, said) in enumerate((("f1", "F1"), ("mcc", "MCC"),
                                                   ("explained_variance", "explained variance"))))
    ]  # fmt: skip
    return [
        *ranks,
        Claim("F1 of Matryoshka is first (difference to the highest of the others, means)", f"{PAPER}: 0.879 and 0.732",
              0.0, float(f1["matryoshka"].mean() - rest), 0.0, ">=",
              note=SHORT if f1["matryoshka"].mean() < rest else ""),
        Claim("the world's superposition: mean over features of the largest |cosine| with another",
              f"{PAPER}: about 0.15", 0.15, float(results["rho"]), 0.05,
              note="fewer dimensions in all than there: d = n/16 of smaller n"),
        Claim(f"the truth's mean L0 is {config.true_l0:g}", "by construction", config.true_l0,
              float(results["true_l0"]), 0.05 * config.true_l0),
        Claim("every SAE's L0 on held-out samples is the target's (largest relative difference)",
              "fair comparison", 0.0, off, 0.05, "<=", note=LATER if config.variant == "4k" else ""),
        Claim("F1 of Matryoshka above BatchTopK (smallest minus largest seed)", f"{PAPER}: 0.879 and 0.732", 0.0,
              float(f1["matryoshka"].min() - f1["batch_topk"].max()), 0.0, ">="),
        Claim("F1 of JumpReLU above L1 (smallest minus largest seed)", f"{PAPER}: 0.732 and 0.556", 0.0,
              float(f1["jumprelu"].min() - f1["l1"].max()), 0.0, ">="),
        Claim("F1 of matching pursuit is last (difference to the lowest of the others, means)",
              f"{PAPER}: 0.446 and 0.556", 0.0, float(f1["matching_pursuit"].mean() - worst), 0.0, "<=",
              note=SHORT if f1["matching_pursuit"].mean() > worst else ""),
        Claim("explained variance of matching pursuit is first (difference to the highest of the others, means)",
              f"{PAPER}: 0.835 and 0.795", 0.0, float(variance["matching_pursuit"].mean() - best), 0.0, ">="),
    ]  # fmt: skip
