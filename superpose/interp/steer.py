"""Interventions on the latents of an SAE inside a language model, and what they are predicted to do.

With h what stands at a site, f the latents and d_i their directions (rows of W_dec), latents are moved from f to c by

    h' = h + sum_i (c_i - f_i) d_i,

which is decode(c) + (h - decode(f)): what the SAE does not explain stays, and nothing need be decoded. f is always that
of the same pass, so that several changes do not see each other. A transcoder reads one site and writes another of the
same layer; h then is what stands at the one that it writes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from superpose.lm import sites
from superpose.lm.transformer import At, Config, Transformer, generate, next_token_loss
from superpose.sae.model import SAE, Architecture

RULES: dict[str, Callable] = {
    "add": lambda f, along, value: value,
    "clamp": lambda f, along, value: value - f,
    "floor": lambda f, along, value: jnp.maximum(value - f, 0),
    "scale": lambda f, along, value: (value - 1) * f,
    "ablate": lambda f, along, value: -f,
    "replace": lambda f, along, value: value - along,
}
"""name -> (latent, coefficient of h along the direction, value) -> how far h moves, in units of the direction.

``clamp`` sets the latent to the value, ``floor`` to at least the value, ``scale`` to a multiple of itself, ``ablate``
to 0; ``replace`` takes all of h along the direction out, whether the latent says so or not, and puts the value there.
"""


class Change(NamedTuple):
    """What is done to one latent.

    Attributes:
        latent: its number.
        rule: a row of ``RULES``.
        value: in units of the latent; not read by ``ablate``.
        given: a latent that must be above ``above`` at a token for the change to be made there; None makes it always.
    """

    latent: int
    rule: str = "clamp"
    value: float = 0.0
    given: int | None = None
    above: float = 0.0


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("sae", "directions", "latents", "values", "given", "above", "start", "end", "spared"),
    meta_fields=("site", "reads", "rules", "keep_error"),
)
@dataclass(frozen=True)
class Steering:
    """Changes at a site, made by ``steering``. A pytree: strengths and directions change without compiling anew.

    Attributes:
        sae: what reads ``reads`` and writes ``site``.
        directions: [n, d], what is added for each change; rows of W_dec, or a control in their place.
        latents: [n].
        values: [n], or [B, n] for a batch whose rows differ.
        given, above: [n], -1 where a change depends on no latent.
        start, end: positions [start, end) of the text are steered; scalars or one for each row.
        spared: ids of tokens at which nothing is done.
        rules: a row of ``RULES`` for each.
        keep_error: whether what the SAE does not explain stays. If not, steered positions become decode(c).
    """

    sae: SAE
    site: str
    reads: str
    directions: Any
    latents: Any
    values: Any
    given: Any
    above: Any
    start: Any
    end: Any
    spared: Any
    rules: tuple[str, ...]
    keep_error: bool

    def edits(self) -> dict[str, Callable]:
        """For a pass of ``lm.transformer.Transformer`` and for ``generate``."""
        if self.reads == self.site:
            return {self.site: lambda value, at: self._changed(value, value, at)}
        seen: list[Any] = []

        def look(value: Any, at: At) -> Any:
            seen.append(value)
            return value

        return {self.reads: look, self.site: lambda value, at: self._changed(value, seen.pop(), at)}

    def covers(self, at: At) -> Bool[Array, "B T"]:
        """Which tokens are steered, conditions left aside."""
        column = lambda x: jnp.reshape(x, (-1, 1))  # noqa: E731
        inside = (at.positions >= column(self.start)) & (at.positions < column(self.end)) & (at.positions >= 0)
        return inside & ~jnp.isin(at.tokens, self.spared)

    def _changed(self, value: Any, read: Any, at: At) -> Any:
        h, x = (a.reshape(*a.shape[:2], -1).astype(jnp.float32) for a in (value, read))
        on = self.covers(at)
        acts = self.sae.encode(x)
        base = h if self.keep_error else jnp.where(on[..., None], self.sae(x), h)
        moved = self._moved(acts, base)
        return (base + jnp.where(on[..., None], moved, 0.0)).reshape(value.shape)

    def _moved(self, acts: Float[Array, "B T F"], h: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        f = acts[..., self.latents]
        size = jnp.sum(self.directions**2, -1)
        along = (h @ self.directions.T) / jnp.where(size > 0, size, 1.0)
        values = jnp.broadcast_to(self.values[..., None, :] if jnp.ndim(self.values) == 2 else self.values, f.shape)
        parts = [RULES[rule](f[..., i], along[..., i], values[..., i]) for i, rule in enumerate(self.rules)]
        goes = (self.given < 0) | (acts[..., self.given] > self.above)
        return jnp.where(goes, jnp.stack(parts, -1), 0.0) @ self.directions


def sites_of(config: Config, arch: Architecture, site: str, reads: str | None = None) -> tuple[str, str]:
    """The sites that an SAE of a model writes and reads, by the names that ``lm.sites`` has for them.

    Args:
        site, reads: as of ``steering``.

    Raises:
        ValueError: an unknown site, another width than the SAE's, or a transcoder that reads after it writes.
    """
    site = sites.resolve(config, site)
    reads = site if reads is None else sites.resolve(config, reads)
    for name, width, what in ((reads, arch.d_in, "reads"), (site, arch.out, "writes")):
        if sites.width(config, name) != width:
            raise ValueError(
                f"the SAE {what} {width} numbers and {name} has {sites.width(config, name)}: it is of another site or "
                "model"
            )
    if reads != site:
        order = sites.names(config)
        if reads.split(".")[-1] != site.split(".")[-1] or order.index(reads) > order.index(site):
            raise ValueError(f"a transcoder must read before it writes, in one layer: it reads {reads}, writes {site}")
    return site, reads


def steering(
    config: Config,
    sae: SAE,
    site: str,
    changes: Sequence[Change],
    *,
    reads: str | None = None,
    start: Any = 0,
    end: Any = None,
    special: Sequence[int] = (),
    keep_error: bool = True,
) -> Steering:
    """Changes to latents of an SAE of a model.

    Args:
        config: of the model.
        sae: for inference.
        site: what it writes.
        changes: all of them are made at once.
        reads: what a transcoder reads; it must stand before ``site`` in the same layer.
        start, end: positions that are steered, numbers or one for each row; None is no end. The prompt alone is
            end=its length, what is generated start=its length.
        special: ids of tokens that are left alone.
        keep_error: see ``Steering``.

    Raises:
        ValueError: no change, an unknown rule or site, an SAE of another width, a latent that it has not or that is
            changed twice (but by ``add``), or a value that is not finite.
    """
    if not changes:
        raise ValueError("there is nothing to steer: give at least one change")
    site, reads = sites_of(config, sae.arch, site, reads)
    for change in changes:
        if change.rule not in RULES:
            raise ValueError(f"unknown rule {change.rule!r}: choose one of {', '.join(RULES)}")
        for latent in (change.latent, *([] if change.given is None else [change.given])):
            try:
                index(latent)
            except TypeError:
                raise ValueError(f"a latent is named by a whole number, got {latent!r}") from None
            if not 0 <= latent < sae.arch.d_sae:
                raise ValueError(f"the SAE has no latent {latent}: they are 0 to {sae.arch.d_sae - 1}")
        if not (np.isfinite(change.value) and abs(change.value) < 1e30):
            raise ValueError(f"the value for latent {change.latent} must be finite and below 1e30, got {change.value}")
        if change.given is not None and np.isnan(change.above):
            raise ValueError(f"what latent {change.given} must be above is no number: give one, as above=0.0")
    for i, change in enumerate(changes):
        twice = [c for c in changes[:i] if c.latent == change.latent and "add" not in (c.rule, change.rule)]
        if any(None in (c.given, change.given) or c.given == change.given for c in twice):
            raise ValueError(
                f"latent {change.latent} is changed twice at the same tokens, by {twice[0].rule} and {change.rule}: "
                "give one change of it, for none sees what another did"
            )
    latents = jnp.array([int(c.latent) for c in changes])
    return Steering(
        sae, site, reads, sae.W_dec[...][latents].astype(jnp.float32), latents,
        jnp.array([c.value for c in changes], jnp.float32),
        jnp.array([-1 if c.given is None else c.given for c in changes]),
        jnp.array([c.above for c in changes], jnp.float32), jnp.asarray(start, jnp.int32),
        jnp.asarray(np.iinfo(np.int32).max if end is None else end, jnp.int32),
        jnp.asarray([*special] or [-1], jnp.int32), tuple(c.rule for c in changes), keep_error,
    )  # fmt: skip


def controls(steered: Steering, key: jax.Array, live: Any) -> dict[str, Steering]:
    """The same changes along other directions, as large: what any push of this size does.

    ``random`` takes random directions, ``opposite`` the same with their sign turned, ``shuffled`` the entries of the
    same directions in another order, ``other`` those of random live latents, all with the norms of the real ones. How
    far h moves is still read from the real latents (of the rule ``replace``: from h along the direction that is moved).

    Args:
        live: numbers of latents that fire; those that are steered are not taken.

    Raises:
        ValueError: there are too few live latents.
    """
    d, n = steered.directions, len(steered.rules)
    others = np.setdiff1d(np.asarray(live), np.asarray(steered.latents))
    if len(others) < n:
        raise ValueError(f"there are {len(others)} other live latents to compare with, and {n} are steered")
    first, second, third = jax.random.split(key, 3)
    size = jnp.linalg.norm(d, axis=-1, keepdims=True)
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-30)  # noqa: E731
    chosen = jax.random.choice(second, jnp.asarray(others), (n,), replace=False)
    made = {
        "random": unit(jax.random.normal(first, d.shape)) * size,
        "opposite": -d,
        "shuffled": jax.random.permutation(third, d, axis=-1, independent=True),
        "other": unit(steered.sae.W_dec[...][chosen].astype(jnp.float32)) * size,
    }
    return {name: replace(steered, directions=directions) for name, directions in made.items()}


# --- what is predicted ------------------------------------------------------------------------------------------------


def to_residual(model: Transformer, site: str, x: Float[ArrayLike, "*batch d"]) -> Float[Array, "*batch d_model"]:
    """What a change at a site adds to the residual at once, before any later layer sees it.

    Raises:
        ValueError: the site does not write linearly to the residual.
    """
    c, x = model.config, jnp.asarray(x)
    part, _, layer = sites.resolve(c, site).partition(".")
    if part in ("embed", "pos_embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"):
        return x
    if part in ("mlp_post", "z") and not c.post_norms:
        block = model.blocks[int(layer)]
        if part == "mlp_post":
            return x @ block.mlp.W_out[...].astype(x.dtype)
        W = block.attn.W_O[...]
        return x @ W.reshape(-1, W.shape[-1]).astype(x.dtype)
    raise ValueError(f"{site} does not write linearly to the residual: there is no direct effect on the logits")


def logit_weights(model: Transformer, site: str, directions: Float[ArrayLike, "n d"]) -> Float[Array, "n vocab"]:
    """How directions vote on the next token: d W_down pi L W_U of Bricken et al. 2023 (section on logit weights).

    pi takes the mean out where the final norm does, L are the weights of that norm; its division by the size of the
    residual, which differs by token, is left out, and so are later layers.
    """
    c = model.config
    w = to_residual(model, site, jnp.asarray(directions, jnp.float32))
    norm = model.ln_final
    if norm.kind == "layer":
        w = w - w.mean(-1, keepdims=True)
    if hasattr(norm, "w"):
        w = w * (norm.w[...].astype(jnp.float32) + norm.offset)
    W = model.W_E[...].T if c.tied else model.W_U[...]
    return w @ W.astype(jnp.float32)


class Effects(NamedTuple):
    """What steering does on texts that stand still, of each context; sums over the tokens that count.

    Attributes:
        tokens: [N], predictions that count.
        kl: KL(clean || steered) in nats. loss, clean_loss: -log p(next token).
        wanted, clean_wanted: mean log p of the tokens asked for; direct_wanted, gradient_wanted: by how much it is
            predicted to change.
        moved: tokens whose value at the site was changed; the others are left out below.
        direct, gradient: [N, 4], of the change of the logits as predicted (p) and as observed (o), each less its mean
            over the vocabulary: sums of p p, p o, o o over tokens and vocabulary, and of the rank correlation of p and
            o over tokens (NaN where it was not asked for). ``direct`` is the path straight to the logits through the
            final norm, ``gradient`` the derivative by the size of the change, later layers included; both taken at the
            clean pass. At a site that no layer reads they are the same.
    """

    tokens: Any
    kl: Any
    loss: Any
    clean_loss: Any
    wanted: Any
    clean_wanted: Any
    direct_wanted: Any
    gradient_wanted: Any
    moved: Any
    direct: Any
    gradient: Any


def agreement(sums: Float[np.ndarray, "*batch 4"], moved: Any) -> tuple[Any, Any, Any]:
    """(slope of observed on predicted, Pearson's r, mean rank correlation) of ``Effects.direct`` or ``.gradient``."""
    pp, po, oo, ranks = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return po / pp, po / np.sqrt(pp * oo), ranks / np.asarray(moved)


def _ranks(x: Array) -> Array:
    return jnp.argsort(jnp.argsort(x, -1), -1).astype(jnp.float32)


def _pearson(a: Array, b: Array) -> Array:
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    size = jnp.sqrt(jnp.sum(a * a, -1) * jnp.sum(b * b, -1))
    return jnp.where(size > 0, jnp.sum(a * b, -1) / jnp.where(size > 0, size, 1.0), 0.0)


@partial(jax.jit, static_argnames="ranks")
def _effects(
    model: Transformer, steered: Steering, tokens: Any, mask: Any, wanted: Any, ranks: bool
) -> tuple[Effects, Any]:
    c = model.config
    last = f"resid_post.{c.layers - 1}"
    clean = model(tokens, capture={steered.site, steered.reads, last})
    value, read = clean.captured[steered.site], clean.captured[steered.reads]
    at = At(tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
    change = steered._changed(value, read, at).astype(jnp.float32) - value.astype(jnp.float32)
    logits = model(tokens, edits=steered.edits()).logits
    _, by_gradient = jax.jvp(
        lambda size: model(tokens, edits={steered.site: lambda v, at: v + size * change}).logits, (jnp.float32(0),),
        (jnp.float32(1),),
    )  # fmt: skip
    predicted = [by_gradient]
    try:
        tangent = to_residual(model, steered.site, change.reshape(*tokens.shape, -1))
    except ValueError:
        pass
    else:
        final = clean.captured[last].astype(jnp.float32)
        predicted.append(jax.jvp(lambda x: model.unembed(model.ln_final(x)), (final,), (tangent,))[1])
    observed = logits - clean.logits
    moved = mask & jnp.any(change.reshape(*tokens.shape, -1) != 0, -1)
    places = _ranks(observed) if ranks else None

    def sums(p):
        order = jnp.full(tokens.shape, jnp.nan) if places is None else _pearson(_ranks(p), places)
        p, o = p - p.mean(-1, keepdims=True), observed - observed.mean(-1, keepdims=True)
        parts = [jnp.sum(a * b, -1) for a, b in ((p, p), (p, o), (o, o))]
        return jnp.stack([jnp.sum(jnp.where(moved, x, 0.0), 1) for x in (*parts, order)], -1)

    found = [sums(p) for p in predicted]
    before, after = jax.nn.log_softmax(clean.logits), jax.nn.log_softmax(logits)
    kl = jnp.sum(jnp.exp(before) * (before - after), -1)
    nll, counts = next_token_loss(logits, tokens, mask)
    clean_nll, _ = next_token_loss(clean.logits, tokens, mask)
    over = lambda x, where: jnp.sum(jnp.where(where, x, 0.0), 1)  # noqa: E731
    voted = [over(x[:, :-1][..., wanted].mean(-1), counts) for x in (after, before)]
    likely = jnp.exp(before)
    rises = lambda p: (p[..., wanted].mean(-1) - jnp.sum(likely * p, -1))[:, :-1]  # noqa: E731  # of log-softmax
    rise = [over(rises(p), counts) for p in predicted]
    bad = jnp.sum(~jnp.isfinite(logits) & mask[..., None])
    direct = len(predicted) > 1
    return Effects(
        tokens=jnp.sum(counts, 1), kl=over(kl[:, :-1], counts), loss=over(nll, counts),
        clean_loss=over(clean_nll, counts), wanted=voted[0], clean_wanted=voted[1],
        direct_wanted=rise[1] if direct else jnp.full_like(rise[0], jnp.nan), gradient_wanted=rise[0],
        moved=jnp.sum(moved, 1), direct=found[1] if direct else jnp.full_like(found[0], jnp.nan), gradient=found[0],
    ), bad  # fmt: skip


def effects(
    model: Transformer, steered: Steering, contexts: Any, wanted: Any, batch: int = 16, *, ranks: bool = True
) -> Effects:
    """What steering does on texts: see ``Effects``.

    Args:
        contexts: ``lm.text.Contexts``.
        wanted: ids of tokens whose log-probability is followed.
        batch: contexts a pass.
        ranks: whether rank correlations are asked for: sorting the vocabulary takes most of the time. NaN without.

    Raises:
        ValueError: the change is so large that logits are no longer finite.
    """
    found: list[Any] = []
    for i in range(0, len(contexts.tokens), batch):
        tokens, mask = contexts.tokens[i : i + batch], contexts.mask[i : i + batch]
        n, missing = len(tokens), batch - len(tokens)
        tokens, mask = np.pad(tokens, ((0, missing), (0, 0))), np.pad(mask, ((0, missing), (0, 0)))
        part, bad = _effects(model, steered, tokens, mask, jnp.asarray(wanted, jnp.int32), ranks)
        if int(bad) or not all(np.isfinite(x).all() for x in (part.kl, part.wanted, part.gradient[:, :3])):
            raise ValueError(
                f"steering by {', '.join(f'{v:g}' for v in np.ravel(steered.values))} makes logits or derivatives "
                "NaN or infinite: take smaller strengths (the largest entry of the directions is "
                f"{float(jnp.abs(steered.directions).max()):g})"
            )
        found.append(Effects(*(np.asarray(x, np.float64)[:n] for x in part)))
    return Effects(*(np.concatenate(x) for x in zip(*found, strict=True)))


@partial(jax.jit, static_argnames=("steps", "temperature"))
def write(
    model: Transformer, steered: Steering, prompts: Int[ArrayLike, "B T"], pad: Int[ArrayLike, " B"], key: jax.Array,
    steps: int, temperature: float,
) -> tuple[Int[Array, "B steps"], Float[Array, " B"]]:  # fmt: skip
    """What the steered model writes after prompts, and the mean loss of that under the model that is not steered.

    Args:
        prompts: token ids, filled up on the left.
        pad: how many fill each.
        temperature: 0 takes the likeliest token.
    """
    new = generate(model, prompts, steps, key, pad=pad, temperature=temperature, edits=steered.edits())
    whole = jnp.concatenate([jnp.asarray(prompts), new], 1)
    nll, _ = next_token_loss(model(whole, pad=pad).logits, whole)
    return new, nll[:, -steps:].mean(1)
