"""What the label-free choice gives up: by hand, and of a real training, asked for twice."""

import json
import shutil

import pytest

from benchmarks import label_free_choice as choice
from hqc_tf import config
from hqc_tf.workdir import read_epochs, saved_step
from tests.support import commands


def line(epoch, recall, mean_average_precision):
    return choice.EpochScores(epoch, 10 * epoch + 10, recall, mean_average_precision)


def test_what_is_given_up_by_hand():
    lines = [line(0, 0.1, 0.3), line(1, 0.4, 0.5), line(2, 0.4, 0.7), line(3, 0.2, 0.6)]
    found = choice.compare(lines)
    # Of equal recalls the first one, as training keeps it.
    assert found["chosen"] == lines[1]
    assert found["picked"] == lines[2]
    assert found["last"] == lines[3]
    assert found["given_up"] == pytest.approx(0.2)


def test_nothing_is_given_up_where_both_agree():
    lines = [line(0, 0.1, 0.3), line(1, 0.4, 0.5)]
    assert choice.compare(lines)["given_up"] == 0


def test_the_page_has_mean_and_command(tmp_path):
    one = choice.compare([line(0, 0.1, 0.3), line(1, 0.4, 0.1)])
    two = choice.compare([line(0, 0.1, 0.3)])
    choice.write_report({"a_seed1": one, "a_seed2": two}, tmp_path / "table", "python -m this")
    page = (tmp_path / "table.md").read_text()
    assert "| a_seed1 | 0.1000 (2) | 0.3000 (1) | 0.1000 (2) | 0.2000 |" in page
    assert "Given up on average: 0.1000." in page and "    python -m this\n" in page
    runs = json.loads((tmp_path / "table.json").read_text())["runs"]
    assert runs["a_seed2"]["last"] == vars(two["last"])


@pytest.fixture(scope="module")
def ran(feature_config, tmp_path_factory):
    """(arguments, folder, `commands.Done`) of a training of two epochs."""
    folder = tmp_path_factory.mktemp("choice")
    settings = feature_config(batch_size=24, held_out=5)
    (folder / "tiny.flags").write_text(config.to_flagfile(settings))
    arguments = [
        f"--preset={folder}/tiny.flags", f"--runs={folder}/runs", f"--output={folder}/table",
    ]  # fmt: skip
    return arguments, folder, commands.run("benchmarks.label_free_choice", *arguments)


@pytest.mark.long
def test_a_training_is_evaluated_once_after_every_epoch(ran):
    arguments, folder, done = ran
    assert done.status == 0, done.stderr
    run = folder / "runs/tiny_seed1"
    lines, before = choice.read_choice(run / choice.CHOICE), read_epochs(run)
    assert [one.epoch for one in lines] == [0, 1]
    assert [one.step for one in lines] == [one.step for one in before]
    assert [one.recall_at_1 for one in lines] == [one.recall_at_1 for one in before]
    report = json.loads((folder / "table.json").read_text())
    assert report["runs"]["tiny_seed1"]["chosen"]["step"] == saved_step(run, "best")
    assert (folder / "table.md").read_text() in done.stdout
    again = commands.run("benchmarks.label_free_choice", *arguments)
    assert again.status == 0 and choice.read_choice(run / choice.CHOICE) == lines


def test_an_epoch_without_evaluation_is_named(ran, tmp_path):
    arguments, folder, _ = ran
    shutil.copytree(folder / "runs", tmp_path / "runs")
    path = tmp_path / "runs/tiny_seed1" / choice.CHOICE
    path.write_text(path.read_text().splitlines(keepends=True)[1])
    here = [f"--runs={tmp_path}/runs", f"--output={tmp_path}/table"]
    done = commands.run("benchmarks.label_free_choice", *arguments, *here)
    assert done.status == 2
    assert f"error: {path}: 1 of 2 epochs were evaluated; remove" in done.stderr
    assert not (tmp_path / "table.md").exists()


def test_without_images_to_choose_by_nothing_starts(ran, tmp_path):
    without = ["--budget=--held_out=0", f"--runs={tmp_path}/runs"]
    done = commands.run("benchmarks.label_free_choice", *ran[0], *without)
    assert done.status == 2 and "--held_out=0: keeps no images to choose by" in done.stderr
    assert not (tmp_path / "runs").exists()
