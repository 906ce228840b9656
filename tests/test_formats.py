"""Layouts of SAEs: what is written is read back, each foreign layout by hand, and configs that can't be honoured.

Hostile and damaged files of weights are in ``test_files``.
Outputs are compared with the real libraries in ``parity/test_formats_parity.py``.
"""

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ml_dtypes import bfloat16
from test_files import torch_save

from superpose.sae import formats
from superpose.sae.formats import Metadata, read, write_gemma_scope, write_saelens
from superpose.sae.model import SAE, Architecture
from superpose.train.checkpoint import WorkdirError

# torch.save of dictionary_learning 0.1.0's AutoEncoderTopK(2, 3, k=1) by torch 2.13.0: encoder.weight is
# arange(6, 12).reshape(2, 3).T with strides (1, 3), decoder.weight arange(6).reshape(2, 3), threshold 0.75.
REAL = (
    "c-p0v&u<$=6vxNA_S)IFrKF@u3X}q+IM6s=|JWoFC8=Ajg!Vu%P+6stwXqlPs#|a0deW+ukRqW3^+qKwRaFFk1zb=o^)KMYp$8-m0VKqQLnSV}*>"
    "RnjO_Pvx?D1Om`+UD|XXd?Kw$(Htxg6OxM#%(m+}Vypo#M4CfmJ_BE^Qxc$`?Qi%?tu7t&ZD<RGWrT+bgzKsUP(9R^+a%`a!2f-CjS8TGz`uD1|~"
    "Zi$EVEovsTiM|3L)9r`i<QHOLhg)t?_G*!H|udRY+D-^OH*~C`XA!n!7VdQqZ9R`8hrheG#>mNoPH*z}{{5I7=pKib?g?s}J#Y$J;u!qjxQ@0O#T"
    "V5~35e6LbG&@D%Mf8}SzU?uIF$zZ;@KSRG1E?3deJ>0;FwUhso@5!0ad1KaCn-!d;CS;e2H?Vkm|F3M>vug0FH3X<UO`%;@M?T(wz>f)Y}HO}z-w"
    "ITB!$--@J6iU_9Ue@C8a8y;!1BZCDm3o;Iy4$f^T!B0tNhhr<oU&R(z)q?@Br~ID<MWg_&4q9g1wRXSqg+g3*BTYH``l=I&o!%KeK7o69>Mr7@CW"
    "N2&OE7+rN}>$)5Dalfp3id-_7$`5}({*w8!xwFbRc`sHO9GjLC_}$)Bw@0n|{Iibc{~BhMC9rq{{!q|D*)@SYNwWl2Zc;a7C(Wu868Mw`F4I^)``"
    "eU;QQEE=Bjo(ks+uiX^~D1xJ{W|oEu!p0mchl-Up-=$xjiyCH_X7W>Sv!X1HNV1+|3`K+(ko@-oraH^e)HyPsq|D<4^tcS$BVYWx%r$ufY<&ajxO"
    "~Zi#75e7$*R691UoL(>>)R;~IB+2{H{M898g;<Az>I8Wj%on!tN&foiIfBv-t_!GSMwfAv8V4j)3zW*~HpVi$wbzVxtLOgi=RCMP0^S9kk_pYBQG"
    "8Y$ce5-vo^09(%IjnWJ{Ek(x93%;&Y|hurxypjMU{>)}HVwm=uT%}QWYp&Hi#fkgTQF-Z%gy7J%>w38h_g(wWQTc*jcjyV=E8F@35vaIOoD8MJfr"
    "I+d9n43OZ=SyzpdXTCB)8?mm9B2q>hy&#f~u|kr!36)u)n}SnM+Pi+~wPOssJk`y{=Em6MoQ#xnMefK`&1SbZ|~yMR@bm{>qE=4H09S`rg0K$oz`"
    "9NS_0#WOi2aSe^^TrJDCrkxoCo=|6mN0fYhpz!MxjbD+=#;100YrK7DG|uGXcpm#7A?5<t"
)
ARCHITECTURES = {
    "relu": Architecture(4, 6, "relu"),
    "relu_uncentered": Architecture(4, 6, "relu", center=False),
    "topk": Architecture(4, 6, "topk", k=2),
    "abs_topk": Architecture(4, 6, "abs_topk", k=2),
    "jumprelu": Architecture(4, 6, "jumprelu"),
    "gated": Architecture(4, 6, "gated"),
    "matching_pursuit": Architecture(4, 6, "matching_pursuit", k=2),
    "transcoder": Architecture(4, 6, "relu", d_out=3, center=False),
    "same_width": Architecture(4, 6, "relu", d_out=4, center=False),
    "skip_transcoder": Architecture(4, 6, "relu", d_out=3, skip=True, center=False),
    "jumprelu_transcoder": Architecture(4, 6, "jumprelu", d_out=3, center=False),
    "jumprelu_skip_transcoder": Architecture(4, 6, "jumprelu", d_out=3, skip=True, center=False),
}
JUMP = Architecture(4, 6, "jumprelu", center=False)


def params_of(arch: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arch.shapes().items()}
    if "threshold" in params:
        params["threshold"] = np.abs(params["threshold"])
    return params


def inputs(d: int = 4) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(50, d)).astype(np.float32)


