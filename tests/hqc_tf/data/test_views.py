"""Random views: a function of the step and the seed, from memory and from files."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf.data import augment, catalog
from hqc_tf.data import views as module
from hqc_tf.data.batches import plain_batches
from hqc_tf.data.images import Images
from hqc_tf.data.views import (
    changed_views,
    recolor_views,
    shuffled_rows,
    steps_per_epoch,
    training_views,
)
from hqc_tf.errors import UserError
from tests.support.pixels import random_pixels, write_images


def in_memory(pixels):
    return Images.of_pixels(pixels)


def as_files(folder, pixels):
    return catalog.load_images(f"folder:{write_images(folder, pixels)}")


def views(images, settings, first, last):
    batches = training_views(images, settings, first, last)
    return [np.stack(pair) for pair in batches.as_numpy_iterator()]


@pytest.fixture(params=["memory", "files"])
def source(request, tmp_path):
    """Makes `Images` of an array, in memory or as files."""
    if request.param == "memory":
        return in_memory
    return lambda pixels: as_files(tmp_path / "images", pixels)


@pytest.fixture
def uncolored(monkeypatch):
    """Views without what follows the crop: an image of one color keeps it."""
    monkeypatch.setattr(augment, "recolor", lambda crops, drawn: crops)
    traced_anew = module._changed_views_of_files.__wrapped__
    monkeypatch.setattr(module, "_changed_views_of_files", traced_anew)


def numbered(count):
    """Images of one color each, by which a crop of them tells its row."""
    rows = np.arange(count, dtype=np.uint8)
    return np.broadcast_to(rows[:, None, None, None], [count, 12, 10, 3])


def rows_of(batches):
    """int [steps, 2, B]: which `numbered` images stand in each batch of each view."""
    return np.rint(np.stack(batches)[..., 0, 0, 0] * 255).astype(int)


def test_views_have_the_settings_shape(small_config, source):
    images = source(random_pixels(6))
    (first,) = views(images, small_config(), 0, 1)
    assert first.shape == (2, 4, 8, 8, 3)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1


def test_the_two_views_of_an_image_differ(small_config):
    (first,) = views(in_memory(random_pixels(4)), small_config(), 0, 1)
    assert (np.abs(first[0] - first[1]).max(axis=(1, 2, 3)) > 0.01).all()


def test_views_made_in_the_step_are_those_made_beside_it(small_config, source):
    images = source(random_pixels(9))
    beside = list(training_views(images, small_config(), 0, 3))
    in_step = training_views(images, small_config(augment_on="device"), 0, 3)
    for expected, batch in zip(beside, in_step, strict=True):
        for one, other in zip(expected, recolor_views(*batch), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.long
def test_a_run_that_starts_later_sees_the_same(small_config, source):
    # Two steps an epoch: within the first, at its border, within the second.
    images = source(random_pixels(9))
    whole = views(images, small_config(), 0, 4)
    for start in (1, 2, 3):
        resumed = views(images, small_config(), start, 4)
        assert len(resumed) == 4 - start
        np.testing.assert_array_equal(resumed, whole[start:])


def test_no_two_steps_are_alike(small_config):
    batches = views(in_memory(random_pixels(4)), small_config(), 0, 4)
    for one, other in itertools.combinations(batches, 2):
        assert np.abs(one - other).max() > 0.1


def test_another_seed_gives_other_views(small_config):
    images = in_memory(random_pixels(8))
    (one,), (other,) = (views(images, small_config(seed=seed), 0, 1) for seed in (1, 2))
    assert np.abs(one - other).max() > 0.1


def test_an_epoch_sees_each_image_at_most_once(small_config, uncolored, source):
    rows = rows_of(views(source(numbered(15)), small_config(), 0, 9))
    np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
    epochs = rows[:, 0].reshape(3, 12)
    for epoch in epochs:
        assert len(set(epoch)) == 12
        assert set(epoch) <= set(range(15))
    for one, other in itertools.combinations(epochs, 2):
        assert (one != other).sum() > 6


def test_every_image_has_its_turn(small_config, uncolored):
    rows = rows_of(views(in_memory(numbered(7)), small_config(), 0, 60))[:, 0]
    seen = np.bincount(rows.ravel(), minlength=7)
    assert seen.sum() == 240
    assert seen.min() > 20  # 34 on average


def test_order_follows_the_seed(small_config, uncolored):
    images = in_memory(numbered(40))
    orders = [rows_of(views(images, small_config(seed=s), 0, 10))[:, 0] for s in (1, 1, 2)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).sum() > 20


def test_files_and_memory_give_the_same_views(small_config, tmp_path):
    pixels = random_pixels(9, 21, 17)
    settings = small_config()
    from_memory = views(in_memory(pixels), settings, 0, 4)
    from_files = views(as_files(tmp_path, pixels), settings, 0, 4)
    np.testing.assert_allclose(from_files, from_memory, atol=1e-5)


def test_files_of_different_sizes_make_a_batch(small_config, tmp_path):
    for row, (height, width) in enumerate([(5, 40), (30, 8), (8, 8), (100, 90)]):
        write_images(tmp_path, random_pixels(1, height, width), f"{row}.png")
    images = catalog.load_images(f"folder:{tmp_path}")
    (first,) = views(images, small_config(), 0, 1)
    assert first.shape == (2, 4, 8, 8, 3)
    (plain,) = plain_batches(images, 8, 8, 4)
    assert plain.shape == [4, 8, 8, 3]


def test_steps_per_epoch_are_whole_batches(small_config):
    for count, steps in [(4, 1), (7, 1), (8, 2)]:
        assert steps_per_epoch(in_memory(random_pixels(count)), small_config()) == steps


def test_fewer_images_than_a_batch_are_refused(small_config, source):
    images = source(random_pixels(3))
    message = "--batch_size=4: there are only 3 images to train on; lower it or add images"
    with pytest.raises(UserError, match=message):
        training_views(images, small_config(), 0, 1)


def test_views_read_no_other_setting(small_config):
    images = in_memory(random_pixels(8))
    settings = small_config()
    others = dataclasses.replace(settings, num_books=4, learning_rate=1.0, epochs=7)
    np.testing.assert_array_equal(views(images, settings, 0, 2), views(images, others, 0, 2))


def test_images_of_a_batch_meet_again_by_chance():
    count, batch = 1_000_000, 256
    places = tf.range(count, dtype=tf.int64)
    first, second = np.empty([2, count], np.int64)
    for batch_of, epoch in ((first, 3), (second, 4)):
        rows = shuffled_rows(places, count, 1, epoch).numpy()
        assert len(np.unique(rows)) == count
        batch_of[rows] = np.arange(count) // batch
    both = np.unique(first * count + second, return_counts=True)[1]
    met, by_chance = np.sum(both * (both - 1)), count * (batch - 1) * (batch - 1) / (count - 1)
    assert met / by_chance == pytest.approx(1, abs=0.03)


def test_changed_views_are_all_images_in_order(small_config, uncolored, source):
    images = source(numbered(10))
    batches = list(changed_views(images, small_config()))
    assert [len(batch) for batch in batches] == [4, 4, 4]
    rows = np.rint(np.concatenate(batches)[:10, 0, 0, 0] * 255)
    np.testing.assert_array_equal(rows, np.arange(10))


def test_changed_views_are_the_same_every_time_and_changed(small_config):
    images = in_memory(random_pixels(6))
    one, other = (np.concatenate(list(changed_views(images, small_config()))) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    plain = np.concatenate(list(plain_batches(images, 8, 8, 6)))
    assert np.abs(one[:6] - plain).mean() > 0.05
