"""A training whose numbers are none stops at that step, and keeps what was good."""

import numpy as np
import pytest

from benchmarks.kill_test import arrays
from hqc_tf import model, train
from hqc_tf.errors import UserError
from hqc_tf.training.callbacks import StopAtNonFinite
from hqc_tf.training.state import RunState, newest_step
from hqc_tf.workdir import save_weights


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_loss_that_is_no_number_stops_the_first_step(feature_config, tmp_path):
    """Cosines divided by next to nothing are infinite, and their softmax is no number."""
    settings = feature_config(consistency_weight=1.0, consistency_temperature=1e-44)
    with pytest.raises(UserError, match="^step 1: not finite: consistency; what was saved before"):
        train.train_and_evaluate(settings, tmp_path)
    assert not list(tmp_path.glob("checkpoints/*/*"))
    assert not (tmp_path / "epochs.jsonl").exists()


@pytest.mark.long
def test_the_states_before_stay_and_are_good(feature_config, tmp_path, monkeypatch):
    """The rate is that of a slip in the schedule after step 20 of 24."""
    settings = feature_config(checkpoint_steps=10)
    save = RunState.save

    def then_leap(state):
        save(state)
        if state.step == 20:
            before.update(contents(tmp_path / "checkpoints/state"))
            state.model.quantizer.codebooks.assign(state.model.quantizer.codebooks * np.inf)

    before = {}
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "save", then_leap)
        with pytest.raises(UserError, match="^step 21: not finite: instance_quantized"):
            train.train_and_evaluate(settings, tmp_path)
    assert before and contents(tmp_path / "checkpoints/state") == before
    assert newest_step(tmp_path) == 20
    for kind in ("state", "last", "best"):
        assert all(
            np.all(np.isfinite(value))
            for value in arrays(tmp_path / "checkpoints" / kind).values()
            if value.dtype.kind == "f"
        )
    last, _ = train.train_and_evaluate(settings, tmp_path)
    assert last.step == 24


def test_weights_that_are_none_are_not_saved(tiny_config, tmp_path):
    """The last step of an epoch can spoil them, with a loss that was still a number."""
    trained = model.build_model(tiny_config())
    save_weights(trained, tmp_path, 7, "last")
    before = contents(tmp_path)
    trained.encoder.get_layer("embedding").bias.assign(np.full(6, np.nan, np.float32))
    with pytest.raises(UserError, match="^step 8: not finite: embedding/bias:0; what was saved"):
        save_weights(trained, tmp_path, 8, "last")
    assert contents(tmp_path) == before


def test_all_terms_are_named_and_the_total_only_alone():
    callback = StopAtNonFinite(4)
    callback.on_train_batch_end(0, {"loss": 1.0, "consistency": -2.0})
    with pytest.raises(UserError, match="^step 6: not finite: a, b; "):
        callback.on_train_batch_end(1, {"loss": np.nan, "a": np.inf, "b": np.nan, "c": 1.0})
    with pytest.raises(UserError, match="^step 7: not finite: loss; "):
        callback.on_train_batch_end(2, {"loss": np.inf, "a": 1.0})
