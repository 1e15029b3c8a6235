"""Files that are there whole or not at all, and the one line that a full disk ends with."""

import contextlib
import errno
import os

import tensorflow as tf

from hqc_tf.config import UserError

# What a disk answers that takes no more: full, over a quota, over the largest size of a file.
_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def replace_text(path, text):
    """Writes a text file, on the disk before this returns; until then the one before stays.

    Args:
      path: `pathlib.Path`.
      text: all that the file is to hold.

    Raises:
      UserError: the disk is full.
    """
    aside = path.with_name(f".{path.name}")
    with naming_a_full_disk(path):
        try:
            with aside.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise


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
