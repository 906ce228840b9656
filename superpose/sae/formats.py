"""Published SAEs as arrays: reads SAELens, Gemma Scope 1 and 2, dictionary_learning and sparsify; writes the first two.

``read`` tells the format by the files that are there; ``files`` takes the arrays out of them and executes nothing. What
a config says is used, kept in ``Metadata.extra``, or refused with one sentence, and no array is ignored. Names and
orientation here are those of ``Architecture.shapes``; in the files the encoder sees, and arrays stand:

- SAELens: x - b_dec if ``apply_b_dec_to_input``; ``W_skip`` is [d_out, d_in].
- Gemma Scope 1: x; some files have lower-case keys.
- Gemma Scope 2: x; lower-case keys; ``affine_skip_connection`` is [d_in, d_out], as here.
- dictionary_learning: x - b_dec, but x for JumpReluAutoEncoder and AutoEncoderNew; ``encoder.weight`` [d_sae, d_in] and
  ``decoder.weight`` [d_out, d_sae].
- sparsify: x - b_dec, but x if ``transcode``; ``encoder.weight`` [d_sae, d_in], ``W_dec`` [d_sae, d_out], ``W_skip``
  [d_out, d_in].

Norms of decoder rows are left as they are, except where a SAELens file says that its TopK chooses by norm-weighted
activations: there they are folded into the encoder, which changes no output.
"""

import io
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Float32

from superpose.files import read_npz, read_safetensors, read_torch
from superpose.sae.model import Architecture, fold_scale
from superpose.train.checkpoint import WorkdirError, write_atomically

_T = TypeVar("_T")

SAELENS = "6.54.12"  # the version of SAELens whose layout is written
MAX_JSON = 16 * 2**20

# Site -> hook of TransformerLens. Its hook_mlp_in is what enters the layer norm before the MLP.
HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_in": "blocks.{}.hook_mlp_in",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "mlp_post": "blocks.{}.mlp.hook_post",
}
# Names of other libraries that mean such a site: module outputs of Hugging Face models, and dictionary_learning's.
_ALIASES = [
    (r"(?:\w+\.)*(?:layers|h)\.(\d+)(?:\.output)?", "resid_post"),
    (r"(?:\w+\.)*(?:layers|h)\.(\d+)\.mlp(?:\.output)?", "mlp_out"),
    (r"(?:\w+\.)*(?:layers|h)\.(\d+)\.(?:self_attn|attention|attn)(?:\.output)?", "attn_out"),
    (r"(?:\w+\.)*layers\.(\d+)\.post_feedforward_layernorm\.output", "mlp_out"),
    *((rf"{site}_layer_(\d+)", site) for site in HOOKS),
]


def site_of(hook: str) -> str | None:
    """Our name of the place that another library calls ``hook``; None where we have no name for it.

    >>> site_of("blocks.3.hook_resid_pre"), site_of("model.layers.3.mlp"), site_of("blocks.3.attn.hook_z")
    ('resid_pre.3', 'mlp_out.3', None)
    """
    own = [(re.escape(name).replace(r"\{\}", r"(\d+)"), site) for site, name in HOOKS.items()]
    for pattern, site in own + _ALIASES:
        if found := re.fullmatch(pattern, hook):
            return f"{site}.{int(found[1])}"
    return None


def hook_of(site: str) -> str | None:
    """The TransformerLens hook of a site; None where it has none.

    >>> hook_of("mlp_out.11"), hook_of("toy_hidden.0")
    ('blocks.11.hook_mlp_out', None)
    """
    name, _, layer = site.rpartition(".")
    return HOOKS[name].format(int(layer)) if name in HOOKS and layer.isdecimal() else None


@dataclass(frozen=True)
class Metadata:
    """What an SAE was trained on; None where nobody said. A hook and its site fill each other in, and must agree.

    Attributes:
        model: name of the language model.
        site: place in it, in our names: ``resid_pre.3``. None also for a hook that we have no name for.
        hook: the same place as the file names it.
        site_out: where a transcoder's output belongs.
        hook_out: the same as the file names it.
        prepend_bos: whether each context began with the BOS token.
        context: tokens per context.
        scaling: constant that x was multiplied by in training. It is folded: the SAE is one of x itself.
        weight_processing: arguments that the model was loaded with (TransformerLens: folded norms, centred weights).
        dataset: name of the text.
        extra: everything else that the file says, under its own keys; it must be JSON.
    """

    model: str | None = None
    site: str | None = None
    hook: str | None = None
    site_out: str | None = None
    hook_out: str | None = None
    prepend_bos: bool | None = None
    context: int | None = None
    scaling: float | None = None
    weight_processing: dict[str, Any] | None = None
    dataset: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for side in ("", "_out"):
            site, hook = getattr(self, f"site{side}"), getattr(self, f"hook{side}")
            if site is not None and hook is not None and site_of(hook) not in (None, site):
                raise ValueError(f"site{side} {site!r} and hook{side} {hook!r} are different places: leave one out")
            if site is None and hook is not None:
                object.__setattr__(self, f"site{side}", site_of(hook))
            if hook is None and site is not None:
                object.__setattr__(self, f"hook{side}", hook_of(site))


