"""Steering against what it must be: no-ops to the bit, decode(c) plus the error, derivatives, cached generation."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from superpose.interp import steer
from superpose.interp.steer import Change, steering
from superpose.lm.text import Contexts
from superpose.lm.transformer import Config, Transformer, generate
from superpose.sae.model import SAE, Architecture

CONFIG = Config(vocab=30, d_model=12, layers=2, heads=3, d_head=4, d_mlp=16, context=16, positions="learned",
                norm="layer", act="relu", gated=False, mlp_bias=True)  # fmt: skip
SITES = ("resid_post.0", "mlp_post.1", "z.0", "mlp_out.0")


def model(**changes):
    return Transformer(replace(CONFIG, **changes), nnx.Rngs(1))


def sae(d=12, F=20, seed=0, **changes):
    rng = np.random.default_rng(seed)
    arch = Architecture(d, F, "relu", **changes)
    params = {name: rng.normal(size=shape).astype(np.float32) * 0.4 for name, shape in arch.shapes().items()}
    return SAE(arch, params)


def tokens(rows=5, length=10):
    return np.random.default_rng(3).integers(0, 30, (rows, length)).astype(np.int32)


def contexts(rows=7):
    rng = np.random.default_rng(0)
    return Contexts(
        tokens(rows), rng.integers(4, 11, rows).astype(np.int32), np.arange(rows, dtype=np.int32),
        np.zeros(rows, np.int32), None, (),
    )  # fmt: skip


def width(site):
    return 16 if site == "mlp_post.1" else 12


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_changes_nothing_changes_no_bit(site, dtype):
    m, s, x = model(dtype=dtype), sae(width(site)), tokens()
    changes = [
        Change(3, "add", 0.0),
        Change(4, "scale", 1.0),
        Change(5, "floor", -1.0),
        Change(6, "ablate", given=7, above=1e9),
    ]
    steered = steering(m.config, s, site, changes)
    assert np.array_equal(m(x, edits=steered.edits()).logits, m(x).logits)
    nowhere = steering(m.config, s, site, [Change(1, "clamp", 9.0)], start=4, end=4)
    assert np.array_equal(m(x, edits=nowhere.edits()).logits, m(x).logits)


@pytest.mark.parametrize("site", SITES)
def test_changes_are_decode_of_the_new_latents_plus_the_error(site):
    m, s, x = model(), sae(width(site)), tokens()
    h = m(x, capture=[site]).captured[site].reshape(*x.shape, -1)
    f = s.encode(h)
    assert float((f > 0).mean()) > 0.2
    c = f.at[..., 2].set(1.5).at[..., 3].multiply(-2.0).at[..., 4].set(0.0).at[..., 5].add(0.7)
    c = c.at[..., 6].set(jnp.maximum(f[..., 6], 0.6))
    changes = [Change(2, "clamp", 1.5), Change(3, "scale", -2.0), Change(4, "ablate"), Change(5, "add", 0.7),
               Change(6, "floor", 0.6)]  # fmt: skip
    steered = steering(m.config, s, site, changes)
    got = m(x, capture=[site], edits=steered.edits()).captured[site].reshape(*x.shape, -1)
    np.testing.assert_allclose(got, s.decode(c) + (h - s.decode(f)), atol=2e-5)
    assert float(jnp.abs(got - h).max()) > 0.1
    dropped = replace(steered, keep_error=False)
    got = m(x, capture=[site], edits=dropped.edits()).captured[site].reshape(*x.shape, -1)
    np.testing.assert_allclose(got, s.decode(c), atol=2e-5)


def test_adding_shifts_by_exactly_so_much_where_it_is_asked_to():
    m, s, x = model(), sae(), tokens()
    site = "resid_post.1"
    h = np.asarray(m(x, capture=[site]).captured[site])
    ends = np.array([0, 3, 10, 5, 7])
    steered = steering(m.config, s, site, [Change(8, "add", 2.0)], start=2, end=ends, special=[int(x[2, 4])])
    got = np.asarray(m(x, capture=[site], edits=steered.edits()).captured[site])
    at = np.arange(10)
    where = (at >= 2) & (at < ends[:, None]) & (x != x[2, 4])
    assert where.any()
    assert not where.all()
    want = h + 2 * np.asarray(s.W_dec[8]) * where[..., None]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.array_equal(got[~where], h[~where])


def test_replacing_leaves_nothing_else_along_the_direction():
    m, s, x = model(), sae(), tokens()
    d = np.asarray(s.W_dec[1])
    steered = steering(m.config, s, "resid_post.1", [Change(1, "replace", 0.5)])
    h, got = (
        np.asarray(m(x, capture=["resid_post.1"], edits=e).captured["resid_post.1"]) for e in (None, steered.edits())
    )
    np.testing.assert_allclose(got @ d / (d @ d), 0.5, atol=1e-5)
    across = np.eye(12) - np.outer(d, d) / (d @ d)
    np.testing.assert_allclose(got @ across, h @ across, atol=1e-5)


def test_a_change_may_depend_on_a_latent():
    m, s, x = model(), sae(), tokens()
    f = np.asarray(s.encode(m(x, capture=["resid_post.0"]).captured["resid_post.0"]))
    steered = steering(m.config, s, "resid_post.0", [Change(1, "add", 1.0, given=2, above=0.3)])
    h, got = (
        np.asarray(m(x, capture=["resid_post.0"], edits=e).captured["resid_post.0"]) for e in (None, steered.edits())
    )
    on = f[..., 2] > 0.3
    assert on.any()
    assert not on.all()
    assert np.array_equal((got != h).any(-1), on)


def test_a_transcoder_reads_before_it_writes():
    m, s, x = model(), sae(12, d_out=12, center=False), tokens()
    steered = steering(m.config, s, "mlp_out.1", [Change(3, "clamp", 2.0)], reads="mlp_in.1")
    found = m(x, capture=["mlp_in.1", "mlp_out.1"]).captured
    f = s.encode(found["mlp_in.1"])
    got = m(x, capture=["mlp_out.1"], edits=steered.edits()).captured["mlp_out.1"]
    np.testing.assert_allclose(got, found["mlp_out.1"] + (2.0 - f[..., 3:4]) * s.W_dec[3], atol=1e-5)
    with pytest.raises(ValueError, match="must read before it writes"):
        steering(m.config, s, "mlp_out.0", [Change(3)], reads="mlp_in.1")
    with pytest.raises(ValueError, match="must read before it writes"):
        steering(m.config, s, "mlp_in.1", [Change(3)], reads="mlp_out.1")


@pytest.mark.parametrize("part", ["generated", *(pytest.param(p, marks=pytest.mark.ci) for p in ("prompt", "all"))])
def test_generation_with_a_cache_is_steered_like_whole_passes(part):
    m, s = model(), sae()
    prompt, pad = tokens(3, 4), np.array([0, 2, 1])
    long = 4 - pad
    start, end = {"prompt": (0, long), "generated": (long, None), "all": (0, None)}[part]
    steered = steering(m.config, s, "resid_post.0", [Change(2, "add", 8.0)], start=start, end=end)
    got = np.asarray(generate(m, prompt, 6, pad=pad, edits=steered.edits()))
    whole = np.pad(np.asarray(prompt), ((0, 0), (0, 6)))  # later tokens are not seen
    for n in range(4, 10):
        whole[:, n] = m(whole, pad=pad, edits=steered.edits()).logits[:, n - 1].argmax(-1)
    assert np.array_equal(got, whole[:, 4:])
    assert not np.array_equal(got, generate(m, prompt, 6, pad=pad))


def test_what_is_written_is_judged_by_the_model_that_is_not_steered():
    m, s = model(), sae()
    prompt, pad = tokens(3, 4), np.array([0, 2, 1])
    steered = steering(m.config, s, "resid_post.0", [Change(2, "add", 8.0)])
    new, loss = steer.write(m, steered, prompt, pad, jax.random.key(0), 6, 0.7)
    whole = np.concatenate([prompt, new], 1)
    said = jax.nn.log_softmax(m(whole, pad=pad).logits)
    other = jax.nn.log_softmax(m(whole, pad=pad, edits=steered.edits()).logits)
    for row in range(3):
        clean, moved = (-np.mean([float(x[row, t - 1, whole[row, t]]) for t in range(4, 10)]) for x in (said, other))
        assert float(loss[row]) == pytest.approx(clean, abs=1e-4)
        assert abs(clean - moved) > 0.01


def test_strengths_of_a_batch_may_differ():
    m, s, x = model(), sae(), np.repeat(tokens(1), 3, 0)
    one = steering(m.config, s, "mlp_out.0", [Change(2, "clamp", 1.0)])
    many = replace(one, values=jnp.array([[0.5], [1.0], [-4.0]]))
    got = m(x, edits=many.edits()).logits
    for i, value in enumerate((0.5, 1.0, -4.0)):
        alone = replace(one, values=jnp.array([value]))
        np.testing.assert_allclose(got[i], m(x[:1], edits=alone.edits()).logits[0], atol=1e-5)


# --- predictions ------------------------------------------------------------------------------------------------------


def test_logit_weights_are_what_a_model_without_a_norm_says():
    m, x = model(norm="none", parallel=True), tokens()  # attention and MLP of the last layer write to the logits alone
    for site in ("mlp_post.1", "z.1", "mlp_out.1"):
        d = np.random.default_rng(1).normal(size=(1, width(site))).astype(np.float32)
        shifted = m(x, edits={site: lambda v, at, d=d: v + d.reshape(v.shape[2:])}).logits
        want = steer.logit_weights(m, site, d)[0]
        np.testing.assert_allclose(shifted - m(x).logits, np.broadcast_to(want, shifted.shape), atol=1e-4)
    layer = model()
    w = np.asarray(steer.logit_weights(layer, "mlp_out.0", np.ones((1, 12), np.float32)))
    np.testing.assert_allclose(w, 0, atol=1e-5)  # a constant is taken out by the norm
    with pytest.raises(ValueError, match="does not write linearly"):
        steer.logit_weights(layer, "mlp_pre.0", np.ones((1, 16), np.float32))


@pytest.mark.parametrize(("site", "exact"), [("resid_post.1", True), ("mlp_post.1", True), ("mlp_out.0", False)])
def test_predictions_are_derivatives_and_agree_where_no_layer_follows(site, exact):
    m, s, t = model(), sae(width(site)), contexts()
    steered = steering(m.config, s, site, [Change(2, "add", 1e-3)])
    found = steer.effects(m, steered, t, [1, 2], batch=4)
    slope, r, _ = steer.agreement(found.gradient.sum(0), found.moved.sum())
    assert slope == pytest.approx(1, abs=0.01)
    assert r > 0.999
    assert found.gradient_wanted.sum() == pytest.approx((found.wanted - found.clean_wanted).sum(), rel=0.05)
    if exact:
        np.testing.assert_allclose(found.direct_wanted, found.gradient_wanted, rtol=1e-3, atol=1e-7)
    slope, r, _ = steer.agreement(found.direct.sum(0), found.moved.sum())
    assert (abs(slope - 1) < 0.01 and r > 0.999) == exact
    large = steer.effects(m, replace(steered, values=jnp.array([6.0])), t, [1, 2], batch=4)
    assert steer.agreement(large.gradient.sum(0), large.moved.sum())[1] < 0.999
    assert large.kl.sum() > 100 * found.kl.sum()


def test_effects_are_those_of_edited_passes():
    m, s, t = model(), sae(), contexts()
    steered = steering(m.config, s, "resid_post.0", [Change(2, "clamp", 3.0), Change(5, "ablate")])
    found = steer.effects(m, steered, t, [1, 7, 9], batch=4)
    clean, after = (jax.nn.log_softmax(m(t.tokens, edits=e).logits) for e in (None, steered.edits()))
    counts = t.mask[:, 1:]
    kl = (jnp.exp(clean) * (clean - after)).sum(-1)[:, :-1]
    np.testing.assert_allclose(found.kl, (kl * counts).sum(1), rtol=1e-4)
    nll = -np.take_along_axis(np.asarray(after)[:, :-1], t.tokens[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(found.loss, (nll * counts).sum(1), rtol=1e-4)
    wanted = np.asarray(after)[:, :-1][..., [1, 7, 9]].mean(-1)
    np.testing.assert_allclose(found.wanted, (wanted * counts).sum(1), rtol=1e-4)
    assert np.array_equal(found.tokens, counts.sum(1))
    assert np.array_equal(found.moved, t.mask.sum(1))
    nothing = steer.effects(m, replace(steered, start=jnp.int32(99)), t, [1], batch=4)
    assert not nothing.kl.any()
    assert not nothing.moved.any()
    np.testing.assert_array_equal(nothing.loss, nothing.clean_loss)


def test_controls_are_as_large_and_point_elsewhere():
    m, s = model(), sae()
    steered = steering(m.config, s, "resid_post.0", [Change(2, "add", 3.0), Change(5, "add", 1.0)])
    found = steer.controls(steered, jax.random.key(0), range(20))
    assert set(found) == {"random", "opposite", "shuffled", "other"}
    size = np.linalg.norm(steered.directions, axis=-1)
    for name, control in found.items():
        np.testing.assert_allclose(np.linalg.norm(control.directions, axis=-1), size, rtol=1e-5)
        cosine = (control.directions * steered.directions).sum(-1) / size**2
        assert (np.abs(cosine + 1) < 1e-5).all() if name == "opposite" else (cosine < 0.99).all()
    with pytest.raises(ValueError, match="other live latents"):
        steer.controls(steered, jax.random.key(0), [2, 5, 6])


@pytest.mark.parametrize(
    ("changes", "site", "says"),
    [
        ([], "resid_post.0", "give at least one change"),
        ([Change(20)], "resid_post.0", "no latent 20: they are 0 to 19"),
        ([Change(1, given=-3)], "resid_post.0", "no latent -3"),
        ([Change(1.5)], "resid_post.0", "named by a whole number, got 1.5"),
        ([Change(1, given=2, above=float("nan"))], "resid_post.0", "what latent 2 must be above is no number"),
        ([Change(1, "push")], "resid_post.0", "unknown rule 'push': choose one of add"),
        ([Change(1, "add", float("nan"))], "resid_post.0", "must be finite"),
        ([Change(1, "add", 1e31)], "resid_post.0", "must be finite and below 1e30"),
        ([Change(1)], "mlp_post.0", "the SAE reads 12 numbers and mlp_post.0 has 16"),
        ([Change(1)], "resid_post.7", "no site"),
    ],
)
def test_what_can_t_be_steered_gets_one_sentence(changes, site, says):
    with pytest.raises(ValueError, match=says):
        steering(CONFIG, sae(), site, changes)


def test_strengths_that_overflow_are_named():
    m, s, t = model(norm="none"), sae(), contexts()
    steered = steering(m.config, s, "resid_post.0", [Change(2, "add", 9e29)])
    with pytest.raises(ValueError, match=r"steering by 9e\+29 makes .* NaN or infinite: take smaller strengths"):
        steer.effects(m, steered, t, [1], batch=4)
