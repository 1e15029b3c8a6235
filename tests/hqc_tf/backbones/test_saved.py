"""Networks that somebody saved: their values, what is refused, and the way to a served encoder."""

import dataclasses
import json
import pathlib
import re
import shutil
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

from export.encoder import encode_images, load_encoder
from export.saved_model import export_encoder
from hqc_tf.backbones import build_backbone, freeze, saved
from hqc_tf.data import catalog
from hqc_tf.errors import UserError
from hqc_tf.train import train_and_evaluate
from hqc_tf.workdir import load, read_settings

pytestmark = pytest.mark.usefixtures("same_random_numbers")

layers = tf.keras.layers
SIZE = 8


def network(size=SIZE, width=5):
    image = layers.Input([size, size, 3])
    x = layers.Conv2D(6, 3, 2, activation="relu")(image)
    x = layers.Dense(width)(layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x)))
    return tf.keras.Model(image, x, name="embedding")


def save(path, function, *specs, **more):
    """A SavedModel whose serving_default is `function` of tensors of `specs`."""
    module = tf.Module()
    module.held = more.get("held")
    module.function = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(path), signatures=module.function)
    return path


def images_of(size, dtype=tf.float32):
    return tf.TensorSpec([None, size, size, 3], dtype, "pixels")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """One network, in the three forms, and its values for images on the scale -1 to 1."""
    # Made before the seed of a test; of some networks the vectors are nearly alike.
    tf.keras.utils.set_random_seed(1)
    folder, own = tmp_path_factory.mktemp("networks"), network()
    own.save(folder / "n.keras")
    own.save(folder / "n.h5")
    save(folder / "folder", lambda pixels: {"v": own(pixels)}, images_of(SIZE), held=own)
    return folder, own


@pytest.mark.parametrize("form", ["folder", "n.keras", "n.h5"])
def test_a_saved_network_gives_its_values_on_its_scale(kept, form):
    folder, own = kept
    images = np.random.default_rng(1).random([3, SIZE, SIZE, 3], np.float32)
    for pixels, scaled in [
        ("0..1", images),
        ("-1..1", 2 * images - 1),
        ("0..255", 255 * images),
        ("imagenet", (images - saved.IMAGENET_MEAN) / np.sqrt(saved.IMAGENET_VARIANCE)),
    ]:
        found = build_backbone(f"saved_model:{folder / form}", 64, SIZE, pixels=pixels)
        expected = own(np.float32(scaled))
        np.testing.assert_allclose(found(images), expected, rtol=1e-4, atol=1e-5)
        assert found.output_shape == (None, 5)
        trains = len(own.trainable_variables) if form != "folder" else 0
        assert len(found.trainable_variables) == trains


def test_only_a_file_of_keras_trains(kept):
    freeze(build_backbone(f"saved_model:{kept[0]}/n.keras", 64, SIZE), "last:1")
    frozen = build_backbone(f"saved_model:{kept[0]}/folder", 64, SIZE)
    freeze(frozen, "none")
    rule = "--train_backbone=all: a SavedModel stays as it is; give --train_backbone=none, or"
    with pytest.raises(UserError, match=rule):
        freeze(frozen, "all")


def test_layers_that_were_saved_frozen_train(tmp_path):
    inner = tf.keras.Sequential([layers.Conv2D(4, 3, input_shape=[SIZE, SIZE, 3])])
    inner.trainable = False
    image = layers.Input([SIZE, SIZE, 3])
    x = layers.GlobalAveragePooling2D()(inner(image))
    tf.keras.Model(image, layers.Dense(5, trainable=False)(x)).save(tmp_path / "frozen.keras")
    found = build_backbone(f"saved_model:{tmp_path}/frozen.keras", 64, SIZE)
    for trained, count in (("all", 4), ("last:1", 2), ("none", 0)):
        freeze(found, trained)
        assert len(found.trainable_variables) == count, trained


def test_a_folder_without_signatures_is_called(tmp_path):
    class Called(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3])])
        def __call__(self, pixels):
            return tf.reduce_mean(pixels, [1, 2])

    tf.saved_model.save(Called(), str(tmp_path / "called"))
    found = build_backbone(f"saved_model:{tmp_path}/called", 64, SIZE)
    images = np.random.default_rng(1).random([2, SIZE, SIZE, 3], np.float32)
    np.testing.assert_allclose(found(images), images.mean((1, 2)), rtol=1e-5)


