"""Are the same features found again? In another seed, another kind of SAE, another model (Bricken et al. 2023).

Activations need no common space: a latent is found again where another SAE has one that is on for the same tokens.
Neurons of the two models stand beside, and chance: the same latents on other tokens.
"""

from typing import TYPE_CHECKING, Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker
from scipy import optimize, stats

from experiments import check, language, latents, reading
from experiments.ledger import Claim
from superpose import plot
from superpose.interp import compare
from superpose.sae import recovery

if TYPE_CHECKING:  # it leaves the SAEs that are read here
    from experiments.lm import monosemantic  # noqa: F401

PAPER = "Towards Monosemanticity, universality"
OTHERS = {"another seed": "#3f6fb5", "another kind": "#5a9e6f", "another model": "#b5533f"}
FOUND = 0.7
"""Correlation at which a latent counts as found again."""
LEAST = 20
"""Latents on at fewer tokens have no correlation worth the name; they are left out."""


def run(config, key, workdir):
    """By pair of SAEs: best correlation of each latent, its matched direction, chance, resamplings of documents; and of
    neurons with neurons."""
    check.whole(config, "seeds", least=2)
    keys = jax.random.split(key, 6)
    texts, first = reading.model(config, keys[0], workdir / "a")
    second, _ = language.trained(config, texts, keys[1], workdir / "b")
    own = reading.subject(config, first, texts, keys[2], workdir / "a")
    kind = reading.saes(config, first, texts, {"other": config.other}, keys[3], workdir / "kind", "another kind")
    elsewhere = config.copy_and_resolve_references()
    elsewhere.seed = config.seed + 1  # model B's SAEs see the texts in another order
    theirs = reading.saes(elsewhere, second, texts, {"SAE": config.kind}, keys[4], workdir / "b" / "saes", "SAEs of B")

    def code(model, ones, name):
        return [
            reading.coded(config, model, texts, one, workdir / "codes" / f"{name}{i}") for i, one in enumerate(ones)
        ]

    a, b, other = code(first, own, "a"), code(second, theirs["SAE"], "b"), code(first, kind["other"], "kind")
    pairs: dict[str, list[tuple[int, int, Any, Any]]] = {
        "another seed": [(i, j, a[j], own[j]) for i in range(len(a)) for j in range(i + 1, len(a))],
        "another kind": [(i, i, other[i], kind["other"][i]) for i in range(len(a))],
        "another model": [(i, i, b[i], None) for i in range(len(a))],  # another space: no directions to compare
    }
    keep = reading.kept(config, texts)
    held = latents.language.judged(config, texts)
    documents = np.repeat(held.documents, held.tokens.shape[1])
    moved = compare.elsewhere(keep, config.context * 7 + 3)
    live = np.stack([reading.living(codes, LEAST) for codes in a])
    out: dict[str, Any] = {"on": np.stack([codes.counts for codes in a]), "kept": np.asarray(a[0].kept)}
    for name, all_of in pairs.items():
        best = [compare.correlated(a[i], codes) for i, _, codes, _ in all_of]
        drawn = [
            compare.resampled(a[i], codes, m.number[:, 0], documents, keep, seed=config.seed)[:, live[i]]
            for (i, _, codes, _), m in zip(all_of, best, strict=True)
        ]
        out[f"pairs_{name}"] = np.array([(i, j) for i, j, *_ in all_of])
        out[f"r_{name}"] = np.stack([m.score[:, 0] for m in best])
        out[f"draws_{name}"] = np.mean([np.median(r, 1) for r in drawn], 0)
        out[f"shared_draws_{name}"] = np.mean([np.mean(r >= FOUND, 1) for r in drawn], 0)
        rise = [_rise(r, a[i].counts[live[i]]) for r, (i, *_) in zip(drawn, all_of, strict=True)]
        out[f"rise_draws_{name}"] = np.mean(rise, 0)
        out[f"chance_{name}"] = np.stack(
            [compare.correlated(a[i], codes, moved=moved).score[:, 0] for i, _, codes, _ in all_of]
        )
        if all_of[0][3] is not None:
            out[f"cosine_{name}"] = np.stack([
                _matched(own[i].W_dec[...], one.W_dec[...], live[i], codes.counts >= LEAST)
                for i, _, codes, one in all_of
            ])  # fmt: skip
    shape, alive = own[0].W_dec[...].shape, live[1]
    rows = [jax.random.normal(jax.random.fold_in(keys[5], i), shape) for i in range(len(own))]
    out["cosine_chance"] = np.stack(
        [_matched(one.W_dec[...], drawn, here, alive) for one, drawn, here in zip(own, rows, live, strict=True)]
    )
    x, y = (reading.values(config, model, texts) for model in (first, second))
    r, number = _closest(x[keep], y[keep])
    varies = x[keep].std(0) > 0
    again = compare.resampled_columns(x[:, varies], y[:, number[varies]], documents, keep, seed=config.seed)
    return out | {"neurons": r[varies], "neurons_draws": np.median(again, 1), "digest": np.array(texts.digest)}


