"""SAEs on activations: trained, exported, scored, spliced back into the model.

Rows come from a store, from a folder of arrays written elsewhere, or straight from the model. A residual or MLP SAE
reads and writes one site; with ``config.reads`` it is a transcoder from one site to another; several names in
``config.sites`` make a crosscoder.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, kinds, language, latents
from experiments.ledger import Claim
from superpose import plot
from superpose.interp import fidelity
from superpose.interp.harvest import Choice, Harvest, Live
from superpose.interp.store import Foreign, Rows, Shuffled, Store, shaped
from superpose.lm import sites, text
from superpose.sae import formats, metrics
from superpose.sae.model import SAE
from superpose.train.fit import fit
from superpose.train.progress import say


def _place(reads, names):
    """Sites as ``Shuffled`` and ``Live`` take them, and how many stand side by side."""
    if not names:
        raise ValueError("sites is empty: name at least one site")
    if reads:
        if len(names) > 1:
            raise ValueError("a transcoder writes one site: give one in sites, and what it reads in reads")
        return (reads, names[0]), 1
    return (names[0] if len(names) == 1 else (names,)), len(names)


class _Source(NamedTuple):
    """Where rows come from.

    Attributes:
        stream: what is trained on.
        held: batches of what is not.
        rows: how many there are in all.
        site, reads: what is reconstructed and what is encoded, as rows call them.
        written: rows of the site, of what is trained on.
        facts: as of a store's manifest.
        texts: contexts that were held out, where the rows come from a model.
    """

    stream: Any
    held: Callable[[], Iterator[Any]]
    rows: int
    site: str
    reads: str
    written: Callable[[], Iterator[Rows]]
    facts: Mapping[str, Any]
    texts: Any = None


def _stored(config, model, tokenizer):
    """A store, whole and of the model that is given, or arrays written elsewhere; its last 20th is held out."""
    place = Path(config.store)
    if place.is_dir() and not (place / "manifest.json").exists() and any(
        p.suffix in (".npy", ".safetensors") for p in place.iterdir()
    ):  # fmt: skip
        store: Store = Foreign(place, site=config.sites[0])
        facts = _facts(config, tokenizer, language.context(config, model)) if model is not None else {}
        if model is not None:
            wide, given = sites.width(model.config, config.sites[0]), store.width(config.sites[0])
            if wide != given:
                raise ValueError(
                    f"{place} holds rows of {given} numbers, and {config.sites[0]} of the model has {wide}"
                )
            say(f"nothing says that the rows of {place} are of this model: that is taken on trust")
    else:
        expect = language.identity(config.model) if config.model else None
        store = Store(config.store, expect=expect, skip_damaged=config.skip_damaged)
        facts = store.manifest.facts or {}
    named = lambda name: name if name in store.manifest.sites or not name else sites.plain(name)  # noqa: E731
    written, reads = tuple(named(name) for name in config.sites), named(config.reads)
    asked, _ = _place(reads, written)
    if not (store.whole or config.skip_damaged):
        raise ValueError(
            f"the harvest of {config.store} did not come to its end: go on with it, or take what is there by "
            "skip_damaged=True"
        )
    if not store.blocks:
        raise ValueError(f"{config.store} holds no row: harvest more texts, or leave fewer tokens out")
    if store.blocks < 2:
        raise ValueError(f"{config.store} has one block of rows, and one is held out: harvest more or smaller blocks")
    last = store.blocks - max(1, store.blocks // 20)
    mixed = lambda batch, blocks: Shuffled(store, asked, batch, config.seed, config.window, blocks)  # noqa: E731
    rows = int(mixed(1, range(last, store.blocks)).rows_an_epoch)
    size = min(config.batch, rows)

    def held():
        stream = mixed(size, range(last, store.blocks))
        return (next(stream) for _ in range(min(config.held, rows // size)))

    return _Source(
        mixed(config.batch, range(last)), held, len(store), written[0], reads,
        lambda: store.batches([written[0]], 2**13), facts,
    )  # fmt: skip


def _facts(config, tokenizer, context):
    """What a manifest says of contexts and of tokens left out, by the config."""
    special = list(tokenizer.special) if config.leave_special else []
    return {"context": context, "bos": config.bos, "special": special, "first": config.first,
            "outlier": config.outlier or None}  # fmt: skip


def _streamed(config, model, tokenizer):
    """Straight from the model; the last 20th of the contexts is held out."""
    if model is None:
        raise ValueError("give a store, or a model and a corpus, whose activations are then trained on without a disk")
    check.whole(config, "passes", "generation")
    check.whole(config, "tokens", "first", least=0)
    check.not_negative(config, "outlier")
    context = language.context(config, model)
    corpus = language.corpus(config.corpus)
    language.say_skipped(corpus)
    contexts = text.contexts(corpus, tokenizer, context, bos=config.bos, tokens=config.tokens or None)
    n = len(contexts.tokens)
    last = n - max(1, n // 20)
    if last < 1:
        raise ValueError(f"the corpus fills one context of {context} tokens, and one is held out: give more")
    facts = _facts(config, tokenizer, context)
    choice = Choice(tuple(facts["special"]), facts["first"], facts["outlier"])
    written = tuple(sites.resolve(model.config, name) for name in config.sites)
    reads = sites.resolve(model.config, config.reads) if config.reads else ""
    asked, _ = _place(reads, written)
    names = list(dict.fromkeys([*written, *([reads] if reads else [])]))
    harvest = Harvest(sites.capture(model, names), contexts, config.passes, choice)
    spread = lambda first, end, most: np.unique(np.linspace(first, end - 1, min(end - first, most)).astype(int))  # noqa: E731
    counted = harvest.count(np.arange(last, n))
    if not counted:
        raise ValueError("what is held out has no row: give more texts, or leave fewer tokens out")
    enough = -(-config.held * config.batch * (n - last) // counted)

    def held():
        found = list(harvest.rows(spread(last, n, enough)))
        values = {name: np.concatenate([f.values[name] for f in found]) for name in names}
        rows = len(values[names[0]])
        size = min(config.batch, rows)
        for i in range(0, min(config.held, rows // size) * size, size):
            yield shaped({name: v[i : i + size].astype(np.float32) for name, v in values.items()}, asked)

    train, judged = harvest.of(contexts.rows(np.arange(last))), contexts.rows(np.arange(last, n))
    return _Source(
        Live(train, asked, config.batch, config.seed, config.generation), held, harvest.count(np.arange(n)), written[0],
        reads, lambda: harvest.rows(spread(0, last, 512)),
        {**facts, **language.identity(config.model), "corpus_digest": corpus.digest()}, judged,
    )  # fmt: skip


def run(config, key, workdir):
    """Scores of every SAE on rows that were held out, and, with a model, what splicing it in costs."""
    check.whole(config, "batch", "steps", "log_every", "held")
    _, count = _place(config.reads, tuple(config.sites))
    model, tokenizer = language.read(config.model) if config.model else (None, None)
    made = (_stored if config.store else _streamed)(config, model, tokenizer)
    source, start = made.stream, made.stream.get_state()
    sample = next(source)
    source.set_state(start)
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
    facts = made.facts
    plain = [member for i, member in enumerate(kinds.plain(kind, result)) if result.frozen_at[i] < 0]
    if not plain:
        raise ValueError("every SAE diverged: lower kind.recipe.lr")
    saes = {f"{i}": SAE(*member) for i, member in enumerate(plain)}
    for name, (arch, params) in zip(saes, plain, strict=True):
        about = formats.Metadata(
            model=facts.get("model"), site=made.reads or made.site, site_out=made.site if pair else None,
            context=facts.get("context"), prepend_bos=facts.get("bos"),
        )  # fmt: skip
        if count > 1:
            say(f"SAE {name} is a crosscoder: it is not exported, and has no one place to be spliced in")
        else:
            try:
                formats.write_saelens(workdir / "export" / name, arch, params, about)
            except ValueError as error:
                say(f"SAE {name} is not exported: {error}")

    sums: dict[str, Any] = dict.fromkeys(saes)
    for batch in made.held():
        x, y = batch if pair else (batch, batch)
        for name, sae in saes.items():
            sums[name] = metrics.add(sums[name], _sums(sae, x, y))
    scores = [metrics.scores(total) for total in sums.values()]
    out = {
        "l0": np.array([s.l0 for s in scores]), "explained_variance": np.array([s.explained_variance for s in scores]),
        "dead": np.array([s.dead.latents for s in scores]), "rows": np.asarray(made.rows),
        "error": result.history["error"][:, result.frozen_at < 0], "error_steps": result.history_steps,
        "fidelity_names": np.zeros(0, "<U1"),
    }  # fmt: skip
    if model is None or tokenizer is None or count > 1:
        return out
    if made.texts is None:
        corpus = language.corpus(config.corpus)
        language.say_skipped(corpus)
        same = corpus.digest() == facts.get("corpus_digest")
        if same:
            say("the texts that SAEs are spliced in are those that were harvested: give others for a held-out number")
        contexts = text.contexts(corpus, tokenizer, facts.get("context", 128), bos=bool(facts.get("bos", True)))
    else:
        same, contexts = False, made.texts
    chosen = np.unique(np.linspace(0, len(contexts.tokens) - 1, min(len(contexts.tokens), config.judged)).astype(int))
    found = fidelity.moments(made.written(), made.site)
    k = max(1, round(float(np.median(out["l0"]))))
    replacements = {f"SAE {name}": fidelity.through(sae) for name, sae in saes.items()}
    if not pair:
        replacements |= {f"PCA {k}": fidelity.pca(found, k), f"{k} neurons": fidelity.top_neurons(k)}
    totals = fidelity.measure(
        model, made.site, replacements, contexts.rows(chosen), found.mean.astype(np.float32),
        reads=made.reads or None, special=tuple(facts.get("special", ())), first=facts.get("first", 0),
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
    axes[1].set(xlabel="$L_0$", ylabel="explained variance", title="rows that were held out")
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
