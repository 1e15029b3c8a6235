"""Folders of codes in shards, as `export.encode` leaves them and `export.index` takes them.

A folder of S shards holds codebooks.npy and for each shard codes-00000-of-0000S.npy, the images'
ids beside it, packed, and rejects-00000-of-0000S.jsonl, the images that could not be encoded and
why. input_*.npy are the names of the files that are encoded, so that who goes on sees the same
ones. manifest.json names the encoder, the job and the number of shards. A folder is begun when it
has its manifest; a shard is done when its codes have their name. Each file appears whole.
"""

import array
import contextlib
import json
import pathlib
import tokenize
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from export.folders import MANIFEST, read_manifest, write_manifest, write_whole
from hqc_tf import files
from hqc_tf.errors import UserError, naming_damage

FORMAT = "hqc-codes"
FORMAT_VERSION = 1
# What a folder may hold before it has its manifest.
_EARLY = ("codebooks.npy", "input_text.npy", "input_starts.npy")


class PackedIds(NamedTuple):
    """Strings in two arrays, which can be memory-mapped.

    Attributes:
      text: uint8 [bytes], all in utf-8, one after the other.
      starts: int64 [N+1], where each begins in `text`, and the end.
    """

    text: np.ndarray
    starts: np.ndarray

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, row):
        """The string at `row`, int of 0 to N - 1."""
        text = self.text[self.starts[row] : self.starts[row + 1]].tobytes()
        return text.decode("utf-8", "surrogatepass")

    def encoded(self):
        """All of them, a list of bytes in utf-8."""
        text, starts = self.text.tobytes(), self.starts.tolist()
        return [text[start:end] for start, end in zip(starts, starts[1:], strict=False)]


def pack_ids(ids):
    """`PackedIds` of an iterable of strings; file names that are no utf-8 come back as they are."""
    text, starts = bytearray(), array.array("q", [0])
    for name in ids:
        text += name.encode("utf-8", "surrogatepass")
        starts.append(len(text))
    return PackedIds(np.frombuffer(text, np.uint8), np.frombuffer(starts, np.int64))


class Shard(NamedTuple):
    """A part of a collection.

    Attributes:
      codes: uint8 [n, M].
      ids: `PackedIds` of n images.
    """

    codes: np.ndarray
    ids: PackedIds


class Shards(NamedTuple):
    """A whole folder of them.

    Attributes:
      codebooks: float32 [M, K, D].
      encoder: dict with "fingerprint" and "path".
      shards: sequence of `Shard`; each is mapped into memory when it is asked for, and no longer
        than it is held.
    """

    codebooks: np.ndarray
    encoder: dict
    shards: Sequence


class _OnDisk(Sequence):
    def __init__(self, folder, count, num_books):
        self._folder, self._count, self._num_books = folder, count, num_books

    def __len__(self):
        return self._count

    def __getitem__(self, number):
        if not 0 <= number < self._count:
            raise IndexError(number)
        return _read_shard(self._folder, number, self._count, self._num_books)


def start(folder, codebooks, encoder, num_shards, job, names=None):
    """Makes `folder` ready for shards, or checks that it is of the same job.

    What killed writers left is removed, so nobody else may be writing there yet.

    Args:
      folder: missing, empty, or begun by this function.
      codebooks: float32 [M, K, D].
      encoder: dict with "fingerprint" and "path".
      num_shards: how many there will be.
      job: dict of strings and numbers, what is encoded; the manifest keeps it.
      names: `PackedIds` that `read_names` gives back, or None.

    Raises:
      UserError: `folder` holds something else, or shards of another job or encoder.
    """
    folder = pathlib.Path(folder)
    if is_begun(folder):
        _check_same(folder, encoder, num_shards, job)
    else:
        _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _save(folder / "codebooks.npy", codebooks)
        for kind, values in names._asdict().items() if names else ():
            _save(folder / f"input_{kind}.npy", values)
        contents = {"format_version": FORMAT_VERSION, "num_shards": num_shards}
        write_manifest(folder, FORMAT, {**contents, "encoder": encoder, "job": job})
    for left in _partial(folder):
        left.unlink(missing_ok=True)


def is_begun(folder, job=None):
    """Whether `start` has made `folder` ready, for this job if one is given."""
    found = read_manifest(folder, FORMAT)
    return found is not None and (job is None or found.get("job") == job)


def read_names(folder):
    """The `names` that `start` was given, memory-mapped.

    Raises:
      UserError: they are missing or damaged.
    """
    return _read_ids([pathlib.Path(folder, f"input_{kind}.npy") for kind in PackedIds._fields])


def is_done(folder, number, num_shards):
    """Whether shard `number` stands in `folder`, whole."""
    return _path(folder, "codes", number, num_shards).exists()


def write_shard(folder, number, num_shards, shard, rejects):
    """Writes a shard, whole or not at all; several processes may write at once.

    Args:
      folder: what `start` made.
      number: 0 to `num_shards` - 1.
      num_shards: as `start` was told.
      shard: `Shard`.
      rejects: list of {"id", "reason"} of the images that are not in it.
    """
    lines = "".join(json.dumps(reject) + "\n" for reject in rejects)
    rejected = _path(folder, "rejects", number, num_shards, "jsonl")
    write_whole(rejected, lambda file: file.write(lines.encode()))
    arrays = {"id_text": shard.ids.text, "id_starts": shard.ids.starts, "codes": shard.codes}
    for kind, values in arrays.items():
        _save(_path(folder, kind, number, num_shards), values)


