"""ScaNN's own files, written with the learned codebooks and codes in place of trained ones.

A folder holds the centers of its hashes (our words), its configuration, the list of its files, and
with leaves the tree and the leaf of every code. The codes themselves are hashed_dataset.npy.
"""

import json

from export.index.neighbors import MIN_CANDIDATES

SCANN_WORDS = 16  # ScaNN's fast tables have four bits
_FLAT = {"AH_CENTERS": "ah_codebook.pb", "AH_DATASET_NPY": "hashed_dataset.npy"}
_LEAVES = {"PARTITIONER": "serialized_partitioner.pb", "TOKENIZATION_NPY": "datapoint_to_token.npy"}


def write_scann_files(folder, final_path, codebooks, leaves=None):
    """Writes what ScaNN's training would have left.

    Args:
      folder: where.
      final_path: where the folder will stand; ScaNN's list of files is of absolute paths.
      codebooks: float32 [M, 16, D].
      leaves: `partitions.Leaves`, or None for a search through all codes.
    """
    files = _files(leaves is not None)
    (folder / "ah_codebook.pb").write_bytes(_centers(codebooks).SerializeToString())
    (folder / "scann_config.pb").write_bytes(_config(codebooks, leaves).SerializeToString())
    if leaves is not None:
        (folder / _LEAVES["PARTITIONER"]).write_bytes(leaves.serialized)
    (folder / "scann_assets.pbtxt").write_text(_assets(final_path, files), encoding="utf-8")


def load_searcher(folder, has_leaves):
    """ScaNN's searcher over the folder at absolute path `folder`, wherever it was written."""
    from scann.scann_ops.py import scann_ops_pybind

    # Not its load_searcher: it takes absolute paths from scann_assets.pbtxt, which a move makes
    # wrong.
    assets = _assets(folder, _files(has_leaves))
    return scann_ops_pybind.ScannSearcher(
        scann_ops_pybind.scann_pybind.ScannNumpy(str(folder), assets)
    )


def _files(has_leaves):
    return _FLAT | _LEAVES if has_leaves else _FLAT


def _assets(path, files):
    return "".join(
        f"assets {{\n  asset_type: {kind}\n"
        f"  asset_path: {json.dumps(f'{path}/{name}', ensure_ascii=False)}\n}}\n"
        for kind, name in files.items()
    )


def _centers(codebooks):
    from scann.proto import centers_pb2

    centers = centers_pb2.CentersForAllSubspaces()
    for book in codebooks.tolist():
        subspace = centers.subspace_centers.add()
        for word in book:
            subspace.center.add(feature_type="FLOAT", feature_value_float=word)
    return centers


def _config(codebooks, leaves):
    from google.protobuf import text_format
    from scann.proto import scann_pb2

    num_books, num_words, word_dim = codebooks.shape
    partitioning = "" if leaves is None else _partitioning(leaves)
    # Rounding down is what makes ScaNN's distances lower bounds.
    return text_format.Parse(
        f"""
        num_neighbors: {MIN_CANDIDATES}
        distance_measure {{ distance_measure: "SquaredL2Distance" }}
        {partitioning}
        hash {{ asymmetric_hash {{
          projection {{
            projection_type: CHUNK
            input_dim: {num_books * word_dim}
            num_blocks: {num_books}
            num_dims_per_block: {word_dim}
          }}
          num_clusters_per_block: {num_words}
          lookup_type: INT8_LUT16
          use_residual_quantization: false
          fixed_point_lut_conversion_options {{ float_to_int_conversion_method: TRUNCATE }}
          quantization_distance {{ distance_measure: "SquaredL2Distance" }}
        }} }}""",
        scann_pb2.ScannConfig(),
    )


def _partitioning(leaves):
    return f"""
        partitioning {{
          num_children: {len(leaves.centers)}
          partitioning_distance {{ distance_measure: "SquaredL2Distance" }}
          query_spilling {{
            spilling_type: FIXED_NUMBER_OF_CENTERS
            max_spill_centers: {leaves.to_search}
          }}
          query_tokenization_distance_override {{ distance_measure: "SquaredL2Distance" }}
          partitioning_type: GENERIC
          query_tokenization_type: FLOAT
        }}"""
