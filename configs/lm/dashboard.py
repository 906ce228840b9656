"""Dashboards: what each latent of an SAE is on for, votes for and does, as one HTML file that needs no network.

Command: python -m experiments.run --config=configs/lm/dashboard.py --config.model=MODEL --config.sae=SAE
--config.corpus.kind=files --config.corpus.path=TEXTS   (also :quick)
Model and SAE may be downloaded ones, or those that one_layer.py and scripts.py leave in their work directories (model/,
export/). Pages go to --config.page; codes (the sparse activations) and finished features stay in the work
directory, and a run that was stopped goes on with them.
"""

from ml_collections import ConfigDict

from configs import corpus


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "quick" (few texts, few latents)."""
    variant = variant or "full"
    if variant not in ("full", "quick"):
        raise ValueError(f"unknown variant {variant!r} of dashboard: choose quick")
    c = ConfigDict()
    c.experiment = "lm.dashboard"  # module under experiments/
    c.variant = variant
    c.seed = 0  # of the run's one key, and of the examples
    c.model = ""  # folder or file
    c.sae = ""  # of one of its sites, in any format that superpose.sae.formats reads
    c.site, c.reads = "", ""  # what it writes and reads; "" is what its file says
    c.others = ()  # other SAEs of the same site, by path: matches, and the badge
    c.corpus = corpus(kind="files")
    c.context, c.bos = 0, True  # tokens a context; 0 is 128, or what the model takes
    c.tokens = 1_000_000  # stop after the document in which so many are reached; 0 reads all
    c.passes = 32  # contexts a pass
    c.features = ()  # latents shown; none is all
    c.best = 0  # so many instead: for each of some labels of the texts the latent that is the best detector of it
    c.ablations = True  # take latents out of their examples, later layers run again
    c.doses = (-1.0, 0.0, 1.0, 2.0, 4.0)  # strengths of steering, in units of the largest activation; () leaves it out
    c.prompts = ()  # texts of your own whose tokens are shown with their features; none takes some of the corpus
    c.judge = ""  # "package.module:function", (explanation, texts) -> 0 to 1 each: scores detection and fuzzing
    c.labels = ""  # a file {"17": "a label"}
    c.codes = ""  # a folder for the sparse activations, that other runs read again; "" is in the work directory
    c.page = ""  # name of the page; "" is dashboard.html in the work directory
    c.neuronpedia = ""  # a folder for Neuronpedia's JSON
    c.title = ""
    if variant == "quick":
        c.tokens, c.passes, c.features = 20_000, 8, (0, 1, 2, 3, 4, 5, 6, 7)
    return c
