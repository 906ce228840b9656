"""What happens to features when an SAE gets eight times as wide? They split, they merge, and some are absorbed.

Latents of a small and a large SAE of one site are held together by what they say on the same tokens (masked cosine:
Bricken et al. 2023, feature splitting), by direction, by what putting a large one into the small SAE does to its error
(stitching: Leask et al. 2025), and on labels of which one implies another (absorption: Chanin et al. 2024).
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse

from experiments import check, latents, reading
from experiments.ledger import Claim
from superpose import plot
from superpose.interp import compare, labels

PAPER = "Towards Monosemanticity, feature splitting"
LEAST = 20
"""Latents on at fewer tokens are left out."""
EDGE = 0.7
"""Masked cosine at which a latent of the large SAE is a child of one of the small. At the paper's 0.4 a first run
related everything: 152 children to a latent, and two by chance to more than half of them."""
IMPLIES, MORE, RARE = 0.99, 3, 50
"""A label is a child of another if so many of its tokens carry that, too, and the other is on so many times as many; of
both, so many tokens are needed."""
MOST, GAIN = 10, 0.03
"""A label's latents: at most so many, the next of which must raise the F1 of their union by more than so much (the rule
of SAEBench's splitting; in a first run single latents knew no parent)."""
KNOWS = 0.5
"""F1 that the parent's latents must have on the first half, in both SAEs: where none know the parent, nothing can be
absorbed."""


def run(config, key, workdir):
    """By seed: children and parents, cosines of directions, changes by stitching, gaps on nested labels."""
    check.whole(config, "width", "times", "seeds", least=2)
    keys = jax.random.split(key, 2)
    texts, model = reading.model(config, keys[0], workdir)
    sizes = {"small": config.width, "large": config.width * config.times}
    made_of = {name: latents.of_width(config.kind, size) for name, size in sizes.items()}
    found = reading.saes(config, model, texts, made_of, keys[1], workdir / "saes", "SAEs")
    keep, y = reading.kept(config, texts), reading.labelled(config, texts)
    x = reading.values(config, model, texts)[keep]
    held = latents.language.judged(config, texts)
    documents = np.repeat(held.documents, held.tokens.shape[1])
    first, group = labels.first_half(documents) & keep, reading.groups(documents)
    pairs = _nested(y[keep])
    codes = {
        name: [reading.coded(config, model, texts, one, workdir / "codes" / f"{name}{i}") for i, one in enumerate(ones)]
        for name, ones in found.items()
    }
    moved = compare.elsewhere(keep, config.context * 7 + 3)
    parts: dict[str, list] = {}  # of latents, of which seeds have unequal numbers
    even: dict[str, list] = {}
    for seed in range(config.seeds):
        small, large = (found[name][seed] for name in sizes)
        a, b, twin = codes["small"][seed], codes["large"][seed], codes["small"][(seed + 1) % config.seeds]
        live = [reading.living(one, LEAST) for one in (a, b, twin)]
        acts = [one.block(0, one.latents)[:, here] for one, here in zip((a, b, twin), live, strict=True)]
        apart = sparse.csc_array((acts[1].data, moved[acts[1].indices], acts[1].indptr), shape=acts[1].shape)
        cosine = compare.nearest(large.W_dec[...][live[1]], small.W_dec[...][live[0]]).score[:, 0]
        family = _family(acts[0], {"": acts[1], "chance_": apart.sorted_indices(), "twin_": acts[2]}, group, cosine)
        stitched = _stitched(small, large, x, group[keep])[:, live[1]]
        for name, values in (family["of"] | {"cosine": cosine, "change": stitched[0]}).items():
            parts.setdefault(name, []).append(np.asarray(values, float))
        for name, values in (family["without"] | {"news_without": _news(stitched[1:])}).items():
            even.setdefault(name, []).append(values)
        for size, one in zip(sizes, (a, b), strict=True):
            gaps = _absorbed(one.block(0, one.latents), y, first, keep & ~first, pairs, group)
            for name, values in gaps.items():
                even.setdefault(f"{name}_{size}", []).append(values)
    most = {name: max(map(len, rows)) for name, rows in parts.items()}  # seeds differ in how many latents live
    out = {
        name: np.stack([np.pad(r, (0, most[name] - len(r)), constant_values=np.nan) for r in rows])
        for name, rows in parts.items()
    }
    names = texts.corpus.labels
    return (
        out
        | {name: np.stack(rows) for name, rows in even.items()}
        | {"pairs": np.array([f"{names[i]} in {names[j]}" for i, j in pairs]), "digest": np.array(texts.digest)}
    )


