"""The convolutional networks, from a square image in [0, 1] to a feature vector.

Convolutions start as the authors start them: those of `resnet18_cifar` as PyTorch does (Kaiming
uniform with a = sqrt 5), those of `resnet18` and `resnet50` Kaiming normal by what goes out. Batch
norm has eps 1e-5 and keeps 0.9 of its moving averages a step.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator

import tensorflow as tf

from hqc_tf import files
from hqc_tf.backbones import saved
from hqc_tf.errors import UserError

layers = tf.keras.layers

# Uniform within 1 / sqrt(fan in), and normal with variance 2 / fan out.
_PYTORCH = {"scale": 1 / 3, "mode": "fan_in", "distribution": "uniform"}
_BY_FAN_OUT = {"scale": 2.0, "mode": "fan_out", "distribution": "untruncated_normal"}


def build_backbone(
    name: str,
    width: int,
    size: int,
    weights: str = "none",
    sync_batch_norm: bool = False,
    pixels: str = "0..1",
) -> tf.keras.Model:
    """The network of `--backbone`: a row of `BACKBONES`, of Keras' applications, or saved.

    Args:
        name: key of `BACKBONES`, "keras:NAME", such as keras:MobileNetV2, or "saved_model:PATH".
        width: channels of the first stage; 64 in the papers.
        size: side of the image in pixels.
        weights: "none"; "imagenet" where the backbone has them; or, of Keras' applications, the
            path of a file of weights.
        sync_batch_norm: whether the statistics are those of all replicas together. (The moving
            variance is then the biased one; Keras' fused kernel keeps the unbiased.)
        pixels: of a saved one, the scale on which it takes pixels, as `saved.scale` has it.

    Returns:
        Keras model: float [B, size, size, 3] in [0, 1] -> float [B, features].

    Raises:
        UserError: the name is unknown, or the backbone has not this width, size or weights.
    """
    if name.startswith(saved.PREFIX):
        _refuse_another_width(name, width)
        if weights != "none":
            raise UserError(f"--backbone_weights={weights}: {name} has its own; leave it out")
        return saved.build(name.removeprefix(saved.PREFIX), size, pixels)
    if pixels != "0..1":
        raise UserError(f"--backbone_pixels={pixels}: {name} has its own scale; leave it out")
    if name.startswith("keras:"):
        return _application(name.removeprefix("keras:"), width, size, weights)
    if name not in BACKBONES:
        raise UserError(
            f"--backbone={name}: unknown; take one of {', '.join(BACKBONES)}, keras:NAME of "
            "tf.keras.applications, or saved_model:PATH"
        )
    return BACKBONES[name](width, size, weights, sync_batch_norm)


def absolute(name: str) -> str:
    """`--backbone` so that it names the same saved network from anywhere."""
    path = name.removeprefix(saved.PREFIX)
    return saved.PREFIX + str(files.absolute(path)) if path != name else name


def digest(name: str, pixels: str) -> str:
    """Identifies the saved network of `--backbone`, by `saved.digest`; "" of any other."""
    path = name.removeprefix(saved.PREFIX)
    return saved.digest(path, pixels) if path != name else ""


def digest_of(network: tf.keras.Model, name: str, pixels: str) -> str:
    """Identifies any network that `build_backbone` gave: as `digest`, or by name and weights."""
    if found := digest(name, pixels):
        return found
    weights = hashlib.sha256(name.encode())
    for variable in network.weights:
        weights.update(f"{variable.dtype.name} {variable.shape}".encode())
        weights.update(variable.numpy().tobytes())
    return weights.hexdigest()


def freeze(backbone: tf.keras.Model, trained: str) -> None:
    """Leaves some of a backbone's layers as they are; their batch norm then ignores the batch.

    Args:
        backbone: as `build_backbone` gives it.
        trained: what trains: "all", "none", or "last:N", the last N layers with weights.

    Raises:
        UserError: `trained` is none of these, N is more than there are layers, or some of a
            SavedModel should train.
    """
    if trained != "none" and saved.kept_objects(backbone):
        raise UserError(
            f"--train_backbone={trained}: a SavedModel stays as it is; give "
            "--train_backbone=none, or save the network as a .keras file"
        )
    layers_of = [layer for layer in flat_layers(backbone) if layer.weights]
    kind, _, number = trained.partition(":")
    count = {"all": len(layers_of), "none": 0}.get(trained)
    if kind == "last" and number.isdecimal() and int(number):
        count = int(number)
    if count is None or count > len(layers_of):
        raise UserError(
            f"--train_backbone={trained}: give all, none, or last:N, N from 1 to {len(layers_of)}"
        )
    # A file of Keras keeps which of its layers were frozen.
    backbone.trainable = count > 0
    for layer in layers_of[: len(layers_of) - count]:
        layer.trainable = False


def flat_layers(network: tf.keras.Model) -> Iterator[tf.keras.layers.Layer]:
    """Yields the layers of a model, those of models in it in their place."""
    for layer in network.layers:
        yield from flat_layers(layer) if isinstance(layer, tf.keras.Model) else [layer]


def _refuse_another_width(name, width):
    if width != 64:
        raise UserError(f"--backbone_width={width}: {name} has one width; leave it out")


def _application(name, width, size, weights):
    """A network of `tf.keras.applications` up to its pooled features, with its own scale."""
    applications = tf.keras.applications
    found = [
        module
        for module in vars(applications).values()
        if hasattr(module, "preprocess_input") and hasattr(module, name)
    ]
    if not found or not callable(getattr(found[0], name)) or name == "preprocess_input":
        raise UserError(f"--backbone=keras:{name}: tf.keras.applications has no such network")
    _refuse_another_width(f"keras:{name}", width)
    file = None if weights in ("none", "imagenet") else weights
    if file and not pathlib.Path(file).is_file():
        raise UserError(f"--backbone_weights={file}: no such file; bring the weights of {name}")
    try:
        network = getattr(found[0], name)(
            include_top=False,
            pooling="avg",
            input_shape=[size, size, 3],
            weights=None if weights == "none" else weights,
        )
    except Exception as error:
        # Keras raises a bare Exception when its download fails.
        raise UserError(
            f"--backbone=keras:{name} --backbone_weights={weights}: {error}; put the "
            "file that Keras names into ~/.keras/models, give its path, or take another size"
        ) from error
    image = layers.Input([size, size, 3])
    return tf.keras.Model(image, network(found[0].preprocess_input(255.0 * image)), name=name)


def _resnet(name, block, depths, conv_start, for_cifar, width, size, weights, sync_batch_norm):
    """A residual network (He and others, CVPR 2016); bottlenecks stride in their 3x3 convolution.

    For CIFAR it has a 3x3 stem of stride 1, no pooling, and takes the image as it is; otherwise a
    7x7 stem, and ImageNet's mean and deviation are taken out first.
    """
    if weights != "none":
        raise UserError(f"--backbone_weights={weights}: {name} has none; take none, or vgg16")
    norm = functools.partial(batch_norm, sync_batch_norm)
    conv = functools.partial(_conv, conv_start)
    image = layers.Input([size, size, 3])
    if for_cifar:
        x = _normed(conv(width, 3)(image), norm)
    else:
        x = layers.Normalization(mean=saved.IMAGENET_MEAN, variance=saved.IMAGENET_VARIANCE)(image)
        x = _normed(conv(width, 7, stride=2)(x), norm)
        x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for stage, depth in enumerate(depths):
        for place in range(depth):
            stride = 2 if stage and not place else 1
            x = block(x, width * 2**stage, conv, norm, stride)
    return tf.keras.Model(image, layers.GlobalAveragePooling2D()(x), name=name)


def _conv(start, channels, kernel, stride=1):
    initializer = tf.keras.initializers.VarianceScaling(**start)
    padding = "same" if stride == 1 else "valid"
    convolution = layers.Conv2D(
        channels, kernel, stride, padding, use_bias=False, kernel_initializer=initializer
    )
    if stride == 1:
        return convolution
    # PyTorch pads both sides alike; "same" would pad only the far one where the stride is 2.
    return tf.keras.Sequential([layers.ZeroPadding2D(kernel // 2), convolution])


def batch_norm(synchronized: bool) -> layers.Layer:
    """Batch norm with the authors' constants, over all replicas where `synchronized`."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=synchronized)


def _normed(x, norm):
    return layers.ReLU()(norm()(x))


def _shortcut(x, channels, conv, norm, stride):
    if stride == 1 and x.shape[-1] == channels:
        return x
    # Not by the convolution's own stride: oneDNN's gradient of that varies from call to call.
    return norm()(conv(channels, 1)(x[:, ::stride, ::stride]))


def _basic_block(x, channels, conv, norm, stride):
    inner = _normed(conv(channels, 3, stride)(x), norm)
    inner = norm()(conv(channels, 3)(inner))
    return layers.ReLU()(layers.Add()([inner, _shortcut(x, channels, conv, norm, stride)]))


def _bottleneck(x, channels, conv, norm, stride):
    inner = _normed(conv(channels, 1)(x), norm)
    inner = _normed(conv(channels, 3, stride)(inner), norm)
    inner = norm()(conv(4 * channels, 1)(inner))
    return layers.ReLU()(layers.Add()([inner, _shortcut(x, 4 * channels, conv, norm, stride)]))


def _vgg16(width, size, weights, sync_batch_norm):
    """VGG16 up to its second 4096-wide layer (Simonyan and Zisserman, ICLR 2015)."""
    if width != 64:
        raise UserError(f"--backbone_width={width}: vgg16 has one width; take 64, or a resnet")
    if size != 224:
        raise UserError(f"--image_size={size}: vgg16 takes 224; give 224, or take a resnet")
    try:
        network = tf.keras.applications.VGG16(weights=None if weights == "none" else weights)
    except Exception as error:
        # Keras raises a bare Exception when its download fails.
        raise UserError(
            f"--backbone_weights={weights}: Keras could not fetch them ({error}); "
            "put its file into ~/.keras/models, or give none"
        ) from error
    image = layers.Input([size, size, 3])
    # Keras' weights expect blue, green, red with their means taken out.
    prepared = tf.keras.applications.vgg16.preprocess_input(255.0 * image)
    trunk = tf.keras.Model(network.input, network.get_layer("fc2").output)
    return tf.keras.Model(image, trunk(prepared), name="vgg16")


def _row(name, *network):
    return {name: functools.partial(_resnet, name, *network)}


# Name -> function of width, size, weights and sync_batch_norm, as `build_backbone` has them.
BACKBONES: dict[str, Callable[[int, int, str, bool], tf.keras.Model]] = {
    **_row("resnet18_cifar", _basic_block, (2, 2, 2, 2), _PYTORCH, True),
    **_row("resnet18", _basic_block, (2, 2, 2, 2), _BY_FAN_OUT, False),
    **_row("resnet50", _bottleneck, (3, 4, 6, 3), _BY_FAN_OUT, False),
    "vgg16": _vgg16,
}