@dataclass(frozen=True)
class Published:
    """An SAE as it was found: ``SAE(found.arch, found.params)`` makes a model of it."""

    arch: Architecture
    params: dict[str, Float32[np.ndarray, "..."]]
    metadata: Metadata
    source_format: str


def read(path: str | Path) -> Published:
    """Reads an SAE from its folder or from its file of weights, in any of ``FORMATS``.

    Numbers of 16 bits are widened, of 64 bits rounded, to float32.

    Raises:
        ValueError: the format is unknown, the files are damaged or don't agree, or the SAE can't be honoured.
    """
    path = Path(os.path.abspath(path))  # names of folders above it tell what it is
    if path.name in ("cfg.json", "config.json"):
        path = path.parent
    known = ", ".join(f"{weights} ({name})" for name, (weights, _) in FORMATS.items())
    if path.is_file():
        names = [name for name, (weights, _) in FORMATS.items() if weights == path.name]
        names = names or {".npz": ["gemma_scope"], ".pt": ["dictionary_learning"]}.get(path.suffix, [])
        if not names:
            raise ValueError(f"{path} is no SAE in a known format: expected one of {known}")
        return FORMATS[names[0]][1](path)
    names = [name for name, (weights, _) in FORMATS.items() if (path / weights).is_file()]
    if len(names) > 1:
        raise ValueError(f"{path} holds weights in more than one format ({', '.join(names)}): name the file")
    if not names:
        if not path.exists():
            raise ValueError(f"{path} does not exist: name a folder that holds an SAE, or its file of weights")
        raise ValueError(f"{path} holds no SAE in a known format: expected a folder with one of {known}")
    weights, reader = FORMATS[names[0]]
    return reader(path / weights)


