"""Stop and go: whatever stops a run, it ends with the bits of a run that nothing stopped, or with one sentence."""

import contextlib
import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_script import Batches, compile_cache, differing, everything, leaves

from superpose.train.checkpoint import (
    Checkpoints,
    Stopped,
    WorkdirError,
    clear_left_over,
    lock,
    write_atomically,
)
from superpose.train.fit import Objective, Population, fit
from superpose.train.recipe import Recipe
from superpose.worlds import prng

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Programs are compiled once for all runs of this file: it is about what comes after."""
    with compile_cache(tmp_path_factory.mktemp("compiled")) as folder:
        yield folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(result, metrics.jsonl, work directory) of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    result = leaves(everything(workdir))
    return result, (workdir / "metrics.jsonl").read_bytes(), workdir


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole[2], tmp_path / "run")
    return tmp_path / "run"


def check(workdir, whole, result):
    assert not differing(result, whole[0])
    assert (workdir / "metrics.jsonl").read_bytes() == whole[1]


def newest(workdir):
    return workdir / "checkpoints" / str(max(int(p.name) for p in (workdir / "checkpoints").iterdir()))


# ---- processes that are killed


@pytest.fixture(scope="module")
def script(compiled):
    """Starts tests/train_script.py in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(compiled)}

    def start(what, workdir):
        command = [sys.executable, str(Path(__file__).parent / "train_script.py"), what, str(workdir)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def kill_while(start, workdir, lines, delay, saving):
    """kill -9 once the log, cut by this process, has so many lines, after the delay, and amid a save if asked."""
    log = workdir / "metrics.jsonl"
    read = lambda: (log.stat().st_ino, log.read_bytes().count(b"\n")) if log.exists() else (None, 0)  # noqa: E731
    before, process = read()[0], start()
    while process.poll() is None:
        file, count = read()
        if file != before and count >= lines:
            break
        time.sleep(0.005)
    with pytest.raises(WorkdirError, match=r"another run is using .*; wait for it or choose another work directory"):
        with lock(workdir):
            pass
    time.sleep(delay)
    while saving and process.poll() is None and not list((workdir / "checkpoints").glob("*tmp*")):
        time.sleep(0.001)
    process.kill()
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said


def kill_and_resume(script, workdir, whole, moments):
    for lines, delay, saving in moments:
        kill_while(lambda: script("everything", workdir), workdir, lines, delay, saving)
    process = script("everything", workdir)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert re.search("resuming .* after step", said)
    found = np.load(workdir / "result.npz")
    check(workdir, whole, dict(found))
    times = [json.loads(line) for line in (workdir / "timing.jsonl").read_text().splitlines()]
    assert [t["step"] for t in times] == [5, 10, 12, 15, 20, 25, 30, 35, 40, 43, 45, 50, 55, 60]


def moments(seed, count):
    draw = random.Random(seed)
    lines = sorted(draw.sample(range(1, 19), count))  # of the 28 in all: the kill must come before the end
    return [(n, draw.uniform(0, 0.03), draw.random() < 0.5) for n in lines]


def test_a_killed_run_goes_on_bit_for_bit(script, whole, tmp_path):
    kill_and_resume(script, tmp_path, whole, moments(1, 3))


@pytest.mark.ci
@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_often_goes_on_bit_for_bit(script, whole, tmp_path, seed):
    kill_and_resume(script, tmp_path, whole, moments(100 + seed, 4))


def test_a_full_disk_leaves_the_checkpoint_before_it(script, whole, tmp_path):
    process = script("full_disk", tmp_path)
    out, said = process.communicate()
    assert process.returncode == 0, said
    found = json.loads(out)
    assert found["steps"] == [15, 20]
    checkpoint, log = found["said"]
    assert checkpoint.startswith(f"could not write the checkpoint of step 25 in {tmp_path} (")
    assert checkpoint.endswith("the checkpoint of step 20 stands: make room and run the same command again")
    assert re.fullmatch(rf"could not write {tmp_path}/\S+: File too large; make room and (resume|run again)", log)
    check(tmp_path, whole, dict(np.load(tmp_path / "result.npz")))


# ---- runs that are asked to stop


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_saved_and_goes_on_bit_for_bit(whole, tmp_path, signum):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped, match=f"stopped after step 20; saved in {tmp_path}") as stopped:
        everything(tmp_path, Batches(signals={17: [signum]}), checkpoint_seconds=1e9)
    assert (stopped.value.step, stopped.value.signum, stopped.value.workdir) == (20, signum, tmp_path)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert newest(tmp_path).name == "20"
    stream = Batches()
    check(tmp_path, whole, leaves(everything(tmp_path, stream, checkpoint_seconds=1e9)))
    assert stream.at == 62  # 60 steps and what the two edits took


