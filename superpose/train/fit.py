"""Trains populations of models: one model is written for one setting, `vmap` makes the population.

The loop, for every step: draw the batch (once if it is shared), then for every population map over blocks of members,
and inside a block vmap one member's update. Blocks have a fixed size and the last one is padded, so a member's bits
depend neither on how many others there are nor on where it stands. With several devices the blocks are spread over the
mesh axis ``population``; members beyond ``max_members`` wait in host memory for their turn.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from superpose.train.checkpoint import Checkpoints, Stopped, WorkdirError, lock, stop_signals
from superpose.train.progress import bar, say

POPULATION = "population"
"""Name of the mesh axis over which members are spread."""
DIVERGED = 1e3
"""A member whose loss exceeds this many times its first value has diverged."""
FIRST_LOSSES = 10
"""The first value is the largest of so many positive losses: a sparse batch may be all zeros, with loss 0."""
LISTED = 64
"""Populations up to this size have every member's metrics in metrics.jsonl; larger ones mean, min and max."""
TAKEN = {"loss", "step", "population", "frozen"}
"""Names in metrics.jsonl that an objective's metrics can't have."""


@dataclass(frozen=True)
class Objective:
    """What is trained; every function is pure and written for one member.

    Attributes:
        init: (key, hyper) -> (params, state). ``state`` is what changes in training and is no parameter.
        loss: (params, state, batch, key, step, hyper) -> (loss, (state, metrics)); loss and metrics are scalars.
        grads: (params, grads) -> grads, before the optimiser.
        project: (params, hyper, step) -> params, after each update.
        record: (params) -> arrays, kept at the listed steps (step 0 is the initial model).
        between: (members, source, key) -> members, on the host between chunks; sees the whole population (NumPy
            leaves [N, ...], its optimiser state included) and may return all of it edited, but not its shapes.
    """

    init: Callable
    loss: Callable
    grads: Callable | None = None
    project: Callable | None = None
    record: Callable | None = None
    between: Callable | None = None


@dataclass(frozen=True)
class Sampler:
    """A source that is a pure function and runs inside the jit.

    Attributes:
        sample: (key, hyper) -> batch for one member, or (key) -> batch when ``shared``.
        shared: one batch for all members of all populations.
    """

    sample: Callable
    shared: bool = False


@runtime_checkable
class Stream(Protocol):
    """A source that runs on the host, one shared batch a step; its position is part of the checkpoint.

    ``get_state`` returns something JSON can hold (the protocol of a grain iterator).
    """

    def __next__(self) -> PyTree: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


@dataclass(frozen=True)
class Population:
    """N members that share code and differ in values.

    Attributes:
        objective: what is trained.
        recipe: hyper -> optax transformation (``Recipe.transform``), or an object with such a ``transform``.
        hyper: name -> array [N, ...]; must hold ``seed`` [N], from which a member's key comes.
        source: this population's own per-member sampler; None takes the source given to ``fit``.
        block: members in one vmapped block. Changing it may change the last bits of a result.
        param_spec: params of one member -> their PartitionSpecs over mesh axes other than ``population``; also
            applied to what the optimiser keeps per parameter.
    """

    objective: Objective
    recipe: Any
    hyper: Mapping[str, Any]
    source: Sampler | None = None
    block: int = 16
    param_spec: Callable | None = None

    @property
    def size(self) -> int:
        return len(self.hyper["seed"])

    def transform(self, hyper):
        return getattr(self.recipe, "transform", self.recipe)(hyper)


class Members(NamedTuple):
    """All that changes while members train; leaves have leading axes [N] for the caller, [blocks, block] inside.

    ``first`` is the loss that divergence is measured against, the largest of the first ``counted`` positive ones;
    ``frozen_at`` is the step at which a member was frozen, or -1.
    """

    params: PyTree
    opt_state: PyTree
    state: PyTree
    first: Any
    counted: Any
    frozen_at: Any


@dataclass
class Result:
    """What one population ends with.

    Attributes:
        params, state, opt_state: leaves [N, ...].
        history: metric -> [K, N], each the mean over the steps since the entry before; ``history_steps`` [K].
        records: what ``Objective.record`` returned, leaves [len(record_at), N, ...].
        frozen_at: [N], the step at which a member diverged, -1 for those that did not.
        seconds: wall time of this call without compilation; ``compile_seconds`` that of compilation.
    """

    params: PyTree
    state: PyTree
    opt_state: PyTree
    history: dict[str, np.ndarray]
    history_steps: np.ndarray
    records: PyTree
    frozen_at: np.ndarray
    seconds: float = 0.0
    compile_seconds: float = 0.0
    hyper: Mapping[str, Any] = field(default_factory=dict)


