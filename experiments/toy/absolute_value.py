"""Networks that compute |x| with fewer neurons than they need: which neurons are shared, and how.

TMS, "Computation in Superposition": basic structure, superposition vs sparsity, the asymmetric superposition motif.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry
from superpose.toy.models import TwoLayers, decay, grid, normalised, population
from superpose.worlds.sparse import independent

SECTION = "TMS, Computation in Superposition"
MOTIF = SECTION + ", The Asymmetric Superposition Motif"


def run(config, key, workdir):
    """Normalised weights of the best models, losses, and the clearest motif among all models."""
    check.whole(config, "n", least=2)
    check.whole(config.small, "n", least=2)
    check.whole(config, "m", "seeds", "batch", "eval_batch", "eval_batches")
    check.whole(config.small, "m", "seeds")
    check.positive(config, "decay", "init_scale", "mono", "lrs", "densities")
    densities, recipe = np.asarray(config.densities, np.float32), check.recipe(config)
    out, lrs = {"densities": densities}, np.asarray(config.lrs, np.float32)
    sizes = {
        "small": (
            config.small.n,
            config.small.m,
            np.asarray([config.small.density], np.float32),
            config.small.seeds,
            1.0,
        ),
        "large": (config.n, config.m, densities, config.seeds, config.decay),
    }
    for (name, (n, m, at, seeds, rate)), k in zip(sizes.items(), jax.random.split(key, 2), strict=True):
        pop, judge = (
            population(
                n, m, grid(density=at, lr=lrs, seed=range(seeds)), recipe, importance=decay(n, rate), target=jnp.abs,
                model=partial(_model, n, m, config.init_scale), init=_alive,
                world=independent(n, -1.0, 1.0), expectation="conditional", size=size, block=4,
            )
            for size in (config.batch, config.eval_batch)
        )  # fmt: skip
        got = toys.trained(pop, judge, config, k, workdir / name, seeds=seeds * len(lrs), batches=config.eval_batches,
                           of=("density", at), title=f"|x|, n={n} m={m}")  # fmt: skip
        W_in, W_out = jax.vmap(normalised)(got.chosen("W_in"), got.chosen("W_out"))
        out |= {f"{name}_loss": got.loss, f"{name}_in": np.asarray(W_in), f"{name}_out": np.asarray(W_out)}
        flat = [got.params[w].reshape(-1, *got.params[w].shape[2:]) for w in ("W_in", "W_out")]
    pairs = list(zip(*flat, strict=True))
    random = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.fold_in(key, 2))))
    dealt = sum(motif(W_in, _dealt(W_in, W_out, random)) is not None for W_in, W_out in pairs)
    found = [motif(*pair) for pair in pairs]
    return out | _clearest(found, np.repeat(densities, config.seeds * len(lrs))) | {"motif_dealt": np.asarray(dealt)}


def _model(n, m, init_scale, rngs):
    return TwoLayers(n, m, init_scale=init_scale, rngs=rngs)


def _alive(params, key, hyper):
    """Output weights that are positive at the start: an output whose weights are all below 0 is off for every input,
    learns nothing, and stays so."""
    return params | {"W_out": jnp.abs(params["W_out"])}


def motif(W_in, W_out):
    """The clearest asymmetric superposition of a model, or None (TMS, "The Asymmetric Superposition Motif").

    A neuron holds features a and b: input weights like [2, -1/2] and output weights like [1/2, 2], so that both
    products are about 1. What a puts on b (2 times 2) is taken back by a second neuron that a drives.

    Returns:
        (neuron, inhibiting neuron, a, b, |w_a / w_b|, share of a's effect on b that is taken back, their weights
        from a and b and to them): of all with products within [0.6, 1.5], a ratio of at least 2 and a share of at least
        0.6 the one whose ratio is closest to 4.
    """
    own, best = _own(W_in, W_out), None
    for j in range(len(W_in)):
        for a, b in itertools.permutations(np.flatnonzero(own[j]), 2):
            ratio = abs(W_in[j, a] / W_in[j, b])
            if ratio < 2:
                continue
            drive = np.where(np.sign(W_in[:, a]) == np.sign(W_in[j, a]), np.abs(W_in[:, a]), 0)
            drive[j] = 0
            back = -W_out[b] * drive
            k = int(back.argmax())
            share = float(back[k] / (W_out[b, j] * abs(W_in[j, a])))
            if share >= 0.6 and (best is None or abs(np.log(ratio / 4)) < abs(np.log(best[4] / 4))):
                best = (j, k, int(a), int(b), float(ratio), share)
    return best if best is None else (*best, W_in[[j for j in best[:2]]][:, list(best[2:4])],
                                      W_out[list(best[2:4])][:, [j for j in best[:2]]])  # fmt: skip


def _dealt(W_in, W_out, random):
    """Output weights, of which those that are no part of a feature's own product change places at random within each
    output: the same neurons hold the same features, and who inhibits whom is by chance."""
    made, other = W_out.copy(), ~_own(W_in, W_out).T
    for row, free in zip(made, other, strict=True):
        row[free] = random.permutation(row[free])
    return made


def _own(W_in, W_out):
    """Whether a neuron [m] holds a feature [n]: the product of its weights from and to it is about 1."""
    products = np.abs(W_in) * W_out.T
    return (products > 0.6) & (products < 1.5)


def _clearest(found, densities):
    """Arrays of the motif that is closest to the paper's, and how many models have one."""
    have = [(i, f) for i, f in enumerate(found) if f is not None]
    counts = np.asarray([sum(f is not None for f, p in zip(found, densities, strict=True) if p == q)
                         for q in np.unique(densities)[::-1]])  # fmt: skip
    if not have:
        nothing = np.full((2, 2), np.nan)
        return {"motif_models": counts, "motif": np.full(7, np.nan), "motif_in": nothing, "motif_out": nothing}
    i, best = min(have, key=lambda item: abs(np.log(item[1][4] / 4)))
    return {"motif_models": counts, "motif": np.asarray([*best[:6], densities[i]], float), "motif_in": best[6],
            "motif_out": best[7]}  # fmt: skip


