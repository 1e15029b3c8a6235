"""The exact search over an index: ScaNN proposes codes, exact tables rank them.

ScaNN scans the codes with tables rounded down to int8. Its distances are therefore never too large,
so a query is settled as soon as its exact k-th distance lies below ScaNN's last; the others are
asked again with more candidates. Thousands of images with the same code would fill any list of
candidates, which is why ScaNN sees a code only once.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import numpy as np

from hqc_tf import retrieval
from hqc_tf.config import UserError

MIN_CANDIDATES = 100


class Found(NamedTuple):
    """What `Index.rows` finds, nearest first."""

    rows: np.ndarray  # [Q, k] int64
    distances: np.ndarray  # [Q, k] float32


@dataclasses.dataclass(frozen=True)
class Index:
    """An index in memory, as `load_index` gives it; the large arrays are memory-mapped.

    Attributes:
        path: folder it came from.
        manifest: counts, shape of the codes, and under "encoder" what made them.
        codebooks: [M, K, D] float32.
        distinct_codes: [U, M] uint8, every code that occurs, in lexical order.
        grouped_rows: [N] unsigned, the rows of the first code in rising order, then the second's.
        group_starts: [U+1] unsigned, where each code's rows begin in `grouped_rows`.
        id_bytes: [bytes] uint8, the ids in utf-8, one after the other in row order.
        id_starts: [N+1] int64, where each id begins in `id_bytes`.
        searcher: ScaNN's, or None where the number of words asks for a full exact scan.
    """

    path: pathlib.Path
    manifest: dict[str, Any]
    codebooks: np.ndarray
    distinct_codes: np.ndarray
    grouped_rows: np.ndarray
    group_starts: np.ndarray
    id_bytes: np.ndarray
    id_starts: np.ndarray
    searcher: Any

    @property
    def num_images(self) -> int:
        """N, the number of images."""
        return len(self.grouped_rows)

    @property
    def codes(self) -> np.ndarray:
        """[N, M] uint8, the code of every image; put together anew at each access."""
        codes = np.empty([self.num_images, self.distinct_codes.shape[1]], np.uint8)
        codes[self.grouped_rows] = np.repeat(
            self.distinct_codes, np.diff(self.group_starts), axis=0
        )
        return codes

    def check_encoder(self, fingerprint: str) -> None:
        """Raises UserError unless `fingerprint` is that of the encoder that made the codes."""
        own = self.manifest["encoder"]
        if fingerprint != own["fingerprint"]:
            raise UserError(
                f"index {self.path} belongs to encoder {own['fingerprint']} ({own['path']}), not "
                f"{fingerprint}: rebuild it with python -m export.index or search with its encoder."
            )

    def search(self, embeddings: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
        """The k nearest images of each query by squared asymmetric distance; see `rows`.

        Returns:
            ids: Q lists of k str, nearest first.
            distances: [Q, k] float32.
        """
        rows, distances = self.rows(embeddings, k)
        return [[self._id(row) for row in query] for query in rows], distances

    def rows(self, embeddings: np.ndarray, k: int) -> Found:
        """As `search`, with row numbers for ids; exact, and ties go to the lower row.

        Args:
            embeddings: [Q, M*D] float, as the encoder gives them.
            k: 1 to N.

        Returns:
            `Found` with `.rows` [Q, k] int64 and `.distances` [Q, k] float32.

        Raises:
            ValueError: k is not in 1 to N (a UserError), or the embeddings have another width or
                are not finite.
        """
        embeddings = self._checked_embeddings(embeddings, k)
        return self._nearest(embeddings, k, max(MIN_CANDIDATES, 2 * k))

    def _nearest(self, embeddings, k, num_candidates) -> Found:
        num_candidates = min(num_candidates, len(self.distinct_codes))
        step = max(1, retrieval.CHUNK_ELEMENTS // (num_candidates * len(self.codebooks)))
        chunks = np.split(embeddings, range(step, len(embeddings), step))
        parts = [self._nearest_in_chunk(chunk, k, num_candidates) for chunk in chunks]
        return Found(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _nearest_in_chunk(self, embeddings, k, num_candidates) -> Found:
        codes, distances, bounds = self._candidates(embeddings, num_candidates)
        found = self._expand(codes, distances, k)
        # Settled means strictly below, so that all ties at the k-th place are candidates; the
        # margin covers float32 rounding on both sides.
        unsettled = found.distances[:, -1] * (1 + 1e-5) >= bounds
        if num_candidates < len(self.distinct_codes) and unsettled.any():
            again = self._nearest(embeddings[unsettled], k, 8 * num_candidates)
            found.rows[unsettled], found.distances[unsettled] = again
        return found

    def _candidates(self, embeddings, count):
        """[Q, R] codes, [Q, R] exact distances, and [Q] what no other code's distance is below."""
        if self.searcher is None:
            codes, distances = retrieval.nearest(
                embeddings, self.distinct_codes, self.codebooks, count, "squared"
            )
            return codes.numpy(), distances.numpy(), distances.numpy()[:, -1]
        codes, lower_bounds = self.searcher.search_batched(embeddings, final_num_neighbors=count)
        tables = retrieval.distance_tables(embeddings, self.codebooks, "squared")
        distances = retrieval.candidate_distances(tables, self.distinct_codes[codes]).numpy()
        return codes, distances, lower_bounds[:, -1]

    def _expand(self, codes: np.ndarray, distances: np.ndarray, k: int) -> Found:
        """Puts the rows of [Q, R] codes in order of (distance, row) and keeps k of each query."""
        order = np.argsort(distances, axis=1)
        codes, distances = (np.take_along_axis(x, order, axis=1) for x in (codes, distances))
        starts = self.group_starts[codes].astype(np.int64)
        sizes = self.group_starts[codes + 1].astype(np.int64) - starts
        # A code may fill the places that strictly nearer ones leave; equally near codes all may,
        # for any of them can hold the lowest rows.
        nearer = np.cumsum(sizes, axis=1) - sizes
        nearer[:, 1:][distances[:, 1:] == distances[:, :-1]] = 0
        taken = np.clip(k - np.maximum.accumulate(nearer, axis=1), 0, sizes)
        ends = np.cumsum(taken)
        offsets = np.arange(ends[-1]) - np.repeat(ends - taken.ravel(), taken.ravel())
        rows = self.grouped_rows[np.repeat(starts, taken.ravel()) + offsets].astype(np.int64)
        distances = np.repeat(distances, taken.ravel())
        per_query = taken.sum(axis=1)
        queries = np.repeat(np.arange(len(codes)), per_query)
        firsts = np.cumsum(per_query) - per_query
        kept = np.lexsort((rows, distances, queries))[firsts[:, None] + np.arange(k)]
        return Found(rows[kept], distances[kept])

    def _id(self, row: int) -> str:
        return (
            self.id_bytes[self.id_starts[row] : self.id_starts[row + 1]]
            .tobytes()
            .decode("utf-8", "surrogatepass")
        )

    def _checked_embeddings(self, embeddings, k) -> np.ndarray:
        if not 1 <= k <= self.num_images:
            raise UserError(
                f"k is {k}, but must lie in 1 to {self.num_images}, the number of images in "
                f"{self.path}: ask for fewer or index more."
            )
        embeddings = np.ascontiguousarray(embeddings, np.float32)
        num_books, _, word_dim = self.codebooks.shape
        if embeddings.shape != (max(1, len(embeddings)), num_books * word_dim):
            raise ValueError(
                f"embeddings have the shape {embeddings.shape}, but index {self.path} needs "
                f"[Q, {num_books * word_dim}], Q at least 1: embed the queries with its encoder."
            )
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings hold NaN or infinity, but must be finite: mend the input.")
        return embeddings