# --- one member, one step ---------------------------------------------------------------------------------------------


@jax.jit
def _keys(root, seeds):
    """The (init, run) keys [N, 2] of the members with these seeds."""
    return jax.vmap(lambda s: jax.random.split(jax.random.fold_in(root, s)))(seeds)


def _init_member(pop: Population, key, hyper) -> Members:
    params, state = pop.objective.init(key, hyper)
    opt_state = pop.transform(hyper).init(params)
    return Members(params, opt_state, state, jnp.float32(0), jnp.int32(0), jnp.int32(-1))


def _update_member(pop: Population, member: Members, key, hyper, batch, step) -> tuple[Members, dict]:
    objective = pop.objective
    data_key, loss_key = jax.random.split(jax.random.fold_in(key, step))
    if pop.source is not None:
        batch = pop.source.sample(data_key, hyper)
    (loss, (state, metrics)), grads = jax.value_and_grad(objective.loss, has_aux=True)(
        member.params, member.state, batch, loss_key, step, hyper
    )
    if taken := TAKEN & metrics.keys():
        raise ValueError(f"a metric of an objective can't be named {', '.join(sorted(taken))}: rename it")
    finite = jnp.isfinite(loss)
    for g in jax.tree.leaves(grads):
        finite &= jnp.all(jnp.isfinite(g))
    if objective.grads is not None:
        grads = objective.grads(member.params, grads)
    updates, opt_state = pop.transform(hyper).update(grads, member.opt_state, member.params)
    params = optax.apply_updates(member.params, updates)
    if objective.project is not None:
        params = objective.project(params, hyper, step)

    early = member.counted < FIRST_LOSSES
    first = jnp.where(early, jnp.maximum(member.first, loss), member.first)
    counted = member.counted + (early & (loss > 0))
    diverged = ~finite | (~early & (loss > DIVERGED * first))
    alive = member.frozen_at < 0
    frozen_at = jnp.where(alive & diverged, step, member.frozen_at)
    moved = alive & ~diverged
    new = (params, opt_state, state)
    old = (member.params, member.opt_state, member.state)
    params, opt_state, state = jax.tree.map(lambda a, b: jnp.where(moved, a, b), new, old)
    return Members(params, opt_state, state, first, counted, frozen_at), {"loss": loss, **metrics}


# --- blocks, devices --------------------------------------------------------------------------------------------------


def _over_members(fn: Callable, block: int, trees: PyTree) -> PyTree:
    """Applies a member's function to leaves [blocks, block, ...]: vmap inside a block, a loop over blocks."""
    if block > 1:
        return lax.map(lambda t: jax.vmap(fn)(*t), trees)
    return lax.map(lambda t: jax.tree.map(lambda x: jnp.asarray(x)[None], fn(*jax.tree.map(lambda x: x[0], t))), trees)


def _pad(tree: PyTree, layout: tuple[int, int], axis: int = 0) -> PyTree:
    """Leaves [..., N, ...] -> [..., blocks, block, ...], N at ``axis``; the padding repeats the first member."""
    blocks, block = layout

    def one(x):
        lib = jnp if isinstance(x, jax.Array) else np
        missing = blocks * block - x.shape[axis]
        if missing:
            first = lib.take(x, lib.zeros(missing, int), axis=axis)
            x = lib.concatenate([x, first], axis=axis)
        return x.reshape(*x.shape[:axis], blocks, block, *x.shape[axis + 1 :])

    return jax.tree.map(one, tree)


def _unpad(tree: PyTree, size: int, axis: int = 0) -> PyTree:
    """Leaves [..., blocks, block, ...] -> [..., N, ...], the blocks at ``axis``."""

    def one(x):
        shape = x.shape
        x = x.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
        return x if x.shape[axis] == size else x[(slice(None),) * axis + (slice(0, size),)]

    return jax.tree.map(one, tree)


def population_mesh(blocks: int) -> Mesh | None:
    """A one-axis mesh over the devices that so many blocks can use, or None when that is one device."""
    devices = jax.devices()[: max(1, blocks)]
    if len(devices) == 1:
        return None
    return Mesh(np.array(devices), (POPULATION,), axis_types=(AxisType.Auto,))


