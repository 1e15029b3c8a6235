"""Asymmetric retrieval: distances of raw query embeddings to the codes of a database.

A query is not quantized. Its distances to all words of all books are computed once, and the
distance to an image is the sum of those that the image's code names.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from hqc_tf.config import DISTANCES

# The search holds about four float32 arrays of this many elements at once (64 MiB), or of N where
# the database is larger, and 8 bytes for each of the N*M words, whatever the number of queries.
CHUNK_ELEMENTS = 2**22

Tensor = tf.Tensor


class Encoded(NamedTuple):
    """Embeddings float32 [N, M*D] and codes uint8 [N, M] of N images, in their order."""

    embeddings: np.ndarray
    codes: np.ndarray


def collect(batches: Iterable, count: int, label: str = "") -> Encoded:
    """Puts batches into one `Encoded` of N = `count` rows, the rest left out.

    Args:
        batches: pairs of embeddings, float [b, M*D], and codes, uint8 [b, M].
        count: N.
        label: what the progress bar calls the images; no bar where it is empty.
    """
    embeddings, codes = [], []
    with tqdm.tqdm(
        total=count, desc=f"encoding {label}", unit=" images", disable=None if label else True
    ) as bar:
        for embedding, code in batches:
            embeddings.append(embedding.numpy().astype(np.float32))
            codes.append(code.numpy())
            bar.update(min(len(code), count - bar.n))
    return Encoded(np.concatenate(embeddings)[:count], np.concatenate(codes)[:count])


class Nearest(NamedTuple):
    """The k nearest database rows of each query, nearest first."""

    rows: Tensor  # [Q, k] int32
    distances: Tensor  # [Q, k] float32


def distance_tables(query_embeddings: Tensor, codebooks: Tensor, distance: str = "l2") -> Tensor:
    """Distances of every query part to every word of its book, [Q, M, K] float32.

    Differences are taken directly: the three-term expansion loses digits where a part lies near
    a word, and those are the distances that decide the first places.

    Args:
        query_embeddings: [Q, M*D] float, as the network gives them.
        codebooks: [M, K, D] float.
        distance: "l2" for norms (authors' program), "squared" for squared norms (ScaNN).

    Raises:
        ValueError: `distance` is unknown, or the embeddings are not M*D wide.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}, but must be one of {DISTANCES}: pass one.")
    queries, codebooks = (tf.cast(x, tf.float32) for x in (query_embeddings, codebooks))
    num_books, _, word_dim = codebooks.shape
    if queries.shape.rank != 2 or queries.shape[1] != num_books * word_dim:
        raise ValueError(
            f"query_embeddings have the shape {queries.shape}, but codebooks of the shape "
            f"{codebooks.shape} need [Q, {num_books * word_dim}]: embed the queries with the model "
            "that these codebooks belong to."
        )
    parts = tf.reshape(queries, [-1, num_books, 1, word_dim])
    squared = tf.reduce_sum(tf.square(parts - codebooks), axis=-1)
    return tf.sqrt(squared) if distance == "l2" else squared


def asymmetric_distances(
    query_embeddings: Tensor, codes: Tensor, codebooks: Tensor, distance: str = "l2"
) -> Tensor:
    """Distances of every query to every code, [Q, N] float32.

    Equal codes get bit-identical distances to a query, so that ties are ties. Source: the paper's
    method, "Evaluation"; the authors' program.

    Args:
        query_embeddings: [Q, M*D] float.
        codes: [N, M] uint8, the word that each image has in each book.
        codebooks: [M, K, D] float.
        distance: "l2" for the sum over books of norms, "squared" for that of squared norms.

    Raises:
        ValueError: as `distance_tables`, or the codes are not M wide or name a word beyond K.
    """
    tables = distance_tables(query_embeddings, codebooks, distance)
    _, num_books, num_words = tables.shape
    codes = _checked_codes(codes, num_books, num_words)
    # Adds the M table rows of each code in the order of the books. A product with one-hot codes
    # is slower, and at the edges of its blocks it rounds equal codes differently.
    words = codes + np.arange(num_books, dtype=np.int32) * num_words
    images = np.repeat(np.arange(len(codes), dtype=np.int32), num_books)
    by_word = tf.transpose(tf.reshape(tables, [-1, num_books * num_words]))
    return tf.transpose(tf.sparse.segment_sum(by_word, words.ravel(), images))


