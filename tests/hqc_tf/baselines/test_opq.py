"""Optimized product quantization: its codes are the nearest words, and it loses less than none."""

import sys

import numpy as np
import pytest

from hqc_tf.baselines import opq
from hqc_tf.errors import UserError


@pytest.fixture
def vectors():
    """Correlated numbers, which a rotation can spread over the books."""
    random = np.random.default_rng(1)
    return np.float32(random.normal(size=[500, 3]) @ random.normal(size=[3, 12]))


def error(vectors, codebooks):
    codes = opq.encode(vectors, codebooks)
    words = codebooks[np.arange(codes.shape[1]), codes].reshape(vectors.shape)
    return np.square(vectors - words).sum()


@pytest.mark.parametrize("held", [opq._PRODUCTS, 3 * 8, 1])
def test_codes_name_the_nearest_word_of_each_book(monkeypatch, held):
    monkeypatch.setattr(opq, "_PRODUCTS", held)
    random = np.random.default_rng(1)
    vectors, codebooks = random.normal(size=[30, 6]), random.normal(size=[2, 4, 3])
    for vector, code in zip(vectors, opq.encode(vectors, codebooks), strict=True):
        for book in range(2):
            part = vector[3 * book : 3 * book + 3]
            distances = [np.square(part - word).sum() for word in codebooks[book]]
            assert code[book] == np.argmin(distances)


def test_the_rotation_is_orthogonal_and_loses_less_than_none(vectors):
    fit = opq.fit(vectors, num_books=4, num_words=16)
    np.testing.assert_allclose(fit.rotation @ fit.rotation.T, np.eye(12), atol=1e-5)
    assert fit.codebooks.shape == (4, 16, 3)
    assert error(vectors @ fit.rotation, fit.codebooks) < 0.1 * np.square(vectors).sum()
    fewer = opq.fit(vectors, num_books=4, num_words=4)
    assert error(vectors @ fewer.rotation, fewer.codebooks) > error(
        vectors @ fit.rotation, fit.codebooks
    )


def test_the_same_vectors_have_the_same_fit(vectors):
    one, other = (opq.fit(vectors, num_books=4, num_words=16) for _ in range(2))
    np.testing.assert_array_equal(one.rotation, other.rotation)
    np.testing.assert_array_equal(one.codebooks, other.codebooks)


@pytest.mark.long
def test_fewer_vectors_than_numbers_are_enough():
    vectors = np.random.default_rng(1).normal(size=[24, 128]).astype(np.float32)
    fit = opq.fit(vectors, num_books=8, num_words=16)
    np.testing.assert_allclose(fit.rotation @ fit.rotation.T, np.eye(128), atol=1e-5)
    assert error(vectors @ fit.rotation, fit.codebooks) < 0.1 * np.square(vectors).sum()


def test_fewer_vectors_than_words_are_refused(vectors):
    with pytest.raises(UserError, match="15 vectors for 16 words a book; give more images"):
        opq.fit(vectors[:15], num_books=4, num_words=16)


def test_faiss_missing_names_the_extra(vectors, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"FAISS is missing; pip install 'hqc-tf\[report\]'"):
        opq.fit(vectors, num_books=4, num_words=16)
