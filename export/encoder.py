"""A SavedModel of `export.saved_model`, loaded, and what it makes of images."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from export.saved_model import read_manifest
from export.versions import newest
from hqc_tf.data.batches import raw_batches
from hqc_tf.data.decoding import MAX_PIXELS, MAX_RATIO
from hqc_tf.errors import UserError, naming_damage
from hqc_tf.retrieval import collect

# Images that are encoded together.
BATCH = 256


class Encoder(NamedTuple):
    """A loaded SavedModel.

    Attributes:
      path: folder of the version.
      manifest: what `export.saved_model` wrote beside it; `["fingerprint"]` tells encoders apart.
      codebooks: float32 [M, K, D].
      module: what `tf.saved_model.load` gave.
    """

    path: pathlib.Path
    manifest: dict
    codebooks: np.ndarray
    module: Any

    @property
    def signatures(self):
        """Name -> function, as a server calls them."""
        return self.module.signatures

    @property
    def identity(self):
        """What folders of codes and indexes keep of it: dict of "fingerprint" and "path"."""
        return {"fingerprint": self.manifest["fingerprint"], "path": str(self.path)}


def load_encoder(path):
    """Loads a SavedModel of `export.saved_model`: one version, or the newest of a folder of them.

    Raises:
      UserError: there is no encoder, or a damaged one.
    """
    path = newest(path)
    manifest = read_manifest(path)
    with naming_damage(path, "bring back a copy, or write it with export.saved_model"):
        loaded = tf.saved_model.load(str(path))
        codebooks = tf.cast(loaded.codebooks, tf.float32).numpy()
    return Encoder(path, manifest, codebooks, loaded)


def encode_images(encoder, images):
    """Encodes images through the signatures that a server serves.

    Args:
      encoder: `Encoder`.
      images: `data.Images`.

    Returns:
      `hqc_tf.retrieval.Encoded`: embeddings float32 [N, M*D] and codes uint8 [N, M].

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
    for batch in raw_batches(images, BATCH).prefetch(2):
        yield encoder.signatures["serving_default"](images=batch)


def _encode_files(encoder, paths):
    for start in range(0, len(paths), BATCH):
        names = paths[start : start + BATCH]
        contents = tf.constant([*map(read_file, names)])
        answer = encoder.signatures["encode_bytes"](image_bytes=contents)
        check_valid(names, answer["valid"].numpy())
        yield answer


def read_file(name):
    """The bytes of a file; UserError where it cannot be read."""
    try:
        return pathlib.Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; name an image file") from error


def check_valid(names, valid):
    """Raises UserError with the first of `names` whose row of bool [B] `valid` is false."""
    if not valid.all():
        raise UserError(
            f"{names[valid.argmin()]}: no JPEG, PNG, BMP or GIF image of at most "
            f"{MAX_PIXELS // 10**6} million pixels and sides of at most {MAX_RATIO}:1; mend or "
            "remove it"
        )
