"""The peers' whole TopK training step: a script for their Python (`make peers`); prints one line of JSON.

python benchmarks/peer_sae.py saelens|dictionary_learning|matmul D F BATCH K STEPS
"""

import json
import math
import statistics
import sys
import time


def saelens(start, k, lr):
    import torch
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    d, F = start["W_enc"].shape
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=F, k=k))
    for name, value in start.items():
        getattr(sae, name).data = torch.tensor(value)
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    dead = torch.zeros(F, dtype=torch.bool)

    def step(x, i):
        step_input = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=i, is_logging_step=False
        )
        out = sae.training_forward_pass(step_input)
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        return out.losses["mse_loss"].item()

    return step


def dictionary_learning(start, k, lr):
    import torch
    from dictionary_learning.trainers.top_k import TopKTrainer

    d, F = start["W_enc"].shape
    trainer = TopKTrainer(
        steps=10**6, activation_dim=d, dict_size=F, k=k, layer=0, lm_name="", lr=lr, warmup_steps=0,
        device=str(torch.get_default_device()),
    )  # fmt: skip
    ae = trainer.ae
    ae.encoder.weight.data, ae.decoder.weight.data = (torch.tensor(start["W_dec"].copy()) for _ in range(2))
    ae.decoder.weight.data = ae.decoder.weight.data.T.contiguous()
    ae.encoder.bias.data.zero_()
    ae.b_dec.data.zero_()

    def step(x, i):
        return trainer.update(i + 1, x)  # step 0 would set b_dec

    return step


def data(d, F, batch):
    """Start and eight batches, the same for all sides: unit rows, tied; sparse sums of random directions."""
    import numpy as np

    rng = np.random.default_rng(0)
    W = rng.normal(size=(F, d)).astype(np.float32)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    start = {"W_enc": W.T.copy(), "b_enc": zeros(F), "W_dec": W, "b_dec": zeros(d)}
    directions = rng.normal(size=(4 * d, d)).astype(np.float32) / math.sqrt(d)
    batches = []
    for _ in range(8):
        on = rng.random((batch, 4 * d)) < 16 / (4 * d)
        batches.append((on * rng.random((batch, 4 * d))).astype(np.float32) @ directions)
    return start, batches


def main():
    import torch

    if torch.cuda.is_available():  # products of float32 in TF32, as JAX computes them there
        torch.set_default_device("cuda")
        torch.set_float32_matmul_precision("high")
    done = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    what, d, F, batch, k, steps = sys.argv[1], *map(int, sys.argv[2:7])
    if what == "matmul":
        x, W = torch.randn(batch, d), torch.randn(d, F)
        times = []
        for _ in range(steps):
            done()
            clock = time.perf_counter()
            x @ W
            done()
            times.append(time.perf_counter() - clock)
        print(json.dumps({"seconds": statistics.median(times)}))
        return
    start, batches = data(d, F, batch)
    step = {"saelens": saelens, "dictionary_learning": dictionary_learning}[what](start, k, 1e-4)
    times, losses = [], []
    for i in range(steps):
        x = torch.tensor(batches[i % len(batches)])
        done()
        clock = time.perf_counter()
        losses.append(step(x, i))
        done()
        times.append(time.perf_counter() - clock)
    print(json.dumps({"seconds": statistics.median(times[1:]), "losses": losses}))


if __name__ == "__main__":
    main()
