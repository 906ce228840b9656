"""Harvesting activations side by side with transformers on torch, and the store beside an SAE that reads from it.

    make bench                              (or: python -m benchmarks.lm --peer .venv-peers/bin/python)

Both sides run the same random models up to the same site and end with the rows on the host; they are timed in turn in
one run, medians over the rounds. On an accelerator a model of Gemma 2 2B's shape, in bfloat16, is one more. Prints a
table and writes benchmarks/results/lm_<device>.json.
"""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore

from benchmarks.peer_lm import LARGE, MODELS, SIZE, Model
from benchmarks.peer_sae import data
from benchmarks.sae import ours as sae_step
from benchmarks.toy import device_name, matmul_rate, peer
from superpose.interp.harvest import Harvest, Texts
from superpose.interp.store import DTYPES, Manifest, Rows, Shuffled, Store, Writer
from superpose.lm import checkpoints, sites

HERE = Path(__file__).parent
BATCH = 32
D, F, ROWS = 512, 4096, 2048


def texts(model: Model, contexts: int) -> Texts:
    rng = np.random.default_rng(0)
    full = np.full(contexts, model.context, np.int32)
    numbers = np.arange(contexts, dtype=np.int32)
    tokens = rng.integers(0, model.config["vocab_size"], (contexts, model.context)).astype(np.int32)
    return Texts(tokens, full, numbers, 0 * numbers)


def products(folder: Path, model: Model) -> float:
    """Floating-point operations per token of the matrix products up to the site, attention over the whole context."""
    c, _ = checkpoints.read_config(folder)
    attention = 4 * c.d_model * c.d_head * (c.heads + c.groups) + 4 * model.context * c.heads * c.d_head
    part, number = model.site.split(".")
    maps = 3 if c.gated else 2
    return (int(number) + 1) * (attention + 2 * maps * c.d_model * c.d_mlp) - (
        2 * c.d_model * c.d_mlp if part == "mlp_post" else 0
    )


def harvest(folder: Path, model: Model) -> dict[str, float]:
    """Tokens per second, how far the rows are from the peer's, and the work of a token."""
    run = sites.capture(checkpoints.read(folder, dtype=model.dtype), [model.site])
    want, tokens = np.load(folder / "rows.npy"), np.load(folder / "tokens.npy")
    found = np.asarray(run(tokens)[model.site].astype(np.float32)).reshape(want.shape)
    made = Harvest(run, texts(model, model.contexts), BATCH)
    for _ in made.rows(np.arange(BATCH)):
        pass
    times = []
    for _ in range(5):
        clock = time.perf_counter()
        for _ in made.rows(np.arange(model.contexts)):
            pass
        times.append(time.perf_counter() - clock)
    return {
        "tokens/s": model.contexts * model.context / statistics.median(times),
        "off": float(np.abs(found - want).max() / want.std()),
        "work": products(folder, model),
    }


def store(folder: Path, shards: int = 8, rows: int = 16_384) -> dict[str, float]:
    """Rows per second written and read shuffled, bfloat16, d = 512."""
    rng = np.random.default_rng(0)
    part = Rows({"x": rng.normal(size=(rows, D)).astype(np.float32)}, *np.zeros((3, rows), np.int32))
    writer = Writer(folder, Manifest({"x": D}))
    clock = time.perf_counter()
    for i in range(shards):
        writer.write(i, part)
    written = time.perf_counter() - clock
    stream = Shuffled(Store(folder), "x", ROWS)
    batches = shards * rows // ROWS
    clock = time.perf_counter()
    for _ in range(batches):  # an epoch: every block is read for the first time, its checksum included
        next(stream)
    return {"write": shards * rows / written, "read": batches * ROWS / (time.perf_counter() - clock)}


