"""Training sets of a few to many examples: what is represented, examples or features, and the loss on new examples.

Henighan et al. 2023, "Superposition, Memorization, and Double Descent", with the correction of July 2023.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy import geometry
from superpose.toy.models import ToyModel, objective
from superpose.train.fit import Population, Sampler, fit
from superpose.worlds.expect import Batch
from superpose.worlds.sparse import independent

PAPER = "Henighan et al. 2023"
NANOSECONDS = 1.0
"""Of a training step, for each feature of each example of each model, on 2 CPU cores (this project, n=300)."""


def run(config, key, workdir):
    """Of the best model of each T: W [T, n, m], hidden vectors, losses [T, rates x seeds], the test loss; and that of
    one model of the middle rate for each T and m [m, T]."""
    check.whole(config, "n", "m", "examples", "dimensions", "seeds", "test")
    check.positive(config, "density", "rates")
    check.rising(config, "examples", least=3)
    check.rising(config, "dimensions", "rates")
    if config.m != 2 or config.examples[0] < 3 or config.examples[0] > 5:
        raise ValueError("this figure needs m=2, with examples as corners of polygons, and a first set of 3 to 5, got "
                         f"m={config.m} and {tuple(config.examples)}")  # fmt: skip
    columns = sum(config.examples) * (config.seeds * len(config.rates) + len(config.dimensions) - 1)
    toys.announce(columns * config.n * config.steps * NANOSECONDS)
    draw_key, train_key, test_key = jax.random.split(key, 3)
    test = _examples(test_key, config, config.test)
    out: dict[str, list] = {name: [] for name in ("W", "b", "h", "train", "test")}
    grid = np.full((len(config.dimensions), len(config.examples)), np.nan, np.float32)
    for i, (T, one) in enumerate(zip(config.examples, jax.random.split(train_key, len(config.examples)), strict=True)):
        x = _examples(jax.random.fold_in(draw_key, i), config, T)
        rates, middle = (
            np.repeat(np.asarray(config.rates, np.float32), config.seeds),
            len(config.rates) // 2 * config.seeds,
        )
        params, loss = _trained(config, config.m, x, rates, one, workdir / f"T_{T}", f"{T} examples")
        W, b = (params[name][int(loss.argmin())] for name in ("W", "b"))
        out["W"].append(W.astype(np.float16))
        out["b"].append(b)
        out["h"].append(_padded(W.T @ np.asarray(x), max(config.examples)))
        out["train"].append(loss)
        out["test"].append(_loss(W, b, test))
        for j, m in enumerate(config.dimensions):
            other, at = params, middle
            if m != config.m:
                other, _ = _trained(config, m, x, rates[[middle]], jax.random.fold_in(one, m), workdir / f"T_{T}_m_{m}",
                                    f"{T} examples, m={m}")  # fmt: skip
                at = 0
            grid[j, i] = _loss(other["W"][at], other["b"][at], test)
    made = {name: np.stack(values) for name, values in out.items()}
    made["h"] = made["h"][..., : _drawn(config)].astype(np.float16)
    D = [np.asarray(geometry.dimensionality(jnp.asarray(W, jnp.float32))) for W in made["W"]]
    return made | {"grid": grid, "D": np.stack(D), "examples_D": np.stack([_of_examples(h) for h in out["h"]])}


def _examples(key, config, count):
    """Columns [n, count] of norm 1, those of no active feature left out."""
    x = np.asarray(independent(config.n).sample(key, jnp.float32(config.density), 2 * count + 100))
    size = np.linalg.norm(x, axis=0)
    if (found := np.flatnonzero(size > 0)[:count]).size < count:
        raise ValueError(f"more than half of all examples have no active feature at density {config.density:g} and "
                         f"n={config.n}: choose more of either")  # fmt: skip
    return x[:, found] / size[found]


def _trained(config, m, x, rates, key, workdir, title):
    """Parameters [models, ...] and training losses [models] of models with these learning rates, over the recipe's."""
    N, recipe = len(rates), check.recipe(config)
    hyper = {"seed": np.arange(N), "lr": rates * recipe.lr, "importance": np.ones((N, config.n), np.float32),
             "x": np.broadcast_to(np.asarray(x), (N, *x.shape))}  # fmt: skip
    weights = jnp.full(x.shape[1], 1 / x.shape[1])
    pop = Population(objective(lambda rngs: ToyModel(config.n, m, rngs=rngs)), recipe, hyper,
                     source=Sampler(lambda key, hyper: Batch(hyper["x"], weights)),
                     block=N if x.size < 100_000 else 1)  # fmt: skip
    result = fit(pop, steps=config.steps, key=key, workdir=workdir, log_every=config.log_every, title=title)
    params = jax.device_get(result.params)
    loss = np.array([_loss(W, b, x) for W, b in zip(params["W"], params["b"], strict=True)])
    loss = np.where(result.frozen_at >= 0, np.inf, loss)
    check.some_sound(loss[None], "training set", [title])
    return params, loss


