"""The distinct codes of a collection, each with the rows of its images.

Thousands of images can have the same code, and ScaNN sees a code only once. The collection is read
part by part; what is held for all N images is 2 bytes for every 16 bits of code, and the order.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from hqc_tf.errors import UserError

# Rows in memory at a time where files are written.
CHUNK = 2**20


class Distinct(NamedTuple):
    """N codes, sorted."""

    columns: np.ndarray  # uint16 [C, N], the codes packed; see `pack`
    order: np.ndarray  # int64 [N], the rows by code, book after book, equal ones in rising order
    firsts: np.ndarray  # int64 [U], where in `order` a code occurs first

    def row_chunks(self, dtype: DTypeLike) -> Iterator[np.ndarray]:
        """Yields `order` in pieces of unsigned `dtype`."""
        for start in range(0, len(self.order), CHUNK):
            yield self.order[start : start + CHUNK].astype(dtype)

    def code_chunks(self, num_books: int, num_words: int) -> Iterator[np.ndarray]:
        """Yields the distinct codes, uint8 [n, M], in rising order."""
        for start in range(0, len(self.firsts), CHUNK):
            rows = self.order[self.firsts[start : start + CHUNK]]
            yield unpack(self.columns[:, rows], num_books, num_words)


def find_distinct(
    parts: Iterable[np.ndarray], num_images: int, num_books: int, num_words: int
) -> Distinct:
    """Sorts the codes of a collection; UserError where one names a word beyond K.

    Args:
        parts: iterable of codes, uint8 [n, M] each, N rows in all.
        num_images: N.
        num_books: M.
        num_words: K, at most 256.
    """
    columns = np.empty([math.ceil(num_books / _books_a_column(num_words)), num_images], np.uint16)
    start = 0
    for codes in parts:
        if codes.size and codes.max() >= num_words:
            raise UserError(
                f"codes name word {codes.max()}, but the codebooks have words 0 to "
                f"{num_words - 1}: pass what these codebooks encoded."
            )
        columns[:, start : start + len(codes)] = pack(codes, num_words)
        start += len(codes)
    order = np.lexsort(columns[::-1])  # stable, and a radix sort for 16 bits
    return Distinct(columns, order, _firsts(columns, order))


def pack(codes: np.ndarray, num_words: int) -> np.ndarray:
    """uint8 [n, M] -> uint16 [C, n], as many books a column as fit; the order of codes stays."""
    per, bits = _books_a_column(num_words), _bits(num_words)
    places = np.arange(codes.shape[1])
    weights = np.zeros([places.size, math.ceil(places.size / per)], np.uint16)
    weights[places, places // per] = 1 << bits * (per - 1 - places % per)
    return (codes.astype(np.uint16) @ weights).T


def unpack(columns: np.ndarray, num_books: int, num_words: int) -> np.ndarray:
    """What `pack` packed: uint16 [C, n] -> uint8 [n, M]."""
    per, bits = _books_a_column(num_words), _bits(num_words)
    places = np.arange(num_books)
    shifts = (bits * (per - 1 - places % per)).astype(np.uint16)
    words = columns[places // per] >> shifts[:, None] & np.uint16(2**bits - 1)
    return np.ascontiguousarray(words.T.astype(np.uint8))


def _firsts(columns, order):
    found = []
    for start in range(0, len(order), CHUNK):
        ordered = columns[:, order[max(start - 1, 0) : start + CHUNK]]
        differs = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
        if start == 0:
            differs = np.append(True, differs)
        found.append(start + np.flatnonzero(differs))
    return np.concatenate(found)


def _bits(num_words):
    return max(1, (num_words - 1).bit_length())


def _books_a_column(num_words):
    return 16 // _bits(num_words)
