"""An exported encoder: a SavedModel of `export.saved_model`, loaded, and the codes it gives.

Needs neither the training code nor TensorFlow Serving.
"""

import pathlib
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from export import folders
from export.versions import newest
from hqc_tf import files
from hqc_tf.data import decoding, features
from hqc_tf.data.batches import raw_batches
from hqc_tf.data.decoding import MAX_PIXELS, MAX_RATIO, NAMES
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError, naming_damage
from hqc_tf.retrieval import Encoded, collect

FORMAT = "hqc-encoder"
# 2: encode_bytes tells which images are valid, and has a second name with the fingerprint.
FORMAT_VERSION = 2
# Images encoded together.
BATCH = 256
# Features encoded together.
FEATURE_BATCH = 8192


class Encoder(NamedTuple):
    """A loaded SavedModel."""

    path: pathlib.Path  # folder of the version
    manifest: dict[str, Any]  # by `export.saved_model`; "fingerprint" identifies the encoder
    codebooks: np.ndarray  # [M, K, D] float32
    module: Any  # as `tf.saved_model.load` gives it

    @property
    def signatures(self) -> Mapping[str, Any]:
        """Name -> function, as a server calls them."""
        return self.module.signatures

    @property
    def identity(self) -> dict[str, Any]:
        """What folders of codes and indexes keep: "fingerprint", "path", and a "feature_width"."""
        own = {"fingerprint": self.manifest["fingerprint"], "path": str(self.path)}
        return own | ({"feature_width": self.feature_width} if self.feature_width else {})

    @property
    def feature_width(self) -> int:
        """E, where it encodes features of another network; 0 where it encodes images."""
        return self.manifest.get("settings", {}).get("feature_width", 0)


def load_encoder(path: str | PathLike) -> Encoder:
    """Loads a SavedModel of `export.saved_model`: one version, or the newest of a folder of them.

    UserError where there is no encoder, or a damaged one.
    """
    path = newest(path)
    manifest = read_manifest(path)
    with naming_damage(path, "restore a copy, or write it with export.saved_model"):
        loaded = tf.saved_model.load(str(path))
        codebooks = tf.cast(loaded.codebooks, tf.float32).numpy()
    decoding.raise_max_pixels(manifest.get("settings", {}).get("max_pixels", MAX_PIXELS))
    return Encoder(path, manifest, codebooks, loaded)


def load_encoder_of(index: Mapping[str, Any], path: str | PathLike = "") -> Encoder:
    """The encoder that an index's manifest names; `path`, `--saved_model`, is where it is now.

    UserError as of `load_encoder`, and where it has moved and no path is given.
    """
    own = index["encoder"]["path"]
    if not (path or pathlib.Path(own).is_dir()):
        raise UserError(
            f"{own}: the index's encoder is no longer there; give --saved_model=DIR, where it is"
        )
    return load_encoder(path or own)


def read_manifest(version: str | PathLike) -> dict[str, Any]:
    """The manifest of the encoder in folder `version`.

    UserError where it is missing, damaged or of another format version.
    """
    found = folders.read_manifest(version, FORMAT)
    if found is None:
        wrong = f"no encoder with a {folders.MANIFEST} there; write it"
    elif found.get("format_version") != FORMAT_VERSION:
        own = found.get("format_version", 1)
        wrong = (
            f"has format version {own}, but this program reads {FORMAT_VERSION}; export it again"
        )
    elif not (isinstance(found.get("fingerprint"), str) and isinstance(found.get("bits"), int)):
        wrong = f"its {folders.MANIFEST} is damaged; restore a copy or export it again"
    else:
        return found
    raise UserError(f"--saved_model={version}: {wrong} with python -m export.saved_model")


def signature_of(fingerprint: str) -> str:
    """Name of the `encode_bytes` signature that only the encoder with this fingerprint has.

    A server may change versions at any moment; by this name it answers with that encoder or fails.
    """
    return f"encode_bytes_{fingerprint[:16]}"


def encode_images(encoder: Encoder, images: Images) -> Encoded:
    """Encodes images through the signatures that a server serves.

    Returns:
        embeddings: [N, M*D] float32.
        codes: [N, M] uint8.

    Raises:
        UserError: a file is not an image; the message names it.
    """
    if images.features is not None:
        _check_network(encoder, images)
        encode = _encode_features
    elif encoder.feature_width:
        width = encoder.feature_width
        raise UserError(f"{encoder.path}: encodes features of {width} numbers; give features:FILE")
    else:
        encode = _encode_files if images.pixels is None else _encode_pixels
    pairs = ((answer["embedding"], answer["codes"]) for answer in encode(encoder, images))
    return collect(pairs, len(images), "images")


def _check_network(encoder, images):
    settings = encoder.manifest.get("settings", {})
    own = settings.get("backbone_digest", "")
    is_frozen = settings.get("feature_width") or settings.get("train_backbone") == "none"
    if is_frozen and own and images.network not in ("", own):
        raise UserError(
            f"features of network {images.network[:16]}, but {encoder.path} takes those of "
            f"{own[:16]}; embed the images with the backbone that it was trained on"
        )


def read_file(name: str | PathLike) -> bytes:
    """The contents of a file as `decoding.readable` makes them; UserError where it cannot."""
    try:
        contents = files.read_regular(name)
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; name an image file") from error
    return _readable(name, contents)


def _readable(name, contents):
    try:
        return decoding.readable(contents)
    except ValueError as error:
        raise UserError(f"{name}: {error}; fix or remove it") from error


def check_valid(names: Sequence[str], valid: np.ndarray) -> None:
    """Raises UserError with the first of B `names` whose element of `valid`, [B] bool, is false."""
    if not valid.all():
        raise UserError(
            f"{names[valid.argmin()]}: not a {NAMES} image of at most {MAX_PIXELS // 10**6} "
            f"million pixels and sides of at most {MAX_RATIO}:1; fix or remove it"
        )


def _encode_pixels(encoder, images):
    for batch in raw_batches(images, BATCH).prefetch(2):
        yield encoder.signatures["serving_default"](images=batch)


def encode_features(encoder: Encoder, rows: np.ndarray) -> dict[str, tf.Tensor]:
    """`embedding` and `codes` of features, float [B, E]; UserError where E is another."""
    encode = encoder.signatures.get("encode_embedding")
    if encode is None:
        raise UserError(
            f"{encoder.path}: takes no features, since its embeddings need the pixels "
            "(--input_share, --mirror_mean); give images"
        )
    width = encode.structured_input_signature[1]["features"].shape[1]
    if rows.shape[1] != width:
        raise UserError(
            f"features of {rows.shape[1]} numbers, but {encoder.path} takes {width}; give those of "
            "the network that it was trained on"
        )
    return encode(features=tf.constant(rows, tf.float32))


def _encode_features(encoder, images):
    for rows in features.batches(images, FEATURE_BATCH):
        yield encode_features(encoder, rows)


def _encode_files(encoder, images):
    names = images.paths or images.ids
    for start in range(0, len(names), BATCH):
        rows = slice(start, start + BATCH)
        if images.paths:
            contents = [*map(read_file, names[rows])]
        else:
            contents = [*map(_readable, names[rows], images.contents[rows])]
        answer = encoder.signatures["encode_bytes"](image_bytes=tf.constant(contents))
        check_valid(names[rows], answer["valid"].numpy())
        yield answer
