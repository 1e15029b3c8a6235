"""What `export.search` found, as lines of JSON or as a Parquet table."""

import contextlib
import itertools
import json
import pathlib
import sys

from hqc_tf import files

BATCH = 1024


def write_answers(found, output):
    """Writes answers to stdout, or where `output` names a file there, whole or not at all.

    Args:
      found: what `answers` yields.
      output: "" for stdout, or a file; .parquet makes a table, others get lines of JSON.
    """
    if not output:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.writelines(_lines(found))
            sys.stdout.flush()
        return
    output = pathlib.Path(output)
    write = _write_table if output.suffix == ".parquet" else _write_lines
    files.write_atomically(output, lambda file: write(found, file))


def _lines(found):
    return (json.dumps(answer) + "\n" for answer in found)


def _write_lines(found, file):
    file.writelines(line.encode() for line in _lines(found))


def _write_table(found, file):
    # Half a second to import, for this alone.
    import pyarrow
    from pyarrow import parquet

    floats = pyarrow.list_(pyarrow.float32())
    kinds = {
        "query": pyarrow.string(),
        "ids": pyarrow.list_(pyarrow.string()),
        "distances": floats,
        "books": pyarrow.list_(floats),
    }
    rows = map(_in_unicode, found)
    held = list(itertools.islice(rows, BATCH))
    schema = pyarrow.schema([(key, kinds[key]) for key in next(iter(held), kinds)])
    with parquet.ParquetWriter(file, schema) as writer:
        while held:
            writer.write_table(pyarrow.Table.from_pylist(held, schema))
            held = list(itertools.islice(rows, BATCH))


def _in_unicode(answer):
    """Names of files that are no utf-8 have their bytes spelled out: a table's text must be."""
    spell = lambda name: name.encode("utf-8", "backslashreplace").decode()  # noqa: E731
    return answer | {"query": spell(answer["query"]), "ids": [*map(spell, answer["ids"])]}
