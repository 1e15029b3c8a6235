"""Folders of codes in shards: `export.encode` writes them, `export.index` reads them.

A folder of S shards holds

    manifest.json                  the encoder, the job and S; the folder has begun once it exists
    codebooks.npy                  float32 [M, K, D]
    inputs.arrow                   names of the files to encode, so that a resumed job sees the same
    codes-00000-of-0000S.arrow     columns `id` (large_binary), `code` (fixed_size_binary(M)) and,
                                   where embeddings are kept, `embedding` (fixed_size_binary)
    rejects-00000-of-0000S.jsonl   images that could not be encoded, and why

Each file is written atomically, and a shard is done once its Arrow file exists. Arrow files are
memory-mapped.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from export import kept
from export.arrays import (
    ID_SCHEMA,
    map_array,
    read_batches,
    save_array,
    write_batches,
    write_ids,
)
from export.folders import MANIFEST, read_manifest, restore, write_manifest
from hqc_tf import files
from hqc_tf.data.screening import Reject
from hqc_tf.errors import UserError

FORMAT = "hqc-codes"
# 2: Arrow files in place of .npy files.
FORMAT_VERSION = 2
# Files a folder may hold before its manifest exists.
_EARLY = ("codebooks.npy", "inputs.arrow")
_AGAIN = "remove it and run the same export.encode again"


class Shard(NamedTuple):
    """A part of a collection of images."""

    codes: np.ndarray  # [n, M] uint8
    ids: pa.LargeBinaryArray  # [n], packed by `arrays.pack_ids`
    kept: np.ndarray | None = None  # [n, W] uint8, embeddings by `kept.pack`; None: none kept


class Shards(NamedTuple):
    """A complete folder of shards."""

    codebooks: np.ndarray  # [M, K, D] float32
    encoder: dict[str, Any]  # has "fingerprint" and "path"
    job: dict[str, Any]  # what was encoded, as JSON has it
    keep: str  # how embeddings are kept, one of `kept.KINDS`
    shards: Sequence[Shard]  # memory-mapped on access, each released with its last reference


class _OnDisk(Sequence):
    """The shards of a folder, none of another folder that `export.encode --update` puts there."""

    def __init__(self, folder, identity, paths, codebooks, kept_bytes):
        self._folder, self._identity, self._paths = folder, identity, paths
        (self._num_books, self._num_words, _), self._kept_bytes = codebooks.shape, kept_bytes

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, number):
        schema = _shard_schema(self._num_books, self._kept_bytes)
        try:
            ids, codes, *embeddings = _only_batch(self._paths[number], schema).columns
        finally:
            # Once the file is open; where it is missing, this is why.
            if _identity(self._folder / MANIFEST) != self._identity:
                raise UserError(f"{self._folder}: replaced while it was read; run this again")
        words = _rows_of(codes)
        if words.size and words.max() >= self._num_words:
            raise UserError(
                f"{self._paths[number]}: names word {words.max()}, but the codebooks have words 0 "
                f"to {self._num_words - 1}, so it is damaged: {_AGAIN}"
            )
        return Shard(words, ids, *map(_rows_of, embeddings))


def start(
    folder: str | PathLike,
    codebooks: np.ndarray,
    encoder: dict[str, Any],
    num_shards: int,
    job: dict[str, Any],
    names: pa.LargeBinaryArray | None = None,
    keep: str = "none",
) -> None:
    """Prepares `folder` for shards, or checks that it belongs to the same job.

    Removes partial files of killed writers, so no other process may be writing there yet.

    Args:
        folder: missing, empty, or begun by this function.
        codebooks: [M, K, D] float32.
        encoder: has "fingerprint" and "path".
        num_shards: of the job.
        job: strings and numbers that tell what is encoded; kept in the manifest.
        names: returned by `read_names` later; None where the job has no list of files.
        keep: how the shards keep embeddings, one of `kept.KINDS`.

    Raises:
        UserError: `folder` holds something else, or shards of another job or encoder.
    """
    folder = pathlib.Path(folder)
    if is_begun(folder):
        _check_same(folder, encoder, num_shards, job, keep)
    else:
        _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_shared(folder / "codebooks.npy", lambda file: save_array(file, codebooks))
        if names is not None:
            files.write_shared(folder / "inputs.arrow", lambda file: write_ids(file, [names]))
        contents = {"format_version": FORMAT_VERSION, "num_shards": num_shards, "keep": keep}
        write_manifest(folder, FORMAT, {**contents, "encoder": encoder, "job": job})
    for left in _partial(folder):
        left.unlink(missing_ok=True)


def is_begun(folder: str | PathLike, job: dict[str, Any] | None = None) -> bool:
    """Whether `start` has prepared `folder`, for this job if one is given.

    UserError where the folder has codes of another format version.
    """
    restore(folder)
    found = _find_manifest(folder)
    return found is not None and (job is None or found.get("job") == job)


def read_names(folder: str | PathLike) -> pa.LargeBinaryArray:
    """The `names` given to `start`, memory-mapped; UserError where they are missing or damaged."""
    path = pathlib.Path(folder, "inputs.arrow")
    return _names(path, _identity(path))


# Each shard of a process takes some of them.
@functools.lru_cache(1)
def _names(path, _):
    return _only_batch(path, ID_SCHEMA).column(0)


def is_done(folder: str | PathLike, number: int, num_shards: int) -> bool:
    """Whether shard `number` of `folder` is complete."""
    return _path(folder, "codes", number, num_shards).exists()


def write_shard(
    folder: str | PathLike, number: int, num_shards: int, shard: Shard, rejects: Sequence[Reject]
) -> None:
    """Writes shard `number` of a folder prepared by `start`, and the images that are not in it.

    Each file is atomic; several processes may write at once.
    """
    rejected = _path(folder, "rejects", number, num_shards, "jsonl")
    files.write_shared(rejected, lambda file: file.write(files.to_text(rejects).encode()))
    parts = [shard.codes] if shard.kept is None else [shard.codes, shard.kept]
    # Arrow would write the neighbors in memory of a slice too: equal shards get equal bytes.
    ids = pa.concat_arrays([shard.ids])
    schema = _shard_schema(*(part.shape[1] for part in parts))
    batch = pa.record_batch([ids, *map(_column_of, parts)], schema)
    path = _path(folder, "codes", number, num_shards)
    files.write_shared(path, lambda file: write_batches(file, batch.schema, [batch]))


def read_shards(folder: str | PathLike) -> Shards:
    """The shards of a complete folder.

    UserError where it is not one, and on access to a shard where its file is damaged, or the folder
    is another by now.
    """
    folder = pathlib.Path(folder).absolute()
    restore(folder)
    identity, manifest = _identity(folder / MANIFEST), _manifest(folder)
    count = manifest["num_shards"]
    existing = {path.name for path in folder.glob("codes-*")}
    names = (_path(folder, "codes", number, count).name for number in range(count))
    # A damaged manifest may count more shards than could ever be looked for.
    if first := next((name for name in names if name not in existing), None):
        raise UserError(
            f"{folder}: at least {max(1, count - len(existing))} of {count} shards are missing, "
            f"the first is {first}: run the same export.encode again, which writes them"
        )
    codebooks = np.array(map_array(folder / "codebooks.npy"))
    if codebooks.dtype != np.float32 or codebooks.ndim != 3 or not np.isfinite(codebooks).all():
        raise UserError(
            f"{folder / 'codebooks.npy'} must hold finite float32 [M, K, D], but is damaged: "
            "encode into a new folder"
        )
    paths = [_path(folder, "codes", number, count) for number in range(count)]
    keep, (num_books, _, word_dim) = _keep_of(manifest), codebooks.shape
    kept_bytes = kept.row_bytes(keep, num_books * word_dim)
    shards = _OnDisk(folder, identity, paths, codebooks, kept_bytes)
    return Shards(codebooks, manifest["encoder"], manifest["job"], keep, shards)


def read_rejects(folder: str | PathLike) -> Iterator[Reject]:
    """Yields the images that are in no shard of a complete folder."""
    count = _manifest(folder)["num_shards"]
    for number in range(count):
        yield from files.read_lines(_path(folder, "rejects", number, count, "jsonl"), Reject)


def _check_same(folder, encoder, num_shards, job, keep):
    before = _manifest(folder)
    for name, old, new in [
        ("the encoder", before["encoder"]["fingerprint"], encoder["fingerprint"]),
        ("the number of shards", before["num_shards"], num_shards),
        ("what is encoded", before["job"], job),
        ("--keep", _keep_of(before), keep),
    ]:
        if old != new:
            raise UserError(
                f"{folder} belongs to another job: {name} was {old} and now is {new}; name another "
                "folder or remove it"
            )


def _clear(folder):
    """Removes what a killed `start` left; UserError where there is anything else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, but shards need a folder: name another")
    left = [*_partial(folder), *(folder / name for name in _EARLY)]
    if others := [path.name for path in folder.glob("*") if path not in left]:
        raise UserError(f"{folder} holds {min(others)}, which is no shard: name another folder")
    for path in left:
        path.unlink(missing_ok=True)


