"""Codes against dense activations, explanations against planted predicates, matches against plain correlations,
probes against what was planted."""

import json
import re

import numpy as np
import pytest
from flax import nnx
from scipy import sparse
from sklearn.metrics import roc_auc_score

from superpose.interp import codes, compare, explain, judge, labels, probe
from superpose.interp.codes import CodesError
from superpose.lm.text import Contexts
from superpose.lm.transformer import Config, Transformer
from superpose.sae.model import SAE, Architecture

CONFIG = Config(vocab=30, d_model=12, layers=1, heads=3, d_head=4, d_mlp=16, context=10, positions="learned",
                norm="layer", act="relu", gated=False, mlp_bias=True)  # fmt: skip


def model():
    return Transformer(CONFIG, nnx.Rngs(1))


def sae(F=20, seed=0, bias=-0.3):
    rng = np.random.default_rng(seed)
    arch = Architecture(16, F, "relu")
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arch.shapes().items()}
    return SAE(arch, params | {"b_enc": np.full(F, bias, np.float32)})


def contexts(n=21):
    rng = np.random.default_rng(0)
    return Contexts(
        rng.integers(0, 30, (n, 10)).astype(np.int32), rng.integers(4, 11, n).astype(np.int32),
        np.sort(rng.integers(0, 6, n)).astype(np.int32), np.zeros(n, np.int32), None, (),
    )  # fmt: skip


def dense(m, s, t, special=(), first=0):
    x = m(t.tokens, capture=["mlp_post.0"]).captured["mlp_post.0"]
    keep = t.mask & ~np.isin(t.tokens, special) & (np.arange(10) >= first)
    return np.where(keep.reshape(-1, 1), np.asarray(s.encode(x)).reshape(-1, s.arch.d_sae), 0), np.asarray(x), keep


