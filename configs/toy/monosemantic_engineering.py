"""More monosemantic neurons at the same loss (Jermyn, Schiefer, Hubinger 2022, "Engineering Monosemanticity in Toy
Models").

Claims of the paper: networks that start with negative biases, which then decay, end with more monosemantic neurons at
no higher loss; so do those of higher learning rates, and more neurons give more of them.
Command: python -m experiments.run --config=configs/toy/monosemantic_engineering.py   (also :quick and :published)
Expected: no higher losses. More monosemantic neurons of the decoder where neurons are as many as features, and with
more neurons as many as from biases about 0; of |x| not there, but with more. Time: see REPRODUCTION.md.
A first full run had a decay of 0.5. Of |x| the shares from -1 were 0.52 to 0.89 with as many neurons as features and
more, and their claims held, at up to 1.09 times the loss from 0; of the decoder with 512 and 1,024 neurons they were
0.17 and 0.12 below those from 0, at 1.09 and 1.04 times the loss. A decay of 2 and a start at -0.3 were then tried with
512: each ends at a lower loss than the start at 0 (0.98 and 0.99 times), with shares 0.02 lower.
The paper's code trains with LAMB and a cosine that goes up and down; here it is Adam and a cosine to zero, on half the
features and far fewer samples. :published has the sizes, steps (2^17) and batch (2^13) that stand in the names of the
files of its learning_rate_sweep.py, and is not run here; it says its cost before it starts.
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (fewer and shorter runs) and "published" (the paper's sizes)."""
    variant = variant or "full"
    if variant not in ("full", "quick", "published"):
        raise ValueError(f"unknown variant {variant!r} of monosemantic_engineering: choose quick or published")
    c = ConfigDict()
    c.experiment = "toy.monosemantic_engineering"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key
    c.n = 256  # features, each active with probability ``density``
    c.m = 64  # dimensions that a fixed random projection takes them to
    c.density = 1 / 64
    c.neurons = (64, 128, 256, 512, 1024)  # k
    c.tasks = ("decoder", "abs")  # say every feature, or its absolute value
    c.bias = -1.0  # what is added to the biases at the start, beside 0
    c.decay = 2.0  # of negative biases: b (1 - decay lr) in each step of the first half of training
    c.rates = (0.001, 0.003, 0.01)  # learning rates, of the sweep
    c.swept = 512  # k of that sweep
    c.seeds = 2  # models per setting
    c.batch = 256  # columns per step
    c.steps = 8192
    c.log_every = 1024  # steps per chunk
    c.eval_batch = 16_384  # held-out columns
    c.recipe = recipe(
        optimizer="adam",
        lr=3e-3,  # peak
        schedule="cosine",  # to zero
    )
    if variant == "quick":
        c.neurons, c.tasks, c.swept, c.rates, c.seeds, c.steps, c.log_every = (
            (64, 256),
            ("decoder",),
            256,
            (0.01,),
            1,
            2048,
            512,
        )
    if variant == "published":
        c.n, c.batch, c.steps, c.swept, c.decay = 512, 8192, 131_072, 1024, 0.125
        c.neurons = (16, 32, 64, 128, 256, 512, 1024, 2048)
        c.rates = (0.001, 0.003, 0.005, 0.007, 0.01, 0.03)
    return c
