"""What the parts of the method are worth: presets trained with several seeds, and their table.

    python -m benchmarks.ablation --seeds=1,2 --runs=runs/ablation \
        --presets=configs/cifar10_32bit.flags,configs/ablations/no_part.flags \
        --budget="--dataset=cifar10_protocol2 --data_dir=DIR --epochs=10 --warmup_epochs=1" \
        --output=benchmarks/results/ablation

Each preset with each seed is one `python -m hqc_tf.train` into RUNS/PRESET_seedS, one after the
other; what it prints goes to RUNS/PRESET_seedS.log, and its figures, once it is done, to
RUNS/PRESET_seedS.json. OUTPUT.md and OUTPUT.json are written anew after every run, and so is
RUNS/tensorboard, which shows the study in TensorBoard's HParams. The same command again trains what
is missing, and resumes an interrupted run.
"""

import dataclasses
import fcntl
import itertools
import json
import pathlib
import shlex
import signal
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

from absl import flags

from benchmarks import hparams, machine
from hqc_tf import commands, config, files
from hqc_tf.data import catalog
from hqc_tf.errors import UserError
from hqc_tf.workdir import METRICS

_LAST_LINES = 10


class Run(NamedTuple):
    """A training of the study.

    Attributes:
        preset: the preset's name, its file's without the ending.
        arguments: flags of `hqc_tf.train`, --workdir left out.
        settings: `Config`, what they ask for.
        workdir: folder of the run.
    """

    preset: str
    arguments: list
    settings: config.Config
    workdir: pathlib.Path

    def beside(self, ending):
        """The file by the name of the workdir, with an ending."""
        return self.workdir.with_name(self.workdir.name + ending)


def plan(presets, seeds, budget, folder):
    """The `Run`s of a study, those of a preset together.

    Args:
        presets: names of flagfiles.
        seeds: of each preset, as on a command line.
        budget: flags for every run in one string, as in a shell; they win over a preset's.
        folder: where the runs lie.

    Raises:
        UserError: a preset, a seed or the budget is impossible, or two runs have one name.
    """
    try:
        shared = shlex.split(budget)
    except ValueError as error:
        raise UserError(f"--budget={budget}: {error}; quote it as in a shell") from error
    runs = []
    for preset, seed in itertools.product(presets, seeds):
        name = pathlib.Path(preset).stem
        arguments = [f"--flagfile={preset}", *shared, f"--seed={seed}"]
        workdir = pathlib.Path(folder, f"{name}_seed{seed}")
        if any(run.workdir == workdir for run in runs):
            raise UserError(f"{workdir}: two runs of this name; give each preset and seed once")
        runs.append(Run(name, arguments, resolve(arguments), workdir))
    if not runs:
        raise UserError("--presets, --seeds: no run comes of them; give at least one of each")
    return runs


def resolve(arguments):
    """The `Config` that flags of `hqc_tf.train` ask for; UserError where they cannot be."""
    given = shlex.join(arguments)
    try:
        settings, rest = config.parse(arguments)
        if rest:
            raise UserError(f"{rest[0]} is no flag; write --name=value")
        return settings
    except UserError as error:
        raise UserError(f"{given}: {error}") from error


def run_study(runs, output, command):
    """Trains the runs that are not done, one after the other, and keeps the table up to date.

    Args:
        runs: of `plan`.
        output: name of the files to write, without .md and .json.
        command: the study's own, to stand under the table.

    Raises:
        UserError: a run that is done had other settings, a training failed, or there are no labels.
    """
    records = {run.workdir: _read_record(run) for run in runs}
    check_labels({run.settings.dataset for run in runs})
    for folder in (runs[0].workdir.parent, pathlib.Path(output).parent):
        folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        records[run.workdir] = records[run.workdir] or _train(run)
        done = [record for record in records.values() if record]
        write_report(done, len(runs), output, command)
        hparams.write_hparams(done, run.workdir.with_name(hparams.TENSORBOARD))


def summarize(records):
    """The rows of the table, one per preset.

    Args:
        records: of finished runs, as RUNS/PRESET_seedS.json holds them.

    Returns:
        list of dicts: `preset`, `bits`, `runs`; `last` and `best`, each the mean, the least and the
        most mAP@R of these weights over the runs; `lowest_perplexity` of the last weights' books
            over
        the runs, 1 where a book has one codeword in use, K where all are alike. None: not known.
    """
    rows = []
    for preset in dict.fromkeys(record["preset"] for record in records):
        results = [record["results"] for record in records if record["preset"] == preset]
        perplexities = [min(r["last"]["perplexity"]) for r in results if "perplexity" in r["last"]]
        row = {"preset": preset, "bits": results[0]["last"]["bits"], "runs": len(results)}
        row |= {weights: _spread(results, weights) for weights in ("last", "best")}
        rows.append(row | {"lowest_perplexity": min(perplexities, default=None)})
    return rows


def write_report(records, planned, output, command):
    """Writes `output`.md and `output`.json, complete, from the finished runs of those planned."""
    report = {"command": command, "planned": planned, "presets": summarize(records)}
    figures = json.dumps(report | {"runs": records}, indent=2)
    files.replace_text(pathlib.Path(f"{output}.json"), figures + "\n")
    files.replace_text(pathlib.Path(f"{output}.md"), _page(report, records) + "\n")


