"""Retrieval quality: mean average precision and precision at k (method, "Evaluation")."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from hqc_tf import retrieval


class RetrievalMetrics(NamedTuple):
    """Means over all queries, those without any relevant image included."""

    mean_average_precision: float
    precision_at_k: np.ndarray  # [top_k] float64, P@1 to P@top_k


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

    Returns:
        `RetrievalMetrics`.

    Raises:
        ValueError: the labels do not fit the codes, the embeddings or each other, `top_k` is not
            in 1 to N, or an argument is one that `retrieval.asymmetric_distances` refuses.
    """
    database_labels, query_labels = np.asarray(database_labels), np.asarray(query_labels)
    _check_label_forms(database_labels, query_labels)
    _check_count("database_labels", database_labels, "database_codes", database_codes)
    _check_count("query_labels", query_labels, "query_embeddings", query_embeddings)
    if not 1 <= top_k <= len(database_codes):
        raise ValueError(
            f"top_k is {top_k}, but must lie in 1 to {len(database_codes)}, the size of the "
            "database: lower it."
        )
    if database_labels.ndim == 2:
        database_labels = np.packbits(database_labels.astype(bool), axis=1)
        query_labels = np.packbits(query_labels.astype(bool), axis=1)

    average_precisions, relevant_at, start = [], np.zeros(top_k), 0
    for found in retrieval.nearest_by_chunk(
        query_embeddings, database_codes, codebooks, top_k, distance
    ):
        stop = start + len(found.rows)
        relevant = _relevance(database_labels[found.rows.numpy()], query_labels[start:stop])
        average_precisions.append(average_precision(relevant))
        relevant_at += relevant.sum(axis=0)
        start = stop
    precision_at_k = np.cumsum(relevant_at) / (np.arange(1, top_k + 1) * len(query_labels))
    return RetrievalMetrics(float(np.concatenate(average_precisions).mean()), precision_at_k)


def average_precision(relevant: np.ndarray) -> np.ndarray:
    """Mean, over the relevant places, of the precision down to that place.

    Args:
        relevant: [Q, R] bool, whether the image at each place is relevant, nearest first.

    Returns:
        [Q] float64; 0 for a query with nothing relevant in its R places.
    """
    hits = np.cumsum(relevant, axis=1)
    precision = hits / np.arange(1, relevant.shape[1] + 1)
    return np.sum(precision, axis=1, where=relevant) / np.maximum(hits[:, -1], 1)


def chance_level(database_labels: np.ndarray, query_labels: np.ndarray, top_k: int) -> float:
    """mAP@top_k that a random order of the database has in expectation.

    Of the top_k = R places, n are relevant, about R p for a share p of the database, and at least
    one with probability P = 1 - (1 - p)^R. The relevant place i has precision
    (1 + (i - 1) (n - 1) / (R - 1)) / i; its mean over places and n is
    P h + (R p - P) / (R - 1) (1 - h), where h is the mean of 1/i. (Draws count as independent:
    the database is taken to be much larger than R.)

    Args:
        database_labels, query_labels, top_k: as in `evaluate_codes`.
    """
    database_labels, query_labels = np.asarray(database_labels), np.asarray(query_labels)
    kinds, queries_of_kind = np.unique(query_labels, axis=0, return_counts=True)
    if kinds.ndim == 1:
        shares = np.array([np.mean(database_labels == kind) for kind in kinds])
    else:
        shares = np.array([np.mean((database_labels & kind).any(axis=1)) for kind in kinds])
    first = np.mean(1 / np.arange(1, top_k + 1))
    any_relevant = 1 - (1 - shares) ** top_k
    more = (top_k * shares - any_relevant) / max(top_k - 1, 1)
    expected = any_relevant * first + more * (1 - first)
    return float(np.average(expected, weights=queries_of_kind))


def _relevance(found_labels: np.ndarray, query_labels: np.ndarray) -> np.ndarray:
    """[Q, R] bool from classes [Q, R] and [Q], or from packed multi-hot [Q, R, C/8], [Q, C/8]."""
    if query_labels.ndim == 1:
        return found_labels == query_labels[:, None]
    return np.any(found_labels & query_labels[:, None], axis=-1)


def _check_label_forms(database_labels: np.ndarray, query_labels: np.ndarray) -> None:
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
