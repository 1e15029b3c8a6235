"""Atomic writes, locks, names that TensorFlow can read, and files of JSON lines as dataclasses."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TypeVar

import msgspec

from hqc_tf.errors import UserError, naming_a_full_disk, naming_damage

Line = TypeVar("Line")
# Metadata of the dict field of a dataclass that takes every name of a line without a field.
REST = {"rest": True}
# TensorFlow takes the name of a checkpoint or SavedModel that it reads for a pattern.
_WILDCARDS = "*?[]{}\\"
# File systems without locks, as some network ones are.
_NO_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP


def check_folder_name(path: str | os.PathLike, flag: str = "") -> None:
    """Raises `UserError` where TensorFlow could not read what it has written below `path`.

    `flag`, such as "--output=", is how the user gave the name.
    """
    name = os.fspath(path)
    if found := [character for character in _WILDCARDS if character in name]:
        raise UserError(
            f"{flag}{name}: TensorFlow takes {' '.join(found)} in a folder's name for a pattern; "
            "rename the folder, or take another"
        )
    if not is_utf8(name):
        raise UserError(f"{flag}{name}: a folder's name must be UTF-8; rename it, or take another")


def check_parent(path: str | os.PathLike, flag: str = "") -> None:
    """Raises `UserError` where a file cannot be written at `path`, for want of a folder.

    `flag`, such as "--output=", is how the user gave the name.
    """
    folder = pathlib.Path(path).parent
    if not folder.is_dir():
        raise UserError(f"{flag}{path}: there is no folder {folder}; make it")


def is_utf8(name: str) -> bool:
    """Whether a name is UTF-8; Python holds other bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def absolute(path: str | os.PathLike) -> pathlib.Path:
    """A path from the root, without `..` unless that is another place: a link leads elsewhere."""
    whole, short = pathlib.Path(path).absolute(), pathlib.Path(os.path.abspath(path))  # noqa: PTH100
    is_other = whole.exists() and not (short.exists() and whole.samefile(short))
    return whole if is_other else short


@contextlib.contextmanager
def sole_holder(lock: pathlib.Path, refusal: str) -> Iterator[None]:
    """Holds the file `lock`, which a kill frees; UserError(refusal) where another process does.

    On a file system without locks every process holds it.
    """
    # Another process may hold it, and what it has written there stays.
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file after it was opened.
            held = _is_at(file, lock)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, *_NO_LOCKS):
                raise
            held = error.errno in _NO_LOCKS
        if not held:
            raise UserError(refusal)
        try:
            yield
        finally:
            # Where the holder has moved it, the next one's may be there.
            if _is_at(file, lock):
                lock.unlink(missing_ok=True)


def _is_at(file, path):
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_atomically(
    path: pathlib.Path, write: Callable[[BinaryIO], object], aside: pathlib.Path | None = None
) -> None:
    """Writes a file by `write`, on the disk before this returns; until then the old one stays.

    `aside`, by default .NAME.partial, is written first; a killed process leaves it there. UserError
    where another process is writing the same.
    """
    if not path.name or path.is_dir():
        raise UserError(f"{str(path)!r}: a folder, not a file to write; name a file")
    aside = aside or path.with_name(f".{path.name}.partial")
    refusal = f"{path}: another process is writing it; wait until it has ended, or name another"
    with sole_holder(aside, refusal):
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)


def write_shared(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically, in place of an older one, by calling `write` with a binary file.

    Several processes may write it at once; a killed one leaves .NAME.*.partial.
    """
    # Processes on two machines that share the folder may have the same process id.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    write_atomically(path, write, aside)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a file that a user names; OSError for a pipe or device, whose end may never come."""
    # Opening a pipe must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: str | os.PathLike) -> bytes:
    """The contents of a file, opened by `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically; UserError where the disk is full."""
    with naming_a_full_disk(path):
        write_atomically(path, lambda file: file.write(text.encode()))


def sync(path: str | os.PathLike) -> None:
    """Returns once a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: pathlib.Path, kind: type[Line]) -> list[Line]:
    """The lines of a file of JSON objects, decoded; empty where there is no file.

    `kind` is a dataclass with a field for each name; a field whose metadata is `REST` takes the
    other names, which are ignored where there is no such field. UserError where the file cannot be
    read or a line does not fit `kind`; its number is named.
    """
    if not path.exists():
        return []
    with naming_damage(path, "fix it or restore a copy"):
        lines = path.read_text().splitlines()
    return parse_lines(lines, path, kind)


def parse_lines(
    lines: Iterable[str], path: str | os.PathLike, kind: type[Line], first: int = 1
) -> list[Line]:
    """As `read_lines`, of lines of `path` that were read already, from number `first` on."""
    found = []
    for number, text in enumerate(lines, start=first):
        try:
            found.append(_from_json(json.loads(text), kind))
        except (ValueError, RecursionError) as error:
            fix = "fix it or remove the line"
            raise UserError(f"{path}: line {number}: {error}; {fix}") from error
    return found


def write_lines(path: pathlib.Path, lines: Iterable[Any]) -> None:
    """Writes a file atomically from which `read_lines` reads the same dataclasses."""
    replace_text(path, to_text(lines))


def to_text(lines: Iterable[Any]) -> str:
    """The JSON lines of dataclasses."""
    return "".join(json.dumps(as_json(line)) + "\n" for line in lines)


def as_json(line: Any) -> dict[str, Any]:
    """A line's dataclass as the dict that is written; fields that are None are left out."""
    rest = _rest_name(type(line))
    values = {}
    for name, value in dataclasses.asdict(line).items():
        values |= value if name == rest else {name: value} if value is not None else {}
    return values


def _from_json(values, kind):
    rest = _rest_name(kind)
    if rest and isinstance(values, dict):
        names = {field.name for field in dataclasses.fields(kind)} - {rest}
        others = {name: values[name] for name in values.keys() - names}
        values = {name: values[name] for name in values if name in names} | {rest: others}
    return msgspec.convert(values, kind)


def _rest_name(kind):
    return next((field.name for field in dataclasses.fields(kind) if field.metadata == REST), None)