def outputs(arch: Architecture, params: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sae = SAE(arch, params)
    return np.asarray(sae.encode(jnp.asarray(x))), np.asarray(sae(jnp.asarray(x)))


def assert_equal(params: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert params.keys() == expected.keys()
    for name in params:
        np.testing.assert_array_equal(params[name], expected[name], err_msg=name)
        assert params[name].dtype == np.float32


def edit(folder: Path, **changes) -> None:
    """Changes keys of cfg.json, None takes one out; keys of its metadata as metadata__key."""
    cfg = json.loads((folder / "cfg.json").read_text())
    for name, value in changes.items():
        where = cfg["metadata"] if name.startswith("metadata__") else cfg
        name = name.removeprefix("metadata__")
        where.pop(name, None)
        if value is not None:
            where[name] = value
    (folder / "cfg.json").write_text(json.dumps(cfg))


def saelens(folder: Path, arch: Architecture, tensors: dict | None = None, **changes) -> dict[str, np.ndarray]:
    """A SAELens folder, some tensors and keys changed; returns its arrays."""
    params = params_of(arch)
    write_saelens(folder, arch, params, Metadata())
    if tensors:
        stored = {**safetensors.numpy.load_file(folder / "sae_weights.safetensors"), **tensors}
        stored = {name: np.ascontiguousarray(value) for name, value in stored.items() if value is not None}
        safetensors.numpy.save_file(stored, folder / "sae_weights.safetensors")
    edit(folder, **changes)
    return params


# --- SAELens ----------------------------------------------------------------------------------------------------------

FULL = Metadata(
    model="gpt2-small",
    hook="model.layers.3",
    hook_out="blocks.3.attn.hook_z",
    prepend_bos=False,
    context=128,
    scaling=0.25,
    weight_processing={"fold_ln": False},
    dataset="text",
    extra={"seqpos_slice": [None], "trained": {"lr": 3e-4}},
)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("metadata", [FULL, Metadata(), Metadata(site="toy_hidden.0", site_out="mlp_out.2")])
def test_saelens_reads_what_was_written_and_writes_what_was_read(tmp_path, name, metadata):
    arch, params = ARCHITECTURES[name], params_of(ARCHITECTURES[name])
    write_saelens(tmp_path / "a", arch, params, metadata)
    first = read(tmp_path / "a")
    write_saelens(tmp_path / "b", first.arch, first.params, first.metadata)
    for found in (first, read(tmp_path / "b")):
        assert (found.arch, found.metadata, found.source_format) == (arch, metadata, "saelens")
        assert_equal(found.params, params)
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_file_and_config_and_folder_name_the_same_sae(tmp_path):
    saelens(tmp_path, JUMP)
    for name in ("", "cfg.json", "sae_weights.safetensors"):
        assert read(tmp_path / name).arch == JUMP
    assert read(str(tmp_path)).arch == JUMP


def test_skip_of_saelens_is_stored_transposed_and_views_are_written_whole(tmp_path):
    arch = ARCHITECTURES["skip_transcoder"]
    params = params_of(arch)
    params["W_enc"] = np.asfortranarray(params["W_enc"])
    write_saelens(tmp_path, arch, params, Metadata())
    stored = safetensors.numpy.load_file(tmp_path / "sae_weights.safetensors")
    np.testing.assert_array_equal(stored["W_skip"], params["W_skip"].T)
    np.testing.assert_array_equal(stored["W_enc"], params["W_enc"])
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["d_out"], cfg["apply_b_dec_to_input"]) == ("skip_transcoder", 3, False)


def test_a_centred_skip_transcoder_is_folded_with_equal_outputs(tmp_path):
    arch = Architecture(4, 6, "relu", skip=True)
    params, x = params_of(arch), inputs()
    write_saelens(tmp_path, arch, params, Metadata())
    found = read(tmp_path)
    assert (found.arch.center, found.arch.d_out) == (False, 4)
    for ours, theirs in zip(outputs(arch, params, x), outputs(found.arch, found.params, x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    unfolded = outputs(found.arch, params, x)[0]
    assert np.abs(unfolded - outputs(arch, params, x)[0]).max() > 0.1


def by_norm(params: dict[str, np.ndarray], x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """SAELens' TopK with rescale_acts_by_decoder_norm, in float64."""
    p = {name: value.astype(np.float64) for name, value in params.items()}
    norm = np.linalg.norm(p["W_dec"], axis=1)
    pre = ((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]) * norm
    acts = np.where(pre >= np.sort(pre, axis=1)[:, -k, None], np.maximum(pre, 0), 0)
    return acts, (acts / np.where(norm > 0, norm, 1)) @ p["W_dec"] + p["b_dec"]


@pytest.mark.parametrize("dead", [False, True])
def test_choice_by_decoder_norms_is_folded_with_equal_outputs(tmp_path, dead):
    arch, x = ARCHITECTURES["topk"], inputs()
    W_dec = params_of(arch)["W_dec"] * np.array([0.2, 3, 1, 0 if dead else 0.5, 2, 1], np.float32)[:, None]
    params = saelens(tmp_path, arch, {"W_dec": W_dec}, rescale_acts_by_decoder_norm=True)
    found = read(tmp_path)
    acts, x_hat = outputs(found.arch, found.params, x)
    expected = by_norm({**params, "W_dec": W_dec}, x, k=2)
    np.testing.assert_allclose(acts, expected[0], atol=1e-5)
    np.testing.assert_allclose(x_hat, expected[1], atol=1e-5)
    edit(tmp_path, rescale_acts_by_decoder_norm=False)
    ignored = outputs(arch, read(tmp_path).params, x)[1]
    assert np.abs(ignored - x_hat).max() > 0.1


def test_rows_of_unit_norm_are_left_bit_for_bit(tmp_path):
    W_dec = params_of(ARCHITECTURES["topk"])["W_dec"]
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    params = saelens(tmp_path, ARCHITECTURES["topk"], {"W_dec": W_dec}, rescale_acts_by_decoder_norm=True)
    assert_equal(read(tmp_path).params, {**params, "W_dec": W_dec})


def test_a_constant_factor_that_stands_beside_the_weights_is_folded(tmp_path):
    arch, x = ARCHITECTURES["gated"], inputs()
    params = saelens(tmp_path, arch, normalize_activations="expected_average_only_in")
    with pytest.raises(ValueError, match="needs a factor that is in no file here"):
        read(tmp_path)
    for wrong in (0, -1.0, "a", True, None, 10**400, float("nan"), float("inf"), 1e-40):
        (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": wrong}))
        with pytest.raises(ValueError, match="must be positive, got"):
            read(tmp_path)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    found = read(tmp_path)
    acts, x_hat = outputs(arch, params, 0.5 * x)
    np.testing.assert_allclose(outputs(found.arch, found.params, x)[0], acts, atol=2e-6)
    np.testing.assert_allclose(outputs(found.arch, found.params, x)[1], 2 * x_hat, atol=4e-6)
    assert found.metadata.scaling == 0.5


@pytest.mark.parametrize(("rescale", "norm"), [(True, 3.0), (False, 3.0)])
def test_a_batch_topk_checkpoint_is_the_jumprelu_that_it_becomes(tmp_path, rescale, norm):
    arch = Architecture(4, 6, "jumprelu")
    W_dec = np.zeros((6, 4), np.float32)
    W_dec[:, 0] = norm
    tensors = {"W_dec": W_dec, "threshold": None, "topk_threshold": np.array(0.75)}
    params = saelens(tmp_path, arch, tensors, architecture="batchtopk", k=2.5, rescale_acts_by_decoder_norm=rescale)
    found = read(tmp_path)
    factor = norm if rescale else 1.0  # what the threshold of norm-weighted activations is compared with
    np.testing.assert_allclose(found.params["W_enc"], factor * params["W_enc"], rtol=1e-6)
    np.testing.assert_array_equal(found.params["threshold"], np.full(6, 0.75))
    assert (found.arch, found.metadata.extra["k"]) == (arch, 2.5)
    narrow = {**tensors, "topk_threshold": np.array(0.7531), "b_enc": np.zeros(6, np.float16)}
    saelens(tmp_path, arch, narrow, architecture="batchtopk")
    np.testing.assert_array_equal(read(tmp_path).params["threshold"], np.full(6, np.float32(0.7531)))


def test_a_flat_config_of_before_version_6_is_understood(tmp_path):
    arch = ARCHITECTURES["topk"]
    params = saelens(tmp_path, arch)
    flat = {
        "d_in": 4, "d_sae": 6, "dtype": "torch.float32", "model_name": "gpt2", "hook_point": "blocks.7.hook_resid_pre",
        "hook_point_head_index": None, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2},
        "normalize_activations": False, "sae_lens_version": "3.1.0", "context_size": 128, "l1_coefficient": 5,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(flat))
    found = read(tmp_path)
    assert found.arch == arch
    assert_equal(found.params, params)
    expected = Metadata(model="gpt2", site="resid_pre.7", hook="blocks.7.hook_resid_pre", prepend_bos=True, context=128)
    assert found.metadata == replace(expected, extra={"saved_by": "sae_lens 3.1.0", "l1_coefficient": 5})
    write_saelens(tmp_path, found.arch, found.params, found.metadata)
    assert read(tmp_path).metadata == found.metadata


def test_log_threshold_of_earlier_checkpoints(tmp_path):
    saelens(tmp_path, JUMP, {"threshold": None, "log_threshold": np.log(np.arange(1, 7, dtype=np.float32))})
    np.testing.assert_allclose(read(tmp_path).params["threshold"], np.arange(1, 7), rtol=1e-6)
    log = np.log(np.arange(1, 7)).astype(bfloat16)  # narrow numbers are widened before the exponential
    saelens(tmp_path, JUMP, {"threshold": None, "log_threshold": log})
    np.testing.assert_allclose(read(tmp_path).params["threshold"], np.exp(log.astype(float)), rtol=1e-6)


@pytest.mark.parametrize("other", ["log_threshold", "topk_threshold"])
def test_of_two_thresholds_none_is_chosen(tmp_path, other):
    saelens(
        tmp_path, JUMP, {other: np.zeros(6 if other == "log_threshold" else (), np.float32)}, architecture="batchtopk"
    )
    with pytest.raises(ValueError, match=f"holds threshold and {other}: take out"):
        read(tmp_path)


def test_thresholds_below_zero_do_what_zero_does_behind_a_relu(tmp_path):
    threshold = np.array([-1, 0.5, 0, -2, 1, 3], np.float32)
    params, x = saelens(tmp_path, JUMP, {"threshold": threshold}), inputs()
    found = read(tmp_path)
    np.testing.assert_array_equal(found.params["threshold"], [0, 0.5, 0, 0, 1, 3])
    pre = x @ params["W_enc"] + params["b_enc"]
    acts = np.maximum(pre, 0) * (pre > threshold)
    np.testing.assert_allclose(outputs(JUMP, found.params, x)[0], acts, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm' is no constant factor"),
        ({"normalize_activations": "constant_norm_rescale"}, "normalize_activations 'constant_norm_rescale'"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations 'covariance_whitening'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations 'hook_z' can't be honoured"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor True"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm True can't be honoured: a jumprelu SAE"),
        (
            {"metadata__hook_name": "blocks.5.hook_resid_pre", "metadata__site": "mlp_out.3"},
            "cfg.json: site 'mlp_out.3'",
        ),
        ({"metadata__hook_head_index": 3}, "hook_head_index 3"),
        ({"activation_fn": "tanh-relu"}, "activation_fn 'tanh-relu'"),
        ({"activation_fn_kwargs": {"tanh": 1}}, "activation_fn_kwargs tanh"),
        ({"architecture": "temporal"}, "architecture 'temporal' can't be read: known are standard, topk, abstopk"),
        ({"architecture": 3}, "architecture must be of type str, got int"),
        ({"d_in": None}, "says no d_in"),
        ({"d_in": 4.0}, "d_in must be of type int, got float"),
        ({"d_sae": True}, "d_sae must be of type int, got bool"),
        ({"d_sae": 5}, r"W_enc \(4, 6\) instead of \(4, 5\)"),
        ({"d_sae": 10**40}, "shapes don't fit the architecture"),
        ({"d_in": -4}, "d_in must be at least 1, got -4"),
        ({"metadata__prepend_bos": "yes"}, "prepend_bos must be of type bool, got str"),
        ({"metadata__d_in": 5}, "gives d_in twice"),
        ({"architecture": "topk", "k": 7}, "topk needs 1 <= k <= d_sae=6, got k=7"),
        ({"architecture": "topk", "k": "2"}, "k must be of type int, got str"),
        ({"architecture": "standard"}, r"unknown \['threshold'\]"),
        ({"architecture": "gated"}, r"missing \['b_gate', 'b_mag', 'r_mag'\], unknown \['b_enc', 'threshold'\]"),
        ({"architecture": "transcoder"}, "says no d_out"),
    ],
    ids=lambda value: next(iter(value.items())).__repr__()[:50] if isinstance(value, dict) else "",
)
def test_what_saelens_says_and_cannot_be_honoured_is_refused_by_name(tmp_path, change, says):
    saelens(tmp_path, JUMP, **change)
    with pytest.raises(ValueError, match=says):
        read(tmp_path)


@pytest.mark.parametrize("name", ["relu", "gated", "matching_pursuit"])
def test_only_an_sae_that_chooses_can_choose_by_norms(tmp_path, name):
    saelens(tmp_path, ARCHITECTURES[name], rescale_acts_by_decoder_norm=True)
    with pytest.raises(ValueError, match="rescale_acts_by_decoder_norm True can't be honoured"):
        read(tmp_path)


def test_a_scaled_pursuit_is_folded_with_equal_outputs(tmp_path):
    arch, x = ARCHITECTURES["matching_pursuit"], inputs()
    W_dec = params_of(arch)["W_dec"]
    unit = {"W_dec": W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)}
    params = saelens(tmp_path, arch, unit, normalize_activations="expected_average_only_in") | unit
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    found = read(tmp_path)
    x_hat = outputs(arch, params, 0.5 * x)[1]
    np.testing.assert_allclose(outputs(found.arch, found.params, x)[1], 2 * x_hat, atol=1e-5)
    assert np.abs(outputs(arch, params, x)[1] - 2 * x_hat).max() > 0.1


def test_scaling_factors_of_fine_tuning(tmp_path):
    params = saelens(tmp_path, JUMP, {"scaling_factor": np.ones(6, np.float32)})
    assert_equal(read(tmp_path).params, params)
    saelens(tmp_path, JUMP, {"scaling_factor": np.full(6, 1.1, np.float32)})
    with pytest.raises(ValueError, match="scaling_factor, of fine-tuning"):
        read(tmp_path)


@pytest.mark.parametrize(
    "change", [{"residual_threshold": 0.01}, {"residual_threshold": None}, {"stop_on_duplicate_support": True}]
)
def test_a_pursuit_that_stops_early_is_refused(tmp_path, change):
    saelens(tmp_path, ARCHITECTURES["matching_pursuit"], **change)
    with pytest.raises(ValueError, match=f"{next(iter(change))} .* stops early"):
        read(tmp_path)


def test_a_pursuit_without_b_dec_or_without_a_limit(tmp_path):
    arch = ARCHITECTURES["matching_pursuit"]
    saelens(tmp_path, arch, {"b_dec": np.zeros(4, np.float32)}, apply_b_dec_to_input=False, max_iterations=None)
    assert read(tmp_path).arch == replace(arch, k=4)
    saelens(tmp_path, arch, apply_b_dec_to_input=False)
    with pytest.raises(ValueError, match="needs center"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("arch", "says"),
    [
        (Architecture(4, 6, "batch_topk", k=2), "turn it into a jumprelu SAE first"),
        (Architecture(4, 6, "jumprelu", sites=2), "has no crosscoders: this one of 2 sites"),
        (Architecture(4, 6, "topk", k=2, d_out=3, center=False), "SAELens knows no topk transcoder"),
        (Architecture(4, 6, "gated", skip=True), "SAELens knows no gated transcoder"),
    ],
)
def test_what_saelens_has_not_is_not_written(tmp_path, arch, says):
    with pytest.raises(ValueError, match=says):
        write_saelens(tmp_path, arch, params_of(arch), Metadata())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_saelens, write_gemma_scope])
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("W_enc", np.full((4, 6), np.nan), "24 of 24 in W_enc"),
        ("b_dec", np.array([0, np.inf, 0, -np.inf]), "2 of 4 in b_dec"),
        ("b_enc", np.full(6, 1e300), "6 of 6 in b_enc"),  # no float32
        ("threshold", -np.eye(6)[0], "1 thresholds are below 0"),
        ("threshold", np.zeros(5), r"threshold \(5,\) instead of \(6,\)"),
        ("W_enc", np.zeros((6, 4)), r"W_enc \(6, 4\) instead of \(4, 6\)"),
    ],
)
def test_bad_parameters_are_not_written(tmp_path, write, name, value, says):
    rest = (Metadata(),) if write is write_saelens else ()
    with pytest.raises(ValueError, match=says):
        write(tmp_path, JUMP, {**params_of(JUMP), name: value}, *rest)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"d_in": 4}, "must not say d_in"),
        ({"hook_name": "x"}, "must not say hook_name"),
        ({"a": {1}}, "can't be written as JSON"),
        ({"a": float("nan")}, "can't be written as JSON"),
        ({"a": (1, 2)}, r"would not be read back as they are \(extra, 'a'\)"),
        ({"a": {1: 2}}, r"would not be read back as they are \(extra, 'a'\)"),
        ({"a": None}, r"would not be read back as they are \(extra\)"),
        ({"model_name": "x"}, r"would not be read back as they are \(model, extra, 'model_name'\)"),
        # what reading would take for a property of the SAE
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm True can't be honoured"),
        ({"rescale_acts_by_decoder_norm": False}, "would not be read back"),
        ({"hook_head_index": 3}, "hook_head_index 3 can't be honoured"),
        ({"activation_fn": "topk"}, "would not be read back"),
    ],
)
def test_bad_metadata_is_not_written(tmp_path, extra, says):
    with pytest.raises(ValueError, match=says):
        write_saelens(tmp_path, JUMP, params_of(JUMP), Metadata(site="resid_pre.0", extra=extra))
    assert not list(tmp_path.iterdir())


