"""From images to embeddings and codes, with a model in memory."""

from typing import NamedTuple

import numpy as np

from hqc_tf.data import screening
from hqc_tf.data.batches import plain_batches
from hqc_tf.progress import Progress

BATCH = 256


class Encoded(NamedTuple):
    """Embeddings float32 [N, M*D] and codes uint8 [N, M] of N images, in their order."""

    embeddings: np.ndarray
    codes: np.ndarray


def encode_images(model, images, label=""):
    """Encodes the plain view of every image.

    Args:
      model: `HQC`.
      images: `data.Images`.
      label: what a terminal calls them while it shows how far it is; nothing where it is empty.

    Returns:
      `Encoded`.

    Raises:
      UserError: a file cannot be decoded.
    """
    views = plain_batches(images, *model.settings.plain_sizes, BATCH)
    with screening.naming_a_bad_file(images):
        return encode_views(model, views, len(images), label)


def encode_views(model, views, count, label=""):
    """Encodes the first `count` views of a dataset of float32 [b, size, size, 3] in [0, 1]."""
    return collect(map(model.encode, views), count, label)


def collect(batches, count, label=""):
    """Puts (embedding, codes) batches into one `Encoded` of `count` rows, the rest left out."""
    embeddings, codes = [], []
    with Progress(count, f"encoding {label}", quiet=not label) as progress:
        for embedding, code in batches:
            embeddings.append(embedding.numpy().astype(np.float32))
            codes.append(code.numpy())
            progress.add(min(len(code), count - progress.count))
    return Encoded(np.concatenate(embeddings)[:count], np.concatenate(codes)[:count])
