"""What a run leaves for TensorBoard beside the curves."""

import io
import time
import types

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorboard.plugins import projector

from hqc_tf.data import catalog
from hqc_tf.data.batches import read_image
from hqc_tf.data.images import Images
from hqc_tf.training import tensorboard
from hqc_tf.training.callbacks import MeasureSpeed
from hqc_tf.workdir import SpeedLine, load, read_speed


@pytest.fixture
def clock(monkeypatch):
    """Makes the coming readings of the clock those given."""

    def set_readings(*readings):
        coming = iter(readings)
        monkeypatch.setattr(time, "perf_counter", lambda: next(coming))

    return set_readings


def measuring(workdir, settings, first_epoch=0):
    callback = MeasureSpeed(workdir, first_epoch)
    strategy = tf.distribute.get_strategy()
    callback.set_model(types.SimpleNamespace(settings=settings, distribute_strategy=strategy))
    callback.on_train_begin()
    return callback


def train(callback, epoch, steps):
    callback.on_epoch_begin(epoch)
    for step in range(steps):
        callback.on_train_batch_end(step)
    callback.on_epoch_end(epoch)


def values(folder):
    """(tag, step, value) in the event files of a folder; a picture is its bytes."""
    found = []
    for file in sorted(folder.glob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                found.append((value.tag, event.step, tf.make_ndarray(value.tensor)))
    return found


def test_speed_counts_the_images_between_the_ends_of_steps(tmp_path, small_config, clock):
    clock(100.0, 101.0, 104.0)
    train(measuring(tmp_path, small_config(batch_size=8)), 0, 3)
    assert read_speed(tmp_path) == [SpeedLine(0, 4.0)]
    assert values(tmp_path / "tensorboard/speed") == [("images_per_second", 0, 4.0)]


def test_an_epoch_of_one_step_has_no_speed(tmp_path, small_config, clock):
    clock(100.0)
    train(measuring(tmp_path, small_config()), 0, 1)
    assert read_speed(tmp_path) == []


def test_epochs_trained_again_are_replaced(tmp_path, small_config, clock):
    clock(0, 1, 0, 2, 0, 4)
    settings = small_config(batch_size=8)
    first = measuring(tmp_path, settings)
    for epoch in range(2):
        train(first, epoch, 2)
    # A run that goes on begins with TensorBoard's folder empty, as CloseEpoch leaves it.
    for file in (tmp_path / "tensorboard/speed").iterdir():
        file.unlink()
    train(measuring(tmp_path, settings, first_epoch=1), 1, 2)
    found = [(line.epoch, line.images_per_second) for line in read_speed(tmp_path)]
    assert found == [(0, 8.0), (1, 2.0)]
    shown = [(step, float(value)) for _, step, value in values(tmp_path / "tensorboard/speed")]
    assert shown == found


@pytest.fixture(scope="module")
def shown(workdir, photos, tmp_path_factory):
    """(folder of TensorBoard's run, the images, their codes) of what is shown of 30 photos."""
    folder, trained = tmp_path_factory.mktemp("shown"), load(workdir)
    images = catalog.load_images(f"folder:{photos}").take(range(0, 60, 2))
    for _ in range(2):
        tensorboard.show_held_out(trained, images, folder)
    return folder / "tensorboard/held_out", images, trained.encode_images(images)


def test_the_picture_has_each_query_before_its_neighbors(shown):
    folder, images, _ = shown
    ((tag, step, picture),) = values(folder)
    assert (tag, step) == ("neighbors", 2)
    assert [int(side) for side in picture[:2]] == [11 * 48, 16 * 48]
    pixels = np.asarray(PIL.Image.open(io.BytesIO(picture[2])))
    tiles = pixels.reshape(16, 48, 11, 48, 3).swapaxes(1, 2)
    first = read_image(images.paths[0])
    np.testing.assert_array_equal(tiles[0, 0, 10:38, 10:38], first)
    for row in tiles:
        others = row[1:].reshape(10, -1)
        assert not (others == row[0].reshape(-1)).all(axis=1).any()


def test_the_projector_finds_all_it_needs_in_the_folder(shown):
    folder, images, encoded = shown
    config = projector.ProjectorConfig()
    text_format.Parse((folder / "projector_config.pbtxt").read_text(), config)
    assert [one.tensor_name for one in config.embeddings] == ["embedding", "quantized"]
    tensors = [np.loadtxt(folder / one.tensor_path, delimiter="\t") for one in config.embeddings]
    np.testing.assert_allclose(tensors[0], encoded.embeddings, rtol=1e-5)
    assert len(np.unique(tensors[1], axis=0)) == len(np.unique(encoded.codes, axis=0))
    for one in config.embeddings:
        head, *lines = (folder / one.metadata_path).read_text().splitlines()
        assert head == "id\tlabel"
        assert lines == [f"{name}\t{name.split('/')[0]}" for name in images.ids]
        assert PIL.Image.open(folder / one.sprite.image_path).size == (6 * 48, 5 * 48)
        assert list(one.sprite.single_image_dim) == [48, 48]


def test_ids_without_labels_are_one_column():
    images = Images.of_files(["a.png"], ["a\tb\n.png"])
    assert tensorboard._metadata(images) == "a\\tb\\n.png\n"


def test_nothing_is_shown_without_held_out_images(tmp_path):
    tensorboard.show_held_out(None, Images.of_files([]), tmp_path)
    assert list(tmp_path.iterdir()) == []
