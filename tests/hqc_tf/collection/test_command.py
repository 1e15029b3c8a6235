"""What `python -m hqc_tf.collection` prints."""

import pathlib
import shlex

import pytest

from hqc_tf import collection
from tests.support import commands


@pytest.mark.parametrize(
    ("source", "album", "are_quoted"),
    [
        ("folder:p/1", "a/b", False),
        ("folder:my photos", "an album", True),
        ("p/**/*.jpg", "it's", True),
    ],
)
def test_a_shell_reads_the_next_commands_as_they_are_meant(source, album, are_quoted, monkeypatch):
    made = collection.Made(pathlib.Path(album), 1, [], 0)
    monkeypatch.setattr(collection, "make_collection", lambda *_: made)
    done = commands.run("hqc_tf.collection", source, f"--output={album}")
    lines = done.stdout.splitlines()[-3:]
    assert [shlex.split(line)[3:] for line in lines] == [
        ["export.search", f"--index={album}/index", "PHOTO.jpg"],
        ["export.browse", f"--index={album}/index", f"--images={source}"],
        ["hqc_tf.collection", source, f"--output={album}"],
    ]
    assert ["'" in line for line in lines] == 3 * [are_quoted]


def test_the_home_in_a_source_is_expanded(monkeypatch):
    given, made = [], collection.Made(pathlib.Path("a"), 1, [], 0)

    def make(source, *_):
        given.append(source)
        return made

    monkeypatch.setattr(collection, "make_collection", make)
    monkeypatch.setenv("HOME", "/home/me")
    commands.run("hqc_tf.collection", "folder:~/photos", "--output=a")
    assert given == ["folder:/home/me/photos"]


@pytest.mark.parametrize("source", ["folder:{}", "{}/**/*"])
def test_a_collection_among_its_photos_is_refused(photos, source):
    done = commands.run("hqc_tf.collection", source.format(photos), f"--output={photos}/album")
    assert done.status == 2 and "where its pictures would be photos; take a folder" in done.stderr
    assert not (photos / "album").exists()
