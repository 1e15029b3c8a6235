"""Which files of a folder are images: decided before the first step, once for a run.

What a step sees follows from the list of images, so a file that cannot be decoded has to be known
before, and a resumed run has to leave out the same ones.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import tensorflow as tf
from tqdm import tqdm

from hqc_tf.data import catalog, decoding
from hqc_tf.data.folder import Item, in_batches, read_items
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


def screen(
    items: Iterable[Item], count: int | None = None, label: str = "checking"
) -> Iterator[Reject]:
    """Yields a `Reject` for each item that training cannot read.

    Args:
        items: `Item`s, read while they are checked.
        count: how many there are, where known.
        label: what a line on the terminal begins with.
    """
    with tqdm(total=count, desc=label, unit="image", disable=None) as progress:
        for batch in in_batches(items, _BATCH):
            fits = decoding.decodable([item.contents for item in batch]).numpy()
            for item in (item for item, fit in zip(batch, fits, strict=True) if not fit):
                yield Reject(item.id, item.reason or decoding.why_refused(item.contents))
            progress.update(len(batch))


def find_rejects(dataset: str, on_bad_image: str) -> list[Reject]:
    """The images in the files of `--dataset` that cannot be decoded; [] of a data set by name.

    Raises:
        UserError: `on_bad_image` is "stop", and there is one; it is named.
    """
    source, rejects = catalog.parse(dataset), []
    for reject in screen(source.items()) if source.is_files else ():
        if on_bad_image == "stop":
            raise UserError(
                f"{source.root / reject.id}: {reject.reason}; fix or remove it, or take "
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
        if images.paths is not None:
            items = read_items("", images.paths)
        elif images.contents is not None:
            items = map(Item, images.ids, images.contents)
        else:
            raise
        bad = next(screen(items, len(images), "looking for the bad file"), None)
        if not bad:
            raise
        raise UserError(f"{bad.id}: {bad.reason}; fix it and run the same command again") from error
