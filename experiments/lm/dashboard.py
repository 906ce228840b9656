"""Dashboards as a command: model, SAE, texts -> one page, or an index with files beside; a picture of all latents."""

import hashlib
import importlib
import inspect
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from experiments import check, language, latents
from experiments.ledger import Claim
from superpose import plot
from superpose.dashboard import page
from superpose.dashboard.records import Ablations, Subject, places, records
from superpose.interp import codes, compare, judge
from superpose.lm import sites, text
from superpose.sae import formats
from superpose.sae.model import SAE
from superpose.train.checkpoint import write_all_atomically, write_atomically
from superpose.train.progress import bar, say

NUMBERS = {
    "density": lambda record: record["density"],
    "max": lambda record: record["max"],
    "f1": lambda record: record["why"]["f1"],
    "auroc": lambda record: record["why"]["auroc"],
    "detection": lambda record: record["why"].get("detection"),
    "fuzzing": lambda record: record["why"].get("fuzzing"),
    "match": page.stability,
    "effect": lambda record: record.get("effect"),
}
"""name -> what of a record goes into the results; None where it says nothing."""


def _neurons(site):
    """The MLP's neurons in the layer of a site, which latents are correlated with."""
    part, _, layer = site.partition(".")
    return (
        f"mlp_post.{layer}" if layer.isdecimal() and part in ("mlp_post", "mlp_out", "resid_post", "mlp_in") else None
    )


def _judge(name):
    """The function that "package.module:function" names, an ``interp.judge.Judge``; None of ""."""
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the judge {name!r} can't be loaded ({error}): name it as package.module:function") from error
    if not callable(found):
        raise ValueError(f"the judge {name!r} is no function of (explanation, texts)")
    return found


BROAD = 0.1
"""Share of the tokens above which a label says little of them."""
BLOCK = 64
"""Latents whose records are kept together on disk: what a stopped run loses at most."""
FORM = 2
"""Of the records: those of another form are made again."""


