"""CIFAR-10's protocols I and II."""

import functools

import numpy as np
import pytest

from hqc_tf.data import catalog, cifar10, decoding
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError
from tests.support import SHARED


@pytest.fixture
def small_cifar10(monkeypatch):
    """CIFAR-10 of 80 images, 8 a class, of which 2 are queries and 3 are trained on."""

    def read(name, split, data_dir):
        count, first = (60, 0) if split == "train" else (20, 60)
        labels = np.arange(count) % 10
        ids = [f"{name}/{split}/{row}" for row in range(count)]
        pixels = np.full([count, 4, 4, 3], 0, np.uint8) + np.arange(first, first + count)[
            :, None, None, None
        ].astype(np.uint8)
        return Images.of_pixels(pixels, ids, labels, list("abcdefghij"))

    monkeypatch.setattr(cifar10, "read_tfds", read)
    monkeypatch.setattr(cifar10, "QUERIES_PER_CLASS", 2)
    monkeypatch.setattr(cifar10, "TRAIN_PER_CLASS", 3)


@pytest.mark.parametrize(("protocol", "train_per_class"), [(1, 6), (2, 3)])
def test_cifar10_protocols_divide_the_pooled_images(small_cifar10, protocol, train_per_class):
    query, database, train = (
        catalog.load_split(f"cifar10_protocol{protocol}", role)
        for role in ("query", "database", "train")
    )
    assert np.bincount(query.labels).tolist() == [2] * 10
    assert np.bincount(database.labels).tolist() == [6] * 10
    assert np.bincount(train.labels).tolist() == [train_per_class] * 10
    assert not set(query.ids) & set(database.ids)
    assert set(train.ids) <= set(database.ids)
    assert len(set(query.ids) | set(database.ids)) == 80
    np.testing.assert_array_equal(query.labels, query.pixels[:, 0, 0, 0] % 10)


def test_both_protocols_have_the_same_queries_and_a_role_is_a_split(small_cifar10):
    first, second = (catalog.load_split(f"cifar10_protocol{n}", "query").ids for n in (1, 2))
    assert first == second == catalog.load_images("cifar10_protocol1/query").ids
    assert len(catalog.load_images("cifar10_protocol2")) == 60
    with pytest.raises(UserError, match="cifar10_protocol1/test: no such role; take one of"):
        catalog.load_images("cifar10_protocol1/test")


def test_cifar10_protocols_on_the_real_set(monkeypatch):
    folder = SHARED / "data/tfds"
    if not (folder / "cifar10").is_dir():
        pytest.skip("no prepared CIFAR-10 in ../shared/data/tfds")
    # Of 60,000 images the labels are enough.
    one_pixel = lambda files: np.zeros([len(files), 1, 1, 3], np.uint8)  # noqa: E731
    monkeypatch.setattr(decoding, "decode_known_alike", one_pixel)
    monkeypatch.setattr(cifar10, "read_tfds", functools.cache(cifar10.read_tfds.__wrapped__))
    counts = [
        len(catalog.load_split(f"cifar10_protocol{n}", role, str(folder)))
        for n in (1, 2)
        for role in ("query", "train", "database")
    ]
    assert counts == [10_000, 50_000, 50_000, 10_000, 5_000, 50_000]
    query = catalog.load_split("cifar10_protocol2", "query", str(folder))
    assert np.bincount(query.labels).tolist() == [1000] * 10