def available_bytes() -> int:
    """Memory that a population may fill: half of what the device (or, on CPU, the machine) reports as free."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) * len(jax.devices()) // 2
    return psutil.virtual_memory().available // 2


class _Program:
    """The compiled loop over a set of populations with a fixed number of member slots each."""

    def __init__(self, pops, slots, source, record_at, mesh, batch_spec):
        self.pops, self.source, self.mesh = pops, source, mesh
        self.record_at = np.asarray(record_at, np.int32)
        devices = mesh.shape[POPULATION] if mesh is not None and POPULATION in mesh.shape else 1
        self.split = devices > 1
        self.layout = {}
        for name, pop in pops.items():
            blocks = -(-slots[name] // pop.block)
            self.layout[name] = (-(-blocks // devices) * devices, pop.block)
        self.batch_spec = batch_spec or P()
        self.compile_seconds = 0.0
        self._compiled = None
        self._makers: dict[str, Callable] = {}

    # shardings

    def _specs(self, name, members):
        """PartitionSpecs of Members [blocks, block, ...]: the population axis first, then the params' own axes."""
        pop, lead = self.pops[name], (POPULATION if self.split else None, None)
        plain = P(*lead)
        specs = jax.tree.map(lambda _: plain, members)
        if pop.param_spec is None:
            return specs
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), members.params)
        own = jax.tree.map(lambda s: P(*lead, *s), pop.param_spec(one), is_leaf=lambda s: isinstance(s, P))
        first_hyper = {k: np.asarray(v)[0] for k, v in pop.hyper.items()}
        masked = lambda x: isinstance(x, optax.MaskedNode)  # a parameter of another group of the recipe  # noqa: E731
        like = optax.tree_utils.tree_map_params(
            pop.transform(first_hyper),
            lambda x, s: x if masked(x) else s,
            members.opt_state,
            own,
            transform_non_params=lambda _: plain,
            is_leaf=masked,
        )
        return specs._replace(params=own, opt_state=like)

    def shardings(self, name, members):
        if self.mesh is None:
            return None
        to = lambda s: NamedSharding(self.mesh, s)  # noqa: E731
        return jax.tree.map(to, self._specs(name, members), is_leaf=lambda s: isinstance(s, P))

    def _place_plain(self, tree, axis=0):
        if self.mesh is None:
            return jax.device_put(tree)
        spec = P(*[None] * axis, POPULATION) if self.split else P()
        return jax.device_put(tree, NamedSharding(self.mesh, spec))

    def _spread(self, fn, in_axes, out_axes):
        """Runs fn on each device's own blocks; axes give where the blocks stand, None for what all devices share.

        check_vma stays off: with it on, JAX sums over the devices the gradient of anything that fn creates as a
        constant, which is silently wrong here (each device has other members).
        """
        if not self.split:
            return fn
        spec = lambda axis: P() if axis is None else P(*[None] * axis, POPULATION)  # noqa: E731
        specs = [jax.tree.map(spec, axes, is_leaf=lambda x: x is None) for axes in (in_axes, out_axes)]
        return jax.shard_map(
            fn, mesh=self.mesh, in_specs=tuple(specs[0]), out_specs=specs[1], axis_names={POPULATION}, check_vma=False
        )

    # state

    def constants(self, root, slices):
        """Hyperparameters and (init, run) keys of the members in ``slices``, as the loop takes them."""
        hyper, init_keys, run_keys = {}, {}, {}
        for name, (lo, hi) in slices.items():
            values = {k: np.asarray(v)[lo:hi] for k, v in self.pops[name].hyper.items()}
            keys = _keys(root, jnp.asarray(values["seed"]))
            hyper[name] = self._place_plain(_pad(values, self.layout[name]))
            init_keys[name] = self._place_plain(_pad(keys[:, 0], self.layout[name]))
            run_keys[name] = self._place_plain(_pad(keys[:, 1], self.layout[name]))
        return hyper, init_keys, run_keys

    def fresh(self, name, keys, hyper):
        """Initialised members, and record buffers that hold step 0 where it is listed."""
        pop = self.pops[name]

        def make(keys, hyper):
            members = _over_members(lambda k, h: _init_member(pop, k, h), pop.block, (keys, hyper))
            return members, self._records(pop, members)

        if name not in self._makers:  # once for all slices of the population
            make = self._spread(make, (0, 0), (0, 1))
            out = None
            if self.mesh is not None:
                members, records = jax.eval_shape(make, keys, hyper)
                spec = NamedSharding(self.mesh, P(None, POPULATION) if self.split else P())
                out = (self.shardings(name, members), jax.tree.map(lambda _: spec, records))
            self._makers[name] = jax.jit(make, out_shardings=out)
        return self._makers[name](keys, hyper)

    def place(self, name, members: Members, records) -> tuple[Members, PyTree]:
        """Padded host or device arrays -> where the loop wants them."""
        shardings = self.shardings(name, members)
        members = jax.device_put(members) if shardings is None else jax.device_put(members, shardings)
        return members, self._place_plain(records, axis=1)

    def place_batches(self, batches):
        if self.mesh is None:
            return jax.device_put(batches)
        return jax.device_put(batches, NamedSharding(self.mesh, P(None, *self.batch_spec)))

    def _records(self, pop, members):
        if pop.objective.record is None or not len(self.record_at):
            return ()
        seen = _over_members(pop.objective.record, pop.block, (members.params,))
        empty = jax.tree.map(lambda x: jnp.zeros((len(self.record_at), *x.shape), x.dtype), seen)
        return self._write_records(pop, empty, members, jnp.int32(0))

    def _write_records(self, pop, records, members, step):
        """Writes record(params) into its row if ``step`` is listed."""
        at = jnp.asarray(self.record_at)
        row = jnp.minimum(jnp.searchsorted(at, step), len(self.record_at) - 1)

        def write(records):
            seen = _over_members(pop.objective.record, pop.block, (members.params,))
            return jax.tree.map(lambda r, s: lax.dynamic_update_index_in_dim(r, s, row, 0), records, seen)

        return lax.cond(at[row] == step, write, lambda records: records, records)

    # the loop

    def _chunk(self, carry, keys, hyper, stream_key, batches, start, stop):
        """Steps [start, stop) of every population of the group; metrics come back as means over the chunk."""

        def advance(name, members, batch, step):
            pop = self.pops[name]
            one = lambda m, k, h: _update_member(pop, m, k, h, batch, step)  # noqa: E731
            return _over_members(one, pop.block, (members, keys[name], hyper[name]))

        def batch_of(step):
            if isinstance(self.source, Sampler):
                return self.source.sample(jax.random.fold_in(stream_key, step)) if self.source.shared else None
            return jax.tree.map(lambda b: b[step - start], batches)

        def body(step, carry):
            batch, out = batch_of(step), {}
            for name, (members, records, sums) in carry.items():
                members, metrics = advance(name, members, batch, step)
                if jax.tree.leaves(records):
                    records = self._write_records(self.pops[name], records, members, step + 1)
                out[name] = (members, records, jax.tree.map(jnp.add, sums, metrics))
            return out

        def zeros(name, members):
            shapes = jax.eval_shape(lambda: advance(name, members, batch_of(start), start))[1]
            return jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)

        carry = {name: (m, r, zeros(name, m)) for name, (m, r) in carry.items()}
        carry = lax.fori_loop(start, stop, body, carry)
        mean = lambda s: s / (stop - start).astype(jnp.float32)  # noqa: E731
        return (
            {name: (m, r) for name, (m, r, _) in carry.items()},
            {name: jax.tree.map(mean, s) for name, (_, _, s) in carry.items()},
        )

    def run(self, carry, keys, hyper, stream_key, batches, start, stop):
        """One chunk; compiled at the first call. ``carry`` is donated."""
        args = (carry, keys, hyper, stream_key, batches, jnp.int32(start), jnp.int32(stop))
        if self._compiled is None:
            clock = time.perf_counter()
            axes = {name: (0, 1) for name in self.pops}
            fn = self._spread(self._chunk, (axes, 0, 0, None, None, None, None), (axes, 0))
            out = None
            if self.mesh is not None:
                spec = NamedSharding(self.mesh, P(POPULATION) if self.split else P())
                out = (jax.tree.map(lambda x: x.sharding, carry), spec)
            self._compiled = jax.jit(fn, donate_argnums=0, out_shardings=out).lower(*args).compile()
            self.compile_seconds = time.perf_counter() - clock
        return self._compiled(*args)


