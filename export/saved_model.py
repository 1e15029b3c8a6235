"""Exports the trained encoder as a SavedModel that TensorFlow Serving serves.

`python -m export.saved_model --workdir=runs/cifar10 --output=serving/hqc` writes
serving/hqc/<version>/, with the pre-processing inside and only TensorFlow's own ops.
"""

import dataclasses
import hashlib
import pathlib
from os import PathLike

import numpy as np
import tensorflow as tf
from absl import flags

from export import folders, versions
from export.encoder import FORMAT, FORMAT_VERSION, read_manifest, signature_of
from hqc_tf import _keras2, backbones, commands, embed
from hqc_tf.backbones import saved
from hqc_tf.data import augment, decoding
from hqc_tf.errors import UserError
from hqc_tf.model import HQC
from hqc_tf.workdir import WEIGHTS, load_newest


class ServedHead(tf.Module):
    """What follows the backbone of an `HQC`, as the signature `encode_embedding`.

    It returns `embedding` [B, M*D] float32 and `codes` [B, M] uint8 of features float [B, E]: those
    that it was trained on, or its backbone's. There is none where the embedding takes pixels too.

    Attributes:
        codebooks: [M, K, D] float32, read by `export.encoder.load_encoder`.
    """

    def __init__(self, trained: HQC):
        super().__init__()
        # Variables are saved through the attributes that hold them; Keras layers in their place
        # would save a function each.
        self._kept = [*trained.encoder.variables, *trained.quantizer.variables]
        self.codebooks = trained.quantizer.codebooks
        self.encode_embedding, head = None, trained.build_head()
        if head is None:
            return

        def encode_embedding(features):
            embedding = tf.cast(head(features, training=False), trained.quantizer.dtype)
            return self._encoded(embedding, trained.quantizer.encode(embedding))

        features = tf.TensorSpec([None, head.input_shape[-1]], tf.float32, "features")
        self.encode_embedding = tf.function(encode_embedding, input_signature=[features])

    def _encoded(self, embedding, codes):
        return {"embedding": tf.cast(embedding, tf.float32), "codes": codes}


