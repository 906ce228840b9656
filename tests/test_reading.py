"""Dashboards and steering as commands, on small models made here; the helpers of the four questions by hand."""

import csv
import dataclasses
import importlib
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import test_language
import test_lm_files
import tokenizers
from flax import nnx
from scipy import sparse, stats
from test_language import folder, run  # noqa: F401

from experiments import language, reading
from experiments.lm import dashboard, monosemantic, predictable, splitting, universality
from experiments.lm import steer as steer_command
from superpose.dashboard import page, worlds
from superpose.interp import compare, steer
from superpose.lm import checkpoints, text
from superpose.lm.python_source import python_source
from superpose.lm.transformer import Config, Transformer
from superpose.sae import formats
from superpose.sae.model import SAE, Architecture
from superpose.train.checkpoint import WorkdirError
from superpose.worlds import prng


def export(path, d=16, F=24, site="resid_post.0", seed=0, **about):
    """An SAE with random weights and one dead latent, as a SAELens folder."""
    rng = np.random.default_rng(seed)
    arch = Architecture(d, F, "relu")
    params = {n: (rng.normal(size=s) * 0.5).astype(np.float32) for n, s in arch.shapes().items()}
    params["b_enc"] -= 0.5
    params["b_enc"][4] = -1e6
    formats.write_saelens(path, arch, params, formats.Metadata(model="m", site=site, **about))
    return SAE(arch, params)


def certain(explanation, texts):
    """A judge that always says yes: one half each."""
    assert explanation
    return [1.0] * len(texts)


@pytest.fixture(scope="module")
def saes(tmp_path_factory):
    place = tmp_path_factory.mktemp("saes")
    export(place / "a")
    export(place / "b", seed=1, F=30)
    return place


def settings(folder, saes, **changes):  # noqa: F811
    return {
        "model": str(folder / "model"), "sae": str(saes / "a"), "corpus.kind": "files",
        "corpus.path": str(folder / "texts"), "context": 32, **changes,
    }  # fmt: skip


def test_a_page_of_all_features(folder, saes, tmp_path, capsys):  # noqa: F811
    """Numbers, labels, matches, doses, Neuronpedia; a second run reads the codes of the first."""
    (tmp_path / "labels.json").write_text('{"3": "a <label>"}')
    of = settings(
        folder, saes, features=(), tokens=4000, others=(str(saes / "b"),), labels=str(tmp_path / "labels.json"),
        page=str(tmp_path / "page.html"), neuronpedia=str(tmp_path / "np"), doses=(0.0, 1.0),
        judge="test_reading:certain",
    )  # fmt: skip
    arrays, claims = run("dashboard", tmp_path, **of)
    html = (tmp_path / "page.html").read_text()
    found = {int(n): page.unpack(data) for n, data in re.findall(r'id="f(\d+)">([^<]*)<', html)}
    assert list(found) == list(range(24)) == arrays["latents"].tolist()
    assert found[3]["name"] == "a <label>"
    assert found[4]["on"] == 0 and arrays["density"][4] == 0  # noqa: PT018
    assert claims[0].holds
    for record in found.values():
        if record["on"]:
            assert record["dose"]["strengths"] == [0.0, 1.0]
            assert record["dose"]["kl"][0] <= record["dose"]["kl"][1]
            assert record["others"]["b"][1][0] >= record["others"]["b"][1][1]
    assert np.isfinite(arrays["effect"]).sum() > 15
    assert np.nanmax(arrays["detection"]) == np.nanmin(arrays["fuzzing"]) == 0.5
    assert found[3]["why"]["detection"] in (0.5, None)
    assert [p.name for p in (tmp_path / "np").iterdir()] == ["batch-0.json"]
    batch = json.loads((tmp_path / "np" / "batch-0.json").read_text())
    features = batch.pop("features")
    assert batch == {"model_id": "model", "layer": 0, "sae_set": "resid_post-a", "sae_id_suffix": None}
    assert [f["feature_index"] for f in features] == list(found)
    theirs = features[3]
    assert theirs.keys() == {
        "feature_index", "activations", "frac_nonzero", "decoder_weights_dist", "vector",
        "correlated_features_indices", "correlated_features_pearson", "correlated_features_l1", "neg_str",
        "neg_values", "pos_str", "pos_values", "freq_hist_data_bar_heights", "freq_hist_data_bar_values",
        "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "neuron_alignment_indices",
        "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices", "correlated_neurons_pearson",
        "correlated_neurons_l1", "dataset", "n_prompts_total", "n_tokens_in_prompt",
    }  # fmt: skip
    assert (theirs["dataset"], theirs["n_tokens_in_prompt"]) == ("texts", 32)
    assert 0 < max(theirs["correlated_neurons_l1"]) <= 1
    assert len({len(theirs[f"correlated_neurons_{part}"]) for part in ("indices", "pearson", "l1")}) == 1
    for one in theirs["activations"]:
        assert len(one["tokens"]) == len(one["values"]) > one["qualifying_token_index"]
    assert theirs["frac_nonzero"] == pytest.approx(arrays["density"][3])
    groups = [g for g in found[3]["groups"] if g[0] not in ("random", "silent")]
    assert len(theirs["activations"]) == sum(last - first for *_, first, last in groups)
    parts = sorted((tmp_path / "codes").rglob("*.npy"))
    before = [p.stat().st_mtime_ns for p in parts]
    capsys.readouterr()
    again, _ = run("dashboard", tmp_path, **{**of, "features": (5, 7), "page": str(tmp_path / "two.html")})
    assert "labels 1 latents that are not shown, 3 first" in capsys.readouterr().err
    assert [p.stat().st_mtime_ns for p in parts] == before
    np.testing.assert_array_equal(again["f1"], arrays["f1"][[5, 7]])
    two = dict(re.findall(r'id="f(\d+)">([^<]*)<', (tmp_path / "two.html").read_text()))
    assert page.unpack(two["7"]) == {**found[7]}


def words(explanation, texts):
    return ["yes"] * len(texts)


def gives_up(explanation, texts):
    raise SystemExit("no more calls today")


