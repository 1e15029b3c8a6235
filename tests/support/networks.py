"""A backbone that is traced in a second, under the name `TWO_CONVOLUTIONS`."""

import tensorflow as tf

from hqc_tf import backbones

TWO_CONVOLUTIONS = "two_convolutions"
layers = tf.keras.layers


def _two_convolutions(width, size, weights, sync_batch_norm):
    image = layers.Input([size, size, 3])
    x = image
    for channels in (width, 2 * width):
        # As in the real ones; a bias before batch norm has a gradient of rounding alone.
        x = layers.Conv2D(channels, 3, 2, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(synchronized=sync_batch_norm)(x))
    return tf.keras.Model(image, layers.Flatten()(x))


backbones.BACKBONES[TWO_CONVOLUTIONS] = _two_convolutions
