"""Files that are there whole or not at all, and the one line that a full disk ends with."""

import contextlib
import errno
import json
import os

import tensorflow as tf

from hqc_tf.config import UserError

# What a disk answers that takes no more: full, over a quota, over the largest size of a file.
_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def write_whole(path, write, aside=None):
    """Writes a file, on the disk before this returns; until then the one before stays.

    Args:
      path: `pathlib.Path`.
      write: called with a binary file.
      aside: where it is written first, beside `path`; None: .NAME. A killed process leaves it.
    """
    aside = aside or path.with_name(f".{path.name}")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def replace_text(path, text):
    """`write_whole` of a text.

    Args:
      path: `pathlib.Path`.
      text: all that the file is to hold.

    Raises:
      UserError: the disk is full.
    """
    with naming_a_full_disk(path):
        write_whole(path, lambda file: file.write(text.encode()))


def read_lines(path):
    """What a file of JSON holds, a value a line; empty where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def replace_lines(path, lines):
    """`replace_text` of what `read_lines` is to give."""
    replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))


@contextlib.contextmanager
def naming_a_full_disk(path):
    """Turns the errors of a disk that takes no more, Python's and TensorFlow's, into a `UserError`.

    Args:
      path: file or folder that is written, for the message.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        # Behind the name that TensorFlow gives the operation.
        said = str(error).splitlines()[0].rpartition("}} ")[2]
        if not any(reason in said for reason in _FULL):
            raise
        raise UserError(
            f"{path}: its disk takes no more ({said}); make room there and give the same command "
            "again, which goes on from what is whole"
        ) from error
