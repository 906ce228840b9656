"""Toy runs of the engine that the tests share, and what they do in processes of their own (the first argument says)."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, PartitionSpec

from superpose.toy import models
from superpose.train.checkpoint import Stopped, WorkdirError
from superpose.train.fit import Objective, Population, Sampler, _Program, evaluate, fit
from superpose.train.recipe import Group, Recipe
from superpose.worlds import prng

KEY = prng.key(5)


class Batches:
    """A Stream: batch t is made from t, so its position is all that it has to remember."""

    def __init__(self, shape=(3,), length=10**9, signals=None, pause=0.0):
        self.shape, self.length, self.at, self.signals, self.pause = shape, length, 0, signals or {}, pause

    def batch(self, t):
        return np.random.default_rng(t).normal(size=self.shape).astype(np.float32)

    def __next__(self):
        if self.at >= self.length:
            raise StopIteration
        for s in self.signals.get(self.at, ()):
            os.kill(os.getpid(), s)
        time.sleep(self.pause)
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
        return jnp.where(hyper["bad"] & (step == 30), jnp.nan, value), (state, metrics(params))

    def metrics(params):
        return {"norm": jnp.sum(params["w"] ** 2), "norm (max)": jnp.max(params["w"])}  # one name extends another

    def between(members, hyper, source, key, step):
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
        steps=60,
        key=KEY,
        log_every=5,
        record_at=(0, 12, 33, 60),
        between_at=(12, 43),
        checkpoint_seconds=0.0,
        mesh=None,
    )
    stream = stream or Batches()
    return fit(
        {"rich": rich, "plain": plain},
        source=stream,
        workdir=workdir,
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
    for Filling.limit in (5500, 100):  # the logs of 25 steps fit, a checkpoint does not; then nothing does
        try:
            everything(workdir, Filling())
        except WorkdirError as error:
            said.append(str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    steps = sorted(int(p.name) for p in (Path(workdir) / "checkpoints").iterdir() if p.name.isdigit())
    np.savez(Path(workdir) / "result.npz", **leaves(everything(workdir)))
    print(json.dumps({"said": said, "steps": steps}))


# ---- eight devices


def furthest(a, b):
    """The largest difference between two results' floats, relative to 1 or to the value."""
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    far = lambda x, y: np.max(np.abs(x - y) / np.maximum(1, np.abs(x)), initial=0.0)  # noqa: E731
    return float(max(far(a[k].astype(np.float64), b[k].astype(np.float64)) for k in a))


def furthest_of_all(a, b):
    return max(furthest(a[name], b[name]) for name in b)


def shards(x):
    """On how many devices the parts of an array lie."""
    return len({str(s.index) for s in x.addressable_shards})


def device_mesh(*names):
    return jax.make_mesh(tuple(8 if len(names) == 1 else k for k in (2, 4)[: len(names)]), names)


def toy(steps):
    n = 20
    hyper = {"seed": np.arange(11), "density": np.linspace(0.05, 1, 11, dtype=np.float32)}
    hyper["importance"] = np.float32(0.7) ** np.tile(np.arange(n, dtype=np.float32), (11, 1))
    return models.population(n, 5, hyper, Recipe(steps=steps), size=64, block=1)


def toy_on_eight_devices():
    """1,000 steps of the toy model with 11 members on 8 devices against one device."""
    pop = toy(1000)
    run = lambda mesh: fit(pop, steps=1000, key=KEY, log_every=500, mesh=mesh)  # noqa: E731
    eight, one = run("auto"), run(None)
    far = furthest(eight, one)
    return {"far": far, "moved": float(np.abs(one.history["loss"][0] - one.history["loss"][1]).min())}


def sizes_on_eight_devices():
    """Members in blocks of two that do not fill the second round of blocks."""
    found = {}
    for size, block in ((19, 2),):
        pop = gradients(size, block)
        eight, one = (fit(pop, source=Batches(), steps=6, key=KEY, log_every=3, mesh=m) for m in ("auto", None))
        found[size] = {"far": furthest(eight, one), "shards": shards(eight.opt_state[0][1].count)}
    return found


def gradients(size, block):
    """An inner gradient of a constant made inside the loss, which is the member's own number."""

    def loss(params, state, batch, key, step, hyper):
        inner = jax.grad(lambda b: b * hyper["x"])(jnp.zeros(()))
        made = jax.grad(lambda w: jnp.sum(w * jnp.arange(3.0)) * hyper["x"])(jnp.zeros(3))
        value = jnp.sum((params["w"] - inner - jnp.zeros(3)) ** 2) + params["b"] * hyper["x"]
        return value, (state, {"inner": inner, "made": made[2]})

    init = lambda key, hyper: ({"w": jnp.ones(3), "b": jnp.zeros(())}, ())  # noqa: E731
    hyper = {"seed": np.arange(size), "x": np.arange(size, dtype=np.float32)}
    return Population(Objective(init, loss), Recipe(steps=6, optimizer="sgd", lr=0.125), hyper, block=block)


