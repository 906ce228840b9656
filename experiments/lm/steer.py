"""Steering as a command: model, SAE, latents, strengths, prompts -> a table, a figure, and texts side by side."""

import csv
import io
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from experiments import check, language, latents
from experiments.ledger import Claim
from superpose import plot
from superpose.interp import steer
from superpose.interp.steer import Change
from superpose.lm import text
from superpose.train.progress import say

NAMES = ("feature", "random", "opposite", "shuffled", "other")
"""What is moved: the latents' directions, and controls as large (``steer.controls``)."""
WHERE = {"all": (False, False), "prompt": (False, True), "generated": (True, False)}
"""name -> whether steering starts at, and ends at, the end of the prompt."""


def run(config, key, workdir):
    """Effects on texts by strength, of the latents and of controls; agreement with predictions; texts written."""
    check.whole(config, "judged", "passes", "wanted", "samples", "tokens")
    check.finite(config, "strengths")
    check.not_negative(config, "temperature")
    latents.numbers(config)
    if config.where not in WHERE:
        raise ValueError(f"unknown place {config.where!r} of steering: choose one of {', '.join(WHERE)}")
    if not config.model or not config.sae:
        raise ValueError("name a model and an SAE: --config.model=FOLDER --config.sae=FOLDER")
    try:
        counted = re.compile(config.counts) if config.counts else None
    except re.error as error:
        raise ValueError(f"counts is no regular expression ({error}): {config.counts!r}") from None
    strengths = np.unique(np.append(np.asarray(config.strengths, float), 0.0))
    if len(strengths) < 2:
        raise ValueError(f"strengths must hold a number other than 0, got {config.strengths}")
    if config.rule == "ablate":
        raise ValueError("ablate has no strength to vary: take --config.rule=scale, whose strength 0 is the same")
    model, tokenizer = language.read(config.model)
    sae, model, site, reads = latents.published(config, model)
    corpus = language.corpus(config.corpus)
    language.say_skipped(corpus)
    contexts = text.contexts(corpus, tokenizer, language.context(config, model), bos=config.bos)
    prompts = _prompts(config, model, tokenizer)
    n = len(contexts.tokens)
    contexts = contexts.rows(np.unique(np.linspace(0, n - 1, min(n, config.judged)).astype(int)))
    special = tokenizer.special
    if config.wanted > len(tokenizer.pieces):
        raise ValueError(f"wanted must be at most the {len(tokenizer.pieces)} tokens that exist, got {config.wanted}")
    changes = [Change(int(j), config.rule, 1.0) for j in config.features]
    steered = steer.steering(
        model.config, sae, site, changes, reads=reads, special=special, keep_error=config.keep_error
    )
    largest = latents.largest(config, model, sae, reads, contexts, special)
    if dead := [int(j) for j in config.features if largest[j] <= 0]:
        raise ValueError(f"latent {dead[0]} is silent on all of these texts: give other texts, or another latent")
    units = np.ones(len(changes)) if config.rule == "scale" else largest[list(config.features)]
    if not (np.abs(strengths).max() * np.abs(units).max() < 1e30):
        raise ValueError(
            f"a strength of {np.abs(strengths).max():g}, times a largest activation of {np.abs(units).max():g}, is no "
            "push that a model could take: give smaller strengths"
        )
    direction = jnp.asarray(units, jnp.float32) @ steered.directions  # what is pushed, where latents differ in size
    try:
        votes = np.asarray(steer.logit_weights(model, site, direction[None])[0])
    except ValueError:  # what stands at this site is not written linearly
        votes = _pushed(config, model, sae, site, reads, units, contexts, special)
    wanted = np.argsort(-votes, kind="stable")[: config.wanted]
    rows = {"feature": steered} | steer.controls(steered, jax.random.fold_in(key, 1), np.flatnonzero(largest > 0))
    found = {}
    for name, one in rows.items():
        parts = []
        for strength in strengths:
            say(f"{name} at {strength:g}")
            parts.append(
                steer.effects(
                    model,
                    replace(one, values=jnp.asarray(strength * units, jnp.float32)),
                    contexts,
                    wanted,
                    config.passes,
                )
            )
        found[name] = parts
    nowhere = steer.effects(model, replace(steered, end=jnp.int32(0)), contexts.rows(np.arange(1)), wanted, 1)
    out = {
        "strengths": strengths,
        "wanted_ids": wanted,
        "units": units,
        "votes": votes[wanted],
        "nowhere": np.abs(nowhere.kl).max(),
    }
    out["wanted_words"] = np.array([text.written(tokenizer.pieces[i]) for i in wanted])
    for name, parts in found.items():
        stack = lambda field, parts=parts: np.stack([getattr(p, field) for p in parts])  # noqa: E731
        tokens = stack("tokens").sum(1)
        for field, against in (("kl", None), ("loss", "clean_loss"), ("wanted", "clean_wanted")):
            change = stack(field) - (stack(against) if against else 0)
            out[f"{name}_{field}"] = change.sum(1) / tokens
            out[f"{name}_{field}_spread"] = _spread(change, stack("tokens"))
        for field in ("direct", "gradient"):
            out[f"{name}_{field}_wanted"] = stack(f"{field}_wanted").sum(1) / tokens
            out[f"{name}_{field}"] = np.stack(steer.agreement(stack(field).sum(1), stack("moved").sum(1)), -1)
    return out | _written(config, key, model, tokenizer, steered, strengths, units, counted, prompts)


