"""The ablation study: its table by hand, its refusals, real trainings, broken off and resumed."""

import fcntl
import json
import shlex
import signal
import subprocess
import sys

import pytest

from benchmarks import ablation, machine
from hqc_tf.errors import UserError
from tests.support import ROOT

# One term and one pass for both views: tracing the step is most of such a training.
TINY = (
    "--image_size=8 --backbone_width=2 --num_books=2 --num_words=4 --word_dim=3 --top_k=10 "
    "--epochs=1 --warmup_epochs=0 --joint_views --instance_embedding_weight=0 "
    "--consistency_weight=0 --part_neighbor_weight=0 --codeword_diversity_weight=0"
)


def record(preset, last, best=None, perplexity=None):
    """What a finished run leaves, as far as the table reads it."""
    shared = {"bits": 32, "top_k": 1000, "distance": "l2", "protocol": "cifar10", "chance": 0.1}
    results = {"last": shared | {"mean_average_precision": last}}
    if best:
        results["best"] = shared | {"mean_average_precision": best}
    if perplexity:
        results["last"]["perplexity"] = perplexity
    return {
        "preset": preset,
        "results": results,
        "commit": "abc",
        "machine": {"cpu": "a good one", "cores": 2},
        "date": "2026-01-02",
    }


def flagfile(folder, name, *lines):
    path = folder / f"{name}.flags"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


@pytest.fixture
def plain(tmp_path):
    return flagfile(tmp_path, "plain", "--batch_size=24")


@pytest.fixture
def budget(features):
    return f"{TINY} --dataset={shlex.quote(features)}"


def test_a_row_has_mean_and_range_over_the_seeds():
    first, second = ablation.summarize(
        [
            record("base", 0.25, 0.5, [15.0, 9.5]),
            record("no_part", 0.125),
            record("base", 0.75, 0.5, [8.25, 16.0]),
        ]
    )
    assert first == {
        "preset": "base",
        "bits": 32,
        "runs": 2,
        "last": {"mean": 0.5, "least": 0.25, "most": 0.75},
        "best": {"mean": 0.5, "least": 0.5, "most": 0.5},
        "lowest_perplexity": 8.25,
    }
    assert second["last"] == {"mean": 0.125, "least": 0.125, "most": 0.125}
    assert second["best"] is None
    assert second["lowest_perplexity"] is None


def test_the_page_says_what_was_measured_how_and_where(tmp_path):
    done = [record("base", 0.25, 0.5, [15.0, 9.5]), record("no_part", 0.125)]
    ablation.write_report(done, 4, tmp_path / "table", "python -m benchmarks.ablation --seeds=1")
    page = (tmp_path / "table.md").read_text()
    assert "2 of 4 runs" in page
    assert "mAP@1000 by l2 distance, cifar10, chance 0.1000.\n" in page
    assert "| base | 32 | 1 | 0.2500 (0.2500 to 0.2500) | 0.5000 (0.5000 to 0.5000) | 9.5 |" in page
    assert "| no_part | 32 | 1 | 0.1250 (0.1250 to 0.1250) | – | – |" in page
    assert "    python -m benchmarks.ablation --seeds=1\n" in page
    assert "- commit: abc\n- machine: cpu a good one, cores 2\n- date: 2026-01-02\n" in page
    assert json.loads((tmp_path / "table.json").read_text())["runs"] == done
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "table.json"}


def test_every_preset_meets_every_seed_and_the_budget_wins(plain, tmp_path):
    other = flagfile(tmp_path, "other", f"--flagfile={plain}", "--learning_rate=0.25")
    runs = ablation.plan([plain, other], ["1", "2"], f"{TINY} --batch_size=8", tmp_path / "runs")
    names = ["plain_seed1", "plain_seed2", "other_seed1", "other_seed2"]
    assert [run.workdir for run in runs] == [tmp_path / "runs" / name for name in names]
    assert [run.settings.seed for run in runs] == [1, 2, 1, 2]
    assert [run.settings.batch_size for run in runs] == [8] * 4
    assert [run.settings.learning_rate for run in runs] == [5e-4, 5e-4, 0.25, 0.25]


