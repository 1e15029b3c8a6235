import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import retrieval
from tests.support import REFERENCE

# Two books of two words in the plane; the query's parts are (0, 0) and (3, 4).
CODEBOOKS = np.array([[[3, 4], [0, 1]], [[3, 4], [0, 0]]], np.float32)
QUERY = np.array([[0, 0, 3, 4]], np.float32)
ALL_CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.uint8)


def random_case(num_queries, num_codes, num_books=4, num_words=16, word_dim=3, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((num_queries, num_books * word_dim), dtype=np.float32),
        rng.integers(0, num_words, (num_codes, num_books), dtype=np.uint8),
        rng.standard_normal((num_books, num_words, word_dim), dtype=np.float32),
    )


def distances_by_loop(queries, codes, codebooks, distance):
    """The definition, one query, one image and one book at a time, in float64."""
    num_books, _, word_dim = codebooks.shape
    parts = queries.reshape(-1, num_books, word_dim).astype(np.float64)
    result = np.zeros((len(queries), len(codes)))
    for q, i in np.ndindex(*result.shape):
        for m in range(num_books):
            norm = np.linalg.norm(parts[q, m] - codebooks[m, codes[i, m]])
            result[q, i] += norm if distance == "l2" else norm**2
    return result


@pytest.mark.parametrize(
    ("distance", "expected"), [("l2", [5, 10, 1, 6]), ("squared", [25, 50, 1, 26])]
)
def test_distances_by_hand(distance, expected):
    distances = retrieval.asymmetric_distances(QUERY, ALL_CODES, CODEBOOKS, distance)
    assert distances.dtype == tf.float32
    np.testing.assert_array_equal(distances, [expected])


def test_distance_tables_by_hand():
    tables = retrieval.distance_tables(QUERY, CODEBOOKS)
    np.testing.assert_array_equal(tables, [[[5, 1], [0, 5]]])


@pytest.mark.parametrize("name", ["single_label", "multi_label"])
def test_distances_equal_the_authors(name):
    with np.load(REFERENCE / f"retrieval_{name}.npz", allow_pickle=False) as case:
        distances = retrieval.asymmetric_distances(
            case["query_embeddings"], case["database_codes"], case["codebooks"]
        )
        np.testing.assert_allclose(distances, case["distances"], rtol=1e-5)


@pytest.mark.parametrize("distance", retrieval.DISTANCES)
@pytest.mark.parametrize("num_books", [1, 4, 11])
def test_distances_equal_a_double_loop(distance, num_books):
    case = random_case(5, 33, num_books)
    distances = retrieval.asymmetric_distances(*case, distance)
    np.testing.assert_allclose(distances, distances_by_loop(*case, distance), rtol=1e-5)


def test_distances_keep_their_digits_near_a_word_far_from_the_origin():
    codebooks = np.full((1, 1, 2), 1000, np.float32)
    query = codebooks.reshape(1, 2) + np.float32(2**-8)
    distances = retrieval.asymmetric_distances(query, np.zeros((1, 1), np.uint8), codebooks)
    np.testing.assert_allclose(distances, [[2**-7.5]], rtol=1e-6)


@pytest.mark.parametrize("num_codes", [2, 7, 257, 1001])
@pytest.mark.parametrize("num_queries", [1, 3, 13, 130])
@pytest.mark.parametrize("num_books", [4, 8, 11, 16])
def test_equal_codes_get_bit_identical_distances(num_codes, num_queries, num_books):
    queries, codes, codebooks = random_case(num_queries, 1, num_books)
    # Parts of very different size make the sum depend on the order of its terms.
    queries *= np.repeat(np.resize([1e-3, 1, 30], num_books), 3).astype(np.float32)
    distances = retrieval.asymmetric_distances(queries, codes.repeat(num_codes, 0), codebooks)
    assert np.all(distances.numpy() == distances.numpy()[:, :1])


def test_candidate_distances_are_those_of_the_named_codes():
    queries, codes, codebooks = random_case(6, 40, num_books=11)
    candidates = np.random.default_rng(1).integers(0, 40, (6, 9))
    tables = retrieval.distance_tables(queries, codebooks)
    found = retrieval.candidate_distances(tables, codes[candidates])
    expected = distances_by_loop(queries, codes, codebooks, "l2")
    np.testing.assert_allclose(found, np.take_along_axis(expected, candidates, 1), rtol=1e-5)


