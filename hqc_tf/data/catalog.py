"""The data sets by name, and the one grammar of `--dataset` and `--input`.

A data set is a row of `DATA_SETS` and the module that reads it. Beside the names in the table,
`folder:PATH`, a quoted file pattern, `tfds:NAME/SPLIT` and `tfrecord:PATTERN` name images.
"""

import functools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hqc_tf.data import cifar10, photo_sets, records, tfds
from hqc_tf.data.folder import (
    FOLDER_QUERY_EVERY,
    Item,
    folder_split,
    match,
    pattern_root,
    read_files,
    read_items,
    walk,
)
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError

ROLES = ("train", "database", "query")
FORMS = "folder:PATH, a quoted file pattern, tfds:NAME/SPLIT or tfrecord:PATTERN"


class DataSet(NamedTuple):
    """A row: how a data set is read.

    Attributes:
        read: function of a split and data_dir that returns `Images`.
        splits: the split of each role.
        default: the split that is read where none is named.
        protocol: the name under which results are reported.
    """

    read: Callable[[str, str], Images]
    splits: dict[str, str]
    default: str
    protocol: str


def _official(name):
    splits = {"train": "train", "database": "train", "query": "test"}
    return DataSet(functools.partial(tfds.read_tfds, name), splits, "train", f"{name} official")


def _by_role(read, protocol):
    return DataSet(read, {role: role for role in ROLES}, "database", protocol)


DATA_SETS = {
    "fashion_mnist": _official("fashion_mnist"),
    "cifar10": _official("cifar10"),
    "cifar10_protocol1": _by_role(
        functools.partial(cifar10.read_protocol, 1), "cifar10 protocol I"
    ),
    "cifar10_protocol2": _by_role(
        functools.partial(cifar10.read_protocol, 2), "cifar10 protocol II"
    ),
} | {
    name: _by_role(functools.partial(photo_sets.read_images, name), photo_sets.protocol(name))
    for name in photo_sets.PHOTO_SETS
}


class Source(NamedTuple):
    """What `--dataset` or `--input` names.

    Attributes:
        kind: "name" (of `DATA_SETS`), "folder", "pattern", "tfds" or "tfrecord".
        name: the name, folder or pattern.
        split: of a name or of a TFDS data set; empty where none is given.
    """

    kind: str
    name: str
    split: str = ""


def parse(text: str) -> Source:
    """The `Source` that `--dataset` or `--input` names.

    NAME/SPLIT without a prefix is `tfds:NAME/SPLIT` unless a file of this name exists; whatever has
    no other meaning is a pattern.
    """
    kind, _, rest = text.partition(":")
    if kind in ("folder", "tfrecord"):
        return Source(kind, rest)
    name, _, split = text.removeprefix("tfds:").partition("/")
    if kind == "tfds":
        return Source("tfds", name, split)
    if name in DATA_SETS:
        sliced = split and DATA_SETS[name].default not in ROLES[1:]
        return Source("tfds" if sliced else "name", name, split)
    if re.fullmatch(r"\w+(/[\w\[\]:%+-]+)?", text) and not pathlib.Path(text).exists():
        return Source("tfds", name, split)
    return Source("pattern", text)


def files_of(source: Source) -> tuple[pathlib.Path, Iterator[str]]:
    """Root and names, relative to it and in order, of a folder's or a pattern's files.

    Raises:
        UserError: no such folder, or the pattern is a folder.
    """
    if source.kind == "folder":
        root = pathlib.Path(source.name)
        if not root.is_dir():
            raise UserError(f"folder:{root}: no such folder; name one that holds images")
        return root, walk(root)
    if source.name and pathlib.Path(source.name).is_dir():
        raise UserError(
            f"{source.name}: a folder; write folder:{source.name}, or a pattern of files"
        )
    return pattern_root(source.name), match(source.name)


