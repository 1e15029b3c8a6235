"""Queries and the images that are found for them, as the page shows them."""

from typing import NamedTuple

import numpy as np

from hqc_tf import metrics
from hqc_tf.data import pictures
from hqc_tf.errors import printable
from hqc_tf.report.numbers import Scene

# Queries of each kind, images found for each, and images found by a single book.
QUERIES, FOUND, FOUND_BY_BOOK = 3, 10, 8
# Longest side of a picture, in pixels.
SIDE = 72
KINDS_BY_PRECISION = "Best", "Median", "Worst"
KINDS_BY_DISTANCE = "Nearest", "Median", "Farthest"


class Shown(NamedTuple):
    """An image on the page."""

    png: bytes  # of its picture
    name: str  # its id, with all characters visible
    label: str  # its label's name, likewise; "" where none is known
    distance: float | None = None  # to the query, None of the query itself
    relevant: bool | None = None  # whether it has a label of the query, None where none is known


class Neighbors(NamedTuple):
    """A query and what is found for it."""

    kind: str  # one of `KINDS_BY_PRECISION` or `KINDS_BY_DISTANCE`
    query: Shown
    average_precision: float | None  # of the query's whole result
    found: list[Shown]  # nearest first
    by_book: list[list[Shown]]  # found where one book alone is compared; empty of most queries


def choose(order: np.ndarray, count: int) -> list[np.ndarray]:
    """The first, the middle and the last `count` of int [Q] rows; fewer of few rows."""
    count = max(1, min(count, len(order) // 3))
    middle = (len(order) - count) // 2
    return [order[:count], order[middle : middle + count], order[len(order) - count :]]


def by_precision(scene: Scene, average_precision: np.ndarray) -> list[Neighbors]:
    """Best, median and worst queries of a scene with labels, by float [Q] average precision."""
    worst, median, best = choose(np.argsort(average_precision, kind="stable"), QUERIES)
    kinds = zip(KINDS_BY_PRECISION, (best[::-1], median, worst), strict=True)
    return [one for kind in kinds for one in _neighbors(scene, *kind, average_precision)]


def by_distance(scene: Scene) -> list[Neighbors]:
    """The queries whose nearest image is nearest, median and farthest."""
    nearest = [found.distances[:, 0] for found in scene.by_codes(scene.query.embeddings, 1)]
    chosen = choose(np.argsort(np.concatenate(nearest), kind="stable"), QUERIES)
    kinds = zip(KINDS_BY_DISTANCE, chosen, strict=True)
    return [one for kind in kinds for one in _neighbors(scene, *kind)]


def _neighbors(scene, kind, rows, average_precision=None):
    embeddings, count = scene.query.embeddings[rows], len(scene.images)
    found = _search(scene.by_codes(embeddings, min(FOUND, count)))
    # A row of pictures for each book is much to look at: of the first query of a kind only.
    k = min(FOUND_BY_BOOK, count)
    by_book = [_search(scene.by_embeddings(embeddings[:1], k, part)) for part in scene.parts]
    neighbors = []
    for place, row in enumerate(rows):
        precision = None if average_precision is None else float(average_precision[row])
        by_code = _shown_found(scene, row, found, place)
        books = [_shown_found(scene, row, one, 0) for one in by_book if place == 0]
        neighbors.append(Neighbors(kind, _shown(scene.queries, row), precision, by_code, books))
    return neighbors


def _search(chunks):
    rows, distances = zip(*chunks, strict=True)
    return np.concatenate(rows), np.concatenate(distances)


def _shown_found(scene, query, found, place):
    rows, distances = (values[place] for values in found)
    relevant = [None] * len(rows)
    if scene.images.labels is not None:
        labels = scene.images.labels[rows][None], scene.queries.labels[[query]]
        relevant = metrics.relevance(*labels)[0].tolist()
    return [
        _shown(scene.images, row, float(distance), right)
        for row, distance, right in zip(rows, distances, relevant, strict=True)
    ]


def _shown(images, row, distance=None, relevant=None):
    png = pictures.png(pictures.thumbnail(images, row, SIDE))
    name, label = printable(images.ids[row]), pictures.label_text(images, row)
    return Shown(png, name, label, distance, relevant)
