"""Folders and patterns of image files: their names, contents, labels and roles.

Every name that looks like an image is an item: one that cannot be read has its reason, and no pipe
or device makes the reader wait.
"""

import collections
import concurrent.futures
import glob
import os
import pathlib
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from hqc_tf.data.decoding import SUFFIXES
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError

# More than any image within `decoding.MAX_PIXELS` takes.
MAX_FILE_BYTES = 2**29
# A batch takes no further file once it has so many bytes.
BATCH_BYTES = 64 * 2**20
# Files that are read at once.
READERS = 8
# One in so many images of a labeled folder, in the order of names, is a query.
QUERY_EVERY = 10


class Item(NamedTuple):
    """An image, or why there is none."""

    id: str  # its name
    contents: bytes  # of its file; empty where they could not be read
    reason: str = ""  # why not; else empty


def walk(root: str | os.PathLike, below: str = "") -> Iterator[str]:
    """Yields the names of images under `root`, relative to it and in order.

    Includes links and folders with such a name, and folders that cannot be read.
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


def match(pattern: str) -> Iterator[str]:
    """Yields the names that match a pattern, in order."""
    # The shell's rules, which pathlib's are not: `*` leaves out names that begin with a dot.
    yield from sorted(set(glob.iglob(pattern, recursive=True)))  # noqa: PTH207


def read_items(root: str | os.PathLike, names: Iterable[str]) -> Iterator[Item]:
    """Yields the `Item` of each of `names` under `root`, in order; the next ones are read ahead."""
    return overlapped(lambda name: _read_item(root, name), names, READERS)


def _read_item(root, name):
    # Opening a pipe must not wait for a writer.
    def opener(path, flags):
        return os.open(path, flags | os.O_NONBLOCK)

    try:
        with open(pathlib.Path(root, name), "rb", opener=opener) as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return Item(name, b"", "no regular file")
            if status.st_size > MAX_FILE_BYTES:
                return Item(name, b"", f"{status.st_size} bytes, over {MAX_FILE_BYTES}")
            return Item(name, file.read())
    except OSError as error:
        return Item(name, b"", error.strerror)


def in_batches(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
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


def overlapped(function: Callable, values: Iterable, workers: int) -> Iterator:
    """`map(function, values)` in order, at most `workers` calls at once, each in a thread.

    `values` are consumed while the calls run, and no faster than results are taken.
    """
    pending = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for value in values:
            pending.append(pool.submit(function, value))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def read_files(
    source: str,
    root: pathlib.Path,
    names: Iterable[str],
    is_folder: bool,
    rejected: frozenset[str] = frozenset(),
) -> Images:
    """The image files `names` under `root`, labeled by sub-folders where there are several.

    Sub-folders of a pattern are those below its part without wildcards. UserError where no image
    is left.

    Args:
        source: folder (with `is_folder`) or pattern, as given.
        root: folder that the names are relative to.
        names: of the files, in order; anything that is not a file is left out.
        is_folder: whether `source` is a folder.
        rejected: names that are left out.
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
    inside = [name[fixed:].partition("/") for name in ids]
    if not all(slash for _, slash, _ in inside) or len({top for top, _, _ in inside}) < 2:
        return Images.of_files(paths, ids)
    label_names, labels = np.unique([top for top, _, _ in inside], return_inverse=True)
    return Images.of_files(paths, ids, labels, label_names.tolist())


def divide(images: Images, role: str) -> Images | None:
    """The images of a role; without labels, or of very few images, none is a query."""
    if images.labels is None or len(images) < QUERY_EVERY:
        return None if role == "query" else images
    is_query = np.arange(len(images)) % QUERY_EVERY == QUERY_EVERY - 1
    return images.take(np.flatnonzero(is_query if role == "query" else ~is_query))
