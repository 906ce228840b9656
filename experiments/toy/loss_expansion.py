"""Losses of three solutions as sums over the number of active features, and their terms of one active feature.

TMS, "Mathematical Understanding".
"""

import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import check
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import theory
from superpose.toy.models import population
from superpose.train.fit import fit
from superpose.worlds import expect
from superpose.worlds.sparse import independent

SECTION = "TMS, Mathematical Understanding"
DRAWS = 1_000_000
"""Random inputs by which the exact losses are checked."""
LOW = 0.02
"""Densities up to which what the first two terms leave out is held against (1-S)^2."""
NAMES = ("two features, orthogonal", "two digons", "pentagon")


def _starts():
    """[3, 5, 2]: two orthogonal features, two digons, a pentagon."""
    angle = 2 * np.pi * np.arange(5) / 5
    pair = np.array([[1, 0], [0, 1], [0, 0], [0, 0], [0, 0]])
    digons = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    return np.stack([pair, digons, np.stack([np.cos(angle), np.sin(angle)], 1)]).astype(np.float32)


def run(config, key, workdir):
    """W, b of the solutions; their loss and its terms [solutions, densities, 0 to n active]; L_1 in two parts."""
    n, m = config.n, config.m
    if (n, m) != (5, 2):
        raise ValueError(f"the three solutions are of n=5 features in m=2 dimensions, got n={n}, m={m}")
    check.whole(config, "nodes", "train_nodes")
    check.positive(config, "density", "densities")
    if sum(p <= LOW for p in config.densities) < 2 or max(config.densities) > 1:
        raise ValueError(
            f"densities must hold two or more up to {LOW:g}, where a slope is taken, and none above 1, got "
            f"{tuple(config.densities)}"
        )
    if not len(config.nodes) == len(config.train_nodes) == n:
        raise ValueError(f"nodes and train_nodes must hold one number for each of 1 to n={n} active features")
    starts = jnp.asarray(_starts())
    hyper = {"seed": np.arange(3), "start": np.arange(3), "density": np.full(3, config.density, np.float32)}
    pop = population(
        n, m, hyper, check.recipe(config), expectation="quadrature", size=tuple(config.train_nodes), block=1,
        init=lambda params, key, h: params | {"W": starts[h["start"]]},
    )  # fmt: skip
    result = fit(
        pop, steps=config.steps, key=key, workdir=workdir / "fit", log_every=config.log_every, title="solutions"
    )
    W, b = np.asarray(result.params["W"]), np.asarray(result.params["b"])
    out = np.linalg.norm(W, axis=-1) == 0  # no gradient: the best constant in place of such a feature is its mean
    b = np.where(out, np.float32(config.density / 2), b)
    densities = np.asarray(config.densities, np.float32)
    at = expect.expectation("quadrature", independent(n), tuple(config.nodes))
    x = np.asarray(at(key, 0.5).x)
    active = (x != 0).sum(0)
    error = np.stack([np.square(x - np.maximum(w @ (w.T @ x) + v[:, None], 0)).sum(0)
                      for w, v in zip(W, b, strict=True)])  # fmt: skip
    weights = np.stack([np.asarray(at(key, p).w, np.float64) for p in densities.tolist()])
    terms = np.stack([(error[:, None] * weights)[..., active == k].sum(-1) for k in range(n + 1)], -1)
    given = np.stack([error[:, active == k] @ (w := weights[0][active == k]) / w.sum() for k in range(n + 1)], -1)
    one = jnp.ones(n)
    first = np.asarray([[theory.first_order_loss(jnp.asarray(w), jnp.asarray(v), one, p) for p in densities.tolist()]
                        for w, v in zip(W, b, strict=True)])  # fmt: skip
    u, share = np.polynomial.legendre.leggauss(512)
    u, share = (u + 1) / 2, share / 2
    benefit, interference = np.zeros(3), np.zeros(3)
    for s, (w, v) in enumerate(zip(W, b, strict=True)):
        made = np.maximum((w @ w.T)[:, :, None] * u + v[:, None, None], 0)  # of feature j where i is u: [j, i, u]
        own = np.eye(n, dtype=bool)
        benefit[s] = (np.square(u - made[own]) @ share).sum()
        interference[s] = (np.square(made[~own]) @ share).sum()
    x, drawn = np.asarray(independent(n).sample(jax.random.fold_in(key, 1), config.density, DRAWS)), []
    for w, v in zip(W, b, strict=True):
        each = np.square(x - np.maximum(w @ (w.T @ x) + v[:, None], 0)).sum(0, dtype=np.float64)
        drawn.append([each.mean(), each.std() / np.sqrt(DRAWS)])
    exact = error @ np.asarray(at(key, config.density).w, np.float64)
    return {"drawn": np.column_stack([drawn, exact]), "densities": densities, "W": W, "b": b,
            "loss": terms.sum(-1), "terms": terms, "given": given, "first": first, "benefit": benefit,
            "interference": interference}  # fmt: skip


