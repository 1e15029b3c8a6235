"""Kills real trainings and compares: `python -m benchmarks.kill_test --data_dir=data/tfds`

Trains on a folder of real images once without a stop. Then, again and again, starts the same
training in a fresh folder, kills it with SIGKILL at a random moment, or in the next checkpoint that
it writes, starts it again and compares: weights, state, figures of every epoch, evaluations and
TensorBoard's curves must be the same to the bit. With --workers=2 two processes train together; a
kill takes the chief or the other one, the rest is stopped and all are started again. With
--restart=each nobody stops the rest, and each process is started again when it ends by itself, as
Jobs of Kubernetes are. The file of --output has the kills so far, and the same command resumes from
there.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import PIL.Image
import tensorflow as tf
from absl import flags

from benchmarks import machine
from hqc_tf import commands, files
from hqc_tf.data import catalog
from hqc_tf.errors import UserError
from hqc_tf.workdir import EPOCHS, METRICS, STATES, TENSORBOARD, read_epochs

IMAGES = 240
# More of one process after one kill means that it does not get out of it.
_MOST_STARTS = 10
TRAINING = [
    "--image_size=16", "--backbone_width=2", "--num_books=4", "--batch_size=16", "--epochs=4",
    "--warmup_epochs=1", "--top_k=50", "--held_out=20", "--checkpoint_steps=3",
]  # fmt: skip


class Run:
    """One training in a folder, of one process or several.

    Args:
        photos: folder of images.
        folder: the workdir; FOLDER.N.log gets what process N says.
        workers: number of processes.
        restart: "all" together after a kill, or "each" when it has ended.
    """

    def __init__(self, photos, folder, workers, restart):
        self.folder = folder
        strategy = ["--strategy=multi_worker"] if workers > 1 else []
        self._command = [
            sys.executable, "-m", "hqc_tf.train", f"--dataset=folder:{photos}",
            f"--workdir={folder}", *TRAINING, *strategy,
        ]  # fmt: skip
        self._workers = range(workers)
        self._restart = restart

    def start(self):
        """Starts all processes; what they say is added to their logs."""
        ports = machine.free_ports(len(self._workers))
        self._hosts = [f"127.0.0.1:{port}" for port in ports]
        self.processes = [self._start(index) for index in self._workers]

    def _start(self, index):
        task = {"cluster": {"worker": self._hosts}, "task": {"type": "worker", "index": index}}
        known = {"TF_CONFIG": json.dumps(task)} if len(self._hosts) > 1 else {}
        with pathlib.Path(f"{self.folder}.{index}.log").open("a") as log:
            return subprocess.Popen(self._command, env=os.environ | known, stdout=log, stderr=log)

    def finish(self):
        """Waits for the end; UserError where a process fails."""
        for index, process in enumerate(self.processes):
            if process.wait():
                raise UserError(f"status {process.returncode} of a training: {self._said(index)}")

    def kill(self, victim):
        """Kills one process and, where all are started again together, the rest."""
        rest = self.processes if self._restart == "all" else []
        for process in [self.processes[victim], *rest]:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def go_on(self):
        """Starts what was killed again and waits for the end; returns how often each was started.

        Raises:
            UserError: a process fails; with "each", it fails again and again.
        """
        if self._restart == "all":
            self.start()
            self.finish()
            return [1 for _ in self._workers]
        starts = [0 for _ in self._workers]
        while any(process.poll() != 0 for process in self.processes):
            for index in self._workers:
                if self.processes[index].poll():
                    starts[index] += 1
                    self.processes[index] = self._start(index)
            if max(starts) > _MOST_STARTS:
                failed = starts.index(max(starts))
                raise UserError(f"a training fails again and again: {self._said(failed)}")
            time.sleep(1)
        return starts

    def _said(self, index):
        return pathlib.Path(f"{self.folder}.{index}.log").read_text()[-500:]

    @property
    def runs(self):
        return all(process.poll() is None for process in self.processes)


def kill_and_go_on(run, moment, in_checkpoint, victim):
    """Starts a run, kills it `moment` seconds later or in the checkpoint after, starts it again.

    Returns:
        dict of when it was killed and what stood there, for a person to read; "killed" false where
        the training was over before, after "seconds".
    """
    run.start()
    started = time.monotonic()
    if not _wait(run, moment, in_checkpoint):
        return {"killed": False, "seconds": time.monotonic() - started}
    seconds = time.monotonic() - started
    run.kill(victim)
    states = sorted(path.stem for path in (run.folder / STATES).glob("*.index"))
    found = {
        "killed": True,
        "victim": victim,
        "seconds": round(seconds, 2),
        "in_checkpoint": in_checkpoint,
        "states": states,
        "epochs": len(read_epochs(run.folder)),
    }
    return found | {"starts": run.go_on()}


def _wait(run, moment, in_checkpoint):
    """Waits until the time to kill has come; False where the run ended before."""
    ends = time.monotonic() + moment
    while run.runs:
        late = time.monotonic() >= ends
        if late and (not in_checkpoint or any((run.folder / "checkpoints").glob("*/*temp*"))):
            return True
        time.sleep(0 if late else 0.01)
    return False


def differences(folder, other):
    """Names of what differs between two finished runs; empty where they are the same."""
    found = []
    for kind in ("state", "last", "best"):
        one, two = (arrays(f / "checkpoints" / kind) for f in (folder, other))
        names = one.keys() | two.keys()
        found += [f"{kind}/{name}" for name in names if not _equal(one.get(name), two.get(name))]
    for name in (EPOCHS, METRICS):
        one, two = (
            [json.loads(line) | {"time": 0} for line in (f / name).read_text().splitlines()]
            for f in (folder, other)
        )
        found += [] if one == two else [name]
    one, two = (_curves(f / TENSORBOARD) for f in (folder, other))
    return found + ([] if one == two else [TENSORBOARD])


def _equal(one, two):
    return one is not None and two is not None and np.array_equal(one, two)


def arrays(folder):
    """The variables of the newest checkpoint in `folder`, by name."""
    newest = tf.train.latest_checkpoint(folder)
    names = [name for name, _ in tf.train.list_variables(newest)]
    # The graph of objects and the number of times saved are TensorFlow's own.
    names = [name for name in names if "OBJECT_GRAPH" not in name and "save_counter" not in name]
    return {name: tf.train.load_variable(newest, name) for name in names}


def _curves(folder):
    return sorted(
        (value.tag, event.step, float(tf.make_ndarray(value.tensor)))
        for file in folder.glob("events.*")
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    )


def _write_photos(folder, data_dir):
    images = catalog.load_images(f"fashion_mnist/test[:{IMAGES}]", data_dir)
    for row, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        path = folder / f"class{label}" / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(path)


def _kept(path, told):
    """The kills that a file of --output has of the same test; none without one.

    Raises:
        UserError: it is of another test.
    """
    if not path or not pathlib.Path(path).exists():
        return []
    before = json.loads(pathlib.Path(path).read_text())
    for name, value in told.items():
        if before[name] != value:
            raise UserError(f"--output={path}: of {name} {before[name]}, not {value}; take another")
    return before["kills"]


def _keep(path, results, told):
    if path:
        equal = sum(not kill["differences"] for kill in results)
        text = json.dumps({"equal": equal, "kills": results} | told, indent=1)
        files.replace_text(pathlib.Path(path), text + "\n")


def main(_):
    values = flags.FLAGS
    test = {
        "workers": values.workers,
        "restart": values.restart,
        "hardware": machine.hardware(),
        "commit": machine.commit(),
    }
    results = _kept(values.output, test)
    chance = random.Random(f"{values.seed} {len(results)}")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        _write_photos(folder / "photos", values.data_dir)
        whole = Run(folder / "photos", folder / "whole", values.workers, values.restart)
        started = time.monotonic()
        whole.start()
        whole.finish()
        seconds = time.monotonic() - started
        print(f"never stopped: {seconds:.1f} s", flush=True)
        latest = seconds
        while len(results) < values.kills:
            trial = folder / f"trial{len(results)}"
            in_checkpoint = len(results) < values.in_checkpoint
            run = Run(folder / "photos", trial, values.workers, values.restart)
            moment = chance.uniform(0, latest)
            told = kill_and_go_on(run, moment, in_checkpoint, chance.randrange(values.workers))
            if told["killed"]:
                told["differences"] = differences(whole.folder, trial)
                results.append(told)
                _keep(values.output, results, test)
                shown = (
                    f"{len(told['differences'])} differences" if told["differences"] else "equal"
                )
                print(json.dumps(told | {"differences": shown}), flush=True)
            else:
                # A quieter machine than at the start: later moments would be in vain.
                latest = min(latest, told["seconds"])
            shutil.rmtree(trial)
    equal = sum(not told["differences"] for told in results)
    print(f"{equal} of {len(results)} equal")
    return int(equal < len(results))


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 20, "trainings to kill", lower_bound=1)
    flags.DEFINE_integer("in_checkpoint", 5, "of these, killed while a checkpoint is written")
    flags.DEFINE_integer("workers", 1, "processes that train together", lower_bound=1)
    flags.DEFINE_enum(
        "restart", "all", ["all", "each"], "after a kill: all together, or each that has ended"
    )
    flags.DEFINE_integer("seed", 1, "of the moments")
    flags.DEFINE_string("data_dir", "data/tfds", "where prepared Fashion-MNIST lies")
    flags.DEFINE_string("output", "", "JSON file to write the results to")
    commands.run(main)
