"""Hugging Face folders: read whole or in shards, and refused with one sentence when something is wrong."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from superpose.lm import checkpoints
from superpose.lm.checkpoints import ModelError
from superpose.train.checkpoint import Checkpoints

CONFIG = {
    "model_type": "llama", "vocab_size": 24, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


K_PROJ = "model.layers.0.self_attn.k_proj.weight"


def tensors():
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (24, 16), "model.norm.weight": (16,), "lm_head.weight": (24, 16)}
    for i in range(2):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": (16, 16), f"{layer}.self_attn.k_proj.weight": (8, 16),
            f"{layer}.self_attn.v_proj.weight": (8, 16), f"{layer}.self_attn.o_proj.weight": (16, 16),
            f"{layer}.mlp.gate_proj.weight": (32, 16), f"{layer}.mlp.up_proj.weight": (32, 16),
            f"{layer}.mlp.down_proj.weight": (16, 32), f"{layer}.input_layernorm.weight": (16,),
            f"{layer}.post_attention_layernorm.weight": (16,),
        }  # fmt: skip
    return {name: rng.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}


def folder(place, config=None, change=lambda t: None, parts=1):
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    held = tensors()
    change(held)
    names = list(held)
    if parts == 1:
        safetensors.numpy.save_file(held, place / "model.safetensors")
        return place
    where = {name: f"model-{i % parts}.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        safetensors.numpy.save_file({n: held[n] for n in names if where[n] == file}, place / file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return place


TOKENS = np.arange(12).reshape(2, 6)


def test_one_file_and_many_and_bfloat16_hold_the_same_model(tmp_path):
    want = checkpoints.read(folder(tmp_path / "one"))(TOKENS).logits
    np.testing.assert_array_equal(checkpoints.read(folder(tmp_path / "many", parts=3))(TOKENS).logits, want)

    def halve(held):
        held.update({name: value.astype(ml_dtypes.bfloat16) for name, value in held.items()})

    low = checkpoints.read(folder(tmp_path / "low", change=halve))(TOKENS).logits
    assert 0 < np.abs(low - want).max() < 0.1 * np.abs(want).max()
    small = checkpoints.read(tmp_path / "low", dtype="bfloat16")
    assert checkpoints.weights(small)["blocks.0.attn.W_Q"].dtype == ml_dtypes.bfloat16


def test_nothing_is_read_before_it_is_placed(tmp_path, monkeypatch):
    """What ``build`` gets are views of the mapped files, from which each device takes its own slice."""
    seen, build = {}, checkpoints.build
    monkeypatch.setattr(checkpoints, "build", lambda config, arrays, mesh: seen.update(arrays) or build(config, arrays))
    checkpoints.read_hugging_face(folder(tmp_path / "m", parts=3))
    assert len(seen) == len(tensors())
    for array in seen.values():
        base = array
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)


def test_a_tied_head_may_be_there_or_not(tmp_path):
    def tie(held):
        held["lm_head.weight"] = held["model.embed_tokens.weight"]

    a = checkpoints.read(folder(tmp_path / "a", {"tie_word_embeddings": True}, tie))
    b = checkpoints.read(folder(tmp_path / "b", {"tie_word_embeddings": True}, lambda held: held.pop("lm_head.weight")))
    np.testing.assert_array_equal(a(TOKENS).logits, b(TOKENS).logits)


def random_tensors(shapes, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(size=shape) / 4).astype(dtype) for name, shape in shapes.items()}


def written(place, config, held):
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(held, place / "model.safetensors")
    return checkpoints.read(place)(TOKENS).logits


def test_old_gpt2_and_pythia_files_are_read(tmp_path):
    """As the hub has them: GPT-2 without a prefix and with its masks, Pythia in float16 with its own."""
    config = {"model_type": "gpt2", "vocab_size": 24, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    held = random_tensors({
        "wte.weight": (24, 16), "wpe.weight": (32, 16), "ln_f.weight": (16,), "ln_f.bias": (16,),
        "h.0.ln_1.weight": (16,), "h.0.ln_1.bias": (16,), "h.0.ln_2.weight": (16,), "h.0.ln_2.bias": (16,),
        "h.0.attn.c_attn.weight": (16, 48), "h.0.attn.c_attn.bias": (48,), "h.0.attn.c_proj.weight": (16, 16),
        "h.0.attn.c_proj.bias": (16,), "h.0.mlp.c_fc.weight": (16, 64), "h.0.mlp.c_fc.bias": (64,),
        "h.0.mlp.c_proj.weight": (64, 16), "h.0.mlp.c_proj.bias": (16,),
    })  # fmt: skip
    masks = {"h.0.attn.bias": np.tril(np.ones((1, 1, 32, 32), np.float32)), "h.0.attn.masked_bias": np.float32([-1e4])}
    prefixed = {f"transformer.{name}": value for name, value in held.items()}
    want = written(tmp_path / "a", config, prefixed | {"lm_head.weight": held["wte.weight"]})
    np.testing.assert_array_equal(written(tmp_path / "b", config, held | masks), want)

    config = {"model_type": "gpt_neox", "vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
    layer = "gpt_neox.layers.0"
    held = random_tensors({
        "gpt_neox.embed_in.weight": (24, 16), "embed_out.weight": (24, 16), "gpt_neox.final_layer_norm.weight": (16,),
        "gpt_neox.final_layer_norm.bias": (16,), f"{layer}.input_layernorm.weight": (16,),
        f"{layer}.input_layernorm.bias": (16,), f"{layer}.post_attention_layernorm.weight": (16,),
        f"{layer}.post_attention_layernorm.bias": (16,), f"{layer}.attention.query_key_value.weight": (48, 16),
        f"{layer}.attention.query_key_value.bias": (48,), f"{layer}.attention.dense.weight": (16, 16),
        f"{layer}.attention.dense.bias": (16,), f"{layer}.mlp.dense_h_to_4h.weight": (32, 16),
        f"{layer}.mlp.dense_h_to_4h.bias": (32,), f"{layer}.mlp.dense_4h_to_h.weight": (16, 32),
        f"{layer}.mlp.dense_4h_to_h.bias": (16,),
    }, dtype=np.float16)  # fmt: skip
    masks = {f"{layer}.attention.bias": np.tril(np.ones((1, 1, 32, 32), bool)),
             f"{layer}.attention.masked_bias": np.float16([-1e4]),
             f"{layer}.attention.rotary_emb.inv_freq": np.ones(1, np.float32)}  # fmt: skip
    want = written(tmp_path / "c", config, {name: value.astype(np.float32) for name, value in held.items()})
    np.testing.assert_array_equal(written(tmp_path / "d", config, held | masks), want)


def test_gemma_3_is_read_with_and_without_its_eyes(tmp_path):
    config = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 24,
              "num_hidden_layers": 1, "intermediate_size": 32, "sliding_window": 4}  # fmt: skip
    layer = "layers.0"
    held = random_tensors({
        "embed_tokens.weight": (24, 16), "norm.weight": (16,), f"{layer}.self_attn.q_proj.weight": (16, 16),
        f"{layer}.self_attn.k_proj.weight": (8, 16), f"{layer}.self_attn.v_proj.weight": (8, 16),
        f"{layer}.self_attn.o_proj.weight": (16, 16), f"{layer}.self_attn.q_norm.weight": (8,),
        f"{layer}.self_attn.k_norm.weight": (8,), f"{layer}.mlp.gate_proj.weight": (32, 16),
        f"{layer}.mlp.up_proj.weight": (32, 16), f"{layer}.mlp.down_proj.weight": (16, 32),
        **{f"{layer}.{name}_layernorm.weight": (16,) for name in
           ("input", "post_attention", "pre_feedforward", "post_feedforward")},
    })  # fmt: skip
    alone = {f"model.{name}": value for name, value in held.items()}
    want = written(tmp_path / "text", {"model_type": "gemma3_text", **config}, alone)
    eyes = random_tensors({"vision_tower.vision_model.embeddings.weight": (3, 3), "multi_modal_projector.norm": (4,)})
    whole = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **config}, "vision_config": {}}
    old = {f"language_model.model.{name}": value for name, value in held.items()}
    np.testing.assert_array_equal(written(tmp_path / "old", whole, old | eyes), want)
    new = {f"model.language_model.{name}": value for name, value in held.items()}
    new |= {f"model.{name}": value for name, value in eyes.items()}
    np.testing.assert_array_equal(written(tmp_path / "new", whole, new), want)


def test_an_index_that_promises_more_than_the_files_hold_is_refused(tmp_path):
    place = folder(tmp_path / "m", parts=2)
    index = place / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["model.more"] = "model-0.safetensors"
    index.write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"model\.more is named in model\.safetensors\.index\.json and in no file"):
        checkpoints.read(place)


def drop(name):
    return lambda held: held.pop(name)


def put(name, value):
    return lambda held: held.update({name: value})


KIND = "must be a (whole|positive) number|setting of the wrong kind"  # the second where every call's types are checked
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        ({}, drop(Q), r"layers\.1\.self_attn\.q_proj\.weight is missing"),
        ({}, put("model.layers.7.mlp.up_proj.weight", np.zeros((2, 2), np.float32)), r"layers\.7.* not of a model"),
        ({}, put(Q, np.zeros((12, 16), np.float32)), r"q_proj\.weight has shape \(12, 16\)"),
        ({}, put(Q, np.zeros((16, 12), np.float32)), r"q_proj\.weight has shape \(16, 12\)"),
        ({}, put("model.norm.weight", np.zeros(15, np.float32)), r"norm\.weight has shape \(15,\)"),
        ({}, put(Q, np.full((16, 16), np.nan, np.float32)), "NaN or infinite"),
        ({"model_type": ["llama"]}, None, r"the architecture \['llama'\] of .* is unknown"),
        ({"head_dim": float("inf")}, None, "holds a setting of the wrong kind"),
        ({"model_type": "mamba"}, None, "the architecture 'mamba' of .* is unknown: known are gpt2"),
        ({"hidden_act": "mish"}, None, "activation 'mish' is not known"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, None, "rope scaling 'yarn' is not known"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, None, "does not say low_freq_factor"),
        ({"num_key_value_heads": 3}, None, "must divide heads=4"),
        ({"num_hidden_layers": 2.0}, None, KIND),
        ({"num_key_value_heads": 2.0}, None, KIND),
        ({"rms_norm_eps": "1e-5"}, None, KIND),
        ({"rms_norm_eps": None}, None, KIND),
        ({"rope_theta": -1}, None, "theta of rotary positions must be a positive number, got -1"),
        ({"hidden_size": "big"}, None, "setting of the wrong kind"),
        ({"num_attention_heads": 0, "head_dim": None}, None, "setting of the wrong kind"),
        (
            {},
            lambda held: held.update({K_PROJ: np.ascontiguousarray(held[K_PROJ].T)}),
            r"k_proj\.weight has shape \(16, 8\), and by config\.json it is \(8, 16\)",
        ),
        ({"quantization_config": {"bits": 4}}, None, "quantised"),
        ({"num_hidden_layers": 3}, None, r"missing"),
        ({"vocab_size": 25}, None, r"embed_tokens\.weight has shape \(24, 16\), and by config\.json W_E is \(25, 16\)"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_sentence(config, change, said, tmp_path):
    place = folder(tmp_path / "m", config, change or (lambda held: None))
    with pytest.raises(ModelError, match=said) as error:
        checkpoints.read(place)
    assert "\n" not in str(error.value)


GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
NEOX = {"model_type": "gpt_neox", "rotary_pct": 1.0}
GEMMA2, GEMMA3 = {"model_type": "gemma2", "head_dim": 4}, {"model_type": "gemma3_text", "head_dim": 4}
QWEN2 = {"model_type": "qwen2", "use_sliding_window": True}
LAYERS, HUGE = "and no model has more than 4096", 10**12


@pytest.mark.parametrize(
    ("config", "said"),
    [
        *[({**family, "num_hidden_layers": HUGE}, LAYERS) for family in ({}, NEOX, GEMMA2, GEMMA3, QWEN2)],
        ({"num_hidden_layers": 10**30}, LAYERS),
        ({**GPT2, "n_layer": HUGE}, LAYERS),
        *[({**family, "num_hidden_layers": -1}, "layers must be at least 1") for family in ({}, NEOX, GEMMA2)],
        ({"num_hidden_layers": "2"}, KIND),
        ({**GEMMA2, "num_hidden_layers": "2"}, KIND),
        ({"hidden_size": 0}, "d_model must be at least 1, got 0"),
        ({"hidden_size": -16}, "d_model must be at least 1, got -16"),
        ({"hidden_size": HUGE}, r"embed_tokens\.weight has shape \(24, 16\), and by config\.json W_E is"),
        ({"hidden_size": "16"}, KIND),
        ({"hidden_size": 10**30}, "rotary positions turn an even number"),
        ({"vocab_size": HUGE}, r"embed_tokens\.weight has shape \(24, 16\), and by config\.json W_E is"),
        ({"vocab_size": 0}, "vocab must be at least 1, got 0"),
        ({"intermediate_size": HUGE}, r"gate_proj\.weight has shape \(32, 16\), and by config\.json"),
        ({"intermediate_size": 0}, "the MLPs of a llama have at least 1 neuron, got 0"),
        ({"intermediate_size": -1}, "d_mlp must be at least 0, got -1"),
        ({"head_dim": HUGE}, r"q_proj\.weight has shape \(16, 16\), and by config\.json"),
        ({"head_dim": -4}, "d_head must be at least 1, got -4"),
        ({"max_position_embeddings": HUGE}, "max_position_embeddings is 1000000000000, and no model"),
        ({"num_key_value_heads": HUGE}, "must divide heads=4"),
        ({"num_attention_heads": HUGE}, "1000000000000 heads don't divide a width of 16"),
        ({"num_attention_heads": -4, "num_key_value_heads": -4}, "heads must be at least 1, got -4"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "3 heads don't divide a width of 16"),
        ({**NEOX, "num_attention_heads": 3}, "3 heads don't divide a width of 16"),
        ({**GPT2, "n_head": 3}, "3 heads don't divide a width of 16"),
        ({"rope_theta": 10**400}, "setting of the wrong kind"),
    ],
)
def test_absurd_numbers_are_refused_at_once_and_without_memory(config, said, tmp_path):
    place = folder(tmp_path / "m", config)

    def late(*_):
        raise AssertionError("it was still at it")

    before = signal.signal(signal.SIGALRM, late)
    tracemalloc.start()
    signal.alarm(10)
    try:
        with pytest.raises(ModelError, match=said) as error:
            checkpoints.read(place)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        signal.alarm(0)
        tracemalloc.stop()
        signal.signal(signal.SIGALRM, before)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("said", ["[" * 10**5, '{"num_hidden_layers": 1' + "0" * 5000 + "}"])
def test_a_config_that_is_too_much_for_json_is_refused(said, tmp_path):
    place = folder(tmp_path / "m")
    (place / "config.json").write_text(said)
    with pytest.raises(ModelError, match=r"config\.json is no JSON"):
        checkpoints.read(place)


def test_shapes_are_not_worked_out_for_every_tensor(tmp_path, monkeypatch):
    """Each time a model of all layers is traced: 32 layers took minutes."""
    asked, plain = [], checkpoints.shapes
    monkeypatch.setattr(checkpoints, "shapes", lambda config: asked.append(config) or plain(config))
    checkpoints.read(folder(tmp_path / "m"))
    assert 0 < len(asked) < 4


def test_truncated_missing_doubled_and_hostile_files_are_refused(tmp_path):
    place = folder(tmp_path / "m", parts=3)
    file = place / "model-1.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(ModelError, match="no whole safetensors"):
        checkpoints.read(place)
    file.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(ModelError, match="damaged or hostile"):
        checkpoints.read(place)
    file.unlink()
    with pytest.raises(ModelError, match=r"model-1\.safetensors is missing"):
        checkpoints.read(place)
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ModelError, match="refused"):
        checkpoints.read(place)
    index.write_text("{")
    with pytest.raises(ModelError, match="is damaged"):
        checkpoints.read(place)
    index.unlink()
    (place / "copy.safetensors").write_bytes((place / "model-0.safetensors").read_bytes())
    with pytest.raises(ModelError, match="in two files"):
        checkpoints.read(place)
    for path in place.glob("*.safetensors"):
        path.unlink()
    (place / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a pickle"):
        checkpoints.read(place)
    (place / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="no settings"):
        checkpoints.read(place)


def test_a_run_s_checkpoints_are_no_model(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(0, {"W": np.ones(2)}, {"step": 3})
    kept.close()
    with pytest.raises(ModelError, match="holds a run's checkpoints and no model"):
        checkpoints.read(tmp_path)


def test_reading_leaves_a_save_in_progress_alone(tmp_path):
    model = checkpoints.read(folder(tmp_path / "hf"))
    checkpoints.save(tmp_path / "m", model)
    other = tmp_path / "m" / "checkpoints" / "7.orbax-checkpoint-tmp"
    other.mkdir()
    checkpoints.read(tmp_path / "m")
    assert other.is_dir()
    assert checkpoints.digest(tmp_path / "hf") == checkpoints.digest(folder(tmp_path / "hf"))
    again = folder(tmp_path / "other", change=lambda held: held[K_PROJ].__imul__(2))
    assert checkpoints.digest(again) != checkpoints.digest(tmp_path / "hf")


def test_local_rotations_of_a_new_config_are_read():
    config = checkpoints._gemma3({
        "hidden_size": 16, "num_attention_heads": 2, "head_dim": 8, "vocab_size": 24, "num_hidden_layers": 2,
        "intermediate_size": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 8,
        "sliding_window": 4, "rope_local_base_freq": 1e4,
        "rope_parameters": {"sliding_attention": {"rope_theta": 5e3}, "full_attention": {"rope_theta": 2e6}},
    })  # fmt: skip
    assert (config.rotary.theta, config.local_rotary.theta) == (2e6, 5e3)


SHARDED = """
import math, sys, numpy as np, jax
from jax.sharding import AxisType, Mesh
from superpose.lm import checkpoints
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
asked = []  # of the files, by the callback that places shards

