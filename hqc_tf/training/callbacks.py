"""The callbacks of a training, and the order in which they run."""

import pathlib
import shutil
import sys
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tqdm

from hqc_tf import distribute, files, label_free
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError
from hqc_tf.numerics import NON_FINITE_FIX
from hqc_tf.training.state import KeepState, RunState
from hqc_tf.workdir import (
    SPEED_RUN,
    TENSORBOARD,
    EpochLine,
    Folder,
    SpeedLine,
    read_epochs,
    read_speed,
    save_weights,
    write_epochs,
    write_speed,
)

# After so long a line says how long training will take.
_MEASURED_SECONDS = 10


def make_callbacks(
    state: RunState,
    workdir: Folder,
    held: Images,
    per_epoch: int,
    more: Sequence[tf.keras.callbacks.Callback] = (),
) -> list[tf.keras.callbacks.Callback]:
    """The callbacks of a run, in their order: nothing non-finite is saved, `KeepState` comes last.

    Args:
        state: of the run, restored.
        workdir: folder of the run.
        held: images held out from training, possibly none.
        per_epoch: steps per epoch.
        more: the caller's callbacks, before the state is saved.
    """
    settings, step = state.model.settings, state.step
    first_epoch, last_step = step // per_epoch, settings.epochs * per_epoch
    every = settings.checkpoint_steps, settings.checkpoint_minutes
    return [
        StopAtNonFinite(step),
        ShowProgress(step, last_step, per_epoch),
        CloseEpoch(workdir, held, per_epoch, first_epoch),
        MeasureSpeed(workdir, first_epoch),
        ShowEpoch(),
        *more,
        KeepState(state, *every, per_epoch, last_step),
    ]


class StopAtNonFinite(tf.keras.callbacks.Callback):
    """Raises `UserError` after the first step in which a loss term is infinite or NaN.

    Training starts or resumes after `first_step` steps.
    """

    def __init__(self, first_step: int):
        super().__init__()
        self._step = first_step

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        # The values are means over the epoch, in which a non-finite value never averages out.
        bad = [name for name, value in logs.items() if not np.isfinite(value)]
        if bad:
            named = [name for name in bad if name != "loss"] or bad
            raise UserError(f"step {self._step}: not finite: {', '.join(named)}" + NON_FINITE_FIX)


