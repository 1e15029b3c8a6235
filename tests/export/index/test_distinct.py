"""Distinct codes equal NumPy's, however they are packed and in whatever parts they come."""

import numpy as np
import pytest

from export.index import distinct


@pytest.fixture(params=[(8, 16), (5, 16), (3, 256), (5, 10), (17, 2), (1, 1)])
def collection(request):
    num_books, num_words = request.param
    codes = np.random.default_rng(0).integers(0, num_words, [500, num_books], np.uint8)
    codes[100:200] = codes[:100]
    return codes, num_books, num_words


def test_by_hand():
    codes = np.uint8([[1, 15], [0, 2], [1, 15], [1, 0]])
    found = distinct.find_distinct([codes[:1], codes[1:]], 4, 2, 16)
    assert found.order.tolist() == [1, 3, 0, 2]
    assert found.firsts.tolist() == [0, 1, 2]
    assert [*found.code_chunks(2, 16)][0].tolist() == [[0, 2], [1, 0], [1, 15]]


def test_packing_loses_nothing_and_keeps_the_order(collection):
    codes, num_books, num_words = collection
    columns = distinct.pack(codes, num_words)
    assert columns.dtype == np.uint16
    np.testing.assert_array_equal(distinct.unpack(columns, num_books, num_words), codes)
    np.testing.assert_array_equal(np.lexsort(columns[::-1]), np.lexsort(codes.T[::-1]))


def test_equals_numpy_in_chunks_of_any_size(collection, monkeypatch):
    codes, num_books, num_words = collection
    monkeypatch.setattr(distinct, "CHUNK", 7)
    parts = [codes[:0], codes[:123], codes[123:]]
    found = distinct.find_distinct(parts, len(codes), num_books, num_words)
    unique, first_rows, counts = np.unique(codes, axis=0, return_index=True, return_counts=True)
    np.testing.assert_array_equal(
        np.concatenate([*found.code_chunks(num_books, num_words)]), unique
    )
    np.testing.assert_array_equal(found.order[found.firsts], first_rows)
    np.testing.assert_array_equal(np.diff([*found.firsts, len(codes)]), counts)
    np.testing.assert_array_equal(np.concatenate([*found.row_chunks(np.uint16)]), found.order)


def test_word_beyond_the_codebooks_is_refused():
    with pytest.raises(ValueError, match="name word 10, but the codebooks have words 0 to 9"):
        distinct.find_distinct([np.full([2, 3], 10, np.uint8)], 2, 3, 10)
