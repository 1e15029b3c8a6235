"""From images to embeddings and codes, with a model in memory."""

import sys
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from hqc_tf import data

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
      label: what a progress bar calls them; shown on a terminal only, and not where it is empty.

    Returns:
      `Encoded`.
    """
    views = data.plain_batches(images, *model.settings.plain_sizes, BATCH)
    return encode_views(model, views, len(images), label)


def encode_views(model, views, count, label=""):
    """Encodes the first `count` views of a dataset of float32 [b, size, size, 3] in [0, 1]."""
    return collect(map(model.encode, views), count, label)


def collect(batches, count, label=""):
    """Puts (embedding, codes) batches into one `Encoded` of `count` rows, the rest left out."""
    shown = bool(label) and sys.stderr.isatty()
    if shown:
        print(f"encoding {label}", file=sys.stderr)
    bar = tf.keras.utils.Progbar(count, unit_name="image", verbose=int(shown))
    embeddings, codes = [], []
    for embedding, code in batches:
        embeddings.append(embedding.numpy().astype(np.float32))
        codes.append(code.numpy())
        bar.add(len(code))
    return Encoded(np.concatenate(embeddings)[:count], np.concatenate(codes)[:count])