def test_metadata_of_another_type_are_not_written(tmp_path):
    metadata = Metadata()
    object.__setattr__(metadata, "model", 3)
    with pytest.raises(ValueError, match="model_name must be of type str, got int"):
        write_saelens(tmp_path, JUMP, params_of(JUMP), metadata)
    object.__setattr__(metadata, "model", None)
    object.__setattr__(metadata, "scaling", 2)  # a whole number, which JSON writes without a point, is no reason
    write_saelens(tmp_path, JUMP, params_of(JUMP), metadata)
    assert read(tmp_path).metadata.scaling == 2


def test_a_site_and_a_hook_must_be_one_place():
    assert Metadata(site="resid_pre.5", hook="blocks.5.hook_resid_pre").site == "resid_pre.5"
    assert Metadata(site="mine.5", hook="somewhere").hook == "somewhere"
    with pytest.raises(
        ValueError, match=r"^site_out 'resid_pre.3' and hook_out 'blocks.5.hook_resid_pre' are different"
    ):
        Metadata(site_out="resid_pre.3", hook_out="blocks.5.hook_resid_pre")


@pytest.mark.parametrize("write", [write_saelens, write_gemma_scope])
def test_a_fold_beyond_float32_is_not_written(tmp_path, write):
    arch = Architecture(4, 6, "jumprelu", d_out=4) if write is write_saelens else Architecture(4, 6, "jumprelu")
    params = {name: np.full(shape, 1e30, np.float32) for name, shape in arch.shapes().items()}
    with pytest.raises(
        ValueError, match="b_dec folded out of the encoder: values are NaN or infinite: 6 of 6 in b_enc"
    ):
        write(tmp_path, arch, params, *((Metadata(),) if write is write_saelens else ()))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_said(tmp_path):
    (tmp_path / "cfg.json").mkdir()
    with pytest.raises(WorkdirError, match=r"could not replace .*cfg.json: Is a directory"):
        write_saelens(tmp_path, JUMP, params_of(JUMP), Metadata())


