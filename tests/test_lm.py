"""The decoder on a real model and by its properties: causality, cache, padding, sites, weight processing, sharding."""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from superpose.lm import checkpoints, sites
from superpose.lm.transformer import (
    Config,
    Rotary,
    Transformer,
    empty_cache,
    generate,
    next_token_loss,
    param_specs,
)

DATA = os.environ.get("SUPERPOSE_TEST_DATA")
real = pytest.mark.skipif(not DATA, reason="SUPERPOSE_TEST_DATA names no folder with stories260K.bin")
TINY = dict(vocab=40, d_model=16, layers=3, heads=4, d_head=4, d_mlp=24, context=32)
KINDS = {
    "gpt2": dict(positions="learned", norm="layer", act="gelu_tanh", gated=False, qkv_bias=True, out_bias=True,
                 mlp_bias=True, tied=True),
    "neox": dict(norm="layer", act="gelu", gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, parallel=True,
                 rotary=Rotary(dims=2)),
    "llama": dict(kv_heads=2, rotary=Rotary(5e5, factor=8.0, llama3=(1.0, 4.0, 16))),
    "qwen3": dict(kv_heads=2, qk_norm=True, tied=True),
    "gemma2": dict(kv_heads=1, norm_offset=1.0, post_norms=True, attn_cap=5.0, logit_cap=3.0, windows=(4, None, 4),
                   embed_scale=4.0, tied=True, act="gelu_tanh", query_scale=0.3),
    "gemma3": dict(kv_heads=2, norm_offset=1.0, post_norms=True, qk_norm=True, windows=(4, 4, None), embed_scale=4.0,
                   rotary=Rotary(1e6, factor=8.0), local_rotary=Rotary(1e4), tied=True, act="gelu_tanh"),
    "one ReLU layer": dict(layers=1, positions="learned", norm="layer", act="relu", gated=False, mlp_bias=True),
    "attention only": dict(d_mlp=0, positions="learned", norm="none"),
}  # fmt: skip
"""A small model of every kind."""
EACH, EACH_SLOW = (
    [pytest.param(k, marks=[] if k in first else [pytest.mark.ci]) for k in KINDS]
    for first in (("gemma3", "one ReLU layer"), ("gemma3",))
)
"""All of them, but in `make test` two, or one where a kind takes longest to compile."""


def model(kind="llama", seed=0, **more):
    """With weights that are far from their start: norms, biases and all."""
    made = Transformer(Config(**{**TINY, **KINDS[kind], **more}), nnx.Rngs(seed))
    graph, state = nnx.split(made)
    flat = nnx.to_flat_state(state)
    keys = jax.random.split(jax.random.key(seed + 1), len(flat))
    moved = {path: leaf.replace(leaf[...] + 0.2 * jax.random.normal(key, leaf[...].shape))
             for key, (path, leaf) in zip(keys, flat, strict=True)}  # fmt: skip
    return nnx.merge(graph, nnx.from_flat_state(moved))


def text(rows=2, length=12, seed=3, vocab=40):
    return jax.random.randint(jax.random.key(seed), (rows, length), 0, vocab)


# --- the real model ---------------------------------------------------------------------------------------------------


@real
def test_the_stories_model_says_what_an_independent_forward_pass_says():
    found = checkpoints.read(Path(DATA, "stories260K.bin"))
    want = json.loads(Path(DATA, "stories260K_expected.json").read_text())
    ids = np.array(want["sample_ids"])[None]
    logits = found(ids).logits
    for place, first in want["logits_at_positions"].items():
        np.testing.assert_allclose(logits[0, int(place), :16], first, atol=2e-4)
    assert float(next_token_loss(logits, ids)[0].mean()) == pytest.approx(want["sample_nll_nats_per_token"], abs=1e-5)
    greedy = want["greedy_from_bos"]
    assert generate(found, np.array([greedy[:1]]), len(greedy) - 1)[0].tolist() == greedy[1:]