class Asked:
    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __getitem__(self, index):
        asked.append((self.shape, self.array[index].shape))
        return self.array[index]

whole = checkpoints.build
checkpoints.build = lambda config, arrays, mesh, **more: whole(
    config, {name: Asked(a) for name, a in arrays.items()}, mesh, **more)
model = checkpoints.read(sys.argv[1], mesh)
checkpoints.build = whole
split = [part for shape, part in asked if shape == (16, 32)]
assert split and set(split) == {(16, 16)}, split
tokens = np.arange(12).reshape(2, 6)
np.save(sys.argv[2], jax.jit(lambda m, t: m(t).logits)(model, tokens))
held = checkpoints.weights(model)
assert held["blocks.0.mlp.W_in"].addressable_shards[0].data.shape == (16, 16)
assert held["blocks.0.attn.W_Q"].addressable_shards[0].data.shape == (16, 2, 4)
assert held["blocks.0.ln1.w"].addressable_shards[0].data.shape == (16,)

from superpose.interp.harvest import Choice, Harvest, Texts
from superpose.lm import objective, sites
from superpose.train.fit import Sampler, fit
from superpose.train.recipe import Recipe
from superpose.worlds import prng

rng = np.random.default_rng(0)  # rows over the four devices, a pass of 8 and one of 3
texts = Texts(rng.integers(0, 20, (11, 6)), np.full(11, 6), np.arange(11), np.zeros(11, int))
plain = checkpoints.read(sys.argv[1])
made = Harvest(sites.capture(plain, ["resid_post.1"]), texts, 8)
assert made._place is not None
rows = np.concatenate([r.values["resid_post.1"] for r in made.rows(np.arange(11))])
want = plain(texts.tokens, capture=["resid_post.1"]).captured["resid_post.1"].reshape(66, -1)
np.testing.assert_allclose(rows, want, atol=1e-5)

