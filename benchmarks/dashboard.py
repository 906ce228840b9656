"""Dashboards: features per second from stored activations to the written file, of a one-layer model on 1 M tokens.

    make bench                              (or: python -m benchmarks.dashboard --peer .venv-peers/bin/python)

What the language model's pass, ablations, doses and the correlations with another SAE cost, which are no part of that,
stands apart. Model and SAE have
random weights; the SAE keeps 16 latents on. The peer is SAEDashboard, on the same weights and tokens, for fewer
features. Prints a table and writes benchmarks/results/dashboard_<device>.json.
"""

import argparse
import json
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.toy import device_name, peer
from superpose.dashboard import page
from superpose.dashboard.records import Ablations, Subject, places, records
from superpose.interp import codes, compare
from superpose.lm import checkpoints
from superpose.lm.text import Contexts
from superpose.lm.transformer import Config, Transformer
from superpose.sae import formats
from superpose.sae.model import SAE, Architecture

HERE = Path(__file__).parent
CONTEXT, VOCAB, F, K = 128, 2048, 4096, 16
DOSES = (-1.0, 0.0, 1.0, 2.0, 4.0)


def contexts(tokens: int) -> Contexts:
    """Tokens by Zipf's law, in documents of eight contexts."""
    rng = np.random.default_rng(0)
    n = -(-tokens // CONTEXT)
    law = 1 / np.arange(1, VOCAB + 1)
    ids = rng.choice(VOCAB, (n, CONTEXT), p=law / law.sum()).astype(np.int32)
    numbers = np.arange(n, dtype=np.int32)
    return Contexts(ids, np.full(n, CONTEXT, np.int32), numbers // 8, numbers % 8 * CONTEXT, None, ())


def pages(path: Path, subject: Subject, features: range) -> list[Path]:
    """A page of all features, its map drawn up meanwhile; without labels, doses and ablations."""
    with ThreadPoolExecutor(1) as pool:
        plan = pool.submit(places, np.asarray(subject.sae.W_dec[...])[features])
        return page.write(path, records(subject, features), "benchmark", subject.pieces, plan=plan.result)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--peer", default=".venv-peers/bin/python", help="Python with the peer (make peers)")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=F, help=f"of the pages; the SAE has {F:,}, or as many as these")
    parser.add_argument("--ablated", type=int, default=64, help="features of timed ablations and doses")
    parser.add_argument("--peer_features", type=int, nargs="*", default=(32, 128), help="how many of the peer's: two "
                        "numbers, whose difference is timed; none leaves it out")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, both sides in turn")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the result")
    args = parser.parse_args()
    config = Config(vocab=VOCAB, d_model=128, layers=1, heads=4, d_head=32, d_mlp=512, context=CONTEXT,
                    positions="learned", norm="layer", act="relu", gated=False, mlp_bias=True)  # fmt: skip
    model, arch = Transformer(config, nnx.Rngs(0)), Architecture(512, max(F, args.features), "topk", K)
    rng = np.random.default_rng(1)
    params = {n: rng.normal(size=s).astype(np.float32) * 0.05 for n, s in arch.shapes().items()}
    params["W_dec"] /= np.linalg.norm(params["W_dec"], axis=1, keepdims=True)
    sae, texts, site = SAE(arch, params), contexts(args.tokens), "mlp_post.0"
    times: dict[str, list[float]] = {}

    def clocked(name, work):
        clock = time.perf_counter()
        found = work()
        times.setdefault(name, []).append(time.perf_counter() - clock)
        return found

    theirs: list[list[dict]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        formats.write_saelens(place / "sae", arch, params, formats.Metadata(model="random", site=site))
        np.save(place / "tokens.npy", texts.tokens)
        arrays: dict[str, Any] = {name: np.asarray(x) for name, x in checkpoints.weights(model).items()}
        np.savez(place / "model.npz", **arrays)
        for r in range(args.rounds):
            print(f"round {r + 1} of {args.rounds}", file=sys.stderr, flush=True)
            held = clocked(
                "pass", lambda r=r: codes.write(place / f"codes{r}", model, sae, site, texts, {}, units=site)
            )
            subject = Subject(model, sae, site, texts, held, [f" w{i}".encode() for i in range(VOCAB)])
            files = clocked("pages", lambda s=subject: pages(place / "page.html", s, range(args.features)))
            theirs.append([peer(args.peer, "peer_dashboard.py", place, n) for n in args.peer_features])
        size = sum(f.stat().st_size for f in files)
        ablations = Ablations(model, sae, site, texts)
        for _ in records(subject, range(2), ablations=ablations):  # compiled once
            pass
        whole = clocked("ablated", lambda: list(records(subject, range(args.ablated), ablations=ablations)))
        large = sum(len(page.pack(record)) for record in whole) / len(whole)
        for _ in records(subject, range(2), doses=DOSES):
            pass
        clocked("dosed", lambda: list(records(subject, range(args.ablated), doses=DOSES)))
        twin = SAE(arch, params | {"W_enc": rng.normal(size=params["W_enc"].shape).astype(np.float32) * 0.05})
        other = codes.write(place / "twin", model, twin, site, texts, {})
        clocked("matched", lambda: compare.correlated(held, other, 3))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        first = whole[0]["density"]
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    found: dict[str, Any] = {
        "device": device_name(), "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__, "rounds": args.rounds,
        "tokens": args.tokens, "features": args.features,
        "features/s": args.features / middle["pages"],
        "files": len(files), "kB a feature": size / args.features / 1000, "kB a feature, with ablations": large / 1000,
        "peak GiB": peak / 2**30,
        "pass: tokens/s": args.tokens / middle["pass"], "pass: s": middle["pass"],
        "with ablations: features/s": args.ablated / middle["ablated"],
        f"with doses ({len(DOSES)} strengths): features/s": args.ablated / middle["dosed"],
        "correlations with all latents of another SAE: s": middle["matched"],
    }  # fmt: skip
    if len(args.peer_features) == 2:
        few, many = args.peer_features
        own = [[t["seconds"] - t["passes"] for t in runs] for runs in theirs]
        each = statistics.median((long - short) / (many - few) for short, long in own)
        passes = statistics.median(runs[1]["passes"] for runs in theirs)
        ours = middle["pages"] / args.features
        found |= {
            "peer: features/s, without its passes": 1 / each, "peer: a pass, s": passes,
            "peer: kB a feature": theirs[0][1]["bytes"] / many / 1000,
            "peer / ours, a feature, passes left out": each / ours,
            # it passes over the tokens again for each 256 features
            "peer / ours, a feature, passes counted": (each + passes / min(256, args.features))
            / (ours + middle["pass"] / args.features),
            "density of the first feature, ours and the peer's": [first, theirs[0][1]["first title"]],
        }  # fmt: skip
    found |= {"all": times | {"peer": theirs}}
    for name, value in found.items():
        if name != "all":
            print(f"{name:50} {value:,.1f}" if isinstance(value, float) else f"{name:50} {value}")
    args.out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "_", device_name().lower()).strip("_")
    many = "" if args.features == F else f"{args.features}_"
    out = args.out / f"dashboard_{many}{slug}.json"
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
