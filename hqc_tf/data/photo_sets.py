"""FLICKR25K and NUS-WIDE: the photos of each role, as deep hashing divides them.

Both come as lists of names and labels, with the photos beside them. FLICKR25K is MIRFLICKR-25000
(Huiskes and Lew, 2008) with 24 labels; NUS-WIDE (Chua and others, 2009) is cut to the photos with
one of its 21 most frequent labels.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from hqc_tf.data.images import Images
from hqc_tf.errors import UserError

PHOTO_SETS = ("flickr25k", "nuswide", "nuswide_10500")
NUM_LABELS = {"flickr25k": 24, "nuswide": 21}
FLICKR_QUERIES = 2000
FLICKR_SEED = 2022
# Relative to the folder of the lists, in the order in which they are tried; the archive
# of MIRFLICKR-25000 unpacks to the last.
PHOTO_FOLDERS = {"flickr25k": ("", "images", "mirflickr"), "nuswide": ("", "images")}


class PhotoList(NamedTuple):
    """A list as published: its file, its number of lines, and the columns of each line."""

    file: str
    lines: int
    names: int  # columns before the labels: 1 for a photo's name, or 0
    labels: int

    @property
    def form(self) -> str:
        """What a line holds, for messages."""
        parts = ["a name without blanks"] * self.names
        return " and ".join(parts + [f"{self.labels} columns of 0 or 1"] * (self.labels > 0))


FLICKR_NAMES = PhotoList("img.txt", 25_000, 1, 0)
FLICKR_LABELS = PhotoList("targets.txt", 25_000, 0, NUM_LABELS["flickr25k"])
NUSWIDE_LISTS = {
    split: PhotoList(f"{split}.txt", lines, 1, NUM_LABELS["nuswide"])
    for split, lines in {"database": 193_734, "train_10500": 10_500, "test": 2_100}.items()
}


def read_photos(dataset: str, role: str, data_dir: str | os.PathLike) -> Images:
    """The photos of a role in the benchmark of `dataset`, in files; each is checked to exist.

    The queries of FLICKR25K are the 2,000 photos at RandomState(2022).permutation(25000)[:2000], in
    this order; the other 23,000 are trained on and are the database, in the order of the list. The
    queries of NUS-WIDE are test.txt and its database is database.txt; `nuswide` trains on the whole
    database, `nuswide_10500` on train_10500.txt. Only the lists that the role needs are read.

    Args:
        dataset: one of `PHOTO_SETS`.
        role: "train", "database" or "query".
        data_dir: folder with the lists in flickr25k/ or nuswide/, or with the lists themselves; the
            photos are relative to the folder of the lists, or to images/ (or mirflickr/) in it.

    Returns:
        Paths are relative where data_dir is; ids are the names in the list, labels uint8 [N, C] are
        1 for each label of a photo, which may have none.

    Raises:
        UserError: a folder, list or photo is missing, or a list is not as published.
    """
    folder = _list_folder(dataset, data_dir)
    if dataset == "flickr25k":
        return _read_flickr25k(folder, role)
    train = "train_10500" if dataset == "nuswide_10500" else "database"
    split = {"train": train, "database": "database", "query": "test"}[role]
    return _read_nuswide(folder, NUSWIDE_LISTS[split])


def nuswide_splits(data_dir: str | os.PathLike) -> dict[str, Images]:
    """The splits of NUS-WIDE whose lists are in `data_dir`, by name.

    UserError where no list is there; or as `read_photos`.
    """
    folder = _list_folder("nuswide", data_dir)
    found = {name: of for name, of in NUSWIDE_LISTS.items() if (folder / of.file).is_file()}
    if not found:
        files = ", ".join(of.file for of in NUSWIDE_LISTS.values())
        raise UserError(f"{folder}: none of {files} is there; put NUS-WIDE's lists there")
    return {name: _read_nuswide(folder, of) for name, of in found.items()}


def protocol(dataset: str) -> str:
    """The name under which results on `dataset` are reported."""
    if dataset == "flickr25k":
        return f"flickr25k: {FLICKR_QUERIES:,} queries by RandomState({FLICKR_SEED}), 24 labels"
    train = "database.txt" if dataset == "nuswide" else "train_10500.txt"
    queries = NUSWIDE_LISTS["test"].lines
    return f"{dataset}: {queries:,} queries of test.txt, trained on {train}, 21 labels"


def _list_folder(dataset, data_dir):
    name = dataset.partition("_")[0]
    if not data_dir:
        raise UserError(f"--data_dir={data_dir}: {dataset} needs a folder of lists and photos")
    if not pathlib.Path(data_dir).is_dir():
        raise UserError(f"--data_dir={data_dir}: no such folder; name the one with {name}'s lists")
    own = pathlib.Path(data_dir, name)
    return own if own.is_dir() else pathlib.Path(data_dir)


def _read_flickr25k(folder, role):
    names, _ = _read_columns(folder, FLICKR_NAMES)
    _, labels = _read_columns(folder, FLICKR_LABELS)
    if len(names) != len(labels):
        raise UserError(
            f"{folder}: {FLICKR_NAMES.file} has {len(names)} lines and {FLICKR_LABELS.file} "
            f"{len(labels)}, but line by line they belong together; take both as published"
        )
    paths = _find_photos(folder, FLICKR_NAMES, names, PHOTO_FOLDERS["flickr25k"])
    order = np.random.RandomState(FLICKR_SEED).permutation(len(names))
    rows = order[:FLICKR_QUERIES] if role == "query" else np.sort(order[FLICKR_QUERIES:])
    return Images.of_files(paths, names, labels).take(rows)


def _read_nuswide(folder, of):
    names, labels = _read_columns(folder, of)
    paths = _find_photos(folder, of, names, PHOTO_FOLDERS["nuswide"])
    return Images.of_files(paths, names, labels)


def _read_columns(folder, of):
    """The names [N] in a list, empty strings where it has none, and its labels, uint8 [N, C]."""
    path = folder / of.file
    if not path.is_file():
        form = f"{of.lines} lines, each with {of.form}"
        raise UserError(f"{path}: no such list; put it there: {form}")
    try:
        with path.open(encoding="utf-8-sig") as lines:
            rows = [line.split() for line in lines]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); take it as published") from error
    # Checked in bulk, as a list has up to four million columns.
    digits = "".join(["".join(row[of.names :]) for row in rows])
    widths = {*map(len, rows)} | {of.names + of.labels}
    if len(widths) > 1 or {*digits} - {"0", "1"} or len(digits) != len(rows) * of.labels:
        faults = ((line, _fault(row, of)) for line, row in enumerate(rows, start=1))
        line, fault = next((line, fault) for line, fault in faults if fault)
        raise UserError(f"{path} line {line}: {fault}")
    labels = np.frombuffer(digits.encode("ascii"), np.uint8) - ord("0")
    return ["".join(row[: of.names]) for row in rows], labels.reshape(len(rows), of.labels)


def _fault(row, of):
    """What is wrong with the columns of a line; empty where nothing is."""
    width = of.names + of.labels
    if len(row) != width:
        nameless = len(row) == of.labels and set(row) <= {"0", "1"}
        found = "the name is empty" if nameless else f"{len(row)} columns, not {width}"
        return f"{found}; fix it: {of.form}"
    for column, value in enumerate(row[of.names :], start=of.names + 1):
        if value not in ("0", "1"):
            return f"column {column} is {value}, not 0 or 1; fix it"
    return ""


def _find_photos(folder, of, names, tried):
    """Paths of the photos of a list, in the first folder of `tried` that has the first of them."""
    if len(names) != of.lines:
        found = f"{len(names)} lines, but the protocol has {of.lines}"
        raise UserError(f"{folder / of.file}: {found}; take the list as published")
    places = [folder / sub for sub in tried]
    # Where no folder has it, the last that exists: sub-folders are made for photos.
    having = [p for p in places if (p / names[0]).is_file()]
    place = (having or [p for p in reversed(places) if p.is_dir()])[0]
    paths = [f"{place}/{name}" for name in names]
    # Listing folders queries a network drive hundreds of times, not 195,000 times.
    listed = set().union(*map(_files, {path.rpartition("/")[0] for path in paths}))
    # A folder that cannot be listed, or spells a name otherwise, may still have the file.
    # (A pathlib.Path apiece would make 195,000 missing photos take ten seconds.)
    unlisted = [row for row, path in enumerate(paths) if path not in listed]
    missing = [row for row in unlisted if not os.path.isfile(paths[row])]  # noqa: PTH113
    if missing:
        fix = f"put them into {' or '.join(map(str, places))}"
        raise UserError(
            f"{folder / of.file} line {missing[0] + 1}: no photo {paths[missing[0]]}; "
            f"{len(missing)} of {len(names)} are missing; {fix}"
        )
    return paths


def _files(folder):
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_file()]
    except OSError:
        return []
