"""Trains populations of models: one model is written for one setting, `vmap` makes the population.

The loop, for every step: draw the batch (once if it is shared), then for every population map over blocks of members,
and inside a block vmap one member's update. Blocks have a fixed size and the last one is padded, so a member's bits
depend neither on how many others there are nor on where it stands. With several devices the blocks are spread over the
mesh axis ``population``; members beyond ``max_members`` wait in host memory for their turn.
"""

import contextlib
import dataclasses
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

ZERO = np.int32(0)
LARGE = 2**24
"""A block of more bytes than this is not copied to keep bits equal; see ``_over_members``."""
POPULATION = "population"
"""Name of the mesh axis over which members are spread."""
DIVERGED = 1e3
"""A member whose loss exceeds this many times its first value, if that is positive, has diverged."""
FIRST_DRAWS = 10
"""The first value is the untrained member's largest loss over so many batches: a sparse one may be all zeros. Of a
Stream it is that of the first batch."""
LISTED = 64
"""Populations up to this size have every member's metrics in metrics.jsonl; larger ones mean, min and max."""
FEED = 2**28
"""Bytes of a Stream's batches that are put on the device at a time."""
SMALL = 2**16
"""Models of at most so many parameters share a block, unless a population says otherwise."""
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
        between: (members, hyper, source, key, step) -> members, on the host after the listed steps (0: before the
            first); sees the whole population (NumPy leaves [N, ...], its optimiser state included) and may return all
            of it edited, but not its shapes. What it takes from a Stream, the populations beside it do not see.
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

    ``get_state`` returns something JSON can hold. ``fit`` looks at one batch and sets the position back before it
    starts.
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
        block: members in one vmapped block; None takes 16 small models, or one that is larger than ``SMALL``. Changing
            it may change the last bits of a result.
        param_spec: params of one member -> their PartitionSpecs over mesh axes other than ``population``; also
            applied to what the optimiser keeps per parameter.
    """

    objective: Objective
    recipe: Any
    hyper: Mapping[str, Any]
    source: Sampler | None = None
    block: int | None = None
    param_spec: Callable | None = None

    @property
    def size(self) -> int:
        return len(self.hyper["seed"])

    def transform(self, hyper):
        return getattr(self.recipe, "transform", self.recipe)(hyper)


class Members(NamedTuple):
    """All that changes while members train; leaves have leading axes [N] for the caller, [blocks, block] inside.

    ``first`` is the loss that divergence is measured against (``FIRST_DRAWS``); ``frozen_at`` is the step at which a
    member was frozen, or -1.
    """

    params: PyTree
    opt_state: PyTree
    state: PyTree
    first: Any
    frozen_at: Any


@dataclass
class Result:
    """What one population ends with.

    Attributes:
        params, state, opt_state: leaves [N, ...].
        history: metric -> [K, N], each the mean over the steps since the entry before; ``history_steps`` [K].
        records: what ``Objective.record`` returned, leaves [len(record_steps), N, ...].
        record_steps: the steps of ``record_at``, in order, each once.
        frozen_at: [N], the step at which a member diverged, -1 for those that did not.
        seconds: wall time of this call's steps without compilation; ``compile_seconds`` that of their compilation.
    """

    params: PyTree
    state: PyTree
    opt_state: PyTree
    history: dict[str, np.ndarray]
    history_steps: np.ndarray
    records: PyTree
    record_steps: np.ndarray
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
    return Members(params, opt_state, state, jnp.float32(0), jnp.int32(-1))


def _without_nan(tree: PyTree, test: Callable = lambda x: ~jnp.isnan(x)):
    """Whether all floats of a tree pass the test."""
    floats = [x for x in map(jnp.asarray, jax.tree.leaves(tree)) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.asarray([jnp.all(test(x)) for x in floats])) if floats else jnp.bool_(True)


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
    if objective.grads is not None:
        grads = objective.grads(member.params, grads)

    diverged = (member.first > 0) & (loss > DIVERGED * member.first)
    sound = jnp.isfinite(loss) & _without_nan(grads, jnp.isfinite) & _without_nan(state)
    alive = member.frozen_at < 0
    moved = alive & sound & ~diverged

    def update():
        updates, opt_state = pop.transform(hyper).update(grads, member.opt_state, member.params)
        params = optax.apply_updates(member.params, updates)
        if objective.project is not None:
            params = objective.project(params, hyper, step)
        good = _without_nan(params, jnp.isfinite)
        params = jax.tree.map(lambda new, old: jnp.where(good, new, old), params, member.params)
        return params, opt_state, state, good

    def stay():
        return member.params, member.opt_state, member.state, jnp.bool_(False)

    params, opt_state, state, good = lax.cond(moved, update, stay)  # under vmap both are computed and one is chosen
    frozen_at = jnp.where(alive & ~good, step, member.frozen_at)
    return Members(params, opt_state, state, member.first, frozen_at), {"loss": loss, **metrics}


# --- blocks, devices --------------------------------------------------------------------------------------------------


def _over_members(fn: Callable, block: int, trees: tuple, zero, in_place: bool = False) -> PyTree:
    """Applies a member's function to leaves [blocks, block, ...]: vmap inside a block, a loop over blocks.

    The compiler must not see that there is one block, or it fuses the loop's body with what stands around it and the
    bits are others than among more blocks. So the length of the loop is hidden from it, and a single block either gets
    an empty one beside it, or, where memory counts (``LARGE``), blocks are fenced off, at the price of a copy.

    Args:
        zero: the number 0, unknown to the compiler.
        in_place: fn returns (what replaces the first tree, the rest); that tree's memory is used again.
    """

    def apply(trees):
        if block > 1:
            return jax.vmap(fn)(*trees)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], fn(*jax.tree.map(lambda x: x[0], trees)))

    def at(tree, i):
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 0, keepdims=False), tree)

    blocks, fenced = jax.tree.leaves(trees)[0].shape[0], _is_large(trees)
    fence = lax.optimization_barrier if fenced else lambda tree: tree
    spare = int(blocks == 1)
    if spare:
        trees = jax.tree.map(lambda x: jnp.concatenate([x, x]), trees)

    def body(i, out):
        new = fence(apply(fence(at((out[0], *trees[1:]) if fenced and in_place else trees, i))))
        put = lambda o, x: lax.dynamic_update_index_in_dim(o, x.astype(o.dtype), i, 0)  # noqa: E731
        return jax.tree.map(put, out, new)

    shapes = jax.eval_shape(lambda: apply(at(trees, 0)))
    out = jax.tree.map(lambda s: jnp.zeros((blocks + spare, *s.shape), s.dtype), shapes)
    if fenced and in_place:
        out = (trees[0], out[1])
    out = lax.fori_loop(0, blocks + zero, body, out)
    return jax.tree.map(lambda x: x[:blocks], out) if spare else out


def _is_large(tree: PyTree) -> bool:
    """Whether a block of leaves [blocks, block, ...] has more bytes than ``LARGE``."""
    return sum(x.size * x.dtype.itemsize // x.shape[0] for x in jax.tree.leaves(tree)) > LARGE


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
    """Leaves [..., blocks, block, ...] -> [..., N, ...], the blocks at ``axis``.

    One leaf after the other: devices exchange their parts, and on CPU several exchanges under way can take each other's
    threads, upon which XLA aborts the process.
    """

    def one(x):
        shape = x.shape
        x = jax.block_until_ready(x.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]))
        return x if x.shape[axis] == size else jax.block_until_ready(x[(slice(None),) * axis + (slice(0, size),)])

    return jax.tree.map(one, tree)


def population_mesh(blocks: int) -> Mesh | None:
    """A one-axis mesh over the devices that so many blocks can use, or None when that is one device."""
    devices = jax.devices()[: max(1, blocks)]
    if len(devices) == 1:
        return None
    return Mesh(np.array(devices), (POPULATION,), axis_types=(AxisType.Auto,))


def available_bytes(devices: int) -> int:
    """Memory that populations may fill: half of what these devices (on CPU: the machine or its cgroup) have free."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) * devices // 2
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or one without a limit ("max")
        limit, used = (int(Path("/sys/fs/cgroup", f"memory.{k}").read_text()) for k in ("max", "current"))
        free = min(free, limit - used)
    return free // 2


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
        self.batch_spec = P() if batch_spec is None else batch_spec
        self.compile_seconds = 0.0
        self._compiled = None
        self._makers: dict[Any, Callable] = {}

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

        def make(keys, hyper, zero):
            members = _over_members(lambda k, h: _init_member(pop, k, h), pop.block, (keys, hyper), zero)
            return members, self._records(pop, members, zero)

        if name not in self._makers:  # once for all slices of the population
            make = self._spread(make, (0, 0, None), (0, 1))
            out = None
            if self.mesh is not None:
                members, records = jax.eval_shape(make, keys, hyper, ZERO)
                spec = NamedSharding(self.mesh, P(None, POPULATION) if self.split else P())
                out = (self.shardings(name, members), jax.tree.map(lambda _: spec, records))
            self._makers[name] = jax.jit(make, out_shardings=out)
        return self._makers[name](keys, hyper, ZERO)

    def first_losses(self, name, members, keys, hyper, stream_key, batch):
        """The largest loss of each untrained member over ``FIRST_DRAWS`` batches, or on a Stream's first batch."""
        pop, draws = self.pops[name], 1 if isinstance(self.source, Stream) else FIRST_DRAWS
        shares = isinstance(self.source, Sampler) and self.source.shared and pop.source is None

        def largest(params, state, keys, hyper, stream_key, batch, zero):
            def draw(i, most):
                i = np.uint32(2**31) + i.astype(jnp.uint32)  # beyond all steps: these draws are no step's
                shared = self.shared_batch(jax.random.fold_in(stream_key, i)) if shares else batch

                def one(params, state, key, h):
                    data_key, loss_key = jax.random.split(jax.random.fold_in(key, i))
                    x = shared if pop.source is None else pop.source.sample(data_key, h)
                    loss = pop.objective.loss(params, state, x, loss_key, jnp.int32(0), h)[0]
                    return jnp.asarray(loss, jnp.float32)

                return jnp.maximum(most, _over_members(one, pop.block, (params, state, keys, hyper), zero))

            return lax.fori_loop(0, draws, draw, jnp.zeros(jax.tree.leaves(keys)[0].shape[:2]))

        if ("first", name) not in self._makers:
            spread = self._spread(largest, (0, 0, 0, 0, None, None, None), 0)
            self._makers["first", name] = jax.jit(spread, out_shardings=members.first.sharding if self.mesh else None)
        args = (members.params, members.state, keys, hyper, stream_key, batch, ZERO)
        return self._makers["first", name](*args)

    def place(self, name, members: Members, records) -> tuple[Members, PyTree]:
        """Padded host or device arrays -> where the loop wants them."""
        shardings = self.shardings(name, members)
        members = jax.device_put(members) if shardings is None else jax.device_put(members, shardings)
        return members, self._place_plain(records, axis=1)

    def _batch_shardings(self, mesh, batch, lead=()):
        """NamedShardings of a shared batch; ``batch_spec`` is one spec for all its leaves, or a tree of specs."""
        is_spec = lambda s: isinstance(s, P)  # noqa: E731
        fill = lambda spec, part: jax.tree.map(lambda _: NamedSharding(mesh, P(*lead, *spec)), part)  # noqa: E731
        return jax.tree.map(fill, self.batch_spec, batch, is_leaf=is_spec)

    def place_batches(self, batches):
        if self.mesh is None:
            return jax.device_put(batches)
        return jax.device_put(batches, self._batch_shardings(self.mesh, batches, lead=(None,)))

    def shared_batch(self, key):
        """A shared Sampler's batch, spread as ``batch_spec`` says."""
        batch = self.source.sample(key)
        if self.mesh is None or self.batch_spec == P():
            return batch
        mesh = jax.sharding.get_abstract_mesh() if self.split else self.mesh
        return lax.with_sharding_constraint(batch, self._batch_shardings(mesh, batch))

    def _records(self, pop, members, zero):
        if pop.objective.record is None or not len(self.record_at):
            return ()
        seen = _over_members(pop.objective.record, pop.block, (members.params,), zero)
        empty = jax.tree.map(lambda x: jnp.zeros((len(self.record_at), *x.shape), x.dtype), seen)
        return self._write_records(pop, empty, members, jnp.int32(0), zero)

    def _write_records(self, pop, records, members, step, zero):
        """Writes record(params) into its row if ``step`` is listed."""
        at = jnp.asarray(self.record_at)
        row = jnp.minimum(jnp.searchsorted(at, step), len(self.record_at) - 1)

        def write(records):
            seen = _over_members(pop.objective.record, pop.block, (members.params,), zero)
            return jax.tree.map(lambda r, s: lax.dynamic_update_index_in_dim(r, s, row, 0), records, seen)

        return lax.cond(at[row] == step, write, lambda records: records, records)

    # the loop

    def _chunk(self, carry, keys, hyper, stream_key, batches, start, stop, zero):
        """Steps [start, stop) of every population of the group; metrics come back as sums over them."""

        def advance(name, members, batch, step):
            pop = self.pops[name]
            if name in alone:
                key, values = jax.tree.map(lambda x: x[0, 0], (keys[name], hyper[name]))
                members, metrics = _update_member(pop, members, key, values, batch, step)
                return members, jax.tree.map(lambda x: jnp.asarray(x)[None, None], metrics)
            one = lambda m, k, h: _update_member(pop, m, k, h, batch, step)  # noqa: E731
            return _over_members(one, pop.block, (members, keys[name], hyper[name]), zero, in_place=True)

        def batch_of(step):
            if isinstance(self.source, Sampler):
                return self.shared_batch(jax.random.fold_in(stream_key, step)) if self.source.shared else None
            return jax.tree.map(lambda b: b[step - start], batches)

        def body(step, carry):
            batch, out = batch_of(step), {}
            for name, (members, records, sums) in carry.items():
                members, metrics = advance(name, members, batch, step)
                if jax.tree.leaves(records):
                    records = self._write_records(self.pops[name], records, whole(name, members), step + 1, zero)
                out[name] = (members, records, jax.tree.map(jnp.add, sums, metrics))
            return out

        def zeros(name, members):
            shapes = jax.eval_shape(lambda: advance(name, members, batch_of(start), start))[1]
            return jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)

        def whole(name, members):
            return jax.tree.map(lambda x: x[None, None], members) if name in alone else members

        # a large member alone: without its axes [1, 1] inside the loop, where dropping them would copy it twice a step
        single = lambda m: jax.tree.leaves(m)[0].shape[:2] == (1, 1) and _is_large(m)  # noqa: E731
        alone = {name for name, (m, _) in carry.items() if single(m)}
        carry = {
            name: (jax.tree.map(lambda x: x[0, 0], m) if name in alone else m, r) for name, (m, r) in carry.items()
        }
        carry = {name: (m, r, zeros(name, m)) for name, (m, r) in carry.items()}
        carry = lax.fori_loop(start, stop, body, carry)
        return (
            {name: (whole(name, m), r) for name, (m, r, _) in carry.items()},
            {name: sums for name, (_, _, sums) in carry.items()},
        )

    def run(self, carry, keys, hyper, stream_key, batches, start, stop):
        """One chunk; compiled at the first call. ``carry`` is donated."""
        args = (carry, keys, hyper, stream_key, batches, jnp.int32(start), jnp.int32(stop), ZERO)
        if self._compiled is None:
            clock = time.perf_counter()
            axes = {name: (0, 1) for name in self.pops}
            fn = self._spread(self._chunk, (axes, 0, 0, None, None, None, None, None), (axes, 0))
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


