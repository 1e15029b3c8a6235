"""Trains under strategies in a process of its own: `replicas.py DATASETS OUTPUT STRATEGY...`.

DATASETS are one of photos and one of features, with a comma between. How many CPUs TensorFlow sees,
and with which others it works, is fixed once it has started. test_distribute.py starts it and
compares what it leaves in OUTPUT/STRATEGY/PRECISION.
"""

import contextlib
import functools
import sys

# ruff: noqa: I001
from hqc_tf import config, distribute, evaluate, train
from hqc_tf.training.state import KeepState

import numpy as np
import tensorflow as tf

from tests.support.networks import TWO_CONVOLUTIONS

# All terms, batch norm over all replicas, real images, 24 steps.
SETTINGS = {
    "backbone": TWO_CONVOLUTIONS,
    "image_size": 8,
    "backbone_width": 4,
    "num_books": 2,
    "num_words": 4,
    "word_dim": 3,
    "num_neighbors": 3,
    "batch_size": 8,
    "epochs": 4,
    "warmup_epochs": 1,
    "held_out": 0,
    "top_k": 10,
    "book_classification_weight": 0.3,
    "cross_quantized_weight": 0.2,
    "sync_batch_norm": True,
    "backbone_rate": 0.5,
}
# Features are trained on in seconds; batch norm is that of the projection.
OF_FEATURES = {"projection_norm": True, "backbone_rate": 1.0}


def gathered(strategy):
    """What each replica of two gets when it holds rows (0, 1) or (2, 3), and its gradient."""
    rows = tf.reshape(tf.range(48, dtype=tf.float64), [4, 2, 6])

    def step():
        first = 2 * tf.distribute.get_replica_context().replica_id_in_sync_group
        flat, deep = rows[first : first + 2, 0], rows[first : first + 2]
        with tf.GradientTape() as tape:
            tape.watch([flat, deep])
            everyone, offset = distribute.gather_batch([flat, deep])
            # Each replica counts all rows, the second twice: 1 + 2 come back to every row.
            loss = tf.cast(first / 2 + 1, tf.float64) * sum(map(tf.reduce_sum, everyone))
        return *everyone, offset, *tape.gradient(loss, [flat, deep])

    names = ["flat", "deep", "offset", "flat_gradient", "deep_gradient"]
    results = strategy.run(tf.function(step))
    per_replica = [np.stack(strategy.experimental_local_results(r)) for r in results]
    return dict(zip(names, per_replica, strict=True))


def train_interrupted(settings, output):
    """Two runs under two replicas: one never stopped, one killed after step 8 that goes on."""
    train.train_and_evaluate(settings, f"{output}/whole")
    whole = KeepState.on_train_batch_end

    def die(callback, batch, logs=None):
        whole(callback, batch, logs)
        if callback.model.optimizer.iterations == 8:
            raise KeyboardInterrupt

    KeepState.on_train_batch_end = die
    with contextlib.suppress(KeyboardInterrupt):
        train.train_and_evaluate(settings, f"{output}/interrupted")
    KeepState.on_train_batch_end = whole
    train.train_and_evaluate(settings, f"{output}/interrupted")


def main(datasets, output, *names):
    tf.config.set_visible_devices([], "GPU")
    if "mirrored" in names:
        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
    # The strategy of several workers can be made once a process.
    distribute.make_strategy = functools.cache(distribute.make_strategy)
    photos, features = datasets.split(",")

    def settings(name, precision, dataset, **own):
        given = SETTINGS | {"strategy": name, "precision": precision, "dataset": dataset} | own
        return config.Config(**given)

    for name in names:
        own = settings(name, "float64", photos)
        train.train_and_evaluate(own, f"{output}/{name}/float64")
        # Equal weights are judged alike: once is enough.
        evaluate.evaluate_workdir = lambda *_, **__: []
        # Two processes sum as two replicas of one do: what single precision does is seen there.
        if name != "multi_worker":
            own = settings(name, "float32", features, **OF_FEATURES)
            train.train_and_evaluate(own, f"{output}/{name}/float32")
    if "mirrored" in names:
        # Each replica has running statistics of its own.
        own = {"sync_batch_norm": False, "checkpoint_steps": 5, "epochs": 2, "held_out": 5}
        own = settings("mirrored", "float32", features, **OF_FEATURES | own)
        train_interrupted(own, output)
        strategy = distribute.make_strategy("mirrored", "")
        np.savez(f"{output}/mirrored/gathered.npz", **gathered(strategy))


if __name__ == "__main__":
    main(*sys.argv[1:])
