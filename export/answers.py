"""What `export.search` found, as lines of JSON or as a Parquet table."""

import contextlib
import json
import pathlib
import sys

BATCH = 1024


def write_answers(found, output):
    """Writes answers to stdout, or where `output` names a file there, whole or not at all.

    Args:
      found: what `answers` yields.
      output: "" for stdout, or a file; .parquet makes a table, others get lines of JSON.
    """
    if not output:
        with contextlib.suppress(BrokenPipeError):
            _write_lines(found, sys.stdout)
        return
    output = pathlib.Path(output)
    aside = output.with_name(f".{output.name}.partial")
    try:
        if output.suffix == ".parquet":
            _write_table(found, aside)
        else:
            with aside.open("w") as file:
                _write_lines(found, file)
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)


def _write_lines(found, file):
    for answer in found:
        file.write(json.dumps(answer) + "\n")
    file.flush()


def _write_table(found, path):
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
    writer = None
    with contextlib.ExitStack() as stack:
        for answer in found:
            if writer is None:
                schema = pyarrow.schema([(key, kinds[key]) for key in answer])
                writer = stack.enter_context(parquet.ParquetWriter(path, schema))
                held = []
            held.append(_in_unicode(answer))
            if len(held) == BATCH:
                writer.write_table(pyarrow.Table.from_pylist(held, schema))
                held.clear()
        writer.write_table(pyarrow.Table.from_pylist(held, schema))


def _in_unicode(answer):
    """Names of files that are no utf-8 have their bytes spelled out: a table's text must be."""
    spell = lambda name: name.encode("utf-8", "backslashreplace").decode()  # noqa: E731
    return answer | {"query": spell(answer["query"]), "ids": [*map(spell, answer["ids"])]}
