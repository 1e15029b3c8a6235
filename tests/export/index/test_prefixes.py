"""Codes that begin alike are leaves, and leaving out those that are too far changes no result."""

import json
import tempfile

import numpy as np
import pytest

from export.index import leaves, load_index, neighbors, prefixes, ranking, scann, store
from hqc_tf.retrieval import asymmetric_distances
from tests.export.index.test_index import (
    assert_equals_full_scan,
    full_scan,
    random_set,
    write_and_load,
)
from tests.export.index.test_scann import clustered_set


@pytest.fixture
def small_leaves(monkeypatch):
    """Leaves of 20 codes in any index, however many of them are needed."""
    monkeypatch.setattr(prefixes, "MIN_CODES", 1)
    monkeypatch.setattr(prefixes, "LEAF_CODES", 20)
    monkeypatch.setattr(leaves, "MOST_NEEDED", 1)


def test_leaves_of_codes_made_by_hand():
    codebooks = np.zeros([3, 4, 1], np.float32)
    codebooks[:, :, 0] = [[0, 1, 2, 3], [0, 10, 20, 30], [5, 6, 7, 8]]
    codes = np.uint8([[0, 1, 3], [0, 1, 2], [3, 0, 0], [0, 0, 1], [3, 3, 3]])
    codes = np.unique(codes, axis=0)
    found = prefixes.find(codebooks, codes, 2)
    np.testing.assert_array_equal(found.words, [[0, 0], [0, 1], [3, 0], [3, 3]])
    np.testing.assert_array_equal(found.starts, [0, 1, 3, 4, 5])
    np.testing.assert_array_equal(found.leaves(), [0, 1, 1, 2, 3])
    np.testing.assert_array_equal(
        found.centers(), [[0, 0, 6.5], [0, 10, 6.5], [3, 0, 6.5], [3, 30, 6.5]]
    )
    # Of the last book 5 is nearest to 4.
    queries = np.float32([[1, 8, 4]])
    bounds = found.bounds(ranking.distance_tables(queries, codebooks))
    np.testing.assert_allclose(
        bounds, [[1 + 64 + 1, 1 + 4 + 1, 4 + 64 + 1, 4 + 22**2 + 1]], rtol=1e-6
    )
    for limit, count, num_codes in [(5, 1, 0), (6, 1, 2), (66, 2, 3), (69, 3, 4), (np.inf, 4, 5)]:
        given = queries, np.float32([limit])
        assert int(found.leaves_within(*given)[0]) == count
        assert int(found.codes_within(*given)[0]) == num_codes


@pytest.mark.parametrize(("num_books", "depth"), [(2, 1), (4, 2), (5, 3)])
def test_leaves_are_the_runs_of_codes_that_begin_alike(num_books, depth):
    codebooks, codes, queries = random_set(num_books, 3000)
    codes = np.unique(codes[codes[:, 0] != 3], axis=0)
    found = prefixes.find(codebooks, codes, depth)
    expected, leaves = np.unique(codes[:, :depth], axis=0, return_inverse=True)
    np.testing.assert_array_equal(found.words, expected)
    np.testing.assert_array_equal(found.leaves(), leaves.ravel())
    bounds = found.bounds(ranking.distance_tables(queries, codebooks))
    distances = asymmetric_distances(queries, codes, codebooks, "squared").numpy()
    assert (bounds[:, found.leaves()] <= distances * (1 + 1e-6)).all()


def test_search_is_exact(tmp_path, small_leaves):
    codebooks, codes, queries = clustered_set()
    index = write_and_load(tmp_path / "index", codebooks, codes)
    assert index.manifest["prefix_books"] == 2
    found = index.proposer.prefixes
    limits = full_scan(codebooks, codes, queries, 10)[1][:, -1]
    assert 0 < found.codes_within(queries, limits).mean() < len(index.distinct_codes) / 2
    for k in (1, 10, 300):
        assert_equals_full_scan(index, codebooks, codes, queries, k)
    for query in queries[:20]:
        assert_equals_full_scan(index, codebooks, codes, query[None], 10)
    expected = full_scan(codebooks, codes, queries, 10)[0]
    np.testing.assert_array_equal(index.rows(queries, 10, rerank=10).rows, expected)