def test_a_signal_after_the_save_stops_after_the_next_chunk(tmp_path, monkeypatch):
    """It comes while the bar is drawn: what is said to be saved is."""
    from superpose.train import fit as module

    class Late(module.bar("", 1, quiet=True)[0].__class__):
        def update(self, *args, **kwargs):
            super().update(*args, **kwargs)
            if kwargs["completed"] == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    def bar(title, total, done=0, quiet=None):
        progress = Late(disable=True)
        return progress, progress.add_task(title, total=total)

    monkeypatch.setattr(module, "bar", bar)
    with pytest.raises(Stopped) as stopped:
        everything(tmp_path, checkpoint_seconds=1e9)
    assert newest(tmp_path).name == str(stopped.value.step)


@pytest.mark.ci
def test_a_second_signal_stops_at_once(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        everything(tmp_path, Batches(signals={17: [signal.SIGTERM, signal.SIGINT]}))
    assert newest(tmp_path).name == "15"
    check(tmp_path, whole, leaves(everything(tmp_path)))


def test_a_run_without_a_work_directory_stops_too():
    with pytest.raises(Stopped, match="stopped after step 5; nothing was saved: the run has no work directory"):
        everything(None, Batches(signals={2: [signal.SIGINT]}))


def test_a_run_off_the_main_thread(whole, tmp_path):
    """No signals there; and the finished run is read back from its directory, its log mended."""
    shutil.copytree(whole[2], tmp_path, dirs_exist_ok=True)
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 61, "population": "rich"}\n{"step": 65, "popu')
    found = []
    thread = threading.Thread(target=lambda: found.append(everything(tmp_path)))
    thread.start()
    thread.join()
    check(tmp_path, whole, leaves(found[0]))


def test_the_log_says_what_the_history_says(whole):
    result, log, _ = whole
    lines = [json.loads(line) for line in log.splitlines()]
    for name, metric in (("rich", "loss"), ("rich", "norm"), ("plain", "loss")):
        history = result[f"['{name}']['history']['{metric}']"]
        mine = [line for line in lines if line["population"] == name]
        assert [line["step"] for line in mine] == [5, 10, 12, 15, 20, 25, 30, 35, 40, 43, 45, 50, 55, 60]
        for line, values in zip(mine, history, strict=True):
            members = [np.nan if v is None else v for v in line[metric]["members"]]
            np.testing.assert_array_equal(np.float32(members), values)
            good = values[np.isfinite(values)]
            found = [line[metric][k] for k in ("mean", "min", "max")]
            np.testing.assert_allclose(found, [good.mean(), good.min(), good.max()], rtol=1e-6)
    assert [line["frozen"] for line in lines if line["population"] == "rich"] == [0] * 7 + [1] * 7
    assert b"seconds" not in log


# ---- work directories that can't be used


def small(workdir, key=0, size=3, init=None, power=2, table=0.0, **changes):
    recipe = Recipe(steps=4, optimizer="sgd", lr=changes.pop("lr", 0.1))
    start = init or (lambda key, hyper: (jnp.zeros(size), ()))
    known = np.full(2000, table)
    inner = jax.jit(lambda w: jnp.sum(w**power) + known[7:].sum())
    loss = lambda w, state, batch, key, step, hyper: (sum(inner(x) for x in jax.tree.leaves(w)), (state, {}))  # noqa: E731
    hyper = {"seed": np.arange(2), **changes.pop("hyper", {})}
    pop = Population(Objective(start, loss), recipe, hyper, block=2)
    changes = {"source": Batches(), **changes}
    return fit(pop, steps=4, key=prng.key(key), workdir=workdir, **changes)


def test_a_directory_of_another_run_is_refused(tmp_path):
    small(tmp_path, hyper={"gain": np.ones(2)})
    log = (tmp_path / "metrics.jsonl").read_bytes()
    others = (
        dict(key=1),
        dict(lr=0.2),
        dict(hyper={"gain": np.float64([1, 1 + 1e-15])}),
        dict(hyper={"gains": np.ones(2)}),
        dict(power=4),
        dict(table=1.0),
        dict(size=4),
        dict(init=lambda k, h: ({"more": jnp.zeros(3)}, ())),
    )
    for other in others:
        with pytest.raises(WorkdirError, match=rf"{tmp_path} holds another run .* choose another work directory"):
            small(tmp_path, **{"hyper": {"gain": np.ones(2)}, **other})
    assert (tmp_path / "metrics.jsonl").read_bytes() == log  # nothing is lost
    small(tmp_path, hyper={"gain": np.ones(2)})


def test_empty_arrays_survive(tmp_path):
    init = lambda key, hyper: ({"w": jnp.ones(3), "none": jnp.zeros((0, 2))}, ())  # noqa: E731
    first = small(tmp_path, init=init)
    again = small(tmp_path, init=init)
    assert again.params["none"].shape == (2, 0, 2)
    assert not differing(leaves(first), leaves(again))


def test_two_runs_in_one_directory(tmp_path):
    with lock(tmp_path / "deep" / "down"):
        with pytest.raises(
            WorkdirError, match=r"another run is using .*; wait for it or choose another work directory"
        ):
            small(tmp_path / "deep" / "down")
    small(tmp_path / "deep" / "down")


def test_another_stream_is_another_run(tmp_path):
    class Other(Batches):
        def batch(self, t):
            return -super().batch(t)

    small(tmp_path)
    with pytest.raises(WorkdirError, match="holds another run"):
        small(tmp_path, source=Other())
    small(tmp_path)


def test_a_stop_in_the_last_chunk_is_a_stop(whole, tmp_path):
    with pytest.raises(Stopped, match=f"stopped after step 60; saved in {tmp_path}"):
        everything(tmp_path, Batches(signals={61: [signal.SIGTERM]}))
    check(tmp_path, whole, leaves(everything(tmp_path)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")
def test_a_forked_worker_does_not_hold_the_lock(tmp_path):
    (alive, say_so), (done, say_done) = os.pipe(), os.pipe()
    with lock(tmp_path):
        child = os.fork()
        if not child:
            os.write(say_so, b"!")
            os.read(done, 1)  # lives on until the parent is done
            os._exit(0)
        os.read(alive, 1)
    with lock(tmp_path):
        pass
    os.write(say_done, b"!")
    os.waitpid(child, 0)


def test_a_file_is_no_work_directory(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WorkdirError, match=f"cannot use the work directory {path}: .*; choose another"):
            small(path)


def test_write_atomically_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomically(path, b"first")
    (tmp_path / "new" / "folder").mkdir()
    with pytest.raises(
        WorkdirError,
        match=r"could not write .*folder: .*; see that the folder is there and may be written to, and run again",
    ):
        write_atomically(tmp_path / "new" / "folder", b"data")
    assert path.read_bytes() == b"first"
    assert sorted(p.name for p in path.parent.iterdir()) == ["file", "folder"]


# ---- damage

DAMAGE = "is damaged and can't be read; delete|does not hold what was saved"


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints written by hand and what the newest holds."""
    rng = np.random.default_rng(0)
    for step in (10, 20):
        arrays = {
            "a:members['W']": rng.normal(size=(40, 30)).astype(np.float32),
            "a:members['half']": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
            "a:records['x/y.z']": rng.integers(0, 9, (2, 3)),
            "flag": np.array([True, False]),
        }
        meta = {"identity": "abc", "history_steps": [5, step], "source": {"at": step, "9": 1, "10": [0.1, None, "ü"]}}
        with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
            checkpoints.save(step, arrays, meta)
    return tmp_path, 20, {k: np.asarray(v) for k, v in arrays.items()}, meta


def restore(workdir):
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        return checkpoints.restore()


def is_intact(saved):
    """Whether a fresh process would get what was saved; False when it gets a sentence. Anything else fails."""
    try:
        step, arrays, meta = restore(saved[0])
    except WorkdirError as error:
        said = str(error)
        gc.collect()  # what Orbax left of its failure: its reports must not interrupt whatever comes later
        if re.search(DAMAGE, said) and "\n" not in said:
            return False
        raise
    assert (step, meta) == (saved[1], saved[3])
    assert not differing(arrays, saved[2])
    return True


def damaged(data, positions):
    yield b""
    yield data[: len(data) // 2]
    yield data[:-1]
    for i in positions:
        yield data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]


def damage_all(saved, positions):
    """File -> how many of its damages went unnoticed (and changed nothing)."""
    place = saved[0] / "checkpoints" / "20"
    assert is_intact(saved)
    unnoticed = {}
    for path in (p for p in sorted(place.rglob("*")) if p.is_file()):
        data, count = path.read_bytes(), []
        for bad in damaged(data, positions(len(data))) if data else ():
            path.write_bytes(bad)
            count.append(is_intact(saved))
        path.write_bytes(data)
        unnoticed[path.relative_to(place).as_posix()] = sum(count)
    assert is_intact(saved)
    return unnoticed


@pytest.mark.filterwarnings("ignore")  # Orbax leaves coroutines and threads behind when it fails
def test_damage_is_never_silent(saved):
    unnoticed = damage_all(saved, lambda n: sorted({0, n // 3, n // 2, n - 1}))
    assert unnoticed["meta/metadata"] == 0
    assert unnoticed["arrays/manifest.ocdbt"] == 0
    read = [k for k in unnoticed if k.startswith("arrays/d/")]
    assert read
    assert not any(unnoticed[k] for k in read), unnoticed


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore")
def test_no_byte_of_a_checkpoint_is_silent(saved):
    damage_all(saved, lambda n: range(0, n, 1 + n // 40))


def test_every_word_of_the_meta_data_counts(saved):
    """An edit that leaves valid JSON: the stream's position, the history's steps, whose run it is; the step itself."""
    place = saved[0] / "checkpoints" / "20"
    text = (place / "meta" / "metadata").read_text()
    for old, new in (('"at": 20', '"at": 21'), ("[5, 20]", "[5, 25]"), ("abc", "abd"), ("0.1", "0.2"), ('"9"', '"8"')):
        assert text.count(old) == 1
        (place / "meta" / "metadata").write_text(text.replace(old, new))
        assert not is_intact(saved)
    (place / "meta" / "metadata").write_text(text)
    place.rename(place.with_name("30"))
    assert not is_intact(saved)


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(copy, whole):
    """As the sentence says: delete it, and the run goes on from the one before, bit for bit."""
    for path in (p for p in newest(copy).rglob("arrays/d/*")):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        WorkdirError, match=r"is damaged and can't be read; delete .* to go on from the checkpoint before it"
    ) as refused:
        everything(copy)
    gc.collect()
    shutil.rmtree(re.search("delete (.*) to go on", str(refused.value))[1])
    assert newest(copy).name == "55"
    check(copy, whole, leaves(everything(copy)))


def test_a_save_that_json_cannot_hold_is_a_sentence(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        with pytest.raises(
            WorkdirError, match=r"could not write the checkpoint of step 1 .*bytes.*no earlier checkpoint"
        ):
            checkpoints.save(1, {"a": np.ones(2)}, {"source": b"position"})
        assert checkpoints.restore() is None


def test_what_writes_killed_long_ago_left_is_removed_and_nothing_else(tmp_path):
    old, new, mine, folder = (tmp_path / n for n in (".a.json.12.tmp", ".b.json.12.tmp", ".notes.tmp", ".c.12.tmp"))
    folder.mkdir()
    for path in (old, new, mine):
        path.write_text("half")
    for path in (old, mine, folder):
        os.utime(path, (1e9, 1e9))
    clear_left_over(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, mine, folder])
