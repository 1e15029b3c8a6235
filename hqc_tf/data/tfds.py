"""Data sets that TFDS has prepared, read in batches."""

import functools

import numpy as np
import tensorflow as tf

from hqc_tf.data import decoding
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError

_READ_BATCH = 250
_FEATURES = {"image": tf.string, "label": tf.int64}


def open_tfds(name, split, data_dir=""):
    """The builder of a prepared data set of TFDS, and the pieces of its files that `split` is.

    Returns:
      (builder, list of TFDS's FileInstruction); a split has its images in the order of the pieces.

    Raises:
      UserError: TFDS knows none of this name, it is not prepared, or has no such split.
    """
    # TFDS takes seconds to import, and a folder of files does not need it.
    import tensorflow_datasets as tfds

    where = data_dir or "TFDS's own place"
    mend = (
        f"`python -m hqc_tf.prepare --dataset={name} --data_dir=DIR` makes it, or --data_dir "
        "names where it is"
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(f"dataset {name}: TFDS knows none of this name; take another") from error
    if not builder.is_prepared():
        raise UserError(f"dataset {name}: not prepared in {where}; {mend}")
    try:
        return builder, builder.info.splits[split].file_instructions
    except ValueError as error:
        raise UserError(f"split {split} of {name}: {error}; take one that it has") from error


@functools.lru_cache(maxsize=2)
def read_tfds(name, split, data_dir):
    builder, pieces = open_tfds(name, split, data_dir)
    read = [_read_records(piece) for piece in pieces]
    pixels, labels = (np.concatenate(parts) for parts in zip(*read, strict=True))
    ids = [f"{name}/{split}/{row:05d}" for row in range(len(pixels))]
    return Images.of_pixels(pixels, ids, labels, builder.info.features["label"].names)


def _read_records(piece):
    """Images of one size, uint8 [n, H, W, 3], and their labels, from a TFRecord file of TFDS.

    TFDS's own reader takes the examples apart one by one; in batches it is six times faster.
    """
    features = {name: tf.io.FixedLenFeature([], kind) for name, kind in _FEATURES.items()}
    uniform = tf.TensorSpec([None, None, 3], tf.uint8)

    def parse(records):
        examples = tf.io.parse_example(records, features)
        images = tf.map_fn(decoding.decode_known, examples["image"], fn_output_signature=uniform)
        return images, examples["label"]

    records = tf.data.TFRecordDataset(piece.filename).skip(piece.skip).take(piece.take)
    batches = records.batch(_READ_BATCH).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)
