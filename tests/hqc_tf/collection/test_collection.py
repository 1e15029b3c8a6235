"""A folder of photos becomes a collection, and stays one as the folder changes."""

import json
import os
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from export.codes import read_shards
from export.encode import streaming, update
from export.encoder import encode_images, load_encoder
from export.index import load_index
from hqc_tf import collection, embed
from hqc_tf.data import catalog
from hqc_tf.data.features import shards
from hqc_tf.errors import UserError
from hqc_tf.workdir import read_files, read_settings, rejected_ids
from tests.support import commands
from tests.support.networks import TWO_CONVOLUTIONS

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("same_random_numbers")]

QUICK = {
    "backbone": TWO_CONVOLUTIONS,
    "backbone_width": 2,
    "image_size": 8,
    "epochs": 1,
    "instance_embedding_weight": 0.0,
    "consistency_weight": 0.0,
    "part_neighbor_weight": 0.0,
    "codeword_diversity_weight": 0.0,
    "decorrelation_weight": 0.0,
    "joint_views": True,
    "refit": "none",
}


@pytest.fixture(autouse=True)
def same_policy(set_policy):
    """Training sets Keras' global policy."""


def copy_some(photos, count, folder):
    folder.mkdir()
    for path in sorted(photos.rglob("*.png"))[:count]:
        shutil.copy(path, folder)


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """A folder of 30 photos and the collection of it, made by the command."""
    folder = tmp_path_factory.mktemp("collection") / "photos"
    copy_some(photos, 30, folder)
    flags = [f"--{name}={value}" for name, value in QUICK.items()]
    album = folder.with_name("album")
    done = commands.run("hqc_tf.collection", f"folder:{folder}", f"--output={album}", *flags)
    assert done.status == 0, done.stderr
    return folder, album, done


@pytest.fixture
def copied(made, tmp_path):
    """As `made`, to be changed."""
    folder, album, _ = made
    shutil.copytree(album, tmp_path / "album")
    # Times of files are part of what is known of them.
    shutil.copytree(folder, tmp_path / "aside", copy_function=shutil.copy2)
    yield folder, tmp_path / "album"
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "aside", folder, copy_function=shutil.copy2)


def itself_first(folder, album):
    index = load_index(album / "index")
    images = catalog.load_images(f"folder:{folder}")
    embeddings = encode_images(load_encoder(album / "serving"), images).embeddings
    found, _ = index.search(embeddings, 1, rescore=index.default_rescore)
    assert index.num_images == len(images)
    return np.mean([names == [own] for names, own in zip(found, images.ids, strict=True)])


def test_each_photo_is_its_own_first_result_and_the_next_commands_are_told(made):
    folder, album, done = made
    assert itself_first(folder, album) > 0.95
    lines = done.stdout.splitlines()
    assert f"{album}: 30 photos to search, 30 of them read now" in lines
    assert [line.split()[0] for line in lines[-3:]] == ["search", "look", "update"]
    said = done.stderr.splitlines()
    assert said[0] == f"photos: 30 files of folder:{folder}"
    for stage in ("training", "exporting the encoder", "encoding", "indexing", "drawing"):
        assert stage in said
    with PIL.Image.open(album / "neighbors.png") as picture:
        assert picture.width > 300
    assert "<html" in (album / "report.html").read_text()
    done = commands.run("export.search", f"--index={album}/index", min(folder.iterdir()))
    assert json.loads(done.stdout)["ids"][0] == min(folder.iterdir()).name


