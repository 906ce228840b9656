"""SAEs of a language model's activations: trained on a stream, spliced into the model, held against labels."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import check, kinds, language
from superpose.interp import fidelity, labels, steer
from superpose.interp.harvest import Choice, Harvest, Live
from superpose.lm import checkpoints, sites
from superpose.lm.transformer import Transformer
from superpose.sae import formats, metrics
from superpose.sae.model import SAE
from superpose.train.fit import Population, Stream, fit
from superpose.train.progress import say

PARTS = ("loss", "delta", "kl", "recovered_zero", "recovered_mean", "kl_zero", "kl_mean")
"""What ``fidelity.Score`` holds, each as (value, low, high)."""
DETECTOR = (
    "unit",
    "threshold",
    "below",
    "precision",
    "recall",
    "f1",
    "correlation",
    "low",
    "high",
    "draws",
    "tokens",
    "share",
)
"""What of ``labels.Best`` goes into result files."""


def harvest(c: Any, model: Transformer, texts: Any, contexts: Any, names: Any) -> Harvest:
    """Passes over some contexts; ``c.passes`` contexts at a time."""
    check.whole(c, "passes")
    return Harvest(sites.capture(model, names), contexts, c.passes, Choice(texts.tokenizer.special))


def stream(c: Any, model: Transformer, texts: Any, site: Any) -> Live:
    """Activations of the training text, straight from the model."""
    check.whole(c, "batch", "generation")
    names = [site] if isinstance(site, str) else [n for s in site for n in ([s] if isinstance(s, str) else s)]
    return Live(harvest(c, model, texts, texts.train, names), site, c.batch, seed=c.seed, contexts=c.generation)


def _reading(population: Population, place: int) -> Population:
    """The population, of whose batches the part at one place is read."""
    loss = population.objective.loss

    def read(params, state, batch, *rest):
        return loss(params, state, batch[place], *rest)

    return dataclasses.replace(population, objective=dataclasses.replace(population.objective, loss=read))


def train(
    c: Any, source: Stream, made_of: dict[str, Any], key: jax.Array, workdir: Any, title: str, seeds: int = 1
) -> tuple[dict[str, SAE], dict[str, Any]]:
    """SAEs of several kinds, sizes or sites, all on one stream: name -> what it is for inference, and the Results.

    Where a batch holds several sites, the names are those of ``made_of``, in order, and each SAE reads its own.

    Args:
        c: batch, steps, log_every of the run.
        source: batches.
        made_of: name -> kind as ``configs.kind`` states it.
        seeds: of each; more than one are called "NAME seed 0", "NAME seed 1", ...
    """
    check.whole(c, "steps", "log_every")
    place = source.get_state()
    sample = next(source)
    source.set_state(place)
    several = isinstance(sample, tuple)
    made = {}
    for i, (name, kind) in enumerate(made_of.items()):
        x = np.asarray(sample[i] if several else sample)
        one = kinds.kind(kind, x.shape[1], c.steps, seeds, x)
        made[name] = one._replace(population=_reading(one.population, i)) if several else one
    results = fit(
        {name: kind.population for name, kind in made.items()}, steps=c.steps, key=key, source=source, workdir=workdir,
        log_every=c.log_every, title=title,
    )  # fmt: skip
    if lost := [name for name in made if (results[name].frozen_at >= 0).any()]:
        raise ValueError(f"the SAEs {', '.join(lost)} diverged: lower their recipe.lr")
    saes = {
        name if seeds == 1 else f"{name} seed {i}": SAE(*one)
        for name, kind in made.items()
        for i, one in enumerate(kinds.plain(kind, results[name]))
    }
    return saes, results


PROCESSING = {
    "fold_ln": checkpoints.fold_norms,
    "center_writing_weights": checkpoints.center_writes,
    "center_unembed": checkpoints.center_unembed,
}
"""What TransformerLens does to a model's weights when it loads them, by the names that SAEs' files have for it."""
NO_PROCESSING = {"dtype", "device", "n_devices", "low_cpu_mem_usage", "move_to_device", "fold_value_biases"}
"""Arguments of it that change no activation at a site."""


def published(c: Any, model: Transformer) -> tuple[SAE, Transformer, str, str]:
    """The SAE that ``c.sae`` names, the model as that SAE knows it, and the sites that it writes and reads.

    Where its file says how the model's weights were processed when the SAE was trained, the same is done here: logits
    stay, activations become those that it knows. What can't be done is said.

    Raises:
        ValueError: the file can't be used, nobody says of which site it is, or it does not fit there.
    """
    found = formats.read(c.sae)
    about = found.metadata
    site = c.site or about.site_out or about.site
    transcoder = found.arch.skip or found.arch.d_out is not None or about.site_out is not None
    reads = c.reads or (about.site if transcoder else site)  # others read what they write
    if not site or not reads:
        raise ValueError(
            f"{c.sae} does not say of which site it is: give --config.site (and --config.reads of a transcoder)"
        )
    for name, wanted in (about.weight_processing or {}).items():
        if wanted and name in PROCESSING:
            model = PROCESSING[name](model)
        elif wanted and name not in NO_PROCESSING:
            say(f"{c.sae} says that its model was loaded with {name}={wanted!r}: that is not done here")
    return SAE(found.arch, found.params), model, *steer.sites_of(model.config, found.arch, site, reads)


def numbers(c: Any) -> None:
    """That ``c.features``, where there are any, are whole numbers."""
    if c.features:
        check.whole(c, "features", least=0)


def largest(c: Any, model: Transformer, sae: SAE, reads: str, contexts: Any, special: Sequence[int]) -> np.ndarray:
    """[d_sae], the largest activation of every latent on some contexts, by size."""
    source = Harvest(sites.capture(model, [reads]), contexts, c.passes, Choice(tuple(special)))
    top = np.zeros(sae.arch.d_sae)
    for rows in source.rows(np.arange(len(contexts.tokens))):
        top = np.maximum(top, np.abs(_encode(sae, rows.values[reads])).max(0, initial=0))
    return top


@jax.jit
def _encode(sae, x):
    return sae.encode(x)


@jax.jit
def _sums(sae, x, mask):
    return metrics.sums(x, sae(x), sae.encode(x), mask)


def _padded(parts: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows in batches of one size, and which of them are rows: the last batch is filled up."""
    waiting: list[np.ndarray] = []
    for part in parts:
        waiting.append(part)
        while sum(map(len, waiting)) >= size:
            whole = np.concatenate(waiting)
            yield whole[:size], np.ones(size, bool)
            waiting = [whole[size:]]
    whole = np.concatenate(waiting)
    yield np.pad(whole, ((0, size - len(whole)), (0, 0))), np.arange(size) < len(whole)


