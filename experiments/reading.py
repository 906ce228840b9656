"""What the four evaluation questions share: a model on labelled texts, SAEs of several seeds, what they say of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from scipy import stats

from experiments import check, language, latents
from experiments.ledger import Claim
from superpose.interp import codes
from superpose.interp.codes import Codes
from superpose.lm import checkpoints
from superpose.lm.transformer import Transformer
from superpose.sae import formats
from superpose.sae.model import SAE
from superpose.train.checkpoint import write_atomically

if TYPE_CHECKING:  # they leave the files that are read here: their code is part of what makes the numbers
    from experiments.lm import one_layer, scripts  # noqa: F401


def model(c: Any, key: jax.Array, workdir: Path) -> tuple[language.Texts, Transformer]:
    """The texts that ``c`` states, with labels, and the model that another run left in ``c.base`` (its work directory);
    where that is "", one is trained here.

    Raises:
        ValueError: there is no such run, or it was on other texts or of another model than the config states.
    """
    if not c.base:
        texts = language.texts(c, workdir, labels=True)
        return texts, language.trained(c, texts, key, workdir)[0]
    place = Path(c.base) / "model"
    if not place.is_dir():
        raise ValueError(
            f"{c.base} holds no model: run the experiment that makes it first (the config says which), or set base to "
            "'' to train one here"
        )
    found, about = checkpoints.read_own(place)
    texts = language.texts(c, workdir, language.tokenizer_of(str(place), found.config.vocab), labels=True)
    if about.get("corpus") != texts.digest:
        raise ValueError(
            f"{c.base} was trained on texts that hash to {about.get('corpus')}, and the config states others, "
            f"{texts.digest}: run it again, or set base to '' to train a model here"
        )
    if found.config != language.architecture(c, found.config.vocab):
        raise ValueError(
            f"the model in {c.base} is of other sizes than the config states: run it again, or set base to '' to train "
            "a model here"
        )
    return texts, found


def saes(
    c: Any,
    found: Transformer,
    texts: language.Texts,
    made_of: dict[str, Any],
    key: jax.Array,
    workdir: Path,
    title: str,
    seeds: int = 0,
) -> dict[str, list[SAE]]:
    """SAEs of so many seeds (0: ``c.seeds``) of each kind, all on one stream."""
    check.whole(c, "seeds")
    seeds = seeds or c.seeds
    source = latents.stream(c, found, texts, c.site)
    trained, _ = latents.train(c, source, made_of, key, workdir, title, seeds=seeds)
    named = iter(trained.values())
    return {name: [next(named) for _ in range(seeds)] for name in made_of}


def subject(c: Any, found: Transformer, texts: language.Texts, key: jax.Array, workdir: Path) -> list[SAE]:
    """The SAEs of ``c.kind`` that the questions are asked of: those that ``monosemantic`` left in ``c.saes`` (its work
    directory); where that is "", they are trained here, and stay in ``export/``.

    Raises:
        ValueError: there are none, too few, or they are of another model.
    """
    check.whole(c, "seeds")
    about = {"model": codes.model_digest(found), "corpus": texts.digest, "site": c.site, "d_sae": c.kind.d_sae}
    if not c.saes:
        made = saes(c, found, texts, {"SAE": c.kind}, key, workdir / "saes", "SAEs")["SAE"]
        for i, one in enumerate(made):
            params = {name: np.asarray(getattr(one, name)[...]) for name in one.arch.shapes()}
            where = formats.Metadata(model=c.experiment, site=c.site, context=c.context)
            formats.write_saelens(workdir / "export" / f"seed_{i}", one.arch, params, where)
        write_atomically(workdir / "export" / "subject.json", json.dumps(about).encode())
        return made
    place = Path(c.saes) / "export"
    try:
        known = json.loads((place / "subject.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{c.saes} holds no SAEs of these questions: run monosemantic first, or set saes to '' to train them here "
            f"({error})"
        ) from error
    if known != about:
        raise ValueError(
            f"the SAEs in {c.saes} are of another model, site, width or texts: run monosemantic again, or set saes to "
            "'' to train them here"
        )
    read = [formats.read(place / f"seed_{i}") for i in range(c.seeds) if (place / f"seed_{i}").is_dir()]
    if len(read) < c.seeds:
        raise ValueError(f"{c.saes} holds {len(read)} SAEs and {c.seeds} are asked for: set seeds to fewer")
    return [SAE(one.arch, one.params) for one in read]


def coded(c: Any, found: Transformer, texts: language.Texts, one: SAE, place: Path) -> Codes:
    """What an SAE says of the held-out texts that are judged."""
    held = language.judged(c, texts)
    facts = {"corpus": texts.digest}
    return codes.write(place, found, one, c.site, held, facts, special=texts.tokenizer.special, passes=c.passes)


def living(codes: Codes, least: int) -> np.ndarray:
    """[F], whether a latent is on at so many tokens.

    Raises:
        ValueError: none is.
    """
    found = codes.counts >= least
    if not found.any():
        raise ValueError(f"no latent is on at {least} of the judged tokens: train longer, or judge more texts")
    return found


def values(c: Any, found: Transformer, texts: language.Texts) -> np.ndarray:
    """What stands at the site on the judged texts [N, d], numbered as ``Codes`` are; 0 at tokens left out."""
    held = language.judged(c, texts)
    source = latents.harvest(c, found, texts, held, [c.site])
    keep = kept(c, texts)
    rows = np.concatenate([part.values[c.site] for part in source.rows(np.arange(len(held.tokens)))])
    out = np.zeros((keep.size, rows.shape[1]), np.float32)
    out[keep] = rows
    return out


def kept(c: Any, texts: language.Texts) -> np.ndarray:
    """[N], tokens of the judged texts that are not left out."""
    held = language.judged(c, texts)
    return (held.mask & ~np.isin(held.tokens, texts.tokenizer.special)).reshape(-1)


def labelled(c: Any, texts: language.Texts) -> np.ndarray:
    """[N, L], labels of the judged texts."""
    held = language.judged(c, texts)
    return (
        np.unpackbits(np.asarray(held.labels), axis=2, count=len(texts.corpus.labels))
        .astype(bool)
        .reshape(held.tokens.size, -1)
    )


def over_seeds(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over seeds (the first axis) and its 95 % interval by Student's t; one seed has none (NaN)."""
    x = np.asarray(values, float)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return mean, mean - half, mean + half


