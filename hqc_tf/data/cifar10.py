"""CIFAR-10's 60,000 images pooled and divided as deep hashing does: protocols I and II."""

import numpy as np

from hqc_tf.data.images import Images
from hqc_tf.data.tfds import read_tfds

QUERIES_PER_CLASS, TRAIN_PER_CLASS = 1000, 500


def read_protocol(number: int, role: str, data_dir: str) -> Images:
    """The images of a role, "train", "database" or "query", in protocol `number`, 1 or 2.

    1,000 images of each class are queries and the others are the database. Protocol I trains on
    the whole database, protocol II on 500 images of each class. `data_dir` is the folder of
    prepared TFDS data; empty: TFDS's own.
    """
    pooled = _read_pooled(data_dir)
    # Places within an image's class, in the order that FLICKR25K's split takes its queries from.
    order = np.random.RandomState(2022).permutation(len(pooled))
    by_class = order[np.argsort(pooled.labels[order], kind="stable")]
    counts = np.bincount(pooled.labels)
    places = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = places < QUERIES_PER_CLASS if role == "query" else places >= QUERIES_PER_CLASS
    if role == "train" and number == 2:
        chosen &= places < QUERIES_PER_CLASS + TRAIN_PER_CLASS
    return pooled.take(np.sort(by_class[chosen]))


def _read_pooled(data_dir):
    train, test = (read_tfds("cifar10", split, data_dir) for split in ("train", "test"))
    pixels = np.concatenate([train.pixels, test.pixels])
    labels = np.concatenate([train.labels, test.labels])
    return Images.of_pixels(pixels, train.ids + test.ids, labels, train.label_names)
