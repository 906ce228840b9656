"""What a page shows of each latent, as plain values: numbers, token ids, and where its examples stand.

An example is a token with those around it. Groups of examples follow Bricken et al. 2023: the 20 largest activations,
random ones from ten intervals of equal width between 0 and the largest, random ones of all, and silent tokens. Every
choice is a function of (seed, latent), so that a page of one latent shows what that of all does, up to rounding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float
from sklearn.manifold import TSNE

from superpose.interp import explain, steer
from superpose.interp.codes import Codes
from superpose.lm import sites
from superpose.lm.text import Contexts
from superpose.lm.transformer import Transformer
from superpose.sae.model import SAE

TOP, INTERVALS, EACH, OTHERS = 20, 10, 5, 5
"""Largest activations; intervals, and random examples of each; random and silent examples."""
NEAR, FAR = 4, 16
"""Tokens either side of an example: shown at once, and on demand."""
BARS = 50
VOTES, TOLD = 10, 5
"""Tokens that a latent votes for and against most; those that one activation of it does."""
WANTED, DOSED = 5, 8
"""Tokens that a latent votes for most whose log-probability is followed in a dose-response, and contexts it is of."""
MAPPED = 100


@dataclass(frozen=True)
class Examples:
    """Tokens that are shown of one latent.

    Attributes:
        rows: [E], of ``Codes``.
        groups: (name, lowest, highest activation, share of the tokens on which the latent is on, share of the sum of
            its activations, first and last example).
        again: [E], whether the token stands in an earlier group already.
    """

    rows: np.ndarray
    groups: list[tuple[str, float, float, float, float, int, int]]
    again: np.ndarray


def _apart(rows: np.ndarray, context: int, most: int) -> np.ndarray:
    """The first of the rows none of which lies among the tokens that another shows at once."""
    chosen: list[int] = []
    for row in rows:
        if all(row // context != r // context or abs(row - r) > NEAR for r in chosen):
            chosen.append(int(row))
            if len(chosen) == most:
                break
    return np.array(chosen, int)


def examples(rows: np.ndarray, values: np.ndarray, kept: np.ndarray, context: int, seed: int, latent: int) -> Examples:
    """Chooses what is shown of one latent.

    Args:
        rows, values: [n], where the latent is on and how much; rows ascend.
        kept: rows of the tokens that were not left out.
        context: tokens a context.
    """
    rng = np.random.default_rng([seed, latent])
    groups: list[tuple] = []
    parts: list[np.ndarray] = []
    total = float(values.sum())

    def add(name: str, low: float, high: float, members: np.ndarray, chosen: np.ndarray) -> None:
        at = sum(map(len, parts))
        share = len(members) / max(len(values), 1)
        mass = float(values[members].sum()) / total if len(members) else 0.0
        groups.append((name, low, high, share, mass, at, at + len(chosen)))
        parts.append(chosen)

    if len(rows):
        most = min(20 * TOP, len(rows))
        loud = np.flatnonzero(values >= np.partition(values, -most)[-most])  # no need to sort the others
        order = loud[np.argsort(-values[loud], kind="stable")]
        top = float(values[order[0]])
        largest = _apart(rows[order[:most]], context, TOP)
        low = float(values[np.searchsorted(rows, largest)].min())
        add("largest", low, top, np.flatnonzero(values >= low), largest)
        place = np.clip((values / top * INTERVALS).astype(int), 0, INTERVALS - 1)
        draw = np.argsort(place + rng.random(len(rows)))
        ends = np.searchsorted(place[draw], np.arange(INTERVALS + 1))
        for i in reversed(range(INTERVALS)):
            members = draw[ends[i] : ends[i + 1]]
            low, high = i / INTERVALS * top, (i + 1) / INTERVALS * top
            add(f"interval {INTERVALS - i}", low, high, members, rows[members[:EACH]])
        add("random", float(values.min()), top, np.arange(len(rows)), rng.choice(rows, min(OTHERS, len(rows)), False))
    some = rng.choice(kept, min(len(kept), 8 * OTHERS), False)
    silent = some[_said(rows, values, some, 0, context)[:, 0] == 0]
    add("silent", 0.0, 0.0, np.zeros(0, int), rng.permutation(silent)[:OTHERS])
    found = np.concatenate(parts)
    _, first = np.unique(found, return_index=True)
    again = np.ones(len(found), bool)
    again[first] = False
    return Examples(found, groups, again)


# --- what taking a latent out does ------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("site", "direct"))
def _without(model, directions, acts, tokens, predicted, at, site, direct):
    """log p of tokens with a latent, without it, and without its direct path [B, P] each; logits it gave at a token.

    Args:
        directions: [B, d]. acts: [B, T], how much of it is taken out at each token.
        predicted: [B, P], places of tokens whose log p is asked for. at: [B], the token whose votes are asked for.
    """
    c = model.config
    last = f"resid_post.{c.layers - 1}"
    away = acts[..., None] * directions[:, None]

    def taken(value, _):
        return value - away.reshape(value.shape).astype(value.dtype)

    clean = model(tokens, capture={"final_norm", last}).captured
    bare = model(tokens, capture={"final_norm"}, edits={site: taken}).captured["final_norm"]
    places = jnp.concatenate([jnp.maximum(predicted - 1, 0), at[:, None]], 1)
    pick = lambda x: jnp.take_along_axis(x, places[..., None], 1)  # noqa: E731
    finals = [pick(clean["final_norm"]), pick(bare)]
    if direct:
        residual = pick(clean[last]).astype(jnp.float32)
        finals.append(model.ln_final(residual - steer.to_residual(model, site, pick(away))))
    logits = [model.unembed(x) for x in finals]
    ids = jnp.take_along_axis(tokens, predicted, 1)
    said = [jnp.take_along_axis(jax.nn.log_softmax(x[:, :-1]), ids[..., None], -1)[..., 0] for x in logits]
    gave = logits[0][:, -1] - logits[1][:, -1]
    gave = gave - gave.mean(-1, keepdims=True)
    up, down = jax.lax.top_k(gave, TOLD), jax.lax.top_k(-gave, TOLD)
    return (*said, *([] if direct else [jnp.full_like(said[0], jnp.nan)])), (up[1], up[0], down[1], -down[0])


class Ablations:
    """What taking latents out of whole texts does near some tokens, later layers run again (Bricken et al. 2023).

    Args:
        site: what the SAE writes.
        batch: examples a pass.
    """

    def __init__(self, model: Transformer, sae: SAE, site: str, contexts: Contexts, batch: int = 32):
        self.model, self.site, self.batch, self.contexts = model, sites.resolve(model.config, site), batch, contexts
        self.directions = np.asarray(sae.W_dec[...], np.float32)
        try:
            steer.to_residual(model, self.site, np.zeros((1, self.directions.shape[1]), np.float32))
            self.direct = True
        except ValueError:
            self.direct = False

    def of(self, latents: np.ndarray, rows: np.ndarray, acts: np.ndarray) -> dict[str, np.ndarray]:
        """Of examples [E]: log p of the tokens near each, ``clean``, ``without`` and ``direct`` [E, 2 NEAR + 1] (NaN
        where none stands or nothing is said before it), and the ``up`` and ``down`` votes [E, TOLD] for what follows.

        Args:
            latents, rows: [E]. acts: [E, C], the latent at every token of the example's context; that is taken out.
        """
        C = self.contexts.tokens.shape[1]
        context, place = np.divmod(rows, C)
        span = np.arange(-NEAR, NEAR + 1)
        near = place[:, None] + span
        there = (near >= 0) & (near < self.contexts.lengths[context][:, None])
        ends = np.minimum(place + NEAR + 1, self.contexts.lengths[context])
        sizes = np.minimum(-(-ends // 32) * 32, C)  # few lengths, each of which is compiled once
        wide = (len(rows), len(span))
        out = {name: np.full(wide, np.nan, np.float32) for name in ("clean", "without", "direct")}
        for name in ("up", "down"):
            out[name] = np.zeros((len(rows), TOLD), np.int64)
            out[f"{name}_by"] = np.zeros((len(rows), TOLD), np.float32)
        for size in np.unique(sizes):
            members = np.flatnonzero(sizes == size)
            for i in range(0, len(members), self.batch):
                chosen = members[i : i + self.batch]
                full = np.resize(chosen, self.batch)
                tokens = self.contexts.tokens[context[full], :size]
                said, votes = _without(
                    self.model, jnp.asarray(self.directions[latents[full]]), jnp.asarray(acts[full][:, :size]),
                    jnp.asarray(tokens), jnp.asarray(np.clip(near[full], 0, size - 1)), jnp.asarray(place[full]),
                    site=self.site, direct=self.direct,
                )  # fmt: skip
                for name, values in zip(("clean", "without", "direct"), said, strict=True):
                    out[name][chosen] = np.asarray(values)[: len(chosen)]
                for name, values in zip(("up", "up_by", "down", "down_by"), votes, strict=True):
                    out[name][chosen] = np.asarray(values)[: len(chosen)]
        for name in ("clean", "without", "direct"):
            out[name][~there | (near < 1)] = np.nan
        return out


# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """What pages are made of.

    Attributes:
        model, sae, site, reads: the SAE of a model: what it writes, and what it reads where that is another site.
        contexts: texts that ``codes`` are of.
        pieces: bytes of each token.
        special, first: tokens left out, as ``codes.write`` was told.
        seed: of the examples.
        labels: of the texts, by which latents may be explained.
        names: latent -> a person's label.
        matches: name of another SAE -> its closest latents to each (``interp.compare``), numbers and correlations,
            [F, k] each.
        found: least correlation at which a latent counts as found there.

    Raises:
        ValueError: the SAE's latents are signed, or it is of other sites.
    """

    model: Transformer
    sae: SAE
    site: str
    contexts: Contexts
    codes: Codes
    pieces: Sequence[bytes]
    reads: str | None = None
    special: tuple[int, ...] = ()
    first: int = 0
    seed: int = 0
    labels: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    matches: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    found: float = 0.7

    def __post_init__(self) -> None:
        if self.sae.arch.activation == "abs_topk":
            raise ValueError(
                "pages show latents that are on or off, and those of this SAE are signed: take another SAE"
            )
        steer.sites_of(self.model.config, self.sae.arch, self.site, self.reads)

    @cached_property
    def tokens(self) -> explain.Tokens:
        return explain.Tokens(self.contexts, self.labels, self.special, self.first, self.pieces)


def _rounded(x: Any, digits: int = 5) -> Any:
    """So many significant digits of each."""
    x = np.asarray(x, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where((x == 0) | ~np.isfinite(x), 0, np.floor(np.log10(np.abs(x))))
    return np.round(x * 10.0 ** (digits - 1 - size)) / 10.0 ** (digits - 1 - size)


def _number(x: Any, digits: int = 5) -> Any:
    """Plain numbers with so many significant digits; NaN becomes None."""
    out = _rounded(x, digits)
    if not out.ndim:
        return float(out) if np.isfinite(out) else None
    plain: Any = out if np.isfinite(out).all() else np.where(np.isfinite(out), out, None)
    return plain.tolist()


def _decimals(x: np.ndarray, digits: int) -> list[list[float | None]]:
    """Plain numbers with so many decimals; NaN becomes None."""
    return [[round(v, digits) + 0.0 if v == v else None for v in row] for row in x.astype(np.float64).tolist()]


def _groups(e: Examples) -> list[list[Any]]:
    """Of each group: name, lowest and highest activation, shares of tokens and of the sum, first and last example."""
    numbers = _number([group[1:5] for group in e.groups])
    return [[group[0], *row, *group[5:]] for group, row in zip(e.groups, numbers, strict=True)]


def _histogram(values: np.ndarray) -> dict[str, Any]:
    """50 bins of equal width between the smallest and the largest value."""
    values = np.asarray(values, np.float64)
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, BARS, (low, max(high, low + 1e-6 * max(1.0, abs(low)))))
    return {"low": _number(low), "high": _number(high), "counts": counts.tolist()}


def records(
    subject: Subject,
    latents: Sequence[int],
    *,
    ablations: Ablations | None = None,
    doses: Sequence[float] = (),
    block: int = 256,
) -> Iterator[dict[str, Any]]:
    """What is shown of each latent, in the order asked for.

    Args:
        ablations: None leaves loss effects and votes out.
        doses: what each latent is clamped to, in units of its largest activation, on some of the texts; none leaves the
            dose-response out.
        block: latents whose activations are read at once.

    Raises:
        ValueError: no latent, or one that the SAE has not.
    """
    asked = np.asarray(latents, int)
    if not len(asked):
        raise ValueError("there is no latent to show: name at least one")
    F, C = subject.codes.latents, subject.contexts.tokens.shape[1]
    if bad := [int(j) for j in asked if not 0 <= j < F]:
        raise ValueError(f"the SAE has no latent {bad[0]}: they are 0 to {F - 1}")
    kept = np.flatnonzero(subject.tokens.keep)
    half = f"the half of the {subject.tokens.halves} that it was not chosen on"
    weights = np.asarray(subject.sae.W_dec[...], np.float32)
    try:
        votes = lambda j: np.asarray(steer.logit_weights(subject.model, subject.site, weights[j]))  # noqa: E731
        votes(asked[:1])
        none = ""
    except ValueError as error:
        votes, none = None, str(error)
    neurons = "units" in subject.codes.about["sites"]
    for start in range(0, len(asked), block):
        some = asked[start : start + block]
        held = subject.codes.columns(some)
        why = explain.explain(held, subject.tokens)
        logits = None if votes is None else votes(some)
        close = subject.codes.unit_correlations(some) if neurons else None
        chosen = []
        for i, j in enumerate(some):
            where = slice(held.indptr[i], held.indptr[i + 1])
            rows, values = held.indices[where], held.data[where]
            chosen.append((rows, values, examples(rows, values, kept, C, subject.seed, int(j))))
        effects = None
        if ablations is not None:
            every = np.concatenate([e.rows for _, _, e in chosen])
            which = np.concatenate([np.full(len(e.rows), j) for j, (_, _, e) in zip(some, chosen, strict=True)])
            whole = np.concatenate([_context(rows, values, e.rows // C, C) for rows, values, e in chosen])
            effects = ablations.of(which, every, whole)
        at = 0
        for i, (j, (rows, values, e)) in enumerate(zip(some, chosen, strict=True)):
            part = None if effects is None else {k: v[at : at + len(e.rows)] for k, v in effects.items()}
            at += len(e.rows)
            record = _record(
                subject, int(j), rows, values, e, part, len(kept), None if logits is None else logits[i],
                None if close is None else tuple(part[i] for part in close),
            )  # fmt: skip
            record["why"] = {"text": str(why.text[i]), "kind": str(why.kind[i]), "of": half} | {
                name: _number(getattr(why, name)[i]) for name in ("f1", "precision", "recall", "auroc")
            }
            if record["why"]["recall"] is None:  # the latent is silent in one of the halves
                record["why"]["f1"] = None
            elif why.members[i] > explain.SHOWN:
                record["why"]["named_f1"] = _number(why.named_f1[i])
            if votes is None:
                record["no_votes"] = none
            if j in subject.names:
                record["name"] = subject.names[int(j)]
            if len(doses) and logits is not None and len(rows):
                wanted = np.argsort(-logits[i], kind="stable")[:WANTED]
                record["dose"] = _dose(subject, int(j), float(values.max()), doses, wanted)
            yield record


def _dose(subject: Subject, j: int, top: float, doses: Sequence[float], wanted: np.ndarray) -> dict[str, Any]:
    """Change of log p of the latent's strongest votes, and KL to the clean model, a token, by what it is clamped to."""
    n = len(subject.contexts.tokens)
    some = subject.contexts.rows(np.unique(np.linspace(0, n - 1, min(n, DOSED)).astype(int)))
    steered = steer.steering(
        subject.model.config, subject.sae, subject.site, [steer.Change(j)], reads=subject.reads, special=subject.special
    )
    found = []
    for dose in doses:
        moved = replace(steered, values=jnp.asarray([dose * top], jnp.float32))
        e = steer.effects(subject.model, moved, some, wanted, DOSED, ranks=False)
        found.append(((e.wanted - e.clean_wanted).sum() / e.tokens.sum(), e.kl.sum() / e.tokens.sum()))
    return {"strengths": [float(d) for d in doses], "wanted": _number([w for w, _ in found]),
            "kl": _number([k for _, k in found])}  # fmt: skip


