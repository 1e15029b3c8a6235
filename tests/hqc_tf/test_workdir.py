"""The files of a run's folder, those of older versions too."""

import concurrent.futures
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import model
from hqc_tf import workdir as run
from hqc_tf.data.screening import Reject
from hqc_tf.errors import UserError
from tests.support import ROOT

LABEL_FREE = {
    "held_out": 5, "recall_at_1": 0.5, "perplexity": [1.5, 2], "quantization_error": 0.25,
}  # fmt: skip
SCORES = {
    "queries": 3, "database": 9, "top_k": 9, "mean_average_precision": 0.5, "chance": 0.25,
    "precision_at_k": {"1": 0.5},
}  # fmt: skip
RESULT = {
    "time": "now", "weights": "best", "step": 7, "protocol": "p", "bits": 4, "distance": "l2",
}  # fmt: skip


def write(folder, name, *lines):
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_epochs_with_other_loss_terms_and_fewer_figures_load(tmp_path):
    old = {"epoch": 0, "step": 3, "loss": 2, "a_former_term": 0.5}
    new = old | {"epoch": 1, "learning_rate": 0.1} | LABEL_FREE
    write(tmp_path, "epochs.jsonl", old, new)
    first, second = run.read_epochs(tmp_path)
    assert first == run.EpochLine(0, 3, {"loss": 2.0, "a_former_term": 0.5})
    assert second == run.EpochLine(1, 3, first.losses, 0.1, **LABEL_FREE)
    run.write_epochs(tmp_path, [first, second])
    assert run.read_epochs(tmp_path) == [first, second]


def test_results_with_and_without_labels_load(tmp_path):
    write(tmp_path, "metrics.jsonl", RESULT, RESULT | SCORES, RESULT | LABEL_FREE)
    before = (tmp_path / "metrics.jsonl").read_text()
    neither, labels, free = run.read_metrics(tmp_path)
    assert (neither.top_k, labels.top_k, free.top_k) == (None, 9, None)
    assert (neither.held_out, labels.held_out, free.held_out) == (None, None, 5)
    run.append_metrics(tmp_path, labels)
    assert run.read_metrics(tmp_path) == [neither, labels, free, labels]
    assert (tmp_path / "metrics.jsonl").read_text().startswith(before)


@pytest.mark.parametrize(
    ("name", "read", "line", "reason"),
    [
        ("metrics", run.read_metrics, RESULT | {"step": -1}, "Expected `int` >= 0"),
        ("metrics", run.read_metrics, RESULT | {"step": 2**63}, "Expected `int` <= "),
        ("metrics", run.read_metrics, RESULT | {"top_k": 5}, "queries, .* missing"),
        ("metrics", run.read_metrics, RESULT | {"held_out": 5}, "recall_at_1, .* missing"),
        (
            "epochs",
            run.read_epochs,
            {"epoch": 0, "step": 1, "recall_at_1": 0},
            "perplexity missing",
        ),
        ("epochs", run.read_epochs, {"epoch": 0, "step": 1, "loss": "x"}, "Expected `float`"),
        (
            "epochs",
            run.read_epochs,
            {"epoch": 0, "step": 1} | LABEL_FREE | {"perplexity": []},
            "length >= 1",
        ),
        ("speed", run.read_speed, {"epoch": 0}, "images_per_second"),
        ("rejects", run.read_rejects, {"id": 5, "reason": "r"}, "Expected `str`"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path, name, read, line, reason):
    write(tmp_path, f"{name}.jsonl", line)
    with pytest.raises(UserError, match=f"{name}.jsonl: line 1: .*{reason}"):
        read(tmp_path)


def test_rejects_and_speeds_come_back(tmp_path):
    rejects = [Reject("a\udcff.png", "empty file"), Reject("b", "broken")]
    run.write_rejects(tmp_path, rejects)
    assert run.read_rejects(tmp_path) == rejects
    assert run.rejected_ids(tmp_path) == {"a\udcff.png", "b"}
    run.write_speed(tmp_path, [run.SpeedLine(0, 9.5)])
    assert run.read_speed(tmp_path) == [run.SpeedLine(0, 9.5)]


def test_a_run_keeps_its_settings_and_only_its_data_may_move(tmp_path, small_config):
    run.check_settings(tmp_path, small_config())
    run.write_settings(tmp_path, small_config())
    assert run.read_settings(tmp_path) == small_config()
    run.check_settings(tmp_path, small_config(data_dir="moved"))
    for before, now in (("folder:a", "folder:./a//"), ("features:a.npy", "features:./a.npy")):
        run.write_settings(tmp_path, small_config(dataset=before))
        run.check_settings(tmp_path, small_config(dataset=now))
    with pytest.raises(UserError, match=r"made with --dataset=features:.*a.npy, not features:.*b"):
        run.check_settings(tmp_path, small_config(dataset="features:b.npy"))
    run.write_settings(tmp_path, small_config())
    with pytest.raises(UserError, match="made with --seed=1, not 2; take another --workdir"):
        run.check_settings(tmp_path, small_config(seed=2))


def test_weights_of_a_file_are_the_same_from_anywhere(tmp_path, small_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run.write_settings(tmp_path, small_config(backbone_weights="w.h5"))
    run.check_settings(tmp_path, small_config(backbone_weights=f"{tmp_path}/w.h5"))
    with pytest.raises(UserError, match="made with --backbone_weights=.*w.h5, not none"):
        run.check_settings(tmp_path, small_config())


def test_lines_that_are_added_at_once_all_stay(tmp_path):
    def add(_):
        run.append_metrics(tmp_path, run.Result(**RESULT))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(24)))
    assert len(run.read_metrics(tmp_path)) == 24


@pytest.mark.parametrize(
    "name", ["tensorboard/other/x", "tensorboard/events.out.1", "checkpoints/model/ckpt-5.index"]
)
def test_a_folder_whose_files_a_training_would_remove_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="no run there, and a training would remove .*; take ano"):
        run.check_unused(tmp_path)
    (tmp_path / "flags.txt").touch()
    run.check_unused(tmp_path)


