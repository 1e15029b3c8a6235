"""Atomic folders, which appear complete or not at all, and their manifests."""

import contextlib
import ctypes
import errno
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from os import PathLike
from typing import Any, BinaryIO

from hqc_tf import files
from hqc_tf.errors import UserError

MANIFEST = "manifest.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_manifest(folder: str | PathLike, kind: str, contents: dict[str, Any]) -> None:
    """Writes `contents`, which JSON can hold, as the manifest of a `kind` of folder."""
    text = json.dumps({"format": kind, **contents}, indent=2) + "\n"
    write_shared(pathlib.Path(folder, MANIFEST), lambda file: file.write(text.encode()))


def read_manifest(folder: str | PathLike, kind: str) -> dict[str, Any] | None:
    """The manifest of `folder`, or None where it has none of this `kind`."""
    try:
        manifest = json.loads(pathlib.Path(folder, MANIFEST).read_text())
        return manifest if manifest["format"] == kind else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_shared(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically, in place of an older one, by calling `write` with a binary file.

    Several processes may write it at once; a killed one leaves .NAME.*.partial.
    """
    # Processes on two machines that share the folder may have the same process id.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    files.write_atomically(path, write, aside)


@contextlib.contextmanager
def new_folder(path: str | PathLike, locked: bool = False) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which moves to `path` when the block ends without error.

    An existing folder stays at `path` at every instant until then and is removed afterwards;
    readers keep the files they have open. UserError where another process is writing at `path`.

    Args:
        path: of the folder.
        locked: whether the caller is its `sole_writer` already.
    """
    path = pathlib.Path(path).resolve()
    check_movable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    with contextlib.nullcontext() if locked else sole_writer(path):
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            yield aside
            replace(aside, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def check_movable(path: str | PathLike) -> None:
    """Raises UserError where no other folder can be moved to `path`, before the work for it."""
    path = pathlib.Path(path).resolve()
    if not path.name or os.path.ismount(path):
        raise UserError(f"{path}: a mount point cannot be replaced; name a folder in it")


def replace(aside: pathlib.Path, path: pathlib.Path) -> None:
    """Moves a folder to `path`, at every instant of which the old or the new one is there."""
    for written in [*aside.iterdir(), aside]:
        files.sync(written)
    _move(aside, path)
    files.sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def sole_writer(path: str | PathLike) -> Iterator[None]:
    """Keeps other processes from writing the folder `path`; UserError where one is writing it.

    What is read of the folder inside is what it has when it is replaced. A kill ends it as well.
    """
    path = pathlib.Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"{path}: another process is writing it; wait until it has ended"
    with files.sole_holder(path.with_name(f".{path.name}.lock"), refusal):
        yield


def _move(aside, path):
    if not path.exists():
        aside.rename(path)
        return
    try:
        _exchange(aside, path)
    except OSError as error:
        # Network and older file systems cannot exchange; between the two moves `path` is missing.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        aside.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one, other):
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))
