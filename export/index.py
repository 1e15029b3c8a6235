"""The searchable index of a set of images: `python -m export.index --saved_model=... --output=...`

A folder of the learned codes and codebooks as they are, in ScaNN's files, with the images' ids and
a manifest. Nothing is trained a second time. Equal codes are stored once, each with the rows of its
images.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from export.encode import encode_images, load_encoder
from export.manifest import MANIFEST, read_manifest, write_manifest
from export.neighbors import MIN_CANDIDATES, Index
from hqc_tf import config, data
from hqc_tf.config import UserError

FORMAT = "hqc-index"
FORMAT_VERSION = 1
SCANN_WORDS = 16  # ScaNN's fast tables have four bits


def load_index(path: str | os.PathLike) -> Index:
    """Loads what `write_index` wrote, wherever the folder has been moved since.

    Raises:
        UserError: there is no such folder, it is no index or of another format version, or its
            files contradict its manifest.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is no folder: write an index with python -m export.index.")
    manifest = _read_manifest(path)
    if manifest["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"index {path} has format version {manifest['format_version']}, but this program "
            f"reads {FORMAT_VERSION}: rebuild it with python -m export.index."
        )
    num_images, num_codes, num_books = (
        manifest[name] for name in ("num_images", "num_distinct_codes", "num_books")
    )
    num_words, word_dim = manifest["num_words"], manifest["word_dim"]
    id_starts = _map_array(path, "id_starts", (num_images + 1,))
    return Index(
        path=path,
        manifest=manifest,
        codebooks=np.array(_map_array(path, "codebooks", (num_books, num_words, word_dim))),
        distinct_codes=_map_array(path, "hashed_dataset", (num_codes, num_books)),
        grouped_rows=_map_array(path, "grouped_rows", (num_images,)),
        group_starts=_map_array(path, "group_starts", (num_codes + 1,)),
        id_bytes=_map_array(path, "id_bytes", (int(id_starts[-1]),)),
        id_starts=id_starts,
        searcher=_load_searcher(path) if num_words == SCANN_WORDS else None,
    )


