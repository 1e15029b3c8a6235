"""Data sets that TFDS has prepared, read in batches."""

import functools

import numpy as np
import tensorflow as tf

from hqc_tf.data import decoding
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError, first_line, naming_damage

_READ_BATCH = 250
# Images of up to so many pixels are kept decoded.
_DECODED_PIXELS = 64 * 64
# Levels of a pixel that are read as an image; TFDS stores others as bytes of no color.
_DTYPES = np.uint8, np.uint16


def open_tfds(name: str, split: str, data_dir: str = "") -> tuple:
    """The builder of a prepared TFDS data set, and the list of FileInstructions of a split.

    UserError where TFDS knows no such data set, it is not prepared, or it has no such split.
    """
    # TFDS takes seconds to import, and a folder of files does not need it.
    import tensorflow_datasets as tfds

    from hqc_tf.data import photo_builders  # noqa: F401 - TFDS then knows these data sets too

    try:
        builder = tfds.builder(name, data_dir=data_dir or None, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(f"dataset {name}: TFDS has no such data set; take another") from error
    if not builder.is_prepared():
        raise UserError(
            f"dataset {name}: not prepared in {data_dir or 'the default folder of TFDS'}; `python "
            f"-m hqc_tf.prepare --dataset={name} --data_dir=DIR` makes it, or --data_dir names "
            "where it is"
        )
    if (kind := builder.info.file_format) and kind.value != "tfrecord":
        raise UserError(f"dataset {name}: prepared as {kind.value}; prepare it as tfrecord")
    try:
        return builder, builder.info.splits[split].file_instructions
    except ValueError as error:
        reason = first_line(error)
        raise UserError(f"split {split} of {name}: {reason}; take one that it has") from error


def image_feature(builder) -> str:
    """The name of a data set's image feature: `image`, or the only one.

    UserError where it has none, or several of other names, or its levels are not whole numbers.
    """
    found = _features(builder, "Image", "image")
    if not found:
        names = ", ".join(sorted(builder.info.features))
        raise UserError(f"dataset {builder.name}: has no image, only {names}; take another")
    if len(found) > 1:
        raise UserError(
            f"dataset {builder.name}: has images in {', '.join(found)}, and none is named image; "
            "write those of one to files and name folder:PATH"
        )
    dtype = np.dtype(builder.info.features[found[0]].np_dtype)
    if dtype not in _DTYPES:
        raise UserError(
            f"dataset {builder.name}: its {found[0]} has {dtype} levels; take images of uint8 or "
            "uint16, or write them to files of such and name folder:PATH"
        )
    return found[0]


def read_role(name: str, split: str, role: str, data_dir: str) -> Images | None:
    """The images of a role in any prepared data set; None for queries without labels.

    `split`, or the train split, is trained on and is the database; the test split has the queries
    unless `split` is part of it, or one of the two has no labels.
    """
    database = split or "train"
    if role != "query":
        return read_tfds(name, database, data_dir)
    builder, _ = open_tfds(name, database, data_dir)
    if "test" not in builder.info.splits or "test" in split or not _label_feature(builder):
        return None
    found = read_tfds(name, "test", data_dir)
    labeled = (each.labels is not None for each in (found, read_tfds(name, database, data_dir)))
    return found if all(labeled) else None


@functools.lru_cache(maxsize=2)
def read_tfds(name: str, split: str, data_dir: str) -> Images:
    """A split of a prepared data set, with the labels in its ClassLabel `label`, or the only one.

    It has none where the data set has several of other names, or where any is -1: hidden.
    Images that all have the same few pixels are decoded; others stay encoded, so that they take as
    much memory as their files, twice while they are trained on.
    """
    builder, pieces = open_tfds(name, split, data_dir)
    image, label = image_feature(builder), _label_feature(builder)
    sides = builder.info.features[image].shape[:2]  # None where images differ
    decode = None not in sides and sides[0] * sides[1] <= _DECODED_PIXELS
    read = [_read_records(piece, image, label, decode) for piece in pieces]
    if not read:
        raise UserError(f"split {split} of {name}: has no image; take another split")
    contents, labels = (np.concatenate(parts) for parts in zip(*read, strict=True))
    ids = [f"{name}/{split}/{row:05d}" for row in range(len(contents))]
    make = Images.of_pixels if decode else Images.of_contents
    if not label or labels.min() < 0:
        return make(contents, ids)
    return make(contents, ids, labels, builder.info.features[label].names)


def _label_feature(builder):
    """The name of a data set's label; empty without any, or where it is not clear which."""
    found = _features(builder, "ClassLabel", "label")
    return found[0] if len(found) == 1 else ""


def _features(builder, kind, usual):
    """Names of a data set's features of a class of `tfds.features`; the usual one alone if any."""
    import tensorflow_datasets as tfds

    kind, features = getattr(tfds.features, kind), builder.info.features
    # In the order of names: a data set that is opened without its code has another each time.
    found = sorted(name for name in features if isinstance(features[name], kind))
    return [usual] if usual in found else found


def _read_records(piece, image, label, decode):
    """Images and labels of a TFRecord file of TFDS; its own reader is six times slower.

    (uint8 [n, H, W, 3] with `decode`, else n bytes objects; int [n], zeros without `label`).
    """
    features = {image: tf.io.FixedLenFeature([], tf.string)}
    if label:
        features[label] = tf.io.FixedLenFeature([], tf.int64)

    def parse(records):
        examples = tf.io.parse_example(records, features)
        return examples[image], examples[label] if label else tf.zeros_like(records, tf.int64)

    records = tf.data.TFRecordDataset(piece.filename).skip(piece.skip).take(piece.take)
    batches = records.batch(_READ_BATCH).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    if decode:
        # Small ones as one element: each that Python takes waits for its other threads.
        batches = batches.rebatch(piece.take)
    again = "remove the data set's folder and prepare it again"
    with naming_damage(piece.filename, again):
        read = [*batches.as_numpy_iterator()]
        if (count := sum(len(labels) for _, labels in read)) != piece.take:
            raise ValueError(f"{count} of {piece.take} records")
        files, labels = map(np.concatenate, zip(*read, strict=True))
        return decoding.decode_known_alike(files) if decode else files, labels
