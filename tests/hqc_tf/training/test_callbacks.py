"""What the end of an epoch leaves, with judgements given by hand."""

import io
import itertools
import re
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import label_free, optimizers
from hqc_tf.data.images import Images
from hqc_tf.training import callbacks
from hqc_tf.training.callbacks import CloseEpoch
from hqc_tf.workdir import read_epochs

HELD = Images.of_files(["a.png"])
NONE = Images.of_files([])


@pytest.fixture
def saved(monkeypatch):
    """Which weights were saved, instead of saving any: list of (step, weights)."""
    calls = []
    monkeypatch.setattr(callbacks, "save_weights", lambda *args: calls.append(args[2:]))
    return calls


@pytest.fixture
def judge(monkeypatch):
    """Makes the recalls of the coming epochs those given, with perplexities that never collapse."""

    def set_recalls(*recalls, perplexity=(16.0, 9.5)):
        coming = iter(recalls)
        monkeypatch.setattr(
            label_free,
            "evaluate",
            lambda *_: label_free.Scores(1, next(coming), np.array(perplexity), 0.25),
        )

    return set_recalls


def closing(workdir, held, settings, first_epoch=0):
    callback = CloseEpoch(workdir, held, 10, first_epoch)
    rate = optimizers.warmup_cosine(0.1, 4, 0, 10, 0.1)
    adam = optimizers.CoupledAdam(rate)
    strategy = tf.distribute.get_strategy()
    callback.set_model(
        types.SimpleNamespace(settings=settings, optimizer=adam, distribute_strategy=strategy)
    )
    callback.on_train_begin()
    return callback


def end(callback, *numbers):
    for epoch in numbers:
        callback.on_epoch_end(epoch, {"loss": 3.0 - epoch})


def test_best_is_the_first_of_the_highest_recall(tmp_path, small_config, saved, judge):
    judge(0.2, 0.5, 0.5, 0.4)
    end(closing(tmp_path, HELD, small_config(num_words=16)), 0, 1, 2, 3)
    assert [step for step, weights in saved if weights == "best"] == [10, 20]
    assert [step for step, weights in saved if weights == "last"] == [10, 20, 30, 40]


def test_without_held_out_images_the_last_are_the_best(tmp_path, small_config, saved):
    end(closing(tmp_path, NONE, small_config()), 0, 1)
    assert [step for step, weights in saved if weights == "best"] == [10, 20]
    assert read_epochs(tmp_path)[0].recall_at_1 is None


def test_epochs_trained_again_are_replaced(tmp_path, small_config, saved, judge):
    settings = small_config(num_words=16)
    judge(0.2, 0.9, 0.5)
    end(closing(tmp_path, HELD, settings), 0, 1, 2)
    judge(0.3, 0.1)
    end(closing(tmp_path, HELD, settings, first_epoch=1), 1, 2)
    lines = read_epochs(tmp_path)
    assert [(line.epoch, line.recall_at_1) for line in lines] == [
        (0, 0.2),
        (1, 0.3),
        (2, 0.1),
    ]
    assert lines[1].step == 20 and lines[1].losses == {"loss": 2.0}
    assert saved[-2:] == [(20, "last"), (30, "last")] and (20, "best") in saved


def scalars(folder):
    """(tag, step) of every scalar in the event files."""
    found = []
    for file in folder.glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            found += [(value.tag, event.step) for value in event.summary.value]
    return sorted(found)


def test_tensorboard_has_every_epoch_once(tmp_path, small_config, saved, judge):
    settings = small_config(num_words=16)
    judge(0.2, 0.9)
    end(closing(tmp_path, HELD, settings), 0, 1)
    judge(0.3, 0.4)
    end(closing(tmp_path, HELD, settings, first_epoch=1), 1, 2)
    found = scalars(tmp_path / "tensorboard")
    assert [step for tag, step in found if tag == "epoch_loss"] == [0, 1, 2]
    assert [step for tag, step in found if tag == "perplexity/book_01"] == [0, 1, 2]
    assert {tag for tag, _ in found} == {
        "epoch_loss", "epoch_learning_rate", "epoch_recall_at_1", "epoch_quantization_error",
        "perplexity/book_00", "perplexity/book_01",
    }  # fmt: skip


def test_collapse_is_told_at_the_end_of_the_epoch(tmp_path, small_config, saved, judge, capsys):
    judge(0.2, 0.3, 0.1, perplexity=(16.0, 3.0))
    end(closing(tmp_path, HELD, small_config(num_words=16)), 0, 1, 2)
    # Once a run.
    assert capsys.readouterr().err.count("codebook collapse") == 1


def test_an_epoch_has_a_short_line_on_stdout(small_config, monkeypatch, capsys):
    line = callbacks.ShowEpoch()
    strategy = tf.distribute.get_strategy()
    line.set_model(types.SimpleNamespace(settings=small_config(), distribute_strategy=strategy))
    for logs in ({"loss": 1.23456, "a term": 9}, {"recall_at_1": 0.25, "least_perplexity": 3.14}):
        line.on_epoch_begin(1)
        line.on_epoch_end(1, {"loss": 1.23456} | logs)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 2 of 2: loss 1.2346, 0 s",
        "epoch 2 of 2: loss 1.2346, recall@1 0.250, least perplexity 3.1, 0 s",
    ]


def test_the_time_to_go_is_told_once_it_is_known(monkeypatch, small_config):
    clock = itertools.count(0, 6)
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(clock))
    shown = show(monkeypatch, io.StringIO(), small_config())
    assert shown == "1 images/s: about 42 seconds to go\n"
    assert callbacks._rounded(600) == "10 minutes" and callbacks._rounded(9000) == "2.5 hours"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(monkeypatch, stream, settings):
    """What `ShowProgress` writes to a stream in three steps of which the first compiles."""
    monkeypatch.setattr(sys, "stderr", stream)
    callback = callbacks.ShowProgress(10, 20, 10)
    callback.set_model(types.SimpleNamespace(settings=settings))
    callback.on_train_begin()
    for step in range(3):
        callback.on_train_batch_end(step, {"loss": 0.5})
        if step:
            callback._bar.refresh()
    callback.on_epoch_end(1)
    callback.on_train_end()
    return stream.getvalue()


def test_a_terminal_shows_epoch_step_loss_speed_and_time_left(monkeypatch, small_config):
    shown = show(monkeypatch, Terminal(), small_config())
    assert "epoch 2 of 2, step 12 of 20: loss 0.5000, " in shown
    assert re.search(r"step 13 of 20: loss 0.5000, +[0-9.]+ images/s, \d\d:\d\d left", shown)


def test_nothing_is_shown_off_a_terminal(monkeypatch, small_config):
    assert show(monkeypatch, io.StringIO(), small_config()) == ""


def test_the_state_is_saved_after_all_else(small_config, tmp_path):
    trained = types.SimpleNamespace(
        settings=small_config(), distribute_strategy=tf.distribute.get_strategy(), metrics=[]
    )
    own = tf.keras.callbacks.Callback()
    state = types.SimpleNamespace(model=trained, step=0)
    made = callbacks.make_callbacks(state, tmp_path, NONE, 10, [own])
    assert [type(one).__name__ for one in made] == [
        "StopAtNonFinite", "ShowProgress", "CloseEpoch", "MeasureSpeed", "ShowEpoch", "Callback",
        "KeepState",
    ]  # fmt: skip
