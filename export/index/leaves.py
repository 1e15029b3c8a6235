"""How many leaves a query must search for a recall, measured on queries like the images indexed."""

import bisect

import numpy as np

from export import kept
from export.index.neighbors import Index

# Recall is of so many nearest codes of so many queries.
RECALL_AT, NUM_QUERIES = 10, 500


def choose_leaves(index: Index, recall: float) -> int:
    """The fewest leaves whose search finds `recall` of what a search of all finds.

    A query is the kept embedding of an image, or where none is kept the vector of its code with
    noise: each book's part is as far from its word as the boundary with the nearest other word.
    The image's own code, which is the easiest to find, does not count.

    Args:
        index: has leaves.
        recall: above 0 and at most 1.
    """
    queries, num_leaves = _make_queries(index), index.manifest["num_leaves"]
    k = min(RECALL_AT + 1, index.num_images)
    own = min(1, k - 1)

    def nearest(count):
        return index.rows(queries, k, leaves_to_search=count).distances[:, own:]

    # Equal distances are equally right.
    limits = nearest(num_leaves)[:, -1:] * (1 + 1e-5)
    fewer = range(1, num_leaves)
    enough = bisect.bisect_left(fewer, True, key=lambda n: np.mean(nearest(n) <= limits) >= recall)
    return enough + 1


def _make_queries(index):
    rng = np.random.default_rng(0)
    count = min(NUM_QUERIES, index.num_images)
    chosen = np.sort(rng.choice(index.num_images, count, replace=False))
    if index.kept is not None:
        return kept.unpack(index.kept[index.grouped_rows[chosen]], index.keep)
    places = np.searchsorted(index.group_starts, chosen, side="right") - 1
    num_books, num_words, word_dim = index.codebooks.shape
    differences = index.codebooks[:, :, None] - index.codebooks[:, None]
    between = np.sqrt(np.square(differences).sum(axis=-1))
    between[:, np.arange(num_words), np.arange(num_words)] = np.inf
    radii = between.min(axis=-1)[np.arange(num_books), index.distinct_codes[places]] / 2
    noise = rng.normal(size=[count, num_books, word_dim]).astype(np.float32)
    noise *= (radii / np.linalg.norm(noise, axis=-1))[..., None]
    return index.decode(places) + noise.reshape(count, -1)
