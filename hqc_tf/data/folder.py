"""Folders of images as people have them: the names of what looks like images, and what is in them.

Whatever stands under a name is an item: what cannot be read has its reason, and nothing hangs.
"""

import collections
import concurrent.futures
import glob
import os
import pathlib
import re
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from hqc_tf.data.decoding import SUFFIXES
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError

# A file may have: more than any image within `decoding.MAX_PIXELS`.
MAX_BYTES = 2**29
# Of a batch: no more files once they have so many.
BATCH_BYTES = 64 * 2**20
# Files that are read at once.
READERS = 8


class Item(NamedTuple):
    """An image, or why there is none.

    Attributes:
      id: its name.
      contents: of its file, bytes; empty where they could not be read.
      reason: why not; else empty.
    """

    id: str
    contents: bytes
    reason: str = ""


def walk(root, below=""):
    """Yields the names of images under `root`, relative to it and in order.

    Links, folders and all else of such a name are among them, and folders that cannot be read.
    """
    try:
        with os.scandir(pathlib.Path(root, below)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        yield below
        return
    for entry in entries:
        name, lower = below + entry.name, entry.name.lower()
        if lower.endswith(SUFFIXES) and lower not in SUFFIXES:
            yield name
        if entry.is_dir(follow_symlinks=False):
            yield from walk(root, f"{name}/")


def read_items(root, names):
    """Yields the `Item` of each of `names` under `root`, in order; the next ones are read ahead."""
    return overlapped(lambda name: read_item(root, name), names, READERS)


def read_item(root, name):
    """The `Item` of a file."""

    # A pipe would be waited for, so it is opened in a way that does not.
    def opener(path, flags):
        return os.open(path, flags | os.O_NONBLOCK)

    try:
        with open(pathlib.Path(root, name), "rb", opener=opener) as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return Item(name, b"", "no regular file")
            if status.st_size > MAX_BYTES:
                return Item(name, b"", f"{status.st_size} bytes, over {MAX_BYTES}")
            return Item(name, file.read())
    except OSError as error:
        return Item(name, b"", error.strerror)


def in_batches(items, batch_size):
    """Yields lists of up to `batch_size` items, fewer where they have over `BATCH_BYTES`."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += len(item.contents)
        if len(batch) == batch_size or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def overlapped(function, values, workers):
    """`map(function, values)` in order, at most `workers` calls at once, each in a thread.

    `values` is asked for the next ones while the calls run, and no faster than results are taken.
    """
    pending = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for value in values:
            pending.append(pool.submit(function, value))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


# One in so many images of a labelled folder, in the order of names, is a query.
FOLDER_QUERY_EVERY = 10


def pattern_root(pattern: str) -> pathlib.Path:
    """The folder that the matches of a pattern are relative to."""
    return pathlib.Path("/" if pathlib.Path(pattern).is_absolute() else "")


def match(pattern: str) -> Iterator[str]:
    """Yields the names that match a pattern, in order."""
    # The shell's rules, which pathlib's are not: `*` leaves out names that begin with a dot.
    yield from sorted(set(glob.iglob(pattern, recursive=True)))  # noqa: PTH207


def read_files(
    source: str,
    root: pathlib.Path,
    names: Iterable[str],
    is_folder: bool,
    rejected: frozenset[str] = frozenset(),
) -> Images:
    """The image files `names` under `root`, labeled by sub-folders where there are several.

    Sub-folders of a pattern are those below its part without wildcards.

    Args:
        source: folder or pattern, as given.
        root: folder that the names are relative to.
        names: of the files, in order; what is no file is left out.
        is_folder: whether `source` is a folder.
        rejected: names that are left out.

    Raises:
        UserError: no image is left.
    """
    found = [name for name in names if (root / name).is_file()]
    ids = [name for name in found if name not in rejected]
    if not ids:
        bad = f" ({len(found)} files that cannot be decoded)" if found else ""
        raise UserError(
            f"folder:{root}: no image in it or below{bad}; put {', '.join(SUFFIXES)} files there"
            if is_folder
            else f"--dataset={source}: no image matches{bad}; give a pattern of files in quotes"
        )
    paths = [str(root / name) for name in ids]
    fixed = 0 if is_folder else re.split(r"[*?\[]", source)[0].rfind("/") + 1
    inside = [name[fixed:] for name in ids]
    tops = [name.partition("/")[0] for name in inside]
    if any("/" not in name for name in inside) or len(set(tops)) < 2:
        return Images.of_files(paths, ids)
    label_names, labels = np.unique(tops, return_inverse=True)
    return Images.of_files(paths, ids, labels, label_names.tolist())


def folder_split(images, role):
    if images.labels is None or len(images) < FOLDER_QUERY_EVERY:
        return None if role == "query" else images
    asks = np.arange(len(images)) % FOLDER_QUERY_EVERY == FOLDER_QUERY_EVERY - 1
    return images.take(np.flatnonzero(asks if role == "query" else ~asks))
