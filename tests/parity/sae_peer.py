"""Losses and gradients of the peers' own training code: a script for their Python (`make peers`).

python sae_peer.py INPUTS.npz OUTPUTS.npz: reads "x", "dead" and, per case, "CASE/PARAMETER" in our names and shapes;
writes "CASE/loss" and "CASE/grad/PARAMETER", gradients in our shapes.
"""

import sys


def saelens(arrays, x, dead):
    import torch
    from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    jump = dict(jumprelu_bandwidth=0.5, jumprelu_init_threshold=0.3)
    cases = {
        "relu": (StandardTrainingSAE, StandardTrainingSAEConfig, dict(l1_coefficient=0.3), {"l1": 0.3}),
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, dict(k=4, aux_loss_coefficient=0.7), {}),
        "abs_topk": (AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig, dict(k=4, aux_loss_coefficient=0.0), {}),
        "batch_topk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, dict(k=4, aux_loss_coefficient=0.7), {}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig,
            dict(k=4, aux_loss_coefficient=0.0, matryoshka_widths=[5, 20, 48]), {},
        ),
        "gated": (GatedTrainingSAE, GatedTrainingSAEConfig, dict(l1_coefficient=0.3), {"l1": 0.3}),
        "jumprelu l0": (
            JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig,
            dict(l0_coefficient=0.3, pre_act_loss_coefficient=0.2, **jump), {"l0": 0.3},
        ),
        "jumprelu tanh": (
            JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig,
            dict(l0_coefficient=0.3, jumprelu_sparsity_loss_mode="tanh", jumprelu_ste_to_input=True, **jump),
            {"l0": 0.3},
        ),
        "jumprelu quadratic": (
            JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig,
            dict(l0_coefficient=0.3, jumprelu_sparsity_loss_mode="quadratic", jumprelu_ste_to_input=True,
                 target_l0=6.0, **jump),
            {"l0": 0.3},
        ),
        "matching_pursuit": (
            MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig,
            dict(max_iterations=4, residual_threshold=0.0, stop_on_duplicate_support=False, decoder_init_norm=1.0), {},
        ),
    }  # fmt: skip
    for name, (kind, config, settings, coefficients) in cases.items():
        mine = {k.split("/")[1]: torch.tensor(v) for k, v in arrays.items() if k.startswith(f"{name}/")}
        sae = kind(config(d_in=x.shape[1], d_sae=mine["W_dec"].shape[0], **settings))
        for key, value in mine.items():
            getattr(sae, key).data = value
        sae.zero_grad()
        out = sae.training_forward_pass(
            TrainStepInput(
                sae_in=torch.tensor(x), coefficients=coefficients, dead_neuron_mask=torch.tensor(dead),
                n_training_steps=0, is_logging_step=False,
            )
        )  # fmt: skip
        out.loss.backward()
        grads = {key: getattr(sae, key).grad for key in mine}
        yield name, out.loss, grads, 0.0


def dictionary_learning(arrays, x, dead):
    import torch
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.p_anneal import PAnnealTrainer
    from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
    from dictionary_learning.trainers.top_k import TopKTrainer

    shape = dict(steps=100, activation_dim=x.shape[1], dict_size=48, layer=0, lm_name="", device="cpu")
    linear = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "b_dec"}
    gate = {
        "W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias", "r_mag": "r_mag",
        "b_gate": "gate_bias", "b_mag": "mag_bias",
    }  # fmt: skip
    relu = {**linear, "b_dec": "bias"}
    plain = {k: k for k in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    settled = dict(warmup_steps=0, sparsity_warmup_steps=0)
    half = dict(initial_sparsity_penalty=0.3, sparsity_function="Lp^p", p_start=0.5, p_end=0.5, **settled)
    cases = {
        "dl topk": (TopKTrainer, dict(k=4, warmup_steps=0), linear),
        "dl batch_topk": (BatchTopKTrainer, dict(k=4, warmup_steps=0, threshold_start_step=-1), linear),
        "dl matryoshka": (
            MatryoshkaBatchTopKTrainer, dict(k=4, warmup_steps=0, group_fractions=[5 / 48, 15 / 48, 28 / 48]), plain,
        ),
        "dl standard": (StandardTrainer, dict(l1_penalty=0.3, **settled), relu),
        "dl april": (StandardTrainerAprilUpdate, dict(l1_penalty=0.3, **settled), relu),
        "dl p_anneal": (PAnnealTrainer, half, relu),
        "dl gated_anneal": (GatedAnnealTrainer, half, gate),
        "dl gated": (GatedSAETrainer, dict(l1_penalty=0.3, **settled), gate),
        "dl jumprelu": (
            JumpReluTrainer, dict(bandwidth=0.5, target_l0=6.0, sparsity_penalty=3.0, **settled), plain,
        ),
    }  # fmt: skip
    for name, (kind, settings, names) in cases.items():
        mine = {k.split("/")[1]: torch.tensor(v) for k, v in arrays.items() if k.startswith(f"{name}/")}
        trainer = kind(**shape, **settings)
        parameters = dict(trainer.ae.named_parameters())
        turned = {key for key in mine if names[key].endswith(".weight")}
        for key, value in mine.items():
            parameters[names[key]].data = value.T.contiguous() if key in turned else value
        if hasattr(trainer, "num_tokens_since_fired"):
            trainer.num_tokens_since_fired = torch.where(torch.tensor(dead), 10**9, 0)
        loss = trainer.loss(torch.tensor(x), step=0)
        loss.backward()
        grads = {key: parameters[names[key]].grad for key in mine}
        grads = {key: g.T if key in turned and g is not None else g for key, g in grads.items()}
        if name == "dl batch_topk":  # a second batch moves its running threshold
            trainer.loss(torch.tensor(2 * x), step=0)
        yield name, loss, grads, float(trainer.ae.threshold.mean()) if hasattr(trainer.ae, "threshold") else 0.0


def main():
    import numpy as np

    arrays = dict(np.load(sys.argv[1]))
    x, dead = arrays.pop("x"), arrays.pop("dead")
    out = {}
    for library in (saelens, dictionary_learning):
        for name, loss, grads, threshold in library(arrays, x, dead):
            out[f"{name}/loss"], out[f"{name}/threshold"] = loss.item(), threshold
            out |= {f"{name}/grad/{key}": g.numpy() for key, g in grads.items() if g is not None}
    np.savez(sys.argv[2], **out)


if __name__ == "__main__":
    main()
