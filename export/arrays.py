"""Files that are memory-mapped: arrays as .npy, ids and codes as Arrow.

Ids are packed as an Arrow array of UTF-8; names that are not UTF-8 survive as lone surrogates.
"""

import codecs
import mmap
import pathlib
import tokenize
from collections.abc import Iterable
from os import PathLike
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, DTypeLike

from hqc_tf import files
from hqc_tf.errors import naming_damage

ID_SCHEMA = pa.schema([("id", pa.large_binary())])
# Bytes of ids that are checked at a time.
_CHECKED = 2**24


def pack_ids(ids: Iterable[str]) -> pa.LargeBinaryArray:
    """Ids as Arrow keeps them; `unpack_id` gives each back, UTF-8 or not."""
    return pa.array([name.encode("utf-8", "surrogatepass") for name in ids], pa.large_binary())


def unpack_id(value: bytes) -> str:
    """The id of which `value` is an element in a packed array."""
    return value.decode("utf-8", "surrogatepass")


def text_of(ids: pa.LargeBinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """Views of packed ids: their text, uint8, and where each begins, and the end, [n+1] int64."""
    _, offsets, data = ids.buffers()
    if not len(ids):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    starts = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    text = np.frombuffer(data or b"", np.uint8)[starts[0] : starts[-1]]
    return text, starts - starts[0]


def write_ids(file: BinaryIO, parts: Iterable[pa.LargeBinaryArray]) -> None:
    """Writes packed ids as an Arrow file, one record batch per part."""
    write_batches(file, ID_SCHEMA, (pa.record_batch([ids], ID_SCHEMA) for ids in parts))


def read_ids(path: str | PathLike, fix: str) -> pa.ChunkedArray:
    """What `write_ids` wrote, memory-mapped and checked; `fix` and errors as in `read_batches`."""
    return pa.Table.from_batches(read_batches(path, ID_SCHEMA, fix), ID_SCHEMA).column(0)


def write_batches(file: BinaryIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes an Arrow file."""
    with pa.ipc.new_file(pa.PythonFile(file), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_batches(path: str | PathLike, schema: pa.Schema, fix: str) -> list[pa.RecordBatch]:
    """The record batches of an Arrow file, memory-mapped and every value checked.

    Args:
        schema: columns that the file at `path` must have, the first of ids.
        fix: end of the error message.

    Raises:
        UserError: it cannot be read, is damaged or has other columns.
    """
    with naming_damage(path, fix):
        batches = map_batches(path, schema, fix)
        for batch in batches:
            _check_text(batch.column(0))
        return batches


def map_batches(path: str | PathLike, schema: pa.Schema, fix: str) -> list[pa.RecordBatch]:
    """As `read_batches`, whose first column need not be ids."""
    with naming_damage(path, fix):
        try:
            with files.open_regular(path) as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pa.ipc.open_file(pa.py_buffer(mapped))
            if reader.schema != schema:
                columns = [f"{field.name} {field.type}" for field in reader.schema]
                wanted = [f"{field.name} {field.type}" for field in schema]
                raise ValueError(f"its columns are {columns}, but must be {wanted}")
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            for batch in batches:
                _check(batch)
            return batches
        except (pa.ArrowException, MemoryError) as error:
            raise ValueError(error) from error


def _check(batch):
    batch.validate(full=True)
    if any(column.null_count for column in batch.columns):
        raise ValueError("a value is missing")


def _check_text(ids):
    text, starts = text_of(ids)
    decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
    # A piece at a time, for Python's text takes up to four times the bytes.
    for start in range(0, len(text), _CHECKED):
        decoder.decode(text[start : start + _CHECKED].tobytes())
    decoder.decode(b"", final=True)
    # No id begins within a character, so that each is UTF-8 by itself.
    if (text[starts[starts < len(text)]] & 0xC0 == 0x80).any():
        raise ValueError("an id is not UTF-8")


def write_array(
    file: pathlib.Path, shape: list[int], dtype: DTypeLike, chunks: Iterable[ArrayLike]
) -> None:
    """Writes a .npy file of the given shape, of which only a chunk is in memory."""
    with file.open("wb") as opened:
        _write_chunks(opened, shape, dtype, chunks)


def save_array(file: BinaryIO, array: np.ndarray) -> None:
    """`np.save`, which on a full disk may end without an error and cut the file short."""
    _write_chunks(file, array.shape, array.dtype, [array])


def _write_chunks(file, shape, dtype, chunks):
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    for chunk in chunks:
        file.write(np.ascontiguousarray(chunk, dtype).data)


def map_array(file: str | PathLike, name: str = "", fix: str = "write it again") -> np.ndarray:
    """The array in a .npy file, memory-mapped; nothing in it is unpickled.

    UserError where it cannot be read; the message calls it `name`, or its path, and ends in `fix`.
    """
    # A header is a Python literal, so a damaged one may fail in the tokenizer.
    with naming_damage(name or file, fix):
        try:
            files.open_regular(file).close()
            return np.lib.format.open_memmap(file, mode="r")
        except (SyntaxError, tokenize.TokenError, MemoryError, OverflowError) as error:
            raise ValueError(error) from error
