"""Language models from files: Hugging Face folders, llama2.c, our own; and the weight processing that SAEs assume.

Weights are memory-mapped: of a tensor, each device reads the part that it holds. Nothing in a folder is executed. What
a config asks for and this decoder has not is refused by name, never left out.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from superpose import files
from superpose.lm.transformer import Config, Rotary, Transformer, param_specs
from superpose.train.checkpoint import Checkpoints

Weights = dict[str, np.ndarray]
"""Path of a parameter ("blocks.0.attn.W_Q") -> what it is, possibly a view of a mapped file."""


class ModelError(ValueError):
    """A model's files that can't be used; the message is one sentence for a person."""


# --- parameters by path -----------------------------------------------------------------------------------------------


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter."""
    return {path: x.shape for path, x in _by_path(_abstract(config)).items()}


def _abstract(config: Config) -> Any:
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))[1]


def _by_path(state: Any) -> dict[str, Any]:
    return {".".join(map(str, path)): _value(leaf) for path, leaf in nnx.to_flat_state(state)}


def _value(leaf: Any) -> Any:
    return leaf.get_value() if hasattr(leaf, "get_value") else leaf


def weights(model: Transformer) -> dict[str, Any]:
    """Path -> array of every parameter of a model."""
    return _by_path(nnx.state(model))


def build(config: Config, arrays: Mapping[str, Any], mesh: Mesh | None = None, dtype: str | None = None) -> Transformer:
    """A model of these parameters.

    Args:
        config: its shapes.
        arrays: path -> array; a part of a mapped file is read when it is put on its device.
        mesh: with an axis "model", over which weights are split; the other axes hold copies.
        dtype: of the parameters; None is that of the config.

    Raises:
        ModelError: parameters are missing, unknown, of another shape, or not finite.
    """
    wanted = shapes(config)
    if missing := wanted.keys() - arrays.keys():
        raise ModelError(f"{_some(missing)} missing: the model's files are not whole, or of another model")
    if unknown := arrays.keys() - wanted.keys():
        raise ModelError(f"{_some(unknown)} not of this model: its config says another architecture")
    for path, shape in wanted.items():
        if tuple(arrays[path].shape) != shape:
            raise ModelError(f"{path} has shape {tuple(arrays[path].shape)}, and the config says {shape}")
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    specs: dict[Any, Any] = dict(nnx.to_flat_state(param_specs(state))) if mesh is not None else {}
    target = jnp.dtype(dtype or config.dtype)
    flat: Any = {}
    for keys, leaf in nnx.to_flat_state(state):
        path = ".".join(map(str, keys))
        source = arrays[path]
        read = lambda index, source=source: np.asarray(source[index]).astype(target)  # noqa: E731
        if mesh is None:
            value = jnp.asarray(read(...))
        else:
            spec = _value(specs[keys])
            for size, axis in zip(source.shape, spec, strict=False):
                if axis is not None and size % mesh.shape[axis]:
                    raise ModelError(
                        f"{path} of shape {source.shape} can't be split over {mesh.shape[axis]} devices: {size} is "
                        "not a multiple of it; choose another mesh"
                    )
            value = jax.make_array_from_callback(source.shape, NamedSharding(mesh, spec), read)
        if not bool(jnp.isfinite(value).all()):
            raise ModelError(f"{path} holds NaN or infinite weights: copy the files again")
        flat[keys] = leaf.replace(value)
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _some(names: Any) -> str:
    names = sorted(names)
    few = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{few} {'is' if len(names) == 1 else 'are'}"


# --- Hugging Face -----------------------------------------------------------------------------------------------------

_ACTS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu",
    "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip


def _act(name: Any) -> str:
    if name not in _ACTS:
        raise ModelError(f"the activation {name!r} is not known: known are {', '.join(_ACTS)}")
    return _ACTS[name]


def _rotary(hf: Mapping[str, Any], d_head: int, kind: str | None = None, theta: float | None = None) -> Rotary:
    """From ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (before)."""
    found = hf.get("rope_parameters") or {}
    found = found.get(kind, {}) if kind and kind in found else found
    scaling = found or (hf.get("rope_scaling") if theta is None else None) or {}
    theta = found.get("rope_theta") or theta or hf.get("rope_theta") or hf.get("rotary_emb_base") or 10_000.0
    part = found.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or hf.get("rotary_pct") or 1.0
    rotary = Rotary(float(theta), int(d_head * part))
    match scaling.get("rope_type", scaling.get("type", "default")):
        case "default":
            return rotary
        case "linear":
            return dataclasses.replace(rotary, factor=float(scaling["factor"]))
        case "llama3":
            low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
            long = int(scaling["original_max_position_embeddings"])
            return dataclasses.replace(rotary, factor=float(scaling["factor"]), llama3=(low, high, long))
        case other:
            raise ModelError(f"rope scaling {other!r} is not known: known are default, linear and llama3")