def places(directions: Float[ArrayLike, "n d"], seed: int = 0) -> tuple[np.ndarray, str]:
    """Directions on a map [n, 2], and what the map is in words: t-SNE of their cosines, or the two principal components
    of fewer than ``MAPPED``."""
    x = np.asarray(directions, np.float32)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    if len(x) < MAPPED:
        u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
        found = np.pad(u[:, :2] * s[:2], ((0, 0), (0, max(0, 2 - len(s)))))
        return found, "Decoder directions, of unit length, by their first two principal components."
    found = TSNE(metric="cosine", init="random", random_state=seed, perplexity=20, max_iter=500).fit_transform(x)
    return (
        found,
        "Decoder directions by t-SNE of their cosines: near ones are alike, distances between groups say little.",
    )


def _said(rows: np.ndarray, values: np.ndarray, at: np.ndarray, reach: int, context: int) -> np.ndarray:
    """[E, 2 reach + 1], what a latent says near some tokens; 0 beyond their contexts."""
    wanted = at[:, None] + np.arange(-reach, reach + 1)
    inside = wanted // context == (at // context)[:, None]
    if not len(rows):
        return np.zeros(wanted.shape, np.float32)
    place = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
    return np.where(inside & (rows[place] == wanted), values[place], 0).astype(np.float32)