def test_what_a_page_can_t_be_made_of_gets_one_sentence(folder, saes, tmp_path):  # noqa: F811
    export(tmp_path / "wide", d=20)
    export(tmp_path / "nowhere", site="resid_post.7")
    formats.write_saelens(
        tmp_path / "siteless", Architecture(16, 4, "relu"),
        {n: np.ones(s, np.float32) for n, s in Architecture(16, 4, "relu").shapes().items()}, formats.Metadata(),
    )  # fmt: skip
    (tmp_path / "unknown.json").write_text('{"24": "x"}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").write_text("")
    target = tmp_path / "page.html"
    for changes, said in (
        ({"sae": str(tmp_path / "wide")}, "the SAE reads 20 numbers and resid_post.0 has 16"),
        ({"sae": str(tmp_path / "nowhere")}, "no site"),
        ({"sae": str(tmp_path / "siteless")}, "does not say of which site it is: give --config.site"),
        ({"sae": ""}, "name a model and an SAE"),
        ({"features": (24,)}, "no latent 24: they are 0 to 23"),
        ({"features": (1.5,)}, "features must be a whole number"),
        ({"tokens": -5}, "tokens must be a whole number of at least 0"),
        ({"doses": ("a",)}, "doses must hold numbers"),
        ({"codes": str(tmp_path / "list.json")}, "is a file: name a folder"),
        ({"neuronpedia": str(tmp_path / "list.json")}, "is a file: name a folder"),
        ({"page": str(tmp_path / "list.json" / "page.html")}, "is a file: name a folder"),
        ({"judge": "os.path:join"}, "the judge failed on feature"),
        ({"judge": "test_reading:words"}, r"the judge failed on feature \d+: it must say numbers from 0 to 1"),
        ({"judge": "test_reading:gives_up"}, r"feature \d+: SystemExit: no more calls today"),
        ({"prompts": ("a", "")}, "prompt 1 of prompts is empty"),
        ({"labels": str(tmp_path / "unknown.json")}, "labels 1 latents that the SAE has not, 24 first"),
        ({"labels": str(tmp_path / "list.json")}, "must map numbers of latents to labels"),
        ({"corpus.path": str(tmp_path / "empty")}, "no file|holds no text|is empty"),
        ({"corpus.path": str(tmp_path / "blank")}, "holds no text"),
        ({"doses": (1e38,), "features": (1,)}, "must be finite and below|take smaller strengths"),
        ({"site": "mlp_post.1"}, r"the SAE reads 16 numbers and mlp_post\.1 has 32"),
        ({"site": "resid_post.1", "reads": "resid_post.0"}, "a transcoder must read before it writes, in one layer"),
        ({"others": (str(tmp_path / "wide"),)}, "reads 20 numbers, and"),
        ({"page": str(tmp_path / "page.txt")}, "must end in .html"),
        ({"judge": "nowhere:at_all"}, "judge 'nowhere:at_all' can't be loaded .*: name it as package.module:function"),
        ({"judge": "test_reading:Path.nothing"}, "can't be loaded"),
        ({"judge": "test_reading:__name__"}, "is no function"),
    ):
        of = settings(folder, saes, **{"page": str(target), "tokens": 2000, **changes})
        with pytest.raises(ValueError, match=said) as error:
            run("dashboard", tmp_path, **of)
        assert "\n" not in str(error.value)
        assert not target.exists()


def test_a_page_that_was_stopped_goes_on_with_the_features_it_has(folder, saes, tmp_path, monkeypatch):  # noqa: F811
    """Killed in its second block, it makes the first no second time, and the page is that of a run without a stop."""
    of = settings(folder, saes, features=(), tokens=2000, ablations=False, doses=(), prompts=("def f(x):", "import"))
    monkeypatch.setattr(dashboard, "BLOCK", 10)
    (tmp_path / "whole").mkdir()
    run("dashboard", tmp_path / "whole", **of)
    real, asked = dashboard.records, []

    def dies(subject, some, **more):
        asked.append(list(some))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(subject, some, **more)

    monkeypatch.setattr(dashboard, "records", dies)
    (tmp_path / "cut").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run("dashboard", tmp_path / "cut", **of)
    assert not list((tmp_path / "cut").glob("*.html"))
    run("dashboard", tmp_path / "cut", **of)
    assert [some[0] for some in asked] == [0, 10, 10, 20]
    pages = [(tmp_path / name / "dashboard.html").read_text() for name in ("whole", "cut")]
    assert pages[0] == pages[1]
    (file,) = (tmp_path / "cut").glob("records/*/000010.json")
    body = file.read_bytes()
    for damaged in (
        body[:-9],
        body.replace(b"0", b"1", 40),
    ):  # a block that is not what its checksum says is made again
        file.write_bytes(damaged)
        asked.clear()
        asked.extend([[0], [10]])
        run("dashboard", tmp_path / "cut", **of)
        assert [some[0] for some in asked[2:]] == [10]
        assert (tmp_path / "cut" / "dashboard.html").read_text() == pages[0]
    about = json.loads(re.search(r'id="about">(.*?)</script>', pages[0], re.DOTALL).group(1))
    model, tokenizer = language.read(str(folder / "model"))
    sae = formats.read(saes / "a")
    sae = SAE(sae.arch, sae.params)
    assert [p["name"] for p in about["prompts"]] == ["def f(x):", "import"]
    for said, shown in zip(("def f(x):", "import"), about["prompts"], strict=True):
        ids = [tokenizer.bos, *tokenizer.encode(said).ids.tolist()]
        assert shown["ids"] == ids
        acts = np.asarray(sae.encode(model(np.array([ids]), capture=["resid_post.0"]).captured["resid_post.0"]))[0]
        assert shown["features"][0] == []  # what begins every text
        for t, here in enumerate(shown["features"][1:], 1):
            assert len(here) == min(8, (acts[t] > 0).sum())
            for n, act, _ in here:
                assert act == pytest.approx(acts[t, n], abs=1e-3)


def test_a_disk_that_refuses_leaves_the_old_page(folder, saes, tmp_path, monkeypatch):  # noqa: F811
    of = settings(folder, saes, features=(1,), tokens=2000, page=str(tmp_path / "page.html"), ablations=False)
    run("dashboard", tmp_path, **of)
    whole = (tmp_path / "page.html").read_bytes()

    def full(path, data):
        raise WorkdirError(f"{path} can't be written: no space left")

    monkeypatch.setattr(page, "write_atomically", full)
    with pytest.raises(WorkdirError, match="no space left"):
        run("dashboard", tmp_path, **{**of, "features": (1, 2)})
    assert (tmp_path / "page.html").read_bytes() == whole


@pytest.mark.ci
def test_steering_as_a_command(folder, saes, tmp_path):  # noqa: F811
    arrays, claims = run(
        "steer", tmp_path, **settings(folder, saes, features=(1, 3), counts=r"\w+", prompts=("def ", ""))
    )
    assert claims[1].holds and claims[1].measured == 0  # noqa: PT018
    assert 0.3 < claims[0].measured <= 1
    assert arrays["strengths"].tolist() == [-1, 0, 1, 4]
    assert arrays["texts"].shape == (4, 2, 2)
    assert (arrays["units"] > 0).all()
    assert ((arrays["text_share"] >= 0) & (arrays["text_share"] <= 1)).all()
    for name in ("random", "opposite", "shuffled", "other"):
        assert np.isfinite(arrays[f"{name}_kl"]).all()
    config = importlib.import_module("configs.lm.steer").get_config("quick")
    config.prompts = ("def ", "")
    tables = {name: list(csv.DictReader(io.StringIO(t))) for name, t in steer_command.tables(arrays, config).items()}
    assert [float(row["strength"]) for row in tables[""]] == [-1, 0, 1, 4]
    for row, i in zip(tables[""], range(4), strict=True):
        for name in ("feature_wanted", "random_kl", "opposite_loss", "gradient_wanted"):
            field = "feature_gradient_wanted" if name == "gradient_wanted" else name
            assert float(row[name]) == pytest.approx(arrays[field][i], rel=1e-5, abs=1e-12)
        assert [float(row[f"feature_gradient_{part}"]) for part in ("slope", "pearson", "rank")] == pytest.approx(
            arrays["feature_gradient"][i].tolist(), rel=1e-5, nan_ok=True
        )
    side = tables["_written"]
    assert [(row["prompt"], row["sample"]) for row in side] == [(p, s) for p in ("def ", "") for s in ("0", "1")]
    for n, row in enumerate(side):
        assert [row[s] for s in ("-1", "0", "1", "4")] == arrays["texts"][:, n // 2, n % 2].tolist()
    scaled, _ = run("steer", tmp_path, **settings(folder, saes, features=(1,), rule="scale", strengths=(0.0, 1.0, 3.0)))
    assert scaled["feature_kl"][1] == pytest.approx(0, abs=1e-6)  # times 1
    assert scaled["feature_kl"][2] > 0


@pytest.mark.ci
@pytest.mark.parametrize("site", ["z.0", "mlp_post.1", "resid_post.0"])
def test_sites_that_write_through_a_norm_are_steered_as_well(folder, tmp_path, site):  # noqa: F811
    """As Gemma 2's attention and MLP do; what is wanted is then what a small push raises, elsewhere the votes."""
    model, tokenizer = language.read(str(folder / "model"))
    made = Transformer(dataclasses.replace(model.config, post_norms=True), nnx.Rngs(1))
    (tmp_path / "m").mkdir()
    checkpoints.save(tmp_path / "m" / "model", made)
    (tmp_path / "m" / "model" / "tokenizer.json").write_text(tokenizer.backend.to_str())
    sae = export(tmp_path / "m" / "sae", d=32 if site == "mlp_post.1" else 16, site=site)
    of = settings(folder, tmp_path / "m", features=(3,), prompts=("a",), sae=str(tmp_path / "m" / "sae"),
                  model=str(tmp_path / "m" / "model"))  # fmt: skip
    arrays, _ = run("steer", tmp_path, **of)
    assert np.isfinite(arrays["feature_kl"]).all()
    assert (arrays["votes"] > 0).all()
    assert (np.diff(arrays["votes"]) <= 0).all()
    tokens = np.arange(12).reshape(1, 12) + 5
    pushed = steer.steering(made.config, sae, site, [steer.Change(3, "add", 0.1 * float(arrays["units"][0]))])
    observed = np.asarray(made(tokens, edits=pushed.edits()).logits - made(tokens).logits).mean((0, 1))
    wanted = arrays["wanted_ids"]
    assert observed[wanted].mean() > observed.mean() + observed.std()


@pytest.mark.parametrize(("where", "same"), [("generated", True), ("prompt", False), ("all", False)])
def test_the_first_token_written_is_steered_with_the_prompt_alone(folder, saes, tmp_path, where, same):  # noqa: F811
    """What is generated has no say in it; the other two push the prompt's last token."""
    model, tokenizer = language.read(str(folder / "model"))
    found = formats.read(saes / "a")
    config = importlib.import_module("configs.lm.steer").get_config("quick")
    config.update({"where": where, "prompts": ("def f(", "import x"), "samples": 3, "tokens": 1, "temperature": 1e-3})
    pushed = steer.steering(model.config, SAE(found.arch, found.params), "resid_post.0", [steer.Change(3, "add", 1.0)])
    prompts = steer_command._prompts(config, model, tokenizer)
    out = steer_command._written(
        config, prng.key(0), model, tokenizer, pushed, np.array([0.0, 300.0]), np.ones(1), None, prompts
    )
    assert (out["texts"][0] == out["texts"][1]).all() == same


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rule": "push"}, "unknown rule 'push'"),
        ({"rule": "ablate"}, "take --config.rule=scale"),
        ({"where": "there"}, "unknown place 'there'"),
        ({"features": (99,)}, "no latent 99"),
        ({"features": (4,)}, "latent 4 is silent on all of these texts"),
        ({"features": (1, 1)}, "latent 1 is changed twice at the same tokens, by clamp and clamp"),
        ({"features": (1.5,)}, "features must be a whole number"),
        ({"features": ("a",)}, "features must hold numbers"),
        ({"strengths": (1e36,)}, "no push that a model could take: give smaller strengths"),
        ({"strengths": ("a",)}, "strengths must hold numbers"),
        ({"counts": "("}, "is no regular expression"),
        ({"prompts": ()}, "prompts is empty"),
        ({"prompts": ("",), "where": "prompt"}, "the prompt '' has no token to steer at"),
        ({"wanted": 10**6}, r"wanted must be at most the \d+ tokens that exist"),
        ({"tokens": 500}, "more than the model's context of .*: shorten the prompt, or lower tokens"),
        ({"temperature": -1.0}, "temperature must be a finite number of at least 0"),
        ({"context": 4000}, r"at most the model's \d+ \(0 takes"),
    ],
)
def test_steering_that_can_t_be_gets_one_sentence(folder, saes, tmp_path, changes, said):  # noqa: F811
    with pytest.raises(ValueError, match=said) as error:
        run("steer", tmp_path, **settings(folder, saes, **{"features": (1,), **changes}))
    assert "\n" not in str(error.value)


