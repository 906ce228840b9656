"""The only entry point: one config -> numbers, picture, claims.

    python -m experiments.run --config=configs/toy/pentagon.py
    python -m experiments.run --config=configs/toy/pentagon.py:quick
    python -m experiments.run --config=configs/toy/pentagon.py --config.seeds=32 --config.recipe.lr=3e-3
    python -m experiments.run --config=configs/toy/pentagon.py --draw_only

An unchanged config writes to figures/ (``:quick`` to runs/), a changed one to a folder of its own under runs/, so that
no run overwrites another's result. A run that was stopped goes on when the same command is given again.
"""

import contextlib
import hashlib
import importlib
import io
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":  # until there is something to say: Ctrl-C while libraries load ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

warnings.filterwarnings("ignore", message=".*load_module.*", category=DeprecationWarning)

import jax  # noqa: E402
import matplotlib  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

matplotlib.use("Agg")

from experiments import check, results, start  # noqa: E402
from experiments.fingerprint import DRAWING, code_fingerprint  # noqa: E402
from superpose.train.checkpoint import (  # noqa: E402
    Stopped,
    WorkdirError,
    clear_left_over,
    is_left_over,
    lock,
    write_atomically,
)
from superpose.train.progress import say  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config, e.g. configs/toy/pentagon.py:quick")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Checkpoints and logs; default: a folder under runs/ named by the config"
)
OUT = flags.DEFINE_string("out", None, "Folder for the result; default: figures/ for an unchanged full config")
DRAW_ONLY = flags.DEFINE_bool(
    "draw_only", False, "Only draw the picture and judge the claims again, from the result file"
)
OLD = ".before-restart"
RESTART = flags.DEFINE_bool("restart", False, "Delete what the work directory holds and begin anew")


def _flat(config: dict, prefix: str = "") -> dict:
    out: dict = {}
    for k, v in config.items():
        out |= _flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v}
    return out


def _leaves(value):
    parts = value.values() if isinstance(value, dict) else value
    return [leaf for v in parts for leaf in _leaves(v)] if isinstance(value, list | dict) else [value]


def _digest(config: dict) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def _identify(config) -> tuple[str, bool]:
    """(name of the run, whether the config stands as in its file)."""
    try:
        module = importlib.import_module(f"configs.{config.experiment}")
    except ModuleNotFoundError:
        raise ValueError(f"there is no experiment {config.experiment!r}: leave config.experiment as it is") from None
    wanted = _flat(results.plain(module.get_config(config.variant)))
    for key, value in _flat(results.plain(config)).items():
        if any(isinstance(v, float) and not math.isfinite(v) for v in _leaves(value)):
            raise ValueError(f"config.{key} must be finite, got {value}")
        numbers = [isinstance(v, int | float) for v in _leaves(wanted.get(key))]
        if numbers and all(numbers) and any(isinstance(v, str) for v in _leaves(value)):
            raise ValueError(f"config.{key} must hold numbers, got {value!r}")
    untouched = wanted == _flat(results.plain(config))
    name = config.experiment.split(".")[-1] + ("" if config.variant == "full" else f"_{config.variant}")
    return (name if untouched else f"{name}-{_digest(results.plain(config))}"), untouched


