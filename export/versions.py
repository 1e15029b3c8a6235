"""Folders of numbered versions, as TensorFlow Serving watches them: each whole, or not there."""

import contextlib
import pathlib
import re
import shutil

from hqc_tf.errors import UserError


def versions(output):
    """The versions under `output`, as ints."""
    names = [path.name for path in pathlib.Path(output).glob("*") if path.is_dir()]
    return [int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)]


def newest(path):
    """The folder of the newest version under `path`, or `path` itself where there is none."""
    path = pathlib.Path(path).resolve()
    found = versions(path)
    return path / str(max(found)) if found else path


def free_version(output, number=None):
    """The version to write: `number`, or without one the next.

    Raises:
      UserError: `output` is a file, or version `number` stands already.
    """
    output = pathlib.Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output}: a file, but versions lie in a folder; name another")
    if number is None:
        return max(versions(output), default=0) + 1
    if (output / str(number)).exists():
        raise UserError(
            f"--version={number}: stands in {output} already, and a server may read it; take "
            "another number, or none for the next"
        )
    return number


@contextlib.contextmanager
def new_version(output, number):
    """Yields a folder to fill, which becomes version `number` once the block has ended well."""
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    # Serving looks only at folders whose name is a number.
    aside = output / f".{number}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        yield aside
        aside.rename(output / str(number))
    finally:
        shutil.rmtree(aside, ignore_errors=True)
