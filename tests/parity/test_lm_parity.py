"""Every family against transformers' torch models: equal logits to 1e-4 of their scale, and what must not be equal.

Needs another environment: SUPERPOSE_PEERS names its Python, which runs ``lm_peer.py``.
"""

import dataclasses
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from lm_peer import MODELS

from superpose.lm import checkpoints
from superpose.lm.transformer import Rotary, Transformer

SCRIPT = Path(__file__).with_name("lm_peer.py")
FOLDERS = [*MODELS, "llama3_old", "gemma3_old", "neox_old"]
CONTROLS = [  # what a reader might get wrong; the logits must then differ
    ("gpt2", {"act": "gelu"}),
    ("gpt2_untied", {"act": "gelu"}),
    ("neox", {"rotary": Rotary(dims=None)}),
    ("neox_in_turn", {"parallel": True}),
    ("llama2", {"rotary": Rotary(9e3)}),
    ("llama3", {"rotary": Rotary(5e4)}),
    ("llama_biased", {"rotary": Rotary(9e3)}),
    ("qwen2", {"eps": 1e-2}),
    ("qwen2_windows", {"windows": ()}),
    ("qwen3", {"rotary": Rotary(9e3)}),
    ("gemma", {"embed_scale": 1.0}),
    ("gemma2", {"attn_cap": None}),
    ("gemma2", {"logit_cap": None}),
    ("gemma2", {"windows": ()}),
    ("gemma2", {"query_scale": None}),
    ("gemma3", {"local_rotary": None}),
    ("gemma3", {"windows": ()}),
]


def test_every_family_has_a_control():
    assert {name for name, _ in CONTROLS} == MODELS.keys()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    python = os.environ.get("SUPERPOSE_PEERS")
    if not python:
        pytest.skip("SUPERPOSE_PEERS names no Python with torch and transformers: make test-parity")
    place = tmp_path_factory.mktemp("models")
    done = subprocess.run([python, SCRIPT, place], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def off(model, folder):
    """The largest difference of the logits, in units of their standard deviation."""
    want = np.load(folder / "logits.npy")
    got = jax.jit(lambda m, tokens: m(tokens).logits)(model, np.load(folder / "tokens.npy"))
    return np.abs(got - want).max() / want.std()


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_are_those_of_torch(name, folders):
    assert off(checkpoints.read(folders / name), folders / name) < 1e-4


@pytest.mark.parametrize(("name", "change"), CONTROLS)
def test_a_wrong_reading_is_seen(name, change, folders):
    made = checkpoints.read(folders / name)
    wrong = Transformer(dataclasses.replace(made.config, **change), nnx.Rngs(0))
    wrong = nnx.merge(nnx.split(wrong)[0], nnx.state(made))
    assert off(wrong, folders / name) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama3", "gemma2"])
def test_folded_weights_say_the_same(name, folders):
    assert off(checkpoints.fold_norms(checkpoints.read(folders / name)), folders / name) < 1e-4