def _stitched(small, large, x, group):
    """[1 + GROUPS, F], change of the small SAE's error on rows ``x`` by each latent of the large one, as a share of it:
    of all documents, and without each group of them."""
    change, error = np.zeros((reading.GROUPS, large.arch.d_sae)), np.zeros(reading.GROUPS)
    for g in np.unique(group):
        rows = np.flatnonzero(group == g)
        part = compare.stitch(small, large, (x[rows[i : i + 4096]] for i in range(0, len(rows), 4096)))
        change[g], error[g] = part.change * part.error, part.error
    all_of = np.concatenate([np.zeros((1, reading.GROUPS)), np.eye(reading.GROUPS)])  # which group is left out
    with np.errstate(invalid="ignore"):
        return (1 - all_of) @ change / ((1 - all_of) @ error)[:, None]


def _family(small, others, group, cosine):
    """``of``: how many children each latent of ``small`` [N, F] has among those of each of the others, and how many
    parents each of theirs; ``without``: [GROUPS], ``_shares`` of these without each group of documents, of those called
    "" with their ``cosine``."""
    of: dict[str, np.ndarray] = {}
    without: dict[str, np.ndarray] = {}
    rows = [np.flatnonzero(group != g) for g in range(reading.GROUPS)]
    kept = [small.tocsr()[r].tocsc() for r in rows]
    for name, other in others.items():
        by_row = other.tocsr()
        edges = compare.masked(small, other, EDGE) > 0
        of |= {f"{name}children": edges.sum(1), f"{name}parents": edges.sum(0)}
        left = [compare.masked(mine, by_row[r].tocsc(), EDGE) > 0 for mine, r in zip(kept, rows, strict=True)]
        shares = [_shares(e.sum(1), e.sum(0), None if name else cosine) for e in left]
        without |= {f"{name}{what}_without": np.array([s[what] for s in shares]) for what in shares[0]}
    return {"of": of, "without": without}


def _shares(children, parents, cosine=None):
    """What is claimed of how many children small latents have, and parents large ones; given the ``cosine`` of these
    with the nearest small one, the median of those with a parent less that of those without, too."""
    found = {"two": np.mean(children >= 2), "mean": np.mean(children), "merged": np.mean(parents >= 2)}
    if cosine is not None:
        some = parents > 0
        both = some.any() and not some.all()
        found["near"] = np.median(cosine[some]) - np.median(cosine[~some]) if both else np.nan
    return found


def _news(change):
    """Share of large latents [..., F] that make the small SAE's error smaller."""
    return np.mean(change < 0, -1)


def _nested(y):
    """Pairs (child, parent) of labels: most tokens of the child carry the parent, which is on far more."""
    counts = y.sum(0)
    both = y.astype(np.float32).T @ y
    return [
        (i, j)
        for i in range(len(counts))
        for j in range(len(counts))
        if i != j and counts[i] >= RARE and counts[j] >= MORE * counts[i] and both[i, j] >= IMPLIES * counts[i]
    ]


def _absorbed(units, y, fit, score, pairs, group):
    """Of each pair, of the parent's latents on the first half: their F1 (``knows``) and number (``latents``); P(one is
    on | parent without child) less P(one is on | child) on the other half (``gap``); and the share of the child's
    tokens on which they are silent and a latent of the child's is on instead (``instead``: absorption as Chanin et al.
    2024 mean it, by activations). NaN where the labels do not occur. The last two are [pairs, 1 + GROUPS]: of all
    documents, and without each group of them."""
    on = units.tocsr().astype(np.float32)
    on.data[:] = 1
    first, second = on[fit], on[score].tocsc()
    known = {label: _latents_of(first, y[fit][:, label]) for label in {i for pair in pairs for i in pair}}
    out: dict[str, list] = {"gap": [], "knows": [], "latents": [], "instead": []}
    for child, parent in pairs:
        latents_of, f1 = known[parent]
        said, other = (second[:, chosen].sum(1) > 0 for chosen in (latents_of, known[child][0]))
        inside, outside = y[score][:, child], y[score][:, parent] & ~y[score][:, child]
        n, without = (_sums(where, group[score]) for where in (inside, outside))
        hits, misses = (_sums(said & where, group[score]) for where in (outside, inside))
        with np.errstate(invalid="ignore"):
            gap = hits / without - misses / n
            instead = _sums(~said & other & inside, group[score]) / np.where(without > 0, n, np.nan)
        out["knows"].append(f1)
        out["latents"].append(len(latents_of))
        out["gap"].append(gap)
        out["instead"].append(instead)
    return {name: np.array(values, float) for name, values in out.items()}


