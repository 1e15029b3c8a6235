"""The pixel baseline: its codes are the nearest words, by the distance that ranks them."""

import numpy as np

from benchmarks import pixel_baseline


def test_codes_name_the_nearest_words():
    pixels = np.random.default_rng(1).random((400, 80), np.float32)
    codebooks, codes, rotated = pixel_baseline.train_codes(pixels, pixels, pixels, num_books=4)
    assert codebooks.shape == (4, 16, 16) and codes.shape == (400, 4) and codes.dtype == np.uint8
    parts = rotated.reshape(400, 4, 1, 16)
    distances = np.square(parts - codebooks).sum(axis=-1)
    np.testing.assert_array_equal(codes, distances.argmin(axis=-1))


def test_exact_order_is_that_of_squared_distances():
    database = np.array([[0, 0], [3, 0], [1, 0]], np.float32)
    order = pixel_baseline.exact_order(database, np.array([[0.9, 0]], np.float32), top_k=3)
    np.testing.assert_array_equal(order, [[2, 0, 1]])
