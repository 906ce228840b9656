"""Texts for language models: tokenizers, corpora of documents, labels that align to any tokenizer, contexts of tokens.

A corpus is a name, the names of its labels, and a function that yields its documents again and again, the same ones in
the same order. A label is a span of characters, so that it fits every tokenizer: a token carries a label when one of
its characters does (of a character that is split over several tokens, each of them does).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, UInt8
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers


class TextError(ValueError):
    """A text or tokenizer that can't be used; the message is one sentence for a person."""


class Span(NamedTuple):
    """Characters start to end (not included) carry the label of this number."""

    start: int
    end: int
    label: int


class Document(NamedTuple):
    """A text; its labelled spans are found when they are asked for."""

    name: str
    text: str
    spans: Callable[[], Sequence[Span]] = tuple


@dataclass(frozen=True)
class Corpus:
    """Documents, the same at every reading.

    Attributes:
        name: for manifests and tables.
        read: () -> an iterator of documents.
        labels: names of the labels that spans refer to.
        skipped: what was left out, and why; one line each.
    """

    name: str
    read: Callable[[], Iterator[Document]]
    labels: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 over all names and texts, 16 hex digits: what a claim on a corpus is a claim about."""
        h = hashlib.sha256()
        for name, text, _ in self.read():
            for part in (name, text):
                raw = part.encode("utf-8", "surrogatepass")
                h.update(len(raw).to_bytes(8, "little") + raw)
        return h.hexdigest()[:16]

    def take(self, documents: int) -> "Corpus":
        """The first so many documents."""

        def read():
            for i, document in enumerate(self.read()):
                if i == documents:
                    return
                yield document

        return Corpus(f"{self.name}[:{documents}]", read, self.labels, self.skipped)


# --- corpora ----------------------------------------------------------------------------------------------------------


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path} is not UTF-8 (byte {error.start} is 0x{raw[error.start]:02x}): convert it to UTF-8"
        ) from error


def from_files(path: str | Path, pattern: str = "**/*.txt", separator: str | None = None) -> Corpus:
    """A text file, or all files of a folder in the order of their names; each file is a document.

    Args:
        path: file or folder.
        pattern: of the files in a folder.
        separator: what stands between the documents of one file ("<|endoftext|>").

    Raises:
        TextError: nothing is there, no text is in it, or a single file is not UTF-8. In a folder, files that are not
            are left out and listed in ``skipped``.
    """
    place = Path(path)
    if not place.exists():
        raise TextError(f"{place} does not exist: give a text file or a folder of them")
    single = place.is_file()
    files = [place] if single else sorted(p for p in place.glob(pattern) if p.is_file())
    good, skipped = [], []
    for file in files:
        try:
            if _decoded(file).strip():
                good.append(file)
            else:
                skipped.append(f"{file.name}: empty")
        except (TextError, OSError) as error:
            if single:
                raise
            skipped.append(f"{file.name}: {error}")
    if not good:
        why = f" ({skipped[0]}{' and more' if len(skipped) > 1 else ''})" if skipped and not single else ""
        said = "is empty" if single else f"holds no text in files like {pattern}{why}"
        raise TextError(f"{place} {said}: give a corpus with text in it")

    def read():
        for file in good:
            text = _decoded(file)
            parts = [text] if separator is None else [t for t in text.split(separator) if t.strip()]
            for i, part in enumerate(parts):
                name = file.name if single else str(file.relative_to(place))
                yield Document(name if len(parts) == 1 else f"{name}#{i}", part)

    return Corpus(place.name, read, skipped=tuple(skipped))


def from_datasets(name: str, *args: Any, column: str = "text", documents: int, **options: Any) -> Corpus:
    """The first documents of a data set by the ``datasets`` library, streamed.

    Args:
        name, args, options: of ``datasets.load_dataset`` (``split`` is "train" unless given).
        column: that holds the text.
        documents: how many are read.

    Raises:
        TextError: no such library; at reading: the data set or its column is not there, or damaged.
    """
    try:
        import datasets
    except ImportError as error:
        raise TextError("reading a data set needs another package: pip install datasets") from error
    options = {"split": "train", **options}

    def read():
        try:
            rows = datasets.load_dataset(name, *args, streaming=True, **options)
            for i, row in enumerate(rows.take(documents)):
                if column not in row:
                    raise TextError(f"{name} has no column {column!r} of text: it has {', '.join(row)}")
                if not isinstance(row[column], str):
                    kind = type(row[column]).__name__
                    raise TextError(f"row {i} of {name} holds {kind}, and no text, in its column {column!r}")
                yield Document(f"{name}#{i}", row[column])
        except TextError:
            raise
        except Exception as error:  # no such name, no network, a damaged file: no two raise the same
            said = next(iter(str(error).splitlines()), "")[:300]
            raise TextError(f"the data set {name} can't be read ({type(error).__name__}: {said})") from error

    return Corpus(name, read)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def written(raw: bytes) -> str:
    """Bytes of tokens as text; those that are no whole character are named.

    >>> written("ä".encode()), written(b"\\xd8"), written(b"a\\xff")
    ('ä', '\\\\xd8', 'a\\\\xff')
    """
    return raw.decode("utf-8", errors="backslashreplace")


class Encoded(NamedTuple):
    """Token ids [T], and the characters [start, end) that each of them stands for."""

    ids: Int[np.ndarray, " T"]
    starts: Int[np.ndarray, " T"]
    ends: Int[np.ndarray, " T"]


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back.

    Attributes:
        backend: of the ``tokenizers`` library.
        bos, eos: ids, or None where there are none.
        pieces: the bytes that each id stands for; of special tokens, and of ids that only fill up a model's vocabulary,
            none.
    """

    backend: tokenizers.Tokenizer
    bos: int | None
    eos: int | None
    pieces: tuple[bytes, ...]

    @property
    def vocab(self) -> int:
        return len(self.pieces)

    @property
    def special(self) -> tuple[int, ...]:
        """BOS and EOS, as far as they exist."""
        return tuple(sorted({i for i in (self.bos, self.eos) if i is not None}))

    def encode(self, text: str) -> Encoded:
        """Without special tokens."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[Encoded]:
        """Several texts at once, which uses all cores."""
        out = []
        for said, found in zip(texts, self.backend.encode_batch(list(texts), add_special_tokens=False), strict=True):
            offsets = np.asarray(found.offsets, np.int64).reshape(-1, 2)
            if len(offsets) and self.pieces[found.ids[0]] == b" " and not said[slice(*offsets[0])].isspace():
                offsets[0] = 0  # a space that the tokenizer puts before the text stands for no character of it
            out.append(Encoded(np.asarray(found.ids, np.int32), offsets[:, 0], offsets[:, 1]))
        return out

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Bytes that are no UTF-8 come out as U+FFFD."""
        return b"".join(self.pieces[int(i)] for i in ids).decode("utf-8", "replace")

    def matched(self, ids: Sequence[int] | np.ndarray, pattern: re.Pattern[str]) -> Bool[np.ndarray, " T"]:
        """Which tokens hold a part of what a regular expression matches in the text that they make up.

        Bytes that are no UTF-8 are one character each (a lone surrogate).
        """
        sizes = np.array([len(self.pieces[int(i)]) for i in ids], np.int64)
        said = b"".join(self.pieces[int(i)] for i in ids).decode("utf-8", "surrogateescape")
        wide = np.array([len(c.encode("utf-8", "surrogateescape")) for c in said], np.int64)
        character, ends = np.repeat(np.arange(len(said)), wide), np.cumsum(sizes)
        starts, reach = np.append(character, len(said))[ends - sizes], np.append(0, character + 1)[ends]
        spans = [Span(*m.span(), 0) for m in pattern.finditer(said) if m.group()]
        found = token_labels(Encoded(np.asarray(ids), starts, np.where(sizes, reach, starts)), spans, 1)
        return np.unpackbits(found, axis=1, count=1)[:, 0].astype(bool)

    def digest(self) -> str:
        """SHA-256 of the tokenizer's file, 16 hex digits."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]


def _byte_alphabet() -> dict[str, int]:
    """Characters that stand for bytes in byte-level vocabularies (Radford et al. 2019): printable ones for themselves,
    the others in order from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _pieces(backend: tokenizers.Tokenizer) -> tuple[bytes, ...]:
    said = json.loads(backend.to_str())
    special = {t["id"] for t in said.get("added_tokens", []) if t.get("special")}
    byte_level = '"ByteLevel"' in json.dumps([said.get("decoder"), said.get("pre_tokenizer")])
    spaced = "▁" in json.dumps(said.get("decoder"), ensure_ascii=False) or "Metaspace" in json.dumps(
        said.get("decoder")
    )
    fallback = bool(said["model"].get("byte_fallback"))
    added = {t["id"] for t in said.get("added_tokens", [])}
    alphabet = _byte_alphabet()
    out = []
    for i in range(max(backend.get_vocab().values(), default=-1) + 1):
        token = backend.id_to_token(i)
        if token is None or i in special:
            out.append(b"")
        elif byte_level and i not in added:
            out.append(bytes(alphabet[ch] for ch in token))
        elif fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            out.append(bytes([int(token[3:5], 16)]))
        else:
            out.append((token.replace("▁", " ") if spaced else token).encode("utf-8", "replace"))
    return tuple(out)


