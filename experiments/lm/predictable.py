"""Do interventions do what the feature says? Effects of steering, predicted before they are measured.

Latents of all densities are pushed by multiples of their largest activation, in texts where they are on. What the
logits will do is predicted at the clean pass, by the derivative and by the direct path alone (the direction through the
final norm), and both are held against what they do; in a model of one layer whose MLP is pushed the two are the same.
So are pushes as large along random directions, shuffled ones and those of other live latents. Intervals are of
bootstraps that draw documents and latents anew. Labels with a pattern that text can be searched for have their best
latent clamped while the model writes: does it write more?
"""

import re
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from experiments import check, latents, reading
from experiments.ledger import Claim
from superpose import plot
from superpose.interp import steer
from superpose.interp.steer import Change
from superpose.train.progress import bar

if TYPE_CHECKING:  # it leaves the SAEs that are read here
    from experiments.lm import monosemantic  # noqa: F401

LEAST = 20
"""Latents on at fewer tokens are left out."""
CONTROLS = {"random": "random directions", "opposite": "the same direction, its sign turned",
            "shuffled": "shuffled directions", "other": "other live latents"}  # fmt: skip
FIELDS = ("moved", "kl", "wanted", "direct_wanted", "gradient_wanted", "direct", "gradient")
"""Of ``steer.Effects``; ``wanted`` is how much it changed."""


def run(config, key, workdir):
    """``NAME_FIELD`` [latents, strengths, contexts] of ``steer.effects`` (one strength of controls and ablations), with
    ``tokens`` and ``documents`` [latents, contexts]; what latents of labels write."""
    check.whole(config, "tried", "contexts", "wanted", "samples", "tokens")
    if config.patterns and not config.pushes:
        raise ValueError("config.pushes must name a strength where config.patterns are written, such as (1.0,)")
    keys = jax.random.split(key, 4)
    texts, model = reading.model(config, keys[0], workdir)
    saes = reading.subject(config, model, texts, keys[1], workdir)
    held = latents.language.judged(config, texts)
    found: dict[str, list] = {}
    chosen, seeds, density, lives = [], [], [], []
    progress, task = bar("interventions", config.tried * len(saes), 0, unit="latents")
    with progress:
        for seed, sae in enumerate(saes):
            codes = reading.coded(config, model, texts, sae, workdir / "codes" / str(seed))
            live = np.flatnonzero(reading.living(codes, LEAST))
            lives.append(live)
            order = live[np.argsort(codes.counts[live], kind="stable")]
            some = order[np.unique(np.linspace(0, len(order) - 1, min(config.tried, len(order))).astype(int))]
            votes = np.asarray(steer.logit_weights(model, config.site, np.asarray(sae.W_dec[...])[some]))
            for i, j in enumerate(some):
                column = codes.columns([j])
                on = column.indices // held.tokens.shape[1]
                texts_of = held.rows(_where(on, len(held.tokens), config, (config.seed, seed, int(j))))
                where = jax.random.fold_in(keys[2], int(j))
                top = float(column.data.max())
                one = _one(config, model, texts, sae, int(j), top, texts_of, votes[i], live, where)
                for name, values in (one | {"documents": texts_of.documents}).items():
                    found.setdefault(name, []).append(values)
                progress.update(task, advance=1)
            chosen += some.tolist()
            seeds += [seed] * len(some)
            density += (codes.counts[some] / codes.kept).tolist()
    out = {name: np.array(values) for name, values in found.items()}
    out |= {"latents": np.array(chosen), "seed": np.array(seeds), "density": np.array(density)}
    if config.patterns:
        each = enumerate(zip(saes, lives, strict=True))
        written = [_written(config, model, texts, *one, jax.random.fold_in(keys[3], seed)) for seed, one in each]
        out |= {name: np.stack([one[name] for one in written]) for name in written[0]}
    return out | {"digest": np.array(texts.digest)}


