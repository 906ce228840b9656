"""Files of the real SAELens and dictionary_learning read here, and files written here loaded by the real SAELens.

Needs another environment: SUPERPOSE_PEERS names its Python, which runs ``formats_peer.py``.
"""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from superpose.sae import formats
from superpose.sae.model import SAE, Architecture

SCRIPT = Path(__file__).with_name("formats_peer.py")
X = np.random.default_rng(7).normal(size=(32, 6)).astype(np.float32)
READ = {  # folder that the peers write -> activation, source format
    **dict.fromkeys(["standard", "standard_uncentered", "transcoder", "skip_transcoder", "bfloat16"], "relu"),
    **dict.fromkeys(["topk", "topk_unscaled", "topk_checkpoint", "topk_unscaled_checkpoint", "topk_scaled"], "topk"),
    **dict.fromkeys(["abstopk", "abstopk_checkpoint"], "abs_topk"),
    **dict.fromkeys(["batchtopk", "batchtopk_checkpoint", "batchtopk_scaled", "matryoshka"], "jumprelu"),
    **dict.fromkeys(["jumprelu", "jumprelu_checkpoint", "matryoshka_checkpoint"], "jumprelu"),
    **dict.fromkeys(["jumprelu_transcoder", "jumprelu_skip_transcoder", "gemma_scope_2"], "jumprelu"),
    **dict.fromkeys(["gated", "gated_checkpoint", "gated_scaled", "dl_gated"], "gated"),
    **dict.fromkeys(["matching_pursuit", "matching_pursuit_checkpoint"], "matching_pursuit"),
    **dict.fromkeys(["dl_standard", "dl_april"], "relu"),
    **dict.fromkeys(["dl_batchtopk", "dl_matryoshka", "dl_jumprelu"], "jumprelu"),
    "dl_topk": "topk",
}
WRITTEN = {
    "relu": Architecture(6, 10, "relu"),
    "relu_uncentered": Architecture(6, 10, "relu", center=False),
    "topk": Architecture(6, 10, "topk", k=3),
    "abs_topk": Architecture(6, 10, "abs_topk", k=3),
    "jumprelu": Architecture(6, 10, "jumprelu"),
    "gated": Architecture(6, 10, "gated"),
    "matching_pursuit": Architecture(6, 10, "matching_pursuit", k=3),
    "transcoder": Architecture(6, 10, "relu", d_out=4, center=False),
    "skip_transcoder": Architecture(6, 10, "relu", d_out=4, skip=True, center=False),
    "jumprelu_transcoder": Architecture(6, 10, "jumprelu", d_out=4, center=False),
    "jumprelu_skip_transcoder": Architecture(6, 10, "jumprelu", d_out=6, skip=True),  # its b_dec has to be folded
    "gemma_scope": Architecture(6, 10, "jumprelu"),  # here too
}


def random_params(arch: Architecture, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arch.shapes().items()}
    if "threshold" in params:
        params["threshold"] = np.abs(params["threshold"])
    if arch.activation == "matching_pursuit":
        params["W_dec"] /= np.linalg.norm(params["W_dec"], axis=1, keepdims=True)
    return params


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """What the peers wrote, and what was written here with the peers' outputs beside it."""
    peers = os.environ.get("SUPERPOSE_PEERS")
    if not peers:
        pytest.skip("needs SAELens and dictionary_learning: set SUPERPOSE_PEERS to a Python that has them")
    theirs, ours = tmp_path_factory.mktemp("peers") / "written", tmp_path_factory.mktemp("superpose")
    for seed, (name, arch) in enumerate(WRITTEN.items()):
        params = random_params(arch, seed)
        if name == "gemma_scope":
            formats.write_gemma_scope(ours / name, arch, params)
        else:
            formats.write_saelens(ours / name, arch, params, formats.Metadata(site="resid_pre.2", context=64))
        np.save(ours / name / "x.npy", X)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    run = subprocess.run([peers, SCRIPT, theirs, ours], capture_output=True, text=True, env=env, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return theirs, ours


def assert_same(arch: Architecture, params: dict[str, np.ndarray], peer: Path) -> None:
    with np.load(peer) as said:
        sae, x = SAE(arch, params), jnp.asarray(said["x"])
        assert np.any(said["acts"] != 0)
        np.testing.assert_allclose(sae.encode(x), said["acts"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(sae(x), said["x_hat"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", READ)
def test_what_a_peer_wrote_encodes_and_decodes_here_as_there(folders, name):
    found = formats.read(folders[0] / name)
    assert found.arch.activation == READ[name]
    assert_same(found.arch, found.params, folders[0] / f"{name}.npz")


def test_the_comparison_sees_a_wrong_encoder(folders):
    found = formats.read(folders[0] / "standard")
    with pytest.raises(AssertionError):
        assert_same(replace(found.arch, center=False), found.params, folders[0] / "standard.npz")


def test_every_folder_of_the_peers_is_compared(folders):
    plain = {"standard_checkpoint", "standard_uncentered_checkpoint"}  # the same bytes as the folders without the word
    assert {path.name for path in folders[0].iterdir() if path.is_dir()} - plain == set(READ)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_was_written_here_encodes_and_decodes_in_sae_lens_as_here(folders, name):
    arch = WRITTEN[name]
    assert_same(arch, random_params(arch, list(WRITTEN).index(name)), folders[1] / name / "peer.npz")


def test_metadata_of_the_peers_resolves(folders):
    of_sae_lens = formats.read(folders[0] / "jumprelu").metadata
    assert (of_sae_lens.model, of_sae_lens.site, of_sae_lens.prepend_bos) == ("tiny", "resid_pre.2", True)
    assert of_sae_lens.context == 64
    assert of_sae_lens.extra["training_architecture"] == "jumprelu"
    assert formats.read(folders[0] / "topk_scaled").metadata.scaling == 0.7
    of_dictionary = formats.read(folders[0] / "dl_topk").metadata
    assert (of_dictionary.model, of_dictionary.site, of_dictionary.context) == ("tiny", "resid_post.3", 128)