def test_a_folder_that_a_training_left_early_is_taken(tmp_path):
    for name in ("tensorboard/speed/x", "tensorboard/events.out.1", "checkpoints/last/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    run.check_unused(tmp_path)


def test_weights_that_a_training_replaces_are_loaded_with_their_step(
    make_workdir, feature_config, monkeypatch
):
    """While the network is built, and then while they are read."""
    folder = make_workdir(feature_config())
    build, read = model.blank_model, run._read_weights
    other = build(feature_config())

    def build_while_others_are_saved(settings):
        made = build(settings)
        run.save_weights(other, folder, 24, "best")
        return made

    def read_while_others_are_saved(blank, place, step):
        monkeypatch.setattr(run, "_read_weights", read)
        run.save_weights(other, folder, 36, "best")
        read(blank, place, step)

    monkeypatch.setattr(model, "blank_model", build_while_others_are_saved)
    assert run.load_newest(folder).step == 24
    monkeypatch.setattr(model, "blank_model", build)
    monkeypatch.setattr(run, "_read_weights", read_while_others_are_saved)
    loaded = run.load_newest(folder)
    assert loaded.step == 36
    np.testing.assert_array_equal(loaded.model.quantizer.codebooks, other.quantizer.codebooks)


def value_at(folder, step):
    """The number that `write_value` wrote; an error where the checkpoint is damaged."""
    found = tf.Variable(0.0)
    read = tf.train.Checkpoint(value=found).read(run.checkpoint(folder, step))
    read.assert_existing_objects_matched()
    return float(found)


def write_value(folder, step, value, kept=None):
    run.write_checkpoint(tf.train.Checkpoint(value=tf.Variable(value)), folder, step, kept)


def test_checkpoints_are_found_without_tensorflows_file(tmp_path):
    assert run.saved_steps(tmp_path / "missing") == []
    for step in (5, 24, 100):
        write_value(tmp_path, step, float(step), kept=24)
    assert run.saved_steps(tmp_path) == [100, 24]
    # For other programs.
    assert tf.train.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-100")
    state = tf.train.get_checkpoint_state(tmp_path)
    assert [pathlib.Path(path).name for path in state.all_model_checkpoint_paths] == [
        "ckpt-24",
        "ckpt-100",
    ]
    for damage in (lambda path: path.write_bytes(b""), pathlib.Path.unlink):
        damage(tmp_path / "checkpoint")
        assert run.saved_steps(tmp_path) == [100, 24]
        assert value_at(tmp_path, 24) == 24


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(UserError, match="state: cannot be read .*make it a folder"):
        run.saved_steps(tmp_path / "state")


def test_what_killed_writers_left_is_removed(tmp_path):
    write_value(tmp_path, 7, 7.0)
    kept = sorted(tmp_path.iterdir())
    for name in ("ckpt-9.data-00000-of-00001", "checkpoint.tmp0123abcd"):
        (tmp_path / name).touch()
    (tmp_path / "ckpt-9_temp").mkdir()
    (tmp_path / "ckpt-9_temp/part-00000-of-00001").touch()
    run.clean_checkpoints(tmp_path)
    assert sorted(tmp_path.iterdir()) == kept


@pytest.mark.parametrize("step", [8, 7])  # of another step, and of one that is there
def test_a_kill_at_any_instant_of_writing_leaves_an_intact_checkpoint(tmp_path, monkeypatch, step):
    """Every change of the folder is an instant; the next writer leaves no trace of the kill."""
    changes = ("rename", "replace", "unlink")

    def write_until(folder, instant):
        passed = iter(range(instant))

        def dying(change):
            def die(*arguments, **named):
                if next(passed, None) is None:
                    raise KeyboardInterrupt
                return change(*arguments, **named)

            return die

        with monkeypatch.context() as patch:
            for name in changes:
                patch.setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name)))
            write_value(folder, step, 8.0, kept=6)

    for instant in range(99):
        folder = tmp_path / str(instant)
        write_value(folder, 6, 6.0)
        write_value(folder, 7, 7.0, kept=6)
        try:
            write_until(folder, instant)
        except KeyboardInterrupt:
            newest = run.saved_steps(folder)[0]
            assert value_at(folder, newest) in ((newest, 8) if step == 7 else (newest,))
            assert step == 7 or tf.train.latest_checkpoint(folder)
        else:
            break
        write_value(folder, 9, 9.0, kept=6)
        assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == sorted(
            ["checkpoint"]
            + [f"ckpt-{n}.{end}" for n in (6, 9) for end in ("data-00000-of-00001", "index")]
        )
    assert 4 <= instant < 98
    assert value_at(folder, step) == 8.0