@pytest.mark.ci
def test_a_hugging_face_folder_with_an_sae_that_knows_folded_norms(tmp_path):
    """Its SAE's file says that its model's norms were folded and its writes centred: latents then see that model."""
    place = test_lm_files.folder(
        tmp_path / "m", change=lambda t: t.update({"model.norm.weight": 2 * t["model.norm.weight"]})
    )
    letters = " abcdefghijklmnopqrstuv"
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"?": 0, **{c: i + 1 for i, c in enumerate(letters)}}, "?")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer.save(str(place / "tokenizer.json"))
    (tmp_path / "texts.txt").write_text("a man and a plan\nbeside a canal\n" * 60)
    of = {
        "model": str(place),
        "corpus.path": str(tmp_path / "texts.txt"),
        "context": 32,
        "tokens": 1500,
        "features": (1, 2),
    }
    processed = {"fold_ln": True, "device": "cpu"}
    one = export(tmp_path / "sae", site="mlp_in.1", weight_processing=processed)
    arrays, _ = run("dashboard", tmp_path, **of, sae=str(tmp_path / "sae"), page=str(tmp_path / "page.html"))
    model = checkpoints.fold_norms(checkpoints.read(place))
    contexts = text.contexts(text.from_files(tmp_path / "texts.txt"), text.read_tokenizer(place, 24), 32, tokens=1500)
    x = model(contexts.tokens, capture=["mlp_in.1"]).captured["mlp_in.1"]
    acts = np.where(contexts.mask[..., None], one.encode(x), 0)
    np.testing.assert_allclose(arrays["max"], acts.max((0, 1))[[1, 2]], rtol=1e-3)
    plain = checkpoints.read(place)(contexts.tokens, capture=["mlp_in.1"]).captured["mlp_in.1"]
    assert float(np.abs(plain - x).max()) > 1e-2  # the two models differ there
    (tmp_path / "steer").mkdir()
    export(tmp_path / "res", site="resid_post.1", weight_processing=processed)
    other = formats.read(tmp_path / "res")
    acts = SAE(other.arch, other.params).encode(
        model(contexts.tokens, capture=["resid_post.1"]).captured["resid_post.1"]
    )
    same = {k: v for k, v in of.items() if k not in ("tokens", "features")}
    steered, _ = run("steer", tmp_path / "steer", **same, sae=str(tmp_path / "res"), prompts=("a man",),
                     features=(int(np.asarray(acts).max((0, 1)).argmax()),))  # fmt: skip
    assert steered["nowhere"] == 0
    assert (steered["feature_kl"][steered["strengths"] != 0] > 0).all()


