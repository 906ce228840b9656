"""Correlated and anticorrelated features (TMS, "Correlated and Anticorrelated Features").

Claim: features that are active together are put at right angles, so that what interferes comes from different sets;
features that exclude each other are put in opposite directions; three correlated pairs form a hexagon in which partners
lie side by side. In larger models correlated sets get local, almost orthogonal bases. Where there is too little room,
partners collapse into one direction, their first principal component: more of them as features grow denser.
Command: python -m experiments.run --config=configs/toy/correlated.py   (also :quick)
Expected: cosines of partners 0, -1 and 0.5; collapsed pairs 3, 2, 1, 0 as 1-S falls. Time: see REPRODUCTION.md.
The paper's text gives neither the sparsity of the three panels nor the size of the larger model.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (fewer seeds, shorter)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of correlated: choose quick")
    c = ConfigDict()
    c.experiment = "toy.correlated"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.density = 0.05  # 1-S of a set, in the three panels
    c.seeds = 32  # models of each panel and of each density
    c.shown = 3  # of them drawn, the best ones
    c.points = 2048  # of a Sobol sequence, for each way in which sets can be on; four times as many to judge
    c.collapse = (0.7, 0.35, 0.18, 0.1, 0.03)  # 1-S of three correlated pairs in two dimensions
    c.bases = ConfigDict()  # the larger model
    c.bases.sizes = (10, 10)  # features of each set
    c.bases.m = 10  # hidden dimensions
    c.bases.density = 0.1  # 1-S of a set
    c.bases.seeds = 4
    c.bases.batch = 512  # columns per step
    c.crowded = ConfigDict()  # correlated sets in so few dimensions that one of them collapses
    c.crowded.sizes = (4, 4, 4)
    c.crowded.m = 3
    c.crowded.density = 0.2
    c.crowded.seeds = 16
    c.steps = 1500
    c.log_every = 250  # steps per chunk
    c.recipe = recipe(
        optimizer="adam",
        lr=1e-2,  # peak
        schedule="cosine",  # to zero
    )
    c.expected_collapsed = (3, -1, 2, 1, 0)  # pairs, per density of ``collapse``; -1: the paper's text is lost there
    if variant == "quick":
        c.seeds, c.points, c.steps, c.log_every, c.bases.seeds, c.bases.batch = 8, 256, 800, 200, 2, 256
        c.collapse, c.expected_collapsed, c.crowded.seeds = (0.7, 0.03), (3, 0), 2
    return c
