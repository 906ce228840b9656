"""Uniform superposition (TMS, "The Geometry of Superposition"): sticky dimensions per feature, and polytopes.

Claim: with equal importance, m / ||W||_F^2 stays at 1 and then at 1/2 dimensions per feature as features grow sparser;
single features have dimensionalities near 3/4, 2/3, 1/2, 2/5, 3/8 or 0, which are those of a tetrahedron, a triangle, a
digon, a pentagon, a square antiprism, or of nothing.
Command: python -m experiments.run --config=configs/toy/geometry.py   (also :quick)
Expected: plateaus at 1 and 1/2, the change at 1/(1-S) = 1.75; a peak at 1/2. Time: see REPRODUCTION.md.
The paper's notebook trains 10,000 steps at batch 8,192 or less; its recipe for the figure is not given.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" (n=400, m=30) and "quick" (n=100, m=10, fewer densities)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of geometry: choose quick")
    c = ConfigDict()
    c.experiment = "toy.geometry"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 400  # features, all of importance 1
    c.m = 30  # hidden dimensions
    c.densities = 100  # 1-S, log-spaced from 1 to ``sparsest``
    c.sparsest = 0.05
    c.graphs = (1.7, 2.0, 3.0, 4.0, 4.5, 5.0)  # 1/(1-S) of the models whose graphs are drawn
    c.edge = 0.2  # overlap |W_i . W_j| above which two features are connected; by 0.1 as by 0.2, but for the sparsest
    # graph drawn, of which 0.1 leaves two components
    c.expectation = "monte_carlo"  # row of worlds.expect.EXPECTATIONS; hardly a sample is silent here
    c.batch = 1024  # columns per step
    c.steps = 6500
    c.log_every = 250  # steps per chunk
    c.block = 1  # members per vmapped block: large ones are faster one by one
    c.eval_batch = 4096  # held-out columns
    c.recipe = recipe(
        optimizer="adam",
        lr=3e-3,  # peak
        schedule="cosine",  # to zero
    )
    # 1/(1-S) -> dimensions per feature, of a small run (n=100, m=10)
    c.expected_small = ((1.0, 1.007), (1.5, 0.961), (2.0, 0.584), (3.0, 0.518), (5.0, 0.355), (8.0, 0.266),
                        (12.0, 0.206), (20.0, 0.148))  # fmt: skip
    if variant == "quick":
        c.n, c.m, c.densities, c.graphs, c.batch, c.steps = 100, 10, 20, (2.0, 3.0, 5.0), 256, 3000
        c.expected_small = ()
    return c
