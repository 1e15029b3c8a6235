"""Sums in a fixed order, so that runs repeat to the bit, and checks for non-finite numbers."""

from typing import Any

import tensorflow as tf

from hqc_tf.errors import UserError

NON_FINITE_FIX = (
    "; what was saved before stays; take a lower --learning_rate, or a higher temperature of the "
    "term, in another --workdir"
)


def check_weights(model: tf.keras.Model, step: int) -> None:
    """Raises `UserError` where a weight of `model` is infinite or NaN after `step` steps."""
    for variable in model.weights:
        if not tf.reduce_all(tf.math.is_finite(variable)):
            raise UserError(f"step {step}: not finite: {variable.name}" + NON_FINITE_FIX)


def branches(tensors: Any, count: int) -> list:
    """`count` copies of a tensor, or of a nest of them, whose gradients are added in their order.

    TensorFlow adds three or more gradients of a tensor in the order in which buffers become free,
    so that two runs of the same step differ in the last bits.
    """

    @tf.custom_gradient
    def split(x):
        return [tf.identity(x) for _ in range(count)], lambda *dy: tf.reduce_sum(tf.stack(dy), 0)

    copies = zip(*map(split, tf.nest.flatten(tensors)), strict=True)
    return [tf.nest.pack_sequence_as(tensors, copy) for copy in copies]