def gradients_on_eight_devices():
    """What fit trains with, and what a plain shard_map(vmap(grad)) does."""
    pop = gradients(8, 1)
    result = fit(pop, source=Batches(), steps=1, key=KEY)
    held_out = evaluate(pop, result.params, key=KEY, source=Sampler(lambda key: jnp.zeros(3), shared=True))

    def train(x):
        return jax.grad(lambda b: b * x)(jnp.zeros(()))

    x, spec = jnp.arange(8.0), PartitionSpec("population")
    mesh = Mesh(np.array(jax.devices()), ("population",), axis_types=(AxisType.Auto,))
    plain = {
        str(check): jax.jit(jax.shard_map(jax.vmap(train), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check))(
            x
        )
        for check in (True, False)
    }
    return {
        "b": (result.params["b"] / -0.125).tolist(),
        "w": result.params["w"][:, 0].tolist(),
        "inner": result.history["inner"][0].tolist(),
        "evaluated": held_out["inner"].tolist(),
        "made": result.history["made"][0].tolist(),
        "shards": shards(result.params["b"]),
        "plain": {k: v.tolist() for k, v in plain.items()},
    }


def features_on_eight_devices():
    """n = 64 features sharded over 8, over 4 beside 2 groups of members, and a stream's batch over 8."""

    def loss(params, state, x, key, step, hyper):
        out = jax.nn.relu((x @ params["W"]) @ params["W"].T + params["b"])
        return jnp.mean(jnp.sum((x - out) ** 2, 1)), (state, {})

    def init(key, hyper):
        return {"W": jax.random.uniform(key, (64, 8), minval=-0.3, maxval=0.3), "b": jnp.zeros(64)}, ()

    def run(mesh, sharded=True, batch_spec=None):
        # groups: parts of the optimiser's state hold some of the parameters only
        recipe = Recipe(steps=100, groups=(Group("b", lr_scale=0.5),))
        spec = (lambda params: {"W": PartitionSpec("feature"), "b": PartitionSpec("feature")}) if sharded else None
        pop = Population(Objective(init, loss), recipe, {"seed": np.arange(3)}, block=2, param_spec=spec)
        result = fit(pop, source=Batches((16, 64)), steps=100, key=KEY, log_every=50, mesh=mesh, batch_spec=batch_spec)
        moment = result.opt_state[0].inner_states["rest"].inner_state[0].mu["W"]
        return result, [shards(x) for x in (result.params["W"], result.params["b"], moment)]

    placed, place = {}, _Program.place_batches

    def note(self, batches):
        placed[name] = shards(place(self, batches))
        return place(self, batches)

    one, found = run(None)[0], {}
    _Program.place_batches = note
    for name, mesh, settings in (
        ("features", device_mesh("feature"), {}),
        ("features and members", device_mesh("population", "feature"), {}),
        ("batch", device_mesh("data"), {"sharded": False, "batch_spec": PartitionSpec("data")}),
    ):
        result, parts = run(mesh, **settings)
        found[name] = {"far": furthest(result, one), "shards": [*parts, placed[name]]}
    _Program.place_batches = place
    return found | {"moved": float(np.abs(np.diff(one.history["loss"], axis=0)).min())}


def resumed_on_other_devices(folder):
    """Half of the run on 8 devices and half on 1, and the other way round."""

    def init(key, hyper):
        return jax.random.uniform(key, (3,)), jnp.zeros(3)

    def loss(w, state, batch, key, step, hyper):
        state = 0.5 * state + batch
        return jnp.sum((w - state) ** 2 * jax.random.uniform(key)), (state, {})

    pop = Population(
        Objective(init, loss, record=jnp.tanh), Recipe(steps=40, lr=0.05), {"seed": np.arange(11)}, block=1
    )

    def run(workdir, mesh, stop_at=None):
        signals = {stop_at: [signal.SIGTERM]}
        settings = dict(steps=40, key=KEY, log_every=10, record_at=(5, 30), workdir=workdir, mesh=mesh)
        return fit(pop, source=Batches(signals=signals), **settings)

    whole, found = run(None, None), []
    for i, meshes in enumerate((("auto", None), (None, "auto"))):
        try:
            run(Path(folder) / str(i), meshes[0], stop_at=15)
        except Stopped as stopped:
            found.append({"step": stopped.step, "far": furthest(run(Path(folder) / str(i), meshes[1]), whole)})
    return found


def devices(folder):
    found = {"devices": jax.device_count()}
    for name, run in {
        "toy": toy_on_eight_devices,
        "sizes": sizes_on_eight_devices,
        "gradients": gradients_on_eight_devices,
        "features": features_on_eight_devices,
        "resumed": lambda: resumed_on_other_devices(folder),
        "everything": lambda: {"far": furthest_of_all(everything(mesh="auto", max_members=4), everything())},
    }.items():
        clock = time.perf_counter()
        with compile_cache(Path(folder) / "compiled"):
            found[name] = run()
        print(f"{name}: {time.perf_counter() - clock:.1f} s", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    signal.alarm(300)  # no orphan outlives its test by much
    if sys.argv[1] == "everything":
        found = leaves(everything(sys.argv[2], Batches(pause=0.01)))  # time enough to be killed
        np.savez(Path(sys.argv[2]) / "result.npz", **found)
    elif sys.argv[1] == "full_disk":
        full_disk(sys.argv[2])
    elif sys.argv[1] == "cores":
        found = leaves(fit(toy(1000), steps=1000, key=KEY, log_every=500))
        np.savez(Path(sys.argv[2]) / f"{len(os.sched_getaffinity(0))}.npz", **found)
    elif sys.argv[1] == "devices":
        devices(sys.argv[2])
