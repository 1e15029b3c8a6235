"""Images in TFRecord files, those of a user and those that TFDS has prepared, one by one."""

import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import tensorflow as tf
from google.protobuf.message import DecodeError

from hqc_tf.data.folder import MAX_FILE_BYTES, Item
from hqc_tf.errors import UserError

# Bytes of a record beside its contents: the length, and checks of both.
_FRAME = 16
_LENGTH_BYTES = 8
# What a whole file begins with that is compressed; no record is as long as this would say.
_COMPRESSED = {b"\x1f\x8b": "compressed with GZIP; decompress it"} | {
    bytes([0x78, level]): "compressed with ZLIB; decompress it"
    for level in (0x01, 0x5E, 0x9C, 0xDA)
}


class Piece(NamedTuple):
    """Records of one file: `take` of them after the first `skip`, -1 for all.

    Their ids are `prefix` and a number of at least `digits` digits, which counts up from `first`.
    """

    file: str
    skip: int
    take: int
    prefix: str
    first: int
    digits: int


class Records(NamedTuple):
    """A shard: pieces, and the features of an example that hold image and id.

    Without an `id_feature` ids are as `Piece` says.
    """

    pieces: list[Piece]
    image_feature: str
    id_feature: str = ""
    id_prefix: str = ""  # before every id


def whole_files(files: Iterable[str], has_ids: bool = False) -> list[Piece]:
    """All records of some files; ids are name.tfrecord:0 and so on.

    UserError where two files of different folders have one name, unless records have ids of their
    own.
    """
    files = list(files)
    names, seen = [pathlib.PurePath(file).name for file in files], {}
    for file, name in zip(files, names, strict=True):
        if name in seen and not has_ids:
            raise UserError(
                f"{file}: its records would have the ids of those of {seen[name]}, since the files "
                "have one name; rename one, or take one alone"
            )
        seen[name] = file
    return [Piece(file, 0, -1, f"{name}:", 0, 1) for file, name in zip(files, names, strict=True)]


def cut(pieces: list[Piece], first: int, last: int) -> list[Piece]:
    """The records `first` up to `last` of pieces whose `take` is known."""
    begin, kept = 0, []
    for piece in pieces:
        low, high = max(first - begin, 0), min(last - begin, piece.take)
        if low < high:
            skip, number = piece.skip + low, piece.first + low
            kept.append(piece._replace(skip=skip, take=high - low, first=number))
        begin += piece.take
    return kept


def pieces_of(name: str, split: str, instructions: list) -> list[Piece]:
    """The pieces of a split of TFDS, whose ids are those of `catalog.load_images`."""
    pieces, first = [], 0
    for each in instructions:
        file = str(each.filename)
        pieces.append(Piece(file, each.skip, each.take, f"{name}/{split}/", first, 5))
        first += each.take
    return pieces


def read_files(files: Iterable[str]) -> Iterator[Item]:
    """Yields an `Item` for each record of some TFRecord files."""
    pieces = whole_files(files)
    part = Records(pieces, "image/encoded")
    if pieces:
        check_features(part, "store the contents of image files there")
    return read_records(part)


def check_features(part: Records, fix: str = "") -> None:
    """Raises UserError where the first record of a `Records` lacks the features named in it.

    `fix` says what to do where there is no flag to name another.
    """
    first = part.pieces[0]._replace(take=1)
    try:
        features = next(map(_parse, _open(first)))
    except (tf.errors.OpError, DecodeError, StopIteration):
        return  # reading it gives the reason
    for flag in ("image_feature", "id_feature"):
        name = getattr(part, flag)
        if name and name not in features:
            only = ", ".join(sorted(features))
            if fix:
                raise UserError(f"{first.file}: no {name} in its first record, only {only}; {fix}")
            rule = f"not in the first record of {first.file}"
            raise UserError(f"--{flag}={name}: {rule}; name one of {only}")


def read_records(part: Records) -> Iterator[Item]:
    """Yields an `Item` for each record of a `Records`, in order.

    A truncated or damaged file gives the records before, then one item with the file's name.
    """
    for piece in part.pieces:
        count = 0
        try:
            for record in _open(piece):
                yield _item(record, f"{piece.prefix}{piece.first + count:0{piece.digits}d}", part)
                count += 1
        except tf.errors.OpError as error:
            broken = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message, flags=re.DOTALL).strip()
            yield Item(piece.file, b"", f"not read from record {piece.first + count} on: {broken}")


def _open(piece):
    """Yields the records of a piece; `tf.errors.OpError` where it breaks off."""
    if not pathlib.Path(piece.file).is_file():
        raise tf.errors.NotFoundError(None, None, "no such file")
    count, broken = _measure(piece)
    dataset = tf.data.TFRecordDataset(os.fsencode(piece.file))
    yield from dataset.skip(piece.skip).take(count).as_numpy_iterator()
    if broken:
        raise tf.errors.DataLossError(None, None, broken)


def _measure(piece):
    """How many records of a piece are in its file, and why there are no more; else empty.

    TensorFlow takes as much memory as a length field says, and the process ends where it is absurd.
    """
    with pathlib.Path(piece.file).open("rb") as file:
        size, place, number = os.fstat(file.fileno()).st_size, 0, 0
        while number != piece.skip + piece.take or piece.take < 0:
            if place == size and piece.take < 0:
                return number - piece.skip, ""
            field = os.pread(file.fileno(), _LENGTH_BYTES, place)
            length, left = int.from_bytes(field, "little"), size - place - _FRAME
            if length > min(left, MAX_FILE_BYTES):
                if left < 0:
                    broken = "the file ends"
                elif length > left:
                    broken = (
                        f"truncated or damaged, a record of {length} bytes where {left} are left"
                    )
                else:
                    broken = f"a record of {length} bytes, over {MAX_FILE_BYTES}"
                packed = _COMPRESSED.get(field[:2]) if place == 0 else None
                return max(0, number - piece.skip), packed or broken
            place += _FRAME + length
            number += 1
    return piece.take, ""


def _parse(record):
    return tf.train.Example.FromString(record).features.feature


def _item(record, name, part):
    try:
        features = _parse(record)
        if part.id_feature:
            name = _text(_only(features, part.id_feature, "bytes_list", "int64_list"))
        return Item(name, _only(features, part.image_feature, "bytes_list"))
    except (DecodeError, ValueError) as error:
        return Item(name, b"", str(error))


def _only(features, name, *kinds):
    """The only value of a feature; ValueError where it has no value of `kinds`, or several."""
    lists = [getattr(features[name], kind).value for kind in kinds if name in features]
    values = [value for each in lists for value in each]
    if len(values) != 1:
        raise ValueError(f"{name} has {len(values)} values of {' or '.join(kinds)}, not one")
    return values[0]


def _text(value):
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
