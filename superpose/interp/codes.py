"""Sparse activations of an SAE over a corpus: one pass of the language model, kept on disk by latent.

A part holds so many contexts; the token at place t of context c has row c * C + t, padding and tokens left out being
silent rows. Each part is sorted by latent, so that a block of latents is a slice of every part: reading one needs the
memory of its activations, and making the codes that of one part's activations and of one pass of the model, in which
``DENSE`` bounds the array of all latents. Files are read once through when they are opened, for their checksums.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from superpose.interp.labels import pearson
from superpose.lm import checkpoints, sites
from superpose.lm.text import Contexts
from superpose.lm.transformer import Transformer
from superpose.sae.model import SAE
from superpose.train.checkpoint import clear_left_over, lock, write_all_atomically, write_atomically
from superpose.train.progress import bar

VERSION = 2
DENSE = 1 << 29
"""Bytes of the array [tokens, latents] of one pass; fewer contexts are passed at once where it would be larger."""


class CodesError(ValueError):
    """The folder is of something else, unfinished or damaged."""


@partial(jax.jit, static_argnames=("site", "units"))
def _acts(run: Any, sae: SAE, tokens: Any, site: str, units: str | None) -> tuple[Any, Any]:
    """Latents [B T, F], and the values of the units beside them, or None."""
    found = run(tokens)
    flat = lambda name: found[name].reshape(-1, found[name].shape[-1]).astype(jnp.float32)  # noqa: E731
    return sae.encode(flat(site)), None if units is None else flat(units)


def _npy(array: np.ndarray) -> bytes:
    held = BytesIO()
    np.save(held, array, allow_pickle=False)
    return held.getvalue()


def contexts_digest(contexts: Contexts) -> str:
    """Eight hexadecimal digits of the tokens, their number in each context, and their documents."""
    return array_digest(contexts.tokens, contexts.documents, contexts.lengths)


def facts_digest(facts: Any) -> str:
    """Eight hexadecimal digits of what JSON holds."""
    return f"{zlib.crc32(json.dumps(facts, sort_keys=True).encode()):08x}"


def array_digest(*arrays: Any) -> str:
    """Eight hexadecimal digits of arrays."""
    found = 0
    for array in arrays:
        x = np.ascontiguousarray(array)
        found = zlib.crc32(x.tobytes(), zlib.crc32(f"{x.shape} {x.dtype}".encode(), found))
    return f"{found:08x}"


def sae_digest(sae: SAE) -> str:
    """Eight hexadecimal digits of an SAE's kind and weights."""
    kind = np.frombuffer(repr(sae.arch).encode(), np.uint8)
    return array_digest(kind, *(getattr(sae, name)[...] for name in sorted(sae.arch.shapes())))


def model_digest(model: Transformer) -> str:
    """Eight hexadecimal digits of a model's shapes and of the beginning of each of its arrays."""
    found = checkpoints.weights(model)
    return array_digest(*(np.asarray(found[name].reshape(-1)[:4096]) for name in sorted(found)))


