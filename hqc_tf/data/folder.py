"""Folders and patterns of image files: their names, contents, labels and roles.

Every name that looks like an image is an item: one that cannot be read has its reason, and no pipe
or device makes the reader wait.
"""

import collections
import concurrent.futures
import fnmatch
import functools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from hqc_tf import files
from hqc_tf.data import decoding
from hqc_tf.data.decoding import MAX_PIXELS, NAMES, SUFFIXES
from hqc_tf.data.formats.converted import HEAD_BYTES
from hqc_tf.data.images import Images, numbered
from hqc_tf.errors import UserError, printable

# What an image of `decoding.MAX_PIXELS` takes at most: three colors of 16 bits, not compressed.
MAX_FILE_BYTES = 6 * MAX_PIXELS + 2**20
# A batch takes no further file once it has so many bytes.
BATCH_BYTES = 64 * 2**20
# A larger file is not read ahead, and is alone in its batch.
LARGE_BYTES = 4 * 2**20
# Files that are read at once.
READERS = 8
# One in so many images of a labeled folder, in the order of names, is a query.
QUERY_EVERY = 10
# Folders that systems fill with previews and copies: Synology's, macOS's and the trash of both.
_HIDDEN_FOLDER, _HIDDEN_IMAGE = "hidden or preview folders", "hidden images"
_LINK, _NO_SUFFIX = "links to folders found elsewhere", "no suffix and no image"
# Suffixes that are counted one by one.
_SUFFIXES_TOLD = 8
PREVIEWS = ("@eadir", "__macosx", "#recycle", "$recycle.bin")


class Item(NamedTuple):
    """An image, or why there is none."""

    id: str  # its name
    contents: bytes  # of its file; empty where they could not be read
    reason: str = ""  # why not; else empty


def walk(root: str | os.PathLike) -> Iterator[str]:
    """Yields the names of images under `root`, relative to it and in order.

    Includes links and folders with such a name, folders that cannot be read, and files without a
    suffix that begin as an image. Links to folders and hidden names are treated as in `match`; a
    line on stderr says what else there is, by kind.
    """
    left_out = collections.Counter()
    for name in _search(root, ["**", "*"], left_out):
        # The name of a folder that cannot be read ends with a slash; that of the root is empty.
        if not name or name.endswith("/") or name.lower().endswith(SUFFIXES):
            yield name
        elif not os.path.isdir(path := pathlib.Path(root, name)):  # noqa: PTH112
            if not path.suffix and _begins_as_image(path):
                yield name
            else:
                left_out[path.suffix.lower() or _NO_SUFFIX] += 1
    _tell_left_out(f"folder:{root}", left_out)


def match(pattern: str) -> Iterator[str]:
    """Yields the names that match a pattern by the shell's rules, in order; `**` is any depth.

    A suffix matches in any case. A link to a folder is followed where that folder is not found
    without it, so that each is entered once. Hidden names and those of a system's previews match
    only where the pattern gives their first character; a line on stderr says how many others there
    are. Names of folders on the way that cannot be read end with a slash.
    """
    if os.path.lexists(pattern):  # brackets may be part of a name
        yield pattern
        return
    fixed = fixed_part(pattern)
    parts = [part for part in pattern[len(fixed) :].split("/") if part]
    left_out = collections.Counter()
    found = _search(fixed or ".", parts, left_out)
    yield from sorted(fixed + name for name in found if name)
    _tell_left_out(pattern, left_out)


def finds(source: str, is_folder: bool, path: str | os.PathLike) -> bool:
    """Whether `walk` of a folder, or `match` of a pattern, would come upon a file at `path`.

    Args:
        source: folder (with `is_folder`) or pattern.
        is_folder: whether `source` is a folder.
        path: of a file that need not exist.
    """
    fixed = source if is_folder else fixed_part(source)
    parts = ["**", "*"] if is_folder else [part for part in source[len(fixed) :].split("/") if part]
    # Either name may have a link in it.
    for place in (os.path.abspath, os.path.realpath):
        root, names = place(fixed or "."), pathlib.Path(place(path))
        if names.is_relative_to(root) and _fit(parts, names.relative_to(root).parts):
            return True
    return False