def tokenizer(backend: tokenizers.Tokenizer) -> Tokenizer:
    """One of the ``tokenizers`` library; beginning and end of text are found by their usual names.

    Its post-processor is left out: special tokens are added here, and some take the spaces out of the offsets.
    """
    if (said := json.loads(backend.to_str())).get("post_processor"):
        backend = tokenizers.Tokenizer.from_str(json.dumps({**said, "post_processor": None}))

    def known(*names: str) -> int | None:
        return next((i for name in names if (i := backend.token_to_id(name)) is not None), None)

    bos = known("<bos>", "<s>", "<|begin_of_text|>", "<|endoftext|>", "<|bos|>")
    eos = known("<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>")
    return Tokenizer(backend, bos, eos, _pieces(backend))


def read_tokenizer(path: str | Path, vocab: int | None = None) -> Tokenizer:
    """A tokenizer.json, a folder that holds one, or a llama2.c tokenizer (.bin).

    BOS and EOS are those that a tokenizer_config.json beside it names; without one, those of the usual names.

    Args:
        path: file or folder.
        vocab: size of the model's vocabulary; it may be larger (padded), never smaller. Pieces are filled up to it.

    Raises:
        TextError: it can't be read, has more tokens than the model, or a config.json beside it names tokens as
            beginning or end that are something else here.
    """
    place = Path(path)
    place = place / "tokenizer.json" if place.is_dir() else place
    if not place.exists():
        raise TextError(f"{place} does not exist: give a tokenizer.json, a folder with one, or a llama2.c tokenizer")
    if place.suffix == ".bin":
        found = _llama2c(place)
    else:
        try:
            found = tokenizer(tokenizers.Tokenizer.from_file(str(place)))
        except Exception as error:  # the library raises plain Exceptions
            raise TextError(f"{place} is no tokenizer ({str(error)[:100]}): copy it again") from error
    beside = place.with_name("tokenizer_config.json")
    if place.suffix != ".bin" and beside.exists():
        found = _with_names(found, beside)
    if vocab is not None and found.vocab > vocab:
        raise TextError(f"{place} has {found.vocab} tokens and the model {vocab}: they don't belong together")
    if vocab is not None and (beside := place.with_name("config.json")).exists():
        _check_ends(found, place, beside, vocab)
    return replace(found, pieces=found.pieces + (b"",) * ((vocab or found.vocab) - found.vocab))


