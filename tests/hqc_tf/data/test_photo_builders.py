"""`tfds.load` of FLICKR25K and NUS-WIDE, from lists and photos a user has placed."""

import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from hqc_tf.data import photo_builders, photo_sets
from hqc_tf.errors import UserError
from tests.support.photo_folders import copy_published, write_flickr25k_lists, write_photos

NAMES = [f"im{number}.jpg" for number in range(1, 61)]


@pytest.fixture
def flickr25k(tmp_path, monkeypatch):
    """manual_dir of FLICKR25K with 60 photos, 20 of which are queries: 25,000 take a minute."""
    for name in ("FLICKR_NAMES", "FLICKR_LABELS"):
        monkeypatch.setattr(photo_sets, name, getattr(photo_sets, name)._replace(lines=60))
    monkeypatch.setattr(photo_sets, "FLICKR_QUERIES", 20)
    write_flickr25k_lists(tmp_path / "photos/flickr25k", NAMES)
    write_photos(tmp_path / "photos/flickr25k/images", NAMES)
    return tmp_path / "photos"


@pytest.fixture
def nuswide(tmp_path):
    """manual_dir of NUS-WIDE with one of the published lists, test.txt, and its photos."""
    folder = tmp_path / "photos"
    copy_published("nuswide", folder)
    (folder / "train_10500.txt").unlink()
    names = [line.split()[0] for line in (folder / "test.txt").read_text().splitlines()]
    write_photos(folder / "images", names)
    return folder


def load(name, data_dir, manual_dir, **options):
    """The examples of each split, by file name."""
    config = tfds.download.DownloadConfig(manual_dir=str(manual_dir))
    arguments = {"download_config": config}
    splits = tfds.load(
        name, data_dir=str(data_dir), download_and_prepare_kwargs=arguments, **options
    )
    return {
        split: {example["file_name"].decode(): example for example in tfds.as_numpy(examples)}
        for split, examples in splits.items()
    }


def check_examples(examples, photos):
    """That the examples have the photos' labels, and the bytes of their files as images."""
    assert sorted(examples) == sorted(photos.ids)
    for path, name, labels in zip(photos.paths, photos.ids, photos.labels, strict=True):
        assert examples[name]["image"] == pathlib.Path(path).read_bytes()
        np.testing.assert_array_equal(examples[name]["labels"], labels)


def test_both_are_known_to_tfds():
    assert tfds.builder_cls("flickr25k") is photo_builders.Flickr25k
    assert tfds.builder_cls("nuswide") is photo_builders.Nuswide


def test_flickr25k_is_loaded_as_listed(flickr25k, tmp_path):
    as_files = {"image": tfds.decode.SkipDecoding()}
    splits = load("flickr25k", tmp_path / "tfds", flickr25k, decoders=as_files)
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 40, "test": 20}
    check_examples(splits["train"], photo_sets.read_photos("flickr25k", "train", flickr25k))
    check_examples(splits["test"], photo_sets.read_photos("flickr25k", "query", flickr25k))


def test_photos_are_decoded_to_three_channels(flickr25k, tmp_path):
    example = load("flickr25k", tmp_path / "tfds", flickr25k)["test"].popitem()[1]
    assert (example["image"].shape, example["image"].dtype) == ((12, 16, 3), np.uint8)
    assert (example["labels"].shape, example["labels"].dtype) == ((24,), np.uint8)


def test_published_queries_of_nuswide_without_the_other_lists(nuswide, tmp_path, caplog):
    as_files = {"image": tfds.decode.SkipDecoding()}
    splits = load("nuswide", tmp_path / "tfds", nuswide, decoders=as_files)
    assert list(splits) == ["test"]
    check_examples(splits["test"], photo_sets.read_photos("nuswide", "query", nuswide))
    first = splits["test"]["grassland/0451_1307521289.jpg"]["labels"]
    assert np.flatnonzero(first).tolist() == [0, 5, 14]
    warnings = [record.getMessage() for record in caplog.records]
    for split in ("database", "train_10500"):
        assert f"nuswide has no split {split}: its list is missing" in warnings


def test_missing_photo_stops_it_and_leaves_nothing(flickr25k, tmp_path):
    (flickr25k / "flickr25k/images/im9.jpg").unlink()
    with pytest.raises(UserError, match="img.txt line 9: no photo .*im9.jpg; 1 of 60 are missing"):
        load("flickr25k", tmp_path / "tfds", flickr25k)
    assert list((tmp_path / "tfds").rglob("*.*")) == []


def test_instructions_say_where_lists_and_photos_lie():
    flickr25k, nuswide = (
        tfds.builder_cls(name).MANUAL_DOWNLOAD_INSTRUCTIONS for name in ("flickr25k", "nuswide")
    )
    assert flickr25k.startswith("manual_dir holds img.txt, targets.txt in flickr25k/ or directly")
    assert flickr25k.endswith("beside the lists or in images/ or mirflickr/ there.")
    assert "database.txt, train_10500.txt, test.txt in nuswide/ or directly" in nuswide
