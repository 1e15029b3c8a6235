"""The data sets by name: who reads them, which images play which role, and under what protocol."""

import numpy as np

from hqc_tf.data import photo_sets
from hqc_tf.data.folder import FOLDER_QUERY_EVERY, folder_root, folder_split, read_folder
from hqc_tf.data.images import Images
from hqc_tf.data.tfds import read_tfds
from hqc_tf.errors import UserError

ROLES = ("train", "database", "query")
CIFAR10_PROTOCOLS = ("cifar10_protocol1", "cifar10_protocol2")
_QUERIES_PER_CLASS, _TRAIN_PER_CLASS = 1000, 500


def load_split(dataset, role, data_dir="", rejected=frozenset()):
    """The images that play a role in the benchmark of `--dataset`.

    For `fashion_mnist` and `cifar10` the official train split is learned from and searched, the
    test split asks. Of CIFAR-10's 60,000 images pooled, in protocols I and II 1,000 of each class
    ask and the others are searched; protocol I learns from all of these, protocol II from 500 of
    each class. For `flickr25k` and `nuswide` see `photo_sets`. In a folder with sub-folders for
    labels every tenth image asks and the others are learned from and searched; in one without, all
    are learned from and there is no query.

    Args:
      dataset: `--dataset`.
      role: "train" (learned from), "database" (searched) or "query" (asks).
      data_dir: where prepared TFDS data lies; empty: TFDS's own place.
      rejected: ids of images of a folder that are left out, as if they were not there.

    Returns:
      `Images`, or None for the queries of images without labels.

    Raises:
      UserError: unknown data set, not prepared, no such folder, no image in it.
    """
    if dataset.startswith("folder:"):
        return folder_split(read_folder(folder_root(dataset), rejected), role)
    if dataset in photo_sets.PHOTO_SETS:
        photos = photo_sets.read_list(dataset, role, data_dir)
        return Images.of_files(photos.paths, photos.ids, photos.labels)
    if dataset in CIFAR10_PROTOCOLS:
        return _cifar10_split(dataset, role, data_dir)
    return load_images(f"{dataset}/{'test' if role == 'query' else 'train'}", data_dir)


def load_images(dataset, data_dir=""):
    """One set of images: `folder:PATH`, or `name` or `name/split` of a data set.

    A split of a TFDS data set may be a slice in TFDS's form, such as `cifar10/test[:500]`, and is
    `train` where none is given. Of CIFAR-10's protocols, FLICKR25K and NUS-WIDE it is a role of
    `load_split`, and `database` where none is given.

    Raises:
      UserError: unknown data set or split, not prepared, no such folder, no image in it.
    """
    if dataset.startswith("folder:"):
        return read_folder(folder_root(dataset))
    name, _, split = dataset.partition("/")
    if name in (*photo_sets.PHOTO_SETS, *CIFAR10_PROTOCOLS):
        role = split or "database"
        if role not in ROLES:
            raise UserError(f"split {role} of {name}: unknown; take one of {', '.join(ROLES)}")
        return load_split(name, role, data_dir)
    return read_tfds(name, split or "train", data_dir)


def protocol(dataset):
    """The name under which results on `--dataset` stand."""
    if dataset.startswith("folder:"):
        return f"folder, 1 in {FOLDER_QUERY_EVERY} asks"
    if dataset in photo_sets.PHOTO_SETS:
        return photo_sets.protocol(dataset)
    if dataset in CIFAR10_PROTOCOLS:
        return f"cifar10 protocol {'I' * int(dataset[-1])}"
    return f"{dataset} official"


def _cifar10_split(protocol_name, role, data_dir):
    pooled = _cifar10_pooled(data_dir)
    # Places within an image's class, in the order that FLICKR25K's split has its queries from.
    order = np.random.RandomState(2022).permutation(len(pooled))
    by_class = order[np.argsort(pooled.labels[order], kind="stable")]
    counts = np.bincount(pooled.labels)
    places = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = places < _QUERIES_PER_CLASS if role == "query" else places >= _QUERIES_PER_CLASS
    if role == "train" and protocol_name == "cifar10_protocol2":
        chosen &= places < _QUERIES_PER_CLASS + _TRAIN_PER_CLASS
    return pooled.take(np.sort(by_class[chosen]))


def _cifar10_pooled(data_dir):
    train, test = (read_tfds("cifar10", split, data_dir) for split in ("train", "test"))
    return Images.of_pixels(
        pixels=np.concatenate([train.pixels, test.pixels]),
        ids=train.ids + test.ids,
        labels=np.concatenate([train.labels, test.labels]),
        label_names=train.label_names,
    )