@jax.jit
def _change(model, pushed, tokens):
    return (model(tokens, edits=pushed.edits()).logits - model(tokens).logits).mean((0, 1))


def _pushed(config, model, sae, site, reads, units, contexts, special):
    """[vocab], by how much logits rise on average for a push of a tenth of the largest activations: the votes of a site
    that writes through a norm or a product. Padding counts as text does."""
    changes = [Change(int(j), "add", 0.1 * float(u)) for j, u in zip(config.features, units, strict=True)]
    pushed = steer.steering(model.config, sae, site, changes, reads=reads, special=special)
    parts = [contexts.tokens[i : i + config.passes] for i in range(0, len(contexts.tokens), config.passes)]
    return np.mean([np.asarray(_change(model, pushed, part)) for part in parts if len(part) == len(parts[0])], 0)


def _spread(values, tokens):
    """[S, 2], 95 % interval of a mean over tokens, contexts drawn anew."""
    weights = np.random.default_rng(0).multinomial(values.shape[1], np.full(values.shape[1], 1 / values.shape[1]), 500)
    drawn = (weights @ values.T) / (weights @ tokens.T)
    return np.percentile(drawn, (2.5, 97.5), axis=0).T


def _prompts(config, model, tokenizer):
    """Token ids of each prompt."""
    if not config.prompts:
        raise ValueError("prompts is empty: give at least one text to go on with; ('',) is the beginning of a text")
    bos = [tokenizer.bos] if config.bos and tokenizer.bos is not None else []
    prompts = [np.array([*bos, *tokenizer.encode(p).ids], np.int32) for p in config.prompts]
    if empty := [p for p, ids in zip(config.prompts, prompts, strict=True) if not len(ids)]:
        raise ValueError(f"the prompt {empty[0]!r} has no token, and the tokenizer no beginning of text: give a prompt")
    if config.where == "prompt" and (unmoved := [p for p, ids in zip(config.prompts, prompts, strict=True)
                                                 if np.isin(ids, tokenizer.special).all()]):  # fmt: skip
        raise ValueError(f"the prompt {unmoved[0]!r} has no token to steer at: give a text, or where=generated or all")
    longest = max(map(len, prompts))
    if longest + config.tokens > model.config.context:
        raise ValueError(
            f"a prompt of {longest} tokens and {config.tokens} written after it are more than the model's context of "
            f"{model.config.context}: shorten the prompt, or lower tokens"
        )
    return prompts


