"""The files of an index: written from a collection, and checked to the bit when they are loaded."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from export.arrays import map_array, read_ids, write_array
from export.folders import MANIFEST, read_manifest, write_manifest
from export.index import ids, scan, scann
from export.index.collection import Collection
from export.index.distinct import find_distinct
from export.index.leaves import choose_leaves, choose_prefix
from export.index.neighbors import Index
from export.kept import row_bytes
from hqc_tf.errors import UserError

FORMAT = "hqc-index"
# 4: ids in compressed blocks. Version 3, which has them as they are, is read too.
FORMAT_VERSION, READ_VERSIONS = 4, (3, 4)
ARRAYS = ("codebooks", "hashed_dataset", "grouped_rows", "group_starts")
# Name -> module with `write` and `load`, which gives what has `propose` and `prefixes`.
KINDS = {"scann": scann, "scan": scan}
_KEPT = "embeddings.npy"
_FIX = "rebuild the index or restore a copy"


def write_files(
    folder: pathlib.Path,
    final_path: pathlib.Path,
    codebooks: np.ndarray,
    collection: Collection,
    encoder: dict[str, Any],
    kind: str,
    num_leaves: int,
    leaves_to_search: int,
    recall: float | None = None,
) -> None:
    """Writes all files of an index.

    Args:
        folder: where, an empty folder.
        final_path: where the folder will be.
        codebooks: [M, K, D] float32.
        collection: the images; UserError where a code is not of these codebooks.
        encoder: JSON can hold it.
        kind: key of `KINDS`.
        num_leaves: 0 for none; UserError where there are more than distinct codes.
        leaves_to_search: by a query that does not say.
        recall: what these leaves shall reach, which chooses their number instead.
    """
    num_books, num_words, word_dim = codebooks.shape
    write_array(folder / "codebooks.npy", codebooks.shape, codebooks.dtype, [codebooks])
    codes = _write_codes(folder, codebooks, collection)
    with (folder / "ids.arrow").open("wb") as file:
        ids.write(file, (shard.ids for shard in collection))
    if collection.keep != "none":
        width = row_bytes(collection.keep, num_books * word_dim)
        parts = (shard.kept for shard in collection)
        write_array(folder / _KEPT, [collection.num_images, width], np.uint8, parts)
    KINDS[kind].write(folder, final_path, codebooks, codes, num_leaves, leaves_to_search)
    contents = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "num_images": collection.num_images,
        "num_distinct_codes": len(codes),
        "num_books": num_books,
        "num_words": num_words,
        "word_dim": word_dim,
        "bits": num_books * (num_words - 1).bit_length(),
        "distance": "squared",
        "keep": collection.keep,
        "num_leaves": num_leaves,
        "leaves_to_search": leaves_to_search,
        "recall": recall,
        "encoder": encoder,
        "inputs": collection.inputs,
    }
    if recall is not None:
        chosen = choose_leaves(_opened(final_path, folder, contents), recall)
        contents["leaves_to_search"] = chosen
        scann.write_config(folder, codebooks, num_leaves, chosen)
    elif kind == "scann" and not num_leaves:
        # ScaNN's own memory is not needed to choose.
        scanned = _opened(final_path, folder, contents | {"kind": "scan"})
        contents["prefix_books"] = choose_prefix(scanned)
    contents["sha256"] = _digests(folder, sorted(file.name for file in folder.iterdir()))
    write_manifest(folder, FORMAT, contents | {"own_sha256": _own_digest(contents)})


def read_files(path: pathlib.Path, folder: pathlib.Path) -> Index:
    """The index that the user calls `path`, every byte of it checked; UserError as in `load_index`.

    `folder` is the same, by a name that no move changes.
    """
    manifest = _checked_manifest(path, folder)
    found = _digests(folder, manifest["sha256"])
    for name, expected in manifest["sha256"].items():
        if found[name] != expected:
            state = "damaged" if found[name] else "missing or unreadable"
            raise UserError(f"{path / name} is {state}: {_FIX}")
    return _opened(path, folder, manifest)


def found_manifest(path: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """The manifest in `folder`, which the user calls `path`; UserError where it has none."""
    if manifest := read_manifest(folder, FORMAT, path):
        return manifest
    raise UserError(
        f"{path} is not an index, it has no {MANIFEST} of one: name a folder that "
        "python -m export.index wrote."
    )


def _checked_manifest(path, folder):
    manifest = found_manifest(path, folder)
    version = manifest.get("format_version")
    if version not in READ_VERSIONS:
        raise UserError(
            f"index {path} has format version {version}, but this program reads "
            f"{FORMAT_VERSION}: rebuild it with python -m export.index."
        )
    contents = {key: manifest[key] for key in manifest if key not in ("format", "own_sha256")}
    if manifest.get("own_sha256") != _own_digest(contents):
        raise UserError(f"{path / MANIFEST} is damaged: {_FIX}")
    return manifest


def _opened(path, folder, manifest):
    """The index in `folder`, whose files were checked or just written."""
    # Plain views: a part of a `np.memmap` is one too, at a cost that a single query sees.
    arrays = (np.asarray(map_array(folder / f"{name}.npy")) for name in ARRAYS)
    codebooks, codes, rows, starts = arrays
    codebooks = np.array(codebooks)
    names = _read_ids(folder / "ids.arrow", manifest)
    proposer = KINDS[manifest["kind"]].load(folder, manifest, codebooks, codes)
    kept = map_array(folder / _KEPT) if manifest.get("keep", "none") != "none" else None
    return Index(path, manifest, codebooks, codes, rows, starts, names, proposer, kept)


def _read_ids(file, manifest):
    if manifest["format_version"] < FORMAT_VERSION:
        return ids.of_array(read_ids(file, _FIX))
    return ids.read(file, manifest["num_images"], _FIX)


def _write_codes(folder, codebooks, collection):
    """Writes each distinct code once, and the rows of its images; returns the codes, mapped."""
    num_books, num_words, _ = codebooks.shape
    count = collection.num_images
    distinct = find_distinct((shard.codes for shard in collection), count, num_books, num_words)
    num_codes, dtype = len(distinct.firsts), np.min_scalar_type(count)
    file, chunks = folder / "hashed_dataset.npy", distinct.code_chunks(num_books, num_words)
    write_array(file, [num_codes, num_books], np.uint8, chunks)
    write_array(folder / "grouped_rows.npy", [count], dtype, distinct.row_chunks(dtype))
    write_array(folder / "group_starts.npy", [num_codes + 1], dtype, (distinct.firsts, [count]))
    return map_array(file)


def _digests(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    """{name: sha256 in hexadecimal, or "" where there is no such file}; all cores read."""
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(file):
    with contextlib.suppress(OSError), file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
    return ""


def _own_digest(contents):
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
