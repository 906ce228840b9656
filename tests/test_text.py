"""Tokenizers, corpora, labels that align to tokens, contexts; on the machine's own source and made-up scripts."""

import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models

from experiments.results import ROOT
from superpose.lm import python_source, scripts, text
from superpose.lm.text import Corpus, Document, Span, TextError

DATA = os.environ.get("SUPERPOSE_TEST_DATA")
real = pytest.mark.skipif(not DATA, reason="SUPERPOSE_TEST_DATA names no folder with stories260K.bin")
FEW = ("argparse", "bisect", "json", "tokenize")


def of(*texts, spans=()):
    return Corpus("made up", lambda: (Document(str(i), t, lambda: spans) for i, t in enumerate(texts)), ("a", "b"))


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_level():
    return text.train_tokenizer(scripts.scripts(40), 700)


@pytest.mark.parametrize("said", ["plain words", " a\n\tb  ", "שלום мир 中文 🙂 é", "", "\x00\x7f"])
def test_bytes_come_back(byte_level, said):
    found = byte_level.encode(said)
    assert byte_level.decode(found.ids) == said
    assert b"".join(byte_level.pieces[i] for i in found.ids) == said.encode()
    for i, start, end in zip(found.ids, found.starts, found.ends, strict=True):
        assert byte_level.pieces[i] in said[start:end].encode()


def test_a_character_of_several_tokens_is_covered_by_each():
    bytes_only = text.train_tokenizer(of("abc"), 257)
    found = bytes_only.encode("aש")
    assert len(found.ids) == 3
    assert (found.starts.tolist(), found.ends.tolist()) == ([0, 1, 1], [1, 2, 2])


@pytest.mark.parametrize("pattern", [r"[\u0590-\u05ff]+", r"[a-z]+", "🙂 é", r"\d*", "."])
def test_tokens_that_a_pattern_matches_are_those_of_its_spans(byte_level, pattern):
    said, pattern = "a שלום world 中文🙂 é12", re.compile(pattern)
    found = byte_level.encode(said)
    spans = [Span(*m.span(), 0) for m in pattern.finditer(said) if m.group()]
    want = np.unpackbits(text.token_labels(found, spans, 1), axis=1, count=1)[:, 0]
    assert byte_level.matched(found.ids, pattern).tolist() == want.tolist()
    held = [byte_level.pieces[i].decode("utf-8", "ignore") for i in found.ids]
    assert all(hit for hit, piece in zip(want, held, strict=True) if pattern.search(piece) and pattern.search(piece)[0])


def test_patterns_pass_over_broken_characters_and_special_tokens():
    bytes_only = text.train_tokenizer(of("abc"), 257)
    ids = bytes_only.encode("aש").ids.tolist()
    assert bytes_only.matched(ids, re.compile("ש")).tolist() == [False, True, True]
    broken = [bytes_only.bos, ids[0], ids[1], ids[0], ids[2], bytes_only.bos, *ids[1:], ids[0]]
    assert bytes_only.matched(broken, re.compile("a")).tolist() == [i in (1, 3, 8) for i in range(9)]
    assert bytes_only.matched(broken, re.compile("ש")).tolist() == [i in (6, 7) for i in range(9)]
    assert bytes_only.matched([], re.compile("a")).tolist() == []


@real
def test_the_tokenizer_of_llama2c_says_what_is_expected():
    want = json.loads(Path(DATA, "stories260K_expected.json").read_text())
    found = text.read_tokenizer(Path(DATA, "tok512.bin"), vocab=512)
    ids = [found.bos, *found.encode(want["sample_text"]).ids.tolist()]
    assert ids[: len(want["sample_ids"])] == want["sample_ids"]  # the file keeps the first 257
    assert found.decode(want["greedy_from_bos"]) == want["greedy_text"]
    for language in ("arabic", "russian"):
        for path in Path(DATA, "udhr").glob(f"*{language}*"):
            said = path.read_text()[:200]
            assert found.decode(found.encode(said).ids) == " " + said
    with pytest.raises(TextError, match="has 512 tokens and the model 300"):
        text.read_tokenizer(Path(DATA, "tok512.bin"), vocab=300)