def test_weights_of_older_versions_load(tiny_config, tmp_path):
    trained = model.build_model(tiny_config())
    run.write_settings(tmp_path, trained.settings)
    saved = tf.train.Checkpoint(
        encoder=trained.encoder, quantizer=trained.quantizer, step=tf.Variable(7, dtype=tf.int64)
    )
    for weights in ("best", "last"):
        folder = tmp_path / run.WEIGHTS[weights]
        manager = tf.train.CheckpointManager(saved, folder, max_to_keep=1)
        manager.save(checkpoint_number=7)
    assert run.saved_step(tmp_path) == 7
    codebooks = run.load(tmp_path).quantizer.codebooks
    np.testing.assert_array_equal(codebooks, trained.quantizer.codebooks)
    run.save_weights(trained, tmp_path, 9, "last")
    assert run.saved_steps(folder) == [9]
    run.load(tmp_path, "last")


HOLD = """
import sys, time
from hqc_tf import workdir
with workdir.claim(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_training_holds_a_workdir_until_it_ends_or_is_killed(tmp_path):
    folder = tmp_path / "runs" / "one"
    command = [sys.executable, "-c", HOLD, folder]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        refusal = f"--workdir={folder}: another training runs there; wait for its end, or take"
        with pytest.raises(UserError, match=refusal), run.claim(folder):
            pytest.fail("held by two")
    finally:
        other.kill()
        other.wait()
    with run.claim(folder):
        (folder / "flags.txt").touch()
    assert [path.name for path in folder.iterdir()] == ["flags.txt"]


def test_a_workdir_that_stays_empty_is_removed_where_it_is_new(tmp_path):
    with pytest.raises(ZeroDivisionError), run.claim(tmp_path / "new"):
        raise ZeroDivisionError
    assert not any(tmp_path.iterdir())
    with run.claim(tmp_path):
        pass
    assert tmp_path.exists()
