"""The files of an index: written from a collection, and checked to the bit when they are loaded."""

import concurrent.futures
import contextlib
import hashlib
import json
import os

import numpy as np

from export.arrays import map_array, read_ids, write_ids
from export.folders import MANIFEST, read_manifest, write_manifest
from export.index import partitions
from export.index.distinct import find_distinct
from export.index.neighbors import Index
from export.index.scann import SCANN_WORDS, load_searcher, write_scann_files
from hqc_tf.errors import UserError

FORMAT = "hqc-index"
FORMAT_VERSION = 3
ARRAYS = ("codebooks", "hashed_dataset", "grouped_rows", "group_starts")


def write_files(folder, final_path, codebooks, collection, encoder, num_leaves, leaves_to_search):
    """Writes all files of an index.

    Args:
      folder: where, an empty folder.
      final_path: where it will stand.
      codebooks: float32 [M, K, D].
      collection: `Collection`.
      encoder: dict that JSON can hold.
      num_leaves: 0 for none.
      leaves_to_search: how many a query asks where it does not say.

    Raises:
      UserError: a code is none of these codebooks, or there are more leaves than distinct codes.
    """
    num_books, num_words, word_dim = codebooks.shape
    np.save(folder / "codebooks.npy", codebooks, allow_pickle=False)
    num_codes = _write_codes(folder, codebooks, collection)
    _write_ids(folder, collection)
    if num_words == SCANN_WORDS:
        leaves = _write_leaves(folder, codebooks, num_codes, num_leaves, leaves_to_search)
        write_scann_files(folder, final_path, codebooks, leaves)
    contents = {
        "format_version": FORMAT_VERSION,
        "num_images": collection.num_images,
        "num_distinct_codes": num_codes,
        "num_books": num_books,
        "num_words": num_words,
        "word_dim": word_dim,
        "bits": num_books * (num_words - 1).bit_length(),
        "distance": "squared",
        "num_leaves": num_leaves,
        "leaves_to_search": leaves_to_search,
        "encoder": encoder,
        "sources": collection.sources,
        "sha256": _digests(folder, sorted(file.name for file in folder.iterdir())),
    }
    write_manifest(folder, FORMAT, contents | {"own_sha256": _own_digest(contents)})


def read_files(path, folder):
    """The `Index` in `folder`, every byte of it checked.

    Args:
      path: what the user calls it.
      folder: the same, by a name that no move changes.

    Raises:
      UserError: it is no index or of another format version, or a file is damaged or missing.
    """
    manifest = _checked_manifest(path, folder)
    found = _digests(folder, manifest["sha256"])
    for name, expected in manifest["sha256"].items():
        if found[name] != expected:
            state = "damaged" if found[name] else "missing or unreadable"
            raise UserError(f"{path / name} is {state}: rebuild the index or bring back a copy")
    arrays = {name: map_array(folder / f"{name}.npy") for name in ARRAYS}
    scann = manifest["num_words"] == SCANN_WORDS
    searcher = load_searcher(folder, manifest["num_leaves"] > 0) if scann else None
    return Index(
        path=path,
        manifest=manifest,
        codebooks=np.array(arrays["codebooks"]),
        distinct_codes=arrays["hashed_dataset"],
        grouped_rows=arrays["grouped_rows"],
        group_starts=arrays["group_starts"],
        ids=read_ids(folder / "ids.arrow", "rebuild the index or bring back a copy"),
        searcher=searcher,
    )


def found_manifest(path, folder):
    """The manifest in `folder`, which the user calls `path`; UserError where it is no index."""
    manifest = read_manifest(folder, FORMAT)
    if manifest:
        return manifest
    raise UserError(
        f"{path} is no index, it has no {MANIFEST} of one: name a folder that "
        "python -m export.index wrote."
    )


def _checked_manifest(path, folder):
    manifest = found_manifest(path, folder)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"index {path} has format version {version}, but this program reads "
            f"{FORMAT_VERSION}: rebuild it with python -m export.index."
        )
    contents = {key: manifest[key] for key in manifest if key not in ("format", "own_sha256")}
    if manifest.get("own_sha256") != _own_digest(contents):
        raise UserError(f"{path / MANIFEST} is damaged: rebuild the index or bring back a copy")
    return manifest


def _write_codes(folder, codebooks, collection):
    num_books, num_words, _ = codebooks.shape
    count = collection.num_images
    codes = (shard.codes for shard in collection)
    distinct = find_distinct(codes, count, num_books, num_words)
    num_codes = len(distinct.firsts)
    dtype = np.min_scalar_type(count)
    _write_array(
        folder, "hashed_dataset", [num_codes, num_books], np.uint8,
        distinct.code_chunks(num_books, num_words),
    )  # fmt: skip
    _write_array(folder, "grouped_rows", [count], dtype, distinct.row_chunks(dtype))
    starts = (distinct.firsts, [count])
    _write_array(folder, "group_starts", [num_codes + 1], dtype, starts)
    return num_codes


def _write_ids(folder, collection):
    with (folder / "ids.arrow").open("wb") as file:
        write_ids(file, (shard.ids for shard in collection))


def _write_array(folder, name, shape, dtype, chunks):
    """A .npy file of which only a chunk is in memory."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    with (folder / f"{name}.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype).data)


def _write_leaves(folder, codebooks, num_codes, num_leaves, leaves_to_search):
    if not num_leaves:
        return None
    if num_leaves > num_codes:
        raise UserError(
            f"--num_leaves={num_leaves}: there are only {num_codes} distinct codes; lower it"
        )
    codes = map_array(folder / "hashed_dataset.npy")
    leaves = partitions.train_leaves(codebooks, codes, num_leaves, leaves_to_search)
    found = partitions.leaf_chunks(leaves, codebooks, codes)
    _write_array(folder, "datapoint_to_token", [num_codes], np.int32, found)
    return leaves


def _digests(folder, names):
    """{name: sha256 in hexadecimal, or "" where there is no such file}; all cores read."""
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(file):
    with contextlib.suppress(OSError), file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
    return ""


def _own_digest(contents):
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
