"""Gradients that are the same to the bit in every run."""

import tensorflow as tf


def branches(x, count):
    """`count` tensors equal to `x`, whose gradients are added in their order.

    TensorFlow adds three or more gradients of a tensor in whatever order their buffers come free,
    so that two runs of the same step differ in the last bits.
    """

    @tf.custom_gradient
    def split(x):
        return [tf.identity(x) for _ in range(count)], lambda *dy: tf.reduce_sum(tf.stack(dy), 0)

    return split(x)
