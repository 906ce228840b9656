"""Phase diagrams (TMS, "Superposition as a Phase Change"): what becomes of one extra feature.

Claim: not represented, in superposition or a dimension of its own, with first-order changes between them; theory
(the best of a few written-down solutions) gives the same map. The paper: 10 models a cell, the worst dropped, the rest
averaged; it names neither grid resolution nor recipe. We add the best-of map, and take the expectation exactly.
Command: python -m experiments.run --config=configs/toy/phase_diagram.py   (also :n3m2, :nobias, :quick)
Expected: triple point at importance 1, 1-S = 4/7; superposition from importance 2p/(4-5p) to its inverse (n=2, m=1).
Time: see REPRODUCTION.md.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" (n=2, m=1), "n3m2" (n=3, m=2), "nobias" (n=2, m=1), "quick" (n=2, m=1 on a coarse grid)."""
    variant = variant or "full"
    if variant not in ("full", "n3m2", "nobias", "quick"):
        raise ValueError(f"unknown variant {variant!r} of phase_diagram: choose n3m2, nobias or quick")
    c = ConfigDict()
    c.experiment = "toy.phase_diagram"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 2  # features; all but the last have importance 1
    c.m = 1  # hidden dimensions
    c.bias = True  # whether the models have a bias
    c.cells = 64  # per axis, both log-spaced
    c.importance = (0.1, 10.0)  # of the last feature, relative to the others
    c.density = (0.01, 1.0)  # 1-S
    c.models = 10  # per cell; pairs of them start mirrored
    c.nodes = 8  # quadrature nodes per feature in training
    c.eval_nodes = 32  # and for the loss of each cell's best model
    c.steps = 250
    c.log_every = 50  # steps per chunk
    c.block = 256  # members per vmapped block
    c.recipe = recipe(
        optimizer="adam",
        lr=0.05,  # peak
        schedule="cosine",  # to zero
        b2=0.95,  # a short run: 0.999 would remember its first, large gradients to the end
    )
    # of the exact optimum: rows (1-S, outcome at each of these importances; 0 dropped, 1 superposed, 2 dedicated), and
    # (1-S, importance, loss), (1-S, importance, W up to its sign); -1 where equal features may change places
    c.expected_at = (0.1, 0.2, 0.35, 0.6, 1.0, 1.8, 3.2, 10.0)
    c.expected = (
        (1.0, 0, 0, 0, 0, -1, 2, 2, 2),
        (0.7, 0, 0, 0, 0, -1, 2, 2, 2),
        (0.57, 0, 0, 0, 0, 1, 2, 2, 2),
        (0.5, 0, 0, 0, 1, 1, 1, 2, 2),
        (0.3, 0, 0, 1, 1, 1, 1, 1, 2),
        (0.1, 1, 1, 1, 1, 1, 1, 1, 1),
        (0.03, 1, 1, 1, 1, 1, 1, 1, 1),
        (0.01, 1, 1, 1, 1, 1, 1, 1, 1),
    )
    c.expected_losses = (
        (1.0, 1.0, 0.0831), (0.7, 1.0, 0.1080), (0.57, 1.0, 0.0931), (0.5, 1.0, 0.0762), (0.3, 1.0, 0.0293),
        (0.1, 1.0, 0.00332), (0.03, 1.0, 3.0e-4), (0.01, 1.0, 3.33e-5),
    )  # fmt: skip
    c.expected_optima = (
        (0.5, 1.0, 0.97, -0.97), (0.57, 1.0, 0.90, -0.90), (0.7, 1.0, 0.76, -0.76), (0.9, 1.0, 0.40, -0.93),
        (1.0, 1.0, 0.94, 0.35),
    )  # fmt: skip
    if variant == "nobias":
        c.bias = False
        c.expected = ()
        c.expected_losses = ((0.57, 1.0, 0.1050), (0.7, 1.0, 0.1107), (0.9, 1.0, 0.0974), (1.0, 1.0, 0.0832))
        c.expected_optima = ((0.57, 1.0, 1.05, -1.06), (0.7, 1.0, 0.707, 0.707), (0.9, 1.0, 0.707, 0.707))
    if variant == "n3m2":
        c.n, c.m, c.nodes, c.eval_nodes = 3, 2, 5, 16
        c.expected = (
            (1.0, 0, 0, 0, 0, -1, 2, 2, 2),
            (0.57, 0, 0, 0, 0, -1, 2, 2, 2),
            (0.5, 0, 0, 0, 1, -1, 2, 2, 2),
            (0.3, 0, 0, 1, 1, -1, 2, 2, 2),
            (0.1, 1, 1, 1, 1, -1, 2, 2, 2),
            (0.03, 1, 1, 1, 1, -1, 2, 2, 2),
        )
        c.expected_losses = ((0.3, 0.35, 0.0192), (0.3, 1.8, 0.0293), (0.3, 10.0, 0.0293))
        c.expected_optima = ()
    if variant == "quick":
        c.cells, c.block, c.expected, c.expected_losses, c.expected_optima = 16, 64, (), (), ()
    return c