def containers(folder: Path, rows: int = 65_536, batch: int = 2048, batches: int = 16) -> dict[str, float]:
    """Rows per second of plain files, mapped, and of zarr3 by tensorstore: written, and batches of random rows read."""
    values = np.random.default_rng(0).normal(size=(rows, D)).astype(DTYPES["bfloat16"])
    chosen = np.random.default_rng(1).integers(0, rows, (batches, batch))
    out = {}
    clock = time.perf_counter()
    values.tofile(folder / "plain")
    out["plain files written"] = rows / (time.perf_counter() - clock)
    mapped = np.memmap(folder / "plain", DTYPES["bfloat16"], "r", shape=(rows, D))
    clock = time.perf_counter()
    for some in chosen:
        np.asarray(mapped[some])
    out["plain files, random rows"] = batches * batch / (time.perf_counter() - clock)
    spec = {
        "driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "zarr")},
        "metadata": {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1024, D]}}},
    }  # fmt: skip
    store = tensorstore.open(spec, create=True, dtype=tensorstore.bfloat16, shape=[rows, D]).result()
    clock = time.perf_counter()
    store.write(values).result()
    out["zarr3 written"] = rows / (time.perf_counter() - clock)
    clock = time.perf_counter()
    for some in chosen:
        store[some].read().result()
    out["zarr3, random rows"] = batches * batch / (time.perf_counter() - clock)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default=".venv-peers/bin/python", help="Python with transformers (make peers)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, both sides in turn")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the result")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    seen: dict[str, list[float]] = {}
    note = lambda name, value: seen.setdefault(name, []).append(value)  # noqa: E731
    off, work = {}, {}
    large = jax.default_backend() != "cpu"
    models = {**MODELS, **LARGE} if large else MODELS
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        peer(args.peer, "peer_lm.py", "make", folder, *models)
        start, batches = data(D, F, ROWS)
        for r in range(args.rounds):
            print(f"round {r + 1} of {args.rounds}", file=sys.stderr, flush=True)
            for name, model in models.items():
                theirs = peer(args.peer, "peer_lm.py", "harvest", folder, name, BATCH)
                note(f"{name} transformers", theirs["tokens/s"])
                note(f"torch {model.dtype} GF/s", theirs["gflops"])
                mine = harvest(folder / name, model)
                note(f"{name} ours", mine["tokens/s"])
                note(f"jax {model.dtype} GF/s", matmul_rate(SIZE[large], dtype=model.dtype))
                off[name], work[name] = mine["off"], mine["work"]
            for name, rate in store(folder / f"store{r}").items():
                note(f"store {name}", rate)
            place_of = folder / f"containers{r}"
            place_of.mkdir()
            for name, rate in containers(place_of).items():
                note(f"store as {name}", rate)
            note("SAE", ROWS / sae_step("topk", start, batches, 6)["seconds"])
    median = {k: statistics.median(v) for k, v in seen.items()}
    ratios: dict[str, float] = {}
    for n, model in models.items():
        us, them = median[f"{n} ours"], median[f"{n} transformers"]
        rate, peer_rate = median[f"jax {model.dtype} GF/s"], median[f"torch {model.dtype} GF/s"]
        ratios |= {
            f"{n}: ours / transformers, tokens per second" + (" (>= 2)" if n in MODELS else ""): us / them,
            f"{n}: the same, matrix rates divided out": us / them / rate * peer_rate,
            f"{n}: share of its own matrix rate, ours": us * work[n] / rate / 1e9,
            f"{n}: share of its own matrix rate, transformers": them * work[n] / peer_rate / 1e9,
        }
    ratios |= {f"store {n} / what an SAE (d=512, F=4096, TopK) consumes (> 1)": median[f"store {n}"] / median["SAE"]
               for n in ("write", "read")}  # fmt: skip
    about: dict[str, Any] = {
        "device": device_name(), "python": sys.version.split()[0], "jax": jax.__version__, "rounds": args.rounds,
        "ratios": ratios, "medians": median, "all": seen, "rows off the peer's, of their std": off,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "_", device_name().lower()).strip("_")
    path = args.out / f"lm_{slug}.json"
    path.write_text(json.dumps(about, indent=1) + "\n")
    print(f"{about['device']}, jax {about['jax']}, medians of {args.rounds} rounds")
    for name, value in ratios.items():
        print(f"{value:10.2f}  {name}")
    for name, value in median.items():
        print(f"{value:12,.0f}  {name}" + ("" if "GF" in name else " tokens/s" if "store" not in name else " rows/s"))
    for name, value in off.items():
        print(f"{value:12.1e}  largest difference of {name}'s rows from the peer's, in their standard deviations")
    print(f"written to {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
