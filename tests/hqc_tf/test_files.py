"""Writes are atomic, a full disk is named, and JSON lines are dataclasses."""

import dataclasses
import errno
import json
import os
import pathlib
import re

import pytest

from hqc_tf import files
from hqc_tf.errors import UserError


def test_a_text_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
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
    (tmp_path / ".flags.txt.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"{path}: the disk is full .*No space .*free space"):
        files.replace_text(path, "half")
    assert path.read_text() == "whole"


def test_a_hidden_file_of_a_user_stays(tmp_path):
    (tmp_path / ".labels.csv").write_text("own")
    files.replace_text(tmp_path / "labels.csv", "made")
    assert (tmp_path / ".labels.csv").read_text() == "own"


def test_a_file_that_another_command_is_writing_is_refused(tmp_path):
    path = tmp_path / "found.jsonl"
    (tmp_path / ".found.jsonl.partial").write_text("left by a killed process")

    def write(file):
        file.write(b"first ")
        file.flush()
        with pytest.raises(UserError, match=f"{path}: another process is writing it; wait until"):
            files.write_atomically(path, lambda other: other.write(b"second"))
        file.write(b"half")

    files.write_atomically(path, write)
    assert path.read_bytes() == b"first half"
    assert list(tmp_path.iterdir()) == [path]


def test_several_may_write_a_shared_file_at_once(tmp_path):
    path = tmp_path / "f"

    def write(file):
        files.write_shared(path, lambda other: other.write(b"one"))
        assert path.read_bytes() == b"one"
        file.write(b"two")

    files.write_shared(path, write)
    assert path.read_bytes() == b"two"
    assert [*tmp_path.iterdir()] == [path]


def test_what_the_next_writer_has_begun_is_left_to_it(tmp_path):
    path, lock = tmp_path / "found.jsonl", tmp_path / ".found.jsonl.partial"
    with files.sole_holder(lock, "held"):
        lock.replace(path)
        lock.write_text("the next one's")
    assert lock.read_text() == "the next one's"


@pytest.mark.parametrize("path", ["/", "", "."])
def test_a_folder_as_the_file_to_write_is_refused(path):
    with pytest.raises(UserError, match="a folder, not a file to write; name a file"):
        files.write_atomically(pathlib.Path(path), lambda file: file.write(b"x"))


@pytest.mark.parametrize("character", [*"*?[]{}\\", "\udcff"])
def test_names_that_tensorflow_cannot_read_are_refused(character, tmp_path):
    name = tmp_path / f"out {character}v2" / "run"
    rule = "UTF-8" if character == "\udcff" else f"takes {re.escape(character)} in a folder's name"
    with pytest.raises(UserError, match=f"--output=.*{rule}.*; rename"):
        files.check_folder_name(name, "--output=")
    files.check_folder_name(tmp_path / "out (v2) \u00e4,=+!$&'")


def test_a_lock_without_the_file_systems_help_is_held_by_all(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with files.sole_holder(tmp_path / "lock", "held"):
        with pytest.raises(UserError, match="^held$"), files.sole_holder(tmp_path / "lock", "held"):
            pytest.fail("held by two")
        monkeypatch.setattr(files.fcntl, "flock", refuse)
        with files.sole_holder(tmp_path / "lock", "held"):
            pass
    assert not any(tmp_path.iterdir())


@dataclasses.dataclass
class Line:
    """What a test writes and reads."""

    name: str
    step: int
    words: list[float] | None = None
    others: dict[str, float] = dataclasses.field(default_factory=dict, metadata=files.REST)


def test_lines_come_back_as_they_were_written(tmp_path):
    lines = [Line("a\udcff", 1, others={"loss": 0.1}), Line("\n", 2, [1.5, 0.1 + 0.2])]
    files.write_lines(tmp_path / "a.jsonl", lines)
    assert files.read_lines(tmp_path / "a.jsonl", Line) == lines
    first, _ = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(first) == {"name": "a\udcff", "step": 1, "loss": 0.1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "Expecting value"),
        ("[1]", "Expected `object`, got `array`"),
        ("[" * 100_000, "recursion"),
        ('{"step": 1}', "missing required field `name`"),
        ('{"name": "a", "step": true}', r"Expected `int`, got `bool` - at `\$.step`"),
        ('{"name": "a", "step": 1, "words": 5}', "Expected `array | null`, got `int`"),
        ('{"name": "a", "step": 1, "other": "x"}', "Expected `float`, got `str`"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path, line, reason):
    path = tmp_path / "epochs.jsonl"
    good = '{"name": "a", "step": 1, "words": [1.5, 2], "other": 3}\n'
    path.write_text(f"{good}{line}\n")
    match = f"epochs.jsonl: line 2: .*{reason}.*; fix it or remove the line"
    with pytest.raises(UserError, match=match):
        files.read_lines(path, Line)
    path.write_text(good)
    assert files.read_lines(path, Line) == [Line("a", 1, [1.5, 2.0], {"other": 3.0})]


def test_an_unreadable_file_is_named(tmp_path):
    assert files.read_lines(tmp_path / "missing.jsonl", Line) == []
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    for name in ("binary.jsonl", "."):
        with pytest.raises(UserError, match="cannot be read .*; fix it or restore a copy"):
            files.read_lines(tmp_path / name, Line)


def test_a_path_without_dots_is_the_same_place(tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "link").symlink_to("a/b")
    monkeypatch.chdir(tmp_path / "c")
    assert files.absolute("../a/b/") == tmp_path / "a/b"
    assert files.absolute("../none/../x") == tmp_path / "x"
    # Beside what the link leads to is another folder than beside the link.
    assert files.absolute("../link/../b") == tmp_path / "c/../link/../b"
    assert files.absolute("../link") == tmp_path / "link"
