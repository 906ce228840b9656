"""Five features in two dimensions: orthogonal pair, two digons, pentagon.

TMS, introduction: the rows of W in the plane as features grow sparse.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from experiments import check
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry, theory
from superpose.toy.models import decay, grid, population, weighted_error
from superpose.train.fit import evaluate, fit
from superpose.worlds import expect, prng
from superpose.worlds.sparse import independent

SERIES = "TMS, Mathematical Understanding"
DERIVED = "derived for this project: all 32 activity patterns integrated, best of 5 starts"


def run(config, key, workdir):
    """Arrays over [densities]: the best of the seeds by exact loss, and every seed's loss and count."""
    n, m, seeds = config.n, config.m, config.seeds
    if m != 2:
        raise ValueError(f"this figure draws the plane and needs m=2, got m={m}")
    if n <= m:
        raise ValueError(f"this figure needs more features than dimensions, got n={n}, m={m}")
    check.whole(config, "seeds", "batch", "eval_batch", "eval_batches", "nodes")
    if len(config.nodes) != n:
        raise ValueError(f"nodes must hold one number for each of 1 to n={n} active features, got {config.nodes}")
    check.positive(config, "decay")
    check.listed(config, expected_counts=2, expected_losses=2)
    densities = np.asarray(config.densities, np.float32)
    hyper = grid(density=densities, seed=range(seeds))
    importance = np.asarray(decay(n, config.decay))
    recipe = check.recipe(config)
    make = lambda way, size: population(n, m, hyper, recipe, importance=importance, expectation=way, size=size)  # noqa: E731
    pop = make(config.expectation, config.batch)
    train_key, eval_key = jax.random.split(key)
    result = fit(
        pop, steps=config.steps, key=train_key, workdir=workdir / "fit", log_every=config.log_every, title="n=5 m=2"
    )
    params = jax.device_get(result.params)
    judge = make("conditional", config.eval_batch)
    loss = evaluate(judge, params, key=eval_key, batches=config.eval_batches)["loss"]
    loss = np.where(result.frozen_at >= 0, np.inf, loss).reshape(len(densities), seeds)
    check.some_sound(loss, "density", densities)
    best = loss.argmin(1)
    rows = np.arange(len(densities))
    W = params["W"].reshape(len(densities), seeds, n, m)
    b = params["b"].reshape(len(densities), seeds, n)
    count = np.asarray(jax.vmap(jax.vmap(geometry.represented))(W)).sum(-1)
    W, b = W[rows, best], b[rows, best]
    chosen = {k: v[rows * seeds + best] for k, v in hyper.items()}

    def exactly(nodes):
        pop = population(n, m, chosen, recipe, importance=importance, expectation="quadrature", size=nodes, block=1)
        return evaluate(pop, {"W": W, "b": b}, key=eval_key)["loss"]

    nodes = tuple(config.nodes)
    coarse, exact = exactly(nodes), exactly(expect.doubled(nodes))
    return {
        "densities": densities, "importance": importance, "loss": loss, "best": best, "count": count, "W": W, "b": b,
        "exact_loss": exact, "quadrature_error": np.abs(exact - coarse),
    }  # fmt: skip


def draw(results, config):
    """One panel per density: rows of W as rays in the plane, coloured by importance."""
    densities, W = results["densities"], results["W"]
    width = 2.15 * len(densities) + 0.9
    figure, axes = plt.subplots(1, len(densities), figsize=(width, 3.3), dpi=130)
    for i, ax in enumerate(np.atleast_1d(axes)):
        plot.rays(ax, _upright(W[i], results["importance"]), results["importance"])
        kept = results["count"][i]
        ax.set_title(f"$1-S$ = {densities[i]:g}", fontsize=11)
        best = results["best"][i]
        ax.set_xlabel(
            f"{kept[best]} features, loss {results['exact_loss'][i]:.4f}\n"
            f"{(kept == kept[best]).sum()} of {len(kept)} seeds have {kept[best]}",
            fontsize=8,
        )
    figure.suptitle(
        f"{config.n} features in {config.m} dimensions: rows $W_i$ of the best ReLU-output model, "
        f"importance ${config.decay}^i$",
        fontsize=12,
    )
    figure.subplots_adjust(left=0.55 / width, right=1 - 0.95 / width, top=0.78, bottom=0.2, wspace=0.2)
    bar = figure.add_axes((1 - 0.75 / width, 0.25, 0.12 / width, 0.5))
    low = float(results["importance"].min() / results["importance"].max())
    colours = plt.get_cmap("viridis")(np.linspace(low * 0.9, 0.9, 256))
    plot.colour_key(figure, bar, ListedColormap(colours), low, 1.0, "importance")
    return {"": figure}


def _upright(W, importance):
    """W turned and mirrored (the loss sees neither) so that the most important feature points up, the next right."""
    top, second = np.argsort(-importance)[:2]
    turn = np.pi / 2 - np.arctan2(W[top, 1], W[top, 0])
    c, s = np.cos(turn), np.sin(turn)
    W = W @ np.array([[c, s], [-s, c]])
    return W * np.array([np.sign(W[second, 0]) or 1.0, 1.0])


