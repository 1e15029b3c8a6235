"""Images and batches: folders, TFDS, views as a function of the step, and decoding."""

import dataclasses
import io
import itertools
import pathlib
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from hqc_tf.data import augment, catalog, cifar10, decoding
from hqc_tf.data.batches import (
    changed_views,
    plain_batches,
    raw_batches,
    read_image,
    recolor_views,
    shuffled_rows,
    steps_per_epoch,
    training_views,
)
from hqc_tf.data.images import Images, held_out, hold_out
from hqc_tf.errors import UserError
from tests.support import SHARED


def random_pixels(count, height=12, width=10, seed=0):
    return np.random.default_rng(seed).integers(0, 256, [count, height, width, 3], np.uint8)


def in_memory(pixels):
    return Images.of_pixels(pixels)


def write_images(folder, pixels, pattern="{:03d}.png"):
    """Lossless files, so that both sources hold the same pixels."""
    for row, image in enumerate(pixels):
        path = folder / pattern.format(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    return folder


def as_files(folder, pixels):
    return catalog.load_images(f"folder:{write_images(folder, pixels)}")


def views(images, settings, first, last):
    batches = training_views(images, settings, first, last)
    return [np.stack(pair) for pair in batches.as_numpy_iterator()]


def labelled_folder(folder, counts):
    """Sub-folders named by their keys with so many images each."""
    for name, count in counts.items():
        write_images(folder / name, random_pixels(count, 4, 4))
    return f"folder:{folder}"


@pytest.fixture(params=["memory", "files"])
def source(request, tmp_path):
    """Makes `Images` of an array, in memory or as files."""
    if request.param == "memory":
        return in_memory
    return lambda pixels: as_files(tmp_path / "images", pixels)


@pytest.fixture
def uncoloured(monkeypatch):
    """Views without what follows the crop: an image of one colour keeps it."""
    monkeypatch.setattr(augment, "recolor", lambda crops, drawn: crops)


def numbered(count):
    """Images of one colour each, by which a crop of them tells its row."""
    rows = np.arange(count, dtype=np.uint8)
    return np.broadcast_to(rows[:, None, None, None], [count, 12, 10, 3])


def rows_of(batches):
    """int [steps, 2, B]: which `numbered` images stand in each batch of each view."""
    return np.rint(np.stack(batches)[..., 0, 0, 0] * 255).astype(int)


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
    folder = labelled_folder(tmp_path, {"dog": 2, "cat": 1, "cow/old": 2})
    images = catalog.load_images(folder)
    assert images.label_names == ["cat", "cow", "dog"]
    assert images.ids[:2] == ["cat/000.png", "cow/old/000.png"]
    np.testing.assert_array_equal(images.labels, [0, 1, 1, 2, 2])


def test_a_single_sub_folder_is_no_label(tmp_path):
    assert catalog.load_images(labelled_folder(tmp_path, {"all": 3})).labels is None


def test_every_tenth_of_a_labelled_folder_asks(tmp_path):
    folder = labelled_folder(tmp_path, {"cat": 12, "dog": 13})
    everything = catalog.load_images(folder)
    query, train, database = (catalog.load_split(folder, r) for r in ("query", "train", "database"))
    assert query.ids == [everything.ids[9], everything.ids[19]]
    assert train.ids == [name for name in everything.ids if name not in query.ids]
    assert database.ids == train.ids
    np.testing.assert_array_equal(query.labels, [0, 1])
    assert len(train.labels) == len(train.paths) == 23
    assert catalog.protocol(folder) == "folder, 1 in 10 asks"


@pytest.mark.parametrize("counts", [{".": 12}, {"cat": 4, "dog": 5}])
def test_folder_without_labels_or_with_few_images_has_no_query(tmp_path, counts):
    folder = labelled_folder(tmp_path, counts)
    assert catalog.load_split(folder, "query") is None
    assert len(catalog.load_split(folder, "train")) == sum(counts.values())
    assert len(catalog.load_split(folder, "database")) == sum(counts.values())


def test_taken_rows_keep_what_belongs_together():
    images = Images.of_pixels(random_pixels(4), list("abcd"), np.array([5, 6, 7, 8]), ["x"])
    taken = images.take([2, 0])
    np.testing.assert_array_equal(taken.pixels, images.pixels[[2, 0]])
    np.testing.assert_array_equal(taken.labels, [7, 5])
    assert (taken.ids, taken.paths, taken.label_names) == (["c", "a"], None, ["x"])


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"folder:.*none: no such folder; name one that holds"):
        catalog.load_images(f"folder:{tmp_path / 'none'}")


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "looks_like.png").mkdir()
    with pytest.raises(UserError, match="no image in it or below; put .jpg, .jpeg, .png, .bmp"):
        catalog.load_images(f"folder:{tmp_path}")


def test_unknown_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="dataset fashion_mnits: TFDS knows none of this name"):
        catalog.load_images("fashion_mnits", str(tmp_path))