def correlations(x, y):
    """Pearson's r of columns, plainly; 0 where one does not vary."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :])


def written(path, s=None, **changes):
    settings = {"units": "mlp_post.0", "special": (3,), "first": 1, "passes": 4, "part": 8, **changes}
    return codes.write(path, model(), s or sae(), "mlp_post.0", contexts(), {"sae": "a"}, **settings)


# --- codes ------------------------------------------------------------------------------------------------------------


def test_codes_are_the_activations_by_latent(tmp_path):
    found = written(tmp_path / "codes")
    want, x, keep = dense(model(), sae(), contexts(), (3,), 1)
    assert 0.05 < (want > 0).mean() < 0.8
    np.testing.assert_allclose(found.block(0, 20).toarray(), want, atol=1e-5)
    np.testing.assert_allclose(found.block(7, 12).toarray(), want[:, 7:12], atol=1e-5)
    assert found.block(0, 20).has_sorted_indices
    assert np.array_equal(found.counts, (want != 0).sum(0))
    assert found.kept == keep.sum()
    rows = keep.reshape(-1)
    values = x.reshape(-1, 16)[rows]
    r = correlations(want[rows], values)
    own, theirs = (np.linalg.norm(a, axis=0) for a in (want[rows], values))
    cosine = want[rows].T @ values / np.maximum(own[:, None] * theirs, 1e-9)
    for some in (range(20), [11, 2]):
        for said, expected in zip(found.unit_correlations(some), (r, cosine), strict=True):
            np.testing.assert_allclose(said, expected[list(some)], atol=1e-5)
    np.testing.assert_allclose(found.columns([11, 2, 3, 19]).toarray(), want[:, [11, 2, 3, 19]], atol=1e-5)
    assert found.columns([2, 3, 11]).has_sorted_indices
    with pytest.raises(ValueError, match="not within the 20"):
        found.block(3, 21)


def test_a_stopped_run_goes_on_and_other_codes_are_refused(tmp_path):
    place = tmp_path / "codes"
    whole = written(place).block(0, 20).toarray()
    (place / "000001.json").unlink()  # as after a kill within this part
    with pytest.raises(CodesError, match="lacks 1 of 3 parts"):
        codes.Codes(place)
    untouched = (place / "000000.values.npy").stat().st_mtime_ns
    assert np.array_equal(written(place).block(0, 20).toarray(), whole)
    assert (place / "000000.values.npy").stat().st_mtime_ns == untouched
    with pytest.raises(CodesError, match="first differ"):
        written(place, first=0)
    with pytest.raises(CodesError, match="latents, sae differ"):
        written(place, sae(19))
    with pytest.raises(CodesError, match="sae differ"):
        written(place, sae(seed=2))  # other weights of the same sizes
    for name, changed in (("model", {"model": Transformer(CONFIG, nnx.Rngs(2))}),
                          ("texts", {"contexts": contexts()._replace(lengths=contexts().lengths - 1)})):  # fmt: skip
        of = {"model": model(), "contexts": contexts(), **changed}
        with pytest.raises(CodesError, match=f"holds codes of something else \\({name} differ\\)"):
            codes.write(place, of["model"], sae(), "mlp_post.0", of["contexts"], {"sae": "a"}, units="mlp_post.0",
                        special=(3,), first=1, passes=4, part=8)  # fmt: skip
    with pytest.raises(ValueError, match=r"the SAE reads 16 numbers and resid_post.0 has 12"):
        codes.write(tmp_path / "b", model(), sae(), "resid_post.0", contexts(), {})
    with pytest.raises(ValueError, match="NaN or infinite"):
        written(tmp_path / "c", sae(bias=np.nan))
    raw = bytearray((place / "000000.values.npy").read_bytes())
    raw[-3] ^= 4
    (place / "000000.values.npy").write_bytes(raw)
    with pytest.raises(CodesError, match=r"000000.values.npy is damaged"):
        codes.Codes(place)
    (place / "codes.json").write_text(json.dumps({"version": 0, "latents": 1, "contexts": 1, "context": 1, "part": 1}))
    with pytest.raises(CodesError, match="another version"):
        codes.Codes(place)
    with pytest.raises(CodesError, match="holds no codes"):
        codes.Codes(tmp_path / "nowhere")
    (place / "codes.json").write_text("{")
    for broken in (lambda: written(place), lambda: codes.Codes(place)):
        with pytest.raises(CodesError, match="holds no codes"):
            broken()


# --- explanations -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """4,000 contexts; units that are exactly one of the predicates, and one that is noise."""
    rng = np.random.default_rng(0)
    n, C = 4000, 12
    ids = rng.integers(0, 25, (n, C)).astype(np.int32)
    lengths = rng.integers(6, C + 1, n).astype(np.int32)
    bits = rng.random((n, C, 3)) < 0.2
    t = Contexts(ids, lengths, np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.packbits(bits, axis=2), ())
    before = np.pad(ids, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    twice = np.pad(ids, ((0, 0), (2, 0)), constant_values=-1)[:, :-2]
    truth = {
        "token": np.isin(ids, (4, 9)),
        "token before": np.isin(before, (7, 8, 11)),
        "pair": (before == 3) & (ids == 5) | (before == 2) & (ids == 6),
        "triple": (twice == 1) & (before < 6) & (before >= 0) & (ids < 12),
        "label": bits[..., 1],
        "place": np.broadcast_to(np.arange(C) < 4, ids.shape),
        "noise": rng.random(ids.shape) < 0.1,
        "silent": np.zeros(ids.shape, bool),
    }
    values = np.stack([v & t.mask for v in truth.values()], -1) * rng.uniform(0.5, 2, (n, C, len(truth)))
    units = sparse.csc_array(values.reshape(n * C, -1))
    return list(truth), explain.Tokens(t, ("a", "b", "c")), units, values.reshape(n * C, -1)


def test_planted_predicates_are_found(planted):
    names, tokens, units, _ = planted
    found = explain.explain(units, tokens)
    of = dict(zip(names, zip(*found, strict=True), strict=True))
    for name in ("token", "token before", "pair"):
        kind, _, chosen, precision, recall, f1, members, named, auroc, _, single, _ = of[name]
        assert kind == name
        assert chosen == precision == recall == f1 == named == auroc == 1
        assert members == {"token": 2, "token before": 3, "pair": 2}[name]
        assert not single
    assert of["token"][1] in ("the token is '<4>', '<9>'", "the token is '<9>', '<4>'")
    assert of["token before"][1].startswith("the token before is ")
    assert "'<11>'" in of["token before"][1]
    assert "'<3><5>'" in of["pair"][1]
    assert "'<2><6>'" in of["pair"][1]
    assert of["label"][:2] == ("label", "b")
    assert of["label"][5] == 1
    assert of["place"][:2] == ("label", "among the first 4 tokens")
    assert of["place"][5] == 1
    assert of["triple"][5] < 0.5  # 72 triples, each too rare to be chosen
    assert of["noise"][1] == "among the first 16 tokens"  # all are: nothing says more of noise, and nothing is ranked
    assert of["noise"][5] < 0.2
    assert np.isnan(of["noise"][8])
    assert of["silent"][0] == ""
    assert of["silent"][5:8] == (0, 0, 0)
    assert np.isnan(of["silent"][4])


def test_kinds_with_more_to_choose_from_win_only_where_they_hold_elsewhere(monkeypatch):
    rng = np.random.default_rng(3)
    n, C = 4000, 12
    ids = rng.integers(0, 12, (n, C)).astype(np.int32)
    bits = rng.random((n, C, 2)) < 0.3
    t = Contexts(ids, np.full(n, C, np.int32), np.arange(n, dtype=np.int32), np.zeros(n, np.int32),
                 np.packbits(bits, axis=2), ())  # fmt: skip
    tokens = explain.Tokens(t, ("a", "b"))
    fit, rival = tokens.fit.reshape(n, C), tokens.rival.reshape(n, C)
    assert np.array_equal(np.flatnonzero(rival[:, 0]), np.arange(0, n, 4))  # half of the documents of even number
    assert not (rival & ~fit).any()
    before, twice = (np.pad(ids, ((0, 0), (k, 0)), constant_values=-1)[:, :-k] for k in (1, 2))
    triple = ((twice == 1) & (before == 2) & (ids == 3)) | ((twice == 4) & (before == 0) & (ids == 5))
    often, more = np.isin(ids, (1, 2)), np.isin(ids, (3, 4, 5)) & (rng.random((n, C)) < 0.03)
    noisy = bits[..., 1] & (rng.random((n, C)) < 0.05)
    units = sparse.csc_array(np.stack([triple, often | more, noisy], -1).reshape(n * C, -1).astype(float))
    found = explain.explain(units, tokens)
    assert found.kind.tolist() == ["triple", "token", "label"]
    assert found.f1[0] == 1
    said = found.text[0].removeprefix("the last three tokens say ").split(", ")
    assert sorted(said) == ["'<1><2><3>'", "'<4><0><5>'"]
    assert found.text[1] in ("the token is '<1>', '<2>'", "the token is '<2>', '<1>'")  # three more say hardly more
    assert found.text[2] == "b"
    # triples chosen and compared on the same texts would have won: each that is right by chance is in the set
    monkeypatch.setattr(explain.Tokens, "_parts", (tokens.fit, tokens.fit, tokens.fit, tokens.score))
    fooled = explain.explain(units, explain.Tokens(t, ("a", "b")))
    assert fooled.kind[2] == "triple"
    assert fooled.chosen_f1[2] > found.chosen_f1[2]
    assert fooled.f1[2] < found.f1[2] - 0.03


def test_a_unit_that_nothing_fits_gets_a_predicate_that_is_one(planted):
    """Not the empty set."""
    t = planted[1]._contexts
    tokens = explain.Tokens(t._replace(starts=t.starts + 100, labels=None))  # at none of the places
    inside = tokens.keep & (np.arange(len(tokens.ids)) % 12 > 1)
    unit = np.zeros(len(inside))
    for part, token in ((tokens.fit & ~tokens.rival, 3), (tokens.rival, 7)):  # after two others that are rare before it
        unit[np.flatnonzero(part & inside & (tokens.ids == token) & (np.roll(tokens.ids, 1) == token))[0]] = 1
    found = explain.explain(sparse.csc_array(unit[:, None]), tokens)
    assert found.f1[0] == 0
    assert found.kind[0] in explain.FAMILIES
    assert found.members[0] > 0
    assert found.text[0]


def test_bytes_that_make_a_character_together_are_written_as_it():
    ids = np.tile(np.array([1, 2, 3, 0, 1, 4, 3, 0, 5, 6], np.int32), (400, 1))
    n = len(ids)
    t = Contexts(ids, np.full(n, 10, np.int32), np.arange(n, dtype=np.int32), np.zeros(n, np.int32), None, ())
    pieces = [b" ", b"\xd8", b"\xb7", b"a\\", b"\n", b"'", b"\xff"]
    tokens = explain.Tokens(t, pieces=pieces)
    said = [explain._text(f, np.array([m]), 1, tokens) for f, m in
            (("pair", tokens.families["pair"][0][1]), ("token", 3), ("token", 6), ("token", 1))]  # fmt: skip
    assert said == ["the last two tokens say 'ط'", "the token is 'a\\'", "the token is '\\xff'", "the token is '\\xd8'"]


def test_tokens_that_can_t_be_seen_are_named():
    """A line break is no backslash and an n, and neither the start of a text nor a special token is nothing."""
    ids = np.tile(np.array([0, 1, 2, 3, 4, 5, 6], np.int32), (40, 1))
    t = Contexts(ids, np.full(40, 7, np.int32), np.arange(40, dtype=np.int32), np.zeros(40, np.int32), None, ())
    tokens = explain.Tokens(t, pieces=[b"", b"\n", b"\\", b"n", b"'", "\u202e".encode(), b" \t"])
    at = lambda family, row: explain._text(family, np.array([tokens.families[family][0][row]]), 1, tokens)  # noqa: E731
    assert [at("token", row) for row in (1, 4, 5, 6)] == [
        "the token is '↵'", 'the token is "\'"', "the token is '\\u202e'", "the token is ' ⇥'",
    ]  # fmt: skip
    assert at("pair", 3) == "the last two tokens say '\\n'"
    assert at("triple", 1) == "the last three tokens say '⟨start⟩⟨0⟩↵'"
    assert at("token before", 0) == "the token before is '⟨start⟩'"


def test_scores_are_counted_over_all_tokens_of_the_other_half(planted):
    _, tokens, units, values = planted
    found = explain.explain(units, tokens)
    u = 2
    ids = tokens._contexts.tokens
    before = np.pad(ids, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    partial = values[:, u] * (np.random.default_rng(1).random(len(values)) < 0.5)  # half of what the predicate says
    one = explain.explain(sparse.csc_array(partial[:, None]), tokens)
    holds = (((before == 3) & (ids == 5)) | ((before == 2) & (ids == 6))).reshape(-1)[tokens.score]
    on = (partial > 0)[tokens.score]
    assert one.kind[0] == "pair"
    assert one.precision[0] == pytest.approx((holds & on).sum() / holds.sum())
    assert one.recall[0] == pytest.approx((holds & on).sum() / on.sum())
    v = partial[tokens.score]
    pairs = v[holds][:, None] - v[~holds][None]
    assert one.auroc[0] == pytest.approx((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    assert found.tokens.tolist() == (values != 0).sum(0).tolist()


def test_resampled_documents_give_the_scores_of_those_texts(planted):
    """F1 of each draw, counted by hand from the documents drawn; of a label, of a set, and of a silent unit."""
    names, tokens, units, values = planted
    documents = np.repeat(tokens._contexts.documents, tokens._contexts.tokens.shape[1])
    again = labels.resampling(documents, groups=7, draws=20, seed=1)
    assert np.array_equal(np.bincount(again.group[tokens.score]) > 0, np.ones(7, bool))
    assert (again.weights.sum(1) == 7).all()
    noisy = values * (np.random.default_rng(2).random(values.shape) < 0.4)
    noisy[..., 1] += (np.random.default_rng(3).random(len(values)) < 0.01) * tokens.keep
    found = explain.explain(sparse.csc_array(noisy), tokens, again)
    counts = again.weights[:, again.group] * tokens.score  # [draws, N]
    ids = tokens.ids.reshape(tokens._contexts.tokens.shape)
    before = np.pad(ids, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    pair = (((before == 3) & (ids == 5)) | ((before == 2) & (ids == 6))).reshape(-1) & tokens.keep
    b = np.unpackbits(tokens._contexts.labels, axis=2, count=3)[..., 1].reshape(-1).astype(bool) & tokens.keep
    for name, kind, holds in (("pair", "pair", pair), ("label", "label", b)):
        u = names.index(name)
        on = noisy[:, u] != 0
        assert found.kind[u] == kind
        want = 2 * (counts @ (on & holds)) / (counts @ on + counts @ holds)
        np.testing.assert_allclose(found.draws[u], want, rtol=1e-9)
    assert np.ptp(found.draws[names.index("label")]) > 0
    assert not found.draws[names.index("silent")].any()
    assert explain.explain(units, tokens).draws.shape == (len(names), 0)


def test_tokens_that_match_a_pattern_are_a_predicate(planted):
    _, tokens, _, _ = planted
    words = [b"7", b" 12", b"\xd8", "\u05d0\u05d1".encode(), b" Word", b"", *(f"x{i}".encode() for i in range(19))]
    t = tokens._contexts
    with_pieces = explain.Tokens(t, ("a", "b", "c"), pieces=words)
    names, held = with_pieces.predicates
    for name, ids in (("digits", (0, 1)), ("bytes of no whole character", (2,)), ("Hebrew", (3,)),
                      ("a capitalised word", (4,))):  # fmt: skip
        column = held[:, [names.index(f"the token is {name}")]].toarray().ravel() > 0
        assert np.array_equal(column, np.isin(t.tokens.reshape(-1), ids) & with_pieces.keep)
    assert "the token is Thai" not in names
    own = explain.Tokens(t, pieces=words, patterns={"x and a 1": "x1.*"})
    unit = np.isin(tokens.ids, (7, *range(16, 25))) * tokens.keep
    found = explain.explain(sparse.csc_array(unit[:, None].astype(float)), own)
    assert (found.text[0], found.f1[0]) == ("the token is x and a 1", 1.0)
    assert len(tokens.predicates[0]) == 6  # places and labels alone, without pieces


def test_what_chance_and_a_single_token_get(planted):
    _names, tokens, units, values = planted
    noise = explain.explain(explain.shuffled(units, tokens.keep, 0), tokens)
    assert noise.tokens.tolist() == (values != 0).sum(0).tolist()
    share = (values != 0).sum(0) / tokens.keep.sum()
    assert (noise.f1 <= 2 * share / (1 + share) + 0.03).all()  # no better than what is always on
    one = np.where(tokens.ids == 4, values[:, 0], 0)[:, None]
    assert explain.explain(sparse.csc_array(one), tokens).single[0]
    held = explain.loudest(np.random.default_rng(0).normal(size=values.shape), tokens.keep, 0.05)
    assert np.allclose((held != 0).sum(0), round(0.05 * tokens.keep.sum()), atol=1)
    assert not held.toarray()[~tokens.keep].any()


def test_signed_latents_and_ties_in_the_area_under_the_curve():
    rng = np.random.default_rng(0)
    v = np.round(rng.normal(size=60), 1) * (rng.random(60) < 0.6)
    holds = rng.random(60) < 0.4
    on = v != 0
    pairs = v[holds][:, None] - v[~holds][None]
    got = explain._auroc(v[on], holds[on], int(holds.sum()), int((~holds).sum()))
    assert got == pytest.approx((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    assert np.isnan(explain._auroc(v[on], holds[on], 0, 60))


def test_explanations_need_two_halves():
    t = contexts()
    for documents in (1, explain.FEW - 1):  # contexts in the place of documents
        few = explain.Tokens(t._replace(documents=(np.arange(21) * documents // 21).astype(np.int32)))
        assert few.halves == "contexts"
        assert np.array_equal(few.fit.reshape(21, 10).any(1), np.arange(21) % 2 == 0)
        assert np.array_equal(few.rival.reshape(21, 10).any(1), np.arange(21) % 4 == 0)
    assert explain.Tokens(t._replace(documents=np.arange(21, dtype=np.int32))).halves == "documents"
    assert explain.Tokens(t._replace(documents=2 * np.arange(21, dtype=np.int32))).halves == "contexts"
    with pytest.raises(ValueError, match="drawn anew from each half, and one has fewer than two"):
        labels.resampling(np.array([1, 3, 4]))
    assert np.bincount(labels.resampling(np.array([0, 1, 2, 3, 5, 7, 9])).group).tolist() == [4, 3]
    with pytest.raises(ValueError, match="give more"):
        explain.Tokens(t.rows(np.arange(1)))


def test_loudest_units_have_the_density_asked_for():
    values = np.random.default_rng(0).normal(size=(1000, 3))
    held = explain.loudest(values, np.arange(1000) < 800, np.array([0.01, 0.1, 0.3]))
    assert (held != 0).sum(0).tolist() == [8, 80, 240]
    assert held.toarray()[:, 1].nonzero()[0].tolist() == sorted(np.argsort(-values[:800, 1])[:80].tolist())


# --- judges -----------------------------------------------------------------------------------------------------------


def test_a_judge_that_knows_is_right_and_one_that_does_not_gets_a_half(planted):
    names, tokens, _, values = planted
    pieces, t = [f"({i})".encode() for i in range(25)], tokens._contexts
    column = values[:, names.index("token")]
    rows = column.nonzero()[0]
    asked = []

    def knows(explanation, texts):
        asked.append((explanation, list(texts)))
        marked = [re.findall("<<(.*?)>>", x) for x in texts]
        if any(marked):
            return [float(all(re.fullmatch(r"(\((4|9)\))+", m) for m in found)) for found in marked]
        return [float("(4)" in x or "(9)" in x) for x in texts]

    def score(of, **more):
        return judge.score(of, "4 or 9", rows, column[rows], t, tokens.keep, pieces, each=40, **more)

    found = score(knows)
    assert found == (1.0, 1.0, 80)
    (why, texts), (_, marked) = asked
    assert why == "4 or 9"
    assert len(texts) == 80
    assert len(marked) == 40
    assert 0 < sum("<<(4)" in x or "<<(9)" in x for x in marked) < 40
    assert score(lambda e, x: [1.0] * len(x))[:2] == (0.5, 0.5)
    assert score(lambda e, x: [1 - v for v in knows(e, x)])[:2] == (0.0, 0.0)
    assert score(knows, seed=1) == found
    assert asked[-2][1] != texts
    with pytest.raises(ValueError, match=r"a number from 0 to 1 of each of the 80 texts, and said \(79,\)"):
        score(lambda e, x: [1.0] * (len(x) - 1))
    with pytest.raises(ValueError, match="from 0 to 1"):
        score(lambda e, x: [float("nan")] * len(x))
    always = np.flatnonzero(tokens.keep)
    one = judge.score(knows, "", always, np.ones(len(always)), t, tokens.keep, pieces)
    assert np.isnan(one.detection)  # no text without the feature
    assert np.isnan(one.fuzzing)


def test_windows_lie_within_the_text_and_hold_the_token():
    t = Contexts(np.arange(200, dtype=np.int32).reshape(2, 100), np.array([100, 60], np.int32),
                 np.arange(2, dtype=np.int32), np.zeros(2, np.int32), None, ())  # fmt: skip
    for row, want in ((0, (0, 0, 32)), (50, (0, 34, 66)), (99, (0, 68, 100)), (158, (1, 28, 60))):
        assert judge._window(row, t) == want
    assert judge._text(np.array([0, 1, 1, 2]), [b"a", b"b", b"\xff"], np.array([False, True, True, False])) == (
        "a<<bb>>\\xff"
    )


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_matches_are_those_of_plain_correlation(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "BLOCK", 7)
    a, b = written(tmp_path / "a"), written(tmp_path / "b", sae(33, seed=1))
    x, _, keep = dense(model(), sae(), contexts(), (3,), 1)
    y = dense(model(), sae(33, seed=1), contexts(), (3,), 1)[0]
    rows = keep.reshape(-1)
    r = correlations(x[rows], y[rows])
    found = compare.correlated(a, b, 3)
    live = x.any(0)
    np.testing.assert_allclose(found.score[live], -np.sort(-r, 1)[live, :3], atol=1e-5)
    assert np.array_equal(found.number[live, 0], r.argmax(1)[live])
    own = compare.correlated(a, a, 1)
    assert (own.number[:, 0] != np.arange(20)).all()
    assert (compare.correlated(a, written(tmp_path / "again")).score[live] > 0.9999).all()
    moved = compare.elsewhere(rows, 37)
    assert sorted(moved) == list(range(len(rows)))
    assert not (moved[rows] == np.flatnonzero(rows)).any()
    chance = compare.correlated(a, b, 1, moved=moved).score
    shifted = np.zeros_like(y)
    shifted[moved] = y
    np.testing.assert_allclose(chance[live, 0], correlations(x[rows], shifted[rows]).max(1)[live], atol=1e-5)
    assert chance.mean() < found.score[:, :1].mean()
    other = contexts()
    other.tokens[0, 0] += 1
    elsewhere = codes.write(tmp_path / "o", model(), sae(), "mlp_post.0", other, {})
    with pytest.raises(ValueError, match="are of other tokens"):
        compare.correlated(a, elsewhere)


def test_documents_are_resampled_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "BLOCK", 7)
    a, b = written(tmp_path / "a"), written(tmp_path / "b", sae(33, seed=1))
    x, _, keep = dense(model(), sae(), contexts(), (3,), 1)
    y = dense(model(), sae(33, seed=1), contexts(), (3,), 1)[0]
    number = compare.correlated(a, b).number[:, 0]
    documents, rows = np.repeat(contexts().documents, 10), keep.reshape(-1)
    found = compare.resampled(a, b, number, documents, rows, draws=40, seed=5)
    names = np.unique(documents)
    picks = np.random.default_rng(5).multinomial(len(names), np.full(len(names), 1 / len(names)), 40)
    for draw in (0, 17):
        some = np.concatenate([np.flatnonzero((documents == d) & rows) for d, k in zip(names, picks[draw], strict=True)
                               for _ in range(k)])  # fmt: skip
        want = [correlations(x[some, i : i + 1], y[some, j : j + 1])[0, 0] if j >= 0 else 0
                for i, j in enumerate(number)]  # fmt: skip
        np.testing.assert_allclose(found[draw], want, atol=1e-5)
    assert found.std(0)[x.any(0)].min() > 0


def test_masked_cosine_is_one_of_itself_and_symmetric(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "BLOCK", 7)
    a, b = written(tmp_path / "a"), written(tmp_path / "b", sae(33, seed=1))
    x, y = a.block(0, 20).toarray(), b.block(0, 33).toarray()
    found = compare.masked_cosine(a, b, 0.2).toarray()
    cosine = lambda u, v: u @ v / np.sqrt((u @ u) * (v @ v)) if (u @ u) * (v @ v) else 0.0  # noqa: E731
    for i in (0, 8, 19):
        for j in range(33):
            one = max(cosine(x[x[:, i] > 0, i], y[x[:, i] > 0, j]), cosine(x[y[:, j] > 0, i], y[y[:, j] > 0, j]))
            assert found[i, j] == pytest.approx(one if one > 0.2 else 0, abs=1e-5)
    np.testing.assert_allclose(compare.masked_cosine(b, a, 0.2).toarray(), found.T, atol=1e-6)
    live = x.any(0)
    np.testing.assert_allclose(np.diag(compare.masked_cosine(a, a).toarray())[live], 1, atol=1e-5)


def test_nearest_directions():
    rng = np.random.default_rng(0)
    b = rng.normal(size=(40, 6)).astype(np.float32)
    order = rng.permutation(40)
    found = compare.nearest(3 * b[order], b, 2)
    assert np.array_equal(found.number[:, 0], order)
    np.testing.assert_allclose(found.score[:, 0], 1, atol=1e-5)
    assert (found.score[:, 1] < 1).all()


def test_stitching_is_the_change_of_the_error():
    small, big = sae(20), sae(33, seed=1)
    x = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    found = compare.stitch(small, big, [x[:20], x[20:]])
    left, acts = x - np.asarray(small(x)), np.asarray(big.encode(x))
    for j in (0, 5, 32):
        with_it = left - acts[:, j : j + 1] * np.asarray(big.W_dec[j])
        assert found.change[j] == pytest.approx(((with_it**2).sum() - (left**2).sum()) / (left**2).sum(), abs=1e-5)
    assert np.array_equal(found.fires, (acts != 0).sum(0))


# --- probes -----------------------------------------------------------------------------------------------------------


def test_probes_read_what_was_planted_and_nothing_else():
    """A label that one unit says, one that two say together, one that none says, one that is too rare."""
    rng = np.random.default_rng(0)
    N = 6000
    y = rng.random((N, 4)) < [0.2, 0.3, 0.3, 0.002]
    x = rng.normal(size=(N, 12)).astype(np.float32)
    x[:, 3] += 4 * y[:, 0]
    x[:, 5] += 1.5 * y[:, 1]
    x[:, 8] -= 1.5 * y[:, 1]
    fit, score = np.arange(N) % 3 == 0, np.arange(N) % 3 == 1
    found = probe.probe(x, y, fit, score, ks=(1, 2))
    assert found.units[0, 0] == 3
    assert set(found.units[1]) == {5, 8}
    assert found.auroc[0, 0] == pytest.approx(0.998, abs=0.003)  # Phi(4 / sqrt 2)
    np.testing.assert_allclose(found.auroc[1], [0.856, 0.933], atol=0.02)  # Phi(1.5 / sqrt 2), Phi(1.5)
    np.testing.assert_allclose(found.accuracy[1], [0.773, 0.856], atol=0.03)  # Phi(0.75), Phi(1.5 / sqrt 2)
    np.testing.assert_allclose(found.auroc[2], 0.5, atol=0.04)
    assert np.isnan(found.auroc[3]).all()
    again = labels.resampling(np.arange(N) // 30, groups=9, draws=30)
    drawn = probe.probe(x, y, fit, score, ks=(1, 2), again=again)
    np.testing.assert_array_equal(drawn.auroc, found.auroc)
    assert np.isnan(drawn.draws[:, 3]).all()
    values, true = x[:, found.units[1, 0]] * (1 if found.units[1, 0] == 5 else -1), y[:, 1]
    rare = np.random.default_rng(5).random(N) < 0.004  # a latent that is on at fewer tokens than there are levels
    thin_unit = np.where(rare & (rng.random(N) < 0.8) | (rng.random(N) < 0.0005), rng.random(N) + 0.5, 0)
    sparse_draws = probe._drawn(thin_unit[score], rare[score], again.group[score], again.weights)
    for weights, said in zip(again.weights[:4], sparse_draws[:4], strict=True):
        want = roc_auc_score(rare[score], thin_unit[score], sample_weight=weights[again.group][score])
        assert said == pytest.approx(want, abs=1e-4)
    for weights, said in zip(again.weights[:4], drawn.draws[:4, 1, 0], strict=True):
        want = roc_auc_score(true[score], values[score], sample_weight=weights[again.group][score])
        assert said == pytest.approx(want, abs=1e-3)
    thin = probe.probe(sparse.csc_array(x), y, fit, score, ks=(1, 2))
    np.testing.assert_allclose(thin.auroc, found.auroc, atol=1e-6)
    elsewhere = x.copy()
    elsewhere[np.arange(N) % 3 == 2] = 100  # neither fitted nor scored
    np.testing.assert_allclose(probe.probe(elsewhere, y, fit, score, ks=(1, 2)).auroc, found.auroc, atol=1e-6)