def _where(on, total, config, seed):
    """So many contexts, those in which the latent is on before others, in random order."""
    rng = np.random.default_rng(seed)
    here = rng.permutation(np.unique(on))
    rest = rng.permutation(np.setdiff1d(np.arange(total), here))
    return np.sort(np.concatenate([here, rest])[: config.contexts])


def _one(config, model, texts, sae, j, top, some, votes, live, key):
    """Everything that is measured of one latent."""
    special, wanted = texts.tokenizer.special, np.argsort(-votes, kind="stable")[: config.wanted]
    push = steer.steering(model.config, sae, config.site, [Change(j, "add", 1.0)], special=special)
    off = steer.steering(model.config, sae, config.site, [Change(j, "ablate")], special=special)
    whole = int(np.argmin(np.abs(np.asarray(config.strengths, float) - 1)))

    def effects(steered, strength=1.0, ranks=False):
        moved = replace(steered, values=jnp.asarray([strength * top], jnp.float32))
        found = steer.effects(model, moved, some, wanted, len(some.tokens), ranks=ranks)
        return found._replace(wanted=found.wanted - found.clean_wanted)

    controls = steer.controls(push, key, live)
    measured = {"feature": [effects(push, s, i == whole) for i, s in enumerate(config.strengths)]}
    measured |= {name: [effects(controls[name])] for name in CONTROLS} | {"ablated": [effects(off)]}
    out = {f"{name}_{field}": np.stack([getattr(one, field) for one in ones]).astype(np.float32)
           for name, ones in measured.items() for field in FIELDS}  # fmt: skip
    return out | {"tokens": measured["ablated"][0].tokens}


def _numbers(results, name, weights=None):
    """[draws, latents, strengths] of each field: means over tokens, and of both predictions (slope, Pearson's r, rank
    correlation) [..., 3].

    Args:
        weights: [draws, latents, contexts], how often each context counts; None: once.
    """
    w = np.ones((1, *results["tokens"].shape)) if weights is None else weights
    n = np.einsum("dlc,lc->dl", w, results["tokens"])[..., None]
    total = {field: np.einsum("dlc,lsc...->dls...", w, results[f"{name}_{field}"]) for field in FIELDS}
    with np.errstate(divide="ignore", invalid="ignore"):
        out = {field: total[field] / n for field in ("kl", "wanted", "direct_wanted", "gradient_wanted")}
        for field in ("direct", "gradient"):
            out[field] = np.stack(steer.agreement(total[field], total["moved"]), -1)
    return out


class _Drawn(NamedTuple):
    """Documents and latents drawn anew, so many times."""

    weights: np.ndarray  # [draws, latents, contexts]
    picks: np.ndarray  # [draws, latents]


def _drawn(results, seed, draws=1000):
    rng = np.random.default_rng(seed)
    known, place = np.unique(results["documents"], return_inverse=True)
    times = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), draws)
    shape = results["documents"].shape
    return _Drawn(times[:, place.reshape(shape)], rng.integers(0, shape[0], (draws, shape[0])))


