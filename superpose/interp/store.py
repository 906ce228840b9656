"""Activations on disk: fixed-width rows of several sites, with the token, document and position of each.

    store/manifest.json            sites and widths, dtype, rows a block, and what the rows are of
    store/SITE/000007.bin          rows [R, width] of one shard, bfloat16 or float32, little-endian, nothing else
    store/about/000007.bin         int32 [R, 3]: token id, document, position
    store/000007.json              written last: rows, and the CRC-32 of every block of every file

A shard is there when its json is, so that a killed writer leaves whole shards and no others; the writer goes on at the
next one. A block's checksum is checked when the block is first read. Of the containers measured a plain memory map is
read fastest (docs/language_models.md). A path may be a folder, or an address that fsspec knows (gs://, s3://).
"""

import functools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import fsspec
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Int

from superpose import files
from superpose.train.checkpoint import WorkdirError, is_left_over, write_atomically

VERSION = 2  # since positions count text and not BOS
ABOUT = "about"
END = "end.json"
DTYPES: dict[str, Any] = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class StoreError(ValueError):
    """A store that can't be used as asked; the message is one sentence for a person."""


class Rows(NamedTuple):
    """Activations of some tokens.

    Attributes:
        values: site -> [R, width].
        tokens, documents, positions: [R].
    """

    values: dict[str, Any]
    tokens: Int[np.ndarray, " R"]
    documents: Int[np.ndarray, " R"]
    positions: Int[np.ndarray, " R"]


# --- where bytes lie --------------------------------------------------------------------------------------------------


class _Place(Protocol):
    def names(self) -> list[str]: ...
    def write(self, name: str, data: bytes) -> None: ...
    def read(self, name: str, start: int, end: int) -> np.ndarray: ...
    def read_all(self, name: str) -> bytes: ...


def _asked(method: Callable) -> Callable:
    """What a disk or a network refuses is no damage: nothing is known of the rows."""

    @functools.wraps(method)
    def ask(place, *args):
        try:
            return method(place, *args)
        except WorkdirError:
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if method.__name__ != "write":
                raise
            raise WorkdirError(f"{place.path} can't be written to: it does not exist, or is no folder") from error
        except place.refusals as error:
            where = "/".join([str(place.path), *args[:1]])
            raise WorkdirError(
                f"{where} can't be reached ({type(error).__name__}: {error}); what is there stands: mend that, and "
                "give the same command again"
            ) from error

    return ask


class _Folder:
    """A local folder; shards are mapped."""

    refusals = OSError

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._maps: dict[str, np.ndarray] = {}

    @_asked
    def names(self) -> list[str]:
        if not self.path.is_dir():
            return []
        return [p.name for p in self.path.iterdir() if p.is_file() and not is_left_over(p)]

    @_asked
    def write(self, name: str, data: bytes) -> None:
        write_atomically(self.path / name, data)

    @_asked
    def read(self, name: str, start: int, end: int) -> np.ndarray:
        if name not in self._maps:
            self._maps[name] = np.memmap(self.path / name, np.uint8, mode="r")
        return self._maps[name][start:end]

    @_asked
    def read_all(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class _Remote:
    """An address that fsspec knows (memory://, gs://, s3://); a read is a request for a range."""

    refusals = Exception  # not all of its drivers raise OSError

    def __init__(self, address: str):
        self.path = address
        try:
            self._files, self._root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise StoreError(f"{address} can't be opened ({error})") from error

    @_asked
    def names(self) -> list[str]:
        self._files.invalidate_cache(self._root)  # others write here, and some drivers remember
        try:
            found = self._files.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        return [entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] == "file"]

    @_asked
    def write(self, name: str, data: bytes) -> None:
        self._files.pipe_file(f"{self._root}/{name}", data)

    @_asked
    def read(self, name: str, start: int, end: int) -> np.ndarray:
        where = f"{self._root}/{name}"
        try:
            return np.frombuffer(self._files.cat_file(where, start=start, end=end), np.uint8)
        except FileNotFoundError:
            raise
        except Exception:
            if self._files.size(where) >= end:
                raise
            return np.zeros(0, np.uint8)  # a file that was cut short: some drivers refuse what lies behind its end

    @_asked
    def read_all(self, name: str) -> bytes:
        return self._files.cat_file(f"{self._root}/{name}")


