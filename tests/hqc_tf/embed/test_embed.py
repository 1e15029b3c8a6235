"""Images embedded once: roles, views, resume, refusals, and the way to a search."""

import dataclasses
import json
import os
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from export.encoder import encode_images, load_encoder
from export.saved_model import export_encoder
from hqc_tf import embed
from hqc_tf.data import batches, catalog, features, screening
from hqc_tf.data.features import shards
from hqc_tf.data.images import Images
from hqc_tf.data.views import changed_views, numbered_views, training_views
from hqc_tf.embed.plan import make_plan
from hqc_tf.errors import UserError
from hqc_tf.train import train_and_evaluate
from hqc_tf.workdir import load, read_epochs, read_metrics, read_settings
from tests.support import commands
from tests.support.networks import TWO_CONVOLUTIONS

VIEWS = 3


@pytest.fixture(scope="module")
def own(tiny_config, photos, tmp_path_factory):
    """Settings of images, one of which is broken, in sub-folders that are labels."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    shutil.copytree(photos, folder)
    (folder / "class1" / "bad.png").write_bytes(b"no image")
    # Of another size.
    PIL.Image.effect_mandelbrot((40, 20), (-2, -1.5, 1, 1.5), 9).save(folder / "class1/a.png")
    return tiny_config(dataset=f"folder:{folder}", held_out=6)


@pytest.fixture(scope="module")
def made(own, tmp_path_factory):
    """The folder of their features, in shards of 64 images' bytes and less."""
    output = tmp_path_factory.mktemp("features") / "f"
    embed.embed_dataset(own, str(output), VIEWS, "float32")
    return output


@pytest.fixture(scope="module")
def run(made, own, tmp_path_factory):
    """A run trained on them."""
    folder = tmp_path_factory.mktemp("run")
    plain = {"feature_dropout": 0.0, "image_size": 32, "backbone": "resnet18_cifar"}
    plain |= {"backbone_width": 64}
    settings = dataclasses.replace(own, dataset=f"features:{made}", checkpoint_steps=3, **plain)
    train_and_evaluate(settings, folder)
    return settings, folder


@pytest.mark.long
def test_roles_labels_and_protocol_are_those_of_the_images(own, made):
    dataset = f"features:{made}"
    rejected = frozenset(["class1/bad.png"])
    for role in ("train", "database", "query"):
        images = catalog.load_split(own.dataset, role, rejected=rejected)
        found = catalog.load_split(dataset, role)
        assert found.ids == images.ids and found.label_names == images.label_names
        np.testing.assert_array_equal(found.labels, images.labels)
    assert catalog.protocol(dataset) == catalog.protocol(own.dataset)
    assert len(catalog.load_images(dataset)) == 61
    queries = catalog.load_images(f"{dataset}/query")
    assert queries.ids == catalog.load_split(dataset, "query").ids
    assert json.loads((made / "rejects.jsonl").read_text())["id"] == "class1/bad.png"


def test_vectors_are_the_network_s_of_the_plain_and_of_the_random_views(own, made):
    images = catalog.load_images(f"features:{made}")
    pictures = catalog.load_split(own.dataset, "train", rejected=frozenset(["class1/bad.png"]))
    network = embed.build_network(own)
    (views,) = batches.plain_batches(pictures, *own.plain_sizes, 100)
    row = [images.ids.index(name) for name in pictures.ids]
    plain = features.gather(images, np.array(row))
    np.testing.assert_allclose(plain, network(views), rtol=1e-4, atol=1e-5)
    each = [features.gather(images, np.arange(61), view) for view in range(1 + VIEWS)]
    for one in range(1 + VIEWS):
        for other in range(one):
            assert np.abs(each[one] - each[other]).max() > 1e-3