def _written(config, model, texts, sae, live, key):
    """[patterns, 2, strengths, samples], of one SAE: share of the tokens written that a label's pattern matches, its
    best latent clamped, and a random direction moved as far."""
    best = latents.detectors(config, model, texts, config.site, {"latent": sae})
    tops = latents.largest(
        config, model, sae, config.site, latents.language.judged(config, texts), texts.tokenizer.special
    )
    bos = texts.tokenizer.bos
    prompt = np.full((config.samples, 1), 0 if bos is None else bos, np.int32)
    pad = np.zeros(config.samples, np.int32)
    shares, losses, units, says = [], [], [], []
    for i, (name, pattern) in enumerate(config.patterns):
        if name not in texts.corpus.labels:
            raise ValueError(f"the texts have no label {name!r}: they have {', '.join(texts.corpus.labels[:20])}, ...")
        unit = int(best["latent_unit"][list(texts.corpus.labels).index(name)])
        one = steer.steering(model.config, sae, config.site, [Change(unit)])
        rows = {"feature": one, "random": steer.controls(one, jax.random.fold_in(key, i), live)["random"]}
        for steered in rows.values():
            for strength in (0.0, *config.pushes):
                moved = replace(steered, values=jnp.asarray([strength * tops[unit]], jnp.float32))
                if not strength:  # what is written without
                    moved = replace(moved, end=jnp.int32(0))
                made, loss = steer.write(model, moved, prompt, pad, key, config.tokens, config.temperature)
                shares.append([texts.tokenizer.matched(row, re.compile(pattern)).mean() for row in np.asarray(made)])
                losses.append(np.asarray(loss))
                says.append(texts.tokenizer.decode(np.asarray(made)[0]))
        units.append(unit)
    shape = (len(config.patterns), 2, 1 + len(config.pushes))
    return {
        "written_share": np.array(shares).reshape(*shape, -1),
        "written_loss": np.array(losses).reshape(*shape, -1),
        "written": np.array(says).reshape(shape),
        "written_latents": np.array(units),
    }


def _colour_line(ax, x, values, colour, label):
    """Medians over latents with their quartiles."""
    ax.plot(x, np.nanmedian(values, 0), "o-", ms=4, color=colour, label=label)
    ax.fill_between(x, *np.nanpercentile(values, (25, 75), 0), color=colour, alpha=0.2, lw=0)


def draw(results, config):
    """Predicted against observed; agreement by strength; dose-response; what is written."""
    written = bool(config.patterns)
    figure, axes = plt.subplots(1, 3 + written, figsize=(4.6 * (3 + written), 4.5), dpi=110, layout="constrained")
    x = np.asarray(config.strengths, float)
    feature = {field: values[0] for field, values in _numbers(results, "feature").items()}
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(x)))
    for i, strength in enumerate(x):
        axes[0].plot(feature["gradient_wanted"][:, i], feature["wanted"][:, i], "o", ms=3.5, color=colours[i],
                     label=f"{strength:g}")  # fmt: skip
    ends = [min(0.0, axes[0].get_xlim()[0]), axes[0].get_xlim()[1]]
    axes[0].plot(ends, ends, color="0.6", lw=0.8)
    axes[0].set(xlabel="predicted by the derivative", ylabel="observed",
                title="change of log p of a latent's strongest votes")  # fmt: skip
    axes[0].legend(title="strength", frameon=False, fontsize=8)
    gradient, direct = feature["gradient"][..., 1], feature["direct"][..., 1]
    _colour_line(axes[1], x, gradient, "#3f6fb5", "by the derivative")
    if np.isfinite(direct).any() and not np.allclose(direct, gradient, atol=1e-3, equal_nan=True):
        _colour_line(axes[1], x, direct, "#e08a3c", "by the direct path")
    axes[1].set(xlabel="strength, of the largest activation", ylabel="Pearson's r over the vocabulary", ylim=(0, 1.02),
                title="predicted, observed logits (median, quartiles)")  # fmt: skip
    axes[1].legend(frameon=False, fontsize=8)
    _colour_line(axes[2], x, feature["wanted"], "#3f6fb5", "features")
    for i, (name, words) in enumerate(CONTROLS.items()):
        low, mid, high = np.percentile(_numbers(results, name)["wanted"], (25, 50, 75))
        axes[2].errorbar(1 + 0.08 * (i - 1.5), mid, [[mid - low], [high - mid]], fmt="s", ms=5, label=words,
                         color=("0.5", "#8d6bb8", "0.3", "#c44e52")[i])  # fmt: skip
    axes[2].axhline(0, color="0.6", lw=0.8)
    axes[2].set(xlabel="strength, of the largest activation", ylabel="change of log p of the votes",
                title="dose-response")  # fmt: skip
    axes[2].legend(frameon=False, fontsize=8)
    if written:
        pushes = [0.0, *config.pushes]
        for i, (name, _) in enumerate(config.patterns):
            for row, style in ((0, "o-"), (1, ":")):
                shares = results["written_share"][:, i, row].mean(-1)
                axes[3].plot(pushes, shares.mean(0), style, ms=4, color=f"C{i}", label=name if not row else None)
                axes[3].plot(pushes, shares.T, style[-1], color=f"C{i}", lw=0.7, alpha=0.5)
        axes[3].set(xlabel="clamped to, of the largest activation (0: not steered)",
                    ylabel="share of the tokens written", ylim=(0, 1.02),
                    title="what is written (thin: single SAEs)")  # fmt: skip
        axes[3].plot([], [], ":", color="0.4", label="a random direction as far")
        axes[3].legend(frameon=False, fontsize=8)
    plot.plain(axes)
    figure.suptitle(
        f"Do interventions do what the feature says? {len(results['latents'])} latents of {config.seeds} SAEs of "
        f"{config.kind.d_sae} at {config.site}, {config.corpus.kind}"
    )
    return {"": figure}