def _place(path: str | Path) -> Any:
    path = str(path).removeprefix("file://")
    return _Remote(str(path)) if "://" in str(path) else _Folder(path)


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """What the rows of a store are.

    Attributes:
        sites: name -> width.
        dtype: a row of ``DTYPES``.
        block: rows that one checksum covers.
        facts: model, corpus, tokenizer, context, exclusions, ...: whatever must be equal for rows to be appended;
            only "code", the version that began the store, may differ.
    """

    sites: Mapping[str, int]
    dtype: str = "bfloat16"
    block: int = 1024
    facts: Mapping[str, Any] | None = None

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise StoreError(f"unknown dtype {self.dtype!r} of a store: choose one of {', '.join(DTYPES)}")
        sizes = [self.block, *self.sites.values()]
        if not self.sites or any(not isinstance(n, int) or n < 1 for n in sizes) or ABOUT in self.sites:
            raise StoreError("a store needs at least one site of width 1 or more, and blocks of at least 1 row")

    def as_json(self) -> dict[str, Any]:
        return {
            "version": VERSION, "sites": dict(self.sites), "dtype": self.dtype, "block": self.block,
            "facts": json.loads(json.dumps(dict(self.facts or {}))),
        }  # fmt: skip


def _shard(number: int) -> str:
    return f"{number:06d}"


def _sums(data: bytes, size: int) -> list[int]:
    return [zlib.crc32(memoryview(data)[i : i + size]) for i in range(0, len(data), size)]


class Writer:
    """Adds shards to a store. Several hosts may write at once, each shards of its own.

    ``done`` says of the shards that are there how many contexts each was made of: one of fewer than there are by now is
    written again.

    Raises:
        StoreError: another store stands there: sites, dtype or facts differ.
    """

    def __init__(self, path: str | Path, manifest: Manifest):
        self.path, self.manifest = str(path), manifest
        self._place = _place(path)
        said = manifest.as_json()
        names = self._place.names()
        if "manifest.json" in names:
            there = _manifest(self._place, path)
            differ = [k for k in said if k != "facts" and said[k] != there[k]]
            facts = (said["facts"].keys() | there["facts"].keys()) - {"code"}
            differ += [k for k in sorted(facts) if said["facts"].get(k) != there["facts"].get(k)]
            if differ:
                raise StoreError(
                    f"{path} is a store of something else ({', '.join(differ)} differ): choose another folder, or "
                    "delete that one"
                )
        elif names:
            raise StoreError(f"{path} holds files that are no store: choose another folder")
        else:  # each of several hosts writes the same bytes
            self._place.write("manifest.json", json.dumps(said, indent=1).encode())
        self.done = {number: about["contexts"] for number, about in _shards(self._place, path, manifest).items()}

    def write(self, number: int, rows: Rows, contexts: int = 0, dropped: int = 0) -> None:
        """Writes a shard, made of so many contexts, of which so many tokens were left out; rows may be none.

        Raises:
            StoreError: values of another width than the manifest says, or not finite.
            WorkdirError: the disk refuses; the shards before are untouched.
        """
        size = len(rows.tokens)
        dtype, block = DTYPES[self.manifest.dtype], self.manifest.block
        sums = {}
        parts: dict[str, Any] = {ABOUT: np.stack([rows.tokens, rows.documents, rows.positions], 1).astype("<i4")}
        for site, width in self.manifest.sites.items():
            values = np.asarray(rows.values[site])
            if values.shape != (size, width):
                raise StoreError(f"{site} must have shape {(size, width)}, got {values.shape}")
            kept = values.astype(dtype)
            if bad := int((~np.isfinite(kept.astype(np.float32))).sum()):
                raise StoreError(f"{site} holds {bad} of {values.size} values that are NaN or infinite in {dtype}")
            parts[site] = kept
        for name, values in parts.items():
            data = np.ascontiguousarray(values).view(np.uint8).tobytes()
            self._place.write(f"{name}/{_shard(number)}.bin", data)
            sums[name] = _sums(data, block * values.dtype.itemsize * values.shape[1])
        about = {"rows": size, "contexts": contexts, "dropped": dropped, "sums": sums}
        self._place.write(f"{_shard(number)}.json", json.dumps(about).encode())
        self.done[number] = contexts

    def end(self, contexts: int) -> None:
        """Notes that the store is whole when its shards are made of so many contexts."""
        self._place.write(END, json.dumps({"contexts": contexts}).encode())


