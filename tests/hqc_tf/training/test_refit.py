"""Refitting after training: the rotation is folded in, and only better codes are kept."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import label_free
from hqc_tf.backbones.gradients import OrientedGradients
from hqc_tf.baselines import opq
from hqc_tf.data import catalog, features
from hqc_tf.data.batches import plain_batches
from hqc_tf.data.images import hold_out
from hqc_tf.errors import UserError
from hqc_tf.training import joining, refit
from hqc_tf.workdir import load, read_settings, save_weights, saved_step, write_settings


@pytest.fixture(scope="module")
def workdir(make_workdir, feature_config):
    return make_workdir(feature_config())


@pytest.fixture
def run(workdir, tmp_path):
    """(a workdir to change, the rows it was trained on, those held out)."""
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    images = catalog.load_images(read_settings(folder).dataset)
    return folder, *hold_out(images, 6)


def change_settings(folder, **changes):
    write_settings(folder, dataclasses.replace(read_settings(folder), **changes))


def error(trained, images):
    encoded = trained.encode_images(images)
    return label_free.quantization_error(*encoded, trained.quantizer.codebooks.numpy())


@pytest.mark.parametrize("length", [0.0, 4.0])
def test_embeddings_are_turned_and_the_error_falls(feature_config, length):
    from hqc_tf.model import build_model

    settings = feature_config(embedding_length=length)
    trained, images = build_model(settings), catalog.load_images(settings.dataset)
    before, error_before = trained.encode_images(images).embeddings, error(trained, images)
    fit = opq.fit(before, settings.num_books, settings.num_words)
    refit.refit(trained, before)
    after = trained.encode_images(images)
    np.testing.assert_allclose(after.embeddings, before @ fit.rotation, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(
        after.codes, opq.encode(after.embeddings, trained.quantizer.codebooks.numpy())
    )
    assert error(trained, images) < error_before


def test_better_weights_are_kept_beside_the_learned_ones(run):
    folder, images, held = run
    nothing = held.take([])
    lines = refit.refit_workdir(folder, images, nothing)
    assert [line.split(":")[0] for line in lines] == [
        "refit of the best weights", "refit of the last weights"
    ]  # fmt: skip
    assert all(line.endswith(": kept") for line in lines)
    learned, refitted = load(folder, "last", refitted=False), load(folder, "last")
    assert error(refitted, images) < error(learned, images)
    # The same command again changes nothing, and neither does a kill before the evaluation.
    assert refit.refit_workdir(folder, images, nothing) == []
    shutil.rmtree(folder / "checkpoints/last_refitted")
    refit.refit_workdir(folder, images, nothing)
    for one, other in zip(refitted.get_weights(), load(folder, "last").get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_trained_further_are_not_those_that_were_refitted(run):
    folder, images, held = run
    refit.refit_workdir(folder, images, held.take([]))
    learned = load(folder, "last", refitted=False)
    save_weights(learned, folder, 8, "last")
    assert saved_step(folder, "last", refitted=True) == 7
    assert error(load(folder, "last"), images) == error(learned, images)


def test_what_is_not_better_is_not_kept(run, monkeypatch):
    folder, images, held = run
    far = opq.Fit(np.eye(6, dtype=np.float32), np.full([2, 4, 3], 100, np.float32))
    monkeypatch.setattr(opq, "fit", lambda *_: far)
    for line in refit.refit_workdir(folder, images, held):
        assert line.endswith("not better, not kept")
    assert saved_step(folder, "best", refitted=True) is None


@pytest.mark.parametrize(
    ("changes", "after", "kept"),
    [
        ({"refit": "opq"}, (0.1, 0.5), True),
        ({"refit": "opq"}, (0.1, 0.4), False),
        ({"refit": "opq"}, (0.2, 0.6), False),
        ({"refit": "neighbors"}, (0.1, 0.4), True),
        ({"refit": "neighbors"}, (0.3, 0.9), False),
        ({"refit": "opq", "input_share": 0.5}, (0.3, 0.4), True),
    ],
)
def test_error_and_recall_decide(small_config, changes, after, kept):
    assert refit._is_kept((0.2, 0.5), after, small_config(**changes)) == kept


def test_what_cannot_be_refitted_is_refused_before_training(small_config, monkeypatch):
    settings = small_config(refit="opq")
    with pytest.raises(UserError, match="3 training images for 4 words a book"):
        refit.check(settings, 3)
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(opq, "is_installed", lambda: False)
    with pytest.raises(UserError, match="--refit=opq: FAISS is missing; pip install"):
        refit.check(settings, 100)
    refit.check(dataclasses.replace(settings, refit="none"), 3)


def test_neighbors_are_folded_into_the_last_layer(tiny_config, photos):
    from hqc_tf.model import build_model

    trained = build_model(tiny_config(dataset=f"folder:{photos}"))
    images = catalog.load_images(f"folder:{photos}")
    before = trained.encode_images(images).embeddings
    refit.turn_to_neighbors(trained, images)
    after = trained.encode_images(images).embeddings
    unit = before / np.linalg.norm(before, axis=1, keepdims=True)
    # Sixty images, of which each has five neighbors, itself among them.
    nearest = np.argsort(-(unit @ unit.T), axis=1, kind="stable")[:, :5]
    means = unit[nearest].mean(axis=1) * np.linalg.norm(before, axis=1).mean()
    residual = np.square(after - means).sum() / np.square(means - means.mean(0)).sum()
    assert (
        residual < 0.2 < np.square(before - means).sum() / np.square(before - before.mean(0)).sum()
    )


def test_neighbors_are_kept_for_their_smaller_error(run):
    folder, images, held = run
    change_settings(folder, refit="neighbors")
    lines = refit.refit_workdir(folder, images, held)
    assert all(line.endswith(": kept") for line in lines)
    assert error(load(folder, "last"), images) < error(load(folder, "last", refitted=False), images)


def distances(vectors):
    return np.square(vectors[:, None] - vectors).sum(-1)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_share_of_the_input_is_kept_and_read_back(run):
    folder, images, held = run
    change_settings(folder, refit="opq", input_share=1.0)
    lines = refit.refit_workdir(folder, images, held)
    assert all(line.endswith(": kept") for line in lines)
    assert load(folder, "last", refitted=False).last_layer().name == "embedding"
    trained = load(folder, "last")
    encoded = trained.encode_images(images)
    # All of it: distances are those of the features themselves, in six components of twelve.
    of_images = np.concatenate([*features.batches(images, 64)])
    rows = unit(of_images) - unit(of_images).mean(axis=0)
    _, _, axes = np.linalg.svd(rows, full_matrices=False)
    rows = rows @ axes[:6].T
    rows /= np.sqrt(np.square(rows).sum(axis=1).mean())
    np.testing.assert_allclose(distances(encoded.embeddings), distances(rows), atol=1e-4)
    head = trained.build_head()(of_images)
    np.testing.assert_allclose(head, encoded.embeddings, atol=1e-5)


@pytest.mark.parametrize("size", [8, 100])
def test_gradients_of_pixels_are_the_input_of_a_backbone_that_trains(tiny_config, photos, size):
    from hqc_tf.model import build_model

    settings = tiny_config(
        dataset=f"folder:{photos}", image_size=size, refit="opq", input_share=0.5
    )
    trained, images = build_model(settings), catalog.load_images(f"folder:{photos}")
    before = trained.encode_images(images).embeddings
    refit.join_input(trained, images)
    views = np.concatenate(list(plain_batches(images, size, size, 64)))[: len(images)]
    # A hundred pixels a side are averaged to 25.
    pooled = views if size == 8 else views.reshape(-1, 25, 4, 25, 4, 3).mean(axis=(2, 4))
    shapes = OrientedGradients()(pooled).numpy()
    both = np.concatenate([unit(before), unit(shapes)], axis=1)
    kernel, bias = joining.fit_layer(both, 6, 0.5)
    after = trained.encode_images(images).embeddings
    np.testing.assert_allclose(distances(after), distances(both @ kernel + bias), atol=1e-3)
    assert trained.build_head() is None


@pytest.mark.parametrize("changes", [{}, {"embedding_length": 3.0, "projection_norm": True}])
def test_a_mirror_images_hidden_vector_counts_as_much(tiny_config, changes):
    from hqc_tf.model import build_model

    trained = build_model(tiny_config(refit="opq", mirror_mean=True, **changes))
    images = np.random.default_rng(1).random([2, 8, 8, 3], np.float32)
    layer = trained.last_layer()
    hidden = tf.keras.Model(trained.encoder.input, layer.input)
    mean = (hidden(images) + hidden(images[:, :, ::-1])) / 2
    kernel, bias = layer.get_weights()
    expected = mean @ kernel + bias
    if changes:
        expected = 3 * unit(expected.numpy())
    trained.add_mirror()
    np.testing.assert_allclose(trained.encoder(images), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(trained.last_layer().get_weights()[0], kernel)
    assert trained.build_head() is None


def test_an_image_and_its_mirror_image_have_one_code(make_workdir, tiny_config, photos):
    settings = tiny_config(dataset=f"folder:{photos}", refit="neighbors", mirror_mean=True)
    folder, images = make_workdir(settings), catalog.load_images(settings.dataset)
    lines = refit.refit_workdir(folder, images, images.take([]))
    assert all(line.endswith(": kept") for line in lines)
    learned, trained = load(folder, "last", refitted=False), load(folder, "last")
    one = np.random.default_rng(1).random([5, 8, 8, 3], np.float32)
    embeddings, codes = trained.encode(one)
    of_mirrored = trained.encode(one[:, :, ::-1])
    np.testing.assert_allclose(embeddings, of_mirrored[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(codes, of_mirrored[1])
    of_learned = learned.encode(one)[0].numpy()
    assert not np.allclose(of_learned, learned.encode(one[:, :, ::-1])[0], rtol=1e-3)


def test_a_frozen_backbones_output_is_the_input(tiny_config, photos):
    from hqc_tf.model import build_model

    trained = build_model(tiny_config(train_backbone="none", refit="opq", input_share=0.5))
    before = trained.build_head().input_shape
    trained.join_input()
    images = np.random.default_rng(1).random([2, 8, 8, 3], np.float32)
    features = trained.build_backbone()(images)
    np.testing.assert_allclose(trained.build_head()(features), trained.encoder(images), atol=1e-6)
    assert trained.build_head().input_shape == before
