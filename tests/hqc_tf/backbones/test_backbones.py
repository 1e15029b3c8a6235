"""The backbones: weights, shapes, PyTorch's padding and start, ImageNet's normalisation."""

import functools
import math
import re

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import backbones
from hqc_tf.backbones import build_backbone
from hqc_tf.errors import UserError

pytestmark = pytest.mark.usefixtures("same_random_numbers")

RESNETS = "resnet18_cifar", "resnet18", "resnet50"
layers = tf.keras.layers


@functools.cache
def small(name):
    return build_backbone(name, 8, 32)


def trainable(network):
    return sum(math.prod(variable.shape) for variable in network.trainable_variables)


def layers_of(network, kind):
    """All layers of a kind, those inside of layers too."""
    return [layer for layer in network._flatten_layers() if isinstance(layer, kind)]


def convolve_by_loop(image, kernel, stride, padding):
    """The definition, one output pixel at a time; `padding` zeros on all four sides."""
    side = kernel.shape[0]
    padded = np.pad(image, [[padding, padding], [padding, padding], [0, 0]])
    rows, columns = ((n - side) // stride + 1 for n in padded.shape[:2])
    out = np.zeros([rows, columns, kernel.shape[-1]])
    for y, x in np.ndindex(rows, columns):
        window = padded[y * stride : y * stride + side, x * stride : x * stride + side]
        out[y, x] = np.tensordot(window, kernel, 3)
    return out


@pytest.mark.parametrize(
    ("name", "width", "size", "count", "features"),
    [
        ("resnet18_cifar", 64, 32, 11_168_832, 512),
        ("resnet18_cifar", 16, 32, 700_176, 128),
        ("resnet18", 64, 224, 11_176_512, 512),
        ("resnet50", 64, 224, 23_508_032, 2048),
        ("vgg16", 64, 224, 134_260_544, 4096),
    ],
)
@pytest.mark.long
def test_weights_and_features_are_the_papers(name, width, size, count, features):
    network = build_backbone(name, width, size)
    assert trainable(network) == count
    assert network.input_shape == (None, size, size, 3)
    assert network.output_shape == (None, features)


@pytest.mark.parametrize(("name", "size", "last"), [("resnet18_cifar", 30, 4), ("resnet18", 64, 2)])
def test_last_feature_map_is_averaged(name, size, last):
    network = build_backbone(name, 1, size)
    *_, pooling = network.layers
    assert isinstance(pooling, layers.GlobalAveragePooling2D)
    assert pooling.input_shape[1:3] == (last, last)


@pytest.mark.parametrize("name", RESNETS)
def test_images_become_finite_features(name):
    features = small(name)(tf.random.uniform([2, 32, 32, 3]))
    assert features.shape == [2, 256 if name == "resnet50" else 64]
    assert np.isfinite(features).all()
    assert (features.numpy() >= 0).all()


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolutions_pad_both_sides_alike(kernel, stride, size):
    image = np.random.default_rng(0).standard_normal([size, size, 2]).astype(np.float32)
    convolution = backbones._conv(backbones._PYTORCH, 3, kernel, stride)
    got = convolution(image[None])[0]
    (weights,) = convolution.get_weights()
    expected = convolve_by_loop(image, weights, stride, kernel // 2)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_strides_stand_where_pytorch_has_them():
    strided = [
        layer.kernel_size[0]
        for layer in layers_of(small("resnet50"), layers.Conv2D)
        if layer.strides == (2, 2)
    ]
    # The stem; then a 3x3 in each of three stages. The 1x1 beside it takes every second pixel.
    assert sorted(strided) == [3, 3, 3, 7]
    cifar = layers_of(small("resnet18_cifar"), layers.Conv2D)
    assert (cifar[0].kernel_size, cifar[0].strides) == ((3, 3), (1, 1))


def test_kernels_of_the_cifar_network_start_within_kaimings_bounds():
    for convolution in layers_of(small("resnet18_cifar"), layers.Conv2D):
        kernel = convolution.kernel.numpy()
        limit = 1 / math.sqrt(math.prod(kernel.shape[:3]))
        assert 0.9 * limit < np.abs(kernel).max() <= limit
        assert np.std(kernel) == pytest.approx(limit / math.sqrt(3), rel=0.2)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_kernels_of_the_photo_networks_start_normal_by_what_goes_out(name):
    wholes = []
    for convolution in layers_of(small(name), layers.Conv2D):
        kernel = convolution.kernel.numpy()
        height, width, _, channels = kernel.shape
        wholes.append((kernel * math.sqrt(height * width * channels / 2)).ravel())
        assert np.std(wholes[-1]) == pytest.approx(1, rel=0.25)
    together = np.concatenate(wholes)
    assert np.std(together) == pytest.approx(1, rel=0.01)
    # A normal distribution's, which a uniform or a truncated one has not.
    assert np.mean(together**4) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("name", RESNETS)
def test_convolutions_have_no_bias(name):
    assert {convolution.bias for convolution in layers_of(small(name), layers.Conv2D)} == {None}


@pytest.mark.parametrize("name", RESNETS)
def test_batch_norm_has_the_authors_constants(name):
    network = small(name)
    norms = layers_of(network, layers.BatchNormalization)
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}
    assert len(norms) == len(layers_of(network, layers.Conv2D))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_imagenets_mean_and_deviation_are_taken_out(name):
    network = small(name)
    (normalization,) = layers_of(network, layers.Normalization)
    prepared = tf.keras.Model(network.input, normalization.output)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for steps in (0, 1, -2):
        image = np.tile(mean + steps * deviation, [1, 32, 32, 1]).astype(np.float32)
        np.testing.assert_allclose(prepared(image), np.full([1, 32, 32, 3], steps), atol=1e-5)


def test_cifar_network_takes_images_as_they_are():
    assert not layers_of(small("resnet18_cifar"), layers.Normalization)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("resnet34", 64, 32),
            "--backbone=resnet34: unknown; take one of resnet18_cifar, ",
        ),
        (("vgg16", 64, 32), "--image_size=32: vgg16 takes 224; give 224, or take a resnet"),
        (("vgg16", 32, 224), "--backbone_width=32: vgg16 has one width; take 64, or a resnet"),
        (("resnet18", 64, 32, "imagenet"), "--backbone_weights=imagenet: resnet18 has none; take "),
    ],
)
def test_what_a_backbone_does_not_have_is_refused(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_backbone(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("keras:ResNet34", 64, 32),
            "--backbone=keras:ResNet34: tf.keras.applications has no such",
        ),
        (("keras:preprocess_input", 64, 32), "tf.keras.applications has no such network"),
        (("keras:MobileNet", 8, 32), "--backbone_width=8: keras:MobileNet has one width; leave it"),
        (("keras:MobileNet", 64, 32, "gone.h5"), "--backbone_weights=gone.h5: no such file; bring"),
        (("keras:MobileNet", 64, 8), "Input size must be at least 32x32"),
    ],
)
def test_what_keras_does_not_have_is_refused(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_backbone(*arguments)


def test_a_network_of_keras_takes_its_own_scale_and_weights(tmp_path):
    inner = tf.keras.applications.MobileNet(
        include_top=False, pooling="avg", input_shape=[32, 32, 3], weights=None
    )
    inner.save_weights(tmp_path / "weights.h5")
    network = build_backbone("keras:MobileNet", 64, 32, str(tmp_path / "weights.h5"))
    images = np.random.default_rng(1).random([2, 32, 32, 3], np.float32)
    expected = inner(tf.keras.applications.mobilenet.preprocess_input(255 * images))
    np.testing.assert_allclose(network(images), expected, rtol=1e-5, atol=1e-6)
    (tmp_path / "weights.h5").write_bytes(b"no weights")
    with pytest.raises(UserError, match="--backbone_weights=.*weights.h5: "):
        build_backbone("keras:MobileNet", 64, 32, str(tmp_path / "weights.h5"))


def test_frozen_layers_stay_as_they_are_whatever_the_batch():
    network = build_backbone("keras:MobileNet", 64, 32)
    everything = len(network.trainable_variables)
    backbones.freeze(network, "all")
    assert len(network.trainable_variables) == everything
    backbones.freeze(network, "last:2")
    assert 0 < len(network.trainable_variables) < 6
    backbones.freeze(network, "none")
    assert network.trainable_variables == []
    before = network.get_weights()
    images = np.random.default_rng(1).random([4, 32, 32, 3], np.float32)
    np.testing.assert_allclose(network(images, training=True), network(images), rtol=1e-5)
    for one, other in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for wrong in ("some", "last:", "last:0", "last:9999"):
        with pytest.raises(UserError, match=f"--train_backbone={wrong}: give all, none, or last"):
            backbones.freeze(network, wrong)


def test_missing_imagenet_weights_say_where_to_put_them(monkeypatch):
    # What Keras does without a network, at once.
    def refuse(weights):
        raise Exception(f"URL fetch failure for {weights}")

    monkeypatch.setattr(tf.keras.applications, "VGG16", refuse)
    message = r"--backbone_weights=imagenet: .*URL fetch failure.*; put its file into ~/.keras"
    with pytest.raises(UserError, match=message):
        build_backbone("vgg16", 64, 224, weights="imagenet")