@pytest.mark.parametrize("died", ["sae_weights.safetensors", "cfg.json"])
def test_a_half_written_folder_is_not_taken_for_a_good_one(tmp_path, monkeypatch, died):
    saelens(tmp_path, JUMP)

    def write(path, data):
        if path.name == died:
            raise WorkdirError("no room")
        path.write_bytes(data)

    monkeypatch.setattr(formats, "write_atomically", write)
    with pytest.raises(WorkdirError):
        write_saelens(tmp_path, JUMP, params_of(JUMP, seed=1), Metadata())
    with pytest.raises(ValueError, match=r"holds weights but no cfg.json: it is half-written"):
        read(tmp_path)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", formats.HOOKS)
def test_sites_and_hooks_are_inverses(name):
    for layer in (0, 7, 31):
        hook = formats.hook_of(f"{name}.{layer}")
        assert formats.site_of(hook) == f"{name}.{layer}"
        assert Metadata(hook=hook) == Metadata(site=f"{name}.{layer}")


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("model.layers.20.output", "resid_post.20"),
        ("layers.3", "resid_post.3"),
        ("gpt_neox.layers.3.attention", "attn_out.3"),
        ("transformer.h.11.mlp", "mlp_out.11"),
        ("model.layers.4.post_feedforward_layernorm.output", "mlp_out.4"),
        ("resid_post_layer_8", "resid_post.8"),
        ("model.layers.4.pre_feedforward_layernorm.output", None),
        ("blocks.3.attn.hook_z", None),
        ("blocks.3.hook_resid_prefix", None),
        ("blocks.3xhook_resid_pre", None),
        ("hook_embed", None),
        ("layers.3.mlp.input", None),
    ],
)
def test_names_of_others(hook, site):
    assert formats.site_of(hook) == site
    assert Metadata(hook=hook).hook == hook