def candidate_distances(tables: Tensor, codes: Tensor) -> Tensor:
    """Exact distances of each query to candidates of its own, to re-rank an approximate search.

    [Q, M, K] float32 `tables` of `distance_tables` and the [Q, R, M] uint8 `codes` of the R
    candidates of each query -> [Q, R] float32.
    """
    words = tf.transpose(tf.cast(codes, tf.int32), [0, 2, 1])
    return tf.reduce_sum(tf.gather(tables, words, batch_dims=2), axis=1)


def nearest(
    query_embeddings: Tensor, codes: Tensor, codebooks: Tensor, k: int, distance: str = "l2"
) -> Nearest:
    """The k nearest images of each query by exhaustive search; ties go to the lower row.

    Takes and raises what `asymmetric_distances` does, with Q at least 1; k is how many are
    returned, and a ValueError unless it is in 1 to N.
    """
    chunks = list(nearest_by_chunk(query_embeddings, codes, codebooks, k, distance))
    return Nearest(*(tf.concat(parts, axis=0) for parts in zip(*chunks, strict=True)))


def nearest_by_chunk(
    query_embeddings: Tensor, codes: Tensor, codebooks: Tensor, k: int, distance: str = "l2"
) -> Iterator[Nearest]:
    """`nearest` for one run of consecutive queries after the other, where Q*k is too large to hold.

    The arguments and errors are those of `nearest`. A run has as many queries as fit into
    `CHUNK_ELEMENTS` distances, at least one.
    """
    codes = np.asarray(codes)

    def distances_of(queries):
        return asymmetric_distances(queries, codes, codebooks, distance)

    widest = max(len(codes), int(np.prod(codebooks.shape)))
    yield from _nearest_by_chunk(query_embeddings, distances_of, len(codes), widest, k)


def embedding_distances(query_embeddings: Tensor, database_embeddings: Tensor) -> Tensor:
    """Euclidean distances of embeddings, nothing quantized: what codes are measured against.

    Float [Q, E] and [N, E] -> [Q, N] float32. The squared distance is expanded into three terms, so
    that it is right to float32 rounding of the embeddings' squared lengths.
    """
    queries, images = (tf.cast(x, tf.float32) for x in (query_embeddings, database_embeddings))
    of_queries, of_images = (tf.reduce_sum(tf.square(x), axis=1) for x in (queries, images))
    products = tf.matmul(queries, images, transpose_b=True)
    return tf.sqrt(tf.maximum(of_queries[:, None] + of_images - 2 * products, 0))


def nearest_embeddings_by_chunk(
    query_embeddings: Tensor, database_embeddings: Tensor, k: int
) -> Iterator[Nearest]:
    """`nearest_by_chunk` by `embedding_distances`, of float [Q, E] and [N, E].

    k is how many are returned, and a ValueError unless it is in 1 to N.
    """
    images = tf.cast(database_embeddings, tf.float32)

    def distances_of(queries):
        return embedding_distances(queries, images)

    yield from _nearest_by_chunk(query_embeddings, distances_of, len(images), len(images), k)


def _nearest_by_chunk(query_embeddings, distances_of, num_images, elements_per_query, k):
    if not 1 <= k <= num_images:
        raise ValueError(
            f"k is {k}, but must lie in 1 to {num_images}, the number of images: ask for fewer."
        )
    step = max(1, CHUNK_ELEMENTS // elements_per_query)
    for start in range(0, len(query_embeddings), step):
        distances = distances_of(query_embeddings[start : start + step])
        # top_k promises the lower index first among equal values.
        negated, rows = tf.math.top_k(-distances, k)
        yield Nearest(rows, -negated)


def _checked_codes(codes, num_books, num_words):
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != num_books:
        raise ValueError(
            f"codes have the shape {codes.shape}, but {num_books} codebooks need "
            f"[N, {num_books}]: use the codebooks that the codes were made with."
        )
    if codes.size and codes.max() >= num_words:
        raise ValueError(
            f"codes name word {codes.max()}, but the codebooks have words 0 to {num_words - 1}: "
            "use the codebooks that the codes were made with."
        )
    return codes
