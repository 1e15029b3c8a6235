"""The data sets by name, and the one grammar of `--dataset` and `--input`.

A data set is a row of `DATA_SETS` and the module that reads it. Beside the names in the table,
`folder:PATH`, a quoted file pattern, `tfds:NAME/SPLIT` and `tfrecord:PATTERN` name images, and
`features:FILE` or `features:DIR` what a network made of them.
"""

import pathlib
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

from hqc_tf import files
from hqc_tf.data import cifar10, features, photo_sets, records, tfds
from hqc_tf.data.folder import QUERY_EVERY, Item, divide, match, read_files, read_items, walk
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError

ROLES = ("train", "database", "query")
# TFDS data sets that a file of the same name does not hide.
TFDS_NAMES = ("fashion_mnist", "cifar10")


class DataSet(NamedTuple):
    """A row: a data set whose roles are fixed."""

    read: Callable[[str, str], Images]  # of a role and data_dir
    protocol: str  # the name under which results are reported


DATA_SETS = {
    "cifar10_protocol1": DataSet(partial(cifar10.read_protocol, 1), "cifar10 protocol I"),
    "cifar10_protocol2": DataSet(partial(cifar10.read_protocol, 2), "cifar10 protocol II"),
} | {
    name: DataSet(partial(photo_sets.read_photos, name), photo_sets.protocol(name))
    for name in photo_sets.PHOTO_SETS
}


class Source(NamedTuple):
    """What `--dataset` or `--input` names."""

    kind: str  # "name" (in `DATA_SETS`), "folder", "pattern", "tfds", "tfrecord" or "features"
    name: str  # the name, folder or pattern
    split: str = ""  # of a name, TFDS data set or folder of features; empty where none is given

    @property
    def is_files(self) -> bool:
        """Whether these are a user's own files, some of which may not be images."""
        return self.kind in ("folder", "pattern", "tfrecord")

    @property
    def root(self) -> pathlib.Path:
        """The folder that the names of its files are relative to."""
        return pathlib.Path(self.name if self.kind == "folder" else pathlib.Path(self.name).anchor)

    def files(self) -> Iterator[str]:
        """Names of the files, relative to `root` and in order; UserError where they are missing."""
        if self.kind == "folder":
            if not self.root.is_dir():
                raise UserError(
                    f"folder:{self.name}: no such folder; name one that holds images, or where it "
                    "is now"
                )
            return walk(self.root)
        if self.name and pathlib.Path(self.name).is_dir():
            form = "folder:PATH" if self.kind == "pattern" else "'tfrecord:PATH/*'"
            fix = f"write {form.replace('PATH', self.name)}, or a pattern of files"
            raise UserError(f"{self.name}: a folder; {fix}")
        return match(self.name)

    def items(self) -> Iterator[Item]:
        """The images of files, before they are decoded."""
        if self.kind == "tfrecord":
            return records.read_files(self.files())
        return read_items(self.root, self.files())


def parse(text: str) -> Source:
    """The `Source` that `--dataset` or `--input` names.

    NAME and NAME/SPLIT mean a TFDS data set unless a file of this name exists, and so does
    tfds:NAME/CONFIG/SPLIT; anything else is a pattern. Paths that differ in slashes alone are the
    same. UserError where there is no path after folder:, tfrecord: or features:.
    """
    kind, colon, rest = text.partition(":")
    if kind in ("folder", "tfrecord", "features") and colon and not rest:
        raise UserError(f"{text} has no path (is a variable in it not set?); give {kind}:PATH")
    if kind in ("folder", "tfrecord"):
        return Source(kind, _tidy(rest))
    if kind == "features":
        rest = _tidy(rest)
        folder, _, role = rest.rpartition("/")
        has_role = folder and role in ROLES and not pathlib.Path(rest).exists()
        return Source(kind, folder, role) if has_role else Source(kind, rest)
    name, _, split = text.removeprefix("tfds:").partition("/")
    if kind == "tfds" and "/" in split:
        config, _, split = split.rpartition("/")
        name = f"{name}/{config}"
    if kind != "tfds" and name in DATA_SETS:
        return Source("name", name, split)
    is_name = re.fullmatch(r"\w+(/[\w\[\]:%+-]+)?", text) and not pathlib.Path(text).exists()
    if kind == "tfds" or name in TFDS_NAMES or is_name:
        return Source("tfds", name, split)
    return Source("pattern", _tidy(text))


def absolute(dataset: str) -> str:
    """`--dataset` so that it names the same folder, or file of features, from anywhere.

    A pattern stays as it is: the ids of its images begin with it.
    """
    source = parse(dataset)
    if source.kind not in ("folder", "features"):
        return dataset
    return f"{source.kind}:{files.absolute(pathlib.Path(source.name, source.split))}"


