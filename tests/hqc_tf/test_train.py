import dataclasses
import functools
import pathlib
import shutil
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import distribute, evaluate, model, train
from hqc_tf.baselines import opq
from hqc_tf.data import catalog, decoding, roles, screening, tfds
from hqc_tf.data.images import hold_out
from hqc_tf.errors import UserError
from hqc_tf.training.callbacks import CloseEpoch
from hqc_tf.training.state import KeepState
from hqc_tf.workdir import (
    HELD_OUT_RUN,
    METRICS,
    SPEED_RUN,
    append_metrics,
    load,
    read_epochs,
    read_metrics,
    read_settings,
    read_speed,
    rejected_ids,
    saved_step,
)
from tests.support import photo_folders


@pytest.fixture(scope="module")
def settings(feature_config):
    return feature_config()


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """(the workdir of a run trained to its end, its results)."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, train.train_and_evaluate(settings, folder)


def test_training_leaves_what_the_other_commands_need(settings, trained):
    folder, (last, best) = trained
    assert read_settings(folder) == settings
    assert saved_step(folder) == last.step > 0
    assert saved_step(folder, "best") == best.step > 0
    assert (last.weights, best.weights) == ("last", "best")
    assert 0 <= last.mean_average_precision <= 1
    untrained = model.build_model(settings)
    assert not np.array_equal(untrained.quantizer.codebooks, load(folder).quantizer.codebooks)
    # The data may move, but the settings may not change.
    moved = dataclasses.replace(settings, data_dir="elsewhere")
    assert train.train_and_evaluate(moved, folder)[0].step == saved_step(folder)
    with pytest.raises(UserError, match="made with --seed=1, not 2; take another --workdir"):
        train.train_and_evaluate(dataclasses.replace(settings, seed=2), folder)


def test_the_flags_of_a_workdir_repeat_the_run(trained, tmp_path):
    folder, _ = trained
    train.train_and_evaluate(read_settings(folder), tmp_path)
    for one, other in zip(load(folder).get_weights(), load(tmp_path).get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_results_of_another_evaluation_are_not_the_runs(settings, trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    for other in ({"changed": {"dataset": "folder:other"}}, {"top_k": 1}, {"distance": "l2"}):
        if getattr(trained[1][0], next(iter(other))) != next(iter(other.values())):
            append_metrics(folder, dataclasses.replace(trained[1][0], **other))
    assert train.train_and_evaluate(settings, folder) == trained[1]
    with pytest.raises(UserError, match="--feature_width=12: folder:.*x has images, no features"):
        train.train_and_evaluate(dataclasses.replace(settings, dataset="folder:x"), tmp_path / "x")


@pytest.mark.long
def test_a_run_killed_at_the_end_of_its_epochs_goes_on(settings, tmp_path):
    """In each of them before it is closed, and then before its state is saved."""

    def train_until(epoch_of_death, before):
        whole = before.on_epoch_end

        def die(callback, epoch, logs=None):
            if epoch == epoch_of_death:
                raise KeyboardInterrupt
            whole(callback, epoch, logs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(before, "on_epoch_end", die)
            with pytest.raises(KeyboardInterrupt):
                train.train_and_evaluate(settings, tmp_path)

    for epoch in (0, 1):
        for before in (CloseEpoch, KeepState):
            train_until(epoch, before)
    last, _ = train.train_and_evaluate(settings, tmp_path)
    assert last.step == saved_step(tmp_path) == 24
    assert [line.epoch for line in read_epochs(tmp_path)] == [0, 1]
    assert [line.epoch for line in read_speed(tmp_path)] == [0, 1]
    assert len(list((tmp_path / SPEED_RUN).glob("events.*"))) == 1


def test_rows_without_labels_are_judged_without(settings, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=[30, 12]))
    unlabeled = dataclasses.replace(settings, dataset=f"features:{tmp_path}/x.npy")
    last, best = train.train_and_evaluate(unlabeled, tmp_path / "run")
    assert saved_step(tmp_path / "run") == last.step == 12
    assert last.mean_average_precision is None
    assert (best.held_out, len(best.perplexity)) == (3, 2)


def test_too_few_images_are_refused_before_the_workdir_is_claimed(settings, tmp_path):
    large = dataclasses.replace(settings, batch_size=10_000)
    with pytest.raises(UserError, match="--batch_size=10000: there are only 49 images"):
        train.train_and_evaluate(large, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_among_its_photos_is_refused_before_its_folder_is_made(quick_config, photos):
    with pytest.raises(UserError, match="--workdir=.*run: lies in --dataset=folder:"):
        train.train_and_evaluate(quick_config(dataset=f"folder:{photos}"), photos / "run")
    assert not (photos / "run").exists()


def test_queries_and_labels_are_read_before_training(settings, tmp_path):
    for name in ("queries", "labels"):
        wrong = dataclasses.replace(settings, **{name: f"features:{tmp_path}/none.npy"})
        with pytest.raises(UserError, match="none.npy"):
            train.train_and_evaluate(wrong, tmp_path / "run")
        assert not (tmp_path / "run/flags.txt").exists()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"train_backbone": "last:99"}, "--train_backbone=last:99"),
        ({"batch_size": 61}, "--batch_size=61: there are only 60 images"),
        ({"labels": "none.csv"}, "--labels=.*none.csv: no such file"),
        ({"queries": "folder:none"}, "folder:.*none: no such folder"),
        ({"refit": "opq"}, "--refit=opq: FAISS is missing"),
        ({"optimizer": "lamb"}, "--optimizer=lamb: needs TensorFlow Addons"),
    ],
)
def test_what_does_not_fit_is_said_before_all_images_are_checked(
    quick_config, photos, tmp_path, monkeypatch, wrong, error
):
    monkeypatch.setattr(screening, "find_rejects", lambda *_: pytest.fail("were checked"))
    monkeypatch.setattr(opq, "is_installed", lambda: False)
    monkeypatch.setitem(sys.modules, "tensorflow_addons", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=error):
        train.train_and_evaluate(quick_config(dataset=f"folder:{photos}", **wrong), "run")
    assert not (tmp_path / "run").exists()


def test_an_interrupt_ends_the_check_of_all_images(quick_config, photos, tmp_path, monkeypatch):
    def interrupt(batch):
        # Signals reach the main thread alone.
        assert threading.current_thread() is threading.main_thread()
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "decodable", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(quick_config(dataset=f"folder:{photos}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def write_labels(path, source, kinds):
    lines = [f"{source}:{row},kind {row % kinds}" for row in range(60)]
    path.write_text("\n".join(["id,label", *lines]))
    return str(path)


def test_no_figure_is_that_of_other_labels(settings, features, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    x = tmp_path / "x.npy"
    np.save(x, catalog.load_images(features).features)
    labels = [write_labels(tmp_path / f"{kinds}.csv", x, kinds) for kinds in (2, 6)]
    own = dataclasses.replace(settings, dataset=f"features:{x}", labels=labels[0], epochs=1)
    first, _ = train.train_and_evaluate(own, tmp_path / "run")
    own = dataclasses.replace(own, labels=labels[1])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate, "evaluate_workdir", killed)
        train.train_and_evaluate(own, tmp_path / "run")
    # The states of a finished run may be removed: it is not trained again for other labels.
    shutil.rmtree(tmp_path / "run/checkpoints/state")
    lines = read_epochs(tmp_path / "run")
    results = train.train_and_evaluate(own, tmp_path / "run")
    assert results[0].protocol.endswith("labels of 6.csv")
    assert results[0].chance != first.chance
    assert read_epochs(tmp_path / "run") == lines
    assert train.train_and_evaluate(own, tmp_path / "run") == results
    write_labels(tmp_path / "6.csv", x, 2)
    again = train.train_and_evaluate(own, tmp_path / "run")
    assert again[0].chance == first.chance
    # A finished run does not need the file.
    (tmp_path / "6.csv").unlink()
    assert train.train_and_evaluate(own, tmp_path / "run") == again


def test_figures_that_cannot_be_kept_are_shown(settings, trained, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(30, "Read-only file system")

    folder = shutil.copytree(trained[0], tmp_path / "run")
    (folder / METRICS).unlink()
    monkeypatch.setattr(train, "append_metrics", fail)
    with pytest.raises(OSError, match="Read-only"):
        train.train_and_evaluate(settings, folder)
    assert capsys.readouterr().out.startswith("last, step 24: mAP@10 ")


def test_a_folder_with_files_of_others_is_refused(settings, tmp_path):
    other = tmp_path / "tensorboard/other"
    other.mkdir(parents=True)
    with pytest.raises(UserError, match="a training would remove tensorboard/other; take another"):
        train.train_and_evaluate(settings, tmp_path)
    with pytest.raises(UserError, match="--workdir=: empty; name a folder, or . for the current"):
        train.train_and_evaluate(settings, "")
    assert [*tmp_path.rglob("*")] == [other.parent, other]


def test_all_rows_are_trained_on_where_queries_are_others(
    settings, features, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", catalog.load_images(features).features)
    own = dataclasses.replace(
        settings, queries="features:x.npy", dataset="features:x.npy", epochs=1
    )
    last, _ = train.train_and_evaluate(own, "run")
    assert (last.step, last.mean_average_precision) == (13, None)  # of 54 rows, 6 held out
    kept = read_settings("run")
    assert kept.queries == kept.dataset == f"features:{tmp_path}/x.npy"
    # Others may take their place, and what is trained on stays.
    shutil.copy("x.npy", "y.npy")
    moved = dataclasses.replace(own, queries="features:y.npy")
    assert train.train_and_evaluate(moved, "run")[0].step == 13
    with pytest.raises(UserError, match="made with --queries=features:.*y.npy, not ;"):
        train.train_and_evaluate(dataclasses.replace(own, queries=""), "run")


@pytest.mark.parametrize("name", ["run [v2]", "run*", "a\\b", "run\udcff"])
def test_a_name_that_cannot_be_read_back_is_refused_before_anything_is_written(
    settings, tmp_path, name
):
    with pytest.raises(UserError, match="--workdir=.*; rename"):
        train.train_and_evaluate(settings, tmp_path / name)
    with pytest.raises(UserError, match="--workdir=.*; rename"):
        load(tmp_path / name)
    assert not any(tmp_path.iterdir())


def killing_after(epoch):
    def kill(number, logs):
        if number == epoch:
            raise KeyboardInterrupt

    return tf.keras.callbacks.LambdaCallback(on_epoch_end=kill)


@pytest.mark.long
def test_a_run_resumes_only_over_the_files_it_began_with(quick_config, photos, tmp_path):
    copy = tmp_path / "photos"
    copy.mkdir()
    for photo in sorted(photos.rglob("*.png"))[:8]:
        shutil.copy(photo, copy)
    settings = quick_config(dataset=f"folder:{copy}", checkpoint_steps=1, held_out=0)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(settings, tmp_path / "run", [killing_after(0)])
    files = sorted(copy.iterdir())
    shutil.copy(files[0], copy / "new.png")
    before = load(tmp_path / "run", "last").quantizer.codebooks.numpy()
    with pytest.raises(UserError, match=r"1 added \(new.png\); restore them, or take"):
        train.train_and_evaluate(settings, tmp_path / "run")
    np.testing.assert_array_equal(load(tmp_path / "run", "last").quantizer.codebooks, before)
    (copy / "new.png").unlink()
    # The same files elsewhere are the same data set.
    moved = copy.rename(tmp_path / "moved")
    settings = dataclasses.replace(settings, dataset=f"folder:{tmp_path}/./moved/")
    assert train.train_and_evaluate(settings, tmp_path / "run")[0].step == 4
    assert f"--dataset=folder:{moved}\n" in (tmp_path / "run/flags.txt").read_text()
    # A finished run needs no files, but not another folder.
    (moved / files[0].relative_to(copy)).unlink()
    assert train.train_and_evaluate(settings, tmp_path / "run")[0].step == 4
    with pytest.raises(UserError, match="not the files that this run began with: .*8 missing"):
        other = dataclasses.replace(settings, dataset=f"folder:{tmp_path / 'run'}")
        train.train_and_evaluate(other, tmp_path / "run")


def test_a_second_training_in_a_workdir_is_refused(settings, tmp_path):
    def train_too(*_):
        with pytest.raises(UserError, match="another training runs there; wait for its end"):
            train.train_and_evaluate(settings, tmp_path)
        refused.append(True)

    refused = []
    callback = tf.keras.callbacks.LambdaCallback(on_epoch_begin=train_too)
    train.train_and_evaluate(settings, tmp_path, [callback])
    assert len(refused) == 2


@pytest.mark.long
def test_names_of_images_need_not_be_utf8(quick_config, photos, tmp_path):
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        copy = tmp_path / "photos" / f"{path.parent.name}\udcff" / f"{number}\udce9\n.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (copy.parent / "broken\udce9.png").write_bytes(b"no image")
    settings = quick_config(dataset=f"folder:{tmp_path / 'photos'}", top_k=10, epochs=1)
    last, _ = train.train_and_evaluate(settings, tmp_path / "run")
    assert last.mean_average_precision and read_metrics(tmp_path / "run")
    assert rejected_ids(tmp_path / "run") == {f"{copy.parent.name}/broken\udce9.png"}
    metadata = (tmp_path / "run" / HELD_OUT_RUN / "metadata.tsv").read_text()
    assert r"\udcff/" in metadata and r"\udce9\n.png" in metadata
    train.train_and_evaluate(settings, tmp_path / "run")


def test_bfloat16_that_gains_nothing_becomes_float32_once(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distribute, "gains_from_bfloat16", lambda: False)
    wanted = dataclasses.replace(settings, precision="mixed_bfloat16", epochs=1)
    train.train_and_evaluate(wanted, tmp_path / "run")
    assert "no faster on this device; using float32" in capsys.readouterr().err
    assert read_settings(tmp_path / "run").precision == "float32"
    # The same command goes on with what the run was made with, also where that is another device.
    monkeypatch.setattr(distribute, "gains_from_bfloat16", lambda: True)
    assert train.train_and_evaluate(wanted, tmp_path / "run")[0].step == 12
    assert f"bfloat16: {tmp_path}/run began with float32 and keeps it" in capsys.readouterr().err
    train.train_and_evaluate(wanted, tmp_path / "other")
    monkeypatch.setattr(distribute, "gains_from_bfloat16", lambda: False)
    assert train.train_and_evaluate(wanted, tmp_path / "other")[0].step == 12
    assert read_settings(tmp_path / "other").precision == "mixed_bfloat16"


def test_a_finished_run_does_without_its_features(settings, features, tmp_path):
    source = pathlib.Path(features.removeprefix("features:"))
    own = shutil.copy(source, tmp_path / source.name)
    moved = dataclasses.replace(settings, dataset=f"features:{own}", feature_width=0, epochs=1)
    results = train.train_and_evaluate(moved, tmp_path / "run")
    pathlib.Path(own).unlink()
    assert train.train_and_evaluate(moved, tmp_path / "run") == results
    with pytest.raises(UserError, match="--feature_width=7: .* has 12 numbers a row"):
        train.train_and_evaluate(dataclasses.replace(moved, feature_width=7), tmp_path / "run")


@pytest.mark.long
def test_a_refit_that_is_gone_is_done_again_without_training(quick_config, photos, tmp_path):
    """Also where the states are gone; TensorBoard shows what the refit made."""
    changes = {"dataset": f"folder:{photos}", "refit": "opq", "mirror_mean": True, "epochs": 1}
    settings = quick_config(**changes, top_k=10)
    train.train_and_evaluate(settings, tmp_path)
    refitted = load(tmp_path, "last")
    lines, folder = read_epochs(tmp_path), tmp_path / "checkpoints"
    held = hold_out(roles.load_role(settings, "train"), settings.held_out)[1]
    shown = np.loadtxt(tmp_path / HELD_OUT_RUN / "embedding.tsv", ndmin=2)
    np.testing.assert_allclose(shown, refitted.encode_images(held).embeddings, rtol=1e-4, atol=1e-5)
    for name in ("best_refitted", "last_refitted", "state"):
        shutil.rmtree(folder / name)
    train.train_and_evaluate(settings, tmp_path)
    for one, other in zip(load(tmp_path, "last").weights, refitted.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert read_epochs(tmp_path) == lines and not any(folder.glob("state/*.index"))
    assert len(read_metrics(tmp_path)) == 4


def test_the_probe_of_bfloat16_answers_without_failing():
    assert distribute.gains_from_bfloat16() in (True, False)


@pytest.fixture
def few_flickr25k(tmp_path):
    """data_dir of the lists of FLICKR25K at full length, which name eight photos."""
    names = [f"im{number}.jpg" for number in range(8)]
    photo_folders.write_flickr25k_lists(tmp_path / "flickr25k", names)
    photo_folders.write_photos(tmp_path / "flickr25k", names)
    return str(tmp_path)


# One in memory with a label an image, and one of files with several; the others' roles are tested
# where they are read.
@pytest.mark.parametrize(
    ("dataset", "source"), [("fashion_mnist", "fashion_mnist_dir"), ("flickr25k", "few_flickr25k")]
)
def test_a_data_set_trains_a_step_and_is_judged(
    dataset, source, quick_config, tmp_path, monkeypatch, request
):
    whole, read = catalog.load_split, tfds.read_tfds
    # The first 40 of 60,000 are decoded.
    monkeypatch.setattr(tfds, "read_tfds", lambda name, split, at: read(name, f"{split}[:40]", at))

    @functools.cache
    def few(*arguments):
        images = whole(*arguments)
        return images.take(np.arange(0, len(images), len(images) // 40)[:40])

    monkeypatch.setattr(catalog, "load_split", few)
    settings = quick_config(
        dataset=dataset,
        data_dir=request.getfixturevalue(source),
        batch_size=36,
        epochs=1,
        held_out=0,
        top_k=10,
    )
    last, best = train.train_and_evaluate(settings, tmp_path / "run")
    assert last.step == best.step == 1
    assert last.protocol == catalog.protocol(dataset)
    assert 0 <= last.mean_average_precision <= 1
