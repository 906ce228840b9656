"""One decoder for all families, tokens -> logits: what differs between them is a value of ``Config``.

Parameters are named as in TransformerLens; the axes of W_Q, W_K, W_V [d_model, heads, d_head] and W_O [heads, d_head,
d_model] stand so that a projection is one plain product. Rows of a batch are independent; positions count from the
first token that is no padding. A pass is pure: the cache of keys and values goes in and comes out, and so do captures
and edits of named places (``sites``).

    out = model(tokens, capture=("resid_post.0",), edits={"mlp_out.1": lambda value, at: 0 * value})
    out.logits, out.captured["resid_post.0"]
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}
NORMS = ("layer", "rms", "none")
POSITIONS = ("rotary", "learned", "none")


def _positive(value: Any) -> bool:
    number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    return number and 0 < value < float("inf")


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864), the two halves of a head rotated against each other.

    Attributes:
        theta: base of the wavelengths 2 pi theta^(2 i / dims).
        dims: the first so many dimensions of a head rotate; None is all.
        factor: positions are divided by it ("linear" scaling).
        llama3: (low_freq_factor, high_freq_factor, original context): only wavelengths longer than context / low are
            divided by ``factor``, those shorter than context / high are not, and between them it is interpolated.
    """

    theta: float = 10_000.0
    dims: int | None = None
    factor: float = 1.0
    llama3: tuple[float, float, int] | None = None

    def __post_init__(self):
        for name in ("theta", "factor"):
            value = getattr(self, name)
            if not _positive(value):
                raise ValueError(f"{name} of rotary positions must be a positive number, got {value!r}")
        if self.dims is not None and not isinstance(self.dims, int | np.integer):
            raise ValueError(f"dims of rotary positions must be a whole number, got {self.dims!r}")
        if self.llama3 is not None and not (all(map(_positive, self.llama3)) and self.llama3[0] < self.llama3[1]):
            raise ValueError(f"llama3 needs 0 < low < high and a positive context, got {self.llama3}")

    def frequencies(self, d_head: int) -> np.ndarray:
        """Radians per position, float32 [dims / 2]."""
        dims = self.dims or d_head
        inverse = self.theta ** -(np.arange(0, dims, 2) / dims)
        if self.llama3 is None:
            return (inverse / self.factor).astype(np.float32)
        low, high, context = self.llama3
        turns = context * inverse / (2 * np.pi)  # in the original context
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return (kept * inverse + (1 - kept) * inverse / self.factor).astype(np.float32)


