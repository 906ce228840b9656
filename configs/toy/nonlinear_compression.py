"""Two numbers in one by quantising one of them (TMS, appendix "Nonlinear Compression").

Claim: with steep pieces of width up to 0.1 for the jumps, and as few as 3 levels, the mean squared error is below that
of linear compression; we add how often gradient descent finds such a code.
Command: python -m experiments.run --config=configs/toy/nonlinear_compression.py   (also :quick)
Expected: errors below 1/12 at 3 levels; that at most half of the networks trained get there was
claimed, and all do (what code they learn is drawn). Time: see REPRODUCTION.md.
The paper does not say where a steep piece lies nor what its width is measured in: here its middle is where the jump
was, and widths are those of x and t; the claim is checked for widths in periods, too.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "quick" (fewer and smaller networks)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of nonlinear_compression: choose quick")
    c = ConfigDict()
    c.experiment = "toy.nonlinear_compression"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.levels = (2, 3, 4, 5, 8)  # Z
    c.widest = 0.2  # of steep pieces, epsilon
    c.widths = 41  # values of epsilon from 0 to ``widest``
    c.side = 1000  # midpoints along x and along y at which the error is taken
    c.neurons = (2, 4, 8, 18, 36)  # of a trained network, on each side of t
    c.seeds = 16  # networks of each size
    c.batch = 512  # pairs per step
    c.steps = 8000
    c.log_every = 500  # steps per chunk
    c.eval_batch = 65_536  # held-out pairs
    c.recipe = recipe(
        optimizer="adam",
        lr=1e-2,  # peak
        schedule="cosine",  # to zero
    )
    if variant == "quick":
        c.side, c.neurons, c.seeds, c.batch, c.steps, c.eval_batch = 200, (2, 18), 4, 256, 1000, 4096
    return c
