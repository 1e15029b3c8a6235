"""The first images of a search by codes, in the order of the embeddings kept beside them."""

import numpy as np

from export import kept
from hqc_tf import retrieval


def rescore(
    embeddings: np.ndarray, rows: np.ndarray, kept_rows: np.ndarray, keep: str, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k of each query's images whose kept embeddings are nearest; ties go to the lower row.

    Args:
        embeddings: [Q, E] float32 of the queries.
        rows: [Q, R] int64, R at least k, of images.
        kept_rows: [N, W] uint8, the embeddings of all images by `kept.pack`.
        keep: how they are kept.
        k: how many.

    Returns:
        places: [Q, k] int64 in the second axis of `rows`, nearest first.
        distances: [Q, k] float32, squared.
    """
    count, width = rows.shape[1], embeddings.shape[1]
    step = max(1, retrieval.CHUNK_ELEMENTS // max(1, count * width))
    distances = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        own = rows[part]
        values = kept.unpack(kept_rows[own.ravel()], keep).reshape(len(own), count, width)
        distances[part] = np.square(values - embeddings[part, None]).sum(-1)
    places = np.lexsort((rows, distances), axis=1)[:, :k]
    return places, np.take_along_axis(distances, places, 1)
