"""A run that goes on from an earlier training: its own of fewer epochs, or another run's."""

import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import kill_test
from hqc_tf import evaluate, optimizers, train
from hqc_tf.errors import UserError
from hqc_tf.model import build_model
from hqc_tf.training import refit, start
from hqc_tf.workdir import (
    STATES,
    load,
    read_epochs,
    read_metrics,
    read_settings,
    save_weights,
    saved_step,
    write_settings,
)

PER_EPOCH = 12


@pytest.fixture(scope="module")
def settings(feature_config):
    changes = {"epochs": 2, "checkpoint_steps": 5, "held_out": 5, "refit": "opq"}
    return feature_config(**changes, projection_norm=True)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train.train_and_evaluate(settings, folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, to change."""
    return shutil.copytree(finished, tmp_path / "run")


def killed_after(step):
    """A callback that ends the process' training in the step after so many of this process."""
    left = [step]

    def end(batch, logs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    return tf.keras.callbacks.LambdaCallback(on_train_batch_end=end)


@pytest.mark.long
def test_more_epochs_train_a_finished_run_on_and_exactly_after_a_kill(
    settings, finished, run, tmp_path, capsys, monkeypatch
):
    longer = dataclasses.replace(settings, epochs=4)
    other = shutil.copytree(run, tmp_path / "killed")
    refitted, whole = [], refit._refitted
    monkeypatch.setattr(refit, "_refitted", lambda *a: refitted.append(1) or whole(*a))
    last, best = train.train_and_evaluate(longer, run)
    assert last.step == saved_step(run) == 4 * PER_EPOCH and best.step == saved_step(run, "best")
    said = capsys.readouterr().err
    schedules = [optimizers.make_schedule(each, PER_EPOCH) for each in (settings, longer)]
    rates = float(schedules[0](23)), float(schedules[1](24)), float(schedules[1](47))
    assert (
        "--epochs=4, 2 before: the schedule is stretched over all of them; after step 24 the "
        "learning rate goes from {:.3g} to {:.3g}, and ends at {:.3g}".format(*rates)
        in said
    )
    assert "resuming after step 24 of 48" in said
    assert refitted
    lines = read_epochs(run)
    assert lines[:2] == read_epochs(finished) and len(lines) == 4
    expected = [float(schedules[1](12 * epoch - 1)) for epoch in (3, 4)]
    np.testing.assert_allclose([line.learning_rate for line in lines[2:]], expected, rtol=1e-6)
    assert len(read_metrics(run)) == 4
    assert read_settings(run).epochs == 4
    # Before the first new state, and later.
    for steps in (3, 16):
        with pytest.raises(KeyboardInterrupt):
            train.train_and_evaluate(longer, other, [killed_after(steps)])
    train.train_and_evaluate(longer, other)
    for kind in ("state", "last", "best"):
        one, two = (kill_test.arrays(at / "checkpoints" / kind) for at in (run, other))
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert read_epochs(other) == lines
    # It is finished again, and does not shrink.
    assert [one.step for one in train.train_and_evaluate(longer, run)] == [last.step, best.step]
    with pytest.raises(UserError, match="made with --epochs=4, not 2; take another --workdir"):
        train.train_and_evaluate(settings, run)


@pytest.mark.long
def test_results_of_fewer_epochs_do_not_end_a_longer_run(settings, run, monkeypatch):
    longer = dataclasses.replace(settings, epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(train, "_evaluate", lambda *_: [])
        train.train_and_evaluate(longer, run)
    assert train.train_and_evaluate(longer, run)[0].step == 3 * PER_EPOCH


def test_more_epochs_without_a_state_are_refused(settings, run):
    shutil.rmtree(run / STATES)
    longer = dataclasses.replace(settings, epochs=3)
    with pytest.raises(UserError, match="--epochs=3: .*state has no state .* --init_from="):
        train.train_and_evaluate(longer, run)
    assert read_settings(run) == settings


@pytest.mark.long
def test_a_run_starts_from_the_weights_that_an_export_of_another_takes(
    settings, finished, tmp_path, monkeypatch
):
    source = shutil.copytree(finished, tmp_path / "source")
    # Refitted weights are taken before the best.
    refitted = load(source)
    refitted.quantizer.codebooks.assign(refitted.quantizer.codebooks + 1)
    save_weights(refitted, source, saved_step(source, "best"), "best", refitted=True)
    begun = []

    class Look(tf.keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            begun.append((self.model.get_weights(), self.model.optimizer.iterations.numpy()))

    monkeypatch.chdir(tmp_path)
    other = dataclasses.replace(settings, init_from="source", seed=5, refit="none", epochs=1)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(other, tmp_path / "run", [Look(), killed_after(7)])
    found, steps = begun[0]
    assert steps == 0
    for one, value in zip(refitted.get_weights(), found, strict=True):
        np.testing.assert_array_equal(one, value)
    assert read_settings(tmp_path / "run").init_from == str(source)
    # A resumed run has them already.
    shutil.rmtree(source)
    assert train.train_and_evaluate(other, tmp_path / "run")[0].step == PER_EPOCH


def test_what_trains_does_not_change_the_order_of_weights(quick_config, tmp_path):
    source = build_model(quick_config(projection_norm=True))
    frozen = build_model(quick_config(projection_norm=True, train_backbone="none", seed=2))
    start.assign(frozen, [weight.numpy() for weight in start._weights(source)])
    views = np.random.default_rng(1).random([4, 8, 8, 3], np.float32)
    for one, other in zip(source.encode(views), frozen.encode(views), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"num_books": 4}, "its weights are of --num_books=2, not 4; give the same, or leave it"),
        ({"projection_norm": False}, "of --projection_norm=True, not False; give the same"),
        ({"feature_norm": "unit"}, "of --feature_norm=standard, not unit; give the same"),
        ({"init_from": "none"}, "--init_from=.*none: no trained run there; name the --workdir of"),
    ],
)
def test_weights_that_do_not_fit_are_refused(settings, finished, tmp_path, changes, error):
    other = dataclasses.replace(settings, **{"init_from": str(finished)} | changes)
    with pytest.raises(UserError, match=error):
        train.train_and_evaluate(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_weights_without_the_graph_that_a_refit_makes(
    settings, finished, tmp_path
):
    source = shutil.copytree(finished, tmp_path / "source")
    write_settings(source, dataclasses.replace(settings, input_share=0.5))
    refitted = load(source, refitted=False)
    refitted.prepare_refit()
    save_weights(refitted, source, saved_step(source, "best"), "best", refitted=True)
    other = dataclasses.replace(settings, init_from=str(source), epochs=1)
    learned = load(source, refitted=False)
    for one, value in zip(
        start.read_weights(other, tmp_path / "run"), start._weights(learned), strict=True
    ):
        np.testing.assert_array_equal(one, value)


def test_the_model_before_training_has_the_statistics_of_what_is_trained_on(settings, finished):
    drawn, trained = evaluate.draw(settings), load(finished, refitted=False)
    norms = [one.encoder.get_layer("feature_norm").get_weights() for one in (drawn, trained)]
    for one, other in zip(*norms, strict=True):
        np.testing.assert_array_equal(one, other)
    assert norms[0][1] != 1
    assert not np.array_equal(drawn.quantizer.codebooks, trained.quantizer.codebooks)
