"""Toy models side by side with the paper's notebook recipe in PyTorch: wall time as ratios, losses beside them.

    make bench                                  (or: python -m benchmarks.toy --peer .venv-peers/bin/python)
    python -m benchmarks.toy --retrain          trains the peer's 10,000 steps anew (about an hour on 2 cores)

Both sides are timed in turn in one run, medians over the rounds. The peer's time for its 10,000 steps is its step time
in this run times 10,000; the losses it reaches then are those of a stored run (benchmarks/results/peer_*.npz), judged
here on the same fixed held-out samples as ours. Prints a table and writes benchmarks/results/toy_<device>.json.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from superpose.toy.models import decay, grid, population
from superpose.train.fit import evaluate, fit
from superpose.train.recipe import Recipe
from superpose.worlds import prng

HERE = Path(__file__).parent
HELD_OUT = 2**31 - 1  # seed of the held-out samples
DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
DEMO = SimpleNamespace(n=20, m=5, decay=0.7, seeds=16, batch=128, init_scale=0.4, steps=4000, lr=1e-2, decay_from=0.5)
"""As in configs/toy/superposition_demo.py; a test holds the two together."""
UNIFORM = SimpleNamespace(
    n=200, m=20, batch=1024, short_batch=256, init_scale=0.4, steps=16000, lr=1e-2, decay_from=0.5
)
PHASE = SimpleNamespace(cells=64, models=10, nodes=8, steps=250, lr=0.05, b2=0.95, block=256)
"""As in configs/toy/phase_diagram.py; a test holds the two together."""


def demo(expectation="conditional", size=DEMO.batch, steps=DEMO.steps):
    """The eight columns of the headline figure: the linear model dense, the ReLU model at seven densities."""
    recipe = Recipe(steps=steps, lr=DEMO.lr, schedule="linear", decay_from=DEMO.decay_from)

    def one(output, densities):
        hyper = grid(density=list(densities), seed=range(DEMO.seeds))
        importance = decay(DEMO.n, DEMO.decay)
        return population(
            DEMO.n, DEMO.m, hyper, recipe, importance=importance, output=output, init_scale=DEMO.init_scale,
            expectation=expectation, size=size,
        )  # fmt: skip

    return {"linear": one("linear", DENSITIES[:1]), "relu": one("relu", DENSITIES)}


def uniform(size, steps=UNIFORM.steps, expectation="monte_carlo"):
    """n=200, m=20, equal importance, 20 densities from 1 to 1/20, one seed; plain samples, as the peer's."""
    hyper = grid(density=20.0 ** -np.linspace(0, 1, 20), seed=[0])
    recipe = Recipe(steps=steps, lr=UNIFORM.lr, schedule="linear", decay_from=UNIFORM.decay_from)
    return population(
        UNIFORM.n, UNIFORM.m, hyper, recipe, init_scale=UNIFORM.init_scale, expectation=expectation, size=size, block=2
    )


def phase():
    """n=2, m=1: 64 x 64 cells, 10 models a cell, exact expectation."""
    axis = lambda low, high: np.geomspace(low, high, PHASE.cells).astype(np.float32)  # noqa: E731
    hyper = grid(density=axis(0.01, 1.0), extra=axis(0.1, 10.0), model=range(PHASE.models))
    hyper["seed"], mirror = np.divmod(np.arange(len(hyper["model"])), 2)
    hyper["importance"] = np.stack([np.ones_like(hyper["extra"]), hyper["extra"]], 1)
    hyper["flip"] = 1.0 - 2.0 * mirror
    recipe = Recipe(steps=PHASE.steps, lr=PHASE.lr, b2=PHASE.b2, schedule="cosine")
    start = lambda params, key, h: {**params, "W": params["W"].at[-1].multiply(h["flip"])}  # noqa: E731
    return population(2, 1, hyper, recipe, expectation="quadrature", size=PHASE.nodes, init=start, block=PHASE.block)