def _written(config, key, model, tokenizer, steered, strengths, units, counted, prompts):
    """Samples [S, prompts, samples], their loss under the clean model, and how much of them ``counts`` matches."""
    width = max(map(len, prompts))
    pad = np.repeat([width - len(p) for p in prompts], config.samples)
    ids = np.repeat(np.stack([np.pad(p, (width - len(p), 0)) for p in prompts]), config.samples, 0)
    at_end, until_end = WHERE[config.where]
    ends = jnp.asarray(width - pad, jnp.int32)
    steered = replace(steered, start=ends if at_end else steered.start, end=ends if until_end else steered.end)
    texts, losses, shares = [], [], []
    for strength in strengths:
        one = replace(steered, values=jnp.asarray(strength * units, jnp.float32))
        new, loss = steer.write(model, one, ids, pad, jax.random.fold_in(key, 2), config.tokens, config.temperature)
        said = [tokenizer.decode(row) for row in np.asarray(new)]
        texts.append(said)
        losses.append(np.asarray(loss))
        shares.append([tokenizer.matched(row, counted).mean() if counted else np.nan for row in np.asarray(new)])
    shape = (len(strengths), len(prompts), config.samples)
    return {
        "texts": np.array(texts).reshape(shape),
        "text_loss": np.array(losses).reshape(shape),
        "text_share": np.array(shares, float).reshape(shape),
    }


def draw(results, config):
    """Dose-response of log-probability and KL beside controls; predicted against observed; what is written."""
    figure, axes = plt.subplots(2, 2, figsize=(12.5, 8.5), dpi=110, layout="constrained")
    x = results["strengths"]
    labels = {
        "feature": "the latents",
        "random": "random direction",
        "opposite": "sign turned",
        "shuffled": "shuffled direction",
        "other": "another latent",
    }
    words = ", ".join(map(repr, map(str, results["wanted_words"])))
    axes[0, 0].set_title(f"votes: {words if len(words) <= 70 else words[:69] + '…'}", fontsize=10)
    for ax, field, what in (
        (axes[0, 0], "wanted", "change of log p of the strongest votes, nats"),
        (axes[0, 1], "kl", "KL(clean || steered), nats a token"),
    ):
        for i, name in enumerate(NAMES):
            y, spread = results[f"{name}_{field}"], results[f"{name}_{field}_spread"]
            style = {"lw": 2, "color": "#3f6fb5"} if name == "feature" else {"lw": 1, "color": f"C{i + 1}"}
            ax.plot(x, y, "o-" if name == "feature" else "--", ms=4, label=labels[name], **style)
            if name == "feature":
                ax.fill_between(x, *spread.T, color=style["color"], alpha=0.2, lw=0)
        ax.set(xlabel="strength, in units of the largest activation", ylabel=what)
        ax.legend(fontsize=8, frameon=False)
    ax = axes[1, 0]
    seen = results["feature_wanted"]
    for kind, colour in (("direct", "#e08a3c"), ("gradient", "#3f6fb5")):
        predicted = results[f"feature_{kind}_wanted"]
        if np.isfinite(predicted).all():
            ax.plot(
                predicted,
                seen,
                "o-",
                ms=4,
                lw=1,
                color=colour,
                label=f"by the {kind} " + ("path" if kind == "direct" else ""),
            )
    ends = [min(seen.min(), 0), max(seen.max(), 0)]
    ax.plot(ends, ends, color="0.6", lw=0.8)
    ax.set(
        xlabel="predicted change of log p", ylabel="observed", title="predicted against observed, one point a strength"
    )
    ax.legend(fontsize=8, frameon=False)
    ax = axes[1, 1]
    ax.plot(
        x, results["text_loss"].mean((1, 2)), "o-", ms=4, color="#c4462f", label="loss of what is written, clean model"
    )
    ax.set(xlabel="strength", ylabel="nats a token", title="what is written")
    if np.isfinite(results["text_share"]).any():
        other = ax.twinx()
        other.plot(x, results["text_share"].mean((1, 2)), "s-", ms=4, color="#3f6fb5")
        other.set_ylabel(f"share of tokens that match {config.counts}", color="#3f6fb5")
    ax.legend(fontsize=8, frameon=False)
    plot.plain(axes.flat)
    figure.suptitle(
        f"Steering latent{'s'[: len(config.features) - 1]} {', '.join(map(str, config.features))} by {config.rule}"
    )
    return {"": figure}