# --- what any decoder must do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EACH)
def test_no_token_sees_a_later_one(kind):
    """The gradient of what is said at t by the embedding of later tokens is exactly 0, and by t's own it is not."""
    made, tokens = model(kind), text()

    def said(shift):
        return made(tokens, edits={"embed": lambda x, at: x + shift}).logits[:, 5].sum()

    grads = np.abs(jax.jit(jax.grad(said))(jnp.zeros((*tokens.shape, 16)))).sum((0, 2))
    assert (grads[6:] == 0).all()
    assert grads[5] > 0
    if kind != "one ReLU layer":
        assert (grads[:5] > 0).all()


def test_a_window_sees_so_many_tokens():
    made, tokens = model("gemma2", layers=1, windows=(4,)), text()
    said = lambda shift: made(tokens, edits={"embed": lambda x, at: x + shift}).logits[:, 9].sum()  # noqa: E731
    grads = np.abs(jax.jit(jax.grad(said))(jnp.zeros((*tokens.shape, 16)))).sum((0, 2))
    assert (grads > 0).tolist() == [6 <= t <= 9 for t in range(12)]


@pytest.mark.parametrize("kind", EACH)
def test_the_cache_changes_nothing(kind):
    made, tokens = model(kind), text()
    step = jax.jit(lambda piece, cache=None: (lambda out: (out.logits, out.cache))(made(piece, cache=cache)))
    whole, _ = step(tokens)
    cache, parts = empty_cache(made.config, 2, 14), []
    for piece in (tokens[:, :5], tokens[:, 5:6], tokens[:, 6:]):
        logits, cache = step(piece, cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5)
    assert int(cache.length) == 12


@pytest.mark.parametrize("kind", EACH_SLOW)
def test_blocks_of_queries_see_what_all_at_once_see(kind):
    """100 tokens are four blocks, the last of them short; whoever edits the pattern gets it as one."""
    windows = {"windows": tuple(w and 40 for w in KINDS[kind]["windows"])} if "windows" in KINDS[kind] else {}
    made, tokens, pad = model(kind, context=128, **windows), text(2, 100), jnp.array([0, 45])
    graph, state = nnx.split(made)
    whole = {f"pattern.{i}": lambda value, at: value for i in range(made.config.layers)}

    def loss(state, edits):
        return next_token_loss(nnx.merge(graph, state)(tokens, pad=pad, edits=edits).logits, tokens)[0][:, 50:].mean()

    (got, down), (want, right) = (jax.jit(jax.value_and_grad(partial(loss, edits=e)))(state) for e in ({}, whole))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(down), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1e-2, np.abs(b).max()))


@pytest.mark.parametrize("kind", EACH)
def test_padding_changes_nothing(kind):
    made, tokens = model(kind), text(1)
    said = jax.jit(lambda tokens, **more: made(tokens, **more).logits)
    padded = jnp.concatenate([jnp.full((1, 3), 7), tokens], 1)
    got = said(jnp.concatenate([padded, text(1, 15, 9)]), pad=jnp.array([3, 0]))
    np.testing.assert_allclose(got[:1, 3:], said(tokens), atol=2e-5)
    assert jnp.isfinite(got).all()
    with_cache = said(padded, cache=empty_cache(made.config, 1, 20, jnp.array([3])))
    np.testing.assert_allclose(with_cache[:, 3:], said(tokens), atol=2e-5)


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("gemma3", marks=pytest.mark.ci)])
def test_generation_says_what_passes_without_a_cache_say(kind):
    made, prompt = model(kind), text(2, 5)
    said = jax.jit(lambda tokens: made(tokens).logits)
    got = generate(made, jnp.concatenate([prompt[:1], prompt[1:].at[:, :2].set(0)]), 6, pad=jnp.array([0, 2]))
    for row, start in ((0, 0), (1, 2)):
        known = 5 - start
        tokens = jnp.zeros((1, 11), int).at[:, :known].set(prompt[row, start:])  # later ones are not seen
        for n in range(known, known + 6):
            tokens = tokens.at[:, n].set(said(tokens)[:, n - 1].argmax(-1))
        assert got[row].tolist() == tokens[0, known : known + 6].tolist()