def _latents_of(on, true):
    """The latents [N, F] whose union says best which tokens carry a label, and its F1: see ``MOST``."""
    columns, union, best = on.tocsc(), np.zeros(len(true), bool), 0.0
    chosen: list[int] = []
    while len(chosen) < MOST:
        hits = (true & ~union).astype(np.float32) @ on
        more = (~union).astype(np.float32) @ on
        f1 = 2 * ((true & union).sum() + hits) / np.maximum(true.sum() + union.sum() + more, 1)
        if f1.max() <= best + GAIN * bool(chosen):
            break
        chosen.append(int(f1.argmax()))
        best = float(f1.max())
        union |= columns[:, [chosen[-1]]].toarray().ravel() > 0
    return chosen, best


def _sums(where, group):
    """[1 + GROUPS], rows at which it holds: of all documents, and without each group of them."""
    by = np.bincount(group[where], minlength=reading.GROUPS)
    return np.concatenate([[by.sum()], by.sum() - by]).astype(float)


def _known(results):
    """[pairs], those whose parent is known in every SAE, and whose labels occur as they must."""
    sizes = ("small", "large")
    there = [(results[f"knows_{s}"] >= KNOWS) & np.isfinite(results[f"gap_{s}"]).all(-1) for s in sizes]
    return np.all(there, (0, 1))


def _gaps(results, name="gap"):
    """At both sizes [seeds, pairs, 1 + GROUPS], of the pairs that are known."""
    here = _known(results)
    return results[f"{name}_small"][:, here], results[f"{name}_large"][:, here]


def _seeds_of(results, name):
    """One array a seed, without what pads it."""
    return [row[np.isfinite(row)] for row in results[name]]


def draw(results, config):
    """Children of each small latent, parents of each large one, directions, stitching, gaps on nested labels."""
    figure, axes = plt.subplots(1, 5, figsize=(20, 4.4), dpi=110, layout="constrained")
    known = lambda name: np.concatenate(_seeds_of(results, name))  # noqa: E731
    kinds = (("", "#3f6fb5", "-", f"{config.width * config.times} latents"),
             ("twin_", "#e08a3c", "-", f"{config.width}, another seed"),
             ("chance_", "0.6", ":", "other tokens (chance)"))  # fmt: skip
    for ax, name, most, what in ((axes[0], "children", 60, "children of a small latent"),
                                 (axes[1], "parents", 6, "parents of a large latent")):  # fmt: skip
        for prefix, colour, style, label in kinds:
            ax.hist(np.minimum(known(prefix + name), most), np.arange(-0.5, most + 1.5), histtype="step", lw=1.6,
                    ls=style, color=colour, label=label, density=True)  # fmt: skip
        ax.set(xlabel=f"number of them (at {most}: or more)\nmasked cosine above {EDGE}", ylabel="share of the latents",
               title=what)  # fmt: skip
        ax.set_ylim(0, 1.25 * max(np.histogram(np.minimum(known(p + name), most), np.arange(-0.5, most + 1.5),
                                               density=True)[0].max() for p in ("", "twin_")))  # fmt: skip
        ax.legend(frameon=False, fontsize=8)
    cosine, parents = known("cosine"), known("parents")
    for here, colour, label in ((parents > 0, "#3f6fb5", "with a parent"), (parents == 0, "#b5533f", "without")):
        if here.any():
            axes[2].hist(cosine[here], np.linspace(0, 1, 41), histtype="step", lw=1.6, color=colour, density=True,
                         label=f"{label}: median {np.median(cosine[here]):.2f}")  # fmt: skip
    axes[2].set(xlabel="cosine with the nearest small latent", ylabel="density", title="directions of large latents")
    axes[2].legend(frameon=False, fontsize=8)
    change = known("change")
    axes[3].plot(np.sort(change) * 1e3, (np.arange(len(change)) + 1) / len(change), color="#3f6fb5")
    axes[3].axvline(0, color="0.6", lw=0.8)
    axes[3].set(xscale="symlog", xlabel="change of the small SAE's error, parts in a thousand",
                ylabel="share of large latents", title=f"stitching: {_news(change):.0%} are news")  # fmt: skip
    small, large = (gaps[..., 0].mean(0) for gaps in _gaps(results))
    axes[4].plot([-1, 1], [-1, 1], color="0.6", lw=0.8)
    axes[4].plot(small, large, "o", ms=4, alpha=0.7, color="#b5533f")
    axes[4].set(xlabel=f"parent's latents on without the child,\nless with it: {config.width} latents",
                ylabel=f"the same, {config.width * config.times} latents", xlim=(-1, 1),
                ylim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), yticks=(-1, -0.5, 0, 0.5, 1),
                title=f"{len(small)} nested labels that latents know")  # fmt: skip
    plot.plain(axes)
    figure.suptitle(
        f"From {config.width} to {config.width * config.times} latents of {config.site}, {config.corpus.kind}; "
        f"{config.seeds} seeds"
    )
    return {"": figure}


