"""One file per experiment, same name; every value stated, so that every value can be changed on the command line."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from superpose.sae.model import Architecture
from superpose.sae.objective import Training
from superpose.train.recipe import Recipe

OPTIONAL = {"clip_norm": float, "k": float, "target_l0": float, "k_start": float, "auxk_k": int, "fast": bool}
"""Fields that may be None, and what they are otherwise."""
FROM_WORLD = {"d_in", "d_out", "sites", "skip", "steps"}
"""Fields of an SAE that its world and the run say."""


def _stated(values: dict[str, Any], *classes: type) -> ConfigDict:
    """Every field of some dataclasses: the values given, and the defaults of the others."""
    fields = [f for c in classes for f in dataclasses.fields(c) if f.name not in FROM_WORLD]
    if unknown := sorted(values.keys() - {f.name for f in fields}):
        raise TypeError(f"unknown fields {', '.join(unknown)}")
    given = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING} | values
    return ConfigDict({k: placeholder(OPTIONAL[k]) if v is None else v for k, v in given.items()})


def recipe(**values: Any) -> ConfigDict:
    """Every field of a ``Recipe`` but its steps."""
    return _stated(values, Recipe)


def kind(
    *,
    recipe: ConfigDict,
    scale: str = "none",
    centre: str = "zero",
    sweep: dict[str, tuple] | None = None,
    **values: Any,
) -> ConfigDict:
    """A kind of SAE: every field of its ``Architecture`` and its ``Training``, and what it starts from.

    Args:
        recipe: of the optimiser.
        scale, centre: rows of ``objective.SCALES`` and ``objective.CENTRES``, for the input's scale and for b_dec.
        sweep: values of ``objective.PER_MEMBER`` or lr, one list each; members are their product with the seeds.
        values: fields of ``Architecture`` and ``Training``.
    """
    c = _stated(values, Architecture, Training)
    c.scale, c.centre, c.recipe, c.sweep = scale, centre, recipe, ConfigDict(sweep or {})
    return c