def over_pairs(values: np.ndarray, pairs: np.ndarray) -> tuple[float, float, float]:
    """Mean over pairs of seeds [P] and its 95 % interval by the jackknife over seeds, for pairs that share a seed are
    not independent; two seeds have none (NaN).

    Args:
        pairs: [P, 2], which seeds.
    """
    x, seeds = np.asarray(values, float), np.unique(pairs)
    mean = float(x.mean())
    if len(seeds) < 3:
        return mean, float("nan"), float("nan")
    return jackknife(mean, [x[~(np.asarray(pairs) == seed).any(1)].mean() for seed in seeds])


def over_draws(whole: float, draws: np.ndarray) -> tuple[float, float]:
    """95 % interval of a number by its standard error, the spread of what it is in resamplings [draws] (NaN: those in
    which there is none). Not by their percentiles: drawing anew adds noise, which pulls a share towards one half, and
    all of them may lie below it."""
    known = np.asarray(draws)[np.isfinite(draws)]
    half = float(stats.norm.ppf(0.975) * known.std(ddof=1)) if len(known) > 1 else float("nan")
    return whole - half, whole + half


GROUPS = 10
"""Of documents; what a number is without one of them gives its interval over documents (jackknife)."""


def groups(documents: np.ndarray) -> np.ndarray:
    """[N], in which of ``GROUPS`` parts the document of each row is; halves by even and odd have documents in each."""
    return np.unique(documents, return_inverse=True)[1] // 2 % GROUPS


def jackknife(whole: float, without: Sequence[float]) -> tuple[float, float, float]:
    """A number and its 95 % interval, by what it is without each of n groups (Student's t of n - 1): by how far that is
    from the number, so that one which changes with the amount of data has the wider interval."""
    x, n = np.asarray(without, float), len(without)
    half = float(stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((x - whole) ** 2).sum()))
    return whole, whole - half, whole + half


def above(
    text: str,
    source: str,
    least: float,
    seeds: tuple[float, float, float],
    other: tuple[float, float] | None = None,
    note: str = "",
    of: tuple[str, str] = ("seeds", "documents"),
) -> Claim:
    """A claim that a number is at least ``least``, judged by the low end of its interval over seeds or over documents,
    whichever is lower.

    Args:
        seeds: mean over seeds and its interval; NaN where there are too few, and the mean is in its place.
        other: the interval over documents; None where no texts enter.
        of: what the two are over.
    """
    mean, low, high = seeds
    measured = low if np.isfinite(low) else mean
    notes, over = [f"mean {mean:.3f}", said(low, high, of[0])], of[0]
    if other is not None:
        measured = float(np.minimum(measured, other[0]))  # NaN fails
        notes.append(said(*other, of[1]))
        over = f"{of[0]} and over {of[1]}, the lower one"
    return Claim(f"{text} (low end of 95 % over {over})", source, least, measured, 0.0, ">=",
                 note=", ".join(notes) + f"; {note}" * bool(note))  # fmt: skip


def said(low: float, high: float, of: str = "seeds") -> str:
    """An interval in words."""
    return f"95 % over {of} {low:.3f} to {high:.3f}" if np.isfinite(low) else f"no interval over {of}"
