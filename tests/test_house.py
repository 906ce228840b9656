"""The nevers of docs/architecture.md, read from the imports; and the benchmark trains what the configs state."""

import ast
import importlib
import subprocess
import sys

import pytest

from experiments.results import ROOT

WINGS = {"superpose.toy", "superpose.sae", "superpose.lm", "superpose.interp", "superpose.dashboard"}
NEVER = {
    "superpose": {"experiments", "configs", "benchmarks", "absl", "ml_collections"},
    "superpose/worlds": {"superpose.train", "superpose.plot", "superpose.files", *WINGS},
    "superpose/train": {"superpose.worlds", "superpose.plot", "superpose.files", "flax", *WINGS},
    "superpose/toy": {"superpose.plot", *WINGS - {"superpose.toy"}},
    "superpose/sae": {"superpose.plot", *WINGS - {"superpose.sae"}},
    "superpose/lm": {"superpose.plot", "superpose.worlds", *WINGS - {"superpose.lm"}},
    "superpose/interp": {"superpose.plot", "superpose.toy", "superpose.dashboard"},
    "superpose/dashboard": {"superpose.plot", "superpose.toy", "superpose.worlds"},
    "superpose/plot.py": {"superpose.worlds", "superpose.train", "superpose.files", "jax", *WINGS},
    "superpose/files.py": {"superpose", "jax"},
    "experiments/toy": {"absl", "ml_collections"},
    "experiments/sae": {"absl", "ml_collections"},
    "experiments/lm": {"absl", "ml_collections"},
    "experiments/kinds.py": {"absl", "ml_collections", "matplotlib"},
    "experiments/language.py": {"absl", "ml_collections", "matplotlib"},
    "experiments/latents.py": {"absl", "ml_collections", "matplotlib"},
    "experiments/reading.py": {"absl", "ml_collections", "matplotlib"},
    "benchmarks": {"absl", "ml_collections", "configs"},
}
"""Part of the house -> what it may not import."""


def imports(path):
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{a.name}" for a in node.names)


@pytest.mark.parametrize("part", NEVER)
def test_nobody_imports_what_stands_above(part):
    place = ROOT / part
    files = [place] if place.suffix else sorted(place.rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            for never in NEVER[part]:
                assert not f"{name}.".startswith(f"{never}."), f"{path.relative_to(ROOT)} imports {name}"


def test_there_is_no_drawer_where_thoughts_get_lost():
    assert not list((ROOT / "superpose").rglob("util*.py"))


@pytest.mark.slow
def test_library_and_benchmarks_run_without_absl_and_ml_collections():
    code = (
        "import sys\n"
        "sys.modules['ml_collections'] = sys.modules['absl.app'] = None  # optax itself imports absl.flags\n"
        "import superpose.train.fit, superpose.toy.models, superpose.sae.objective, superpose.plot\n"
        "import superpose.lm.objective, superpose.interp.harvest, superpose.interp.fidelity, benchmarks.lm\n"
        "import benchmarks.toy, experiments.toy.phase_diagram\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_benchmark_trains_what_the_configs_state():
    bench = importlib.import_module("benchmarks.toy")
    demo = importlib.import_module("configs.toy.superposition_demo").get_config()
    for name in ("n", "m", "decay", "batch", "init_scale", "steps"):
        assert demo[name] == getattr(bench.DEMO, name), name
    assert tuple(demo.densities) == bench.DENSITIES
    assert (demo.recipe.lr, demo.recipe.decay_from) == (bench.DEMO.lr, bench.DEMO.decay_from)
    phase = importlib.import_module("configs.toy.phase_diagram").get_config()
    for name in ("cells", "models", "nodes", "steps", "block"):
        assert phase[name] == getattr(bench.PHASE, name), name
    assert (phase.recipe.lr, phase.recipe.b2) == (bench.PHASE.lr, bench.PHASE.b2)
