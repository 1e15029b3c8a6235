"""Codes of a folder that has changed: only what is new is read, and nothing is lost on the way."""

import re
import shutil

import numpy as np
import pytest

from export import folders
from export.arrays import unpack_id
from export.codes import read_rejects, read_shards
from export.encode import streaming, update
from export.encoder import encode_images
from export.index import load_index
from export.kept import unpack
from hqc_tf.data import catalog
from tests.support import commands


@pytest.fixture
def grown(encoder, photos, tmp_path):
    """Arguments of a command whose folder has changed since it ran: two more, one bad, one gone."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    images = catalog.load_images(f"folder:{folder}")
    arguments = (
        f"--saved_model={encoder.path}", f"--input=folder:{folder}", f"--output={tmp_path}/codes",
    )  # fmt: skip
    done = commands.run("export.encode", *arguments, "--num_shards=2", "--keep=int8")
    assert done.status == 0, done.stderr
    for name in ("first.png", "last.png"):
        shutil.copy(folder / images.ids[3], folder / name)
    (folder / "bad.png").write_bytes(b"no image")
    (folder / images.ids[7]).unlink()
    return folder, tmp_path / "codes", arguments


@pytest.mark.long
def test_new_images_are_read_and_the_others_keep_their_codes(encoder, grown, monkeypatch):
    folder, codes, arguments = grown
    seen, encode = [], streaming._encode_batch
    monkeypatch.setattr(
        streaming,
        "_encode_batch",
        lambda e, items: seen.append(len(items)) or encode(e, items),
    )
    done = commands.run("export.encode", *arguments, "--update", "--num_shards=3")
    assert done.status == 0, done.stderr
    assert "61 images in 3 shards, 1 rejected" in done.stdout
    assert done.stdout.endswith("; 3 images read\n") and sum(seen) == 3
    (folder / "bad.png").unlink()
    images = catalog.load_images(f"folder:{folder}")
    found = read_shards(codes)
    shards, embeddings = found.shards, encode_images(encoder, images).embeddings
    kept = np.concatenate([shard.kept for shard in shards])
    assert found.keep == "int8"
    np.testing.assert_allclose(
        unpack(kept, "int8"), embeddings, atol=np.abs(embeddings).max() / 200
    )
    names = [unpack_id(name) for shard in shards for name in shard.ids.to_pylist()]
    assert names == images.ids
    found = np.concatenate([shard.codes for shard in shards])
    np.testing.assert_array_equal(found, encode_images(encoder, images).codes)
    assert [reject.id for reject in read_rejects(codes)] == ["bad.png"]
    assert [path.name for path in codes.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.long
def test_stopped_before_its_end_it_leaves_the_old_codes_and_resumes(grown, monkeypatch):
    _, codes, arguments = grown
    before = {path.name: path.read_bytes() for path in codes.iterdir()}
    with monkeypatch.context() as patch:
        turns = []

        def fail(*given):
            turns.append(given)
            raise KeyboardInterrupt

        patch.setattr(streaming, "_encode_batch", fail)
        assert commands.run("export.encode", *arguments, "--update").status == 130
    assert len(turns) == 1
    assert {path.name: path.read_bytes() for path in codes.iterdir()} == before
    done = commands.run("export.encode", *arguments, "--update")
    assert done.status == 0 and "61 images" in done.stdout, done.stderr


def test_a_folder_that_changes_after_an_update_was_stopped_is_listed_again(grown, monkeypatch):
    folder, codes, own = grown
    arguments = *own, "--num_shards=2", "--keep=int8"
    with monkeypatch.context() as patch:
        patch.setattr(update, "_encode_unknown", stopped)
        assert commands.run("export.encode", *arguments, "--update").status == 130
    shutil.copy(folder / "first.png", folder / "newest.png")
    (folder / "last.png").unlink()
    done = commands.run("export.encode", *arguments)
    told = f"folder:{folder}: has other files by now; --update encodes those that are new\n"
    assert "all done already" in done.stdout and done.stderr.endswith(told)
    done = commands.run("export.encode", *arguments, "--update")
    assert done.status == 0, done.stderr
    ids = {unpack_id(name) for part in read_shards(codes).shards for name in part.ids.to_pylist()}
    assert len(ids) == 61 and {"first.png", "newest.png"} < ids and "last.png" not in ids
    done = commands.run("export.encode", *arguments)
    assert "all done already" in done.stdout and not done.stderr


def stopped(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("removed", [[], ["manifest.json", "inputs.arrow"]])
def test_killed_after_the_exchange_the_old_codes_are_not_taken_for_new(grown, monkeypatch, removed):
    folder, codes, arguments = grown

    def killed(path, **_):
        for name in removed:
            (path / name).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders.shutil, "rmtree", killed)
        assert commands.run("export.encode", *arguments, "--update").status == 130
    assert [path for path in codes.parent.iterdir() if path.name.startswith(".codes.update")]
    shutil.copy(folder / "first.png", folder / "newest.png")
    done = commands.run("export.encode", *arguments, "--update")
    assert done.status == 0, done.stderr
    # The second reads the bad one again.
    assert "62 images" in done.stdout and done.stdout.endswith("; 2 images read\n")
    assert [path.name for path in codes.parent.iterdir() if path.name.startswith(".")] == []


def test_a_link_to_codes_stays_one(grown, tmp_path):
    _, codes, (saved_model, source, _) = grown
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere/link"
    link.symlink_to(codes)
    done = commands.run("export.encode", saved_model, source, f"--output={link}", "--update")
    assert done.status == 0 and "61 images" in done.stdout, done.stderr
    assert link.is_symlink() and [path.name for path in link.parent.iterdir()] == ["link"]
    assert sum(len(shard.codes) for shard in read_shards(codes).shards) == 61


def test_codes_on_a_mount_point_are_refused_at_once(grown, monkeypatch):
    _, codes, arguments = grown
    monkeypatch.setattr("os.path.ismount", lambda path: str(path) == str(codes))
    monkeypatch.setattr(streaming, "_encode_batch", lambda *_: 1 / 0)
    done = commands.run("export.encode", *arguments, "--update")
    assert done.status == 2
    assert f"{codes}: a mount point cannot be replaced; name a folder in it" in done.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--keep=none", "--keep=none: .* has --keep=int8, which an update does not change; leave"),
        ("--keep=float16", "--keep=float16: .* has --keep=int8"),
        ("--data_dir=x", "--data_dir=x: --update takes folder:PATH or a pattern, which have none"),
        ("--image_feature=x", "--image_feature=x: --update takes"),
        ("--id_feature=x", "--id_feature=x: --update takes"),
    ],
)
def test_what_an_update_cannot_follow_is_refused(grown, flag, message):
    _, codes, arguments = grown
    before = {path.name: path.read_bytes() for path in codes.iterdir()}
    done = commands.run("export.encode", *arguments, "--update", flag)
    assert done.status == 2 and re.search(message, done.stderr), done.stderr
    assert {path.name: path.read_bytes() for path in codes.iterdir()} == before


def test_other_codes_are_not_updated(grown, tmp_path):
    folder, _, arguments = grown
    shutil.copytree(folder, tmp_path / "other")
    saved_model, _, output = arguments
    done = commands.run(
        "export.encode", saved_model, f"--input=folder:{tmp_path}/other", output, "--update"
    )
    assert done.status == 2 and "error: --update: what is encoded of" in done.stderr


@pytest.mark.long
def test_a_prefix_keeps_the_ids_of_two_folders_apart(encoder, photos, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(photos, first)
    names = catalog.load_images(f"folder:{photos}").ids
    second.mkdir()
    # Equal names with other images.
    for name, of in zip(names[:3], names[5:8], strict=True):
        (second / name).parent.mkdir(exist_ok=True)
        shutil.copy(photos / of, second / name)
    own = f"--saved_model={encoder.path}", f"--output={tmp_path}/index"
    codes = f"--output={tmp_path}/codes", f"--saved_model={encoder.path}"
    assert commands.run("export.index", f"--dataset=folder:{first}", *own).status == 0
    again = commands.run("export.index", f"--dataset=folder:{second}", *own, "--append")
    assert again.status == 2 and "--id_prefix" in again.stderr
    both = commands.run(
        "export.index", f"--dataset=folder:{second}", *own, "--append", "--id_prefix=second/"
    )
    assert both.status == 0, both.stderr
    encode = f"--input=folder:{second}", "--id_prefix=phone/"
    assert commands.run("export.encode", *encode, *codes).status == 0
    (second / "new.png").write_bytes((photos / names[9]).read_bytes())
    done = commands.run("export.encode", *encode, *codes, "--update")
    assert done.status == 0 and done.stdout.endswith("; 1 images read\n"), done.stderr
    ids = [
        unpack_id(x)
        for shard in read_shards(tmp_path / "codes").shards
        for x in shard.ids.to_pylist()
    ]
    assert ids == sorted(f"phone/{name}" for name in [*names[:3], "new.png"])
    other = commands.run("export.encode", f"--input=folder:{second}", *codes, "--update")
    assert other.status == 2 and "what is encoded" in other.stderr
    found = load_index(tmp_path / "index").ids.to_pylist()
    assert [unpack_id(x) for x in found[-3:]] == [f"second/{name}" for name in names[:3]]