@dataclass(frozen=True)
class Config:
    """What of a language model is no weight.

    Attributes:
        vocab, d_model, layers, heads, d_head, d_mlp, context: sizes; d_mlp = 0 leaves the MLPs out.
        kv_heads: heads of keys and values, each shared by heads / kv_heads queries; None is as many as heads.
        positions: a row of ``POSITIONS``.
        rotary, local_rotary: for full and for windowed layers; None in local_rotary takes rotary.
        windows: of each layer, how many tokens it sees, its own included; None sees all. () is None everywhere.
        norm: a row of ``NORMS``; eps: under its root.
        norm_weights: whether norms have weights (those of folded models have none).
        norm_offset: what is added to the weights of RMS norms (Gemma keeps them less one).
        post_norms: whether what attention and MLP write is normed too (Gemma 2 and 3).
        qk_norm: whether each head's query and key are normed (Qwen 3, Gemma 3).
        act, gated: of the MLP; gated is act(x W_gate) * (x W_in).
        parallel: attention and MLP read the same residual (GPT-NeoX).
        qkv_bias, out_bias, mlp_bias, unembed_bias: which biases there are.
        query_scale: what scores are multiplied by; None is d_head^-0.5.
        attn_cap, logit_cap: cap tanh(x / cap) on scores and on logits.
        tied: whether the unembedding is the transposed embedding.
        embed_scale: what embeddings are multiplied by (Gemma: sqrt(d_model)).
        dtype: of the computation; norms, softmax and logits are in float32.
        remat: whether a layer's activations are computed again for the gradient.
    """

    vocab: int
    d_model: int
    layers: int
    heads: int
    d_head: int
    d_mlp: int
    context: int
    kv_heads: int | None = None
    positions: str = "rotary"
    rotary: Rotary = Rotary()
    local_rotary: Rotary | None = None
    windows: tuple[int | None, ...] = ()
    norm: str = "rms"
    eps: float = 1e-5
    norm_weights: bool = True
    norm_offset: float = 0.0
    post_norms: bool = False
    qk_norm: bool = False
    act: str = "silu"
    gated: bool = True
    parallel: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    unembed_bias: bool = False
    query_scale: float | None = None
    attn_cap: float | None = None
    logit_cap: float | None = None
    tied: bool = False
    embed_scale: float = 1.0
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        for name in ("vocab", "d_model", "layers", "heads", "d_head", "d_mlp", "context", "kv_heads"):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole and not (name == "kv_heads" and value is None):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        for name in ("eps", "embed_scale", "query_scale", "attn_cap", "logit_cap"):
            value = getattr(self, name)
            if value is None and name not in ("eps", "embed_scale"):
                continue
            if not _positive(value) and not (name == "eps" and value == 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        for window in self.windows:
            if window is not None and not (isinstance(window, int | np.integer) and window > 0):
                raise ValueError(f"windows must hold whole numbers of at least 1, or None, got {window!r}")
        for name in ("vocab", "d_model", "layers", "heads", "d_head", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, table in (("positions", POSITIONS), ("norm", NORMS), ("act", tuple(ACTIVATIONS))):
            if getattr(self, name) not in table:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(table)}")
        if self.d_mlp < 0:
            raise ValueError(f"d_mlp must be at least 0, got {self.d_mlp}")
        if self.groups < 1 or self.heads % self.groups:
            raise ValueError(f"kv_heads={self.groups} must divide heads={self.heads}")
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(f"windows must say one for each of {self.layers} layers, got {len(self.windows)}")
        for rotary in (self.rotary, self.local_rotary):
            dims = self.d_head if rotary is None else rotary.dims or self.d_head
            if self.positions == "rotary" and not (dims % 2 == 0 and 2 <= dims <= self.d_head):
                raise ValueError(f"rotary positions turn an even number of d_head={self.d_head} dimensions, got {dims}")
        if self.tied and self.unembed_bias:
            raise ValueError("a tied unembedding has no bias of its own: set tied or unembed_bias to False")

    @property
    def groups(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None


class At(NamedTuple):
    """Where the values stand that an edit sees: tokens [B, T], their positions [B, T] (below 0: padding)."""

    tokens: Any
    positions: Any


class Cache(NamedTuple):
    """Keys and values of the tokens before.

    Attributes:
        keys, values: of each layer, [B, space, kv_heads, d_head].
        length: tokens that are filled.
        pad: [B], how many of the first of them are padding.
    """

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    length: Any
    pad: Any


class Output(NamedTuple):
    """Logits [B, T, vocab] in float32, the cache with these tokens in it (or None), and site -> what stood there."""

    logits: Any
    cache: Cache | None
    captured: dict[str, Any]


def site_names(config: Config) -> list[str]:
    """All sites of a model, in the order in which they are computed."""
    c, out = config, ["embed"]
    if c.positions == "learned":
        out.append("pos_embed")
    for layer in range(c.layers):
        parts = ["resid_pre", "attn_in", "q", "k", "v", "pattern", "z", "attn_out"]
        if c.d_mlp:
            parts += [] if c.parallel else ["resid_mid"]
            parts += ["mlp_in", "mlp_pre", *(["mlp_linear"] if c.gated else []), "mlp_post", "mlp_out"]
        out += [f"{part}.{layer}" for part in (*parts, "resid_post")]
    return [*out, "final_norm", "logits"]


class _Taps:
    """Edits what passes a named place, and keeps what was asked for; one for each function that XLA sees whole."""

    def __init__(self, capture: Collection[str], edits: Mapping[str, Callable], at: At):
        self.capture, self.edits, self.at = capture, edits, at
        self.captured: dict[str, Any] = {}

    def __call__(self, site: str, value: Any) -> Any:
        if edit := self.edits.get(site):
            value = jnp.asarray(edit(value, self.at)).astype(value.dtype)
        if site in self.capture:
            self.captured[site] = value
        return value


# --- parts ------------------------------------------------------------------------------------------------------------


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> nnx.Param:
    return nnx.Param(scale * fan_in**-0.5 * jax.random.normal(rngs.params(), shape))


def _zeros(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape))


class Norm(nnx.Module):
    """(x - mean) / std or x / rms over the last axis, times w, plus b; in float32."""

    def __init__(self, c: Config, size: int, kind: str | None = None):
        self.kind, self.eps, self.offset = kind or c.norm, c.eps, c.norm_offset if c.norm == "rms" else 0.0
        if self.kind != "none" and (c.norm_weights or kind):
            self.w = nnx.Param(jnp.full(size, 1.0 - self.offset))
            if self.kind == "layer":
                self.b = _zeros(size)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        if self.kind == "none":
            return x
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        if hasattr(self, "w"):
            y = y * (self.w[...].astype(jnp.float32) + self.offset)
        if hasattr(self, "b"):
            y = y + self.b[...].astype(jnp.float32)
        return y.astype(x.dtype)


def rotate(x: Float[Array, "B T heads d"], positions: Int[Array, "B T"], rotary: Rotary) -> Float[Array, "B T heads d"]:
    """Turns dimension i of the first half against i of the second by position times frequency.

    >>> x = jnp.ones((1, 2, 1, 2))
    >>> np.round(rotate(x, jnp.array([[0, 1]]), Rotary())[0, :, 0], 2).tolist()  # by 0 and by 1 radian
    [[1.0, 1.0], [-0.30, 1.38]]
    """
    angle = positions[..., None].astype(jnp.float32) * rotary.frequencies(x.shape[-1])
    cos, sin = jnp.cos(angle)[:, :, None].astype(x.dtype), jnp.sin(angle)[:, :, None].astype(x.dtype)
    half = angle.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1)