@pytest.mark.parametrize("site", ["resid_pre", "resid_pre.x", "other.3", "resid_pre.-1", ""])
def test_what_is_no_site_has_no_hook(site):
    assert formats.hook_of(site) is None


# --- Gemma Scope ------------------------------------------------------------------------------------------------------


def test_gemma_scope_reads_what_was_written(tmp_path):
    params = params_of(JUMP)
    write_gemma_scope(tmp_path, JUMP, params)
    write_gemma_scope(tmp_path / "one.npz", JUMP, params)
    for path in (tmp_path, tmp_path / "one.npz"):
        found = read(path)
        assert (found.arch, found.metadata, found.source_format) == (JUMP, Metadata(), "gemma_scope")
        assert_equal(found.params, params)
    with np.load(tmp_path / "params.npz") as stored:
        assert sorted(stored) == ["W_dec", "W_enc", "b_dec", "b_enc", "threshold"]


def test_centring_is_folded_for_gemma_scope_with_equal_outputs(tmp_path):
    arch, x = Architecture(4, 6, "jumprelu"), inputs()
    params = params_of(arch)
    write_gemma_scope(tmp_path, arch, params)
    found = read(tmp_path)
    assert found.arch == JUMP
    for ours, theirs in zip(outputs(arch, params, x), outputs(JUMP, found.params, x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("name", ["relu", "topk", "gated", "jumprelu_skip_transcoder"])
def test_gemma_scope_takes_jumprelu_only(tmp_path, name):
    arch = ARCHITECTURES[name]
    with pytest.raises(ValueError, match="Gemma Scope holds JumpReLU SAEs without a skip"):
        write_gemma_scope(tmp_path, arch, params_of(arch))
    with pytest.raises(ValueError, match="turn it into a jumprelu SAE first"):
        write_gemma_scope(tmp_path, Architecture(4, 6, "batch_topk", k=1), {})


def test_small_letters_other_floats_and_orders_of_gemma_scope(tmp_path):
    params = params_of(JUMP)
    stored = {name.lower(): value for name, value in params.items()}
    stored["w_enc"] = np.asfortranarray(stored["w_enc"])
    stored["w_dec"] = stored["w_dec"].astype(">f4")
    stored["b_dec"] = stored["b_dec"].astype(np.float64)
    np.savez_compressed(tmp_path / "params.npz", **stored)
    assert_equal(read(tmp_path).params, params)
    half = {**stored, "b_enc": params["b_enc"].astype(np.float16)}
    np.savez(tmp_path / "params.npz", **half)
    np.testing.assert_array_equal(read(tmp_path).params["b_enc"], params["b_enc"].astype(np.float16))


@pytest.mark.parametrize(
    ("folder", "model", "site", "site_out", "d_out"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "gemma-2-2b", "resid_post.20", None, None),
        ("models--google--gemma-scope-9b-it-mlp/snapshots/ab/layer_3/w", "gemma-2-9b-it", "mlp_out.3", None, None),
        ("gemma-scope-2b-pt-att/layer_3/w", "gemma-2-2b", None, None, None),
        ("gemma-scope-2b-pt-transcoders/layer_3/w", "gemma-2-2b", None, "mlp_out.3", 4),
        ("gemma-scope-2b-pt-res/embedding/width_4k", None, None, None, None),
    ],
)
def test_folders_of_gemma_scope_tell_what_it_reads(tmp_path, folder, model, site, site_out, d_out):
    write_gemma_scope(tmp_path / folder, JUMP, params_of(JUMP))
    found = read(tmp_path / folder)
    assert (found.metadata.model, found.metadata.site, found.metadata.site_out) == (model, site, site_out)
    assert found.arch == replace(JUMP, d_out=d_out)
    assert found.metadata.prepend_bos is (True if model else None)


def npz(path: Path, **changes) -> None:
    arrays = {**params_of(JUMP), **changes}
    np.savez(path / "params.npz", **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"W_enc": params_of(JUMP)["W_dec"], "W_dec": params_of(JUMP)["W_enc"]}, "exchanged or transposed"),
        ({"threshold": None}, r"missing \['threshold'\]"),
        ({"b_enc": None}, "W_enc, b_enc and b_dec must be there"),
        ({"log_sparsity": np.zeros(6)}, r"unknown \['log_sparsity'\]"),
        ({"w_enc": np.zeros((4, 6))}, "holds a key twice"),
        ({"b_dec": np.full(4, np.nan)}, "4 of 4 in b_dec"),
        ({"threshold": np.arange(6)}, "holds int64, not floats"),
        ({"W_dec": np.zeros((6, 3))}, r"W_dec \(6, 3\) instead of \(6, 4\)"),
        ({"W_dec": np.array([[print]], dtype=object)}, "holds object, not floats"),
    ],
)
def test_bad_files_of_gemma_scope(tmp_path, changes, says):
    npz(tmp_path, **changes)
    with pytest.raises(ValueError, match=says):
        read(tmp_path)


