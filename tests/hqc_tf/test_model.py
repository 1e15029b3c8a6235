"""The model: views one after the other, its terms and their sum, codes, saving, precision."""

import re

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import losses, model
from hqc_tf.config import FUSIONS
from hqc_tf.data import augment, catalog
from hqc_tf.data.views import recolor_views, training_views
from hqc_tf.optimizers import make_optimizer

pytestmark = pytest.mark.usefixtures("same_random_numbers")

ALL_TERMS = {
    "instance_quantized_weight": 0.9,
    "instance_embedding_weight": 0.8,
    "consistency_weight": 0.7,
    "part_neighbor_weight": 0.6,
    "codeword_diversity_weight": 0.5,
    "book_classification_weight": 0.4,
    "cross_quantized_weight": 0.3,
}


def compiled(config):
    network = model.HQC(config)
    network.compile(optimizer=make_optimizer(config, steps_per_epoch=2))
    return network


def random_views(config, factor=0.3, dtype=tf.float32):
    shape = [config.batch_size, config.image_size, config.image_size, 3]
    first = tf.random.uniform(shape, dtype=dtype)
    return first, factor * first + 0.1 * tf.random.uniform(shape, dtype=dtype)


def learned_together(network, views):
    """The encodings and loss terms of the next step, without taking it."""
    a, b = (network(view, training=True) for view in views)
    return network.loss_terms(a, b)


