"""What several test files share."""

# ruff: noqa: I001
# First, since it sets how TensorFlow loads.
import hqc_tf  # noqa: F401

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import prepare
from hqc_tf.config import Config

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def same_random_numbers():
    tf.keras.utils.set_random_seed(1)


@pytest.fixture
def set_policy():
    """Sets Keras' global precision for one test."""
    before = tf.keras.mixed_precision.global_policy()
    yield tf.keras.mixed_precision.set_global_policy
    tf.keras.mixed_precision.set_global_policy(before)


@pytest.fixture
def small_config():
    """Makes the `Config` of a network that trains in seconds, with some settings changed."""
    settings = {
        "image_size": 8,
        "backbone_width": 2,
        "num_books": 2,
        "num_words": 4,
        "word_dim": 3,
        "num_neighbors": 3,
        "batch_size": 4,
        "epochs": 2,
        "warmup_epochs": 0,
    }
    return lambda **changes: Config(**(settings | changes))


@pytest.fixture
def load_reference():
    """Reads one of the authors' results: its arrays, and its settings from `meta`."""

    def load(name):
        with np.load(ROOT / "tests/reference" / f"{name}.npz", allow_pickle=False) as arrays:
            return dict(arrays), json.loads(str(arrays["meta"]))

    return load


@pytest.fixture
def fashion_mnist_dir():
    data_dir = ROOT / "data/tfds"
    if prepare.find_prepared("fashion_mnist", data_dir) is None:
        pytest.skip("Fashion-MNIST is not prepared in data/tfds: `make data` does it")
    return str(data_dir)