def write(
    path: str | Path,
    model: Transformer,
    sae: SAE,
    site: str,
    contexts: Contexts,
    facts: Mapping[str, Any],
    *,
    units: str | None = None,
    special: Sequence[int] = (),
    first: int = 0,
    passes: int = 32,
    part: int = 1024,
) -> "Codes":
    """Runs the model over the contexts and keeps what the latents say; goes on where a stopped run ended.

    Args:
        path: a folder; it is made.
        site: what the SAE reads.
        facts: what else must be the same for a stopped run to go on, beside model, SAE and texts: names, say.
        units: a site whose values are correlated with the latents (``mlp_post.0``: the neurons).
        special, first: tokens left out, as of ``harvest.Choice``.
        passes: contexts a pass.
        part: contexts a part.

    Raises:
        CodesError: other codes stand there.
        ValueError: the SAE is of another width than the site, or says NaN.
    """
    place, names = Path(path), {"reads": sites.resolve(model.config, site)}
    if units is not None:
        names["units"] = sites.resolve(model.config, units)
    if sites.width(model.config, names["reads"]) != sae.arch.d_in:
        raise ValueError(
            f"the SAE reads {sae.arch.d_in} numbers and {names['reads']} has "
            f"{sites.width(model.config, names['reads'])}: it is of another site or model"
        )
    n, C = contexts.tokens.shape
    about = {
        "version": VERSION, "latents": sae.arch.d_sae, "contexts": n, "context": C, "part": part, "sites": names,
        "texts": contexts_digest(contexts), "sae": sae_digest(sae), "model": model_digest(model),
        "special": [int(s) for s in special], "first": first,
        "facts": json.loads(json.dumps(dict(facts))),
    }  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    with lock(place):
        there = place / "codes.json"
        if there.exists():
            held = _manifest(place)
            mine, theirs = _flat(about), _flat(held)
            if differ := sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)):
                raise CodesError(
                    f"{place} holds codes of something else ({', '.join(differ)} differ): choose another folder, or "
                    "delete that one"
                )
        else:
            write_atomically(there, json.dumps(about, indent=1).encode())
        clear_left_over(place)
        passes = max(1, min(passes, DENSE // (4 * C * sae.arch.d_sae)))
        run = sites.capture(model, sorted(set(names.values())))
        total = -(-n // part)
        done = [i for i in range(total) if (place / f"{i:06d}.json").exists()]
        progress, task = bar("codes", total, len(done), unit="parts")
        with progress:
            for i in range(total):
                if i in done:
                    continue
                chosen = contexts.rows(np.arange(i * part, min(n, (i + 1) * part)))
                _write_part(place, i, _part(run, sae, chosen, names, special, first, passes))
                progress.update(task, advance=1)
    return Codes(place)


def _part(run, sae, contexts, names, special, first, passes) -> dict[str, np.ndarray]:
    beside = "units" in names
    n, C = contexts.tokens.shape
    keep = contexts.mask & ~np.isin(contexts.tokens, special) & (np.arange(C) >= first)
    at: list[np.ndarray] = []
    which: list[np.ndarray] = []
    values: list[np.ndarray] = []
    cross: Any = np.zeros((), np.float64)
    moments: Any = 0.0
    for i in range(0, n, passes):
        tokens = contexts.tokens[i : i + passes]
        tokens = np.pad(tokens, ((0, passes - len(tokens)), (0, 0)))
        acts, units = _acts(run, sae, jnp.asarray(tokens), names["reads"], names.get("units"))
        here = keep[i : i + passes].reshape(-1)
        acts = np.where(here[:, None], np.asarray(acts)[: len(here)], 0)
        if not np.isfinite(acts).all():
            raise ValueError("the SAE says NaN or infinite activations: look into its weights and the site")
        rows, columns = np.nonzero(acts)
        at.append(rows + i * C)
        which.append(columns)
        values.append(acts[rows, columns])
        if beside:
            units = np.where(here[:, None], np.asarray(units)[: len(here)], 0)
            cross = cross + sparse.csr_array((values[-1], (rows, columns)), shape=acts.shape).T @ units
            moments = moments + np.stack([units.sum(0, dtype=np.float64), (units.astype(np.float64) ** 2).sum(0)])
    rows, columns, said = np.concatenate(at), np.concatenate(which), np.concatenate(values)
    found = sparse.coo_array((said, (rows, columns)), shape=(n * C, sae.arch.d_sae)).tocsc()
    made = {"ends": found.indptr.astype(np.int64), "rows": found.indices.astype(np.int32),
            "values": found.data.astype(np.float32), "kept": np.array([keep.sum()])}  # fmt: skip
    return made | ({"cross": np.asarray(cross, np.float32), "moments": moments} if beside else {})


def _write_part(place: Path, number: int, arrays: Mapping[str, np.ndarray]) -> None:
    data = {name: _npy(array) for name, array in arrays.items()}
    write_all_atomically({place / f"{number:06d}.{name}.npy": raw for name, raw in data.items()})
    sums = {name: zlib.crc32(raw) for name, raw in data.items()}
    write_atomically(place / f"{number:06d}.json", json.dumps({"sums": sums}).encode())


def _flat(about: dict[str, Any]) -> dict[str, Any]:
    """A manifest with each of its facts by its own name."""
    facts = about.get("facts")
    return {k: v for k, v in about.items() if k != "facts"} | {
        f"facts.{k}": v for k, v in (facts if isinstance(facts, dict) else {}).items()
    }


def _manifest(place: Path) -> dict[str, Any]:
    try:
        found = json.loads((place / "codes.json").read_text())
        if not isinstance(found, dict):
            raise ValueError("not a table")
    except (OSError, ValueError) as error:
        mend = f"delete {place} and make them again" if (place / "codes.json").exists() else "make them first"
        raise CodesError(f"{place} holds no codes of an SAE: {mend} ({error})") from error
    return found


class Codes:
    """Codes that ``write`` made; nothing but what is asked for is read.

    Attributes:
        latents: F. tokens: rows, N = contexts * context, silent ones included.
        kept: rows that were not left out.
        about: the manifest.

    Raises:
        CodesError: no codes, unfinished or damaged ones.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.about = _manifest(self.path)
        self._read: dict[str, np.ndarray] = {}
        try:
            self.latents, self.tokens = self.about["latents"], self.about["contexts"] * self.about["context"]
            total = -(-self.about["contexts"] // self.about["part"])
        except (KeyError, TypeError) as error:
            raise CodesError(f"{self.path} holds no codes of an SAE: make them first ({error})") from error
        if self.about.get("version") != VERSION:
            raise CodesError(f"{self.path} was written by another version of this library: make the codes again")
        if missing := [i for i in range(total) if not (self.path / f"{i:06d}.json").exists()]:
            raise CodesError(f"{self.path} lacks {len(missing)} of {total} parts: let the run that makes it go on")
        self._parts = [{name: self._array(i, name) for name in ("ends", "rows", "values")} for i in range(total)]
        self.kept = sum(int(self._array(i, "kept")[0]) for i in range(total))

    def _array(self, number: int, name: str) -> np.ndarray:
        """One array of a part, mapped; its checksum is checked the first time."""
        file = self.path / f"{number:06d}.{name}.npy"
        if file.name in self._read:
            return self._read[file.name]
        try:
            found = np.load(file, mmap_mode="r", allow_pickle=False)
            wanted = json.loads((self.path / f"{number:06d}.json").read_text())["sums"][name]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CodesError(f"{file} can't be read: delete {self.path} and make it again ({error})") from error
        if zlib.crc32(file.read_bytes()) != wanted:
            raise CodesError(f"{file} is damaged, its checksum is another: delete {self.path} and make it again")
        self._read[file.name] = found
        return found

    @cached_property
    def counts(self) -> np.ndarray:
        """[F], tokens on which each latent is on."""
        return np.sum([np.diff(part["ends"]) for part in self._parts], 0)

    def block(self, start: int, end: int) -> sparse.csc_array:
        """[N, end - start], what the latents from start to end say of every token, rows ascending."""
        if not 0 <= start < end <= self.latents:
            raise ValueError(f"latents {start} to {end} are not within the {self.latents} that there are")
        rows, values, counts = [], [], []
        for i, part in enumerate(self._parts):
            ends = part["ends"][start : end + 1]
            where = slice(ends[0], ends[-1])
            rows.append(part["rows"][where].astype(np.int64) + i * self.about["part"] * self.about["context"])
            values.append(part["values"][where])
            counts.append(np.diff(ends))
        if len(rows) == 1:
            parts = (values[0], rows[0], np.concatenate([[0], np.cumsum(counts[0])]))
            return sparse.csc_array(parts, shape=(self.tokens, end - start))
        each = np.stack(counts)  # [parts, latents]: activations are ordered by latent, then by part
        latent = [np.repeat(np.arange(end - start), c) for c in counts]
        order = np.argsort(np.concatenate(latent), kind="stable")
        ends = np.concatenate([[0], np.cumsum(each.sum(0))])
        joined = (np.concatenate(values)[order], np.concatenate(rows)[order], ends)
        return sparse.csc_array(joined, shape=(self.tokens, end - start))

    def columns(self, latents: Any) -> sparse.csc_array:
        """[N, n], what some latents say, in the order asked for; those that lie between are not read."""
        asked = np.asarray(latents, int)
        order = np.unique(asked)
        ends = np.flatnonzero(np.diff(order) > 1) + 1
        runs = [self.block(int(run[0]), int(run[-1]) + 1) for run in np.split(order, ends)]
        held = runs[0] if len(runs) == 1 else sparse.hstack(runs, format="csc")
        return held if np.array_equal(asked, order) else held[:, np.searchsorted(order, asked)]

    def unit_correlations(self, latents: Any) -> tuple[np.ndarray, np.ndarray]:
        """Pearson's r of some latents and the units that were kept beside all of them, and the cosine of their values
        over all tokens, [n, units] each; both are 0 where one of the two is silent.

        Raises:
            CodesError: there are none.
        """
        if "units" not in self.about["sites"]:
            raise CodesError(f"{self.path} keeps no units beside the latents: make it with units")
        total, asked = range(len(self._parts)), np.asarray(latents, int)
        cross = sum(self._array(i, "cross")[asked].astype(np.float64) for i in total)
        moments = np.sum([self._array(i, "moments") for i in total], 0)
        found = self.columns(asked).astype(np.float64)
        x, xx = found.sum(0)[:, None], found.power(2).sum(0)[:, None]
        size = np.sqrt(xx * moments[1])
        cosine = np.divide(cross, size, out=np.zeros_like(cross), where=size > 0)
        return pearson(self.kept, x, xx, cross, moments[0], moments[1]), cosine
