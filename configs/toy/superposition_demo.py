"""The headline figure of TMS ("Demonstrating superposition", Elhage et al. 2022): superposition appears with sparsity.

Claim: a linear model keeps the m most important features at any sparsity; a ReLU model puts more and more of them in
superposition as they grow sparse, the least important first, as antipodal pairs.
Command: python -m experiments.run --config=configs/toy/superposition_demo.py   (also :rescaled, :quick)
Expected: 5, 7, 9 features at 1-S = 1, 0.3, 0.1; dense loss 0.046464. Time: see REPRODUCTION.md.
The paper gives neither the recipe nor, in its text, the densities after 1.0; the densities are those of teaching
material made from the figure, the recipe is ours.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" (n=20, m=5), "rescaled" (n=80, m=20), "quick" (three densities, small)."""
    variant = variant or "full"
    if variant not in ("full", "rescaled", "quick"):
        raise ValueError(f"unknown variant {variant!r} of superposition_demo: choose rescaled or quick")
    c = ConfigDict()
    c.experiment = "toy.superposition_demo"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 20  # features
    c.m = 5  # hidden dimensions
    c.decay = 0.7  # importance of feature i is decay^i
    c.densities = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # 1-S, one column each
    c.seeds = 32  # models per column; the best one is drawn
    c.expectation = "conditional"  # row of worlds.expect.EXPECTATIONS
    c.batch = 128  # columns per step
    c.init_scale = 0.4  # of Xavier; a small start ends in better optima more often
    c.steps = 4000
    c.log_every = 250  # steps per chunk
    c.recipe = recipe(
        optimizer="adam",
        lr=1e-2,  # peak
        schedule="linear",  # to zero
        decay_from=0.5,  # over the second half of the run
    )
    c.eval_batch = 8192  # held-out columns per batch
    c.eval_batches = 16
    # (1-S, fewest, most) features that runs of the notebook's recipe represent; sparser rows were under-trained there
    c.expected_counts = ((0.03, 10, 11), (0.01, 10, 13), (0.003, 12, 16), (0.001, 12, 16))
    c.expected_squares = (  # (1-S, smallest, largest ||W||_F^2), of the same runs
        (1.0, 5.0, 5.0), (0.3, 7.0, 7.0), (0.1, 8.0, 8.9), (0.03, 10.0, 12.0), (0.01, 10.3, 13.9),
        (0.003, 13.6, 15.2), (0.001, 15.2, 16.2),
    )  # fmt: skip
    c.expected_thresholds = (0.509, 0.369, 0.237, 0.137, 0.073)
    # (1-S, loss) reached by runs of the notebook's recipe
    c.expected_losses = (
        (0.3, 0.0336),
        (0.1, 0.0076),
        (0.03, 1.35e-3),
        (0.01, 3.1e-4),
        (0.003, 8.0e-5),
        (0.001, 2.6e-5),
    )
    if variant == "rescaled":
        c.n, c.m, c.decay, c.seeds = 80, 20, 0.9, 16
        c.expected_counts = ((0.03, 40, 80),)  # denser: claimed beside the dedicated ones and the pairs
        c.expected_losses, c.expected_squares, c.expected_thresholds = (), (), ()
    if variant == "quick":
        c.densities, c.seeds, c.steps, c.log_every = (1.0, 0.3, 0.1), 8, 2000, 200
        c.eval_batches = 4
    return c
