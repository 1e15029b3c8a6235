"""Exact distances of candidate codes, and the images of the nearest of them, in NumPy.

One query's answer takes less time than TensorFlow needs to start a few operations.
"""

import numpy as np


def distance_tables(embeddings: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Squared distances of [Q, M*D] float32 queries to every word: [Q, M, K] float32.

    A query's tables do not depend on the others: dimensions are added in their order.
    """
    num_books, _, word_dim = codebooks.shape
    # Queries are innermost, as long loops are quick.
    parts = embeddings.reshape(-1, num_books, word_dim).transpose(2, 1, 0)[:, :, None]
    words = codebooks.transpose(2, 0, 1)[..., None]
    differences = np.subtract(parts, words, order="C")
    np.multiply(differences, differences, out=differences)
    return np.ascontiguousarray(np.add.reduce(differences, axis=0).transpose(2, 0, 1))


def word_distances(tables: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """What each book adds to the distances of candidates: [M, Q, R] float32.

    Summed over their first axis, and it is the outermost in memory, books are added in their
    order, as `retrieval` does: other roundings would break ties.

    Args:
        tables: [Q, M, K] float32.
        codes: [Q, R, M] uint8, R candidates of each query.
    """
    num_queries, num_books, num_words = tables.shape
    starts = np.arange(0, tables.size, num_words).reshape(num_queries, num_books)
    places = codes.transpose(2, 0, 1) + starts.T[..., None]
    return tables.ravel().take(places)


def expand(
    codes: np.ndarray,
    distances: np.ndarray,
    grouped_rows: np.ndarray,
    group_starts: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts the rows of candidates in order of (distance, row) and keeps k of each query.

    Args:
        codes: [Q, R] integers, different in a query.
        distances: [Q, R] float32, infinite for what is no candidate.
        grouped_rows: [N] unsigned, rows of the first code in rising order, then the next.
        group_starts: [U+1] unsigned, where each code's rows begin in `grouped_rows`.
        k: how many.

    Returns:
        rows [Q, k] int64, distances [Q, k] float32 and codes [Q, k] int64. Where a query's
        candidates have fewer rows, distances are infinite at the end.
    """
    order = np.argsort(distances, axis=1, kind="stable")
    queries = np.arange(len(codes))[:, None]
    codes, distances = codes[queries, order].astype(np.int64), distances[queries, order]
    starts = group_starts[codes].astype(np.int64)
    sizes = group_starts[codes + 1].astype(np.int64) - starts
    sizes[np.isinf(distances)] = 0
    taken = _taken(sizes, distances, k)
    used = np.flatnonzero(taken)
    counts = taken.ravel()[used]
    queries = np.repeat(used // codes.shape[1], counts)
    codes, distances, starts = (x.ravel()[used].repeat(counts) for x in (codes, distances, starts))
    offsets = np.arange(len(starts)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = grouped_rows[starts + offsets].astype(np.int64)
    order = np.lexsort((rows, distances, queries))
    places = np.searchsorted(queries, np.arange(len(taken)))[:, None] + np.arange(k)
    found = np.arange(k) < taken.sum(axis=1, keepdims=True)
    chosen = order[places[found]]
    answers = np.zeros([2, *found.shape], np.int64)
    answers[0, found], answers[1, found] = rows[chosen], codes[chosen]
    nearest = np.full(found.shape, np.inf, np.float32)
    nearest[found] = distances[chosen]
    return answers[0], nearest, answers[1]


def _taken(sizes, distances, k):
    """How many rows of each candidate can be among the nearest k, [Q, R]."""
    # A code may fill the places that strictly nearer ones leave; equally near codes all may, for
    # any of them can hold the lowest rows.
    nearer = np.cumsum(sizes, axis=1) - sizes
    nearer[:, 1:][distances[:, 1:] == distances[:, :-1]] = 0
    return np.clip(k - np.maximum.accumulate(nearer, axis=1), 0, sizes)
