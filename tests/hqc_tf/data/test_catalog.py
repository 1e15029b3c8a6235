"""The grammar of --dataset and --input, and what it reads."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf.data import catalog, tfds
from hqc_tf.data.batches import plain_batches, read_pixels
from hqc_tf.data.views import training_views
from hqc_tf.errors import UserError
from tests.support.pixels import encode, random_pixels, write_images


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("cifar10", ("tfds", "cifar10", "")),
        ("cifar10_protocol1/query", ("name", "cifar10_protocol1", "query")),
        ("cifar10/test[:500]", ("tfds", "cifar10", "test[:500]")),
        ("tfds:mnist", ("tfds", "mnist", "")),
        ("tfds:tiny/large/train", ("tfds", "tiny/large", "train")),
        ("mnist/test[5:]+train", ("tfds", "mnist", "test[5:]+train")),
        ("folder:a/b c", ("folder", "a/b c", "")),
        ("photos/**/*.jpg", ("pattern", "photos/**/*.jpg", "")),
        ("photos", ("pattern", "photos", "")),
        ("a.jpg", ("pattern", "a.jpg", "")),
        ("tfrecord:a-*", ("tfrecord", "a-*", "")),
    ],
)
def test_each_form_is_parsed(tmp_path, monkeypatch, text, source):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert catalog.parse(text) == source


@pytest.mark.parametrize("kind", ["folder", "tfrecord", "features"])
def test_an_empty_path_is_not_the_current_folder(kind):
    with pytest.raises(UserError, match=f"{kind}: has no path .*; give {kind}:PATH"):
        catalog.parse(f"{kind}:")
    assert catalog.parse(f"{kind}:.").kind == kind


def test_a_folder_of_records_is_to_be_a_pattern(tmp_path):
    with pytest.raises(UserError, match=f"a folder; write 'tfrecord:{tmp_path}/\\*', or a pattern"):
        catalog.load_images(f"tfrecord:{tmp_path}")


def test_features_of_queries_do_not_push_out_those_of_the_database(tmp_path):
    for name in ("database", "queries"):
        np.save(tmp_path / f"{name}.npy", np.eye(3, dtype=np.float32))
    first = catalog.load_images(f"features:{tmp_path}/database.npy")
    catalog.load_images(f"features:{tmp_path}/queries.npy")
    assert catalog.load_images(f"features:{tmp_path}/database.npy") is first


def test_a_pattern_is_labeled_and_divided_as_a_folder(tmp_path, monkeypatch):
    for name, count in {"cat": 12, "dog": 13}.items():
        write_images(tmp_path / "photos" / name, random_pixels(count, 4, 4))
    monkeypatch.chdir(tmp_path)
    for role in catalog.ROLES:
        by_folder = catalog.load_split("folder:photos", role)
        by_pattern = catalog.load_split("photos/*/*.png", role)
        assert by_pattern.ids == [f"photos/{name}" for name in by_folder.ids]
        assert by_pattern.paths == by_folder.paths
        np.testing.assert_array_equal(by_pattern.labels, by_folder.labels)
    with pytest.raises(UserError, match="--dataset=none.*: no image matches; give a pattern"):
        catalog.load_images("none/*.png")


@pytest.mark.parametrize(
    ("dataset", "protocol"),
    [
        ("cifar10", "cifar10 official"),
        ("cifar10_protocol1", "cifar10 protocol I"),
        ("tfds:mnist/train[:5]", "mnist/train[:5]"),
        ("folder:photos", "folder, 1 in 10 is a query"),
        ("photos/*/*.jpg", "pattern, 1 in 10 is a query"),
        ("tfrecord:a-*", "TFRecord files without labels"),
    ],
)
def test_each_form_names_its_protocol(dataset, protocol):
    assert catalog.protocol(dataset) == protocol


@pytest.fixture
def kept_encoded(monkeypatch):
    """No TFDS image is small enough to be kept decoded."""
    monkeypatch.setattr(tfds, "_DECODED_PIXELS", 0)
    tfds.read_tfds.cache_clear()
    yield
    tfds.read_tfds.cache_clear()


@pytest.mark.long
def test_encoded_images_of_tfds_are_the_decoded_ones(
    fashion_mnist_dir, small_config, kept_encoded, monkeypatch
):
    encoded = catalog.load_images("tfds:fashion_mnist/test[:9]", fashion_mnist_dir)
    assert encoded.pixels is None
    tfds.read_tfds.cache_clear()
    monkeypatch.setattr(tfds, "_DECODED_PIXELS", 28 * 28)
    decoded = catalog.load_images("fashion_mnist/test[:9]", fashion_mnist_dir)
    assert (encoded.ids, encoded.label_names) == (decoded.ids, decoded.label_names)
    np.testing.assert_array_equal(encoded.labels, decoded.labels)
    np.testing.assert_array_equal(read_pixels(encoded, 3), decoded.pixels[3])
    one, other = (list(plain_batches(images, 8, 8, 4)) for images in (encoded, decoded))
    np.testing.assert_array_equal(np.concatenate(one), np.concatenate(other))
    one, other = (
        next(training_views(images, small_config(), 0, 1).as_numpy_iterator())
        for images in (encoded, decoded)
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_roles_of_any_prepared_set(fashion_mnist_dir):
    query = catalog.load_split("tfds:fashion_mnist", "query", fashion_mnist_dir)
    assert query.ids[0] == "fashion_mnist/test/00000"
    part = "tfds:fashion_mnist/train[:40]"
    assert len(catalog.load_split(part, "train", fashion_mnist_dir)) == 40
    assert len(catalog.load_split(part, "database", fashion_mnist_dir)) == 40
    assert catalog.load_split("tfds:fashion_mnist/test", "query", fashion_mnist_dir) is None


def test_records_are_images_of_any_size_without_labels(tmp_path, small_config):
    files = [encode(random_pixels(1, 8 + row, 20)[0], "PNG") for row in range(5)]
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as file:
        for contents in files:
            example = tf.train.Example()
            example.features.feature["image/encoded"].bytes_list.value.append(contents)
            file.write(example.SerializeToString())
    dataset = f"tfrecord:{tmp_path}/*.tfrecord"
    images = catalog.load_split(dataset, "train")
    assert images.ids == [f"a.tfrecord:{row}" for row in range(5)]
    assert images.contents.tolist() == files
    assert catalog.load_split(dataset, "query") is None
    left = catalog.load_split(dataset, "train", rejected=frozenset(["a.tfrecord:1"]))
    assert left.ids == [name for name in images.ids if name != "a.tfrecord:1"]
    (views,) = training_views(images, small_config(), 0, 1)
    assert views[0].shape == [4, 8, 8, 3]
    # Ids are by the name of a file, and there is no flag to take another feature.
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a.tfrecord", tmp_path / "b")
    with pytest.raises(UserError, match="b/a.tfrecord: its records would have the ids of those"):
        catalog.load_images(f"tfrecord:{tmp_path}/**/*.tfrecord")
    with tf.io.TFRecordWriter(str(tmp_path / "other.tfrecord")) as file:
        file.write(tf.train.Example().SerializeToString())
    with pytest.raises(UserError, match="other.tfrecord: no image/encoded in its first record"):
        catalog.load_images(f"tfrecord:{tmp_path}/other.tfrecord")
