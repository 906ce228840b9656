"""Activations of a language model over a corpus: into a store, or straight into training, by the same passes.

A model is any function tokens [B, T] -> {site: [B, T, d]}; ``lm.sites.capture`` makes one of ours, and
docs/language_models.md shows foreign NNX and Linen modules. Rows come in the order of the contexts, so that what is
harvested is a function of model and corpus alone.
"""

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from superpose.interp.store import DTYPES, Manifest, Rows, StoreError, Writer, shaped
from superpose.train.progress import bar, say


class Texts(NamedTuple):
    """Contexts as a pass takes them; ``lm.text.Contexts`` has the same fields and more.

    Attributes:
        tokens: [N, C].
        lengths: [N], tokens of a row that count; what follows is padding.
        documents: [N].
        starts: [N], place of a row's first token in its document; -1 for a BOS before the first.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class Choice:
    """Which tokens are harvested.

    Attributes:
        special: ids left out (BOS, end of text).
        first: so many tokens at the start of each context are left out.
        outlier: tokens whose norm at any of the sites exceeds this many times the median of their context are left
            out; None keeps them.
    """

    special: tuple[int, ...] = ()
    first: int = 0
    outlier: float | None = None


@jax.jit
def _pass(run, tokens):
    return run(tokens)


def _callable(run: Callable) -> Any:
    """A function as something that may go through jit; what it binds stays an argument, not a constant."""
    return run if isinstance(run, jax.tree_util.Partial) else jax.tree_util.Partial(run)


def data_mesh() -> Mesh | None:
    """All devices of this process as one axis over which contexts are spread."""
    devices = jax.local_devices()
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,)) if len(devices) > 1 else None


def _parts(values: jax.Array) -> list[np.ndarray]:
    """What each device of this process holds of [B, T, d], in order of B, without a copy where devices allow it."""
    shards = [shard for shard in values.addressable_shards if shard.replica_id == 0]
    if any(shard.data.shape[1:] != values.shape[1:] for shard in shards):  # split along T or d
        return [np.asarray(values)]
    return [np.asarray(shard.data) for shard in sorted(shards, key=lambda shard: shard.index[0].start or 0)]


def _kept(values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Rows [n, d] of the tokens that are kept, copied once, or not at all where none is left out.

    ``values`` [contexts, T, d] may go on beyond ``keep`` [contexts, T].
    """
    values = values.reshape(-1, values.shape[-1])
    return values[: keep.size] if keep.all() else np.take(values, np.flatnonzero(keep), axis=0, mode="clip")