def _refuse_not_finite(batch: PyTree, what: str) -> None:
    for leaf in map(np.asarray, jax.tree.leaves(batch)):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and (bad := int((~np.isfinite(leaf)).sum())):
            raise ValueError(f"{what} has {bad} of {leaf.size} values that are not finite: mend or drop them")


def _peek(source: Stream) -> PyTree:
    """A Stream's next batch; its position is set back, by way of JSON as a checkpoint will do it."""
    place = source.get_state()
    try:
        place = json.loads(json.dumps(place))
    except TypeError as error:
        raise ValueError(f"the stream's get_state must return what JSON can hold ({error}), got {place!r}") from None
    try:
        batch = next(source)
    except StopIteration:
        raise ValueError("the stream has no batch: give one that is not at its end") from None
    source.set_state(place)
    return batch


def _program_of(pop: Population, source, key, batch) -> str:
    """One member's init and update as JAX lowers them: another objective, source or recipe gives another text."""
    hyper = {k: np.asarray(v)[0] for k, v in pop.hyper.items()}

    def one(key, hyper, batch):
        member = _init_member(pop, key, hyper)
        if isinstance(source, Sampler) and source.shared:
            batch = source.sample(key)
        record = pop.objective.record(member.params) if pop.objective.record else ()
        return _update_member(pop, member, key, hyper, batch, jnp.int32(0)), record

    return jax.jit(one).lower(key, hyper, batch).as_text()  # constants and all