# --- Gemma Scope 2 and sparsify ---------------------------------------------------------------------------------------


def gemma_scope_2(folder: Path, config: dict, **changes) -> dict[str, np.ndarray]:
    arch = Architecture(4, 6, "jumprelu", d_out=3, skip=True, center=False)
    params = params_of(arch)
    stored = {name.lower(): value for name, value in params.items()}
    stored["affine_skip_connection"] = stored.pop("w_skip")
    stored = {name: value for name, value in {**stored, **changes}.items() if value is not None}
    safetensors.numpy.save_file(stored, folder / "params.safetensors")
    given = {"architecture": "jump_relu", "model_name": "google/gemma-3-4b-pt", "affine_connection": True, **config}
    (folder / "config.json").write_text(json.dumps(given))
    return params


def test_gemma_scope_2(tmp_path):
    into = "model.layers.9.pre_feedforward_layernorm.output"
    out = "model.layers.9.post_feedforward_layernorm.output"
    params = gemma_scope_2(tmp_path, {"hf_hook_point_in": into, "hf_hook_point_out": out, "l0": 60})
    found = read(tmp_path)
    assert found.arch == Architecture(4, 6, "jumprelu", d_out=3, skip=True, center=False)
    assert_equal(found.params, params)  # affine_skip_connection is [d_in, d_out], as W_skip is
    assert found.metadata.model == "google/gemma-3-4b-pt"
    assert (found.metadata.hook, found.metadata.site_out) == (into, "mlp_out.9")
    assert found.metadata.extra == {"l0": 60}
    write_saelens(tmp_path / "saelens", found.arch, found.params, found.metadata)
    assert read(tmp_path / "saelens").metadata == found.metadata


def test_gemma_scope_2_sae_in_bfloat16(tmp_path):
    config = {"affine_connection": False, "hf_hook_point_in": "model.layers.9.output"}
    same = {"w_dec": params_of(JUMP)["W_dec"].astype(bfloat16), "b_dec": np.zeros(4, bfloat16)}
    gemma_scope_2(tmp_path, config, affine_skip_connection=None, **same)
    found = read(tmp_path)
    assert (found.arch, found.metadata.site) == (JUMP, "resid_post.9")
    np.testing.assert_array_equal(found.params["W_dec"], same["w_dec"].astype(np.float32))
    assert found.metadata.extra == {"stored_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        ({"architecture": "topk"}, {}, "architecture 'topk' can't be read"),
        ({}, {"w_dec": np.zeros((6, 2, 3), np.float32)}, "cross-layer transcoder"),
        ({"affine_connection": False}, {}, r"unknown \['affine_skip_connection'\]"),
        ({}, {"affine_skip_connection": None}, r"missing \['affine_skip_connection'\]"),
        ({}, {"affine_skip_connection": np.zeros((3, 4), np.float32)}, r"W_skip \(3, 4\) instead of \(4, 3\)"),
    ],
)
def test_bad_files_of_gemma_scope_2(tmp_path, config, changes, says):
    gemma_scope_2(tmp_path, config, **changes)
    with pytest.raises(ValueError, match=says):
        read(tmp_path)


def sparsify(folder: Path, arch: Architecture, **config) -> dict[str, np.ndarray]:
    params = params_of(arch)
    stored = {"encoder.weight": params["W_enc"].T, "encoder.bias": params["b_enc"]}
    stored |= {"W_dec": params["W_dec"], "b_dec": params["b_dec"]}
    if arch.skip:
        stored["W_skip"] = params["W_skip"].T
    folder.mkdir(parents=True)
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in stored.items()}, folder / "sae.safetensors")
    given = {"activation": "topk", "expansion_factor": 2, "num_latents": 6, "k": 2, "d_in": 4, **config}
    (folder / "cfg.json").write_text(json.dumps(given))
    return params


def test_sparsify_centres_its_input_unless_it_transcodes(tmp_path):
    run = {"model": "smol", "dataset": "text", "ctx_len": 2048}
    (tmp_path / "config.json").write_text(json.dumps(run))
    params = sparsify(tmp_path / "layers.3", Architecture(4, 6, "topk", k=2), multi_topk=False)
    found = read(tmp_path / "layers.3")
    assert found.arch == Architecture(4, 6, "topk", k=2, center=True)
    assert_equal(found.params, params)
    expected = Metadata(model="smol", hook="layers.3", dataset="text", context=2048)
    assert found.metadata == replace(expected, extra={"expansion_factor": 2, "multi_topk": False})
    arch = Architecture(4, 6, "topk", k=2, d_out=4, skip=True, center=False)
    params = sparsify(tmp_path / "layers.3.mlp", arch, transcode=True, skip_connection=True)
    found = read(tmp_path / "layers.3.mlp")
    assert found.arch == arch
    assert_equal(found.params, params)  # W_skip is stored [d_out, d_in]
    assert (found.metadata.hook, found.metadata.site_out) == ("layers.3.mlp.input", "mlp_out.3")


