"""Toy runs of the engine that the tests share, and what they do in processes of their own (the first argument says)."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from superpose.train.checkpoint import WorkdirError
from superpose.train.fit import Objective, Population, fit
from superpose.train.recipe import Group, Recipe
from superpose.worlds import prng

KEY = prng.key(5)


class Batches:
    """A Stream: batch t is made from t, so its position is all that it has to remember."""

    def __init__(self, shape=(3,), length=10**9, signals=None):
        self.shape, self.length, self.at, self.signals = shape, length, 0, signals or {}

    def batch(self, t):
        return np.random.default_rng(t).normal(size=self.shape).astype(np.float32)

    def __next__(self):
        if self.at >= self.length:
            raise StopIteration
        for s in self.signals.get(self.at, ()):
            os.kill(os.getpid(), s)
        self.at += 1
        return self.batch(self.at - 1)

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


@contextlib.contextmanager
def compile_cache(folder):
    """Keeps every compiled program in a folder, for this process and for those that are given the folder."""
    names = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def leaves(result, fields=("params", "opt_state", "state", "records", "history", "history_steps", "frozen_at")):
    """Path -> array of what a Result or a dict of Results holds."""
    results = result if isinstance(result, dict) else {"": result}
    tree = {name: {f: getattr(r, f) for f in fields} for name, r in results.items()}
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def differing(a, b):
    """Paths at which two results differ in a bit (NaN equals NaN)."""
    assert a.keys() == b.keys()
    equal = lambda x, y: x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()  # noqa: E731
    return [k for k in a if not equal(a[k], b[k])]


# ---- two populations on one stream, with all that a checkpoint has to hold


def everything(workdir=None, stream=None, **changes):
    """60 steps in 14 chunks: Adam with groups and its own mutable state and noise beside SGD with momentum, two
    `between` edits that depend on the key and the stream, records, and a member that is frozen on its way."""

    def init(key, hyper):
        return {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(2)}, {"mean": jnp.zeros(3), "count": jnp.int32(0)}

    def loss(params, state, batch, key, step, hyper):
        noisy = batch + 0.1 * jax.random.normal(key, (3,))
        state = {"mean": 0.9 * state["mean"] + 0.1 * noisy, "count": state["count"] + 1}
        value = jnp.sum((params["w"] - noisy) ** 2) + jnp.sum((params["b"] - state["mean"][:2]) ** 2)
        return jnp.where(hyper["bad"] & (step == 30), jnp.nan, value), (state, {"norm": jnp.sum(params["w"] ** 2)})

    def between(members, source, key):
        noise = np.asarray(jax.random.normal(key, members.params["w"].shape)) * next(source)
        moments = jax.tree.map(lambda x: x * 0.5 if x.dtype == np.float32 else x, members.opt_state)
        return members._replace(params={**members.params, "w": members.params["w"] + noise}, opt_state=moments)

    rich = Population(
        Objective(init, loss, record=lambda p: p, between=between),
        Recipe(steps=60, lr=0.05, schedule="cosine", warmup=5, clip_norm=3.0, groups=(Group("b", lr_scale=0.5),)),
        {"seed": np.arange(5), "lr": np.linspace(0.01, 0.1, 5, dtype=np.float32), "bad": np.arange(5) == 3},
        block=2,
    )
    plain = Population(
        Objective(
            lambda key, hyper: (jax.random.normal(key, (3,)), ()),
            lambda params, state, batch, key, step, hyper: (
                jnp.sum((params - hyper["scale"] * batch) ** 2),
                (state, {}),
            ),
        ),
        Recipe(steps=60, optimizer="sgd", lr=0.02, momentum=0.9),
        {"seed": np.array([7, 2, 9]), "scale": np.float32([1, 2, 3])},
        block=4,
    )
    settings = dict(
        steps=60, key=KEY, log_every=5, record_at=(0, 12, 33, 60), between_at=(12, 43), checkpoint_seconds=0.0
    )
    stream = stream or Batches()
    return fit(
        {"rich": rich, "plain": plain},
        source=stream,
        workdir=workdir,
        mesh=None,
        **{**settings, **changes},
    )


def full_disk(workdir):
    """Reaches a file size limit, lifts it and goes on; prints what happened as JSON."""
    import resource

    class Filling(Batches):
        limit = None

        def __next__(self):
            if self.at == 23:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))
            return super().__next__()

    said = []
    for Filling.limit in (5000, 100):  # the logs of 25 steps fit, a checkpoint does not; then nothing does
        try:
            everything(workdir, Filling())
        except WorkdirError as error:
            said.append(str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    steps = sorted(int(p.name) for p in (Path(workdir) / "checkpoints").iterdir() if p.name.isdigit())
    np.savez(Path(workdir) / "result.npz", **leaves(everything(workdir)))
    print(json.dumps({"said": said, "steps": steps}))


if __name__ == "__main__":
    signal.alarm(300)  # no orphan outlives its test by much
    if sys.argv[1] == "everything":
        found = leaves(everything(sys.argv[2]))
        np.savez(Path(sys.argv[2]) / "result.npz", **found)
    elif sys.argv[1] == "full_disk":
        full_disk(sys.argv[2])