def write_index(
    path: str | os.PathLike,
    codebooks: np.ndarray,
    codes: np.ndarray,
    ids: Sequence[str],
    encoder: dict[str, Any],
) -> None:
    """Writes an index, whole or not at all; one that stands at `path` is replaced at the end.

    The index is written beside `path` and moved there once it is on the disk. Between the two
    renames that replace an older index, `path` is missing for an instant.

    Args:
        path: folder to make; it is missing, empty or an index.
        codebooks: [M, K, D] float32.
        codes: [N, M] uint8 below K, N at least 1.
        ids: N strings, any and not necessarily different.
        encoder: goes into the manifest; has "fingerprint" and "path", and JSON can hold it.

    Raises:
        ValueError: the arguments do not fit each other, or `path` holds something else.
    """
    path = pathlib.Path(path).resolve()
    _check_contents(codebooks, codes, ids, encoder)
    _check_replaceable(path)
    partial, old = (path.with_name(f".{path.name}.{end}") for end in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_files(partial, path, codebooks, codes, ids, encoder)
        _replace(partial, path, old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _write_files(folder, final_path, codebooks, codes, ids, encoder) -> None:
    distinct_codes, grouped_rows, group_starts = _group(codes)
    lengths = [len(name.encode("utf-8", "surrogatepass")) for name in ids]
    arrays = {
        "codebooks": codebooks,
        "hashed_dataset": distinct_codes,
        "grouped_rows": grouped_rows,
        "group_starts": group_starts,
        "id_bytes": np.frombuffer("".join(ids).encode("utf-8", "surrogatepass"), np.uint8),
        "id_starts": np.cumsum([0, *lengths], dtype=np.int64),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    num_books, num_words, word_dim = codebooks.shape
    if num_words == SCANN_WORDS:
        _write_scann_files(folder, final_path, codebooks)
    contents = {
        "format_version": FORMAT_VERSION,
        "num_images": len(codes),
        "num_distinct_codes": len(distinct_codes),
        "num_books": num_books,
        "num_words": num_words,
        "word_dim": word_dim,
        "bits": num_books * (num_words - 1).bit_length(),
        "distance": "squared",
        "encoder": encoder,
    }
    write_manifest(folder, FORMAT, contents)


def _group(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct codes, the rows sorted by code, and where each code's rows begin."""
    rows = np.lexsort(codes.T[::-1])  # stable, and a radix sort for bytes
    ordered = codes[rows]
    is_first = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
    starts = np.append(np.flatnonzero(is_first), len(codes))
    dtype = np.min_scalar_type(len(codes))
    return ordered[is_first], rows.astype(dtype), starts.astype(dtype)


def _write_scann_files(folder, final_path, codebooks) -> None:
    """Writes what ScaNN's own training would have left, with our words as its centers."""
    from google.protobuf import text_format
    from scann.proto import centers_pb2, scann_pb2

    num_books, num_words, word_dim = codebooks.shape
    centers = centers_pb2.CentersForAllSubspaces()
    for book in codebooks.tolist():
        subspace = centers.subspace_centers.add()
        for word in book:
            subspace.center.add(feature_type="FLOAT", feature_value_float=word)
    # Rounding down is what makes ScaNN's distances lower bounds.
    config = text_format.Parse(
        f"""
        num_neighbors: {MIN_CANDIDATES}
        distance_measure {{ distance_measure: "SquaredL2Distance" }}
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
    (folder / "ah_codebook.pb").write_bytes(centers.SerializeToString())
    (folder / "scann_config.pb").write_bytes(config.SerializeToString())
    (folder / "scann_assets.pbtxt").write_text(_scann_assets(final_path), encoding="utf-8")


def _scann_assets(path: pathlib.Path) -> str:
    files = {"AH_CENTERS": "ah_codebook.pb", "AH_DATASET_NPY": "hashed_dataset.npy"}
    return "".join(
        f"assets {{\n  asset_type: {kind}\n"
        f"  asset_path: {json.dumps(str(path / name), ensure_ascii=False)}\n}}\n"
        for kind, name in files.items()
    )


def _load_searcher(path: pathlib.Path) -> Any:
    from scann.scann_ops.py import scann_ops_pybind

    # Not load_searcher: it takes absolute paths from scann_assets.pbtxt, which a move makes wrong.
    path = path.resolve()
    return scann_ops_pybind.ScannSearcher(
        scann_ops_pybind.scann_pybind.ScannNumpy(str(path), _scann_assets(path))
    )


def _replace(partial: pathlib.Path, path: pathlib.Path, old: pathlib.Path) -> None:
    for file in [*partial.iterdir(), partial]:
        _sync(file)
    replaces = path.exists()
    if replaces:
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if replaces:
            old.rename(path)
        raise
    _sync(path.parent)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _map_array(path: pathlib.Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    file = path / f"{name}.npy"
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): rebuild the index.") from error
    if array.shape != shape:
        raise UserError(
            f"{file} has the shape {array.shape}, but the manifest says {shape}: rebuild the index."
        )
    return array


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    found = read_manifest(path, FORMAT)
    if found:
        return found
    raise UserError(
        f"{path} is no index, it has no {MANIFEST} of one: name a folder that "
        "python -m export.index wrote."
    )


def _check_replaceable(path: pathlib.Path) -> None:
    if path.is_dir() and any(path.iterdir()):
        _read_manifest(path)
    elif path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, but an index is a folder: name another.")


def _check_contents(codebooks, codes, ids, encoder) -> None:
    if codebooks.ndim != 3 or codebooks.dtype != np.float32 or not np.isfinite(codebooks).all():
        raise ValueError(
            f"codebooks are {codebooks.dtype} {codebooks.shape}, but must be finite float32 "
            "[M, K, D]: pass those of a trained quantizer."
        )
    num_books, num_words, _ = codebooks.shape
    if codes.dtype != np.uint8 or codes.shape != (max(1, len(codes)), num_books):
        raise ValueError(
            f"codes are {codes.dtype} {codes.shape}, but must be uint8 [N, {num_books}], N at "
            "least 1: pass what these codebooks encoded."
        )
    if codes.max() >= num_words:
        raise ValueError(
            f"codes name word {codes.max()}, but the codebooks have words 0 to {num_words - 1}: "
            "pass what these codebooks encoded."
        )
    if len(ids) != len(codes):
        raise ValueError(f"{len(ids)} ids for {len(codes)} codes: pass one id for each code.")
    if not {"fingerprint", "path"} <= encoder.keys():
        raise ValueError(f"encoder is {encoder}, but must have fingerprint and path: add them.")


def main(_):
    values = flags.FLAGS
    _check_replaceable(pathlib.Path(values.output))
    encoder = load_encoder(values.saved_model)
    images = data.load_images(values.dataset, values.data_dir)
    encoded = encode_images(encoder, images)
    write_index(
        values.output,
        encoder.codebooks,
        encoded.codes,
        images.ids,
        {"fingerprint": encoder.manifest["fingerprint"], "path": str(encoder.path)},
    )
    manifest = load_index(values.output).manifest
    print(
        f"{values.output}: {manifest['num_images']} images of {values.dataset} at "
        f"{manifest['bits']} bits, {manifest['num_distinct_codes']} distinct codes"
    )


if __name__ == "__main__":
    flags.DEFINE_string(
        "saved_model", None, "what export.saved_model wrote; its newest version", required=True
    )
    flags.DEFINE_string(
        "dataset", None, "images to index: folder:PATH, name or name/split of TFDS", required=True
    )
    flags.DEFINE_string("data_dir", "", "where prepared TFDS data lies; empty: TFDS's own place")
    flags.DEFINE_string("output", None, "folder of the index; replaces an older one", required=True)
    config.run(main)