def _shards(place: Any, path: Any, manifest: Manifest) -> dict[int, dict[str, Any]]:
    """What the json of every shard says, in order; its rows have as many checksums as they have blocks."""
    out = {}
    for number in sorted(int(n[:6]) for n in place.names() if n[:6].isdigit() and n.endswith(".json")):
        try:
            about = json.loads(place.read_all(f"{_shard(number)}.json"))
            counts = {name: int(about[name]) for name in ("rows", "contexts", "dropped")}
            sums = {name: list(about["sums"][name]) for name in (*manifest.sites, ABOUT)}
            if min(counts.values()) < 0 or {len(s) for s in sums.values()} != {-(-counts["rows"] // manifest.block)}:
                raise ValueError("other rows than there are checksums for")
            out[number] = {**counts, "sums": sums}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"shard {number} of {path} is damaged: delete {_shard(number)}.json") from error
    return out


def _manifest(place: Any, path: Any) -> dict[str, Any]:
    try:
        said = json.loads(place.read_all("manifest.json"))
        version = said["version"]
        if version == VERSION:
            Manifest(said["sites"], said["dtype"], said["block"], dict(said["facts"]))
    except FileNotFoundError as error:
        raise StoreError(
            f"{path} is no store of activations: harvest into it first (no manifest.json there)"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is no store of activations, or its manifest.json is damaged: harvest again"
        ) from error
    if version != VERSION:
        raise StoreError(f"{path} is a store of version {version}, and this code reads {VERSION}: harvest again")
    return said


# --- reading ----------------------------------------------------------------------------------------------------------


class Store:
    """The whole shards of a store, as one table of rows in the order in which they were harvested.

    Attributes:
        whole: whether the harvest that wrote it came to its end.
        dropped: tokens that were left out for their norm.

    Raises:
        StoreError: there is no store, one of another site, model or dtype than asked for, or one with a gap.
        WorkdirError: the disk or the network refuses, here or at a later read (of a file that is not mapped yet);
            that is not damage.
    """

    def __init__(self, path: str | Path, *, expect: Mapping[str, Any] | None = None, skip_damaged: bool = False):
        """Opens a store.

        Args:
            path: folder or address.
            expect: facts that must be as given (model, corpus, ...).
            skip_damaged: whether blocks whose checksum differs are left out and counted in ``damaged`` by
                ``batches`` and ``Shuffled``, instead of refused.
        """
        self.path, self.skip_damaged = str(path), skip_damaged
        self._place = _place(path)
        said = _manifest(self._place, path)
        self.manifest = Manifest(said["sites"], said["dtype"], said["block"], said["facts"])
        for name, value in (expect or {}).items():
            if said["facts"].get(name) != value:
                raise StoreError(f"{path} has {name} = {said['facts'].get(name)!r}, and {value!r} was asked for")
        shards = _shards(self._place, path, self.manifest)
        if (gaps := sorted(set(range(max(shards, default=-1) + 1)) - set(shards))) and not skip_damaged:
            raise StoreError(
                f"{path} has no shard {', '.join(map(str, gaps))}, and some after: harvest again, which makes those "
                "that are missing, or open the store with skip_damaged"
            )
        try:
            end = json.loads(self._place.read_all(END))["contexts"]
        except (OSError, ValueError, KeyError, TypeError):
            end = None
        self.whole = end == sum(about["contexts"] for about in shards.values())
        self.dropped = sum(about["dropped"] for about in shards.values())
        self._shards = list(shards)
        self._sums = [about["sums"] for about in shards.values()]
        counts = [about["rows"] for about in shards.values()]
        self._edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        block = self.manifest.block
        self._blocks = [(s, first) for s, n in enumerate(counts) for first in range(0, n, block)]
        self._checked: dict[tuple[str, int, int], bool] = {}
        self.damaged: set[tuple[str, int, int]] = set()

    def __len__(self) -> int:
        """Rows."""
        return int(self._edges[-1])

    @property
    def blocks(self) -> int:
        return len(self._blocks)

    def width(self, site: str) -> int:
        if site not in self.manifest.sites:
            raise StoreError(f"{self.path} has no site {site!r}: it has {', '.join(self.manifest.sites)}")
        return self.manifest.sites[site]

    def _read(self, name: str, number: int) -> np.ndarray | None:
        """A block of a site as stored, or None where it is damaged and that is allowed."""
        dtype = np.dtype("<i4") if name == ABOUT else DTYPES[self.manifest.dtype]
        width = 3 if name == ABOUT else self.width(name)
        shard, first = self._blocks[number]
        rows = min(self.manifest.block, int(self._edges[shard + 1] - self._edges[shard]) - first)
        size = width * dtype.itemsize
        file = f"{name}/{_shard(self._shards[shard])}.bin"
        key = (name, self._shards[shard], first)
        try:
            raw = self._place.read(file, first * size, (first + rows) * size)
            whole = len(raw) == rows * size
        except (OSError, ValueError, KeyError):
            raw, whole = np.zeros(0, np.uint8), False
        if key not in self._checked:
            said = self._sums[shard].get(name, [])
            place = first // self.manifest.block
            self._checked[key] = whole and place < len(said) and zlib.crc32(raw) == said[place]
        if not (self._checked[key] and whole):
            self.damaged.add(key)
            if self.skip_damaged:
                return None
            raise StoreError(
                f"rows {first} to {first + rows - 1} of {self.path}/{file} are damaged (their checksum differs): "
                f"delete {_shard(self._shards[shard])}.json there and harvest again, or open it with skip_damaged"
            )
        return raw.view(dtype).reshape(rows, width)

    def block_rows(self, sites: Sequence[str], number: int) -> Rows | None:
        """A block: the values as stored, and what they are of; None where a part is damaged and may be skipped."""
        parts = {name: self._read(name, number) for name in (*sites, ABOUT)}
        if any(part is None for part in parts.values()):
            return None
        about: Any = parts.pop(ABOUT)
        return Rows(parts, about[:, 0], about[:, 1], about[:, 2])

    def batches(self, sites: Sequence[str], batch: int) -> Iterator[Rows]:
        """All rows in order, in float32; the last batch may be shorter."""
        waiting: list[Rows] = []
        size = 0
        for number in range(self.blocks):
            rows = self.block_rows(sites, number)
            if rows is None:
                continue
            waiting.append(rows)
            size += len(rows.tokens)
            while size >= batch:
                whole = _join(waiting)
                yield _float(_part(whole, slice(0, batch)))
                waiting = [_part(whole, slice(batch, None))]
                size -= batch
        if size:
            yield _float(_join(waiting))


def _join(parts: Sequence[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    values = {site: np.concatenate([p.values[site] for p in parts]) for site in parts[0].values}
    return Rows(values, *(np.concatenate([getattr(p, n) for p in parts]) for n in Rows._fields[1:]))


def _part(rows: Rows, index: Any) -> Rows:
    return Rows({k: v[index] for k, v in rows.values.items()}, *(v[index] for v in rows[1:]))


def _float(rows: Rows) -> Rows:
    return rows._replace(values={k: np.asarray(v, np.float32) for k, v in rows.values.items()})


class Shuffled:
    """Rows of a store in random order, again and again: a Stream for ``train.fit``.

    Blocks are drawn in random order, so many at a time that a window is mixed row by row; the order is a function of
    (seed, epoch, window), so that a position is a number. Each row comes once an epoch, but for the last rows of an
    epoch that fill no batch.

    Args:
        store: what to read.
        sites: a site: batches are x [batch, width]; (site, site): (x, y), a transcoder's; ((site, ...),): sites side by
            side, a crosscoder's.
        batch: rows.
        seed: of the order.
        window: blocks that are mixed.
        blocks: numbers of those that are read; None reads all.

    Raises:
        StoreError: an unknown site, or fewer rows than a batch.
    """

    def __init__(
        self, store: Store, sites: Any, batch: int, seed: int = 0, window: int = 64, blocks: Sequence[int] | None = None
    ):
        self.store, self.sites, self.batch, self.seed, self.window = store, sites, batch, seed, window
        self.blocks = np.arange(store.blocks) if blocks is None else np.asarray(blocks, int)
        self._names = (
            [sites] if isinstance(sites, str) else [n for s in sites for n in ([s] if isinstance(s, str) else s)]
        )
        for name in self._names:
            store.width(name)
        self.rows_an_epoch = rows = int(self._sizes().sum())
        if rows < batch:
            raise StoreError(f"{store.path} holds {rows} rows to read, fewer than a batch of {batch}")
        self._epoch, self._at = 0, 0
        self._held: tuple[Any, Rows | None] = (None, None)
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None

    def get_state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "at": self._at}

    def set_state(self, state: Mapping[str, int]) -> None:
        self._epoch, self._at = int(state["epoch"]), int(state["at"])

    def _sizes(self) -> np.ndarray:
        """Rows of each of the blocks."""
        if not len(self.blocks):
            return np.zeros(0, int)
        shard, first = np.array(self.store._blocks)[self.blocks].T
        return np.minimum(self.store.manifest.block, np.diff(self.store._edges)[shard] - first)

    def _windows(self) -> tuple[np.ndarray, np.ndarray]:
        """The order of blocks in this epoch, and where each window of rows ends."""
        if self._order is None or self._order[0] != self._epoch:
            order = np.random.default_rng([self.seed, 0, self._epoch]).permutation(len(self.blocks))
            edges = np.r_[self.window - 1 : len(order) - 1 : self.window, len(order) - 1]
            self._order = (self._epoch, self.blocks[order], np.cumsum(self._sizes()[order])[edges])
        return self._order[1:]

    def _window(self, number: int, order: np.ndarray) -> Rows:
        key = (self._epoch, number)
        if self._held[0] != key:
            chosen = order[number * self.window : (number + 1) * self.window]
            found = [rows for i in sorted(chosen) if (rows := self.store.block_rows(self._names, int(i))) is not None]
            if not found:
                raise StoreError(f"a whole window of blocks of {self.store.path} is damaged: harvest again")
            rows = _join(found)
            mixed = np.random.default_rng([self.seed, 1, self._epoch, number]).permutation(len(rows.tokens))
            self._held = (key, _part(rows, mixed))
        assert self._held[1] is not None
        return self._held[1]

    def rows(self) -> Rows:
        """The next batch with tokens, documents and positions."""
        parts: list[Rows] = []
        missing, begun = self.batch, self._epoch
        while missing:
            order, ends = self._windows()
            if self._at + missing > ends[-1]:  # the rest of the epoch fills no batch
                self._epoch, self._at, parts, missing = self._epoch + 1, 0, [], self.batch
                if self._epoch > begun + 1:
                    raise StoreError(f"what of {self.store.path} is not damaged fills no batch of {self.batch} rows")
                continue
            number = int(np.searchsorted(ends, self._at, side="right"))
            start = self._at - (int(ends[number - 1]) if number else 0)
            held = self._window(number, order)
            there = int(ends[number]) - (int(ends[number - 1]) if number else 0)
            part = _part(held, slice(start, min(start + missing, there)))
            self._at += min(missing, there - start)
            missing -= min(missing, there - start)
            parts.append(part)
            if len(held.tokens) < there:  # damaged blocks were left out
                missing = self.batch - sum(len(p.tokens) for p in parts)
        return _float(_join(parts))

    def __next__(self) -> Any:
        rows = self.rows()
        return shaped(rows.values, self.sites)


def shaped(values: Mapping[str, np.ndarray], sites: Any) -> Any:
    """A batch as an SAE (a name), a transcoder (two names) or a crosscoder (a tuple of names in a tuple) takes it."""
    if isinstance(sites, str):
        return values[sites]
    if len(sites) == 1:
        return np.concatenate([values[name] for name in sites[0]], 1)
    return tuple(shaped(values, s if isinstance(s, str) else (s,)) for s in sites)


def mixing(store: Store, batch: int, batches: int, window: int = 64, seed: int = 0) -> float:
    """How well shuffled reading mixes documents: pairs of rows in a batch that share a document, over what rows drawn
    one by one would have; 1 is perfect.
    """
    counts = np.zeros(1, np.int64)
    for rows in store.batches([], 2**16):
        found = np.bincount(rows.documents)
        size = max(len(found), len(counts))
        counts = np.pad(counts, (0, size - len(counts))) + np.pad(found, (0, size - len(found)))
    n = counts.sum()
    chance = (counts * (counts - 1)).sum() / (n * (n - 1))
    stream, pairs = Shuffled(store, next(iter(store.manifest.sites)), batch, seed, window), 0
    for _ in range(batches):
        found = np.bincount(stream.rows().documents)
        pairs += (found * (found - 1)).sum()
    return float(pairs / (batches * batch * (batch - 1)) / chance)


class Foreign(Store):
    """Rows written elsewhere, as a store of one site: the .npy or .safetensors files [rows, d] of a folder.

    Raises:
        StoreError: no such file, or files of different widths.
    """

    def __init__(self, path: str | Path, site: str = "x", block: int = 1024):
        self.path, self.skip_damaged, self.damaged = str(path), False, set()
        self.whole, self.dropped = True, 0
        self._tables = _tables(Path(path))
        self.manifest = Manifest({site: self._tables[0].shape[1]}, "float32", block, {"source": "foreign"})
        counts = [len(t) for t in self._tables]
        self._edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._blocks = [(s, first) for s, n in enumerate(counts) for first in range(0, n, block)]

    def _read(self, name: str, number: int) -> np.ndarray:
        shard, first = self._blocks[number]
        table = self._tables[shard][first : first + self.manifest.block]
        if name == ABOUT:  # nothing is known of tokens; the file stands for the document
            about = np.full((len(table), 3), -1, np.int32)
            about[:, 1], about[:, 2] = shard, np.arange(first, first + len(table))
            return about
        self.width(name)
        values = np.asarray(table, np.float32)
        if bad := int((~np.isfinite(values)).sum()):
            raise StoreError(f"{self.path} holds {bad} values that are NaN or infinite in rows from {first}: drop them")
        return values


def _tables(path: Path) -> list[np.ndarray]:
    tables: list[np.ndarray] = []
    for file in sorted([*path.glob("*.npy"), *path.glob("*.safetensors")]):
        try:
            if file.suffix == ".npy":
                found = [np.load(file, mmap_mode="r", allow_pickle=False)]
            else:
                found = list(files.map_safetensors(file).values())
        except (ValueError, OSError, EOFError) as error:
            raise StoreError(f"{file} can't be read ({str(error)[:100]}): copy it again") from error
        for table in found:
            if table.ndim != 2 or not jnp.issubdtype(table.dtype, jnp.floating):
                raise StoreError(f"{file} holds {table.dtype} of shape {table.shape}, not rows [rows, d] of floats")
            tables.append(table)
    if not tables:
        raise StoreError(f"{path} holds no .npy or .safetensors file: give a folder of activations")
    if len(widths := {t.shape[1] for t in tables}) > 1:
        raise StoreError(f"the files of {path} have rows of different widths {sorted(widths)}: keep one site a folder")
    return tables
