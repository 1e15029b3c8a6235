"""The trained encoder as a SavedModel that TensorFlow Serving serves.

`python -m export.saved_model --workdir=runs/cifar10 --output=serving/hqc` writes
serving/hqc/<version>/, with the pre-processing inside and nothing but TensorFlow's own ops.
"""

import dataclasses
import hashlib
import pathlib

import tensorflow as tf
from absl import flags

from export import folders, versions, warmup
from hqc_tf import _keras2, commands
from hqc_tf.data import augment, decoding
from hqc_tf.errors import UserError
from hqc_tf.workdir import WEIGHTS, load, saved_step

FORMAT = "hqc-encoder"
# 2: encode_bytes tells which images are valid, and stands under the fingerprint as well.
FORMAT_VERSION = 2


class ServedEncoder(tf.Module):
    """An `HQC` as the signatures of a SavedModel.

    Both signatures give `embedding` float32 [B, M*D] and `codes` uint8 [B, M], B at least 1.

    Attributes:
      codebooks: float32 [M, K, D], read back by `export.encode.load_encoder`.
    """

    def __init__(self, trained):
        super().__init__()
        self._sizes = trained.settings.plain_sizes
        # Under a name of its own the function would be saved as well.
        self._encode_views = lambda views: trained.encode(views)
        # Variables are saved by the attributes that hold them; Keras' layers in their place would
        # save a function each.
        self._kept = [*trained.encoder.variables, *trained.quantizer.variables]
        self.codebooks = trained.quantizer.codebooks

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def serving_default(self, images):
        """uint8 [B, H, W, 3], any H and W whose ratio is at most `decoding.MAX_RATIO`."""
        sides = tf.shape(images)[1:3]
        rule = f"an image has at most {decoding.MAX_PIXELS} pixels and sides of a ratio of at most "
        checked = tf.debugging.Assert(decoding.fits(sides), [rule + str(decoding.MAX_RATIO), sides])
        with tf.control_dependencies([checked]):
            views = augment.plain_view(tf.identity(images), *self._sizes)
        return self._encode(views)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def encode_bytes(self, image_bytes):
        """string [B], the contents of files; see `decoding.decode_image`.

        Gives `valid` bool [B] as well; the other rows of what is no image are zeros.
        """
        views, valid = decoding.decode_views(image_bytes, *self._sizes)
        encoded = self._encode(views).items()
        kept = {name: tf.where(valid[:, None], x, tf.zeros_like(x)) for name, x in encoded}
        return kept | {"valid": valid}

    def _encode(self, views):
        embedding, codes = self._encode_views(views)
        return {"embedding": tf.cast(embedding, tf.float32), "codes": codes}


def export_encoder(workdir, output, version=None, weights="best"):
    """Writes the encoder of `workdir` as a version under `output`, whole or not at all.

    Args:
      workdir: folder that a training left.
      output: folder of versions, as TensorFlow Serving's `model_base_path` wants it.
      version: number of the version; None: the next.
      weights: "best", chosen without labels, or "last".

    Returns:
      Path of the version written.

    Raises:
      UserError: the version stands already, or there is no trained model.
    """
    version = versions.free_version(output, version)
    trained = load(workdir, weights)
    served = ServedEncoder(trained)
    identity = fingerprint(trained)
    signatures = {
        "serving_default": served.serving_default,
        "encode_bytes": served.encode_bytes,
        signature_of(identity): served.encode_bytes,
    }
    contents = {
        "format_version": FORMAT_VERSION,
        "fingerprint": identity,
        "weights": weights,
        "step": saved_step(workdir, weights),
        "bits": trained.settings.bits,
        "settings": dataclasses.asdict(trained.settings),
        "versions": _keras2.versions(),
    }
    with versions.new_version(output, version) as folder:
        tf.saved_model.save(served, str(folder), signatures=signatures)
        warmup.write_requests(folder, _warmup_requests())
        folders.write_manifest(folder, FORMAT, contents)
    return pathlib.Path(output, str(version))


def fingerprint(trained):
    """What tells encoders apart: SHA-256, in hex, over weights and image sizes."""
    digest = hashlib.sha256()
    settings = trained.settings
    digest.update(f"{settings.image_size} {settings.resize_size}".encode())
    for variable in [*trained.encoder.weights, *trained.quantizer.weights]:
        digest.update(f"{variable.dtype.name} {variable.shape}".encode())
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def signature_of(identity):
    """`encode_bytes` under a name of this encoder's own.

    A server changes versions at any moment. Who asks by this name gets answers of the encoder with
    this fingerprint or none.
    """
    return f"encode_bytes_{identity[:16]}"


def read_manifest(version):
    """The manifest of the encoder in folder `version`.

    Raises:
      UserError: there is none, or one of another format.
    """
    found = folders.read_manifest(version, FORMAT)
    if found is None:
        raise UserError(
            f"--saved_model={version}: no encoder with a {folders.MANIFEST} there; "
            "write it with python -m export.saved_model"
        )
    if found.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"--saved_model={version}: has format version {found.get('format_version', 1)}, but "
            f"this program reads {FORMAT_VERSION}; write it anew with python -m export.saved_model"
        )
    if not (isinstance(found.get("fingerprint"), str) and isinstance(found.get("bits"), int)):
        raise UserError(
            f"--saved_model={version}: its {folders.MANIFEST} is damaged; bring back a copy or "
            "write it anew with python -m export.saved_model"
        )
    return found


def _warmup_requests():
    pixels = [("serving_default", {"images": batch}) for batch in warmup.pixel_batches()]
    files = [("encode_bytes", {"image_bytes": batch}) for batch in warmup.file_batches()]
    return pixels + files


def main(_):
    values = flags.FLAGS
    version = export_encoder(values.workdir, values.output, values.version, values.weights)
    found = read_manifest(version)
    print(f"{version}: {found['bits']} bits, fingerprint {found['fingerprint'][:16]}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder that a training left", required=True)
    flags.DEFINE_string("output", None, "folder of versions", required=True)
    flags.DEFINE_integer("version", None, "number of the version; the next, if none", lower_bound=1)
    flags.DEFINE_enum("weights", "best", [*WEIGHTS], "which weights of the run")
    commands.run(main)
