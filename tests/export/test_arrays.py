"""Packed ids and memory-mapped files: read as written, or refused in one line."""

import os

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.campaign.instants import files_of_at_most
from export import arrays
from export.arrays import pack_ids, read_ids, save_array, text_of, unpack_id, write_ids
from hqc_tf.errors import UserError

NAMES = ["a.jpg", "", "new\nline", "é\U0001f600", "no \udcff utf-8\0"]


def ids_of(values):
    return pa.array(values, pa.large_binary())


def write(path, *parts):
    with path.open("wb") as file:
        write_ids(file, parts)


@pytest.mark.parametrize("names", [NAMES, [], [""]])
def test_ids_come_back_as_they_were(tmp_path, names):
    write(tmp_path / "ids", pack_ids(iter(names)), pack_ids([]), pack_ids(names))
    found = read_ids(tmp_path / "ids", "fix")
    assert [*map(unpack_id, found.to_pylist())] == names + names


def test_text_of_a_slice():
    text, starts = text_of(pack_ids(["ab", "c", "", "def", "g"]).slice(1, 3))
    assert (text.tobytes(), starts.tolist()) == (b"cdef", [0, 1, 1, 4])
    text, starts = text_of(pack_ids([]))
    assert (text.size, starts.tolist()) == (0, [0])


@pytest.mark.parametrize("path", ["pipe", "/dev/zero"])
def test_pipes_and_devices_are_refused_not_waited_for(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    for read in (arrays.map_array, lambda name: read_ids(name, "fix")):
        with pytest.raises(UserError, match="no regular file"):
            read(tmp_path / path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([b"a", None], "a value is missing"),
        ([b"\xff"], "invalid start byte"),
        (["é".encode()[:1], "é".encode()[1:]], "an id is not UTF-8"),
    ],
)
def test_ids_that_are_no_text_are_refused(tmp_path, values, message):
    write(tmp_path / "ids", ids_of(values))
    with pytest.raises(UserError, match=f"ids: cannot be read .*{message}.*; fix"):
        read_ids(tmp_path / "ids", "fix")


def test_ids_are_checked_a_piece_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_CHECKED", 1)
    names = ["a", "\u00e9", "\udcff", "\N{GRINNING FACE}"]
    write(tmp_path / "ids", pack_ids(names))
    assert [unpack_id(each) for each in read_ids(tmp_path / "ids", "fix").to_pylist()] == names
    write(tmp_path / "ids", ids_of([b"a", b"\xc3"]))
    with pytest.raises(UserError, match="ids: cannot be read .*unexpected end"):
        read_ids(tmp_path / "ids", "fix")


def test_offsets_beyond_the_text_are_refused(tmp_path):
    write(tmp_path / "ids", pack_ids(["ab", "cd"]))
    contents = (tmp_path / "ids").read_bytes()
    offsets = np.int64([0, 2, 4]).tobytes()
    for wrong in ([0, 2, 4 << 20], [0, 5, 4], [-8, 2, 4]):
        (tmp_path / "ids").write_bytes(contents.replace(offsets, np.int64(wrong).tobytes()))
        with pytest.raises(UserError, match="ids: cannot be read"):
            read_ids(tmp_path / "ids", "fix")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no Arrow file" * 99)
    np.save(tmp_path / "array", np.zeros(99))
    for name in ("missing", "folder", "empty", "text", "array.npy"):
        with pytest.raises(UserError, match=f"{name}: cannot be read .*; fix"):
            read_ids(tmp_path / name, "fix")
    with (tmp_path / "other").open("wb") as file:
        batch = pa.record_batch({"name": ["text"]})
        arrays.write_batches(file, batch.schema, [batch])
    with pytest.raises(UserError, match=r"columns are \['name string'\], but must be"):
        read_ids(tmp_path / "other", "fix")


def test_an_array_is_whole_or_its_full_disk_an_error(tmp_path):
    array = np.random.default_rng(1).random([4, 16, 8], np.float32)
    with (tmp_path / "a.npy").open("wb") as file:
        save_array(file, array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)
    # np.save has no error where only its last block does not fit.
    size = (tmp_path / "a.npy").stat().st_size
    for limit in (size - 1, size // 2, 130):
        with (
            files_of_at_most(limit),
            pytest.raises(OSError, match="File too large"),
            (tmp_path / "b.npy").open("wb") as file,
        ):
            save_array(file, array)
