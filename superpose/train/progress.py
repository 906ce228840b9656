"""What a person sees of a run: a bar on a terminal, one line per event, JSON lines in the work directory."""

import json
import math
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True)


def say(message: str) -> None:
    """One line for a person, on stderr, so that stdout stays free for results."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def json_line(record: dict) -> str:
    """A record as one line of strict JSON; non-finite numbers become null."""

    def clean(value):
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    return json.dumps(clean(record), allow_nan=False) + "\n"


class _Speed(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task):
        return Text(f"{task.speed:,.3g} {self.unit}/s" if task.speed else "compiling")


def bar(
    title: str, total: int, done: int = 0, quiet: bool | None = None, unit: str = "steps"
) -> tuple[Progress, TaskID]:
    """A progress bar with loss (of steps), speed and time left; it draws nothing when stderr is no terminal.

    Returns:
        the ``rich`` progress (a context manager) and the id of its one task, with a ``loss`` field.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} " + unit + ("  loss {task.fields[loss]}" if unit == "steps" else "")),
        _Speed(unit),
        TimeRemainingColumn(),
        console=console,
        disable=(not sys.stderr.isatty()) if quiet is None else quiet,
        transient=True,
    )
    return progress, progress.add_task(title, total=total, completed=done, loss="-")
