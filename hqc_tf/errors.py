"""Errors a user can fix, named in one line: the value, the rule and the fix."""

import contextlib
import errno
import os

import tensorflow as tf

# What TensorFlow and Python raise on files whose bytes are not what was written.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    tf.errors.OpError,
)


# What a disk answers that takes no more: full, over a quota, over the largest size of a file.
_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class UserError(ValueError):
    """Input a person can mend; the message names the value, the rule and the mend in one line."""


@contextlib.contextmanager
def naming_damage(path, mend):
    """Turns what reading a damaged file raises, in Python and in TensorFlow, into a `UserError`.

    Args:
      path: file or folder that is read, for the message.
      mend: what to do about it, the message's end.
    """
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        said = str(error).partition("\n")[0].rpartition("}} ")[2]
        raise UserError(f"{path}: cannot be read ({said}); {mend}") from error


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


def printable(text):
    r"""Text with a backslash escape for every character that does not show, such as \n."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return "".join(shown)