@dataclass
class _Group:
    """The members that are on the devices at the same time, and their part of the state."""

    program: _Program
    slices: dict[str, tuple[int, int]]
    hyper: PyTree
    keys: PyTree
    carry: dict[str, tuple[Members, PyTree]]


# --- the run ----------------------------------------------------------------------------------------------------------


def _flat(tree: PyTree, prefix: str) -> dict[str, Any]:
    """Path -> leaf; empty arrays are left out, for Orbax takes none."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {prefix + jax.tree_util.keystr(path): leaf for path, leaf in leaves if leaf.size}


def _unflat(like: PyTree, prefix: str, arrays: Mapping[str, Any]) -> PyTree:
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = [arrays[prefix + jax.tree_util.keystr(path)] if leaf.size else leaf for path, leaf in paths]
    return jax.tree.unflatten(structure, leaves)


def _program_of(pop: Population, source, key) -> str:
    """One member's init and update as JAX lowers them: another objective, source or recipe gives another text."""
    hyper = {k: np.asarray(v)[0] for k, v in pop.hyper.items()}
    batch = None
    if isinstance(source, Stream):
        place = source.get_state()
        try:
            batch = next(source)
        except StopIteration:
            raise ValueError("the stream has no batch: give one that is not at its end") from None
        source.set_state(place)

    def one(key, hyper, batch):
        member = _init_member(pop, key, hyper)
        if isinstance(source, Sampler) and source.shared:
            batch = source.sample(key)
        record = pop.objective.record(member.params) if pop.objective.record else ()
        return _update_member(pop, member, key, hyper, batch, jnp.int32(0)), record

    return jax.jit(one).lower(key, hyper, batch).as_text()  # constants and all


