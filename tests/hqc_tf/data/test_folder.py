"""Folders and patterns of image files: their names, labels and roles."""

import numpy as np
import pytest

from hqc_tf.data import catalog
from hqc_tf.errors import UserError
from tests.support.pixels import random_pixels, write_images


def labeled_folder(folder, counts):
    """Sub-folders named by their keys with so many images each."""
    for name, count in counts.items():
        write_images(folder / name, random_pixels(count, 4, 4))
    return f"folder:{folder}"


def test_folder_without_labels_is_all_one_set(tmp_path):
    write_images(tmp_path, random_pixels(3, 4, 4), "{}.png")
    write_images(tmp_path / "sub/deep", random_pixels(2, 4, 4), "{}.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    images = catalog.load_images(f"folder:{tmp_path}")
    assert images.ids == ["0.png", "1.png", "2.png", "sub/deep/0.PNG", "sub/deep/1.PNG"]
    assert images.paths == [str(tmp_path / name) for name in images.ids]
    assert (images.pixels, images.labels, images.label_names) == (None, None, None)
    assert len(images) == 5


def test_sub_folders_are_labels(tmp_path):
    folder = labeled_folder(tmp_path, {"dog": 2, "cat": 1, "cow/old": 2})
    images = catalog.load_images(folder)
    assert images.label_names == ["cat", "cow", "dog"]
    assert images.ids[:2] == ["cat/000.png", "cow/old/000.png"]
    np.testing.assert_array_equal(images.labels, [0, 1, 1, 2, 2])


def test_a_single_sub_folder_is_no_label(tmp_path):
    assert catalog.load_images(labeled_folder(tmp_path, {"all": 3})).labels is None


def test_every_tenth_of_a_labeled_folder_is_a_query(tmp_path):
    folder = labeled_folder(tmp_path, {"cat": 12, "dog": 13})
    everything = catalog.load_images(folder)
    query, train, database = (catalog.load_split(folder, r) for r in ("query", "train", "database"))
    assert query.ids == [everything.ids[9], everything.ids[19]]
    assert train.ids == [name for name in everything.ids if name not in query.ids]
    assert database.ids == train.ids
    np.testing.assert_array_equal(query.labels, [0, 1])
    assert len(train.labels) == len(train.paths) == 23
    assert catalog.protocol(folder) == "folder, 1 in 10 is a query"


@pytest.mark.parametrize("counts", [{".": 12}, {"cat": 4, "dog": 5}])
def test_folder_without_labels_or_with_few_images_has_no_query(tmp_path, counts):
    folder = labeled_folder(tmp_path, counts)
    assert catalog.load_split(folder, "query") is None
    assert len(catalog.load_split(folder, "train")) == sum(counts.values())
    assert len(catalog.load_split(folder, "database")) == sum(counts.values())


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"folder:.*none: no such folder; name one that holds"):
        catalog.load_images(f"folder:{tmp_path / 'none'}")


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "looks_like.png").mkdir()
    with pytest.raises(UserError, match="no image in it or below; put .jpg, .jpeg, .png, .bmp"):
        catalog.load_images(f"folder:{tmp_path}")