@pytest.mark.long
def test_a_view_depends_on_its_image_and_number_alone(own):
    images = make_images(own)

    def views(first, last, count, batch):
        found = numbered_views(images, own, first, last, count, batch)
        each = np.concatenate([*found.as_numpy_iterator()])[: (last - first) * (1 + count)]
        return each.reshape(last - first, 1 + count, 8, 8, 3)

    whole = views(0, 140, 3, 7)
    np.testing.assert_allclose(views(64, 100, 2, 5), whole[64:100, :3], atol=1e-6)
    np.testing.assert_allclose(views(0, 3, 0, 2), whole[:3, :1], atol=1e-6)
    assert whole.min() >= 0 and whole.max() <= 1
    again = views(0, 140, 3, 7)
    np.testing.assert_array_equal(again, whole)


def make_images(own):
    return Images.of_pixels(np.random.default_rng(1).integers(0, 256, [140, 9, 9, 3], np.uint8))


@pytest.mark.long
def test_stopped_anywhere_the_same_command_makes_the_same_files(own, made, tmp_path, monkeypatch):
    # An image takes 1 + 3 vectors of 4 numbers, so that a shard has a block of 64.
    images = make_images(own)
    plan = embed.Plan(images, np.full(140, 7, np.uint8))
    monkeypatch.setattr(embed, "make_plan", lambda settings, folder: plan)
    monkeypatch.setattr(embed, "SHARD_BYTES", 64 * 64)
    manifest = embed.embed_dataset(own, str(tmp_path / "whole"), VIEWS, "float32")
    assert (manifest.shards, manifest.images) == (3, 140)
    write, written = shards.write_shard, []

    def stop(folder, number, *rest):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(number)
        write(folder, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            embed.embed_dataset(own, str(tmp_path / "parts"), VIEWS, "float32")
    with pytest.raises(UserError, match="at least 2 of 3 shards are missing, the first is feat"):
        features.read_folder(str(tmp_path / "parts"))
    embed.embed_dataset(own, str(tmp_path / "parts"), VIEWS, "float32")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "parts").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    read = features.read_folder(str(tmp_path / "parts")).images
    assert read.features.shape == (140 * 4, manifest.width) and read.ids[139] == "139"
    rows = np.array([139, 3, 70])
    some = features.gather(read, rows, np.array([0, 3, 1]))
    for at, (row, view) in enumerate([(139, 0), (3, 3), (70, 1)]):
        np.testing.assert_array_equal(some[at], features.gather(read, np.array([row]), view)[0])


