"""Histograms of oriented gradients: by hand, by a double loop, and what does not change them."""

import math

import numpy as np
import pytest

from hqc_tf.backbones.gradients import OrientedGradients


def described(images):
    return OrientedGradients()(np.asarray(images, np.float32)).numpy()


def ramp(axis):
    """[1, 4, 4, 1], which rises by 0.1 a pixel along an axis."""
    return np.moveaxis(np.broadcast_to(np.arange(4) / 10, [4, 4]), 1, axis)[None, ..., None]


@pytest.mark.parametrize(("axis", "bins"), [(1, (0, 5)), (0, (2, 3))])
def test_a_ramp_votes_for_the_two_nearest_orientations(axis, bins):
    # Gradients of 0.2 within and 0.1 at both edges: a mean of 0.15, half for each of two.
    expected = np.zeros(6)
    expected[list(bins)] = math.sqrt(0.075)
    np.testing.assert_allclose(described(ramp(axis))[0], expected, atol=1e-4)


def test_each_pixel_votes_in_its_cell():
    images = np.random.default_rng(1).random([2, 7, 8, 3], np.float32)
    sums, counts = np.zeros([2, 2, 2, 6]), np.zeros([2, 2, 1])
    gray = np.pad(images.mean(-1), [(0, 0), (1, 1), (1, 1)], "symmetric")
    for row in range(7):
        for column in range(8):
            counts[row // 4, column // 4] += 1
            down = gray[:, row + 2, column + 1] - gray[:, row, column + 1]
            right = gray[:, row + 1, column + 2] - gray[:, row + 1, column]
            for image in range(2):
                degrees = math.degrees(math.atan2(down[image], right[image]))
                for place in range(6):
                    apart = abs(degrees - 30 * place - 15) % 180
                    share = max(0, 1 - min(apart, 180 - apart) / 30)
                    length = math.hypot(down[image], right[image])
                    sums[image, row // 4, column // 4, place] += share * length
    expected = np.sqrt(sums / counts).reshape(2, -1)
    np.testing.assert_allclose(described(images), expected, rtol=1e-3, atol=1e-4)


def test_light_moves_nothing_and_contrast_only_the_length():
    images = np.random.default_rng(2).random([2, 8, 8, 3], np.float32) / 4
    found = described(images)
    np.testing.assert_allclose(described(images + 0.5), found, atol=1e-3)
    np.testing.assert_allclose(described(1 - 4 * images), 2 * found, rtol=1e-3, atol=1e-3)
    assert not described(np.ones([1, 8, 8, 3])).any()