@pytest.mark.parametrize(
    ("seeds", "extra", "words"),
    [
        (["1"], "--batch_size=1", "plain.flags.*: --batch_size=1: must be at least 2"),
        (["1"], "--batch=8", "Unknown command line flag 'batch'"),
        (["1"], "batch_size=8", "batch_size=8 is no flag; write --name=value"),
        (["1"], "--dataset='folder:a", "No closing quotation; quote it as in a shell"),
        (["one"], "", "--seed=one"),
        (["1", "1"], "", "plain_seed1: two runs of this name"),
        ([], "", "no run comes of them"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plain, tmp_path, seeds, extra, words):
    with pytest.raises(UserError, match=words):
        ablation.plan([plain], seeds, f"{TINY} {extra}", tmp_path)


def test_a_missing_preset_is_named(tmp_path):
    with pytest.raises(UserError, match="no_such.flags.*No such file.*fix the flag or its file"):
        ablation.plan([str(tmp_path / "no_such.flags")], ["1"], "", tmp_path)


def test_images_without_labels_are_refused_before_training(plain, photos, tmp_path):
    unlabelled = f"{TINY} --dataset=folder:{next(photos.iterdir())}"
    runs = ablation.plan([plain], ["1"], unlabelled, tmp_path / "runs")
    with pytest.raises(UserError, match="no labels; make a folder per label"):
        ablation.run_study(runs, tmp_path / "table", "")
    assert not (tmp_path / "runs").exists()


def test_a_run_that_another_process_trains_is_left_alone(plain, budget, tmp_path):
    runs = ablation.plan([plain], ["1"], budget, tmp_path / "runs")
    (tmp_path / "runs").mkdir()
    with (tmp_path / "runs/plain_seed1.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="plain_seed1.log: in use by another process"):
            ablation.run_study(runs, tmp_path / "table", "")
    assert not (tmp_path / "runs/plain_seed1").exists()


@pytest.mark.long
def test_a_study_broken_off_goes_on_and_keeps_what_is_done(
    plain, budget, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(ROOT)
    folder, table = tmp_path / "runs", tmp_path / "results/table"
    log, done = folder / "plain_seed1.log", folder / "plain_seed1.json"

    # Ended from outside while it trains. Were the training still alive, the next study would stop.
    flags = [f"--presets={plain}", f"--budget={budget}", f"--runs={folder}", f"--output={table}"]
    command = [sys.executable, "-m", "benchmarks.ablation", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as study:
        assert study.stdout.readline().endswith(f" trains, see {log}\n")
        study.send_signal(signal.SIGTERM)
        assert study.wait(timeout=60) == 2
    assert "plain_seed1: training ended with status -15" in capfd.readouterr().err
    assert not done.exists()
    assert not list(table.parent.iterdir())

    # Again, with a preset that fails once its images are read: the first is trained and kept.
    broken = flagfile(tmp_path, "broken", f"--flagfile={plain}", "--batch_size=64")
    with pytest.raises(UserError, match="broken_seed1: training ended with status 2"):
        ablation.run_study(ablation.plan([plain, broken], ["1"], budget, folder), table, "")
    assert "error: --batch_size=64: there are only" in capfd.readouterr().err
    assert not (folder / "broken_seed1.json").exists()
    assert "1 of 2 runs" in table.with_suffix(".md").read_text()
    (row,) = json.loads(table.with_suffix(".json").read_text())["presets"]
    lines = map(json.loads, (folder / "plain_seed1/metrics.jsonl").read_text().splitlines())
    found = {line["weights"]: line["mean_average_precision"] for line in lines}
    assert row["bits"] == 4
    for weights in ("last", "best"):
        assert row[weights] == dict.fromkeys(("mean", "least", "most"), found[weights])
    assert 0 < found["last"] < 1
    assert 1 <= row["lowest_perplexity"] <= 4
    assert list((folder / "tensorboard/plain_seed1").glob("events.*"))

    # Nothing is missing of the first alone, wherever its images lie now; the budget is another's.
    before = log.read_text()
    moved = ablation.plan([plain], ["1"], f"{budget} --data_dir={tmp_path}", folder)
    ablation.run_study(moved, table, "")
    assert log.read_text() == before
    assert "1 of 1 runs" in table.with_suffix(".md").read_text()
    longer = ablation.plan([plain], ["2", "1"], f"{budget} --epochs=2", folder)
    with pytest.raises(UserError, match="this run is done, with --epochs=1, not 2; take another"):
        ablation.run_study(longer, table, "")
    assert not (folder / "plain_seed2.log").exists()


def test_the_commit_is_named_where_there_is_one(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    assert machine.commit() == "not in git"
    (tmp_path / "hqc_tf").mkdir()
    (tmp_path / "hqc_tf/model.py").write_text("1")
    for step in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *step], check=True)
    name = machine.commit()
    assert len(name) >= 4 and set(name) <= set("0123456789abcdef")
    (tmp_path / "hqc_tf/model.py").write_text("2")
    assert machine.commit() == f"{name}, with changes"
