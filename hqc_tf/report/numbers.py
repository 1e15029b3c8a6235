"""What is counted and measured of a `Scene`: pure functions on arrays, and one stopwatch.

Sizes are bounded, so that a report takes minutes where an evaluation does; the page names them.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from hqc_tf import config, metrics, model, retrieval
from hqc_tf.data import roles
from hqc_tf.data.images import Images, hold_out
from hqc_tf.data.pictures import spread

# Queries whose whole ranking is sorted for the curve of precision and recall.
CURVE_QUERIES = 2000
# Images drawn in the plane, and queries that measure single books and time the search.
POINTS = 1000
# Queries and images whose distances are compared in pairs.
PAIR_QUERIES, PAIR_IMAGES = 500, 2000
# R of the precision of a single book, and k of the timed search.
NEAR = 10
_CURVE_POINTS = 200
_BINS = 40
_TURNS = 5
_ALL = slice(None)


class Scene(NamedTuple):
    """A model, the images it searches, the queries, and what it makes of both."""

    trained: model.HQC
    images: Images
    queries: Images
    database: retrieval.Encoded
    query: retrieval.Encoded

    @property
    def codebooks(self) -> np.ndarray:
        """[M, K, D] float."""
        return self.trained.quantizer.codebooks.numpy()

    @property
    def parts(self) -> list[slice]:
        """The columns of an embedding that belong to each of M books."""
        num_books, _, width = self.codebooks.shape
        return [slice(book * width, (book + 1) * width) for book in range(num_books)]

    def by_codes(self, queries: np.ndarray, k: int) -> Iterator[retrieval.Nearest]:
        """The nearest images of embeddings [Q, M*D] by code, in chunks."""
        distance = self.trained.settings.distance
        return retrieval.nearest_by_chunk(queries, self.database.codes, self.codebooks, k, distance)

    def by_embeddings(
        self, queries: np.ndarray, k: int, columns: slice = _ALL
    ) -> Iterator[retrieval.Nearest]:
        """The nearest images of embeddings [Q, M*D] by some columns of their embeddings."""
        images = self.database.embeddings[:, columns]
        return retrieval.nearest_embeddings_by_chunk(queries[:, columns], images, k)


class Ranking(NamedTuple):
    """How well a search finds images of the query's labels."""

    name: str  # of what is searched
    scores: metrics.RetrievalMetrics  # over all queries
    curve: metrics.PrecisionRecall  # over `CURVE_QUERIES` of them, at some places


class Plane(NamedTuple):
    """Images in the plane of the two largest principal components of their embeddings."""

    embeddings: np.ndarray  # float [n, 2]
    codewords: np.ndarray  # float [n, 2], those that stand for them
    explained: np.ndarray  # float [2], share of the embeddings' variance along each axis
    labels: np.ndarray | None  # int [n], places in the list of labels


class Pairs(NamedTuple):
    """Distances of images with a label in common (within), and of others (between)."""

    name: str  # of the distance
    edges: np.ndarray  # float [bins + 1]
    within: np.ndarray  # float [bins], share of these pairs in each bin
    between: np.ndarray
    means: tuple[float, float]  # of either kind
    separation: float  # how often a pair within is nearer than one between; ties half


class Search(NamedTuple):
    """What the exhaustive search of a database costs; times are medians, in milliseconds."""

    images: int
    distinct_codes: int
    code_bytes: float  # of an image as bits
    memory_bytes: int  # of an image with a byte a book
    embedding_bytes: int  # of an image as float32
    codebook_bytes: int
    batch: int  # queries
    one_query: float  # time of a query alone, by codes
    by_codes: float  # time of each query of a batch, by codes
    by_embeddings: float  # and by embeddings


def make_scene(
    trained: model.HQC,
    rejected: frozenset[str] = frozenset(),
    settings: config.Config | None = None,
) -> Scene:
    """A model with the database and the queries of `settings`, by default its own.

    `rejected` ids are left out. Without labels and queries of their own the images held out from
    training query the others. UserError: unreadable data.
    """
    c = settings or trained.settings
    images, queries = (roles.load_role(c, role, rejected) for role in ("database", "query"))
    if queries is None:
        rest, queries = hold_out(images, c.held_out or len(images))
        # A handful of images all query, and each finds itself.
        images, queries = (rest, queries) if len(queries) else (images, images)
    database = trained.encode_images(images, "database")
    query = trained.encode_images(queries, "queries")
    return Scene(trained, images, queries, database, query)


def rank(name: str, search: Callable, scene: Scene) -> Ranking:
    """The `Ranking` of a search (queries, k) -> chunks of `Nearest`, for the queries of a scene.

    Its mAP is at the settings' top_k, or at all images of fewer.
    """
    count, embeddings, known = len(scene.images), scene.query.embeddings, scene.images.labels
    found = search(embeddings, min(scene.trained.settings.top_k, count))
    scores = metrics.evaluate_rankings(found, known, scene.queries.labels)
    rows = spread(len(embeddings), CURVE_QUERIES)
    found = search(embeddings[rows], count)
    curve = metrics.precision_recall(found, known, scene.queries.labels[rows])
    places = np.unique(np.geomspace(1, count, _CURVE_POINTS).round().astype(int)) - 1
    return Ranking(name, scores, metrics.PrecisionRecall(*(values[places] for values in curve)))


