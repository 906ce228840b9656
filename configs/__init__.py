"""One file per experiment, same name; every value stated, so that every value can be changed on the command line."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from superpose.train.recipe import Recipe

OPTIONAL = {"clip_norm": float}
"""Fields of a recipe that may be None, and what they are otherwise."""


def recipe(**values: Any) -> ConfigDict:
    """Every field of a ``Recipe`` but its steps: the values given, and the defaults of the others."""
    fields = {f.name: f.default for f in dataclasses.fields(Recipe) if f.name != "steps"} | values
    return ConfigDict({k: placeholder(OPTIONAL[k]) if v is None else v for k, v in fields.items()})
