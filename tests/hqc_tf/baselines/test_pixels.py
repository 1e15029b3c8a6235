"""Raw pixels as a search: right where images of a label are alike, under the same protocol."""

import numpy as np
import pytest

from hqc_tf import metrics
from hqc_tf.baselines import pixels
from hqc_tf.data.images import Images


@pytest.fixture
def two_kinds():
    """Images of 8 x 8 pixels, bright above or below, each of another exposure and with noise."""
    random = np.random.default_rng(1)
    labels = np.arange(200) % 2
    is_below = np.arange(8) >= 4
    bright = is_below[None, :, None, None] == labels[:, None, None, None]
    exposure = random.uniform(0.2, 1, [200, 1, 1, 1])
    values = exposure * (60 + 120 * bright + random.integers(-40, 40, [200, 8, 8, 3]))
    return Images.of_pixels(values.astype(np.uint8), labels=labels)


def test_images_that_look_alike_find_each_other(two_kinds):
    database, queries = two_kinds.take(range(20, 200)), two_kinds.take(range(20))
    found = pixels.evaluate(database, database, queries, 8, num_books=4, num_words=16, top_k=90)
    assert found.mean_average_precision > 0.99
    assert found.precision_at_k.shape == (90,)
    assert metrics.chance_level(database.labels, queries.labels, 90) < 0.6


def test_labels_are_read_by_the_protocol_alone(two_kinds):
    shuffled = np.random.default_rng(2).permutation(two_kinds.labels)
    wrong = Images.of_pixels(two_kinds.pixels, labels=shuffled)
    found = pixels.evaluate(two_kinds, wrong, two_kinds, 8, num_books=4, num_words=16, top_k=90)
    assert found.mean_average_precision < 0.65


@pytest.mark.parametrize("count, size", [(63, 8), (200, 1)])
def test_too_few_images_or_pixels_have_no_score(two_kinds, count, size):
    images = two_kinds.take(range(count))
    assert pixels.evaluate(images, images, images, size, 4, 16, 10) is None