def load_split(
    dataset: str, role: str, data_dir: str = "", rejected: frozenset[str] = frozenset()
) -> Images | None:
    """The images that play a role in the benchmark of `--dataset`.

    The train split of `fashion_mnist`, `cifar10` and any `tfds:NAME` is trained on and is the
    database; the test split has the queries. `tfds:NAME/SPLIT` takes SPLIT in place of the train
    split. For CIFAR-10's protocols see `cifar10`, for `flickr25k` and `nuswide` see `photo_sets`.
    In files with sub-folders for labels every tenth image is a query and the others are trained on
    and are the database; without labels, all are trained on and the queries are None. A folder of
    features has the roles of the images.

    Args:
        dataset: `--dataset`.
        role: "train", "database" or "query".
        data_dir: folder of prepared TFDS data, empty: TFDS's own; or of lists and photos.
        rejected: ids of images in files that are left out.

    Raises:
        UserError: the data set is unknown, not prepared, missing or empty.
    """
    source = parse(dataset)
    if source.kind == "tfds":
        return tfds.read_role(source.name, source.split, role, data_dir)
    if source.kind == "features" and features.is_folder(source.name):
        found = _read_features_of_images(source.name)
        rows = found.play(role)
        return found.images.take(rows) if len(rows) else None
    if source.is_files or source.kind == "features":
        return divide(_read(source, data_dir, rejected), role)
    if source.split:
        raise UserError(f"--dataset={dataset}: its roles are fixed; take {source.name}")
    return DATA_SETS[source.name].read(role, data_dir)


def load_images(dataset: str, data_dir: str = "", rejected: frozenset[str] = frozenset()) -> Images:
    """One set of images: all of a folder, pattern or TFRecord files, or a split of a data set.

    A split of a TFDS data set may be a slice in TFDS's form, such as `cifar10/test[:500]`, and is
    `train` where none is given. The splits of CIFAR-10's protocols, FLICKR25K, NUS-WIDE and folders
    of features are the roles of `load_split`, `database` where none is given; such a folder of a
    user's own files then gives all. `rejected` are ids of images in files that are left out.

    Raises:
        UserError: the data set or split is unknown, not prepared, missing or empty.
    """
    return _read(parse(dataset), data_dir, rejected)


def protocol(dataset: str) -> str:
    """The name under which results on `--dataset` are reported."""
    source = parse(dataset)
    if source.kind == "name":
        return DATA_SETS[source.name].protocol
    if source.kind == "tfds":
        return f"{source.name}/{source.split}" if source.split else f"{source.name} official"
    if source.kind == "tfrecord":
        return "TFRecord files without labels"
    if source.kind == "features" and features.is_folder(source.name):
        return protocol(_read_features_of_images(source.name).manifest.dataset)
    if source.kind == "features":
        return f"features, 1 in {QUERY_EVERY} is a query"
    return f"{source.kind}, 1 in {QUERY_EVERY} is a query"


def _tidy(path):
    """A path or pattern without doubled slashes, `./` and a slash at its end."""
    return str(pathlib.PurePath(path)) if path else path


def _read(source, data_dir, rejected=frozenset()):
    if source.kind == "name":
        role = source.split or "database"
        if role not in ROLES:
            raise UserError(f"{source.name}/{role}: no such role; take one of {', '.join(ROLES)}")
        return DATA_SETS[source.name].read(role, data_dir)
    if source.kind == "tfds":
        return tfds.read_tfds(source.name, source.split or "train", data_dir)
    if source.kind == "tfrecord":
        return _read_records(source, rejected)
    if source.kind == "features" and features.is_folder(source.name):
        found = _read_features_of_images(source.name)
        is_files = parse(found.manifest.dataset).is_files
        if is_files and not source.split:
            return found.images
        return found.images.take(found.play(source.split or "database"))
    if source.kind == "features":
        return _read_features(source.name)
    is_folder = source.kind == "folder"
    return read_files(source.name, source.root, source.files(), is_folder, rejected)


# Every row is checked once; queries may be in a file of their own.
@lru_cache(maxsize=2)
def _read_features(path):
    return features.read(path)


@lru_cache(maxsize=2)
def _read_features_of_images(folder):
    return features.read_folder(folder)


@lru_cache(maxsize=1)
def _read_records(source, rejected):
    items = [item for item in source.items() if item.id not in rejected]
    for item in items:
        if item.reason:
            raise UserError(f"{item.id}: {item.reason}; repair or remove the file")
    if not items:
        raise UserError(f"tfrecord:{source.name}: no image in it; name TFRecord files of images")
    return Images.of_contents([item.contents for item in items], [item.id for item in items])