@real
def test_merging_is_that_of_llama2c():
    """The plain algorithm: of all neighbouring pairs whose join is a piece, merge the one of the highest score."""
    found = text.read_tokenizer(Path(DATA, "tok512.bin"))
    raw, at, pieces, scores = Path(DATA, "tok512.bin").read_bytes(), 4, [], []
    while at < len(raw):
        scores.append(np.frombuffer(raw, "<f4", 1, at)[0])
        size = int(np.frombuffer(raw, "<i4", 1, at + 4)[0])
        pieces.append(raw[at + 8 : at + 8 + size].decode())
        at += 8 + size
    ids = {p: i for i, p in enumerate(pieces) if i >= 259}
    for said in (Path(DATA, "tinyshakespeare.txt").read_text()[:1500], "Zürich, naïve 東京"):
        tokens = []
        for ch in " " + said:
            tokens += [ids[ch]] if ch in ids else [b + 3 for b in ch.encode()]
        while True:
            joined = [
                (scores[ids[w]], -i)
                for i in range(len(tokens) - 1)
                if min(tokens[i : i + 2]) >= 259 and (w := pieces[tokens[i]] + pieces[tokens[i + 1]]) in ids
            ]
            if not joined:
                break
            i = -max(joined)[1]
            tokens[i : i + 2] = [ids[pieces[tokens[i]] + pieces[tokens[i + 1]]]]
        assert found.encode(said).ids.tolist() == tokens


