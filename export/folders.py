"""Atomic folders, which appear complete or not at all, and their manifests."""

import contextlib
import ctypes
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from os import PathLike
from typing import Any

from hqc_tf import files
from hqc_tf.errors import UserError, naming_damage

MANIFEST = "manifest.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_manifest(folder: str | PathLike, kind: str, contents: dict[str, Any]) -> None:
    """Writes `contents`, which JSON can hold, as the manifest of a `kind` of folder."""
    text = json.dumps({"format": kind, **contents}, indent=2) + "\n"
    files.write_shared(pathlib.Path(folder, MANIFEST), lambda file: file.write(text.encode()))


def read_manifest(
    folder: str | PathLike, kind: str, name: str | PathLike = ""
) -> dict[str, Any] | None:
    """The manifest of `folder`, or None where it has none of this `kind`.

    UserError, which calls the folder `name` if given, where there is one that cannot be read.
    """
    fix = f"restore a copy, or remove {name or folder} and write it anew"
    with naming_damage(pathlib.Path(name or folder, MANIFEST), fix):
        try:
            text = pathlib.Path(folder, MANIFEST).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        manifest = json.loads(text)
    return manifest if isinstance(manifest, dict) and manifest.get("format") == kind else None


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
    for written in [*aside.rglob("*"), aside]:
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
        _clear_old(path)
        yield


def restore(path: str | PathLike) -> None:
    """Moves a folder back that is missing because its writer was killed between two moves."""
    # A writer that is at work moves the new one there; what cannot be looked up has its own error.
    with contextlib.suppress(OSError, RuntimeError, UserError):
        path = pathlib.Path(path).resolve()
        if not path.exists() and _old_of(path).exists():
            with sole_writer(path):
                pass


def _old_of(path):
    """Where a folder is moved for the new one on file systems that cannot exchange them."""
    return path.with_name(f".{path.name}.old")


def _clear_old(path):
    """Moves back, or removes, what a writer that was killed has moved away."""
    if not (old := _old_of(path)).exists():
        return
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(path)


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
        old = _old_of(path)
        path.rename(old)
        aside.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one, other):
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))