def _partial(folder):
    return [path for path in folder.glob(".*.partial") if path.is_file()]


def _identity(path):
    """What another file at the same path has otherwise; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _keep_of(manifest):
    # A folder of before embeddings were kept does not say.
    return manifest.get("keep", "none")


def _shard_schema(num_books, kept_bytes=0):
    schema = ID_SCHEMA.append(pa.field("code", pa.binary(num_books)))
    return schema.append(pa.field("embedding", pa.binary(kept_bytes))) if kept_bytes else schema


def _column_of(rows):
    data = pa.py_buffer(np.ascontiguousarray(rows, np.uint8))
    return pa.Array.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, data])


def _rows_of(column):
    width = column.type.byte_width
    values = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    return values[: len(column) * width].reshape(-1, width)


def _only_batch(path, schema):
    batches = read_batches(path, schema, _AGAIN)
    if len(batches) != 1:
        raise UserError(f"{path} has {len(batches)} record batches, but must have 1: {_AGAIN}")
    return batches[0]


def _manifest(folder):
    found = _find_manifest(folder)
    if not found:
        raise UserError(f"{folder} holds no codes of export.encode: name a folder that it wrote")
    encoder, count, job = (found.get(key) for key in ("encoder", "num_shards", "job"))
    complete = isinstance(encoder, dict) and {"fingerprint", "path"} <= encoder.keys()
    complete = complete and _keep_of(found) in kept.KINDS
    if not (complete and isinstance(job, dict) and isinstance(count, int) and count >= 1):
        raise UserError(f"{folder}/{MANIFEST} is damaged: restore a copy, or name another folder")
    return found


def _find_manifest(folder):
    found = read_manifest(folder, FORMAT)
    version = found and found.get("format_version")
    if found and version != FORMAT_VERSION:
        raise UserError(
            f"{folder} has format version {version}, but this program reads {FORMAT_VERSION}: "
            "encode the images again into a new folder with python -m export.encode"
        )
    return found


def _path(folder, kind, number, count, ending="arrow"):
    return pathlib.Path(folder, f"{kind}-{number:05d}-of-{count:05d}.{ending}")
