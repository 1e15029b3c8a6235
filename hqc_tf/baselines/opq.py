"""Optimized product quantization (OPQ: Ge, He, Ke and Sun, CVPR 2013), by FAISS.

A rotation that lets product quantization lose least, and the codebooks of the rotated vectors.
FAISS is an optional package.
"""

import importlib.util
import os
from typing import NamedTuple

import numpy as np

from hqc_tf.errors import UserError

# FAISS takes no more for the rotation.
MOST_VECTORS = 2**16
# Of vectors and words, that are held at once.
_PRODUCTS = 2**24
FIX = "pip install 'hqc-tf[report]', which has FAISS"


class Fit(NamedTuple):
    """A rotation and the codebooks of what it rotates.

    Attributes:
        rotation: float32 [E, E], orthogonal; a row vector x is quantized as x @ rotation.
        codebooks: float32 [M, K, E / M].
    """

    rotation: np.ndarray
    codebooks: np.ndarray


def is_installed() -> bool:
    """Whether FAISS can be imported; does not import it."""
    return importlib.util.find_spec("faiss") is not None


def fit(vectors: np.ndarray, num_books: int, num_words: int) -> Fit:
    """OPQ of some vectors; the same result for the same vectors on the same machine.

    Args:
        vectors: float [N, E]; N at least `num_words`. FAISS takes `MOST_VECTORS` for the
            rotation and 256 a word for the codebooks.
        num_books: M, a divisor of E.
        num_words: K, a power of two from 2 to 256.

    Raises:
        UserError: FAISS is not installed, or there are fewer vectors than words.
    """
    # FAISS' threads would spin while they wait, on cores that other work needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"OPQ: FAISS is missing; {FIX}") from error
    if len(vectors) < num_words:
        raise UserError(
            f"OPQ: {len(vectors)} vectors for {num_words} words a book; give more images, or a "
            "smaller --num_words"
        )
    vectors = np.ascontiguousarray(vectors, np.float32)
    width, word_bits = vectors.shape[1], num_words.bit_length() - 1
    # FAISS' rotation ends the process where it has fewer vectors than numbers in each.
    if len(vectors) < width:
        vectors = np.resize(vectors, [width, width])
    rotation = faiss.OPQMatrix(width, num_books, width)
    rotation.pq = _quantizer(faiss, width, num_books, word_bits)
    rotation.train(vectors)
    matrix = faiss.vector_to_array(rotation.A).reshape(width, width).T.copy()
    quantizer = _quantizer(faiss, width, num_books, word_bits)
    quantizer.train(vectors @ matrix)
    words = faiss.vector_to_array(quantizer.centroids)
    return Fit(matrix, words.reshape(num_books, num_words, width // num_books))


def _quantizer(faiss, width, num_books, word_bits):
    quantizer = faiss.ProductQuantizer(width, num_books, word_bits)
    # FAISS' remark on few vectors for each word is not the user's to act on.
    quantizer.cp.min_points_per_centroid = 1
    return quantizer


def encode(vectors: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Nearest word of each part: float [N, E], already rotated -> uint8 [N, M]."""
    num_books, num_words, word_dim = codebooks.shape
    halved = np.square(codebooks).sum(-1) / 2
    codes = np.empty([len(vectors), num_books], np.uint8)
    rows = max(1, _PRODUCTS // (num_books * num_words))
    for start in range(0, len(vectors), rows):
        parts = np.reshape(vectors[start : start + rows], [-1, num_books, word_dim])
        products = np.einsum("nmd,mkd->nmk", parts, codebooks, optimize=True)
        codes[start : start + rows] = np.argmax(products - halved, axis=-1)
    return codes