def test_what_is_no_network_from_images_to_vectors_is_one_line(kept, tmp_path):
    def refused(name, message, size=SIZE, **options):
        with pytest.raises(UserError, match=re.escape(message)):
            build_backbone(f"saved_model:{name}", 64, size, **options)

    refused(tmp_path / "none", "no folder of a SavedModel, or .keras or .h5 file; name one")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty: cannot be read (")
    (tmp_path / "x.keras").write_bytes(b"no network")
    refused(tmp_path / "x.keras", "x.keras: cannot be read (")
    bytes_of = images_of(SIZE, tf.uint8)
    path = save(tmp_path / "bytes", lambda pixels: tf.reduce_mean(pixels, [1, 2]), bytes_of)
    rule = "; save it with one signature from float images [B, H, W, 3] to one float [B, E]"
    refused(path, f"has serving_default from uint8 (None, 8, 8, 3) to uint8 (None, 3){rule}")
    path = save(tmp_path / "map", lambda pixels: 2 * pixels, images_of(SIZE))
    refused(path, f"serving_default from float32 (None, 8, 8, 3) to float32 (None, 8, 8, 3){rule}")
    path = save(tmp_path / "two", lambda a, b: a + b, images_of(SIZE), tf.TensorSpec([]))
    # The inputs are called b and images.
    refused(path, "serving_default from float32 (), float32 (None, 8, 8, 3) to float32")
    refused(kept[0] / "folder", "--image_size=9: ", size=9)
    refused(kept[0] / "n.keras", "n.keras takes 8x8 pixels; give --image_size=8", size=9)
    image = layers.Input([SIZE, SIZE, 3])
    tf.keras.Model(image, 2 * image).save(tmp_path / "map.keras")
    refused(tmp_path / "map.keras", "save a functional network from one [B, H, W, 3] to one [B, E]")
    refused(kept[0] / "n.keras", "--backbone_weights=imagenet: ", weights="imagenet")
    with pytest.raises(UserError, match="--backbone_pixels=imagenet: resnet18 has its own scale"):
        build_backbone("resnet18", 64, 32, pixels="imagenet")


@pytest.mark.parametrize("form", ["n.keras", "n.h5"])
def test_a_damaged_file_of_keras_is_one_line(kept, tmp_path, form):
    contents, path = (kept[0] / form).read_bytes(), tmp_path / form
    beyond = len(contents) // 8
    for damaged in (b"", contents[:-beyond], contents[:100] + beyond * b"\0" + contents[100:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{form}: cannot be read (.*); restore a copy"):
            build_backbone(f"saved_model:{path}", 64, SIZE)


def test_a_file_of_keras_with_flipped_bits_is_one_line(kept, tmp_path):
    contents, path = bytearray((kept[0] / "n.keras").read_bytes()), tmp_path / "n.keras"
    place = contents.index(b'"class_name"')
    contents[place] ^= 1
    path.write_bytes(contents)
    with pytest.raises(UserError, match="n.keras: cannot be read (.*CRC.*); restore a copy"):
        build_backbone(f"saved_model:{path}", 64, SIZE)


def test_files_of_keras_3_are_to_be_exported(tmp_path):
    with zipfile.ZipFile(tmp_path / "n.keras", "w") as file:
        file.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
    with h5py.File(tmp_path / "n.h5", "w") as file:
        file.attrs["keras_version"] = "3.15.1"
    for form in ("n.keras", "n.h5"):
        message = f"{form}: of Keras 3.15.1, not of Keras 2; export it there as a SavedModel"
        with pytest.raises(UserError, match=message):
            build_backbone(f"saved_model:{tmp_path}/{form}", 64, SIZE)


def test_vectors_that_do_not_tell_images_apart_are_a_warning():
    vectors = np.random.default_rng(1).normal(size=[8, 5])
    assert saved.check_vectors("n", vectors) == ""
    assert saved.check_vectors("n", vectors[:1]) == ""
    alike = saved.check_vectors("n", 1 + 1e-3 * vectors)
    assert alike.startswith("warning: --backbone=n: gives almost the same vector for 8 different")
    # By hand: two vectors at a cosine of 0.6.
    assert saved.check_vectors("n", np.array([[1, 0], [0.6, 0.8]])) == ""
    for value, kind in ((0, "only zeros"), (np.nan, "numbers that are not finite")):
        vectors[3] = value
        with pytest.raises(UserError, match=f"--backbone=n: gives {kind} for an image of the data"):
            saved.check_vectors("n", vectors)


def test_the_digest_is_of_the_contents_and_the_scale(kept, tmp_path):
    shutil.copytree(kept[0] / "folder", tmp_path / "copy")
    first = saved.digest(str(kept[0] / "folder"), "0..1")
    assert saved.digest(str(tmp_path / "copy"), "0..1") == first
    assert saved.digest(str(tmp_path / "copy"), "0..255") != first
    with (tmp_path / "copy/saved_model.pb").open("ab") as file:
        file.write(b"x")
    assert saved.digest(str(tmp_path / "copy"), "0..1") != first
    with pytest.raises(UserError, match="gone: cannot be read .*; name a SavedModel"):
        saved.digest(str(tmp_path / "gone"), "0..1")


@pytest.mark.parametrize(("form", "trains"), [("folder", "none"), ("n.keras", "all")])
@pytest.mark.long
def test_a_run_on_it_keeps_its_identity_and_its_export_needs_no_source(
    kept, form, trains, quick_config, photos, tmp_path, capsys
):
    source, spare = tmp_path / form, tmp_path / "spare"
    copy = shutil.copytree if form == "folder" else shutil.copy
    copy(kept[0] / form, source)
    own = {"backbone": f"saved_model:{source}", "backbone_width": 64, "train_backbone": trains}
    own |= {"epochs": 1, "held_out": 0}
    settings = quick_config(dataset=f"folder:{photos}", backbone_pixels="0..255", **own)
    run = tmp_path / "run"
    train_and_evaluate(settings, run)
    assert "almost the same vector" not in capsys.readouterr().err
    assert read_settings(run).backbone_digest == saved.digest(str(source), "0..255")
    images = catalog.load_images(settings.dataset).take(range(5))
    expected = load(run).encode_images(images)
    exported = export_encoder(run, tmp_path / "serving")
    source.rename(spare)
    moved = dataclasses.replace(settings, backbone=f"saved_model:{spare}")
    if form == "folder":
        assert train_and_evaluate(moved, run)[0].step == 13
    found = encode_images(load_encoder(exported), images)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found.codes, expected.codes)
    replace_network(source, form)
    with pytest.raises(UserError, match="made with --backbone_digest=.*, not .*; take another"):
        train_and_evaluate(settings, run)
    with pytest.raises(UserError, match="is another network than the run's .*; restore that one"):
        load(run)


def replace_network(path: pathlib.Path, form):
    other = network()
    if form == "folder":
        save(path, lambda pixels: other(pixels), images_of(SIZE), held=other)
    else:
        other.save(path)
