"""Fidelity and label scores against what they must be: no-ops, ablations, brute force, planted units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from superpose.interp import fidelity, labels
from superpose.interp.harvest import Harvest
from superpose.interp.labels import Batch
from superpose.lm import sites
from superpose.lm.text import Contexts
from superpose.lm.transformer import Config, Transformer, next_token_loss
from superpose.sae.model import SAE, Architecture

CONFIG = Config(vocab=30, d_model=12, layers=2, heads=3, d_head=4, d_mlp=16, context=10, positions="learned",
                norm="layer", act="relu", gated=False, mlp_bias=True)  # fmt: skip


def model():
    return Transformer(CONFIG, nnx.Rngs(1))


def texts(n=21):
    rng = np.random.default_rng(0)
    return Contexts(
        rng.integers(0, 30, (n, 10)).astype(np.int32), rng.integers(4, 11, n).astype(np.int32),
        np.sort(rng.integers(0, 6, n)).astype(np.int32), np.zeros(n, np.int32), None, (),
    )  # fmt: skip


# --- fidelity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_post.0", "mlp_post.1", "z.0"])
def test_identity_costs_nothing_and_zero_is_the_ablation(site):
    m, t = model(), texts()
    mean = np.asarray(m(t.tokens, capture=[site]).captured[site]).mean((0, 1))
    replacements = {
        "same": lambda x: x,
        "nothing": lambda x: 0 * x,
        "average": lambda x: jnp.broadcast_to(mean, x.shape),
    }
    totals = fidelity.measure(m, site, replacements, t, mean.reshape(-1), batch=8)
    found = fidelity.scores(totals)
    assert found["same"].delta[0] == pytest.approx(0, abs=1e-6)
    assert found["same"].recovered_zero[0] == pytest.approx(1, abs=1e-5)
    assert found["same"].kl_mean[0] == pytest.approx(1, abs=1e-5)
    assert found["nothing"] == found["zero"]
    assert found["zero"].recovered_zero[0] == 0
    assert found["average"].loss == pytest.approx(found["mean"].loss, abs=1e-6)
    nll, counts = next_token_loss(m(t.tokens).logits, t.tokens, t.mask)
    want = float((nll * counts).sum() / counts.sum())
    assert found["clean"].loss[0] == pytest.approx(want, rel=1e-5)
    assert found["clean"].loss[1] < want < found["clean"].loss[2]
    assert totals.tokens.sum() == counts.sum()


def test_losses_are_those_of_edited_passes_and_special_tokens_stay():
    m, t = model(), texts()
    half = lambda x: 0.5 * x  # noqa: E731
    totals = fidelity.measure(m, "mlp_out.0", {"half": half}, t, np.zeros(12), special=(3, 4), batch=8)

    def edit(value, at):
        return jnp.where(np.isin(t.tokens, (3, 4))[..., None], value, 0.5 * value)

    logits, clean = m(t.tokens, edits={"mlp_out.0": edit}).logits, m(t.tokens).logits
    nll, counts = next_token_loss(logits, t.tokens, t.mask & ~np.isin(t.tokens, (3, 4)))
    p, q = jax.nn.log_softmax(clean[:, :-1]), jax.nn.log_softmax(logits[:, :-1])
    kl = (jnp.exp(p) * (p - q)).sum(-1) * counts
    found = fidelity.scores(totals)["half"]
    assert found.loss[0] == pytest.approx(float((nll * counts).sum() / counts.sum()), rel=1e-5)
    assert found.kl[0] == pytest.approx(float(kl.sum() / counts.sum()), rel=1e-4)


def test_what_was_not_harvested_stays():
    m, t = model(), texts()
    value = np.asarray(m(t.tokens, capture=["mlp_out.0"]).captured["mlp_out.0"])
    norms = np.linalg.norm(value, axis=-1)
    rest = t.mask & (np.arange(10) >= 2)
    usual = np.array([np.median(n[r]) for n, r in zip(norms, rest, strict=True)])
    stays = (np.arange(10) < 2) | (norms > 1.1 * usual[:, None])
    assert stays[rest].any()
    logits = m(t.tokens, edits={"mlp_out.0": lambda v, at: jnp.where(stays[..., None], v, 0.5 * v)}).logits
    nll, counts = next_token_loss(logits, t.tokens, t.mask)
    half = {"half": lambda x: 0.5 * x}
    found = fidelity.scores(fidelity.measure(m, "mlp_out.0", half, t, np.zeros(12), first=2, outlier=1.1, batch=8))[
        "half"
    ]
    assert found.loss[0] == pytest.approx(float((nll * counts).sum() / counts.sum()), rel=1e-5)


def test_a_transcoder_is_spliced_where_it_writes():
    """One whose latents compute the MLP itself changes nothing."""
    m, t = model(), texts()
    mlp = m.blocks[1].mlp
    arch = Architecture(12, 16, "relu", d_out=12, center=False)
    params = {"W_enc": mlp.W_in[...], "b_enc": mlp.b_in[...], "W_dec": mlp.W_out[...], "b_dec": mlp.b_out[...]}
    replacements = {"mlp": fidelity.through(SAE(arch, params))}
    totals = fidelity.measure(m, "mlp_out.1", replacements, t, np.zeros(12), reads="mlp_in.1", batch=8)
    assert fidelity.scores(totals)["mlp"].delta[0] == pytest.approx(0, abs=1e-6)
    assert abs(fidelity.scores(totals)["zero"].delta[0]) > 1e-3


def test_baselines_grow_to_the_identity():
    m, t = model(), texts()
    rows = list(Harvest(sites.capture(m, ["mlp_post.0"]), t, 7).rows(np.arange(21)))
    found = fidelity.moments(rows, "mlp_post.0")
    x = np.concatenate([r.values["mlp_post.0"] for r in rows])
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(x.T, bias=True), atol=1e-5)
    replacements = {f"pca{k}": fidelity.pca(found, k) for k in (2, 8, 16)}
    replacements |= {f"neurons{k}": fidelity.top_neurons(k) for k in (0, 4, 16)}
    kl = {k: s.kl[0] for k, s in
          fidelity.scores(fidelity.measure(m, "mlp_post.0", replacements, t, found.mean, batch=8)).items()}  # fmt: skip
    assert kl["pca2"] > kl["pca8"] > kl["pca16"] == pytest.approx(0, abs=1e-6)
    assert kl["neurons0"] > kl["neurons4"] > kl["neurons16"] == pytest.approx(0, abs=1e-6)
    assert kl["neurons0"] == pytest.approx(kl["zero"])


def test_a_published_example_comes_out():
    """Cross-entropies of a published SAE's evaluation: 0.99755 recovered of zero ablation."""
    loss = np.array([[4.69363, 4.69363], [13.07658, 13.07658], [6.0, 6.0], [4.71414, 4.71414]])
    totals = fidelity.Totals(("clean", "zero", "mean", "sae"), 50 * loss, 50 * (loss - loss[0]), np.array([50, 50]))
    found = fidelity.scores(totals)["sae"]
    assert found.recovered_zero[0] == pytest.approx(0.99755, abs=5e-6)
    assert found.delta[0] == pytest.approx(0.02051)
    assert found.recovered_mean[0] == pytest.approx((6 - 4.71414) / (6 - 4.69363))