def _check_ends(found: Tokenizer, place: Path, beside: Path, vocab: int) -> None:
    """A model's config says which ids begin and end its texts: of another tokenizer they are words, or nothing."""
    try:
        said = json.loads(beside.read_text())
        given = [said.get(key) for key in ("bos_token_id", "eos_token_id")]
    except (OSError, ValueError, AttributeError) as error:
        raise TextError(f"{beside} is damaged ({str(error)[:100]}): copy it again") from error
    for i in [i for ids in given for i in (ids if isinstance(ids, list) else [ids])]:
        if isinstance(i, int) and 0 <= i < vocab and (i >= found.vocab or found.pieces[i]):
            here = repr(found.decode([i])) if i < found.vocab else "nothing"
            raise TextError(
                f"{beside} says that token {i} begins or ends a text, and {place} has {here} there: put the tokenizer "
                "of this model there"
            )


def _with_names(found: Tokenizer, beside: Path) -> Tokenizer:
    """BOS and EOS as a folder's tokenizer_config.json names them; Qwen, for one, has no BOS."""
    try:
        said = json.loads(beside.read_text())
        names = [said.get(key) for key in ("bos_token", "eos_token")]
    except (OSError, ValueError, AttributeError) as error:
        raise TextError(f"{beside} is damaged ({str(error)[:100]}): copy it again") from error
    names = [name.get("content") if isinstance(name, dict) else name for name in names]
    bos, eos = (found.backend.token_to_id(name) if isinstance(name, str) else None for name in names)
    return replace(found, bos=bos, eos=eos)