def _claim_workdir(workdir: Path, config: dict, code: str) -> None:
    """Marks the directory as this config's, or refuses one that belongs to another config or code.

    Raises:
        WorkdirError: with what differs and how to go on.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            known = json.loads(path.read_text())
            theirs, mine = _flat(known["config"]), _flat(config)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise WorkdirError(f"{path} is damaged; add --restart to delete {workdir} and begin anew") from None
        differ = sorted(k for k in theirs.keys() | mine.keys() if theirs.get(k) != mine.get(k))
        mend = "choose another --workdir, or add --restart to delete it and begin anew"
        if differ:
            raise WorkdirError(f"{workdir} holds a run of another config ({', '.join(differ)} differ); {mend}")
        if known.get("code") != code:
            raise WorkdirError(f"{workdir} holds a run of another version of the code; {mend}")
    elif _holds(workdir):
        raise WorkdirError(f"{workdir} holds files that are no run of superpose; choose another --workdir")
    else:
        write_atomically(path, json.dumps({"config": config, "code": code}, indent=1).encode())


def _holds(workdir: Path) -> list[Path]:
    """What stands in a work directory, config.json last; without our lock and the leftovers of killed writes."""
    found = [p for p in workdir.iterdir() if p.name not in ("lock", OLD) and not is_left_over(p)]
    return sorted(found, key=lambda p: p.name == "config.json")


@contextlib.contextmanager
def _set_aside(workdir: Path):
    """With --restart: what a work directory holds is deleted, or put back if the new run ends before its first step.

    What a run that was killed or stopped at once had set aside is put back first, if that run had taken no step.
    """
    old = workdir / OLD
    _put_back(workdir)
    if _holds(workdir) and not any((place / "config.json").exists() for place in (workdir, old)):
        raise WorkdirError(f"{workdir} holds files that are no run of superpose; --restart deletes only such runs")
    shutil.rmtree(old, ignore_errors=True)
    old.mkdir()
    for path in _holds(workdir):  # config.json last: a kill in between leaves a folder that is still known as ours
        path.rename(old / path.name)
    try:
        yield
    except BaseException:
        _put_back(workdir)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _put_back(workdir: Path) -> None:
    """What a restart had set aside, if the run after it took no step."""
    old = workdir / OLD
    if not (old / "config.json").exists() or list(workdir.glob("*/metrics.jsonl")):
        return
    for path in _holds(workdir):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in sorted(old.iterdir(), key=lambda p: p.name == "config.json"):
        path.rename(workdir / path.name)
    shutil.rmtree(old)


def _save(figures: dict, base: Path) -> None:
    for suffix, figure in figures.items():
        path = base.with_name(base.name + suffix).with_suffix(".png")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=figure.dpi, metadata={"Software": None})
        write_atomically(path, buffer.getvalue())
        print(f"picture   {os.path.relpath(path)}")


def _keep(base: Path, arrays: dict, about: dict, figures: Callable[[], dict], module, config) -> None:
    """Numbers, then pictures and tables. Numbers without all of these say so: a kill in between leaves no others."""
    results.save(base, arrays, about | {"drawn": False})
    _save(figures(), base)
    for suffix, text in getattr(module, "tables", lambda *_: {})(arrays, config).items():
        path = base.with_name(base.name + suffix).with_suffix(".csv")
        write_atomically(path, text.encode())
        print(f"table     {os.path.relpath(path)}")
    results.save(base, arrays, about)


def execute(config, workdir: str | None, out: str | None, draw_only: bool, restart: bool, command: str) -> int:
    """Runs one experiment; returns the exit status (0 also when claims fail: they stand in the table as failing)."""
    name, untouched = _identify(config)
    module = importlib.import_module(f"experiments.{config.experiment}")
    home = Path(workdir) if workdir else Path("runs") / name
    official = untouched and config.variant != "quick"
    base = Path(out or ("figures" if official else home / "result")) / name
    plain, code = results.plain(config), code_fingerprint(config.experiment)
    drawing = code_fingerprint(config.experiment, DRAWING)

    if draw_only:
        arrays, about = results.load(base)
        theirs, mine = _flat(about["config"]), _flat(plain)
        if theirs.get("corpus.digest") == "" and mine.get("corpus.digest") == about.get("corpus"):
            theirs["corpus.digest"] = mine["corpus.digest"]  # it asked for no texts and got those that are asked for
        if differ := sorted(k for k in theirs.keys() | mine.keys() if theirs.get(k) != mine.get(k)):
            raise results.ResultError(
                f"{base}.npz was made with another config ({', '.join(differ)} differ): run without --draw_only"
            )
        if about["code"] != code:
            print(
                f"note      another version of the code (commit {about['commit']}) made these numbers: they are drawn "
                "and judged as they stand; run without --draw_only to make them anew"
            )
        kept = {k: v for k, v in about.items() if k not in ("version", "digest", "seal", "drawn")}
        kept |= {"config": plain, "config_digest": _digest(plain), "judged": results.commit(), "drawing": drawing}
        try:
            claims = [c.as_json() for c in module.claims(arrays, config)]
            figures = module.draw(arrays, config)
        except KeyError as error:
            if about["code"] == code or str(error.args[0]) in arrays:
                raise
            raise results.ResultError(
                f"{base}.npz was made by another version of the code and lacks {error}: run without --draw_only"
            ) from None
        _keep(base, arrays, {**kept, "claims": claims}, lambda: figures, module, config)
        return 0

    if out:
        check.writable(out)
    clock = time.perf_counter()
    with lock(home), _set_aside(home) if restart else contextlib.nullcontext():
        resumed = (home / "config.json").exists()
        say(f"{name}: {(module.__doc__ or name).splitlines()[0]}")
        _claim_workdir(home, plain, code)
        clear_left_over(home)
        arrays = module.run(config, start.first_key(config), home)
    seconds = time.perf_counter() - clock
    claims = module.claims(arrays, config)
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about = {
        "name": name,
        "command": command,
        "config": plain,
        "config_digest": _digest(plain),
        "commit": results.commit(),
        "code": code,
        "drawing": drawing,
        "seconds": round(seconds, 1),
        "resumed": resumed,
        "device": f"{cores} CPU cores" if device.platform == "cpu" else device.device_kind,
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "claims": [c.as_json() for c in claims],
    }
    if "digest" in arrays:
        about["corpus"] = str(arrays["digest"])
    _keep(base, arrays, about, lambda: module.draw(arrays, config), module, config)
    print(f"numbers   {os.path.relpath(base)}.npz, .json")
    held = sum(c.holds for c in claims)
    if held < len(claims) and config.variant == "quick":
        print(
            "note      claims are made for the full config; a quick run shows that it works, and may keep few of them"
        )
    for c in claims:
        if not c.holds:
            print(f"NOT HELD  {c.text}: expected {c.relation} {c.expected} ± {c.tolerance}, measured {c.measured}")
    print(f"claims    {held} of {len(claims)} hold")
    print(f"time      {seconds:.1f} s")
    return 0


def main(argv) -> int:
    logging.set_verbosity(logging.ERROR)  # Orbax narrates each save
    if len(argv) > 1:
        print(f"unknown argument {argv[1]!r}: flags look like --config=configs/toy/pentagon.py", file=sys.stderr)
        return 2
    if CONFIG.value is None:
        print("give the experiment's config, e.g. --config=configs/toy/pentagon.py:quick", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "experiments.run", *_arguments(drop=("restart", "workdir", "out"))])
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop)
    try:
        return execute(CONFIG.value, WORKDIR.value, OUT.value, DRAW_ONLY.value, RESTART.value, command)
    except Stopped as stop:
        print(f"{stop}; go on with:\n  {_again()}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt as twice:  # a second signal, while the first waits for a save
        _stop(twice.args[0] if twice.args else signal.SIGINT)
    except (ValueError, WorkdirError, results.ResultError) as error:
        if os.environ.get("SUPERPOSE_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if os.environ.get("SUPERPOSE_TRACEBACK"):
            raise
        said = str(error).strip().splitlines()[:1] or [""]
        print(
            f"error: {type(error).__name__}: {said[0][:300]} (a value of the config that does not fit, or a bug: "
            "SUPERPOSE_TRACEBACK=1 shows where)",
            file=sys.stderr,
        )
        return 1
    finally:  # all is written: a signal that comes while Python shuts down ends it, and says no more
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)


def _again() -> str:
    """The command that goes on with this run."""
    return shlex.join(["python", "-m", "experiments.run", *_arguments(drop=("restart",))])


def _stop(signum, frame=None) -> NoReturn:
    """Ends here and now, as kill -9 would: what a handler raises amid a library's callback is dropped or crashes."""
    cursor = "\x1b[?25h" if os.isatty(2) else ""  # which a progress bar had hidden
    said = f"{cursor}stopped at once; what was saved before stands, go on with:\n  {_again()}\n"
    try:
        os.write(2, said.encode())
    finally:  # whoever read it may be gone
        os._exit(128 + signum)