def claims(results, config):
    """The latents' own votes rise with the strength, more than a random direction's of the same size."""
    x, y = results["strengths"], results["feature_wanted"]
    i = int(np.argmax(x))
    slope = lambda name: float(np.polyfit(x, results[f"{name}_wanted"], 1)[0])  # noqa: E731
    perplexity = np.exp(results["text_loss"].mean((1, 2)))
    still = int(np.argmin(np.abs(x)))
    twice = [abs(float(s)) for s, p in zip(x, perplexity, strict=True) if p > 2 * perplexity[still]]
    doubles = f"perplexity of what is written doubles at strength {min(twice):g}" if twice else (
        "perplexity of what is written doubles at none of these strengths"
    )  # fmt: skip
    return [
        Claim(
            "dose-response: rank correlation of strength and log p of the latents' strongest votes",
            "monotonic",
            0.9,
            float(stats.spearmanr(x, y).statistic),
            0.0,
            ">=",
            note=doubles,
        ),
        Claim(
            "steered at no token, nothing changes: KL to the clean model", "exact", 0.0, float(results["nowhere"]), 0.0
        ),
        Claim(
            "log p of the latents' strongest votes rises with the strength (slope, nats per largest activation)",
            "what a feature votes for",
            0.0,
            slope("feature"),
            0.0,
            ">=",
        ),
        Claim(
            "the same slope less that of a random direction as large",
            "control",
            0.0,
            slope("feature") - slope("random"),
            0.0,
            ">=",
            note=f"at {x[i]:g}: latents {y[i]:+.3f}, random {results['random_wanted'][i]:+.3f}",
        ),
    ]


def tables(results, config):
    """The dose-response, and what was written, one column a strength."""
    held = io.StringIO()
    out = csv.writer(held, lineterminator="\n")
    fields = [f"{name}_{field}" for name in NAMES for field in ("wanted", "kl", "loss")]
    predicted = [f"feature_{kind}" for kind in ("direct", "gradient")]
    agreed = [f"{name}_{part}" for name in predicted for part in ("slope", "pearson", "rank")]
    out.writerow(["strength", *fields, "direct_wanted", "gradient_wanted", *agreed, "text_perplexity", "text_share"])
    for i, strength in enumerate(results["strengths"]):
        numbers = [results[f][i] for f in fields]
        numbers += [results["feature_direct_wanted"][i], results["feature_gradient_wanted"][i]]
        numbers += [v for name in predicted for v in results[name][i]]
        numbers += [np.exp(results["text_loss"][i].mean()), results["text_share"][i].mean()]
        out.writerow([f"{strength:g}", *(f"{v:.6g}" for v in numbers)])
    written = io.StringIO()
    out = csv.writer(written, lineterminator="\n")
    strengths = [f"{strength:g}" for strength in results["strengths"]]
    out.writerow(["prompt", "sample", *strengths, *(f"loss at {s}" for s in strengths)])
    for p, prompt in enumerate(config.prompts):
        for s in range(results["texts"].shape[2]):
            losses = [f"{loss:.4f}" for loss in results["text_loss"][:, p, s]]
            out.writerow([prompt, s, *map(str, results["texts"][:, p, s]), *losses])
    return {"": held.getvalue(), "_written": written.getvalue()}