def _median(values, drawn, picks):
    """Median over latents, its 95 % interval over latents and documents, and of how many latents it is.

    Args:
        values: [latents]. drawn: [draws, latents], the same of documents drawn anew. NaN where there is no such number.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rows that are NaN
        middle = np.nanmedian(np.take_along_axis(drawn, picks, 1), 1)
        mid = float(np.nanmedian(values))
    return mid, *reading.over_draws(mid, middle), int(np.isfinite(values).sum())


def _rank_correlation(a, b):
    """Spearman's, along the last axis; NaN where one side is constant or has a NaN."""
    a, b = (stats.rankdata(v, axis=-1) - (v.shape[-1] + 1) / 2 for v in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def claims(results, config):
    """Small pushes do what the derivative says, large ones still rank the tokens as it says; other pushes do not."""
    x = np.asarray(config.strengths, float)
    low, one = int(np.argmin(np.abs(x))), int(np.argmin(np.abs(x - 1)))
    weights, picks = _drawn(results, config.seed)
    kinds = ("feature", "ablated", *CONTROLS)
    found = {name: _numbers(results, name) for name in kinds}
    again = {name: _numbers(results, name, weights) for name in kinds}
    direct, gradient = found["feature"]["direct"], found["feature"]["gradient"]
    same = np.allclose(direct, gradient, atol=1e-3, equal_nan=True)
    over, out = "latents and documents", []

    def median(text, source, least, of, note="", near=None):
        """A claim on what ``of`` makes [draws, latents] of the numbers of each kind of push: that the low end is at
        least so much, or that the median is as near."""
        values = of(found)[0]
        mid, bottom, top, n = _median(values, of(again), picks)
        by_seed = np.array([np.nanmedian(values[results["seed"] == s]) for s in np.unique(results["seed"])])
        seeds = reading.over_seeds(by_seed)
        note = f"median {mid:.3f} of {n} latents, by seed {_list(by_seed)}" + f"; {note}" * bool(note)
        text = f"{text}: median over latents"
        if near:
            note = f"{reading.said(*seeds[1:])}, {reading.said(bottom, top, over)}; {note}"
            out.append(Claim(text, source, least, mid, near, "=", note=note))
        else:
            out.append(reading.above(text, source, least, seeds, (bottom, top), note, of=("seeds", over)))

    about = "the direct path says the same here" if same else (
        f"by the direct path {np.nanmedian(direct[0, :, one, 2]):.3f}"
    )  # fmt: skip
    median(f"logits after a push of {x[low]:g} of the largest activation: Pearson's r with the derivative's prediction",
           "a check of the derivative", 0.95, lambda e: e["feature"]["gradient"][:, :, low, 1])  # fmt: skip
    median("the same: slope of the logits on that prediction", "a check of the derivative", 1.0,
           lambda e: e["feature"]["gradient"][:, :, low, 0],
           f"after a push of 1 {np.nanmedian(gradient[0, :, one, 0]):.2f}", near=0.05)  # fmt: skip
    median("after a push of 1: rank correlation over the vocabulary with that prediction", "what a feature votes for",
           0.7, lambda e: e["feature"]["gradient"][:, :, one, 2], about)  # fmt: skip
    median("ablation, in texts where the latent is on: Pearson's r of logits with the derivative's prediction",
           "attribution", 0.8, lambda e: e["ablated"]["gradient"][:, :, 0, 1])  # fmt: skip
    votes = [found["feature"][part][0, :, one] for part in ("gradient_wanted", "wanted")]
    order = _rank_correlation(*votes)
    by_seed = np.array(
        [_rank_correlation(*(v[results["seed"] == s] for v in votes)) for s in np.unique(results["seed"])]
    )
    drawn = _rank_correlation(*(np.take_along_axis(again["feature"][part][:, :, one], picks, 1)
                                for part in ("gradient_wanted", "wanted")))  # fmt: skip
    out.append(reading.above(
        "rank correlation, over latents, of predicted and observed change of log p of their votes, push of 1",
        "what a feature votes for", 0.7, reading.over_seeds(by_seed), reading.over_draws(float(order), drawn),
        f"{order:.3f} over all latents, by seed {_list(by_seed)}", of=("seeds", over),
    ))  # fmt: skip
    median("dose-response: rank correlation of strength and log p of the votes", "monotonic", 0.9,
           lambda e: _rank_correlation(e["feature"]["wanted"], x))  # fmt: skip
    for name, words in CONTROLS.items():
        median(f"change of log p of the votes, push of 1, less that of {words} as large (nats)", "control", 0.0,
               lambda e, name=name: e["feature"]["wanted"][:, :, one] - e[name]["wanted"][:, :, 0])  # fmt: skip
    for i, (name, _) in enumerate(config.patterns):
        out.append(_writes(results, config, i, name))
    return out


def _list(values):
    return ", ".join(f"{v:.3f}" for v in values)


def _writes(results, config, i, name):
    """The strength is chosen on one half of the samples of each SAE and scored on the other; samples of the latent and
    of the random direction are drawn with the same keys."""
    share, loss = results["written_share"][:, i], results["written_loss"][:, i]  # [SAEs, 2, strengths, samples]
    each = np.arange(len(share))
    at = 1 + np.argmax(share[:, 0, 1:, ::2].mean(-1), -1)  # the first is not steered
    half = share[..., 1::2] if share.shape[-1] > 1 else share
    ours, random = half[each, 0, at], half[each, 1, at]  # [SAEs, samples]
    seeds = reading.over_seeds((ours - random).mean(-1))
    picks = np.random.default_rng(config.seed).integers(0, ours.shape[1], (2000, *ours.shape))
    samples = reading.over_draws(seeds[0], np.take_along_axis((ours - random)[None], picks, -1).mean((1, 2)))
    pushes = [0.0, *config.pushes]
    by = ", ".join(f"{v:.2f} at {pushes[j]:g}" for v, j in zip(ours.mean(-1), at, strict=True))
    return reading.above(
        f"{name}: share of the tokens written, its latent clamped, less that of the same push in a random "
        "direction, at the strength chosen on the other half of the samples", "steering", 0.2, seeds, samples,
        note=f"not steered {share[:, 0, 0].mean():.2f}, clamped {ours.mean():.2f} (by SAE {by}), random "
             f"{random.mean():.2f}; loss under the model that is not steered {loss[:, 0, 0].mean():.2f} and "
             f"{loss[each, 0, at].mean():.2f} nats a token (by SAE {_list(loss[each, 0, at].mean(-1))}); by SAE more "
             f"than not steered by {_list(ours.mean(-1) - half[:, 0, 0].mean(-1))}", of=("SAEs", "samples"),
    )  # fmt: skip