@pytest.mark.ci
def test_a_gemma_2_folder_with_a_folder_of_gemma_scope(tmp_path):
    """Sizes aside as the hub has them: the SAE's site is known by its folder's name alone; pages and steering."""
    config = {
        "model_type": "gemma2", "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "vocab_size": 24, "num_hidden_layers": 2, "intermediate_size": 32, "sliding_window": 8,
        "query_pre_attn_scalar": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (24, 16), "model.norm.weight": (16,)}
    for layer in (f"model.layers.{i}" for i in range(2)):
        shapes |= {f"{layer}.self_attn.{n}_proj.weight": s for n, s in
                   (("q", (16, 16)), ("k", (8, 16)), ("v", (8, 16)), ("o", (16, 16)))}  # fmt: skip
        shapes |= {f"{layer}.mlp.{n}_proj.weight": s for n, s in
                   (("gate", (32, 16)), ("up", (32, 16)), ("down", (16, 32)))}  # fmt: skip
        shapes |= {f"{layer}.{n}_layernorm.weight": (16,) for n in
                   ("input", "post_attention", "pre_feedforward", "post_feedforward")}  # fmt: skip
    place = tmp_path / "gemma-2-2b"
    test_lm_files.written(place, config, test_lm_files.random_tensors(shapes))
    letters = {c: i + 1 for i, c in enumerate(" abcdefghijklmnopqrst")}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, **letters, "<bos>": 22, "<eos>": 23}, "?"))
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text('{"bos_token": "<bos>", "eos_token": "<eos>"}')
    (tmp_path / "texts.txt").write_text("a man and a plan\nbeside a canal\n" * 60)
    arch = Architecture(16, 24, "jumprelu", center=False)
    rng = np.random.default_rng(1)
    params = {n: (rng.normal(size=s) * 0.3).astype(np.float32) for n, s in arch.shapes().items()}
    params["threshold"] = np.full(24, 0.5, np.float32)
    sae = tmp_path / "gemma-scope-2b-pt-res" / "layer_1" / "width_16k" / "average_l0_71"
    formats.write_gemma_scope(sae, arch, params)
    of = {"model": str(place), "sae": str(sae), "corpus.path": str(tmp_path / "texts.txt"), "context": 32}
    arrays, _ = run("dashboard", tmp_path, **of, tokens=1500, features=tuple(range(24)), page=str(tmp_path / "p.html"))
    model = checkpoints.read(place)
    contexts = text.contexts(text.from_files(tmp_path / "texts.txt"), text.read_tokenizer(place, 24), 32, tokens=1500)
    assert contexts.tokens[0, 0] == 22
    x = np.asarray(model(contexts.tokens, capture=["resid_post.1"]).captured["resid_post.1"], np.float64)
    pre = x @ params["W_enc"] + params["b_enc"]
    acts = np.where(pre > 0.5, pre, 0) * (contexts.mask & (contexts.tokens < 22))[..., None]
    np.testing.assert_allclose(arrays["max"], acts.max((0, 1)), rtol=1e-3, atol=1e-4)
    assert np.isfinite(arrays["effect"]).sum() == (acts.max((0, 1)) > 0).sum() > 10
    (tmp_path / "steer").mkdir()
    loudest = int(acts.max((0, 1)).argmax())
    steered, _ = run("steer", tmp_path / "steer", **of, prompts=("a man",), features=(loudest,))
    assert steered["nowhere"] == 0
    assert (steered["feature_kl"][steered["strengths"] != 0] > 0).all()


@pytest.mark.ci
def test_a_gemma_scope_sae_and_a_transcoder_on_labelled_texts(folder, tmp_path):  # noqa: F811
    """JumpReLU weights without a word on their site, and one that reads another site than it writes; labels explain."""
    rng = np.random.default_rng(0)
    jump, across = Architecture(16, 24, "jumprelu"), Architecture(16, 20, "relu", d_out=16, center=False)
    params = {n: (rng.normal(size=s) * 0.5).astype(np.float32) for n, s in jump.shapes().items()}
    params["threshold"] = np.full(24, 0.4, np.float32)
    formats.write_gemma_scope(tmp_path / "scope" / "params.npz", jump, params)
    (tmp_path / "across").mkdir()
    other = {n: (rng.normal(size=s) * 0.5).astype(np.float32) for n, s in across.shapes().items()}
    about = formats.Metadata(model="m", site="mlp_in.1", site_out="mlp_out.1")
    formats.write_saelens(tmp_path / "across", across, other, about)
    model, tokenizer = language.read(str(folder / "model"))
    of = {"model": str(folder / "model"), "corpus.kind": "python source", "corpus.modules": ("json", "bisect"),
          "context": 32, "tokens": 2500, "features": (1, 2)}  # fmt: skip
    for name, changes, reads in (
        ("scope", {"sae": str(tmp_path / "scope" / "params.npz"), "site": "resid_post.1"}, "resid_post.1"),
        ("across", {"sae": str(tmp_path / "across")}, "mlp_in.1"),
    ):
        workdir = tmp_path / f"run_{name}"
        workdir.mkdir()
        arrays, _ = run("dashboard", workdir, **of, **changes)
        found = dict(re.findall(r'id="f(\d+)">([^<]*)<', (workdir / "dashboard.html").read_text()))
        assert page.unpack(found["1"])["why"]["text"]
        one = formats.read(changes["sae"])
        texts = text.contexts(python_source(("json", "bisect")), tokenizer, 32, tokens=2500)
        acts = SAE(one.arch, one.params).encode(model(texts.tokens, capture=[reads]).captured[reads])
        keep = texts.mask & ~np.isin(texts.tokens, tokenizer.special)
        want = np.where(keep[..., None], acts, 0).max((0, 1))[[1, 2]]
        np.testing.assert_allclose(arrays["max"], want, rtol=1e-3)
        same = {k: v for k, v in of.items() if k != "tokens"}
        steered, claims = run("steer", workdir, **{**same, "features": (1,)}, **changes)
        assert claims[1].measured == 0
        assert steered["feature_kl"][-1] > 0


def told(explanation, texts):
    """A judge that keeps what it is told."""
    told.all.append(explanation)
    return [0.0] * len(texts)


def test_the_best_detectors_of_labels_are_shown(folder, saes, tmp_path):  # noqa: F811
    """Against scores counted by hand; each label and each latent once, no label of more than a tenth of the tokens. A
    judge is told the label alone."""
    told.all = []
    of = settings(
        folder, saes, best=5, features=(), ablations=False, doses=(), tokens=2500, judge="test_reading:told",
        **{"corpus.kind": "python source", "corpus.modules": ("json", "bisect")},
    )  # fmt: skip
    arrays, _ = run("dashboard", tmp_path, **of)
    model, tokenizer = language.read(str(folder / "model"))
    one, corpus = formats.read(saes / "a"), python_source(("json", "bisect"))
    texts = text.contexts(corpus, tokenizer, 32, tokens=2500, labels=True)
    keep = (texts.mask & ~np.isin(texts.tokens, tokenizer.special)).ravel()
    reads = one.metadata.site
    x = np.asarray(SAE(one.arch, one.params).encode(model(texts.tokens, capture=[reads]).captured[reads])) > 0
    on = x.reshape(len(keep), -1)[keep]
    y = np.unpackbits(texts.labels.reshape(len(keep), -1), axis=1, count=len(corpus.labels))[keep].astype(bool)
    f1 = {(j, i): 2 * (on[:, j] & y[:, i]).sum() / max(on[:, j].sum() + y[:, i].sum(), 1)
          for j in range(on.shape[1]) for i in np.flatnonzero(y.mean(0) <= 0.1)}  # fmt: skip
    latents, used = set(), set()
    for (j, i), value in sorted(f1.items(), key=lambda item: -item[1]):
        if value and j not in latents and i not in used and len(latents) < 5:
            latents.add(j)
            used.add(i)
    assert arrays["latents"].tolist() == sorted(latents)
    assert set(told.all) == {corpus.labels[i] for i in used}
    for changes, said in (
        ({"features": (1,)}, "features and best both say which latents are shown"),
        ({"best": -1}, "best must be a whole number of at least 0"),
        ({"corpus.kind": "files"}, "has no labels that latents could detect: name latents by features"),
    ):
        with pytest.raises(ValueError, match=said):
            run("dashboard", tmp_path, **{**of, **changes})


