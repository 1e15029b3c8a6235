"""Histograms of oriented gradients: a description of an image's shapes that needs no training.

Source: Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection" (CVPR 2005), here
with cells of 4 x 4 pixels, 6 orientations and square roots, and without their blocks.
"""

import math

import tensorflow as tf

_CELL_PIXELS = 4
_ORIENTATIONS = 6


class OrientedGradients(tf.keras.layers.Layer):
    """float [B, H, W, C] -> float32 [B, ceil(H / 4) * ceil(W / 4) * 6], of any length.

    Each pixel's gradient, of the mean of its channels, counts by its length for the two nearest of
    the orientations of a half turn, and a cell has the mean of its pixels.
    """

    def __init__(self, **kwargs):
        super().__init__(**(kwargs | {"dtype": "float32"}))
        self._cells = tf.keras.layers.AveragePooling2D(
            _CELL_PIXELS, padding="same", dtype="float32"
        )
        self._flat = tf.keras.layers.Flatten(dtype="float32")

    def call(self, images: tf.Tensor) -> tf.Tensor:
        gray = tf.reduce_mean(images, axis=-1)
        wide = tf.pad(gray, [[0, 0], [1, 1], [1, 1]], "SYMMETRIC")
        down = wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]
        right = wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]
        step = math.pi / _ORIENTATIONS
        centers = step * (tf.range(_ORIENTATIONS, dtype=tf.float32) + 0.5)
        turned = tf.math.atan2(down, right)[..., None] - centers
        # Opposite directions are one orientation.
        apart = tf.abs(tf.math.floormod(turned + math.pi / 2, math.pi) - math.pi / 2)
        lengths = tf.sqrt(tf.square(down) + tf.square(right))
        votes = tf.nn.relu(1 - apart / step) * lengths[..., None]
        return self._flat(tf.sqrt(self._cells(votes)))