def test_nearest_by_hand():
    found = retrieval.nearest(QUERY, ALL_CODES, CODEBOOKS, k=3)
    assert found.rows.dtype == tf.int32
    np.testing.assert_array_equal(found.rows, [[2, 0, 3]])
    np.testing.assert_array_equal(found.distances, [[1, 5, 6]])


@pytest.mark.parametrize("k", [1, 7, 150, 1001])
def test_ties_go_to_the_lower_row(k):
    queries, codes, codebooks = random_case(9, 1001, num_books=2, num_words=3)
    found = retrieval.nearest(queries, codes, codebooks, k)
    distances = retrieval.asymmetric_distances(queries, codes, codebooks).numpy()
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    assert len(np.unique(codes, axis=0)) == 9
    np.testing.assert_array_equal(found.rows, order)
    np.testing.assert_array_equal(found.distances, np.take_along_axis(distances, order, 1))


@pytest.mark.parametrize("queries_per_chunk", [0, 1, 4, 5, 12])
def test_chunks_do_not_change_the_result(monkeypatch, queries_per_chunk):
    case = random_case(11, 300)
    expected = retrieval.nearest(*case, k=20)
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", 300 * queries_per_chunk + 299)
    chunks = list(retrieval.nearest_by_chunk(*case, k=20))
    assert len(chunks) == -(-11 // max(1, queries_per_chunk))
    found = retrieval.nearest(*case, k=20)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.distances, expected.distances)


def test_unknown_distance_is_named():
    with pytest.raises(ValueError, match=r"distance is 'cosine'.*\('l2', 'squared'\)"):
        retrieval.asymmetric_distances(QUERY, ALL_CODES, CODEBOOKS, "cosine")


def test_embeddings_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3\).*\[Q, 4\]"):
        retrieval.asymmetric_distances(QUERY[:, :3], ALL_CODES, CODEBOOKS)


def test_codes_of_other_codebooks_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 1\).*\[N, 2\]"):
        retrieval.asymmetric_distances(QUERY, ALL_CODES[:, :1], CODEBOOKS)
    with pytest.raises(ValueError, match="word 2, but .* words 0 to 1"):
        retrieval.asymmetric_distances(QUERY, ALL_CODES + np.uint8(1), CODEBOOKS)


@pytest.mark.parametrize("k", [0, 5])
def test_k_outside_the_database_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}, but must lie in 1 to 4"):
        retrieval.nearest(QUERY, ALL_CODES, CODEBOOKS, k)


@pytest.mark.parametrize("queries_per_chunk", [1, 4, 9])
def test_nearest_embeddings_equal_a_scan(monkeypatch, queries_per_chunk):
    rng = np.random.default_rng(0)
    queries, images = (rng.standard_normal((n, 6), dtype=np.float32) for n in (9, 200))
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", 200 * queries_per_chunk)
    chunks = list(retrieval.nearest_embeddings_by_chunk(queries, images, 20))
    assert len(chunks) == -(-9 // queries_per_chunk)
    distances = np.linalg.norm(queries[:, None] - images, axis=-1)
    np.testing.assert_allclose(retrieval.embedding_distances(queries, images), distances, rtol=1e-5)
    order = np.argsort(distances, axis=1)[:, :20]
    np.testing.assert_array_equal(np.concatenate([chunk.rows for chunk in chunks]), order)
    found = np.concatenate([chunk.distances for chunk in chunks])
    np.testing.assert_allclose(found, np.take_along_axis(distances, order, 1), rtol=1e-5)


def test_an_embedding_is_nearest_to_itself():
    images = np.array([[3, 4], [1e3, 1e3], [0, 0]], np.float32)
    (found,) = retrieval.nearest_embeddings_by_chunk(images, images, 1)
    np.testing.assert_array_equal(found.rows, [[0], [1], [2]])
    np.testing.assert_array_equal(found.distances, [[0], [0], [0]])


def test_more_embeddings_than_there_are_cannot_be_asked_for():
    with pytest.raises(ValueError, match="k is 4, but must lie in 1 to 3"):
        list(retrieval.nearest_embeddings_by_chunk(np.zeros((1, 2)), np.zeros((3, 2)), 4))
