"""Values by hand, then what must hold of any codes, then a model on real images."""

import numpy as np
import pytest

from hqc_tf import label_free
from hqc_tf.data import catalog
from hqc_tf.data.images import held_out
from hqc_tf.label_free import collapse_warning, perplexity, quantization_error, recall_at_1
from hqc_tf.workdir import load

# Two books of two words on a line: word 0 at 0, word 1 at 10.
CODEBOOKS = np.array([[[0.0], [10.0]], [[0.0], [10.0]]], np.float32)


def test_recall_counts_own_codes_found_first():
    codes = np.array([[0, 0], [0, 1], [1, 1]], np.uint8)
    near_own = np.array([[1, 1], [1, 9], [9, 9]], np.float32)
    assert recall_at_1(near_own, codes, CODEBOOKS, "l2") == 1.0
    one_strays = np.array([[1, 1], [1, 2], [9, 9]], np.float32)
    assert recall_at_1(one_strays, codes, CODEBOOKS, "l2") == pytest.approx(2 / 3)


@pytest.mark.parametrize("distance", ["l2", "squared"])
def test_equal_codes_share_a_hit(distance):
    codes = np.array([[0, 1], [0, 1], [1, 1]], np.uint8)
    embeddings = np.array([[0, 9], [0, 9], [9, 9]], np.float32)
    assert recall_at_1(embeddings, codes, CODEBOOKS, distance) == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_recall_of_a_collapsed_codebook_is_chance():
    embeddings = np.random.default_rng(0).normal(size=[50, 2]).astype(np.float32)
    assert recall_at_1(embeddings, np.zeros([50, 2], np.uint8), CODEBOOKS, "l2") == pytest.approx(
        1 / 50
    )


def test_recall_does_not_depend_on_the_chunks(monkeypatch):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 2, [30, 2], np.uint8)
    embeddings = rng.normal(5, 5, [30, 2]).astype(np.float32)
    whole = recall_at_1(embeddings, codes, CODEBOOKS, "l2")
    monkeypatch.setattr(label_free.retrieval, "CHUNK_ELEMENTS", 70)
    assert recall_at_1(embeddings, codes, CODEBOOKS, "l2") == whole


def test_word_shares_by_hand():
    codes = np.array([[0, 3], [1, 3], [0, 3], [0, 3]], np.uint8)
    shares = label_free.word_shares(codes, 4)
    np.testing.assert_array_equal(shares, [[0.75, 0.25, 0, 0], [0, 0, 0, 1]])


def test_perplexity_by_hand():
    codes = np.array([[0, 3], [1, 3], [2, 3], [3, 3]], np.uint8)
    np.testing.assert_allclose(perplexity(codes, 4), [4, 1])
    # Shares of 3/4 and 1/4.
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    np.testing.assert_allclose(perplexity(np.array([[0], [0], [0], [5]], np.uint8), 16), [expected])


def test_quantization_error_by_hand():
    codes = np.array([[0, 1], [1, 1]], np.uint8)
    embeddings = np.array([[1, 9], [10, 8]], np.float32)
    expected = (1 + 1 + 0 + 4) / (1 + 81 + 100 + 64)
    assert quantization_error(embeddings, codes, CODEBOOKS) == pytest.approx(expected)
    words = CODEBOOKS[[0, 1], codes].reshape(2, 2)
    assert quantization_error(words, codes, CODEBOOKS) == 0


def test_collapse_is_told_by_book():
    assert collapse_warning([4.0, 16.0], 16) is None
    warning = collapse_warning([3.9, 16.0, 1.0], 16)
    assert "book 0 (3.9), 2 (1.0); lower --codeword_diversity_temperature" in warning
    assert "\n" not in warning


def test_a_model_is_judged_the_same_each_time(workdir, photos):
    trained = load(workdir)
    held = held_out(catalog.load_images(f"folder:{photos}"), 1000)
    judged, again = (label_free.evaluate(trained, held) for _ in range(2))
    assert judged.held_out == 6
    assert judged.as_fields() == again.as_fields()
    assert 1 / 6 <= judged.recall_at_1 <= 1
    assert judged.perplexity.shape == (2,) and np.all(judged.perplexity <= 4)
