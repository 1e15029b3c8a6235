"""What happens to the files of a folder: cut, flipped, lost, replaced, and JSON of other values."""

import json
import os
import pathlib
import shutil

from hypothesis import strategies as st

# Of no type, size or form that a value of any manifest or line has.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 2**31, 2**63, 10**30, -(10**400), 1e308, float("nan"), float("inf")]),
    st.sampled_from(
        ["", "\0", "\x1b[31m", "\ud800", "../../etc", "x" * 5000, [], {}, [[]], [None]]
    ),
    st.text(max_size=8),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.floats() | st.text(max_size=3), max_size=2),
)
_NOISE = st.one_of(
    st.binary(max_size=64),
    st.sampled_from(
        [b"", b"\0", b"\xff\xfe\xfa", b"PK\x03\x04", b"\x93NUMPY\x01\0", b"\x80\x04N."]
    ),
    st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000, b"null", b"[]", b"{}", b"7"]),
)


def files_of(folder):
    """Every file, link and folder below `folder` by its name, with what is in it."""
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"to {path.readlink()}"
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


@st.composite
def damages(draw, names):
    """(name, what to do to the file of this name), the latter for `inflict`."""
    name = draw(st.sampled_from(names))
    ways = ["cut", "flip", "noise", "append", "gone", "folder", "loop", "utf-16"]
    way = draw(st.sampled_from(ways + 4 * ["value", "drop"] * name.endswith((".json", ".jsonl"))))
    return name, way, draw(st.floats(0, 1, exclude_max=True)), draw(_NOISE), draw(ODD)


def inflict(folder, damage):
    """Does what `damages` has drawn to a file of `folder`."""
    name, way, place, noise, odd = damage
    path = pathlib.Path(folder, name)
    contents = path.read_bytes()
    at = int(place * len(contents))
    path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "loop":
        path.symlink_to(path.name)
    elif way in ("value", "drop"):
        path.write_text(_change(contents, place, odd, way, lines=name.endswith("l")))
    elif way != "gone":
        changed = {
            "cut": contents[:at],
            "flip": contents[:at] + bytes([contents[at] ^ 1 << at % 8]) + contents[at + 1 :]
            if contents
            else b"\1",
            "noise": noise,
            "append": contents + noise,
            "utf-16": contents.decode("latin-1").encode("utf-16"),
        }
        path.write_bytes(changed[way])


def _change(contents, place, odd, way, lines):
    """JSON with a value that is another, or missing; with `lines` of one of its lines."""
    texts = contents.decode().splitlines() if lines else [contents.decode()]
    row = int(place * len(texts))
    value = json.loads(texts[row])
    spots = [*_spots(value)]
    holder, key = spots[int(place * 997) % len(spots)]
    if way == "value":
        holder[key] = odd
    else:
        del holder[key]
    texts[row] = json.dumps(value)
    return "\n".join(texts) + "\n"


def _spots(value):
    """(dict or list, key) of every value in a value of JSON, at any depth."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _spots(value[key])


def copy(folder, to):
    """A copy of a folder whose files are its own; returns `to`."""
    return pathlib.Path(shutil.copytree(folder, os.fspath(to)))