def write_saelens(folder: str | Path, arch: Architecture, params: Mapping[str, Any], metadata: Metadata) -> None:
    """Writes ``sae_weights.safetensors`` and then ``cfg.json``, which SAELens loads with ``SAE.load_from_disk``.

    A transcoder's b_dec is folded out of its encoder if need be (``center``), since SAELens has no such transcoder.

    Raises:
        ValueError: SAELens has no such SAE, or the parameters are not those of ``arch``.
        WorkdirError: the disk refuses.
    """
    folder = Path(folder)
    arrays = _writable("SAELens", arch, params)
    transcoder = arch.skip or arch.d_out is not None
    kinds = {kind: name for name, kind in reversed(_SAELENS.items())}
    name = kinds.get((arch.activation, transcoder, arch.skip))
    if name is None:
        raise ValueError(f"SAELens knows no {arch.activation} transcoder: only relu and jumprelu ones can be written")
    if transcoder and arch.center:
        arch, arrays = _uncentered(arch, arrays)
    cfg: dict[str, Any] = {
        "architecture": name,
        "d_in": arch.d_in,
        "d_sae": arch.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": arch.center,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if transcoder:
        cfg["d_out"] = arch.out
    if arch.activation in ("topk", "abs_topk"):
        cfg |= {"k": arch.k, "rescale_acts_by_decoder_norm": False}
    if arch.activation == "matching_pursuit":
        cfg |= {"max_iterations": arch.k} | _PURSUIT
    if arch.skip:
        arrays["W_skip"] = arrays["W_skip"].T
    said = _to_saelens(metadata)
    if clash := sorted(metadata.extra.keys() & (cfg.keys() | said.keys())):
        raise ValueError(f"metadata.extra must not say {', '.join(clash)}, which have their own places: leave them out")
    text = _saelens_json(cfg | {"metadata": said | metadata.extra}, metadata, folder / "cfg.json")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # strides would be lost
    try:
        (folder / "cfg.json").unlink()  # or an old one would vouch for half-written weights
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise WorkdirError(f"could not replace {folder / 'cfg.json'}: {error.strerror}; make way and retry") from error
    write_atomically(folder / "sae_weights.safetensors", safetensors.numpy.save(contiguous))
    write_atomically(folder / "cfg.json", text.encode())


def _saelens_json(cfg: dict[str, Any], metadata: Metadata, where: Path) -> str:
    """The text of ``cfg.json``, from which the metadata are read back as they are.

    Raises:
        ValueError: they would not be: something is no JSON, or has a name that is taken for something else.
    """
    try:
        text = json.dumps(cfg, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the metadata can't be written as JSON ({error}): keep numbers, strings and lists") from error
    facts = _saelens_facts(json.loads(text), where)
    _saelens_architecture(facts, where)
    facts.pop("normalize_activations")
    back = _from_saelens(facts, None, where)
    changed = [one.name for one in fields(Metadata) if getattr(back, one.name) != getattr(metadata, one.name)]
    if "extra" in changed:
        names = metadata.extra.keys() | back.extra.keys()
        changed += sorted(repr(name) for name in names if metadata.extra.get(name) != back.extra.get(name))
    if changed:
        raise ValueError(
            f"the metadata would not be read back as they are ({', '.join(changed)}): keep to strings as keys, to "
            "lists, and to names that mean nothing in cfg.json, and leave out None"
        )
    return text


def write_gemma_scope(path: str | Path, arch: Architecture, params: Mapping[str, Any]) -> None:
    """Writes ``params.npz`` in a folder, or the ``.npz`` file that ``path`` names, as Gemma Scope 1 does.

    The layout has no centring, so b_dec is folded out of the encoder (``center``); and no place for metadata, which
    Gemma Scope tells by the names of its folders.

    Raises:
        ValueError: the SAE is no JumpReLU SAE or has a skip, or the parameters are not those of ``arch``.
        WorkdirError: the disk refuses.
    """
    path = Path(path)
    arrays = _writable("Gemma Scope", arch, params)
    if arch.activation != "jumprelu" or arch.skip:
        kind = f"{arch.activation}{' skip transcoder' if arch.skip else ''}"
        raise ValueError(f"Gemma Scope holds JumpReLU SAEs without a skip, not {kind}: write it with write_saelens")
    if arch.center:
        arch, arrays = _uncentered(arch, arrays)
    buffer, named = io.BytesIO(), dict[str, Any](arrays)
    np.savez(buffer, **named)
    write_atomically(path if path.suffix == ".npz" else path / "params.npz", buffer.getvalue())


def _writable(layout: str, arch: Architecture, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters as float32, of an SAE that no published layout refuses."""
    if arch.sites > 1:
        raise ValueError(f"{layout} has no crosscoders: this one of {arch.sites} sites can't be written")
    if arch.activation == "batch_topk":
        raise ValueError(
            f"{layout} has no batch_topk SAE, whose gate looks at a whole batch: turn it into a jumprelu SAE first "
            "(model.as_jumprelu)"
        )
    arrays = _checked(arch, params, "the parameters")
    if below := int(np.sum(arrays.get("threshold", np.zeros(1)) < 0)):
        raise ValueError(
            f"{below} thresholds are below 0: {layout} has a ReLU before the jump and would do what 0 does, so set "
            "them to 0"
        )
    return arrays


# ---------------------------------------------------------------------------------------------------------- parameters


def _made(kind: type[_T], where: Path, **values: Any) -> _T:
    """An ``Architecture`` or ``Metadata``, whose complaints name the file."""
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _float32(array: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows is found among the infinite values
        return np.asarray(array).astype(np.float32)


def _checked(arch: Architecture, params: Mapping[str, Any], where: Path | str) -> dict[str, np.ndarray]:
    """The parameters as float32, in the order of ``arch.shapes()``.

    Raises:
        ValueError: keys are missing, unknown or exchanged, shapes are not those of ``arch``, values are not finite.
    """
    shapes = arch.shapes()
    missing, unknown = sorted(shapes.keys() - params.keys()), sorted(params.keys() - shapes.keys())
    if missing or unknown:
        keys = ", ".join(shapes)
        raise ValueError(f"{where}: a {arch.activation} SAE has {keys}; missing {missing}, unknown {unknown}")
    arrays = {name: _float32(params[name]) for name in shapes}
    wrong = [name for name, array in arrays.items() if array.shape != shapes[name]]
    if {"W_enc", "W_dec"} <= set(wrong) and arrays["W_enc"].shape == shapes["W_dec"] == shapes["W_enc"][::-1]:
        raise ValueError(f"{where}: W_enc and W_dec are exchanged or transposed: expected W_enc {shapes['W_enc']}")
    if wrong:
        said = ", ".join(f"{name} {arrays[name].shape} instead of {shapes[name]}" for name in wrong)
        raise ValueError(f"{where}: shapes don't fit the architecture: {said}")
    bad = {name: int(np.sum(~np.isfinite(array))) for name, array in arrays.items()}
    if any(bad.values()):
        said = ", ".join(f"{count} of {arrays[name].size} in {name}" for name, count in bad.items() if count)
        raise ValueError(f"{where}: values are NaN or infinite: {said}")
    return arrays


def _published(
    arch: Architecture, tensors: Mapping[str, Any], metadata: Metadata, source: str, where: Path
) -> Published:
    """What was read, checked. The formats have a ReLU before the jump, which is none here: thresholds below 0 are 0."""
    params = _checked(arch, tensors, where)
    if "threshold" in params:
        params["threshold"] = np.maximum(params["threshold"], np.float32(0))
    return Published(arch, params, metadata, source)


def _uncentered(arch: Architecture, params: dict[str, np.ndarray]) -> tuple[Architecture, dict[str, np.ndarray]]:
    """The same SAE with an encoder that sees x: (x - b_dec) W + b = x W + (b - b_dec W)."""
    shift = params["b_dec"].astype(np.float64) @ params["W_enc"].astype(np.float64)
    arch, params = replace(arch, center=False), {**params, "b_enc": _float32(params["b_enc"] - shift)}
    return arch, _checked(arch, params, "with b_dec folded out of the encoder")


def _fold_choice(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A TopK that chooses by pre * ||W_dec_i|| and divides by it to decode, as one that chooses by pre.

    SAELens gives a latent of norm 0 the value 0. Rows that have unit norm already, to rounding, stay bit for bit.
    """
    size = np.linalg.norm(params["W_dec"].astype(np.float64), axis=1)
    if np.all(np.abs(size - 1) < 1e-6):
        return params
    out = {name: _float32(params[name] * size) for name in ("W_enc", "b_enc")}
    return {**params, **out, "W_dec": _float32(params["W_dec"] / np.where(size > 0, size, 1.0)[:, None])}


def _renamed(tensors: dict[str, np.ndarray], names: Mapping[str, str], where: Path) -> dict[str, np.ndarray]:
    """Tensors under our names; ``encoder.weight`` and ``decoder.weight`` of torch's Linear transposed.

    Raises:
        ValueError: keys are missing or unknown.
    """
    missing, unknown = sorted(names.keys() - tensors.keys()), sorted(tensors.keys() - names.keys())
    if missing or unknown:
        raise ValueError(f"{where}: expected the keys {', '.join(names)}; missing {missing}, unknown {unknown}")
    return {ours: tensors[key].T if key.endswith(".weight") else tensors[key] for key, ours in names.items()}


# ------------------------------------------------------------------------------------------------------------- configs


def _config(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it isn't there, or isn't a JSON object.
    """
    where = folder / name
    if not where.is_file():
        raise ValueError(f"{folder} holds weights but no {name}: it is half-written, write or copy it again")
    if where.stat().st_size > MAX_JSON:
        raise ValueError(f"{where} takes more than {MAX_JSON} bytes: it is no SAE's config")
    try:
        found = json.loads(where.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON ({error}): it is damaged, copy it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(found).__name__}")
    return found


def _pop(facts: dict[str, Any], name: str, kind: type, where: Path) -> Any:
    """Takes a value out of a config; None if it isn't there. A float may stand without its point."""
    value = facts.pop(name, None)
    if kind is float and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if value is not None and not fits:
        raise ValueError(f"{where}: {name} must be of type {kind.__name__}, got {type(value).__name__}")
    return value


def _factor(value: Any) -> float | None:
    """The value, if it is a number that float32 can be scaled by."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 1e-30 < value < 1e30
    return float(value) if fits else None


def _kept(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What nobody took out of a config, for ``Metadata.extra``."""
    return {name: value for name, value in facts.items() if value is not None}


def _need(facts: dict[str, Any], name: str, where: Path) -> int:
    value = _pop(facts, name, int, where)
    if value is None:
        raise ValueError(f"{where} says no {name}")
    return value


# ------------------------------------------------------------------------------------------------------------- SAELens

_SAELENS = {  # architecture in cfg.json -> activation, transcoder, skip
    "standard": ("relu", False, False),
    "topk": ("topk", False, False),
    "abstopk": ("abs_topk", False, False),
    "jumprelu": ("jumprelu", False, False),
    "gated": ("gated", False, False),
    "matching_pursuit": ("matching_pursuit", False, False),
    "transcoder": ("relu", True, False),
    "skip_transcoder": ("relu", True, True),
    "jumprelu_transcoder": ("jumprelu", True, False),
    "jumprelu_skip_transcoder": ("jumprelu", True, True),
    # checkpoints of a run in progress; at inference their batch gate is a JumpReLU
    "batchtopk": ("jumprelu", False, False),
    "matryoshka_batchtopk": ("jumprelu", False, False),
}
_BEFORE_6 = {  # earlier name of a key -> its name
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_PURSUIT = {"residual_threshold": 0.0, "stop_on_duplicate_support": False}
_SAELENS_FINE: dict[str, tuple[Any, ...]] = {  # what would change the function, and which values do not
    "finetuning_scaling_factor": (None, False),
    "reshape_activations": (None, "none"),
    "hook_head_index": (None,),
    "hook_head_index_out": (None,),
    "activation_fn": (None, "topk", "relu"),
}


def _read_saelens(weights: Path) -> Published:
    where = weights.parent / "cfg.json"
    facts = _saelens_facts(_config(where.parent, where.name), where)
    kind, values, by_norm = _saelens_architecture(facts, where)
    scaling = _saelens_scaling(facts.pop("normalize_activations", None), weights.parent)
    if values["d_out"] is not None and scaling is not None:
        raise ValueError(f"{where}: normalize_activations of a transcoder does not say how its output is scaled")
    tensors, dtype = read_safetensors(weights)
    facts |= {"stored_dtype": dtype} if dtype else {}
    tensors = _saelens_tensors(tensors, kind, weights)
    if kind == "matching_pursuit" and not np.any(tensors.get("b_dec", 0)):  # left out at both ends, or at none
        values["center"] = True
    arch = _made(Architecture, where, **values)
    params = _checked(arch, tensors, weights)
    if scaling is not None:
        folded = fold_scale(arch, {name: jnp.asarray(value) for name, value in params.items()}, scaling)
        params = {name: _float32(value) for name, value in folded.items()}
        if "batchtopk" in kind and by_norm:  # its threshold has the units of norm-weighted activations
            params["threshold"] = _float32(params["threshold"] / scaling)
    if by_norm:
        params = _fold_choice(params)
    return _published(arch, params, _from_saelens(facts, scaling, where), "saelens", weights)


def _saelens_architecture(facts: dict[str, Any], where: Path) -> tuple[str, dict[str, Any], bool]:
    """SAELens' name of the architecture, the arguments of ours, and whether it chooses by norm-weighted activations."""
    kind = _pop(facts, "architecture", str, where) or "standard"
    options = _pop(facts, "activation_fn_kwargs", dict, where) or {}
    if _pop(facts, "activation_fn", str, where) == "topk":  # before version 6
        kind, facts["k"] = "topk", options.pop("k", None)
    if options:
        raise ValueError(f"{where}: activation_fn_kwargs {', '.join(sorted(options))} can't be honoured")
    if kind not in _SAELENS:
        raise ValueError(f"{where}: architecture {kind!r} can't be read: known are {', '.join(_SAELENS)}")
    activation, transcoder, skip = _SAELENS[kind]
    values: dict[str, Any] = {"activation": activation, "skip": skip, "k": None, "d_out": None}
    values |= {name: _need(facts, name, where) for name in ("d_in", "d_sae", *(["d_out"] if transcoder else []))}
    if activation in ("topk", "abs_topk"):
        values["k"] = _pop(facts, "k", int, where)
    if activation == "matching_pursuit":
        values["k"] = _pursuit_steps(facts, values["d_in"], where)
    center = _pop(facts, "apply_b_dec_to_input", bool, where)
    values["center"] = not transcoder if center is None else center
    by_norm = bool(_pop(facts, "rescale_acts_by_decoder_norm", bool, where))
    if by_norm and "topk" not in kind:
        raise ValueError(f"{where}: rescale_acts_by_decoder_norm True can't be honoured: a {kind} SAE does not choose")
    return kind, values, by_norm


def _saelens_tensors(tensors: dict[str, np.ndarray], kind: str, where: Path) -> dict[str, np.ndarray]:
    """Tensors under our names and orientation, of an SAE in whatever stage of its training.

    Raises:
        ValueError: the file is of fine-tuning, or holds more than one threshold.
    """
    tensors = dict(tensors)
    if not np.all(tensors.pop("scaling_factor", np.ones(1)) == 1):
        raise ValueError(f"{where}: scaling_factor, of fine-tuning, is not applied here: fold it in SAELens first")
    thresholds = [name for name in ("threshold", "log_threshold", "topk_threshold") if name in tensors]
    if len(thresholds) > 1:
        raise ValueError(f"{where} holds {' and '.join(thresholds)}: take out what is not the threshold")
    if "log_threshold" in tensors:  # until pull request 718
        with np.errstate(over="ignore"):
            tensors["threshold"] = np.exp(tensors.pop("log_threshold").astype(np.float64))
    if "batchtopk" in kind and tensors.get("topk_threshold", np.zeros(0)).size == 1:
        shape = tensors.get("b_enc", np.zeros(1)).shape
        tensors["threshold"] = np.full(shape, tensors.pop("topk_threshold").item())
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T
    return tensors


def _saelens_facts(cfg: dict[str, Any], where: Path) -> dict[str, Any]:
    """What ``cfg.json`` says, as one flat object, without what is refused by name."""
    meta = _pop(cfg, "metadata", dict, where)
    if meta is None:  # before version 6 one flat object held everything
        meta, cfg = {}, {_BEFORE_6.get(name, name): value for name, value in cfg.items()}
        cfg.setdefault("prepend_bos", True)
        if version := cfg.pop("sae_lens_version", None):
            cfg["saved_by"] = f"sae_lens {version}"
        if "hook_z" in str(cfg.get("hook_name")):
            cfg.setdefault("reshape_activations", "hook_z")
    if twice := sorted(name for name in cfg.keys() & meta.keys() if cfg[name] != meta[name]):
        raise ValueError(f"{where} gives {', '.join(twice)} twice, with different values")
    facts = meta | cfg
    for name, fine in _SAELENS_FINE.items():
        if (value := facts.get(name)) not in fine:
            raise ValueError(f"{where}: {name} {value!r} can't be honoured here, only {fine[-1]!r}")
        if name != "activation_fn":
            facts.pop(name, None)
    for name in ("device", "dtype"):  # of the machine; the weights say their own dtype
        facts.pop(name, None)
    return facts


def _saelens_scaling(normalize: Any, folder: Path) -> float | None:
    """The constant that x still has to be multiplied by, None for 1."""
    where = folder / "cfg.json"
    if normalize in (None, False, "none"):
        return None
    if normalize not in (True, "expected_average_only_in"):
        raise ValueError(
            f"{where}: normalize_activations {normalize!r} is no constant factor on x and can't be folded into the "
            "weights: only 'none' and 'expected_average_only_in' can be read"
        )
    mend = 'write {"scaling_factor": sqrt(d_in) / mean norm of x} into activation_scaler.json, or fold it in SAELens'
    if not (folder / "activation_scaler.json").is_file():
        raise ValueError(f"{where}: normalize_activations {normalize!r} needs a factor that is in no file here: {mend}")
    said = _config(folder, "activation_scaler.json").get("scaling_factor")
    if (factor := _factor(said)) is None:
        raise ValueError(
            f"{folder}: scaling_factor in activation_scaler.json must be positive, got {str(said)[:80]}: {mend}"
        )
    return factor


def _pursuit_steps(facts: dict[str, Any], d_in: int, where: Path) -> int:
    """Iterations of a matching pursuit; here every sample takes all of them."""
    steps = _pop(facts, "max_iterations", int, where)
    for name, fine in _PURSUIT.items():
        value = facts.pop(name, None)
        if value != fine:
            raise ValueError(
                f"{where}: {name} {value!r} stops early, but here each sample takes max_iterations steps: set it to "
                f"{json.dumps(fine)} there to read this SAE as one that does"
            )
    return d_in if steps is None else steps


def _from_saelens(facts: dict[str, Any], scaling: float | None, where: Path) -> Metadata:
    """Metadata from what is left of ``cfg.json``; ``_to_saelens`` is its inverse."""
    values: dict[str, Any] = {}
    for side in ("", "_out"):
        hook = _pop(facts, f"hook_name{side}", str, where)
        values[f"hook{side}"] = _pop(facts, f"original_hook_name{side}", str, where) or hook
        values[f"site{side}"] = _pop(facts, f"site{side}", str, where) or (hook and site_of(hook))
    earlier = _pop(facts, "input_scaling", float, where)
    if facts.get("sae_lens_version") == SAELENS:
        facts.pop("sae_lens_version")
    return _made(
        Metadata,
        where,
        model=_pop(facts, "model_name", str, where),
        prepend_bos=_pop(facts, "prepend_bos", bool, where),
        context=_pop(facts, "context_size", int, where),
        scaling=earlier if scaling is None else scaling,
        weight_processing=_pop(facts, "model_from_pretrained_kwargs", dict, where),
        dataset=_pop(facts, "dataset_path", str, where),
        extra=_kept(facts),
        **values,
    )


def _to_saelens(metadata: Metadata) -> dict[str, Any]:
    out: dict[str, Any] = {
        "sae_lens_version": SAELENS,
        "sae_lens_training_version": None,  # or SAELens would say that it was itself
        "model_name": metadata.model,
        "prepend_bos": metadata.prepend_bos,
        "context_size": metadata.context,
        "dataset_path": metadata.dataset,
        "input_scaling": metadata.scaling,
        "model_from_pretrained_kwargs": metadata.weight_processing,
    }
    for side in ("", "_out"):
        site, hook = getattr(metadata, f"site{side}"), getattr(metadata, f"hook{side}")
        name = (site and hook_of(site)) or hook
        out[f"hook_name{side}"] = name
        out[f"original_hook_name{side}"] = None if hook == name else hook
        out[f"site{side}"] = None if name and site_of(name) == site else site
    return {
        name: value
        for name, value in out.items()
        if name not in metadata.extra or not name.startswith("sae_lens")
        if value is not None or name.startswith("sae_lens")
    }


# --------------------------------------------------------------------------------------------------------- Gemma Scope


def _read_gemma_scope(weights: Path) -> Published:
    tensors = read_npz(weights)
    names = {"w_enc": "W_enc", "w_dec": "W_dec"}
    if len({name.lower() for name in tensors}) < len(tensors):
        raise ValueError(f"{weights} holds a key twice, in capitals and in small letters: {', '.join(sorted(tensors))}")
    tensors = {names.get(name.lower(), name.lower()): array for name, array in tensors.items()}
    metadata, transcoder = _gemma_scope_metadata(weights)
    arch = _jumprelu(tensors, weights, transcoder)
    return _published(arch, tensors, metadata, "gemma_scope", weights)


def _jumprelu(tensors: dict[str, np.ndarray], where: Path, transcoder: bool) -> Architecture:
    """The architecture of a JumpReLU SAE that no config describes: the sizes of its biases and of W_enc."""
    d_sae, out, size = (tensors.get(name, np.zeros(0)).size for name in ("b_enc", "b_dec", "W_enc"))
    if 0 in (d_sae, out, size):
        keys = ", ".join(sorted(tensors)) or "nothing"
        raise ValueError(f"{where}: W_enc, b_enc and b_dec must be there and not empty, got {keys}")
    d_in, skip = max(size // d_sae, 1), "W_skip" in tensors
    transcoder = transcoder or skip or out != d_in
    return Architecture(d_in, d_sae, "jumprelu", d_out=out if transcoder else None, skip=skip, center=False)


def _gemma_scope_metadata(weights: Path) -> tuple[Metadata, bool]:
    """Gemma Scope says what an SAE reads by names of folders only; also whether it is a transcoder.

    Not of SAEs on the embedding: their input is the embedding before Gemma's factor sqrt(d_model).
    """
    path = weights.as_posix()
    model = re.search(r"gemma-scope-(\d+b-(?:pt|it))-(res|mlp|att|transcoders)\b", path)
    layer = re.search(r"/layer_(\d+)/", path)
    if model is None or layer is None:
        return Metadata(), False
    size, kind = model.groups()
    hook, hook_out = {
        "res": ("blocks.{}.hook_resid_post", None),
        "mlp": ("blocks.{}.hook_mlp_out", None),
        "att": ("blocks.{}.attn.hook_z", None),  # heads side by side
        "transcoders": ("blocks.{}.ln2.hook_normalized", "blocks.{}.hook_mlp_out"),
    }[kind]
    metadata = Metadata(
        model=f"gemma-2-{size.removesuffix('-pt')}",
        hook=hook.format(layer[1]),
        hook_out=hook_out and hook_out.format(layer[1]),
        prepend_bos=True,
        context=1024,
    )
    return metadata, kind == "transcoders"


def _read_gemma_scope_2(weights: Path) -> Published:
    where = weights.parent / "config.json"
    facts = _config(weights.parent, "config.json")
    kind = facts.pop("architecture", None)
    if kind != "jump_relu":
        raise ValueError(f"{where}: architecture {kind!r} can't be read: Gemma Scope 2 has jump_relu")
    tensors, dtype = read_safetensors(weights)
    facts |= {"stored_dtype": dtype} if dtype else {}
    if tensors.get("w_dec", np.zeros(0)).ndim == 3:
        raise ValueError(f"{weights}: a cross-layer transcoder, which writes to many layers, can't be read")
    names = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}
    affine = _pop(facts, "affine_connection", bool, where)
    if affine if affine is not None else "affine_skip_connection" in tensors:
        names["affine_skip_connection"] = "W_skip"
    tensors = _renamed(tensors, names, weights)
    hook, hook_out = _pop(facts, "hf_hook_point_in", str, where), _pop(facts, "hf_hook_point_out", str, where)
    if hook_out == hook:
        hook_out = None
    arch = _jumprelu(tensors, weights, hook_out is not None)
    metadata = Metadata(
        model=_pop(facts, "model_name", str, where),
        hook=hook,
        hook_out=hook_out,
        prepend_bos=True,
        context=1024,
        extra=_kept(facts),
    )
    return _published(arch, tensors, metadata, "gemma_scope_2", weights)


# ------------------------------------------------------------------------------------- dictionary_learning and sparsify

_LINEAR = {"encoder.weight": "W_enc", "decoder.weight": "W_dec"}
_OWN = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_DICTIONARIES: dict[str, tuple[str, bool, dict[str, str]]] = {  # dict_class -> activation, center, their key -> ours
    "AutoEncoder": ("relu", True, _LINEAR | {"encoder.bias": "b_enc", "bias": "b_dec"}),
    "AutoEncoderNew": ("relu", False, _LINEAR | {"encoder.bias": "b_enc", "decoder.bias": "b_dec"}),
    "GatedAutoEncoder": (
        "gated", True,
        _LINEAR | {"decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"},
    ),
    "AutoEncoderTopK": ("topk", True, _LINEAR | {"encoder.bias": "b_enc", "b_dec": "b_dec"}),
    "BatchTopKSAE": ("batch_topk", True, _LINEAR | {"encoder.bias": "b_enc", "b_dec": "b_dec"}),
    "MatryoshkaBatchTopKSAE": ("batch_topk", True, _OWN),
    "JumpReluAutoEncoder": ("jumprelu", False, _OWN | {"threshold": "threshold"}),
}  # fmt: skip


def _read_dictionary_learning(weights: Path) -> Published:
    """``ae.pt``, or ``checkpoints/ae_100.pt``, and the ``config.json`` of its run.

    A BatchTopK SAE whose threshold was measured is the JumpReLU SAE as which the library evaluates it; one whose
    threshold is -1, not measured yet, is read as batch_topk.
    """
    folder = weights.parent.parent if weights.parent.name == "checkpoints" else weights.parent
    where, facts = folder / "config.json", {}
    if where.is_file():
        facts = _config(folder, "config.json")
    trainer, buffer = _pop(facts, "trainer", dict, where) or {}, _pop(facts, "buffer", dict, where) or {}
    tensors = read_torch(weights)
    kind = _pop(trainer, "dict_class", str, where) or _dictionary(tensors, weights)
    if kind not in _DICTIONARIES:
        raise ValueError(f"{where}: dict_class {kind!r} can't be read: known are {', '.join(_DICTIONARIES)}")
    if (io_ := buffer.get("io")) not in (None, "in", "out"):
        raise ValueError(f"{where}: io {io_!r} can't be honoured: an SAE has 'in' or 'out', and transcoders no format")
    activation, center, names = _DICTIONARIES[kind]
    kept: dict[str, Any] = {"dict_class": kind}
    k, threshold = _pop(trainer, "k", int, where), None
    if activation in ("topk", "batch_topk"):
        for name in ("k", "threshold", "group_sizes"):
            if name in tensors:
                kept[name] = tensors.pop(name).tolist()
        if k is not None and kept.get("k", k) != k:
            raise ValueError(f"{where} says k={k}, but {weights.name} holds k={kept['k']}")
        k, threshold = kept.pop("k", k), kept.get("threshold")
        if type(k) not in (int, type(None)) or not isinstance(threshold, float | None):
            raise ValueError(f"{weights}: k must be a whole number and threshold one number of a {kind}")
    tensors = _renamed(tensors, names, weights)
    d_sae, d_in = (tensors[name].size for name in ("b_mag" if activation == "gated" else "b_enc", "b_dec"))
    for name, value in (("dict_size", d_sae), ("activation_dim", d_in)):
        if (said := _pop(trainer, name, int, where)) not in (None, value):
            raise ValueError(f"{where} says {name}={said}, but {weights.name} holds biases of size {value}")
    if activation == "batch_topk" and threshold is not None and not threshold < 0:
        activation, kept["k"], k = "jumprelu", k, None
        tensors["threshold"] = np.full(d_sae, threshold)
    arch = _made(Architecture, where, d_in=d_in, d_sae=d_sae, activation=activation, k=k, center=center)
    hook, factor = _pop(trainer, "submodule_name", str, where), _factor(trainer.get("norm_factor"))
    metadata = Metadata(
        model=_pop(trainer, "lm_name", str, where),
        hook=f"{hook}.input" if hook and io_ == "in" else hook,
        context=_pop(buffer, "ctx_len", int, where),
        scaling=factor and 1 / factor,
        extra=_kept(facts | kept | {"trainer": trainer, "buffer": buffer}),
    )
    return _published(arch, tensors, metadata, "dictionary_learning", weights)


def _dictionary(tensors: dict[str, np.ndarray], weights: Path) -> str:
    """The dict_class of an ``ae.pt`` without a config."""
    buffers = {"k", "threshold", "group_sizes"}
    fits = [kind for kind, row in _DICTIONARIES.items() if row[2].keys() - buffers == tensors.keys() - buffers]
    fits = [kind for kind in fits if (_DICTIONARIES[kind][0] in ("topk", "batch_topk")) == ("k" in tensors)]
    if len(fits) != 1:
        what = f"may be {' or '.join(fits)}" if fits else f"has the keys {', '.join(sorted(tensors))}"
        raise ValueError(f"{weights} {what}: put its config.json, which says dict_class, beside it")
    return fits[0]


def _read_sparsify(weights: Path) -> Published:
    where = weights.parent / "cfg.json"
    facts = _config(weights.parent, "cfg.json")
    run = _config(folder, "config.json") if ((folder := weights.parent.parent) / "config.json").is_file() else {}
    tensors, dtype = read_safetensors(weights)
    facts |= {"stored_dtype": dtype} if dtype else {}
    kind = _pop(facts, "activation", str, where) or "topk"
    if kind != "topk":
        raise ValueError(f"{where}: activation {kind!r} can't be honoured: only topk is known")
    signed = bool(_pop(facts, "signed", bool, where))  # until 2024: by magnitude, sign kept
    transcode = bool(_pop(facts, "transcode", bool, where))
    d_in, k = _need(facts, "d_in", where), _need(facts, "k", where)
    d_sae = _pop(facts, "num_latents", int, where) or d_in * _need(facts, "expansion_factor", where)
    skip = "W_skip" in tensors
    if _pop(facts, "skip_connection", bool, where) not in (None, skip):
        raise ValueError(f"{where}: skip_connection must say whether {weights.name} holds W_skip, which is {skip}")
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    tensors = _renamed(tensors, names | ({"W_skip": "W_skip"} if skip else {}), weights)
    if skip:
        tensors["W_skip"] = tensors["W_skip"].T
    arch = _made(
        Architecture, where, d_in=d_in, d_sae=d_sae, activation="abs_topk" if signed else "topk", k=k,
        d_out=d_in if transcode else None, skip=skip, center=not transcode,
    )  # fmt: skip
    hook = weights.parent.name
    metadata = Metadata(
        model=_pop(run, "model", str, folder / "config.json"),
        hook=f"{hook}.input" if transcode else hook,
        hook_out=hook if transcode else None,
        context=_pop(run, "ctx_len", int, folder / "config.json"),
        dataset=_pop(run, "dataset", str, folder / "config.json"),
        extra=_kept(facts) | ({"run": run} if run else {}),
    )
    return _published(arch, tensors, metadata, "sparsify", weights)


FORMATS: dict[str, tuple[str, Callable[[Path], Published]]] = {  # name -> file of weights, reader of it
    "saelens": ("sae_weights.safetensors", _read_saelens),
    "gemma_scope": ("params.npz", _read_gemma_scope),
    "gemma_scope_2": ("params.safetensors", _read_gemma_scope_2),
    "dictionary_learning": ("ae.pt", _read_dictionary_learning),
    "sparsify": ("sae.safetensors", _read_sparsify),
}
