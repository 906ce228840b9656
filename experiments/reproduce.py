"""Makes the figures of whole groups, one after another; those that are made already are left alone.

    python -m experiments.reproduce              (all groups)
    python -m experiments.reproduce toy sae
    python -m experiments.reproduce --list       (what is made, what is not, and how long each took)
    python -m experiments.reproduce toy --anew   (whether they are made or not)

A figure is made where figures/ holds its result by the same config and the same code, and its picture; where only the
code that judges and draws is another, that is done again from the numbers. A command that
was stopped goes on when it is given again, also with --anew; what another config or other code left in a figure's work
directory, and nothing could go on from, is deleted. A figure that ends with an error is named at the end, after the
others.
"""

import argparse
import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from experiments import ledger, results
from experiments.fingerprint import DRAWING, code_fingerprint
from superpose.train.checkpoint import WorkdirError, lock, write_atomically

GROUPS = {
    "main": ("toy/superposition_demo", "toy/superposition_demo:rescaled", "toy/pentagon", "toy/phase_diagram",
             "toy/phase_diagram:n3m2", "toy/phase_diagram:nobias", "toy/sweep"),
    "toy": ("toy/geometry", "toy/perturbed_pentagon", "toy/correlated", "toy/privileged_basis", "toy/absolute_value",
            "toy/loss_expansion", "toy/sparse_hidden", "toy/dynamics", "toy/adversarial", "toy/nonlinear_compression"),
    "beyond": ("toy/k_gons", "toy/capacity", "toy/memorization", "toy/scaling", "toy/monosemantic_engineering"),
    "sae": ("sae/toy_to_sae", "sae/absorption", "sae/hedging", "sae/matryoshka_tree", "sae/recovery", "sae/recipes",
            "sae/pareto", "sae/synth_benchmark", "sae/synth_benchmark:4k", "sae/world_page"),
    "lm": ("lm/one_layer", "lm/scripts", "lm/scripts:rare", "lm/small"),
    "reading": ("lm/monosemantic", "lm/monosemantic:scripts", "lm/universality", "lm/universality:scripts",
                "lm/splitting", "lm/splitting:scripts", "lm/predictable", "lm/predictable:scripts"),
    "stories": ("lm/stories",),
}  # fmt: skip
"""name -> configs, in the order in which they are run: the questions of "reading" read what "lm" leaves."""
READ = {
    "lm/one_layer": ("model", ("monosemantic", "universality", "splitting", "predictable")),
    "lm/scripts": ("model", ("monosemantic:scripts", "universality:scripts", "splitting:scripts",
                             "predictable:scripts")),
    "lm/monosemantic": ("export", ("universality", "predictable")),
    "lm/monosemantic:scripts": ("export", ("universality:scripts", "predictable:scripts")),
}  # fmt: skip
"""What some leave in their work directories, and who reads it: where it is not there, they are made again while one of
these is to be made."""
ASKED = {"lm/stories": "stories260K.bin"}
"""Files that a user must bring; without them the figure is left out."""

ANEW = Path("runs", "anew.json")
"""What a command with --anew that is not at its end has made, and the figure that it had begun."""


class Figure(NamedTuple):
    """One config, its run's name, the state of its figure, and the seconds that its result took (0: there is none)."""

    config: str
    name: str
    state: str
    seconds: float

    @property
    def redraws(self) -> bool:
        """Whether its numbers stand, and only its picture is missing, or this and the claims are of other code."""
        return self.state in ("drawn by other code", "not drawn")

    @property
    def cost(self) -> float:
        """Seconds that making it takes, by its last run."""
        return 0.0 if self.redraws else self.seconds

    @property
    def flag(self) -> str:
        path, _, variant = self.config.partition(":")
        return f"--config=configs/{path}.py" + (f":{variant}" if variant else "")


def figure(config: str) -> Figure:
    """Where a figure stands: "made", "not made", "not drawn", "made by another config", "made by other code",
    "drawn by other code", "left out"."""
    path, _, variant = config.partition(":")
    name = path.split("/")[-1] + (f"_{variant}" if variant else "")
    folder = results.ROOT / "figures"
    try:
        about = results.load(folder / name)[1]
        seconds = 0.0 if about.get("resumed") else float(about["seconds"])  # of the last part of a run alone
    except results.ResultError:
        about, seconds = None, 0.0
    asked, wanted = ASKED.get(config), results.plain(_config(config))
    if asked and not Path(asked).exists():
        state = f"left out: {asked} is not here"
    elif about is None:
        state = "not made"
    elif about["config"] != wanted:
        state = "made by another config"
    elif about["code"] != code_fingerprint(wanted["experiment"]):
        state = "made by other code"
    elif not (about.get("drawn", True) and _drawn(folder, name)):
        state = "not drawn"
    elif (read := READ.get(config)) and not Path("runs", name, read[0]).exists() and not _all_made(read[1]):
        state = "its work directory is not here"
    elif about.get("drawing") != code_fingerprint(wanted["experiment"], DRAWING):
        state = "drawn by other code"
    else:
        state = "made"
    return Figure(config, name, state, seconds)