def _distinct(paths):
    """As much of the end of each path as tells them apart."""
    parts = [Path(path).resolve().parts for path in paths]
    for k in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(p[-k:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names if parts else []


def run(config, key, workdir):
    """Numbers of every latent: density, largest activation, its explanation's scores, best match, loss effect."""
    check.whole(config, "passes")
    check.whole(config, "tokens", "best", least=0)
    latents.numbers(config)
    if not config.model or not config.sae:
        raise ValueError("name a model and an SAE: --config.model=FOLDER --config.sae=FOLDER")
    place = page.named(config.page or workdir / "dashboard.html")
    for folder in (config.codes, config.neuronpedia, str(place.parent)):
        if folder:
            check.writable(folder)
    ask = _judge(config.judge)
    if config.doses:
        check.finite(config, "doses")
    model, tokenizer = language.read(config.model)
    sae, model, site, reads = latents.published(config, model)
    named = page.labels(config.labels, sae.arch.d_sae) if config.labels else {}
    if config.best and config.features:
        quick = ': --config.features="()" takes away those of :quick' if config.variant == "quick" else ""
        raise ValueError(f"features and best both say which latents are shown: give one of them{quick}")
    shown = sorted({int(j) for j in config.features}) or list(range(sae.arch.d_sae))
    if bad := [j for j in shown if not 0 <= j < sae.arch.d_sae]:
        raise ValueError(f"the SAE has no latent {bad[0]}: they are 0 to {sae.arch.d_sae - 1}")
    if away := [] if config.best else sorted(named.keys() - set(shown)):
        say(f"{config.labels} labels {len(away)} latents that are not shown, {away[0]} first")
    corpus = language.corpus(config.corpus)
    language.say_skipped(corpus)
    labelled = bool(corpus.labels)
    context = language.context(config, model)
    contexts = text.contexts(corpus, tokenizer, context, bos=config.bos, labels=labelled, tokens=config.tokens or None)
    if config.best and not labelled:
        raise ValueError(f"{corpus.name} has no labels that latents could detect: name latents by features")
    units = _neurons(reads) if model.config.d_mlp else None
    facts = {**language.identity(config.model), "corpus": corpus.digest()}

    def coded(name, one):
        where = (Path(config.codes) if config.codes else workdir / "codes") / name
        return codes.write(
            where, model, one, reads, contexts, facts, units=units, special=tokenizer.special, passes=config.passes
        )

    held = coded("sae", sae)
    matches = {}
    for i, (name, path) in enumerate(zip(_distinct(config.others), config.others, strict=True)):
        other = formats.read(path)
        if other.arch.d_in != sae.arch.d_in:
            raise ValueError(
                f"{path} reads {other.arch.d_in} numbers, and {config.sae} {sae.arch.d_in}: give one of that site"
            )
        found = compare.correlated(held, coded(f"other{i}", SAE(other.arch, other.params)), 3)
        matches[name] = (found.number, found.score)
    subject = Subject(
        model, sae, site, contexts, held, tokenizer.pieces, reads, tokenizer.special, seed=config.seed,
        labels=corpus.labels if labelled else (), names=named, matches=matches,
    )  # fmt: skip
    told = dict(named)  # what a judge is told of latents
    if config.best:
        best = _detectors(subject, config.best)
        shown = sorted(best)
        told = {j: label for j, (label, _) in best.items()} | told
        named |= {j: f"{label} (the best detector: F1 {f1:.2f})" for j, (label, f1) in best.items() if j not in named}
    ablations = Ablations(model, sae, site, contexts) if config.ablations else None
    others = {name: codes.array_digest(*pair) for name, pair in matches.items()}
    made_of = [
        FORM, facts, held.about["sae"], shown, others, named, config.ablations, config.doses, config.judge,
        _source(ask),
    ]  # fmt: skip
    blocks = workdir / "records" / codes.facts_digest(made_of)
    made = _kept(subject, shown, ablations, config, ask, told, blocks)
    kept: dict[str, list[float]] = {name: [] for name in NUMBERS}

    def complete():
        progress, task = bar("dashboards", len(shown), 0, unit="latents")
        with progress:
            for record in made:
                for name, values in kept.items():
                    found = NUMBERS[name](record)
                    values.append(np.nan if found is None else float(found))
                progress.update(task, advance=1)
                yield record

    title = config.title or f"{Path(config.sae).name} at {site} of {Path(config.model).name}"
    note = (
        f"{held.kept:,} tokens of {len(np.unique(contexts.documents)):,} documents of {corpus.name} "
        f"({corpus.digest()}); {len(shown):,} of {sae.arch.d_sae:,} latents."
    )
    some, called = _own(config, tokenizer, contexts)
    with ThreadPoolExecutor(1) as pool:  # the map is drawn up while records are made
        plan = pool.submit(places, np.asarray(sae.W_dec[...])[shown], config.seed)
        files = page.write(
            place, complete(), title, language.shown(tokenizer), documents=contexts.names,
            note=note,
            prompts=_prompts(subject, some, called, shown, config.passes), plan=plan.result,
        )  # fmt: skip
    say(f"pages: {files[-1]}" + (f" and {len(files) - 1} beside" if len(files) > 1 else ""))
    if config.neuronpedia:  # records that stand on disk are read again: all of them, or none, are there
        again = list(_kept(subject, shown, ablations, config, ask, told, blocks))
        part, _, layer = sites.resolve(model.config, reads).partition(".")
        write_all_atomically({
            Path(config.neuronpedia) / f"batch-{start // BLOCK}.json": json.dumps(page.neuronpedia(
                again[start : start + BLOCK], tokenizer.pieces, model=Path(config.model).name,
                layer=int(layer or model.config.layers - 1), sae=f"{part}-{Path(config.sae).name}",
                dataset=corpus.name, prompts=len(contexts.tokens), tokens=contexts.tokens.shape[1],
            )).encode()
            for start in range(0, len(again), BLOCK)
        })  # fmt: skip
    return {"latents": np.array(shown), "tokens": np.asarray(held.kept), **{k: np.array(v) for k, v in kept.items()}}


def _detectors(subject, most, chunk=1 << 16):
    """At most so many latents, and of each the label that it detects and the F1: of all pairs of a label and a latent
    those with the highest F1 on all texts, each label and each latent once. Labels of more than ``BROAD`` of the tokens
    are left out."""
    bits, L = subject.contexts.labels.reshape(len(subject.tokens.keep), -1), len(subject.labels)
    labelled = lambda rows: np.unpackbits(bits[rows], axis=1, count=L).astype(np.float32)  # noqa: E731
    parts = [slice(i, i + chunk) for i in range(0, len(bits), chunk)]
    tokens = sum(labelled(rows)[subject.tokens.keep[rows]].sum(0, dtype=np.float64) for rows in parts)
    held, hits = subject.codes, []
    for start in range(0, held.latents, 256):
        on = (held.block(start, min(start + 256, held.latents)) != 0).astype(np.float32).tocsr()
        hits.append(sum(on[rows].T @ labelled(rows) for rows in parts))
    f1 = 2 * np.concatenate(hits) / np.maximum(held.counts[:, None] + tokens, 1)
    f1[:, tokens > BROAD * held.kept] = 0
    chosen: dict[int, int] = {}
    for place in np.argsort(-f1, axis=None, kind="stable"):
        latent, label = divmod(int(place), L)
        if len(chosen) == most or not f1[latent, label]:
            break
        if latent not in chosen and label not in chosen.values():
            chosen[latent] = label
    if not chosen:
        raise ValueError("no latent is on at a token with a label: train longer, or take more texts")
    return {j: (subject.labels[i], float(f1[j, i])) for j, i in chosen.items()}


def _source(ask):
    """A digest of the file that a judge stands in: one that was changed is asked again; None where there is no file."""
    try:
        return hashlib.sha256(Path(inspect.getsourcefile(ask) or "").read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):
        return None


def _kept(subject, shown, ablations, config, ask, told, place):
    """Records in blocks, each of which is written when it is whole, behind its checksum, and read where it stands
    already; one that is damaged is made again."""
    for start in range(0, len(shown), BLOCK):
        some, file = shown[start : start + BLOCK], place / f"{start:06d}.json"
        if file.exists():
            said, _, body = file.read_bytes().partition(b"\n")
            if said == b"%d" % zlib.crc32(body):
                yield from json.loads(body)
                continue
        found = list(records(subject, some, ablations=ablations, doses=config.doses))
        for record in found:
            _judged(record, subject, ask, told, config.seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        body = json.dumps(found, separators=(",", ":")).encode()
        write_atomically(file, b"%d\n%s" % (zlib.crc32(body), body))
        yield from json.loads(body)


def _judged(record, subject, ask, told, seed):
    """Detection and fuzzing scores beside the others, where there is a judge; it is told labels of latents."""
    column = subject.codes.columns([record["n"]])
    explanation = told.get(record["n"]) or record["why"]["text"]
    if ask is None or not column.nnz or not explanation:
        return
    try:
        found = judge.score(
            ask, explanation, column.indices, column.data, subject.contexts, subject.tokens.keep, subject.pieces,
            seed=seed + record["n"],
        )  # fmt: skip
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, judge.Answer) else f"{type(error).__name__}: "
        raise ValueError(f"the judge failed on feature {record['n']}: {kind}{error}") from error
    for name in ("detection", "fuzzing"):
        value = getattr(found, name)
        record["why"][name] = None if np.isnan(value) else round(value, 4)


def _own(config, tokenizer, contexts, most=6):
    """Contexts whose tokens are shown with their features: those of ``config.prompts``, or some of the corpus; and how
    they are called."""
    if not config.prompts:
        some = contexts.rows(np.unique(np.linspace(0, len(contexts.tokens) - 1, most).astype(int)))
        return some, [contexts.names[document] for document in some.documents]
    if empty := [i for i, prompt in enumerate(config.prompts) if not prompt]:
        raise ValueError(f"prompt {empty[0]} of prompts is empty: there is no token to show features on")
    given = text.Corpus("prompts", lambda: (text.Document(p[:60], p) for p in config.prompts))
    own = text.contexts(given, tokenizer, contexts.tokens.shape[1], bos=config.bos)
    return own, [own.names[document] for document in own.documents]


def _prompts(subject, contexts, names, shown, passes, features=8):
    """Texts with the strongest of the latents shown on each token, as shares of their largest on the corpus."""
    largest = np.concatenate([
        subject.codes.columns(shown[i : i + 256]).max(0).toarray().ravel() for i in range(0, len(shown), 256)
    ])  # fmt: skip
    run = sites.capture(subject.model, [subject.reads])
    found = []
    for start in range(0, len(contexts.tokens), passes):
        tokens = contexts.tokens[start : start + passes]
        acts = np.asarray(subject.sae.encode(run(tokens)[subject.reads]))[..., shown]
        found += list(np.where(np.isin(tokens, subject.special)[..., None], 0, acts))
    part = [np.divide(a, largest, out=np.zeros_like(a), where=largest > 0) for a in found]
    order = [np.argsort(-p, axis=-1, kind="stable")[:, :features] for p in part]
    return [
        {
            "name": name,
            "ids": ids[:length].tolist(),
            "features": [
                [[shown[j], round(float(a[t, j]), 4), round(float(p[t, j]), 4)] for j in o[t] if a[t, j] > 0]
                for t in range(length)
            ],
        }
        for name, ids, length, a, p, o in zip(names, contexts.tokens, contexts.lengths, found, part, order, strict=True)
    ]


def draw(results, config):
    """How latents are spread by density, and how well a predicate says when they are on."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), dpi=110, layout="constrained")
    live = results["density"] > 0
    axes[0].hist(np.log10(results["density"][live]), bins=np.linspace(-6, 0, 49), color="#3f6fb5")
    axes[0].set(
        xlabel="log10 of the share of tokens on which a latent is on",
        ylabel="latents",
        title=f"{live.sum()} of {len(live)} latents are on, {int(results['tokens']):,} tokens",
    )
    axes[1].plot(np.log10(results["density"][live]), results["f1"][live], "o", ms=3, alpha=0.5, color="#3f6fb5")
    axes[1].set(
        xlabel="log10 of the density",
        ylabel="F1 of the best predicate",
        ylim=(0, 1.02),
        title="explanations without a judge, on the other half",
    )
    plot.plain(axes)
    return {"": figure}


def claims(results, config):
    """Latents that fire are shown; nothing else is claimed of an SAE that a user brings."""
    live = results["density"] > 0
    return [Claim("latents shown that are on at some token", "sanity", 1, int(live.sum()), 0.0, ">=")]
