"""What choosing the best weights without labels gives up: mAP of every epoch of some trainings.

    python -m benchmarks.label_free_choice --preset=configs/cifar10_32bit.flags --seeds=1,2,3 \
        --budget="--dataset=cifar10_protocol2 --data_dir=DIR --epochs=10 --warmup_epochs=1" \
        --runs=runs/choice --output=benchmarks/results/label_free_choice

Trains with each seed into RUNS/PRESET_seedS, and after every epoch evaluates the weights under the
protocol of the data set, which training itself never does; choice.jsonl there has the figures.
OUTPUT.md and OUTPUT.json compare, for each run, the epoch of the highest recall@1, which training
keeps as the best, with that of the highest mAP and with the last. The same command again trains
what is missing, and resumes an interrupted run.
"""

import dataclasses
import json
import operator
import pathlib
import shlex
import statistics
import sys

import tensorflow as tf
from absl import flags

from benchmarks import ablation, machine
from hqc_tf import commands, evaluate, files, train
from hqc_tf.errors import UserError

CHOICE = "choice.jsonl"


@dataclasses.dataclass(frozen=True)
class EpochScores:
    """A line of choice.jsonl: both scores of the weights after an epoch, counted from 0."""

    epoch: int
    step: int
    recall_at_1: float
    mean_average_precision: float


class JudgeEpoch(tf.keras.callbacks.Callback):
    """Adds a line of label-free recall and mAP@R to `path` at the end of every epoch.

    Args:
        path: `pathlib.Path`; lines of epochs that are trained again are replaced.
    """

    def __init__(self, path):
        super().__init__()
        self._path = path

    def on_epoch_end(self, epoch, logs=None):
        """Evaluates the weights as they are."""
        step = int(self.model.optimizer.iterations)
        result = evaluate.evaluate(self.model, step)
        line = EpochScores(epoch, step, result.recall_at_1, result.mean_average_precision)
        before = [known for known in read_choice(self._path) if known.epoch < epoch]
        files.write_lines(self._path, [*before, line])


def read_choice(path):
    """The lines that `JudgeEpoch` has left in `path`; empty without the file."""
    return files.read_lines(path, EpochScores)


def compare(lines):
    """What each choice of an epoch finds.

    Args:
        lines: of `read_choice`, one at least.

    Returns:
        dict of `chosen` (of the highest recall@1, the first of equals), `picked` (of the highest
        mAP) and `last`, a line each, and `given_up`, mAP of picked less that of chosen.
    """
    chosen, picked = (
        max(lines, key=operator.attrgetter(name))
        for name in ("recall_at_1", "mean_average_precision")
    )
    given_up = picked.mean_average_precision - chosen.mean_average_precision
    return {"chosen": chosen, "picked": picked, "last": lines[-1], "given_up": given_up}


def judge_run(run):
    """Trains an `ablation.Run` that is not done, and evaluates it: the lines of its epochs.

    Raises:
        UserError: as `train.train_and_evaluate`, or an epoch was trained and not evaluated.
    """
    path = run.workdir / CHOICE
    train.train_and_evaluate(run.settings, run.workdir, [JudgeEpoch(path)])
    lines = read_choice(path)
    if [line.epoch for line in lines] != list(range(run.settings.epochs)):
        raise UserError(
            f"{path}: {len(lines)} of {run.settings.epochs} epochs were evaluated; remove "
            f"{run.workdir} and give the command again"
        )
    return lines


def write_report(compared, output, command):
    """Writes `output`.md and `output`.json, complete, from name of a run -> `compare`'s dict."""
    rows = [
        f"| {name} | {_cell(c['chosen'])} | {_cell(c['picked'])} | {_cell(c['last'])} "
        f"| {c['given_up']:.4f} |"
        for name, c in compared.items()
    ]
    mean = statistics.fmean(c["given_up"] for c in compared.values())
    told = {"command": command, "commit": machine.commit(), "machine": machine.hardware()}
    page = [
        "# Weights chosen without labels",
        "",
        "mAP@R and, in brackets, the epoch, counted from 1.",
        "",
        "| run | highest recall@1 | highest mAP | last epoch | given up |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Given up on average: {mean:.4f}.",
        "",
        f"    {command}",
        "",
        f"- commit: {told['commit']}",
        f"- machine: {machine.describe(told['machine'])}",
    ]
    files.replace_text(pathlib.Path(f"{output}.md"), "\n".join(page) + "\n")
    text = json.dumps(told | {"mean_given_up": mean, "runs": compared}, indent=2, default=vars)
    files.replace_text(pathlib.Path(f"{output}.json"), text + "\n")


def _cell(line):
    return f"{line.mean_average_precision:.4f} ({line.epoch + 1})"


def main(_):
    values = flags.FLAGS
    runs = ablation.plan([values.preset], values.seeds, values.budget, values.runs)
    ablation.check_labels({run.settings.dataset for run in runs})
    if not runs[0].settings.held_out:
        raise UserError("--held_out=0: keeps no images to choose by; raise it")
    pathlib.Path(values.output).parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "benchmarks.label_free_choice", *sys.argv[1:]])
    compared = {}
    for run in runs:
        compared[run.workdir.name] = compare(judge_run(run))
        write_report(compared, values.output, command)
    print(pathlib.Path(f"{values.output}.md").read_text())


if __name__ == "__main__":
    flags.DEFINE_string("preset", None, "flagfile of the trainings", required=True)
    flags.DEFINE_list("seeds", ["1"], "seeds to train with, with commas between")
    flags.DEFINE_string("budget", "", "flags for every run, in quotes; they win over the preset's")
    flags.DEFINE_string("runs", None, "folder of the runs; again = what is missing", required=True)
    flags.DEFINE_string("output", None, "name of the table, without .md and .json", required=True)
    commands.run(main)