def _drawn(folder: Path, name: str) -> bool:
    """Whether a figure has pictures, each whole: a PNG ends with its IEND chunk."""
    found = [folder / file for file in ledger.pictures(folder, [p.stem for p in folder.glob("*.json")])[name]]
    return bool(found) and all(path.is_file() and path.read_bytes()[-8:-4] == b"IEND" for path in found)


def _all_made(configs: tuple[str, ...]) -> bool:
    return all((f := figure(f"lm/{config}")).state == "made" or f.redraws for config in configs)


def stale(f: Figure) -> bool:
    """Whether a work directory holds a run of another config or other code, which this one can't go on from."""
    found = _json(Path("runs", f.name, "config.json"))
    return bool(found) and (found.get("config"), found.get("code")) != (
        results.plain(_config(f.config)),
        code_fingerprint(f.config.split(":")[0].replace("/", ".")),
    )


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(config: str):
    path, _, variant = config.partition(":")
    return importlib.import_module("configs." + path.replace("/", ".")).get_config(variant)


def _run(flags: list[str]) -> tuple[int, bool]:
    """Exit status of experiments.run, and whether to stop after it.

    A terminal's Ctrl-C reaches the run as well, which saves and says how it goes on: we wait. What is sent to us alone
    we pass on.
    """
    asked: list[int] = []
    child = subprocess.Popen([sys.executable, "-m", "experiments.run", *flags])

    def stop(signum, frame):
        asked.append(signum)
        if signum != signal.SIGINT:
            child.send_signal(signal.SIGTERM)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, stop) for signum in signals}
    try:
        return child.wait(), bool(asked)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"some of {', '.join(GROUPS)}; none is all of them")
    parser.add_argument("--list", action="store_true", help="say what is made, and make nothing")
    parser.add_argument("--anew", action="store_true", help="make what is made already, too")
    args = parser.parse_args(argv)
    if unknown := [g for g in args.groups if g not in GROUPS]:
        parser.error(f"there is no group {unknown[0]!r}: choose from {', '.join(GROUPS)}")
    every = [figure(config) for group in args.groups or GROUPS for config in GROUPS[group]]
    before = _json(ANEW) if args.anew else {}
    begun, done = ("", []) if before.get("groups") != args.groups else (before["begun"], before["done"])
    left = [
        f
        for f in every
        if not f.state.startswith("left out") and (f.state != "made" or (args.anew and f.config not in done))
    ]
    cost = {f.config: f.seconds if args.anew else f.cost for f in left}
    known = sum(cost.values())
    say = f"{sum(f.state == 'made' for f in every)} of {len(every)} figures are made; {len(left)} to make"
    say += f" ({len(done)} were made anew before it was stopped)" if begun else ""
    print(say + (f", about {_time(known)} by their last runs" if known else ""), flush=True)
    if args.list:
        for f in every:
            print(f"{f.config:32} {f.state:32} {_time(f.seconds) if f.seconds else ''}".rstrip())
        return 0
    for f in every:
        if f.state.startswith("left out"):
            print(f"{f.config}: {f.state}", flush=True)
    clock = time.perf_counter()
    failed: list[Figure] = []
    for i, f in enumerate(left):
        rest = sum(cost[g.config] for g in left[i:])
        spent = _time(time.perf_counter() - clock)
        print(f"\n[{i + 1}/{len(left)}] {f.config}: {f.state}; {spent} so far, about {_time(rest)} to go", flush=True)
        redraws = f.redraws and not args.anew
        again = not redraws and (stale(f) or ((f.state == "made" or f.redraws) and f.config != begun))
        if (home := Path("runs", f.name)).is_dir():
            try:
                with lock(home):
                    pass
            except WorkdirError as error:
                print(f"error: {error}; then the same command goes on from here", file=sys.stderr)
                return 1
        if args.anew:
            ANEW.parent.mkdir(exist_ok=True)
            write_atomically(ANEW, json.dumps({"groups": args.groups, "begun": f.config, "done": done}).encode())
        flags = [f.flag, *["--restart"] * again, *["--draw_only"] * redraws]
        code, stopped = _run(flags)
        if code not in (0, 1) or stopped:
            print(f"{f.config} ended with {code}; the same command goes on from here", file=sys.stderr)
            return (code if code > 0 else 128 - code) if code else 130
        failed += [f] * code
        done += [f.config] * (not code)
    if args.anew:
        ANEW.unlink(missing_ok=True)
    print()
    wrong = ledger.main([])
    for f in failed:
        print(f"not made: {f.config}; python -m experiments.run {f.flag} says why", file=sys.stderr)
    return 1 if failed else wrong


if __name__ == "__main__":
    if "--list" in sys.argv:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads it may have read enough
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # between two runs
        sys.exit(130)