def _matched(a, b, live_a, live_b):
    """[F], cosine of each live row of A with the live row of B that a one-to-one matching gives it, the sum of cosines
    being as large as can be (a direction and its opposite say different things); NaN where none."""
    rows, columns = np.flatnonzero(live_a), np.flatnonzero(live_b)
    cosines = np.asarray(recovery.cosines(a, b))[np.ix_(rows, columns)]
    out = np.full(len(live_a), np.nan)
    mine, theirs = optimize.linear_sum_assignment(cosines, maximize=True)
    out[rows[mine]] = cosines[mine, theirs]
    return out


def _halves(r, on):
    """Median of r [..., latents] over the latents that are on least and over those on most, cut at the median; NaN
    where there is no half that is on more."""
    rare = on <= np.median(on)
    return np.median(r[..., rare], -1), np.median(r[..., ~rare], -1) if (~rare).any() else np.full(r.shape[:-1], np.nan)


def _rise(r, on):
    """By how much the latents on most are found again better than those on least."""
    rare, frequent = _halves(r, on)
    return frequent - rare


def _closest(x, y):
    """Of each column of x the largest Pearson's r with a column of y, and which."""
    standard = lambda a: (a - a.mean(0)) / np.where(a.std(0) > 0, a.std(0), np.inf)  # noqa: E731
    r = standard(x).T @ standard(y) / len(x)
    return r.max(1), r.argmax(1)


def _live(results, name):
    """[pairs, F], latents of the first of each pair that are on at enough tokens."""
    return results["on"][results[f"pairs_{name}"][:, 0]] >= LEAST


def _by_pair(results, name, of="r"):
    """One array a pair: values of its live latents."""
    return [values[here] for values, here in zip(results[f"{of}_{name}"], _live(results, name), strict=True)]


