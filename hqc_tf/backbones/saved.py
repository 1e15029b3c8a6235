"""A network that somebody saved, as a backbone: a SavedModel, or a .keras or .h5 file of Keras 2.

It takes float images [B, H, W, 3] and returns a float vector of each, [B, E]. A file of Keras can
be trained on; a SavedModel stays as it is, since what its layers are is not saved with it.
"""

import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import h5py
import numpy as np
import tensorflow as tf

from hqc_tf.errors import UserError, naming_damage

layers = tf.keras.layers

PREFIX = "saved_model:"
KERAS_SUFFIXES = (".keras", ".h5")
IMAGENET_MEAN = 0.485, 0.456, 0.406
IMAGENET_VARIANCE = 0.229**2, 0.224**2, 0.225**2
_RULE = "one signature from float images [B, H, W, 3] to one float [B, E]"
_CHUNK_BYTES = 2**24
# EfficientNet-Lite0 gives photos a mean cosine of 0.47, on wrong scales 0.997 and more; a
# MobileNetV2 with random weights 0.96.
_ALIKE_COSINE = 0.995


class SavedNetwork(layers.Layer):
    """A SavedModel as a layer without weights: float [B, size, size, 3] -> float [B, E].

    Its variables are no part of a checkpoint, which the file that they came from makes up for.

    Args:
        function: of images to vectors.
        width: E.
        kept: what `tf.saved_model.load` gave.
    """

    def __init__(self, function: Callable, width: int, kept: Any, **kwargs):
        super().__init__(trainable=False, dtype="float32", autocast=False, **kwargs)
        # Functions, so that Keras does not track what they hold.
        self._apply = lambda images: function(images)
        self.kept = lambda: kept
        self._width = width

    def call(self, images: tf.Tensor) -> tf.Tensor:
        found = tf.cast(self._apply(images), tf.float32)
        return tf.ensure_shape(tf.stop_gradient(found), [None, self._width])


class _Input(NamedTuple):
    """What a network takes: height and width in pixels, None where any, and its dtype."""

    sides: tuple[int | None, int | None]
    dtype: tf.DType


def build(path: str, size: int, pixels: str) -> tf.keras.Model:
    """The network at `path`, from images of `size` pixels.

    Args:
        path: folder of a SavedModel, or file of Keras.
        size: side of the image in pixels.
        pixels: scale on which it takes them, as `scale` has it.

    Returns:
        Keras model: float [B, size, size, 3] in [0, 1] -> float [B, E].

    Raises:
        UserError: the path is missing or damaged, or the network takes no images of this size or
            returns no vectors.
    """
    found = pathlib.Path(path)
    fix = "restore a copy, or save it again"
    if not (found.is_dir() or (found.is_file() and found.suffix in KERAS_SUFFIXES)):
        kinds = " or ".join(KERAS_SUFFIXES)
        raise UserError(
            f"--backbone={PREFIX}{path}: no folder of a SavedModel, or {kinds} file; name one"
        )
    with naming_damage(f"--backbone={PREFIX}{path}", fix):
        load = _load_saved_model if found.is_dir() else _load_keras
        taken, network = load(path, size)
    for side in taken.sides:
        if side not in (None, size):
            sides = "x".join(map(str, taken.sides))
            fix = f"give --image_size={side}"
            raise UserError(f"--image_size={size}: {PREFIX}{path} takes {sides} pixels; {fix}")
    image = layers.Input([size, size, 3])
    scaled = scale(pixels)(image)
    with naming_damage(f"--backbone={PREFIX}{path} --image_size={size}", "take another size"):
        return tf.keras.Model(image, network(tf.cast(scaled, taken.dtype)), name="saved_model")


def scale(pixels: str) -> layers.Layer:
    """A layer from images in [0, 1] to the scale of `--backbone_pixels`, float32.

    "0..1", "-1..1" and "0..255" are what the names say; "imagenet" takes out the mean and deviation
    of each color.
    """
    if pixels == "imagenet":
        return layers.Normalization(mean=IMAGENET_MEAN, variance=IMAGENET_VARIANCE, dtype="float32")
    factor, offset = {"0..1": (1.0, 0.0), "-1..1": (2.0, -1.0), "0..255": (255.0, 0.0)}[pixels]
    return layers.Rescaling(factor, offset, dtype="float32")


