"""Run by the Python of the peers' environment, which has torch, SAELens and dictionary_learning, not this project.

    python formats_peer.py WRITE LOAD

saves SAEs of both libraries under WRITE, each in its own folder beside NAME.npz with their inputs x, activations acts
and outputs x_hat; and loads with SAELens every folder under LOAD that holds an x.npy, and saves the same beside it.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # pytest, which has no torch, imports this file to look for doctests
    import torch

D_IN, D_SAE, D_OUT, K, ROWS = 6, 10, 4, 3, 32


def randomise(module: torch.nn.Module, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) * 0.5
            value.data = (noise.abs() if "threshold" in name else noise).to(value.dtype)


def inputs(seed: int) -> torch.Tensor:
    import torch

    return torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(seed))


def record(path: Path, x: torch.Tensor, acts: torch.Tensor, x_hat: torch.Tensor) -> None:
    as_numpy = {"x": x, "acts": acts, "x_hat": x_hat}
    np.savez(path, **{name: value.to_dense().float().numpy() for name, value in as_numpy.items()})


def stand_in_for_the_hub(folder: Path) -> None:
    """Loaders of SAELens that download get the files of this folder instead."""
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def download(repo_id: str, filename: str, subfolder: str = "", force_download: bool = False) -> str:
        return str(folder / Path(filename).name)

    loaders.hf_hub_download = download


def write_sae_lens(root: Path) -> None:
    import sae_lens
    from sae_lens import saes

    shape = {"d_in": D_IN, "d_sae": D_SAE}
    training = {
        "standard": (saes.StandardTrainingSAE, saes.StandardTrainingSAEConfig(**shape)),
        "standard_uncentered": (
            saes.StandardTrainingSAE,
            saes.StandardTrainingSAEConfig(**shape, apply_b_dec_to_input=False),
        ),
        "gated": (saes.GatedTrainingSAE, saes.GatedTrainingSAEConfig(**shape)),
        "topk": (saes.TopKTrainingSAE, saes.TopKTrainingSAEConfig(**shape, k=K)),
        "topk_unscaled": (
            saes.TopKTrainingSAE,
            saes.TopKTrainingSAEConfig(**shape, k=K, rescale_acts_by_decoder_norm=False),
        ),
        "abstopk": (saes.AbsTopKTrainingSAE, saes.AbsTopKTrainingSAEConfig(**shape, k=K)),
        "batchtopk": (saes.BatchTopKTrainingSAE, saes.BatchTopKTrainingSAEConfig(**shape, k=K)),
        "matryoshka": (
            saes.MatryoshkaBatchTopKTrainingSAE,
            saes.MatryoshkaBatchTopKTrainingSAEConfig(**shape, k=K, matryoshka_widths=[4, D_SAE]),
        ),
        "jumprelu": (saes.JumpReLUTrainingSAE, saes.JumpReLUTrainingSAEConfig(**shape)),
        "matching_pursuit": (
            saes.MatchingPursuitTrainingSAE,
            saes.MatchingPursuitTrainingSAEConfig(
                **shape,
                residual_threshold=0.0,
                max_iterations=K,
                stop_on_duplicate_support=False,
                decoder_init_norm=1.0,
            ),
        ),
    }
    x = inputs(0)
    for seed, (name, (kind, cfg)) in enumerate(training.items()):
        cfg.metadata.hook_name, cfg.metadata.model_name = "blocks.2.hook_resid_pre", "tiny"
        cfg.metadata.prepend_bos, cfg.metadata.context_size = True, 64
        sae = kind(cfg)
        randomise(sae, seed)
        if name == "matching_pursuit":
            sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.save_inference_model(root / name)
        loaded = sae_lens.SAE.load_from_disk(root / name)
        record(root / f"{name}.npz", x, loaded.encode(x), loaded(x))
        # a checkpoint of training, which says more and has folded nothing
        sae.save_model(root / f"{name}_checkpoint")
        record(root / f"{name}_checkpoint.npz", x, loaded.encode(x), loaded(x))
        # an SAE of x * 0.7, whose factor stands beside it, against SAELens' own fold of it
        if name in ("topk", "batchtopk", "gated"):
            sae.cfg.normalize_activations = "expected_average_only_in"
            sae.save_model(root / f"{name}_scaled")
            (root / f"{name}_scaled" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.7}))
            sae.fold_activation_norm_scaling_factor(0.7)
            sae.save_inference_model(root / ".." / "folded")
            folded = sae_lens.SAE.load_from_disk(root / ".." / "folded")
            record(root / f"{name}_scaled.npz", x, folded.encode(x), folded(x))

    transcoders = {
        saes.Transcoder: saes.TranscoderConfig,
        saes.SkipTranscoder: saes.SkipTranscoderConfig,
        saes.JumpReLUTranscoder: saes.JumpReLUTranscoderConfig,
        saes.JumpReLUSkipTranscoder: saes.JumpReLUSkipTranscoderConfig,
    }
    for seed, (kind, config) in enumerate(transcoders.items()):
        made = kind(config(**shape, d_out=D_OUT, apply_b_dec_to_input=False))
        randomise(made, 50 + seed)
        name = made.cfg.architecture()
        made.save_model(root / name)
        record(root / f"{name}.npz", x, made.encode(x), made(x))

    half = saes.StandardSAE(saes.StandardSAEConfig(**shape, dtype="bfloat16"))
    randomise(half, 60)
    half.save_model(root / "bfloat16")
    wide = sae_lens.SAE.load_from_disk(root / "bfloat16", dtype="float32")
    record(root / "bfloat16.npz", x, wide.encode(x), wide(x))


def write_gemma_scope_2(root: Path) -> None:
    """Files by hand, in the layout that SAELens' loader of Gemma Scope 2 expects, and what it makes of them."""
    import sae_lens
    import torch
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from safetensors.torch import save_file

    x, generator = inputs(1), torch.Generator().manual_seed(70)
    shapes = {
        "w_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "threshold": (D_SAE,), "w_dec": (D_SAE, D_IN), "b_dec": (D_IN,),
        "affine_skip_connection": (D_IN, D_IN),
    }  # fmt: skip
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors["threshold"] = tensors["threshold"].abs()
    folder = root / "gemma_scope_2"
    folder.mkdir()
    save_file(tensors, folder / "params.safetensors")
    config = {
        "architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", "affine_connection": True, "l0": 10,
        "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    stand_in_for_the_hub(folder)
    loaders.get_safetensors_tensor_shapes = lambda repo, name: {key: list(t.shape) for key, t in tensors.items()}
    name = "transcoder/layer_3_width_16k_affine"
    sae = sae_lens.SAE.load_from_disk(
        folder, converter=lambda *_, **__: loaders.gemma_3_sae_huggingface_loader("google/x", name, "cpu")[:2]
    )
    record(root / "gemma_scope_2.npz", x, sae.encode(x), sae(x))


def write_dictionary_learning(root: Path) -> None:
    import torch
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    x = inputs(2)
    common = {"activation_dim": D_IN, "dict_size": D_SAE, "layer": 3, "lm_name": "tiny", "device": "cpu"}
    hook = {"submodule_name": "resid_post_layer_3"}
    made = {
        "dl_standard": StandardTrainer(steps=10_000, **common, **hook),
        "dl_gated": GatedSAETrainer(steps=10_000, **common, **hook),
        "dl_topk": TopKTrainer(steps=10_000, k=K, **common, **hook),
        "dl_batchtopk": BatchTopKTrainer(steps=10_000, k=K, **common, **hook),
        "dl_matryoshka": MatryoshkaBatchTopKTrainer(steps=10_000, k=K, group_fractions=[0.4, 0.6], **common, **hook),
        "dl_jumprelu": JumpReluTrainer(steps=10_000, **common, **hook),
    }
    for seed, (name, trainer) in enumerate(made.items()):
        randomise(trainer.ae, 80 + seed)
        (root / name).mkdir()
        config = {"trainer": trainer.config, "buffer": {"ctx_len": 128, "io": "out"}}
        (root / name / "config.json").write_text(json.dumps(config))
        torch.save({key: value.cpu() for key, value in trainer.ae.state_dict().items()}, root / name / "ae.pt")
        record(root / f"{name}.npz", x, trainer.ae.encode(x), trainer.ae(x))
    bare = dictionary.AutoEncoderNew(D_IN, D_SAE)  # no trainer of it says its name: the keys do
    randomise(bare, 90)
    (root / "dl_april").mkdir()
    torch.save(bare.state_dict(), root / "dl_april" / "ae.pt")
    record(root / "dl_april.npz", x, bare.encode(x), bare(x))


def load(root: Path) -> None:
    import sae_lens
    import torch
    from sae_lens.loading import pretrained_sae_loaders as loaders

    for given in sorted(root.glob("*/x.npy")):
        folder = given.parent
        x = torch.from_numpy(np.load(given))
        if (folder / "cfg.json").exists():
            sae = sae_lens.SAE.load_from_disk(folder)
        else:  # Gemma Scope, as SAELens reads it from the hub
            stand_in_for_the_hub(folder)
            overrides = {"d_in": x.shape[1], "d_sae": int(np.load(folder / "params.npz")["b_enc"].size)}
            cfg, state, _ = loaders.gemma_2_sae_huggingface_loader(
                "google/gemma-scope-2b-pt-res", "layer_0", "cpu", cfg_overrides=overrides
            )
            sae = sae_lens.SAE.load_from_disk(folder, converter=lambda *_, c=cfg, s=state, **__: (c, s))
        record(folder / "peer.npz", x, sae.encode(x), sae(x))


def main(write: Path, read: Path) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    write.mkdir(parents=True, exist_ok=True)
    write_sae_lens(write)
    write_gemma_scope_2(write)
    write_dictionary_learning(write)
    load(read)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