def _d_head(d: Any, heads: Any) -> Any:
    if d % heads:
        raise ModelError(f"{heads} heads don't divide a width of {d}")
    return d // heads


def _llama_like(hf: Mapping[str, Any], **more: Any) -> Config:
    d, heads = hf["hidden_size"], hf["num_attention_heads"]
    d_head = hf.get("head_dim") or _d_head(d, heads)
    values: dict[str, Any] = dict(
        vocab=hf["vocab_size"], d_model=d, layers=hf["num_hidden_layers"], heads=heads, d_head=d_head,
        d_mlp=hf["intermediate_size"], context=hf["max_position_embeddings"],
        kv_heads=hf.get("num_key_value_heads") or heads, eps=hf["rms_norm_eps"],
        tied=bool(hf.get("tie_word_embeddings", False)), rotary=_rotary(hf, d_head),
    )  # fmt: skip
    values |= {"act": _act(hf.get("hidden_act", "silu"))} if "act" not in more else {}
    return Config(**values | more)


def _windows(hf: Mapping[str, Any], windowed: Callable[[int], bool]) -> tuple[int | None, ...]:
    layers, window = hf["num_hidden_layers"], hf.get("sliding_window")
    kinds = hf.get("layer_types") or ["sliding_attention" if windowed(i) else "full_attention" for i in range(layers)]
    if others := set(kinds) - {"sliding_attention", "full_attention"}:
        raise ModelError(f"layers of the kind {', '.join(sorted(others))} are not known")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _gpt2(hf: Mapping[str, Any]) -> Config:
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if hf.get(name):
            raise ModelError(f"{name} is not known to this decoder")
    d, heads = hf["n_embd"], hf["n_head"]
    return Config(
        vocab=hf["vocab_size"], d_model=d, layers=hf["n_layer"], heads=heads, d_head=_d_head(d, heads),
        d_mlp=hf.get("n_inner") or 4 * d, context=hf["n_positions"], positions="learned", norm="layer",
        eps=hf["layer_norm_epsilon"], act=_act(hf["activation_function"]), gated=False, qkv_bias=True, out_bias=True,
        mlp_bias=True, tied=hf.get("tie_word_embeddings", True),
        query_scale=None if hf.get("scale_attn_weights", True) else 1.0,
    )  # fmt: skip


def _neox(hf: Mapping[str, Any]) -> Config:
    d, heads = hf["hidden_size"], hf["num_attention_heads"]
    d_head, bias = _d_head(d, heads), bool(hf.get("attention_bias", True))
    return Config(
        vocab=hf["vocab_size"], d_model=d, layers=hf["num_hidden_layers"], heads=heads, d_head=d_head,
        d_mlp=hf["intermediate_size"], context=hf["max_position_embeddings"],
        rotary=_rotary({"rotary_pct": 0.25, **hf}, d_head), norm="layer", eps=hf["layer_norm_eps"],
        act=_act(hf["hidden_act"]), gated=False, parallel=hf.get("use_parallel_residual", True), qkv_bias=bias,
        out_bias=bias, mlp_bias=True, tied=bool(hf.get("tie_word_embeddings", False)),
    )  # fmt: skip


def _llama(hf: Mapping[str, Any]) -> Config:
    bias = bool(hf.get("attention_bias", False))
    return _llama_like(hf, qkv_bias=bias, out_bias=bias, mlp_bias=bool(hf.get("mlp_bias", False)))


def _qwen2(hf: Mapping[str, Any]) -> Config:
    windows = _qwen_windows(hf)
    return _llama_like(hf, qkv_bias=True, windows=windows)


def _qwen3(hf: Mapping[str, Any]) -> Config:
    bias = bool(hf.get("attention_bias", False))
    return _llama_like(hf, qk_norm=True, qkv_bias=bias, out_bias=bias, windows=_qwen_windows(hf))


def _qwen_windows(hf: Mapping[str, Any]) -> tuple[int | None, ...]:
    if not hf.get("use_sliding_window"):
        return ()
    return _windows(hf, lambda i: i >= hf.get("max_window_layers", 0))


