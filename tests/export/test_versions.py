import re

import pytest

from export import folders, versions
from hqc_tf.errors import UserError


def test_versions_are_folders_named_by_a_plain_number(tmp_path):
    for name in ["1", "12", "0", "007", "2.partial", "²", ".3.partial", "x"]:
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("a file")
    assert sorted(versions.versions(tmp_path)) == [0, 1, 12]
    assert versions.newest(tmp_path) == tmp_path.resolve() / "12"
    assert versions.newest(tmp_path / "12") == tmp_path.resolve() / "12"


def test_the_next_version_or_a_free_one(tmp_path):
    assert versions.free_version(tmp_path / "none") == 1
    (tmp_path / "4").mkdir()
    assert versions.free_version(tmp_path) == 5
    assert versions.free_version(tmp_path, 2) == 2
    with pytest.raises(UserError, match=re.escape(f"--version=4: exists in {tmp_path}, and")):
        versions.free_version(tmp_path, 4)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file, but versions need a folder; name another"):
        versions.free_version(tmp_path / "file")


def test_names_that_tensorflow_cannot_read_are_refused(tmp_path, monkeypatch):
    (tmp_path / "out [v2]" / "1").mkdir(parents=True)
    refusal = r"out \[v2\].*: TensorFlow takes \[ \] in a folder's name for a pattern; rename"
    with pytest.raises(UserError, match=f"--output=.*{refusal}"):
        versions.free_version(tmp_path / "out [v2]")
    (tmp_path / "plain").symlink_to("out [v2]")
    with pytest.raises(UserError, match=refusal):
        versions.newest(tmp_path / "plain")
    # TensorFlow gets the whole path, however the folder was named.
    monkeypatch.chdir(tmp_path / "out [v2]")
    with pytest.raises(UserError, match=refusal):
        versions.free_version("out")


def test_a_version_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), versions.new_version(tmp_path, 1) as folder:
        (folder / "half").touch()
        assert versions.versions(tmp_path) == []
        raise RuntimeError
    assert not any(tmp_path.iterdir())
    (tmp_path / ".1.partial").mkdir()  # what a kill leaves
    (tmp_path / ".1.partial/old").touch()
    with versions.new_version(tmp_path, 1) as folder:
        (folder / "all").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["1", "all"]


def test_a_version_that_another_process_wrote_meanwhile_stays(tmp_path):
    rule = "--version=1: exists in "
    with pytest.raises(UserError, match=rule), versions.new_version(tmp_path, 1):
        (tmp_path / "1").mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["1"]


def test_manifests_are_read_by_their_kind(tmp_path):
    assert folders.read_manifest(tmp_path, "kind") is None
    folders.write_manifest(tmp_path, "kind", {"bits": 8})
    assert folders.read_manifest(tmp_path, "kind") == {"format": "kind", "bits": 8}
    assert folders.read_manifest(tmp_path, "other") is None
    for text in ["[]", "{}"]:
        (tmp_path / "manifest.json").write_text(text)
        assert folders.read_manifest(tmp_path, "kind") is None
    for text in ["", "{", "[" * 100_000, "\udcff"]:
        (tmp_path / "manifest.json").write_text(text, errors="surrogateescape")
        with pytest.raises(UserError, match="index/manifest.json: cannot be read .*; restore a c"):
            folders.read_manifest(tmp_path, "kind", "index")


def test_a_manifest_that_may_not_be_read_is_not_missing(tmp_path):
    (tmp_path / "manifest.json").symlink_to("manifest.json")
    with pytest.raises(UserError, match="manifest.json: cannot be read .*symbolic links"):
        folders.read_manifest(tmp_path, "kind")
