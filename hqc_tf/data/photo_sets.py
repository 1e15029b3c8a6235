"""FLICKR25K and NUS-WIDE as deep hashing divides them: which photos learn, are searched, ask.

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
    """Photos and their labels.

    Attributes:
      paths: N file names, relative where data_dir is.
      ids: N names, as in the list.
      labels: uint8 [N, C], 1 for each label of a photo; there may be none.
    """

    paths: list
    ids: list
    labels: np.ndarray


class _List(NamedTuple):
    """What the protocol says of a list: its file, its lines, and what stands in each of them."""

    file: str
    lines: int
    names: int  # columns before the labels: a photo's name, or nothing
    labels: int

    @property
    def form(self):
        parts = ["a name without blanks"] * self.names
        return " and ".join(parts + [f"{self.labels} columns of 0 or 1"] * (self.labels > 0))


FLICKR_NAMES = _List("img.txt", 25_000, 1, 0)
FLICKR_LABELS = _List("targets.txt", 25_000, 0, NUM_LABELS["flickr25k"])
NUSWIDE_LISTS = {
    split: _List(f"{split}.txt", lines, 1, NUM_LABELS["nuswide"])
    for split, lines in {"database": 193_734, "train_10500": 10_500, "test": 2_100}.items()
}


def read_list(dataset, role, data_dir):
    """The photos that play a role in the benchmark of `dataset`, all of them seen to be there.

    Of FLICKR25K the 2,000 photos at RandomState(2022).permutation(25000)[:2000] ask, in this order;
    the other 23,000 are learned from and searched, in the order of the list. Of NUS-WIDE test.txt
    asks and database.txt is searched; `nuswide` learns from all of database.txt, `nuswide_10500`
    from train_10500.txt. Only the lists that the role needs have to be there.

    Args:
      dataset: one of `PHOTO_SETS`.
      role: "train" (learned from), "database" (searched) or "query" (asks).
      data_dir: folder with the lists in flickr25k/ or nuswide/, or with the lists themselves; the
        photos are relative to the folder of the lists, or to images/ (or mirflickr/) in it.

    Returns:
      `PhotoList`.

    Raises:
      UserError: a folder, list or photo is missing, or a list is not as published.
    """
    folder = _list_folder(dataset, data_dir)
    if dataset == "flickr25k":
        return _read_flickr25k(folder, role)
    learned = "train_10500" if dataset == "nuswide_10500" else "database"
    split = {"train": learned, "database": "database", "query": "test"}[role]
    return _read_nuswide(folder, NUSWIDE_LISTS[split])


def read_images(dataset: str, role: str, data_dir: str) -> Images:
    """The `Images` that play a role in the benchmark of `dataset`; see `read_list`."""
    photos = read_list(dataset, role, data_dir)
    return Images.of_files(photos.paths, photos.ids, photos.labels)


def protocol(dataset):
    """The name under which results on `dataset` stand."""
    if dataset == "flickr25k":
        return (
            f"flickr25k: {FLICKR_QUERIES:,} queries by RandomState({FLICKR_SEED}), "
            f"{NUM_LABELS['flickr25k']} labels"
        )
    learned = "database.txt" if dataset == "nuswide" else "train_10500.txt"
    queries = NUSWIDE_LISTS["test"].lines
    return (
        f"{dataset}: {queries:,} queries of test.txt, trained on {learned}, "
        f"{NUM_LABELS['nuswide']} labels"
    )


def nuswide_splits(data_dir):
    """Those of NUS-WIDE's splits whose lists are in `data_dir`: names to `PhotoList`s.

    Raises:
      UserError: none is there; or as `read_list`.
    """
    folder = _list_folder("nuswide", data_dir)
    there = {name: of for name, of in NUSWIDE_LISTS.items() if (folder / of.file).is_file()}
    if not there:
        files = ", ".join(of.file for of in NUSWIDE_LISTS.values())
        raise UserError(f"{folder}: none of {files} is there; put NUS-WIDE's lists there")
    return {name: _read_nuswide(folder, of) for name, of in there.items()}


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
    _check_length(folder, FLICKR_NAMES, len(names))
    paths = _find_photos(folder, FLICKR_NAMES, names, PHOTO_FOLDERS["flickr25k"])
    order = np.random.RandomState(FLICKR_SEED).permutation(len(names))
    asks, rest = order[:FLICKR_QUERIES], np.sort(order[FLICKR_QUERIES:])
    rows = {"train": rest, "database": rest, "query": asks}[role]
    return PhotoList([paths[row] for row in rows], [names[row] for row in rows], labels[rows])


def _read_nuswide(folder, of):
    names, labels = _read_columns(folder, of)
    _check_length(folder, of, len(names))
    return PhotoList(_find_photos(folder, of, names, PHOTO_FOLDERS["nuswide"]), names, labels)


def _read_columns(folder, of):
    """The list `of` in `folder` -> its names [N], empty where it has none, and uint8 [N, C]."""
    path = folder / of.file
    if not path.is_file():
        raise UserError(
            f"{path}: no such list; put it there: {of.lines} lines, each with {of.form}"
        )
    try:
        with path.open(encoding="utf-8-sig") as lines:
            rows = [line.split() for line in lines]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); take it as published") from error
    _check_columns(path, of, rows)
    digits = "".join(["".join(row[of.names :]) for row in rows])
    if len(digits) != len(rows) * of.labels or set(digits) - {"0", "1"}:
        raise _no_digit(path, of, rows)
    codes = np.frombuffer(digits.encode("ascii"), np.uint8)
    return ["".join(row[: of.names]) for row in rows], codes.reshape(len(rows), of.labels) - ord(
        "0"
    )


def _check_columns(path, of, rows):
    counts = np.fromiter(map(len, rows), np.int64, len(rows))
    wrong = np.flatnonzero(counts != of.names + of.labels)
    if not len(wrong):
        return
    row = rows[wrong[0]]
    found = f"{len(row)} columns, not {of.names + of.labels}"
    if len(row) == of.labels and set(row) <= {"0", "1"}:
        found = "the name is empty"
    raise UserError(f"{path} line {wrong[0] + 1}: {found}; fix it: {of.form}")


def _no_digit(path, of, rows):
    line, column, value = next(
        (line, column, value)
        for line, row in enumerate(rows, start=1)
        for column, value in enumerate(row[of.names :], start=of.names + 1)
        if value not in ("0", "1")
    )
    return UserError(f"{path} line {line}: column {column} is {value}, not 0 or 1; fix it")


def _check_length(folder, of, found):
    if found != of.lines:
        raise UserError(
            f"{folder / of.file}: {found} lines, but the protocol has {of.lines}; "
            "take the list as published"
        )


def _find_photos(folder, of, names, tried):
    """Paths of the photos `names`, in the first folder of `tried` that has the first of them."""
    places = [folder / sub for sub in tried]
    # Where none has it, the last that is there: sub-folders are made for photos.
    place = next((p for p in places if (p / names[0]).is_file()), None) or next(
        p for p in reversed(places) if p.is_dir()
    )
    paths = [f"{place}/{name}" for name in names]
    missing = _missing(paths)
    if missing:
        row = missing[0]
        raise UserError(
            f"{folder / of.file} line {row + 1}: no photo {paths[row]}; {len(missing)} of "
            f"{len(names)} are missing; put them into {' or '.join(map(str, places))}"
        )
    return paths


def _missing(paths):
    """The rows of `paths` that are no files."""
    # Reading whole folders asks a network drive hundreds of times, not 195,000 times.
    parents = {path.rpartition("/")[0] for path in paths}
    there = set().union(*map(_files, parents))
    # A folder that cannot be listed, or spells a name otherwise, may have the file all the same.
    # (A pathlib.Path apiece would make 195,000 missing photos take ten seconds.)
    absent = [row for row, path in enumerate(paths) if path not in there]
    return [row for row in absent if not os.path.isfile(paths[row])]  # noqa: PTH113


def _files(folder):
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_file()]
    except OSError:
        return []