def _spread(results, weights):
    found = [r[weights]["mean_average_precision"] for r in results if weights in r]
    if not found:
        return None
    return {"mean": statistics.fmean(found), "least": min(found), "most": max(found)}


def _read_record(run):
    """The record of a run that is done, or None."""
    path = run.beside(".json")
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    for name, value in _binding(run.settings).items():
        before = record["settings"].get(name)
        if before != value:
            raise UserError(
                f"{path}: this run is done, with --{name}={before}, not {value}; take another "
                f"--runs, or remove {run.workdir} and the .json and .log beside it"
            )
    return record


def _binding(settings):
    """What a run is bound to: all but where the data lies, which may move."""
    return {n: value for n, value in dataclasses.asdict(settings).items() if n != "data_dir"}


def check_labels(datasets):
    """Raises a UserError where a data set has no labels."""
    for dataset in datasets:
        # Other data sets all have labels.
        if catalog.parse(dataset).is_files and catalog.load_split(dataset, "query") is None:
            raise UserError(f"--dataset={dataset}: no labels; make a folder per label")


def _train(run):
    command = ["-m", "hqc_tf.train", *run.arguments, f"--workdir={run.workdir}"]
    record = {
        "preset": run.preset,
        "command": shlex.join(["python", *command]),
        "settings": _binding(run.settings),
        "commit": machine.commit(),
        "machine": machine.hardware(),
    }
    status = _call(command, run.beside(".log"))
    if status:
        raise UserError(
            f"{run.workdir}: training ended with status {status}, its last lines are above; fix "
            "the cause and give the command again: what is done is kept"
        )
    record["results"] = _results(run)
    record["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    files.replace_text(run.beside(".json"), json.dumps(record, indent=2) + "\n")
    return record


def _call(command, log):
    """Runs Python with its words in a log, the last ones on stderr if it fails; its status."""
    with log.open("a") as words:
        try:
            # The process inherits it: one that outlived its study still keeps others away.
            fcntl.flock(words, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{log}: in use by another process; wait for it, or end it") from error
        print("$", shlex.join(["python", *command]), file=words, flush=True)
        with subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
        ) as process:
            # A study that is told to end ends its training too, and stops at that.
            before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
            print(f"process {process.pid} trains, see {log}", flush=True)
            status = process.wait()
            signal.signal(signal.SIGTERM, before)
    if status:
        print(*log.read_text().splitlines()[-_LAST_LINES:], sep="\n", file=sys.stderr)
    return status


def _results(run):
    """The newest metrics of the run by their weights: "last", and "best" where it has them."""
    lines = map(json.loads, (run.workdir / METRICS).read_text().splitlines())
    # The workdir may have been evaluated by another distance since.
    found = [line for line in lines if line["distance"] == run.settings.distance]
    return {line["weights"]: line for line in found if line["weights"] in ("last", "best")}


def _page(report, records):
    lasts = [record["results"]["last"] for record in records]
    protocols = _distinct(
        f"mAP@{r['top_k']} by {r['distance']} distance, {r['protocol']}, chance {r['chance']:.4f}"
        for r in lasts
    )
    lines = [
        f"# Ablation: {len(records)} of {report['planned']} runs",
        "",
        f"{protocols}.",
        "Mean over seeds (least to most). The best weights are chosen without labels.",
        "Perplexity is that of a book's codewords under the last weights, the lowest of all.",
        "",
        "| preset | bits | runs | mAP, last weights | mAP, best weights | lowest perplexity |",
        "|---|---|---|---|---|---|",
        *map(_row, report["presets"]),
        "",
        f"    {report['command']}",
        "",
        f"- commit: {_distinct(record['commit'] for record in records)}",
        f"- machine: {_distinct(machine.describe(record['machine']) for record in records)}",
        f"- date: {_distinct(record['date'] for record in records)}",
    ]
    return "\n".join(lines)


def _row(row):
    lowest = row["lowest_perplexity"]
    cells = [row["preset"], row["bits"], row["runs"], _range(row["last"]), _range(row["best"])]
    cells.append("–" if lowest is None else f"{lowest:.1f}")
    return f"| {' | '.join(map(str, cells))} |"


def _range(spread):
    return "–" if spread is None else "{mean:.4f} ({least:.4f} to {most:.4f})".format(**spread)


def _distinct(texts):
    return "; ".join(sorted(set(texts)))


def main(_):
    values = flags.FLAGS
    runs = plan(values.presets, values.seeds, values.budget, values.runs)
    command = shlex.join(["python", "-m", "benchmarks.ablation", *sys.argv[1:]])
    run_study(runs, values.output, command)
    print(pathlib.Path(f"{values.output}.md").read_text())


if __name__ == "__main__":
    flags.DEFINE_list("presets", None, "flagfiles, with commas between", required=True)
    flags.DEFINE_list("seeds", ["1"], "seeds to train each preset with, with commas between")
    flags.DEFINE_string("budget", "", "flags for every run, in quotes; they win over a preset's")
    flags.DEFINE_string("runs", None, "folder of the runs; again = what is missing", required=True)
    flags.DEFINE_string("output", None, "name of the table, without .md and .json", required=True)
    commands.run(main)
