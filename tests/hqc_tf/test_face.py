"""The public face: every name is there, and importing the package loads no TensorFlow."""

import subprocess
import sys

import pytest

import hqc_tf
from tests.support import ROOT


@pytest.mark.parametrize("name", hqc_tf.__all__)
def test_each_public_name_is_found_where_it_is_defined(name):
    assert getattr(hqc_tf, name).__name__ == name
    assert name in dir(hqc_tf)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Model'"):
        _ = hqc_tf.Model


def test_settings_are_made_without_tensorflow():
    program = "import sys, hqc_tf; hqc_tf.Config(); print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