def test_sampling_follows_the_probabilities():
    made, prompt = model(), jnp.zeros((4096, 1), int)
    p = jax.nn.softmax(made(prompt[:1]).logits[0, -1] / 0.7)
    got = np.bincount(generate(made, prompt, 1, jax.random.key(0), temperature=0.7)[:, 0], minlength=40) / 4096
    assert np.abs(got - p).max() < 5 * np.sqrt(float(p.max()) / 4096)
    few = set(np.asarray(generate(made, prompt, 1, jax.random.key(0), top_k=3)[:, 0]).tolist())
    assert few <= set(np.argsort(-np.asarray(p))[:3].tolist())
    assert len(few) == 3


@pytest.mark.parametrize("kind", EACH_SLOW)
def test_remat_and_bfloat16(kind):
    made, tokens = model(kind), text()

    def gradient(config):
        state = nnx.state(made)
        again = Transformer(config, nnx.Rngs(0))
        target = nnx.merge(nnx.split(again)[0], state)
        loss = lambda m: next_token_loss(m(tokens).logits, tokens)[0].mean()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(target)

    (loss, grads), (same, others) = gradient(made.config), gradient(dataclasses.replace(made.config, remat=True))
    assert float(loss) == pytest.approx(float(same), rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    low, _ = gradient(dataclasses.replace(made.config, dtype="bfloat16"))
    assert abs(float(low - loss)) < 0.1
    assert float(low) != float(loss)


def test_remat_computes_again_and_captures_and_caches_as_before():
    made, tokens = model("gemma3"), text()
    again = nnx.merge(nnx.split(Transformer(dataclasses.replace(made.config, remat=True), nnx.Rngs(0)))[0],
                      nnx.state(made))  # fmt: skip
    programs = [str(jax.make_jaxpr(lambda t, m=m: m(t).logits)(tokens)) for m in (made, again)]
    assert ["remat" in p or "checkpoint" in p for p in programs] == [False, True]
    named = ["mlp_post.1", "z.2", "resid_post.0"]
    add = {"mlp_out.0": lambda v, at: v + 1.0}

    def both(m):
        out = m(tokens, capture=named, edits=add, cache=empty_cache(m.config, 2, 32))
        return out.logits, out.captured, m(tokens[:, :1], cache=out.cache).logits

    (logits, captured, after), want = (jax.jit(both)(m) for m in (made, again))
    np.testing.assert_allclose(logits, want[0], atol=1e-5)
    np.testing.assert_allclose(after, want[2], atol=1e-5)
    for site in named:
        np.testing.assert_allclose(captured[site], want[1][site], atol=1e-5)


def test_models_are_stacked_and_differentiated_without_a_change_to_them():
    """Cache and captures are values: under vmap and grad nothing of a model is written to."""
    first, second, tokens = model("qwen3", 0), model("qwen3", 5), text()
    graph, states = nnx.split(first)[0], [nnx.state(m) for m in (first, second)]
    before = jax.tree.map(np.array, states)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)

    def one(state):
        out = nnx.merge(graph, state)(tokens, capture=["mlp_post.1"], cache=empty_cache(first.config, 2, 32))
        return out.logits, out.captured["mlp_post.1"], out.cache

    found = jax.jit(jax.vmap(one))(stacked)
    for i, m in enumerate((first, second)):
        want = m(tokens, capture=["mlp_post.1"], cache=empty_cache(m.config, 2, 32))
        np.testing.assert_allclose(found[0][i], want.logits, atol=1e-5)
        np.testing.assert_allclose(found[1][i], want.captured["mlp_post.1"], atol=1e-5)
        for a, b in zip(jax.tree.leaves(found[2]), jax.tree.leaves(want.cache), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-5)
    grads = jax.jit(jax.grad(lambda state: jnp.sum(one(state)[1])))(states[0])
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) > 0
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(states), strict=True):
        np.testing.assert_array_equal(a, b)


