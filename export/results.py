"""Answers to queries as they are written: lines of JSON, CSV, a Parquet table, or for a person."""

import contextlib
import csv
import io
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from hqc_tf import files
from hqc_tf.errors import UserError, printable

FORMATS = "table", "jsonl", "csv"
# Answers that a Parquet table takes together.
BATCH = 1024
Answers = Iterator[dict[str, Any]]


def write_answers(
    found: Iterable[dict[str, Any]],
    output: str | os.PathLike,
    form: str = "",
    path_of: Callable[[str], str] = str,
) -> None:
    """Writes answers to stdout where `output` is empty, else to that file, atomically.

    Args:
        found: dicts of "query", "ids", "distances" and possibly "books", as `search.answers` gives.
        output: a file; one that ends in .parquet becomes a table, one in .csv has CSV.
        form: one of `FORMATS`; empty: by the file's ending, "table" on a terminal, else "jsonl".
        path_of: of an id, for a person.

    Raises:
        UserError: `output` ends in .parquet and a form is given.
    """
    suffix = pathlib.Path(output).suffix
    if suffix == ".parquet":
        if form:
            raise UserError(f"--format={form}: {output} is a Parquet table; leave one of them out")
        files.write_atomically(pathlib.Path(output), lambda file: _write_parquet(found, file))
        return
    default = "csv" if suffix == ".csv" else "jsonl"
    form = form or ("table" if not output and sys.stdout.isatty() else default)
    lines = {"table": _for_a_person, "jsonl": _as_json, "csv": _as_csv}[form](found, path_of)
    if not output:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.writelines(lines)
            sys.stdout.flush()
    else:
        encoded = (line.encode("utf-8", "backslashreplace") for line in lines)
        files.write_atomically(pathlib.Path(output), lambda file: file.writelines(encoded))


def path_finder(inputs: Sequence[Mapping[str, Any]]) -> Callable[[str], str]:
    """A function of an id to the path of its file, by the "inputs" of an index's manifest.

    The id itself where none of its folders has such a file.
    """
    folders = [(each.get("id_prefix", ""), each.get("folder")) for each in inputs]
    # As in `name_finder`.
    folders.sort(key=lambda each: -len(each[0]))

    def path_of(name):
        for prefix, folder in folders:
            if folder and name.startswith(prefix):
                path = pathlib.Path(folder, name.removeprefix(prefix))
                if os.path.lexists(path):
                    return str(path)
        return name

    return path_of


def id_prefix(inputs: Sequence[Mapping[str, Any]], folder: str | os.PathLike) -> str:
    """What the ids of a folder's images begin with, by the "inputs" of an index's manifest.

    Of a folder that is none of them, since it has moved, what all have.
    """
    own = {each.get("folder"): each.get("id_prefix", "") for each in inputs}
    shared = set(own.values())
    return own.get(str(files.absolute(folder)), shared.pop() if len(shared) == 1 else "")


def name_finder(
    inputs: Sequence[Mapping[str, Any]], folder: str | os.PathLike
) -> Callable[[str], str | None]:
    """A function of an id to the name of its file below a folder, by a manifest's "inputs".

    None where the id is of another input: without the folder's prefix, or where a longer prefix of
    another input fits as well.
    """
    root = str(files.absolute(folder))
    own = {
        each.get("id_prefix", "")
        for each in inputs
        if root in (each.get("folder"), each.get("root"))
    }
    # Which ids are those of a folder that has moved is not known.
    every = {each.get("id_prefix", "") for each in inputs} if own else set()
    own = own or {id_prefix(inputs, folder)}
    longest_first = sorted(own | every, key=len, reverse=True)

    def name_of(name):
        prefix = next((each for each in longest_first if name.startswith(each)), None)
        return name.removeprefix(prefix) if prefix in own else None

    return name_of


def _as_json(found, _):
    return (json.dumps(answer) + "\n" for answer in found)


def _for_a_person(found, path_of):
    for number, answer in enumerate(found):
        yield ("\n" if number else "") + printable(answer["query"]) + "\n"
        for rank, (name, distance, *books) in enumerate(_rows(answer), 1):
            parts = "".join(f"  {part:.4g}" for each in books for part in each)
            yield f"{rank:5}  {distance:<10.5g}  {printable(path_of(name))}{parts}\n"


def _as_csv(found, _):
    header = "query", "rank", "id", "distance"
    for number, answer in enumerate(found):
        columns = [*header, "books"] if "books" in answer else [*header]
        rows = [columns] if number == 0 else []
        for rank, (name, distance, *books) in enumerate(_rows(answer), 1):
            own = [" ".join(map(str, each)) for each in books]
            rows.append([answer["query"], rank, name, distance, *own])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        yield text.getvalue()


def _rows(answer):
    names = ["ids", "distances", *(["books"] if "books" in answer else [])]
    return zip(*(answer[name] for name in names), strict=True)


def _write_parquet(found, file):
    name, floats = pa.string(), pa.list_(pa.float32())
    kinds = {"query": name, "ids": pa.list_(name), "distances": floats, "books": pa.list_(floats)}
    rows = map(_in_unicode, found)
    held = list(itertools.islice(rows, BATCH))
    schema = pa.schema([(key, kinds[key]) for key in next(iter(held), kinds)])
    with parquet.ParquetWriter(file, schema) as writer:
        while held:
            writer.write_table(pa.Table.from_pylist(held, schema))
            held = list(itertools.islice(rows, BATCH))


def _in_unicode(answer):
    """File names that are not UTF-8 have their bytes spelled out: a table's text must be."""
    spell = lambda name: name.encode("utf-8", "backslashreplace").decode()  # noqa: E731
    return answer | {"query": spell(answer["query"]), "ids": [*map(spell, answer["ids"])]}
