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
      label: what a progress bar calls them; shown on a terminal only.

    Returns:
      `Encoded`.
    """
    resize_size, size = model.settings.plain_sizes
    views = data.plain_batches(images, resize_size, size, BATCH)
    encode = tf.function(model.encode, input_signature=[tf.TensorSpec([None, size, size, 3])])
    return collect(map(encode, views), len(images), label)


def collect(batches, count, label):
    """Puts (embedding, codes) batches into one `Encoded`, with a progress bar on a terminal."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"encoding {label}", file=sys.stderr)
    bar = tf.keras.utils.Progbar(count, unit_name="image", verbose=int(shown))
    embeddings, codes = [], []
    for embedding, code in batches:
        embeddings.append(embedding.numpy().astype(np.float32))
        codes.append(code.numpy())
        bar.add(len(code))
    return Encoded(np.concatenate(embeddings), np.concatenate(codes))
