"""Images in their order, in batches, from memory and from files."""

import pathlib

import numpy as np
import pytest

from hqc_tf.data import catalog
from hqc_tf.data.batches import plain_batches, raw_batches, read_image
from hqc_tf.data.images import Images
from tests.support.pixels import random_pixels, write_images


@pytest.fixture(params=["memory", "files"])
def source(request, tmp_path):
    """Makes `Images` of an array, in memory or as files."""
    if request.param == "memory":
        return Images.of_pixels
    return lambda pixels: catalog.load_images(f"folder:{write_images(tmp_path / 'images', pixels)}")


def test_plain_batches_are_the_images_in_order(source):
    pixels = random_pixels(7, 8, 8)
    batches = list(plain_batches(source(pixels), 8, 8, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    np.testing.assert_allclose(np.concatenate(batches), pixels / 255, atol=1e-6)


def test_plain_batches_are_center_squares(source):
    pixels = random_pixels(2, 12, 8)
    (batch,) = plain_batches(source(pixels), 8, 6, 2)
    np.testing.assert_allclose(batch, pixels[:, 3:9, 1:7] / 255, atol=1e-6)


def test_raw_batches_cut_the_array():
    pixels = random_pixels(7)
    batches = list(raw_batches(Images.of_pixels(pixels), 3).as_numpy_iterator())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(batches), pixels)


def test_read_image_reads_a_file(tmp_path):
    (pixels,) = random_pixels(1)
    write_images(tmp_path, [pixels])
    np.testing.assert_array_equal(read_image(str(pathlib.Path(tmp_path, "000.png"))), pixels)