def claims(results, config):
    """Features split, do not form a tree, and wide SAEs absorb more."""

    def by_seed(name, of):
        return np.array([of(row) for row in _seeds_of(results, name)])

    def above(text, source, least, values, without, note=""):
        seeds = reading.over_seeds(values)
        return reading.above(text, source, least, seeds, reading.jackknife(seeds[0], without)[1:], note)

    shares: dict[str, dict[str, np.ndarray]] = {"two": {}, "mean": {}, "merged": {}, "near": {}}
    for p in ("", "twin_", "chance_"):
        columns = [_seeds_of(results, f"{p}{n}") for n in ("children", "parents")]
        of = [_shares(*one) for one in zip(*columns, *[] if p else [_seeds_of(results, "cosine")], strict=True)]
        for name in of[0]:
            shares[name][p] = np.array([one[name] for one in of])
    two, mean, merged, near = shares.values()

    def less(name, prefix):
        """Without each group of documents, mean over seeds."""
        return (results[f"{name}_without"] - results[f"{prefix}{name}_without"]).mean(0)

    news = by_seed("change", _news)
    parted = reading.jackknife(news.mean(), results["news_without"].mean(0))
    small, large = _gaps(results)
    instead = _gaps(results, "instead")
    here = _known(results)
    counts = [results[f"latents_{size}"][:, here].mean() if here.any() else np.nan for size in ("small", "large")]
    none = np.full((config.seeds, 1 + reading.GROUPS), np.nan)  # no pair of labels is known
    rise = (large - small).mean(1) if small.size else none
    more = (instead[1] - instead[0]).mean(1) if small.size else none
    return [
        above("share of small latents with two children or more, less that by chance (other tokens)",
              f"{PAPER}: features split", 0.3, two[""] - two["chance_"], less("two", "chance_"),
              f"{two[''].mean():.3f}, chance {two['chance_'].mean():.3f}"),
        above("the same, less that in another seed of the small SAE, which has no more latents to split into",
              "control: as wide", 0.1, two[""] - two["twin_"], less("two", "twin_"),
              f"{two[''].mean():.3f}, another seed {two['twin_'].mean():.3f}"),
        above("mean number of children in the wide SAE less that in another seed of the small one",
              f"{PAPER}: more latents, more children", 0.5, mean[""] - mean["twin_"], less("mean", "twin_"),
              f"{mean[''].mean():.2f}, another seed {mean['twin_'].mean():.2f}, chance {mean['chance_'].mean():.2f}"),
        above(f"it has more of them than its number of latents alone gives: less {config.times} times those in another "
              "seed of the small one", "control: as many candidates", 0.0, mean[""] - config.times * mean["twin_"],
              (results["mean_without"] - config.times * results["twin_mean_without"]).mean(0),
              f"{mean[''].mean():.1f} and {config.times * mean['twin_'].mean():.1f}"),
        above("share of large latents with two parents or more less that by chance: splits and merges, not a tree",
              PAPER, 0.0, merged[""] - merged["chance_"], less("merged", "chance_"),
              f"{merged[''].mean():.3f}, chance {merged['chance_'].mean():.3f}; of latents of another small SAE, as "
              f"wide, {merged['twin_'].mean():.3f}: latents merge at equal width, too"),
        above("median cosine with the nearest small direction: large latents with a parent less those without",
              "splits by tokens and by direction agree", 0.0, near[""], results["near_without"].mean(0)),
        Claim("share of large latents that are news to the small SAE (stitched in, its error falls)",
              "Leask et al. 2025: both kinds exist", [0.02, 0.98], float(news.mean()), 0.0, "in",
              note=f"{reading.said(*reading.over_seeds(news)[1:])}; {reading.said(*parted[1:], 'documents')}"),
        above("nested labels: how much more the parent's latents are silent on the child, wide less small",
              "Chanin et al. 2024: absorption rises with the width", 0.0, rise[:, 0], rise[:, 1:].mean(0),
              f"mean of {small.shape[1]} of {len(results['pairs'])} pairs, whose parent's latents have an F1 of "
              f"{KNOWS} or more; of these {counts[0]:.1f} in the small SAE and {counts[1]:.1f} in the wide one; seeds "
              + ", ".join(f"{v:+.3f}" for v in rise[:, 0])),
        above("nested labels: share of the child's tokens with its latents on in the parent's place, wide less "
              "small",
              "Chanin et al. 2024: absorption rises with the width", 0.0, more[:, 0], more[:, 1:].mean(0),
              "by seed " + ", ".join(f"{v:+.3f}" for v in more[:, 0])),
    ]  # fmt: skip