def items_of(dataset: str) -> Iterator[Item] | None:
    """The images of `--dataset` before they are decoded; None of a data set known to be sound."""
    source = parse(dataset)
    if source.kind in ("folder", "pattern"):
        return read_items(*files_of(source))
    if source.kind == "tfrecord":
        return records.read_pattern(source.name)
    return None


def root_of(dataset: str) -> pathlib.Path:
    """What the ids of a folder's images are relative to; the working folder of all others."""
    source = parse(dataset)
    return pathlib.Path(source.name if source.kind == "folder" else "")


def load_split(
    dataset: str, role: str, data_dir: str = "", rejected: frozenset[str] = frozenset()
) -> Images | None:
    """The images that play a role in the benchmark of `--dataset`.

    Of `fashion_mnist`, `cifar10` and any `tfds:NAME` the train split is trained on and is the
    database; the test split has the queries. `tfds:NAME/SPLIT` takes SPLIT in place of the train
    split. For CIFAR-10's protocols see `cifar10`, for `flickr25k` and `nuswide` see `photo_sets`.
    In files with sub-folders for labels every tenth image is a query and the others are trained on
    and are the database; without labels, all are trained on and there is no query.

    Args:
        dataset: `--dataset`.
        role: "train", "database" or "query".
        data_dir: folder of prepared TFDS data, empty: TFDS's own; or of lists and photos.
        rejected: ids of images in files that are left out.

    Returns:
        `Images`, or None for the queries of images without labels.

    Raises:
        UserError: the data set is unknown, not prepared, missing or empty.
    """
    source = parse(dataset)
    if source.kind == "name":
        if source.split:
            raise UserError(f"--dataset={dataset}: its roles are fixed; take {source.name}")
        row = DATA_SETS[source.name]
        return row.read(row.splits[role], data_dir)
    if source.kind == "tfds":
        return tfds.read_role(source.name, source.split, role, data_dir)
    return folder_split(_read(source, data_dir, rejected), role)


def load_images(dataset: str, data_dir: str = "") -> Images:
    """One set of images: all of a folder, pattern or TFRecord files, or a split of a data set.

    A split of a TFDS data set may be a slice in TFDS's form, such as `cifar10/test[:500]`, and is
    `train` where none is given. The splits of CIFAR-10's protocols, FLICKR25K and NUS-WIDE are the
    roles of `load_split`, `database` where none is given.

    Raises:
        UserError: the data set or split is unknown, not prepared, missing or empty.
    """
    return _read(parse(dataset), data_dir)


def protocol(dataset: str) -> str:
    """The name under which results on `--dataset` are reported."""
    source = parse(dataset)
    if source.kind == "name":
        return DATA_SETS[source.name].protocol
    if source.kind == "tfds":
        return f"{source.name} official" if not source.split else f"{source.name}/{source.split}"
    return f"folder, 1 in {FOLDER_QUERY_EVERY} asks"


def _read(source, data_dir, rejected=frozenset()):
    if source.kind == "name":
        row = DATA_SETS[source.name]
        split = source.split or row.default
        if split not in (*ROLES, row.default):
            raise UserError(
                f"split {split} of {source.name}: unknown; take one of {', '.join(ROLES)}"
            )
        return row.read(split, data_dir)
    if source.kind == "tfds":
        return tfds.read_tfds(source.name, source.split or "train", data_dir)
    if source.kind == "tfrecord":
        return _read_records(source.name, rejected)
    root, names = files_of(source)
    return read_files(source.name, root, names, source.kind == "folder", rejected)


@functools.lru_cache(maxsize=1)
def _read_records(pattern, rejected):
    items = [item for item in records.read_pattern(pattern) if item.id not in rejected]
    for item in items:
        if item.reason:
            raise UserError(f"{item.id}: {item.reason}; repair or remove the file")
    if not items:
        raise UserError(f"tfrecord:{pattern}: no image in it; name TFRecord files of images")
    return Images.of_contents([item.contents for item in items], [item.id for item in items])