@test_language.real
@pytest.mark.ci
def test_a_page_of_the_stories_model(tmp_path):
    data = Path(os.environ["SUPERPOSE_TEST_DATA"])
    export(tmp_path / "sae", d=64, F=32, site="resid_post.2")
    of = {"model": str(data / "stories260K.bin"), "sae": str(tmp_path / "sae"), "context": 64, "tokens": 3000,
          "corpus.path": str(data / "tinystories_sample.txt"), "corpus.separator": "<|endoftext|>"}  # fmt: skip
    arrays, _ = run("dashboard", tmp_path, **of, features=(0, 1, 2), page=str(tmp_path / "page.html"))
    assert (arrays["density"] > 0).all()
    assert np.isfinite(arrays["effect"]).all()
    arrays, _ = run("steer", tmp_path, **{**of, "tokens": 12}, features=(1,), judged=8, prompts=("Once upon a time",))
    assert arrays["feature_kl"][-1] > 0


# --- worlds whose truth is known --------------------------------------------------------------------------------------


def test_latents_of_a_world_are_held_against_their_generator():
    rng = np.random.default_rng(0)
    features = np.where(rng.random((500, 6)) < 0.3, rng.uniform(0.1, 1, (500, 6)), 0).astype(np.float32)
    directions = np.eye(6, dtype=np.float32)
    arch = Architecture(6, 6, "relu")
    params = {n: np.zeros(s, np.float32) for n, s in arch.shapes().items()}
    params["W_enc"], params["W_dec"] = directions.copy(), directions.copy()
    params["b_enc"][2] = -0.4  # on at fewer samples than its generator
    found = list(worlds.records(SAE(arch, params), features, features, directions, range(6)))
    for j, record in enumerate(found):
        assert record["confusion"]["closest generator"] == f"g{j}"
        assert record["confusion"]["precision"] == 1
        assert sum(record["confusion"][n] for n in ("both on", "latent alone", "generator alone", "both off")) == 500
    want = (features[:, 2] > 0.4).sum() / (features[:, 2] > 0).sum()
    assert found[2]["confusion"]["recall"] == pytest.approx(want, abs=1e-4)
    e = found[0]["examples"]
    words = worlds.pieces(6)
    for row, ids in zip(e["document"], e["ids"], strict=True):
        said = [words[i].decode().split(":") for i in ids if words[i] != b"(off) "]
        assert (words[ids[0]] == b"(off) ") == (not features[row, 0])
        assert {int(g[1:]) for g, _ in said} == set(np.flatnonzero(features[row]))
        for g, value in said:
            true = features[row, int(g[1:])] / features[:, int(g[1:])].max()
            assert float(value) == pytest.approx(true, abs=0.0501)
    with pytest.raises(ValueError, match="they are of another world"):
        next(worlds.records(SAE(arch, params), features[:, :5], features, directions[:, :5], range(6)))
    with pytest.raises(ValueError, match="no latent 6"):
        next(worlds.records(SAE(arch, params), features, features, directions, [6]))


# --- the four questions -----------------------------------------------------------------------------------------------


def test_shuffled_weights_are_the_same_numbers_elsewhere():
    model = Transformer(Config(vocab=30, d_model=12, layers=1, heads=3, d_head=4, d_mlp=16, context=10), nnx.Rngs(1))
    old, new = (checkpoints.weights(m) for m in (model, monosemantic.shuffled(model, prng.key(0))))
    assert old.keys() == new.keys()
    for name, x in old.items():
        assert x.shape == new[name].shape
        np.testing.assert_array_equal(np.sort(x.ravel()), np.sort(new[name].ravel()))
    assert not np.array_equal(old["W_E"], new["W_E"])
    assert not np.array_equal(np.sort(old["W_E"], 0), np.sort(new["W_E"], 0))  # not within rows or columns alone


