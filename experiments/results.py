"""A result on disk: numbers (.npz) beside picture (.png) beside config, commit and claims (.json)."""

import hashlib
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from superpose.train.checkpoint import digest, write_all_atomically

VERSION = 2
"""Of the layout of these files; a file of another version is refused."""
ROOT = Path(__file__).parent.parent


class ResultError(RuntimeError):
    """A result file that can't be used; the message is one sentence for a person."""


def plain(config: Any) -> dict[str, Any]:
    """A ConfigDict as JSON would give it back (tuples are lists)."""
    found: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    return found


def commit() -> str:
    """The commit of the source tree, with "+" when files differ from it; "unknown" outside git."""

    def git(*args):
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--", "superpose", "experiments", "configs")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save(base: Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Writes ``base``.npz and ``base``.json, both or neither; the .json has the other's digest.

    Args:
        base: path without suffix.
        arrays: name -> array.
        about: JSON-able: config, claims, commit, times, versions.
    """
    arrays = {k: np.asarray(v) for k, v in arrays.items()}
    record = {"version": VERSION, "digest": digest(arrays), **about}
    text = json.dumps({**record, "seal": _seal(record)}, indent=1, allow_nan=False) + "\n"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_all_atomically({base.with_suffix(".npz"): buffer.getvalue(), base.with_suffix(".json"): text.encode()})


def _seal(record: dict[str, Any]) -> str:
    """SHA-256 (16 digits) of a .json without its seal: an edit shows."""
    text = json.dumps({k: v for k, v in record.items() if k != "seal"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_about(path: Path) -> dict[str, Any]:
    """The .json of a result.

    Raises:
        ResultError: it is missing, damaged, or of another version.
    """
    try:
        about = json.loads(path.read_text())
        version, seal = about["version"], about.get("seal")
    except FileNotFoundError:
        raise ResultError(f"there is no result {path}: run the experiment first, without --draw_only") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"the result file {path} is damaged ({error}): run the experiment again") from error
    if version != VERSION:
        raise ResultError(
            f"the result file {path} has layout version {version}, this code reads {VERSION}: run the experiment again"
        )
    if seal != _seal(about):
        raise ResultError(f"the result file {path} was edited or is damaged: run the experiment again")
    return about


def load(base: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, about) of a result.

    Raises:
        ResultError: a file is missing, truncated, edited, of another version, or the two are not of one run.
    """
    about = load_about(base.with_suffix(".json"))
    path = base.with_suffix(".npz")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as f:
            arrays = {k: f[k] for k in f.files}
    except FileNotFoundError:
        raise ResultError(f"there is no result {path}: run the experiment first, without --draw_only") from None
    except Exception as error:  # zipfile and numpy raise many kinds for a damaged file
        raise ResultError(f"the result file {path} is damaged and can't be read: run the experiment again") from error
    if digest(arrays) != about.get("digest"):
        raise ResultError(f"{path} does not hold what {base.name}.json describes: run the experiment again")
    return arrays, about
