import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import metrics, retrieval
from tests.support import REFERENCE

# One book of four words on a line: word w lies at w, so the query at 0 finds words in order.
LINE = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
LINE_CODES = np.arange(4, dtype=np.uint8)[:, None]
ORIGIN = np.zeros((1, 1), np.float32)


def random_case(num_queries=40, num_codes=500, num_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "codebooks": rng.standard_normal((4, 8, 3), dtype=np.float32),
        "database_codes": rng.integers(0, 8, (num_codes, 4), dtype=np.uint8),
        "database_labels": rng.integers(0, num_classes, num_codes),
        "query_embeddings": rng.standard_normal((num_queries, 12), dtype=np.float32),
        "query_labels": rng.integers(0, num_classes, num_queries),
    }


def scores_by_loop(relevant):
    """Mean average precision and P@k by their definitions, one query and place at a time."""
    num_queries, num_places = relevant.shape
    average_precision, precision_at_k = 0.0, np.zeros(num_places)
    for row in relevant:
        hits, total = 0, 0.0
        for place in range(num_places):
            hits += row[place]
            total += row[place] * hits / (place + 1)
            precision_at_k[place] += hits / (place + 1)
        average_precision += total / hits if hits else 0.0
    return average_precision / num_queries, precision_at_k / num_queries


def test_average_precision_by_hand():
    relevant = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    expected = [(1 + 2 / 3) / 2, 1 / 4, 1, 0]
    np.testing.assert_allclose(metrics.average_precision(relevant), expected)


def test_scores_by_hand():
    result = metrics.evaluate_codes(LINE, LINE_CODES, [7, 1, 7, 7], ORIGIN, [7], top_k=3)
    assert isinstance(result.mean_average_precision, float)
    assert result.mean_average_precision == pytest.approx((1 + 2 / 3) / 2)
    np.testing.assert_allclose(result.precision_at_k, [1, 1 / 2, 2 / 3])
    assert result.top_k == 3


def test_one_shared_label_is_enough():
    database = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]])
    result = metrics.evaluate_codes(LINE, LINE_CODES, database, ORIGIN, [[0, 0, 1]], top_k=4)
    assert result.mean_average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)
    np.testing.assert_allclose(result.precision_at_k, [0, 1 / 2, 1 / 3, 1 / 2])


@pytest.mark.parametrize("name", ["single_label", "multi_label"])
def test_scores_equal_the_authors(name):
    with np.load(REFERENCE / f"retrieval_{name}.npz", allow_pickle=False) as case:
        result = metrics.evaluate_codes(
            case["codebooks"],
            case["database_codes"],
            case["database_labels"],
            case["query_embeddings"],
            case["query_labels"],
            top_k=len(case["precision_at_k"]),
        )
        expected = case["mean_average_precision"].item()
        assert result.mean_average_precision == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(result.precision_at_k, case["precision_at_k"], rtol=1e-5)


@pytest.mark.parametrize("distance", retrieval.DISTANCES)
def test_scores_equal_a_double_loop(distance):
    case = random_case()
    result = metrics.evaluate_codes(**case, top_k=60, distance=distance)
    distances = retrieval.asymmetric_distances(
        case["query_embeddings"], case["database_codes"], case["codebooks"], distance
    )
    order = np.argsort(distances, axis=1, kind="stable")[:, :60]
    relevant = case["database_labels"][order] == case["query_labels"][:, None]
    expected, expected_at_k = scores_by_loop(relevant)
    assert result.mean_average_precision == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(result.precision_at_k, expected_at_k)


def test_each_query_has_its_average_precision():
    queries = np.zeros((3, 1), np.float32)
    result = metrics.evaluate_codes(LINE, LINE_CODES, [7, 1, 7, 1], queries, [7, 1, 2], top_k=3)
    np.testing.assert_allclose(result.average_precision, [(1 + 2 / 3) / 2, 1 / 2, 0])
    assert result.mean_average_precision == pytest.approx(result.average_precision.mean())


def test_any_search_is_scored():
    found = retrieval.Nearest(tf.constant([[2, 0], [1, 2]]), None)
    result = metrics.evaluate_rankings([found], [7, 1, 7], [7, 7])
    np.testing.assert_allclose(result.average_precision, [1, 1 / 2])
    np.testing.assert_allclose(result.precision_at_k, [1 / 2, 3 / 4])


def precision_recall_by_loop(relevant):
    """By the definitions, one query and place at a time."""
    num_queries, num_places = relevant.shape
    precision, recall = np.zeros(num_places), np.zeros(num_places)
    for row in relevant:
        hits = 0
        for place in range(num_places):
            hits += row[place]
            precision[place] += hits / (place + 1)
            recall[place] += hits / row.sum() if row.any() else 0
    return precision / num_queries, recall / num_queries


@pytest.mark.parametrize("queries_per_chunk", [1, 7, 40])
def test_precision_and_recall_equal_a_double_loop(monkeypatch, queries_per_chunk):
    case = random_case(num_classes=9)
    case["query_labels"][3] = 99  # Nothing in the database is relevant to it.
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", 500 * queries_per_chunk)
    queries, codes = case["query_embeddings"], case["database_codes"]
    chunks = list(retrieval.nearest_by_chunk(queries, codes, case["codebooks"], 500))
    found = metrics.precision_recall(iter(chunks), case["database_labels"], case["query_labels"])
    rows = np.concatenate([chunk.rows for chunk in chunks])
    relevant = case["database_labels"][rows] == case["query_labels"][:, None]
    precision, recall = precision_recall_by_loop(relevant)
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    assert recall[-1] == pytest.approx(39 / 40)