def _neurons(W_in, part):
    """[m]: the second largest input weight of each neuron over its largest, and whether it is monosemantic."""
    size = np.sort(np.abs(W_in), axis=1)
    share = size[:, -2] / np.maximum(size[:, -1], 1e-9)
    return share, (share < part) & (size[:, -1] > 0)


def draw(results, config):
    """Stacked neurons of the small model and of each density; the motif as a circuit."""
    rows = len(results["densities"])
    figure = plt.figure(figsize=(13.5, 2.6 + 1.45 * rows), dpi=100)
    head, body = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.6, 1.45 * rows])[:, 0]
    figure.suptitle(
        f"Computing $|x|$ with too few neurons: {config.n} features, {config.m} neurons, importance "
        f"${config.decay}^i$; bars: input weights, the largest of a neuron scaled to 1", fontsize=12, y=0.992,
    )  # fmt: skip
    axes = head.subplots(1, 3, width_ratios=[1, 1, 1.6])
    W_in, W_out = results["small_in"][0], results["small_out"][0]
    order = np.lexsort((-W_in[np.arange(len(W_in)), np.abs(W_in).argmax(1)], np.abs(W_in).argmax(1)))
    for ax, W, name in zip(axes, (W_in, W_out.T), ("input", "output"), strict=False):
        plot.weights(ax, W[order])
        ax.set(
            xlabel="feature",
            ylabel="neuron",
            title=f"{config.small.n} features, {config.small.m} neurons: {name} weights (red 1, blue -1)",
        )
        ax.title.set_fontsize(9)
    _circuit(axes[2], results, config)
    head.subplots_adjust(left=0.05, right=0.98, top=0.76, bottom=0.16, wspace=0.25)
    stacks = np.atleast_1d(body.subplots(rows, 1))
    for i, ax in enumerate(stacks):
        W = results["large_in"][i]
        share, mono = _neurons(W, config.mono)
        order = np.argsort(np.abs(W).argmax(1), kind="stable")
        shared = np.asarray(geometry.superposition(jnp.asarray(W.T)))
        plot.neuron_stack(ax, np.abs(W[order]), shared, share[order])
        ax.set_ylabel(f"$1-S$ = {results['densities'][i]:g}", fontsize=9)
        ax.annotate(f"{mono.sum()} monosemantic, loss {results['large_loss'][i].min():.2g}", (1, 1.02), fontsize=8,
                    xycoords="axes fraction", ha="right")  # fmt: skip
    stacks[-1].set_xlabel(
        "neurons, by the importance of their largest feature; the redder the ground, the more polysemantic", fontsize=9
    )
    body.subplots_adjust(left=0.05, right=0.9, top=0.97, bottom=0.07, hspace=0.32)
    label = "superposition of the feature\n" + r"$\sum_{j\neq i}(\hat W_i\cdot W_j)^2$"
    plot.colour_key(body, body.add_axes((0.92, 0.35, 0.012, 0.4)), plot.SHARED, 0.0, 1.0, label)
    return {"": figure}


def _circuit(ax, results, config):
    if not np.isfinite(results["motif"][0]):
        ax.text(0.5, 0.5, "no asymmetric superposition was found", ha="center")
        ax.axis("off")
        return
    j, k, a, b, ratio, share, density = results["motif"]
    plot.circuit(ax, results["motif_in"], results["motif_out"], [f"feature {int(f)}" for f in (a, b)],
                 [f"neuron {int(h)}" for h in (j, k)])  # fmt: skip
    ax.set_title(
        f"asymmetric superposition ($1-S$ = {density:g}): weights {ratio:.1f} : 1, {share:.0%} taken back", fontsize=9
    )