def _context(rows: np.ndarray, values: np.ndarray, contexts: np.ndarray, size: int) -> np.ndarray:
    """[E, size], what a latent says at every token of some contexts."""
    out = np.zeros((len(contexts), size), np.float32)
    for i, c in enumerate(contexts):
        start, end = np.searchsorted(rows, (c * size, (c + 1) * size))
        out[i, rows[start:end] - c * size] = values[start:end]
    return out


def _record(subject, j, rows, values, e, effects, tokens, logits, close) -> dict[str, Any]:
    C = subject.contexts.tokens.shape[1]
    out: dict[str, Any] = {
        "n": j, "on": len(rows), "density": _number(len(rows) / tokens),
        "max": _number(values.max()) if len(rows) else 0.0, "mean": _number(values.mean()) if len(rows) else 0.0,
    }  # fmt: skip
    if len(rows):
        out["histogram"] = _histogram(values)
    if logits is not None:
        order = np.argsort(logits, kind="stable")
        for name, ids in (("negative", order[:VOTES]), ("positive", order[::-1][:VOTES])):
            out[name] = [ids.tolist(), _number(logits[ids])]
        out["votes"] = _histogram(logits)
    direction = np.asarray(subject.sae.W_dec[j], np.float32)
    if subject.site.startswith("mlp_post"):
        large = np.argsort(-np.abs(direction), kind="stable")[:3]
        share = np.abs(direction[large]) / max(np.abs(direction).sum(), 1e-30)
        out["weights"] = [large.tolist(), _number(direction[large]), _number(share)]
    if close is not None and len(rows):
        r, cosine = close
        large = np.argsort(-r, kind="stable")[:3]
        out["neurons"] = [large.tolist(), _number(r[large]), _number(cosine[large])]
    out["others"] = {
        name: [number[j][number[j] >= 0].tolist(), _number(score[j][number[j] >= 0])]
        for name, (number, score) in subject.matches.items()
    }
    if subject.matches:
        out["found"] = [
            sum(bool(score[j, 0] >= subject.found) for _, score in subject.matches.values()),
            len(subject.matches),
        ]
    out["groups"] = _groups(e)
    context, place = np.divmod(e.rows, C)
    left = np.minimum(place, FAR)
    right = np.minimum(subject.contexts.lengths[context] - 1 - place, FAR)
    acts = _rounded(_said(rows, values, e.rows, FAR, C))
    out["examples"] = {
        "context": context.tolist(), "place": place.tolist(),
        "start": subject.contexts.starts[context].tolist(),
        "document": subject.contexts.documents[context].tolist(),
        "at": left.tolist(), "again": e.again.astype(int).tolist(),
        "ids": [subject.contexts.tokens[c, p - a : p + b + 1].tolist()
                for c, p, a, b in zip(context, place, left, right, strict=True)],
        "acts": [row[FAR - a : FAR + b + 1].tolist() for row, a, b in zip(acts, left, right, strict=True)],
    }  # fmt: skip
    if effects is not None:
        out["examples"]["clean"] = _decimals(effects["clean"], 4)
        for name, of in (("effect", "without"), ("direct", "direct")):
            out["examples"][name] = _decimals(effects["clean"] - effects[of], 5)
        for name in ("up", "down"):
            out["examples"][name] = [effects[name].tolist(), _number(effects[f"{name}_by"])]
        largest = e.groups[0][6] if len(rows) else 0
        change = effects["clean"][:largest] - effects["without"][:largest]
        with np.errstate(invalid="ignore"):
            out["effect"] = _number(np.nanmean(change)) if np.isfinite(change).any() else None
    return out
