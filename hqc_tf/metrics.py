"""Retrieval quality: mAP, precision at k, precision and recall (method, "Evaluation")."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from hqc_tf import retrieval


class RetrievalMetrics(NamedTuple):
    """Means over all queries, those without any relevant image included."""

    mean_average_precision: float
    precision_at_k: np.ndarray  # [top_k] float64, P@1 to P@top_k
    average_precision: np.ndarray  # [Q] float64, of each query

    @property
    def top_k(self) -> int:
        """R of mAP@R, int."""
        return len(self.precision_at_k)


class PrecisionRecall(NamedTuple):
    """Precision and recall of the first 1, 2, ... N places; means over all queries."""

    precision: np.ndarray  # [N] float64
    recall: np.ndarray  # [N] float64


def evaluate_codes(
    codebooks: tf.Tensor,
    database_codes: tf.Tensor,
    database_labels: np.ndarray,
    query_embeddings: tf.Tensor,
    query_labels: np.ndarray,
    top_k: int,
    distance: str = "l2",
) -> RetrievalMetrics:
    """Ranks the database for each query and scores the first `top_k` places.

    Follows the authors' program: an image is relevant when it has the query's class or shares at
    least one label with it, and average precision counts only what stands inside the first
    `top_k` places. Ties go to the lower database row.

    Args:
        codebooks: [M, K, D] float.
        database_codes: [N, M] uint8.
        database_labels: [N] int classes, or [N, C] multi-hot.
        query_embeddings: [Q, M*D] float.
        query_labels: [Q] int classes, or [Q, C] multi-hot, in the form of `database_labels`.
        top_k: places to score, 1 to N.
        distance: "l2" (authors' program) or "squared" (ScaNN).

    Raises:
        ValueError: the labels do not fit the codes, the embeddings or each other, `top_k` is not
            in 1 to N, or an argument is one that `retrieval.asymmetric_distances` refuses.
    """
    _check_count("database_labels", database_labels, "database_codes", database_codes)
    _check_count("query_labels", query_labels, "query_embeddings", query_embeddings)
    if not 1 <= top_k <= len(database_codes):
        raise ValueError(
            f"top_k is {top_k}, but must lie in 1 to {len(database_codes)}, the size of the "
            "database: lower it."
        )
    chunks = retrieval.nearest_by_chunk(
        query_embeddings, database_codes, codebooks, top_k, distance
    )
    return evaluate_rankings(chunks, database_labels, query_labels)


def evaluate_rankings(
    chunks: Iterable[retrieval.Nearest], database_labels: np.ndarray, query_labels: np.ndarray
) -> RetrievalMetrics:
    """As `evaluate_codes`, of any search: scores all places that it returned.

    Args:
        chunks: the `Nearest` of consecutive queries, all with the same number of places.
        database_labels, query_labels: as in `evaluate_codes`.

    Raises:
        ValueError: the labels do not fit each other.
    """
    average_precisions, relevant_at = [], 0
    for relevant in _relevance_by_chunk(chunks, database_labels, query_labels):
        average_precisions.append(average_precision(relevant))
        relevant_at = relevant_at + relevant.sum(axis=0)
    places = np.arange(1, len(relevant_at) + 1)
    found = np.concatenate(average_precisions)
    precision_at_k = np.cumsum(relevant_at) / (places * len(found))
    return RetrievalMetrics(float(found.mean()), precision_at_k, found)


def precision_recall(
    chunks: Iterable[retrieval.Nearest], database_labels: np.ndarray, query_labels: np.ndarray
) -> PrecisionRecall:
    """Precision and recall down to every place, of a search that ranks the whole database.

    Takes and raises what `evaluate_rankings` does, with N places of each query. A query with
    nothing relevant in the database adds 0 to both.
    """
    hits, found_shares, queries = 0, 0, 0
    for relevant in _relevance_by_chunk(chunks, database_labels, query_labels):
        hits = hits + relevant.sum(axis=0)
        found_shares = found_shares + (1 / np.maximum(relevant.sum(axis=1), 1)) @ relevant
        queries += len(relevant)
    places = np.arange(1, len(hits) + 1)
    return PrecisionRecall(np.cumsum(hits) / (places * queries), np.cumsum(found_shares) / queries)


def average_precision(relevant: np.ndarray) -> np.ndarray:
    """Mean, over the relevant places, of the precision down to that place.

    [Q, R] bool, whether the image at each place is relevant, nearest first -> [Q] float64; 0 for a
    query with nothing relevant in its R places.
    """
    hits = np.cumsum(relevant, axis=1)
    precision = hits / np.arange(1, relevant.shape[1] + 1)
    return np.sum(precision, axis=1, where=relevant) / np.maximum(hits[:, -1], 1)


def chance_level(database_labels: np.ndarray, query_labels: np.ndarray, top_k: int) -> float:
    """Expected mAP@top_k of a random order of the database; labels as in `evaluate_codes`.

    Of the top_k = R places, n are relevant, about R p for a share p of the database, and at least
    one with probability P = 1 - (1 - p)^R. The relevant place i has precision
    (1 + (i - 1) (n - 1) / (R - 1)) / i; its mean over places and n is
    P h + (R p - P) / (R - 1) (1 - h), where h is the mean of 1/i. (Draws count as independent:
    the database is taken to be much larger than R.)
    """
    database_labels, query_labels = np.asarray(database_labels), np.asarray(query_labels)
    kinds, queries_of_kind = np.unique(query_labels, axis=0, return_counts=True)
    shares = np.array([relevance(database_labels[None], kind[None]).mean() for kind in kinds])
    first = np.mean(1 / np.arange(1, top_k + 1))
    any_relevant = 1 - (1 - shares) ** top_k
    more = (top_k * shares - any_relevant) / max(top_k - 1, 1)
    expected = any_relevant * first + more * (1 - first)
    return float(np.average(expected, weights=queries_of_kind))


def relevance(found_labels: np.ndarray, query_labels: np.ndarray) -> np.ndarray:
    """[Q, R] bool from classes [Q, R] and [Q], or from multi-hot [Q, R, C] and [Q, C] integers.

    Multi-hot labels may be packed, eight in a byte.
    """
    if query_labels.ndim == 1:
        return found_labels == query_labels[:, None]
    return np.any(found_labels & query_labels[:, None], axis=-1)


def _relevance_by_chunk(chunks, database_labels, query_labels):
    """[q, R] bool of each chunk, whether the image at each place is relevant."""
    database_labels, query_labels = np.asarray(database_labels), np.asarray(query_labels)
    _check_label_forms(database_labels, query_labels)
    if database_labels.ndim == 2:
        database_labels = np.packbits(database_labels.astype(bool), axis=1)
        query_labels = np.packbits(query_labels.astype(bool), axis=1)
    start = 0
    for found in chunks:
        stop = start + len(found.rows)
        yield relevance(database_labels[found.rows.numpy()], query_labels[start:stop])
        start = stop


def _check_label_forms(database_labels, query_labels):
    shapes = f"database_labels {database_labels.shape} and query_labels {query_labels.shape}"
    if database_labels.ndim not in (1, 2) or database_labels.shape[1:] != query_labels.shape[1:]:
        raise ValueError(
            f"{shapes} do not match: both must be classes, [N] and [Q], or multi-hot over the same "
            "C labels, [N, C] and [Q, C]; bring them to one form."
        )
    for name, labels in (("database_labels", database_labels), ("query_labels", query_labels)):
        if labels.ndim == 2 and not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"{name} {labels.shape} reach from {labels.min()} to {labels.max()}, but multi-hot "
                "labels are 0 or 1: pass classes as [N], without a second axis."
            )


def _check_count(labels_name: str, labels: np.ndarray, items_name: str, items: tf.Tensor) -> None:
    if len(labels) != len(items) or not len(items):
        raise ValueError(
            f"{labels_name} has {len(labels)} rows and {items_name} {len(items)}, but each item "
            "needs one row of labels, and there must be an item: take both from the same images."
        )
