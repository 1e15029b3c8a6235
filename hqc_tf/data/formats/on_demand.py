"""Functions that a graph instantiates when they first run.

Each iterator of tf.data, and each loaded SavedModel, optimizes and instantiates its whole graph
before the first image. Most files need little of what all formats need together.
"""

from collections.abc import Callable

import tensorflow as tf

FILE = tf.TensorSpec([], tf.string)


def on_demand(*signature: tf.TensorSpec) -> Callable:
    """Decorates a function of tensors: traced once for all graphs, and never inlined into one.

    It must not raise on any file: TensorFlow logs an error within it, with the file's bytes.
    """

    def decorate(function):
        attributes = {"_noinline": True}
        return tf.function(
            function, list(signature), autograph=False, experimental_attributes=attributes
        )

    return decorate
