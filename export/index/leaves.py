"""Which leaves queries search, measured at the build on queries like the images indexed."""

import bisect
import dataclasses

import numpy as np

from export import kept
from export.index import prefixes
from export.index.neighbors import Index, usual_candidates
from export.index.scan import Scan

# Recall is of so many nearest codes of so many queries.
RECALL_AT, NUM_QUERIES = 10, 500
# Leaves of codes that begin alike are used where so many queries need at most this part of the
# codes: of more, all are scanned in the same time. How near the k-th is they tell from a sample.
PREFIX_QUERIES, MOST_NEEDED, SAMPLE = 100, 1 / 4, 2**20


def choose_leaves(index: Index, recall: float) -> int:
    """The fewest leaves whose search finds `recall` of what a search of all finds.

    A query is the kept embedding of an image, or where none is kept the vector of its code with
    noise: each book's part is as far from its word as the boundary with the nearest other word.
    The image's own code, which is the easiest to find, does not count, and a code of many images
    counts once.

    Args:
        index: has leaves.
        recall: above 0 and at most 1.
    """
    places, queries = _make_queries(index, NUM_QUERIES)
    num_leaves = index.manifest["num_leaves"]
    k = min(RECALL_AT, len(index.distinct_codes) - 1)

    def others(codes, distances):
        return np.sort(np.where(codes == places[:, None], np.inf, distances), axis=1)[:, :k]

    most = min(usual_candidates(k + 1), len(index.distinct_codes))

    def nearest(count):
        # A search of too few images goes through all leaves, which is not what is measured.
        return others(*index.candidates(queries, most, count)[:2])

    found = _of_distinct(index).rows(queries, k + 1, leaves_to_search=num_leaves)
    # Equal distances are equally right.
    limits = others(found.codes, found.distances)[:, -1:] * (1 + 1e-5)
    fewer = range(1, num_leaves)
    enough = bisect.bisect_left(fewer, True, key=lambda n: np.mean(nearest(n) <= limits) >= recall)
    return enough + 1


def choose_prefix(index: Index) -> int:
    """How many books' words the codes of a leaf have in common; 0: leaves would save nothing."""
    codes, count = index.distinct_codes, len(index.distinct_codes)
    depth = prefixes.depth_of(count, index.codebooks.shape[1])
    if not depth:
        return 0
    places, queries = _make_queries(index, PREFIX_QUERIES)
    # Not each so many-th: codes in order may share their last words.
    chosen = np.random.default_rng(0).choice(count, min(count, SAMPLE), replace=False)
    chosen.sort()
    rank = -(-RECALL_AT * len(chosen) // count)
    found, distances = Scan(index.codebooks, codes[chosen]).propose(queries, rank + 1)
    distances = np.where(chosen[found] == places[:, None], np.inf, distances)
    limits = np.sort(distances, axis=1)[:, rank - 1]
    needed = prefixes.find(index.codebooks, codes, depth).codes_within(queries, limits)
    return depth if needed.mean() <= MOST_NEEDED * count else 0


def _of_distinct(index):
    """An index of one image for each code."""
    count = len(index.distinct_codes)
    return dataclasses.replace(
        index, grouped_rows=np.arange(count), group_starts=np.arange(count + 1)
    )


def _make_queries(index, count):
    """Places of some images' codes, [Q], and queries like the images, [Q, M*D]; Q up to `count`."""
    rng = np.random.default_rng(0)
    count = min(count, index.num_images)
    chosen = np.sort(rng.choice(index.num_images, count, replace=False))
    # Of another type than the starts, these would be copied.
    chosen = chosen.astype(index.group_starts.dtype)
    places = np.searchsorted(index.group_starts, chosen, side="right") - 1
    if index.kept is not None:
        return places, kept.unpack(index.kept[index.grouped_rows[chosen]], index.keep)
    num_books, num_words, word_dim = index.codebooks.shape
    differences = index.codebooks[:, :, None] - index.codebooks[:, None]
    between = np.sqrt(np.square(differences).sum(axis=-1))
    between[:, np.arange(num_words), np.arange(num_words)] = np.inf
    radii = between.min(axis=-1)[np.arange(num_books), index.distinct_codes[places]] / 2
    noise = rng.normal(size=[count, num_books, word_dim]).astype(np.float32)
    noise *= (radii / np.linalg.norm(noise, axis=-1))[..., None]
    return places, index.decode(places) + noise.reshape(count, -1)