def test_data_that_is_not_prepared_is_refused_at_once(tmp_path):
    start = time.perf_counter()
    message = f"dataset cifar10: not prepared in {tmp_path}; `python -m hqc_tf.prepare --dataset=c"
    with pytest.raises(UserError, match=message):
        catalog.load_images("cifar10", str(tmp_path))
    assert time.perf_counter() - start < 15


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


def test_test_split_asks_and_train_split_is_learned(fashion_mnist_dir):
    query = catalog.load_split("fashion_mnist", "query", fashion_mnist_dir)
    assert len(query) == 10_000
    assert query.ids[0].startswith("fashion_mnist/test/")


def test_unknown_split_is_refused(fashion_mnist_dir):
    with pytest.raises(UserError, match="split dev of fashion_mnist: .*take one that it has"):
        catalog.load_images("fashion_mnist/dev", fashion_mnist_dir)


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


def test_an_epoch_sees_each_image_at_most_once(small_config, uncoloured, source):
    rows = rows_of(views(source(numbered(15)), small_config(), 0, 9))
    np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
    epochs = rows[:, 0].reshape(3, 12)
    for epoch in epochs:
        assert len(set(epoch)) == 12
        assert set(epoch) <= set(range(15))
    for one, other in itertools.combinations(epochs, 2):
        assert (one != other).sum() > 6


def test_every_image_has_its_turn(small_config, uncoloured):
    rows = rows_of(views(in_memory(numbered(7)), small_config(), 0, 60))[:, 0]
    seen = np.bincount(rows.ravel(), minlength=7)
    assert seen.sum() == 240
    assert seen.min() > 20  # 34 on average


def test_order_follows_the_seed(small_config, uncoloured):
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
    message = "--batch_size=4: there are only 3 images to learn from; lower it or add images"
    with pytest.raises(UserError, match=message):
        training_views(images, small_config(), 0, 1)


def test_views_read_no_other_setting(small_config):
    images = in_memory(random_pixels(8))
    settings = small_config()
    others = dataclasses.replace(settings, num_books=4, learning_rate=1.0, epochs=7)
    np.testing.assert_array_equal(views(images, settings, 0, 2), views(images, others, 0, 2))


def test_plain_batches_are_the_images_in_order(source):
    pixels = random_pixels(7, 8, 8)
    batches = list(plain_batches(source(pixels), 8, 8, 3).as_numpy_iterator())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    np.testing.assert_allclose(np.concatenate(batches), pixels / 255, atol=1e-6)


def test_plain_batches_are_centre_squares(source):
    pixels = random_pixels(2, 12, 8)
    (batch,) = plain_batches(source(pixels), 8, 6, 2)
    np.testing.assert_allclose(batch, pixels[:, 3:9, 1:7] / 255, atol=1e-6)


def test_raw_batches_cut_the_array():
    pixels = random_pixels(7)
    batches = list(raw_batches(in_memory(pixels), 3).as_numpy_iterator())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(batches), pixels)


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind, **{"JPEG": {"subsampling": 0}}.get(kind, {}))
    return buffer.getvalue()


KINDS = [*itertools.product(["RGB", "L", "RGBA"], ["PNG", "BMP", "GIF"])]


@pytest.mark.parametrize(("mode", "kind"), [*KINDS, ("RGB", "JPEG"), ("L", "JPEG")])
def test_images_of_all_kinds_are_decoded(mode, kind):
    # Two flat halves, which a JPEG keeps within a few levels and a palette exactly.
    pixels = np.full([16, 32, 3], [200, 40, 90], np.uint8)
    pixels[:, 16:] = [10, 220, 60]
    image = PIL.Image.fromarray(pixels).convert(mode)
    decoded = decoding.decode_known(encoded(image, kind))
    assert decoded.dtype == tf.uint8
    expected = np.asarray(image.convert("RGB"), int)
    np.testing.assert_allclose(decoded, expected, atol=8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["P", "1", "LA", "I;16"])
def test_rarer_pngs_are_decoded(mode):
    pixels = np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[None], 16, 0)
    grey = PIL.Image.fromarray(pixels)
    image = PIL.Image.fromarray(pixels.astype(np.uint16) * 257)
    image = image if mode == "I;16" else grey.convert(mode)
    decoded = decoding.decode_known(encoded(image, "PNG"))
    expected = grey if mode == "I;16" else image.convert("RGB").convert("L")
    np.testing.assert_array_equal(decoded, np.stack([np.asarray(expected)] * 3, -1))