def book_precision(scene: Scene) -> np.ndarray:
    """float [M]: P@10 of `POINTS` queries where a single part of the embeddings is compared."""
    rows = spread(len(scene.queries), POINTS)
    embeddings, labels = scene.query.embeddings[rows], scene.queries.labels[rows]
    k = min(NEAR, len(scene.images))
    searches = [scene.by_embeddings(embeddings, k, part) for part in scene.parts]
    scores = [metrics.evaluate_rankings(one, scene.images.labels, labels) for one in searches]
    return np.array([score.precision_at_k[-1] for score in scores])


def project(embeddings: np.ndarray, codewords: np.ndarray, labels: np.ndarray | None) -> Plane:
    """The `Plane` of float [n, E] embeddings and of the codewords that stand for them."""
    mean = embeddings.mean(axis=0)
    _, lengths, axes = np.linalg.svd(embeddings - mean, full_matrices=False)
    # Embeddings of one number, or of one image, have no second axis.
    two = np.zeros([2, embeddings.shape[1]])
    two[: len(axes)] = axes[:2]
    variance = np.zeros(2)
    variance[: len(lengths)] = np.square(lengths)[:2]
    explained = variance / max(np.square(lengths).sum(), np.finfo(float).tiny)
    return Plane((embeddings - mean) @ two.T, (codewords - mean) @ two.T, explained, labels)


def plane(scene: Scene) -> Plane:
    """The `Plane` of `POINTS` of the searched images; without labels where each has several."""
    rows = spread(len(scene.images), POINTS)
    words = scene.trained.quantizer.decode(scene.database.codes[rows]).numpy()
    labels = scene.images.labels
    if labels is None or labels.ndim > 1:
        labels = None
    elif scene.images.label_names:
        labels = labels[rows]
    else:
        labels = np.searchsorted(np.unique(labels), labels[rows])
    return project(scene.database.embeddings[rows], words, labels)


def compare_pairs(scene: Scene) -> list[Pairs]:
    """`Pairs` by code and by embedding; empty where one of the two kinds of pairs is missing."""
    chosen = spread(len(scene.queries), PAIR_QUERIES)
    rows = spread(len(scene.images), PAIR_IMAGES)
    known, distance = scene.images.labels[rows], scene.trained.settings.distance
    same = metrics.relevance(
        np.broadcast_to(known, (len(chosen), *known.shape)), scene.queries.labels[chosen]
    )
    if same.all() or not same.any():
        return []
    queries, codes = scene.query.embeddings[chosen], scene.database.codes[rows]
    by_codes = retrieval.asymmetric_distances(queries, codes, scene.codebooks, distance)
    by_embeddings = retrieval.embedding_distances(queries, scene.database.embeddings[rows])
    return [
        count_pairs(f"codes ({distance})", by_codes.numpy(), same),
        count_pairs("embeddings (Euclidean)", by_embeddings.numpy(), same),
    ]


def count_pairs(name: str, distances: np.ndarray, same: np.ndarray) -> Pairs:
    """The `Pairs` of float [Q, N] distances, where bool [Q, N] `same` names one of both kinds."""
    within, between = distances[same], np.sort(distances[~same])
    edges = np.histogram_bin_edges(distances, _BINS)
    shares = [np.histogram(values, edges)[0] / len(values) for values in (within, between)]
    farther = len(between) - np.searchsorted(between, within, "right")
    not_nearer = len(between) - np.searchsorted(between, within, "left")
    separation = float(np.mean(farther + not_nearer) / (2 * len(between)))
    return Pairs(name, edges, *shares, (float(within.mean()), float(between.mean())), separation)


def measure_search(scene: Scene) -> Search:
    """The `Search` over the codes of a scene, timed now."""
    k, count = min(NEAR, len(scene.images)), len(scene.queries)
    queries = scene.query.embeddings[spread(count, POINTS)]
    return Search(
        images=len(scene.images),
        distinct_codes=len(np.unique(scene.database.codes, axis=0)),
        code_bytes=scene.trained.settings.bits / 8,
        memory_bytes=scene.database.codes.shape[1],
        embedding_bytes=scene.database.embeddings.dtype.itemsize * queries.shape[1],
        codebook_bytes=scene.codebooks.astype(np.float32).nbytes,
        batch=len(queries),
        one_query=_milliseconds(scene.by_codes, queries[:1], k),
        by_codes=_milliseconds(scene.by_codes, queries, k) / len(queries),
        by_embeddings=_milliseconds(scene.by_embeddings, queries, k) / len(queries),
    )


def _milliseconds(search, queries, k):
    times = [time.perf_counter()]
    for _ in range(_TURNS):
        for found in search(queries, k):
            found.rows.numpy()
        times.append(time.perf_counter())
    return 1000 * float(np.median(np.diff(times)))
