"""A run that is stopped and started again ends, to the bit, as one that was never stopped."""

import dataclasses
import gc
import os
import shutil
import signal
import subprocess
import time
import types

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import kill_test
from benchmarks.campaign.instants import files_of_at_most
from hqc_tf import config, distribute, model, optimizers, train
from hqc_tf.errors import UserError
from hqc_tf.training.state import KeepState, RunState, newest_step
from hqc_tf.workdir import METRICS, STATES, append_metrics, read_epochs, read_metrics
from tests.support import commands

PER_EPOCH, EPOCHS = 12, 2


# The views of a step are the same whenever it is trained, which test_views.py has of images.
@pytest.fixture(scope="module")
def settings(feature_config):
    return feature_config(epochs=EPOCHS, checkpoint_steps=5, held_out=5, projection_norm=True)


@pytest.fixture(scope="module")
def never_stopped(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train.train_and_evaluate(settings, folder)
    return folder


@pytest.fixture
def stop_after(monkeypatch):
    """Has something done after a step, as if it happened to the process; never with None."""
    whole = KeepState.on_train_batch_end

    def arrange(step, happens=None):
        def end(callback, batch, logs=None):
            if callback._step + 1 == step:
                happens()
            whole(callback, batch, logs)

        monkeypatch.setattr(KeepState, "on_train_batch_end", end)

    return arrange


def killed():
    raise KeyboardInterrupt


def arrays(folder):
    """All that the newest states and weights hold, by name."""
    return {
        (kind, name): value
        for kind in ("state", "last", "best")
        for name, value in kill_test.arrays(folder / "checkpoints" / kind).items()
    }


def assert_same(folder, other):
    one, two = arrays(folder), arrays(other)
    assert one.keys() == two.keys() and len(one) > 30
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value, err_msg=str(name))
    assert read_epochs(folder) == read_epochs(other)
    results = [
        [dataclasses.replace(line, time="") for line in read_metrics(run)]
        for run in (folder, other)
    ]
    assert results[0] == results[1] and len(results[0]) == 2


def states(folder):
    paths = (folder / STATES).glob("*.index")
    return sorted((path.stem for path in paths), key=lambda name: int(name.split("-")[1]))


def test_only_the_newest_states_are_kept(never_stopped):
    assert states(never_stopped) == ["ckpt-20", "ckpt-24"]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.long
def test_a_run_stopped_in_every_way_ends_as_one_never_stopped(
    settings, never_stopped, tmp_path, stop_after, capsys
):
    def train_until(step, happens, ends):
        stop_after(step, happens)
        with pytest.raises(ends) as ended:
            train.train_and_evaluate(settings, tmp_path)
        return ended.value, capsys.readouterr().err

    def train_until_told(step, number):
        before = signal.getsignal(number)
        ended, said = train_until(step, lambda: os.kill(os.getpid(), number), SystemExit)
        assert ended.code == 128 + number
        assert signal.getsignal(number) is before
        assert f"{number.name}: stopped after step {step} of 24; the same command res" in said
        return said

    train_until(1, killed, KeyboardInterrupt)
    assert states(tmp_path) == []
    train_until_told(8, signal.SIGTERM)
    assert states(tmp_path) == ["ckpt-5", "ckpt-8"]
    # An epoch ends, and its state is not yet saved.
    _, said = train_until(13, killed, KeyboardInterrupt)
    assert "resuming after step 8 of 24" in said
    assert len(read_epochs(tmp_path)) == 1
    assert states(tmp_path) == ["ckpt-5", "ckpt-8"]
    cut_short(tmp_path / STATES / "ckpt-8.data-00000-of-00001")
    _, said = train_until(20, killed, KeyboardInterrupt)
    assert "ckpt-8: cannot be read" in said and "resuming after step 5 of 24" in said
    assert states(tmp_path) == ["ckpt-10", "ckpt-15"]
    assert "resuming after step 15 of 24" in train_until_told(23, signal.SIGINT)
    stop_after(None)
    train.train_and_evaluate(settings, tmp_path)
    assert "resuming after step 23 of 24" in capsys.readouterr().err
    assert_same(never_stopped, tmp_path)


def test_signals_are_answered_as_before_after_an_error(settings, tmp_path, stop_after):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop_after(1, killed)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(settings, tmp_path)
    assert {number: signal.getsignal(number) for number in before} == before


def test_time_saves_too(monkeypatch):
    class State:
        model = types.SimpleNamespace(distribute_strategy=tf.distribute.get_strategy())
        step = 0
        saved = []

        def save(self):
            self.saved.append(self.step)

    state = State()
    monkeypatch.setattr(time, "monotonic", lambda: 40.0 * state.step)
    callback = KeepState(state, 100, every_minutes=2, per_epoch=50, last_step=50)
    for state.step in range(1, 9):
        callback.on_train_batch_end(state.step)
    assert state.saved == [3, 6]


def test_without_a_readable_state_nothing_is_overwritten(settings, never_stopped, tmp_path):
    run = shutil.copytree(never_stopped, tmp_path / "run")
    (run / METRICS).unlink()
    for name in ("ckpt-20", "ckpt-24"):
        cut_short(run / STATES / f"{name}.index")
    with pytest.raises(UserError, match="no state is readable; restore a copy, or take another"):
        train.train_and_evaluate(settings, run)
    assert states(run) == ["ckpt-20", "ckpt-24"]


