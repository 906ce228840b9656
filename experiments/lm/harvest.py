"""Activations of a language model over a corpus, kept in a store.

The model's files are read from ``config.model``; ``config.plan`` says bytes and time and stops there.
"""

import time
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, language
from experiments.fingerprint import code_fingerprint
from experiments.ledger import Claim
from superpose import plot
from superpose.interp.harvest import Choice, Harvest
from superpose.interp.store import DTYPES, Store, mixing
from superpose.lm import sites, text
from superpose.train.progress import say

PERCENTILES = (1, 25, 50, 75, 99)


def run(config, key, workdir):
    """Rows, bytes and seconds as planned and as they came; norms of each site by position; mixing of a reader."""
    check.whole(config, "passes", "shard", "block")
    check.whole(config, "tokens", "first", least=0)
    check.not_negative(config, "outlier")
    if config.dtype not in DTYPES:
        raise ValueError(f"unknown dtype {config.dtype!r} of a store: choose one of {', '.join(DTYPES)}")
    if not config.sites:
        raise ValueError("sites is empty: name at least one, as resid_post.3")
    model, tokenizer = language.read(config.model)
    context = language.context(config, model)
    corpus = language.corpus(config.corpus)
    language.say_skipped(corpus)
    contexts = text.contexts(corpus, tokenizer, context, bos=config.bos, tokens=config.tokens or None)
    special = tokenizer.special if config.leave_special else ()
    names = [sites.resolve(model.config, site) for site in config.sites]
    harvest = Harvest(
        sites.capture(model, names), contexts, config.passes, Choice(special, config.first, config.outlier or None)
    )
    plan = harvest.plan(config.dtype)
    if not plan["rows"]:
        raise ValueError(
            f"no token is left to harvest: the first {config.first} of each context of {context} are left out, and "
            "special tokens; lower first, or give more texts"
        )
    say(f"{plan['rows']:,} rows at most, {plan['bytes'] / 1e9:.3f} GB, about {plan['seconds'] / 60:.1f} minutes")
    out = {f"planned_{k}": np.asarray(v) for k, v in plan.items()}
    out |= {"digest": np.asarray(corpus.digest()), "sites": np.array(names), "written": np.asarray(0)}
    out |= {"skipped": np.asarray(len(corpus.skipped))}
    if config.plan:
        return out
    place = config.store or workdir / "store"
    facts = language.identity(config.model) | {
        "corpus": corpus.name, "corpus_digest": str(out["digest"]), "skipped": len(corpus.skipped), "bos": config.bos,
        "code": code_fingerprint("lm.harvest"),
    }  # fmt: skip
    clock = time.perf_counter()
    harvest.save(place, facts, dtype=config.dtype, shard=config.shard, block=config.block)
    seconds = time.perf_counter() - clock
    store = Store(place)
    if not len(store):
        raise ValueError(
            f"every token was left out for its norm: outlier={config.outlier:g} times the median is too few; remove "
            f"{place} and harvest again"
        )
    norms = {site: [np.zeros(0)] for site in names}
    where = [np.zeros(0, int)]
    begin = int(config.bos and tokenizer.bos is not None)
    for rows in store.batches(names, 2**14):
        inside = rows.positions % (context - begin) + begin
        where.append(np.where(begin & (rows.tokens == tokenizer.bos), 0, inside) if begin else inside)
        for site in names:
            norms[site].append(np.asarray(jnp.linalg.norm(jnp.asarray(rows.values[site]), axis=-1)))
    places = np.concatenate(where)
    table = np.full((len(names), context, len(PERCENTILES)), np.nan)
    for i, site in enumerate(names):
        values = np.concatenate(norms[site])
        for p in np.unique(places):
            table[i, p] = np.percentile(values[places == p], PERCENTILES)
    batch = min(256, len(store) // 4)
    local = Path(str(place).removeprefix("file://"))
    size = sum(p.stat().st_size for p in local.rglob("*.bin")) if local.is_dir() else np.nan
    return out | {
        "written": np.asarray(len(store)), "seconds": np.asarray(seconds), "norms": table, "bytes": np.asarray(size),
        "mixing": np.asarray(mixing(store, batch, 16) if batch >= 2 and len(contexts.names) > 1 else np.nan),
        "dropped": np.asarray(store.dropped),
    }  # fmt: skip


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
        ax.set(title=names[i], xlabel="place in the context", ylabel="norm" if not i else "")
    plot.plain(axes[0])
    figure.suptitle(f"{int(results['written']):,} rows harvested, corpus {results['digest']}", fontsize=11)
    return {"": figure}


def claims(results, config):
    """No row is lost or doubled, the plan was right, a shuffled reader mixes documents."""
    if not results["written"]:
        return []
    size = float(results["written"] + results["dropped"])
    per_row = float(results["planned_bytes"] / results["planned_rows"])
    out = [
        Claim("rows in the store, those left out for their norm added, are the tokens that the rule keeps",
              "by construction", float(results["planned_rows"]), size, 0.0),
    ]  # fmt: skip
    if np.isfinite(results["bytes"]):
        out.append(Claim("bytes a row on disk over those planned", "plan", 1.0,
                         float(results["bytes"] / results["written"] / per_row), 0.01))  # fmt: skip
    if np.isfinite(results["mixing"]):  # of one document there is nothing to mix
        out.append(Claim("pairs of rows of one document in a shuffled batch, over chance", "mixing", 1.0,
                         float(results["mixing"]), 0.2))  # fmt: skip
    return out
