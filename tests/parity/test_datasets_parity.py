"""Data sets by the real ``datasets`` library, offline: texts as they were written, a sentence for a failure.

Needs another environment: SUPERPOSE_PEERS names its Python, whose packages stand behind ours there.
"""

import json
import os
import subprocess
import sys

import pytest

TEXTS = [f"document {i} שלום 🙂\n\n  its second part" + " long" * 999 * (i == 4) for i in range(6)]
READ = """
import json, sys
sys.path.append(sys.argv[1])  # our own packages come first
import pyarrow as pa
from pyarrow import parquet
from superpose.lm import text

place, texts = sys.argv[2], json.loads(sys.stdin.read())
parquet.write_table(pa.table({"text": texts, "n": range(len(texts))}), f"{place}/a.parquet")

def said(*args, documents=4, **options):
    corpus = text.from_datasets(*args, documents=documents, **options)
    try:
        first = [(document.name, document.text) for document in corpus.read()]
        assert first == [(document.name, document.text) for document in corpus.read()]
        return first
    except text.TextError as error:
        return str(error)

json.dump({
    "jsonl": said("json", data_files=f"{place}/a.jsonl"),
    "parquet": said("parquet", data_files=f"{place}/a.parquet"),
    "folder": said(f"{place}/folder"),
    "split": said(f"{place}/folder", split="test"),
    "all": said("json", data_files=f"{place}/a.jsonl", documents=99),
    "column": said("json", data_files=f"{place}/a.jsonl", column="body"),
    "numbers": said("json", data_files=f"{place}/a.jsonl", column="n"),
    "null": said("json", data_files=f"{place}/null.jsonl"),
    "file": said("json", data_files=f"{place}/none.jsonl"),
    "no folder": said(f"{place}/none"),
    "hub": said("no/where"),
    "config": said(f"{place}/folder", "en"),
    "no split": said(f"{place}/folder", split="validation"),
    "damaged": said("json", data_files=f"{place}/damaged.jsonl"),
    "cut": said("parquet", data_files=f"{place}/cut.parquet"),
}, sys.stdout)
"""


def lines(texts):
    return "".join(json.dumps({"n": i, "text": text}) + "\n" for i, text in enumerate(texts))


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    python = os.environ.get("SUPERPOSE_PEERS")
    if not python:
        pytest.skip("SUPERPOSE_PEERS names no Python with datasets: make test-parity")
    code = "import datasets, sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("the Python that SUPERPOSE_PEERS names has no datasets: make test-parity")
    place = tmp_path_factory.mktemp("sets")
    (place / "folder").mkdir()
    held = {"a": TEXTS, "folder/train": TEXTS, "folder/test": TEXTS[3:], "null": ["one", None]}
    for name, texts in held.items():
        (place / f"{name}.jsonl").write_text(lines(texts))
    (place / "damaged.jsonl").write_text(lines(["one"]) + '{"text": \n')
    (place / "cut.parquet").write_bytes(b"PAR1" + bytes(40))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(place / "home")}
    command = [sys.executable, "-c", READ, found.stdout.strip(), str(place)]
    given = {"input": json.dumps(TEXTS), "env": os.environ | offline}
    done = subprocess.run(command, capture_output=True, text=True, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_documents_are_those_that_were_written(kind, said):
    assert [text for _, text in said[kind]] == TEXTS[:4]
    assert len({name for name, _ in said[kind]}) == 4


def test_documents_end_with_the_data_set_and_splits_are_told_apart(said):
    assert [text for _, text in said["all"]] == TEXTS
    assert [text for _, text in said["split"]] == TEXTS[3:]


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("column", "json has no column 'body' of text: it has n, text"),
        ("numbers", "row 0 of json holds int, and no text, in its column 'n'"),
        ("null", "row 1 of json holds NoneType, and no text, in its column 'text'"),
        ("file", "the data set json can't be read (FileNotFoundError: "),
        ("no folder", "none can't be read (FileNotFoundError: "),
        ("hub", "the data set no/where can't be read (ConnectionError: "),
        ("config", "folder can't be read (ValueError: BuilderConfig 'en' not found"),
        ("no split", "folder can't be read (ValueError: Bad split: validation"),
        ("damaged", "the data set json can't be read (ArrowInvalid: "),
        ("cut", "the data set parquet can't be read (ArrowInvalid: "),
    ],
)
def test_what_can_t_be_read_is_said_in_one_sentence(case, sentence, said):
    assert sentence in said[case]
    assert "\n" not in said[case]
