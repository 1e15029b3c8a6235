import io

import numpy as np
import PIL.Image
import pytest

from hqc_tf.data import pictures
from hqc_tf.data.images import Images
from hqc_tf.errors import printable


def images_of(pixels, labels=None, label_names=None):
    ids = [str(row) for row in range(len(pixels))]
    return Images.of_pixels(np.asarray(pixels, np.uint8), ids, labels, label_names)


def test_a_small_image_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, [2, 5, 7, 3])
    np.testing.assert_array_equal(pictures.thumbnail(images_of(pixels), 1, 7), pixels[1])


def test_a_large_one_keeps_its_shape():
    assert pictures.thumbnail(images_of(np.zeros([1, 20, 40, 3])), 0, 10).shape == (5, 10, 3)


def test_files_are_read(tmp_path):
    path = tmp_path / "red.png"
    PIL.Image.new("RGB", (6, 3), "red").save(path)
    images = Images.of_files([path], ["red.png"])
    (tile,) = pictures.squares(images, 4)
    np.testing.assert_array_equal(tile[1:3, :, 0], 255)
    np.testing.assert_array_equal(tile[[0, 3]], 0)


def test_a_mosaic_has_its_tiles_in_reading_order():
    tiles = np.arange(1, 6)[:, None, None, None] * np.ones([1, 2, 2, 3], int)
    found = pictures.mosaic(tiles.astype(np.uint8), 3)
    assert found.shape == (4, 6, 3)
    np.testing.assert_array_equal(found[::2, ::2, 0], [[1, 2, 3], [4, 5, 0]])
    np.testing.assert_array_equal(found[1::2, 1::2, 2], [[1, 2, 3], [4, 5, 0]])


def test_a_png_holds_the_same_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, [5, 7, 3], np.uint8)
    np.testing.assert_array_equal(PIL.Image.open(io.BytesIO(pictures.png(pixels))), pixels)


@pytest.mark.parametrize(
    ("labels", "names", "text"),
    [
        (None, None, ""),
        (np.array([2, 1]), ["a", "b", "c"], "c"),
        (np.array([4, 1]), None, "4"),
        (np.array([[0, 1, 0, 1], [0, 0, 0, 0]], np.uint8), None, "1, 3"),
        (np.array([[1, 1, 0], [0, 0, 0]], np.uint8), ["a", "b\n", "c"], "a, b\\n"),
    ],
)
def test_labels_by_name_or_number(labels, names, text):
    images = images_of(np.zeros([2, 1, 1, 3]), labels=labels, label_names=names)
    assert pictures.label_text(images, 0) == text


def test_what_does_not_show_is_escaped():
    assert printable("a\tb\n\udcff\u202e") == "a\\tb\\n\\udcff\\u202e"
    assert printable("<é 目>") == "<é 目>"


@pytest.mark.parametrize(("count", "most", "rows"), [(3, 10, [0, 1, 2]), (11, 3, [0, 5, 10])])
def test_rows_are_spread_evenly(count, most, rows):
    assert pictures.spread(count, most).tolist() == rows