def of_width(kind: Any, width: int) -> Any:
    """The same kind with so many latents."""
    sized = kind.copy_and_resolve_references()
    sized.d_sae = width
    return sized


def scores(c: Any, model: Transformer, texts: Any, site: str, saes: dict[str, SAE]) -> dict[str, np.ndarray]:
    """``l0``, ``explained_variance``, ``dead`` [saes] and ``density_{name}`` on held-out text, truth-free."""
    few = language.judged(c, texts)
    source = harvest(c, model, texts, few, [site])
    totals: dict[str, Any] = dict.fromkeys(saes)
    for x, mask in _padded((rows.values[site] for rows in source.rows(np.arange(len(few.tokens)))), 8192):
        for name, sae in saes.items():
            totals[name] = metrics.add(totals[name], _sums(sae, x, mask))
    found = {name: metrics.scores(total) for name, total in totals.items()}
    return {
        "l0": np.array([s.l0 for s in found.values()]),
        "explained_variance": np.array([s.explained_variance for s in found.values()]),
        "dead": np.array([s.dead.latents for s in found.values()]),
        **{f"density_{name}": s.density for name, s in found.items()},
    }


def spliced(
    c: Any, model: Transformer, texts: Any, site: str, saes: dict[str, SAE], l0: float
) -> dict[str, np.ndarray]:
    """``fidelity_names``, and ``fidelity_{part}`` [names, 3] with 95 % intervals over held-out documents.

    Beside the SAEs stand the clean model, both ablations, and baselines of about as many numbers a token: PCA of ``l0``
    components and the ``l0`` largest neurons.
    """
    contexts = np.arange(min(len(texts.train.tokens), c.generation))
    source = harvest(c, model, texts, texts.train, [site])
    found = fidelity.moments(source.rows(contexts), site)
    k = max(1, round(l0))
    replacements = {name: fidelity.through(sae) for name, sae in saes.items()}
    replacements |= {f"PCA {k}": fidelity.pca(found, k), f"{k} neurons": fidelity.top_neurons(k)}
    few = language.judged(c, texts)
    totals = fidelity.measure(
        model, site, replacements, few, found.mean.astype(np.float32), special=texts.tokenizer.special, batch=c.passes
    )
    table = fidelity.scores(totals)
    return {
        "fidelity_names": np.array(list(table)),
        **{f"fidelity_{part}": np.array([getattr(s, part) for s in table.values()]) for part in PARTS},
    }


