"""Arrow and Parquet files of features: the matrix in one column, ids and labels in others."""

import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from hqc_tf.errors import UserError, naming_a_full_disk

# Of a Parquet file, in memory at a time: it may be one group of rows, and is unpacked.
_ROWS = 2**12
_BUFFER_BYTES = 2**20
_LISTS = pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list


class Table(NamedTuple):
    """The columns of a file."""

    matrix: np.ndarray  # float32 [N, E], mapped from a copy in the folder for temporary files
    ids: list[str]  # [N], or empty
    labels: np.ndarray | None  # int [N], or None


def read_table(path: str) -> Table:
    """The features in an .arrow or .parquet file.

    UserError where a column is not of its kind, or a row lacks a value. Errors of pyarrow for a
    damaged file.
    """
    schema, batches = _open(path)
    name = _column_of_lists(path, schema)
    ids, labels, count, widths = [], [], 0, set()
    held = tempfile.TemporaryFile()  # noqa: SIM115 - the matrix is mapped from it
    with naming_a_full_disk(tempfile.gettempdir()):
        for batch in batches:
            _refuse_gaps(path, batch, [name, "id", "label"], count)
            widths |= {*pc.list_value_length(batch.column(name)).to_numpy().tolist()}
            if len(widths) > 1:
                raise UserError(f"features:{path}: {name} has lists of several lengths; give one")
            values = batch.column(name).flatten().to_numpy(zero_copy_only=False)
            held.write(np.ascontiguousarray(values, np.float32).data)
            count += len(batch)
            ids += _texts(path, batch.column("id")) if "id" in schema.names else []
            labels += batch.column("label").to_pylist() if "label" in schema.names else []
        held.flush()
    shape = count, max(widths, default=0)
    matrix = np.memmap(held, np.float32, "r", shape=shape) if all(shape) else np.zeros(shape, "f4")
    return Table(matrix, ids, _as_labels(path, labels) if labels else None)


def _open(path: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema of a file, and its batches."""
    if pathlib.Path(path).suffix == ".parquet":
        file = parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        return file.schema_arrow, file.iter_batches(_ROWS)
    file = pa.ipc.open_file(pa.memory_map(path))
    return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))


def _column_of_lists(path, schema):
    fields = [f for f in schema if any(kind(f.type) for kind in _LISTS)]
    found = [f.name for f in fields if _is_number(f.type.value_type)]
    if len(found) > 1:
        columns = ", ".join(found)
        raise UserError(f"features:{path}: {columns} are lists of numbers; leave one of them")
    if not found:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(
            f"features:{path}: its columns are {columns}; one must be lists of floats, all of one "
            "length"
        )
    return found[0]


def _is_number(kind):
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _refuse_gaps(path, batch, names, first):
    """UserError where a row has no value in a column of `names`; `first` is the number of row 0."""
    for name in names:
        if name in batch.schema.names and batch.column(name).null_count:
            row = first + batch.column(name).is_null().to_pylist().index(True)
            raise UserError(
                f"features:{path}: row {row} has no {name}; give each row one, or leave the row or "
                "the column out"
            )


def _texts(path: str, column: pa.Array) -> Sequence[str]:
    """Ids as text; those of bytes as names of files are."""
    values = column.to_pylist()
    if not {type(value) for value in values} <= {str, bytes, int}:
        raise UserError(f"features:{path}: its id is {column.type}; give strings or whole numbers")
    return [
        value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
        for value in values
    ]


def _as_labels(path, values):
    labels = np.array(values)
    if labels.dtype.kind not in "iub":
        raise UserError(f"features:{path}: its labels are {labels.dtype}; give whole numbers")
    if labels.min() < 0:
        row = int(labels.argmin())
        raise UserError(
            f"features:{path}: row {row} has the label {labels[row]}; give numbers from 0 on, or "
            "leave the column out"
        )
    return labels
