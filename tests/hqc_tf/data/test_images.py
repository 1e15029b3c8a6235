"""Sets of images, and which are held out."""

import numpy as np
import pytest

from hqc_tf.data.images import Images, held_out, hold_out
from tests.support.pixels import random_pixels


def test_taken_rows_keep_what_belongs_together():
    images = Images.of_pixels(random_pixels(4), list("abcd"), np.array([5, 6, 7, 8]), ["x"])
    taken = images.take([2, 0])
    np.testing.assert_array_equal(taken.pixels, images.pixels[[2, 0]])
    np.testing.assert_array_equal(taken.labels, [7, 5])
    assert (taken.ids, taken.paths, taken.label_names) == (["c", "a"], None, ["x"])


def test_held_out_images_are_the_same_for_every_run():
    images = Images.of_pixels(random_pixels(50))
    trained_on, held = hold_out(images, 4)
    assert (len(trained_on), len(held)) == (46, 4)
    assert sorted(trained_on.ids + held.ids, key=int) == images.ids
    assert held_out(images, 4).ids == held.ids


@pytest.mark.parametrize(("images", "asked", "held"), [(50, 1000, 5), (50, 0, 0), (9, 1000, 0)])
def test_at_most_a_tenth_is_held_out(images, asked, held):
    trained_on, kept = hold_out(Images.of_pixels(random_pixels(images)), asked)
    assert (len(trained_on), len(kept)) == (images - held, held)