def _gemma_like(hf: Mapping[str, Any], **more: Any) -> Config:
    act = _act(hf.get("hidden_activation") or "gelu_pytorch_tanh")  # "gelu" in hidden_act of old files means tanh too
    if hf.get("attention_bias"):
        raise ModelError("attention_bias of a Gemma is not known to this decoder")
    if hf.get("use_bidirectional_attention"):
        raise ModelError("attention to later tokens is not known to this decoder")
    tied = hf.get("tie_word_embeddings", True)
    scale = math.sqrt(hf["hidden_size"])
    return _llama_like(hf, act=act, tied=tied, norm_offset=1.0, embed_scale=scale, **more)


def _gemma2(hf: Mapping[str, Any]) -> Config:
    return _gemma_like(
        hf, post_norms=True, query_scale=hf["query_pre_attn_scalar"] ** -0.5,
        attn_cap=hf.get("attn_logit_softcapping"), logit_cap=hf.get("final_logit_softcapping"),
        windows=_windows(hf, lambda i: i % 2 == 0),
    )  # fmt: skip


def _gemma3(hf: Mapping[str, Any]) -> Config:
    every, d_head = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 6, hf["head_dim"]
    local = {**hf, "rope_scaling": None}
    return _gemma_like(
        hf, post_norms=True, qk_norm=True, query_scale=hf["query_pre_attn_scalar"] ** -0.5,
        attn_cap=hf.get("attn_logit_softcapping"), logit_cap=hf.get("final_logit_softcapping"),
        windows=_windows(hf, lambda i: (i + 1) % every != 0), rotary=_rotary(hf, d_head, "full_attention"),
        local_rotary=_rotary(local, d_head, "sliding_attention", hf.get("rope_local_base_freq")),
    )  # fmt: skip


class Piece(NamedTuple):
    """Where a parameter stands: the tensor's name, the view of it that we want, and its shape where the view does not
    say it."""

    name: str
    view: Callable[[Any], Any] = lambda x: x
    shape: tuple[int, ...] | None = None


def _norm_pieces(c: Config, ours: str, theirs: str, kind: str | None = None) -> dict[str, Piece]:
    out = {f"{ours}.w": Piece(f"{theirs}.weight")}
    return out | ({f"{ours}.b": Piece(f"{theirs}.bias")} if (kind or c.norm) == "layer" else {})


def _transposed(x: Any) -> Any:
    return x.T


def _heads_of(d: int, heads: int, d_head: int, x: Any) -> Any:
    return x.T.reshape(d, heads, d_head)


def _by_head(heads: int, d_head: int, x: Any) -> Any:
    return x.reshape(heads, d_head)


def _gpt2_pieces(c: Config) -> dict[str, Piece]:
    d, h, k = c.d_model, c.heads, c.d_head
    out = {"W_E": Piece("wte.weight"), "W_pos": Piece("wpe.weight"), **_norm_pieces(c, "ln_final", "ln_f")}
    if not c.tied:
        out["W_U"] = Piece("lm_head.weight", _transposed)
    for i in range(c.layers):
        ours, theirs = f"blocks.{i}", f"h.{i}"
        for part, name in enumerate("QKV"):
            W = lambda x, p=part: x[:, p * d : (p + 1) * d].reshape(d, h, k)  # noqa: E731
            b = lambda x, p=part: x[p * d : (p + 1) * d].reshape(h, k)  # noqa: E731
            out[f"{ours}.attn.W_{name}"] = Piece(f"{theirs}.attn.c_attn.weight", W, (d, 3 * d))
            out[f"{ours}.attn.b_{name}"] = Piece(f"{theirs}.attn.c_attn.bias", b, (3 * d,))
        out |= {
            f"{ours}.attn.W_O": Piece(f"{theirs}.attn.c_proj.weight", lambda x: x.reshape(h, k, d), (h * k, d)),
            f"{ours}.attn.b_O": Piece(f"{theirs}.attn.c_proj.bias"),
            f"{ours}.mlp.W_in": Piece(f"{theirs}.mlp.c_fc.weight"),
            f"{ours}.mlp.b_in": Piece(f"{theirs}.mlp.c_fc.bias"),
            f"{ours}.mlp.W_out": Piece(f"{theirs}.mlp.c_proj.weight"),
            f"{ours}.mlp.b_out": Piece(f"{theirs}.mlp.c_proj.bias"),
            **_norm_pieces(c, f"{ours}.ln1", f"{theirs}.ln_1"), **_norm_pieces(c, f"{ours}.ln2", f"{theirs}.ln_2"),
        }  # fmt: skip
    return out