def test_call_names_embedding_quantized_and_similarity(tiny_config):
    network = model.HQC(tiny_config())
    images, _ = random_views(network.settings)
    encoding = network(images)
    quantized, similarity = network.quantizer(network.encoder(images, training=False))
    embedding = network.encoder(images, training=False)
    for got, expected in zip(encoding, (embedding, quantized, similarity), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_encode_is_the_quantizers_code_of_the_encoders_output(tiny_config):
    network = model.HQC(tiny_config())
    images, _ = random_views(network.settings)
    embedding, codes = network.encode(images)
    expected = network.encoder(images, training=False)
    np.testing.assert_allclose(embedding, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(codes, network.quantizer.encode(embedding))
    assert codes.dtype == tf.uint8
    assert codes.shape == [4, 2]


def test_encode_leaves_the_moving_averages_alone(tiny_config):
    network = model.HQC(tiny_config())
    before = [w.numpy() for w in network.non_trainable_weights]
    network.encode(random_views(network.settings)[0])
    for old, new in zip(before, network.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(new, old)


def test_projection_starts_as_the_authors_but_for_its_biases(small_config):
    encoder = model.build_encoder(small_config(backbone_width=16))
    hidden, embedding = encoder.layers[-2:]
    assert (hidden.units, embedding.units) == (512, 6)
    assert np.std(hidden.kernel) == pytest.approx(0.01, rel=0.02)
    limit = np.sqrt(6 / (512 + 6))
    assert 0.95 * limit < np.abs(embedding.kernel).max() <= limit
    assert not np.any(hidden.bias) and not np.any(embedding.bias)
    assert hidden.activation is tf.keras.activations.relu
    assert embedding.activation is tf.keras.activations.linear


def by_creation(network, kind):
    """The layers of a kind in the order in which they were made, which Keras counts in names."""
    found = [layer for layer in network._flatten_layers() if isinstance(layer, kind)]
    return sorted(found, key=lambda layer: [*map(int, re.findall(r"_(\d+)$", layer.name))])


def test_steps_are_those_of_pytorch(small_config, load_reference):
    """Network, terms, Adam with its decay, rates and running statistics, by tests/reference."""
    arrays, meta = load_reference("training_steps")
    per_epoch = meta.pop("per_epoch")
    network = model.HQC(small_config(**meta))
    network.compile(optimizer=make_optimizer(network.settings, per_epoch))
    convolutions = by_creation(network.encoder, tf.keras.layers.Conv2D)
    assert len(convolutions) == sum(name.startswith("convolution") for name in arrays) == 20
    for number, layer in enumerate(convolutions):
        layer.kernel.assign(arrays[f"convolution_{number}"])
    for number, layer in enumerate(network.encoder.layers[-2:]):
        layer.kernel.assign(arrays[f"dense_{number}"])
        layer.bias.assign(arrays[f"bias_{number}"])
    network.quantizer.codebooks.assign(arrays["codebooks"])
    for views, expected in zip(arrays["views"], arrays["losses"], strict=True):
        network.reset_metrics()
        found = network.train_step(tf.unstack(tf.constant(views)))
        np.testing.assert_allclose([*map(float, found.values())], expected, rtol=1e-4, atol=1e-4)
    embedding, _ = network.encode(arrays["views"][0, 0])
    np.testing.assert_allclose(embedding, arrays["embedding"], rtol=1e-3, atol=1e-3)


def test_short_training_has_batch_norm_in_the_projection_and_embeddings_of_one_length(small_config):
    settings = small_config(projection_norm=True, embedding_length=4.0, decorrelation_weight=0.2)
    trained = model.build_model(settings)
    images = np.random.default_rng(0).random([5, 8, 8, 3], np.float32)
    embedding = trained(images).embedding.numpy()
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 4, rtol=1e-5)
    plain = model.build_model(small_config())
    kinds = [sum("batch_norm" in v.name for v in m.encoder.weights) for m in (trained, plain)]
    assert kinds[0] == kinds[1] + 4
    assert "decorrelation" in trained.weights_of_terms


def test_views_pass_one_after_the_other(small_config):
    network = compiled(small_config())
    views = random_views(network.settings)
    norm = next(
        layer
        for layer in network.encoder.layers
        if isinstance(layer, tf.keras.layers.BatchNormalization)
    )
    before_norm = tf.keras.Model(network.encoder.input, norm.input)
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    for view in views:
        values = before_norm(view).numpy().reshape(-1, 2)
        mean = 0.9 * mean + 0.1 * values.mean(0)
        variance = 0.9 * variance + 0.1 * values.var(0, ddof=1)
    network.train_step(views)
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-5)


def test_a_view_does_not_depend_on_the_other(tiny_config):
    network = model.HQC(tiny_config())
    first, second = random_views(network.settings)
    apart = network(second, training=True).embedding
    network(first, training=True)
    np.testing.assert_allclose(network(second, training=True).embedding, apart, rtol=1e-6)


def test_joint_views_are_normalised_by_the_statistics_of_both(tiny_config):
    network = compiled(tiny_config(joint_views=True))
    views = random_views(network.settings)
    together = network(tf.concat(views, 0), training=True)
    (a, b), _ = network._encode_views(views)
    np.testing.assert_allclose(a.embedding, together.embedding[:4], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(b.similarity, together.similarity[4:], rtol=1e-4, atol=1e-6)
    alone = network(views[0], training=True)
    assert not np.allclose(a.embedding, alone.embedding, rtol=1e-3)
    losses_before = network.train_step(views)
    assert np.isfinite(losses_before["loss"])


def test_a_step_that_makes_its_views_equals_one_that_is_given_them(tiny_config):
    drawn = tuple(augment.draw([1, view], 4) for view in range(2))
    crops = random_views(tiny_config())
    given = compiled(tiny_config())
    making = compiled(tiny_config(augment_on="device"))
    making.set_weights(given.get_weights())
    expected = given.train_step(recolor_views(crops, drawn))
    made = making.train_step((crops, drawn))
    assert float(made["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)


def test_loss_is_the_weighted_sum_of_its_terms(tiny_config):
    network = compiled(tiny_config(**ALL_TERMS))
    views = random_views(network.settings)
    terms = learned_together(network, views)
    metrics = network.train_step(views)
    assert list(metrics) == ["loss", *(name.removesuffix("_weight") for name in ALL_TERMS)]
    for name, value in terms.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6)
    total = sum(weight * terms[name.removesuffix("_weight")] for name, weight in ALL_TERMS.items())
    assert float(metrics["loss"]) == pytest.approx(float(total), rel=1e-5)


def test_terms_get_their_settings(tiny_config):
    config = tiny_config(
        **ALL_TERMS,
        instance_temperature=0.3,
        consistency_temperature=0.4,
        consistency_fusion="concat",
        part_neighbor_temperature=0.6,
        num_neighbors=2,
        include_positive=True,
        codeword_diversity_temperature=0.7,
        cross_quantized_temperature=0.8,
    )
    network = model.HQC(config)
    a, b = (network(view) for view in random_views(config))
    f, z, s = zip(a, b, strict=True)
    parts = [tf.reshape(embedding, [-1, 3]) for embedding in f]
    expected = {
        "instance_quantized": losses.instance_contrastive_loss(*z, 0.3),
        "instance_embedding": losses.instance_contrastive_loss(*f, 0.3),
        "consistency": losses.consistency_loss(*f, *z, 0.4, "concat"),
        "part_neighbor": losses.part_neighbor_loss(*z, 2, 0.6, 2, True),
        "codeword_diversity": losses.codeword_diversity_loss(*s, 0.7),
        "book_classification": losses.book_classification_loss(
            *(tf.nn.log_softmax(network.book_classifier(p)) for p in parts)
        ),
        "cross_quantized": losses.cross_quantized_loss(*f, *z, 0.8),
    }
    terms = network.loss_terms(a, b)
    assert list(terms) == list(expected)
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-6), name


@pytest.mark.parametrize("joint_views", [False, True])
def test_reconstruction_compares_with_what_the_head_takes(small_config, joint_views):
    config = small_config(feature_width=6, reconstruction_weight=0.5, joint_views=joint_views)
    network = compiled(config)
    norm = network.encoder.get_layer("feature_norm")
    norm.adapt(np.full(6, 0.1, np.float32), 0.3)
    views = tf.unstack(tf.random.normal([2, 4, 6]))
    a, b = (network(view) for view in views)
    pairs = zip(a[:2], b[:2], strict=True)
    flat = [one for pair in pairs for one in pair]
    expected = losses.reconstruction_loss(*flat, *map(norm, views))
    found = network.train_step(views)
    assert float(found["reconstruction"]) == pytest.approx(float(expected), rel=1e-4)
    assert len(network.weights) == len({id(weight) for weight in network.weights})


def test_reconstruction_of_images_compares_with_the_frozen_backbone(tiny_config):
    config = tiny_config(train_backbone="none", reconstruction_weight=0.5)
    network = compiled(config)
    views = random_views(config)
    backbone, head = network.build_backbone(), network.build_head()
    features = [backbone(view) for view in views]
    embeddings = [head(x) for x in features]
    quantized = [network.quantizer(f).quantized for f in embeddings]
    expected = losses.reconstruction_loss(*embeddings, *quantized, *features)
    before = backbone.get_weights()
    found = network.train_step(views)
    assert float(found["reconstruction"]) == pytest.approx(float(expected), rel=1e-4)
    for one, other in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_terms_of_weight_zero_are_not_computed(tiny_config, monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("computed all the same")

    for name in ("consistency_loss", "part_neighbor_loss", "book_classification_loss"):
        monkeypatch.setattr(losses, name, refuse)
    network = compiled(tiny_config(consistency_weight=0.0, part_neighbor_weight=0.0))
    metrics = network.train_step(random_views(network.settings))
    assert set(metrics) == {
        "loss",
        "instance_quantized",
        "instance_embedding",
        "codeword_diversity",
    }
    assert network.book_classifier is None


def test_metrics_are_means_over_steps_until_they_are_reset(tiny_config):
    network, alone = (compiled(tiny_config()) for _ in range(2))
    alone.set_weights(network.get_weights())
    views, own = random_views(network.settings), []
    for _ in range(3):
        alone.reset_metrics()
        own.append(float(alone.train_step(views)["loss"]))
    means = [float(network.train_step(views)["loss"]) for _ in range(2)]
    network.reset_metrics()
    means.append(float(network.train_step(views)["loss"]))
    np.testing.assert_allclose(means, [own[0], (own[0] + own[1]) / 2, own[2]], rtol=1e-5)
    assert len(set(own)) == 3
    assert network.metrics == network.trackers


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_and_every_term_trains_all_weights(tiny_config, fusion):
    network = compiled(tiny_config(consistency_fusion=fusion, learning_rate=0.01, **ALL_TERMS))
    before = [variable.numpy() for variable in network.trainable_variables]
    metrics = network.train_step(random_views(network.settings))
    assert all(np.isfinite(value) for value in metrics.values())
    for old, new in zip(before, network.trainable_variables, strict=True):
        assert np.isfinite(new).all()
        assert (new.numpy() != old).any(), new.name


def test_a_loss_without_the_codebooks_trains_the_rest(tiny_config):
    only_embeddings = dict.fromkeys(ALL_TERMS, 0.0) | {"instance_embedding_weight": 1.0}
    network = compiled(tiny_config(**only_embeddings))
    codebooks = network.quantizer.codebooks.numpy()
    kernel = network.encoder.layers[-1].kernel.numpy()
    metrics = network.train_step(random_views(network.settings))
    assert np.isfinite(metrics["loss"])
    np.testing.assert_array_equal(network.quantizer.codebooks, codebooks)
    assert (network.encoder.layers[-1].kernel.numpy() != kernel).any()


@pytest.mark.long
def test_training_on_real_images_lowers_the_loss(small_config, fashion_mnist_dir):
    settings = small_config(image_size=12, batch_size=16, learning_rate=5e-3, num_words=16)
    images = catalog.load_images("fashion_mnist/test[:64]", fashion_mnist_dir)
    (views,) = training_views(images, settings, 0, 1)
    network = compiled(settings)
    network.train_step(views)
    before = sum(learned_together(network, views).values())
    for _ in range(6):
        network.train_step(views)
    assert sum(learned_together(network, views).values()) < before - 0.1


def test_restored_checkpoint_gives_the_same_codes_and_goes_on_alike(tiny_config, tmp_path):
    config = tiny_config(**ALL_TERMS)
    network = compiled(config)
    images, other = random_views(config)
    network.train_step((images, other))
    saved = tf.train.Checkpoint(model=network).save(str(tmp_path / "state"))
    again = compiled(config)
    assert (again.encode(images)[0].numpy() != network.encode(images)[0].numpy()).any()
    status = tf.train.Checkpoint(model=again).restore(saved)
    for expected, got in zip(network.encode(images), again.encode(images), strict=True):
        np.testing.assert_array_equal(got, expected)
    for each in (network, again):
        each.reset_metrics()
    expected, got = (each.train_step((images, other))["loss"] for each in (network, again))
    status.assert_consumed()
    assert float(got) == pytest.approx(float(expected), rel=1e-6)
    # Convolutions of several threads add in no fixed order.
    embedding = network.encode(images)[0].numpy()
    tolerance = 1e-4 * np.abs(embedding).max()
    np.testing.assert_allclose(again.encode(images)[0], embedding, rtol=0, atol=tolerance)


def test_config_makes_the_same_model(tiny_config):
    network = model.HQC(tiny_config(**ALL_TERMS), name="second_try")
    again = model.HQC.from_config(network.get_config())
    assert again.settings == network.settings
    assert again.name == "second_try"
    assert [w.shape for w in again.weights] == [w.shape for w in network.weights]


def test_book_classifier_has_the_authors_widths_and_start(tiny_config):
    network = model.HQC(tiny_config(**ALL_TERMS))
    shapes = [tuple(w.shape) for w in network.book_classifier.weights]
    assert shapes == [(3, 12), (12,), (12, 2), (2,)]
    inner, inner_bias, outer, outer_bias = (w.numpy() for w in network.book_classifier.weights)
    assert np.std(inner) == pytest.approx(0.01, rel=0.5)
    assert 0.2 < np.abs(outer).max() / np.sqrt(6 / 14) <= 1
    assert not np.any(inner_bias) and not np.any(outer_bias)


def test_bfloat16_network_keeps_losses_in_single_precision(tiny_config, set_policy):
    set_policy("mixed_bfloat16")
    network = compiled(tiny_config(**ALL_TERMS))
    views = random_views(network.settings)
    assert network.encoder.compute_dtype == "bfloat16"
    assert network.encoder(views[0]).dtype == tf.bfloat16
    assert {tensor.dtype for tensor in network(views[0])} == {tf.float32}
    assert {term.dtype for term in learned_together(network, views).values()} == {tf.float32}
    assert {v.dtype for v in network.trainable_variables} == {tf.float32}
    assert all(np.isfinite(value) for value in network.train_step(views).values())


def test_double_precision_reaches_every_weight_and_loss(tiny_config, set_policy):
    set_policy("float64")
    network = compiled(tiny_config(**ALL_TERMS))
    views = random_views(network.settings, dtype=tf.float64)
    assert {tensor.dtype for tensor in network(views[0])} == {tf.float64}
    assert {term.dtype for term in learned_together(network, views).values()} == {tf.float64}
    assert {v.dtype for v in network.trainable_variables} == {tf.float64}
    assert np.isfinite(network.train_step(views)["loss"])
