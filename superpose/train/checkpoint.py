"""A work directory: one run's lock, checkpoints and logs. All that is known of Orbax stands here."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from superpose.train.progress import json_line, say

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax reports each save, and what it raises once more


class WorkdirError(RuntimeError):
    """A work directory that can't be used as asked; the message is one sentence for a person."""


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C or SIGTERM), has saved, and can be resumed from its work directory."""

    def __init__(self, step: int, signum: int, workdir: Path | None):
        kept = f"saved in {workdir}" if workdir else "nothing was saved: the run has no work directory"
        super().__init__(f"stopped after step {step}; {kept}")
        self.step, self.signum, self.workdir = step, signum, workdir


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list it yields; a second signal interrupts at once.

    Off the main thread, where Python takes no signal handlers, the list stays empty.
    """
    seen: list[int] = []

    def note(signum, frame):
        if seen:
            raise KeyboardInterrupt(signum)
        seen.append(signum)
        say("stopping at the end of this chunk of steps; once more to stop at once without saving")

    try:
        old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield seen
        return
    try:
        yield seen
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """An advisory OS lock on a directory; the kernel frees it when the process ends, however it ends.

    Raises:
        WorkdirError: another process holds it, or the directory can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = open(path / "lock", "a")
    except OSError as error:
        raise WorkdirError(f"cannot use the work directory {path}: {error.strerror}; choose another") from error
    os.register_at_fork(after_in_child=handle.close)  # or a forked worker would hold the lock after its parent's death
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkdirError(f"another run is using {path}; wait for it or choose another work directory") from error
        yield


def _mend(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    return "make room" if full else "see that the folder is there and may be written to,"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that is either whole or not there: temporary file, fsync, rename.

    Raises:
        WorkdirError: the disk refuses; what stood at ``path`` before is untouched.
    """
    write_all_atomically({Path(path): data})


def write_all_atomically(files: Mapping[Path, bytes]) -> None:
    """Writes files that belong together: none takes its place before all of them are on the disk.

    Raises:
        WorkdirError: the disk refuses; what stood at the paths before is untouched.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    path = next(iter(files))
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary[path], "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        for path in files:
            os.replace(temporary[path], path)
    except OSError as error:
        for left in temporary.values():
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
        raise WorkdirError(f"could not write {path}: {error.strerror}; {_mend(error)} and run again") from error


def is_left_over(path: Path) -> bool:
    """Whether this is the temporary file of a write that was killed."""
    return re.fullmatch(r"\..+\.\d+\.tmp", path.name) is not None


def clear_left_over(folder: Path, seconds: float = 3600) -> None:
    """Removes temporary files of writes that were killed so long ago, from a folder that is known to be ours."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if is_left_over(path) and path.is_file() and time.time() - path.stat().st_mtime > seconds:
                path.unlink()


def digest(arrays: dict[str, Any]) -> str | None:
    """SHA-256 over names, dtypes, shapes and bytes; None when other hosts hold a part of an array."""
    h = hashlib.sha256()
    for name in sorted(arrays):
        if isinstance(arrays[name], jax.Array) and not arrays[name].is_fully_addressable:
            return None
        a = np.asarray(arrays[name])
        h.update(f"{name}|{a.dtype}|{a.shape}|".encode())
        h.update(np.ascontiguousarray(a).view(np.uint8).data if a.size else b"")
    return h.hexdigest()


def _seal(step: int, arrays: dict[str, Any], meta: dict) -> str | None:
    """The digest of all that a checkpoint says, ``meta`` in the form in which JSON gives it back."""
    text = json.dumps([step, json.loads(json.dumps(meta))], sort_keys=True)
    return digest({**arrays, "meta": np.frombuffer(text.encode(), np.uint8)})


class Checkpoints:
    """Orbax checkpoints of a flat dict of arrays and a JSON-able ``meta``, and the logs cut to them.

    A checkpoint carries the digest of its own content: one that was truncated or edited is refused with a sentence.
    ``metrics.jsonl`` holds what a seed determines, ``timing.jsonl`` what the clock does.
    """

    def __init__(self, path: Path, keep: int = 2, *, only_read: bool = False):
        self.path = Path(path)
        options = ocp.CheckpointManagerOptions(  # what a killed save left is cleaned up, but not under who may save now
            max_to_keep=keep, cleanup_tmp_directories=not only_read, enable_async_checkpointing=False
        )
        handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        try:
            self._manager = ocp.CheckpointManager(
                (self.path / "checkpoints").absolute(), options=options, item_handlers=handlers
            )
        except OSError as error:
            raise WorkdirError(f"cannot use the work directory {path}: {error}; choose another") from error

    def save(self, step: int, arrays: dict[str, Any], meta: dict) -> None:
        """Saves after ``step`` updates.

        Raises:
            WorkdirError: the disk refused; the checkpoint before it is untouched.
        """
        try:
            meta = {**meta, "digest": _seal(step, arrays, meta)}
            self._manager.save(
                step, args=ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta))
            )
        except Exception as error:  # tensorstore reports a full disk as ValueError, Python as OSError
            for stale in (self.path / "checkpoints").glob(f"{step}*"):
                if "orbax-checkpoint-tmp" in stale.name:
                    shutil.rmtree(stale, ignore_errors=True)
            last = self._manager.latest_step()
            kept = "no earlier checkpoint stands" if last in (None, step) else f"the checkpoint of step {last} stands"
            reason = str(error).splitlines()[0][:200]
            raise WorkdirError(
                f"could not write the checkpoint of step {step} in {self.path} ({reason}); {kept}: "
                "make room and run the same command again"
            ) from error

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None when there is none."""
        return self._manager.latest_step()

    def restore(self) -> tuple[int, dict[str, Any], dict] | None:
        """The newest checkpoint as (step, numpy arrays, meta), or None when there is none.

        Raises:
            WorkdirError: it can't be read, or its arrays are not those that were saved.
        """
        step = self.latest
        if step is None:
            return None
        place = self.path / "checkpoints" / str(step)
        mend = f"delete {place} to go on from the checkpoint before it, or from the start"
        try:
            names = self._manager.item_metadata(step)["arrays"].tree
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            args = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(restore_args=as_numpy), meta=ocp.args.JsonRestore())
            found = self._manager.restore(step, args=args)
            arrays, meta = dict(found["arrays"]), found["meta"]
            expected = meta.pop("digest")
            measured = _seal(step, arrays, meta)
        except Exception as error:
            raise WorkdirError(f"the checkpoint {place} is damaged and can't be read; {mend}") from error
        if None not in (expected, measured) and expected != measured:
            raise WorkdirError(f"the checkpoint {place} does not hold what was saved (its digest differs); {mend}")
        return step, arrays, meta

    def cut_logs(self, step: int) -> None:
        """Drops what the logs say of later steps than ``step``, which a resumed run will say again."""
        for name in ("metrics.jsonl", "timing.jsonl"):
            path = self.path / name
            if path.exists():
                kept = []
                for line in path.read_text().splitlines():
                    with contextlib.suppress(json.JSONDecodeError):  # a line that a kill cut in two
                        if json.loads(line)["step"] <= step:
                            kept.append(line + "\n")
                write_atomically(path, "".join(kept).encode())

    def log(self, name: str, records: list[dict]) -> None:
        """Appends records to a JSON-lines file of the work directory."""
        try:
            with open(self.path / name, "a") as f:
                f.write("".join(json_line(r) for r in records))
        except OSError as error:
            raise WorkdirError(
                f"could not write {self.path / name}: {error.strerror}; {_mend(error)} and resume"
            ) from error

    def close(self) -> None:
        self._manager.close()