def draw(results, config):
    """Histograms of the best correlation, by density, and of matched decoder cosines."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), dpi=110, layout="constrained")
    bins = np.linspace(0, 1, 41)
    lines = {name: (np.concatenate(_by_pair(results, name)), colour, 1.6, "-") for name, colour in OTHERS.items()}
    lines["neurons of another model"] = (results["neurons"], "#e08a3c", 1.2, "-")
    lines["chance"] = (np.concatenate(_by_pair(results, "another model", "chance")), "0.6", 1.2, ":")
    for name, (r, colour, width, style) in lines.items():
        axes[0].hist(r, bins, density=True, histtype="step", lw=width, color=colour, ls=style,
                     label=f"{name}: median {np.median(r):.2f}")  # fmt: skip
    top = max(np.histogram(r, bins, density=True)[0].max() for n, (r, *_) in lines.items() if n != "chance")
    axes[0].set(xlabel="largest correlation of activations", ylabel="density", ylim=(0, 1.35 * top),
                title=f"latents on at {LEAST} tokens or more")  # fmt: skip
    axes[0].legend(frameon=False, fontsize=8)
    for name, colour in OTHERS.items():
        r = np.concatenate(_by_pair(results, name))
        on = results["on"][results[f"pairs_{name}"][:, 0]]
        density = np.concatenate([n[here] for n, here in zip(on, _live(results, name), strict=True)]) / results["kept"]
        edges = np.unique(np.quantile(density, np.linspace(0, 1, 9)))
        place = np.clip(np.searchsorted(edges, density, side="right") - 1, 0, max(len(edges) - 2, 0))
        parts = [place == i for i in range(max(len(edges) - 1, 1))]
        x = [np.exp(np.log(density[p]).mean()) for p in parts if p.any()]
        axes[1].plot(x, [np.median(r[p]) for p in parts if p.any()], "o-", ms=4, lw=1.2, color=colour,
                     label=f"{name}, correlation")  # fmt: skip
        if f"cosine_{name}" in results:
            cosine = np.concatenate(_by_pair(results, name, "cosine"))
            axes[1].plot(x, [np.nanmedian(cosine[p]) for p in parts if p.any()], "s--", ms=3.5, lw=1, color=colour,
                         label=f"{name}, matched directions")  # fmt: skip
    axes[1].set(xscale="log", xlabel="share of tokens on which a latent is on",
                ylabel="median correlation, or cosine of decoder rows", ylim=(0, 1.02),
                title="by how often a latent is on")  # fmt: skip
    axes[1].xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    axes[1].xaxis.set_major_formatter("{x:g}")
    axes[1].xaxis.set_minor_formatter(ticker.NullFormatter())
    axes[1].legend(frameon=False, fontsize=8)
    bins, top = np.linspace(-0.2, 1, 49), 0.0
    for name in ("another seed", "another kind"):
        height, *_ = axes[2].hist(np.concatenate(_by_pair(results, name, "cosine")), bins, density=True,
                                  histtype="step", lw=1.6, color=OTHERS[name], label=name)  # fmt: skip
        top = max(top, np.max(height))
    axes[2].hist(results["cosine_chance"].ravel(), bins, density=True, histtype="step", lw=1.2, color="0.6", ls=":",
                 label="random directions")  # fmt: skip
    axes[2].set(xlabel="cosine of decoder rows, matched one to one", ylabel="density", ylim=(0, 1.35 * top),
                title="directions")  # fmt: skip
    axes[2].legend(frameon=False, fontsize=8)
    plot.plain(axes)
    figure.suptitle(
        f"Are the same features found again? {config.kind.d_sae} latents of {config.site}, {config.corpus.kind}"
    )
    return {"": figure}


def claims(results, config):
    """Features are shared across models more than neurons are, and more than by chance."""
    median = {name: np.array([np.median(r) for r in _by_pair(results, name)]) for name in OTHERS}
    chance = np.array([np.median(r) for r in _by_pair(results, "another model", "chance")])
    neurons = float(np.median(results["neurons"]))
    over = lambda whole, draws: reading.said(*reading.over_draws(whole, draws), "documents")  # noqa: E731
    mean, low, high = reading.over_seeds(median["another model"])
    shared = {name: np.array([np.mean(r >= FOUND) for r in _by_pair(results, name)]) for name in OTHERS}
    by_chance = {name: np.array([np.mean(r >= FOUND) for r in _by_pair(results, name, "chance")]) for name in OTHERS}
    seeds = results["pairs_another seed"]
    on = results["on"][seeds[:, 0]]
    halves = np.array([
        _halves(r, n[n >= LEAST]) for r, n in zip(_by_pair(results, "another seed"), on, strict=True)
    ])  # fmt: skip
    rise = reading.over_pairs(halves[:, 1] - halves[:, 0], seeds)
    random = float(np.nanmedian(results["cosine_chance"]))
    cosines = np.array([np.nanmedian(c) for c in _by_pair(results, "another seed", "cosine")]) - random

    def above(text, source, least, seeds, note, draws):
        return reading.above(text, source, least, seeds, reading.over_draws(seeds[0], draws), note)

    return [
        Claim("median correlation of a latent with the closest of another model (2 latents a neuron here, 8 in the "
              "paper; the interval over pairs of SAEs)", f"{PAPER}: 0.72", [0.57, 0.87], [low, high], 0.0, "in",
              note=f"mean {mean:.3f}; {over(mean, results['draws_another model'])}; another "
                   f"seed {median['another seed'].mean():.2f}, another kind {median['another kind'].mean():.2f}"),
        Claim("median correlation of a neuron with the closest of another model", f"{PAPER}: 0.46", 0.46, neurons, 0.15,
              note=over(neurons, results["neurons_draws"])),
        above("features less neurons: median correlation across models", f"{PAPER}: 0.72 against 0.46", 0.0,
              reading.over_seeds(median["another model"] - neurons), "one other model",
              results["draws_another model"] - results["neurons_draws"]),
        above("median correlation across models less that by chance (other tokens)", "control", 0.3,
              reading.over_seeds(median["another model"] - chance), f"chance {chance.mean():.3f}",
              results["draws_another model"] - chance.mean()),
        above(f"share of latents found again in another seed (correlation above {FOUND}) less that by chance",
              "control", 0.2, reading.over_pairs(shared["another seed"] - by_chance["another seed"], seeds),
              "; ".join(f"{k} {v.mean():.2f}, chance {by_chance[k].mean():.3f}" for k, v in shared.items()),
              results["shared_draws_another seed"] - by_chance["another seed"].mean()),
        reading.above("another seed: median cosine of decoder rows, matched one to one, less that of random "
                      "directions", "control", 0.2, reading.over_pairs(cosines, seeds),
                      note=f"random directions {random:.3f}"),
        above("frequent latents are found again more often than rare ones (difference of medians by half)",
              "SAEs of several seeds (Paulo and Belrose 2025)", 0.0, rise,
              f"rare half {halves[:, 0].mean():.2f}, frequent half {halves[:, 1].mean():.2f}; rank correlation with "
              f"the tokens that a latent is on for {_follows(results):.2f}; it is on for {_few(results)}",
              results["rise_draws_another seed"]),
    ]  # fmt: skip


def _follows(results):
    """Spearman's rank correlation of how often a latent is on with how well it is found again, mean over pairs."""
    on = results["on"][results["pairs_another seed"][:, 0]]
    return np.mean([stats.spearmanr(n[n >= LEAST], r).statistic
                    for n, r in zip(on, _by_pair(results, "another seed"), strict=True)])  # fmt: skip


def _few(results):
    """In words, tokens for which latents are on."""
    on = results["on"][results["on"] >= LEAST]
    return f"{on.min():,} tokens or more, half of them for {np.median(on):,.0f} or fewer"