# --- sites ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EACH)
def test_every_site_is_captured_and_an_edit_of_it_is_felt(kind):
    made, tokens = model(kind), text()
    named = sites.names(made.config)
    plain = made(tokens)
    assert plain.captured == {}
    out = made(tokens, capture=named)
    assert list(out.captured) == named
    np.testing.assert_array_equal(out.logits, plain.logits)
    for site in named:
        value = out.captured[site]
        if not site.startswith("pattern"):
            assert np.prod(value.shape[2:]) == sites.width(made.config, site)
        same = made(tokens, edits={site: lambda v, at: v + 0}, capture=[site])
        # an edited pattern is multiplied as it is, and else divided by its sum behind the product
        np.testing.assert_allclose(same.logits, plain.logits, rtol=0, atol=1e-5 if site.startswith("pattern") else 0)
        other = made(tokens, edits={site: lambda v, at: v + jnp.linspace(0, 1, v.size).reshape(v.shape)})
        assert jnp.abs(other.logits - plain.logits).max() > 1e-4, site


@pytest.mark.parametrize("kind", ["gpt2", "neox", "gemma3"])
def test_the_residual_is_the_sum_of_what_is_written(kind):
    made, tokens = model(kind), text()
    got = made(tokens, capture=sites.names(made.config)).captured
    x = got["embed"] + got.get("pos_embed", 0)
    for layer in range(3):
        np.testing.assert_allclose(got[f"resid_pre.{layer}"], x, atol=1e-5)
        x = x + got[f"attn_out.{layer}"] + got[f"mlp_out.{layer}"]
        np.testing.assert_allclose(got[f"resid_post.{layer}"], x, atol=1e-5)
    np.testing.assert_allclose(got["logits"], made(tokens).logits, atol=1e-6)
    np.testing.assert_allclose(got["pattern.1"].sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", EACH)
def test_each_site_holds_what_its_name_says(kind):
    made, tokens = model(kind), text()
    c, got = made.config, made(tokens, capture=sites.names(model(kind).config)).captured
    equal = lambda site, value: np.testing.assert_allclose(got[site], value, atol=2e-5, err_msg=site)  # noqa: E731
    bias = lambda module, name: getattr(module, name)[...] if hasattr(module, name) else 0  # noqa: E731
    for i, block in enumerate(made.blocks):
        attn, post_norms = block.attn, c.post_norms
        equal(f"attn_in.{i}", block.ln1(got[f"resid_pre.{i}"]))
        for name in "qk":  # a rotation keeps lengths
            said = attn.project(name.upper(), got[f"attn_in.{i}"])
            said = getattr(attn, f"{name}_norm")(said) if c.qk_norm else said
            assert c.positions == "rotary" or np.allclose(got[f"{name}.{i}"], said, atol=2e-5)
            length = np.linalg.norm(got[f"{name}.{i}"], axis=-1)
            np.testing.assert_allclose(length, np.linalg.norm(said, axis=-1), rtol=1e-4)
        equal(f"v.{i}", attn.project("V", got[f"attn_in.{i}"]))
        values = np.repeat(got[f"v.{i}"], c.heads // c.groups, axis=2)
        equal(f"z.{i}", np.einsum("bhts,bshk->bthk", got[f"pattern.{i}"], values))
        out = np.einsum("bthk,hkd->btd", got[f"z.{i}"], attn.W_O[...]) + bias(attn, "b_O")
        equal(f"attn_out.{i}", block.ln1_post(jnp.asarray(out)) if post_norms else out)
        if not c.d_mlp:
            continue
        mlp, before = block.mlp, got[f"resid_pre.{i}"]
        if not c.parallel:
            before = before + got[f"attn_out.{i}"]
            equal(f"resid_mid.{i}", before)
        read = got[f"mlp_in.{i}"]
        equal(f"mlp_in.{i}", block.ln2(before))
        first, b = ("W_gate", "b_gate") if c.gated else ("W_in", "b_in")
        equal(f"mlp_pre.{i}", read @ getattr(mlp, first)[...] + bias(mlp, b))
        act = {"silu": jax.nn.silu, "relu": jax.nn.relu, "gelu": lambda x: jax.nn.gelu(x, approximate=False),
               "gelu_tanh": jax.nn.gelu}[c.act](got[f"mlp_pre.{i}"])  # fmt: skip
        if c.gated:
            equal(f"mlp_linear.{i}", read @ mlp.W_in[...] + bias(mlp, "b_in"))
            act = act * got[f"mlp_linear.{i}"]
        equal(f"mlp_post.{i}", act)
        out = got[f"mlp_post.{i}"] @ mlp.W_out[...] + bias(mlp, "b_out")
        equal(f"mlp_out.{i}", block.ln2_post(out) if post_norms else out)
    equal("final_norm", made.ln_final(got[f"resid_post.{c.layers - 1}"]))
    W = made.W_E[...].T if c.tied else made.W_U[...]
    logits = got["final_norm"] @ W
    equal("logits", c.logit_cap * jnp.tanh(logits / c.logit_cap) if c.logit_cap else logits)


def test_aliases_mean_sites():
    config = model("gpt2").config
    for alias, site in {
        "blocks.1.hook_resid_pre": "resid_pre.1", "blocks.2.attn.hook_z": "z.2", "blocks.0.mlp.hook_post": "mlp_post.0",
        "blocks.0.hook_mlp_out": "mlp_out.0", "hook_embed": "embed", "blocks.1.hook_resid_mid": "resid_mid.1",
        "resid_post.-1": "resid_post.2", "blocks.1.attn.hook_q": "q.1", "hook_pos_embed": "pos_embed",
        "blocks.0.hook_resid_post": "resid_post.0", "blocks.2.hook_attn_out": "attn_out.2",
        "blocks.1.attn.hook_k": "k.1", "blocks.1.attn.hook_v": "v.1", "blocks.1.attn.hook_pattern": "pattern.1",
        "blocks.0.mlp.hook_pre": "mlp_pre.0",
    }.items():  # fmt: skip
        assert sites.resolve(config, alias) == site
        assert alias == "resid_post.-1" or sites.plain(alias) == site
    rotary = model("llama").config
    for alias, site in {
        "blocks.1.attn.hook_rot_q": "q.1", "blocks.0.attn.hook_rot_k": "k.0", "blocks.2.mlp.hook_pre_linear":
        "mlp_linear.2",
    }.items():  # fmt: skip
        assert sites.resolve(rotary, alias) == site
    folded = checkpoints.fold_norms(model("llama")).config
    for alias, site in {"blocks.1.ln1.hook_normalized": "attn_in.1", "ln_final.hook_normalized": "final_norm"}.items():
        assert sites.resolve(folded, alias) == site
    for name, said in {
        "blocks.3.hook_resid_pre": "layers are 0 to 2", "resid_mid": "it has embed", "blocks.1.attn.hook_q": "rotation",
        "blocks.1.ln2.hook_normalized": "fold them",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=said):
            sites.resolve(rotary, name)
    with pytest.raises(ValueError, match=r"no site 'resid_mid\.1'"):
        sites.resolve(model("neox").config, "resid_mid.1")
    assert sites.resolve(checkpoints.fold_norms(model("llama")).config, "blocks.1.ln2.hook_normalized") == "mlp_in.1"


def test_what_comes_after_the_last_site_is_not_computed():
    made, tokens = model(layers=3), text()
    cost = lambda site: jax.jit(sites.capture(made, [site])).lower(tokens).compile().cost_analysis()["flops"]  # noqa: E731
    first, last = cost("resid_post.0"), cost("resid_post.2")
    assert first < 0.4 * last


# --- files, weight processing, sharding -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "attention only"])
def test_weight_processing_leaves_logits_as_they_are(kind):
    made, tokens = model(kind), text()
    want = made(tokens).logits
    folded = checkpoints.fold_norms(made)
    assert not any(path.endswith(("ln1.w", "ln2.w", "ln_final.w")) for path in checkpoints.weights(folded))
    np.testing.assert_allclose(folded(tokens).logits, want, atol=3e-5 * float(jnp.abs(want).max()))
    if made.config.norm == "layer":
        centred = checkpoints.center_writes(folded)
        np.testing.assert_allclose(centred(tokens).logits, want, atol=3e-5 * float(jnp.abs(want).max()))
        resid = centred(tokens, capture=["resid_post.0"]).captured["resid_post.0"]
        assert jnp.abs(resid.mean(-1)).max() < 1e-5
        assert jnp.abs(made(tokens, capture=["resid_post.0"]).captured["resid_post.0"].mean(-1)).max() > 0.01
    else:
        with pytest.raises(checkpoints.ModelError, match="LayerNorms"):
            checkpoints.center_writes(folded)
    if made.config.logit_cap is None:
        got = checkpoints.center_unembed(made)(tokens).logits
        np.testing.assert_allclose(jax.nn.log_softmax(got), jax.nn.log_softmax(want), atol=1e-4)
        assert jnp.abs(got.mean(-1)).max() < 1e-4


def test_our_own_files_come_back_equal(tmp_path):
    made = model("gemma3")
    for _ in range(2):  # over one that stands there
        checkpoints.save(tmp_path / "m", made, {"tokenizer": "abc"})
    back, about = checkpoints.read_own(tmp_path / "m")
    assert about == {"tokenizer": "abc"}
    assert back.config == made.config
    np.testing.assert_array_equal(back(text()).logits, made(text()).logits)
    low = checkpoints.read(tmp_path / "m", dtype="bfloat16")
    assert low.config == dataclasses.replace(made.config, dtype="bfloat16")
    assert checkpoints.weights(low)["W_E"].dtype == jnp.bfloat16
    with pytest.raises(checkpoints.ModelError, match="does not exist"):
        checkpoints.read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(checkpoints.ModelError, match=r"config\.json"):
        checkpoints.read(tmp_path / "empty")


def write_llama2c(path, made):
    """Version 0 of llama2.c's format; a negative vocabulary says that the unembedding stands at the end."""
    c, held = made.config, {name: np.asarray(value) for name, value in checkpoints.weights(made).items()}
    neighbours = np.empty(c.d_head, int)  # our halves, as pairs that stand side by side
    neighbours[0::2], neighbours[1::2] = np.split(np.arange(c.d_head), 2)
    each = lambda name: [held[f"blocks.{i}.{name}"] for i in range(c.layers)]  # noqa: E731
    turned = lambda name: [w[..., neighbours].reshape(c.d_model, -1).T for w in each(name)]  # noqa: E731
    parts = [
        held["W_E"], *each("ln1.w"), *turned("attn.W_Q"), *turned("attn.W_K"),
        *(w.reshape(c.d_model, -1).T for w in each("attn.W_V")),
        *(w.reshape(-1, c.d_model).T for w in each("attn.W_O")),
        *each("ln2.w"), *(w.T for name in ("W_gate", "W_out", "W_in") for w in each(f"mlp.{name}")),
        held["ln_final.w"], np.zeros((2, c.context, c.d_head // 2)),
    ]  # fmt: skip
    sizes = (c.d_model, c.d_mlp, c.layers, c.heads, c.kv_heads, c.vocab if c.tied else -c.vocab, c.context)
    parts += [] if c.tied else [held["W_U"].T]
    path.write_bytes(np.array(sizes, "<i4").tobytes() + b"".join(np.asarray(p, "<f4").tobytes() for p in parts))


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_files_with_and_without_a_tied_head(tied, tmp_path):
    made = model(kv_heads=2, tied=tied, rotary=Rotary())
    write_llama2c(tmp_path / "m.bin", made)
    found = checkpoints.read(tmp_path / "m.bin")
    assert found.config.tied == tied
    want = made(text()).logits
    np.testing.assert_allclose(found(text()).logits, want, atol=1e-5 * float(jnp.abs(want).max()))


@real
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw[:-4], "its header says"),
        (lambda raw: raw[:20], "less than a header"),
        (lambda raw: b"\xff" * 28 + raw[28:], "no llama2.c model"),
        (lambda raw: raw[:100] + b"\xff\xff\xff\xff" + raw[104:], "NaN"),
    ],
)
def test_damaged_llama2c_files_are_refused(change, said, tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(change(Path(DATA, "stories260K.bin").read_bytes()))
    with pytest.raises(checkpoints.ModelError, match=said) as error:
        checkpoints.read(path)
    assert "\n" not in str(error.value)


def test_the_loss_of_a_mask():
    logits = jax.random.normal(jax.random.key(0), (2, 5, 7))
    tokens = text(2, 5, vocab=7)
    nll, counts = next_token_loss(logits, tokens, tokens != 3)
    want = -jax.nn.log_softmax(logits)[jnp.arange(2)[:, None], jnp.arange(4), tokens[:, 1:]]
    np.testing.assert_allclose(nll, want, rtol=1e-5)
    np.testing.assert_array_equal(counts, tokens[:, 1:] != 3)


def test_specs_split_heads_neurons_and_vocabulary():
    specs = param_specs(nnx.state(model("gpt2")))
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(specs)}
    said = {path: getattr(leaf, "get_value", lambda leaf=leaf: leaf)() for path, leaf in flat.items()}
    P = jax.sharding.PartitionSpec
    assert said["blocks.0.attn.W_Q"] == P(None, "model")
    assert said["blocks.2.mlp.W_out"] == P("model")
    assert said["W_pos"] == P()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kv_heads": 3}, "must divide heads=4"),
        ({"act": "swiglu"}, "unknown act"),
        ({"windows": (3,)}, "one for each of 3 layers"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"rotary": Rotary(dims=3)}, "an even number"),
        ({"tied": True, "unembed_bias": True}, "no bias of its own"),
    ],
)
def test_impossible_configs_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        Config(**{**TINY, **values})


def test_unknown_sites_are_refused_and_not_passed_over():
    made, tokens = model(), text()
    for name in ("mlp_out.7", "blocks.0.hook_mlp_out", "mlp_out.-1", "resid_mid"):
        with pytest.raises(ValueError, match="the model has no site"):
            made(tokens, edits={name: lambda value, at: value})
        with pytest.raises(ValueError, match="the model has no site"):
            made(tokens, capture=[name])


def test_a_full_cache_is_refused():
    made, tokens = model(), text()
    cache = made(tokens[:, :3], cache=empty_cache(made.config, len(tokens), 4)).cache
    with pytest.raises(ValueError, match="3 tokens more than 3 don't fit in a cache with space for 4"):
        made(tokens[:, :3], cache=cache)


def test_too_many_tokens_are_refused():
    made = model("gpt2")
    with pytest.raises(ValueError, match="more than the context of 32"):
        made(text(1, 33))
    with pytest.raises(ValueError, match="must fit in the context"):
        generate(made, text(1, 30), 3)
    with pytest.raises(ValueError, match="don't fit in a cache"):
        made(text(1, 8), cache=empty_cache(made.config, 1, 4))
