"""Every activation on one world: sparsity against reconstruction and against the truth.

Claim: Gated, JumpReLU and BatchTopK SAEs reconstruct better than L1 at equal L0 (Rajamanoharan et al. 2024, arXiv
2404.16014 and 2407.14435; Bussmann et al. 2024, arXiv 2412.06410), matching pursuit reconstructs best, and that does
not say how many features are found: F1 has another order. All kinds at all sparsities and seeds are trained in one run,
on one stream of samples.
Command: python -m experiments.run --config=configs/sae/pareto.py   (also :quick)
Time: REPRODUCTION.md. The world is a small one of SynthSAEBench's kind: see configs/sae/synth_benchmark.py.
"""

from ml_collections import ConfigDict

from configs import kind, recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (three kinds, two sparsities)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of pareto: choose quick")
    c = ConfigDict()
    c.experiment = "sae.pareto"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n, c.d, c.d_sae = 256, 32, 64  # features, dimensions, latents
    c.roots = 2  # trees of 85 features
    c.true_l0 = 6.0  # mean number of active features
    c.bias = 0.5  # norm of the activations' bias
    c.l0 = (1, 2, 4, 8)  # of the SAEs, reached by k or by the controller
    c.seeds = 3
    c.batch = 512
    c.steps = 6000
    c.log_every = 250
    c.block = 12  # members computed together
    c.eval_batch, c.eval_batches = 4096, 16  # held-out samples
    if variant == "quick":
        c.l0, c.seeds, c.steps, c.eval_batches = (2, 4), 2, 1500, 4
    share = dict(
        d_sae=c.d_sae, scale="sqrt_d", dead_tokens=50_000,
        recipe=recipe(lr=3e-3, schedule="linear", decay_from=2 / 3, clip_norm=1.0),
    )  # fmt: skip
    auxk = dict(revival="auxk", revival_coefficient=1.0, auxk_normalise=False, sweep={"k": c.l0})
    targets = {"target_l0": tuple(map(float, c.l0))}
    steered = dict(control=True, control_rate=0.003, warmup=c.steps // 4, sweep=targets)
    prefixes = tuple(c.d_sae // s for s in (16, 8, 2))
    c.kinds = ConfigDict({
        "l1": kind(activation="relu", penalty="l1", coefficient=3.0, **steered, **share),
        "gated": kind(activation="gated", penalty="l1", coefficient=3.0, **steered, **share),
        "jumprelu": kind(
            activation="jumprelu", penalty="l0", coefficient=0.3, threshold=0.3, bandwidth=0.5, **steered, **share
        ),
        "topk": kind(activation="topk", **auxk, **share),
        "abs_topk": kind(activation="abs_topk", **auxk, **share),
        "batch_topk": kind(activation="batch_topk", **auxk, **share),
        "matryoshka": kind(
            activation="batch_topk", prefixes=prefixes, prefix_mean=False, **auxk, **share
        ),
        "matching_pursuit": kind(activation="matching_pursuit", sweep={"k": c.l0}, **share),
    })  # fmt: skip
    if variant == "quick":
        c.kinds = ConfigDict({k: v for k, v in c.kinds.items() if k in ("l1", "batch_topk", "matching_pursuit")})
    return c