def _neox_pieces(c: Config) -> dict[str, Piece]:
    d, h, k = c.d_model, c.heads, c.d_head
    out = {"W_E": Piece("embed_in.weight"), **_norm_pieces(c, "ln_final", "final_layer_norm")}
    if not c.tied:
        out["W_U"] = Piece("embed_out.weight", _transposed)
    for i in range(c.layers):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        for part, name in enumerate("QKV"):
            W = lambda x, p=part: x.reshape(h, 3, k, d)[:, p].transpose(2, 0, 1)  # noqa: E731
            out[f"{ours}.attn.W_{name}"] = Piece(f"{theirs}.attention.query_key_value.weight", W, (3 * h * k, d))
            if c.qkv_bias:
                b = lambda x, p=part: x.reshape(h, 3, k)[:, p]  # noqa: E731
                out[f"{ours}.attn.b_{name}"] = Piece(f"{theirs}.attention.query_key_value.bias", b, (3 * h * k,))
        dense = f"{theirs}.attention.dense.weight"
        out[f"{ours}.attn.W_O"] = Piece(dense, lambda x: x.T.reshape(h, k, d), (d, h * k))
        if c.out_bias:
            out[f"{ours}.attn.b_O"] = Piece(f"{theirs}.attention.dense.bias")
        out |= {
            f"{ours}.mlp.W_in": Piece(f"{theirs}.mlp.dense_h_to_4h.weight", _transposed),
            f"{ours}.mlp.b_in": Piece(f"{theirs}.mlp.dense_h_to_4h.bias"),
            f"{ours}.mlp.W_out": Piece(f"{theirs}.mlp.dense_4h_to_h.weight", _transposed),
            f"{ours}.mlp.b_out": Piece(f"{theirs}.mlp.dense_4h_to_h.bias"),
            **_norm_pieces(c, f"{ours}.ln1", f"{theirs}.input_layernorm"),
            **_norm_pieces(c, f"{ours}.ln2", f"{theirs}.post_attention_layernorm"),
        }  # fmt: skip
    return out


def _llama_pieces(c: Config) -> dict[str, Piece]:
    d, k = c.d_model, c.d_head
    out = {"W_E": Piece("embed_tokens.weight"), **_norm_pieces(c, "ln_final", "norm")}
    if not c.tied:
        out["W_U"] = Piece("lm_head.weight", _transposed)
    for i in range(c.layers):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        for name, heads in (("Q", c.heads), ("K", c.groups), ("V", c.groups)):
            proj = f"{theirs}.self_attn.{name.lower()}_proj"
            out[f"{ours}.attn.W_{name}"] = Piece(f"{proj}.weight", partial(_heads_of, d, heads, k), (heads * k, d))
            if c.qkv_bias:
                out[f"{ours}.attn.b_{name}"] = Piece(f"{proj}.bias", partial(_by_head, heads, k), (heads * k,))
        o_proj = f"{theirs}.self_attn.o_proj.weight"
        out[f"{ours}.attn.W_O"] = Piece(o_proj, lambda x: x.T.reshape(c.heads, k, d), (d, c.heads * k))
        if c.out_bias:
            out[f"{ours}.attn.b_O"] = Piece(f"{theirs}.self_attn.o_proj.bias")
        for name, their in (("gate", "gate"), ("in", "up"), ("out", "down")):
            out[f"{ours}.mlp.W_{name}"] = Piece(f"{theirs}.mlp.{their}_proj.weight", _transposed)
            if c.mlp_bias:
                out[f"{ours}.mlp.b_{name}"] = Piece(f"{theirs}.mlp.{their}_proj.bias")
        if c.qk_norm:
            for name in "qk":
                pieces = _norm_pieces(c, f"{ours}.attn.{name}_norm", f"{theirs}.self_attn.{name}_norm", "rms")
                out |= pieces
        norms = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
        if c.post_norms:
            norms = {
                "ln1": "input_layernorm", "ln1_post": "post_attention_layernorm", "ln2": "pre_feedforward_layernorm",
                "ln2_post": "post_feedforward_layernorm",
            }  # fmt: skip
        for name, their in norms.items():
            out |= _norm_pieces(c, f"{ours}.{name}", f"{theirs}.{their}")
    return out


class Family(NamedTuple):
    config: Callable[[Mapping[str, Any]], Config]
    pieces: Callable[[Config], dict[str, Piece]]