def read_shards(folder):
    """`Shards` of a folder that is done.

    Raises:
      UserError: it is no such folder, or shards are missing; and when a shard is asked for, a file
        of it contradicts another.
    """
    folder = pathlib.Path(folder)
    manifest = _manifest(folder)
    count = manifest["num_shards"]
    standing = {path.name for path in folder.glob("codes-*")}
    names = (_path(folder, "codes", number, count).name for number in range(count))
    # A damaged manifest may count more shards than could ever be looked for.
    first = next((name for name in names if name not in standing), None)
    if first:
        raise UserError(
            f"{folder}: at least {max(1, count - len(standing))} of {count} shards are missing, "
            f"the first is {first}: run the same export.encode again, which makes them"
        )
    codebooks = np.array(map_array(folder / "codebooks.npy"))
    if codebooks.dtype != np.float32 or codebooks.ndim != 3 or not np.isfinite(codebooks).all():
        raise UserError(f"{folder / 'codebooks.npy'} holds no codebooks: make the codes anew")
    return Shards(codebooks, manifest["encoder"], _OnDisk(folder, count, len(codebooks)))


def read_rejects(folder):
    """Yields {"id", "reason"} of each image that is in no shard of a folder that is done."""
    count = _manifest(folder)["num_shards"]
    for number in range(count):
        path = _path(folder, "rejects", number, count, "jsonl")
        yield from files.read_lines(path, {"id": str, "reason": str})


def map_array(file, name=None, mend="make it anew"):
    """The array in a .npy file, memory-mapped; nothing in it is unpickled.

    Args:
      file: its path.
      name: what the message calls it, if not by the path.
      mend: what the message ends with.

    Raises:
      UserError: it cannot be read.
    """
    # A header is a Python literal, and a damaged one fails in the tokenizer as well.
    with naming_damage(name or file, mend):
        try:
            return np.lib.format.open_memmap(file, mode="r")
        except (SyntaxError, tokenize.TokenError, MemoryError, OverflowError) as error:
            raise ValueError(error) from error


def _check_same(folder, encoder, num_shards, job):
    before = _manifest(folder)
    changes = {
        "the encoder": (before["encoder"]["fingerprint"], encoder["fingerprint"]),
        "the number of shards": (before["num_shards"], num_shards),
        "what is encoded": (before["job"], job),
    }
    for name, (old, new) in changes.items():
        if old != new:
            raise UserError(
                f"{folder}: begun as another job, {name} was {old} and now is {new}: name another "
                "folder or remove it"
            )


def _clear(folder):
    """Removes what a killed `start` left; UserError where there is anything else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, but shards lie in a folder: name another")
    left = [*_partial(folder), *(folder / name for name in _EARLY)]
    others = [path.name for path in folder.glob("*") if path not in left]
    if others:
        raise UserError(f"{folder} holds {min(others)}, which is no shard: name another folder")
    for path in left:
        path.unlink(missing_ok=True)


def _partial(folder):
    return [path for path in folder.glob(".*.partial") if path.is_file()]


def _read_shard(folder, number, count, num_books):
    path = _path(folder, "codes", number, count)
    codes = map_array(path)
    ids = _read_ids([_path(folder, f"id_{kind}", number, count) for kind in PackedIds._fields])
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != num_books:
        raise UserError(
            f"{path} is {codes.dtype} {codes.shape}, but must be uint8 [n, {num_books}]: remove it "
            "and run the same export.encode again"
        )
    if len(ids) != len(codes):
        raise UserError(
            f"{path} and the ids beside it do not fit each other: remove them and run the same "
            "export.encode again"
        )
    return Shard(codes, ids)


def _read_ids(paths):
    """`PackedIds` in two files; UserError where they are none."""
    text, starts = map(map_array, paths)
    fits = text.dtype == np.uint8 and starts.dtype == np.int64 and text.ndim == starts.ndim == 1
    fits = fits and len(starts) and starts[0] == 0 and starts[-1] == len(text)
    if fits and (np.diff(starts) >= 0).all():
        inner = starts[starts < len(text)]
        # No string begins within a character, so that each can be read alone.
        with contextlib.suppress(UnicodeDecodeError):
            text.tobytes().decode("utf-8", "surrogatepass")
            if not (text[inner] & 0xC0 == 0x80).any():
                return PackedIds(text, starts)
    raise UserError(f"{paths[0]} and {paths[1].name} hold no names: make them anew")


def _manifest(folder):
    found = read_manifest(folder, FORMAT)
    if not found or found.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{folder} holds no codes of export.encode: name a folder that it wrote")
    encoder, count = found.get("encoder"), found.get("num_shards")
    told = isinstance(encoder, dict) and {"fingerprint", "path"} <= encoder.keys()
    told = told and isinstance(found.get("job"), dict)
    if not told or not isinstance(count, int) or count < 1:
        raise UserError(
            f"{folder / MANIFEST} is damaged: bring back a copy, or name another folder"
        )
    return found


def _path(folder, kind, number, count, ending="npy"):
    return pathlib.Path(folder, f"{kind}-{number:05d}-of-{count:05d}.{ending}")


def _save(path, values):
    write_whole(path, lambda file: np.save(file, values, allow_pickle=False))
