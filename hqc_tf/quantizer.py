"""The product quantizer: M codebooks of K codewords, soft to train and hard to encode."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from hqc_tf.numerics import branches


class Quantization(NamedTuple):
    """What the quantizer makes of a batch."""

    quantized: tf.Tensor  # float [B, M*D], the softly quantized embedding z
    similarity: tf.Tensor  # float [B, M, K], cosine of each part with each codeword of its book


class ProductQuantizer(tf.keras.layers.Layer):
    """Soft product quantization with hard codes (paper, section on product quantization).

    The embedding f [M*D] is cut into M parts f^m. A part becomes
    z^m = sum_k softmax_k(-||f^m - c^m_k||^2 / temperature) c^m_k; its code is the nearest codeword.
    Everything is computed in float32, or in float64 under a float64 policy, whatever the precision
    of the network before it.

    Args:
        num_books: M, codebooks; an image takes M * log2(K) bits.
        num_words: K, codewords per book, a power of two from 2 to 256.
        word_dim: D, numbers per codeword.
        temperature: of the softmax over codewords; it divides, so a smaller one is harder.

    Call arguments:
        embedding: float [B, M*D].

    Returns of a call: a `Quantization` of `.quantized` [B, M*D] and `.similarity` [B, M, K].

    Raises:
        ValueError: `num_words` is not a power of two in 2..256, another value is not positive, or
            the embedding is not M*D wide.

    Example:
        >>> quantizer = ProductQuantizer(num_books=8, num_words=16, word_dim=16)
        >>> codes = quantizer.encode(tf.random.normal([2, 128]))  # uint8 [2, 8]: 32 bits an image
    """

    def __init__(
        self, num_books: int, num_words: int, word_dim: int, temperature: float = 0.2, **kwargs
    ):
        kwargs.setdefault("dtype", at_least_float32(tf.keras.mixed_precision.global_policy()))
        super().__init__(**kwargs)
        if num_words not in (2, 4, 8, 16, 32, 64, 128, 256):
            raise ValueError(
                f"num_words={num_words}: codes are whole bits in one byte a book; "
                "take a power of two from 2 to 256 (the paper's is 16)"
            )
        if min(num_books, word_dim, temperature) <= 0:
            raise ValueError(
                f"num_books={num_books}, word_dim={word_dim}, temperature={temperature}: "
                "each must be above zero; give positive numbers"
            )
        self.num_books, self.num_words, self.word_dim = num_books, num_words, word_dim
        self.temperature = temperature

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the codebooks, [M, K, D]; ValueError where the input is not M*D wide."""
        width = self.num_books * self.word_dim
        if input_shape[-1] != width:
            raise ValueError(
                f"embedding of width {input_shape[-1]}: {self.num_books} books of {self.word_dim} "
                f"numbers need {width}; make the layer before the quantizer that wide"
            )
        # Glorot uniform over one [K, M*D] matrix, as the authors start it; Keras' own initializer
        # would read the fans off [M, K, D].
        limit = (6.0 / (self.num_words + width)) ** 0.5
        self.codebooks = self.add_weight(
            name="codebooks",
            shape=[self.num_books, self.num_words, self.word_dim],
            initializer=tf.keras.initializers.RandomUniform(-limit, limit),
        )
        super().build(input_shape)

    def call(self, embedding: tf.Tensor) -> Quantization:
        parts, parts_of_norm = branches(self._split(embedding), 2)
        codebooks = branches(tf.convert_to_tensor(self.codebooks), 4)
        products = tf.einsum("bmd,mkd->bmk", parts, codebooks[0])
        weights = tf.nn.softmax(_closeness(products, codebooks[1]) / self.temperature)
        quantized = self._merge(tf.einsum("bmk,mkd->bmd", weights, codebooks[2]))
        part_norms = tf.norm(parts_of_norm, axis=-1, keepdims=True)
        word_norms = tf.norm(codebooks[3], axis=-1)
        return Quantization(quantized, tf.math.divide_no_nan(products, part_norms * word_norms))

    def encode(self, embedding: tf.Tensor) -> tf.Tensor:
        """Nearest codeword of each part, the lower one in a tie: float [B, M*D] -> uint8 [B, M]."""
        embedding = tf.cast(embedding, self.compute_dtype)
        if not self.built:
            self.build(embedding.shape)
        products = tf.einsum("bmd,mkd->bmk", self._split(embedding), self.codebooks)
        closeness = _closeness(products, self.codebooks)
        return tf.cast(tf.argmax(closeness, axis=-1, output_type=tf.int32), tf.uint8)

    def decode(self, codes: tf.Tensor) -> tf.Tensor:
        """The codewords that codes name, side by side: uint8 [B, M] -> float [B, M*D]."""
        by_book = tf.transpose(tf.cast(codes, tf.int32))
        words = tf.gather(self.codebooks, by_book, batch_dims=1)
        return self._merge(tf.transpose(words, [1, 0, 2]))

    def get_config(self) -> dict:
        names = "num_books", "num_words", "word_dim", "temperature"
        return super().get_config() | {name: getattr(self, name) for name in names}

    def _split(self, embedding):
        return tf.reshape(embedding, [-1, self.num_books, self.word_dim])

    def _merge(self, parts):
        return tf.reshape(parts, [-1, self.num_books * self.word_dim])


def _closeness(products, codebooks):
    """-||f - c||^2 [B, M, K] less the term ||f||^2, which neither softmax nor argmax sees."""
    return 2.0 * products - tf.reduce_sum(tf.square(codebooks), axis=-1)


def at_least_float32(policy: tf.keras.mixed_precision.Policy) -> str:
    """The variable dtype of a Keras policy, widened to float32 where it is narrower."""
    return policy.variable_dtype if policy.variable_dtype == "float64" else "float32"