FAMILIES = {
    "gpt2": Family(_gpt2, _gpt2_pieces),
    "gpt_neox": Family(_neox, _neox_pieces),
    "llama": Family(_llama, _llama_pieces),
    "qwen2": Family(_qwen2, _llama_pieces),
    "qwen3": Family(_qwen3, _llama_pieces),
    "gemma": Family(_gemma_like, _llama_pieces),
    "gemma2": Family(_gemma2, _llama_pieces),
    "gemma3_text": Family(_gemma3, _llama_pieces),
}
"""model_type in config.json -> how its config and its tensors are read."""

_PREFIXES = re.compile(r"^(language_model\.)?(model\.language_model\.|transformer\.|gpt_neox\.|model\.)?")
_LEFT_OUT = re.compile(
    r"(^|\.)(attn\.(masked_)?bias|attention\.(masked_)?bias|rotary_emb\.inv_freq|attention\.rotary_emb\..*)$"
    r"|^(model\.)?(vision_tower|multi_modal_projector)\."
)
"""Tensors that are no weights of the decoder: masks and frequencies of old files, the eyes of Gemma 3."""


def read_config(path: str | Path) -> tuple[Config, Family]:
    """The config of a Hugging Face folder.

    Raises:
        ModelError: there is none, it is no JSON, its architecture is unknown, or it asks for what we have not.
    """
    place = Path(path) / "config.json"
    try:
        hf = json.loads(place.read_text())
    except OSError as error:
        raise ModelError(
            f"{path} has no config.json that can be read ({error.strerror}): give a model's folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{place} is no JSON ({str(error)[:100]}): copy it again") from error
    if not isinstance(hf, dict):
        raise ModelError(f"{place} holds no settings: copy it again")
    if hf.get("model_type") in ("gemma3", "gemma3_vl") and "text_config" in hf:
        hf = {"model_type": "gemma3_text", **hf["text_config"]}
        hf["model_type"] = "gemma3_text"
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ModelError(f"the architecture {kind!r} of {place} is unknown: known are {', '.join(FAMILIES)}")
    if hf.get("quantization_config"):
        raise ModelError(f"{place}: the weights are quantised, which this reader can't undo: take the original model")
    try:
        for name, most in _MOST.items():
            if isinstance(hf.get(name), int) and hf[name] > most:
                raise ModelError(f"{name} is {hf[name]}, and no model has more than {most}: copy it again")
        config = FAMILIES[kind].config(_Given(hf, _DEFAULTS.get(kind, {})))
        if not config.d_mlp:
            raise ModelError(f"the MLPs of a {kind} have at least 1 neuron, got 0")
        return config, FAMILIES[kind]
    except KeyError as error:
        raise ModelError(f"{place} does not say {error.args[0]}, which a {kind} needs: copy it again") from error
    except (TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{place} holds a setting of the wrong kind ({said}): copy it again") from error
    except ModelError as error:
        raise ModelError(f"{place}: {error}") from error
    except ValueError as error:
        raise ModelError(f"{place}: {error}") from error


_MOST = {"num_hidden_layers": 4096, "n_layer": 4096, "max_position_embeddings": 2**31 - 1}
"""Settings that no tensor's shape contradicts at once: names of 10^12 layers would fill the memory first."""
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "n_positions": 1024},
    "gpt_neox": {"layer_norm_eps": 1e-5, "hidden_act": "gelu", "max_position_embeddings": 2048},
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "qwen2": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "head_dim": 128, "sliding_window": 4096,
              "max_window_layers": 28},
    "gemma": {"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "head_dim": 256},
    "gemma2": {"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "head_dim": 256, "sliding_window": 4096,
               "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {"rms_norm_eps": 1e-6, "max_position_embeddings": 131_072, "head_dim": 256, "sliding_window": 4096,
                    "query_pre_attn_scalar": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
                    "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4},
}  # fmt: skip
"""What transformers assumes where a config.json says nothing; Gemma 3 folders rely on it."""


class _Given(dict):
    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]):
        super().__init__({**defaults, **values})


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder's safetensors files, mapped, by the name that it has there."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            said = json.loads(index.read_text())["weight_map"]
            parts = sorted({str(name) for name in said.values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index} is damaged: copy it again") from error
        if odd := [p for p in parts if Path(p).name != p]:
            raise ModelError(f"{index} names {odd[0]!r}, which is no file beside it: refused")
    else:
        said, parts = None, sorted(p.name for p in folder.glob("*.safetensors"))
        if not parts:
            others = [p.name for p in folder.glob("*.bin")]
            hint = f" ({others[0]} is a pickle: convert it to safetensors where you trust it)" if others else ""
            raise ModelError(f"{folder} holds no .safetensors file{hint}")
    out: dict[str, np.ndarray] = {}
    for name in parts:
        if not (folder / name).exists():
            raise ModelError(f"{folder / name} is missing: the download is not whole")
        try:
            found = files.map_safetensors(folder / name, others=True)
        except ValueError as error:
            raise ModelError(str(error)) from error
        if twice := out.keys() & found.keys():
            raise ModelError(f"{_some(twice)} in two files of {folder}: remove the files of the other model")
        out |= found
    if said is not None and (missing := said.keys() - out.keys()):
        raise ModelError(f"{_some(missing)} named in {index.name} and in no file: the download is not whole")
    return out


def read_hugging_face(path: str | Path, mesh: Mesh | None = None, dtype: str = "float32") -> Transformer:
    """A model from a folder of Hugging Face: config.json and one or many safetensors files, mapped.

    Args:
        path: the folder.
        mesh: see ``build``.
        dtype: of parameters and computation.

    Raises:
        ModelError: see ``read_config``; tensors are missing, unknown, doubled, of another shape, or damaged.
    """
    folder = Path(path)
    config, family = read_config(folder)
    config = dataclasses.replace(config, dtype=dtype)
    found: dict[str, np.ndarray] = {}
    for name, tensor in _tensors(folder).items():
        if not _LEFT_OUT.search(name):
            found[_PREFIXES.sub("", name)] = tensor
    pieces = family.pieces(config)
    if config.tied:  # some folders hold the tied unembedding once more
        for name in ("lm_head.weight", "embed_out.weight"):
            found.pop(name, None)
    if missing := {p.name for p in pieces.values()} - found.keys():
        raise ModelError(f"{folder}: {_some(missing)} missing: the download is not whole")
    if extra := found.keys() - {p.name for p in pieces.values()}:
        raise ModelError(f"{folder}: {_some(extra)} not of a model with this config: the files don't belong together")
    arrays, wanted = {}, shapes(config)
    for ours, piece in pieces.items():
        if piece.shape not in (None, stored := found[piece.name].shape):
            raise ModelError(f"{folder}: {piece.name} has shape {stored}, and by config.json it is {piece.shape}")
        try:
            arrays[ours] = piece.view(found[piece.name])
        except (ValueError, IndexError) as error:
            shape = found[piece.name].shape
            raise ModelError(f"{folder}: {piece.name} has shape {shape}, which its config.json does not say") from error
        if arrays[ours].shape != (want := wanted[ours]):
            shape = found[piece.name].shape
            raise ModelError(f"{folder}: {piece.name} has shape {shape}, and by config.json {ours} is {want}")
    try:
        return build(config, arrays, mesh)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error


# --- llama2.c, our own ------------------------------------------------------------------------------------------------


def read_llama2c(path: str | Path, mesh: Mesh | None = None, dtype: str = "float32") -> Transformer:
    """A model in version 0 of llama2.c's format: seven int32, then float32.

    Rotations there turn neighbouring dimensions against each other; queries and keys are reordered to our halves.

    Raises:
        ModelError: the file is of another size than its header says.
    """
    path = Path(path)
    try:
        raw = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read ({error}): give a llama2.c model") from error
    if raw.size < 28:
        raise ModelError(f"{path} has {raw.size} bytes, less than a header: copy it again")
    dim, hidden, layers, heads, groups, vocab, context = np.frombuffer(raw[:28], "<i4").tolist()
    tied, vocab = vocab > 0, abs(vocab)
    if not all(0 < n < 2**24 for n in (dim, hidden, layers, heads, groups, vocab, context)) or dim % heads:
        raise ModelError(f"{path} is no llama2.c model of version 0: its header makes no sense")
    k = dim // heads
    try:
        config = Config(
            vocab=vocab, d_model=dim, layers=layers, heads=heads, d_head=k, d_mlp=hidden, context=context,
            kv_heads=groups, tied=tied, dtype=dtype,
        )  # fmt: skip
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    sizes = {
        "embed": (vocab, dim), "ln1": (layers, dim), "q": (layers, heads * k, dim), "k": (layers, groups * k, dim),
        "v": (layers, groups * k, dim), "o": (layers, dim, heads * k), "ln2": (layers, dim),
        "w1": (layers, hidden, dim), "w2": (layers, dim, hidden), "w3": (layers, hidden, dim), "norm": (dim,),
        "rope": (2, context, k // 2), **({} if tied else {"unembed": (vocab, dim)}),
    }  # fmt: skip
    wanted = 28 + 4 * sum(map(math.prod, sizes.values()))
    if raw.size != wanted:
        raise ModelError(f"{path} has {raw.size} bytes, and its header says {wanted}: copy it again")
    flat, part, at = np.frombuffer(raw[28:], "<f4"), {}, 0
    for name, shape in sizes.items():
        part[name] = flat[at : at + math.prod(shape)].reshape(shape)
        at += math.prod(shape)
    halves = np.r_[0:k:2, 1:k:2]
    arrays = {"W_E": part["embed"], "ln_final.w": part["norm"]}
    if not tied:
        arrays["W_U"] = part["unembed"].T
    for i in range(layers):
        block = f"blocks.{i}"
        arrays |= {
            f"{block}.attn.W_Q": part["q"][i].T.reshape(dim, heads, k)[..., halves],
            f"{block}.attn.W_K": part["k"][i].T.reshape(dim, groups, k)[..., halves],
            f"{block}.attn.W_V": part["v"][i].T.reshape(dim, groups, k),
            f"{block}.attn.W_O": part["o"][i].T.reshape(heads, k, dim),
            f"{block}.mlp.W_gate": part["w1"][i].T, f"{block}.mlp.W_out": part["w2"][i].T,
            f"{block}.mlp.W_in": part["w3"][i].T, f"{block}.ln1.w": part["ln1"][i], f"{block}.ln2.w": part["ln2"][i],
        }  # fmt: skip
    try:
        return build(config, arrays, mesh)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def save(path: str | Path, model: Transformer, about: Mapping[str, Any] | None = None) -> None:
    """Writes a model by Orbax: weights, config, and what the caller says about it (tokenizer, corpus).

    Raises:
        WorkdirError: the disk refuses; a model that stood there before is untouched.
    """
    place = Path(path)
    place.mkdir(parents=True, exist_ok=True)
    kept = Checkpoints(place, keep=1)
    try:
        meta = {"config": dataclasses.asdict(model.config), "about": dict(about or {})}
        kept.save(0 if kept.latest is None else kept.latest + 1, weights(model), meta)
    finally:
        kept.close()


def read_own(
    path: str | Path, mesh: Mesh | None = None, dtype: str | None = None
) -> tuple[Transformer, dict[str, Any]]:
    """What ``save`` wrote: the model, in its own dtype or another, and what was said about it.

    Raises:
        WorkdirError: it is damaged. ModelError: there is none.
    """
    place = Path(path)
    if not (place / "checkpoints").is_dir():
        raise ModelError(f"{place} holds no model of ours: give a folder that checkpoints.save wrote")
    kept = Checkpoints(place, only_read=True)
    try:
        found = kept.restore()
    finally:
        kept.close()
    if found is None:
        raise ModelError(f"{place} holds no model of ours: give a folder that checkpoints.save wrote")
    _, arrays, meta = found
    if not (isinstance(meta, Mapping) and isinstance(meta.get("config"), Mapping) and "about" in meta):
        raise ModelError(f"{place} holds a run's checkpoints and no model: give a folder that checkpoints.save wrote")
    config = _config(dict(meta["config"]))
    return build(dataclasses.replace(config, dtype=dtype or config.dtype), arrays, mesh), meta["about"]


def _config(values: dict[str, Any]) -> Config:
    """A config from JSON."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for name in ("rotary", "local_rotary"):
        if values[name] is not None:
            given = values[name]
            values[name] = Rotary(**given | {"llama3": given["llama3"] and tuple(given["llama3"])})
    return Config(**values)


def digest(path: str | Path) -> str:
    """SHA-256 over a model's files, 16 hex digits: names, sizes, and 64 KiB at 64 places of each (all of small ones).

    What tells two models of one name apart; tokenizers and texts beside the weights don't count.

    Raises:
        ModelError: there is no such model.
    """
    place = Path(path)
    if not place.exists():
        raise ModelError(f"{place} does not exist: give a Hugging Face folder, a llama2.c file or a folder of ours")
    own = place / "checkpoints"
    inside = own.rglob("*") if own.is_dir() else [*place.glob("*.safetensors"), place / "config.json"]
    h = hashlib.sha256()
    for file in sorted(p for p in (inside if place.is_dir() else [place]) if p.is_file()):
        size = file.stat().st_size
        h.update(f"{file.relative_to(place) if file != place else ''} {size}".encode())
        with open(file, "rb") as f:
            for start in sorted({max(0, (size - 2**16) * i // 63) for i in range(64)}):
                f.seek(start)
                h.update(f.read(2**16))
    return h.hexdigest()[:16]


def read(path: str | Path, mesh: Mesh | None = None, dtype: str | None = None) -> Transformer:
    """A model from whatever stands there: a Hugging Face folder, a llama2.c file, a folder of ours.

    Args:
        mesh: as of ``build``.
        dtype: of parameters and computation; None is float32, and for a folder of ours what it was trained in.

    Raises:
        ModelError, WorkdirError: what stands there can't be used.
    """
    place = Path(path)
    if place.is_dir():
        if (place / "checkpoints").is_dir():
            return read_own(place, mesh, dtype)[0]
        return read_hugging_face(place, mesh, dtype or "float32")
    if not place.exists():
        raise ModelError(f"{place} does not exist: give a Hugging Face folder, a llama2.c file or a folder of ours")
    return read_llama2c(place, mesh, dtype or "float32")


# --- weight processing ------------------------------------------------------------------------------------------------


def fold_norms(model: Transformer) -> Transformer:
    """The same function with the norms' weights folded into the maps that read them (fold_ln of TransformerLens).

    Norms after attention and MLP (Gemma 2 and 3) and those of queries and keys are read by no map: they stay.

    Raises:
        ModelError: there is nothing to fold.
    """
    c, old = model.config, {k: jnp.asarray(v, jnp.float32) for k, v in weights(model).items()}
    if not c.norm_weights or c.norm == "none":
        raise ModelError("the norms of this model have no weights to fold")
    layer = c.norm == "layer"
    new = {k: v for k, v in old.items() if not re.search(r"(^|\.)(ln1|ln2|ln_final)\.[wb]$", k)}
    if c.tied:
        new["W_U"] = old["W_E"].T

    def fold(norm: str, maps: Mapping[str, str]) -> None:
        w = old[f"{norm}.w"] + (c.norm_offset if c.norm == "rms" else 0.0)
        for W, b in maps.items():
            if layer:
                new[b] = new.get(b, 0.0) + jnp.tensordot(old[f"{norm}.b"], new[W], 1)
            new[W] = new[W] * w.reshape(-1, *[1] * (new[W].ndim - 1))

    for i in range(c.layers):
        fold(f"blocks.{i}.ln1", {f"blocks.{i}.attn.W_{n}": f"blocks.{i}.attn.b_{n}" for n in "QKV"})
        if c.d_mlp:
            read = ["in", "gate"] if c.gated else ["in"]
            fold(f"blocks.{i}.ln2", {f"blocks.{i}.mlp.W_{n}": f"blocks.{i}.mlp.b_{n}" for n in read})
            if layer and not c.mlp_bias:
                new[f"blocks.{i}.mlp.b_out"] = jnp.zeros(c.d_model)
    fold("ln_final", {"W_U": "b_U"})
    folded = dataclasses.replace(
        c, norm_weights=False, tied=False, unembed_bias=layer or c.unembed_bias, qkv_bias=layer or c.qkv_bias,
        mlp_bias=layer or c.mlp_bias,
    )  # fmt: skip
    return build(folded, new)


def center_writes(model: Transformer) -> Transformer:
    """The same function with what is written to the residual at mean 0 (center_writing_weights of TransformerLens).

    A LayerNorm takes the mean away in any case; SAEs of the residual were trained without it.

    Raises:
        ModelError: the norms are RMS norms, to which the mean matters.
    """
    if model.config.norm != "layer" or model.config.post_norms:
        raise ModelError("only a model whose norms are LayerNorms forgets the mean of its residual")
    c, new = model.config, dict(weights(model))
    if c.tied:
        new["W_U"], c = new["W_E"].T, dataclasses.replace(c, tied=False)
    for name, value in new.items():
        if re.search(r"(W_E|W_pos|W_O|b_O|W_out|b_out)$", name):
            new[name] = value - value.mean(-1, keepdims=True)
    return build(c, new)


def center_unembed(model: Transformer) -> Transformer:
    """The same probabilities with logits whose mean over the vocabulary is 0 (center_unembed of TransformerLens).

    Raises:
        ModelError: logits are capped, and the cap is not linear.
    """
    c, new = model.config, dict(weights(model))
    if c.logit_cap is not None:
        raise ModelError("capped logits can't be centred: the cap would bend them otherwise")
    if c.tied:
        new["W_U"], c = new["W_E"].T, dataclasses.replace(c, tied=False)
    new["W_U"] = new["W_U"] - new["W_U"].mean(-1, keepdims=True)
    if c.unembed_bias:
        new["b_U"] = new["b_U"] - new["b_U"].mean()
    return build(c, new)
