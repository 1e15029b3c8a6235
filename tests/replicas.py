"""Trains on one and on two logical CPUs in a process of its own; test_distribute.py reads OUTPUT.

How many CPUs TensorFlow sees is fixed once it has started.
"""

import sys

import numpy as np
import tensorflow as tf

from hqc_tf import distribute, model
from hqc_tf.config import Config

CONFIG = Config(
    precision="float64",
    image_size=8,
    num_books=2,
    num_words=4,
    word_dim=3,
    num_neighbors=3,
    batch_size=8,
    epochs=1,
    warmup_epochs=0,
    book_classification_weight=0.3,
    cross_quantized_weight=0.2,
)
STEPS, EPOCHS = 2, 4


def dense_encoder(config):
    """Without batch norm, whose statistics are each replica's own."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Input([config.image_size, config.image_size, 3]),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(config.num_books * config.word_dim),
        ]
    )


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


def trained(strategy):
    """The losses of each epoch of `fit`, and the weights at the end."""
    tf.keras.utils.set_random_seed(1)
    views = np.random.default_rng(0).random([2, STEPS * CONFIG.batch_size, 8, 8, 3])
    data = tf.data.Dataset.from_tensor_slices(tuple(views)).batch(CONFIG.batch_size, True)
    with strategy.scope():
        network = model.HQC(CONFIG)
        network.compile(optimizer=tf.keras.optimizers.Adam(1e-2))
        # Otherwise `fit` traces its step a second time, after the first has made them.
        network.optimizer.build(network.trainable_variables)
    history = network.fit(data, epochs=EPOCHS, verbose=0).history
    return history, [weight.numpy() for weight in network.trainable_variables]


def main(output):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.config.set_visible_devices([], "GPU")
    tf.keras.backend.set_floatx("float64")
    model.build_encoder = dense_encoder
    found = {}
    for name in ("one_device", "mirrored"):
        strategy = distribute.make_strategy(name)
        found[f"{name}/replicas"] = strategy.num_replicas_in_sync
        history, weights = trained(strategy)
        found |= {f"{name}/metric/{term}": values for term, values in history.items()}
        found |= {f"{name}/weight/{place}": weight for place, weight in enumerate(weights)}
    found |= {f"gather/{name}": value for name, value in gathered(strategy).items()}
    np.savez(output, **found)


if __name__ == "__main__":
    main(sys.argv[1])
