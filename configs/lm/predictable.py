"""Do interventions do what the feature says? Effects of steering, predicted before they are measured.

Claim: small pushes do what the derivative says, large ones still rank the tokens so; pushes in other directions do not.
Command: python -m experiments.run --config=configs/lm/predictable.py   (also :scripts and :quick)
The model is that of one_layer.py (:scripts: scripts.py). Time: REPRODUCTION.md.
"""

from ml_collections import ConfigDict

from configs.lm import monosemantic

PYTHON = (("comment", r"#[^\n]*"), ("string", r"(?<!\w)(?:'[^'\n]*'|\"[^\"\n]*\")"))
SCRIPTS = (
    ("Arabic", r"[\u0600-\u06ff]+(?: +[\u0600-\u06ff]+)*"), ("Hebrew", r"[\u0590-\u05ff]+(?: +[\u0590-\u05ff]+)*"),
    ("hex", r"\b[0-9a-f]{8,}\b"),
)  # fmt: skip


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "scripts", "quick" (see ``monosemantic.subject``)."""
    variant = variant or "full"
    if variant not in ("full", "scripts", "quick"):
        raise ValueError(f"unknown variant {variant!r} of predictable: choose scripts or quick")
    c = monosemantic.subject(variant, "predictable")
    c.tried, c.contexts = 12, 8  # latents of each SAE, of all densities; contexts that each is pushed on
    c.strengths = (-1.0, -0.1, 0.1, 0.5, 1.0, 2.0)  # of a latent's largest activation
    c.wanted = 5  # tokens that a latent votes for most, whose log-probability is followed
    c.patterns = SCRIPTS if variant == "scripts" else PYTHON  # labels, and what text that carries them looks like
    c.pushes = (0.5, 1.0, 2.0, 4.0)  # what a label's latent is clamped to while writing
    c.samples, c.tokens, c.temperature = 32, 80, 0.8
    if variant == "quick":
        c.tried, c.contexts, c.strengths, c.pushes = 4, 4, (0.1, 1.0), (1.0,)
        c.samples, c.tokens = 2, 12
    return c
