"""Activations: harvested, kept, damaged, killed, read back in order and mixed; models that are not ours."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import linen, nnx
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from superpose.interp import store
from superpose.interp.harvest import Choice, Harvest, Live, Texts
from superpose.interp.store import Foreign, Manifest, Rows, Shuffled, Store, StoreError, Writer, mixing
from superpose.lm import sites
from superpose.lm.transformer import Config, Transformer
from superpose.sae import objective
from superpose.sae.model import Architecture
from superpose.train.checkpoint import WorkdirError, write_atomically
from superpose.train.fit import fit
from superpose.train.recipe import Recipe
from superpose.worlds import prng

CONFIG = Config(vocab=50, d_model=8, layers=2, heads=2, d_head=4, d_mlp=12, context=16)
FACTS = {"model": "m", "corpus": "c"}


class Objects(LocalFileSystem):
    """A bucket that outlives a process: its objects are files, whole or not there, and need no folders.

    Listings are remembered, as by s3fs, until somebody says that they are old.
    """

    protocol = "objects"

    def pipe_file(self, path, value, **more):
        write_atomically(Path(self._strip_protocol(path)), value)

    def ls(self, path, detail=False, **more):
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail, **more)
        return self.dircache[path]

    def invalidate_cache(self, path=None):
        self.dircache.pop(path, None)


fsspec.register_implementation("objects", Objects, clobber=True)
anywhere = pytest.mark.parametrize("at", ["{}", "objects://{}"], ids=["folder", "objects"])
"""Where a store lies: a folder, or the same files behind fsspec."""


def texts(n=40, context=16, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, context + 1, n).astype(np.int32)
    lengths[0] = context
    documents = np.sort(rng.integers(0, n // 3, n)).astype(np.int32)
    return Texts(rng.integers(0, 50, (n, context)).astype(np.int32), lengths, documents, np.zeros(n, np.int32))


def model():
    return Transformer(CONFIG, nnx.Rngs(0))


def run():
    return sites.capture(model(), ["resid_post.0", "mlp_post.1"])


def want(found, site, keep=lambda t: np.arange(16) < t.lengths[:, None]):
    values = np.asarray(run()(found.tokens)[site])
    return values[keep(found)]


# --- harvest ----------------------------------------------------------------------------------------------------------


def test_rows_are_what_the_model_says(tmp_path):
    t = texts()
    harvest = Harvest(run(), t, batch=6)
    assert harvest.widths() == {"resid_post.0": 8, "mlp_post.1": 12}
    harvest.save(tmp_path / "s", FACTS, dtype="float32", shard=7, block=5)
    back = Store(tmp_path / "s", expect={"model": "m"})
    assert len(back) == t.lengths.sum()
    whole = store._join(list(back.batches(["resid_post.0", "mlp_post.1"], 37)))
    for site in harvest.widths():
        np.testing.assert_allclose(whole.values[site], want(t, site), atol=1e-5)
    mask = np.arange(16) < t.lengths[:, None]
    np.testing.assert_array_equal(whole.tokens, t.tokens[mask])
    np.testing.assert_array_equal(whole.documents, np.repeat(t.documents, t.lengths))
    np.testing.assert_array_equal(whole.positions, np.concatenate([np.arange(n) for n in t.lengths]))
    low = Harvest(run(), t, batch=6)
    low.save(tmp_path / "b", FACTS)
    back = next(Store(tmp_path / "b").batches(["mlp_post.1"], 10**6)).values["mlp_post.1"]
    np.testing.assert_allclose(back, want(t, "mlp_post.1"), rtol=2**-8, atol=1e-5)  # eight bits of mantissa


def test_special_tokens_first_places_and_outliers_are_left_out():
    t = texts()
    big = {"x": lambda tokens: jnp.where((tokens == 7)[..., None], 100.0, 1.0) * jnp.ones((*tokens.shape, 3))}

    def fake(tokens):
        return {"x": big["x"](tokens)}

    rows = list(Harvest(fake, t, 8, Choice(special=(3, 4), first=1)).rows(np.arange(40)))
    tokens = np.concatenate([r.tokens for r in rows])
    keep = (np.arange(16) < t.lengths[:, None]) & (np.arange(16) >= 1) & ~np.isin(t.tokens, (3, 4))
    np.testing.assert_array_equal(tokens, t.tokens[keep])
    choosy = Harvest(fake, t, 8, Choice(outlier=10.0))
    kept = np.concatenate([r.tokens for r in choosy.rows(np.arange(40))])
    assert 7 not in kept
    assert choosy.dropped == (t.tokens[np.arange(16) < t.lengths[:, None]] == 7).sum() > 0


def test_a_plan_says_bytes_and_time():
    t = texts()
    found = Harvest(run(), t, 8).plan("bfloat16")
    assert found["rows"] == t.lengths.sum()
    assert found["bytes"] == found["rows"] * (20 * 2 + 12)
    assert found["seconds"] > 0


def test_an_own_nnx_module_and_a_linen_one_are_harvested():
    class Foreign(nnx.Module):
        def __init__(self, rngs):
            self.embed, self.layer = nnx.Embed(50, 8, rngs=rngs), nnx.Linear(8, 12, rngs=rngs)

        def __call__(self, tokens):
            hidden = jax.nn.relu(self.layer(self.embed(tokens)))
            self.sow(nnx.Intermediate, "hidden", hidden)
            return hidden.sum(-1)

    class Linen(linen.Module):
        @linen.compact
        def __call__(self, tokens):
            hidden = linen.relu(linen.Dense(12)(linen.Embed(50, 8)(tokens)))
            self.sow("intermediates", "hidden", hidden)
            return hidden.sum(-1)

    foreign, t = Foreign(nnx.Rngs(0)), texts()
    params = Linen().init(jax.random.key(0), t.tokens[:1])

    graph, state = nnx.split(foreign)

    def from_nnx(tokens):
        _, seen = nnx.capture(nnx.merge(graph, state), nnx.Intermediate)(tokens)
        return {"hidden": seen["hidden"].get_value()[0]}

    def from_linen(tokens):
        _, seen = Linen().apply(params, tokens, mutable="intermediates")
        return {"hidden": seen["intermediates"]["hidden"][0]}

    held = params["params"]
    embedded = held["Embed_0"]["embedding"][t.tokens]
    direct = {
        from_nnx: jax.nn.relu(foreign.layer(foreign.embed(t.tokens))),
        from_linen: jax.nn.relu(embedded @ held["Dense_0"]["kernel"] + held["Dense_0"]["bias"]),
    }
    mask = np.arange(16) < t.lengths[:, None]
    for function, want in direct.items():
        rows = next(Harvest(function, t, 40).rows(np.arange(40)))
        np.testing.assert_allclose(rows.values["hidden"], np.asarray(want)[mask], atol=1e-6)


def test_bad_models_and_corpora_are_refused():
    with pytest.raises(ValueError, match="the corpus is empty"):
        Harvest(run(), Texts(*(np.zeros((0, 16), int), *(np.zeros(0, int),) * 3)))
    with pytest.raises(ValueError, match=r"must be \[B, T, d\]"):
        list(Harvest(lambda tokens: {"x": jnp.zeros((3, 2))}, texts(), 8).rows([0]))


# --- the store --------------------------------------------------------------------------------------------------------


def rows(n, seed=0, documents=10):
    rng = np.random.default_rng(seed)
    about = (rng.integers(0, 9, n), np.sort(rng.integers(0, documents, n)), np.arange(n))
    return Rows({"x": rng.normal(size=(n, 4)).astype(np.float32)}, *(a.astype(np.int32) for a in about))


def filled(path, shards=(100, 0, 37, 250), block=16):
    writer = Writer(path, Manifest({"x": 4}, "float32", block, FACTS))
    for i, n in enumerate(shards):
        writer.write(i, rows(n, i))
    return np.concatenate([rows(n, i).values["x"] for i, n in enumerate(shards)])


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_rows_come_back_in_order_and_mixed(place, tmp_path):
    path = tmp_path / "s" if place == "folder" else f"memory://{tmp_path}/s"
    x = filled(path)
    back = Store(path)
    assert len(back) == 387
    np.testing.assert_array_equal(np.concatenate([r.values["x"] for r in back.batches(["x"], 50)]), x)
    stream = Shuffled(back, "x", 20, seed=3, window=4)
    seen = np.concatenate([next(stream) for _ in range(19)])  # an epoch, but for the rows that fill no batch
    assert len({r.tobytes() for r in seen}) == 380
    assert {r.tobytes() for r in seen} <= {r.tobytes() for r in x}
    assert stream.get_state() == {"epoch": 0, "at": 380}
    again = np.concatenate([next(stream) for _ in range(19)])
    assert stream.get_state() == {"epoch": 1, "at": 380}
    assert not np.array_equal(seen, again)


def test_ranges_are_asked_for_by_name(tmp_path, monkeypatch):
    """s3fs takes a version where the memory driver takes the start."""
    x = filled(f"memory://{tmp_path}/s")
    plain = MemoryFileSystem.cat_file

    def cat(self, path, version_id=None, start=None, end=None):
        assert version_id is None
        return plain(self, path, start=start, end=end)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat)
    back = Store(f"memory://{tmp_path}/s")
    np.testing.assert_array_equal(np.concatenate([r.values["x"] for r in back.batches(["x"], 50)]), x)


def test_a_network_that_fails_is_no_damage(tmp_path, monkeypatch):
    path = f"memory://{tmp_path}/s"
    x = filled(path)
    back = Store(path, skip_damaged=True)

    class NoAnswerError(Exception):
        """Not all drivers raise OSError."""

    def cut(self, *args, **more):
        raise NoAnswerError("no answer")

    with monkeypatch.context() as m:
        m.setattr(MemoryFileSystem, "cat_file", cut)
        with pytest.raises(WorkdirError, match=r"x/000000\.bin can't be reached \(NoAnswerError: no answer\); what is"):
            next(back.batches(["x"], 50))
        with pytest.raises(WorkdirError, match=r"manifest\.json can't be reached"):
            Store(path)
        m.setattr(MemoryFileSystem, "pipe_file", cut)
        with pytest.raises(WorkdirError, match=r"can't be reached"):
            Writer(f"memory://{tmp_path}/other", Manifest({"x": 4}))
    assert not back.damaged
    np.testing.assert_array_equal(np.concatenate([r.values["x"] for r in back.batches(["x"], 50)]), x)


def test_a_disk_that_refuses_is_no_damage_and_a_cut_file_is(tmp_path, monkeypatch):
    filled(tmp_path / "s")
    refused = PermissionError("not yours")
    with monkeypatch.context() as m:
        m.setattr(np, "memmap", lambda *args, **more: (_ for _ in ()).throw(refused))
        with pytest.raises(WorkdirError, match=r"can't be reached \(PermissionError: not yours\)"):
            next(Store(tmp_path / "s", skip_damaged=True).batches(["x"], 50))
    path = f"memory://{tmp_path}/cut"
    filled(path)
    plain = MemoryFileSystem.cat_file
    whole = MemoryFileSystem().cat_file(f"{tmp_path}/cut/x/000000.bin")
    MemoryFileSystem().pipe_file(f"{tmp_path}/cut/x/000000.bin", whole[:100])

    def strict(self, path, start=None, end=None, **more):
        if end is not None and end > self.size(path):
            raise ValueError("416 range not satisfiable")
        return plain(self, path, start, end, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", strict)
    back = Store(path, skip_damaged=True)
    kept = sum(len(r.tokens) for r in back.batches(["x"], 50))
    assert 0 < kept < 387
    assert {shard for _, shard, _ in back.damaged} == {0}


def test_a_position_is_all_that_a_shuffled_reader_remembers(tmp_path):
    filled(tmp_path / "s")
    stream = Shuffled(Store(tmp_path / "s"), "x", 30, seed=1, window=3)
    places, batches = [], []
    for _ in range(30):
        places.append(json.loads(json.dumps(stream.get_state())))
        batches.append(next(stream))
    for i in (25, 3, 12, 13):
        other = Shuffled(Store(tmp_path / "s"), "x", 30, seed=1, window=3)
        other.set_state(places[i])
        np.testing.assert_array_equal(next(other), batches[i])


def test_transcoders_and_crosscoders_get_their_sites(tmp_path):
    Harvest(run(), texts(), 8).save(tmp_path / "s", FACTS, dtype="float32")
    back = Store(tmp_path / "s")
    x, y = next(Shuffled(back, ("resid_post.0", "mlp_post.1"), 9))
    both = next(Shuffled(back, (("resid_post.0", "mlp_post.1"),), 9))
    assert (x.shape, y.shape, both.shape) == ((9, 8), (9, 12), (9, 20))
    np.testing.assert_array_equal(np.concatenate([x, y], 1), both)
    with pytest.raises(StoreError, match=r"no site 'z\.0': it has mlp_post\.1, resid_post\.0"):
        Shuffled(back, "z.0", 9)
    with pytest.raises(StoreError, match="fewer than a batch"):
        Shuffled(back, "mlp_post.1", 10**6)


def test_mixing_is_as_good_as_chance_with_a_wide_window_and_worse_with_a_narrow_one(tmp_path):
    writer = Writer(tmp_path / "s", Manifest({"x": 4}, "float32", 64, FACTS))
    for i in range(4):
        part = rows(4096, i, documents=32)
        writer.write(i, part._replace(documents=part.documents + 32 * i))
    back = Store(tmp_path / "s")
    assert mixing(back, 256, 32, window=1000) == pytest.approx(1, abs=0.1)
    assert mixing(back, 256, 32, window=2) > 10


@anywhere
def test_a_flipped_byte_is_found_named_and_skipped_only_on_request(at, tmp_path):
    x = filled(tmp_path / "s")
    file = tmp_path / "s" / "x" / "000003.bin"
    raw = bytearray(file.read_bytes())
    raw[20 * 16 + 3] ^= 1  # row 20 of the shard, in its second block
    file.write_bytes(raw)
    with pytest.raises(StoreError, match=r"rows 16 to 31 of .*x/000003\.bin are damaged") as error:
        list(Store(at.format(tmp_path / "s")).batches(["x"], 50))
    assert "\n" not in str(error.value)
    patient = Store(at.format(tmp_path / "s"), skip_damaged=True)
    kept = np.concatenate([r.values["x"] for r in patient.batches(["x"], 50)])
    np.testing.assert_array_equal(kept, np.delete(x, slice(137 + 16, 137 + 32), 0))
    assert patient.damaged == {("x", 3, 16)}
    stream = Shuffled(Store(at.format(tmp_path / "s"), skip_damaged=True), "x", 20, window=4)
    bad = {r.tobytes() for r in x[153:169]}
    for _ in range(40):
        assert not {r.tobytes() for r in next(stream)} & bad
    whole = Store(at.format(tmp_path / "s"))  # a block is checked when it is first read, not before
    np.testing.assert_array_equal(next(whole.batches(["x"], 100)).values["x"], x[:100])
    file.write_bytes(raw[:100])
    with pytest.raises(StoreError, match="are damaged"):
        list(Store(at.format(tmp_path / "s")).batches(["x"], 50))
    file.unlink()
    with pytest.raises(StoreError, match="are damaged"):
        list(Store(at.format(tmp_path / "s")).batches(["x"], 50))


@anywhere
def test_a_flipped_byte_of_what_rows_are_of_is_found(at, tmp_path):
    x = filled(tmp_path / "s")
    file = tmp_path / "s" / store.ABOUT / "000003.bin"
    raw = bytearray(file.read_bytes())
    raw[20 * 12 + 5] ^= 1  # the document of row 20
    file.write_bytes(raw)
    with pytest.raises(StoreError, match=rf"rows 16 to 31 of .*{store.ABOUT}/000003\.bin are damaged"):
        list(Store(at.format(tmp_path / "s")).batches(["x"], 50))
    kept = [r.values["x"] for r in Store(at.format(tmp_path / "s"), skip_damaged=True).batches(["x"], 50)]
    np.testing.assert_array_equal(np.concatenate(kept), np.delete(x, slice(137 + 16, 137 + 32), 0))


@anywhere
@pytest.mark.parametrize("rows", [128, 112, 0, -1, 1e9, "many"])
def test_a_shard_that_says_other_rows_than_its_checksums_are_of_is_refused(at, tmp_path, rows):
    """137 rows in blocks of 16: 128 and 112 are whole blocks, whose rows alone would read well."""
    filled(tmp_path / "s")
    about = json.loads((tmp_path / "s" / "000003.json").read_text())
    (tmp_path / "s" / "000003.json").write_text(json.dumps({**about, "rows": rows}))
    with pytest.raises(StoreError, match=r"shard 3 of .* is damaged: delete 000003.json"):
        Store(at.format(tmp_path / "s"))


@anywhere
@pytest.mark.parametrize(
    "wrong", [{"sites": ["x"]}, {"sites": "x"}, {"sites": {"x": 1.5}}, {"block": 1.5}, {"block": 0}]
)
def test_manifests_of_other_kinds_are_refused(at, tmp_path, wrong):
    filled(tmp_path / "s")
    place = tmp_path / "s" / "manifest.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **wrong}))
    with pytest.raises(StoreError, match="store"):
        Store(at.format(tmp_path / "s"))


@anywhere
def test_stores_of_something_else_are_refused(at, tmp_path):
    filled(tmp_path / "s")
    with pytest.raises(StoreError, match=r"something else \(corpus differ\)"):
        Writer(at.format(tmp_path / "s"), Manifest({"x": 4}, "float32", 16, {**FACTS, "corpus": "d"}))
    with pytest.raises(StoreError, match=r"something else \(dtype differ\)"):
        Writer(at.format(tmp_path / "s"), Manifest({"x": 4}, "bfloat16", 16, FACTS))
    with pytest.raises(StoreError, match="has model = 'm', and 'other' was asked for"):
        Store(at.format(tmp_path / "s"), expect={"model": "other"})
    with pytest.raises(StoreError, match="is no store"):
        Store(at.format(tmp_path / "nowhere"))
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="files that are no store"):
        Writer(at.format(tmp_path / "t"), Manifest({"x": 4}))
    (tmp_path / "s" / "000001.json").write_text("{")
    with pytest.raises(StoreError, match=r"shard 1 of .* is damaged"):
        Store(at.format(tmp_path / "s"))
    (tmp_path / "s" / "manifest.json").write_text('{"version": 9}')
    with pytest.raises(StoreError, match="version 9"):
        Store(at.format(tmp_path / "s"))


def test_nan_wrong_shapes_and_a_full_disk_lose_nothing(tmp_path, monkeypatch):
    x = filled(tmp_path / "s")
    writer = Writer(tmp_path / "s", Manifest({"x": 4}, "float32", 16, FACTS))
    bad = rows(5)
    bad.values["x"][2, 1] = np.nan
    with pytest.raises(StoreError, match="1 of 20 values that are NaN"):
        writer.write(4, bad)
    with pytest.raises(StoreError, match=r"must have shape \(5, 4\)"):
        writer.write(4, rows(5)._replace(values={"x": np.zeros((5, 3))}))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WorkdirError, match="make room"):
        writer.write(4, rows(5))
    monkeypatch.undo()
    np.testing.assert_array_equal(np.concatenate([r.values["x"] for r in Store(tmp_path / "s").batches(["x"], 99)]), x)


KILLED = """
import sys, time
import numpy as np
sys.path.insert(0, {tests!r})
from test_store import FACTS, run, texts
from superpose.interp.harvest import Harvest
harvest = Harvest(run(), texts(120), batch=4)
rows = harvest.rows
def slow(contexts):
    for part in rows(contexts):
        time.sleep(0.01)
        yield part