def test_directions_are_matched_with_their_sign():
    """A row's opposite is no match; rows beyond the other side's are left out; random rows stand for chance."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 40))
    b = np.concatenate([a[[2, 0, 1]] + 0.01 * rng.normal(size=(3, 40)), -a[[3]], rng.normal(size=(1, 40))])
    live = np.array([True, True, True, True, False, True])
    found = universality._matched(a, b, live, np.ones(5, bool))
    assert (found[:3] > 0.99).all()
    assert np.isnan(found[4])
    assert found[3] < 0.6
    chance = universality._matched(rng.normal(size=(200, 40)), rng.normal(size=(200, 40)), np.ones(200, bool),
                                   np.ones(200, bool))  # fmt: skip
    assert 0.2 < np.median(chance) < 0.6
    x, y = rng.normal(size=(500, 3)), rng.normal(size=(500, 4))
    y[:, 2] = x[:, 1] + 0.1 * rng.normal(size=500)
    r, which = universality._closest(x, y)
    assert which[1] == 2
    assert r[1] == pytest.approx(np.corrcoef(x[:, 1], y[:, 2])[0, 1])
    assert r[0] == pytest.approx(np.corrcoef(x.T, y.T)[0, 3:].max())


HALF = 1.959964
"""Of a 95 % interval, in standard errors."""


def drawn(value, spread, draws=100):
    """Resamplings around a number whose standard error is ``spread``."""
    x = np.linspace(-1, 1, draws)
    return value + spread * x / x.std(ddof=1)


def universal(r, chance, neurons, cosine, apart=0.0):
    """Claims on three SAEs of 60 latents: how well each is found again grows with how often it is on, by 0.02 from half
    to half. Standard errors over documents are multiples of ``apart``: of correlations 1, 2, 3 with another seed, kind,
    model, of shares 10 times and of the rise 100 times as many, of neurons 1000."""
    config = importlib.import_module("configs.lm.universality").get_config("quick")
    slope = np.linspace(-0.02, 0.02, 60)
    results = {"on": np.tile(np.arange(30, 90), (3, 1)), "kept": 1000, "neurons": np.full(40, neurons),
               "neurons_draws": drawn(neurons, 1000 * apart), "cosine_chance": np.full((3, 60), 0.3)}  # fmt: skip
    for i, name in enumerate(universality.OTHERS, 1):
        pairs = [(0, 1), (0, 2), (1, 2)] if name == "another seed" else [(i, i) for i in range(3)]
        moved = np.array([[0.0], [0.005], [-0.005]])
        results |= {f"pairs_{name}": np.array(pairs), f"r_{name}": r + slope + moved,
                    f"chance_{name}": np.full((3, 60), chance), f"cosine_{name}": np.full((3, 60), cosine) + moved,
                    f"draws_{name}": drawn(r, i * apart), f"rise_draws_{name}": drawn(0.02, 100 * i * apart),
                    f"shared_draws_{name}": drawn(float(r >= 0.7), 10 * i * apart)}  # fmt: skip
    return universality.claims(results, config)


def holding(claims):
    return [c.holds for c in claims]


def test_claims_of_universality_hold_where_they_are_planted_and_nowhere_else():
    assert holding(universal(0.72, 0.1, 0.46, 0.8)) == [True] * 7
    assert holding(universal(0.2, 0.2, 0.25, 0.3)) == [False, False, False, False, False, False, True]


def test_claims_of_universality_are_judged_over_documents_too():
    """Each by the resamplings of what it is of: draws of a difference move together, as those of one resampling do."""
    found = universal(0.72, 0.1, 0.46, 0.8, apart=1.0)
    assert holding(found) == [True, True, False, False, False, True, False]
    lows = {i: found[i].measured for i in (2, 3, 4, 6)}
    want = {2: 0.26 - HALF * 997, 3: 0.62 - HALF * 3, 4: found[4].measured, 6: 0.02 - HALF * 100}
    want[4] = float(re.match(r"mean ([\d.]+)", found[4].note).group(1)) - HALF * 10
    assert lows == pytest.approx(want, abs=0.003)
    assert reading.said(0.72 - HALF * 3, 0.72 + HALF * 3, "documents") in found[0].note
    assert reading.said(0.46 - HALF * 1000, 0.46 + HALF * 1000, "documents") in found[1].note


def test_latents_on_most_are_held_against_those_on_least():
    on, r = np.array([10, 20, 30, 40]), np.array([[0.1, 0.2, 0.6, 0.8], [0.5, 0.5, 0.5, 0.5]])
    assert universality._rise(r, on) == pytest.approx([0.55, 0.0])
    assert universality._rise(r[:, ::-1], on) == pytest.approx([-0.55, 0.0])
    assert np.isnan(universality._rise(r, np.full(4, 10))).all()  # none is on more than another


def cleaner(latents, others, moved=0.005, apart=0.0):
    """Claims of ``monosemantic`` on two seeds of 30 latents and 40 labels: what latents score and what all others do.
    Standard errors over documents of means over seeds, of which the first alone varies, are multiples of ``apart``:
    gains 1 to 4 by kind, their share 5; probes of k 10 times, of the last k 20 times as many; explanations 100 times,
    without single tokens 1000."""
    config = importlib.import_module("configs.lm.monosemantic").get_config("quick")
    seeds, ks = config.seeds, len(config.ks)
    kinds = {name: [f"seed {i}" for i in range(seeds)] if name == "latents" else
             [f"control {i}" for i in range(seeds)] if name == "control" else [name]
             for name in monosemantic.KINDS}  # fmt: skip
    results = {"token_f1": np.full(40, others)}
    alone = lambda value, spread: np.stack([drawn(value, 2 * spread * apart), np.full(100, value)])  # noqa: E731
    for at, (name, ones) in enumerate(kinds.items()):
        score = latents if name == "latents" else others
        by_k = [alone(score, 10 * at * (1 + (k == ks - 1))) for k in range(ks)]
        results[f"probe_{name}_draws"] = np.stack(by_k, -1)[: len(ones)]
        results[f"gain_{name}_draws"] = alone(latents - others, at)
        for i, one in enumerate(ones):
            results |= {f"{one}_f1": np.full(40, score + moved * i), f"{one}_tokens": np.full(40, 1000),
                        f"{one}_share": np.full(40, 0.05)}  # fmt: skip
            results |= {f"probe_{one}_{part}": np.full((40, ks), score + moved * i) for part in ("auroc", "f1")}
    for at, name in enumerate(monosemantic.EXPLAINED):
        score, single = (latents, 6) if name == "latents" else (others, 15 if latents > others else 3)
        results |= {
            f"explained_{name}_f1": np.full((seeds, 30), score), f"explained_{name}_tokens": np.full((seeds, 30), 100),
            f"explained_{name}_single": np.tile(np.arange(30) < single, (seeds, 1)),
            f"explained_{name}_draws": alone(score, 100 * at), f"explained_{name}_many_draws": alone(score, 1000 * at),
            f"explained_{name}_single_without": np.full((seeds, 10), single / 30)
            + apart * (np.arange(10) % 2 if name == "latents" else 0),
        }  # fmt: skip
    results["better_neurons_draws"] = alone(float(latents > others), 5)
    return monosemantic.claims(results, config)


def test_claims_of_monosemantic_hold_where_they_are_planted_and_nowhere_else():
    assert holding(cleaner(0.6, 0.4)) == [True] * 18
    assert holding(cleaner(0.4, 0.6)) == [False] * 18


def test_claims_of_monosemantic_are_judged_over_documents_too():
    """Each by the resamplings of what it is of, their mean over seeds."""
    found = cleaner(0.6, 0.4, moved=0.0, apart=1.0)
    assert "token ids" in found.pop(5).text  # over seeds alone
    assert not any(holding(found))
    spread = [5, 1, 2, 3, 4, 10, 20, 30, 40, 20, 40, 60, 80, 100, 200, 4000]
    mean = [1.0] + [0.2] * 15
    # of neurons, components and random directions there is one: what is drawn of it counts whole
    single = [2 if i in (5, 6, 7, 9, 10, 11) else 1 for i in range(16)]
    want = [m - HALF * s * n for m, s, n in zip(mean, spread, single, strict=True)]
    assert [c.measured for c in found[:16]] == pytest.approx(want, rel=1e-4)
    assert found[16].measured == pytest.approx(reading.jackknife(0.3, 0.3 - np.arange(10) % 2)[1])


def test_single_tokens_without_each_group_of_documents():
    rng = np.random.default_rng(1)
    group = reading.groups(np.repeat(np.arange(40), 10))
    ids = rng.integers(0, 3, 400)
    units = sparse.csc_array(np.stack([
        np.where(ids == 1, 1.0, 0),  # of one token
        np.where((ids == 1) | ((ids == 2) & (group == 3)), 1.0 + (ids == 2), 0),  # but for one group
        rng.random(400), np.zeros(400), (np.arange(400) == 7).astype(float),
    ], 1))  # fmt: skip
    assert monosemantic._single_without(units, ids, group) == pytest.approx(np.where(np.arange(10) == 3, 2 / 5, 1 / 5))
    whole = monosemantic._single_without(units, ids, np.full(400, -1))
    assert whole == pytest.approx(1 / 5)


def family(large, twin, chance, near, change, rise, apart=0.0):
    """Claims of ``splitting`` on two seeds of 20 small and 80 large latents: how many children and parents each has,
    in the wide SAE, in another small one, by chance; and what the wide one has more of on nested labels. Without half
    of the groups of documents each number of the wide one, in order, is larger by one more ``apart``."""
    config = importlib.import_module("configs.lm.splitting").get_config("quick")
    results = {"pairs": np.array(["a in b"] * 4), "change": np.tile(np.linspace(*change, 80), (2, 1)),
               "news_without": np.full((2, 10), 0.5),
               "cosine": np.tile(np.where(np.arange(80) < 40, 0.5 + near, 0.5), (2, 1))}  # fmt: skip
    for prefix, (children, parents) in {"": large, "twin_": twin, "chance_": chance}.items():
        mine, theirs = np.full((2, 20), float(children)), np.full((2, 80), float(parents))
        theirs[:, 40:] = 0
        results |= {f"{prefix}children": mine, f"{prefix}parents": theirs}
        shares = splitting._shares(mine[0], theirs[0], *[] if prefix else [results["cosine"][0]])
        half = apart * (not prefix) * np.tile(np.arange(reading.GROUPS) % 2, (2, 1))
        results |= {f"{prefix}{name}_without": v + i * half for i, (name, v) in enumerate(shares.items(), 1)}
    for size, more in (("small", 0.0), ("large", rise)):
        half = apart * (size == "large") * (np.arange(1 + reading.GROUPS) % 2 == 0) * (np.arange(11) > 0)
        results |= {f"{name}_{size}": np.full((2, 4, 1), 0.1 + more) + i * half
                    for i, name in enumerate(("gap", "instead"), 6)}  # fmt: skip
        results |= {f"knows_{size}": np.ones((2, 4)), f"latents_{size}": np.ones((2, 4))}
    return splitting.claims(results, config)


def test_claims_of_splitting_hold_where_they_are_planted_and_nowhere_else():
    assert holding(family((8, 2), (1, 1), (0, 0), 0.2, (-1, 1), 0.1)) == [True] * 9
    assert holding(family((1, 1), (1, 1), (1, 1), -0.2, (1, 2), -0.1)) == [False] * 4 + [True] + [False] * 4
    assert not family((1, 1), (1, 1), (1, 2), -0.2, (-2, -1), -0.1)[4].holds
    as_wide = holding(family((8, 2), (2, 2), (0, 0), 0.2, (-1, 1), 0.1))  # as many as the number of latents alone gives
    assert as_wide == [True, False, True, True] + [True] * 5
    assert not family((7, 2), (2, 2), (0, 0), 0.2, (-1, 1), 0.1)[3].holds


def test_claims_of_splitting_are_judged_over_documents_too():
    """Each by what it is of without each group of them; the share of news by its mean."""
    found = family((8, 2), (1, 1), (0, 0), 0.2, (-1, 1), 0.1, apart=20.0)
    assert holding(found) == [False] * 6 + [True] + [False] * 2
    whole = [1.0, 1.0, 7.0, 4.0, 0.5, 0.2, None, 0.1, 0.1]
    for i, times in ((0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (5, 4), (7, 6), (8, 7)):
        low = reading.jackknife(whole[i], whole[i] + 20.0 * times * (np.arange(10) % 2))[1]
        assert found[i].measured == pytest.approx(low, rel=1e-6), i


def by_context(change, agreement, documents):
    """Results of ``predictable``: of each kind of push the change of the votes [latents, strengths] and how well the
    logits agree with what was predicted, the same in every context."""
    contexts, out = documents.shape[1], {"documents": documents, "tokens": np.ones(documents.shape)}
    for name, values in change.items():
        each = np.repeat(values[..., None], contexts, -1)
        sums = np.stack([np.full(each.shape, v) for v in (1.0, agreement[name], 1.0, agreement[name])], -1)
        fields = {"wanted": each, "direct": sums, "gradient": sums, "moved": np.ones(each.shape)}
        out |= {f"{name}_{field}": fields.get(field, each) for field in predictable.FIELDS}
    return out


def test_intervals_of_predictable_are_over_documents_too():
    """All latents alike, but for what they do in each of four texts that they share."""
    documents = np.tile(np.arange(4), (30, 1))
    results = by_context({"feature": np.ones((30, 1))}, {"feature": 0.5}, documents)
    drawn = predictable._drawn(results, 0)

    def interval():
        say = [predictable._numbers(results, "feature", w)["wanted"][..., 0] for w in (None, drawn.weights)]
        return predictable._median(say[0][0], say[1], drawn.picks)

    assert interval() == pytest.approx((1, 1, 1, 30))
    results["feature_wanted"] = np.broadcast_to(np.array([-2.0, 1.0, 2.0, 3.0]), (30, 1, 4))
    mid, low, high, _ = interval()
    assert mid == pytest.approx(1)
    assert low < 0  # a mean of four has a standard error of 0.94
    assert high > 2


def test_claims_of_predictable_hold_where_they_are_planted_and_nowhere_else():
    config = importlib.import_module("configs.lm.predictable").get_config("quick")
    config.strengths, config.patterns, config.pushes = (-1.0, 0.1, 1.0), (("comment", "#"),), (1.0, 2.0)
    rng, x = np.random.default_rng(0), np.array([-1.0, 0.1, 1.0])

    def judged(agreement, effect, share, apart=0.1, samples=0.0):
        size = rng.uniform(1, 2, 30)
        seen = effect * size[:, None] * x + (0 if effect else rng.normal(size=(30, 3)))
        change = {"feature": seen, "ablated": -seen[:, 1:2]}
        change |= {name: seen[:, 2:] + (-0.5 if effect else 0.5) for name in predictable.CONTROLS}
        results = {
            **by_context(change, {name: agreement for name in change}, rng.integers(0, 20, (30, 4))),
            "feature_gradient_wanted": np.repeat((size[:, None] * x)[..., None], 4, -1),
            "seed": np.repeat([0, 1], 15),
            "written_share": np.stack([np.outer((0, share / 2, share), np.ones(8)), np.zeros((3, 8))])[None, None]
            * np.array([1.0, 1 + apart, 1 - apart]).reshape(3, 1, 1, 1, 1) + samples * (np.arange(8) // 2 % 2 - 0.5),
            "written_loss": np.ones((3, 1, 2, 3, 8)),
        }  # fmt: skip
        return [c.holds for c in predictable.claims(results, config)]

    assert all(judged(0.99, 1.0, 0.6))
    assert not any(judged(0.1, 0.0, 0.0))
    unequal = judged(0.99, 1.0, 0.6, apart=0.9)  # one SAE writes 1.1, one next to nothing
    assert unequal == [True] * (len(unequal) - 1) + [False]
    assert judged(0.99, 1.0, 0.6, samples=2.0) == [True] * len(unequal)  # the same for the random direction: pairs


def test_a_claim_is_judged_by_the_lower_of_two_intervals():
    seeds, one = (0.5, 0.3, 0.7), (0.5, np.nan, np.nan)
    found = [reading.above("x", "y", 0.25, *of) for of in ((seeds,), (seeds, (0.4, 0.6)), (seeds, (0.2, 0.8)))]
    assert [c.measured for c in found] == [0.3, 0.3, 0.2]
    assert [c.holds for c in found] == [True, True, False]
    assert found[0].text == "x (low end of 95 % over seeds)"
    assert found[2].text == "x (low end of 95 % over seeds and over documents, the lower one)"
    assert found[2].note == "mean 0.500, 95 % over seeds 0.300 to 0.700, 95 % over documents 0.200 to 0.800"
    alone = reading.above("x", "y", 0.25, one, note="why", of=("SAEs", "samples"))
    assert (alone.measured, alone.note) == (0.5, "mean 0.500, no interval over SAEs; why")
    assert reading.above("x", "y", 0.25, one, (0.4, 0.6)).measured == 0.4
    assert not reading.above("x", "y", 0.25, seeds, (np.nan, np.nan)).holds


def test_resamplings_of_a_share_near_one_hold_it():
    """40 labels, each better by a fifth of a standard error or more: drawn again, some are worse, and no draw reaches
    the share that was found. What was not to be had in a draw does not count."""
    rng, gain = np.random.default_rng(0), np.linspace(0.2, 1.5, 40)
    draws = (gain + rng.normal(size=(1000, 40)) > 0).mean(1)
    assert draws.max() < 1
    low, high = reading.over_draws(1.0, draws)
    assert 0.5 < low < 1 < high
    even = rng.normal(0.3, 0.1, 20_000)  # where they lie around the number, percentiles say the same
    assert reading.over_draws(0.3, even) == pytest.approx(np.percentile(even, (2.5, 97.5)), abs=0.01)
    assert reading.over_draws(0.3, np.append(even, np.nan)) == pytest.approx(reading.over_draws(0.3, even))
    assert np.isnan(reading.over_draws(0.3, np.array([np.nan, 0.3]))).all()


def test_a_number_that_changes_with_the_amount_of_data_has_a_wider_interval():
    x = np.linspace(-1, 1, 10)
    plain, moved = (reading.jackknife(5.0, 5.0 + x + by) for by in (0.0, 3.0))
    half = stats.t.ppf(0.975, 9) * np.sqrt(0.9 * (x**2).sum())
    assert plain == pytest.approx((5, 5 - half, 5 + half))
    assert moved[2] - moved[0] == pytest.approx(stats.t.ppf(0.975, 9) * np.sqrt(0.9 * ((x + 3) ** 2).sum()))


def test_what_is_written_is_always_of_a_latent_that_is_clamped():
    """Also where the model writes most of it without: the strength is chosen among those that push."""
    config = importlib.import_module("configs.lm.predictable").get_config("quick")
    config.pushes = (1.0, 2.0)
    share = np.zeros((3, 1, 2, 3, 8))
    share[:, 0, 0] = np.array([0.5, 0.2, 0.1])[:, None]
    claim = predictable._writes({"written_share": share, "written_loss": np.ones_like(share)}, config, 0, "comment")
    assert "not steered 0.50, clamped 0.20 (by SAE 0.20 at 1, 0.20 at 1, 0.20 at 1), random 0.00" in claim.note
    assert claim.measured == pytest.approx(0.2)


def test_intervals_over_pairs_of_seeds():
    """Wider than pairs that share no seed would give: the jackknife over seeds."""
    pairs = np.array([(0, 1), (0, 2), (1, 2)])
    mean, low, high = reading.over_pairs(np.array([1.0, 2.0, 4.0]), pairs)
    assert mean == pytest.approx(7 / 3)
    error = np.sqrt(2 / 3 * sum((v - 7 / 3) ** 2 for v in (1, 2, 4)))
    assert high - mean == pytest.approx(4.302653 * error, rel=1e-5)
    assert mean - low == pytest.approx(high - mean)
    assert np.isnan(reading.over_pairs(np.array([1.0]), pairs[:1])[1])


def test_intervals_over_seeds():
    mean, low, high = reading.over_seeds(np.array([1.0, 2.0, 3.0]))
    assert (mean, high - mean) == (2.0, pytest.approx(4.303 / np.sqrt(3), abs=1e-3))  # Student's t, two degrees
    assert mean - low == pytest.approx(high - mean)
    mean, low, high = reading.over_seeds(np.array([5.0]))
    assert mean == 5
    assert np.isnan([low, high]).all()
    assert reading.said(low, high) == "no interval over seeds"


def test_nested_labels_and_what_absorbs_the_parent():
    rng = np.random.default_rng(0)
    N = 8000
    parent = rng.random(N) < 0.4
    child = parent & (rng.random(N) < 0.04)  # a larger one's latent would be one of the parent's
    other = rng.random(N) < 0.3
    y = np.stack([child, parent, other], 1)
    assert splitting._nested(y) == [(0, 1)]
    fit = np.arange(N) % 2 == 0
    whole, hole = parent.astype(float), (parent & ~child).astype(float)
    for latent, want in ((whole, 0.0), (hole, 1.0)):
        units = sparse.csc_array(np.stack([other * (rng.random(N) < 0.5), latent, child], 1).astype(float))
        found = splitting._absorbed(units, y, fit, ~fit, [(0, 1)], reading.groups(np.arange(N)))
        for name in ("gap", "instead"):
            assert found[name].shape == (1, 1 + reading.GROUPS)
            assert found[name] == pytest.approx(np.full_like(found[name], want))
        n, k = (parent & fit).sum(), (child & fit).sum()
        assert found["knows"] == pytest.approx([1.0 if want == 0 else 2 * (n - k) / (2 * n - k)])
    halves = np.stack([parent & (rng.random(N) < 0.5), other, child], 1)
    rest = parent & ~halves[:, 0]
    chosen, f1 = splitting._latents_of(sparse.csr_array(np.column_stack([halves, rest]).astype(np.float32)), parent)
    assert sorted(chosen) == [0, 3]
    assert f1 == pytest.approx(1)
    of = {"knows": [0.6, 0.4, 0.9], "gap": [[0.1, 0.1], [0.1, 0.1], [0.1, np.nan]]}
    known = splitting._known(
        {f"{name}_{s}": np.array([values]) for s in ("small", "large") for name, values in of.items()}
    )
    assert known.tolist() == [True, False, False]


def test_shares_without_each_group_of_documents():
    rng = np.random.default_rng(3)
    documents = np.repeat(np.arange(60), 20)
    group = reading.groups(documents)
    assert all(len(set(group[documents % 2 == half])) == reading.GROUPS for half in (0, 1))
    large = sparse.csc_array(rng.random((1200, 12)) * (rng.random((1200, 12)) < 0.03))
    small = sparse.csc_array(np.stack([large[:, [3 * i, 3 * i + 1]].sum(1) for i in range(4)], 1))
    cosine = rng.random(12)
    found = splitting._family(small, {"": large, "twin_": small}, group, cosine)
    assert (found["of"]["children"] >= 2).all()
    assert (found["of"]["twin_children"] == 1).all()
    assert found["without"]["two_without"].tolist() == [1.0] * reading.GROUPS
    without = compare.masked(small.tocsr()[group != 4].tocsc(), large.tocsr()[group != 4].tocsc(), splitting.EDGE) > 0
    assert found["without"]["mean_without"][4] == without.sum(1).mean()
    assert found["without"]["merged_without"][4] == np.mean(without.sum(0) >= 2)
    some = without.sum(0) > 0
    assert found["without"]["near_without"][4] == np.median(cosine[some]) - np.median(cosine[~some])
    assert "twin_near_without" not in found["without"]


def test_stitching_without_each_group_of_documents():
    rng = np.random.default_rng(4)

    def sae(width):
        params = {"W_enc": rng.normal(size=(6, width)), "W_dec": rng.normal(size=(width, 6)), "b_enc": np.zeros(width),
                  "b_dec": np.zeros(6)}  # fmt: skip
        return SAE(
            Architecture(6, width, activation="relu"), {name: np.asarray(v, np.float32) for name, v in params.items()}
        )

    small, large = sae(4), sae(9)
    x, group = rng.normal(size=(300, 6)).astype(np.float32), rng.integers(0, 10, 300)
    found = splitting._stitched(small, large, x, group)
    assert found.shape == (11, 9)
    assert found[0] == pytest.approx(compare.stitch(small, large, [x]).change, rel=1e-4)
    assert found[1 + 6] == pytest.approx(compare.stitch(small, large, [x[group != 6]]).change, rel=1e-4)
    assert splitting._news(found).shape == (11,)


def test_jackknife_of_a_mean_is_its_interval_over_groups():
    x = np.random.default_rng(0).normal(size=9)
    mean, low, high = reading.jackknife(x.mean(), [np.delete(x, i).mean() for i in range(9)])
    assert (mean, low, high) == pytest.approx(reading.over_seeds(x))


def test_a_question_needs_its_model(tmp_path):
    for base, said in ((tmp_path / "nowhere", "holds no model: run the experiment that makes it first"),):
        with pytest.raises(ValueError, match=said):
            run("predictable", tmp_path, base=str(base))