def draw(results, config):
    """For each solution: loss and its terms by density; and the two parts of L_1 side by side."""
    p, n = results["densities"], config.n
    figure, axes = plt.subplots(1, 4, figsize=(15.5, 4.4), dpi=105, width_ratios=[1, 1, 1, 0.95])
    for s, (ax, name) in enumerate(zip(axes, NAMES, strict=False)):
        plot.log_line(ax, p, results["loss"][s], "L, the whole loss")
        ax.get_lines()[-1].set(color="k", lw=2)
        for k in range(n + 1):
            term = results["terms"][s, :, k]
            if term.max() > 1e-12:
                ax.plot(p, term, color=plot.SHARED(k / n), lw=1.2, label=f"{k} active")
        ax.plot(p, results["first"][s], "--", color=plot.WARM, lw=1.2, label="none and one, in closed form")
        ax.set(yscale="log", ylim=(results["loss"].min() / 30, results["loss"].max() * 2), xlabel="density $1-S$")
        ax.set_title(name, fontsize=10)
    axes[0].set_ylabel("loss, and its parts by the number of active features", fontsize=9)
    figure.legend(*axes[1].get_legend_handles_labels(), ncols=8, fontsize=8, frameon=False, loc="lower center")
    x = np.arange(3)
    axes[3].bar(x, results["benefit"], 0.6, color=plot.COOL, label=r"feature benefit, $\sum_i\int(x_i-\hat x_i)^2$")
    axes[3].bar(x, results["interference"], 0.6, bottom=results["benefit"], color=plot.WARM,
                label=r"interference, $\sum_{i\neq j}\int\hat x_j^2$")  # fmt: skip
    axes[3].set_xticks(x, ["orthogonal", "digons", "pentagon"], fontsize=9)
    axes[3].set_title("$L_1$: the loss of one active feature", fontsize=10)
    axes[3].set(ylabel="sum over features", ylim=(0, 1.3 * float((results["benefit"] + results["interference"]).max())))
    axes[3].legend(fontsize=8, frameon=False)
    plot.plain(axes)
    figure.suptitle(
        r"$L = (1-S)^n L_n + \dots + (1-S)\,S^{n-1} L_1 + S^n L_0$: three solutions for "
        f"{n} features in {config.m} dimensions, trained at $1-S$ = {config.density:g}", fontsize=12,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.06, 1, 0.97))
    return {"": figure}


def claims(results, config):
    """The sum, the closed form of the first two terms, its order, and what the two parts say of the solutions."""
    p, n = results["densities"].astype(float), config.n
    loss, first, terms, given = (results[k].astype(float) for k in ("loss", "first", "terms", "given"))
    from_given = np.zeros_like(loss)
    for k in range(n + 1):
        from_given += _binomial(n, k, p) * given[:, k : k + 1]
    rest, two, some = loss - first, terms[..., :2].sum(-1), p < 1
    low = np.flatnonzero(p <= LOW + 1e-9)
    slopes = [float(np.polyfit(np.log(p[low]), np.log(rest[s, low]), 1)[0]) for s in range(3)]
    parts = n * given[:, 1]
    small = int(np.argmin(np.abs(p - config.density)))
    mean, spread, exact = results["drawn"].astype(float).T
    dead = float(results["b"][1, -1])  # digons leave out the last feature, and it gives its bias
    dropped, identity = results["b"][0, 2:].astype(float), "control: an identity"
    return [
        Claim(f"{DRAWS:,} random inputs at 1-S = {config.density:g}: their mean loss less the exact one, over its "
              "standard error (largest of the three)", "control: Monte Carlo", 0.0,
              float((np.abs(mean - exact) / spread).max()), 4.0,
              note="exact " + ", ".join(f"{v:.5f}" for v in exact)),
        Claim("the sum of C(n,k) (1-S)^k S^(n-k) L_k, each L_k free of 1-S, over the loss: largest difference from 1",
              f"{SECTION}; {identity}", 0.0, float(np.abs(from_given / loss - 1).max()), 1e-5),
        Claim("the terms of none and of one active feature, in closed form, over the same by quadrature (largest "
              "difference from 1)", SECTION, 0.0, float(np.abs(first[:, some] / two[:, some] - 1).max()), 2e-3),
        Claim(f"what these two leave out falls as (1-S)^2: slope in log-log up to {LOW:g} (by solution)",
              SECTION, [2.0] * 3, slopes, 0.1),
        Claim("share of the loss that these two terms make at the sparsest density (smallest of the three)", SECTION,
              1.0, float((first / loss)[:, p.argmin()].min()), 0.05,
              note=", ".join(f"{v:.3f}" for v in (first / loss)[:, p.argmin()])),
        Claim("L_1 is feature benefit plus interference, per solution", f"{SECTION}; {identity}", parts,
              results["benefit"] + results["interference"], 2e-3),
        Claim("unit digons: interference of L_1", f"{SECTION}; derived: none but 4 b^2 of the feature that is not "
              "represented", 4 * dead**2, float(results["interference"][1]), 1e-4),
        Claim("features that are not represented cost the benefit (orthogonal minus digons, in thirds)",
              f"{SECTION}; derived: 1 - 3 b + 3 b^2 each", float((1 - 3 * dropped + 3 * dropped**2).sum()
                                                                 - (1 - 3 * dead + 3 * dead**2)),
              float(3 * (results["benefit"][0] - results["benefit"][1])), 0.01,
              note=f"benefit {', '.join(f'{3 * v:.3f}' for v in results['benefit'])} thirds; b is {dead:g}"),
        Claim(f"at 1-S = {p[small]:g} the pentagon's loss is lowest, then that of digons, of orthogonal features "
              "(smallest ratio of neighbours)", SECTION, 1.0, float((loss[:-1, small] / loss[1:, small]).min()), 0.0,
              ">="),
    ]  # fmt: skip


def _binomial(n, k, p):
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)