@jax.jit
def _squares(W, b, x):
    return jnp.sum(jnp.square(x - jax.nn.relu(W @ (W.T @ x) + b[:, None]))) / x.shape[1]


def _loss(W, b, x):
    return float(_squares(jnp.asarray(W), jnp.asarray(b), x))


def _padded(h, most):
    return np.pad(h, ((0, 0), (0, most - h.shape[1])), constant_values=np.nan)


def _drawn(config):
    return min(max(config.examples), 400)


def _of_examples(h):
    """Quartiles of D_X = ||h_j||^2 / sum_k (h_j / ||h_j|| . h_k)^2 over the examples."""
    h = h[:, np.isfinite(h[0])].astype(float)
    size, shared = np.square(h).sum(0), np.einsum("it,ij,jt->t", h, h @ h.T, h)
    return np.percentile(size**2 / np.where(shared > 0, shared, 1), (25, 50, 75))


def _middle(results, config):
    """Numbers of training sets between those that are memorised and those that are so many that features appear."""
    T = np.asarray(config.examples)
    found = np.flatnonzero((T >= 20) & (T <= 0.05 * T[-1]))
    return found if found.size else np.array([len(T) // 2])


def _kept(results):
    """Features of norm above half the largest [T, n]."""
    norms = np.linalg.norm(results["W"].astype(np.float32), axis=-1)
    return norms > 0.5 * norms.max(-1, keepdims=True)


def draw(results, config):
    """Features and hidden vectors of some models, their dimensionalities and losses by T, and the test loss over T and
    m."""
    T = np.asarray(config.examples)
    shown = np.unique(np.linspace(0, len(T) - 1, min(8, len(T))).round().astype(int))
    figure = plt.figure(figsize=(14, 10.5), dpi=105, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.35], squeeze=False)[:, 0]
    axes = top.subplots(2, len(shown), squeeze=False)
    for column, i in zip(axes.T, shown, strict=True):
        for ax, rows, colour in (
            (column[0], results["W"][i, :, :2], plot.COOL),
            (column[1], results["h"][i, :2].T, plot.WARM),
        ):
            rows = rows[np.isfinite(rows[:, 0])].astype(float)
            limit = max(1e-3, np.abs(rows).max() * 1.15)
            for row in rows if len(rows) <= 400 else ():
                ax.plot([0, row[0]], [0, row[1]], color=colour, lw=0.5, alpha=0.35)
            ax.plot(rows[:, 0], rows[:, 1], "o", color=colour, ms=3, mew=0, alpha=0.8)
            plot.square(ax, limit)
            ax.set(xticks=[], yticks=[])
        column[0].set_title(f"T = {T[i]:,}", fontsize=10)
        if T[i] > _drawn(config):
            column[1].set_title(f"the first {_drawn(config)}", fontsize=8)
    axes[0, 0].set_ylabel("features: rows of $W$")
    axes[1, 0].set_ylabel("training examples: $h = W^T x$")
    left, right = bottom.subfigures(1, 2, width_ratios=[1.35, 1])
    upper, lower = left.subplots(2, 1, sharex=True)
    D = results["D"]
    for row, t in zip(D, T, strict=True):
        upper.plot(np.full(len(row), t), row, "o", ms=2.5, color=plot.COOL, alpha=0.25, mew=0)
    upper.plot([], [], "o", ms=4, color=plot.COOL, label="features, one point each")
    upper.errorbar(
        T,
        results["examples_D"][:, 1],
        np.abs(results["examples_D"][:, [0, 2]] - results["examples_D"][:, 1:2]).T,
        fmt="s-",
        ms=4,
        lw=1,
        color=plot.WARM,
        label="training examples, median and quartiles",
    )
    upper.plot(T, np.minimum(1, 2 / T), ":", color="0.4", label="$2/T$")
    upper.axhline(0.4, color="0.6", lw=0.8, ls="--")
    upper.annotate("2/5: a pentagon", (T[-1], 0.4), ha="right", va="bottom", fontsize=8, color="0.4")
    upper.set(xscale="log", ylabel="dimensionality", ylim=(0, 0.8))
    plot.plain_ticks(lower.xaxis, [t for t in (3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000) if t <= T[-1]])
    upper.legend(frameon=False, fontsize=8)
    lower.plot(T, results["test"], "o-", ms=4, color="k", label="new examples")
    lower.plot(T, results["train"].min(1), "s-", ms=4, color="0.55", label="training examples")
    lower.axhline(1, color="0.7", lw=0.8, ls=":")
    lower.set(xlabel="training examples T", ylabel="loss, sum over features", yscale="log",
              ylim=(0.01, 1.3 * results["test"].max()))  # fmt: skip
    lower.legend(frameon=False, fontsize=8)
    plot.plain((upper, lower))
    ax = right.subplots()
    image = ax.pcolormesh(np.arange(len(T) + 1), np.arange(len(config.dimensions) + 1), results["grid"],
                          cmap="viridis", norm=LogNorm())  # fmt: skip
    ax.set_xticks(np.arange(len(T)) + 0.5, [f"{t:,}" for t in T], rotation=90, fontsize=8)
    ax.set_yticks(np.arange(len(config.dimensions)) + 0.5, [str(m) for m in config.dimensions])
    ax.set(xlabel="training examples T", ylabel="hidden dimensions m", title="loss on new examples, one model each")
    right.colorbar(image, ax=ax, label="loss on new examples, sum over features")
    below = T[results["train"].min(1) < 0.01]
    if below.size:
        lower.annotate(f"training loss below 0.01 up to T = {below[-1]}", (0.01, 0.03), xycoords="axes fraction",
                       fontsize=8, color="0.4")  # fmt: skip
    figure.suptitle(f"Memorising examples, then representing features: {config.n:,} features, $1-S$ = "
                    f"{config.density:g}, {config.m} hidden dimensions", fontsize=13)  # fmt: skip
    return {"": figure}


def claims(results, config):
    """A polygon of examples, then of features, neither in between; double descent; what other learning rates gain."""
    T, test, train = np.asarray(config.examples), results["test"], results["train"].min(1)
    D, examples, kept = results["D"], results["examples_D"][:, 1], _kept(results)
    few, middle = np.flatnonzero(T <= 5), _middle(results, config)
    peak = middle[np.argmax(test[middle])]
    low = D[middle].max(1)
    swept = results["train"].reshape(len(T), len(config.rates), -1).min(2)
    gain = swept[:, 0] - swept.min(1)
    W = results["W"][-1].astype(np.float32)
    own = np.asarray(geometry.dimensionality(jnp.asarray(W[kept[-1]])))
    others = (f"without the other rows these have {own.mean():.3f}; of ||W||_F^2 the others hold "
              f"{np.square(W[~kept[-1]]).sum() / np.square(W).sum():.2f}")  # fmt: skip
    far = [_uneven(results["h"][i, :, : T[i]].astype(float)) for i in few]
    by_T = lambda values, form=".3f": "by T " + ", ".join(f"{t:,}: {v:{form}}" for t, v in zip(T, values, strict=True))  # noqa: E731
    sizes = kept.sum(1)
    out = [
        Claim(f"T up to {T[few[-1]]}: median dimensionality of examples, times T / 2 (smallest and largest)",
              f"{PAPER}; derived: a tight frame", [1.0, 1.0],
              [float(f(examples[few] * T[few] / 2)) for f in (np.min, np.max)], 0.05, note=by_T(examples, ".4f")),
        Claim(f"T up to {T[few[-1]]}: examples are the corners of a regular polygon (largest difference of an angle "
              "between neighbours from 2 pi / T, over it)", PAPER, 0.0, max(far), 0.1,
              note="by T " + ", ".join(f"{T[i]}: {v:.3f}" for i, v in zip(few, far, strict=True))
              + f"; the training loss there is at most {train[few].max():.1e}"),
        Claim(f"T up to {T[few[-1]]}: training loss (largest)", f"{PAPER}: examples are memorised", 0.0,
              float(train[few].max()), 0.02),
        Claim(f"T up to {T[few[-1]]}: no feature has much of a dimension (largest dimensionality)", PAPER, 0.3,
              float(D[few].max()), 0.0, "<=",
              note=f"largest {by_T(D.max(1))}; the sum over all features is at most 2, so few can have so much"),
        Claim(f"T up to {T[few[-1]]}: examples, not features (largest dimensionality of a feature over the median of "
              "examples)", f"{PAPER} (claimed after a run)", 1.0, float((D[few].max(1) / examples[few]).max()), 0.0,
              "<="),
        Claim("largest T: features of more than half the largest norm", f"{PAPER}: a pentagon", 5, int(sizes[-1]),
              note=by_T(sizes, "d")),
        Claim("largest T: mean dimensionality of these", f"{PAPER}: 2/5", 0.4, float(D[-1][kept[-1]].mean()), 0.05,
              note=others),
        Claim("largest T: mean dimensionality of these k, times k / 2", "derived: a tight frame (claimed after a run)",
              1.0, float(D[-1][kept[-1]].mean()) * int(sizes[-1]) / 2, 0.05, note=others),
        Claim(f"T from {T[middle[0]]} to {T[middle[-1]]}: neither (largest dimensionality of a feature and median of "
              "examples, the larger of both, largest over T)", PAPER, 0.3,
              float(np.maximum(low, examples[middle]).max()), 0.0, "<="),
        Claim(f"double descent: the highest test loss there, at T = {T[peak]}, less that at T = {T[few[-1]]}", PAPER,
              0.0, float(test[peak] - test[few[-1]]), 0.0, ">=", note=by_T(test)),
        Claim("double descent: the same less that at the largest T", PAPER, 0.0, float(test[peak] - test[-1]), 0.0,
              ">="),
    ]  # fmt: skip
    if len(config.rates) > 1:
        text = "other learning rates lower the training loss more in the middle than at either end (by how much more)"
        more = float(gain[middle].max() - max(gain[few].max(), gain[-1]))
        out.append(Claim(text, f"{PAPER}, as corrected in July 2023", 0.01, more, 0.0, ">=", note=by_T(gain)))
    wide = [int(m) for m, row in zip(config.dimensions, results["grid"], strict=True)
            if row[few[-1] + 1 : -1].max() > 1.05 * max(*row[few], row[-1])]  # fmt: skip
    out.append(Claim("test loss over T has a bump of a twentieth or more at each m (how many of them)",
                     f"{PAPER}: double descent in both", len(config.dimensions), len(wide),
                     note=f"at m = {', '.join(map(str, wide))}; between the ends and at the higher end, by m "
                     + "; ".join(f"{m}: {row[few[-1] + 1 : -1].max():.2f} and {max(*row[few], row[-1]):.2f}"
                                 for m, row in zip(config.dimensions, results["grid"], strict=True))))  # fmt: skip
    return out


def _uneven(h):
    """Largest difference of the angle between neighbouring vectors [2, T] from 2 pi / T, over that."""
    angles = np.sort(np.arctan2(h[1], h[0]))
    gaps = np.diff(angles, append=angles[0] + 2 * np.pi)
    even = 2 * np.pi / h.shape[1]
    return float(np.abs(gaps - even).max() / even)