class Attention(nnx.Module):
    def __init__(self, c: Config, rngs: nnx.Rngs):
        d, h, g, k = c.d_model, c.heads, c.groups, c.d_head
        self.W_Q, self.W_K = _normal(rngs, (d, h, k), d), _normal(rngs, (d, g, k), d)
        self.W_V, self.W_O = _normal(rngs, (d, g, k), d), _normal(rngs, (h, k, d), h * k, (2 * c.layers) ** -0.5)
        if c.qkv_bias:
            self.b_Q, self.b_K, self.b_V = _zeros(h, k), _zeros(g, k), _zeros(g, k)
        if c.out_bias:
            self.b_O = _zeros(d)
        if c.qk_norm:
            self.q_norm, self.k_norm = Norm(c, k, "rms"), Norm(c, k, "rms")

    def project(self, name: str, x: Array) -> Array:
        W = getattr(self, f"W_{name}")[...]
        y = jnp.einsum("btd,dhk->bthk", x, W.astype(x.dtype))
        return y + getattr(self, f"b_{name}")[...].astype(x.dtype) if hasattr(self, f"b_{name}") else y


class MLP(nnx.Module):
    def __init__(self, c: Config, rngs: nnx.Rngs):
        d, m = c.d_model, c.d_mlp
        self.W_in, self.W_out = _normal(rngs, (d, m), d), _normal(rngs, (m, d), m, (2 * c.layers) ** -0.5)
        if c.gated:
            self.W_gate = _normal(rngs, (d, m), d)
        if c.mlp_bias:
            self.b_in, self.b_out = _zeros(m), _zeros(d)
            if c.gated:
                self.b_gate = _zeros(m)


