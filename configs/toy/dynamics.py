"""How models get there: jumps between energy levels, and the transformations of two sets (TMS, "Learning Dynamics").

Claim: the dimensionality of each feature settles on a level, 1/2 (a digon) or 0 (not represented), and features change
places within a short time, in which the loss falls; two sets of three correlated features form two bundles, which
part, open into triangles and rotate into an octahedron.
Command: python -m experiments.run --config=configs/toy/dynamics.py   (also :quick)
Expected: levels 0 and 1/2; three antipodal pairs, each of one feature of both sets. Time: see REPRODUCTION.md.
The paper gives neither sizes nor sparsity of the first model, nor density and rate of the second. It picks its runs;
here the run of levels is, of those that end on levels, the one in which most features jump late, and that of the two
sets, among those within 2 % of the lowest loss, the one whose bundles are most opposed. W starts small in both: large
ones take their levels at once, and begin beyond the first regime.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (fewer seeds, shorter; levels from a large start, at once and without late jumps)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of dynamics: choose quick")
    c = ConfigDict()
    c.experiment = "toy.dynamics"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.records = 400  # W is kept so many times, at equal distances
    c.levels = ConfigDict()  # uniform superposition that ends in digons
    c.levels.n = 40  # features
    c.levels.m = 10  # hidden dimensions
    c.levels.density = 0.35  # 1-S
    c.levels.batch = 1024  # columns per step
    c.levels.init_scale = 0.01  # of Xavier
    c.levels.seeds = 16
    c.levels.steps = 24_000
    c.levels.recipe = recipe(optimizer="adam", lr=3e-3)
    c.sets = ConfigDict()  # two sets of three correlated features in three dimensions
    c.sets.sizes = (3, 3)
    c.sets.m = 3
    c.sets.density = 0.05  # 1-S of a set
    c.sets.points = 1024  # of a Sobol sequence, for each set alone and for both; Gauss-Legendre nodes see an octahedron
    # as worse than what it grows from (at 3 and at 6 a feature), for ReLU bends the loss in six values at once
    c.sets.init_scale = 0.01  # of Xavier
    c.sets.seeds = 32
    c.sets.steps = 12_000
    c.sets.recipe = recipe(optimizer="adam", lr=1e-3)
    if variant == "quick":
        c.records, c.levels.n, c.levels.m, c.levels.batch, c.levels.seeds, c.levels.steps = 100, 20, 5, 256, 4, 1500
        c.levels.init_scale = 1.0
        c.sets.seeds, c.sets.steps, c.sets.points = 8, 4000, 128
        c.sets.recipe.lr = 3e-3
    return c
