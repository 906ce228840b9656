"""What README and docs say is true: Python blocks run, commands run, make targets exist."""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from experiments.results import ROOT
from superpose.lm import checkpoints, text
from superpose.lm.python_source import python_source
from superpose.lm.transformer import Config, Transformer
from superpose.sae import formats
from superpose.sae.model import Architecture

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    for page in PAGES:
        for i, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)):
            yield pytest.param(block, id=f"{page.stem}-{i}")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A small model with random weights and its tokenizer, and texts: what the pages call my_model and my_texts."""
    place = tmp_path_factory.mktemp("files")
    source = python_source(("json", "bisect"))
    tokenizer = text.train_tokenizer(source, 320)
    config = Config(vocab=320, d_model=16, layers=2, heads=2, d_head=8, d_mlp=32, context=128)
    checkpoints.save(place / "my_model", Transformer(config, nnx.Rngs(0)))
    (place / "my_model" / "tokenizer.json").write_text(tokenizer.backend.to_str())
    for name, corpus in (("my_texts", source), ("held", python_source(("queue", "copy")))):
        (place / name).mkdir()
        for i, document in enumerate(corpus.read()):
            (place / name / f"{i}.txt").write_text(document.text)
    return place


@pytest.mark.parametrize("block", list(blocks("python")))
def test_python_blocks_run(block, capsys, tmp_path, monkeypatch, made_up):
    monkeypatch.chdir(tmp_path)
    for name in ("my_model", "my_texts"):
        if name in block:
            (tmp_path / name).symlink_to(made_up / name)
    exec(compile(block, "<docs>", "exec"), {})
    said = capsys.readouterr().out
    assert said.strip()
    if "features in 5 dimensions" in block:  # what README says that it prints
        assert said == "1-S = 1: 5 features in 5 dimensions\n1-S = 0.1: 9 features in 5 dimensions\n"


def test_the_notebook_journey_is_short_and_free_of_flags():
    journey, own = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = lambda text: [line for line in text.splitlines() if line.strip()]  # noqa: E731
    assert len(lines(journey)) <= 15
    assert len(lines(own)) <= 20
    (sae, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "saes.md").read_text(), re.DOTALL)
    assert len(lines(sae)) <= 15
    (lm, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "language_models.md").read_text(), re.DOTALL)
    assert len(lines(lm)) <= 15
    (_, reading, _) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reading.md").read_text(), re.DOTALL)
    assert len(lines(reading)) <= 15
    assert "absl" not in journey + sae + lm + reading
    assert "config" not in journey


@pytest.mark.ci
def test_commands_run(tmp_path, made_up):
    files = {"MODEL": made_up / "my_model", "TEXTS": made_up / "my_texts", "HELD": made_up / "held"}
    files |= {"STORE": tmp_path / "store", "features.html": tmp_path / "features.html", "SAE": tmp_path / "sae"}
    arch, rng = Architecture(16, 24, "relu"), np.random.default_rng(0)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arch.shapes().items()}
    formats.write_saelens(files["SAE"], arch, params, formats.Metadata(model="my_model", site="resid_post.0"))
    commands = [
        shlex.split(line)
        for page in PAGES
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.splitlines()
        if line.startswith("python ")
    ]
    assert len(commands) >= 4
    for command in commands:
        assert ":quick" in " ".join(command), "only quick configs are run by the tests"
        parts = [word.partition("=") for word in command]
        command = [f"{name}{equals}{files.get(value, value)}" for name, equals, value in parts]
        place = [f"--out={tmp_path / 'out'}"]
        if "--draw_only" not in command:
            place.append(f"--workdir={tmp_path / str(hash(tuple(command)))}")
        done = subprocess.run([sys.executable, *command[1:], *place], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", (ROOT / "README.md").read_text(), re.MULTILINE)))
)
def test_make_targets_exist(target):
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_links_point_at_files():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_named_tests_exist():
    tests = "".join(page.read_text() for page in (ROOT / "tests").rglob("test_*.py"))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert named
    assert not [name for name in named if f"def {name}(" not in tests]