def _fit(parts, names):
    """Whether names one below the other match the parts of a pattern, hidden ones as in `match`."""
    if not (parts and names):
        return not names and set(parts) <= {"**"}
    first, shown = parts[0], not _is_hidden(names[0]) or names[0][0] == parts[0][0]
    if first == "**":
        return _fit(parts[1:], names) or (shown and _fit(parts, names[1:]))
    return shown and _fits(first)(names[0]) and _fit(parts[1:], names[1:])


def fixed_part(pattern: str) -> str:
    """The folders of a pattern before its first wildcard, with a slash after each."""
    return pattern[: re.split(r"[*?\[]", pattern)[0].rfind("/") + 1]


def _search(root, parts, left_out):
    """Yields the names below `root` that match the parts of a pattern, and unreadable folders.

    A folder comes before what is in it; `left_out` counts what is passed over, by kind. No
    recursion: folders may be thousands deep.
    """
    fits = [_fits(part) for part in parts]

    def passed(states, name):
        """How many parts may be passed with `name`, where so many may be before it; both sets."""
        can = (state for state in states if state < len(parts) and fits[state](name))
        return widened({state + (parts[state] != "**") for state in can})

    def widened(states):
        # A `**` is passed without a name too.
        for state, part in enumerate(parts):
            if state in states and part == "**":
                states.add(state + 1)
        return states

    top, entered = os.path.realpath(root), set()
    stack = [("", widened({0}), True)]
    while stack:
        name, before, is_folder = stack.pop()
        if len(parts) in before:
            yield name
        if not is_folder or min(before) == len(parts):
            continue
        try:
            entries = _enter(pathlib.Path(root, name), entered)
        except OSError:
            yield name and f"{name}/"
            continue
        for entry in reversed(entries):
            below = f"{name}/{entry.name}" if name else entry.name
            states, is_folder = passed(before, entry.name), _leads_on(entry, top)
            if states and _is_hidden(entry.name):
                given = {s for s in before if s < len(parts) and parts[s][0] == entry.name[0]}
                states = passed(given, entry.name)
                if not states and (is_folder or entry.name.lower().endswith(SUFFIXES)):
                    left_out[_HIDDEN_FOLDER if is_folder else _HIDDEN_IMAGE] += 1
            if states:
                left_out[_LINK] += not is_folder and _is_link_to_folder(entry)
                stack.append((below, states, is_folder))


def _fits(part):
    """Whether a name matches a part of a pattern, its suffix in any case."""
    stem, dot, suffix = part.rpartition(".")
    matches = re.compile(fnmatch.translate(stem + dot + suffix.lower())).match

    def fits(name):
        stem, dot, suffix = name.rpartition(".")
        return matches(stem + dot + suffix.lower())

    return fits if dot else matches


