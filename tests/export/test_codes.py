"""Folders of codes: complete or missing, and never of two jobs."""

import concurrent.futures
import json
import pathlib

import numpy as np
import pytest

from export import codes, folders
from export.arrays import pack_ids, unpack_id
from export.codes import (
    Shard,
    is_begun,
    is_done,
    read_names,
    read_rejects,
    read_shards,
    write_shard,
)
from hqc_tf.data.screening import Reject
from hqc_tf.errors import UserError

NAMES = ["a.jpg", "", "new\nline", "é\U0001f600", "no \udcff utf-8\0"]
CODEBOOKS = np.arange(1536, dtype=np.float32).reshape(2, 256, 3)
ENCODER = {"fingerprint": "abc", "path": "serving/hqc/1"}
JOB = {"folder": "photos"}


def start(folder, num_shards=3, encoder=ENCODER, job=JOB, names=None):
    codes.start(folder, CODEBOOKS, encoder, num_shards, job, names)


def shard(count, first=0):
    codes = np.arange(first, first + 2 * count, dtype=np.uint8).reshape(count, 2)
    return Shard(codes, pack_ids([f"{row}.jpg" for row in range(count)]))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_gives_back_its_shards_and_rejects(tmp_path):
    start(tmp_path / "codes", names=pack_ids(NAMES))
    rejects = [[], [Reject(NAMES[4], "broken")], [Reject("b", "empty file")]]
    for number, count in enumerate([4, 0, 1]):
        assert not is_done(tmp_path / "codes", number, 3)
        write_shard(tmp_path / "codes", number, 3, shard(count), rejects[number])
        assert is_done(tmp_path / "codes", number, 3)
    read = read_shards(tmp_path / "codes")
    np.testing.assert_array_equal(read.codebooks, CODEBOOKS)
    assert read.encoder == ENCODER
    for found, count in zip(read.shards, [4, 0, 1], strict=True):
        np.testing.assert_array_equal(found.codes, shard(count).codes)
        assert found.ids.to_pylist() == shard(count).ids.to_pylist()
    assert list(read_rejects(tmp_path / "codes")) == [*rejects[1], *rejects[2]]
    assert [*map(unpack_id, read_names(tmp_path / "codes").to_pylist())] == NAMES


def test_the_same_job_begins_once_and_keeps_what_is_done(tmp_path):
    start(tmp_path)
    write_shard(tmp_path, 1, 3, shard(4), [])
    before = files(tmp_path)
    (tmp_path / ".codes-00002-of-00003.arrow.0123.partial").write_text("left by a killed process")
    start(tmp_path, encoder=ENCODER | {"path": "moved since"})
    assert files(tmp_path) == before
    assert is_begun(tmp_path) and is_begun(tmp_path, JOB)
    assert not is_begun(tmp_path, {"folder": "other"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": ENCODER | {"fingerprint": "xyz"}}, "the encoder was abc and now is xyz; name"),
        ({"num_shards": 4}, "the number of shards was 3 and now is 4"),
        ({"job": {"folder": "others"}}, "what is encoded was .*photos.* and now is .*others"),
    ],
)
def test_another_job_is_refused(tmp_path, change, message):
    start(tmp_path)
    with pytest.raises(UserError, match=message):
        start(tmp_path, **change)


@pytest.mark.parametrize("written", range(3))
def test_a_start_killed_at_any_write_starts_over(tmp_path, monkeypatch, written):
    """For any job: the files of the killed one are gone."""
    left = [None] * written
    replace = pathlib.Path.replace

    def killed(self, target):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return replace(self, target)

    with monkeypatch.context() as process:
        process.setattr(pathlib.Path, "replace", killed)
        # A killed process cannot clean up.
        process.setattr(pathlib.Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, names=pack_ids(NAMES))
    assert len(files(tmp_path)) == written + 1 and not is_begun(tmp_path)
    start(tmp_path, job={"tfds": "another"})
    assert sorted(files(tmp_path)) == ["codebooks.npy", "manifest.json"]
    with pytest.raises(UserError, match="inputs.arrow: cannot be read"):
        read_names(tmp_path)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    (tmp_path / "codebooks.npy").write_bytes(b"precious")
    before = files(tmp_path)
    with pytest.raises(UserError, match="holds photo.jpg, which is no shard: name another"):
        start(tmp_path)
    assert files(tmp_path) == before
    with pytest.raises(UserError, match="photo.jpg is a file, but shards need a folder"):
        start(tmp_path / "photo.jpg")
    (tmp_path / "photo.jpg").unlink()
    folders.write_manifest(tmp_path, "hqc-index", {})
    with pytest.raises(UserError, match="holds manifest.json"):
        start(tmp_path)
    with pytest.raises(UserError, match="holds no codes of export.encode"):
        read_shards(tmp_path)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    start(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_shard(tmp_path, 0, 3, shard(4), [])
    assert files(tmp_path) == before


def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path):
    start(tmp_path, num_shards=8)
    numbers = [*range(8)] * 6
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write_shard(tmp_path, n, 8, shard(50, n), []), numbers))
    for number, found in enumerate(read_shards(tmp_path).shards):
        np.testing.assert_array_equal(found.codes, shard(50, number).codes)
    assert not list(tmp_path.glob(".*"))


