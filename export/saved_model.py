"""The trained encoder as a SavedModel that TensorFlow Serving serves.

`python -m export.saved_model --workdir=runs/cifar10 --output=serving/hqc` writes
serving/hqc/<version>/, with the pre-processing inside and nothing but TensorFlow's own ops.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import shutil

import tensorflow as tf
from absl import flags

from hqc_tf import augment, config, data, model
from hqc_tf.config import UserError

MANIFEST = "manifest.json"
FORMAT = "hqc-encoder"


class ServedEncoder(tf.Module):
    """An `HQC` as the signatures of a SavedModel.

    Both signatures give `embedding` float32 [B, M*D] and `codes` uint8 [B, M].

    Attributes:
      codebooks: float32 [M, K, D], read back by `export.encode.load_encoder`.
    """

    def __init__(self, trained):
        super().__init__()
        self._sizes = trained.settings.plain_sizes
        self._encode_views = trained.encode
        # Variables are saved by the attributes that hold them.
        self.encoder, self.quantizer = trained.encoder, trained.quantizer
        self.codebooks = trained.quantizer.codebooks

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def serving_default(self, images):
        """uint8 [B, H, W, 3], any H and W."""
        return self._encode(augment.plain_view(images, *self._sizes))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def encode_bytes(self, image_bytes):
        """string [B], the contents of JPEG, PNG, BMP or GIF files."""
        size = self._sizes[1]
        views = tf.map_fn(
            lambda contents: augment.plain_view(data.decode_image(contents), *self._sizes),
            image_bytes,
            fn_output_signature=tf.TensorSpec([size, size, 3], tf.float32),
        )
        return self._encode(views)

    def _encode(self, views):
        embedding, codes = self._encode_views(views)
        return {"embedding": tf.cast(embedding, tf.float32), "codes": codes}


def export_encoder(workdir, output):
    """Writes the encoder of `workdir` as the next version under `output`, whole or not at all.

    Args:
      workdir: folder that a training left.
      output: folder of versions, as TensorFlow Serving's `model_base_path` wants it.

    Returns:
      Path of the version written.

    Raises:
      UserError: there is no trained model.
    """
    trained = model.load(workdir)
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    version = max(versions(output), default=0) + 1
    # Serving looks only at folders whose name is a number.
    aside = output / f".{version}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    served = ServedEncoder(trained)
    signatures = {
        "serving_default": served.serving_default,
        "encode_bytes": served.encode_bytes,
    }
    tf.saved_model.save(served, str(aside), signatures=signatures)
    (aside / MANIFEST).write_text(json.dumps(_manifest(trained, workdir), indent=2) + "\n")
    return aside.rename(output / str(version))


def versions(output):
    """The versions under `output`, as ints."""
    return [int(path.name) for path in pathlib.Path(output).glob("*") if path.name.isdigit()]


def fingerprint(trained):
    """What tells encoders apart: SHA-256, in hex, over weights and image sizes."""
    digest = hashlib.sha256()
    settings = trained.settings
    digest.update(f"{settings.image_size} {settings.resize_size}".encode())
    for variable in [*trained.encoder.weights, *trained.quantizer.weights]:
        digest.update(f"{variable.dtype.name} {variable.shape}".encode())
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def _manifest(trained, workdir):
    settings = trained.settings
    return {
        "format": FORMAT,
        "fingerprint": fingerprint(trained),
        "step": model.saved_step(workdir),
        "bits": settings.bits,
        "settings": dataclasses.asdict(settings),
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")},
    }


def read_manifest(version):
    """The manifest of the SavedModel in folder `version`; UserError where there is none."""
    try:
        manifest = json.loads((version / MANIFEST).read_text())
        if manifest["format"] == FORMAT:
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(
        f"--saved_model={version}: no encoder with a {MANIFEST} there; "
        "write it with python -m export.saved_model"
    )


def main(_):
    version = export_encoder(flags.FLAGS.workdir, flags.FLAGS.output)
    manifest = read_manifest(version)
    print(f"{version}: {manifest['bits']} bits, fingerprint {manifest['fingerprint'][:16]}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder that a training left", required=True)
    flags.DEFINE_string("output", None, "folder of versions; the next is written", required=True)
    config.run(main)