def digest(path: str, pixels: str) -> str:
    """SHA-256, in hexadecimal, of the files at `path` and of the scale of the pixels.

    UserError where they cannot be read.
    """
    found, top = hashlib.sha256(pixels.encode()), pathlib.Path(path)
    with naming_damage(f"--backbone={PREFIX}{path}", "name a SavedModel, or a file of Keras"):
        inside = sorted(one for one in top.rglob("*") if one.is_file()) if top.is_dir() else [top]
        for file in inside:
            name = file.relative_to(top).as_posix() if file != top else ""
            found.update(f"{name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as opened:
                while chunk := opened.read(_CHUNK_BYTES):
                    found.update(chunk)
    return found.hexdigest()


def kept_objects(network: tf.keras.Model) -> list[Any]:
    """What an export has to keep of the SavedModels in a network, beside its variables."""
    return [layer.kept() for layer in network.layers if isinstance(layer, SavedNetwork)]


def check_vectors(name: str, vectors: np.ndarray) -> str:
    """Checks what a network gives for different images, float [n, E].

    Args:
        name: of the network, as a flag gives it.
        vectors: of the images.

    Returns:
        A warning where they are almost the same, as on a wrong scale of the pixels; else "".

    Raises:
        UserError: a number is not finite, or a vector has only zeros.
    """
    lengths = np.linalg.norm(np.float64(vectors), axis=1)
    fix = "see --backbone_pixels and --image_size"
    if not np.isfinite(lengths).all() or not lengths.all():
        kind = "only zeros" if np.isfinite(lengths).all() else "numbers that are not finite"
        raise UserError(f"--backbone={name}: gives {kind} for an image of the data; {fix}")
    unit = vectors / lengths[:, None]
    count = len(unit)
    if count < 2:
        return ""
    cosine = (np.square(unit.sum(axis=0)).sum() - count) / (count * (count - 1))
    if cosine < _ALIKE_COSINE:
        return ""
    return (
        f"warning: --backbone={name}: gives almost the same vector for {count} different images "
        f"(mean cosine {cosine:.4f}); {fix}"
    )


def _load_saved_model(path, size):
    loaded = tf.saved_model.load(path)
    function, taken = _usable(path, loaded, size)
    sides = [side or size for side in taken.sides]
    if sides == [size, size]:
        probe = function(tf.zeros([1, size, size, 3], taken.dtype))
        if probe.shape.rank != 2 or not probe.dtype.is_floating:
            raise UserError(
                f"--backbone={PREFIX}{path}: gives {probe.dtype.name} {probe.shape} for an image; "
                f"give {_RULE}"
            )
        return taken, SavedNetwork(function, probe.shape[1], loaded, name="saved_network")
    return taken, None


def _usable(path, loaded, size):
    """The function of a loaded SavedModel that takes images, and what it takes."""
    signatures = dict(getattr(loaded, "signatures", {}))
    names = sorted(signatures, key=lambda name: name != "serving_default")
    for name in names:
        if taken := _taken(signatures[name]):
            return _by_name(signatures[name]), taken
    if not names and callable(loaded):
        return loaded, _Input((None, None), tf.float32)
    found = "; ".join(_describe(name, signatures[name]) for name in names) or "none"
    raise UserError(f"--backbone={PREFIX}{path}: has {found}; save it with {_RULE}")


def _taken(signature):
    """The `_Input` of a signature from images to vectors; None of another."""
    inputs = [*signature.structured_input_signature[1].values()]
    outputs = [*signature.structured_outputs.values()]
    if len(inputs) != 1 or len(outputs) != 1:
        return None
    (given,), (result,) = inputs, outputs
    shape = given.shape.with_rank(4).as_list() if given.shape.rank in (None, 4) else None
    if shape is None or shape[3] not in (None, 3) or shape[0] is not None:
        return None
    if not (given.dtype.is_floating and result.dtype.is_floating):
        return None
    return _Input((shape[1], shape[2]), given.dtype) if result.shape.rank in (None, 2) else None


def _by_name(signature):
    """A function of one tensor that calls a signature, whose input has a name."""
    (name,) = signature.structured_input_signature[1]
    return lambda images: next(iter(signature(**{name: images}).values()))


def _describe(name, signature):
    def listed(specs):
        # By name: TensorFlow's versions have orders of their own.
        return ", ".join(f"{one.dtype.name} {one.shape}" for _, one in sorted(specs.items()))

    given, result = signature.structured_input_signature[1], signature.structured_outputs
    return f"{name} from {listed(given)} to {listed(result)}"


def _refuse_another_keras(path):
    """UserError for a file of Keras 3, whose networks Keras 2 does not know."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            version = json.loads(file.read("metadata.json"))["keras_version"]
    else:
        with h5py.File(path) as file:
            version = file.attrs.get("keras_version", "")
    if str(version).startswith("3"):
        fix = "export it there as a SavedModel, model.export(FOLDER), and name that folder"
        raise UserError(f"--backbone={PREFIX}{path}: of Keras {version}, not of Keras 2; {fix}")


def _load_keras(path, size):
    _refuse_another_keras(path)
    network = tf.keras.models.load_model(path, compile=False)
    inputs, outputs = (getattr(network, name, None) for name in ("inputs", "outputs"))
    fits = inputs and outputs and len(inputs) == len(outputs) == 1
    if not (fits and inputs[0].shape.rank == 4 and outputs[0].shape.rank == 2):
        shapes = [[*map(str, (one.shape for one in some or ()))] for some in (inputs, outputs)]
        raise UserError(
            f"--backbone={PREFIX}{path}: takes {shapes[0]} and gives {shapes[1]}; save a "
            "functional network from one [B, H, W, 3] to one [B, E]"
        )
    # Its own name may be that of a layer of ours.
    named = tf.keras.Model(inputs[0], outputs[0], name="saved_network")
    return _Input(tuple(inputs[0].shape[1:3]), tf.as_dtype(inputs[0].dtype)), named
