"""What the loaded encoder imports; test_saved_model covers what it encodes."""

import subprocess
import sys

from tests.support import ROOT


def test_search_needs_neither_serving_nor_training():
    foreign = [
        "tensorflow_serving", "hqc_tf.model", "hqc_tf.train", "hqc_tf.training",
        "hqc_tf.losses", "hqc_tf.backbones", "hqc_tf.optimizers", "export.saved_model",
    ]  # fmt: skip
    program = f"import sys, export.search; print([m for m in {foreign} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