def _enter(folder, entered):
    """The entries of a folder, in order; [] where it is in `entered`, to which it is added."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in entered:
        return []
    entered.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def _leads_on(entry, top):
    """Whether an entry is a folder to enter: no link to what is found, or leads, below `top`."""
    if not _is_link_to_folder(entry):
        return entry.is_dir(follow_symlinks=False)
    real = pathlib.Path(entry).resolve()
    return not (real.is_relative_to(top) or pathlib.Path(top).is_relative_to(real))


def _is_link_to_folder(entry):
    # Of a folder that cannot be reached pathlib raises an error.
    return entry.is_symlink() and os.path.isdir(entry)  # noqa: PTH112


def _is_hidden(name):
    return name.startswith(".") or name.lower() in PREVIEWS


def _begins_as_image(path):
    try:
        with files.open_regular(path) as file:
            return bool(decoding.format_of(file.read(HEAD_BYTES)))
    except OSError:
        return False


def _tell_left_out(source, left_out):
    """Says how many names are left out: what is hidden, links, then the most frequent suffixes."""
    first = [(kind, left_out.pop(kind, 0)) for kind in (_HIDDEN_FOLDER, _HIDDEN_IMAGE, _LINK)]
    rest = left_out.most_common()
    others = sum(count for _, count in rest[_SUFFIXES_TOLD:])
    counts = [*first, *rest[:_SUFFIXES_TOLD], ("other files", others)]
    if said := ", ".join(f"{kind}: {count}" for kind, count in counts if count):
        _tell(printable(f"{source}: left out ({said})"))


@functools.cache
def _tell(line):
    """Prints a line to stderr, but once: a command reads its folder several times."""
    print(line, file=sys.stderr)


def read_items(root: str | os.PathLike, names: Iterable[str]) -> Iterator[Item]:
    """Yields the `Item` of each of `names` under `root`, in order.

    The next ones are read ahead, but for those over `LARGE_BYTES`.
    """

    def read(name):
        return name, _read_item(root, name, LARGE_BYTES)

    for name, item in overlapped(read, names, READERS):
        yield item or _read_item(root, name, MAX_FILE_BYTES)


def _read_item(root, name, most):
    """The `Item` of a file; None where it may be an image but has over `most` bytes."""
    try:
        with files.open_regular(pathlib.Path(root, name)) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                return Item(name, b"", f"{size} bytes, over {MAX_FILE_BYTES}")
            head = os.pread(file.fileno(), HEAD_BYTES, 0)
            if size > LARGE_BYTES and not decoding.format_of(head):
                return Item(name, b"", f"no {NAMES} image")
            return Item(name, file.read()) if size <= most else None
    except OSError as error:
        return Item(name, b"", error.strerror)


def readable(items: Iterable[Item]) -> Iterator[Item]:
    """Yields items in order, those that only Pillow reads in a form that TensorFlow decodes."""

    def read(item):
        try:
            return item._replace(contents=decoding.readable(item.contents))
        except ValueError as error:
            return Item(item.id, b"", str(error))

    def is_large(item):
        return len(item.contents) > LARGE_BYTES or decoding.grows(item.contents)

    return overlapped(read, items, READERS, is_large)


def in_batches(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
    """Yields lists of up to `batch_size` items, fewer where they have over `BATCH_BYTES`.

    An item of over `LARGE_BYTES` is a list of its own.
    """
    batch, size = [], 0
    for item in items:
        large = len(item.contents) > LARGE_BYTES
        if batch and large:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.contents)
        # The next item is read while this name would keep the last one.
        del item
        if large or len(batch) == batch_size or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def overlapped(
    function: Callable,
    values: Iterable,
    workers: int,
    is_large: Callable[[Any], bool] = lambda value: False,
) -> Iterator:
    """`map(function, values)` in order, at most `workers` calls at once, each in a thread.

    `values` are consumed while the calls run, and no faster than results are taken. A large value
    waits for the calls before it, and the next value is not consumed before its result is taken.
    """
    pending = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for value in values:
            if is_large(value):
                while pending:
                    yield pending.popleft().result()
                yield function(value)
            else:
                pending.append(pool.submit(function, value))
            # It would be kept while the next one is made.
            del value
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
    # What is rejected may be a name that pathlib cannot look at without an error.
    found = [name for name in names if name in rejected or os.path.isfile(root / name)]  # noqa: PTH113
    ids = [name for name in found if name not in rejected]
    if not ids:
        bad = f" ({len(found)} files that cannot be decoded)" if found else ""
        raise UserError(
            f"folder:{root}: no image in it or below{bad}; put {', '.join(SUFFIXES)} files there"
            if is_folder
            else f"--dataset={source}: no image matches{bad}; give a pattern of files in quotes"
        )
    paths = [str(root / name) for name in ids]
    fixed = 0 if is_folder else len(fixed_part(source))
    inside = [name[fixed:].partition("/") for name in ids]
    if not all(slash for _, slash, _ in inside) or len({top for top, _, _ in inside}) < 2:
        return Images.of_files(paths, ids)
    return Images.of_files(paths, ids, *numbered([top for top, _, _ in inside]))


def divide(images: Images, role: str) -> Images | None:
    """The images of a role; without labels, or of very few images, none is a query."""
    if images.labels is None or len(images) < QUERY_EVERY:
        return None if role == "query" else images
    is_query = np.arange(len(images)) % QUERY_EVERY == QUERY_EVERY - 1
    return images.take(np.flatnonzero(is_query if role == "query" else ~is_query))