from jax.sharding import NamedSharding, PartitionSpec as P
def numbered(split):  # 4 numbers that a token has, at sites that are split in this way and that
    def run(tokens):
        x = jax.numpy.stack([tokens + i for i in range(4)], -1)
        return {str(spec): jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec)) for spec in split}
    return run
ways, lengths = [P(), P("model"), P(None, None, "model")], 6 - np.arange(11) % 3
for split in [ways, *([way] for way in ways)]:
    parts = list(Harvest(numbered(split), texts._replace(lengths=lengths), 8, Choice((3,))).rows(np.arange(11)))
    tokens = np.concatenate([p.tokens for p in parts])
    keep = (np.arange(6) < lengths[:, None]) & (texts.tokens != 3)
    np.testing.assert_array_equal(tokens, texts.tokens[keep])
    for spec in map(str, split):
        x = np.concatenate([p.values[spec] for p in parts])
        np.testing.assert_array_equal(x, tokens[:, None] + np.arange(4))

batch = {"tokens": texts.tokens[:8], "mask": np.ones((8, 6), bool)}
losses = []
for split in (False, True):
    pop = objective.population(plain.config, {"seed": np.arange(1)}, Recipe(steps=5, lr=1e-2), split=split)
    source = Sampler(lambda key: jax.tree.map(jax.numpy.asarray, batch), shared=True)
    found = fit(pop, steps=5, key=prng.key(0), source=source, log_every=1, mesh=mesh if split else None)
    losses.append(found.history["loss"][:, 0])
np.testing.assert_allclose(*losses, rtol=1e-4)
assert losses[0][-1] < losses[0][0]
"""


@pytest.mark.ci
def test_a_model_split_over_devices_says_the_same(tmp_path):
    place = folder(tmp_path / "m", parts=2)
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parent.parent), "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    command = [sys.executable, "-c", SHARDED, str(place), str(tmp_path / "logits.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), checkpoints.read(place)(TOKENS).logits, atol=1e-5)
