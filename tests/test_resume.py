"""A run that is stopped and started again ends, to the bit, as one that was never stopped."""

import json
import os
import signal

import numpy as np
import pytest
import replicas
import tensorflow as tf

from benchmarks import kill_test
from hqc_tf import backbones, epochs, evaluate, resume, train
from hqc_tf.config import UserError

PER_EPOCH, EPOCHS = 12, 2


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch):
    monkeypatch.setattr(backbones, "build_backbone", replicas.build_small_backbone)


@pytest.fixture(scope="module")
def settings(small_config, photos):
    return small_config(
        dataset=f"folder:{photos}", top_k=10, epochs=EPOCHS, checkpoint_steps=5, held_out=5
    )


@pytest.fixture(scope="module")
def never_stopped(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "build_backbone", replicas.build_small_backbone)
        train.train_and_evaluate(settings, folder)
    return folder


@pytest.fixture
def stop_after(monkeypatch):
    """Has something done after a step, as if it happened to the process; never with None."""
    whole = resume.KeepState.on_train_batch_end

    def arrange(step, happens=None):
        def end(callback, batch, logs=None):
            if callback._step + 1 == step:
                happens()
            whole(callback, batch, logs)

        monkeypatch.setattr(resume.KeepState, "on_train_batch_end", end)

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
    assert epochs.read_epochs(folder) == epochs.read_epochs(other)
    lines = [
        [json.loads(line) | {"time": 0} for line in (f / evaluate.METRICS).read_text().splitlines()]
        for f in (folder, other)
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 2


@pytest.mark.parametrize("step", [1, 7, 13, 23])
def test_a_kill_at_any_step_changes_nothing(settings, never_stopped, tmp_path, stop_after, step):
    stop_after(step, killed)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(settings, tmp_path)
    stop_after(None)
    train.train_and_evaluate(settings, tmp_path)
    assert_same(never_stopped, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_end_and_saves(
    settings, never_stopped, tmp_path, stop_after, capsys, number
):
    before = signal.getsignal(number)
    stop_after(8, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stopped:
        train.train_and_evaluate(settings, tmp_path)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) is before
    said = f"{number.name}: stopped after step 8 of 24; the same command goes on from there"
    assert said in capsys.readouterr().err
    stop_after(None)
    train.train_and_evaluate(settings, tmp_path)
    assert "going on after step 8 of 24" in capsys.readouterr().err
    assert_same(never_stopped, tmp_path)


def states(folder):
    return sorted(path.stem for path in (folder / resume.STATES).glob("*.index"))


def test_only_the_newest_states_are_kept(never_stopped):
    assert states(never_stopped) == ["ckpt-20", "ckpt-24"]


def test_time_saves_too(settings, tmp_path, stop_after, monkeypatch):
    stop_after(2, killed)
    monkeypatch.setattr(resume.time, "monotonic", iter(range(0, 10**6, 3600)).__next__)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(settings, tmp_path)
    assert states(tmp_path) == ["ckpt-1"]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:100])


def test_a_half_written_state_gives_way_to_the_one_before(
    settings, never_stopped, tmp_path, stop_after, capsys
):
    stop_after(13, killed)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(settings, tmp_path)
    assert states(tmp_path) == ["ckpt-10", "ckpt-5"]
    cut_short(tmp_path / resume.STATES / "ckpt-10.data-00000-of-00001")
    stop_after(None)
    train.train_and_evaluate(settings, tmp_path)
    said = capsys.readouterr().err
    assert "ckpt-10: cannot be read" in said and "going on after step 5 of 24" in said
    assert_same(never_stopped, tmp_path)


def test_without_a_readable_state_nothing_is_overwritten(settings, tmp_path, stop_after):
    stop_after(8, killed)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(settings, tmp_path)
    cut_short(tmp_path / resume.STATES / "ckpt-5.index")
    stop_after(None)
    with pytest.raises(UserError, match="no state can be read; delete it to train anew"):
        train.train_and_evaluate(settings, tmp_path)
    assert states(tmp_path) == ["ckpt-5"]


def test_a_finished_run_does_nothing_and_says_the_same(settings, never_stopped, monkeypatch):
    monkeypatch.setattr(tf.keras.Model, "fit", lambda *_, **__: pytest.fail("trained again"))
    before = (never_stopped / evaluate.METRICS).read_bytes()
    results = train.train_and_evaluate(settings, never_stopped)
    assert [result["weights"] for result in results] == ["last", "best"]
    assert (never_stopped / evaluate.METRICS).read_bytes() == before