harvest.rows = slow
harvest.save({path!r}, FACTS, dtype="float32", shard=4, block=8)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "at", [pytest.param("{}", id="folder"), pytest.param("objects://{}", id="objects", marks=[pytest.mark.ci])]
)
def test_a_killed_harvest_goes_on_without_a_lost_or_doubled_row(at, tmp_path):
    t, killed = texts(120), at.format(tmp_path / "killed")
    assert isinstance(store._place(killed), store._Remote) == ("://" in at)
    Harvest(run(), t, batch=4).save(tmp_path / "whole", FACTS, dtype="float32", shard=4, block=8)
    code = KILLED.format(tests=str(Path(__file__).parent), path=killed)
    for shards in (3, 8, 20):
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            while len(list((tmp_path / "killed").glob("0*.json"))) < shards:
                assert process.poll() is None
                time.sleep(0.003)
            process.send_signal(signal.SIGKILL)
    assert 0 < len(Store(killed)) < t.lengths.sum()
    Harvest(run(), t, batch=4).save(killed, FACTS, dtype="float32", shard=4, block=8)
    for path in sorted((tmp_path / "whole").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()


@pytest.mark.parametrize("at", ["{}", "objects://{}", "memory://{}"], ids=["folder", "objects", "memory"])
def test_a_death_in_any_write_loses_and_doubles_nothing(at, tmp_path, monkeypatch):
    class Death(BaseException):
        """Nothing of ours runs after it."""

    t, left = texts(20), [99]
    kind = type(store._place(at.format(tmp_path)))
    plain = kind.write

    def write(place, name, data):
        left[0] -= 1
        if left[0] < 0:
            raise Death
        plain(place, name, data)

    def harvest(path, writes=99):
        """How many it made."""
        left[0] = writes
        Harvest(fake, t, batch=4).save(path, FACTS, dtype="float32", shard=8, block=8)
        return writes - left[0]

    def fake(tokens):
        return {"x": jnp.sin(tokens[..., None] * jnp.arange(1.0, 4)), "y": tokens[..., None] * jnp.ones(2)}

    monkeypatch.setattr(kind, "write", write)
    assert harvest(at.format(tmp_path / "whole")) == 14  # a manifest, three shards of four files, the end
    whole = store._place(at.format(tmp_path / "whole"))
    shard = ("00000{}.json", "x/00000{}.bin", "y/00000{}.bin", "about/00000{}.bin")
    names = ["manifest.json", store.END, *(name.format(i) for i in range(3) for name in shard)]
    for writes in range(14):
        path = at.format(tmp_path / str(writes))
        with pytest.raises(Death):
            harvest(path, writes)
        shards = max(writes - 1, 0) // 4
        assert harvest(path) == 14 - min(writes, 1) - 4 * shards  # shards that were whole are not made again
        again = store._place(path)
        assert all(again.read_all(name) == whole.read_all(name) for name in names)
        assert Store(path).whole


def test_a_listing_that_is_old_is_not_believed(tmp_path):
    """Readers and writers of a bucket may be other processes."""
    filled(f"objects://{tmp_path}/s", shards=(100, 37))
    assert len(Store(f"objects://{tmp_path}/s")) == 137
    filled(tmp_path / "s")  # by somebody else
    assert len(Store(f"objects://{tmp_path}/s")) == 387


HOST = """
import sys
import jax
jax.distributed.initialize("127.0.0.1:{port}", num_processes=2, process_id=int(sys.argv[1]))
sys.path.insert(0, {tests!r})
from test_store import FACTS, run, texts
from superpose.interp.harvest import Harvest
from superpose.interp.store import Store
t = texts(50)
Harvest(run(), t, batch=4).save({path!r}, FACTS, dtype="float32", shard=4, block=8)
print(len(Store({path!r})))
"""


@pytest.mark.ci
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="two processes can't share a GPU's collectives")
def test_two_hosts_make_the_store_of_one(tmp_path):
    t = texts(50)
    Harvest(run(), t, batch=4).save(tmp_path / "one", FACTS, dtype="float32", shard=4, block=8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = HOST.format(port=port, tests=str(Path(__file__).parent), path=str(tmp_path / "two"))
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    for host in hosts:
        out, err = host.communicate(timeout=120)
        assert host.returncode == 0, err
        assert int(out.split()[-1]) == t.lengths.sum()  # none returns before the other's shards are there
    files = [p for p in sorted((tmp_path / "one").rglob("*")) if p.is_file()]
    assert len(list((tmp_path / "one").glob("0*.json"))) == 13
    for path in files:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_more_contexts_are_appended(tmp_path):
    t = texts(40)
    few = Texts(*(a[:24] for a in t))  # the last shard holds four contexts, and is made anew
    Harvest(run(), few, 8).save(tmp_path / "s", FACTS, dtype="float32", shard=10)
    before = len(Store(tmp_path / "s"))
    Harvest(run(), t, 8).save(tmp_path / "s", FACTS, dtype="float32", shard=10)
    back = Store(tmp_path / "s")
    assert len(back) == t.lengths.sum() > before
    np.testing.assert_allclose(
        next(back.batches(["resid_post.0"], 10**6)).values["resid_post.0"], want(t, "resid_post.0"), atol=1e-5
    )


def test_fewer_contexts_and_gaps_lose_nothing(tmp_path):
    t = texts(40)
    Harvest(run(), t, 8).save(tmp_path / "s", FACTS, dtype="float32", shard=10)
    assert Store(tmp_path / "s").whole
    with pytest.raises(StoreError, match="holds 40 contexts, more than the 24 asked for"):
        Harvest(run(), Texts(*(a[:24] for a in t)), 8).save(tmp_path / "s", FACTS, dtype="float32", shard=10)
    assert len(Store(tmp_path / "s")) == t.lengths.sum()
    (tmp_path / "s" / "000001.json").unlink()
    with pytest.raises(StoreError, match="has no shard 1, and some after: harvest again"):
        Store(tmp_path / "s")
    assert not Store(tmp_path / "s", skip_damaged=True).whole
    Harvest(run(), t, 8).save(f"file://{tmp_path / 's'}", FACTS, dtype="float32", shard=10)
    assert Store(tmp_path / "s").whole
    assert len(Store(tmp_path / "s")) == t.lengths.sum()


def test_what_was_left_out_for_its_norm_is_known_after_a_restart(tmp_path):
    t = texts(40)
    harvest = Harvest(run(), t, 4, Choice(outlier=1.2))
    harvest.plan()
    assert harvest.dropped == 0
    harvest.save(tmp_path / "s", FACTS, dtype="float32", shard=4)
    first = Store(tmp_path / "s")
    rows = np.concatenate([r.values["resid_post.0"] for r in first.batches(["resid_post.0"], 50)])
    (tmp_path / "s" / "000009.json").unlink()
    Harvest(run(), t, 3, Choice(outlier=1.2)).save(tmp_path / "s", FACTS, dtype="float32", shard=4)  # other passes
    back = Store(tmp_path / "s")
    assert back.dropped == harvest.dropped > 0
    again = np.concatenate([r.values["resid_post.0"] for r in back.batches(["resid_post.0"], 50)])
    np.testing.assert_allclose(again, rows, atol=1e-5)
    assert len(back) + back.dropped == harvest.plan()["rows"]


# --- straight into training -------------------------------------------------------------------------------------------


def test_a_live_stream_mixes_all_rows_and_resumes_bit_for_bit():
    t = texts(48)
    live = Live(Harvest(run(), t, 8), "resid_post.0", 16, seed=2, contexts=12)
    places, batches = [], []
    while live.get_state()["generation"] < 5:
        places.append(json.loads(json.dumps(live.get_state())))
        batches.append(next(live))
    first = np.concatenate([b for b, p in zip(batches, places, strict=True) if p["generation"] < 4])
    known = {r.tobytes() for r in want(t, "resid_post.0")}
    assert len({r.tobytes() for r in first}) > 0.85 * len(known)
    for i in (len(places) - 2, 1):
        other = Live(Harvest(run(), t, 8), "resid_post.0", 16, seed=2, contexts=12)
        other.set_state(places[i])
        np.testing.assert_array_equal(next(other), batches[i])
    with pytest.raises(StoreError, match="take more contexts"):
        next(Live(Harvest(run(), t, 8), "resid_post.0", 10**4, contexts=12))


@pytest.mark.ci
def test_a_run_on_a_live_stream_resumes_to_the_same_bits_from_one_generation(tmp_path):
    t, passes = texts(48), []
    arch, training = Architecture(8, 24, "batch_topk", k=3), objective.Training()
    saes = objective.population(arch, training, {"seed": range(1)}, Recipe(steps=20, lr=1e-2))

    def go(place, source=None, **more):
        made = Harvest(run(), t, 8)
        plain = made.rows
        made.rows = lambda chosen: passes.append(len(chosen)) or plain(chosen)
        live = source or Live(made, "resid_post.0", 16, seed=2, contexts=12)
        return fit(saes, steps=20, key=prng.key(0), source=live, workdir=tmp_path / place, log_every=2,
                   checkpoint_seconds=0.0, **more)  # fmt: skip

    class Stopped(Exception):
        pass

    class Stops:
        def __init__(self, inner):
            self.inner, self.left = inner, 13
            self.get_state, self.set_state = inner.get_state, inner.set_state

        def __next__(self):
            self.left -= 1
            if self.left < 0:
                raise Stopped
            return next(self.inner)

    whole = go("whole")
    made = Live(Harvest(run(), t, 8), "resid_post.0", 16, seed=2, contexts=12)
    with pytest.raises(Stopped):
        go("cut", Stops(made))
    assert made.get_state()["generation"] >= 1
    before = len(passes)
    again = go("cut")
    assert 1 <= len(passes) - before < before  # from the generation that it stood in
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)


