"""SAEs that are killed, or whose data break off, end with the bits of a run that nothing stopped: parameters, moments,
silence, thresholds, controllers, what resampling took from the stream."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from sae_script import BATCH, BETWEEN, ROWS, STEPS, Activations, D, F, saes
from test_checkpoint import kill_while
from train_script import compile_cache, differing, leaves

from superpose.train.checkpoint import WorkdirError

HERE = Path(__file__).parent
POPULATIONS = 3
ENDS = [5, 10, 13, 15, 20, 25, 27, 30, 35, 40]
"""Steps at which chunks end; after each a checkpoint is written."""
TAKEN = ROWS // BATCH
"""Batches that a resampling takes from the stream."""


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Programs are compiled once for all processes, and hastily: compiling is what they would wait for."""
    jax.config.update("jax_disable_most_optimizations", True)
    with compile_cache(tmp_path_factory.mktemp("compiled")) as folder:
        yield folder
    jax.config.update("jax_disable_most_optimizations", False)


class Whole(NamedTuple):
    """A run that nothing stopped, and what is compared of it."""

    results: dict
    found: dict[str, np.ndarray]
    log: bytes
    workdir: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir, stream = tmp_path_factory.mktemp("whole"), Activations()
    results = saes(workdir, stream)
    return Whole(results, found_in(results, stream), (workdir / "metrics.jsonl").read_bytes(), workdir)


def found_in(results, stream):
    return leaves(results) | {"position": np.array(stream.at)}


@pytest.fixture
def start(compiled):
    """Starts sae_script.py in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "JAX_COMPILATION_CACHE_DIR": str(compiled)}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

    def run(*arguments):
        command = [sys.executable, str(HERE / "sae_script.py"), *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


def saved(workdir):
    """Step of the newest checkpoint."""
    return max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def finish(workdir, whole, capsys):
    """Resumes a run that was killed in its middle and compares its end with the whole run's."""
    at, stream = saved(workdir), Activations()
    assert 0 < at < STEPS
    assert not (workdir / "result.npz").exists()
    results = saes(workdir, stream)
    assert f"resuming {workdir} after step {at}" in capsys.readouterr().err
    assert not differing(found_in(results, stream), whole.found)
    assert (workdir / "metrics.jsonl").read_bytes() == whole.log
    times = [json.loads(line)["step"] for line in (workdir / "timing.jsonl").read_text().splitlines()]
    assert times == ENDS


def test_the_run_has_all_that_must_survive(whole):
    """A comparison of bits shows something only where they move."""
    results = whole.results
    chosen, steered, resampled = (results[name] for name in ("chosen", "steered", "resampled"))
    assert (chosen.history["dead"] > 0).any(1).sum() > len(ENDS) / 2  # AuxK is at work most of the time
    assert (chosen.state["silent"] > 0).any()
    assert (chosen.state["silent"] % BATCH == 0).all()
    assert (chosen.state["threshold"] > 0).all()
    assert (steered.state["log_coefficient"] != 0).all()
    assert (steered.state["level"] > 0).all()
    assert whole.found["position"] == STEPS + TAKEN * len(BETWEEN)  # both resamplings found dead latents
    for name, result in results.items():
        assert (result.frozen_at < 0).all(), name
        assert (result.history["error"][-1] < 0.9 * result.history["error"][0]).all(), name
    assert resampled.history_steps.tolist() == ENDS


@pytest.mark.slow
def test_killed_saes_go_on_bit_for_bit(start, whole, capsys, tmp_path):
    kill_while(lambda: start(tmp_path), tmp_path, POPULATIONS * 5, 0, False)
    assert saved(tmp_path) >= ENDS[3]  # the log is written before the checkpoint
    finish(tmp_path, whole, capsys)


@pytest.mark.ci
@pytest.mark.parametrize("seed", range(3))
def test_saes_killed_often_go_on_bit_for_bit(start, whole, capsys, tmp_path, seed):
    draw = random.Random(seed)
    for chunks in sorted(draw.sample(range(1, 6), 3)):
        kill_while(lambda: start(tmp_path), tmp_path, POPULATIONS * chunks, draw.uniform(0, 0.1), draw.random() < 0.5)
    finish(tmp_path, whole, capsys)


@pytest.mark.ci
@pytest.mark.parametrize(("position", "at"), [(BETWEEN[0] + 1, 10), (BETWEEN[1] + TAKEN + 2, 25)])
def test_a_kill_amid_a_resampling_takes_its_batches_back(start, whole, capsys, tmp_path, position, at):
    """The stream has given some of the batches that resampling asks for; none of them is missing afterwards."""
    process = start(tmp_path, position)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert saved(tmp_path) == at
    finish(tmp_path, whole, capsys)


# ---- data and settings that do not fit


@pytest.mark.ci
def test_saes_go_on_bit_for_bit_once_bad_data_are_mended(whole, capsys, tmp_path):
    """Counted, named and refused before a step is taken on them; what was saved before stands."""

    class Broken(Activations):
        def batch(self, t):
            x = super().batch(t)
            if t == 17 + TAKEN:  # step 17: the first resampling has taken its batches
                x[:2, 0], x[3, :3] = np.nan, [np.inf, -np.inf, np.nan]
            return x

    said = f"batch for step 17 has 5 of {BATCH * D} values that are not finite: mend or drop them$"
    for _ in range(2):  # the same command says the same
        with pytest.raises(ValueError, match=said):
            saes(tmp_path, Broken())
        assert saved(tmp_path) == 15
    capsys.readouterr()
    finish(tmp_path, whole, capsys)


def test_a_checkpoint_of_other_shapes_is_refused(whole):
    with pytest.raises(WorkdirError, match=r"holds another run \(.*\); choose another work directory, or") as error:
        saes(whole.workdir, d_sae=F + 4)
    assert "\n" not in str(error.value)
    assert saved(whole.workdir) == STEPS
    assert (whole.workdir / "metrics.jsonl").read_bytes() == whole.log