def test_missing_and_damaged_shards_are_named(tmp_path):
    start(tmp_path)
    write_shard(tmp_path, 1, 3, shard(4), [])
    missing = "2 of 3 shards are missing, .* codes-00000-of-00003.arrow"
    with pytest.raises(UserError, match=missing):
        read_shards(tmp_path)
    for number in (0, 2):
        write_shard(tmp_path, number, 3, shard(4), [])
    path = tmp_path / "codes-00002-of-00003.arrow"
    complete = path.read_bytes()
    for size in range(0, len(complete), 16):
        path.write_bytes(complete[:size])
        with pytest.raises(UserError, match=f"{path}: cannot be read .*; remove it and run"):
            _ = read_shards(tmp_path).shards[2]
    write_shard(tmp_path, 2, 3, Shard(np.zeros([4, 3], np.uint8), shard(4).ids), [])
    with pytest.raises(UserError, match=r"'code fixed_size_binary\[3\]'.*must be .*binary\[2\]"):
        _ = read_shards(tmp_path).shards[2]


def test_a_code_beyond_the_codebooks_is_of_a_damaged_shard(tmp_path):
    codes.start(tmp_path, CODEBOOKS[:, :8], ENCODER, 2, JOB)
    for number in range(2):
        write_shard(tmp_path, number, 2, shard(4, number), [])
    _, damaged = read_shards(tmp_path).shards[0], "codes-00001-of-00002.arrow"
    with pytest.raises(UserError, match=f"{tmp_path}/{damaged}: names word 8, .* 0 to 7, .*run"):
        _ = read_shards(tmp_path).shards[1]


@pytest.mark.parametrize("num_shards", [3, 2])
def test_a_folder_that_is_replaced_while_it_is_read_gives_no_shard_of_another(tmp_path, num_shards):
    for name, count, first in [("codes", 3, 0), ("aside", num_shards, 100)]:
        start(tmp_path / name, num_shards=count)
        for number in range(count):
            write_shard(tmp_path / name, number, count, shard(4, first), [])
    read = read_shards(tmp_path / "codes")
    held = read.shards[0]
    folders.replace(tmp_path / "aside", tmp_path / "codes")
    for number in range(3):
        with pytest.raises(UserError, match="codes: replaced while it was read; run this again"):
            _ = read.shards[number]
    np.testing.assert_array_equal(held.codes, shard(4).codes)
    np.testing.assert_array_equal(
        read_shards(tmp_path / "codes").shards[1].codes, shard(4, 100).codes
    )


def test_equal_shards_have_equal_bytes(tmp_path):
    """Whatever memory the ids are views of."""
    start(tmp_path)
    ids = pack_ids([str(row) for row in range(9)])
    for number, part in enumerate([ids.slice(3, 2), pack_ids("34"), ids.take([3, 4])]):
        write_shard(tmp_path, number, 3, Shard(np.zeros([2, 2], np.uint8), part), [])
    one, *others = (path.read_bytes() for path in tmp_path.glob("codes-*"))
    assert others == [one, one]


def test_the_old_format_gets_one_line(tmp_path):
    start(tmp_path)
    contents = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(contents | {"format_version": 1}))
    for read in (start, is_begun, read_shards):
        with pytest.raises(UserError, match="version 1, but this program reads 2: encode the"):
            read(tmp_path)


def test_rejects_are_lines_of_ascii(tmp_path):
    start(tmp_path, num_shards=1)
    write_shard(tmp_path, 0, 1, shard(0), [Reject(name, "é") for name in NAMES])
    lines = (tmp_path / "rejects-00000-of-00001.jsonl").read_bytes().decode("ascii").splitlines()
    assert [json.loads(line)["id"] for line in lines] == NAMES
