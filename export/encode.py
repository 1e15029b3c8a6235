"""From images to embeddings and codes, with an exported SavedModel."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from export.saved_model import read_manifest, versions
from hqc_tf import data
from hqc_tf.config import UserError
from hqc_tf.encode import collect

BATCH = 256


class Encoder(NamedTuple):
    """A loaded SavedModel.

    Attributes:
      path: folder of the version.
      manifest: what `export.saved_model` wrote beside it; `["fingerprint"]` tells encoders apart.
      codebooks: float32 [M, K, D].
      signatures: of the SavedModel.
    """

    path: pathlib.Path
    manifest: dict
    codebooks: np.ndarray
    signatures: Any


def load_encoder(path):
    """Loads a SavedModel of `export.saved_model`: one version, or the newest of a folder of them.

    Raises:
      UserError: there is no encoder.
    """
    path = pathlib.Path(path).resolve()
    found = versions(path)
    if found:
        path = path / str(max(found))
    manifest = read_manifest(path)
    loaded = tf.saved_model.load(str(path))
    codebooks = tf.cast(loaded.codebooks, tf.float32).numpy()
    return Encoder(path, manifest, codebooks, loaded.signatures)


def encode_images(encoder, images):
    """Encodes images through the signatures that a server serves.

    Args:
      encoder: `Encoder`.
      images: `data.Images`.

    Returns:
      `hqc_tf.encode.Encoded`: embeddings float32 [N, M*D] and codes uint8 [N, M].

    Raises:
      UserError: a file is no image; it is named.
    """
    if images.paths is None:
        answers = _encode_pixels(encoder, images)
    else:
        answers = _encode_files(encoder, images.paths)
    pairs = ((answer["embedding"], answer["codes"]) for answer in answers)
    return collect(pairs, len(images), "images")


def _encode_pixels(encoder, images):
    for batch in data.raw_batches(images, BATCH).prefetch(2):
        yield encoder.signatures["serving_default"](images=batch)


def _encode_files(encoder, paths):
    for start in range(0, len(paths), BATCH):
        names = paths[start : start + BATCH]
        contents = [_read(name) for name in names]
        try:
            yield encoder.signatures["encode_bytes"](image_bytes=tf.constant(contents))
        except tf.errors.InvalidArgumentError as error:
            raise _undecodable(names, contents) from error


def _read(name):
    try:
        return pathlib.Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; name an image file") from error


def _undecodable(names, contents):
    """The error that names the first file of a batch that TensorFlow cannot decode."""
    for name, content in zip(names, contents, strict=True):
        try:
            data.decode_image(content)
        except (tf.errors.InvalidArgumentError, ValueError):
            return UserError(f"{name}: no JPEG, PNG, BMP or GIF image; mend or remove it")
    return UserError(f"{names[0]} or one of the {len(names) - 1} after it: cannot be encoded")
