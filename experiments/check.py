"""Values of a config that are checked before anything is trained; each failure is one sentence."""

import tempfile
from pathlib import Path

import numpy as np

from superpose.train.recipe import Group, Recipe


def _numbers(config, name: str) -> np.ndarray:
    try:
        values = np.asarray(config[name], float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold numbers, got {config[name]!r}") from None
    if values.ndim > 1 or not values.size:
        raise ValueError(f"{name} must be a number or a list of numbers, got {config[name]!r}")
    return values


def whole(config, *names: str, least: int = 1) -> None:
    """Whole numbers (or lists of them) of at least ``least``."""
    for name in names:
        values = _numbers(config, name)
        if not np.all((values == np.floor(values)) & (values >= least)):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {config[name]!r}")


def positive(config, *names: str) -> None:
    """Positive, finite numbers (or lists of them)."""
    for name in names:
        values = _numbers(config, name)
        if not np.all(np.isfinite(values) & (values > 0)):
            raise ValueError(f"{name} must be positive and finite, got {config[name]!r}")


def finite(config, *names: str) -> None:
    """Finite numbers (or lists of them)."""
    for name in names:
        if not np.isfinite(_numbers(config, name)).all():
            raise ValueError(f"{name} must be finite numbers, got {config[name]!r}")


def not_negative(config, *names: str) -> None:
    """Finite numbers of at least 0 (or lists of them)."""
    for name in names:
        values = _numbers(config, name)
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError(f"{name} must be a finite number of at least 0, got {config[name]!r}")


def writable(folder: str) -> None:
    """A folder that files can be written into; it is made."""
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise ValueError(f"{place} is a file: name a folder")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"nothing can be written into {place} ({error}): name another folder") from error


def ends(config, *names: str) -> None:
    """The two ends of a logarithmic axis."""
    positive(config, *names)
    for name in names:
        values = _numbers(config, name)
        if values.shape != (2,) or values[0] >= values[1]:
            raise ValueError(f"{name} must be (lowest, highest) of an axis, got {config[name]!r}")


def rising(config, *names: str, least: int = 1) -> None:
    """Lists of at least so many numbers, each larger than the one before."""
    for name in names:
        values = _numbers(config, name)
        if values.ndim != 1 or len(values) < least or not (np.diff(values) > 0).all():
            raise ValueError(f"{name} must be a list of at least {least} numbers that rise, got {config[name]!r}")


def listed(config, **widths: int) -> None:
    """Lists of rows with so many numbers each (or None)."""
    for name, width in widths.items():
        for row in config[name]:
            numbers = isinstance(row, tuple | list) and all(v is None or isinstance(v, int | float) for v in row)
            if not numbers or len(row) != width:
                raise ValueError(f"{name} must be a list of rows of {width} numbers, got {row!r}")


def recipe(config, steps: int | None = None) -> Recipe:
    """The Recipe that ``config.recipe`` states, for config.steps or ``steps``; groups are mappings like a Group."""
    values = dict(config.recipe)
    try:
        groups = tuple(Group(**group) for group in values.pop("groups"))
    except TypeError as error:
        raise ValueError(
            f"recipe.groups must hold mappings like {{'pattern': 'b', 'lr_scale': 0.5}}: {error}"
        ) from None
    return Recipe(steps=steps or config.steps, groups=groups, **values)


def some_sound(loss: np.ndarray, what: str, values) -> None:
    """Refuses losses [columns, seeds] with a column in which every seed diverged."""
    said = lambda v: str(v) if isinstance(v, str | tuple) else f"{v:g}"  # noqa: E731
    lost = [said(values[i]) for i in np.flatnonzero(~np.isfinite(loss).any(1))]
    if lost:
        raise ValueError(
            f"all models of {what} {', '.join(lost[:5])}{' ...' * (len(lost) > 5)} diverged: lower recipe.lr, or give "
            "more seeds"
        )
