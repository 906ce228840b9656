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
import safetensors.numpy
import test_lm
from flax import nnx
from lm_peer import GPT2, MODELS, OWN

from configs.lm import one_layer
from experiments import language
from superpose.lm import checkpoints
from superpose.lm.transformer import Config, Rotary, Transformer

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
    ("qwen2", {"rotary": Rotary(9e3)}),
    ("qwen2", {"rotary": Rotary(dims=4)}),
    ("qwen2_windows", {"windows": ()}),
    ("qwen3", {"rotary": Rotary(9e3)}),
    ("gemma", {"embed_scale": 1.0}),
    ("gemma", {"rotary": Rotary(9e3)}),
    ("gemma", {"rotary": Rotary(dims=6)}),
    ("gemma2", {"attn_cap": None}),
    ("gemma2", {"logit_cap": None}),
    ("gemma2", {"windows": ()}),
    ("gemma2", {"query_scale": None}),
    ("gemma2", {"rotary": Rotary(9e3)}),
    ("gemma3", {"local_rotary": None}),
    ("gemma3", {"local_rotary": Rotary(9e3)}),
    ("gemma3", {"rotary": Rotary(9e5, factor=8.0)}),
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


_logits = jax.jit(lambda model, tokens: model(tokens).logits)


def off(model, folder):
    """The largest difference of the logits, in units of their standard deviation."""
    want = np.load(folder / "logits.npy")
    got = _logits(model, np.load(folder / "tokens.npy"))
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


# --- models of our own ---------------------------------------------------------------------------------------

SIZES = dict(vocab=97, d_model=GPT2["n_embd"], layers=GPT2["n_layer"], heads=4, d_head=8, context=128)
CONFIGS = {
    "one_relu_layer": language.architecture(one_layer.get_config(), 97),
    "attention_only": Config(**SIZES, **test_lm.KINDS["attention only"]),
}
WRONG = [
    ("one_relu_layer", {"act": "gelu"}),
    ("one_relu_layer", {"d_mlp": 0}),
    ("one_relu_layer", {"mlp_bias": False}),
    ("one_relu_layer", {"norm_weights": False}),
    ("one_relu_layer", {"eps": 1e-2}),
    ("one_relu_layer", {"positions": "none"}),
    ("one_relu_layer", {"query_scale": 0.18}),
    ("one_relu_layer", {"heads": 8, "d_head": 16}),
    ("one_relu_layer", {"parallel": True}),
    ("one_relu_layer", {"windows": (64,)}),
    ("attention_only", {"positions": "none"}),
    ("attention_only", {"positions": "rotary"}),
    ("attention_only", {"norm": "rms", "norm_weights": False}),
    ("attention_only", {"heads": 2, "d_head": 16}),
    ("attention_only", {"query_scale": 0.36}),
    ("attention_only", {"layers": 3}),
    ("attention_only", {"windows": (None, None, None, 64)}),
]


def across(folder, config):
    """A model of ours from the tensors of a GPT-2, and those of its own that it leaves out."""
    held = safetensors.numpy.load_file(folder / "model.safetensors")
    held = {name.removeprefix("transformer."): value for name, value in held.items()}
    h, k, d = config.heads, config.d_head, config.d_model
    out = {"W_E": held.pop("wte.weight"), "W_pos": held.pop("wpe.weight"), "W_U": held.pop("lm_head.weight").T}
    norms = {"ln_final": "ln_f"}
    for i in range(config.layers):
        W = held.pop(f"h.{i}.attn.c_attn.weight").reshape(d, 3, h, k)
        out |= {f"blocks.{i}.attn.W_{name}": W[:, part] for part, name in enumerate("QKV")}
        out[f"blocks.{i}.attn.W_O"] = held.pop(f"h.{i}.attn.c_proj.weight").reshape(h, k, d)
        for ours, theirs in {"in": "c_fc", "out": "c_proj"}.items():
            out[f"blocks.{i}.mlp.W_{ours}"] = held.pop(f"h.{i}.mlp.{theirs}.weight")
            out[f"blocks.{i}.mlp.b_{ours}"] = held.pop(f"h.{i}.mlp.{theirs}.bias")
        norms |= {f"blocks.{i}.ln1": f"h.{i}.ln_1", f"blocks.{i}.ln2": f"h.{i}.ln_2"}
    for ours, theirs in norms.items():
        if f"{theirs}.weight" in held:
            out |= {f"{ours}.w": held.pop(f"{theirs}.weight"), f"{ours}.b": held.pop(f"{theirs}.bias")}
    wanted = checkpoints.shapes(config)
    model = checkpoints.build(config, {path: out[path] for path in wanted})
    return model, held | {path: value for path, value in out.items() if path not in wanted}


@pytest.mark.parametrize("name", OWN)
def test_logits_of_our_own_are_those_of_torch(name, folders):
    model, left = across(folders / name, CONFIGS[name])
    assert off(model, folders / name) < 1e-4
    read_by_none = {path for path in left if path.endswith(("mlp.W_in", "mlp.b_in"))}  # times 0
    assert not any(left[path].any() for path in left.keys() - read_by_none)
    assert bool(read_by_none) == (name == "attention_only")


@pytest.mark.parametrize(("name", "change"), WRONG)
def test_another_architecture_of_our_own_is_seen(name, change, folders):
    wrong, _ = across(folders / name, dataclasses.replace(CONFIGS[name], **change))
    assert off(wrong, folders / name) > 1e-3


@pytest.mark.parametrize("name", OWN)
def test_every_parameter_of_our_own_is_felt(name, folders):
    model, _ = across(folders / name, CONFIGS[name])
    held = checkpoints.weights(model)
    for path, value in held.items():
        turned = checkpoints.build(CONFIGS[name], {**held, path: np.roll(value, 1, axis=0)})
        assert off(turned, folders / name) > 1e-3, path
