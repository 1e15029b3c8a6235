"""The fast index type: ScaNN's files with the learned codebooks and codes in place of trained ones.

A folder has the centers of ScaNN's hashes (the codewords), its configuration, the list of its
files, and with `num_leaves` its tree and the leaf of every code. A code belongs to the leaf of the
nearest center, and a query searches a few leaves. ScaNN trains the centers on a sample of decoded
codes; the codes stay those of the learned codebooks, and are hashed_dataset.npy. Leaves of codes
that begin alike (`prefixes`) have no files: their tree is made at each load.
"""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from export.arrays import write_array
from export.index.prefixes import Prefixes, find
from hqc_tf.errors import UserError, counted

NUM_WORDS = 16  # ScaNN's fast tables have four bits
# Of a program that loads the folder by ScaNN alone and does not say.
_NUM_NEIGHBORS = 100
# Codes that the centers are trained on, for each leaf and at least.
SAMPLE_PER_LEAF, MIN_SAMPLE = 64, 100_000
# Distances of codes to centers in memory at a time.
CHUNK_ELEMENTS = 2**25
_FLAT = {"AH_CENTERS": "ah_codebook.pb", "AH_DATASET_NPY": "hashed_dataset.npy"}
_LEAVES = {"PARTITIONER": "serialized_partitioner.pb", "TOKENIZATION_NPY": "datapoint_to_token.npy"}