def _labelled(c: Any, model: Transformer, texts: Any, site: str, unit: Any) -> Callable[[], Iterator[labels.Batch]]:
    """Held-out tokens, their labels, and the values of units: an SAE's latents, directions [d, U], or the neurons."""
    held = language.judged(c, texts)
    count, bits = len(texts.corpus.labels), np.asarray(held.labels)
    source = harvest(c, model, texts, held, [site])
    skip = np.isin(held.tokens, texts.tokenizer.special)

    def read():
        for i in range(0, len(held.tokens), 16 * c.passes):
            chosen = np.arange(i, min(i + 16 * c.passes, len(held.tokens)))
            parts = list(source.rows(chosen))
            x = np.concatenate([p.values[site] for p in parts])
            keep = held.mask[chosen] & ~skip[chosen]
            y = np.unpackbits(bits[chosen][keep], axis=1, count=count).astype(bool)
            if isinstance(unit, SAE):
                x = np.asarray(_encode(unit, x))
            elif unit is not None:
                x = np.asarray(jnp.asarray(x) @ unit)
            documents = np.concatenate([p.documents for p in parts])
            yield labels.Batch(x, y, documents, np.concatenate([p.tokens for p in parts]))

    return read


def detectors(
    c: Any, model: Transformer, texts: Any, site: str, units: dict[str, Any], *, sides: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """``{name}_{part}`` [labels] of the best unit of each kind for each label, on the held-out text.

    Args:
        units: name -> an SAE, a matrix [d, U] of directions, or None for the neurons themselves.
        sides: kinds whose silence may be a detector too.
    """
    out: dict[str, Any] = {}
    for name, unit in units.items():
        best = labels.best_units(_labelled(c, model, texts, site, unit), sides=name in sides)
        out |= {f"{name}_{part}": getattr(best, part) for part in DETECTOR}
    best = labels.by_token(_labelled(c, model, texts, site, None), texts.tokenizer.vocab)
    return out | {f"token_{part}": getattr(best, part) for part in DETECTOR if part != "draws"}


class Study(NamedTuple):
    """A language model trained on a corpus and SAEs of one of its sites."""

    texts: language.Texts
    model: Transformer
    saes: dict[str, SAE]
    names: list[str]
    arrays: dict[str, Any]


def study(config: Any, key: jax.Array, workdir: Any) -> Study:
    """Trains a language model and SAEs of ``config.widths`` on its ``config.site``, and scores them on held-out text.

    ``arrays`` has the model's losses, ``scores``, ``spliced``, and as a control ``control_*``, fidelity and detectors
    of an SAE of the widest size on a model that has learnt nothing. Model and SAEs stay in the work directory.
    """
    check.whole(config, "widths")
    if len(set(config.widths)) < 2:
        raise ValueError(f"widths must hold at least two sizes to compare, got {config.widths}")
    lm_key, sae_key, text_key, other_key = jax.random.split(key, 4)
    texts = language.texts(config, workdir, labels=True)
    model, out = language.trained(config, texts, lm_key, workdir)
    made_of = {f"SAE {width}": of_width(config.kind, width) for width in config.widths}
    source = stream(config, model, texts, config.site)
    saes, _ = train(config, source, made_of, sae_key, workdir / "saes", "SAEs")
    names = list(saes)
    for name, sae in saes.items():
        about = formats.Metadata(
            model=config.experiment,
            site=config.site,
            context=config.context,
            prepend_bos=texts.tokenizer.bos is not None,
        )
        params = {n: np.asarray(getattr(sae, n)[...]) for n in sae.arch.shapes()}
        formats.write_saelens(workdir / "export" / name.replace(" ", "_").lower(), sae.arch, params, about)
    out |= scores(config, model, texts, config.site, saes)
    out |= spliced(config, model, texts, config.site, saes, float(out["l0"][-1]))

    untrained = Transformer(model.config, nnx.Rngs(jax.random.fold_in(lm_key, 1)))
    source = stream(config, untrained, texts, config.site)
    control, _ = train(
        config, source, {"control": made_of[names[-1]]}, other_key, workdir / "control", "SAE of an untrained model"
    )
    found = detectors(config, untrained, texts, config.site, control)
    out |= {k: v for k, v in found.items() if k.startswith("control_") and k != "control_draws"}
    l0 = float(scores(config, untrained, texts, config.site, control)["l0"][0])
    out |= {f"control_{k}": v for k, v in spliced(config, untrained, texts, config.site, control, l0).items()}
    written = language.sample(model, texts, text_key)
    say(f"the language model writes {written[0]!r}")
    out |= {
        "labels": np.array(texts.corpus.labels), "digest": np.array(texts.digest), "names": np.array(names),
        "written": np.array(written),
        "sizes": np.array([texts.train.lengths.sum(), texts.held.lengths.sum(), len(texts.train.names)]),
    }  # fmt: skip
    return Study(texts, model, saes, names, out)


def recovered_bars(results: dict[str, Any], names: Sequence[str]) -> tuple[list[str], dict[str, tuple]]:
    """What ``plot.interval_bars`` draws of cross-entropy recovered: below each name what splicing it in costs."""
    at = [list(results["fidelity_names"]).index(name) for name in names]
    costs = results["fidelity_delta"][at, 0]
    return [f"{n}\n{d:+.3f} nats" for n, d in zip(names, costs, strict=True)], {
        "of zero ablation": (results["fidelity_recovered_zero"][at], "#3f6fb5"),
        "of mean ablation": (results["fidelity_recovered_mean"][at], "#e08a3c"),
    }


def beside_untrained(results: dict[str, Any]) -> str:
    """What the widest SAE recovers, beside that of an untrained model's SAE in its own model, for a claim's note."""

    def of(prefix, part, name):
        return float(results[f"{prefix}{part}"][list(results[f"{prefix}names"]).index(name)][0])

    trained = of("fidelity_", "kl_zero", str(results["names"][-1]))
    other = of("control_fidelity_", "kl_zero", "control")
    cost = of("control_fidelity_", "delta", "zero")
    return (
        f"KL recovered of zero ablation {trained:.3f}; by an untrained model's SAE in that model, where zero ablation "
        f"costs {cost:+.3f} nats, {other:.3f}"
    )


def by_bin(
    c: Any,
    model: Transformer,
    texts: Any,
    site: str,
    sae: SAE,
    units: Sequence[int],
    named: Sequence[str],
    bins: int = 10,
) -> dict[str, np.ndarray]:
    """``bin_hits`` and ``bin_tokens`` [units, bins]: of the tokens at which a latent's activation lies in each of so
    many equal parts of its range, those that carry a label, on the documents of odd number."""
    top = np.full(len(units), 1e-30)
    columns = [texts.corpus.labels.index(name) for name in named]
    for batch in _labelled(c, model, texts, site, sae)():
        top = np.maximum(top, np.asarray(batch.values)[:, units].max(0, initial=0))
    hits, tokens = np.zeros((len(units), bins)), np.zeros((len(units), bins))
    for batch in _labelled(c, model, texts, site, sae)():
        half = ~labels.first_half(batch.documents)
        x, y = np.asarray(batch.values)[half][:, units], np.asarray(batch.labels)[half][:, columns]
        place = np.minimum((x / top * bins).astype(int), bins - 1)
        for u in range(len(units)):
            on = x[:, u] > 0
            tokens[u] += np.bincount(place[on, u], minlength=bins)
            hits[u] += np.bincount(place[on & y[:, u], u], minlength=bins)
    return {"bin_hits": hits, "bin_tokens": tokens, "bin_top": top}
