"""The cost of a step: what the formulas say is what TensorFlow's graph holds."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import scaling
from hqc_tf.config import Config
from tests.support import ROOT
from tests.support.networks import TWO_CONVOLUTIONS

# The benchmark as a command, with the small network of the other tests.
COMMAND = """
import runpy
import tests.support.networks
runpy.run_module("benchmarks.scaling", run_name="__main__")
"""
SETTINGS = [
    f"--backbone={TWO_CONVOLUTIONS}",
    "--image_size=8", "--backbone_width=2", "--num_books=2", "--num_words=4", "--word_dim=3",
    "--num_neighbors=3", "--book_classification_weight=1", "--cross_quantized_weight=1",
]  # fmt: skip


@pytest.mark.long
def test_a_traced_step_costs_what_the_formulas_say(tmp_path):
    arguments = [*SETTINGS, "--replicas=1,2", "--batches=8", f"--output={tmp_path}/cost.json"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = json.loads((tmp_path / "cost.json").read_text())
    assert one["measured"] == one["formula"] and two["measured"] == two["formula"]
    # 16 anchors, 16 items, 6 numbers an item in six comparisons; then the classifier's two layers.
    flops = 6 * (16 * 16 * 6 * 6 + 16 * 2 * (3 * 12 + 12 * 2))
    assert one["measured"] == {"gathered_bytes": 0, "loss_flops": flops, "gradient_bytes": 0}
    # Of 8 images two views, each f and z of 6 numbers and the similarities to 8 words.
    gathered = 4 * 8 * 2 * (6 + 6 + 8)
    # Convolutions and their batch norm, the projection, the words, the classifier.
    weights = 3 * 9 * 2 + 2 * 9 * 4 + 12 + 4 * 512 + 512 + 512 * 6 + 6 + 24 + 3 * 12 + 12 + 24 + 2
    assert two["measured"] == {
        "gathered_bytes": gathered,
        "loss_flops": flops // 2,
        "gradient_bytes": 4 * weights,
    }
    assert one["network_flops"] == 2 * two["network_flops"] > 0
    assert done.stdout.count("| yes |") == 2


def test_the_formulas_at_the_papers_size():
    cost = scaling.formula(Config(), 4, 11_000_000)
    assert cost == scaling.Cost(256 * 2 * (128 + 128 + 128) * 4, 805_306_368 // 4, 44_000_000)
