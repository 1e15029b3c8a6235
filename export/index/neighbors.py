"""The exact search over an index: its proposer names candidate codes, exact tables rank them.

ScaNN scans the codes with tables rounded down to int8. Its distances are therefore never too large,
so a query is settled as soon as its exact k-th distance lies below ScaNN's last; the others are
searched again with more candidates. Thousands of images with the same code would fill any list of
candidates, which is why a proposer sees a code only once. Where the codes that begin alike are
leaves (`prefixes`), a first search of a few leaves tells how far away the k-th image is at most,
and only leaves that can have nearer codes are searched for the candidates.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from export.arrays import unpack_id
from export.index import ranking, rescoring, subset
from export.index.ids import Ids
from export.index.subset import Subset, Within
from hqc_tf import retrieval
from hqc_tf.errors import UserError

MIN_CANDIDATES = 64
# Images put in order of kept embeddings by a command that does not say.
RESCORED = 100
# Codes whose near codes are looked for together, and how many of each at first.
PAIRED, FIRST_NEAR = 2**14, 32
# Words of candidates that are looked up together, so that what this takes stays in the cache.
RANKED = 2**16
# A limit is so far above the distance that it was made of, for float32's rounding.
ABOVE = 1 + 3e-5


class Found(NamedTuple):
    """What `Index.rows` finds, nearest first."""

    rows: np.ndarray  # [Q, k] int64
    distances: np.ndarray  # [Q, k] float32
    codes: np.ndarray  # [Q, k] int64, places of the rows' codes in `Index.distinct_codes`


def usual_candidates(count: int) -> int:
    """How many candidates are ranked by exact tables for the `count` nearest."""
    return max(MIN_CANDIDATES, 5 * count // 2)


@dataclasses.dataclass(frozen=True)
class Index:
    """An index in memory, as `load_index` gives it; large arrays but codes are memory-mapped."""

    path: pathlib.Path  # folder it came from
    manifest: dict[str, Any]  # counts, shape of the codes, and under "encoder" what made them
    codebooks: np.ndarray  # [M, K, D] float32
    distinct_codes: np.ndarray  # [U, M] uint8, every code that occurs, in lexical order
    grouped_rows: np.ndarray  # [N] unsigned, rows of the first code in rising order, then the next
    group_starts: np.ndarray  # [U+1] unsigned, where each code's rows begin in `grouped_rows`
    ids: Ids  # [N] packed ids of the images
    proposer: Any  # `scann.Scann` or `scan.Scan`: `propose`, `prefixes`
    kept: np.ndarray | None = None  # [N, W] uint8, embeddings by `kept.pack`, if any

    @property
    def num_images(self) -> int:
        """N, the number of images."""
        return len(self.grouped_rows)

    @property
    def keep(self) -> str:
        """How embeddings are kept beside the codes, one of `kept.KINDS`."""
        # An index of before embeddings were kept does not say.
        return self.manifest.get("keep", "none")

    @property
    def default_rescore(self) -> int:
        """The `rescore` of commands that are not told: `RESCORED`, or 0 without embeddings."""
        return RESCORED if self.kept is not None else 0

    @property
    def codes(self) -> np.ndarray:
        """[N, M] uint8, the code of every image; put together at each access."""
        codes = np.empty([self.num_images, self.distinct_codes.shape[1]], np.uint8)
        sizes = np.diff(self.group_starts)
        codes[self.grouped_rows] = np.repeat(self.distinct_codes, sizes, axis=0)
        return codes

    def check_encoder(self, fingerprint: str) -> None:
        """Raises UserError unless `fingerprint` is that of the encoder that made the codes."""
        own = self.manifest["encoder"]
        if fingerprint != own["fingerprint"]:
            raise UserError(
                f"index {self.path} belongs to encoder {own['fingerprint']} ({own['path']}), not "
                f"{fingerprint}: rebuild it with python -m export.index or search with its encoder."
            )

    def search(
        self,
        embeddings: np.ndarray,
        k: int,
        rerank: int | None = None,
        leaves_to_search: int | None = None,
        within: Within | None = None,
        rescore: int = 0,
    ) -> tuple[list[list[str]], np.ndarray]:
        """The k nearest images of each query by squared asymmetric distance; see `rows`.

        Returns:
            ids: Q lists of k str, nearest first.
            distances: [Q, k] float32.
        """
        found = self.rows(embeddings, k, rerank, leaves_to_search, within, rescore)
        return self.ids_of(found.rows), found.distances

    def ids_of(self, rows: np.ndarray) -> list[list[str]]:
        """The ids of [Q, k] rows."""
        return [[*map(unpack_id, self.ids.values(query))] for query in rows]

    def rows(
        self,
        embeddings: np.ndarray,
        k: int,
        rerank: int | None = None,
        leaves_to_search: int | None = None,
        within: Within | None = None,
        rescore: int = 0,
    ) -> Found:
        """As `search`, with row numbers for ids; ties go to the lower row.

        Without leaves, or with all of them searched, the result is exact.

        Args:
            embeddings: [Q, M*D] float, as the encoder gives them.
            k: 1 to N.
            rerank: how many of ScaNN's candidates are ranked by exact tables, at least k; a query
                that they do not settle exactly is searched again with more. None: 2.5 times k, and
                at least `MIN_CANDIDATES`.
            leaves_to_search: of an index with leaves, 1 to their number; None: as it was built.
            within: the images that are searched: those whose ids begin with a str, or are in a
                collection of str, or whose rows are true in bool [N]; a `Subset` of `subset` where
                there are several calls. None: all. All of them are found where they are fewer than
                k, which may be any number then.
            rescore: so many images, the nearest by code, are put in order of their squared
                distances to the kept embeddings, which tells equal codes apart; 0: none.

        Raises:
            UserError: k, rerank or leaves_to_search is out of range, or the embeddings have another
                width or are not finite, or `within` is an array of another kind, or no embeddings
                are kept to rescore by.
        """
        most = self.num_images if within is None else max(k, 1)
        embeddings = self._checked_embeddings(embeddings, k, most)
        leaves = self._checked_leaves(leaves_to_search)
        if rescore and self.kept is None:
            raise UserError(
                f"rescore is {rescore}, but index {self.path} keeps no embeddings: rebuild it with "
                "--keep=int8, or give 0."
            )
        count = max(k, min(rescore, most if within is None else rescore))
        if rerank is not None and rerank < count:
            least = "k" if count == k else "rescore"
            raise UserError(f"rerank is {rerank}, but must be at least {least}, {count}: raise it.")
        num_candidates = rerank or usual_candidates(count)
        if within is None:
            found = self._nearest(embeddings, count, num_candidates, leaves)
        else:
            chosen = self.subset(within)
            found = self._nearest_within(embeddings, count, num_candidates, leaves, chosen)
        return self._rescored(embeddings, found, k) if rescore else found

    def subset(self, within: Within) -> Subset:
        """The images that `within` of `rows` lets through, found once for several searches."""
        if isinstance(within, Subset):
            return within
        return subset.choose(self, subset.make_mask(self.ids, within))

    def decode(self, places: np.ndarray) -> np.ndarray:
        """The vectors that distinct codes stand for: int [n] places -> float32 [n, M*D]."""
        words = np.arange(len(self.codebooks)), self.distinct_codes[places]
        return self.codebooks[words].reshape(len(places), -1)

    def candidates(
        self, embeddings: np.ndarray, count: int, leaves: int | np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the proposer names, in its order.

        Args:
            embeddings: [Q, M*D] float32.
            count: R, at most the number of distinct codes.
            leaves: to search, of all queries or [Q]; None: all.

        Returns:
            [Q, R] codes, [Q, R] exact distances, and [Q] what no other code's distance is below in
            these leaves. They may have fewer than R codes: distances are then infinite at the end,
            and what no other's is below is NaN.
        """
        codes, lower_bounds = self.proposer.propose(embeddings, count, leaves)
        distances = self._exact_distances(embeddings, codes, lower_bounds)
        return codes, distances, lower_bounds[:, -1]

    def near_codes(self, radius: float) -> Iterator[np.ndarray]:
        """Pairs of distinct codes at a squared distance of at most `radius`.

        Each code is a query once, so that far ones are not compared where ScaNN proposes.

        Yields:
            int64 [P, 2], places of the codes in rising order; each pair is in one part.
        """
        for start in range(0, len(self.distinct_codes), PAIRED):
            places = np.arange(start, min(start + PAIRED, len(self.distinct_codes)))
            yield from self._near_codes(places, radius, FIRST_NEAR)

    def _near_codes(self, places, radius, count):
        count = min(count, len(self.distinct_codes))
        step = self._queries_at_once(count)
        for chunk in np.split(places, range(step, len(places), step)):
            vectors, leaves = self.decode(chunk), None
            if prefixes := self.proposer.prefixes:
                leaves = prefixes.leaves_within(vectors, np.full(len(vectors), radius))
            codes, distances, bounds = self.candidates(vectors, count, leaves)
            # NaN where the leaves have no other code.
            settled = ~(bounds * (1 - 1e-5) <= radius) | (count == len(self.distinct_codes))
            near = (distances <= radius) & (codes > chunk[:, None]) & settled[:, None]
            queries, columns = np.nonzero(near)
            yield np.stack([chunk[queries], codes[queries, columns].astype(np.int64)], axis=1)
            if not settled.all():
                yield from self._near_codes(chunk[~settled], radius, count * 8)

    def book_distances(self, embeddings: np.ndarray, found: Found) -> np.ndarray:
        """What each book adds to the distances of `found`: [Q, k, M] float32."""
        return np.moveaxis(self._word_distances(embeddings, found.codes), 0, 2)

    def _rescored(self, embeddings, found, k) -> Found:
        places, distances = rescoring.rescore(embeddings, found.rows, self.kept, self.keep, k)
        rows, codes = (np.take_along_axis(x, places, 1) for x in (found.rows, found.codes))
        return Found(rows, distances, codes)

    def _nearest_within(self, embeddings, k, num_candidates, leaves, chosen) -> Found:
        k = min(k, chosen.num_images)
        if not k:
            none = np.zeros([len(embeddings), 0], np.int64)
            return Found(none, none.astype(np.float32), none)
        if chosen.places is None:
            return chosen.index._nearest(embeddings, k, num_candidates, leaves)
        found = chosen.index._nearest(embeddings, k, num_candidates, None)
        return found._replace(codes=chosen.places[found.codes])

    def _nearest(self, embeddings, k, num_candidates, leaves, limits=None) -> Found:
        """The k nearest images; [Q] `limits` are squared distances that the k-th do not exceed."""
        num_candidates = min(num_candidates, len(self.distinct_codes))
        step = self._queries_at_once(num_candidates, k)
        given = k, num_candidates, leaves
        if len(embeddings) <= step:
            return self._nearest_in_chunk(embeddings, *given, limits)
        starts = range(step, len(embeddings), step)
        chunks = np.split(embeddings, starts)
        parts = [None] * len(chunks) if limits is None else np.split(limits, starts)
        pairs = zip(chunks, parts, strict=True)
        return _joined(self._nearest_in_chunk(chunk, *given, part) for chunk, part in pairs)

    def _nearest_in_chunk(self, embeddings, k, num_candidates, leaves, limits) -> Found:
        searched, is_all = leaves, num_candidates == len(self.distinct_codes)
        if is_all or not self.proposer.prefixes:
            limits = np.inf
        else:
            limits = self._limits(embeddings, k) if limits is None else limits
            searched = self.proposer.prefixes.leaves_within(embeddings, limits)
        codes, bounds = self.proposer.propose(embeddings, num_candidates, searched)
        found, bounds = self._ranked(embeddings, codes, bounds, k), bounds[:, -1]
        if leaves:
            unsettled, leaves, limits = np.isinf(found.distances[:, -1]), None, None
        elif is_all:
            return found
        else:
            # Settled means strictly below, so that all ties at the k-th place are candidates; the
            # margin covers float32 rounding on both sides. A bound is NaN where the leaves have no
            # other code. Codes of other leaves are above the limit.
            reached = found.distances[:, -1] * (1 + 1e-5)
            unsettled = (reached >= bounds) | (reached > limits)
            limits, num_candidates = found.distances[:, -1] * ABOVE, num_candidates * 8
        if unsettled.any():
            limits = None if limits is None else limits[unsettled]
            again = self._nearest(embeddings[unsettled], k, num_candidates, leaves, limits)
            for mine, more in zip(found, again, strict=True):
                mine[unsettled] = more
        return found

    def _limits(self, embeddings, k):
        """[Q], what the distance of the k-th code does not exceed; inf where few leaves have k."""
        few = math.isqrt(len(self.proposer.prefixes.words))
        distances = self.candidates(embeddings, k, few)[1]
        return distances.max(axis=1) * ABOVE

    def _ranked(self, embeddings, codes, bounds, k) -> Found:
        """The k nearest images of what was proposed, for some queries after the other."""
        step = max(1, RANKED // (codes.shape[1] * len(self.codebooks)))
        if len(codes) <= step:
            return self._rank(embeddings, codes, bounds, k)
        starts = range(step, len(codes), step)
        parts = (np.split(array, starts) for array in (embeddings, codes, bounds))
        return _joined(self._rank(*part, k) for part in zip(*parts, strict=True))

    def _rank(self, embeddings, codes, bounds, k) -> Found:
        distances = self._exact_distances(embeddings, codes, bounds)
        groups = self.grouped_rows, self.group_starts
        return Found(*ranking.expand(codes, distances, *groups, k))

    def _exact_distances(self, embeddings, codes, bounds):
        """[Q, R] distances of what was proposed; where that is missing, infinity and code 0."""
        missing = np.isnan(bounds)
        codes[missing] = 0
        distances = self._word_distances(embeddings, codes).sum(axis=0)
        distances[missing] = np.inf
        return distances

    def _queries_at_once(self, num_candidates, k=0):
        # An image found takes as much as some words of candidates.
        most = max(num_candidates * len(self.codebooks), self.codebooks.size, 8 * k)
        return max(1, retrieval.CHUNK_ELEMENTS // most)

    def _word_distances(self, embeddings, codes):
        """What each book adds to the distances of [Q, R] codes: [M, Q, R] float32."""
        tables = ranking.distance_tables(embeddings, self.codebooks)
        return ranking.word_distances(tables, self.distinct_codes.take(codes, axis=0))

    def _checked_leaves(self, leaves) -> int | None:
        """How many leaves to search, None for all."""
        count = self.manifest["num_leaves"]
        if leaves is None:
            leaves = self.manifest["leaves_to_search"]
        elif not 1 <= leaves <= count:
            rule = f"must be 1 to {count}" if count else "the index has no leaves"
            fix = "leave it out, or rebuild the index with --num_leaves."
            raise UserError(f"leaves_to_search is {leaves}, but {rule}: {fix}")
        return leaves if leaves < count else None

    def _checked_embeddings(self, embeddings, k, most) -> np.ndarray:
        if not 1 <= k <= most:
            raise UserError(
                f"k is {k}, but must be 1 to {self.num_images}, the number of images in "
                f"{self.path}: lower it or index more."
            )
        with np.errstate(over="ignore"):
            embeddings = np.ascontiguousarray(embeddings, np.float32)
            finite = math.isfinite(np.vdot(embeddings, embeddings))
            # The sum over all queries may be infinite where that of each is not.
            finite = finite or np.isfinite(np.square(embeddings).sum(axis=-1)).all()
        num_books, _, word_dim = self.codebooks.shape
        if embeddings.shape != (max(1, len(embeddings)), num_books * word_dim):
            raise UserError(
                f"embeddings have the shape {embeddings.shape}, but index {self.path} needs "
                f"[Q, {num_books * word_dim}], Q at least 1: embed the queries with its encoder."
            )
        if not finite:
            raise UserError(
                "embeddings hold NaN or infinity, or numbers whose squares are, but must be "
                "finite: fix the input."
            )
        return embeddings


def _joined(parts):
    """`Found` of some queries after the other."""
    return Found(*(np.concatenate(part) for part in zip(*parts, strict=True)))
