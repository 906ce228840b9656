"""The peer of benchmarks/toy.py: the recipe of the paper's public notebook, in PyTorch.

Recipe (Elhage et al. 2022, demo notebook): AdamW, lr 1e-3, weight decay 0.01, batch 1024, 10,000 steps, fresh data each
step, W [instances, n, m] by ``xavier_normal_`` on the 3-D tensor, loss = mean over batch and features, summed over the
instances, all instances in one program by einsum. Seeds are one more slice of the instance axis.

This file runs in an environment of its own (``make peers``); it imports torch and numpy, nothing of superpose.

    python benchmarks/peer_toy.py demo --seeds 16 --steps 10000 --save FILE.npz
    python benchmarks/peer_toy.py uniform --seeds 1 --steps 200

It prints one JSON line: seconds for the timed steps, without imports and five warm-up steps.
"""

import argparse
import json
import time

import numpy as np
import torch

if torch.cuda.is_available():  # products of float32 in TF32, as JAX computes them there
    torch.set_default_device("cuda")
    torch.set_float32_matmul_precision("high")
DEMO_DENSITIES = (1.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # column 0 is the linear model


def clock() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def task(name: str):
    """(n, m, density [instances], importance [n], linear [instances]) of a benchmark task."""
    if name == "demo":
        linear = torch.tensor([True] + [False] * 7)
        return 20, 5, torch.tensor(DEMO_DENSITIES), 0.7 ** torch.arange(20.0), linear
    if name == "uniform":
        density = 20.0 ** -torch.linspace(0, 1, 20)
        return 200, 20, density, torch.ones(200), torch.zeros(20, dtype=torch.bool)
    raise SystemExit(f"unknown task {name!r}: choose demo or uniform")


def train(name: str, seeds: int, steps: int, batch: int = 1024):
    n, m, density, importance, linear = task(name)
    instances = len(density)
    stack = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        w = torch.empty(instances, n, m)
        torch.nn.init.xavier_normal_(w)  # fan of the 3-D tensor of ONE figure, as in the notebook
        stack.append(w)
    W = torch.nn.Parameter(torch.cat(stack))
    b = torch.nn.Parameter(torch.zeros(seeds * instances, n))
    probability = density.repeat(seeds)[None, :, None]
    mixed = bool(linear.any())
    is_linear = linear.repeat(seeds)[None, :, None]
    optimizer = torch.optim.AdamW([W, b], lr=1e-3)

    def one_step():
        values = torch.rand(batch, seeds * instances, n)
        x = torch.where(torch.rand(batch, seeds * instances, n) <= probability, values, torch.zeros(()))
        hidden = torch.einsum("bin,inm->bim", x, W)
        out = torch.einsum("bim,inm->bin", hidden, W) + b
        out = torch.where(is_linear, out, torch.relu(out)) if mixed else torch.relu(out)
        error = importance * (x - out) ** 2
        loss = error.mean(dim=(0, 2)).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    warm = min(5, steps)
    for _ in range(warm):
        one_step()
    start = clock()
    for _ in range(steps - warm):
        one_step()
    seconds = clock() - start
    shape = (seeds, instances)
    return seconds, steps - warm, W.detach().reshape(*shape, n, m), b.detach().reshape(*shape, n)


def matmul_rate(size: int = 2048, repeats: int = 5) -> float:
    """Raw float32 matmul rate in GF/s: the part of any ratio that is the BLAS."""
    a = torch.rand(size, size)
    a @ a
    times = []
    for _ in range(repeats):
        start = clock()
        a @ a
        times.append(clock() - start)
    return 2 * size**3 / sorted(times)[len(times) // 2] / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["demo", "uniform", "matmul"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--save")
    args = parser.parse_args()
    if args.task == "matmul":
        print(json.dumps({"gflops": matmul_rate(), "torch": torch.__version__, "threads": torch.get_num_threads()}))
        return
    seconds, timed, W, b = train(args.task, args.seeds, args.steps)
    if args.save:
        np.savez_compressed(args.save, W=W.numpy(force=True), b=b.numpy(force=True), steps=args.steps)
    print(
        json.dumps({"seconds": seconds, "steps": timed, "torch": torch.__version__, "threads": torch.get_num_threads()})
    )


if __name__ == "__main__":
    main()