def test_a_relative_path_sees_the_folders_above_it(tmp_path, monkeypatch):
    run = {"model": "smol", "lr": 3}
    (tmp_path / "config.json").write_text(json.dumps(run))
    sparsify(tmp_path / "layers.3", Architecture(4, 6, "topk", k=2))
    monkeypatch.chdir(tmp_path / "layers.3")
    for path in (".", "", "sae.safetensors", "../layers.3"):
        found = read(path).metadata
        assert (found.model, found.site) == ("smol", "resid_post.3")
        assert found.extra == {"expansion_factor": 2, "run": {"lr": 3}}  # what nobody took is kept
    (tmp_path / "config.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match=r"/config.json: model must be of type str, got dict"):
        read(".")


def test_sparsify_width_by_expansion_and_signed_latents(tmp_path):
    sparsify(tmp_path / "a", Architecture(4, 8, "topk", k=2), num_latents=0, signed=True)
    assert read(tmp_path / "a").arch == Architecture(4, 8, "abs_topk", k=2)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"activation": "groupmax"}, "activation 'groupmax' can't be honoured"),
        ({"skip_connection": True}, "skip_connection must say"),
        ({"k": 0}, "topk needs 1 <= k"),
        ({"num_latents": 5}, "shapes don't fit"),
        ({"d_in": None}, "says no d_in"),
    ],
)
def test_bad_files_of_sparsify(tmp_path, config, says):
    sparsify(tmp_path / "a", Architecture(4, 6, "topk", k=2), **config)
    with pytest.raises(ValueError, match=says):
        read(tmp_path / "a")


# --- dictionary_learning ----------------------------------------------------------------------------------------------


def test_a_file_that_torch_wrote(tmp_path):
    raw = zlib.decompress(base64.b85decode(REAL))
    (tmp_path / "ae.pt").write_bytes(raw)
    trainer = {"dict_class": "AutoEncoderTopK", "k": 1, "activation_dim": 2, "dict_size": 3, "layer": 5, "lm_name": "m"}
    given = {"trainer": trainer, "buffer": {"ctx_len": 128, "io": "out"}}
    (tmp_path / "config.json").write_text(json.dumps(given))
    found = read(tmp_path)
    assert (found.arch, found.source_format) == (Architecture(2, 3, "topk", k=1), "dictionary_learning")
    expected = {
        "W_enc": [[6, 7, 8], [9, 10, 11]],
        "b_enc": [0.5, 0.25, -1],
        "W_dec": [[0, 3], [1, 4], [2, 5]],
        "b_dec": [1, -2],
    }
    assert_equal(found.params, {name: np.array(value, np.float32) for name, value in expected.items()})
    assert (found.metadata.model, found.metadata.context, found.metadata.site) == ("m", 128, None)
    kept = {"dict_class": "AutoEncoderTopK", "threshold": 0.75, "trainer": {"layer": 5}, "buffer": {"io": "out"}}
    assert found.metadata.extra == kept
    checkpoint = tmp_path / "checkpoints" / "ae_100.pt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(raw)
    assert read(checkpoint).arch == found.arch
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"may be AutoEncoderTopK or BatchTopKSAE: put its config.json"):
        read(tmp_path)


LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
GATED = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "decoder_bias": "b_dec", "gate_bias": "b_gate"}
DICTIONARIES = [  # dict_class, what it is here, its keys
    ("AutoEncoder", Architecture(4, 6, "relu"), LINEAR | {"bias": "b_dec"}),
    ("AutoEncoderNew", Architecture(4, 6, "relu", center=False), LINEAR | {"decoder.bias": "b_dec"}),
    ("GatedAutoEncoder", Architecture(4, 6, "gated"), GATED | {"mag_bias": "b_mag", "r_mag": "r_mag"}),
    ("JumpReluAutoEncoder", JUMP, {name: name for name in JUMP.shapes()}),
]
TOPK = LINEAR | {"b_dec": "b_dec"}


def stored_as(params: dict[str, np.ndarray], keys: dict[str, str]) -> dict[str, np.ndarray]:
    return {key: params[name].T if key.endswith(".weight") else params[name] for key, name in keys.items()}


@pytest.mark.parametrize(("kind", "arch", "keys"), DICTIONARIES, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("with_config", [True, False])
def test_dictionaries(tmp_path, kind, arch, keys, with_config):
    params = params_of(arch)
    torch_save(tmp_path / "ae.pt", stored_as(params, keys))
    if with_config:
        trainer = {"dict_class": kind, "submodule_name": "resid_post_layer_3", "norm_factor": 4.0}
        (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    found = read(tmp_path)
    assert found.arch == arch
    assert_equal(found.params, params)
    assert found.metadata.extra["dict_class"] == kind
    assert (found.metadata.site, found.metadata.scaling) == (("resid_post.3", 0.25) if with_config else (None, None))


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
@pytest.mark.parametrize("threshold", [0.25, 0.0, -1.0, None])
def test_a_batch_topk_dictionary_is_a_jumprelu_once_its_threshold_is_known(tmp_path, kind, threshold):
    arch = Architecture(4, 6, "batch_topk", k=2)
    params = params_of(arch)
    keys = {name: name for name in params} if "Matryoshka" in kind else TOPK
    stored = stored_as(params, keys) | {"k": np.array(2, np.int32)}
    if threshold is not None:
        stored["threshold"] = np.array(threshold, np.float32)
    if "Matryoshka" in kind:
        stored["group_sizes"] = np.array([2, 4])
    torch_save(tmp_path / "ae.pt", stored)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind, "k": 2}}))
    found = read(tmp_path)
    if threshold in (-1.0, None):
        assert found.arch == arch
        assert_equal(found.params, params)
    else:
        assert found.arch == Architecture(4, 6, "jumprelu")
        assert_equal(found.params, {**params, "threshold": np.full(6, threshold, np.float32)})
        assert found.metadata.extra["k"] == 2
    assert found.metadata.extra.get("group_sizes") == ([2, 4] if "Matryoshka" in kind else None)