def test_the_distances_rank_differently():
    # 0 + 3 against 2 + 2: the first is nearer by norms, the second by squared norms.
    codebooks = np.array([[[0], [2]], [[3], [2]]], np.float32)
    codes = np.array([[0, 0], [1, 1]], np.uint8)
    arguments = (codebooks, codes, [1, 0], np.zeros((1, 2), np.float32), [1])
    assert metrics.evaluate_codes(*arguments, 1, "l2").mean_average_precision == 1
    assert metrics.evaluate_codes(*arguments, 1, "squared").mean_average_precision == 0


def test_ties_go_to_the_lower_row():
    codes = np.zeros((1001, 1), np.uint8)
    labels = np.arange(1001) < 2
    result = metrics.evaluate_codes(LINE, codes, labels, ORIGIN, [True], top_k=4)
    np.testing.assert_allclose(result.precision_at_k, [1, 1, 2 / 3, 1 / 2])


def test_both_label_forms_agree_on_single_labels():
    case = random_case(num_classes=11)
    expected = metrics.evaluate_codes(**case, top_k=50)
    for name in ("database_labels", "query_labels"):
        case[name] = np.eye(11, dtype=np.uint8)[case[name]]
    result = metrics.evaluate_codes(**case, top_k=50)
    assert result.mean_average_precision == expected.mean_average_precision
    np.testing.assert_array_equal(result.precision_at_k, expected.precision_at_k)


def test_a_query_with_nothing_relevant_counts_as_zero():
    queries = np.zeros((4, 1), np.float32)
    result = metrics.evaluate_codes(LINE, LINE_CODES, [7, 7, 7, 7], queries, [7, 1, 7, 2], 2)
    assert result.mean_average_precision == pytest.approx(1 / 2)
    np.testing.assert_allclose(result.precision_at_k, [1 / 2, 1 / 2])


def test_a_query_without_labels_counts_as_zero():
    labels = np.array([[0, 0], [1, 0]])
    queries = np.zeros((2, 1), np.float32)
    result = metrics.evaluate_codes(LINE, LINE_CODES, np.ones((4, 2)), queries, labels, 3)
    assert result.mean_average_precision == pytest.approx(1 / 2)


@pytest.mark.parametrize("queries_per_chunk", [1, 7, 39])
def test_chunks_do_not_change_the_scores(monkeypatch, queries_per_chunk):
    case = random_case()
    expected = metrics.evaluate_codes(**case, top_k=100)
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", 500 * queries_per_chunk)
    result = metrics.evaluate_codes(**case, top_k=100)
    assert result.mean_average_precision == expected.mean_average_precision
    np.testing.assert_array_equal(result.precision_at_k, expected.precision_at_k)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 501}, "top_k is 501, but must lie in 1 to 500"),
        ({"top_k": 0}, "top_k is 0, but must lie in 1 to 500"),
        ({"distance": "cosine"}, r"distance is 'cosine', but must be one of \('l2', 'squared'\)"),
        ({"database_labels": np.zeros(499, int)}, "database_labels has 499 rows .* 500"),
        ({"query_labels": np.zeros(41, int)}, "query_labels has 41 rows .* 40"),
        ({"query_labels": np.zeros((40, 5), int)}, r"query_labels \(40, 5\) do not match"),
        ({"database_labels": np.zeros((500, 5), int)}, r"database_labels \(500, 5\).* not match"),
        (
            {"database_labels": np.zeros((500, 5)), "query_labels": np.zeros((40, 4))},
            "do not match: .* over the same C labels",
        ),
        (
            {"database_labels": np.full((500, 1), 3), "query_labels": np.full((40, 1), 3)},
            r"database_labels \(500, 1\) reach from 3 to 3, but multi-hot labels are 0 or 1",
        ),
        (
            {"query_embeddings": np.zeros((0, 12)), "query_labels": np.zeros(0, int)},
            "query_labels has 0 rows .* there must be an item",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        metrics.evaluate_codes(**({"top_k": 10} | random_case() | change))


def test_chance_level_is_the_mean_of_random_orders():
    rng = np.random.default_rng(1)
    database = np.repeat(np.arange(4), [2500, 1500, 750, 250])
    query = np.arange(4)
    found = [
        metrics.average_precision(rng.choice(database, 50) == query[:, None]) for _ in range(3000)
    ]
    assert metrics.chance_level(database, query, 50) == pytest.approx(np.mean(found), rel=0.01)


def test_chance_level_of_multi_hot_labels_counts_shared_ones():
    one_hot = np.eye(4, dtype=np.uint8)
    database, query = np.array([0, 0, 1, 2]), np.array([0, 1, 3])
    assert metrics.chance_level(one_hot[database], one_hot[query], 3) == pytest.approx(
        metrics.chance_level(database, query, 3)
    )
    assert metrics.chance_level([[1, 1], [0, 1]], [[0, 1]], 2) == pytest.approx(1.0)


def test_chance_level_of_a_query_without_relevant_images_is_zero():
    assert metrics.chance_level([0, 0], [1], 2) == 0