def test_ties_and_many_images_of_a_code(tmp_path, small_leaves):
    codebooks, codes, queries = clustered_set()
    codebooks = codebooks[:, np.arange(16) // 2 * 2]
    codes = np.concatenate([codes, codes[:500], np.repeat(codes[:3], 300, axis=0)])
    index = write_and_load(tmp_path / "index", codebooks, codes)
    assert index.proposer.prefixes
    for k in (1, 40, 1000):
        assert_equals_full_scan(index, codebooks, codes, queries, k)


def test_all_images(tmp_path, small_leaves):
    codebooks, codes, queries = clustered_set(2000)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    assert index.proposer.prefixes
    for k in (len(codes) - 5, len(codes)):
        assert_equals_full_scan(index, codebooks, codes, queries, k)


def test_a_query_that_is_a_code_is_settled_at_once(tmp_path, small_leaves, monkeypatch):
    codebooks, codes, _ = clustered_set(3000)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    asked = []
    propose = scann.Scann.propose

    def counted(self, embeddings, count, leaves=None):
        if not isinstance(leaves, np.ndarray):  # else it calls itself
            asked.append(count)
        return propose(self, embeddings, count, leaves)

    monkeypatch.setattr(scann.Scann, "propose", counted)
    found = index.rows(index.decode(np.arange(1)), 1)
    assert found.codes[0, 0] == 0 and found.distances[0, 0] == 0
    # The first few leaves, and those that can be nearer.
    assert asked == [1, neighbors.MIN_CANDIDATES]


def test_one_leaf(tmp_path, small_leaves):
    codebooks, codes, queries = random_set(6, 3000)
    codes[:, :3] = 7
    index = write_and_load(tmp_path / "index", codebooks, codes)
    assert len(index.proposer.prefixes.words) == 1
    assert_equals_full_scan(index, codebooks, codes, queries, 10)


def test_without_a_temporary_folder_all_codes_are_scanned(tmp_path, small_leaves, monkeypatch):
    codebooks, codes, queries = clustered_set(2000)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    loaded = load_index(tmp_path / "index")
    assert index.proposer.prefixes and not loaded.proposer.prefixes
    assert_equals_full_scan(loaded, codebooks, codes, queries, 10)


@pytest.mark.parametrize("offset", [100, 3000])
def test_rounding_leaves_nothing_out(tmp_path, small_leaves, offset):
    """Far from the origin distances to centers are rounded by more than they differ."""
    codebooks, codes, queries = clustered_set(5000)
    index = write_and_load(tmp_path / "index", codebooks + np.float32(offset), codes)
    assert index.proposer.prefixes
    moved = queries + np.float32(offset)
    assert_equals_full_scan(index, codebooks + np.float32(offset), codes, moved, 10)


def test_a_part_of_the_images(tmp_path, small_leaves):
    codebooks, codes, queries = clustered_set()
    index = write_and_load(tmp_path / "index", codebooks, codes)
    for part in (0.1, 0.5, 0.9):
        mask = np.random.default_rng(1).random(len(codes)) < part
        rows = np.flatnonzero(mask)
        expected, _ = full_scan(codebooks, codes[mask], queries, 20)
        found = index.rows(queries, 20, within=mask)
        np.testing.assert_array_equal(found.rows, rows[expected])


def test_near_codes_are_the_same(tmp_path, small_leaves):
    codebooks, codes, _ = clustered_set(3000)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    assert index.proposer.prefixes
    vectors = index.decode(np.arange(len(index.distinct_codes)))
    distances = asymmetric_distances(vectors, index.distinct_codes, codebooks, "squared").numpy()
    for radius in (0.5, 8.0):
        pairs = np.concatenate([*index.near_codes(radius)])
        expected = np.argwhere(np.triu(distances <= radius, 1))
        np.testing.assert_array_equal(pairs[np.lexsort(pairs.T[::-1])], expected)


def test_leaves_of_no_use_are_left_out(tmp_path, small_leaves, monkeypatch):
    """Of random codes of 16 books nearly all leaves are needed, of 4 books few."""
    monkeypatch.setattr(leaves, "MOST_NEEDED", 1 / 4)
    for num_books, depth in ((16, 0), (4, 2)):
        codebooks, codes, queries = random_set(num_books, 20_000)
        index = write_and_load(tmp_path / str(num_books), codebooks, codes)
        assert index.manifest["prefix_books"] == depth
        assert_equals_full_scan(index, codebooks, codes, queries, 10)


def test_small_indexes_have_no_leaves(tmp_path):
    codebooks, codes, _ = clustered_set(2000)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    assert index.manifest["prefix_books"] == 0
    assert prefixes.depth_of(prefixes.MIN_CODES, 16) == 2
    assert prefixes.depth_of(10**8, 16) == prefixes.MAX_DEPTH == 3


def test_leaves_take_no_disk_and_an_index_of_before_them_is_scanned_whole(tmp_path, small_leaves):
    codebooks, codes, queries = clustered_set(2000)
    path = tmp_path / "index"
    index = write_and_load(path, codebooks, codes)
    with_leaves = {file.name for file in path.iterdir()}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest.pop("prefix_books")
    contents = {key: manifest[key] for key in manifest if key not in ("format", "own_sha256")}
    manifest["own_sha256"] = store._own_digest(contents)
    (path / "manifest.json").write_text(json.dumps(manifest))
    before = load_index(path)
    assert before.proposer.prefixes is None
    for one, other in zip(before.rows(queries, 10), index.rows(queries, 10), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not with_leaves & {"datapoint_to_token.npy", "serialized_partitioner.pb"}
