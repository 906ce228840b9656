"""What an SAE costs its language model: cross-entropy and KL with the reconstruction in the place of a site.

Everything is summed per document, so that intervals come from resampling documents. Two ablations stand beside the SAE,
0 and the mean of the site over other texts: setting a residual to 0 is a catastrophe that makes any SAE look good
(SAEBench and others offer that one alone), and around an MLP both may be close to the clean loss, so that only the
difference in nats says something. Definitions: cross-entropy recovered = (L_ablated - L_sae) / (L_ablated - L_clean),
KL recovered = (KL_ablated - KL_sae) / KL_ablated with KL(clean || spliced), both of sums over tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float, Int

from superpose.lm import sites
from superpose.lm.transformer import next_token_loss


class Totals(NamedTuple):
    """Sums per document.

    Attributes:
        names: what stood at the site; the first is "clean".
        nll: [names, D], sum of -log p(next token) in nats.
        kl: [names, D], sum of KL(clean || spliced) in nats.
        tokens: [D], predictions counted.
    """

    names: tuple[str, ...]
    nll: Float[np.ndarray, "names D"]
    kl: Float[np.ndarray, "names D"]
    tokens: Int[np.ndarray, " D"]


class Score(NamedTuple):
    """One replacement: each field is (value, low, high) of a 95 % interval over documents.

    Attributes:
        loss: mean cross-entropy in nats; delta: that less the clean one; kl: mean KL in nats.
        recovered_zero, recovered_mean: share of the cross-entropy that the ablation costs, recovered.
        kl_zero, kl_mean: the same of the KL.
    """

    loss: tuple[float, float, float]
    delta: tuple[float, float, float]
    kl: tuple[float, float, float]
    recovered_zero: tuple[float, float, float]
    recovered_mean: tuple[float, float, float]
    kl_zero: tuple[float, float, float]
    kl_mean: tuple[float, float, float]


def measure(
    model: Any,
    site: str,
    replacements: Mapping[str, Callable],
    contexts: Any,
    mean: Float[np.ndarray, "..."],
    *,
    reads: str | None = None,
    special: Sequence[int] = (),
    first: int = 0,
    outlier: float | None = None,
    batch: int = 16,
) -> Totals:
    """Cross-entropy and KL of a model whose site is replaced, beside the clean one and both ablations.

    Args:
        model: ``lm.transformer.Transformer``.
        site: what is replaced.
        replacements: name -> function of what stands at ``reads``, [B, T, ...], to what is put at the site. A
            ``jax.tree_util.Partial`` keeps its weights out of the compiled program.
        contexts: ``lm.text.Contexts``.
        mean: of the site over other texts, heads side by side or not.
        reads: the site that replacements see (a transcoder's input); None is ``site``.
        special: ids at which the value stays, and which are not counted as predictions.
        first, outlier: as of ``harvest.Choice``: where the value stays, too, for it was not harvested (norms are
            compared at this site and what is read; a harvest compares all of its sites).
        batch: contexts a pass.

    Raises:
        ValueError: an unknown site, or names that are taken.
    """
    site = sites.resolve(model.config, site)
    reads = site if reads is None else sites.resolve(model.config, reads)
    if taken := {"clean", "zero", "mean"} & replacements.keys():
        raise ValueError(f"a replacement can't be named {', '.join(sorted(taken))}: rename it")
    names = ("clean", "zero", "mean", *replacements)
    functions = tuple(f if isinstance(f, Partial) else Partial(f) for f in replacements.values())
    keep = np.zeros(model.config.vocab, bool)
    keep[list(special)] = True
    documents = int(contexts.documents.max()) + 1
    nll, kl = np.zeros((len(names), documents)), np.zeros((len(names), documents))
    tokens = np.zeros(documents, np.int64)
    for i in range(0, len(contexts.tokens), batch):
        rows = slice(i, i + batch)
        ids, mask, held = contexts.tokens[rows], contexts.mask[rows], contexts.documents[rows]
        missing = batch - len(ids)
        ids, mask = np.pad(ids, ((0, missing), (0, 0))), np.pad(mask, ((0, missing), (0, 0)))
        found, bad = _sums(
            model, functions, jnp.asarray(mean), jnp.asarray(keep), ids, mask, site=site, reads=reads, first=first,
            outlier=outlier,
        )  # fmt: skip
        if int(bad):
            raise ValueError(f"{int(bad)} values put at {site} are NaN or infinite: look into the SAE")
        a, b, n = (np.asarray(x)[..., : len(held)].astype(np.float64) for x in found)
        np.add.at(nll.T, held, a.T)
        np.add.at(kl.T, held, b.T)
        np.add.at(tokens, held, n.astype(np.int64))
    return Totals(names, nll, kl, tokens)


@partial(jax.jit, static_argnames=("site", "reads", "first", "outlier"))
def _sums(model, functions, mean, keep, ids, mask, *, site, reads, first, outlier):
    """Per context: nll and KL [names, B], predictions [B]; and how many values put there are not finite."""
    clean = model(ids, capture={site, reads})
    value, read = clean.captured[site], clean.captured[reads]
    counted = mask & ~keep[ids]
    stays = keep[ids] | (jnp.arange(ids.shape[1]) < first)
    if outlier is not None:
        for seen in {site: value, reads: read}.values():
            norms = jnp.linalg.norm(seen.reshape(*ids.shape, -1).astype(jnp.float32), axis=-1)
            among = jnp.where(mask & ~stays, norms, jnp.nan)
            stays |= norms > outlier * jnp.nanmedian(among, 1, keepdims=True)
    stays = stays.reshape(*ids.shape, *[1] * (value.ndim - 2))
    nll_clean, counts = next_token_loss(clean.logits, ids, counted)
    said = jax.nn.log_softmax(clean.logits[:, :-1])
    mean = mean.reshape(value.shape[2:])
    new = (jnp.zeros_like(value), jnp.broadcast_to(mean, value.shape), *(function(read) for function in functions))
    nll, kl, bad = [jnp.sum(nll_clean * counts, 1)], [jnp.zeros(len(ids))], jnp.int32(0)
    for what in new:
        put = jnp.where(stays, value, what.reshape(value.shape))
        bad += jnp.sum(~jnp.isfinite(put) & mask.reshape(*mask.shape, *[1] * (value.ndim - 2)))
        logits = model(ids, edits={site: lambda v, at, put=put: put}).logits
        loss, _ = next_token_loss(logits, ids, counted)
        other = jax.nn.log_softmax(logits[:, :-1])
        nll.append(jnp.sum(loss * counts, 1))
        kl.append(jnp.sum(jnp.sum(jnp.exp(said) * (said - other), -1) * counts, 1))
    return (jnp.stack(nll), jnp.stack(kl), jnp.sum(counts, 1)), bad


def scores(totals: Totals, key: int = 0, draws: int = 1000) -> dict[str, Score]:
    """Of every replacement (ablations and the clean model included): values and 95 % intervals.

    Args:
        totals: of ``measure``.
        key: seed of the resampling of documents.
        draws: resamplings.

    Raises:
        ValueError: nothing was counted.
    """
    seen = totals.tokens > 0
    nll, kl, tokens = totals.nll[:, seen], totals.kl[:, seen], totals.tokens[seen]
    if not tokens.size:
        raise ValueError("no prediction was counted: the contexts hold fewer than two tokens each")
    weights = np.random.default_rng(key).multinomial(len(tokens), np.full(len(tokens), 1 / len(tokens)), draws)
    weights = np.concatenate([np.ones((1, len(tokens))), weights])  # first all documents once, then the resamplings
    n = weights @ tokens
    loss, divergence = weights @ nll.T / n[:, None], weights @ kl.T / n[:, None]
    of = {name: i for i, name in enumerate(totals.names)}
    zero, mean = of["zero"], of["mean"]

    def spread(values: np.ndarray) -> tuple[float, float, float]:
        low, high = np.percentile(values[1:], (2.5, 97.5))
        return float(values[0]), float(low), float(high)

    def share(numbers: np.ndarray, i: int, base: int) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (numbers[:, base] - numbers[:, i]) / (numbers[:, base] - numbers[:, 0])

    return {
        name: Score(
            spread(loss[:, i]), spread(loss[:, i] - loss[:, 0]), spread(divergence[:, i]), spread(share(loss, i, zero)),
            spread(share(loss, i, mean)), spread(share(divergence, i, zero)), spread(share(divergence, i, mean)),
        )
        for name, i in of.items()
    }  # fmt: skip


# --- baselines --------------------------------------------------------------------------------------------------------


class Moments(NamedTuple):
    """Mean [d] and covariance [d, d] of a site, in float64."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


def moments(rows: Any, site: str) -> Moments:
    """Of an iterator of ``store.Rows``."""
    count = 0
    total: Any = 0.0
    square: Any = 0.0
    for part in rows:
        x = np.asarray(part.values[site], np.float32)
        count += len(x)
        total = total + x.sum(0, dtype=np.float64)
        square = square + (x.T @ x).astype(np.float64)
    if count < 2:
        raise ValueError("moments need at least two rows")
    mean = np.asarray(total / count)
    return Moments(mean, np.asarray(square / count) - np.outer(mean, mean))


def pca(found: Moments, components: int) -> Callable:
    """A replacement: the projection about the mean on the so many components of largest variance."""
    directions = np.linalg.eigh(found.covariance)[1][:, ::-1][:, :components].astype(np.float32)
    return Partial(_project, jnp.asarray(found.mean, jnp.float32), jnp.asarray(directions))


def _project(mean, directions, x):
    flat = x.reshape(*x.shape[:2], -1) - mean
    return ((flat @ directions) @ directions.T + mean).reshape(x.shape)


def top_neurons(k: int) -> Callable:
    """A replacement: of each token's values, the k of largest size stay, the others are 0."""
    return Partial(_largest, k)


def _largest(k, x):
    flat = jnp.abs(x.reshape(*x.shape[:2], -1))
    rank = jnp.argsort(jnp.argsort(-flat, -1), -1)
    return jnp.where((rank < k).reshape(x.shape), x, 0)


def through(sae: Any) -> Callable:
    """A replacement by an SAE: heads are put side by side for it."""
    return Partial(_reconstruct, sae)


def _reconstruct(sae, x):
    return sae(x.reshape(*x.shape[:2], -1))
