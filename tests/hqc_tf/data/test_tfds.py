"""Data sets that TFDS has prepared."""

import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from hqc_tf.data import catalog
from hqc_tf.errors import UserError

SIZES = {"train": 6, "test": 4}


def make(folder, features, example, name="made"):
    """Prepares a data set in `folder`, of `example` of a split and a number from 0 on."""

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            own = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=own)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in SIZES}

        def _generate_examples(self, split):
            for number in range(SIZES[split]):
                yield number, example(split, number)

    Made.name = name
    Made(data_dir=str(folder)).download_and_prepare()


def filled(value, dtype=np.uint8):
    return np.full([4, 4, 3], value, dtype)


def image(**options):
    return tfds.features.Image(shape=(4, 4, 3), **options)


def classes(count):
    return tfds.features.ClassLabel(num_classes=count)


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


# Without its code, TFDS reads the features of a data set in an order of its own.
@pytest.mark.parametrize("others", [("annotation", "coarse_label"), ("zoomed", "zone")])
def test_image_and_label_are_taken_by_name(tmp_path, others):
    other_image, other_label = others
    features = {"image": image(), other_image: image(), "label": classes(8)}

    def example(_, number):
        numbers = {"label": number, other_label: 0}
        return {"image": filled(3), other_image: filled(7), **numbers}

    make(tmp_path, features | {other_label: classes(2)}, example)
    found = catalog.load_images("tfds:made/train", str(tmp_path))
    assert (found.pixels == 3).all() and sorted(found.labels) == [*range(6)]
    assert len(found.label_names) == 8


def test_images_and_labels_of_other_names_are_taken_where_it_is_clear_which(tmp_path):
    first, second = {"photo": image(), "kind": classes(2)}, {"sketch": image(), "style": classes(2)}
    make(tmp_path, first, lambda _, number: {"photo": filled(3), "kind": number % 2}, "one")
    found = catalog.load_images("tfds:one/train", str(tmp_path))
    assert (found.pixels == 3).all() and sorted(set(found.labels)) == [0, 1]
    both = {"photo": filled(3), "sketch": filled(7), "kind": 0, "style": 1}
    make(tmp_path, first | second, lambda *_: both, "two")
    message = (
        "dataset two: has images in photo, sketch, and none is named image; write those of one"
    )
    with pytest.raises(UserError, match=message):
        catalog.load_images("tfds:two/train", str(tmp_path))
    labels = {"photo": image(), "kind": classes(2), "style": classes(2)}
    make(tmp_path, labels, lambda *_: {name: both[name] for name in labels}, "three")
    assert catalog.load_images("tfds:three/train", str(tmp_path)).labels is None
    assert catalog.load_split("tfds:three", "query", str(tmp_path)) is None


def test_a_split_with_hidden_labels_has_none(tmp_path):
    def example(split, number):
        return {"image": filled(number), "label": number % 2 if split == "train" else -1}

    make(tmp_path, {"image": image(), "label": classes(2)}, example)
    for dataset in ("tfds:made/test", "tfds:made/train+test"):
        assert catalog.load_images(dataset, str(tmp_path)).labels is None
    assert catalog.load_split("tfds:made", "train", str(tmp_path)).labels is not None
    assert catalog.load_split("tfds:made", "query", str(tmp_path)) is None


def test_queries_of_a_database_with_hidden_labels_are_none(tmp_path):
    def example(split, number):
        return {"image": filled(number), "label": number % 2 if split == "test" else -1}

    make(tmp_path, {"image": image(), "label": classes(2)}, example)
    assert catalog.load_split("tfds:made", "query", str(tmp_path)) is None


def test_images_of_floats_are_refused(tmp_path):
    features = {"image": tfds.features.Image(shape=(4, 4, 1), dtype=np.float32)}
    make(tmp_path, features, lambda *_: {"image": np.ones([4, 4, 1], np.float32)})
    with pytest.raises(UserError, match="dataset made: its image has float32 levels; take images"):
        catalog.load_images("tfds:made/train", str(tmp_path))


def test_a_damaged_file_is_one_line(tmp_path):
    make(tmp_path, {"image": image()}, lambda *_: {"image": filled(3)})
    (path,) = tmp_path.rglob("*train.tfrecord*")
    contents = path.read_bytes()
    middle = len(contents) // 2
    flipped = contents[:middle] + bytes([contents[middle] ^ 1]) + contents[middle + 1 :]
    # An empty file comes first, since what was read is kept.
    for damaged in (b"", contents[:middle], flipped):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=f"{path}: .*; remove the data set's folder and prepare"
        ):
            catalog.load_images("tfds:made/train", str(tmp_path))