class ShowProgress(tf.keras.callbacks.Callback):
    """Shows epoch, step, mean loss of the epoch, images/s and the time left on a terminal.

    The clock starts at the end of the first step, which may compile. After `_MEASURED_SECONDS` a
    line says when training will end. An epoch's line follows after this callback has cleared the
    bar. Training starts or resumes after `first_step` steps, and ends with `last_step`, of
    `per_epoch` an epoch.
    """

    def __init__(self, first_step: int, last_step: int, per_epoch: int):
        super().__init__()
        self._step, self._last_step, self._per_epoch = first_step, last_step, per_epoch

    def on_train_begin(self, logs=None):
        self._bar = None

    def _tell_time(self):
        """Once, where the speed is known."""
        seconds, steps = time.perf_counter() - self._began, self._step - self._first
        if self._told or seconds < _MEASURED_SECONDS:
            return
        self._told = True
        left = seconds / steps * (self._last_step - self._step)
        rate = steps * self.model.settings.batch_size / seconds
        tqdm.tqdm.write(f"{rate:.0f} images/s: about {_rounded(left)} to go", file=sys.stderr)

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        settings = self.model.settings
        if self._bar is None:
            self._began, self._first, self._told = time.perf_counter(), self._step, False
            self._bar = tqdm.tqdm(
                initial=self._step * settings.batch_size,
                total=self._last_step * settings.batch_size,
                unit=" images",
                bar_format="{desc}{rate_fmt}, {remaining} left",
                smoothing=0,
                leave=False,
                disable=None,
            )
        elif not self._bar.disable:
            epoch = -(-self._step // self._per_epoch)
            self._bar.set_description_str(
                f"epoch {epoch} of {settings.epochs}, step {self._step} of {self._last_step}: "
                f"loss {logs['loss']:.4f}, ",
                refresh=False,
            )
            self._bar.update(settings.batch_size)
        if self._step > self._first:
            self._tell_time()

    def on_epoch_end(self, epoch, logs=None):
        self._bar.clear()

    def on_train_end(self, logs=None):
        self._bar.close()


def _rounded(seconds):
    """A time in words: 40 seconds, 12 minutes, 3.5 hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


class _LinePerEpoch(tf.keras.callbacks.Callback):
    """Keeps a line per epoch, in a file and as TensorBoard's curves; the chief alone writes both.

    Lines and curves of epochs that are trained again are replaced.
    """

    def __init__(self, workdir, folder, lines, first_epoch):
        super().__init__()
        self._workdir, self._folder = workdir, pathlib.Path(workdir, folder)
        self._lines = [line for line in lines if line.epoch < first_epoch]
        self._curves = None

    def on_train_begin(self, logs=None):
        if self._curves or not distribute.is_chief(self.model.distribute_strategy):
            return
        # A killed run may have written some curves and not others, so all are drawn again.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._curves = tf.summary.create_file_writer(str(self._folder))
        for line in self._lines:
            self._draw(line)

    def _add(self, line, write):
        self._lines.append(line)
        if self._curves:
            write(self._workdir, self._lines)
            self._draw(line)

    def _draw(self, line):
        with self._curves.as_default(line.epoch):
            for name, value in self._scalars(line):
                tf.summary.scalar(name, value)
        self._curves.flush()


class CloseEpoch(_LinePerEpoch):
    """At the end of every epoch evaluates the weights without labels and saves them.

    They become the "last" weights, and the "best" ones where the recall is above that of all epochs
    before; without held-out images the last are the best. epochs.jsonl gets a line, and TensorBoard
    its scalars.

    Args:
        workdir: folder of the run.
        held: images held out from training, possibly none.
        per_epoch: steps per epoch.
        first_epoch: the one in which training starts or resumes, from 0.
    """

    def __init__(self, workdir: Folder, held: Images, per_epoch: int, first_epoch: int):
        super().__init__(workdir, TENSORBOARD, read_epochs(workdir), first_epoch)
        self._held, self._per_epoch, self._warned = held, per_epoch, False

    def on_epoch_end(self, epoch, logs=None):
        step = (epoch + 1) * self._per_epoch
        rate = self.model.optimizer.learning_rate
        losses = {name: float(value) for name, value in logs.items()}
        # Keras' legacy optimizers, LAMB among them, hold the schedule, the others its last value.
        rate = float((rate(step - 1) if callable(rate) else rate).numpy())
        scores = self._evaluate(logs) if len(self._held) else {}
        line = EpochLine(epoch, step, losses, rate, **scores)
        # Without held-out images every epoch counts as better than those before.
        recall = 1 if line.recall_at_1 is None else line.recall_at_1
        best = all(recall > (other.recall_at_1 or 0) for other in self._lines)
        for weights in ["best", "last"] if best else ["last"]:
            save_weights(self.model, self._workdir, step, weights)
        self._add(line, write_epochs)

    def _evaluate(self, logs):
        scores = label_free.evaluate(self.model, self._held)
        # `ShowEpoch` prints these beside the loss.
        logs["recall_at_1"] = scores.recall_at_1
        logs["least_perplexity"] = scores.perplexity.min()
        warning = label_free.collapse_warning(scores.perplexity, self.model.settings.num_words)
        if warning and not self._warned:
            self._warned = True
            tqdm.tqdm.write(warning, file=sys.stderr)
        return scores.as_fields()

    def _scalars(self, line):
        for name, value in files.as_json(line).items():
            if name == "perplexity":
                yield from ((f"perplexity/book_{n:02d}", words) for n, words in enumerate(value))
            elif name not in ("epoch", "step", "held_out"):
                yield f"epoch_{name}", value


class MeasureSpeed(_LinePerEpoch):
    """Measures how many images per second each epoch trains on, over all replicas.

    speed.jsonl gets a line per epoch, and TensorBoard the scalar `images_per_second`. The clock
    runs from the end of the epoch's first step in this process, which may compile, to the end of
    its last; an epoch of one step has no speed. `CloseEpoch`, whose arguments it has, has to come
    first, since it empties TensorBoard's folder.
    """

    def __init__(self, workdir: Folder, first_epoch: int):
        super().__init__(workdir, SPEED_RUN, read_speed(workdir), first_epoch)

    def on_epoch_begin(self, epoch, logs=None):
        self._ends = []

    def on_train_batch_end(self, batch, logs=None):
        self._ends.append(time.perf_counter())

    def on_epoch_end(self, epoch, logs=None):
        steps = len(self._ends) - 1
        if steps > 0:
            images = steps * self.model.settings.batch_size
            speed = images / (self._ends[-1] - self._ends[0])
            self._add(SpeedLine(epoch, speed), write_speed)

    def _scalars(self, line):
        return [("images_per_second", line.images_per_second)]


class ShowEpoch(tf.keras.callbacks.Callback):
    """Prints a line at the end of each epoch; the losses one by one are in epochs.jsonl."""

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        if not distribute.is_chief(self.model.distribute_strategy):
            return
        parts = [f"loss {logs['loss']:.4f}"]
        if "recall_at_1" in logs:
            parts.append(f"recall@1 {logs['recall_at_1']:.3f}")
            parts.append(f"least perplexity {logs['least_perplexity']:.1f}")
        parts.append(f"{time.perf_counter() - self._began:.0f} s")
        print(f"epoch {epoch + 1} of {self.model.settings.epochs}: {', '.join(parts)}", flush=True)
