"""Files are there whole or not at all, and a disk that takes no more is named."""

import errno
import os
import pathlib

import pytest
import tensorflow as tf

from hqc_tf import files
from hqc_tf.errors import UserError, naming_a_full_disk


def test_a_text_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "epochs.jsonl"
    files.replace_text(path, "first\n")
    files.replace_text(path, "second\n")

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="Input/output error"):
        files.replace_text(path, "half")
    assert path.read_text() == "second\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_named_and_the_file_stays(tmp_path):
    path = tmp_path / "flags.txt"
    path.write_text("whole")
    (tmp_path / ".flags.txt").symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"{path}: its disk takes no more .*No space .*make room"):
        files.replace_text(path, "half")
    assert path.read_text() == "whole"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_tensorflows_errors_of_a_full_disk_are_known(number):
    said = "{{function_node x}} /a/ckpt-5; " + os.strerror(number) + " [Op:SaveV2]\nmore"
    with pytest.raises(UserError) as ended, naming_a_full_disk("runs/a"):
        raise tf.errors.ResourceExhaustedError(None, None, said)
    assert str(ended.value).startswith("runs/a: its disk takes no more (/a/ckpt-5; ")
    assert "more)" not in str(ended.value)


def test_a_full_accelerator_is_not_a_full_disk():
    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    with pytest.raises(tf.errors.ResourceExhaustedError), naming_a_full_disk("runs/a"):
        raise error


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "Expecting value"),
        ("[1]", "no object of JSON"),
        ("[" * 100_000, "recursion"),
        ('{"step": 1}', "name is missing, which it cannot be"),
        ('{"name": "a", "step": true}', "step is True"),
        ('{"name": "a", "step": -1}', "step is -1"),
        ('{"name": "a", "step": 1, "recall": 0.5}', "words is missing"),
        ('{"name": "a", "step": 1, "recall": 0.5, "words": []}', "words is "),
        ('{"name": "a", "step": 1, "other": "x"}', "other is x"),
    ],
)
def test_a_line_that_is_not_as_written_is_named(tmp_path, line, said):
    path = tmp_path / "epochs.jsonl"
    kinds = {"name": str, "step": int}, {"recall": float, "words": [float]}
    good = '{"name": "a", "step": 1, "recall": 1, "words": [1.5, 2], "other": 3}\n'
    path.write_text(good)
    assert files.read_lines(path, *kinds, rest=float)[0]["words"] == [1.5, 2]
    path.write_text(f"{good}{line}\n")
    with pytest.raises(
        UserError, match=f"epochs.jsonl: line 2: .*{said}.*; mend it or take it out"
    ):
        files.read_lines(path, *kinds, rest=float)


def test_what_cannot_be_read_is_named(tmp_path):
    assert files.read_lines(tmp_path / "missing.jsonl", {}) == []
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    for name in ("binary.jsonl", "."):
        with pytest.raises(UserError, match="cannot be read .*; mend it or bring back a copy"):
            files.read_lines(tmp_path / name, {})
