"""Data sets that TFDS has prepared."""

import pathlib
import shutil

import numpy as np
import pytest

from hqc_tf.data import catalog
from hqc_tf.errors import UserError


def test_unknown_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="dataset fashion_mnits: TFDS has no such data set"):
        catalog.load_images("fashion_mnits", str(tmp_path))


def test_data_that_is_not_prepared_is_refused(tmp_path):
    message = f"dataset cifar10: not prepared in {tmp_path}; `python -m hqc_tf.prepare --dataset=c"
    with pytest.raises(UserError, match=message):
        catalog.load_images("cifar10", str(tmp_path))


def test_prepared_data_is_read_in_order(fashion_mnist_dir):
    images = catalog.load_images("fashion_mnist/test[:600]", fashion_mnist_dir)
    first = catalog.load_images("fashion_mnist/test[:64]", fashion_mnist_dir)
    assert images.pixels.shape == (600, 28, 28, 3)
    assert images.pixels.dtype == np.uint8
    assert (images.pixels == images.pixels[..., :1]).all()
    np.testing.assert_array_equal(images.pixels[:64], first.pixels)
    np.testing.assert_array_equal(images.labels[:64], first.labels)
    assert set(images.labels) == set(range(10))
    assert len(images.label_names) == 10
    assert images.ids[1] == "fashion_mnist/test[:600]/00001"
    assert len(set(images.ids)) == 600
    assert catalog.protocol("fashion_mnist") == "fashion_mnist official"


def test_roles_are_the_official_splits(fashion_mnist_dir):
    query = catalog.load_split("fashion_mnist", "query", fashion_mnist_dir)
    assert len(query) == 10_000
    assert query.ids[0].startswith("fashion_mnist/test/")


def test_unknown_split_is_refused(fashion_mnist_dir):
    with pytest.raises(UserError, match="split dev of fashion_mnist: .*take one that it has"):
        catalog.load_images("fashion_mnist/dev", fashion_mnist_dir)


def test_files_of_another_format_are_refused(fashion_mnist_dir, tmp_path):
    version = tmp_path / "fashion_mnist/3.0.1"
    shutil.copytree(pathlib.Path(fashion_mnist_dir, "fashion_mnist/3.0.1"), version)
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"array_record"'))
    with pytest.raises(UserError, match="fashion_mnist: prepared as array_record; prepare it as"):
        catalog.load_images("fashion_mnist", str(tmp_path))