def test_photos_that_are_new_changed_or_gone_are_taken_in_without_training(
    copied, tmp_path, monkeypatch
):
    folder, album = copied
    # The same folder from another one.
    monkeypatch.chdir(folder.parent)
    source, album = f"folder:./{folder.name}/", pathlib.Path(os.path.relpath(album))
    assert collection.make_collection(source, album).num_read == 0
    names = sorted(path.name for path in folder.iterdir())
    before = {path: path.read_bytes() for path in (album / "run").rglob("*") if path.is_file()}
    (folder / names[0]).unlink()
    shutil.copy(folder / names[1], folder / names[2])
    shutil.copy(folder / names[1], folder / "new.png")
    # A stopped update is begun again, since its photos have changed further.
    with monkeypatch.context() as patch:
        patch.setattr(update, "_encode_unknown", lambda *given, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            collection.make_collection(source, album)
    shutil.copy(folder / names[1], folder / names[3])
    again = collection.make_collection(source, album)
    assert (again.num_images, again.num_read) == (30, 3)
    assert {path: path.read_bytes() for path in before} == before
    shards = read_shards(album / "codes").shards
    code_of = {
        name.decode(): bytes(code)
        for shard in shards
        for name, code in zip(shard.ids.to_pylist(), shard.codes, strict=True)
    }
    assert len({code_of[name] for name in (*names[1:4], "new.png")}) == 1
    assert itself_first(folder, album) > 0.8  # but for the copies
    # A folder that is gone may be at another place, with other photos.
    with pytest.raises(UserError, match=r"/aside: the collection at .*album is of folder:/"):
        collection.make_collection(f"folder:{tmp_path}/aside", album)
    (folder / "new.png").unlink()
    moved, reported = folder.rename(tmp_path / "moved"), []
    (album / "report.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(collection, "write_report", lambda *_, **given: reported.append(given))
        again = collection.make_collection(f"folder:{moved}", album)
    assert reported == [{"untrained": False, "dataset": f"folder:{moved}"}]
    assert (again.num_images, again.num_read) == (29, 0)
    assert load_index(album / "index").manifest["inputs"] == [{"folder": str(moved)}]
    assert collection.make_collection(f"folder:{moved}", album).num_read == 0
    moved.rename(folder)


def test_a_training_that_is_not_done_reads_photos_where_they_are_now(copied, tmp_path, monkeypatch):
    folder, album = copied
    (album / "run/metrics.jsonl").unlink()
    moved, trained = folder.rename(tmp_path / "moved"), []
    monkeypatch.setattr(
        collection, "train_and_evaluate", lambda own, _: trained.append(own) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        collection.make_collection(f"folder:{moved}", album)
    assert trained[0].dataset == f"folder:{moved}"
    moved.rename(folder)


def stop(*_, **__):
    raise KeyboardInterrupt


def test_photos_may_change_until_some_training_is_saved(photos, tmp_path, monkeypatch):
    folder, album = tmp_path / "photos", tmp_path / "album"
    copy_some(photos, 10, folder)
    monkeypatch.setattr(tf.keras.Model, "fit", stop)

    def make():
        collection.make_collection(f"folder:{folder}", album, **QUICK)

    with pytest.raises(KeyboardInterrupt):
        make()
    count = len(read_files(album / "run"))
    (folder / "new.png").write_bytes(b"no image")
    folder = folder.rename(tmp_path / "moved")
    with pytest.raises(KeyboardInterrupt):
        make()
    assert len(read_files(album / "run")) == count + 1
    assert rejected_ids(album / "run") == {"new.png"}
    assert read_settings(album / "run").dataset == f"folder:{folder}"
    shutil.copy(min(folder.iterdir()), folder / "newer.png")
    monkeypatch.setattr(collection, "newest_step", lambda _: 5)
    with pytest.raises(
        UserError, match=r"album/run was begun with: 1 added \(newer.png\); .* --out"
    ):
        make()


@pytest.fixture
def frozen(tmp_path):
    """Settings of a collection behind a pretrained network."""
    layers = tf.keras.layers
    image = layers.Input([16, 16, 3])
    # As a network that was trained in mixed precision.
    vector = layers.Dense(12, dtype="mixed_bfloat16")(layers.Flatten()(image))
    network = tf.keras.Model(image, vector)
    network.save(tmp_path / "net.keras")
    given = {name: QUICK[name] for name in QUICK if not name.startswith("backbone")}
    own = {"backbone": f"saved_model:{tmp_path}/net.keras", "image_size": 16, "joint_views": False}
    return given | own


def test_stopped_in_any_stage_the_same_call_resumes(photos, frozen, tmp_path, monkeypatch):
    album = tmp_path / "album"
    album.mkdir()
    # As a kill leaves it.
    (album / ".choice.json.partial").write_text("{")
    for owner, name in [
        (collection, "choose"),
        (embed, "embed_here"),
        (tf.keras.Model, "fit"),
        (tf.saved_model, "save"),
        (streaming, "write_shard"),
        (collection, "write_collection"),
        (collection, "make_gallery"),
    ]:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, stop)
            collection.make_collection(f"folder:{photos}", album, **frozen)
    made = collection.make_collection(f"folder:{photos}", album, **frozen)
    assert (made.num_images, made.num_read) == (60, 0)
    assert (album / "features/manifest.json").exists()
    assert itself_first(photos, album) > 0.95


def test_embedded_photos_may_change_before_the_training(photos, frozen, tmp_path, monkeypatch):
    folder, features = tmp_path / "photos", tmp_path / "album/features"
    copy_some(photos, 10, folder)
    monkeypatch.setattr(collection, "train_and_evaluate", stop)

    def make(embed_here):
        monkeypatch.setattr(embed, "embed_here", embed_here)
        with pytest.raises(KeyboardInterrupt):
            collection.make_collection(f"folder:{folder}", features.parent, **frozen)

    def write_ones(job, _):
        images, roles = job.plan
        vectors = np.ones([len(images), 1 + job.manifest.views, 12], np.float16)
        shards.write_shard(job.folder, 0, 1, shards.Shard(images.ids, roles, None, vectors))

    make(stop)
    shutil.copy(min(folder.iterdir()), folder / "new.png")
    folder = folder.rename(tmp_path / "moved")
    make(write_ones)
    assert len(catalog.load_images(f"features:{features}")) == 11
    (folder / "new.png").unlink()
    folder = folder.rename(tmp_path / "moved_again")
    make(lambda *_: pytest.fail("embedded again"))


def test_what_does_not_fit_is_told_before_the_work(copied, photos, tmp_path):
    _, album = copied
    with pytest.raises(UserError, match=r"folder:.*: the collection at .*album is of folder:"):
        collection.make_collection(f"folder:{photos}", album)
    kept = json.loads((album / "choice.json").read_text())
    with pytest.raises(UserError, match="--epochs=5: the collection at .* was made with 1; leave"):
        collection.make_collection(kept["source"], album, epochs=5)
    (album / "choice.json").write_text("{")
    with pytest.raises(UserError, match="choice.json"):
        collection.make_collection(kept["source"], album)
    with pytest.raises(UserError, match="holds album, no collection; name a new folder"):
        collection.make_collection(f"folder:{photos}", tmp_path)
    with pytest.raises(UserError, match="cifar10: not photos in files; give folder:PATH or a patt"):
        collection.make_collection("cifar10", tmp_path / "new")
    (tmp_path / "few").mkdir()
    with pytest.raises(UserError, match="0 images, too few"):
        collection.make_collection(f"folder:{tmp_path}/few", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    done = commands.run("hqc_tf.collection", f"--output={tmp_path}/new", "--dataset=folder:x")
    assert done.status == 2 and "--dataset=folder:x: write folder:x alone" in done.stderr
    done = commands.run("hqc_tf.collection", f"--output={tmp_path}/new")
    assert done.status == 2 and "name one folder:PATH or pattern of photos" in done.stderr