def _fingerprint(populations, source, batch, steps, key, log_every, record_at, between_at) -> str:
    """What must be equal for a checkpoint to belong to this run."""
    h = hashlib.sha256()
    h.update(json.dumps([steps, log_every, list(record_at), list(between_at)]).encode())
    h.update(np.asarray(jax.random.key_data(key)).tobytes())
    for leaf in jax.tree.leaves(batch):
        h.update(np.asarray(leaf).tobytes())
    for name, pop in populations.items():
        h.update(f"{name}|{pop.size}|{pop.block}|{_program_of(pop, source, key, batch)}|".encode())
        for k in sorted(pop.hyper):
            a = np.asarray(pop.hyper[k])
            h.update(f"{k}|{a.dtype}|{a.shape}|".encode() + a.tobytes())
    return h.hexdigest()


def _check(populations, source, steps, log_every, record_at, between_at, max_members):
    for what, value in {"steps": steps, "log_every": log_every, "max_members": max_members}.items():
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"{what} must be a whole number of at least 1, got {value!r}")
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
        if pop.block is not None and pop.block < 1:
            raise ValueError(f"block of population {name!r} must be at least 1, got {pop.block}")
        planned = getattr(pop.recipe, "steps", steps)
        if planned != steps and getattr(pop.recipe, "schedule", "constant") != "constant":
            raise ValueError(f"the schedule of population {name!r} is made for {planned} steps, but fit takes {steps}")
    if any(s < 0 or s > steps for s in record_at):
        raise ValueError(f"record_at must lie in [0, {steps}], got {list(record_at)}")
    if any(s < 0 or s > steps for s in between_at):
        raise ValueError(f"between_at must lie in [0, {steps}], got {list(between_at)}")
    if bool(between_at) != any(p.objective.between is not None for p in populations.values()):
        raise ValueError("between_at and an objective's between need each other: give both or neither")