def _fingerprint(populations, source, steps, key, log_every, record_at, between_at) -> str:
    """What must be equal for a checkpoint to belong to this run."""
    h = hashlib.sha256()
    h.update(json.dumps([steps, log_every, list(record_at), list(between_at)]).encode())
    h.update(np.asarray(jax.random.key_data(key)).tobytes())
    for name, pop in sorted(populations.items()):
        h.update(f"{name}|{pop.size}|{pop.block}|{_program_of(pop, source, key)}|".encode())
        for k in sorted(pop.hyper):
            a = np.asarray(pop.hyper[k])
            h.update(f"{k}|{a.dtype}|{a.shape}|".encode() + a.tobytes())
    return h.hexdigest()


def _check(populations, source, steps, log_every, record_at, max_members):
    for what, value in {"steps": steps, "log_every": log_every, "max_members": max_members}.items():
        if value is not None and value < 1:
            raise ValueError(f"{what} must be at least 1, got {value}")
    if source is not None and not isinstance(source, Sampler | Stream):
        raise ValueError(f"source must be a Sampler or a Stream (next, get_state, set_state), got {source!r}")
    if not populations:
        raise ValueError("there is nothing to train: give at least one population")
    for name, pop in populations.items():
        if "seed" not in pop.hyper:
            raise ValueError(f"population {name!r} has no 'seed' in its hyper: a member's key comes from its seed")
        sizes = {k: len(v) if np.ndim(v) else None for k, v in pop.hyper.items()}
        if not pop.size or any(s != pop.size for s in sizes.values()):
            raise ValueError(f"every entry of hyper of population {name!r} needs the same length N >= 1, got {sizes}")
        seeds = np.asarray(pop.hyper["seed"])
        if seeds.dtype.kind not in "iu" or seeds.min() < -(2**31) or seeds.max() >= 2**32:
            raise ValueError(f"the seeds of population {name!r} must be integers of at most 32 bits, got {seeds}")
        if pop.source is None and source is None:
            raise ValueError(f"population {name!r} has no source, and none was given to fit")
        if pop.source is not None and pop.source.shared:
            raise ValueError(f"the source of population {name!r} is shared: give it to fit, not to the population")
        if pop.block < 1:
            raise ValueError(f"block of population {name!r} must be at least 1, got {pop.block}")
    if any(s < 0 or s > steps for s in record_at):
        raise ValueError(f"record_at must lie in [0, {steps}], got {list(record_at)}")


def _slices(populations, max_members) -> list[dict[str, tuple[int, int]]]:
    """The i-th group holds the i-th slice of each population that has one."""
    slices = {
        name: [(lo, min(lo + max_members[name], pop.size)) for lo in range(0, pop.size, max_members[name])]
        for name, pop in populations.items()
    }
    longest = max(len(s) for s in slices.values())
    return [{name: s[i] for name, s in slices.items() if i < len(s)} for i in range(longest)]


