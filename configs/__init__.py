"""One file per experiment, same name; every value stated, so that every value can be changed on the command line."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from superpose.lm.transformer import Config
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


def model(**values: Any) -> ConfigDict:
    """Every field of a language model's ``Config`` but what its texts say: vocab and context."""
    sizes = {"vocab": 1, "context": 1, **values}
    made = {f.name: getattr(Config(**sizes), f.name) for f in dataclasses.fields(Config)}
    optional = {"kv_heads": int, "query_scale": float, "attn_cap": float, "logit_cap": float}
    kept = {k: v for k, v in made.items() if k not in ("vocab", "context", "rotary", "local_rotary")}
    return ConfigDict({k: placeholder(optional[k]) if v is None else v for k, v in kept.items()})


def corpus(
    kind: str,
    *,
    modules: tuple[str, ...] = (),
    documents: int = 1000,
    seed: int = 0,
    path: str = "",
    pattern: str = "**/*.txt",
    separator: str | None = None,
    column: str = "text",
    digest: str = "",
) -> ConfigDict:
    """A corpus: "python source", "scripts", "files" or "dataset", and what each of them takes.

    Args:
        kind: which.
        modules: of the Python source; () is the fixed list.
        documents, seed: of made-up scripts; documents also of a data set.
        path: file, folder or name of a data set.
        pattern, separator: of files in a folder, and between the documents of a file.
        column: of a data set.
        digest: what its texts must hash to, as figures and stores state it; "" takes any.
    """
    c = ConfigDict(
        {"kind": kind, "modules": modules, "documents": documents, "seed": seed, "path": path, "pattern": pattern,
         "column": column, "digest": digest}
    )  # fmt: skip
    c.separator = placeholder(str) if separator is None else separator
    return c


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