class ServedEncoder(ServedHead):
    """An `HQC` of images as the signatures of a SavedModel; they return what the head's does.

    A request has at least one image and at most `decoding.most_images`.
    """

    def __init__(self, trained: HQC, network: tf.keras.Model | None = None):
        """`network` is the one whose features `trained` encodes; without, it encodes images."""
        super().__init__(trained)
        self._kept += network.variables if network else []
        self._networks = saved.kept_objects(network or trained.encoder)
        self._sizes = trained.settings.plain_sizes
        # Stored as a named attribute, the function itself would be saved as well.
        self._encode_views = lambda views: trained.encode(
            tf.cast(network(views), tf.float32) if network else views
        )

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def serving_default(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encodes [B, H, W, 3] uint8, any H and W whose ratio is at most `decoding.MAX_RATIO`."""
        sides = tf.shape(images)[1:3]
        rule = f"an image has at most {decoding.MAX_PIXELS} pixels and sides of a ratio of at most "
        checked = tf.debugging.Assert(decoding.fits(sides), [rule + str(decoding.MAX_RATIO), sides])
        with tf.control_dependencies([checked, self._few(images)]):
            views = augment.plain_view(tf.identity(images), *self._sizes)
        return self._encode(views)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def encode_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encodes [B] string, the contents of image files; see `decoding.decode_image`.

        Returns `valid` [B] bool as well; the other outputs are zeros where it is false.
        """
        with tf.control_dependencies([self._few(image_bytes)]):
            views, valid = decoding.decode_views(tf.identity(image_bytes), *self._sizes)
        encoded = self._encode(views).items()
        kept = {name: tf.where(valid[:, None], x, tf.zeros_like(x)) for name, x in encoded}
        return kept | {"valid": valid}

    def _few(self, images):
        """Asserts that the views of a request's images fit into memory."""
        most, count = decoding.most_images(self._sizes[1]), tf.shape(images)[0]
        rule = f"a request has at most {most} images; divide it"
        return tf.debugging.Assert(count <= most, [rule, count])

    def _encode(self, views):
        return self._encoded(*self._encode_views(views))


def export_encoder(
    workdir: str | PathLike,
    output: str | PathLike,
    version: int | None = None,
    weights: str = "best",
    backbone: str = "",
    max_pixels: int | None = None,
) -> pathlib.Path:
    """Writes the encoder of `workdir` atomically as a version under `output`; returns its path.

    Args:
        workdir: folder of a training run.
        output: folder of versions, TensorFlow Serving's `model_base_path`.
        version: number of the version; None: the next.
        weights: "best", chosen without labels, or "last".
        backbone: with a run on a folder of features, the network that made them, as `--backbone`
            has it: images are served then too.
        max_pixels: of the files that commands read for this encoder, if not the run's.

    Raises:
        UserError: the version exists, there is no trained model, or `backbone` is another network
            than that of the features.
    """
    version = versions.free_version(output, version)
    trained, step = load_newest(workdir, weights)
    settings, network = trained.settings, None
    if max_pixels is not None:
        settings = dataclasses.replace(settings, max_pixels=max_pixels)
    if backbone:
        network = _network_of_features(settings, backbone)
        settings = dataclasses.replace(settings, feature_width=0, train_backbone="none")
    width = settings.feature_width
    served = ServedHead(trained) if width else ServedEncoder(trained, network)
    identity = fingerprint(trained)
    signatures = {"encode_embedding": served.encode_embedding} if served.encode_embedding else {}
    if width:
        signatures["serving_default"] = signatures[signature_of(identity)] = served.encode_embedding
    else:
        signatures["serving_default"] = served.serving_default
        signatures["encode_bytes"] = signatures[signature_of(identity)] = served.encode_bytes
    contents = {
        "format_version": FORMAT_VERSION,
        "fingerprint": identity,
        "weights": weights,
        "step": step,
        "bits": trained.settings.bits,
        "settings": dataclasses.asdict(settings),
        "decoding": decoding.VERSION,
        "versions": _keras2.versions(),
    }
    with versions.new_version(output, version) as folder:
        tf.saved_model.save(served, str(folder), signatures=signatures)
        if width:
            rows = {"features": np.ones([1, width], np.float32)}
            versions.write_requests(folder, [("serving_default", rows)])
        else:
            versions.write_warmup(folder, "serving_default", "encode_bytes", {})
        folders.write_manifest(folder, FORMAT, contents)
    return pathlib.Path(output, str(version))


def _network_of_features(settings, backbone):
    if not (settings.feature_width and settings.backbone_digest):
        raise UserError(
            f"--backbone={backbone}: is for runs on a folder of hqc_tf.embed; leave it out"
        )
    network = embed.build_network(dataclasses.replace(settings, backbone=backbone))
    found = backbones.digest_of(network, backbone, settings.backbone_pixels)
    if found != settings.backbone_digest:
        raise UserError(
            f"--backbone={backbone}: is network {found[:16]}, but the features are those of "
            f"{settings.backbone_digest[:16]}; name that"
        )
    return network


def fingerprint(trained: HQC) -> str:
    """Identifies an encoder: SHA-256, in hexadecimal, of its weights and how it reads images."""
    settings = trained.settings
    sizes = f"{settings.image_size} {settings.resize_size}"
    # Features alone are not decoded.
    is_decoded = settings.backbone_digest or not settings.feature_width
    read = f"{sizes} decoding {decoding.VERSION}" if is_decoded else sizes
    digest = hashlib.sha256(read.encode())
    digest.update(settings.backbone_digest.encode())
    for variable in [*trained.encoder.weights, *trained.quantizer.weights]:
        digest.update(f"{variable.dtype.name} {variable.shape}".encode())
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def main(_: list[str]) -> None:
    values = flags.FLAGS
    own = values.version, values.weights, values.backbone, values.max_pixels
    version = export_encoder(values.workdir, values.output, *own)
    found = read_manifest(version)
    print(f"{version}: {found['bits']} bits, fingerprint {found['fingerprint'][:16]}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of a training run", required=True)
    flags.DEFINE_string("output", None, "folder of versions", required=True)
    flags.DEFINE_integer("version", None, "number of the version; default: the next", lower_bound=1)
    flags.DEFINE_enum("weights", "best", [*WEIGHTS], "which weights of the run")
    flags.DEFINE_string(
        "backbone",
        "",
        "with a run on features of hqc_tf.embed: the network that made them, as there, to serve "
        "images too",
    )
    text = "pixels of the largest file that commands read for this encoder, if not the run's"
    flags.DEFINE_integer("max_pixels", None, text)
    commands.run(main)
