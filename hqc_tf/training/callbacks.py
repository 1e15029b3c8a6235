"""The callbacks of a training, in the order in which they run."""

import pathlib
import shutil
import signal
import sys
import threading
import time

import numpy as np
import tensorflow as tf

from hqc_tf import distribute, files, label_free, model
from hqc_tf.errors import UserError
from hqc_tf.numerics import NON_FINITE_FIX
from hqc_tf.progress import SECONDS, _write, describe, say
from hqc_tf.training.state import running_means

EPOCHS = "epochs.jsonl"
TENSORBOARD = "tensorboard"
SPEED = "speed.jsonl"


# TensorBoard shows each folder as a run of this name.
SPEED_RUN, HELD_OUT_RUN = "speed", "held_out"


class StopAtNonFinite(tf.keras.callbacks.Callback):
    """Raises `UserError` after the first step in which a loss term is infinite or no number.

    It has to stand before the callbacks that save.

    Args:
      first_step: the one that training begins or goes on with.
    """

    def __init__(self, first_step):
        super().__init__()
        self._step = first_step

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        # Of a mean one value that is not finite is never averaged away.
        bad = [name for name, value in logs.items() if not np.isfinite(value)]
        if bad:
            named = [name for name in bad if name != "loss"] or bad
            raise UserError(f"step {self._step}: not finite: {', '.join(named)}" + NON_FINITE_FIX)


