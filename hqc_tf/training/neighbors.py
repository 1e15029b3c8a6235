"""A last layer that gives each image the mean embedding of its nearest images.

Contrast tells every image from every other, and a search for images of a kind should not. The
neighbors of an embedding are mostly of its kind: their mean keeps what they share, and has less for
the codebooks to lose. Ridge regression from the layer's inputs to these means is that layer.
"""

import numpy as np

from hqc_tf import retrieval

# One image in so many is a neighbor, and so many at least.
_PER_NEIGHBOR, _LEAST = 1024, 5
# Added to the mean square of an input.
_RIDGE = 1e-3


def fit_layer(hidden: np.ndarray, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel float32 [H, E] and bias float32 [E] of the layer.

    Args:
        hidden: float [n, H], the layer's inputs of n images, of which each is compared with each.
        embeddings: float [n, E] of the same images.
    """
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = (embeddings / np.maximum(lengths, 1e-12)).astype(np.float32)
    count = min(len(unit), max(_LEAST, len(unit) // _PER_NEIGHBOR))
    nearest = retrieval.nearest_embeddings_by_chunk(unit, unit, count)
    means = np.concatenate([unit[found.rows.numpy()].mean(axis=1) for found in nearest])
    return _regress(np.float64(hidden), means * lengths.mean())


def _regress(inputs, targets):
    mean, target_mean = inputs.mean(axis=0), targets.mean(axis=0)
    centered = inputs - mean
    squares = centered.T @ centered
    # Inputs that are all alike leave the targets' mean.
    ridge = max(_RIDGE * np.trace(squares) / len(squares), np.finfo(np.float32).tiny)
    squares.flat[:: len(squares) + 1] += ridge
    kernel = np.linalg.solve(squares, centered.T @ (targets - target_mean))
    return np.float32(kernel), np.float32(target_mean - mean @ kernel)
