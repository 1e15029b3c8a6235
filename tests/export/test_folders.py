"""A folder exists and is complete at every instant, even while another replaces it."""

import errno
import multiprocessing
import pathlib

import pytest

from export import folders


def write(path, text):
    with folders.new_folder(path) as folder:
        (folder / "one").write_text(text)
        (folder / "two").write_text(text)


def contents(path):
    return [file.read_text() for file in sorted(pathlib.Path(path).iterdir())]


def _write_many(path, count):
    for number in range(count):
        write(path, str(number))


def test_new_and_replaced(tmp_path):
    write(tmp_path / "deep" / "folder", "a")
    write(tmp_path / "deep" / "folder", "b")
    assert contents(tmp_path / "deep" / "folder") == ["b", "b"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["folder"]


def test_open_files_stay_readable(tmp_path):
    write(tmp_path / "folder", "old")
    with (tmp_path / "folder" / "one").open() as opened:
        write(tmp_path / "folder", "new")
        assert opened.read() == "old"


def test_the_path_is_never_missing(tmp_path):
    """Fails within a few of the 300 exchanges if they are two moves each."""
    path = tmp_path / "folder"
    write(path, "first")
    # Not a fork of this process: without the threads of TensorFlow it may wait for ever.
    writer = multiprocessing.get_context("spawn").Process(target=_write_many, args=(path, 300))
    writer.start()
    while writer.is_alive():
        assert path.exists()
    writer.join()
    assert writer.exitcode == 0
    assert contents(path) == ["299", "299"]


def test_without_exchange_two_moves_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(folders, "_exchange", refuse)
    write(tmp_path / "folder", "a")
    write(tmp_path / "folder", "b")
    assert contents(tmp_path / "folder") == ["b", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_failure_leaves_what_was_there(tmp_path):
    write(tmp_path / "folder", "old")
    with pytest.raises(ZeroDivisionError), folders.new_folder(tmp_path / "folder") as folder:
        (folder / "one").write_text("half")
        raise ZeroDivisionError
    assert contents(tmp_path / "folder") == ["old", "old"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.fixture
def no_exchange(monkeypatch):
    """A file system that cannot exchange folders."""

    def refuse(*_):
        raise OSError(errno.EINVAL, "no exchange")

    monkeypatch.setattr(folders, "_exchange", refuse)


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("restore", [folders.restore, lambda path: write(path, "new")])
def test_killed_between_two_moves_the_old_folder_is_back(tmp_path, monkeypatch, restore):
    path, rename = tmp_path / "folder", pathlib.Path.rename
    write(path, "old")

    def killed(one, other):
        if other == path:
            raise KeyboardInterrupt
        return rename(one, other)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pathlib.Path, "rename", killed)
        write(path, "half")
    assert not path.exists()
    restore(path)
    assert contents(path) in (["old", "old"], ["new", "new"])
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.usefixtures("no_exchange")
def test_killed_after_two_moves_the_old_folder_is_removed(tmp_path):
    write(tmp_path / "folder", "new")
    (tmp_path / ".folder.old").mkdir()
    (tmp_path / ".folder.old/one").touch()
    folders.restore(tmp_path / "folder")
    with folders.sole_writer(tmp_path / "folder"):
        assert contents(tmp_path / "folder") == ["new", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_every_file_below_is_on_the_disk_before_the_folder_appears(tmp_path, monkeypatch):
    synced, sync = [], folders.files.sync
    monkeypatch.setattr(folders.files, "sync", lambda path: synced.append(path) or sync(path))
    with folders.new_folder(tmp_path / "folder") as aside:
        (aside / "variables").mkdir()
        (aside / "variables/data").touch()
    assert {aside / "variables/data", aside / "variables", aside, tmp_path} == {*synced}


def test_second_writer_is_refused(tmp_path):
    path = tmp_path / "folder"
    with folders.new_folder(path) as folder:
        (folder / "one").write_text("mine")
        with pytest.raises(ValueError, match=f"{path}: another process is writing it; wait"):
            write(path, "theirs")
    assert contents(path) == ["mine"]
    write(path, "theirs")


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "folder")
    with pytest.raises(ValueError, match="folder: a mount point cannot be replaced; name a folder"):
        write(tmp_path / "folder", "a")
    assert not list(tmp_path.iterdir())
    write(tmp_path / "folder" / "in_it", "a")