def _arguments(drop: tuple[str, ...]) -> list[str]:
    """The command line as --name=value, without some flags."""
    found: list[str] = []
    takes_value = {"config", "workdir", "out"}
    words = iter(sys.argv[1:])
    for word in words:
        name, equals, _ = word.lstrip("-").partition("=")
        if not equals and (name in takes_value or name.startswith("config.")):
            word = f"--{name}={next(words, '')}"
        if name not in drop:
            found.append(word)
    return found


def _parse(argv):
    """absl's flag parser, with one sentence for a person where absl and ml_collections print a traceback."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            _ = CONFIG.value.experiment  # a config file that could not be loaded is reported at its first use
        return rest
    except Exception as error:
        if os.environ.get("SUPERPOSE_TRACEBACK"):
            raise
        lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
        missing = [line for line in lines if "No such file" in line]
        text = next(iter(missing), lines[-1] if "get_config" in str(error) else lines[0] if lines else repr(error))
        if isinstance(error, AttributeError | KeyError):
            text = "unknown config key: " + " ".join(lines).replace("\\", "").replace("' Did", ". Did").strip("'\" ")
        print(f"error: {text.removeprefix('ValueError: ')}", file=sys.stderr)
        sys.exit(2)


def cli() -> None:
    start.prepare()
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    cli()
