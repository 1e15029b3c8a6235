"""Two replicas learn what one learns: gathered rows, losses and weights."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import distribute

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What tests/replicas.py leaves, by name."""
    output = tmp_path_factory.mktemp("replicas") / "found.npz"
    command = [sys.executable, "tests/replicas.py", str(output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(output) as arrays:
        return dict(arrays)


def test_one_device_is_one_replica_and_mirrored_takes_both(found):
    assert (found["one_device/replicas"], found["mirrored/replicas"]) == (1, 2)


def test_each_replica_gets_the_rows_of_all(found):
    rows = np.arange(48).reshape(4, 2, 6)
    np.testing.assert_array_equal(found["gather/deep"], [rows, rows])
    np.testing.assert_array_equal(found["gather/flat"], [rows[:, 0], rows[:, 0]])


def test_offset_is_where_a_replicas_rows_begin(found):
    np.testing.assert_array_equal(found["gather/offset"], [0, 2])


def test_gradients_come_back_from_all_replicas(found):
    np.testing.assert_array_equal(found["gather/flat_gradient"], np.full([2, 2, 6], 3))
    np.testing.assert_array_equal(found["gather/deep_gradient"], np.full([2, 2, 2, 6], 3))


def test_loss_and_terms_over_two_replicas_are_those_of_one(found):
    names = [name for name in found if name.startswith("one_device/metric/")]
    assert len(names) == 8  # the loss and all seven terms
    for name in names:
        both = found[name.replace("one_device", "mirrored")]
        np.testing.assert_allclose(both, found[name], rtol=1e-10, err_msg=name)


def test_weights_over_two_replicas_are_those_of_one(found):
    names = [name for name in found if name.startswith("one_device/weight/")]
    assert len(names) == 9  # two layers, the codebooks, and two layers that guess the book
    for name in names:
        both = found[name.replace("one_device", "mirrored")]
        assert both.dtype == np.float64
        np.testing.assert_allclose(both, found[name], rtol=0, atol=1e-10, err_msg=name)


def test_training_moves_loss_and_weights(found):
    losses = found["mirrored/metric/loss"]
    assert losses[-1] < losses[0]


def test_outside_of_replicas_everyone_is_oneself():
    tensors = [tf.ones([2, 3]), tf.zeros([2, 4, 5])]
    everyone, offset = distribute.gather_batch(tensors)
    assert everyone is tensors
    assert offset == 0