def test_tokenizer_files_are_read_and_refused(tmp_path, byte_level):
    byte_level.backend.save(str(tmp_path / "tokenizer.json"))
    back = text.read_tokenizer(tmp_path)
    assert (back.pieces, back.bos, back.eos) == (byte_level.pieces, 0, 0)
    assert back.digest() == byte_level.digest()
    for said, bos, eos in (({"bos_token": None, "eos_token": {"content": "<|endoftext|>"}}, None, 0), ({}, None, None)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
        assert (text.read_tokenizer(tmp_path).bos, text.read_tokenizer(tmp_path).eos) == (bos, eos)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(TextError, match="is damaged"):
        text.read_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.bin").write_bytes(b"\x01" * 40)
    for name, said in {
        "bad.json": "is no tokenizer",
        "bad.bin": "no llama2.c tokenizer",
        "none": "does not exist",
    }.items():
        with pytest.raises(TextError, match=said) as error:
            text.read_tokenizer(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(TextError, match="at least 257"):
        text.train_tokenizer(of("a"), 100)
    with pytest.raises(TextError, match="words for 257 tokens only"):
        text.train_tokenizer(of("a"), 1000)


def test_sentencepiece_pieces_are_bytes():
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0xD7>": 3, "▁a": 4, "b": 5}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    found = text.tokenizer(backend)
    assert found.pieces == (b"", b"", b"", b"\xd7", b" a", b"b")
    assert (found.bos, found.eos) == (1, 2)


# --- corpora ----------------------------------------------------------------------------------------------------------


def test_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("second<|endoftext|>third<|endoftext|> \n")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    (tmp_path / "empty.txt").write_text(" ")
    found = text.from_files(tmp_path, separator="<|endoftext|>")
    assert [d.text for d in found.read()] == ["first", "second", "third"]
    assert [d.name for d in found.read()] == ["a.txt", "b.txt#0", "b.txt#1"]
    assert len(found.skipped) == 2
    assert found.digest() == found.digest() != text.from_files(tmp_path).digest()
    assert [d.text for d in found.take(2).read()] == ["first", "second"]
    for name, said in {
        "bad.txt": r"not UTF-8 \(byte 2 is 0xff\)",
        "empty.txt": "is empty",
        "none": "does not exist",
    }.items():
        with pytest.raises(TextError, match=said):
            text.from_files(tmp_path / name)
    with pytest.raises(TextError, match="holds no text"):
        text.from_files(tmp_path, "*.md")


def test_data_sets_stream(monkeypatch):
    """The real call, on a library that stands in for ``datasets``, which is not installed here."""

    class Rows(list):
        def take(self, n):
            return self[:n]

    class Fake:
        @staticmethod
        def load_dataset(name, *args, streaming, split):
            if name == "no/where":
                raise ConnectionError("no network")
            assert (name, args, streaming, split) == ("a/b", ("en",), True, "train")
            return Rows([{"text": f"document {i}"} for i in range(5)])

    monkeypatch.setitem(sys.modules, "datasets", Fake)
    found = text.from_datasets("a/b", "en", documents=3)
    assert [d.text for d in found.read()] == ["document 0", "document 1", "document 2"]
    with pytest.raises(TextError, match="no column 'body' of text: it has text"):
        list(text.from_datasets("a/b", "en", column="body", documents=1).read())
    with pytest.raises(TextError, match=r"no/where can.t be read .*no network"):
        list(text.from_datasets("no/where", documents=1).read())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TextError, match="pip install datasets"):
        text.from_datasets("a/b", documents=1)


# --- labels and contexts ----------------------------------------------------------------------------------------------


def test_a_token_carries_the_labels_of_its_characters(byte_level):
    said = "0xdeadbeef שלום"
    spans = [Span(2, 5, 0), Span(11, 15, 1), Span(3, 3, 1)]
    found = byte_level.encode(said)
    bits = np.unpackbits(text.token_labels(found, spans, 2), axis=1, count=2).astype(bool)
    for row, start, end in zip(bits, found.starts, found.ends, strict=True):
        want = [any(s.start < end and start < s.end for s in spans if s.label == label) for label in (0, 1)]
        assert row.tolist() == want


def spaced(kind):
    """Tokenizers that put a space before a text: by a normalizer (llama2.c, Llama 2) and by Metaspace."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if kind == "prepend":
        backend.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = tokenizers.decoders.Metaspace() if kind == "metaspace" else tokenizers.decoders.Replace("▁", " ")
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=330, special_tokens=pieces, show_progress=False)
    backend.train_from_iterator(["some words of a text, some more words, 0x12 0x34"] * 9, trainer)
    said = json.loads(backend.to_str())
    for token in said["added_tokens"][1:]:
        token["special"] = False
    said["added_tokens"] = said["added_tokens"][:1]
    return text.tokenizer(tokenizers.Tokenizer.from_str(json.dumps(said)))


@pytest.mark.parametrize("kind", ["prepend", "metaspace"])
@pytest.mark.parametrize("said", ["words of שלום 🙂 text", " words", "x", "שלום some"])
def test_labels_align_to_tokenizers_that_put_a_space_before(kind, said):
    found = spaced(kind).encode(said)
    spans = [Span(i, i + 1, i) for i in range(len(said))]  # each character is a label of its own
    bits = np.unpackbits(text.token_labels(found, spans, len(said)), axis=1, count=len(said)).astype(bool)
    assert bits.any(0).all()
    pieces = [spaced(kind).pieces[i] for i in found.ids]
    for piece, row in zip(pieces, bits, strict=True):
        carried = "".join(c for c, on in zip(said, row, strict=True) if on).encode()
        assert piece in (carried, b" " + carried) or piece in carried, (piece, carried)
    if pieces[0] == b" " and said[0] != " ":
        assert not bits[0].any()


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    text.train_tokenizer(of("some words"), 257).backend.save(str(tmp_path / "tokenizer.json"))
    config = tmp_path / "config.json"
    for said, match in (
        ({"bos_token_id": 400}, "says that token 400 begins or ends a text, and .* has nothing there"),
        ({"eos_token_id": [0, 66]}, "says that token 66 begins or ends a text, and .* has '.' there"),
        ("[", "is damaged"),
    ):
        config.write_text(said if isinstance(said, str) else json.dumps(said))
        with pytest.raises(TextError, match=match):
            text.read_tokenizer(tmp_path, 500)
    for said in ({"bos_token_id": 0, "eos_token_id": [0]}, {"bos_token_id": 9999, "eos_token_id": None}, {}):
        config.write_text(json.dumps(said))  # a number beyond the model's vocabulary says nothing
        assert text.read_tokenizer(tmp_path, 500).vocab == 500


def test_contexts_hold_every_token_once(byte_level):
    corpus = scripts.scripts(7)
    found = text.contexts(corpus, byte_level, 64, labels=True)
    assert found.tokens.shape[1] == 64
    for i, document in enumerate(corpus.read()):
        encoded = byte_level.encode(document.text)
        rows = np.flatnonzero(found.documents == i)
        inside = [found.tokens[r, 1 : found.lengths[r]] for r in rows]
        np.testing.assert_array_equal(np.concatenate(inside), encoded.ids)
        assert found.starts[rows].tolist() == [place - 1 for place in range(0, len(encoded.ids), 63)]
        labels = text.token_labels(encoded, document.spans(), len(corpus.labels))
        np.testing.assert_array_equal(np.concatenate([found.labels[r, 1 : found.lengths[r]] for r in rows]), labels)
    assert (found.tokens[:, 0] == byte_level.bos).all()
    assert found.mask.sum() == found.lengths.sum()
    assert text.contexts(corpus, byte_level, 64, tokens=100).documents.max() < 6
    with pytest.raises(TextError, match="holds no text"):
        text.contexts(of(), byte_level, 64)
    with pytest.raises(TextError, match="no room"):
        text.contexts(corpus, byte_level, 1)


# --- the Python source on the machine ---------------------------------------------------------------------------------

SOURCE = '''\
import os as system

class Thing(Base):
    """What it is."""

    def method(self, size: int = 3, *rest):  # TODO later
        for item in rest:
            if size > 0x1f:
                raise ValueError("no\\n", code=len(item))
        return {"key": [self.size, None]}
'''


@pytest.mark.parametrize(
    ("word", "labels"),
    [
        ("system", {"name", "import", "imported name"}),
        ("Thing", {"class name", "CamelCase"}),
        ("What it is", {"docstring", "string", "depth 1", "inside class"}),
        ("method", {"def name", "inside signature"}),
        ("size:", {"argument", "inside signature"}),
        ("int", {"annotation", "builtin"}),
        ("TODO", {"comment", "todo or note"}),
        ("item", {"loop variable", "assigned name"}),
        ("rest:", {"depth 2", "inside function"}),
        ("0x1f", {"number", "inside comparison", "inside condition", "inside loop"}),
        ("ValueError", {"exception", "called name", "inside raise", "depth 4"}),
        ("\\n", {"escape in string", "string in call", "inside call"}),
        ("code", {"keyword argument"}),
        ("len", {"called name", "builtin"}),
        ("return", {"keyword", "depth 2"}),
        ("key", {"string in dict", "inside dict", "inside return"}),
        ("size,", {"attribute", "inside list"}),
        ("None", {"constant"}),
    ],
)
def test_what_each_word_of_python_is(word, labels):
    found = python_source.spans(SOURCE)
    carried = python_source.label_at(SOURCE, found, SOURCE.index(word))
    assert labels <= carried, (word, carried)


def test_an_f_string_inside_another_leaves_it_whole():
    source = "x = f\"a\\n{b} {f'in{q}'} end\\t\"\n"
    found = python_source.spans(source)
    for word in ("a\\n", "in{", "end", "\\t"):
        assert {"string", "f-string"} <= python_source.label_at(source, found, source.index(word)), word
    for escape in ("\\n", "\\t"):
        assert "escape in string" in python_source.label_at(source, found, source.index(escape))
    assert "f-string" not in python_source.label_at("x = 'a'", python_source.spans("x = 'a'"), 5)


def test_source_that_can_t_be_decoded_or_is_empty_is_counted(tmp_path, monkeypatch):
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "odd.py").write_bytes(b"# -*- coding: klingon -*-\n")
    (tmp_path / "empty.py").write_text(" \n")
    files = [(name, tmp_path / name) for name in ("good.py", "latin.py", "odd.py", "empty.py", "gone.py")]
    monkeypatch.setattr(python_source, "_files", lambda modules: (files, []))
    found = python_source.python_source(("whatever",))
    assert [d.name for d in found.read()] == ["good.py"]
    assert [s.split(":")[0] for s in found.skipped] == ["latin.py", "odd.py", "empty.py", "gone.py"]


def test_every_indented_line_starts_with_its_indentation():
    """The first line of a block and the first after one, too, and a form feed is no line."""
    said = "class A:\n    def f(self):\n        x = 1\n        if x:\n            y = 2\n    z = 3\n\x0cimport json\n"
    found = python_source.spans(said)
    for line, depth in (("    def f", 1), ("        x = 1", 2), ("            y = 2", 3), ("    z = 3", 1)):
        start = said.index("\n" + line) + 1
        for place in range(start, start + len(line) - len(line.lstrip())):
            assert {"indentation", f"depth {depth}"} <= python_source.label_at(said, found, place)
        assert "indentation" not in python_source.label_at(said, found, start + len(line) - 1)
    assert "keyword" in python_source.label_at(said, found, said.index("import"))
    assert "indentation" not in python_source.label_at(said, found, 0)


def test_labels_stand_right_after_other_scripts():
    said = 'x = "שלום", len("é")  # שלום\n'
    found = python_source.spans(said)
    assert "called name" in python_source.label_at(said, found, said.index("len"))
    assert "called name" not in python_source.label_at(said, found, said.index("len") - 1)
    assert "comment" in python_source.label_at(said, found, len(said) - 2)
    assert python_source.spans("def (:") == []


def test_the_source_of_this_python():
    corpus = python_source.python_source(FEW)
    names = [d.name for d in corpus.read()]
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    used = {s.label for d in corpus.read() for s in d.spans()}
    assert len(used) > 0.9 * len(python_source.LABELS)
    for document in corpus.read():
        assert all(0 <= s.start < s.end <= len(document.text) for s in document.spans())
    skipped = python_source.python_source((*FEW, "no_such_module")).skipped
    assert [s for s in skipped if "no_such_module" in s]
    with pytest.raises(TextError, match="no source"):
        python_source.python_source(("no_such_module",))


# --- scripts ----------------------------------------------------------------------------------------------------------

BLOCKS = {"Arabic": "ARABIC", "Hebrew": "HEBREW", "Cyrillic": "CYRILLIC", "Greek": "GREEK", "Devanagari": "DEVANAGARI",
          "Hangul": "HANGUL", "CJK": "CJK", "Latin": "LATIN", "accented Latin": "LATIN"}  # fmt: skip


def test_scripts_are_what_their_labels_say():
    corpus = scripts.scripts(60)
    used, mixed = set(), 0
    for document in corpus.read():
        found = document.spans()
        used |= {s.label for s in found}
        mixed += len({s.label for s in found} & set(range(len(scripts.SCRIPTS)))) > 1
        for span in found:
            label, said = scripts.LABELS[span.label], document.text[span.start : span.end]
            assert said
            if label in BLOCKS:
                assert all(unicodedata.name(ch).startswith(BLOCKS[label]) for ch in said)
            if label == "DNA":
                assert set(said) <= set("ACGT")
            if label == "space":
                assert said.isspace()
    assert len(used) >= 200
    assert mixed > 50


ORDERS = dict.fromkeys(scripts.SCRIPTS, "SVO") | dict.fromkeys(("Devanagari", "Hangul", "Kana"), "SOV")
ORDERS["Arabic"] = "VSO"
ARTICLES = {
    "Latin": "A ",
    "accented Latin": "A ",
    "Greek": "A ",
    "Arabic": "A",
    "Hebrew": "A",
}  # "A": joined to the word
SIGNS = dict(article="A", adjective="J", noun="N", preposition="P", verb="V", adverb="D", negation="n")


def grammar(name, order):
    """A sentence of a script as signs: p and t are the endings of plural and past."""
    article = f"({ARTICLES[name]})?" if name in ARTICLES else ""
    parts = dict.fromkeys("SO", f"{article}(J )?Np?( P N)?") | {"V": "(n )?Vt?( D)?"}
    clause = " ".join(parts[role] for role in order)
    said = f"{clause}(, {clause})?[.]"
    return re.compile(said if name not in ("Kana", "CJK") else said.replace(" ", ""))


def chunks(document):
    """What was written piece by piece, each with all of its labels."""
    found = {}
    for start, end, label in document.spans():
        found.setdefault((start, end), set()).add(scripts.LABELS[label])
    assert "".join(document.text[slice(*place)] for place in found) == document.text  # none twice
    return [(document.text[slice(*place)], labels) for place, labels in found.items()]


def part(name, labels):
    """The sign of a word or of its ending."""
    said = [p for p in scripts.PARTS if f"{name} {p}" in labels and p != "first word"]
    ending = {"plural": "p", "past": "t"}.get(said[-1])
    assert len(said) == (2 if ending else 1)
    return ending or SIGNS[said[0]]


@pytest.fixture(scope="module")
def sentences():
    """Script -> [(signs, pieces with their labels)]."""
    out = {name: [] for name in scripts.SCRIPTS}
    for document in scripts.scripts(150).read():
        signs, pieces = "", []
        for said, labels in chunks(document):
            if "word" in labels and "heading" not in labels:
                (name,) = labels & set(scripts.SCRIPTS)
                signs, pieces = signs + part(name, labels), [*pieces, (said, labels)]
            elif "ends a sentence" in labels:
                out[name].append((f"{signs}.", [*pieces, (said, labels)]))
                signs, pieces = "", []
            elif signs:
                assert labels in ({"space"}, {"punctuation"})
                signs, pieces = signs + ("," if labels == {"punctuation"} else " "), [*pieces, (said, labels)]
    return out


@pytest.mark.parametrize("name", scripts.SCRIPTS)
def test_sentences_keep_the_grammar_of_their_script_and_no_other(name, sentences):
    found = [signs for signs, _ in sentences[name]]
    assert len(found) > 100
    assert [signs for signs in found if not grammar(name, ORDERS[name]).fullmatch(signs)] == []
    for order in {"SVO", "VSO", "SOV"} - {ORDERS[name]}:
        assert not any(grammar(name, order).fullmatch(signs) for signs in found)
    assert set("".join(found)) >= set("JNpPnVtD,.") | set("A" if name in ARTICLES else "")


@pytest.mark.parametrize("name", scripts.SCRIPTS)
def test_little_words_and_endings_are_the_script_s_and_a_word_is_of_one_kind(name, sentences):
    script, kinds = scripts.SCRIPTS[name], {}
    fixed = {"A": script.article.strip("+"), "n": script.negation, "p": script.plural, "t": script.past}
    for signs, pieces in sentences[name]:
        firsts = [f"{name} first word" in labels for _, labels in pieces]
        assert firsts == [True] + [i == 1 and signs[1] in "pt" for i in range(1, len(pieces))]
        for sign, (said, labels) in zip(signs, pieces, strict=True):
            topics = [t for t in scripts.TOPICS if f"{name} {t}" in labels]
            assert len(topics) == (sign in "NVpt")
            if "word" in labels:
                assert ("right to left" in labels) == (name in ("Arabic", "Hebrew"))
            if sign in fixed:
                assert said == fixed[sign]
            elif sign in ",.":
                assert said == (script.stop if sign == "." else script.comma).strip()
            elif sign != " ":
                assert kinds.setdefault(said, (sign, topics)) == (sign, topics)
    assert len(kinds) > 200


def test_a_document_is_a_function_of_seed_and_number():
    first, longer = list(scripts.scripts(3, seed=1).read()), list(scripts.scripts(5, seed=1).read())
    assert [d.text for d in first] == [d.text for d in longer[:3]]
    assert first[0].text != next(scripts.scripts(1, seed=2).read()).text
    assert scripts.scripts(3, 1).digest() != scripts.scripts(3, 2).digest()


def test_rare_scripts_are_rare_and_the_others_alike():
    def shares(corpus):
        """Of the characters, by label."""
        written = np.zeros(len(corpus.labels))
        for document in corpus.read():
            for start, end, label in document.spans():
                written[label] += end - start
        return dict(zip(corpus.labels, written / sum(len(d.text) for d in corpus.read()), strict=True))

    rare = scripts.scripts(60, rare=("Arabic", "Hebrew"), weight=0.1)
    often, seldom = shares(scripts.scripts(60)), shares(rare)
    assert seldom["Arabic"] + seldom["Hebrew"] < 0.25 * (often["Arabic"] + often["Hebrew"])
    assert seldom["Greek"] + seldom["Cyrillic"] > 0.9 * (often["Greek"] + often["Cyrillic"])
    assert "rare=Arabic, Hebrew, weight=0.1" in rare.name
    with pytest.raises(ValueError, match="there is no script 'Elvish': they are Latin"):
        scripts.scripts(3, rare=("Elvish",))
    with pytest.raises(ValueError, match="must be a number above 0, got 0"):
        scripts.scripts(3, rare=("Greek",), weight=0.0)


def test_bytes_are_shared_between_scripts(byte_level):
    """A continuation byte that stands in words of two scripts is one token in both; lead bytes are a script's own."""
    held = {}
    for name in ("Arabic", "Hebrew", "Greek", "Cyrillic"):
        script = scripts.SCRIPTS[name]
        bytes_only = text.train_tokenizer(of("x"), 257)
        held[name] = {t for onset in script.onsets for t in bytes_only.encode(onset).ids.tolist()}
    assert held["Greek"] & held["Cyrillic"]
    assert held["Arabic"] & held["Hebrew"]
    greek, hebrew = ("".join(scripts.SCRIPTS[name].onsets).encode()[::2] for name in ("Greek", "Hebrew"))
    assert not {*greek} & {*hebrew}


def test_words_are_drawn_by_zipf_s_law():
    rng = np.random.default_rng(0)
    draws = np.bincount([scripts._Zipf(50)(rng) for _ in range(40_000)], minlength=50) / 40_000
    want = 1 / np.arange(1, 51)
    want /= want.sum()
    assert np.abs((draws - want) / np.sqrt(want / 40_000)).max() < 4.5


@pytest.mark.ci
@pytest.mark.parametrize("variant", ["", "rare"])
def test_made_up_scripts_are_those_that_the_figures_were_made_from(variant):
    # in a process of its own: here the kinds of a million spans would be checked
    code = "from configs.lm import scripts; from experiments import language; "
    code += f"c = scripts.get_config({variant!r}).corpus; assert c.digest; language.corpus(c)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
