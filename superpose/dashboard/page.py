"""Pages: records written as HTML files that hold their own scripts, styles and data and ask no network for anything."""

import base64
import glob
import hashlib
import html
import json
import string
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from superpose.dashboard.records import NEAR
from superpose.lm.text import written
from superpose.train.checkpoint import write_atomically

A_FILE = 1000
"""Latents a file; more are split into files beside an index."""


def pack(record: Mapping[str, Any]) -> str:
    """A record as the page unpacks it: JSON, deflated, in base64."""
    raw = json.dumps(record, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    return base64.b64encode(zlib.compress(raw, 6)).decode()


def unpack(packed: str) -> dict[str, Any]:
    """What ``pack`` packed.

    >>> unpack(pack({"n": 3}))
    {'n': 3}
    """
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def _inside_a_script(value: Any) -> str:
    """JSON that can't end the script element that it stands in."""
    raw = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return raw.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _clean(text: str) -> str:
    """Names of files may hold what is no character."""
    return text.encode("utf-8", "replace").decode()


def _part(name: str) -> str:
    return (resources.files("superpose.dashboard") / "page" / name).read_text(encoding="utf-8")


def ids_in(record: Mapping[str, Any]) -> set[int]:
    """Tokens that a record names."""
    found = {int(i) for row in record["examples"]["ids"] for i in row}
    for name in ("negative", "positive"):
        found |= set(record.get(name, [[]])[0])
    for name in ("up", "down"):
        found |= {i for row in record["examples"].get(name, [[]])[0] for i in row}
    return found


def stability(record: Mapping[str, Any]) -> float | None:
    """Mean of the best correlations with latents of the other SAEs, 0 for one in which nothing correlates; None of a
    latent that is silent, and where there are no other SAEs."""
    best = [scores[0] if scores else 0.0 for _, scores in record.get("others", {}).values()]
    return float(np.mean(best)) if best and record["on"] else None


class Index:
    """Columns of the index, filled as records pass by."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {
            k: [] for k in ("n", "name", "text", "density", "max", "f1", "stability", "effect")
        }

    def add(self, record: Mapping[str, Any]) -> None:
        why = record.get("why") or {}
        row = {
            "n": record["n"], "name": record.get("name", ""), "text": why.get("text", ""), "f1": why.get("f1"),
            "density": record.get("density"), "max": record["max"], "effect": record.get("effect"),
            "stability": stability(record),
        }  # fmt: skip
        for name, value in row.items():
            self.columns[name].append(value)

    def part(self, start: int, end: int) -> dict[str, list[Any]]:
        """Some rows, without the columns that say nothing."""
        found = {name: values[start:end] for name, values in self.columns.items()}
        return {name: v for name, v in found.items() if name == "n" or any(x not in (None, "") for x in v)}


def named(path: str | Path) -> Path:
    """The path of a page.

    Raises:
        ValueError: it does not end in .html.
    """
    if Path(path).suffix != ".html":
        raise ValueError(f"a page's name must end in .html, got {Path(path).name!r}")
    return Path(path)


def _text(piece: bytes) -> str | list[int]:
    """What a token says: a text, or its bytes where they are no whole characters."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


def write(
    path: str | Path,
    records: Iterable[Mapping[str, Any]],
    title: str,
    pieces: Sequence[bytes],
    *,
    note: str = "",
    documents: Sequence[str] = (),
    prompts: Sequence[Mapping[str, Any]] = (),
    plan: Callable[[], tuple[Any, str]] | None = None,
    of: str = "token",
    a_file: int = A_FILE,
) -> list[Path]:
    """Writes pages of all records; more than ``a_file`` go to files beside, and ``path`` is their index.

    Files are whole or not there; the index is written last. The files beside it carry a digest of all records in their
    names, so that an index never leads to another run's; those of an older index are removed when the new one stands.
    Packed records (under 20 kB each, a third more as text) are held until then, for each file says where the others
    are.

    Args:
        path: ends in .html.
        records: as ``records.records`` makes them; read once, packed as they come.
        title, note: what they are of, in words.
        pieces: bytes of each token.
        documents: names of the texts.
        prompts: texts shown with their features: name, ids, and for each token a list of (latent, activation, share of
            the latent's largest).
        of: what an example is one of, in the singular; of samples of a world, words are generators.
        plan: gives places on the map [n, 2], in the order of the records, and what the map is in words; it is asked for
            when all records have been packed.

    Returns:
        the files, the index last.

    Raises:
        ValueError: there is no record, they do not ascend, or the name does not end in .html.
        WorkdirError: the disk refuses.
    """
    path = named(path)
    title, note = _clean(title), _clean(note)
    documents = [_clean(name) for name in documents]
    index, files, digest = Index(), [], hashlib.sha256()
    packed: list[tuple[int, str]] = []
    used: set[int] = set()

    def flush() -> None:
        start = len(index.columns["n"]) - len(packed)
        ends = (index.columns["n"][start], index.columns["n"][-1])
        files.append((ends, list(packed), set(used), start))
        packed.clear()
        used.clear()

    # a file is kept until all are known, for each of them says where the others are; packed they are small
    for record in records:
        if index.columns["n"] and record["n"] <= index.columns["n"][-1]:
            raise ValueError("records must come in ascending order of their latents")
        if len(packed) == a_file:
            flush()
        index.add(record)
        packed.append((record["n"], pack(record)))
        digest.update(packed[-1][1].encode())
        used |= ids_in(record)
    if not index.columns["n"]:
        raise ValueError("there is no latent to show: name at least one")
    flush()
    beside = f"{path.stem}-{digest.hexdigest()[:8]}"
    names = [path.name] if len(files) == 1 else [f"{beside}-{i:03d}.html" for i in range(len(files))]
    ranges = [] if len(files) == 1 else [(*ends, name) for (ends, *_), name in zip(files, names, strict=True)]
    common = {"title": title, "note": note, "near": NEAR, "of": of, "documents": list(documents), "home": path.name,
              "files": ranges}  # fmt: skip
    said = {i for text in prompts for i in text["ids"]}

    def page(
        name: str, held: Sequence[tuple[int, str]], ids: set[int], rows: Mapping[str, list[Any]], **more: Any
    ) -> Path:
        about = {
            **common,
            "file": name,
            "tokens": {i: _text(pieces[i]) or f"⟨{i}⟩" for i in sorted(ids)},
            "index": rows,
            **more,
        }
        values = {
            "title": html.escape(title), "style": _part("page.css"), "script": _part("page.js"),
            "about": _inside_a_script(about),
            "records": "\n".join(f'<script type="text/plain" id="f{n}">{data}</script>' for n, data in held),
        }  # fmt: skip
        write_atomically(path.parent / name, string.Template(_part("page.html")).substitute(values).encode())
        return path.parent / name

    everything = index.part(0, len(index.columns["n"]))
    more: dict[str, Any] = {"prompts": list(prompts)}
    if plan is not None:
        place, more["map"] = plan()
        everything |= {name: [round(float(v), 4) for v in place[:, i]] for i, name in enumerate("xy")}
    if len(files) == 1:
        made = [page(path.name, files[0][1], files[0][2] | said, everything, **more)]
    else:
        made = [
            page(name, held, ids, index.part(start, start + len(held)))
            for name, (_, held, ids, start) in zip(names, files, strict=True)
        ]
        made.append(page(path.name, [], said, everything, **more))
    for old in path.parent.glob(f"{glob.escape(path.stem)}-{'[0-9a-f]' * 8}-{'[0-9]' * 3}.html"):
        if old not in made:
            old.unlink()
    return made


# --- other people's formats -------------------------------------------------------------------------------------------


def neuronpedia(
    records: Iterable[Mapping[str, Any]],
    pieces: Sequence[bytes],
    *,
    model: str,
    layer: int,
    sae: str,
    dataset: str,
    prompts: int,
    tokens: int,
) -> dict[str, Any]:
    """Records in the JSON that Neuronpedia's exporter writes and its importer reads (SAEDashboard 0.8): one batch.

    Args:
        model, layer, sae: as Neuronpedia shall call the model and the set of SAEs, and the layer they are of.
        dataset, prompts, tokens: name of the texts, how many contexts they fill, and tokens in each.

    What a record does not hold (decoder norms by head, DFA, correlated features of the same SAE, vectors) is left
    empty. Loss effects, random and silent examples have no place there; they are left out.
    """
    about = {"n_prompts_total": prompts, "n_tokens_in_prompt": tokens, "dataset": dataset}
    features = [_feature(record, pieces) | about for record in records]
    return {"model_id": model, "layer": layer, "sae_set": sae, "sae_id_suffix": None, "features": features}


def _feature(record: Mapping[str, Any], pieces: Sequence[bytes]) -> dict[str, Any]:
    say = lambda ids: [written(pieces[i]) for i in ids]  # noqa: E731
    e, activations = record["examples"], []
    for name, low, high, share, _, first, last in record["groups"]:
        if name in ("random", "silent"):
            continue
        for i in range(first, last):
            activations.append({
                "bin_min": -1 if name == "largest" else low, "bin_max": high,
                "bin_contains": -1 if name == "largest" else share, "tokens": say(e["ids"][i]), "values": e["acts"][i],
                "qualifying_token_index": e["at"][i],
            })  # fmt: skip
    found: dict[str, Any] = {"feature_index": record["n"], "activations": activations, "vector": [],
                             "frac_nonzero": record["density"], "decoder_weights_dist": [],
                             "correlated_features_indices": [], "correlated_features_pearson": [],
                             "correlated_features_l1": []}  # fmt: skip
    for ours, theirs in (("negative", "neg"), ("positive", "pos")):
        ids, values = record.get(ours, ([], []))
        found |= {f"{theirs}_str": say(ids), f"{theirs}_values": values}
    for ours, theirs in (("histogram", "freq_hist"), ("votes", "logits_hist")):
        bars = record.get(ours)
        heights = [] if bars is None else bars["counts"]
        width = 0 if bars is None else (bars["high"] - bars["low"]) / len(heights)
        middle = [] if bars is None else [bars["low"] + (i + 0.5) * width for i in range(len(heights))]
        found |= {f"{theirs}_data_bar_heights": heights, f"{theirs}_data_bar_values": middle}
    numbers, values, shares = record.get("weights", ([], [], []))
    found |= {"neuron_alignment_indices": numbers, "neuron_alignment_values": values, "neuron_alignment_l1": shares}
    numbers, values, cosines = record.get("neurons", ([], [], []))
    return found | {
        "correlated_neurons_indices": numbers,
        "correlated_neurons_pearson": values,
        "correlated_neurons_l1": cosines,
    }  # fmt: skip  (their name; their exporter puts cosines there, too)


def labels(path: str | Path, latents: int) -> dict[int, str]:
    """A person's labels from a JSON file {"17": "Arabic script"}.

    Raises:
        ValueError: it can't be read, is of another form, or names latents that the SAE has not.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f'the labels {path} can\'t be read as JSON ({error}): write {{"17": "a label"}}') from error
    if not isinstance(found, dict) or not all(
        isinstance(v, str) and v == _clean(v) and k.isascii() and k.isdigit() for k, v in found.items()
    ):
        raise ValueError(f'{path} must map numbers of latents to labels, as {{"17": "a label"}}')
    if unknown := sorted(int(k) for k in found if int(k) >= latents):
        raise ValueError(
            f"{path} labels {len(unknown)} latents that the SAE has not, {unknown[0]} first: they are 0 to "
            f"{latents - 1}"
        )
    return {int(k): v for k, v in found.items()}