def test_intervals_are_over_documents():
    """A document's contexts are one draw: said four times over they tell no more, as four documents they would."""
    m, t = model(), texts(24)._replace(documents=np.arange(24, dtype=np.int32))

    def width(documents):
        four = [np.concatenate([a] * 4) for a in t[:2]]
        all_ = Contexts(*four, documents.astype(np.int32), np.zeros(96, np.int32), None, ())
        low, high = fidelity.scores(fidelity.measure(m, "mlp_out.0", {"x": lambda x: 0.3 * x}, all_, np.zeros(12)))[
            "x"
        ].loss[1:]
        return high - low

    same, more = width(np.tile(np.arange(24), 4)), width(np.arange(96))
    once = fidelity.scores(fidelity.measure(m, "mlp_out.0", {"x": lambda x: 0.3 * x}, t, np.zeros(12)))["x"].loss
    assert same == pytest.approx(once[2] - once[1], rel=1e-4)
    assert more < 0.7 * same


def test_bad_fidelity_is_refused():
    m, t = model(), texts()
    with pytest.raises(ValueError, match="NaN or infinite: look into the SAE"):
        fidelity.measure(m, "mlp_out.0", {"x": lambda x: x / 0}, t, np.zeros(12))
    with pytest.raises(ValueError, match="can't be named mean"):
        fidelity.measure(m, "mlp_out.0", {"mean": lambda x: x}, t, np.zeros(12))
    with pytest.raises(ValueError, match="no site"):
        fidelity.measure(m, "mlp_out.7", {}, t, np.zeros(12))
    none = fidelity.measure(m, "mlp_out.0", {}, t._replace(lengths=np.ones(21, np.int32)), np.zeros(12))
    with pytest.raises(ValueError, match="no prediction"):
        fidelity.scores(none)