def _listed(what: str, steps) -> list[int]:
    """Listed steps in order, each once."""
    for step in steps:
        if not isinstance(step, int | np.integer):
            raise ValueError(f"{what} must hold whole numbers, got {step!r}")
    return sorted({int(s) for s in steps})


def _settled(pop: Population, key) -> Population:
    """The population with its block size chosen, and its init checked."""
    hyper = {k: jnp.asarray(np.asarray(v)[0]) for k, v in pop.hyper.items()}
    member = jax.eval_shape(lambda: _init_member(pop, key, hyper))
    for leaf in jax.tree.leaves((member.params, member.state)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError("params and state can't hold typed random keys: keep jax.random.key_data(key) instead")
    if pop.block is not None:
        return pop
    return dataclasses.replace(pop, block=_default_block(sum(x.size for x in jax.tree.leaves(member.params))))


def _default_block(parameters: int) -> int:
    return 16 if parameters <= SMALL else 1


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
    each = max(1, 3 * size(member) + 2 * records * size(record))
    if pop.block * each > budget:
        say(f"a block of {pop.block} members takes {pop.block * each / 1e9:.1f} GB, memory has {budget / 1e9:.1f} GB "
            "to give: it may not suffice; a smaller block needs less")  # fmt: skip
    return max(pop.block, budget // each // pop.block * pop.block)


def _kept_sound(edited: Members, kept: Members, step: int) -> Members:
    """What a hook returned; members in which it left parameters that are not finite are frozen as they were."""
    floats = [x for x in jax.tree.leaves(edited.params) if jnp.issubdtype(x.dtype, jnp.inexact)]
    bad = ~np.all([np.isfinite(x).reshape(len(x), -1).all(1) for x in floats], axis=0)
    if not floats or not bad.any():
        return edited
    put_back = lambda new, old: np.where(bad.reshape(-1, *[1] * (new.ndim - 1)), old, new)  # noqa: E731
    edited = jax.tree.map(put_back, edited, jax.tree.map(np.asarray, kept))
    return edited._replace(frozen_at=np.where(bad & (edited.frozen_at < 0), np.int32(step), edited.frozen_at))


class _Run:
    """The host's side: chunks, hooks between them, logs, checkpoints."""

    def __init__(self, pops, groups, source, batch, steps, root, stream_key, log_every, record_at, between_at):
        self.pops, self.groups, self.source, self.steps, self.root = pops, groups, source, steps, root
        self.stream_key, self.log_every, self.record_at, self.batch = stream_key, log_every, record_at, batch
        self.between_at = between_at
        self.step = 0
        self.history: dict[str, dict[str, list]] = {name: {} for name in pops}
        self.history_steps: list[int] = []
        self.seconds = 0.0
        size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(batch))
        self.feed = min(log_every, max(1, FEED // size)) if size else log_every  # steps that one transfer serves

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
            past = {k[len(mark) : -2]: list(a) for k, a in arrays.items() if k.startswith(mark)}
            self.history[name] = dict(sorted(past.items()))  # the order in which jit returns metrics
        self.history_steps, self.step = list(meta["history_steps"]), step
        if isinstance(self.source, Stream):
            self.source.set_state(meta["source"])
        store.cut_logs(step)
        if step < self.steps:
            say(f"resuming {store.path} after step {step}")

    # the loop

    def _pull(self, start, stop):
        """Batches [start, stop) of a Stream, padded to ``feed`` steps so that one program serves all."""
        if not isinstance(self.source, Stream):
            return ()
        batches = []
        for step in range(start, stop):
            try:
                batches.append(jax.tree.map(np.asarray, next(self.source)))
            except StopIteration:
                raise ValueError(
                    f"the stream ended at step {step} of {self.steps}: give more data or fewer steps"
                ) from None
            _refuse_not_finite(batches[-1], f"the stream's batch for step {step}")
        batches += batches[:1] * (self.feed - len(batches))
        return jax.tree.map(lambda *b: np.stack(b), *batches)

    def _stop_of_chunk(self) -> int:
        ends = [(self.step // self.log_every + 1) * self.log_every, self.steps]
        return min(ends + [s for s in self.between_at if s > self.step])

    def _one_chunk(self) -> None:
        start, stop = self.step, self._stop_of_chunk()
        sums: dict[str, dict[str, np.ndarray]] = {name: {} for name in self.pops}
        parts = [(a, min(a + self.feed, stop)) for a in range(start, stop, self.feed)]
        pulled = self._pull(*parts[0])
        for i, (a, b) in enumerate(parts):
            seen: dict[str, list] = {name: [] for name in self.pops}
            for g in self.groups:
                carry = g.carry
                if len(self.groups) > 1:
                    carry = {name: g.program.place(name, *c) for name, c in carry.items()}
                batches = g.program.place_batches(pulled)
                clock, compiling = time.perf_counter(), g.program.compile_seconds
                carry, metrics = g.program.run(carry, g.keys, g.hyper, self.stream_key, batches, a, b)
                if g is self.groups[-1] and i + 1 < len(parts):
                    pulled = self._pull(*parts[i + 1])  # while the device works
                metrics = jax.device_get(metrics)
                g.carry = jax.device_get(carry) if len(self.groups) > 1 else carry
                self.seconds += time.perf_counter() - clock - (g.program.compile_seconds - compiling)
                for name, m in metrics.items():
                    seen[name].append(_unpad(m, g.slices[name][1] - g.slices[name][0]))
            for name, slices in seen.items():
                for k in slices[0]:
                    sums[name][k] = sums[name].get(k, 0) + np.concatenate([m[k] for m in slices])
        for name, totals in sums.items():
            for k, total in totals.items():
                self.history[name].setdefault(k, []).append(total / np.float32(stop - start))
        self.step = stop
        self.history_steps.append(stop)
        self._between()

    def _between(self) -> None:
        """The hooks, if this step is listed."""
        if self.step not in self.between_at:
            return
        key = jax.random.fold_in(jax.random.fold_in(self.root, 2**31), self.step)
        for name, pop in self.pops.items():
            if pop.objective.between is not None:
                members, records = self.gather(name)
                kept = jax.device_get(members)
                members = jax.tree.map(np.array, kept)  # copies, to be written on
                like = lambda tree: jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), tree)  # noqa: E731
                kinds = like(members)
                edited = pop.objective.between(members, pop.hyper, pop.source or self.source, key, self.step)
                if like(edited) != kinds:
                    raise ValueError(
                        f"the between hook of population {name!r} changed the structure, a shape or a dtype of its "
                        "members: return what was given, with other values"
                    )
                self.scatter(name, _kept_sound(edited, kept, self.step), records)

    def _first_losses(self) -> None:
        """What divergence is measured against, after a hook at step 0."""
        for g in self.groups:
            for name, (members, records) in g.carry.items():
                if len(self.groups) > 1:
                    members, records = g.program.place(name, members, records)
                args = (g.keys[name], g.hyper[name], self.stream_key, self.batch)
                members = members._replace(first=g.program.first_losses(name, members, *args))
                g.carry[name] = jax.device_get((members, records)) if len(self.groups) > 1 else (members, records)

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

    def _judge_data(self, name: str, i: int, step: int) -> None:
        """Before member i counts as diverged at a step: whether the batch, drawn again, was what is not finite."""
        pop, source = self.pops[name], self.pops[name].source or self.source
        if not isinstance(source, Sampler):
            return  # a Stream's batches were looked at before they were used
        hyper = {k: np.asarray(v)[i] for k, v in pop.hyper.items()}
        run_key = _keys(self.root, jnp.asarray(hyper["seed"])[None])[0, 1]
        if source.shared:
            batch = jax.jit(source.sample)(jax.random.fold_in(self.stream_key, step))
        else:
            batch = jax.jit(source.sample)(jax.random.split(jax.random.fold_in(run_key, step))[0], hyper)
        _refuse_not_finite(batch, f"the sampler's batch for step {step} of population {name!r}")

    def _name_frozen(self, known: dict[str, np.ndarray]) -> None:
        for name, pop in self.pops.items():
            frozen = self._frozen(name)
            new = np.flatnonzero((frozen >= 0) & (known[name] < 0))
            for i in new[:5].tolist():
                self._judge_data(name, i, int(frozen[i]))
                values = ", ".join(f"{k}={np.asarray(v)[i]:.6g}" for k, v in pop.hyper.items() if np.ndim(v) == 1)
                say(f"member {i} of {name!r} ({values}) diverged at step {frozen[i]} and is frozen")
            if len(new) > 5:
                say(f"... and {len(new) - 5} more members of {name!r}")
            known[name] = frozen

    def train(self, store, identity, checkpoint_seconds, stops, title, quiet) -> None:
        known = {name: np.full(pop.size, -1) for name, pop in self.pops.items()}
        saved_at, timed = time.monotonic(), self.seconds
        if self.step == 0:
            self._between()
            self._first_losses()
        progress, task = bar(title, self.steps, self.step, quiet)
        with progress:
            while self.step < self.steps:
                before = self.step
                self._one_chunk()
                self._name_frozen(known)
                lines = self._records_of_chunk()
                if store is not None:
                    store.log("metrics.jsonl", lines)
                    speed = {"step": self.step, "steps": self.step - before, "seconds": self.seconds - timed}
                    store.log("timing.jsonl", [speed])
                    timed = self.seconds
                loss = lines[0]["loss"]["mean"]
                progress.update(task, completed=self.step, loss="-" if loss is None else f"{loss:.4g}")
                stopping = bool(stops)  # looked at once: a signal that comes later stops after the next chunk
                if store is not None:
                    due = time.monotonic() - saved_at >= checkpoint_seconds
                    if due or stopping or self.step == self.steps:
                        self.save(store, identity)
                        saved_at = time.monotonic()
                if stopping:
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
                record_steps=np.asarray(self.record_at),
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
    record_at, between_at = _listed("record_at", record_at), _listed("between_at", between_at)
    _check(pops, source, steps, log_every, record_at, between_at, max_members)
    if isinstance(source, Sampler) and not source.shared:
        pops = {n: p if p.source else dataclasses.replace(p, source=source) for n, p in pops.items()}
    pops = {n: _settled(p, key) for n, p in pops.items()}
    if mesh == "auto":
        mesh = population_mesh(max(-(-p.size // p.block) for p in pops.values()))  # type: ignore[operator]
    elif isinstance(mesh, Mesh):  # jax.make_mesh makes explicit axes, whose types a loss would have to state
        mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    with contextlib.ExitStack() as stack:
        stops = stack.enter_context(stop_signals())
        store, identity = None, ""
        batch = _peek(source) if isinstance(source, Stream) else None
        if workdir is not None:
            stack.enter_context(lock(Path(workdir)))
            store = stack.enter_context(contextlib.closing(Checkpoints(Path(workdir))))
            identity = _fingerprint(pops, source, batch, steps, key, log_every, record_at, between_at)
        root, stream_key = jax.random.split(key)
        groups = _groups(pops, source, key, root, record_at, mesh, batch_spec, max_members)
        run = _Run(pops, groups, source, batch, steps, root, stream_key, log_every, record_at, between_at)
        if store is not None:
            run.resume(store, identity)
        run.train(store, identity, checkpoint_seconds, stops, title, quiet)
    results = run.results()
    return results["members"] if single else results


def _groups(pops, source, key, root, record_at, mesh, batch_spec, max_members) -> list[_Group]:
    """The slices of the populations, initialised one after another; several of them wait in host memory."""
    budget = available_bytes(1 if mesh is None else mesh.size) // len(pops)
    limits = {
        n: min(p.size, max_members or p.size, _members_that_fit(p, key, budget, len(record_at)))
        for n, p in pops.items()
    }
    all_slices = _slices(pops, limits)
    programs: dict[tuple, _Program] = {}
    groups = []
    for slices in all_slices:
        names = tuple(slices)
        if names not in programs:
            programs[names] = _Program({n: pops[n] for n in names}, limits, source, record_at, mesh, batch_spec)
        program = programs[names]
        hyper, init_keys, run_keys = program.constants(root, slices)
        carry = {n: program.fresh(n, init_keys[n], hyper[n]) for n in names}
        carry = jax.device_get(carry) if len(all_slices) > 1 else carry
        groups.append(_Group(program, slices, hyper, run_keys, carry))
    return groups


def evaluate(
    population: Population,
    params: PyTree,
    state: PyTree = (),
    *,
    key: jax.Array,
    source: Sampler | Stream | None = None,
    batches: int = 1,
    step: int = 0,
    mesh: Mesh | str | None = "auto",
) -> dict[str, np.ndarray]:
    """Loss and metrics of trained members on fresh batches, without training.

    Batch b comes from the key folded with b, the same for every member: members are compared on the same draws. A
    Stream gives its next batches.

    Args:
        population: as it was trained; its objective and hyperparameters are used.
        params, state: leaves [N, ...], of a Result.
        key: of the held-out batches.
        source: where they come from; None takes the population's own source.
        batches: how many are averaged.
        step: what the objective is told; give the last one where it follows a schedule.
        mesh: as for ``fit``.

    Returns:
        "loss" and each metric -> [N].

    Raises:
        ValueError: there is no source or no batch, or a Stream's batch holds NaN or infinite values.
    """
    source = source or population.source
    if source is None or batches < 1:
        raise ValueError("evaluate needs a source, of the population or given, and at least one batch")
    size = sum(x.size for x in jax.tree.leaves(params)) // population.size
    pop = dataclasses.replace(population, block=population.block or _default_block(size))
    lengths = {len(x) if np.ndim(x) else None for x in jax.tree.leaves((params, state))}
    if lengths - {pop.size}:
        raise ValueError(f"params and state need {pop.size} members, as hyper has, got leaves of length {lengths}")
    if mesh == "auto":
        mesh = population_mesh(-(-pop.size // pop.block))  # type: ignore[operator]
    program = _Program({"members": pop}, {"members": pop.size}, source, (), mesh, None)

    def judge(params, state, hyper, zero, b, batch):
        """Loss and metrics on batch b, leaves [blocks, block]."""
        batch_key, loss_key = jax.random.split(jax.random.fold_in(key, b))
        if isinstance(source, Sampler) and source.shared:
            batch = source.sample(batch_key)

        def one(params, state, hyper):
            x = batch if batch is not None else source.sample(batch_key, hyper)  # type: ignore[union-attr]
            loss, (_, metrics) = pop.objective.loss(params, state, x, loss_key, jnp.int32(step), hyper)
            return jax.tree.map(jnp.float32, {"loss": loss, **metrics})

        return _over_members(one, program.layout["members"][1], (params, state, hyper), zero)

    def judge_all(params, state, hyper, zero):
        shapes = jax.eval_shape(lambda: judge(params, state, hyper, zero, 0, None))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        add = lambda b, sums: jax.tree.map(jnp.add, sums, judge(params, state, hyper, zero, b, None))  # noqa: E731
        return lax.fori_loop(0, batches, add, zeros)

    hyper = {k: np.asarray(v) for k, v in pop.hyper.items()}
    trees = program._place_plain(_pad((params, state, hyper), program.layout["members"]))
    if isinstance(source, Stream):
        over = jax.jit(program._spread(judge, (0, 0, 0, None, None, None), 0))
        seen = []
        for b in range(batches):
            _refuse_not_finite(batch := next(source), f"the stream's batch {b} of the evaluation")
            seen.append(jax.device_get(over(*trees, ZERO, jnp.int32(b), batch)))
        sums = jax.tree.map(lambda *x: np.sum(x, 0), *seen)
    else:
        sums = jax.device_get(jax.jit(program._spread(judge_all, (0, 0, 0, None), 0))(*trees, ZERO))
    return jax.tree.map(lambda x: x / np.float32(batches), _unpad(sums, pop.size))
