"""Atomic writes, and files of JSON lines."""

import json
import os

from hqc_tf.errors import UserError, naming_a_full_disk, naming_damage


def write_whole(path, write, aside=None):
    """Writes a file, on the disk before this returns; until then the one before stays.

    Args:
      path: `pathlib.Path`.
      write: called with a binary file.
      aside: where it is written first, beside `path`; None: .NAME. A killed process leaves it.
    """
    aside = aside or path.with_name(f".{path.name}")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def replace_text(path, text):
    """`write_whole` of a text.

    Args:
      path: `pathlib.Path`.
      text: all that the file is to hold.

    Raises:
      UserError: the disk is full.
    """
    with naming_a_full_disk(path):
        write_whole(path, lambda file: file.write(text.encode()))


def read_lines(path, needed, *together, rest=None):
    """What a file of JSON objects holds, a dict a line; empty where there is no file.

    A kind is a type, or [float], {str: float}: a list and a dict of numbers, with one at least.
    Numbers are float, and int is one that counts something.

    Args:
      path: `pathlib.Path`.
      needed: name -> kind of what every line has.
      *together: the same of what a line has all of or nothing.
      rest: kind of whatever else is in a line; None: any.

    Raises:
      UserError: it cannot be read, or a line is none of these.
    """
    if not path.exists():
        return []
    with naming_damage(path, "mend it or bring back a copy"):
        lines = path.read_text().splitlines()
    found = []
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            _check_line(line, needed, together, rest)
        except (ValueError, RecursionError) as error:
            why = f"{path}: line {number}: {error}; mend it or take it out"
            raise UserError(why) from error
        found.append(line)
    return found


def _check_line(line, needed, together, rest):
    if not isinstance(line, dict):
        raise ValueError("no object of JSON")
    kinds = dict(needed)
    for group in together:
        kinds |= group if group.keys() & line.keys() else {}
    for name in [*kinds, *(line.keys() - kinds.keys())]:
        kind = kinds.get(name, rest)
        if kind and not (name in line and _is_of(kind, line[name])):
            raise ValueError(f"{name} is {line.get(name, 'missing')}, which it cannot be")


def _is_of(kind, value):
    if isinstance(kind, list | dict):
        values = value.values() if isinstance(value, dict) else value
        return isinstance(value, type(kind)) and value and all(_is_of(float, x) for x in values)
    if kind in (int, float):
        counts = isinstance(value, int) and -1 < value < 2**63
        return not isinstance(value, bool) and (counts or kind is float and type(value) is float)
    return isinstance(value, kind)


def replace_lines(path, lines):
    """`replace_text` of what `read_lines` is to give."""
    replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))
