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
    width = codes.shape[1]
    firsts = np.arange(0, codes.size, width)
    order = distances.argsort(axis=1, kind="stable")
    order += firsts[:, None]
    codes, distances = codes.take(order).astype(np.int64), distances.take(order)
    starts = group_starts.take(codes).astype(np.int64)
    sizes = group_starts.take(codes + 1) - starts
    sizes[np.isinf(distances)] = 0
    # Of the codes at the distance where k rows are reached any can hold the lowest rows.
    reached = np.minimum((sizes.cumsum(axis=1) < k).sum(axis=1), width - 1)
    farthest = distances.take(firsts + reached)[:, None]
    sizes = np.where(distances <= farthest, np.minimum(sizes, k), 0)
    used = sizes.ravel().nonzero()[0]
    counts = sizes.take(used)
    ends = counts.cumsum()
    candidates = used.repeat(counts)
    rows = np.arange(len(candidates)) + (starts.take(used) - ends + counts).repeat(counts)
    rows = grouped_rows.take(rows).astype(np.int64)
    # Candidates are in order; of those equally near to a query, rows are put in order by one key.
    nearer, queries = distances.take(used), used // width
    after = (nearer[1:] != nearer[:-1]) | (queries[1:] != queries[:-1])
    ties = np.zeros(len(used), np.int64)
    after.cumsum(out=ties[1:])
    span = rows.max(initial=0) + 1
    order = (ties.repeat(counts) * span + rows).argsort(kind="stable")
    found = sizes.sum(axis=1)
    places = (found.cumsum() - found)[:, None] + np.arange(k)
    missing = np.arange(k) >= found[:, None]
    if not len(rows):
        none = np.zeros(missing.shape, np.int64)
        return none, np.full(missing.shape, np.inf, np.float32), none.copy()
    chosen = order.take(places, mode="clip")
    candidates = candidates.take(chosen)
    answers = rows.take(chosen), distances.take(candidates), codes.take(candidates)
    if missing.any():
        for values, other in zip(answers, (0, np.inf, 0), strict=True):
            values[missing] = other
    return answers
