"""SAEs on stored activations: trained, exported, scored, spliced back into the model.

A residual or MLP SAE reads and writes one site; with ``config.reads`` it is a transcoder from one site to another;
several names in ``config.sites`` make a crosscoder.
"""

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, kinds, language, latents
from experiments.ledger import Claim
from superpose import plot
from superpose.interp import fidelity
from superpose.interp.store import Shuffled, Store
from superpose.lm import text
from superpose.sae import formats, metrics
from superpose.sae.model import SAE
from superpose.train.fit import fit
from superpose.train.progress import say


def _place(config):
    """Sites as ``Shuffled`` takes them, and the names side by side."""
    names = tuple(config.sites)
    if not names:
        raise ValueError("sites is empty: name at least one site of the store")
    if config.reads:
        if len(names) > 1:
            raise ValueError("a transcoder writes one site: give one in sites, and what it reads in reads")
        return (config.reads, names[0]), 1
    return (names[0] if len(names) == 1 else (names,)), len(names)


def _opened(config):
    """The store, whole and of the model that is given."""
    expect = None
    if config.model:
        expect = language.identity(config.model)
    store = Store(config.store, expect=expect, skip_damaged=config.skip_damaged)
    if not (store.whole or config.skip_damaged):
        raise ValueError(
            f"the harvest of {config.store} did not come to its end: go on with it, or take what is there by "
            "skip_damaged=True"
        )
    if store.blocks < 2:
        raise ValueError(f"{config.store} has one block of rows, and one is held out: harvest more or smaller blocks")
    return store


