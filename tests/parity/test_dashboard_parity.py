"""Neuronpedia's JSON, read by the classes of the exporter that writes it (SAEDashboard), in the peers' environment."""

import json
import os
import subprocess

import pytest
from test_page import PIECES, made  # noqa: F401

from superpose.dashboard import page

READ = """
import json, sys
from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch
given = json.load(open(sys.argv[1]))
read = NeuronpediaDashboardBatch(**given)
json.dump(read.to_dict(), open(sys.argv[2], "w"))
"""


def test_the_exporter_s_classes_read_a_batch_and_write_the_same(made, tmp_path):  # noqa: F811
    peers = os.environ.get("SUPERPOSE_PEERS")
    if not peers:
        pytest.skip("needs SAEDashboard: set SUPERPOSE_PEERS to a Python that has it")
    batch = page.neuronpedia(made[5], PIECES, model="m", layer=0, sae="mlp_post-s", dataset="d", prompts=60, tokens=10)
    assert len(batch["features"]) == 20
    (tmp_path / "ours.json").write_text(json.dumps(batch))
    done = subprocess.run([peers, "-c", READ, tmp_path / "ours.json", tmp_path / "theirs.json"], capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "theirs.json").read_text()) == batch