# --- labels -----------------------------------------------------------------------------------------------------------


def planted(seed=0, n=4000, units=7):
    """Unit 2 says label 0 above 1, unit 4 says label 1 by silence, token 5 says label 2, nobody says label 3."""
    rng = np.random.default_rng(seed)
    documents, tokens = np.repeat(np.arange(40), n // 40), rng.integers(0, 9, n)
    y = np.stack([rng.random(n) < 0.2, rng.random(n) < 0.3, tokens == 5, rng.random(n) < 0.1], 1)
    x = np.maximum(rng.normal(size=(n, units)), 0).astype(np.float32)
    x[:, 2] = np.where(y[:, 0], 2 + rng.random(n), 0.9 * rng.random(n))
    x[:, 4] = np.where(y[:, 1], 0, 1 + rng.random(n))

    def stream(size=300):
        for i in range(0, n, size):
            rows = slice(i, i + size)
            yield Batch(x[rows], y[rows], documents[rows], tokens[rows])

    return stream, x, y, documents, tokens


def test_planted_units_are_found_and_scored_on_the_other_half():
    stream, x, y, documents, _ = planted()
    found = labels.best_units(stream, sides=True)
    assert found.unit[:2].tolist() == [2, 4]
    assert found.below[:2].tolist() == [False, True]
    assert (found.f1[:2] > 0.99).all()
    assert found.f1[2] < 0.4
    assert found.f1[3] < 0.4
    assert (found.low <= found.f1).all()
    assert (found.f1 <= found.high).all()
    odd = documents % 2 == 1
    for label, unit in enumerate(found.unit):
        chosen = [np.corrcoef(x[~odd, u], y[~odd, label])[0, 1] for u in range(x.shape[1])]
        near = int(np.abs(chosen).argmax())
        want = np.sign(chosen[near]) * np.corrcoef(x[odd, near], y[odd, label])[0, 1]
        assert found.correlation[label] == pytest.approx(want, abs=1e-6)
        says = (x[odd, unit] > found.threshold[label]) != found.below[label]
        hits = (says & y[odd, label]).sum()
        assert found.precision[label] == pytest.approx(hits / says.sum())
        assert found.recall[label] == pytest.approx(hits / y[odd, label].sum())
        assert found.f1[label] == pytest.approx(2 * hits / (says.sum() + y[odd, label].sum()))
    assert labels.best_units(stream).unit[1] != 4


def test_few_values_above_zero_are_counted_alike(monkeypatch):
    _, x, y, documents, tokens = planted()
    x = np.where(np.random.default_rng(5).random(x.shape) < 0.03, x, 0)
    x[documents == 3] = 0  # a batch without a single one
    assert 0 < (x > 0).mean() < labels.DENSE

    def stream():
        return iter([Batch(x[i : i + 300], y[i : i + 300], documents[i : i + 300], tokens[:300])
                     for i in range(0, len(x), 300)])  # fmt: skip

    found = labels.best_units(stream)
    monkeypatch.setattr(labels, "_count", None)
    again = labels.best_units(stream)  # without what counts all values
    monkeypatch.undo()
    monkeypatch.setattr(labels, "DENSE", -1.0)
    whole = labels.best_units(stream)
    for part in labels.Best._fields:
        np.testing.assert_allclose(getattr(found, part), getattr(whole, part), rtol=1e-6, err_msg=part)
        np.testing.assert_array_equal(getattr(found, part), getattr(again, part))


def test_the_best_by_f1_need_not_be_the_best_by_correlation():
    """Unit 0 tells the label without fail, by values of a heavy tail; unit 1 errs, and varies with it."""
    rng = np.random.default_rng(0)
    n = 8000
    y = rng.random((n, 1)) < 0.2
    x = np.stack([y[:, 0] * np.exp(3 * rng.normal(size=n)), y[:, 0] ^ (rng.random(n) < 0.03)], 1).astype(np.float32)
    documents = np.arange(n) // 100
    found = labels.best_units(lambda: iter([Batch(x, y, documents, np.zeros(n, int))]))
    assert found.unit[0] == 0
    assert found.f1[0] > 0.98
    odd = documents % 2 == 1
    assert found.correlation[0] == pytest.approx(np.corrcoef(x[odd, 1], y[odd, 0])[0, 1], abs=1e-6)
    assert found.correlation[0] > 0.8 > 0.5 > np.corrcoef(x[odd, 0], y[odd, 0])[0, 1]


def test_the_choice_is_the_best_of_all_units_and_thresholds():
    stream, x, y, documents, _ = planted(3)
    even = documents % 2 == 0
    found = labels.best_units(stream)
    for label in range(4):
        best = 0.0
        for unit in range(7):
            for share in labels.FRACTIONS:
                says = x[even, unit] > np.float32(share * x[even, unit].max())
                hits = (says & y[even, label]).sum()
                best = max(best, 2 * hits / (says.sum() + y[even, label].sum()))
        assert found.chosen_f1[label] == pytest.approx(best, abs=1e-6)


def test_a_unit_may_detect_by_being_far_below_zero():
    rng = np.random.default_rng(0)
    y = rng.random((4000, 1)) < 0.1
    x = (rng.normal(size=(4000, 1)) - 8 * y).astype(np.float32)
    documents, tokens = np.arange(4000) // 100, np.zeros(4000, int)
    for sign in (1, -1):
        found = labels.best_units(lambda sign=sign: iter([labels.Batch(sign * x, y, documents, tokens)]), sides=True)
        assert found.f1[0] > 0.97
        assert found.below[0] == (sign == 1)
    assert labels.best_units(lambda: iter([labels.Batch(x, y, documents, tokens)])).f1[0] < 0.3


def test_a_token_is_a_detector_by_itself():
    stream, _, y, documents, tokens = planted()
    found = labels.by_token(stream, 9)
    assert found.f1[2] == 1
    even, odd = documents % 2 == 0, documents % 2 == 1
    share = np.array([y[even & (tokens == v), 0].mean() for v in range(9)])
    best = max(
        2 * (says & y[even, 0]).sum() / (says.sum() + y[even, 0].sum())
        for cut in share
        if (says := share[tokens[even]] >= cut).any()
    )
    assert found.chosen_f1[0] == pytest.approx(best)
    assert found.correlation[2] == pytest.approx(1)
    assert odd.any()


def test_halves_without_documents_are_refused():
    with pytest.raises(ValueError, match="even number"):
        labels.best_units(
            lambda: [Batch(np.ones((2, 1), np.float32), np.ones((2, 1), bool), np.ones(2, int), np.ones(2))]
        )
    with pytest.raises(ValueError, match="odd number"):
        labels.best_units(
            lambda: [Batch(np.ones((2, 1), np.float32), np.ones((2, 1), bool), np.zeros(2, int), np.ones(2))]
        )