def run(config, key, workdir):
    """Scores of every SAE on blocks that were held out, and, with a model, what splicing it in costs."""
    check.whole(config, "batch", "steps", "log_every", "held")
    asked, count = _place(config)
    store = _opened(config)
    last = store.blocks - max(1, store.blocks // 20)  # the end of the corpus is scored on and not trained on
    source = Shuffled(store, asked, config.batch, config.seed, config.window, range(last))
    sample = next(source)
    source.set_state({"epoch": 0, "at": 0})
    pair = isinstance(sample, tuple)
    x, y = sample if pair else (sample, sample)
    given = {"sites": count} if count > 1 else {}
    given |= {"d_out": y.shape[1], "center": False} if pair else {}
    if pair and (config.kind.scale != "none" or config.kind.centre != "zero"):
        raise ValueError("a transcoder's inputs and outputs differ: leave kind.scale=none and kind.centre=zero")
    kind = kinds.kind(config.kind, x.shape[1], config.steps, config.seeds, x, **given)
    result = fit(
        kind.population, steps=config.steps, key=key, source=source, workdir=workdir / "fit",
        log_every=config.log_every, title="SAEs",
    )  # fmt: skip
    facts = store.manifest.facts or {}
    plain = [member for i, member in enumerate(kinds.plain(kind, result)) if result.frozen_at[i] < 0]
    if not plain:
        raise ValueError("every SAE diverged: lower kind.recipe.lr")
    saes = {f"{i}": SAE(*member) for i, member in enumerate(plain)}
    for name, (arch, params) in zip(saes, plain, strict=True):
        about = formats.Metadata(
            model=facts.get("model"), site=config.reads or config.sites[0], site_out=config.sites[0] if pair else None,
            context=facts.get("context"), prepend_bos=facts.get("bos"),
        )  # fmt: skip
        if count == 1:
            try:
                formats.write_saelens(workdir / "export" / name, arch, params, about)
            except ValueError as error:
                say(f"SAE {name} is not exported: {error}")

    blocks = range(last, store.blocks)
    rows = int(Shuffled(store, asked, 1, blocks=blocks).rows_an_epoch)
    held = Shuffled(store, asked, min(config.batch, rows), config.seed, config.window, blocks)
    sums: dict[str, Any] = dict.fromkeys(saes)
    for _ in range(min(config.held, rows // held.batch)):
        batch = next(held)
        x, y = batch if pair else (batch, batch)
        for name, sae in saes.items():
            sums[name] = metrics.add(sums[name], _sums(sae, x, y))
    scores = [metrics.scores(total) for total in sums.values()]
    out = {
        "l0": np.array([s.l0 for s in scores]), "explained_variance": np.array([s.explained_variance for s in scores]),
        "dead": np.array([s.dead.latents for s in scores]), "rows": np.asarray(len(store)),
        "error": result.history["error"], "error_steps": result.history_steps,
        "fidelity_names": np.zeros(0, "<U1"),
    }  # fmt: skip
    if not config.model or count > 1:
        return out
    model, tokenizer = language.read(config.model)
    corpus = language.corpus(config.corpus)
    language.say_skipped(corpus)
    same = corpus.digest() == facts.get("corpus_digest")
    if same:
        say("the texts that SAEs are spliced in are those that were harvested: give others for a held-out number")
    contexts = text.contexts(corpus, tokenizer, facts.get("context", 128), bos=bool(facts.get("bos", True)))
    chosen = np.unique(np.linspace(0, len(contexts.tokens) - 1, min(len(contexts.tokens), config.judged)).astype(int))
    found = fidelity.moments(store.batches([config.sites[0]], 2**13), config.sites[0])
    k = max(1, round(float(np.median(out["l0"]))))
    replacements = {f"SAE {name}": fidelity.through(sae) for name, sae in saes.items()}
    if not pair:
        replacements |= {f"PCA {k}": fidelity.pca(found, k), f"{k} neurons": fidelity.top_neurons(k)}
    totals = fidelity.measure(
        model, config.sites[0], replacements, contexts.rows(chosen), found.mean.astype(np.float32),
        reads=config.reads or None, special=tuple(facts.get("special", ())), first=facts.get("first", 0),
        outlier=facts.get("outlier"), batch=16,
    )  # fmt: skip
    table = fidelity.scores(totals)
    parts = fidelity.Score._fields
    return out | {
        "fidelity_names": np.array(list(table)),
        "texts_harvested": np.asarray(same),
        **{f"fidelity_{part}": np.array([getattr(s, part) for s in table.values()]) for part in parts},
    }


@jax.jit
def _sums(sae, x, y):
    return metrics.sums(y, sae(x), sae.encode(x))


def draw(results, config):
    """Error while training; L0 against explained variance; cross-entropy recovered beside baselines."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.3), dpi=110, layout="constrained")
    axes[0].set(xlabel="step", ylabel="error (as trained)", yscale="log", title="training")
    axes[1].set(xlabel="$L_0$", ylabel="explained variance", title="rows of the store that were held out")
    axes[1].margins(0.15)
    for i, (l0, explained) in enumerate(zip(results["l0"], results["explained_variance"], strict=True)):
        axes[0].plot(results["error_steps"], results["error"][:, i], lw=1.1, color=f"C{i}", label=f"SAE {i}")
        axes[1].plot(l0, explained, "o", color=f"C{i}")
        axes[1].annotate(f"SAE {i}", (l0, explained), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes[0].legend(fontsize=8, frameon=False)
    order = [str(n) for n in results["fidelity_names"] if n not in ("clean", "zero", "mean")]
    if order:
        plot.interval_bars(axes[2], *latents.recovered_bars(results, order))
        on = "harvested" if results["texts_harvested"] else "other"
        axes[2].set_title(f"cross-entropy recovered, {on} texts")
        axes[2].set_ylim(top=1.2)
        axes[2].legend(fontsize=8, loc="upper left", ncols=2, frameon=False)
    else:
        axes[2].text(
            0.5, 0.5, "no model given (config.model):\nnot spliced in", ha="center", transform=axes[2].transAxes
        )
    plot.plain(axes)
    figure.suptitle(f"{config.kind.activation} SAEs of {', '.join(config.sites)} on {int(results['rows']):,} rows")
    return {"": figure}


def claims(results, config):
    """The SAE says more about the model than as many principal components or neurons."""
    names = [str(n) for n in results["fidelity_names"]]
    base = [n for n in names if n.startswith("PCA") or n.endswith("neurons")]
    made = [n for n in names if n.startswith("SAE")]
    out = [Claim("explained variance on held-out rows (smallest)", "sanity", 0.0,
                 float(results["explained_variance"].min()), 0.0, ">=")]  # fmt: skip
    if base and made:
        kl = results["fidelity_kl"][:, 0]
        best, other = (min(kl[names.index(n)] for n in group) for group in (made, base))
        on = "the harvested" if results["texts_harvested"] else "other"
        out.append(Claim(f"KL to the clean model on {on} texts: best SAE over best of PCA and neurons", "control", 1.0,
                         float(best / other), 0.0, "<="))  # fmt: skip
    return out
