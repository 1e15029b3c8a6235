"""Raw pixels under a benchmark's protocol: what a search finds without training a network.

The plain view of each image at length one, its principal components, and OPQ at the same number of
bits. Of features, those: what a search of them finds without training.
"""

import numpy as np
import tensorflow as tf

from hqc_tf import metrics
from hqc_tf.baselines import opq
from hqc_tf.data.batches import plain_batches
from hqc_tf.data.images import Images
from hqc_tf.data.pictures import spread

# A larger image is shrunk: its first components are as smooth.
MOST_SIDE_PIXELS = 32
LEAST_COMPONENTS, LEAST_OF_FEATURES = 64, 128
_SAMPLE = 20_000
_BATCH = 256


def evaluate(
    trained_on: Images,
    database: Images,
    queries: Images,
    size: int,
    num_books: int,
    num_words: int,
    top_k: int,
) -> metrics.RetrievalMetrics | None:
    """Scores PCA and OPQ of raw pixels, by squared distance.

    Args:
        trained_on: images that components, rotation and codebooks are fitted to.
        database: images that are searched, with labels.
        queries: images that query them, with labels.
        size: side of the views in pixels; at most `MOST_SIDE_PIXELS` count.
        num_books: M.
        num_words: K.
        top_k: as in `metrics.evaluate_codes`.

    Returns:
        `RetrievalMetrics`; None where there are too few images to fit, or pixels to divide.

    Raises:
        UserError: FAISS is not installed.
    """
    size = min(size, MOST_SIDE_PIXELS)
    least, width = LEAST_COMPONENTS, 3 * size**2
    if trained_on.features is not None:
        least, width = LEAST_OF_FEATURES, trained_on.features.shape[1]
    # A multiple of the books, so that each has as many.
    components = num_books * -(-min(least, width) // num_books)
    if components > width or len(trained_on) < max(components, num_words):
        return None
    sample = trained_on.take(spread(len(trained_on), _SAMPLE))
    mean, axes = principal(tf.concat(list(_views(sample, size)), 0), components)

    # TensorFlow's products: NumPy's threads and the pipeline's would wait for each other.
    def project(images):
        batches = [tf.matmul(batch - mean, axes).numpy() for batch in _views(images, size)]
        return np.concatenate(batches)

    some = trained_on.take(spread(len(trained_on), opq.MOST_VECTORS))
    fit = opq.fit(project(some), num_books, num_words)
    codes = opq.encode(project(database) @ fit.rotation, fit.codebooks)
    rotated = project(queries) @ fit.rotation
    return metrics.evaluate_codes(
        fit.codebooks, codes, database.labels, rotated, queries.labels, top_k, "squared"
    )


def _views(images, size):
    for batch in plain_batches(images, size, size, _BATCH):
        yield tf.math.l2_normalize(tf.reshape(batch, [len(batch), -1]), axis=1)


def principal(values: np.ndarray | tf.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [P] and the largest principal axes, `count` at most, [P, count], of float32 [n, P]."""
    mean = tf.reduce_mean(values, 0)
    centered = values - mean
    _, axes = np.linalg.eigh(tf.matmul(centered, centered, transpose_a=True))
    return mean.numpy(), axes[:, ::-1][:, :count]