# --- rows of others ---------------------------------------------------------------------------------------------------


def test_folders_of_arrays_are_read(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", x[:20])
    safetensors.numpy.save_file({"acts": x[20:].astype(ml_dtypes.bfloat16)}, tmp_path / "b.safetensors")
    back = Foreign(tmp_path, block=8)
    got = np.concatenate([r.values["x"] for r in back.batches(["x"], 7)])
    np.testing.assert_array_equal(got[:20], x[:20])
    np.testing.assert_array_equal(got[20:], x[20:].astype(ml_dtypes.bfloat16).astype(np.float32))
    assert next(Shuffled(back, "x", 10)).shape == (10, 6)
    np.save(tmp_path / "c.npy", x[:, :3])
    with pytest.raises(StoreError, match=r"different widths \[3, 6\]"):
        Foreign(tmp_path)
    np.save(tmp_path / "c.npy", np.array([{"a": print}], dtype=object))
    with pytest.raises(StoreError, match="can't be read"):
        Foreign(tmp_path)
    (tmp_path / "c.npy").unlink()
    np.save(tmp_path / "c.npy", np.full((3, 6), np.nan))
    with pytest.raises(StoreError, match="18 values that are NaN"):
        list(Foreign(tmp_path).batches(["x"], 7))
    (tmp_path / "none").mkdir()
    with pytest.raises(StoreError, match=r"holds no \.npy"):
        Foreign(tmp_path / "none")
