"""Errors that a user can fix, in one line: the value, the rule and the fix."""

import contextlib
import errno
import importlib.util
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence

# What Python raises on files whose bytes are not those that were written.
_DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError,
    EOFError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
# Of an error's text; Keras' may have the whole network in it.
_REASON_CHARACTERS = 300
# The system's words for a full disk, an exceeded quota and a file that is too large.
_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class UserError(ValueError):
    """Input that a user can fix; the message is one line with the value, the rule and the fix."""


@contextlib.contextmanager
def naming_damage(path: str | os.PathLike, fix: str) -> Iterator[None]:
    """Turns errors of Python and TensorFlow on a damaged file or folder into a `UserError`.

    The message names `path`, and ends with `fix`, what to do about it.
    """
    try:
        yield
    except UserError:
        raise
    except (*_DAMAGE, *_tensorflow_errors()) as error:
        reason = first_line(error)
        if len(reason) > _REASON_CHARACTERS:
            reason = f"{reason[:_REASON_CHARACTERS]}..."
        raise UserError(f"{path}: cannot be read ({reason}); {fix}") from error


@contextlib.contextmanager
def naming_a_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """Turns errors of Python and TensorFlow on a full disk into a `UserError` that names `path`."""
    try:
        yield
    except (OSError, *_tensorflow_errors()) as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"{path}: the disk is full ({first_line(error)}); free space there and run the same "
            "command again, which resumes from what is complete"
        ) from error


def is_disk_full(error: Exception) -> bool:
    """Whether an error of Python, Arrow or TensorFlow says that a disk or quota is full."""
    return any(full in first_line(error) for full in _FULL)


def printable(text: object) -> str:
    r"""Text with a backslash escape, such as \n, for every character that is not printable."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def counted(count: int, noun: str) -> str:
    """A number and what there are so many of: 1 image, 2 images, 3 queries."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun[:-1]}ies" if noun.endswith("ry") else f"{count} {noun}s"


def _tensorflow_errors():
    # Importing TensorFlow takes seconds; where it is not loaded it cannot have raised.
    tensorflow = sys.modules.get("tensorflow")
    return (tensorflow.errors.OpError,) if tensorflow else ()


def check_packages(what: str, needed: Sequence[str], extras: str) -> None:
    """Raises `UserError` where `what` needs packages that are not installed, with their extras."""
    if missing := [name for name in needed if not importlib.util.find_spec(name)]:
        names = " and ".join(missing)
        raise UserError(f"{what} needs {names}; pip install 'hqc-tf[{extras}]'")


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    # TensorFlow puts the operation's name, in braces, before the reason.
    return str(error).strip().partition("\n")[0].rpartition("}} ")[2]