@pytest.mark.parametrize(
    ("trainer", "changes", "says"),
    [
        ({"dict_class": "CrossCoder"}, {}, "dict_class 'CrossCoder' can't be read"),
        ({"k": 3}, {}, "says k=3, but ae.pt holds k=2"),
        ({}, {"k": np.array([2, 2])}, "k must be a whole number"),
        ({}, {"k": np.array(2.0)}, "k must be a whole number"),
        ({}, {"k": np.array(True)}, "k must be a whole number"),
        ({}, {"threshold": np.zeros(6)}, "threshold one number"),
        ({}, {"threshold": np.array(np.nan)}, "6 of 6 in threshold"),
        ({"dict_size": 7}, {}, "says dict_size=7, but ae.pt holds biases of size 6"),
        ({}, {"more": np.zeros(1)}, r"unknown \['more'\]"),
        ({}, {"b_dec": None}, r"missing \['b_dec'\]"),
        ({}, {"encoder.weight": params_of(JUMP)["W_enc"]}, "shapes don't fit the architecture: W_enc"),
        ({}, {"encoder.weight": np.zeros((4, 6)), "decoder.weight": np.zeros((6, 4))}, "exchanged or transposed"),
        ({}, {"encoder.bias": np.array([1, 2, np.nan, 4, np.inf, 6])}, "2 of 6 in b_enc"),
    ],
)
def test_bad_files_of_dictionary_learning(tmp_path, trainer, changes, says):
    stored = stored_as(params_of(Architecture(4, 6, "batch_topk", k=2)), TOPK)
    stored |= {"k": np.array(2), "threshold": np.array(0.5)} | changes
    torch_save(tmp_path / "ae.pt", {name: value for name, value in stored.items() if value is not None})
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopKSAE", **trainer}}))
    with pytest.raises(ValueError, match=says):
        read(tmp_path)


@pytest.mark.parametrize("io", ["in_and_out", "sideways", 3])
def test_a_transcoder_of_dictionary_learning_is_refused(tmp_path, io):
    torch_save(tmp_path / "ae.pt", {"bias": np.zeros(4)})
    given = {"trainer": {"dict_class": "AutoEncoder"}, "buffer": {"io": io}}
    (tmp_path / "config.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=f"io {io!r} can't be honoured"):
        read(tmp_path)


@pytest.mark.parametrize(("io", "site"), [("in", None), ("out", "mlp_out.3"), (None, "mlp_out.3")])
@pytest.mark.parametrize(("factor", "scaling"), [(4, 0.25), (4.0, 0.25), (5e-324, None), (-1.0, None), (True, None)])
def test_where_a_dictionary_reads_and_by_what_it_was_scaled(tmp_path, io, site, factor, scaling):
    _, arch, keys = DICTIONARIES[0]
    torch_save(tmp_path / "ae.pt", stored_as(params_of(arch), keys))
    trainer = {"dict_class": "AutoEncoder", "submodule_name": "model.layers.3.mlp", "norm_factor": factor}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": io}, "none": None}))
    found = read(tmp_path).metadata
    assert (found.site, found.scaling) == (site, scaling)
    assert found.hook == ("model.layers.3.mlp.input" if io == "in" else "model.layers.3.mlp")
    assert "none" not in found.extra
    write_saelens(tmp_path / "again", arch, params_of(arch), found)
    assert read(tmp_path / "again").metadata == found


# --- weights and configs that do not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"W_enc": params_of(JUMP)["W_dec"], "W_dec": params_of(JUMP)["W_enc"]}, "W_enc and W_dec are exchanged"),
        ({"b_enc": None, "bias": np.zeros(6, np.float32)}, r"missing \['b_enc'\], unknown \['bias'\]"),
        ({"W_dec": np.full((6, 4), np.nan, np.float32)}, "24 of 24 in W_dec"),
        ({"threshold": np.array([0, 1, np.inf, 2, 3, np.nan], np.float32)}, "2 of 6 in threshold"),
        ({"b_dec": np.zeros(5, np.float32)}, r"b_dec \(5,\) instead of \(4,\)"),
        ({"b_dec": np.full(4, 1e39)}, "4 of 4 in b_dec"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, tensors, says):
    saelens(tmp_path, JUMP, tensors)
    with pytest.raises(ValueError, match=says):
        read(tmp_path)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, bfloat16])
def test_other_floats_are_read_and_said(tmp_path, dtype):
    params = params_of(JUMP)
    saelens(tmp_path, JUMP, {name: value.astype(dtype) for name, value in params.items()})
    found = read(tmp_path)
    assert_equal(found.params, {name: value.astype(dtype).astype(np.float32) for name, value in params.items()})
    assert found.metadata.extra == {"stored_dtype": np.dtype(dtype).name}
    write_saelens(tmp_path, found.arch, found.params, found.metadata)
    assert read(tmp_path).metadata == found.metadata


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is no JSON"),
        (b"[]", "must hold a JSON object, got list"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"d_in": ' + b"9" * 5000 + b"}", "is no JSON"),
        (b'{"metadata": 3}', "metadata must be of type dict, got int"),
    ],
)
def test_damaged_configs(tmp_path, monkeypatch, content, says):
    saelens(tmp_path, JUMP)
    (tmp_path / "cfg.json").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read(tmp_path)
    monkeypatch.setattr(formats, "MAX_JSON", 0)
    with pytest.raises(ValueError, match="takes more than 0 bytes"):
        read(tmp_path)


def test_a_file_without_tensors(tmp_path):
    saelens(tmp_path, JUMP)
    safetensors.numpy.save_file({}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=r"missing \['W_dec', 'W_enc', 'b_dec', 'b_enc', 'threshold'\]"):
        read(tmp_path)


def test_what_is_no_sae(tmp_path):
    with pytest.raises(ValueError, match=r"absent does not exist: name a folder that holds an SAE"):
        read(tmp_path / "absent")
    for path in (tmp_path, tmp_path / "cfg.json"):
        with pytest.raises(ValueError, match=r"holds no SAE in a known format: expected a folder with one of sae_w"):
            read(path)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model.bin is no SAE in a known format"):
        read(tmp_path / "model.bin")
    saelens(tmp_path, JUMP)
    npz(tmp_path)
    with pytest.raises(ValueError, match=r"more than one format \(saelens, gemma_scope\): name the file"):
        read(tmp_path)
    assert read(tmp_path / "params.npz").source_format == "gemma_scope"
    assert read(tmp_path / "sae_weights.safetensors").source_format == "saelens"
