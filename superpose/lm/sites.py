"""Named places inside a language model, the same for every family; TransformerLens' names are understood as aliases.

embed, pos_embed                  what starts the residual stream
resid_pre.L, resid_mid.L, resid_post.L   the residual before layer L, between its attention and MLP, and after
attn_in.L, mlp_in.L               what attention and MLP read: the residual after its norm, weights included
q.L, k.L, v.L, z.L                [B, T, heads, d_head]; q and k after rotation, z before W_O
pattern.L                         [B, heads, T, T]
mlp_pre.L, mlp_linear.L, mlp_post.L      before the activation, the other factor of a gated MLP, after
attn_out.L, mlp_out.L             what is added to the residual (after Gemma's post norms)
final_norm, logits                the normed residual after the last layer, and what is said
"""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from superpose.lm.transformer import Config, Transformer, site_names

_ALIASES = {
    r"hook_embed": "embed",
    r"hook_pos_embed": "pos_embed",
    r"ln_final\.hook_normalized": "final_norm",
    r"blocks\.(\d+)\.hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)": r"\2.\1",
    r"blocks\.(\d+)\.attn\.hook_(q|k|v|z|pattern)": r"\2.\1",
    r"blocks\.(\d+)\.attn\.hook_rot_(q|k)": r"\2.\1",
    r"blocks\.(\d+)\.mlp\.hook_pre_linear": r"mlp_linear.\1",
    r"blocks\.(\d+)\.mlp\.hook_(pre|post)": r"mlp_\2.\1",
    r"blocks\.(\d+)\.ln1\.hook_normalized": r"attn_in.\1",
    r"blocks\.(\d+)\.ln2\.hook_normalized": r"mlp_in.\1",
}


names = site_names
"""All sites of a model, in the order in which they are computed."""


def width(config: Config, site: str) -> int:
    """Numbers per token that stand at a site, heads side by side.

    Raises:
        ValueError: attention patterns, whose number depends on the text.
    """
    c, part = config, resolve(config, site).split(".")[0]
    if part == "pattern":
        raise ValueError("an attention pattern has no width: it is [heads, T, T]")
    if part in ("q", "z"):
        return c.heads * c.d_head
    if part in ("k", "v"):
        return c.groups * c.d_head
    return {"logits": c.vocab, "mlp_pre": c.d_mlp, "mlp_linear": c.d_mlp, "mlp_post": c.d_mlp}.get(part, c.d_model)


def plain(name: str) -> str:
    """The site that an alias means, whatever the model; other names as they are.

    >>> plain("blocks.1.hook_resid_post"), plain("mlp_out.2")
    ('resid_post.1', 'mlp_out.2')
    """
    for pattern, meaning in _ALIASES.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(meaning)
    return name


def resolve(config: Config, name: str) -> str:
    """The site that a name means; negative layers count from the end.

    TransformerLens' ``hook_normalized`` stands before the norm's weights: it means a site where those are folded away.
    Its hook_q and hook_k stand before the rotation, hook_rot_q and hook_rot_k after.

    Raises:
        ValueError: no such site in this model, or an alias that means something that this model has not.

    >>> tiny = Config(vocab=8, d_model=4, layers=2, heads=1, d_head=4, d_mlp=8, context=8)
    >>> resolve(tiny, "blocks.1.hook_resid_post"), resolve(tiny, "mlp_out.-1")
    ('resid_post.1', 'mlp_out.1')
    """
    site = plain(name)
    if "hook_normalized" in name and config.norm_weights and config.norm != "none":
        raise ValueError(
            f"{name} is a residual before the weights of its norm, which only a model with folded norms shows: "
            f"fold them (checkpoints.fold_norms), or take {site}, which stands after the weights"
        )
    if re.fullmatch(r"blocks\.\d+\.attn\.hook_[qk]", name) and config.positions == "rotary":
        raise ValueError(f"{name} is a query or key before its rotation: take {site}, after it (hook_rot_...)")
    if match := re.fullmatch(r"(\w+)\.(-\d+)", site):
        site = f"{match[1]}.{config.layers + int(match[2])}"
    known = names(config)
    if site not in known:
        layer = "" if "." not in site else f"; layers are 0 to {config.layers - 1}"
        parts = ", ".join(dict.fromkeys(s.split(".")[0] for s in known))
        raise ValueError(f"the model has no site {name!r}: it has {parts}{layer}")
    return site


def capture(model: Transformer, sites: Sequence[str], *, flat: bool = True) -> Callable:
    """A function tokens [B, T] -> {name as given: values}, for ``interp.harvest`` and for ``jax.jit``.

    Args:
        model: its weights are bound as arguments: as a ``jax.tree_util.Partial`` the function may itself be given to
            what is jitted. Jitted, nothing after the last site is computed.
        sites: names as ``resolve`` takes them.
        flat: heads are put side by side, [B, T, width].

    Raises:
        ValueError: a site that the model has not, or one that has no width when ``flat``.
    """
    wanted = {name: resolve(model.config, name) for name in sites}
    if flat:
        for name in wanted:
            width(model.config, name)

    def run(model: Transformer, tokens: Int[ArrayLike, "B T"]) -> dict[str, Float[Array, "B T ..."]]:
        out = model(tokens, capture=set(wanted.values())).captured
        shape = jnp.shape(tokens)
        return {name: out[s].reshape(*shape, -1) if flat else out[s] for name, s in wanted.items()}

    return jax.tree_util.Partial(run, model)