def _beyond_one_active(W, b, importance, p, config):
    """What the loss of fixed weights has beyond the terms of no and of one active feature."""
    batch = expect.expectation("quadrature", independent(config.n), tuple(config.nodes))(prng.key(0), p)
    x_hat = jax.nn.relu(W @ (W.T @ batch.x) + b[:, None])
    whole = weighted_error(batch.x, x_hat, jnp.asarray(importance), batch.w)
    return float(whole - theory.first_order_loss(jnp.asarray(W), jnp.asarray(b), jnp.asarray(importance), p))


def claims(results, config):
    """Counts 2, 4, 5 and exact losses on both sides of the crossing."""
    densities, best = results["densities"], results["best"]
    at = {round(float(d), 6): i for i, d in enumerate(densities)}
    importance = results["importance"]
    loss = results["exact_loss"]
    count = results["count"][np.arange(len(best)), best]
    intro = "TMS, introduction"
    out = [
        Claim(
            f"quadrature error of every density's best loss, {tuple(config.nodes)} nodes for 1, 2, ... active features "
            "against twice as many",
            "our own bound", 0.0, float(results["quadrature_error"].max()), 1e-4, "<=",
        ),
    ]  # fmt: skip
    for p, expected in config.expected_counts:
        if p in at:
            source = intro if p in (1.0, 0.2, 0.1) else DERIVED
            out.append(Claim(f"1-S = {p:g}: features represented by the best seed", source, expected,
                             int(count[at[p]])))  # fmt: skip
    if 1.0 in at:
        i = at[1.0]
        G = results["W"][i] @ results["W"][i].T
        exact = float(theory.linear_optimum_loss(importance, config.m, 1.0))
        out += [
            Claim("1-S = 1: the two most important features are orthogonal, W_0 . W_1", intro,
                  0.0, float(G[0, 1]), 0.02),
            Claim("1-S = 1: loss of the closed form, sum of the dropped I_i / 12", "derived", exact, float(loss[i]),
                  0.005 * exact),
        ]  # fmt: skip
    if 0.2 in at:
        i = at[0.2]
        pairs = geometry.antipodal_pairs(results["W"][i], -0.9)
        G = np.abs(results["W"][i] @ results["W"][i].T)
        out += [
            Claim("1-S = 0.2: two antipodal pairs (W_i . W_j < -0.9)", intro, 2, len(pairs)),
            Claim("1-S = 0.2: the two pairs are orthogonal, largest |W_i . W_j| across pairs", "TMS, introduction", 0.0,
                  float(max([G[i, j] for a in pairs for c in pairs if a != c for i in a for j in c], default=np.nan)),
                  0.05),
        ]  # fmt: skip
    if 0.1 in at:
        i = at[0.1]
        angles = np.sort(np.arctan2(results["W"][i][:, 1], results["W"][i][:, 0]))
        gaps = np.diff(np.concatenate([angles, angles[:1] + 2 * np.pi])) * 180 / np.pi
        G = results["W"][i] @ results["W"][i].T
        norms = np.linalg.norm(results["W"][i], axis=1)
        out += [
            Claim("1-S = 0.1: angles between neighbours are those of a regular pentagon, degrees", intro,
                  [72.0] * len(gaps), gaps, 6.0),
            Claim("1-S = 0.1: neighbours interfere positively (smallest of the five)", intro, 0.0,
                  float(np.sort(G[np.triu_indices(len(G), 1)])[-len(G):].min()), 0.0, ">="),
            Claim("1-S = 0.1: smallest and largest ||W_i||", DERIVED, [1.07, 1.11], [norms.min(), norms.max()], 0.02),
            Claim("1-S = 0.1: smallest and largest b_i", DERIVED, [-0.21, -0.20],
                  [results["b"][i].min(), results["b"][i].max()], 0.02),
        ]  # fmt: skip
    ends = (0.01, 0.0025)
    rest = np.array([[_beyond_one_active(results["W"][i], results["b"][i], importance, p, config) for p in ends]
                     for i in range(len(densities))])  # fmt: skip
    out.append(Claim(f"L - p S^(n-1) L_1 - S^n L_0 falls as p^2: its exponent from p = {ends[0]} to {ends[1]}, for "
                     "each density's model", SERIES, [2.0] * len(rest),
                     np.log(rest[:, 0] / rest[:, 1]) / np.log(ends[0] / ends[1]), 0.1))  # fmt: skip
    for p, value in config.expected_losses:
        if p in at:
            out.append(Claim(f"1-S = {p:g}: loss of the best seed", DERIVED, value, float(loss[at[p]]), 0.01 * value))
    if config.crossing and {0.17, 0.15} <= at.keys():
        out.append(Claim("two digons give way to the pentagon between 1-S = 0.17 and 0.15: features represented",
                         DERIVED, [4, 5], [int(count[at[0.17]]), int(count[at[0.15]])]))  # fmt: skip
    return out