class Harvest:
    """Passes over contexts.

    Args:
        run: tokens [B, T] -> {site: [B, T, d]}.
        texts: contexts.
        batch: contexts a pass; several devices share it where they divide it, else one makes all.
        choice: which tokens are kept.
    """

    def __init__(self, run: Callable, texts: Any, batch: int = 32, choice: Choice = Choice()):
        self.run, self.texts, self.batch, self.choice = _callable(run), texts, batch, choice
        mesh = data_mesh()
        self._place = None
        split = any(
            len(leaf.sharding.device_set) > 1 for leaf in jax.tree.leaves(self.run) if isinstance(leaf, jax.Array)
        )  # weights that are split already stay where they are
        if mesh is not None and batch % mesh.size == 0 and not split:
            self._place = NamedSharding(mesh, P("data"))
            self.run = jax.device_put(self.run, NamedSharding(mesh, P()))
        if not len(texts.tokens):
            raise ValueError("there is no context to harvest: the corpus is empty")
        if batch < 1:
            raise ValueError(f"batch must be at least 1 context, got {batch}")
        self.dropped = 0

    def of(self, texts: Any) -> "Harvest":
        """The same passes over other contexts."""
        other = copy.copy(self)
        other.texts, other.dropped = texts, 0
        return other

    def count(self, contexts: Sequence[int] | np.ndarray) -> int:
        """Rows that some contexts have, those left out for their norm included; nothing is computed."""
        return int(self._by_rule(np.asarray(contexts)).sum())

    def _start(self, chosen: np.ndarray) -> Any:
        """Begins a pass; the last one of few contexts is filled up with its first."""
        tokens = self.texts.tokens[chosen]
        if len(tokens) < self.batch:
            tokens = np.concatenate([tokens, np.repeat(tokens[:1], self.batch - len(tokens), 0)])
        return _pass(self.run, tokens if self._place is None else jax.device_put(tokens, self._place))

    def _by_rule(self, chosen: np.ndarray) -> np.ndarray:
        """Which tokens of some contexts are kept, norms left aside."""
        tokens, c = self.texts.tokens[chosen], self.choice
        place = np.arange(tokens.shape[1])
        return (place < self.texts.lengths[chosen][:, None]) & (place >= c.first) & ~np.isin(tokens, c.special)

    def _rows(self, chosen: np.ndarray, found: Mapping[str, Any]) -> Iterator[Rows]:
        """The rows of a pass, of each device apart."""
        T = self.texts.tokens.shape[1]
        for site, values in found.items():
            if values.ndim != 3 or values.shape[:2] != (self.batch, T):
                raise ValueError(f"{site} must be [B, T, d] = ({self.batch}, {T}, d), got {values.shape}")
        parts = [_parts(values) for values in found.values()]
        if len({tuple(map(len, part)) for part in parts}) > 1:  # sites that are not split alike
            parts = [[np.concatenate(part)] for part in parts]
        for part in zip(*parts, strict=True):
            here, chosen = chosen[: len(part[0])], chosen[len(part[0]) :]
            if len(here):
                yield self._taken(here, dict(zip(found, part, strict=True)))

    def _taken(self, chosen: np.ndarray, host: dict[str, np.ndarray]) -> Rows:
        """Rows of some contexts, whose values may go on beyond them."""
        texts, c = self.texts, self.choice
        tokens = texts.tokens[chosen]
        place = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        keep = self._by_rule(chosen)
        if c.outlier is not None:
            before = keep.sum()
            for values in host.values():
                norms = np.linalg.norm(values[: len(keep)].astype(np.float32), axis=-1)
                among = np.where(keep.any(1, keepdims=True), np.where(keep, norms, np.nan), 0)
                keep = keep & (norms <= c.outlier * np.nanmedian(among, 1, keepdims=True))
            self.dropped += int(before - keep.sum())
        documents = np.broadcast_to(texts.documents[chosen][:, None], tokens.shape)
        positions = texts.starts[chosen][:, None] + place
        return Rows({s: _kept(v, keep) for s, v in host.items()}, tokens[keep], documents[keep], positions[keep])

    def widths(self) -> dict[str, int]:
        """Site -> d, without computing anything."""
        shape = (self.batch, self.texts.tokens.shape[1])
        found = jax.eval_shape(self.run, jax.ShapeDtypeStruct(shape, np.int32))
        return {site: value.shape[-1] for site, value in found.items()}

    def rows(self, contexts: Sequence[int] | np.ndarray) -> Iterator[Rows]:
        """Rows of some contexts, in their order, those of each device and pass apart.

        The next pass computes while the last is taken apart. Not so on one CPU device: there two passes at once took
        longer than in turn, unless malloc kept its memory (docs/language_models.md, "How fast").
        """
        chosen = np.asarray(contexts)
        ahead: deque[tuple[np.ndarray, Any]] = deque()
        most = 1 if jax.default_backend() == "cpu" and self._place is None else 2
        for i in range(0, len(chosen), self.batch):
            part = chosen[i : i + self.batch]
            ahead.append((part, self._start(part)))
            if len(ahead) == most:
                yield from self._rows(*ahead.popleft())
        for left in ahead:
            yield from self._rows(*left)

    def plan(self, dtype: str = "bfloat16", passes: int = 3) -> dict[str, int | float]:
        """What a harvest of everything will take: rows (before those left out for their norm), bytes, and seconds as
        measured on a few passes."""
        n, dropped = len(self.texts.tokens), self.dropped
        rows = self.count(np.arange(n))
        size = sum(self.widths().values()) * DTYPES[dtype].itemsize + 12
        first = np.arange(min(n, self.batch))
        for _ in self.rows(first):
            pass
        start = time.perf_counter()
        for _ in range(passes):
            for _ in self.rows(first):
                pass
        seconds = (time.perf_counter() - start) / passes * -(-n // self.batch)
        self.dropped = dropped
        return {"rows": rows, "bytes": rows * size, "seconds": seconds}

    def save(
        self, path: Any, facts: Mapping[str, Any], *, dtype: str = "bfloat16", shard: int = 1024, block: int = 1024
    ) -> None:
        """Writes a store, or goes on with one that was stopped, from the first shard that is not whole.

        Under ``jax.distributed`` each host makes every so-manieth shard with its own devices, into a place that all
        of them reach, and returns when all are done.

        Args:
            path: see ``store.Writer``.
            facts: what the rows are of: model, corpus, tokenizer; what is known here (context, choice) is added.
            shard: contexts a shard.
            block: rows a checksum.

        Raises:
            StoreError: another store stands there. WorkdirError: the disk refuses.
        """
        if shard < 1:
            raise StoreError(f"a shard needs at least 1 context, got {shard}")
        n, c = len(self.texts.tokens), self.choice
        known = {"context": self.texts.tokens.shape[1], "special": list(c.special), "first": c.first, "shard": shard,
                 "outlier": c.outlier}  # fmt: skip
        manifest = Manifest(self.widths(), dtype, block, {**facts, **known})
        host, hosts = jax.process_index(), jax.process_count()
        writer = Writer(path, manifest)
        shards = range(-(-n // shard))
        sizes = [min(n, (i + 1) * shard) - i * shard for i in shards]
        if sum(writer.done.values()) > n:
            raise StoreError(
                f"{path} holds {sum(writer.done.values())} contexts, more than the {n} asked for: leave it as it is, "
                "or choose another folder"
            )
        done = sum(writer.done.get(i) == sizes[i] for i in shards)
        progress, task = bar("harvest", len(shards), done, unit="shards")
        with progress:
            for number in shards:
                if writer.done.get(number) == sizes[number] or number % hosts != host:
                    continue
                before = self.dropped
                parts = list(self.rows(number * shard + np.arange(sizes[number])))
                values = {site: np.concatenate([p.values[site] for p in parts]) for site in manifest.sites}
                rows = Rows(values, *(np.concatenate([getattr(p, f) for p in parts]) for f in Rows._fields[1:]))
                writer.write(number, rows, sizes[number], self.dropped - before)
                progress.update(task, advance=1)
        if hosts > 1:
            multihost_utils.sync_global_devices("harvest")
        writer.end(n)
        if self.dropped:
            say(f"{self.dropped} tokens were left out for their norm")


class Live:
    """Activations straight from the model, mixed: a Stream for ``train.fit``, without a disk between.

    A generation is so many contexts in an order that is a function of (seed, epoch), its rows mixed in one that is a
    function of (seed, generation): a resumed run harvests one generation again and goes on bit for bit. Rows that fill
    no batch at the end of a generation are left out.

    Args:
        harvest: passes.
        sites: as of ``store.Shuffled``.
        batch: rows.
        seed: of the order.
        contexts: of a generation.
    """

    def __init__(self, harvest: Harvest, sites: Any, batch: int, seed: int = 0, contexts: int = 512):
        self.harvest, self.sites, self.batch, self.seed = harvest, sites, batch, seed
        self.contexts = min(contexts, len(harvest.texts.tokens))
        self._generation, self._at = 0, 0
        self._held: tuple[int, dict[str, np.ndarray]] | None = None

    def get_state(self) -> dict[str, int]:
        return {"generation": self._generation, "at": self._at}

    def set_state(self, state: Mapping[str, int]) -> None:
        self._generation, self._at = int(state["generation"]), int(state["at"])

    def _values(self) -> dict[str, np.ndarray]:
        if self._held is None or self._held[0] != self._generation:
            n = len(self.harvest.texts.tokens)
            each = n // self.contexts
            epoch, part = divmod(self._generation, each)
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(n)
            chosen = order[part * self.contexts : (part + 1) * self.contexts]
            found = list(self.harvest.rows(chosen))
            values = {site: np.concatenate([f.values[site] for f in found]) for site in found[0].values}
            rows = len(next(iter(values.values())))
            if rows < self.batch:
                raise StoreError(
                    f"a generation has {rows} rows, fewer than a batch of {self.batch}: take more contexts"
                )
            mixed = np.random.default_rng([self.seed, 1, self._generation]).permutation(rows)
            self._held = (self._generation, {site: v[mixed].astype(np.float32) for site, v in values.items()})
        return self._held[1]

    def __next__(self) -> Any:
        values = self._values()
        if self._at + self.batch > len(next(iter(values.values()))):
            self._generation, self._at = self._generation + 1, 0
            values = self._values()
        start, self._at = self._at, self._at + self.batch
        return shaped({site: v[start : start + self.batch] for site, v in values.items()}, self.sites)
