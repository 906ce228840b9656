"""From a model's files to a scored SAE: the commands of docs/language_models.md, on a small model made here."""

import errno
import importlib
import json
import os
import re
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import test_lm_files
import tokenizers
from flax import nnx

from experiments import language, latents
from superpose.interp import labels
from superpose.interp.store import Store
from superpose.lm import checkpoints, text
from superpose.lm.python_source import python_source
from superpose.lm.transformer import Config, Transformer
from superpose.sae import formats
from superpose.worlds import prng

DATA = os.environ.get("SUPERPOSE_TEST_DATA")
real = pytest.mark.skipif(not DATA, reason="SUPERPOSE_TEST_DATA names no folder with stories260K.bin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of ours with its tokenizer, and texts beside it."""
    place = tmp_path_factory.mktemp("lm")
    tokenizer = text.train_tokenizer(python_source(("bisect", "json")), 320)
    config = Config(vocab=320, d_model=16, layers=2, heads=2, d_head=8, d_mlp=32, context=64)
    checkpoints.save(place / "model", Transformer(config, nnx.Rngs(0)))
    (place / "model" / "tokenizer.json").write_text(tokenizer.backend.to_str())
    texts = place / "texts"
    texts.mkdir()
    for i, document in enumerate(python_source(("json", "bisect", "copy", "queue")).read()):
        (texts / f"{i}.txt").write_text(document.text)
    return place


def run(name, workdir, **changes):
    config = importlib.import_module(f"configs.lm.{name}").get_config("quick")
    config.update_from_flattened_dict(changes)
    experiment = importlib.import_module(f"experiments.{config.experiment}")
    arrays = experiment.run(config, prng.key(0), workdir)
    claims = experiment.claims(arrays, config)
    for figure in experiment.draw(arrays, config).values():
        figure.savefig(workdir / "figure.png")
        importlib.import_module("matplotlib.pyplot").close(figure)
    return arrays, claims


def harvested(folder, workdir, **changes):
    workdir.mkdir(exist_ok=True)
    return run("harvest", workdir, **{
        "model": str(folder / "model"), "corpus.kind": "files", "corpus.path": str(folder / "texts"), "context": 32,
        "store": str(workdir / "store"), "shard": 100, "block": 128,
        "sites": ("resid_post.0", "mlp_in.1", "mlp_out.1", "blocks.1.hook_resid_post"), **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("harvest")
    return harvested(folder, workdir), workdir / "store"


SMALL = {"batch": 64, "steps": 60, "log_every": 20, "kind.d_sae": 40, "kind.k": 4, "kind.sweep.k": (2, 4), "judged": 40}


def test_harvest_keeps_every_row_and_says_so(folder, store):
    (arrays, claims), place = store
    assert [c.text for c in claims if not c.holds] == []
    assert len(claims) == 3
    assert sorted(Store(place).manifest.sites) == ["mlp_in.1", "mlp_out.1", "resid_post.0", "resid_post.1"]
    facts, texts = Store(place).manifest.facts, text.from_files(folder / "texts")
    assert facts["corpus_digest"] == str(arrays["digest"]) == texts.digest()
    assert (facts["model"], facts["weights"]) == ("model", checkpoints.digest(folder / "model"))
    assert facts["tokenizer"] == text.read_tokenizer(folder / "model").digest()
    assert facts["code"]
    assert arrays["planned_rows"] >= arrays["written"] > 5000


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(folder, tmp_path, monkeypatch, capsys):
    """The whole command, on a disk that takes a few files more each time before it is full again."""
    command = importlib.import_module("experiments.run")
    config = importlib.import_module("configs.lm.harvest").get_config("quick")
    config.update_from_flattened_dict({
        "model": str(folder / "model"), "corpus.kind": "files", "corpus.path": str(folder / "texts"),
        "context": 32, "tokens": 3000, "passes": 16, "shard": 32, "sites": ("resid_post.0", "mlp_out.1"),
    })  # fmt: skip
    left = [0]

    def fsync(_):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def harvest(place, room):
        left[0] = room
        flags = {"CONFIG": config, "WORKDIR": str(tmp_path / place), "OUT": None, "DRAW_ONLY": False}
        for name, value in {**flags, "RESTART": False}.items():
            monkeypatch.setattr(command, name, types.SimpleNamespace(value=value))
        return command.main(["run"]), capsys.readouterr().err

    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "fsync", fsync)
    assert harvest("whole", 99)[0] == 0
    shards, made = len(list((tmp_path / "whole" / "store").glob("0*.json"))), {}
    assert shards > 3
    # a run's config, a store's manifest, four files a shard, the end; then numbers (two files) and a picture
    full = {0: "config.json", 4: "000000.bin", 7: "000001.json", 4 * shards - 4: "end.json", 3: "harvest.*png"}
    for room, refused in full.items():
        status, said = harvest("full", room)
        assert status == 1
        assert "Traceback" not in said
        (sentence,) = [line for line in said.splitlines() if line.startswith("error")]
        assert re.search(rf"could not write \S*/{refused}: No space left on device; make room", sentence)
        assert not list((tmp_path / "full").rglob("*.tmp"))
        whole = [p.stem for p in (tmp_path / "full" / "store").glob("0*.json")]
        made |= {p: p.stat().st_mtime_ns for p in (tmp_path / "full" / "store").rglob("0*") if p.stem in whole}
    assert harvest("full", 99)[0] == 0
    assert len(made) == 4 * shards
    assert all(p.stat().st_mtime_ns == then for p, then in made.items())  # what was there was not made again
    for path in [p for p in (tmp_path / "whole" / "store").rglob("*") if p.is_file()]:
        assert path.read_bytes() == (tmp_path / "full" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_a_plan_writes_nothing(folder, tmp_path):
    arrays, claims = harvested(folder, tmp_path, plan=True)
    assert arrays["planned_bytes"] > 0
    assert claims == []
    assert not (tmp_path / "store").exists()


def test_saes_are_trained_exported_and_spliced_in(folder, store, tmp_path):
    corpus = {"model": str(folder / "model"), "corpus.kind": "files", "corpus.path": str(folder / "texts")}
    arrays, _ = run("sae", tmp_path, store=str(store[1]), **corpus, **SMALL)
    assert arrays["l0"] == pytest.approx([2, 4], rel=0.6)  # sixty steps: the threshold is still on its way
    assert (arrays["explained_variance"] > 0.05).all()
    names = list(arrays["fidelity_names"])
    kl = dict(zip(names, arrays["fidelity_kl"][:, 0], strict=True))
    assert kl["clean"] == 0
    assert kl["SAE 1"] < kl["zero"]
    assert arrays["texts_harvested"]
    back = formats.read(tmp_path / "export" / "1")
    assert (back.metadata.site, back.metadata.model, back.metadata.context) == ("resid_post.0", "model", 32)
    assert back.arch.d_sae == 40


@pytest.mark.ci
def test_transcoders_and_crosscoders(folder, store, tmp_path):
    corpus = {"model": str(folder / "model"), "corpus.kind": "files", "corpus.path": str(folder / "texts")}
    across = {"reads": "mlp_in.1", "sites": ("mlp_out.1",)}
    (tmp_path / "t").mkdir()
    hooks = {"reads": "mlp_in.1", "sites": ("blocks.1.hook_mlp_out",)}  # as TransformerLens says it
    arrays, _ = run("sae_transcoder", tmp_path / "t", store=str(store[1]), **hooks, **corpus, **SMALL)
    assert "SAE 0" in list(arrays["fidelity_names"])
    assert formats.read(tmp_path / "t" / "export" / "0").metadata.site_out == "mlp_out.1"
    with pytest.raises(ValueError, match=r"leave kind\.scale=none"):
        run("sae", tmp_path, store=str(store[1]), **across, **SMALL)
    (tmp_path / "c").mkdir()
    arrays, _ = run("sae_crosscoder", tmp_path / "c", store=str(store[1]), **SMALL)
    assert (arrays["explained_variance"] > 0).all()
    with pytest.raises(ValueError, match=r"has no site 'mlp_post\.0'"):
        run("sae_mlp", tmp_path, store=str(store[1]), **SMALL)


def test_what_does_not_fit_gets_one_sentence(folder, store, tmp_path):
    same_name, unfinished = tmp_path / "model", tmp_path / "unfinished"
    checkpoints.save(same_name, Transformer(checkpoints.read(folder / "model").config, nnx.Rngs(5)))
    shutil.copy(folder / "model" / "tokenizer.json", same_name)
    shutil.copytree(store[1], unfinished)
    (unfinished / "end.json").unlink()
    shutil.copytree(store[1], tmp_path / "store")
    for changes, said in (
        ({"store": str(tmp_path / "nowhere")}, "is no store"),
        ({"store": str(store[1]), "sites": ("z.0",)}, r"has no site 'z\.0'"),
        ({"store": str(store[1]), "model": str(tmp_path / "other")}, "does not exist"),
        ({"store": str(store[1]), "model": str(same_name)}, "has weights = .* was asked for"),
        ({"store": str(unfinished)}, "did not come to its end"),
        ({"store": str(store[1]), "sites": ()}, "sites is empty"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            run("sae", tmp_path, **{**SMALL, **changes})
        assert "\n" not in str(error.value)
    for changes, said in (
        ({"model": str(tmp_path / "nowhere")}, "does not exist"),
        ({"sites": ("resid_post.9",)}, "no site"),
        ({"corpus.path": str(tmp_path / "nowhere")}, "does not exist"),
        ({"corpus.kind": "tape"}, "unknown kind of corpus"),
        ({"corpus.digest": "0123"}, "--config.corpus.digest= takes them"),
        ({"context": 1}, "context must be at least 2 and at most the model's 64"),
        ({"context": 65}, "at most the model's 64"),
        ({"tokens": -5}, "tokens must be a whole number of at least 0"),
        ({"outlier": -1.0}, "outlier must be a finite number of at least 0"),
        ({"outlier": 1e-6, "store": str(tmp_path / "none")}, "every token was left out for its norm"),
        ({"first": 64, "store": str(tmp_path / "nothing")}, "no token is left to harvest"),
        ({"dtype": "float8"}, "unknown dtype 'float8' of a store: choose one of float32, bfloat16"),
        ({"model": str(same_name)}, "is a store of something else .weights differ"),
        ({"tokens": 2000}, "more than the .* asked for"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            harvested(folder, tmp_path, **changes)
        assert "\n" not in str(error.value)


@pytest.mark.ci
def test_saes_straight_from_the_model(folder, tmp_path):
    """Without a disk between: an SAE by an alias, a transcoder, a crosscoder; scored on contexts that were held out."""
    texts = {"model": str(folder / "model"), "corpus.kind": "files", "corpus.path": str(folder / "texts")}
    live = {**texts, **SMALL, "context": 32, "generation": 64}
    arrays, _ = run("sae", tmp_path, **live, sites=("blocks.1.hook_resid_post",))
    assert arrays["l0"] == pytest.approx([2, 4], rel=0.6)
    assert "SAE 1" in list(arrays["fidelity_names"])
    assert not arrays["texts_harvested"]
    about = formats.read(tmp_path / "export" / "1").metadata
    assert (about.site, about.context, about.hook) == ("resid_post.1", 32, "blocks.1.hook_resid_post")
    (tmp_path / "t").mkdir()
    arrays, _ = run("sae_transcoder", tmp_path / "t", **live, reads="mlp_in.1", sites=("mlp_out.1",))
    assert "SAE 0" in list(arrays["fidelity_names"])
    (tmp_path / "m").mkdir()
    arrays, _ = run("sae_mlp", tmp_path / "m", **live)
    assert "SAE 1" in list(arrays["fidelity_names"])
    assert formats.read(tmp_path / "m" / "export" / "1").arch.d_in == 32
    (tmp_path / "c").mkdir()
    arrays, _ = run("sae_crosscoder", tmp_path / "c", **live)
    assert (arrays["explained_variance"] > 0).all()
    with pytest.raises(ValueError, match="give a store, or a model and a corpus"):
        run("sae", tmp_path, **SMALL)


def test_saes_on_arrays_written_elsewhere(tmp_path):
    rows = np.random.default_rng(0).normal(size=(3000, 12)).astype(np.float32)
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "0.npy", rows)
    arrays, _ = run("sae", tmp_path, store=str(tmp_path / "rows"), **SMALL)
    assert arrays["rows"] == 3000
    assert (arrays["explained_variance"] > 0).all()


@pytest.mark.ci
def test_a_hugging_face_folder_goes_the_same_way(folder, tmp_path):
    """config.json, sharded safetensors and tokenizer.json, letter by letter, through all three commands."""
    letters = " abcdefghijklmnopqrstuv"
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"?": 0, **{c: i + 1 for i, c in enumerate(letters)}}, "?")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    place = test_lm_files.folder(tmp_path / "m", parts=2)
    tokenizer.save(str(place / "tokenizer.json"))
    texts = {"corpus.kind": "files", "corpus.path": str(folder / "texts")}
    given = {"model": str(place), "sites": ("resid_post.0",)}
    arrays, claims = harvested(folder, tmp_path / "h", tokens=5000, **given)
    assert [c.text for c in claims if not c.holds] == []
    back = next(Store(tmp_path / "h" / "store").batches(["resid_post.0"], 31))
    rows = checkpoints.read(place)(back.tokens[None], capture=["resid_post.0"]).captured["resid_post.0"][0]
    np.testing.assert_allclose(back.values["resid_post.0"], rows, rtol=2**-7, atol=1e-2)
    run("sae", tmp_path, store=str(tmp_path / "h" / "store"), **SMALL)
    arrays, _ = run("sae", tmp_path / "h", store=str(tmp_path / "h" / "store"), **given, **texts, **SMALL)
    assert "SAE 0" in list(arrays["fidelity_names"])


def test_a_model_is_not_read_with_another_tokenizer(tmp_path):
    tokenizer, other = (text.train_tokenizer(python_source((name,)), 300) for name in ("json", "queue"))
    config = Config(vocab=300, d_model=8, layers=1, heads=2, d_head=4, d_mlp=16, context=16)
    checkpoints.save(tmp_path, Transformer(config, nnx.Rngs(0)), {"tokenizer": tokenizer.digest()})
    (tmp_path / "tokenizer.json").write_text(tokenizer.backend.to_str())
    assert language.read(str(tmp_path))[1].digest() == tokenizer.digest()
    (tmp_path / "tokenizer.json").write_text(other.backend.to_str())
    with pytest.raises(ValueError, match="trained with another tokenizer than the one beside it"):
        language.read(str(tmp_path))


@real
def test_the_stories_model_is_harvested_with_its_tokenizer(tmp_path):
    arrays, claims = run(
        "harvest", tmp_path, **{
            "model": str(Path(DATA, "stories260K.bin")), "corpus.kind": "files", "tokens": 0,
            "corpus.path": str(Path(DATA, "tinystories_sample.txt")), "corpus.separator": "<|endoftext|>",
            "sites": ("resid_post.2",), "context": 64, "shard": 4, "block": 64,
        }
    )  # fmt: skip
    assert claims[0].holds
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["sites"] == {"resid_post.2": 64}
    assert manifest["facts"]["model"] == "stories260K.bin"
    assert arrays["written"] > 500


@real
@pytest.mark.ci
def test_every_layer_of_the_stories_model_gets_its_sae(tmp_path):
    arrays, claims = run("stories", tmp_path, **{"model": str(Path(DATA, "stories260K.bin"))})
    assert len(str(arrays["digest"])) == 8
    held = {c.text.split(",")[0]: c.holds for c in claims}
    assert held["cost in nats over that of as many principal components or values"]
    assert arrays["l0"].shape == (5, 1)
    for site in arrays["sites"]:
        back = formats.read(tmp_path / "export" / str(site))
        assert (back.metadata.site, back.arch.d_sae) == (site, 128)


@pytest.mark.ci
def test_what_can_t_be_exported_or_decoded_is_said(folder, store, tmp_path, capsys):
    shutil.copytree(folder / "texts", tmp_path / "texts")
    (tmp_path / "texts" / "utf16.txt").write_text("import json", encoding="utf-16")
    (tmp_path / "run").mkdir()
    corpus = {"model": str(folder / "model"), "corpus.kind": "files", "corpus.path": str(tmp_path / "texts")}
    across = {"reads": "mlp_in.1", "sites": ("mlp_out.1",), "kind.activation": "topk"}
    arrays, _ = run("sae_transcoder", tmp_path / "run", store=str(store[1]), **corpus, **across, **SMALL)
    said = "".join(capsys.readouterr())
    assert "SAE 0 is not exported: SAELens knows no topk transcoder" in said
    assert "1 parts of texts were skipped: utf16.txt" in said
    assert len(arrays["l0"]) == 2


def test_token_frequencies_are_a_loss(folder):
    tokenizer = text.read_tokenizer(folder / "model")
    found = text.contexts(text.from_files(folder / "texts"), tokenizer, 32)
    texts = language.Texts(text.from_files(folder / "texts"), "", tokenizer, found, found)
    assert 0 < language.unigram(texts) < np.log(320)


def study():
    """A config of latents.study's parts on three modules, an untrained model, and its texts."""
    c = importlib.import_module("configs.lm.one_layer").get_config("quick")
    c.update_from_flattened_dict({
        "corpus.modules": ("json", "bisect", "queue"), "vocab": 320, "context": 32, "judged": 50, "passes": 8,
        "model.d_model": 16, "model.d_head": 4, "model.d_mlp": 24, "steps": 6, "log_every": 3, "batch": 64,
        "hold": 3, "generation": 32, "kind.d_sae": 20, "kind.k": 3, "kind.recipe.warmup": 0,
    })  # fmt: skip
    return c


def test_rows_stand_beside_their_labels(tmp_path):
    c = study()
    texts = language.texts(c, tmp_path, labels=True)
    model = Transformer(language.architecture(c, 320), nnx.Rngs(0))
    batches = list(latents._labelled(c, model, texts, "embed", None)())
    tokens = np.concatenate([b.tokens for b in batches])
    np.testing.assert_allclose(np.concatenate([b.values for b in batches]), np.asarray(model.W_E[...])[tokens])
    said = {d.name: d for d in texts.corpus.read()}
    few, at = language.judged(c, texts), 0
    y, documents = (np.concatenate([getattr(b, f) for b in batches]) for f in ("labels", "documents"))
    for row in range(len(few.tokens)):
        name = few.names[few.documents[row]]
        encoded = texts.tokenizer.encode(said[name].text)
        bits = np.unpackbits(text.token_labels(encoded, said[name].spans(), len(texts.corpus.labels)), axis=1)
        place = few.starts[row] + np.arange(few.lengths[row])
        place = place[~np.isin(few.tokens[row, : few.lengths[row]], texts.tokenizer.special)]
        part = slice(at, at + len(place))
        np.testing.assert_array_equal(tokens[part], encoded.ids[place])
        np.testing.assert_array_equal(y[part], bits[place, : y.shape[1]].astype(bool))
        assert (documents[part] == few.documents[row]).all()
        at += len(place)
    assert at == len(tokens)
    assert y.any()


@pytest.mark.ci
def test_saes_of_several_sites_in_one_pass_are_those_of_one_each(tmp_path):
    c = study()
    texts = language.texts(c, tmp_path)
    model = Transformer(language.architecture(c, 320), nnx.Rngs(0))
    sites = ("mlp_out.0", "mlp_post.0")
    source = latents.stream(c, model, texts, sites)
    both, _ = latents.train(c, source, dict.fromkeys(sites, c.kind), prng.key(1), tmp_path / "b", "both")
    assert [both[s].arch.d_in for s in sites] == [16, 24]
    source = latents.stream(c, model, texts, "mlp_post.0")
    alone, _ = latents.train(c, source, {"mlp_post.0": c.kind}, prng.key(1), tmp_path / "a", "one")
    for name in both["mlp_post.0"].arch.shapes():
        np.testing.assert_allclose(
            getattr(both["mlp_post.0"], name)[...], getattr(alone["mlp_post.0"], name)[...], atol=1e-6, err_msg=name
        )


def test_precision_by_activation_bin(monkeypatch):
    """Counted by hand over three batches; silent tokens are in no bin, documents of even number in none either."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 3, (90, 4)) * (rng.random((90, 4)) < 0.6)
    y, documents = rng.random((90, 2)) < 0.4, rng.integers(0, 6, 90)
    batches = [labels.Batch(values[i::3], y[i::3], documents[i::3], None) for i in range(3)]
    monkeypatch.setattr(latents, "_labelled", lambda *_: lambda: iter(batches))
    texts = types.SimpleNamespace(corpus=types.SimpleNamespace(labels=("a", "b")))
    found = latents.by_bin(None, None, texts, "mlp_post.0", None, [2, 0], ["b", "a"], bins=5)
    for i, (unit, label) in enumerate(((2, 1), (0, 0))):
        top = values[:, unit].max()
        assert found["bin_top"][i] == top
        for k in range(5):
            inside = (documents % 2 == 1) & (values[:, unit] > 0) & (values[:, unit] >= k / 5 * top)
            inside &= (values[:, unit] < (k + 1) / 5 * top) | (k == 4)
            assert found["bin_tokens"][i, k] == inside.sum()
            assert found["bin_hits"][i, k] == (inside & y[:, label]).sum()
