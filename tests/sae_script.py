"""A run of SAEs that the tests share; as a process of its own: sae_script.py WORKDIR trains there, time enough to be
killed, and saves WORKDIR/result.npz; a number after it is the stream's position at which the process kills itself.
sae_script.py devices prints what splitting the latents over the devices changes."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
from jax.sharding import PartitionSpec
from train_script import KEY, Batches, device_mesh, furthest, leaves, shards

from superpose.sae import objective
from superpose.sae.model import Architecture
from superpose.sae.objective import Training, population
from superpose.train.fit import fit
from superpose.train.recipe import Recipe

D, F, BATCH, STEPS = 8, 16, 32, 40
DIRECTIONS = np.random.default_rng(0).normal(size=(12, D)) / np.sqrt(D)
BETWEEN = (13, 27)
ROWS = 3 * BATCH
"""Inputs that one resampling takes from the stream, as three batches."""


class Activations(Batches):
    """Batch t: sparse features in D dimensions."""

    def batch(self, t):
        rng = np.random.default_rng(t)
        features = rng.random((BATCH, len(DIRECTIONS))) * (rng.random((BATCH, len(DIRECTIONS))) < 0.1)
        return (features @ DIRECTIONS).astype(np.float32)


def parts():
    """name -> (architecture, training, values of its members, whether dead latents are resampled)."""
    return {
        "chosen": (
            Architecture(D, F, "batch_topk", k=3),
            Training(revival="auxk", dead_tokens=2 * BATCH, threshold_rate=0.1),
            {"k": np.array([1, 2])},
            False,
        ),
        "steered": (
            Architecture(D, F, "jumprelu"),
            Training(penalty="l0", coefficient=0.05, control=True, target_l0=2.0, bandwidth=0.1, threshold=0.1),
            {"coefficient": np.array([0.02, 0.1])},
            False,
        ),
        "resampled": (
            Architecture(D, F, "relu"),
            Training(penalty="l1", coefficient=0.5, dead_tokens=BATCH),
            {"coefficient": np.array([0.2, 0.5])},
            True,
        ),
    }


def split(params):
    """The latents over a mesh axis."""
    place = {"W_enc": PartitionSpec(None, "feature"), "b_dec": PartitionSpec()}
    return {name: place.get(name, PartitionSpec("feature")) for name in params}


def saes(workdir=None, stream=None, names=("chosen", "steered", "resampled"), d_sae=F, mesh=None):
    """40 steps in 10 chunks, two of which end with a resampling; every chunk is saved."""
    spec = split if mesh is not None else None
    pops = {}
    for name in names:
        arch, training, hyper, resampled = parts()[name]
        arch = Architecture(D, d_sae, arch.activation, k=arch.k)
        between = objective.resample(arch, training, rows=ROWS) if resampled else None
        recipe, seeds = Recipe(steps=STEPS, lr=0.01, schedule="cosine", warmup=5), {"seed": np.arange(2)}
        pops[name] = population(arch, training, seeds | hyper, recipe, between=between, param_spec=spec)
    settings = dict(steps=STEPS, key=KEY, log_every=5, workdir=workdir, checkpoint_seconds=0.0, mesh=mesh)
    return fit(pops, source=stream or Activations(), between_at=BETWEEN if "resampled" in names else (), **settings)


def devices():
    """name -> how far SAEs whose latents lie on several devices end from those on one, and on how many they lie."""
    found = {}
    for name in parts():
        one, several = saes(names=(name,))[name], saes(names=(name,), mesh=device_mesh("feature"))[name]
        found[name] = {
            "far": furthest(several, one), "shards": [shards(several.params[k]) for k in ("W_enc", "W_dec", "b_dec")],
            "moved": float(np.abs(np.diff(one.history["loss"], axis=0)).max()),
        }  # fmt: skip
    print(json.dumps(found))


def main(workdir, position=None):
    stream = Activations(pause=0.02, signals={} if position is None else {int(position): [signal.SIGKILL]})
    found = leaves(saes(workdir, stream))
    np.savez(Path(workdir) / "result.npz", **found, position=stream.at)


if __name__ == "__main__":
    signal.alarm(300)  # no orphan outlives its test by much
    devices() if sys.argv[1] == "devices" else main(*sys.argv[1:])