class Scann(NamedTuple):
    """Proposes the codes that ScaNN finds."""

    searcher: Any  # ScaNN's own
    num_leaves: int  # of its tree, of either kind; 0: none
    prefixes: Prefixes | None = None  # which the leaves are; None: they have centers by k-means

    def propose(
        self, embeddings: np.ndarray, count: int, leaves: int | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes near each query, by tables rounded down to int8.

        Args:
            embeddings: [Q, M*D] float32.
            count: R, of codes.
            leaves: to search, of all queries or [Q], at least so many; None: all.

        Returns:
            codes: [Q, R] rows of the distinct codes.
            bounds: [Q, R] float32, never above the codes' squared distances, in rising order; NaN
                where the leaves have fewer codes.
        """
        if isinstance(leaves, np.ndarray):
            return self._propose_each(embeddings, count, leaves)
        leaves = leaves or self.num_leaves or None
        if len(embeddings) == 1:
            return self.searcher.search_batched(embeddings, count, leaves_to_search=leaves)
        batch_size = -(-len(embeddings) // len(os.sched_getaffinity(0)))
        return self.searcher.search_batched_parallel(
            embeddings, count, leaves_to_search=leaves, batch_size=batch_size
        )

    def _propose_each(self, embeddings, count, leaves):
        if len(leaves) == 1:
            return self.propose(embeddings, count, int(leaves[0]))
        # Queries that need about as many leaves are one batch of ScaNN.
        sizes = np.frexp(leaves)[1]
        codes = np.empty([len(embeddings), count], np.uint32)
        bounds = np.empty(codes.shape, np.float32)
        for size in np.unique(sizes):
            queries = np.flatnonzero(sizes == size)
            most = int(leaves[queries].max())
            codes[queries], bounds[queries] = self.propose(embeddings[queries], count, most)
        return codes, bounds


def write(
    folder: pathlib.Path, final_path: pathlib.Path, codebooks: np.ndarray, codes: np.ndarray,
    num_leaves: int, leaves_to_search: int,
) -> None:  # fmt: skip
    """Writes what ScaNN's training would have left.

    Args:
        folder: where.
        final_path: where the folder will be; ScaNN's list of files has absolute paths.
        codebooks: [M, 16, D] float32.
        codes: [U, M] uint8, distinct.
        num_leaves: 0 for a search through all codes; UserError where it is more than U, or U is 1.
        leaves_to_search: by a query that does not say.
    """
    # Of a single code ScaNN makes no tree.
    most = len(codes) if len(codes) > 1 else 0
    if num_leaves > most:
        are = "is" if len(codes) == 1 else "are"
        raise UserError(
            f"--num_leaves={num_leaves}: there {are} only {counted(len(codes), 'distinct code')}; "
            f"lower it, such as --num_leaves={most}"
        )
    if num_leaves:
        tree = train_tree(codebooks, codes, num_leaves)
        (folder / _LEAVES["PARTITIONER"]).write_bytes(tree)
        leaves = leaf_chunks(centers_of(tree), codebooks, codes)
        write_array(folder / _LEAVES["TOKENIZATION_NPY"], [len(codes)], np.int32, leaves)
    (folder / _FLAT["AH_CENTERS"]).write_bytes(_centers(codebooks).SerializeToString())
    write_config(folder, codebooks, num_leaves, leaves_to_search)
    assets = _assets(final_path, num_leaves)
    (folder / "scann_assets.pbtxt").write_text(assets, encoding="utf-8")


def write_config(
    folder: pathlib.Path, codebooks: np.ndarray, num_leaves: int, leaves_to_search: int
) -> None:
    """Writes ScaNN's configuration, which says how many leaves a query searches."""
    config = _config(codebooks, num_leaves, leaves_to_search)
    (folder / "scann_config.pb").write_bytes(config.SerializeToString())


def load(
    folder: pathlib.Path, manifest: dict[str, Any], codebooks: np.ndarray, codes: np.ndarray
) -> Scann:
    """The proposer of an index in `folder`, an absolute path, wherever it was written."""
    num_leaves = manifest["num_leaves"]
    if depth := manifest.get("prefix_books"):
        # Without a temporary folder all codes are scanned, which finds the same.
        with contextlib.suppress(OSError):
            return _load_prefixes(folder, codebooks, find(codebooks, codes, depth))
    return Scann(_searcher(folder, _assets(folder, num_leaves)), num_leaves)


def _searcher(folder, assets):
    """ScaNN's own, with the configuration in `folder`."""
    from scann.scann_ops.py import scann_ops_pybind

    # Not its load_searcher, whose absolute paths in scann_assets.pbtxt a move makes wrong.
    searcher = scann_ops_pybind.scann_pybind.ScannNumpy(str(folder), assets)
    return scann_ops_pybind.ScannSearcher(searcher)


def _load_prefixes(folder, codebooks, prefixes):
    """The codes of `folder` under a tree whose leaves are `prefixes`, which takes no disk."""
    num_leaves = len(prefixes.words)
    with tempfile.TemporaryDirectory() as made, os.fdopen(os.memfd_create("leaves"), "wb") as file:
        np.save(file, prefixes.leaves())
        file.flush()
        write_config(pathlib.Path(made), codebooks, num_leaves, 1)
        tree = pathlib.Path(made, _LEAVES["PARTITIONER"])
        tree.write_bytes(_tree_of(prefixes.centers()))
        paths = {kind: folder / name for kind, name in _FLAT.items()} | {
            "PARTITIONER": tree,
            "TOKENIZATION_NPY": f"/proc/self/fd/{file.fileno()}",
        }
        return Scann(_searcher(made, _assets_at(paths)), num_leaves, prefixes)


def _tree_of(centers):
    """ScaNN's message of a tree of one level, with these [L, M*D] centers of its leaves."""
    from scann.partitioning import partitioner_pb2

    tree = partitioner_pb2.SerializedPartitioner(n_tokens=len(centers))
    root = tree.kmeans.kmeans_tree.root
    for leaf, center in enumerate(centers.tolist()):
        root.centers.add(dimension=center)
        root.children.add(leaf_id=leaf)
    return tree.SerializeToString()


def train_tree(codebooks: np.ndarray, codes: np.ndarray, num_leaves: int) -> bytes:
    """ScaNN's message of a tree of one level, by k-means over a sample of [U, M] uint8 codes."""
    from scann.scann_ops.py import scann_ops_pybind

    count = min(len(codes), max(MIN_SAMPLE, SAMPLE_PER_LEAF * num_leaves))
    rows = np.sort(np.random.default_rng(0).choice(len(codes), count, replace=False))
    builder = scann_ops_pybind.builder(_decode(codebooks, codes[rows]), 1, "squared_l2")
    tree = builder.tree(num_leaves, 1, training_sample_size=count, min_partition_size=1)
    with tempfile.TemporaryDirectory() as folder:
        tree.score_brute_force().build().serialize(folder)
        return pathlib.Path(folder, _LEAVES["PARTITIONER"]).read_bytes()


def centers_of(tree: bytes) -> np.ndarray:
    """The centers in ScaNN's message of a tree of one level: [L, M*D] float32, leaf by leaf."""
    from scann.partitioning import partitioner_pb2

    root = partitioner_pb2.SerializedPartitioner.FromString(tree).kmeans.kmeans_tree.root
    order = np.argsort([child.leaf_id for child in root.children])
    return np.float32([center.dimension for center in root.centers])[order]


def leaf_chunks(
    centers: np.ndarray, codebooks: np.ndarray, codes: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields the leaf of each of [U, M] codes, [n] int32, one run after the other."""
    step = max(1, CHUNK_ELEMENTS // len(centers))
    halved = tf.reduce_sum(tf.square(centers), axis=1) / 2

    @tf.function(input_signature=[tf.TensorSpec([None, centers.shape[1]])])
    def nearest(vectors):
        products = tf.matmul(vectors, centers, transpose_b=True)
        return tf.argmin(halved - products, axis=1, output_type=tf.int32)

    for start in range(0, len(codes), step):
        yield nearest(_decode(codebooks, codes[start : start + step])).numpy()


def _decode(codebooks, codes):
    """The vectors that codes stand for: [n, M] uint8 -> [n, M*D] float32."""
    return codebooks[np.arange(len(codebooks)), codes].reshape(len(codes), -1)


def _assets(path, num_leaves):
    names = _FLAT | _LEAVES if num_leaves else _FLAT
    return _assets_at({kind: f"{path}/{name}" for kind, name in names.items()})


def _assets_at(paths):
    lines = []
    for kind, path in paths.items():
        file = json.dumps(str(path), ensure_ascii=False)
        lines.append(f"assets {{\n  asset_type: {kind}\n  asset_path: {file}\n}}\n")
    return "".join(lines)


def _centers(codebooks):
    from scann.proto import centers_pb2

    centers = centers_pb2.CentersForAllSubspaces()
    for book in codebooks.tolist():
        subspace = centers.subspace_centers.add()
        for word in book:
            subspace.center.add(feature_type="FLOAT", feature_value_float=word)
    return centers


def _config(codebooks, num_leaves, leaves_to_search):
    from google.protobuf import text_format
    from scann.proto import scann_pb2

    num_books, num_words, word_dim = codebooks.shape
    partitioning = _partitioning(num_leaves, leaves_to_search) if num_leaves else ""
    # Rounding down is what makes ScaNN's distances lower bounds.
    return text_format.Parse(
        f"""
        num_neighbors: {_NUM_NEIGHBORS}
        distance_measure {{ distance_measure: "SquaredL2Distance" }}
        {partitioning}
        hash {{ asymmetric_hash {{
          projection {{ projection_type: CHUNK input_dim: {num_books * word_dim}
                        num_blocks: {num_books} num_dims_per_block: {word_dim} }}
          num_clusters_per_block: {num_words}
          lookup_type: INT8_LUT16
          use_residual_quantization: false
          fixed_point_lut_conversion_options {{ float_to_int_conversion_method: TRUNCATE }}
          quantization_distance {{ distance_measure: "SquaredL2Distance" }}
        }} }}""",
        scann_pb2.ScannConfig(),
    )


def _partitioning(num_leaves, leaves_to_search):
    return f"""
        partitioning {{
          num_children: {num_leaves}
          partitioning_distance {{ distance_measure: "SquaredL2Distance" }}
          query_spilling {{ spilling_type: FIXED_NUMBER_OF_CENTERS
                            max_spill_centers: {leaves_to_search} }}
          query_tokenization_distance_override {{ distance_measure: "SquaredL2Distance" }}
          partitioning_type: GENERIC
          query_tokenization_type: FLOAT
        }}"""
