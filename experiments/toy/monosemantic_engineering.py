"""How many neurons are monosemantic, by the biases that they start with, their number and the learning rate.

Jermyn, Schiefer, Hubinger 2022, "Engineering Monosemanticity in Toy Models".
"""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from experiments import check, toys
from experiments.ledger import Claim
from superpose import plot
from superpose.toy.models import grid, population
from superpose.worlds.sparse import independent

PAPER = "Jermyn, Schiefer, Hubinger 2022"
ALONE = 0.999
"""Share of what all features alone switch on in a neuron that must come from one of them (the paper's code)."""
TASKS = {"decoder": (0.0, None), "abs": (-1.0, jnp.abs)}
"""name -> the lowest value of a feature, and what is to be said of it."""
NANOSECONDS = 0.04
"""Of a training step, for each weight and column of each model, on 2 CPU cores (this project)."""


class Network(nnx.Module):
    """x_hat = B relu(A P x + b): P [m, n] is fixed, A [k, m] and B [n, k]."""

    def __init__(self, P, k: int, *, rngs: nnx.Rngs):
        """All weights uniform within 1 / sqrt(their inputs), b too (torch's linear layers)."""
        m, n = P.shape
        uniform = lambda shape, inputs: jax.random.uniform(rngs.params(), shape, minval=-1, maxval=1) / inputs**0.5  # noqa: E731
        self.A, self.b = nnx.Param(uniform((k, m), m)), nnx.Param(uniform((k,), m))
        self.B = nnx.Param(uniform((n, k), k))
        self.project = lambda x: jnp.asarray(P) @ x

    def encode(self, x):
        return jax.nn.relu(self.A[...] @ self.project(x) + self.b[...][:, None])

    def __call__(self, x):
        return self.B[...] @ self.encode(x)


def projection(n, m, seed):
    """[m, n] with columns of length 1: the left singular vectors of a Gaussian matrix [n, m], rows scaled."""
    u = np.linalg.svd(np.random.default_rng(seed).normal(size=(n, m)), full_matrices=False)[0]
    return (u / np.linalg.norm(u, axis=1, keepdims=True)).T.astype(np.float32)


