"""Folders that appear whole or not at all, and their manifests."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import pathlib
import shutil
import uuid

from hqc_tf import files
from hqc_tf.errors import UserError

MANIFEST = "manifest.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_manifest(folder, kind, contents):
    """Writes dict `contents`, which JSON can hold, as the manifest of a `kind` of folder."""
    text = json.dumps({"format": kind, **contents}, indent=2) + "\n"
    write_whole(pathlib.Path(folder, MANIFEST), lambda file: file.write(text.encode()))


def read_manifest(folder, kind):
    """The manifest of `folder` as a dict, or None where it has none of this `kind`."""
    try:
        manifest = json.loads(pathlib.Path(folder, MANIFEST).read_text())
        return manifest if manifest["format"] == kind else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_whole(path, write):
    """`files.write_atomically` where others may write the same; one killed leaves .NAME.*.partial.

    Args:
      path: `pathlib.Path` of the file; one that stands is replaced.
      write: called with a binary file.
    """
    # Two machines that share the folder may have processes of one number.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    files.write_atomically(path, write, aside)


@contextlib.contextmanager
def new_folder(path):
    """Yields a folder to fill, which stands at `path` once the block has ended well.

    What stands at `path` until then is found there at every instant, and removed at the end; who
    has its files open keeps them.

    Raises:
      UserError: another process is writing at `path`.
    """
    path = pathlib.Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    with _sole_writer(path):
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            yield aside
            _sync_all(aside)
            _move(aside, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _sole_writer(path):
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed it since it was opened.
            held = lock.exists() and lock.stat().st_ino == os.fstat(file.fileno()).st_ino
        except BlockingIOError:
            held = False
        if not held:
            raise UserError(f"{path}: another process is writing it; wait until that has ended")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _move(aside, path):
    if not path.exists():
        aside.rename(path)
        return
    try:
        _exchange(aside, path)
    except OSError as error:
        # Network and older file systems cannot; between these two moves `path` is missing.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        aside.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one, other):
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def _sync_all(folder):
    for file in [*folder.iterdir(), folder]:
        _sync(file)


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
