"""The ids of an index, compressed in blocks: one id takes the unpacking of its block.

The Arrow file has a row for each block of `PER_BLOCK` ids: how many bytes it has, and LZ4 of its
ids' lengths, uint32, and then their text. Ids in order, as those of a folder, share most of it.
"""

import bisect
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from export import arrays
from hqc_tf.errors import naming_damage

PER_BLOCK = 128
# Ids unpacked together where all are.
CHUNK = 2**20
# Blocks held, of a few kB each.
_HELD = 1024
_SCHEMA = pa.schema([("block", pa.large_binary()), ("num_bytes", pa.int64())])
_CODEC = pa.Codec("lz4_raw")
_LENGTH = np.dtype("<u4")

Block = tuple[bytes, np.ndarray]  # text of some ids, and where each begins, and the end


class Ids(Sequence):
    """[N] packed ids; those of several rows are `pa.LargeBinaryArray`.

    Args:
        count: N.
        read: gives the block of a number; all but the last have `PER_BLOCK` ids.
    """

    def __init__(self, count: int, read: Callable[[int], Block]):
        self._count, self._read = count, read
        self._held = functools.lru_cache(_HELD)(read)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> pa.LargeBinaryScalar:
        return self.take([row])[0]

    def take(self, rows: Iterable[int]) -> pa.LargeBinaryArray:
        """The ids of rows, each 0 to N - 1."""
        return pa.array(self.values(rows), pa.large_binary())

    def values(self, rows: Iterable[int]) -> list[bytes]:
        """As `take`, without Arrow."""
        found = []
        for block, place in (divmod(int(row), PER_BLOCK) for row in rows):
            text, starts = self._held(block)
            found.append(text[starts[place] : starts[place + 1]])
        return found

    def slice(self, start: int, count: int) -> pa.LargeBinaryArray:
        """`count` ids from row `start` on, fewer at the end."""
        end = min(start + count, self._count)
        first = start // PER_BLOCK
        blocks = [self._read(number) for number in range(first, -(-end // PER_BLOCK))]
        lengths = np.concatenate([np.diff(starts) for _, starts in blocks] or [np.zeros(0, int)])
        starts = np.append(0, np.cumsum(lengths, dtype=np.int64))
        text = pa.py_buffer(b"".join(text for text, _ in blocks))
        buffers = [None, pa.py_buffer(starts), text]
        ids = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths), buffers)
        return ids.slice(start - first * PER_BLOCK, max(end - start, 0))

    def parts(self) -> Iterator[pa.LargeBinaryArray]:
        """All ids, `CHUNK` at a time."""
        return (self.slice(start, CHUNK) for start in range(0, self._count, CHUNK))

    def to_pylist(self) -> list[bytes]:
        """All ids."""
        return [name for part in self.parts() for name in part.to_pylist()]

    def find(self, name: bytes) -> int | None:
        """The first row of an id, None where there is none."""
        for number in range(-(-self._count // PER_BLOCK)):
            text, starts = self._read(number)
            if name in text:
                ids = [text[a:b] for a, b in zip(starts, starts[1:], strict=False)]
                if name in ids:
                    return number * PER_BLOCK + ids.index(name)
        return None


def write(file: BinaryIO, parts: Iterable[pa.LargeBinaryArray]) -> None:
    """Writes packed ids."""
    arrays.write_batches(file, _SCHEMA, map(_packed, _in_blocks(parts)))


def read(path: str | os.PathLike, count: int, fix: str) -> Ids:
    """The `count` ids that `write` wrote, memory-mapped.

    UserError, which ends in `fix`, where the file is damaged; in a block, where it is unpacked.
    """
    batches = arrays.map_batches(path, _SCHEMA, fix)
    ends = np.cumsum([len(batch) for batch in batches]).tolist()
    # NumPy's views: a value of Arrow takes longer than the unpacking.
    views = [(*arrays.text_of(blocks), sizes.to_numpy()) for blocks, sizes in batches]

    def unpack(number):
        part = bisect.bisect(ends, number)
        text, starts, sizes = views[part]
        place = number - ends[part] + len(sizes)
        packed = text[starts[place] : starts[place + 1]]
        return _unpack(packed, int(sizes[place]), min(PER_BLOCK, count - number * PER_BLOCK))

    def named(number):
        with naming_damage(path, fix):
            return unpack(number)

    return Ids(count, named)


def of_array(ids: pa.ChunkedArray) -> Ids:
    """Packed ids that are not compressed, as those in indexes of format version 3."""

    def cut(number):
        text, starts = arrays.text_of(ids.slice(number * PER_BLOCK, PER_BLOCK).combine_chunks())
        return text.tobytes(), starts

    return Ids(len(ids), cut)


def _in_blocks(parts):
    """Yields the ids of all parts again, all but the last a multiple of a block."""
    held = arrays.pack_ids([])
    for part in parts:
        held = pa.concat_arrays([held, part])
        whole = len(held) - len(held) % PER_BLOCK
        yield held.slice(0, whole)
        held = pa.concat_arrays([held.slice(whole)])
    yield held


def _packed(ids):
    """A record batch of the blocks of ids."""
    text, starts = arrays.text_of(ids)
    lengths = np.diff(starts).astype(_LENGTH)
    firsts = range(0, len(ids), PER_BLOCK)
    raw = [
        lengths[row : row + PER_BLOCK].tobytes()
        + text[starts[row] : starts[min(row + PER_BLOCK, len(ids))]].tobytes()
        for row in firsts
    ]
    blocks = pa.array([_CODEC.compress(each, asbytes=True) for each in raw], pa.large_binary())
    return pa.record_batch([blocks, pa.array([*map(len, raw)], pa.int64())], _SCHEMA)


def _unpack(packed, num_bytes, count):
    """The `Block` of compressed ids; ValueError where it is none."""
    try:
        raw = _CODEC.decompress(packed, num_bytes, asbytes=True)
    except (pa.ArrowException, MemoryError, OverflowError, SystemError) as error:
        raise ValueError(error) from error
    starts, text = np.zeros(count + 1, np.int64), raw[count * _LENGTH.itemsize :]
    np.frombuffer(raw, _LENGTH, count).cumsum(out=starts[1:])
    if starts[-1] != len(text):
        raise ValueError(f"a block has {len(text)} bytes of ids, but says {starts[-1]}")
    return text, starts