def test_a_finished_run_does_nothing_and_says_the_same(settings, never_stopped, monkeypatch):
    # Nor does it wait for other processes, which may have ended for good.
    monkeypatch.setattr(distribute, "make_strategy", lambda *_: pytest.fail("began again"))
    before = (never_stopped / METRICS).read_bytes()
    results = train.train_and_evaluate(settings, never_stopped)
    assert [result.weights for result in results] == ["last", "best"]
    assert (never_stopped / METRICS).read_bytes() == before


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a disk of its own, of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root, on Linux, may mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk):
    """Takes the last byte."""
    with (disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))


def filling_first(disk, function):
    def fill_then_call(*arguments, **named):
        gc.collect()  # a removed file that is still open holds its bytes
        fill(disk)
        return function(*arguments, **named)

    return fill_then_call


@pytest.mark.long
def test_a_full_disk_loses_nothing(
    settings, never_stopped, small_disk, stop_after, monkeypatch, capsys
):
    def train_until_full(names):
        with pytest.raises(
            UserError, match=f"{names}.*No space left on device.*free space"
        ) as ended:
            train.train_and_evaluate(settings, small_disk)
        assert "\n" not in str(ended.value)
        (small_disk / "ballast").unlink()

    fill(small_disk)
    (small_disk.parent / "settings").write_text(config.to_flagfile(settings))
    flagfile = f"--flagfile={small_disk.parent / 'settings'}"
    done = commands.run("hqc_tf.train", flagfile, f"--workdir={small_disk}")
    assert done.status == 2
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert f"error: {small_disk}/flags.txt" in done.stderr and "Traceback" not in done.stderr
    (small_disk / "ballast").unlink()
    stop_after(10, lambda: fill(small_disk))
    train_until_full("state/ckpt-10_temp")
    assert states(small_disk) == ["ckpt-5"]
    stop_after(None)
    with monkeypatch.context() as patch:
        # After the old curves are removed, whose bytes are free by then.
        create = filling_first(small_disk, tf.summary.create_file_writer)
        patch.setattr(tf.summary, "create_file_writer", create)
        train_until_full("tensorboard")
    assert "resuming after step 5 of 24" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(train, "append_metrics", filling_first(small_disk, append_metrics))
        train_until_full("metrics.jsonl")
    assert states(small_disk) == ["ckpt-20", "ckpt-24"]
    train.train_and_evaluate(settings, small_disk)
    assert kill_test.differences(never_stopped, small_disk) == []
    assert not list(small_disk.rglob("*_temp"))


def test_a_state_larger_than_a_file_may_be_ends_no_epoch(settings, tmp_path):
    # Keras takes the error that TensorFlow raises for the end of the data.
    within_an_epoch = dataclasses.replace(settings, checkpoint_steps=2)
    with files_of_at_most(20_000), pytest.raises(UserError, match="ckpt-2_temp.*File too large"):
        train.train_and_evaluate(within_an_epoch, tmp_path)
    assert read_epochs(tmp_path) == []


@pytest.fixture
def state(settings, never_stopped, tmp_path):
    """A new model's state over a copy of a finished run."""
    run = shutil.copytree(never_stopped, tmp_path / "run")
    trained = model.build_model(settings)
    trained.compile(optimizer=optimizers.make_optimizer(settings, PER_EPOCH))
    return RunState(trained, run)


# As a clock that was decades ahead left it, with the paths of TensorFlow's manager.
AHEAD = """
model_checkpoint_path: "ckpt-24"
all_model_checkpoint_paths: "ckpt-20"
all_model_checkpoint_paths: "ckpt-24"
all_model_checkpoint_timestamps: 4e9
all_model_checkpoint_timestamps: 4e9
last_preserved_timestamp: 4e9
"""


def test_states_are_found_by_their_files_alone(state, tmp_path):
    folder = tmp_path / "run" / STATES
    for text in (AHEAD, "", "\0\xff {"):
        (folder / "checkpoint").write_text(text)
        assert newest_step(tmp_path / "run") == state.restore() == 24
    (folder / "checkpoint").unlink()
    of_others = tmp_path / "run/checkpoints/other/x_temp"
    of_others.mkdir(parents=True)
    for stray in ("ckpt-30.data-00000-of-00001", "checkpoint.tmp0a1b"):
        (folder / stray).touch()
    assert newest_step(tmp_path / "run") == state.restore() == 24
    assert states(tmp_path / "run") == ["ckpt-20", "ckpt-24"]
    assert len([*folder.iterdir()]) == 4 and of_others.exists()


def test_a_damaged_state_takes_no_sound_ones_place(state, tmp_path, capsys):
    folder = tmp_path / "run" / STATES
    (folder / "ckpt-24.data-00000-of-00001").unlink()
    # Sound, but of other weights than its name says.
    for path in folder.glob("ckpt-20.*"):
        shutil.copy(path, folder / path.name.replace("20", "22"))
    assert state.restore() == 20
    said = capsys.readouterr().err
    assert "ckpt-24: cannot be read" in said
    assert "ckpt-22: cannot be read (it is of step 20); skipped" in said
    state.model.optimizer.iterations.assign(21)
    state.save()
    assert states(tmp_path / "run") == ["ckpt-20", "ckpt-21"]


def test_a_finished_run_without_its_states_is_finished(settings, never_stopped, tmp_path):
    run = shutil.copytree(never_stopped, tmp_path / "run")
    shutil.rmtree(run / STATES)
    before = (run / METRICS).read_bytes()
    assert [result.step for result in train.train_and_evaluate(settings, run)][0] == 24
    assert (run / METRICS).read_bytes() == before