def _members_that_fit(pop: Population, key, budget: int, records: int) -> int:
    """How many members fit a memory budget: state, its successor while a step is under way, records."""
    hyper = {k: jnp.asarray(np.asarray(v)[0]) for k, v in pop.hyper.items()}

    def shapes():
        member = _init_member(pop, key, hyper)
        return member, pop.objective.record(member.params) if pop.objective.record else ()

    member, record = jax.eval_shape(shapes)
    size = lambda t: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(t))  # noqa: E731
    fits = budget // max(1, 3 * size(member) + 2 * records * size(record))
    return max(pop.block, fits // pop.block * pop.block)


class _Run:
    """The host's side: chunks, hooks between them, logs, checkpoints."""

    def __init__(self, pops, groups, source, steps, root, stream_key, log_every, record_at, between_at):
        self.pops, self.groups, self.source, self.steps, self.root = pops, groups, source, steps, root
        self.stream_key, self.log_every, self.record_at = stream_key, log_every, record_at
        hooked = any(p.objective.between is not None for p in pops.values())
        self.between_at = between_at if hooked else []
        self.step = 0
        self.history: dict[str, dict[str, list]] = {name: {} for name in pops}
        self.history_steps: list[int] = []
        self.seconds = 0.0
        if len(groups) > 1:
            for g in groups:
                g.carry = jax.device_get(g.carry)

    # the whole population, unpadded, and back

    def gather(self, name) -> tuple[Members, PyTree]:
        parts = []
        for g in self.groups:
            if name in g.slices:
                size = g.slices[name][1] - g.slices[name][0]
                members, records = g.carry[name]
                parts.append((_unpad(members, size), _unpad(records, size, axis=1)))
        if len(parts) == 1:
            return parts[0]
        members = jax.tree.map(lambda *x: np.concatenate(x), *[m for m, _ in parts])
        return members, jax.tree.map(lambda *x: np.concatenate(x, axis=1), *[r for _, r in parts])

    def scatter(self, name, members: Members, records) -> None:
        for g in self.groups:
            if name in g.slices:
                here, layout = slice(*g.slices[name]), g.program.layout[name]
                mine = _pad(jax.tree.map(lambda x, here=here: x[here], members), layout)
                kept = _pad(jax.tree.map(lambda x, here=here: x[:, here], records), layout, axis=1)
                placed = g.program.place(name, mine, kept)
                g.carry[name] = jax.device_get(placed) if len(self.groups) > 1 else placed

    # checkpoints

    def save(self, store: Checkpoints, identity: str) -> None:
        arrays: dict[str, Any] = {}
        for name in self.pops:
            members, records = self.gather(name)
            arrays |= _flat(members._asdict(), f"{name}:members") | _flat(records, f"{name}:records")
            arrays |= {f"{name}:history['{k}']": np.stack(v) for k, v in self.history[name].items()}
        meta = {"identity": identity, "history_steps": self.history_steps}
        if isinstance(self.source, Stream):
            meta["source"] = self.source.get_state()
        store.save(self.step, arrays, meta)

    def resume(self, store: Checkpoints, identity: str) -> None:
        found = store.restore()
        if found is None:
            store.cut_logs(0)
            return
        step, arrays, meta = found
        if meta["identity"] != identity:
            raise WorkdirError(
                f"{store.path} holds another run (its steps, key, objective, source, recipe, "
                "hyperparameters, or the version of JAX differ); choose another work directory, or delete that one"
            )
        for name in self.pops:
            members, records = self.gather(name)
            fields = _unflat(members._asdict(), f"{name}:members", arrays)
            self.scatter(name, Members(**fields), _unflat(records, f"{name}:records", arrays))
            mark = f"{name}:history['"
            self.history[name] = {k[len(mark) : -2]: list(a) for k, a in arrays.items() if k.startswith(mark)}
        self.history_steps, self.step = list(meta["history_steps"]), step
        if isinstance(self.source, Stream):
            self.source.set_state(meta["source"])
        store.cut_logs(step)
        if step < self.steps:
            say(f"resuming {store.path} after step {step}")

    # the loop

    def _pull(self, start, stop):
        """Batches [start, stop) of a Stream, padded to the longest chunk so that one program serves all."""
        if not isinstance(self.source, Stream):
            return ()
        batches = []
        for step in range(start, stop):
            try:
                batches.append(next(self.source))
            except StopIteration:
                raise ValueError(
                    f"the stream ended at step {step} of {self.steps}: give more data or fewer steps"
                ) from None
        batches += batches[:1] * (self.log_every - len(batches))
        return jax.tree.map(lambda *b: np.stack(b), *batches)

    def _stop_of_chunk(self) -> int:
        ends = [(self.step // self.log_every + 1) * self.log_every, self.steps]
        return min(ends + [s for s in self.between_at if s > self.step])

    def _one_chunk(self) -> None:
        start, stop = self.step, self._stop_of_chunk()
        pulled = self._pull(start, stop)
        seen: dict[str, list] = {name: [] for name in self.pops}
        for g in self.groups:
            carry = g.carry
            if len(self.groups) > 1:
                carry = {name: g.program.place(name, *c) for name, c in carry.items()}
            batches = g.program.place_batches(pulled)
            clock, compiling = time.perf_counter(), g.program.compile_seconds
            carry, metrics = g.program.run(carry, g.keys, g.hyper, self.stream_key, batches, start, stop)
            metrics = jax.device_get(metrics)
            g.carry = jax.device_get(carry) if len(self.groups) > 1 else carry
            self.seconds += time.perf_counter() - clock - (g.program.compile_seconds - compiling)
            for name, m in metrics.items():
                seen[name].append(_unpad(m, g.slices[name][1] - g.slices[name][0]))
        for name, parts in seen.items():
            for k in parts[0]:
                self.history[name].setdefault(k, []).append(np.concatenate([p[k] for p in parts]))
        self.step = stop
        self.history_steps.append(stop)
        if stop in self.between_at:
            key = jax.random.fold_in(jax.random.fold_in(self.root, 2**31), stop)
            for name, pop in self.pops.items():
                if pop.objective.between is not None:
                    members, records = self.gather(name)
                    edited = pop.objective.between(jax.device_get(members), pop.source or self.source, key)
                    self.scatter(name, edited, records)

    def _records_of_chunk(self) -> list[dict]:
        lines = []
        for name in self.pops:
            line: dict[str, Any] = {"step": self.step, "population": name}
            for k, values in self.history[name].items():
                v = values[-1]
                some = v[np.isfinite(v)]
                line[k] = {
                    "mean": float(some.mean()) if some.size else None,
                    "min": float(some.min()) if some.size else None,
                    "max": float(some.max()) if some.size else None,
                }
                if len(v) <= LISTED:
                    line[k]["members"] = v.tolist()
            line["frozen"] = int((self._frozen(name) >= 0).sum())
            lines.append(line)
        return lines

    def _frozen(self, name) -> np.ndarray:
        parts = []
        for g in self.groups:
            if name in g.slices:
                size = g.slices[name][1] - g.slices[name][0]
                parts.append(np.asarray(_unpad(g.carry[name][0].frozen_at, size)))
        return np.concatenate(parts)

    def _name_frozen(self, known: dict[str, np.ndarray]) -> None:
        for name, pop in self.pops.items():
            frozen = self._frozen(name)
            new = np.flatnonzero((frozen >= 0) & (known[name] < 0))
            for i in new[:5]:
                values = ", ".join(f"{k}={np.asarray(v)[i]:.6g}" for k, v in pop.hyper.items() if np.ndim(v) == 1)
                say(f"member {i} of {name!r} ({values}) diverged at step {frozen[i]} and is frozen")
            if len(new) > 5:
                say(f"... and {len(new) - 5} more members of {name!r}")
            known[name] = frozen

    def train(self, store, identity, checkpoint_seconds, stops, title, quiet) -> None:
        known = {name: np.full(pop.size, -1) for name, pop in self.pops.items()}
        saved_at = time.monotonic()
        progress, task = bar(title, self.steps, self.step, quiet)
        with progress:
            while self.step < self.steps:
                before = self.step
                self._one_chunk()
                self._name_frozen(known)
                lines = self._records_of_chunk()
                if store is not None:
                    store.log("metrics.jsonl", lines)
                    speed = {"step": self.step, "steps": self.step - before, "seconds": self.seconds}
                    store.log("timing.jsonl", [speed])
                    due = time.monotonic() - saved_at >= checkpoint_seconds
                    if due or stops or self.step == self.steps:
                        self.save(store, identity)
                        saved_at = time.monotonic()
                loss = lines[0]["loss"]["mean"]
                progress.update(task, completed=self.step, loss="-" if loss is None else f"{loss:.4g}")
                if stops and self.step < self.steps:
                    raise Stopped(self.step, stops[0], store and store.path)
        for name in self.pops:
            if count := int((self._frozen(name) >= 0).sum()):
                say(f"{count} of {self.pops[name].size} members of {name!r} diverged and were frozen")

    def results(self) -> dict[str, Result]:
        compiling = sum({id(g.program): g.program.compile_seconds for g in self.groups}.values())
        out = {}
        for name, pop in self.pops.items():
            members, records = self.gather(name)
            out[name] = Result(
                params=members.params,
                state=members.state,
                opt_state=members.opt_state,
                history={k: np.stack(v) for k, v in self.history[name].items()},
                history_steps=np.asarray(self.history_steps),
                records=records,
                frozen_at=self._frozen(name),
                seconds=self.seconds,
                compile_seconds=compiling,
                hyper=pop.hyper,
            )
        return out


def fit(
    populations: Population | Mapping[str, Population],
    *,
    steps: int,
    key: jax.Array,
    source: Sampler | Stream | None = None,
    log_every: int = 100,
    record_at: Iterable[int | np.integer] = (),
    between_at: Iterable[int | np.integer] = (),
    workdir: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    mesh: Mesh | str | None = "auto",
    batch_spec: P | None = None,
    max_members: int | None = None,
    title: str = "training",
    quiet: bool | None = None,
) -> Any:
    """Trains one population, or several on one stream, and returns what they end with.

    Args:
        populations: one Population, or name -> Population; all take the same number of steps.
        steps: updates per member.
        key: the run's one key; members' keys are folded in by their seeds.
        source: where batches come from for populations without a source of their own: a shared or per-member
            Sampler, or a Stream. A Stream's batches are shared.
        log_every: steps per chunk; metrics are means over a chunk. Chunks also end at ``between_at``.
        record_at: steps (0 = initial model) at which ``Objective.record`` is kept, inside the jit.
        between_at: steps after which ``Objective.between`` is called.
        workdir: where the run is locked, logged and checkpointed; a run found there is resumed, and refused if it is
            not this one (of ``between`` only the steps are compared). None keeps nothing.
        checkpoint_seconds: least time between checkpoints; 0 saves after every chunk.
        mesh: "auto" spreads members over all devices; a Mesh may have an axis ``population`` and others for
            ``param_spec`` and ``batch_spec``; None uses the default device.
        batch_spec: PartitionSpec of a shared batch from a Stream (leading axis = batch).
        max_members: members of a population on the devices at a time; None takes what memory holds.
        title, quiet: of the progress bar.

    Returns:
        a Result, or name -> Result.

    Raises:
        ValueError: arguments that can't work, in one sentence.
        WorkdirError: the work directory is in use, damaged, full, or holds another run.
        Stopped: after Ctrl-C or SIGTERM, once the run is saved.
    """
    single = isinstance(populations, Population)
    pops: dict[str, Population] = {"members": populations} if single else dict(populations)  # type: ignore
    record_at, between_at = sorted({int(s) for s in record_at}), sorted({int(s) for s in between_at if s <= steps})
    _check(pops, source, steps, log_every, record_at, max_members)
    if isinstance(source, Sampler) and not source.shared:
        pops = {n: p if p.source else Population(**{**vars(p), "source": source}) for n, p in pops.items()}
    if mesh == "auto":
        mesh = population_mesh(max(-(-p.size // p.block) for p in pops.values()))
    elif isinstance(mesh, Mesh):  # jax.make_mesh makes explicit axes, whose types a loss would have to state
        mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    budget = available_bytes() // len(pops)
    limits = {
        n: min(p.size, max_members or p.size, _members_that_fit(p, key, budget, len(record_at)))
        for n, p in pops.items()
    }
    root, stream_key = jax.random.split(key)
    programs: dict[tuple, _Program] = {}
    groups = []
    for slices in _slices(pops, limits):
        names = tuple(slices)
        if names not in programs:
            programs[names] = _Program({n: pops[n] for n in names}, limits, source, record_at, mesh, batch_spec)
        program = programs[names]
        hyper, init_keys, run_keys = program.constants(root, slices)
        carry = {n: program.fresh(n, init_keys[n], hyper[n]) for n in names}
        groups.append(_Group(program, slices, hyper, run_keys, carry))
    run = _Run(pops, groups, source, steps, root, stream_key, log_every, record_at, between_at)
    with contextlib.ExitStack() as stack:
        stops = stack.enter_context(stop_signals())
        store, identity = None, ""
        if workdir is not None:
            stack.enter_context(lock(Path(workdir)))
            store = stack.enter_context(contextlib.closing(Checkpoints(Path(workdir))))
            identity = _fingerprint(pops, source, steps, key, log_every, record_at, between_at)
            run.resume(store, identity)
        run.train(store, identity, checkpoint_seconds, stops, title, quiet)
    results = run.results()
    return results["members"] if single else results


def evaluate(
    population: Population,
    params: PyTree,
    state: PyTree = (),
    *,
    key: jax.Array,
    source: Sampler | None = None,
    batches: int = 1,
) -> dict[str, np.ndarray]:
    """Loss and metrics of trained members on fresh batches, without training.

    Batch b comes from the key folded with b, the same for every member: members are compared on the same draws.

    Args:
        population: as it was trained; its objective and hyperparameters are used.
        params, state: leaves [N, ...], of a Result.
        key: of the held-out batches.
        source: where they come from; None takes the population's own source.
        batches: how many are averaged.

    Returns:
        "loss" and each metric -> [N].
    """
    source = source or population.source
    if source is None or batches < 1:
        raise ValueError("evaluate needs a source, of the population or given, and at least one batch")

    def one(params, state, hyper):
        def batch(b):
            batch_key, loss_key = jax.random.split(jax.random.fold_in(key, b))
            x = source.sample(batch_key) if source.shared else source.sample(batch_key, hyper)
            loss, (_, metrics) = population.objective.loss(params, state, x, loss_key, jnp.int32(0), hyper)
            return {"loss": loss, **metrics}

        return jax.tree.map(lambda v: v.mean(0), lax.map(batch, jnp.arange(batches)))

    hyper = {k: np.asarray(v) for k, v in population.hyper.items()}
    mesh = population_mesh(-(-population.size // population.block))
    program = _Program({"members": population}, {"members": population.size}, source, (), mesh, None)
    trees = program._place_plain(_pad((params, state, hyper), program.layout["members"]))
    over = program._spread(lambda *t: _over_members(one, population.block, t), (0, 0, 0), 0)
    return jax.device_get(_unpad(jax.jit(over)(*trees), population.size))
