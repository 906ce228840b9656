"""Activations of a language model over a corpus, kept in a store.

The model's files are read from ``config.model``; ``config.plan`` says bytes and time and stops there.
"""

import time

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, language
from experiments.ledger import Claim
from superpose import plot
from superpose.interp.harvest import Choice, Harvest
from superpose.interp.store import Store, mixing
from superpose.lm import sites, text
from superpose.train.progress import say

PERCENTILES = (1, 25, 50, 75, 99)


def run(config, key, workdir):
    """Rows, bytes and seconds as planned and as they came; norms of each site by position; mixing of a reader."""
    check.whole(config, "context", least=2)
    check.whole(config, "passes", "shard", "block")
    if not config.sites:
        raise ValueError("sites is empty: name at least one, as resid_post.3")
    model, tokenizer, name = language.read(config.model)
    corpus = language.corpus(config.corpus)
    contexts = text.contexts(corpus, tokenizer, config.context, bos=config.bos, tokens=config.tokens or None)
    special = tokenizer.special if config.leave_special else ()
    names = [sites.resolve(model.config, site) for site in config.sites]
    harvest = Harvest(
        sites.capture(model, names), contexts, config.passes, Choice(special, config.first, config.outlier or None)
    )
    plan = harvest.plan(config.dtype)
    say(f"{plan['rows']:,} rows at most, {plan['bytes'] / 1e9:.3f} GB, about {plan['seconds'] / 60:.1f} minutes")
    out = {f"planned_{k}": np.asarray(v) for k, v in plan.items()}
    out |= {"digest": np.asarray(corpus.digest()), "sites": np.array(names), "written": np.asarray(0)}
    if config.plan:
        return out
    place = config.store or workdir / "store"
    facts = {
        "model": name, "corpus": corpus.name, "corpus_digest": str(out["digest"]), "tokenizer": tokenizer.digest(),
        "bos": config.bos,
    }  # fmt: skip
    clock = time.perf_counter()
    harvest.save(place, facts, dtype=config.dtype, shard=config.shard, block=config.block)
    seconds = time.perf_counter() - clock
    store = Store(place)
    norms = {site: [np.zeros(0)] for site in names}
    positions = [np.zeros(0, int)]
    for rows in store.batches(names, 2**14):
        positions.append(rows.positions % config.context)
        for site in names:
            norms[site].append(np.asarray(jnp.linalg.norm(jnp.asarray(rows.values[site]), axis=-1)))
    where = np.concatenate(positions)
    table = np.full((len(names), config.context, len(PERCENTILES)), np.nan)
    for i, site in enumerate(names):
        values = np.concatenate(norms[site])
        for p in np.unique(where):
            table[i, p] = np.percentile(values[where == p], PERCENTILES)
    batch = min(256, len(store) // 4)
    return out | {
        "written": np.asarray(len(store)), "seconds": np.asarray(seconds), "norms": table,
        "mixing": np.asarray(mixing(store, batch, 16) if batch >= 2 and len(contexts.names) > 1 else np.nan),
        "dropped": np.asarray(harvest.dropped), "kept_by_rule": np.asarray(_kept(contexts, special, config.first)),
    }  # fmt: skip


def _kept(contexts, special, first):
    """How many tokens the rule keeps, norms left aside."""
    place = np.arange(contexts.tokens.shape[1])
    return int((contexts.mask & (place >= first) & ~np.isin(contexts.tokens, special)).sum())


def draw(results, config):
    """Norms of each site over the positions of a context: outliers, and the first tokens, stand out."""
    names = [str(s) for s in results["sites"]]
    figure, axes = plt.subplots(
        1, len(names), figsize=(4.2 * len(names) + 0.6, 3.8), dpi=110, squeeze=False, layout="constrained"
    )
    for i, ax in enumerate(axes[0]):
        if results["written"]:
            x = np.arange(results["norms"].shape[1])
            low, quarter, median, three, high = results["norms"][i].T
            ax.fill_between(x, low, high, color="#3f6fb5", alpha=0.18, lw=0, label="1 to 99 %")
            ax.fill_between(x, quarter, three, color="#3f6fb5", alpha=0.35, lw=0, label="25 to 75 %")
            ax.plot(x, median, color="#3f6fb5", label="median")
            ax.set_yscale("log")
            ax.legend(fontsize=8, frameon=False)
        ax.set(title=names[i], xlabel="position in the document, modulo the context", ylabel="norm" if not i else "")
    plot.plain(axes[0])
    figure.suptitle(f"{int(results['written']):,} rows harvested, corpus {results['digest']}", fontsize=11)
    return {"": figure}


def claims(results, config):
    """No row is lost or doubled, the plan was right, a shuffled reader mixes documents."""
    if not results["written"]:
        return []
    size = float(results["written"] + results["dropped"])
    return [
        Claim("rows in the store, those left out for their norm added, are the tokens that the rule keeps",
              "by construction", float(results["kept_by_rule"]), size, 0.0),
        Claim("the plan's bytes over those written", "plan", 1.0,
              float(results["planned_rows"] / max(results["written"], 1)), 0.25),
        Claim("pairs of rows of one document in a shuffled batch, over chance", "mixing", 1.0, float(results["mixing"]),
              0.2),
    ]  # fmt: skip