class Block(nnx.Module):
    """One layer: attention, then MLP (beside each other where ``parallel``)."""

    def __init__(self, c: Config, rngs: nnx.Rngs):
        self.ln1, self.attn = Norm(c, c.d_model), Attention(c, rngs)
        if c.d_mlp:
            self.ln2, self.mlp = Norm(c, c.d_model), MLP(c, rngs)
        if c.post_norms:
            self.ln1_post = Norm(c, c.d_model, c.norm)
            if c.d_mlp:
                self.ln2_post = Norm(c, c.d_model, c.norm)


def _linear(x: Array, W: Any, b: Any = None) -> Array:
    y = x @ W[...].astype(x.dtype)
    return y if b is None else y + b[...].astype(x.dtype)


def _blocks(T: int, least: int = 32, most: int = 4) -> list[slice]:
    """Positions 0 to T in equal blocks: four leave out three eighths of the causal products, more would gain little."""
    size = max(least, -(-T // most))
    return [slice(i, min(i + size, T)) for i in range(0, T, size)]


def _attend(c: Config, layer: int, attn: Attention, x: Array, at: At, kept: Any, start: Any, pad: Any, tap: _Taps):
    """What attention writes, and the layer's keys and values; ``kept`` are those of the tokens before."""
    q, k, v = attn.project("Q", x), attn.project("K", x), attn.project("V", x)
    if c.qk_norm:
        q, k = attn.q_norm(q), attn.k_norm(k)
    window = c.window(layer)
    if c.positions == "rotary":
        rotary = c.local_rotary if window is not None and c.local_rotary is not None else c.rotary
        q, k = rotate(q, at.positions, rotary), rotate(k, at.positions, rotary)
    q, k, v = tap(f"q.{layer}", q), tap(f"k.{layer}", k), tap(f"v.{layer}", v)
    if kept is not None:
        k, v = (lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, 1)
                for old, new in zip(kept, (k, v), strict=True))  # fmt: skip
    B, T, _, d_head = q.shape
    # heads first: as transposed operands the products below take up to twice as long on a CPU
    grouped = q.reshape(B, T, c.groups, c.heads // c.groups, d_head).transpose(0, 2, 3, 1, 4)
    keys, values = (x.astype(q.dtype).transpose(0, 2, 3, 1)[:, :, None] for x in (k, v))

    def weigh(queries: slice, seen: slice):
        """exp(scores - their maximum) of some queries against some keys, and the sums to divide by."""
        scores = jnp.matmul(grouped[:, :, :, queries], keys[..., seen], preferred_element_type=jnp.float32)
        scores = scores * (c.d_head**-0.5 if c.query_scale is None else c.query_scale)
        if c.attn_cap is not None:
            scores = c.attn_cap * jnp.tanh(scores / c.attn_cap)
        here, there = start + jnp.arange(T)[queries, None], jnp.arange(k.shape[1])[None, seen]
        visible = there <= here
        if window is not None:
            visible &= there > here - window
        visible = visible[None]
        if pad is not None:
            visible = visible & (there[None] >= pad[:, None, None])
            visible = visible | (here == there)[None]  # padding sees itself, so that its softmax is no 0 / 0
        scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
        weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
        return weights, weights.sum(-1, keepdims=True)

    site = f"pattern.{layer}"
    if site in tap.edits or site in tap.capture:
        weights, total = weigh(slice(0, T), slice(None))
        pattern = tap(site, (weights / total).reshape(B, c.heads, T, -1))
    if site in tap.edits:
        z = pattern.reshape(weights.shape).astype(q.dtype) @ values.mT
    else:  # the softmax's division behind the product, and no keys that are hidden from a whole block of queries
        parts = []
        for queries in _blocks(T) if kept is None else [slice(0, T)]:
            seen = slice(None)
            if kept is None:
                seen = slice(0 if window is None else max(0, queries.start - window + 1), queries.stop)
            weights, total = weigh(queries, seen)
            parts.append((weights.astype(q.dtype) @ values[..., seen].mT / total).astype(q.dtype))
        z = jnp.concatenate(parts, 3)
    z = z.transpose(0, 3, 1, 2, 4).reshape(B, T, c.heads, d_head)
    z = tap(f"z.{layer}", z)
    out = jnp.einsum("bthk,hkd->btd", z, attn.W_O[...].astype(z.dtype))
    return (out + attn.b_O[...].astype(out.dtype) if c.out_bias else out), (k, v)


def _mlp(c: Config, layer: int, mlp: MLP, x: Array, tap: _Taps) -> Array:
    act, bias = ACTIVATIONS[c.act], (lambda name: getattr(mlp, name, None))
    if c.gated:
        pre = tap(f"mlp_pre.{layer}", _linear(x, mlp.W_gate, bias("b_gate")))
        post = act(pre) * tap(f"mlp_linear.{layer}", _linear(x, mlp.W_in, bias("b_in")))
    else:
        post = act(tap(f"mlp_pre.{layer}", _linear(x, mlp.W_in, bias("b_in"))))
    return _linear(tap(f"mlp_post.{layer}", post), mlp.W_out, bias("b_out"))


def _layer(c: Config, layer: int, capture, edits, block: Block, x: Array, at: At, kept: Any, start: Any, pad: Any):
    """A layer as a function of arrays: (residual, keys and values, captured)."""
    tap = _Taps(capture, edits, at)
    x = tap(f"resid_pre.{layer}", x)
    out, kept = _attend(
        c, layer, block.attn, tap(f"attn_in.{layer}", block.ln1(x)), at, kept, start, pad, tap
    )  # fmt: skip
    out = tap(f"attn_out.{layer}", block.ln1_post(out) if c.post_norms else out)
    if c.parallel:
        before, x = x, x + out
    else:
        before = x = tap(f"resid_mid.{layer}", x + out) if c.d_mlp else x + out
    if c.d_mlp:
        out = _mlp(c, layer, block.mlp, tap(f"mlp_in.{layer}", block.ln2(before)), tap)
        x = x + tap(f"mlp_out.{layer}", block.ln2_post(out) if c.post_norms else out)
    return tap(f"resid_post.{layer}", x), kept, tap.captured


class Transformer(nnx.Module):
    """A decoder with random weights: each map starts at fan_in^-0.5, what writes to the residual divided by
    sqrt(2 layers) as in GPT-2."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        c = self.config = config
        self.W_E = _normal(rngs, (c.vocab, c.d_model), c.d_model)
        if c.positions == "learned":
            self.W_pos = _normal(rngs, (c.context, c.d_model), c.d_model)
        self.blocks = nnx.List([Block(c, rngs) for _ in range(c.layers)])
        self.ln_final = Norm(c, c.d_model)
        if not c.tied:
            self.W_U = _normal(rngs, (c.d_model, c.vocab), c.d_model)
        if c.unembed_bias:
            self.b_U = _zeros(c.vocab)

    def unembed(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch vocab"]:
        """Logits of a final, normed residual, in float32 (before the tap and after the cap)."""
        W = self.W_E[...].T if self.config.tied else self.W_U[...]
        logits = jnp.matmul(x, W.astype(x.dtype), preferred_element_type=jnp.float32)
        logits = logits + self.b_U[...].astype(jnp.float32) if self.config.unembed_bias else logits
        cap = self.config.logit_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def __call__(
        self,
        tokens: Int[ArrayLike, "B T"],
        *,
        cache: Cache | None = None,
        pad: Int[ArrayLike, " B"] | None = None,
        capture: Collection[str] = (),
        edits: Mapping[str, Callable] | None = None,
    ) -> Output:
        """Logits of every next token.

        What is not needed for what the caller uses is not computed, if the caller jits: captures of layer 3 alone cost
        the layers up to 3.

        Args:
            tokens: ids.
            cache: from ``empty_cache`` or a pass before; these tokens come after those in it.
            pad: how many of a row's first tokens are padding; without a cache. They are seen by no other token, and
                what is said at them means nothing.
            capture: sites whose values are returned, after their edits.
            edits: site -> function (value, At) -> value of the same shape.

        Raises:
            ValueError: more tokens than the context or the cache has space for (a cache whose length is traced is not
                looked into), or a site that the model has not.
        """
        c, tokens = self.config, jnp.asarray(tokens)
        edits = edits or {}
        if unknown := {*capture, *edits}.difference(site_names(c)):
            raise ValueError(
                f"the model has no site {', '.join(sorted(unknown))}: lm.sites.names lists those that it has, "
                "lm.sites.resolve understands TransformerLens' names"
            )
        T, start = tokens.shape[1], jnp.int32(0)
        if cache is not None:
            if pad is not None:
                raise ValueError("the cache knows the padding: give pad to empty_cache alone")
            start, pad = cache.length, cache.pad
            space = cache.keys[0].shape[1]
            held = 0 if isinstance(start, jax.core.Tracer) else int(start)
            if held + T > space:
                raise ValueError(f"{T} tokens more than {held} don't fit in a cache with space for {space}")
        elif T > c.context and c.positions == "learned":
            raise ValueError(f"{T} tokens are more than the context of {c.context}")
        pad = None if pad is None else jnp.asarray(pad)
        positions = start + jnp.broadcast_to(jnp.arange(T), tokens.shape)
        positions = positions if pad is None else positions - pad[:, None]
        at = At(tokens, positions)
        inside = jnp.maximum(positions, 0)
        tap = _Taps(capture, edits, at)
        x = self.W_E[...].astype(c.dtype)[tokens]
        x = tap("embed", x * jnp.asarray(c.embed_scale, x.dtype) if c.embed_scale != 1 else x)
        if c.positions == "learned":
            x = x + tap("pos_embed", self.W_pos[...].astype(c.dtype)[inside])
        keys, values, captured = [], [], tap.captured
        for layer, block in enumerate(self.blocks):

            def run(block, x, kept, layer=layer):
                return _layer(c, layer, capture, edits, block, x, At(tokens, positions), kept, start, pad)

            kept = None if cache is None else (cache.keys[layer], cache.values[layer])
            x, (k, v), seen = (jax.checkpoint(run) if c.remat else run)(block, x, kept)
            keys.append(k)
            values.append(v)
            captured |= seen
        x = tap("final_norm", self.ln_final(x))
        logits = tap("logits", self.unembed(x))
        if cache is not None:
            cache = Cache(tuple(keys), tuple(values), start + T, pad)
        return Output(logits, cache, captured)


# --- generation, loss, sharding ---------------------------------------------------------------------------------------


def empty_cache(config: Config, batch: int, space: int, pad: Int[ArrayLike, " B"] | None = None) -> Cache:
    """Space for so many tokens a row, in the dtype of the computation.

    Raises:
        ValueError: more than the model has learned positions for.
    """
    if config.positions == "learned" and space > config.context:
        raise ValueError(f"a cache of {space} tokens is larger than the {config.context} positions that were learned")
    shape = (batch, space, config.groups, config.d_head)
    new = tuple(jnp.zeros(shape, config.dtype) for _ in range(config.layers))
    pad = jnp.zeros(batch, jnp.int32) if pad is None else jnp.asarray(pad, jnp.int32)
    return Cache(new, new, jnp.int32(0), pad)


def generate(
    model: Transformer,
    prompt: Int[ArrayLike, "B T"],
    steps: int,
    key: jax.Array | None = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    pad: Int[ArrayLike, " B"] | None = None,
    edits: Mapping[str, Callable] | None = None,
) -> Int[Array, "B steps"]:
    """Tokens after the prompt, sampled with a cache; greedy without a key or at temperature 0.

    Args:
        prompt: ids; shorter prompts are filled up on the left, ``pad`` says by how many.
        steps: tokens to generate.
        top_k: sample among the so many most likely tokens.
        edits: as in a pass; they see the prompt first and then each new token.

    Raises:
        ValueError: prompt and steps don't fit in the context, or a setting is out of range.
    """
    prompt = jnp.asarray(prompt)
    c, (B, T) = model.config, prompt.shape
    if steps < 1 or T < 1 or T + steps > c.context:
        raise ValueError(f"a prompt of {T} and {steps} new tokens must fit in the context of {c.context}, each from 1")
    if not 0 <= temperature < float("inf") or (top_k is not None and not 1 <= top_k <= c.vocab):
        raise ValueError(f"need temperature >= 0 and top_k in 1 to {c.vocab}, got {temperature} and {top_k}")

    def choose(logits, key):
        if key is None or temperature == 0:
            return jnp.argmax(logits, -1)
        if top_k is not None:
            logits = jnp.where(logits < lax.top_k(logits, top_k)[0][:, -1:], -jnp.inf, logits)
        return jax.random.categorical(key, logits / temperature)

    def one(carry, i):
        cache, token = carry
        out = model(token[:, None], cache=cache, edits=edits)
        token = choose(out.logits[:, -1], None if key is None else jax.random.fold_in(key, i))
        return (out.cache, token), token

    out = model(prompt, cache=empty_cache(c, B, T + steps, pad), edits=edits)
    first = choose(out.logits[:, -1], None if key is None else jax.random.fold_in(key, 0))
    _, rest = lax.scan(one, (out.cache, first), jnp.arange(1, steps))
    return jnp.concatenate([first[:, None], rest.T], 1)


def next_token_loss(
    logits: Float[Array, "B T vocab"], tokens: Int[ArrayLike, "B T"], mask: Bool[ArrayLike, "B T"] | None = None
) -> tuple[Float[Array, "B T-1"], Bool[Array, "B T-1"]]:
    """-log p(token t + 1 | tokens up to t) in nats, and which of them count (where the mask keeps token t + 1).

    >>> nll, counts = next_token_loss(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]]))
    >>> print(nll.round(4), counts)  # log 4
    [[1.3863 1.3863]] [[ True  True]]
    """
    ahead, logits = jnp.asarray(tokens)[:, 1:], logits.astype(jnp.float32)
    asked = jnp.pad(ahead, ((0, 0), (0, 1)))  # the last is left out of the result: logits are copied if cut before
    nll = (jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, asked[..., None], -1)[..., 0])[:, :-1]
    return nll, jnp.ones(ahead.shape, bool) if mask is None else jnp.asarray(mask)[:, 1:]


def param_specs(params: PyTree, axis: str = "model") -> PyTree:
    """PartitionSpecs that share a model over a mesh axis: heads, MLP neurons and the vocabulary are split.

    For ``Population.param_spec`` and for placing weights; sizes must be divisible by the axis.
    """
    split = {
        "W_Q": 1, "W_K": 1, "W_V": 1, "b_Q": 0, "b_K": 0, "b_V": 0, "W_O": 0, "W_in": 1, "W_gate": 1, "b_in": 0,
        "b_gate": 0, "W_out": 0, "W_E": 0, "W_U": 1, "b_U": 0,
    }  # fmt: skip

    def spec(path, _):
        names = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in path]
        place = next((split[n] for n in reversed(names) if n in split), None)
        return P() if place is None else P(*[None] * place, axis)

    return jax.tree_util.tree_map_with_path(spec, params)
