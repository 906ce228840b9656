"""Kinds of SAEs as configs state them: made into populations, trained on one world, scored against its truth."""

import dataclasses
import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import check
from superpose.sae import metrics, recovery
from superpose.sae.model import SAE, Architecture
from superpose.sae.objective import Training, inference, member, population, prepared, resample
from superpose.train.fit import Population, Sampler, fit
from superpose.worlds import structured

SCORES = (
    "l0", "explained_variance", "f1", "precision", "recall", "mcc", "mmcs", "mmcs_latents", "uniqueness", "dead",
    "l2_ratio",
)  # fmt: skip
"""What ``judge`` says of an SAE; precision, recall and f1 are means over all latents, dead is a share of them."""


DEFAULTS = {f.name: f.default for cls in (Architecture, Training) for f in dataclasses.fields(cls)}


class Kind(NamedTuple):
    """One kind and its members: the product of what is swept with the seeds, seeds last."""

    arch: Architecture
    training: Training
    population: Population
    shape: tuple[int, ...]


def kind(
    c: Any,
    d_in: int,
    steps: int,
    seeds: int,
    sample: np.ndarray,
    *,
    resampled: bool = False,
    block: int | None = None,
    **given: Any,
) -> Kind:
    """The population that a kind's config states.

    Args:
        c: what ``configs.kind`` made.
        d_in: width of the inputs.
        steps: of the run.
        seeds: members for each combination of what is swept.
        sample: inputs [batch, d_in] that the scale and b_dec are taken from.
        resampled: whether dead latents are resampled at the steps ``config.resample_at`` of ``train``.
        block: members computed together.
        given: fields of Architecture and Training that the experiment says itself.
    """
    values = {k: v for k, v in c.items() if k not in ("recipe", "scale", "centre", "sweep")} | given
    values["prefixes"] = tuple(values["prefixes"])
    for name, value in given.items():
        if name in c and c[name] not in (None, DEFAULTS[name], value):
            raise ValueError(f"{name} of a kind is {c[name]}, and the experiment's is {value}: change both")
    names = {f.name for f in dataclasses.fields(Architecture)}
    sweep = {k: np.asarray(v) for k, v in c.sweep.items()}
    if any(v.ndim != 1 or not v.size for v in sweep.values()):
        raise ValueError(f"sweep must hold a list of values for each name, got {c.sweep.to_dict()}")
    k = sweep["k"].max() if "k" in sweep else values["k"]
    values["k"] = None if k is None else int(np.ceil(k))
    if k is not None and "k" not in sweep and k != values["k"]:  # a fractional k is a member's own
        sweep["k"] = np.asarray([k])
    arch = Architecture(d_in=d_in, **{n: v for n, v in values.items() if n in names})
    training = Training(steps=steps, **{n: v for n, v in values.items() if n not in names})
    for name in ("warmup", "k_steps"):
        if getattr(training, name) > steps:
            raise ValueError(f"{name} of a kind is {getattr(training, name)}, more than the {steps} steps of the run")
    grid = list(itertools.product(*sweep.values(), range(seeds)))
    hyper = {n: np.asarray([row[i] for row in grid]) for i, n in enumerate([*sweep, "seed"])}
    start = prepared(sample, c.scale, c.centre)
    hyper |= {n: np.repeat(start[n][None], len(grid), 0) for n in start}
    recipe, between = check.recipe(c, steps), resample(arch, training) if resampled else None
    return Kind(
        arch,
        training,
        population(arch, training, hyper, recipe, between=between, block=block),
        (*map(len, sweep.values()), seeds),
    )