def claims(results, config):
    """Neurons of the small model, the dense limit, growth of polysemanticity, and the motif."""
    p, m = results["densities"], config.m
    W_in, W_out = results["small_in"][0], results["small_out"][0]
    _, mono = _neurons(W_in, config.mono)
    signs = {(int(np.abs(w).argmax()), int(np.sign(w[np.abs(w).argmax()]))) for w in W_in}
    own = W_out[np.abs(W_in).argmax(1), np.arange(len(W_in))]
    share = np.asarray([_neurons(W, config.mono)[1].mean() for W in results["large_in"]])
    dense = config.decay ** np.arange(config.n)
    floor = float(dense[m // 2 :].sum() * (p[0] / 3 - p[0] ** 2 / 4))
    first = [_important(W, config.mono) for W in results["large_in"]]
    n = config.small.n
    plain = dense[m // 2 :].sum() * (p.astype(float) / 3 - p.astype(float) ** 2 / 4)
    over = results["large_loss"].min(1) / plain
    both = int(np.argmin(np.abs(p - 0.01)))
    second = _neurons(results["large_in"][both], config.mono)[0]
    doubled = _doubled(results["large_in"][0])
    out = [
        Claim(f"{n} features, {config.small.m} neurons: monosemantic neurons", SECTION, 2 * n, int(mono.sum())),
        Claim("the same: features with a neuron for each sign", SECTION, n,
              sum({(i, 1), (i, -1)} <= signs for i in range(n))),
        Claim("the same: output weights of neurons scaled to 1", SECTION, [1.0] * len(own), own, 0.03),
        Claim("the same: loss of the best model", SECTION, 0.0, float(results["small_loss"].min()), 1e-4),
        Claim("dense: monosemantic neurons of the best model", "derived: two neurons a feature", m, round(share[0] * m),
              1, note=doubled),
        Claim("dense: loss of the best model over that of the first half as many features alone",
              "derived: sum of the others' I_i times (p/3 - p^2/4)", 1.0, float(results["large_loss"][0].min() / floor),
              0.1, "<=", note=doubled),
        Claim("sparser: loss of the best model over that of the first half as many features alone, largest: "
              "superposition costs nothing", "derived: the monosemantic solution is one of theirs", 1.0,
              float(max(over[1:], default=np.nan)), 0.02, "<=",
              note=", ".join(f"{v:.2f} at {q:g}" for v, q in zip(over[1:], p[1:], strict=True))),
        Claim(f"1-S = {p[both]:g}: neurons of the rarer kind, monosemantic or polysemantic, in the best model", SECTION,
              1, int(min(share[both], 1 - share[both]) * m + 0.5), 0, ">=",
              note=f"the smallest second over largest weight there is {second.min():.2f}, and below {config.mono:g} is "
              f"monosemantic; monosemantic of {m}: "
              + ", ".join(f"{s * m:.0f} at {q:g}" for s, q in zip(share, p, strict=True))),
        Claim("sparser: the share of monosemantic neurons falls (largest rise)", SECTION, 0.0,
              float(np.diff(share).max(initial=-1)), 0.03, "<="),
        Claim("sparsest: share of monosemantic neurons", SECTION, 0.0, float(share[-1]), 0.1),
        Claim("where both kinds are, monosemantic neurons are those of more important features (mean rank of their "
              "largest feature, polysemantic minus monosemantic, smallest over such densities)", SECTION, 0.0,
              float(min([f for f in first if np.isfinite(f)], default=np.nan)), 0.0, ">="),
        Claim("models with an asymmetric superposition motif", MOTIF, 1, int(results["motif_models"].sum()), 0, ">=",
              note="by density " + ", ".join(f"{k} at {q:g}" for k, q in zip(results["motif_models"], p, strict=True))),
        Claim("control: models with one when weights of neurons to outputs that they don't hold change places at "
              "random, over these", "control", 0.5,
              float(results["motif_dealt"] / max(1, results["motif_models"].sum())), 0.0, "<=",
              note=f"{int(results['motif_dealt'])} models"),
        Claim("the clearest motif: share of a's effect on b that the second neuron takes back", f"{MOTIF}: positive "
              "interference turns negative", 1.0, float(results["motif"][5]), 0.0, ">=",
              note="0.6 or more is what counts as a motif; the clearest is the one whose |w_a / w_b| is closest to "
              f"the paper's 4: {float(results['motif'][4]):.2f}"),
    ]  # fmt: skip
    return out


def _doubled(W_in):
    """In words, neurons whose largest feature and sign another neuron has, too."""
    first = np.abs(W_in).argmax(1)
    sign = np.sign(W_in[np.arange(len(W_in)), first])
    pairs = set(zip(first.tolist(), sign.tolist(), strict=True))
    again = len(W_in) - len(pairs)
    return (f"{len(set(first.tolist()))} features have neurons of their own; {again} of the {len(W_in)} "
            "neurons repeat the feature and sign of another")  # fmt: skip


def _important(W_in, part):
    """Mean rank of the largest feature of polysemantic neurons minus that of monosemantic ones; NaN: one kind."""
    _, mono = _neurons(W_in, part)
    first = np.abs(W_in).argmax(1)
    return float(first[~mono].mean() - first[mono].mean()) if 0 < mono.sum() < len(mono) else float("nan")
