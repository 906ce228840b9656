"""The recipes of the papers, side by side on one world, at one L0.

Claim: each of them, with its objective, its start, its optimiser and its way to keep latents alive, finds features of a
world with Zipf densities, hierarchy and correlation (configs/sae/synth_benchmark.py) that an untrained SAE does not.
Command: python -m experiments.run --config=configs/sae/recipes.py   (also :quick)
Time: REPRODUCTION.md.
What is the papers' stands here as they say it. What belongs to language models is scaled to this world, with the
paper's value beside it: learning rates and warm-ups (their runs are a thousand times longer), dead windows, k, and
JumpReLU's bandwidth and threshold. Coefficients are steered until L0 is the target, so that recipes can be compared.
"""

from ml_collections import ConfigDict

from configs import kind, recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (two recipes, short)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of recipes: choose quick")
    c = ConfigDict()
    c.experiment = "sae.recipes"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n, c.d, c.d_sae = 256, 32, 64  # features, dimensions, latents
    c.roots = 2  # trees of 85 features
    c.true_l0 = 6.0  # mean number of active features
    c.bias = 0.5  # norm of the activations' bias
    c.l0 = 3.0  # of every SAE
    c.seeds = 3
    c.batch = 512
    c.steps = 6000
    c.log_every = 250
    c.block = 3  # members computed together
    c.resample = ("bricken2023",)  # recipes whose dead latents are resampled, and after which steps
    c.resample_at = (1500, 3000)  # Bricken et al. 2023: steps 25,000, 50,000, 75,000 and 100,000
    c.eval_batch, c.eval_batches = 4096, 16  # held-out samples
    if variant == "quick":
        c.seeds, c.steps, c.resample_at, c.eval_batches = 2, 1200, (400,), 4
    share = dict(d_sae=c.d_sae, dead_tokens=50_000)
    steered = dict(coefficient=1.0, control=True, control_rate=0.003, target_l0=c.l0)
    auxk = dict(revival="auxk", revival_coefficient=1 / 32, auxk_k=c.d // 2)  # k_aux: a power of two near d/2
    short = c.steps // 20
    kinds = {
        # Bricken et al. 2023, "Towards Monosemanticity", appendix: MSE + L1, unit-norm decoder rows with the gradient
        # along them removed, b_dec subtracted before the encoder and started at the geometric median, neurons that are
        # dead resampled with their optimiser state. lr there 1e-3.
        "bricken2023": kind(
            activation="relu", error="mean", penalty="l1", decoder="unit", centre="geometric_median",
            **{**steered, "coefficient": 0.01}, **share, recipe=recipe(lr=3e-3),
        ),
        # Anthropic, April 2024 update, "How we train SAEs": squared error summed, L1 weighted by decoder norms, no
        # subtraction of b_dec, decoder started at small norm and tied, coefficient warmed up over the first 5 %, inputs
        # scaled to mean norm sqrt(d), clipping at 1, lr to zero over the last 20 %. lr there 5e-5, coefficient 5.
        "april2024": kind(
            activation="relu", center=False, penalty="l1", decoder="free", start_norm=0.1, warmup=short, scale="sqrt_d",
            **steered, **share,
            recipe=recipe(lr=3e-3, clip_norm=1.0, schedule="linear", decay_from=0.8),
        ),
        # Gao et al. 2024 (arXiv 2406.04093): TopK, normalised MSE, AuxK 1/32, tied start, unit-norm decoder with the
        # gradient along rows removed, b_dec at the geometric median, clipping at 1, eps 6.25e-10. lr there
        # 2e-4 / sqrt(d_sae / 2^14), dead after 10M tokens; their moving average of the weights and the scaling of
        # each input by itself are left out.
        "gao2024": kind(
            activation="topk", k=c.l0, error="fvu", centre="geometric_median", scale="mean_square", **auxk, **share,
            recipe=recipe(lr=3e-3, eps=6.25e-10, clip_norm=1.0),
        ),
        # Rajamanoharan et al. 2024 (arXiv 2404.16014), Gated: unit-norm decoder, L1 on the gate, auxiliary
        # reconstruction by the frozen decoder; Adam without first moment, warm-up. lr there 3e-4 (2e-5 to 5e-5 later).
        "gated2024": kind(
            activation="gated", penalty="l1", decoder="unit", scale="mean_square", warmup=short,
            **{**steered, "coefficient": 0.1}, **share, recipe=recipe(lr=1e-3, b1=0.0, warmup=short),
        ),
        # Rajamanoharan et al. 2024 (arXiv 2407.14435), JumpReLU: L0 through a rectangle kernel to the threshold only,
        # inputs of mean square 1, no subtraction of b_dec, unit-norm decoder, Adam without first moment, warm-ups of lr
        # and sparsity. There lr 7e-5, bandwidth 0.001, threshold from 0.001, 4 to 16 billion tokens.
        "jumprelu2024": kind(
            activation="jumprelu", center=False, penalty="l0", decoder="unit", scale="mean_square", warmup=c.steps // 4,
            threshold=0.05, bandwidth=0.1, **{**steered, "coefficient": 0.01}, **share,
            recipe=recipe(lr=1e-3, b1=0.0, warmup=short),
        ),
        # Bussmann et al. 2024 (arXiv 2412.06410), BatchTopK, and Bussmann et al. 2025 (arXiv 2503.17547), Matryoshka,
        # in their code: AuxK 1/32 (not normalised), Adam with b2 = 0.99, threshold as a running mean; five nested
        # dictionaries. lr there 3e-4; each input is standardised there, here all are scaled alike.
        "batchtopk2024": kind(
            activation="batch_topk", k=c.l0, scale="sqrt_d", auxk_normalise=False, **auxk, **share,
            recipe=recipe(lr=3e-3, b2=0.99),
        ),
        "matryoshka2025": kind(
            activation="batch_topk", k=c.l0, scale="sqrt_d", prefixes=tuple(c.d_sae // s for s in (16, 8, 4, 2)),
            prefix_mean=False, auxk_normalise=False, **auxk, **share, recipe=recipe(lr=3e-3, b2=0.99),
        ),
        # Anthropic, January 2025 update: JumpReLU with tanh penalty (scale 4), gradients through the kernel to the
        # encoder too, bandwidth 2, threshold from 0.1, pre-activation loss for dead latents 3e-6, sparsity warmed up
        # over the whole run, lr to zero over the last 20 %. lr there 2e-4.
        "january2025": kind(
            activation="jumprelu", center=False, penalty="tanh", tanh_scale=4.0, decoder="free", start_norm=0.1,
            threshold=0.1, bandwidth=2.0, to_encoder=True, revival="pre_act", revival_coefficient=3e-6,
            scale="sqrt_d", warmup=c.steps, **{**steered, "coefficient": 0.5}, **share,
            recipe=recipe(lr=3e-3, clip_norm=1.0, schedule="linear", decay_from=0.8),
        ),
    }  # fmt: skip
    if variant == "quick":
        kinds = {k: kinds[k] for k in ("bricken2023", "gao2024")}
    c.kinds = ConfigDict(kinds)
    return c
