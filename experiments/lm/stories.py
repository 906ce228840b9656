"""SAEs on the residual of every layer of stories260K, a small trained Llama, all from one pass over its own stories.

The model (llama2.c, TinyStories) and its tokenizer are files of the user's; its corpus is what it writes itself.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import check, language, latents
from experiments.ledger import Claim
from superpose import plot
from superpose.interp import codes
from superpose.lm import text
from superpose.lm.transformer import generate
from superpose.sae import formats


def _written(config, model, tokenizer, key):
    """Stories that the model writes, each a context."""
    first = tokenizer.bos
    make = jax.jit(
        lambda m, k: generate(m, np.full((config.at_once, 1), first), config.context - 1, k, temperature=1.0)
    )
    parts = [np.asarray(make(model, jax.random.fold_in(key, i))) for i in range(-(-config.stories // config.at_once))]
    tokens = np.concatenate(parts)[: config.stories].astype(np.int32)
    tokens = np.concatenate([np.full((len(tokens), 1), first, np.int32), tokens], 1)
    ends = tokens[:, 1:] == first  # BOS stands between stories: a context ends at the first
    lengths = np.where(ends.any(1), ends.argmax(1) + 1, config.context).astype(np.int32)
    numbers = np.arange(len(tokens), dtype=np.int32)
    return text.Contexts(tokens, lengths, numbers, 0 * numbers, None, tuple(map(str, numbers)))


def run(config, key, workdir):
    """Per layer: L0, explained variance, fidelity beside PCA and the largest values; and how the model writes."""
    check.whole(config, "stories", "at_once", "judged")
    check.whole(config, "context", least=2)
    model, tokenizer = language.read(config.model)
    if config.context > model.config.context:
        raise ValueError(f"context must be at most the model's {model.config.context}, got {config.context}")
    text_key, sae_key = jax.random.split(key)
    whole = _written(config, model, tokenizer, text_key)
    last = whole.documents % config.hold == config.hold - 1
    corpus = text.Corpus("stories that the model writes", lambda: iter(()))
    digest = codes.array_digest(whole.tokens, whole.lengths)
    texts = language.Texts(corpus, digest, tokenizer, language.split(whole, ~last), language.split(whole, last))
    sites = tuple(f"resid_post.{layer}" for layer in range(model.config.layers))
    source = latents.stream(config, model, texts, sites)
    saes, _ = latents.train(config, source, dict.fromkeys(sites, config.kind), sae_key, workdir / "saes", "SAEs")
    out = {"sites": np.array(sites), "stories": np.asarray(len(whole.tokens)), "tokens": whole.lengths.sum()}
    out["digest"] = np.array(digest)
    rows = []
    for site, sae in saes.items():
        about = formats.Metadata(model="stories260K", site=site, context=config.context, prepend_bos=True)
        params = {n: np.asarray(getattr(sae, n)[...]) for n in sae.arch.shapes()}
        formats.write_saelens(workdir / "export" / site, sae.arch, params, about)
        found = latents.scores(config, model, texts, site, {"SAE": sae})
        rows.append(found | latents.spliced(config, model, texts, site, {"SAE": sae}, float(found["l0"][0])))
    out |= {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != "fidelity_names"}
    kinds = ("clean", "zero", "mean", "SAE", "PCA", "largest values")
    words = [tokenizer.decode(row[:n])[:300] for row, n in zip(whole.tokens[:3], whole.lengths[:3], strict=True)]
    return out | {"fidelity_names": np.array(kinds), "written": np.array(words)}


def draw(results, config):
    """Cross-entropy recovered, what splicing costs, and densities, by layer."""
    figure, axes = plt.subplots(1, 3, figsize=(14.5, 4.4), dpi=110, layout="constrained")
    names = [str(n) for n in results["fidelity_names"]]
    shown = ("SAE", "PCA", "largest values")
    for ax, part, title in (
        (axes[0], "recovered_mean", "cross-entropy recovered, of mean ablation"),
        (axes[1], "delta", "cost in nats per token"),
    ):
        values = results[f"fidelity_{part}"]
        plot.interval_bars(ax, [str(site) for site in results["sites"]], {
            name: (values[:, names.index(name)], f"C{k}") for k, name in enumerate(shown)
        })  # fmt: skip
        ax.set_title(title)
    axes[0].set_ylim(0, 1.02)
    axes[1].set_yscale("log")
    axes[0].set_ylim(0, 1.18)
    axes[0].legend(fontsize=8, loc="upper left", ncols=3, frameon=False)
    for i, site in enumerate(results["sites"]):
        density = results["density_SAE"][i]
        said = f"{site}: L0 {results['l0'][i, 0]:.1f}, EV {results['explained_variance'][i, 0]:.2f}"
        axes[2].hist(np.log10(density[density > 0]), bins=np.linspace(-5, 0, 40), histtype="step", label=said)
    axes[2].set(xlabel="log10 of a latent's share of tokens", ylabel="latents", title="densities")
    axes[2].legend(fontsize=7, frameon=False, loc="upper left")
    plot.plain(axes)
    figure.suptitle(
        f"stories260K, {int(results['stories']):,} stories of its own ({results['tokens'] / 1e6:.2f} M tokens); SAEs "
        f"of {config.kind.d_sae} latents on 64 dimensions; 95 % over stories", fontsize=11,
    )  # fmt: skip
    return {"": figure}


def claims(results, config):
    """On every layer the SAE costs less than as many principal components or values."""
    names = [str(n) for n in results["fidelity_names"]]
    delta = {n: results["fidelity_delta"][:, names.index(n), 0] for n in ("SAE", "PCA", "largest values")}
    kept = results["fidelity_recovered_mean"][:, names.index("SAE"), 0]
    worst = np.max(delta["SAE"] / np.minimum(delta["PCA"], delta["largest values"]))
    return [
        Claim("cross-entropy recovered of mean ablation, least of all layers", "reported by SAE papers: 0.9 and above",
              0.9, float(kept.min()), 0.0, ">="),
        Claim("cost in nats over that of as many principal components or values, largest of all layers", "control", 1.0,
              float(worst), 0.0, "<="),
        Claim("explained variance, least of all layers", "sanity", 0.7, float(results["explained_variance"].min()), 0.0,
              ">="),
        Claim("L0 on held-out stories is the k of training (largest relative difference)", "by construction", 0.0,
              float(np.abs(results["l0"] / config.kind.k - 1).max()), 0.15, "<="),
    ]  # fmt: skip
