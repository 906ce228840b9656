"""The whole TopK SAE step side by side with SAELens and dictionary_learning: time as ratios, losses beside them.

    make bench                              (or: python -m benchmarks.sae --peer .venv-peers/bin/python)

All sides start from the same weights and see the same batches (float32, k=32, batch 2048, Adam 1e-4, clipped at 1).
They are timed in turn in one run, medians over the rounds. Prints a table and writes
benchmarks/results/sae_<device>.json.
"""

import argparse
import dataclasses
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peer_sae import data
from benchmarks.toy import device_name, peer
from superpose.sae.model import Architecture
from superpose.sae.objective import Training, population
from superpose.train.fit import fit
from superpose.train.recipe import Recipe
from superpose.worlds import prng

HERE = Path(__file__).parent
SHAPES = ((256, 4096), (512, 32768))
BATCH, K, LR = 2048, 32, 1e-4
PEERS = ("saelens", "dictionary_learning")
ASKED = {("saelens", 32768): 5.0, ("dictionary_learning", 32768): 4.0}
"""Least ratio of step times, by (peer, d_sae)."""


class Cycle:
    """A stream that repeats a few batches and notes when it is asked for each."""

    def __init__(self, batches):
        self.batches, self.at, self.asked = batches, 0, []

    def __next__(self):
        self.asked.append(time.perf_counter())
        self.at += 1
        return self.batches[(self.at - 1) % len(self.batches)]

    def get_state(self):
        return self.at

    def set_state(self, at):
        self.at = at


def ours(activation: str, start, batches, steps: int) -> dict[str, Any]:
    """Seconds per step, all that the loop does included, but the first; the error of every step."""
    d, F = start["W_enc"].shape
    arch = Architecture(d, F, activation, K)
    pop = population(arch, Training(revival="auxk"), {"seed": np.arange(1)}, Recipe(steps=steps, lr=LR, clip_norm=1.0))
    given = {k: jnp.asarray(v) for k, v in start.items()}
    first = pop.objective.init
    pop = dataclasses.replace(
        pop, objective=dataclasses.replace(pop.objective, init=lambda key, hyper: (given, first(key, hyper)[1]))
    )
    stream = Cycle(batches)
    result = fit(pop, steps=steps, key=prng.key(0), source=stream, log_every=1, mesh=None)
    steps_taken = np.diff([*stream.asked[-steps:], time.perf_counter()])
    return {"seconds": float(np.median(steps_taken[1:-1])), "losses": result.history["error"][:, 0].tolist()}


def encoder(d: int, F: int, repeats: int) -> float:
    """Seconds of the encoder's product alone, [batch, d] @ [d, F]."""
    x, W = jnp.ones((BATCH, d)), jnp.ones((d, F))
    product = jax.jit(jnp.matmul)
    product(x, W).block_until_ready()
    times = []
    for _ in range(repeats):
        clock = time.perf_counter()
        product(x, W).block_until_ready()
        times.append(time.perf_counter() - clock)
    return statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default=".venv-peers/bin/python", help="Python with the peers (make peers)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, all sides in turn")
    parser.add_argument("--steps", type=int, default=6, help="steps of each side a round")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the result")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for d, F in SHAPES:
        start, batches = data(d, F, BATCH)
        seen: dict[str, list] = {}
        for r in range(args.rounds):
            print(f"d={d}, d_sae={F}: round {r + 1} of {args.rounds}", file=sys.stderr, flush=True)
            for name in PEERS:
                seen.setdefault(name, []).append(peer(args.peer, "peer_sae.py", name, d, F, BATCH, K, args.steps))
            for activation in ("topk", "batch_topk"):
                seen.setdefault(activation, []).append(ours(activation, start, batches, args.steps))
            seen.setdefault("product", []).append({"seconds": encoder(d, F, 5)})
            seen.setdefault("peer product", []).append(peer(args.peer, "peer_sae.py", "matmul", d, F, BATCH, K, 5))
        seconds = {name: statistics.median(s["seconds"] for s in runs) for name, runs in seen.items()}
        losses = {name: runs[-1]["losses"][-1] for name, runs in seen.items() if "losses" in runs[-1]}
        faster = seconds["peer product"] / seconds["product"]
        rows.append({
            "d": d, "d_sae": F, "seconds": seconds, "losses": losses,
            "ratios": {name: seconds[name] / seconds["topk"] for name in PEERS},
            "ratios, products divided out": {name: seconds[name] / seconds["topk"] / faster for name in PEERS},
            "step over encoder product": seconds["topk"] / seconds["product"],
            "all": {name: [s["seconds"] for s in runs] for name, runs in seen.items()},
        })  # fmt: skip
    about = {
        "device": device_name(), "cores": len(os.sched_getaffinity(0)), "python": sys.version.split()[0],
        "jax": jax.__version__, "rounds": args.rounds, "batch": BATCH, "k": K, "rows": rows,
    }  # fmt: skip
    slug = re.sub(r"[^a-z0-9]+", "_", device_name().lower()).strip("_")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"sae_{slug}.json"
    path.write_text(json.dumps(about, indent=1) + "\n")
    print(f"{about['device']}, jax {about['jax']}, batch {BATCH}, k {K}, medians of {args.rounds} rounds")
    for row in rows:
        flops = 2 * BATCH * row["d"] * row["d_sae"] / 1e9
        seconds = row["seconds"]
        print(f"d={row['d']}, d_sae={row['d_sae']}: encoder product jax {flops / seconds['product']:.0f} GF/s, "
              f"torch {flops / seconds['peer product']:.0f} GF/s; our step is "
              f"{row['step over encoder product']:.2f} encoder products")  # fmt: skip
        for name in (*PEERS, "topk", "batch_topk"):
            line = (
                f"  {name:20s}{1e3 * seconds[name]:9.0f} ms   error after {args.steps} steps {row['losses'][name]:.5f}"
            )
            if name in PEERS:
                asked = ASKED.get((name, row["d_sae"]))
                line += f"   {row['ratios'][name]:.2f} of our steps"
                line += f" (>= {asked:g})" if asked else ""
                line += f", {row['ratios, products divided out'][name]:.2f} with the products' rates divided out"
            print(line)
    print(f"written to {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