def test_first_frame_of_a_gif_counts():
    frames = [PIL.Image.new("RGB", [6, 5], colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    decoded = decoding.decode_known(buffer.getvalue())
    np.testing.assert_array_equal(decoded, np.full([5, 6, 3], [255, 0, 0]))


def test_read_image_reads_a_file(tmp_path):
    (pixels,) = random_pixels(1)
    write_images(tmp_path, [pixels])
    np.testing.assert_array_equal(read_image(str(pathlib.Path(tmp_path, "000.png"))), pixels)


def test_held_out_images_are_the_same_for_every_run():
    images = in_memory(numbered(50))
    learned, held = hold_out(images, 4)
    assert (len(learned), len(held)) == (46, 4)
    assert sorted(learned.ids + held.ids, key=int) == images.ids
    assert held_out(images, 4).ids == held.ids


def test_images_of_a_batch_meet_again_by_chance():
    count, batch = 1_000_000, 256
    places = tf.range(count, dtype=tf.int64)
    first, second = np.empty([2, count], np.int64)
    for batches, epoch in ((first, 3), (second, 4)):
        rows = shuffled_rows(places, count, 1, epoch).numpy()
        assert len(np.unique(rows)) == count
        batches[rows] = np.arange(count) // batch
    both = np.unique(first * count + second, return_counts=True)[1]
    met, by_chance = np.sum(both * (both - 1)), count * (batch - 1) * (batch - 1) / (count - 1)
    assert met / by_chance == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("images", "asked", "held"), [(50, 1000, 5), (50, 0, 0), (9, 1000, 0)])
def test_at_most_a_tenth_is_held_out(images, asked, held):
    learned, kept = hold_out(in_memory(numbered(images)), asked)
    assert (len(learned), len(kept)) == (images - held, held)


def test_changed_views_are_all_images_in_order(small_config, uncoloured, source):
    images = source(numbered(10))
    batches = list(changed_views(images, small_config()).as_numpy_iterator())
    assert [len(batch) for batch in batches] == [4, 4, 4]
    rows = np.rint(np.concatenate(batches)[:10, 0, 0, 0] * 255)
    np.testing.assert_array_equal(rows, np.arange(10))


def test_changed_views_are_the_same_every_time_and_changed(small_config):
    images = in_memory(random_pixels(6))
    one, other = (
        np.concatenate(list(changed_views(images, small_config()).as_numpy_iterator()))
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)
    plain = np.concatenate(list(plain_batches(images, 8, 8, 6).as_numpy_iterator()))
    assert np.abs(one[:6] - plain).mean() > 0.05


@pytest.fixture
def small_cifar10(monkeypatch):
    """CIFAR-10 of 80 images, 8 a class, of which 2 ask and 3 train in the protocols."""

    def read(name, split, data_dir):
        count, first = (60, 0) if split == "train" else (20, 60)
        labels = np.arange(count) % 10
        ids = [f"{name}/{split}/{row}" for row in range(count)]
        pixels = np.full([count, 4, 4, 3], 0, np.uint8) + np.arange(first, first + count)[
            :, None, None, None
        ].astype(np.uint8)
        return Images.of_pixels(pixels, ids, labels, list("abcdefghij"))

    monkeypatch.setattr(cifar10, "read_tfds", read)
    monkeypatch.setattr(cifar10, "QUERIES_PER_CLASS", 2)
    monkeypatch.setattr(cifar10, "TRAIN_PER_CLASS", 3)


@pytest.mark.parametrize(("protocol", "train_per_class"), [(1, 6), (2, 3)])
def test_cifar10_protocols_divide_the_pooled_images(small_cifar10, protocol, train_per_class):
    query, database, train = (
        catalog.load_split(f"cifar10_protocol{protocol}", role)
        for role in ("query", "database", "train")
    )
    assert np.bincount(query.labels).tolist() == [2] * 10
    assert np.bincount(database.labels).tolist() == [6] * 10
    assert np.bincount(train.labels).tolist() == [train_per_class] * 10
    assert not set(query.ids) & set(database.ids)
    assert set(train.ids) <= set(database.ids)
    assert len(set(query.ids) | set(database.ids)) == 80
    np.testing.assert_array_equal(query.labels, query.pixels[:, 0, 0, 0] % 10)


def test_both_protocols_ask_the_same_and_a_role_is_a_split(small_cifar10):
    first, second = (catalog.load_split(f"cifar10_protocol{n}", "query").ids for n in (1, 2))
    assert first == second == catalog.load_images("cifar10_protocol1/query").ids
    assert len(catalog.load_images("cifar10_protocol2")) == 60
    with pytest.raises(UserError, match="split test of cifar10_protocol1: unknown; take one of"):
        catalog.load_images("cifar10_protocol1/test")


def test_cifar10_protocols_on_the_real_set():
    folder = SHARED / "data/tfds"
    if not (folder / "cifar10").is_dir():
        pytest.skip("no prepared CIFAR-10 in ../shared/data/tfds")
    counts = [
        len(catalog.load_split(f"cifar10_protocol{n}", role, str(folder)))
        for n in (1, 2)
        for role in ("query", "train", "database")
    ]
    assert counts == [10_000, 50_000, 50_000, 10_000, 5_000, 50_000]
    query = catalog.load_split("cifar10_protocol2", "query", str(folder))
    assert np.bincount(query.labels).tolist() == [1000] * 10
