"""Leaves for large collections: each code lies in that of the nearest center, and a query asks a
few.

ScaNN trains the centers on a sample of decoded codes; the codes stay those of the learned
codebooks.
"""

import pathlib
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Codes that the centers are trained on, for each leaf and at least.
SAMPLE_PER_LEAF, MIN_SAMPLE = 64, 100_000
# Distances of codes to centers that are held at a time.
CHUNK_ELEMENTS = 2**25


class Leaves(NamedTuple):
    """The leaves of a tree of one level.

    Attributes:
      serialized: bytes, ScaNN's message of them.
      centers: float32 [L, M*D].
      to_search: how many a query asks where it does not say.
    """

    serialized: bytes
    centers: np.ndarray
    to_search: int


def train_leaves(codebooks, codes, num_leaves, to_search):
    """`Leaves` by k-means over a sample.

    Args:
      codebooks: float32 [M, K, D].
      codes: uint8 [U, M], which may be memory-mapped.
      num_leaves: L, at most U.
      to_search: how many a query asks where it does not say.
    """
    from scann.scann_ops.py import scann_ops_pybind

    count = min(len(codes), max(MIN_SAMPLE, SAMPLE_PER_LEAF * num_leaves))
    rows = np.sort(np.random.default_rng(0).choice(len(codes), count, replace=False))
    sample = decode(codebooks, codes[rows])
    builder = scann_ops_pybind.builder(sample, 1, "squared_l2")
    tree = builder.tree(num_leaves, 1, training_sample_size=count, min_partition_size=1)
    with tempfile.TemporaryDirectory() as folder:
        tree.score_brute_force().build().serialize(folder)
        serialized = pathlib.Path(folder, "serialized_partitioner.pb").read_bytes()
    return Leaves(serialized, centers_of(serialized), to_search)


def centers_of(serialized):
    """The centers in ScaNN's message of a tree of one level: float32 [L, M*D], leaf by leaf."""
    from scann.partitioning import partitioner_pb2

    root = partitioner_pb2.SerializedPartitioner.FromString(serialized).kmeans.kmeans_tree.root
    order = np.argsort([child.leaf_id for child in root.children])
    return np.float32([center.dimension for center in root.centers])[order]


def leaf_chunks(leaves, codebooks, codes):
    """Yields int32 [n], the leaf of each of uint8 [U, M] codes, a run after the other."""
    step = max(1, CHUNK_ELEMENTS // len(leaves.centers))
    centers = tf.constant(leaves.centers)
    halved = tf.reduce_sum(tf.square(centers), axis=1) / 2

    @tf.function(input_signature=[tf.TensorSpec([None, centers.shape[1]])])
    def nearest(vectors):
        products = tf.matmul(vectors, centers, transpose_b=True)
        return tf.argmin(halved - products, axis=1, output_type=tf.int32)

    for start in range(0, len(codes), step):
        yield nearest(decode(codebooks, codes[start : start + step])).numpy()


def decode(codebooks, codes):
    """The vectors that codes stand for: uint8 [n, M] -> float32 [n, M*D]."""
    return codebooks[np.arange(len(codebooks)), codes].reshape(len(codes), -1)
