"""What all tests share: no window is ever opened, and the data that the project itself does not carry."""

import os
from pathlib import Path

import pytest

os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")  # as experiments.run has it on every device
worker = os.environ.get("PYTEST_XDIST_WORKER")
if worker and hasattr(os, "sched_setaffinity"):  # a core for each process: XLA's threads would get in each other's way
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder that SUPERPOSE_TEST_DATA names; without the variable, the test is skipped."""
    name = os.environ.get("SUPERPOSE_TEST_DATA")
    if not name:
        pytest.skip("needs test data that the project does not carry: set SUPERPOSE_TEST_DATA to its folder")
    folder = Path(name).resolve()
    if not folder.is_dir():
        pytest.fail(f"SUPERPOSE_TEST_DATA names {folder}, which is not a folder")
    return folder
