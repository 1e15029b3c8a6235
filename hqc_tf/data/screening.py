"""Which files of a folder are images: decided before the first step, once for a run.

What a step sees follows from the list of images, so a file that cannot be decoded has to be known
before, and a run that goes on has to leave out the same ones.
"""

import contextlib
import dataclasses
import pathlib

import tensorflow as tf
import tqdm

from hqc_tf.data import decoding
from hqc_tf.data.folder import in_batches, read_items, walk
from hqc_tf.errors import UserError

_BATCH = 256
# What reading or decoding a file ends with; others are not a file's fault.
_OF_A_FILE = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
)


@dataclasses.dataclass(frozen=True)
class Reject:
    """An image that cannot be decoded, by its id, and the reason."""

    id: str
    reason: str


def screen(root, names, label="checking"):
    """Yields a `Reject` of each of `names` under `root` that is no image training can read.

    Args:
      root: folder.
      names: list of str, relative to it.
      label: what a line on the terminal begins with.
    """
    with tqdm.tqdm(total=len(names), desc=label, unit=" images", disable=None) as bar:
        for batch in in_batches(read_items(root, names), _BATCH):
            fits = decoding.decodable([item.contents for item in batch]).numpy()
            for item in (item for item, fit in zip(batch, fits, strict=True) if not fit):
                reason = item.reason or decoding.why_refused(item.contents)
                yield Reject(item.id, reason)
            bar.update(len(batch))


def find_rejects(dataset, on_bad_image):
    """The files of `--dataset` that cannot be decoded, a list of `Reject`; [] of no folder.

    Raises:
      UserError: `on_bad_image` is "stop", and there is one; it is named.
    """
    if not dataset.startswith("folder:"):
        return []
    root = pathlib.Path(dataset.removeprefix("folder:"))
    # A root that is missing is reported where it is read.
    names = [*walk(root)] if root.is_dir() else []
    rejects = []
    for reject in screen(root, names):
        if on_bad_image == "stop":
            raise UserError(
                f"{root / reject.id}: {reject.reason}; fix or remove it, or take "
                "--on_bad_image=skip"
            )
        rejects.append(reject)
    return rejects


@contextlib.contextmanager
def naming_a_bad_file(images):
    """Turns the error of a file that cannot be decoded, as it is read, into a `UserError`.

    Args:
      images: the `data.Images` that are read.
    """
    try:
        yield
    except _OF_A_FILE as error:
        bad = images.paths and next(screen("", images.paths, "looking for the bad file"), None)
        if not bad:
            raise
        raise UserError(f"{bad.id}: {bad.reason}; fix it and run the same command again") from error
