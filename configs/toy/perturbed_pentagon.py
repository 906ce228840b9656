"""One feature of a pentagon is made rarer or less important (TMS, "Non-Uniform Superposition").

Claim: five features in two dimensions form a pentagon. As one of them becomes denser the others move away from it; as
it becomes sparser, the pentagon deforms until two digons without that feature are cheaper: the losses of the two
solutions cross, and the change is first-order. The paper says at about 2.5 times sparser and gives no base density but
0.05 (1-S); its exact losses cross at 3.7 times there.
Command: python -m experiments.run --config=configs/toy/perturbed_pentagon.py   (also :quick)
Expected: crossing at a relative density of 0.266. Time: see REPRODUCTION.md.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (fewer densities, shorter)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of perturbed_pentagon: choose quick")
    c = ConfigDict()
    c.experiment = "toy.perturbed_pentagon"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 5  # features; the first one is varied
    c.m = 2  # hidden dimensions
    c.density = 0.05  # 1-S of the others
    c.relative = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0)  # of the varied one
    c.bases = (0.01, 0.08, 0.1, 0.12, 0.16, 0.2, 0.24)  # other densities at which the crossing is looked for
    c.nodes = (32, 16, 8, 6, 4)  # quadrature nodes for 1 to 5 active features; twice as many to judge
    c.steps = 2500
    c.log_every = 250  # steps per chunk
    c.seeds = 16  # runs from random starts, on samples
    c.batch = 512  # their columns per step
    c.nudge = 1e-3  # standard deviation of what is added to the two solutions at the start
    c.recipe = recipe(
        optimizer="adam",
        lr=1e-2,  # peak
        schedule="cosine",  # to zero
    )
    # relative density -> loss (1e-3) of the pentagon, and of two digons without the varied feature
    c.expected_pentagon = ((0.2, 5.54), (0.3, 6.31), (0.4, 6.86), (0.5, 7.30), (0.6, 7.68), (0.8, 8.34), (1.0, 8.91),
                           (1.5, 10.14), (2.0, 11.22), (3.0, 13.15))  # fmt: skip
    c.expected_digons = ((0.2, 4.97), (0.3, 6.61), (0.4, 8.23), (0.5, 9.84), (0.6, 11.44), (0.8, 14.60), (1.0, 17.70))
    c.expected_crossings = ((0.01, 0.156), (0.05, 0.266), (0.08, 0.360), (0.1, 0.427), (0.12, 0.496))  # by base density
    # 1-S, all five equal -> losses (1e-3) of the pentagon and of the digons
    c.expected_equal = ((0.05, 8.91, 17.70), (0.1, 26.3, 37.5), (0.16, 56.0, 63.8), (0.2, 79.7, 82.9))
    if variant == "quick":
        c.relative, c.bases = (0.2, 0.3, 0.5, 1.0, 2.0), (0.1,)
        c.nodes, c.steps, c.log_every, c.seeds = (12, 6, 4, 3, 2), 600, 100, 4
        c.expected_crossings = ((0.05, 0.266),)
    return c
