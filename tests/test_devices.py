"""Eight (forced) devices: members, features and batches spread over them change nothing but the last bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
NEAR = 1e-5
pytestmark = pytest.mark.ci  # the processes with eight devices take a minute


def on_eight(*command):
    """What a script prints in a process with eight devices."""
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parent),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, str(HERE / command[0]), *map(str, command[1:])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What ``train_script.py devices`` found, in one process."""
    found = on_eight("train_script.py", "devices", tmp_path_factory.mktemp("devices"))
    assert found["devices"] == 8
    return found


def test_a_thousand_steps_of_the_toy_model(eight):
    assert eight["toy"]["far"] <= NEAR
    assert eight["toy"]["moved"] > 100 * NEAR


def test_a_size_that_the_devices_do_not_divide(eight):
    assert eight["sizes"]["19"]["far"] <= NEAR


def test_features_and_members_over_a_mesh(eight):
    """Parameters and optimiser state lie where ``param_spec`` says, and train as on one device."""
    for name, parts in (("features", 8), ("features and members", 4)):
        found = eight["features"][name]
        assert found["shards"] == [parts, parts, parts, 1]
        assert found["far"] <= NEAR
    assert eight["features"]["moved"] > 1000 * NEAR


def test_latents_of_saes_over_a_mesh():
    """Selection over split latents (top-k of a batch, thresholds, resampling) trains as on one device."""
    for found in on_eight("sae_script.py", "devices").values():
        assert found["shards"] == [8, 8, 1]
        assert found["far"] <= NEAR
        assert found["moved"] > 100 * NEAR


def test_a_stream_s_batch_over_a_mesh(eight):
    found = eight["features"]["batch"]
    assert found["shards"] == [1, 1, 1, 8]
    assert found["far"] <= NEAR


def test_two_populations_with_hooks_records_and_slices(eight):
    assert eight["everything"]["far"] <= NEAR


def test_resuming_on_another_number_of_devices(eight):
    assert [found["step"] for found in eight["resumed"]] == [20, 20]
    assert all(found["far"] <= NEAR for found in eight["resumed"])


def test_gradients_are_each_member_s_own(eight):
    """Also of what a loss makes as a constant, and though each device holds another member."""
    found, x = eight["gradients"], np.arange(8)
    assert found["shards"] == 8
    assert found["b"] == x.tolist()  # d/db of b x, b a zero made by init
    assert found["w"] == (1 - 0.125 * 2 * (1 - x)).tolist()  # through an inner gradient
    assert found["inner"] == found["evaluated"] == x.tolist()
    assert found["made"] == (2 * x).tolist()


def test_why_fit_switches_check_vma_off(eight):
    """shard_map(vmap(grad)) of a constant made inside: with JAX's default the sum over the devices, silently."""
    plain, right = eight["gradients"]["plain"], list(range(8))
    assert plain["False"] == right
    if plain["True"] == right:
        pytest.skip("this JAX has mended the gradient of constants under shard_map: check_vma=False is needed no more")
    assert plain["True"] == [sum(right)] * 8


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores to leave one out")
def test_a_thousand_steps_on_one_core_and_on_all(tmp_path):
    """One device with one thread against one with all."""
    everywhere = set(range(os.cpu_count()))
    bound = (  # a process of its own from the start, so that XLA never sees the other cores
        "import os, sys; os.sched_setaffinity(0, eval(sys.argv[1])); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )
    for cores in ({0}, everywhere):
        done = subprocess.run(
            [sys.executable, "-c", bound, repr(cores), str(HERE / "train_script.py"), "cores", str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    one, many = (dict(np.load(tmp_path / f"{n}.npz")) for n in (1, len(everywhere)))
    assert one.keys() == many.keys()
    for name in one:
        a, b = one[name].astype(np.float64), many[name].astype(np.float64)
        assert np.max(np.abs(a - b) / np.maximum(1, np.abs(a)), initial=0.0) <= NEAR, name
