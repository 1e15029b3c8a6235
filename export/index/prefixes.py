"""Leaves of codes that begin alike: most of them an exact search need not look into.

The distance of a code is a sum over its books. So no code of a leaf is nearer than what the words
that it begins with add, and of each other book its nearest word: where that is farther than the
k-th image found so far, the leaf is left out, as in branch and bound. The codes lie in lexical
order, so that a leaf is a run of them.
"""

from typing import NamedTuple

import numpy as np

from export.index import ranking

# Fewer codes are all scanned in about the time that choosing leaves takes.
MIN_CODES = 2**21
# Codes of a leaf on average, at least: each leaf costs as much as scanning some thousands.
LEAF_CODES = 2000
# Books that leaves have in common, at most: beyond it finding the leaves takes as long as scanning.
MAX_DEPTH = 3
# Bounds that are in memory at a time, so that they stay in the cache.
CHUNK_ELEMENTS = 2**16
# What sums of float32 may differ by, of the largest number in them.
ROUNDING = 1e-5


class Prefixes(NamedTuple):
    """The leaves of an index that have codes, in lexical order."""

    codebooks: np.ndarray  # [M, K, D] float32
    words: np.ndarray  # [L, P] uint8, with which the codes of each leaf begin
    starts: np.ndarray  # [L+1] int64, where they begin among the distinct codes
    largest: float  # squared norm of a vector that a code stands for, at most

    def centers(self) -> np.ndarray:
        """[L, M*D] float32 points that are as near to a query, in order, as the leaves' words.

        They have these words; the middle of each other book adds the same to all distances.
        """
        num_leaves, depth = self.words.shape
        centers = np.tile(self.codebooks.mean(axis=1), [num_leaves, 1, 1])
        centers[:, :depth] = self.codebooks[np.arange(depth), self.words]
        return centers.reshape(num_leaves, -1)

    def leaves(self) -> np.ndarray:
        """The leaf of each code, [U] int32."""
        sizes = np.diff(self.starts)
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    def bounds(self, tables: np.ndarray) -> np.ndarray:
        """[Q, L] float32, what no code of a leaf is nearer than, of [Q, M, K] distance tables."""
        num_leaves, depth = self.words.shape
        words = np.broadcast_to(self.words, [len(tables), num_leaves, depth])
        begun = ranking.word_distances(tables[:, :depth], words).sum(axis=0)
        return begun + tables[:, depth:].min(axis=2).sum(axis=1)[:, None]

    def leaves_within(self, embeddings: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """How many leaves can have codes at squared distances of up to [Q] limits.

        [Q] int64, at least 1, of [Q, M*D] queries: the nearest leaves by distance to their
        `centers`, however that is rounded.
        """
        counts = [can.sum(axis=1) for can in self._can_have(embeddings, limits)]
        return np.maximum(np.concatenate(counts), 1)

    def codes_within(self, embeddings: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """How many codes these leaves have, [Q] int64."""
        sizes = np.diff(self.starts)
        return np.concatenate([can @ sizes for can in self._can_have(embeddings, limits)])

    def _can_have(self, embeddings, limits):
        """Yields for some queries after the other which leaves can: bool [n, L]."""
        sizes = np.square(embeddings).sum(axis=1) + self.largest
        limits = limits + ROUNDING * (limits + sizes)
        step = max(1, CHUNK_ELEMENTS // len(self.words))
        for start in range(0, len(limits), step):
            part = slice(start, start + step)
            tables = ranking.distance_tables(embeddings[part], self.codebooks)
            yield self.bounds(tables) <= limits[part, None]


def depth_of(num_codes: int, num_words: int) -> int:
    """How many books the codes of a leaf have in common; 0: leaves are of no use."""
    if num_codes < MIN_CODES:
        return 0
    depth = int(np.log(num_codes / LEAF_CODES) / np.log(num_words))
    return max(0, min(depth, MAX_DEPTH))


def find(codebooks: np.ndarray, codes: np.ndarray, depth: int) -> Prefixes:
    """The `Prefixes` of `depth` books of [U, M] uint8 codes in lexical order."""
    num_words = codebooks.shape[1]
    wanted = np.arange(num_words**depth + 1)
    weights = num_words ** np.arange(depth)[::-1]
    # A search by halves of all at once reads few of the codes, which may be a file of gigabytes.
    low, high = np.zeros_like(wanted), np.full_like(wanted, len(codes))
    while (low < high).any():
        middle = (low + high) // 2
        found = codes[np.minimum(middle, len(codes) - 1), :depth] @ weights
        less = (found < wanted) & (low < high)
        low, high = np.where(less, middle + 1, low), np.where(less, high, np.minimum(middle, high))
    has_codes = np.diff(low) > 0
    words = wanted[:-1][has_codes, None] // weights % num_words
    starts = np.append(low[:-1][has_codes], len(codes))
    largest = np.square(codebooks).sum(axis=2).max(axis=1).sum()
    return Prefixes(codebooks, words.astype(np.uint8), starts, largest)
