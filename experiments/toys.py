"""Populations of toy models: trained, judged on draws that all of them share, and the best seed of every setting."""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import check
from superpose.train import progress
from superpose.train.fit import Population, Result, evaluate, fit


class Trained(NamedTuple):
    """Members in the order of the population, seeds running fastest.

    Attributes:
        params: of the model, name -> [settings, seeds, ...]; modules within it are mappings of their own.
        loss: [settings, seeds], held out; infinite where a member diverged.
        best: [settings], the seed of the lowest loss.
        result: of ``fit``.
    """

    params: dict[str, Any]
    loss: np.ndarray
    best: np.ndarray
    result: Result

    def chosen(self, name: str) -> np.ndarray:
        """A parameter of the best seed of every setting, [settings, ...]."""
        return self.params[name][np.arange(len(self.best)), self.best]


def announce(nanoseconds: float) -> None:
    """Says before a run of two minutes or more what it costs, by what such work took when it was measured."""
    for seconds, name in ((3600, "hours"), (60, "minutes")):
        if (many := nanoseconds * 1e-9 / seconds) >= 2:
            return progress.say(f"about {many:.0f} {name} on 2 CPU cores, compilation left out")


def trained(
    pop: Population,
    judge: Population,
    config: Any,
    key: jax.Array,
    workdir: Any,
    *,
    seeds: int,
    batches: int = 1,
    of: tuple[str, Any] = ("setting", None),
    **more: Any,
) -> Trained:
    """Trains a population whose seeds run fastest, and finds the best seed of every setting.

    Args:
        pop: what is trained, for config.steps in chunks of config.log_every.
        judge: the same members with the source that they are judged on.
        key: of the run; split for training and judging.
        seeds: members of a setting.
        batches: of the judge.
        of: what a setting is called, and the value of each, for a setting of which no seed is sound.
        more: of ``fit``.

    Raises:
        ValueError: all seeds of a setting diverged.
    """
    train_key, eval_key = jax.random.split(key)
    result = fit(pop, steps=config.steps, key=train_key, workdir=workdir, log_every=config.log_every, **more)
    params = jax.device_get(result.params)
    loss = evaluate(judge, params, key=eval_key, batches=batches)["loss"]
    loss = np.where(result.frozen_at >= 0, np.inf, loss).reshape(-1, seeds)
    what, values = of
    check.some_sound(loss, what, np.arange(len(loss)) if values is None else values)
    each = jax.tree.map(lambda a: a.reshape(len(loss), seeds, *a.shape[1:]), params)
    return Trained(each, loss, loss.argmin(1), result)
