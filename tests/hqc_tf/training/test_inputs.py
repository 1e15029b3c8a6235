"""A run resumes over the files that it began with, or says which differ."""

import hashlib

import numpy as np
import pytest

from hqc_tf.config import Config
from hqc_tf.data import roles
from hqc_tf.errors import UserError
from hqc_tf.training import inputs
from hqc_tf.workdir import InputFile, read_files, write_files


@pytest.fixture
def folder(tmp_path):
    """A folder of five files, one of whose names is not UTF-8."""
    found = tmp_path / "photos"
    (found / "a").mkdir(parents=True)
    for name in ("a/1.png", "a/2.png", "a/3.png", "4\udcff.png", "bad.png"):
        (found / name).write_bytes(b"content of " + name.encode("utf-8", "surrogateescape"))
    return found


def test_a_list_has_names_and_sizes_and_comes_back(folder, tmp_path):
    (folder / "notes.txt").touch()
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to("nowhere")
    found = inputs.list_files(f"folder:{folder}")
    assert InputFile("a/2.png", 18) in found and InputFile("4\udcff.png", 17) in found
    assert len(found) == 5
    write_files(tmp_path, found)
    assert read_files(tmp_path) == found
    inputs.check_files(f"folder:{folder}", found, frozenset())
    assert inputs.list_files("fashion_mnist") == []


def test_all_changes_are_named(folder):
    before = inputs.list_files(f"folder:{folder}")
    for number in range(4):
        (folder / f"new{number}.png").touch()
    (folder / "a/1.png").unlink()
    (folder / "4\udcff.png").write_bytes(b"more")
    with pytest.raises(UserError) as error:
        inputs.check_files(f"folder:{folder}", before, frozenset())
    assert str(error.value) == (
        f"--dataset=folder:{folder}: not the files that this run began with: "
        "4 added (new0.png, new1.png, new2.png, ...), 1 missing (a/1.png), "
        "1 of another size (4\udcff.png); restore them, or take another --workdir"
    )


def test_what_a_run_leaves_out_may_be_fixed_or_removed(folder):
    before = inputs.list_files(f"folder:{folder}")
    (folder / "bad.png").unlink()
    inputs.check_files(f"folder:{folder}", before, frozenset({"bad.png"}))
    with pytest.raises(UserError, match=r"1 missing \(bad.png\)"):
        inputs.check_files(f"folder:{folder}", before, frozenset())


def test_features_are_known_by_their_contents(tmp_path):
    path, matrix = tmp_path / "x.npy", np.ones([3, 2], np.float32)
    np.save(path, matrix)
    dataset = f"features:{path}"
    before = inputs.list_files(dataset)
    assert before == [InputFile(str(path), 24, hashlib.sha256(matrix.tobytes()).hexdigest())]
    inputs.check_files(dataset, before, frozenset())
    matrix[1, 0] = 2
    np.save(path, matrix)
    with pytest.raises(UserError, match="began with: 1 of other contents .*x.npy.; restore"):
        inputs.check_files(dataset, before, frozenset())


def test_what_arrives_while_a_folder_is_read_is_left_out(folder, tmp_path, monkeypatch):
    settings = Config(dataset=f"folder:{folder}")
    listed = inputs.list_files(settings.dataset)
    (folder / "new.png").touch()
    (folder / "a/1.png").unlink()
    images, kept = inputs.load_listed(settings, listed, frozenset({"bad.png"}))
    assert images.ids == ["4\udcff.png", "a/2.png", "a/3.png"]
    assert {file.name for file in kept} == {*images.ids, "bad.png"}
    monkeypatch.setattr(roles, "load_role", lambda *_: None)
    records = Config(dataset=f"tfrecord:{folder}/*.png")
    with pytest.raises(UserError, match="files have arrived .*new.png.; run the same command"):
        inputs.load_listed(records, inputs.list_files(records.dataset)[:2], frozenset())


def test_paths_do_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = Config(dataset="folder:a", labels="l.csv", backbone_weights="w.h5")
    found = inputs.from_anywhere(given)
    assert found.labels == f"{tmp_path}/l.csv" and found.backbone_weights == f"{tmp_path}/w.h5"
    assert inputs.from_anywhere(Config(backbone_weights="imagenet")).backbone_weights == "imagenet"


def test_patterns_and_records_have_lists(folder):
    for dataset in (f"{folder}/a/*", f"tfrecord:{folder}/a/*"):
        before = inputs.list_files(dataset)
        assert [file.name for file in before] == [f"{folder}/a/{n}.png" for n in (1, 2, 3)]
        (folder / "a/1.png").write_bytes(b"x")
        # A file of records may be trained on up to where it breaks.
        rejected = frozenset(file.name for file in before if dataset.startswith("tfrecord"))
        with pytest.raises(UserError, match="1 of another size"):
            inputs.check_files(dataset, before, rejected)
        (folder / "a/1.png").write_bytes(b"content of a/1.png")


@pytest.mark.parametrize(
    ("name", "source"),
    [("dataset", "folder:{}"), ("queries", "{}/**/*.png"), ("dataset", "tfrecord:{}/*")],
)
def test_a_run_among_its_own_images_is_refused(folder, name, source):
    settings = Config(**{name: source.format(folder)})
    inputs.check_outside(f"{folder}-runs", settings)
    with pytest.raises(UserError) as error:
        inputs.check_outside(folder / "run", settings)
    assert str(error.value) == (
        f"--workdir={folder}/run: lies in --{name}={source.format(folder)}, where the run's "
        "pictures would be images; take a folder outside"
    )
    (folder / "run").mkdir()
    (folder / "run/flags.txt").touch()
    with pytest.raises(UserError, match="images; move it outside, and name it there$"):
        inputs.check_outside(folder / "run", settings)
