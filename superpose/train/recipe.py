"""An optimiser stated by plain values, turned into an optax transformation with per-member hyperparameters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax

OPTIMIZERS = {
    "adam": lambda r: optax.scale_by_adam(r.b1, r.b2, r.eps),
    "adamw": lambda r: optax.scale_by_adam(r.b1, r.b2, r.eps),
    "sgd": lambda r: optax.trace(r.momentum, nesterov=r.nesterov) if r.momentum else optax.identity(),
}
"""name -> the gradient scaling alone; clipping, decay and the learning rate are common to all of them."""

SCHEDULES = {
    "constant": lambda steps, final: optax.constant_schedule(1.0),
    "linear": lambda steps, final: optax.linear_schedule(1.0, final, steps),
    "cosine": lambda steps, final: optax.cosine_decay_schedule(1.0, steps, alpha=final),
}
"""name -> (steps of decay, final fraction) -> schedule of the fraction of the peak learning rate."""


@dataclass(frozen=True)
class Group:
    """Settings for the parameters whose path matches; the first matching group wins.

    Attributes:
        pattern: regular expression searched in the parameter's path, written like ``encoder/W``; it must match one.
        lr_scale: factor on the learning rate; 0 freezes the group.
        weight_decay: decay of this group in place of the recipe's; None keeps the recipe's.
    """

    pattern: str
    lr_scale: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How parameters are updated; every value is plain, so that a config can state it.

    A population's ``hyper`` may carry ``lr`` and ``weight_decay`` with one value per member; they then replace the
    values here. The update of Adam follows Kingma & Ba (2015); the decay is decoupled and scaled by the learning rate
    (Loshchilov & Hutter 2019, and torch.optim.AdamW).

    Attributes:
        steps: length of the run, which the schedules need.
        optimizer: a row of ``OPTIMIZERS``.
        lr: peak learning rate.
        schedule: a row of ``SCHEDULES``, applied after the warm-up.
        warmup: steps over which the rate rises linearly to its peak (the first step has 1/warmup of it).
        decay_from: fraction of the run at which the decay begins (0.8 = decay over the last 20 %).
        final: the rate at the end as a fraction of the peak.
        clip_norm: global norm to which gradients are clipped, None for no clipping; frozen groups don't count.
        weight_decay: decoupled weight decay; Adam takes none (use AdamW).
        groups: per-group settings by parameter path.
    """

    steps: int
    optimizer: str = "adam"
    lr: float = 1e-3
    schedule: str = "constant"
    warmup: int = 0
    decay_from: float = 0.0
    final: float = 0.0
    clip_norm: float | None = None
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False
    groups: tuple[Group, ...] = ()

    def __post_init__(self):
        for value, table, what in ((self.optimizer, OPTIMIZERS, "optimizer"), (self.schedule, SCHEDULES, "schedule")):
            if value not in table:
                raise ValueError(f"unknown {what} {value!r}: choose one of {', '.join(table)}")
        if self.steps < 1 or self.warmup < 0 or self.warmup >= self.steps:
            raise ValueError(f"a recipe needs 0 <= warmup < steps, got warmup={self.warmup}, steps={self.steps}")
        if not 0.0 <= self.lr < float("inf"):
            raise ValueError(f"the learning rate must be finite and at least 0, got {self.lr}")
        if not 0.0 <= self.decay_from < 1.0:
            raise ValueError(f"decay_from is a fraction of the run in [0, 1), got {self.decay_from}")
        if self.clip_norm is not None and not 0.0 < self.clip_norm < float("inf"):
            raise ValueError(f"clip_norm must be positive and finite, or None, got {self.clip_norm}")
        for name in ("b1", "b2", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"{self.optimizer} takes no momentum and no nesterov (b1 is its own): use optimizer='sgd'")
        if not 0.0 <= self.final <= 1.0:
            raise ValueError(f"final is a fraction of the peak rate in [0, 1], got {self.final}")
        if self.schedule == "constant" and (self.decay_from or self.final):
            raise ValueError("a constant schedule has no decay_from and no final: choose linear or cosine")
        for decay in (self.weight_decay, *(g.weight_decay for g in self.groups)):
            if self.optimizer == "adam" and decay:
                raise ValueError(f"adam takes no weight decay (got {decay}): use optimizer='adamw'")

    def multiplier(self) -> optax.Schedule:
        """The schedule: step -> fraction of the peak learning rate."""
        begin = min(max(self.warmup, round(self.decay_from * self.steps)), self.steps - 1)
        decay = SCHEDULES[self.schedule](self.steps - begin, self.final)
        pieces, ends = [], []
        if self.warmup:
            pieces.append(optax.linear_schedule(1.0 / self.warmup, 1.0, self.warmup))
            ends.append(self.warmup)
        if begin > self.warmup:
            pieces.append(optax.constant_schedule(1.0))
            ends.append(begin)
        return optax.join_schedules([*pieces, decay], ends) if pieces else decay

    def transform(self, hyper: Mapping[str, Any] | None = None) -> optax.GradientTransformation:
        """The optax transformation for one member; values in ``hyper`` may be traced.

        The structure of its state depends on the recipe alone, so one state serves any hyperparameters.

        Args:
            hyper: may hold ``lr`` and ``weight_decay`` (scalars) which replace the recipe's.

        Raises:
            ValueError: ``weight_decay`` given to Adam.
        """
        hyper = hyper or {}
        if self.optimizer == "adam" and "weight_decay" in hyper:
            raise ValueError("adam takes no weight decay: use optimizer='adamw', or drop weight_decay from hyper")
        lr, multiplier = hyper.get("lr", self.lr), self.multiplier()
        decay = hyper.get("weight_decay", self.weight_decay)
        decays = self.optimizer != "adam" and ("weight_decay" in hyper or bool(self.weight_decay))

        def one(lr_scale: float, group_decay: float | None) -> optax.GradientTransformation:
            if lr_scale == 0.0:
                return optax.set_to_zero()
            parts = [OPTIMIZERS[self.optimizer](self)]
            if group_decay if group_decay is not None else decays:
                parts.append(optax.add_decayed_weights(decay if group_decay is None else group_decay))
            parts.append(optax.scale_by_schedule(lambda step: -lr * lr_scale * multiplier(step)))
            return optax.chain(*parts)

        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        if not self.groups:
            return optax.chain(*clip, one(1.0, None))
        rules = {str(i): one(g.lr_scale, g.weight_decay) for i, g in enumerate(self.groups)}
        frozen = {name for name, g in zip(rules, self.groups, strict=True) if g.lr_scale == 0.0}
        if clip and frozen:  # what does not move does not count in the norm
            still = lambda params: jax.tree.map(lambda label: label in frozen, self._labels(params))  # noqa: E731
            clip.insert(0, optax.masked(optax.set_to_zero(), still))
        return optax.chain(*clip, optax.partition({**rules, "rest": one(1.0, None)}, self._labels))

    def _labels(self, params):
        """Parameter -> number of the first group whose pattern its path matches, or "rest"."""
        name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
        names = [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for g in self.groups:
            if names and not any(re.search(g.pattern, n) for n in names):  # optax asks about empty trees too
                raise ValueError(f"the recipe's group {g.pattern!r} matches none of the parameters {', '.join(names)}")

        def label(path, _):
            return next((str(i) for i, g in enumerate(self.groups) if re.search(g.pattern, name(path))), "rest")

        return jax.tree_util.tree_map_with_path(label, params)