def _llama2c(path: Path) -> Tokenizer:
    """Pieces with scores, the highest merged first; characters without a piece fall back to bytes."""
    raw, at, pieces, scores = path.read_bytes(), 4, [], []
    try:
        while at < len(raw):
            scores.append(float(np.frombuffer(raw, "<f4", 1, at)[0]))
            size = int(np.frombuffer(raw, "<i4", 1, at + 4)[0])
            if size < 0 or at + 8 + size > len(raw):
                raise ValueError("a piece reaches beyond the end")
            pieces.append(raw[at + 8 : at + 8 + size].decode("utf-8"))
            at += 8 + size
        if len(pieces) < 259:
            raise ValueError(f"{len(pieces)} pieces, less than 259")
    except ValueError as error:
        raise TextError(f"{path} is no llama2.c tokenizer ({error}): copy it again") from error
    ids: dict[str, int] = {}
    for i, piece in enumerate(pieces):
        piece = f"<0x{i - 3:02X}>" if 3 <= i < 259 else {0: "<unk>", 1: "<s>", 2: "</s>"}.get(i, piece)
        ids.setdefault(piece, i)
    ranked = []
    for piece, i in ids.items():
        if i >= 259:
            ranked += [
                (-scores[i], piece[:cut], piece[cut:])
                for cut in range(1, len(piece))
                if ids.get(piece[:cut], 0) >= 259 and ids.get(piece[cut:], 0) >= 259
            ]
    merges = [(a, b) for _, a, b in sorted(ranked, key=lambda r: (r[0], -len(r[1]), -len(r[2])))]
    backend = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Prepend(" ")
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer(backend)


def train_tokenizer(corpus: Corpus, vocab: int, documents: int | None = None) -> Tokenizer:
    """Byte-level BPE of this many tokens, of which id 0 is <|endoftext|>, both beginning and end.

    Args:
        corpus: what merges are counted in.
        vocab: ids; at least 257 (bytes and the special one).
        documents: only the first so many are read.

    Raises:
        TextError: vocab is too small, or the corpus is.
    """
    if vocab < 257:
        raise TextError(f"a byte-level vocabulary has at least 257 tokens, got {vocab}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    source = corpus if documents is None else corpus.take(documents)
    backend.train_from_iterator((document.text for document in source.read()), trainer)
    if backend.get_vocab_size() < vocab:
        raise TextError(
            f"{corpus.name} has words for {backend.get_vocab_size()} tokens only: ask for fewer than {vocab}"
        )
    return tokenizer(backend)


# --- contexts ---------------------------------------------------------------------------------------------------------


class Contexts(NamedTuple):
    """Documents cut into rows of equal length; none crosses from one document into the next.

    Attributes:
        tokens: [N, C], filled up with the tokenizer's eos (or 0).
        lengths: [N], tokens of each row that are text (or its leading BOS).
        documents: [N], number of the document.
        starts: [N], place of the row's first token in its document; a leading BOS stands at the place before its text,
            -1 where the document begins.
        labels: [N, C, ceil(L / 8)], bits of the labels of each token, or None.
        names: of the documents.
    """

    tokens: Int[np.ndarray, "N C"]
    lengths: Int[np.ndarray, " N"]
    documents: Int[np.ndarray, " N"]
    starts: Int[np.ndarray, " N"]
    labels: UInt8[np.ndarray, "N C bytes"] | None
    names: tuple[str, ...]

    @property
    def mask(self) -> Bool[np.ndarray, "N C"]:
        """Which tokens are text (or BOS)."""
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]

    def rows(self, chosen: np.ndarray) -> "Contexts":
        """Some of the rows."""
        labels = None if self.labels is None else self.labels[chosen]
        return Contexts(
            self.tokens[chosen], self.lengths[chosen], self.documents[chosen], self.starts[chosen], labels, self.names
        )