def run(config, key, workdir):
    """Of each task, start and number of neurons: losses and shares of monosemantic neurons [tasks, 2, k, seeds]; the
    same by learning rate [2, rates, seeds]; activations of single features of one model of each start [2, k, n]."""
    check.whole(config, "n", "m", "neurons", "swept", "seeds", "batch", "eval_batch")
    check.rising(config, "neurons", least=2)
    check.rising(config, "rates")
    check.positive(config, "density", "rates", "decay")
    check.finite(config, "bias")
    if config.bias >= 0 or config.m >= config.n or config.neurons[-1] < config.n or not config.tasks:
        raise ValueError("this figure needs a bias below 0, m below n, at least n neurons at the end of its list and a "
                         f"task, got {config.bias:g}, m={config.m}, n={config.n}, {tuple(config.neurons)} and "
                         f"{tuple(config.tasks)}")  # fmt: skip
    if unknown := [task for task in config.tasks if task not in TASKS]:
        raise ValueError(f"unknown task {unknown[0]!r}: choose from {', '.join(TASKS)}")
    weights = (len(config.tasks) * sum(config.neurons) + len(config.rates) * config.swept) * 2 * config.seeds
    toys.announce(weights * (config.n + config.m) * config.batch * config.steps * NANOSECONDS)
    P, starts = projection(config.n, config.m, config.seed), (0.0, config.bias)
    count = len(config.tasks) * len(config.neurons) + len(config.rates)
    keys = iter(jax.random.split(key, count))
    loss, alone, first = [], [], []
    for task in config.tasks:
        for k in config.neurons:
            got = _trained(config, P, task, k, starts, config.recipe.lr, next(keys), workdir / f"{task}_{k}")
            loss.append(got[0])
            alone.append(got[1])
            first.append(got[2])
    shape = (len(config.tasks), len(config.neurons), 2, config.seeds)
    swept = [_trained(config, P, config.tasks[0], config.swept, starts, float(lr), next(keys), workdir / f"rate_{i}")
             for i, lr in enumerate(config.rates)]  # fmt: skip
    middle = swept[len(config.rates) // 2]
    return {
        "loss": np.stack(loss).reshape(shape).swapaxes(1, 2), "share": np.stack(alone).reshape(shape).swapaxes(1, 2),
        "start": np.stack(first).reshape(shape).swapaxes(1, 2),
        "rate_loss": np.stack([s[0] for s in swept]).swapaxes(0, 1),
        "rate_share": np.stack([s[1] for s in swept]).swapaxes(0, 1), "shown": middle[3].astype(np.float16),
    }  # fmt: skip


def _trained(config, P, task, k, starts, lr, key, workdir):
    """Losses and shares of monosemantic neurons [2, seeds], those at the start, and single features' activations of the
    first seed of each start [2, k, n]."""
    low, target = TASKS[task]
    hyper = grid(start=np.asarray(starts, np.float32), seed=range(config.seeds))
    hyper |= {"density": np.full(len(hyper["seed"]), config.density, np.float32),
              "lr": np.full(len(hyper["seed"]), lr, np.float32)}  # fmt: skip

    def start(params, key, hyper):
        return {**params, "b": params["b"] + hyper["start"]}

    def project(params, hyper, step):
        fade = (hyper["start"] < 0) & (step < config.steps / 2)
        return {**params, "b": jnp.where(fade, params["b"] * (1 - config.decay * hyper["lr"]), params["b"])}

    def members(size):
        pop = population(config.n, config.m, hyper, check.recipe(config), model=lambda rngs: Network(P, k, rngs=rngs),
                         expectation="monte_carlo", size=size, init=start, block=1, target=target,
                         world=independent(config.n, low, 1.0), record=lambda params: params)  # fmt: skip
        return dataclasses.replace(pop, objective=dataclasses.replace(pop.objective, project=project))

    got = toys.trained(members(config.batch), members(config.eval_batch), config, key, workdir, seeds=config.seeds,
                       of=("start", list(starts)), title=f"{task}, {k} neurons, lr {lr:g}", record_at=[0])  # fmt: skip
    acts = _single(got.params["A"], got.params["b"], P, low < 0)  # [2, seeds, k, n]
    first = {name: a[0].reshape(2, config.seeds, *a.shape[2:]) for name, a in got.result.records.items()}
    return got.loss, _alone(acts), _alone(_single(first["A"], first["b"], P, low < 0)), acts[:, 0]


def _single(A, b, P, signed):
    """What each feature alone, at 1 (and at -1, added, where values may be negative), switches on in each neuron."""
    pre = np.asarray(A) @ P
    one = lambda sign: np.maximum(sign * pre + np.asarray(b)[..., None], 0)  # noqa: E731
    return one(1) + one(-1) if signed else one(1)


def _alone(acts):
    """Share of neurons that one feature alone accounts for."""
    return (acts.max(-1) > ALONE * (acts.sum(-1) + 1e-10)).mean(-1)


def draw(results, config):
    """Monosemantic neurons and loss by their number and by learning rate; activations of single features."""
    figure = plt.figure(figsize=(13.5, 10.5), dpi=105, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.1], squeeze=False)[:, 0]
    k = np.asarray(config.neurons)
    starts, names = (0.0, config.bias), ("biases start about 0", f"biases start about {config.bias:g}, and decay")
    share, count, loss, rates = top.subplots(1, 4)
    for t, (task, style) in enumerate(zip(config.tasks, ("o-", "s--"), strict=False)):
        for s, (name, colour) in enumerate(zip(names, (plot.COOL, plot.WARM), strict=True)):
            label = f"{task}, {name}"
            for ax, values in (
                (share, results["share"]),
                (count, results["share"] * k[:, None] / config.n),
                (loss, results["loss"]),
            ):
                ax.plot(k, values[t, s].mean(-1), style, ms=4, color=colour, label=label)
    share.set(ylabel="monosemantic share of neurons", ylim=(0, 1))
    count.set(ylabel="monosemantic neurons over features", ylim=(0, None))
    loss.set(ylabel="loss, sum over features", ylim=(0, None))
    for ax in (share, count, loss):
        ax.set(xscale="log", xlabel="neurons")
        ax.axvline(config.n, color="0.6", lw=0.8, ls=":")
        plot.plain_ticks(ax.xaxis, config.neurons)
        ax.tick_params(axis="x", labelsize=7)
    top.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    for s, colour in enumerate((plot.COOL, plot.WARM)):
        rates.plot(
            config.rates,
            results["rate_share"][s].mean(-1),
            "o-",
            ms=4,
            color=colour,
            label=f"monosemantic share, from {starts[s]:g}",
        )
        rates.plot(
            config.rates, results["rate_loss"][s].mean(-1), "^:", ms=4, color=colour, label=f"loss, from {starts[s]:g}"
        )
    rates.set(xscale="log", xlabel=f"learning rate, {config.swept} neurons", ylabel="share, and loss", ylim=(0, None))
    plot.plain_ticks(rates.xaxis, config.rates)
    rates.legend(frameon=False, fontsize=7)
    plot.plain((share, count, loss, rates))
    for ax, acts, name in zip(bottom.subplots(1, 2, sharey=True), results["shown"], names, strict=True):
        acts = acts.astype(float)
        rows = np.argsort(-acts.max(1) / (acts.sum(1) + 1e-10), kind="stable")
        columns = np.argsort(acts[rows].argmax(0), kind="stable")
        image = ax.imshow(
            acts[rows][:, columns], aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest"
        )
        ax.set(
            xlabel="feature, ordered by the neuron that it drives the most",
        )
        ax.set_title(f"{name}: {config.swept} neurons, {config.tasks[0]}, {int((acts.max(1) <= 0).sum())} never on",
                     fontsize=10)  # fmt: skip
    bottom.axes[0].set_ylabel("neuron, those of one feature first")
    bottom.colorbar(image, ax=bottom.axes, label="activation by one feature alone, at 1", shrink=0.9)
    figure.suptitle(f"Engineering monosemanticity: {config.n} features, a fixed projection to {config.m} dimensions, "
                    f"ReLU neurons; mean of {config.seeds} models", fontsize=12)  # fmt: skip
    return {"": figure}


