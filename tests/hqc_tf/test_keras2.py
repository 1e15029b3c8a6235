"""Which Keras is taken, in processes of their own: what is loaded stays loaded."""

import importlib.util
import os
import subprocess
import sys

import pytest

from hqc_tf import _keras2
from tests.support import ROOT

HAS_KERAS_3 = importlib.util.find_spec("tf_keras") is not None
keras_3 = pytest.mark.skipif(not HAS_KERAS_3, reason="only requirements-tf220.txt has Keras 3")

BUILD = """
from hqc_tf import config, model
model.build_model(config.Config(feature_width=2))
import tensorflow as tf
assert issubclass(tf.keras.Model, tf.Module)
"""


def run(code, **environment):
    """Runs code with TF_USE_LEGACY_KERAS as given, or without; returns status and last line."""
    own = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=own | environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


# The other tests import hqc_tf first.
@pytest.mark.parametrize("first", ["import tensorflow", "import export", "import benchmarks"])
@pytest.mark.long
def test_keras_2_is_taken_whatever_is_imported_first(first):
    assert run(first + BUILD)[0] == 0


@keras_3
@pytest.mark.parametrize("package", ["hqc_tf", "export", "benchmarks"])
def test_keras_3_loaded_before_is_named(package):
    status, said = run(f"import tensorflow as tf\ntf.keras.Model\nimport {package}")
    assert status == 1
    assert said.startswith("ImportError: tf.keras is Keras 3 already")
    assert "import hqc_tf before" in said


@keras_3
def test_keras_3_asked_for_is_refused():
    status, said = run("import hqc_tf", TF_USE_LEGACY_KERAS="0")
    assert status == 1
    assert said.startswith("ImportError: TF_USE_LEGACY_KERAS=0") and said.endswith("set it to 1")


WITHOUT_TF_KERAS = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "tf_keras" else find(name, *rest)
import hqc_tf
"""


@keras_3
def test_keras_3_alone_is_refused():
    status, said = run(WITHOUT_TF_KERAS)
    assert status == 1
    assert "tf_keras is not installed" in said and "requirements-tf220.txt" in said


def test_tf_keras_asked_for_and_missing_is_named():
    status, said = run(WITHOUT_TF_KERAS, TF_USE_LEGACY_KERAS="1")
    assert status == 1
    assert said.startswith("ImportError: TF_USE_LEGACY_KERAS=1") and "unset it" in said


def test_versions_are_those_of_the_keras_in_use():
    told = _keras2.versions()
    # Both packages of Keras 2 follow TensorFlow's minor versions.
    assert told["keras"].split(".")[:2] == told["tensorflow"].split(".")[:2]
    assert told["keras"].startswith("2.")