def peer(python: str, script: str, *args: object) -> dict[str, Any]:
    """One call of a peer's script in its own environment; its JSON line."""
    done = subprocess.run([python, str(HERE / script), *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the peer failed ({done.stderr.strip().splitlines()[-1:]}): is {python} made by `make peers`?")
    return json.loads(done.stdout.splitlines()[-1])


def compare_columns(ours: dict, theirs) -> list[dict[str, Any]]:
    """Best and median over the seeds, per column of the demo, on one fixed set of held-out samples for both sides."""
    peer_params = {
        "linear": {"W": theirs["W"][:, 0], "b": theirs["b"][:, 0]},
        "relu": {
            "W": np.swapaxes(theirs["W"][:, 1:], 0, 1).reshape(-1, DEMO.n, DEMO.m),
            "b": np.swapaxes(theirs["b"][:, 1:], 0, 1).reshape(-1, DEMO.n),
        },
    }
    judge = demo(size=8192)
    loss = {k: evaluate(judge[k], ours[k].params, key=prng.key(HELD_OUT), batches=64)["loss"] for k in judge}
    peer_loss = {k: evaluate(judge[k], peer_params[k], key=prng.key(HELD_OUT), batches=64)["loss"] for k in judge}
    rows = []
    for name, i in [("linear", 0)] + [("relu", i) for i in range(len(DENSITIES))]:
        a, b = (x[name].reshape(-1, DEMO.seeds)[i] for x in (loss, peer_loss))
        rows.append({
            "column": f"{name} 1-S={DENSITIES[i]:g}", "best": float(a.min()), "peer best": float(b.min()),
            "best ratio": float(a.min() / b.min()), "median": float(np.median(a)), "peer median": float(np.median(b)),
            "median ratio": float(np.median(a) / np.median(b)),
        })  # fmt: skip
    return rows


def matmul_rate(size=2048, repeats=5, dtype="float32") -> float:
    """Raw matmul rate of JAX on this device, GF/s."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    f = jax.jit(jnp.matmul)
    f(a, a).block_until_ready()
    times = []
    for _ in range(repeats):
        clock = time.perf_counter()
        f(a, a).block_until_ready()
        times.append(time.perf_counter() - clock)
    return 2 * size**3 / statistics.median(times) / 1e9


def device_name() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{len(os.sched_getaffinity(0))} cores of {models[0] if models else platform.machine()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default=".venv-peers/bin/python", help="Python with torch (make peers)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, both sides in turn")
    parser.add_argument("--retrain", action="store_true", help="train the peer's stored runs anew, 10,000 steps")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the result")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    stored = {k: HERE / "results" / f"peer_{k}.npz" for k in ("demo", "uniform")}
    if args.retrain:
        peer(args.peer, "peer_toy.py", "demo", "--seeds", str(DEMO.seeds), "--save", str(stored["demo"]))
        peer(args.peer, "peer_toy.py", "uniform", "--seeds", "1", "--save", str(stored["uniform"]))
    peers = {k: np.load(p) for k, p in stored.items()}

    times: dict[str, list[float]] = {}
    note = lambda name, value: times.setdefault(name, []).append(value)  # noqa: E731
    key, last = prng.key(0), {}
    for r in range(args.rounds):
        print(f"round {r + 1} of {args.rounds}", file=sys.stderr, flush=True)
        timed = peer(args.peer, "peer_toy.py", "demo", "--seeds", str(DEMO.seeds), "--steps", "20")
        note("peer demo step", timed["seconds"] / timed["steps"])
        clock = time.perf_counter()
        result = fit(demo(), steps=DEMO.steps, key=key, log_every=500)
        note("demo run with compilation", time.perf_counter() - clock)
        note("demo run", result["relu"].seconds)
        last["demo"] = result

        timed = peer(args.peer, "peer_toy.py", "uniform", "--seeds", "1", "--steps", "15")
        note("peer uniform step", timed["seconds"] / timed["steps"])
        one = fit(uniform(UNIFORM.batch, steps=40), steps=40, key=key, log_every=20)
        note("uniform step", one.seconds / 40)
        clock = time.perf_counter()
        full = fit(uniform(UNIFORM.short_batch), steps=UNIFORM.steps, key=key, log_every=500)
        note("uniform run with compilation", time.perf_counter() - clock)
        last["uniform"] = full

        clock = time.perf_counter()
        fit(phase(), steps=PHASE.steps, key=key, log_every=50)
        note("phase diagram", time.perf_counter() - clock)
        note("peer matmul", peer(args.peer, "peer_toy.py", "matmul")["gflops"])
        note("matmul", matmul_rate())

    median = {k: statistics.median(v) for k, v in times.items()}
    models = 8 * DEMO.seeds
    peer_model = median["peer demo step"] * 10_000 / models
    rows = compare_columns(last["demo"], peers["demo"])
    judge = uniform(4096, expectation="conditional")
    on_judge = lambda W, b: evaluate(judge, {"W": W, "b": b}, key=prng.key(HELD_OUT), batches=8)["loss"]  # noqa: E731
    mine = on_judge(last["uniform"].params["W"], last["uniform"].params["b"])
    his = on_judge(peers["uniform"]["W"][0], peers["uniform"]["b"][0])

    run, whole = median["demo run"] / models, median["demo run with compilation"] / models
    ratios = {
        "demo: peer / ours, wall time per model, compilation left out (>= 50)": peer_model / run,
        "demo: peer / ours, wall time per model, with compilation (>= 20)": peer_model / whole,
        "demo: worst best-of-seeds loss, ours / peer (<= 1.02)": max(r["best ratio"] for r in rows),
        "demo: worst median loss, ours / peer (<= 1.02)": max(r["median ratio"] for r in rows),
        "uniform: peer / ours, step time at batch 1024 (>= 4)": median["peer uniform step"] / median["uniform step"],
        "uniform: peer / ours, time to the peer's loss, with compilation (>= 10)": median["peer uniform step"] * 10_000
        / median["uniform run with compilation"],
        "uniform: loss summed over the 20 densities, ours / peer (<= 1)": float(mine.sum() / his.sum()),
        "uniform: median of the 20 losses, ours / peer (<= 1)": float(np.median(mine / his)),
        "uniform: worst of the 20 losses, ours / peer (<= 1.01)": float((mine / his).max()),
        "phase diagram 64 x 64 x 10, seconds with compilation (< 15)": median["phase diagram"],
    }  # fmt: skip
    about: dict[str, Any] = {
        "device": device_name(), "python": sys.version.split()[0], "jax": jax.__version__, "rounds": args.rounds,
        "ratios": ratios, "medians": median, "times": times, "losses": rows,
        "uniform losses": {"ours": mine.tolist(), "peer": his.tolist()},
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "_", about["device"].lower()).strip("_")
    path = args.out / f"toy_{slug}.json"
    path.write_text(json.dumps(about, indent=1) + "\n")

    print(f"{about['device']}, jax {about['jax']}, medians of {args.rounds} rounds")
    print(f"raw float32 matmul: jax {median['matmul']:.0f} GF/s, torch {median['peer matmul']:.0f} GF/s")
    print(f"{'column':22s}{'best':>11s}{'peer':>11s}{'ratio':>8s}{'median':>11s}{'peer':>11s}{'ratio':>8s}")
    for row in rows:
        print(
            f"{row['column']:22s}{row['best']:11.4g}{row['peer best']:11.4g}{row['best ratio']:8.3f}"
            f"{row['median']:11.4g}{row['peer median']:11.4g}{row['median ratio']:8.3f}"
        )
    for name, value in ratios.items():
        print(f"{value:10.3f}  {name}")
    for name, value in median.items():
        print(f"{value:10.4g}  {name}" + ("" if "matmul" in name else " (s)"))
    print(f"written to {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