def claims(results, config):
    """Negative biases, more neurons and higher rates give more monosemantic neurons; at what loss."""
    k, share, loss = np.asarray(config.neurons), results["share"].mean(-1), results["loss"].mean(-1)
    out = [Claim("control: before training no neuron is monosemantic (largest share)", "control: biases about 0", 0.0,
                 float(results["start"][:, 0].max()), 0.01)]  # fmt: skip
    many = k >= config.n
    for t, task in enumerate(config.tasks):
        gain, dear = share[t, 1] - share[t, 0], loss[t, 1] / loss[t, 0]
        by_k = lambda values: ", ".join(f"{n}: {v:.3f}" for n, v in zip(k, values, strict=True))  # noqa: E731
        out += [
            Claim(f"{task}: share of monosemantic neurons, started at {config.bias:g} less at 0 (smallest, neurons at "
                  "least as many as features)", PAPER, 0.1, float(gain[many].min()), 0.0, ">=",
                  note=f"by neurons, at 0 {by_k(share[t, 0])}; at {config.bias:g} {by_k(share[t, 1])}"),
            Claim(f"{task}: at no higher loss (the ratio of the two, largest there)", f"{PAPER}: equal loss", 1.0,
                  float(dear[many].max()), 0.05, "<=", note=f"by neurons {by_k(dear)}"),
            Claim(f"{task}: more neurons, more of them monosemantic (smallest step in their number, started at "
                  f"{config.bias:g})", PAPER, 0.0, float(np.diff(share[t, 1] * k).min()), 0.0, ">=",
                  note=f"numbers {by_k(share[t, 1] * k)}"),
        ]  # fmt: skip
    if len(config.rates) > 1:
        for s, start in enumerate((0.0, config.bias)):
            rate, cost = results["rate_share"].mean(-1)[s], results["rate_loss"].mean(-1)[s]
            by = "; ".join(f"{lr:g}: {a:.3f}, loss {b:.3f}" for lr, a, b in zip(config.rates, rate, cost, strict=True))
            text = "higher learning rates, more monosemantic neurons: share at the highest less that at the lowest"
            out.append(Claim(f"{text}, from {start:g}", PAPER, 0.0, float(rate[-1] - rate[0]), 0.0, ">=", note=by))
    return out
