"""The files of a run's folder, those of older versions too."""

import json

import pytest

from hqc_tf import workdir as run
from hqc_tf.data.screening import Reject
from hqc_tf.errors import UserError

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
    with pytest.raises(UserError, match="made with --seed=1, not 2; take another --workdir"):
        run.check_settings(tmp_path, small_config(seed=2))
