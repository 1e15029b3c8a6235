"""Which files cannot be decoded: found before the first step, once for a run.

The images of a step follow from the list of images, so a resumed run has to leave out the same
files.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import tensorflow as tf
from tqdm import tqdm

from hqc_tf.data import catalog, decoding, pictures
from hqc_tf.data.folder import Item, in_batches, readable
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError

_BATCH = 256
# Errors of reading or decoding a file; others are not the file's fault.
_OF_A_FILE = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    UnicodeDecodeError,  # of a message that has bytes of the file
)


@dataclasses.dataclass(frozen=True)
class Reject:
    """An image that cannot be decoded, by its id, and the reason."""

    id: str
    reason: str


def screen(
    items: Iterable[Item], count: int | None = None, label: str = "checking"
) -> Iterator[Reject]:
    """Yields a `Reject` for each item that training cannot read; they are read while checked.

    `count`, the number of items if it is known, and `label` are for the progress bar.
    """
    with tqdm(total=count, desc=label, unit="image", disable=None) as progress:
        for batch in in_batches(readable(items), _BATCH):
            fits = decoding.decodable([item.contents for item in batch]).numpy()
            for item, fit in zip(batch, fits, strict=True):
                if not fit:
                    yield Reject(item.id, item.reason or decoding.why_refused(item.contents))
            progress.update(len(batch))


def find_rejects(dataset: str, on_bad_image: str) -> list[Reject]:
    """The images in the files of `--dataset` that cannot be decoded; [] of a data set by name.

    UserError, which names the first of them, where `on_bad_image` is "stop".
    """
    source, rejects = catalog.parse(dataset), []
    for reject in screen(source.items()) if source.is_files else ():
        if on_bad_image == "stop":
            fix = "fix or remove it, or take --on_bad_image=skip"
            raise UserError(f"{source.root / reject.id}: {reject.reason}; {fix}")
        rejects.append(reject)
    return rejects


@contextlib.contextmanager
def naming_a_bad_file(images: Images) -> Iterator[None]:
    """Turns the error of a file of `images` that breaks while they are read into a `UserError`."""
    try:
        yield
    except _OF_A_FILE as error:
        if images.paths is None and images.contents is None:
            raise
        items = pictures.as_files(Images.of_files(images.paths) if images.paths else images)
        bad = next(screen(items, len(images), "looking for the bad file"), None)
        if not bad:
            raise
        raise UserError(f"{bad.id}: {bad.reason}; fix it and run the same command again") from error
