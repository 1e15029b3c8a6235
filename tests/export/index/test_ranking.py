"""Distances by hand, those of a query alone, and rows in order of (distance, row)."""

import numpy as np

from export.index import ranking


def test_distances_by_hand():
    codebooks = np.float32([[[0, 0], [3, 4]], [[1, 1], [0, 2]]])
    tables = ranking.distance_tables(np.float32([[0, 0, 1, 1], [3, 0, 0, 2]]), codebooks)
    np.testing.assert_array_equal(tables, [[[0, 25], [0, 2]], [[9, 16], [2, 0]]])
    codes = np.uint8([[[0, 1], [1, 1]], [[1, 0], [0, 0]]])
    parts = ranking.word_distances(tables, codes)
    np.testing.assert_array_equal(parts.sum(axis=0), [[2, 27], [18, 11]])


def test_a_query_has_the_same_distances_in_any_company():
    rng = np.random.default_rng(0)
    codebooks = rng.normal(size=[4, 16, 9]).astype(np.float32)
    queries = rng.normal(size=[33, 36]).astype(np.float32)
    alone = [ranking.distance_tables(query[None], codebooks)[0] for query in queries]
    np.testing.assert_array_equal(ranking.distance_tables(queries, codebooks), alone)


def test_rows_by_hand():
    # The rows of codes 0 to 3: [4, 6], [1], none, [0, 2, 3, 5].
    rows, starts = np.uint8([4, 6, 1, 0, 2, 3, 5]), np.uint8([0, 2, 3, 3, 7])
    distances = np.float32([[2, 1, 0, 2], [5, np.inf, 1, np.inf]])
    found = ranking.expand(np.tile(np.arange(4), [2, 1]), distances, rows, starts, 4)
    np.testing.assert_array_equal(found[0], [[1, 0, 2, 3], [4, 6, 0, 0]])
    np.testing.assert_array_equal(found[1], [[1, 2, 2, 2], [5, 5, np.inf, np.inf]])
    np.testing.assert_array_equal(found[2][0], [1, 3, 3, 3])
    assert found[1].dtype == np.float32
    nothing = ranking.expand(np.uint8([[2]]), np.float32([[1]]), rows, starts, 2)
    np.testing.assert_array_equal(nothing[1], [[np.inf, np.inf]])


def test_rows_of_a_subset_may_be_above_their_number():
    rows, starts = np.uint32([900, 7, 500]), np.uint8([0, 1, 2, 3])
    found = ranking.expand(np.uint8([[0, 1, 2]]), np.float32([[1, 2, 1]]), rows, starts, 3)
    np.testing.assert_array_equal(found[0], [[500, 900, 7]])
