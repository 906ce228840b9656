"""Attacks on models with and without superposition, and what training under attack does to it.

TMS, "Superposition and Adversarial Vulnerability".
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import attack, geometry
from superpose.toy.models import grid, population
from superpose.worlds.expect import monte_carlo
from superpose.worlds.sparse import independent

SECTION = "TMS, Superposition and Adversarial Vulnerability"
KEPT, SHARED = 0.3, 0.1
"""Norm above which a feature counts as represented, and what of others may lie along it (``geometry.superposition``)
until it counts as superposed."""


def run(config, key, workdir):
    """Harm [densities] of attacks on the best seeds; W of models trained under attack [densities, strengths, n, m]."""
    n, m = config.n, config.m
    if m >= n:
        raise ValueError(f"this figure needs fewer hidden dimensions than features, got m={m}, n={n}")
    check.whole(config, "densities", "ascent", "seeds", "batch", "eval_batch", "block")
    check.positive(config, "sparsest", "attack", "trained_at")
    check.rising(config, "strengths", least=2)
    strengths = np.asarray(config.strengths, np.float32)
    if strengths[0] != 0:
        raise ValueError(f"strengths must start at 0, models that are not attacked, got {tuple(config.strengths)}")
    if config.densities < 2 or config.sparsest >= 1:
        raise ValueError(f"densities must be at least 2, from 1 to a sparsest below 1, got {config.densities} and "
                         f"{config.sparsest:g}")  # fmt: skip
    densities = np.geomspace(1.0, config.sparsest, config.densities).astype(np.float32)
    plain_key, judge_key, train_key, norm_key = jax.random.split(key, 4)
    seeds, recipe = range(config.seeds), check.recipe(config)
    shared = {"expectation": "monte_carlo", "block": config.block}
    make = lambda size: population(n, m, grid(density=densities, seed=seeds), recipe, size=size, **shared)  # noqa: E731
    got = toys.trained(make(config.batch), make(config.eval_batch), config, plain_key, workdir / "plain",
                       seeds=config.seeds, of=("density", densities), title="without attacks")  # fmt: skip
    W, b = got.chosen("W"), got.chosen("b")
    draw, keys = monte_carlo(independent(n), config.eval_batch), jax.random.split(judge_key, len(densities))
    alone = jnp.eye(n)[:, :m]  # the model without superposition: a dimension for each of the first m features
    harm = [_harm(k, draw(k, p).x, jnp.asarray(w), jnp.asarray(c), alone, p, config.attack, config.ascent)
            for k, p, w, c in zip(keys, jnp.asarray(densities), W, b, strict=True)]  # fmt: skip
    pairs = grid(density=np.asarray(config.trained_at, np.float32), strength=strengths, seed=seeds)
    norms = {p: float(_norm(draw(norm_key, jnp.asarray(p)).x)) for p in np.unique(pairs["density"])}
    hyper = {"density": pairs["density"], "seed": pairs["seed"],
             "attack": pairs["strength"] * np.asarray([norms[p] for p in pairs["density"]], np.float32)}  # fmt: skip
    under, judge = (
        population(n, m, hyper, recipe, size=size, perturb=attack.on_random_feature, **shared)
        for size in (config.batch, config.eval_batch)
    )
    made = toys.trained(under, judge, config, train_key, workdir / "attacked", seeds=config.seeds,
                        of=("setting", [f"{p:g}, {s:g}" for p in config.trained_at for s in strengths]),
                        title="under attack")  # fmt: skip
    shape = (len(config.trained_at), len(strengths))
    return {
        "densities": densities, "per_dimension": np.square(W).sum((1, 2)) / m, "loss": got.loss.min(1),
        **{name: np.array([float(h[name]) for h in harm], np.float32) for name in harm[0]},
        "strengths": strengths, "attacked_W": made.chosen("W").reshape(*shape, n, m).astype(np.float16),
    }  # fmt: skip


def _norm(x):
    return jnp.linalg.norm(x, axis=0).mean()


@jax.jit(static_argnums=7)
def _harm(key, x, W, b, alone, density, share, steps):
    """What attacks add to the mean error: the most harmful one on each input, on all inputs alike, by gradients and at
    random, on the model, and the most harmful on the one without superposition; the share of inputs whose gradient is
    0, and what the most harmful ones add by these."""
    size, mean = share * _norm(x), jnp.where(jnp.arange(len(b)) < alone.shape[1], 0, density / 2)
    clean = lambda W, b: jnp.sum(jnp.square(x - jax.nn.relu(W @ (W.T @ x) + b[:, None])), 0)  # noqa: E731
    hit, plain = attack.errors(W, b, x, size), clean(W, b)
    before = plain.mean()
    climbed, masked = attack.ascended(W, b, x, size, steps)
    random = jax.random.normal(jax.random.fold_in(key, 1), x.shape)
    random = W @ (W.T @ (x + size * random / jnp.linalg.norm(random, axis=0))) + b[:, None]
    return {
        "size": size, "each": hit.max(0).mean() - before, "all": hit.mean(1).max() - before,
        "ascent": climbed.mean() - before, "masked": masked.mean(),
        "masked_each": jnp.where(masked, hit.max(0) - plain, 0).mean(),
        "random": jnp.sum(jnp.square(x - jax.nn.relu(random)), 0).mean() - before,
        "alone": attack.errors(alone, mean, x, size).max(0).mean() - clean(alone, mean).mean(),
    }  # fmt: skip


def _left(results):
    """Of models trained under attack [densities, strengths]: features per dimension, features represented, and those
    of them in superposition."""
    W = jnp.asarray(results["attacked_W"], jnp.float32)
    over = lambda f: np.asarray(jax.vmap(jax.vmap(f))(W))  # noqa: E731
    kept = over(geometry.norms) > KEPT
    return (
        np.square(W).sum((2, 3)) / W.shape[-1],
        kept.sum(-1),
        (kept & (over(geometry.superposition) > SHARED)).sum(-1),
    )


def draw(results, config):
    """Vulnerability and features per dimension by density, one against the other, and training under attack."""
    x, per = 1 / results["densities"], results["per_dimension"]
    relative = {name: results[name] / results["alone"] for name in ("each", "all", "ascent", "random")}
    figure, axes = plt.subplots(2, 2, figsize=(12.5, 9), dpi=105, layout="constrained")
    top, right, low, trained = axes.ravel()
    for name, style, says in (("each", {"color": plot.WARM, "marker": "o"}, "the worst analytic attack on each input"),
                              ("all", {"color": plot.WARM, "ls": "--"}, "one analytic attack for all inputs"),
                              ("ascent", {"color": "0.45", "ls": ":"}, f"{config.ascent} steps of gradient ascent"),
                              ("random", {"color": "0.75"}, "a random direction")):  # fmt: skip
        top.plot(x, relative[name], ms=3.5, lw=1.3, label=says, **style)
    top.set(xscale="log", xlabel=r"$1/(1-S)$", ylabel=r"$(L' - L) / (L'_0 - L_0)$", ylim=(0, None),
            title="vulnerability, over that of a model without superposition")  # fmt: skip
    low.plot(x, per, "o-", ms=3.5, lw=1.3, color=plot.COOL)
    low.set(xscale="log", xlabel=r"$1/(1-S)$", ylabel=r"$1/D^* = \|W\|_F^2 / m$", ylim=(0, None),
            title="features per dimension")  # fmt: skip
    points = right.scatter(per, relative["each"], c=np.log10(x), cmap="viridis", s=34)
    figure.colorbar(points, ax=right, label=r"$\log_{10}\, 1/(1-S)$")
    right.set(xlabel="features per dimension", ylabel="vulnerability", xlim=(0, None), ylim=(0, None),
              title=f"one against the other: r = {np.corrcoef(per, relative['each'])[0, 1]:.3f}")  # fmt: skip
    for ax in (top, low):
        plot.plain_ticks(ax.xaxis, [v for v in (1, 2, 5, 10, 20, 50, 100) if v <= x[-1] * 1.01])
    left, _, shared = _left(results)
    for i, (p, a, s) in enumerate(zip(config.trained_at, left, shared, strict=True)):
        colour = (plot.COOL, plot.WARM, "0.3")[i % 3]
        trained.plot(results["strengths"], a, "o-", ms=3.5, color=colour, label=rf"$\|W\|_F^2/m$, $1-S$ = {p:g}")
        trained.plot(results["strengths"], s / config.m, "--", color=colour,
                     label=f"features in superposition, over $m$, $1-S$ = {p:g}")  # fmt: skip
    trained.axhline(1, color="0.6", lw=0.8, ls=":")
    trained.axvline(0.8, color="0.6", lw=0.8, ls=":")
    trained.set_ylim(0, 1.55 * trained.get_ylim()[1])
    trained.legend(fontsize=8, loc="upper right", frameon=True, framealpha=1, edgecolor="none", facecolor=plot.GROUND)
    trained.annotate("the paper: 0.8", (0.8, 0.62), xycoords=("data", "axes fraction"), fontsize=8, color="0.4",
                     xytext=(3, 0), textcoords="offset points")  # fmt: skip
    trained.set(xlabel="attack in training, over the mean input norm", ylabel="per dimension",
                title="training under attack takes superposition away")  # fmt: skip
    top.legend(frameon=False, fontsize=8)
    plot.plain(axes.ravel())
    figure.suptitle(
        f"Adversarial attacks of {config.attack:g} of the mean input norm: {config.n} features, {config.m} dimensions, "
        f"the best of {config.seeds}", fontsize=12,
    )  # fmt: skip
    return {"": figure}


def claims(results, config):
    """How harm grows and what it follows; controls; what training under attack leaves."""
    per, each = results["per_dimension"], results["each"] / results["alone"]
    r = lambda a: float(np.corrcoef(per, a)[0, 1])  # noqa: E731
    own = np.where(results["each"] > 0, results["each"], np.nan)
    left, kept, shared = _left(results)
    share = shared / np.maximum(kept, 1)
    out = [
        Claim("dense: vulnerability over that of a model without superposition", SECTION, 1.0, float(each[0]), 0.1),
        Claim("it grows: sparsest over dense", f"{SECTION}: more than threefold", 3.0, float(each[-1] / each[0]), 0.0,
              ">="),
        Claim("correlation of vulnerability and features per dimension", f"{SECTION}: highly correlated", 0.95,
              r(each), 0.0, ">="),
        Claim("the same with one attack for all inputs", f"{SECTION} (the other reading of \"the most harmful\")", 0.95,
              r(results["all"] / results["alone"]), 0.0, ">=",
              note=f"it grows {results['all'][-1] / results['alone'][-1]:.2f} fold"),
        Claim("the model without superposition: harm over the attack's squared norm", "derived: what is "
              "attacked is off by it, nothing else is", 1.0, float((results["alone"] / results["size"] ** 2).mean()),
              0.01),
        Claim("control: a random direction does less harm than the analytic attack (largest share of it)", "control",
              0.25, float((results["random"] / own).max()), 0.0, "<="),
        Claim("sparsest: gradient ascent does less harm than the analytic attack (its share of it)",
              f"{SECTION}: gradient masking where ReLUs are off", 1.0, float((results["ascent"] / own)[-1]),
              0.0, "<=", note=f"on the {results['masked'][-1]:.0%} of inputs whose gradient is 0 it does nothing, "
              f"the analytic attack {(results['masked_each'] / own)[-1]:.0%} of its harm; on the others it does "
              f"{(results['ascent'] / (own - results['masked_each']))[-1]:.2f} times as much; shares at all "
              "densities: "
              + ", ".join(f"{v:.2f}" for v in results["ascent"] / own)),
    ]  # fmt: skip
    for i, p in enumerate(config.trained_at):
        last = np.flatnonzero(share[i] > 0.05).max(initial=-1) + 1  # from here on none has more
        first = float(results["strengths"][last]) if last < share.shape[1] else float("nan")
        here = min(int(last), share.shape[1] - 1)
        note = "in superposition, of represented, by strength: " + ", ".join(
            f"{s} of {k}" for s, k in zip(shared[i], kept[i], strict=True))  # fmt: skip
        out += [
            Claim(f"trained under attack, 1-S = {p:g}: features per dimension never rise with it (largest rise)",
                  f"{SECTION}: it did reduce superposition", 0.0, float(np.diff(left[i]).max()), 0.05, "<="),
            Claim(f"trained under attack, 1-S = {p:g}: smallest attack from which on at most 0.05 of the features with "
                  f"norms above {KEPT:g} are in superposition", f"{SECTION}: 80 % of the input norm", 0.8, first, 0.25,
                  note=note),
            Claim(f"the same, 1-S = {p:g}: features represented at that attack, over dimensions", "control: it is "
                  "superposition that goes, not the features", 0.5, float(kept[i, here] / config.m), 0.0, ">="),
        ]  # fmt: skip
    return out