def token_labels(encoded: Encoded, spans: Sequence[Span], labels: int) -> UInt8[np.ndarray, "T bytes"]:
    """The labels of each token as bits, most significant first, as ``np.unpackbits`` reads them.

    >>> found = token_labels(Encoded(np.array([5, 6]), np.array([0, 2]), np.array([2, 4])), [Span(0, 3, 1)], 2)
    >>> np.unpackbits(found, axis=1, count=2).tolist()
    [[0, 1], [0, 1]]
    """
    carried = np.zeros((len(encoded.ids) + 1, labels), np.int32)
    if len(encoded.ids) and len(spans):
        # starts and ends ascend; a token of no characters (an added space) carries none
        start, end, label = np.array(spans).T
        first = np.searchsorted(np.maximum.accumulate(encoded.ends), start, side="right")
        last = np.maximum(np.searchsorted(encoded.starts, end, side="left"), first)
        np.add.at(carried, (first, label), 1)
        np.add.at(carried, (last, label), -1)
    open_spans = np.cumsum(carried, 0, out=carried)[:-1]
    return np.packbits((open_spans > 0) & (encoded.ends > encoded.starts)[:, None], axis=1)


def contexts(
    corpus: Corpus,
    tokenizer: Tokenizer,
    context: int,
    *,
    bos: bool = True,
    labels: bool = False,
    tokens: int | None = None,
) -> Contexts:
    """A corpus as rows of tokens.

    Args:
        context: tokens a row.
        bos: whether each row starts with the tokenizer's BOS (where it has one).
        labels: whether the labels of each token are kept.
        tokens: stop after the document in which so many are reached.

    Raises:
        TextError: the corpus is empty, or context leaves no room.
    """
    first = [tokenizer.bos] if bos and tokenizer.bos is not None else []
    room, fill = context - len(first), tokenizer.eos if tokenizer.eos is not None else 0
    if room < 1:
        raise TextError(f"a context of {context} has no room for text")
    rows: list[np.ndarray] = []
    lengths: list[int] = []
    documents: list[int] = []
    starts: list[int] = []
    bits: list[np.ndarray] = []
    names: list[str] = []
    wide = -(-len(corpus.labels) // 8)
    seen = 0
    for batch in _batches(corpus.read(), 64):
        for document, encoded in zip(batch, tokenizer.encode_all([d.text for d in batch]), strict=True):
            found = token_labels(encoded, document.spans(), len(corpus.labels)) if labels else None
            for start in range(0, len(encoded.ids), room):
                part = encoded.ids[start : start + room]
                row = np.full(context, fill, np.int32)
                row[: len(first)], row[len(first) : len(first) + len(part)] = first, part
                rows.append(row)
                lengths.append(len(first) + len(part))
                documents.append(len(names))
                starts.append(start - len(first))
                if found is not None:
                    held = np.zeros((context, wide), np.uint8)
                    held[len(first) : lengths[-1]] = found[start : start + room]
                    bits.append(held)
            names.append(document.name)
            seen += len(encoded.ids)
            if tokens is not None and seen >= tokens:
                break
        if tokens is not None and seen >= tokens:
            break
    if not rows:
        raise TextError(f"the corpus {corpus.name} holds no text")
    whole = np.stack(bits) if labels else None
    length, document, start_of = (np.array(n, np.int32) for n in (lengths, documents, starts))
    return Contexts(np.stack(rows), length, document, start_of, whole, tuple(names))


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