def at_l0(config: Any, d_in: int, sample: np.ndarray, **more: Any) -> dict[str, Kind]:
    """All kinds of a config that compares them at one L0, ``config.l0``, and one size, ``config.d_sae``.

    Raises:
        ValueError: a kind is of another size, or chooses another number of latents.
    """
    made = {}
    for name, c in config.kinds.items():
        if c.k is not None and c.k != config.l0:
            raise ValueError(f"kinds.{name}.k is {c.k:g}, and l0 is {config.l0:g}: change both")
        given = {"d_sae": config.d_sae} | ({} if c.k is not None else {"target_l0": config.l0})
        resampled = name in config.get("resample", ())
        made[name] = kind(c, d_in, config.steps, config.seeds, sample, resampled=resampled, **more, **given)
    return made


def world(config: Any, key: jax.Array) -> structured.Embedding:
    """Activations of a world like SynthSAEBench's, as configs state it: n, d, roots, true_l0, bias."""
    truth = structured.synthetic(config.n, seed=config.seed, roots=config.roots, target_l0=config.true_l0)
    direction_key, bias_key = jax.random.split(key)
    directions = structured.directions(direction_key, config.n, config.d)
    return truth.embed(directions, config.bias * structured.directions(bias_key, 1, config.d, steps=0)[0])


def train(
    kinds: dict[str, Kind], config: Any, key: jax.Array, source: Sampler | None, workdir: Any, title: str
) -> dict:
    """One run: all kinds, on one stream of batches if they have no sources of their own; name -> Result."""
    return fit(
        {name: k.population for name, k in kinds.items()},
        steps=config.steps, key=key, source=source, workdir=workdir, log_every=config.log_every, title=title,
        between_at=config.get("resample_at", ()),
    )  # fmt: skip


def plain(kind: Kind, result: Any) -> list[tuple[Architecture, dict]]:
    """Each member as an SAE for inference."""
    return [_one(kind, result, i) for i in range(kind.population.size)]


def _one(kind: Kind, result: Any, i: int) -> tuple[Architecture, dict]:
    return inference(kind.arch, kind.training, *member(result, i))


def judge(embedding: Any, batch: int, batches: int, key: jax.Array):
    """A function (arch, params) -> {score: number} on held-out samples, the same ones for every SAE.

    Args:
        embedding: a ``worlds.structured.Embedding``; its world says which features are active.
    """
    directions = np.asarray(embedding.directions)

    @partial(jax.jit, static_argnums=0)
    def one(arch, params, match, key):
        x, features = embedding.both(key, batch)
        sae = SAE(arch, params)
        return metrics.sums(x, sae(x), acts := sae.encode(x)), recovery.pairs(acts, features, match)

    def score(arch: Architecture, params: dict) -> dict[str, float]:
        cosines = np.asarray(recovery.cosines(params["W_dec"], directions))
        match = jnp.asarray(recovery.best(cosines).feature)
        sums: Any = None
        table: Any = None
        for b in range(batches):
            first, second = one(arch, params, match, jax.random.fold_in(key, b))
            sums, table = metrics.add(sums, first), recovery.add(table, second)
        seen = metrics.scores(sums)
        live = seen.density > 0
        found, both = recovery.macro(recovery.detection(table.table)), recovery.mmcs(cosines, live)
        values = (
            seen.l0, seen.explained_variance, found.f1, found.precision, found.recall, recovery.mcc(cosines, live),
            both.true_to_latent, both.latent_to_true, recovery.uniqueness(cosines, live), 1 - live.mean(),
            seen.l2_ratio,
        )  # fmt: skip
        return dict(zip(SCORES, map(float, values), strict=True))

    return score


def scored(kinds: dict[str, Kind], results: dict, score: Any) -> dict[str, np.ndarray]:
    """``{kind}_{score}`` [*swept, seeds] of every member; a member that diverged has NaN."""
    out: dict[str, np.ndarray] = {}
    for name, kind in kinds.items():
        rows = []
        for i, frozen_at in enumerate(results[name].frozen_at):
            lost = frozen_at >= 0
            rows.append(dict.fromkeys(SCORES, np.nan) if lost else score(*_one(kind, results[name], i)))
        out |= {f"{name}_{s}": np.asarray([r[s] for r in rows]).reshape(kind.shape) for s in SCORES}
    return out