@pytest.mark.long
def test_half_the_bytes_are_float16(own, made, tmp_path):
    done = commands.run(
        "hqc_tf.embed", f"--dataset={own.dataset}", "--image_size=8", "--backbone_width=2",
        f"--backbone={TWO_CONVOLUTIONS}", f"--output={tmp_path}/f", "--views=0",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert f"61 images in 1 shard, 1 x 4 float16 each, 1 rejected ({tmp_path}/f" in done.stdout
    half = catalog.load_images(f"features:{tmp_path}/f")
    assert half.features.dtype == np.float16
    full = catalog.load_images(f"features:{made}")
    rows = np.arange(61)
    np.testing.assert_allclose(
        features.gather(half, rows), features.gather(full, rows), rtol=1e-3, atol=1e-4
    )


def test_a_folder_of_images_may_move_before_all_is_embedded(own, made, tmp_path, monkeypatch):
    output, moved = tmp_path / "f", tmp_path / "moved"
    shutil.copytree(made, output)
    (output / "features-00000-of-00001.arrow").unlink()
    shutil.copytree(own.dataset.removeprefix("folder:"), moved)
    settings = dataclasses.replace(own, dataset=f"folder:{moved}")
    missing = []
    embed.embed_dataset(
        settings, str(output), VIEWS, "float32", lambda _, numbers: missing.extend(numbers)
    )
    assert missing == [0]
    assert shards.read_manifest(output).dataset == f"folder:{moved}"
    (moved / "class1/a.png").unlink()
    with pytest.raises(UserError, match="not the files that this run began with: 1 missing"):
        embed.embed_dataset(settings, str(output), VIEWS, "float32")


def test_what_does_not_fit_is_one_line(own, made, tmp_path):
    def refused(message, settings=own, output=made, views=VIEWS, dtype="float32"):
        with pytest.raises(UserError, match=message):
            embed.embed_dataset(settings, str(output), views, dtype)

    refused("--views=1: training compares two random views; give 0, or 2", views=1)
    refused("f: was begun with views 3, not 2; name another folder", views=2)
    refused("was begun with dtype float32, not float16", dtype="float16")
    other = dataclasses.replace(own, precision="mixed_bfloat16")
    refused("was begun with precision float32, not mixed_bfloat16", other)
    refused("was begun with seed 1, not 2", dataclasses.replace(own, seed=2))
    refused("are features already; name images", dataclasses.replace(own, dataset="features:x.npy"))
    (tmp_path / "x").mkdir()
    (tmp_path / "x/photo.jpg").write_bytes(b"")
    refused("x: holds photo.jpg; name a new folder", output=tmp_path / "x")


@pytest.fixture
def screened(monkeypatch):
    """A list to which each screening of a data set adds its name."""
    names, find = [], screening.find_rejects

    def count(dataset, on_bad_image):
        names.append(dataset)
        return find(dataset, on_bad_image)

    monkeypatch.setattr(screening, "find_rejects", count)
    return names


def test_what_is_wrong_beside_the_images_costs_no_screening(own, tmp_path, screened):
    def refused(message, **changes):
        settings = dataclasses.replace(own, **changes)
        with pytest.raises(UserError, match=message):
            embed.embed_dataset(settings, str(tmp_path / "f"), VIEWS)
        return settings

    missing = f"saved_model:{tmp_path}/none"
    refused("no folder of a SavedModel", backbone=missing, backbone_width=64)
    refused("no such file; give a CSV file", labels=str(tmp_path / "none.csv"))
    assert not screened
    (tmp_path / "few.csv").write_text("id,label\nclass1/a.png,a\n")
    few = refused("no label for 60 of the 61", labels=str(tmp_path / "few.csv"))
    rows = [f"{name},a\n" for name in catalog.load_images(own.dataset).ids]
    (tmp_path / "few.csv").write_text("".join(["id,label\n", *rows]))
    plan = make_plan(few, tmp_path / "f")
    assert len(plan.images) == 61 and screened == [own.dataset]
    assert json.loads((tmp_path / "f/rejects.jsonl").read_text())["id"] == "class1/bad.png"


def test_before_the_first_vector_files_may_change(own, tmp_path, screened):
    folder, output = tmp_path / "photos", tmp_path / "f"
    shutil.copytree(own.dataset.removeprefix("folder:"), folder)
    settings = dataclasses.replace(own, dataset=f"folder:{folder}")
    output.mkdir()
    make_plan(settings, output)
    shutil.copy(folder / "class1/a.png", folder / "class1/bad.png")
    shutil.copy(folder / "class1/a.png", folder / "class1/new.png")
    assert len(make_plan(settings, output).images) == 63
    assert len(make_plan(settings, output).images) == 63 and len(screened) == 2


def test_labels_that_have_changed_since_are_refused(own, tmp_path):
    names = catalog.load_images(own.dataset).ids
    settings = dataclasses.replace(own, labels=str(tmp_path / "x.csv"))

    def write(labels):
        rows = [f"{name},{labels[n % 2]}\n" for n, name in enumerate(names)]
        (tmp_path / "x.csv").write_text("".join(["id,label\n", *rows]))

    def begin():
        embed.embed_dataset(settings, str(tmp_path / "f"), 0, run=lambda job, missing: None)

    write("ab")
    begin()
    begin()
    write("ba")
    with pytest.raises(
        UserError, match="f: was begun with other labels or roles of the images; re"
    ):
        begin()
    before = shards.read_manifest(tmp_path / "f")
    older = dataclasses.replace(before, roles_and_labels="")
    shards.write_manifest(tmp_path / "f", older)
    begin()


@pytest.mark.parametrize(("dtype", "fix"), [("float16", "give --dtype=f"), ("float32", "leave")])
def test_a_vector_that_cannot_be_kept_names_a_way_that_is_open(
    own, tmp_path, monkeypatch, dtype, fix
):
    plan = embed.Plan(make_images(own).take([0, 1]), np.full(2, 7, np.uint8))
    large = {"float16": 1e5, "float32": np.inf}[dtype]
    monkeypatch.setattr(embed, "make_plan", lambda settings, folder: plan)
    monkeypatch.setattr(embed, "traced", lambda network: lambda views: large + network(views))
    message = f"0, view 0: its vector has a number that is not finite in {dtype}; {fix}.* and name"
    with pytest.raises(UserError, match=message):
        embed.embed_dataset(own, str(tmp_path / "f"), 0, dtype)


def test_damage_to_a_folder_of_features_is_one_line(made, tmp_path):
    def refused(message, change):
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        shutil.copytree(made, folder)
        change(folder, folder / "features-00000-of-00001.arrow")
        with pytest.raises(UserError, match=message):
            features.read_folder(str(folder))

    def edit(**changes):
        def change(folder, _):
            found = shards.read_manifest(folder)
            shards.write_manifest(folder, dataclasses.replace(found, **changes))

        return change

    def spoil(value):
        def change(folder, _):
            manifest, (shard,) = shards.read_shards(folder)
            vectors = shard.vectors.copy()
            vectors[4, 2] = value
            shards.write_shard(folder, 0, 1, shard._replace(vectors=vectors))

        return change

    refused("arrow: cannot be read", lambda _, file: os.truncate(file, file.stat().st_size // 2))
    refused(
        "holds float32 16 numbers an image, but manifest.json says float32 4 x 3", edit(width=3)
    )
    refused(
        "has 61 images, but its manifest.json says 62; embed into a new folder", edit(images=62)
    )
    refused("is no manifest of hqc_tf.embed", edit(format="hqc-codes"))
    refused("is no manifest of hqc_tf.embed", edit(settings={}))
    refused("no manifest.json there; name a folder", lambda _, f: (_ / "manifest.json").unlink())
    refused("class0/43.png, view 2, has a number that is not finite", spoil(np.nan))
    refused("class0/43.png, view 2, has only zeros; leave it out", spoil(0))


def test_training_draws_two_different_views_of_each_image(own):
    matrix = np.random.default_rng(1).normal(size=[61 * (1 + VIEWS), 6]).astype(np.float32)
    images = Images.of_features(matrix, [*map(str, range(61))], views=VIEWS)
    known = [features.gather(images, np.arange(61), view) for view in range(1 + VIEWS)]
    np.testing.assert_array_equal(known[2], matrix[2 :: 1 + VIEWS])
    known = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in known]
    settings = dataclasses.replace(own, feature_width=6, feature_dropout=0.0, batch_size=32)
    seen = set()
    for a, b in training_views(images, settings, 0, 4).as_numpy_iterator():
        for one, other in zip(a, b, strict=True):
            found = [locate(known, view) for view in (one, other)]
            assert found[0][1] == found[1][1] and found[0][0] != found[1][0]
            seen |= {row[0] for row in found}
    assert seen == {1, 2, 3}
    (plain,) = batches.plain_batches(images, 0, 0, 61)
    np.testing.assert_array_equal(plain, features.gather(images, np.arange(61)))
    changed = np.concatenate([*changed_views(images, settings)])
    assert {locate(known, view)[0] for view in changed} <= {1, 2, 3}


def locate(known, view):
    """The view and the row of a vector."""
    distances = np.array([np.square(one - view).sum(axis=1) for one in known])
    assert distances.min() < 1e-6
    return np.unravel_index(distances.argmin(), distances.shape)


def test_choices_cover_all_views_and_differ():
    grid = np.linspace(0, 1, 101, dtype=np.float32)[:-1]
    first, second = np.meshgrid(grid, grid)
    one, other = features.choose([tf.constant(first.ravel()), tf.constant(second.ravel())], 5)
    assert {*one.numpy()} == {*other.numpy()} == {1, 2, 3, 4, 5}
    assert (one != other).numpy().all()
    assert features.choose([tf.constant([0.3])], 0)[0].numpy() == [0]


@pytest.mark.long
def test_a_run_knows_the_network_and_resumes_over_the_same_features_alone(run, made, own, tmp_path):
    settings, folder = run
    found, manifest = read_settings(folder), shards.read_manifest(made)
    assert (found.backbone, found.image_size, found.backbone_width) == (TWO_CONVOLUTIONS, 8, 2)
    assert (found.feature_width, found.backbone_digest) == (manifest.width, manifest.network)
    assert read_metrics(folder)[0].protocol == catalog.protocol(own.dataset)
    wrong = dataclasses.replace(settings, image_size=64)
    with pytest.raises(UserError, match="--image_size=64: features:.* was made with 8; leave"):
        train_and_evaluate(wrong, tmp_path / "other")

    class Stop(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == 5:
                raise KeyboardInterrupt

    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    moved = dataclasses.replace(settings, dataset=f"features:{copy}")
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(moved, tmp_path / "again", [Stop()])
    _, (shard,) = shards.read_shards(copy)
    shards.write_shard(copy, 0, 1, shard._replace(vectors=2 * shard.vectors))
    catalog._read_features_of_images.cache_clear()
    with pytest.raises(UserError, match="not the files that this run began with: 1 of other con"):
        train_and_evaluate(moved, tmp_path / "again")
    shards.write_shard(copy, 0, 1, shard)
    catalog._read_features_of_images.cache_clear()
    train_and_evaluate(moved, tmp_path / "again")
    for one, other in zip(
        load(folder).get_weights(), load(tmp_path / "again").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert read_epochs(folder) == read_epochs(tmp_path / "again")


@pytest.mark.long
def test_the_network_in_front_serves_images_by_the_same_codes(run, own, made, tmp_path):
    settings, folder = run
    path = export_encoder(folder, tmp_path / "serving", backbone=TWO_CONVOLUTIONS)
    encoder = load_encoder(path)
    images = catalog.load_split(own.dataset, "query", rejected=frozenset(["class1/bad.png"]))
    vectors = catalog.load_images(f"features:{made}/query")
    assert images.ids == vectors.ids
    by_images, by_features = (encode_images(encoder, one) for one in (images, vectors))
    np.testing.assert_allclose(by_images.embeddings, by_features.embeddings, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(by_images.codes, by_features.codes)
    head = load_encoder(export_encoder(folder, tmp_path / "serving"))
    assert head.manifest["fingerprint"] == encoder.manifest["fingerprint"]
    np.testing.assert_array_equal(encode_images(head, vectors).codes, by_features.codes)
    other = dataclasses.replace(vectors, network="0123456789abcdef0")
    with pytest.raises(UserError, match="features of network 0123456789abcdef, but .* takes"):
        encode_images(head, other)
    with pytest.raises(UserError, match="--backbone=resnet18_cifar: is network .* name that"):
        export_encoder(folder, tmp_path / "serving", backbone="resnet18_cifar")


def test_plan_takes_each_image_once_with_all_its_roles(own, tmp_path, monkeypatch):
    images = make_images(own)
    parts = {"train": [5, 3, 0], "database": [0, 1, 3, 4], "query": [9, 4]}
    monkeypatch.setattr(catalog, "load_split", lambda dataset, role, *_: images.take(parts[role]))
    plan = make_plan(dataclasses.replace(own, dataset="cifar10_protocol2"), tmp_path)
    assert plan.images.ids == ["0", "1", "3", "4", "5", "9"]
    assert plan.roles.tolist() == [3, 2, 3, 6, 1, 4]
    np.testing.assert_array_equal(plan.images.pixels, images.pixels[[0, 1, 3, 4, 5, 9]])
    # A list that names an image twice.
    parts["train"] = [5, 3, 5, 0, 3]
    again = make_plan(dataclasses.replace(own, dataset="cifar10_protocol2"), tmp_path)
    assert (again.images.ids, again.roles.tolist()) == (plan.images.ids, plan.roles.tolist())