class ShowTraining(tf.keras.callbacks.Callback):
    """Shows epoch, step, mean loss of the epoch, images/s and the time left of the whole run.

    The clock runs from the end of the first step, which may compile. It has to stand before the
    callbacks that print at the end of an epoch.

    Args:
      first_step, last_step: that training begins or goes on with, and ends at.
      per_epoch: steps of an epoch.
    """

    def __init__(self, first_step, last_step, per_epoch):
        super().__init__()
        self._step, self._last_step, self._per_epoch = first_step, last_step, per_epoch
        self._began = None

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        now = time.monotonic()
        if self._began is None:
            self._began, self._from, self._shown = now, self._step, now
        elif now - self._shown > SECONDS and sys.stderr.isatty():
            self._shown = now
            self._show(now, logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        say("", end="")

    def _show(self, now, loss):
        settings = self.model.settings
        pace = (now - self._began) / (self._step - self._from)
        left = describe(pace * (self._last_step - self._step))
        epoch, rate = -(-self._step // self._per_epoch), settings.batch_size / pace
        _write(
            f"epoch {epoch} of {settings.epochs}, step {self._step} of {self._last_step}: "
            f"loss {loss:.4f}, {rate:.0f} images/s, {left} left"
        )


class CloseEpoch(tf.keras.callbacks.Callback):
    """At the end of every epoch judges the weights without labels and saves them.

    They become the "last" weights, and the "best" ones where the recall is above that of all epochs
    before; without images kept from training the last are the best. `epochs.jsonl` gets a line, and
    TensorBoard its scalars. Lines and curves of epochs that are trained again are replaced.

    Args:
      workdir: folder of the run.
      held: `data.Images` kept from training, possibly none.
      per_epoch: steps of an epoch.
      first_epoch: the one that training begins or goes on with, from 0.
    """

    def __init__(self, workdir, held, per_epoch, first_epoch):
        super().__init__()
        self._workdir = workdir
        self._held = held
        self._per_epoch = per_epoch
        self._lines = [line for line in read_epochs(workdir) if line["epoch"] < first_epoch]
        self._curves = None

    def on_train_begin(self, logs=None):
        if self._curves or not distribute.is_chief(self.model.distribute_strategy):
            return
        # What a killed run had not yet written out is missing, or would stand there twice.
        folder = pathlib.Path(self._workdir, TENSORBOARD)
        shutil.rmtree(folder, ignore_errors=True)
        self._curves = tf.summary.create_file_writer(str(folder))
        for line in self._lines:
            self._draw(line)

    def on_epoch_end(self, epoch, logs=None):
        step = (epoch + 1) * self._per_epoch
        line = {"epoch": epoch, "step": step, **{name: float(x) for name, x in logs.items()}}
        rate = self.model.optimizer.learning_rate
        # Keras' legacy optimizers, LAMB among them, hold the schedule, the others its last value.
        line["learning_rate"] = float((rate(step - 1) if callable(rate) else rate).numpy())
        if len(self._held):
            line |= self._judge(logs)
        # Without images kept from training, the newest weights are the best there are.
        best = all(
            line.get("recall_at_1", 1) > other.get("recall_at_1", 0) for other in self._lines
        )
        for weights in ["best", "last"] if best else ["last"]:
            model.save_weights(self.model, self._workdir, step, weights)
        self._lines.append(line)
        if self._curves:
            files.replace_lines(pathlib.Path(self._workdir, EPOCHS), self._lines)
            self._draw(line)

    def _judge(self, logs):
        judged = label_free.judge(self.model, self._held)
        # Keras shows them beside the losses.
        logs["recall_at_1"] = judged.recall_at_1
        logs["least_perplexity"] = judged.perplexity.min()
        warning = label_free.collapse_warning(judged.perplexity, self.model.settings.num_words)
        if warning:
            say(warning)
        return judged.as_json()

    def _draw(self, line):
        with self._curves.as_default(line["epoch"]):
            for name, value in line.items():
                if name == "perplexity":
                    for book, words in enumerate(value):
                        tf.summary.scalar(f"perplexity/book_{book:02d}", words)
                elif name not in ("epoch", "step", "held_out"):
                    tf.summary.scalar(f"epoch_{name}", value)
        self._curves.flush()


class MeasureSpeed(tf.keras.callbacks.Callback):
    """Measures how many images a second each epoch learns from, over all replicas.

    `speed.jsonl` gets a line per epoch, and TensorBoard the scalar `images_per_second`. The clock
    runs from the end of the epoch's first step in this process, which may compile, to that of its
    last; an epoch of one step has no speed. Lines of epochs that are trained again are replaced.
    It has to stand behind `epochs.CloseEpoch`, which empties TensorBoard's folder.

    Args:
      workdir: folder of the run.
      first_epoch: the one that training begins or goes on with, from 0.
    """

    def __init__(self, workdir, first_epoch):
        super().__init__()
        self._workdir = workdir
        self._lines = [line for line in read_speed(workdir) if line["epoch"] < first_epoch]
        self._curve = None

    def on_train_begin(self, logs=None):
        if self._curve or not distribute.is_chief(self.model.distribute_strategy):
            return
        folder = pathlib.Path(self._workdir, TENSORBOARD, SPEED_RUN)
        self._curve = tf.summary.create_file_writer(str(folder))
        for line in self._lines:
            self._draw(line)

    def on_epoch_begin(self, epoch, logs=None):
        self._ends = []

    def on_train_batch_end(self, batch, logs=None):
        self._ends.append(time.perf_counter())

    def on_epoch_end(self, epoch, logs=None):
        steps = len(self._ends) - 1
        if not self._curve or steps < 1:
            return
        images = steps * self.model.settings.batch_size
        line = {"epoch": epoch, "images_per_second": images / (self._ends[-1] - self._ends[0])}
        self._lines.append(line)
        files.replace_lines(pathlib.Path(self._workdir, SPEED), self._lines)
        self._draw(line)

    def _draw(self, line):
        with self._curve.as_default(line["epoch"]):
            tf.summary.scalar("images_per_second", line["images_per_second"])
        self._curve.flush()


class KeepState(tf.keras.callbacks.Callback):
    """Saves the state every so many steps or minutes, and when the process is told to stop.

    A state due at the end of an epoch waits until the callbacks before this one have closed the
    epoch. SIGTERM and SIGINT let the step end, save, and end the process with status 128 + signal;
    a second one ends it at once. Where several processes train together only the steps count, since
    all have to save at once.

    Args:
      state: `RunState`.
      every_steps, every_minutes: what comes first counts.
      per_epoch: steps of an epoch.
      last_step: of the run.
    """

    def __init__(self, state, every_steps, every_minutes, per_epoch, last_step):
        super().__init__()
        self._state = state
        self._every_steps = every_steps
        self._alone = not distribute.has_other_processes(state.model.distribute_strategy)
        self._every_seconds = 60 * every_minutes
        self._per_epoch = per_epoch
        self._last_step = last_step
        self._told = None
        self._note_saved()
        within = self._step % per_epoch
        self._carried = [v.numpy() for v in running_means(state.model)] if within else []

    def on_train_begin(self, logs=None):
        # Python lets only the main thread answer signals.
        answers = self._alone and threading.current_thread() is threading.main_thread()
        self._before = {
            number: signal.signal(number, self._tell)
            for number in (signal.SIGTERM, signal.SIGINT)
            if answers
        }

    def on_train_end(self, logs=None):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_epoch_begin(self, epoch, logs=None):
        # Keras has just set the running means to zero; of an epoch gone on with they are kept.
        for variable, value in zip(running_means(self.model), self._carried, strict=False):
            variable.assign(value)
        self._carried = []

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        if self._step % self._per_epoch:
            self._save_if_due()

    def on_epoch_end(self, epoch, logs=None):
        self._save_if_due()

    def _tell(self, number, frame):
        self._told = number
        signal.signal(number, self._before[number])

    def _save_if_due(self):
        late = self._alone and time.monotonic() - self._saved_at >= self._every_seconds
        many = self._step - self._saved_step >= self._every_steps
        if late or many or self._told or self._step == self._last_step:
            self._state.save()
            self._note_saved()
        if self._told and self._step < self._last_step:
            name = signal.Signals(self._told).name
            say(
                f"{name}: stopped after step {self._step} of {self._last_step}; the same command "
                "goes on from there"
            )
            self.on_train_end()
            sys.exit(128 + self._told)

    def _note_saved(self):
        self._step = self._saved_step = self._state.step
        self._saved_at = time.monotonic()


def read_epochs(workdir):
    """The lines of `epochs.jsonl`, a dict per epoch; empty before the first has ended."""
    judged = {"recall_at_1": float, "perplexity": [float]}
    path = pathlib.Path(workdir, EPOCHS)
    return files.read_lines(path, {"epoch": int, "step": int}, judged, rest=float)


def read_speed(workdir):
    """The lines of `speed.jsonl`, a dict per epoch; empty where there is none."""
    kinds = {"epoch": int, "images_per_second": float}
    return files.read_lines(pathlib.Path(workdir, SPEED), kinds)
