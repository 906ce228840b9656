"""A language model of a few layers on any corpus: what it has learnt, whether it uses its context, what it writes."""

import textwrap

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, language
from experiments.ledger import Claim
from superpose import plot
from superpose.lm import objective


def run(config, key, workdir):
    """Losses while training and on held-out text, by place in the context, and samples."""
    check.whole(config, "written")
    lm_key, text_key = jax.random.split(key)
    texts = language.texts(config, workdir)
    model, out = language.trained(config, texts, lm_key, workdir)
    total, count = objective.losses(model, language.judged(config, texts))
    written = language.sample(
        model, texts, text_key, tokens=config.context - 1, rows=config.written, temperature=config.temperature
    )
    return out | {
        "by_place": total / np.maximum(count, 1), "places": count, "written": np.array(written),
        "sizes": np.array([texts.train.lengths.sum(), texts.held.lengths.sum(), len(texts.train.names)]),
        "corpus": np.array(texts.corpus.name), "digest": np.array(texts.digest),
    }  # fmt: skip


def _between(results, low, high):
    """Mean loss over the places from ``low`` to ``high``, as shares of the context."""
    n = len(results["places"])
    part = slice(int(low * n), max(int(high * n), int(low * n) + 1))
    weight = results["places"][part]
    return float((results["by_place"][part] * weight).sum() / max(weight.sum(), 1))


def draw(results, config):
    """Loss by step; loss by place in the context; samples."""
    figure = plt.figure(figsize=(13.5, 7.6), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[1, 0.8])
    left, right, below = (figure.add_subplot(grid[at]) for at in ((0, 0), (0, 1), (1, slice(None))))
    plot.training_line(left, results["lm_steps"], results["lm_loss"], language.levels(results))
    left.set_title("training")
    right.plot(np.arange(1, len(results["by_place"]) + 1), results["by_place"], color="#3f6fb5", lw=1.1)
    right.axhline(float(results["unigram"]), color="0.4", lw=1, ls="--", label="token frequencies")
    right.set(xlabel="tokens before", ylabel="loss (nats)", title="held-out loss by place in the context", xscale="log",
              ylim=(0, None))  # fmt: skip
    right.legend(fontsize=8, frameon=False)
    plot.plain((left, right))
    columns = max(1, len(results["written"]))
    for i, text in enumerate(results["written"]):
        below.text(
            i / columns, 1, _page(str(text), 132 // columns, 22), family="monospace", fontsize=7, va="top",
            transform=below.transAxes, parse_math=False,
        )  # fmt: skip
    below.set_axis_off()
    below.set_title(f"what it writes (temperature {config.temperature})", loc="left")
    figure.suptitle(
        f"{config.model.layers}-layer transformer, d_model {config.model.d_model}; {results['sizes'][0] / 1e6:.1f} M "
        f"tokens of {results['corpus']} (digest {results['digest']})", fontsize=12,
    )  # fmt: skip
    return {"": figure}


def _page(text, width, lines):
    """A text cut to a column; signs that the font can't show stand as dots."""
    clean = "".join(c if c.isprintable() or c == "\n" else "." for c in text.expandtabs(4))
    folded = [part for line in clean.splitlines() for part in textwrap.wrap(line, width, drop_whitespace=False) or [""]]
    return "\n".join(folded[:lines])


def claims(results, config):
    """It has learnt, it uses its context, and it is not the training text alone that it knows."""
    early, late = _between(results, 0.125, 0.25), _between(results, 0.75, 1.0)
    n = len(results["places"])
    spread = [results["by_place"][int(a * n) : int(b * n)].std() for a, b in ((0.125, 0.25), (0.75, 1.0))]
    return [
        Claim("held-out loss below that of token frequencies (nats)", "sanity", 1.0,
              float(results["unigram"] - results["lm_held"]), 0.0, ">="),
        Claim("loss in the last quarter of a context less that in its second eighth (nats)",
              "in-context learning (Olsson et al. 2022)", 0.0, late - early, 0.0, "<=",
              note=f"{late:.3f} and {early:.3f}; standard deviation over the places of each {spread[1]:.3f} and "
              f"{spread[0]:.3f}; over documents it was not measured"),
        Claim("held-out loss over the last training loss", "reported", [0.9, 2.0],
              float(results["lm_held"] / results["lm_loss"][-1]), 0.0, "in"),
    ]  # fmt: skip
