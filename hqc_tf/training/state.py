"""The state from which a run resumes, saved as it trains.

A state is the last thing written after a step, behind the weights and figures of an epoch. What was
written after the newest state is trained and written again, bit for bit the same.
"""

import contextlib
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator

import tensorflow as tf
import tqdm

from hqc_tf import distribute, model, numerics
from hqc_tf.errors import UserError, naming_damage
from hqc_tf.workdir import (
    CHECKPOINTS,
    STATES,
    Folder,
    checkpoint,
    clean_checkpoints,
    saved_steps,
    write_checkpoint,
)


def newest_step(workdir: Folder) -> int | None:
    """The step of the newest state in `workdir`, or None where there is none."""
    return next(iter(saved_steps(pathlib.Path(workdir, STATES))), None)


class RunState:
    """Weights, optimizer and running means of a compiled model in training, kept in a workdir."""

    def __init__(self, trained: model.HQC, workdir: Folder):
        self.model = trained
        self._saved = tf.train.Checkpoint(model=trained, optimizer=trained.optimizer)
        self._workdir = pathlib.Path(workdir)
        self._folder = self._workdir / STATES
        self._intact = None

    @property
    def step(self) -> int:
        """Training steps behind the model."""
        return int(self.model.optimizer.iterations.numpy())

    def save(self) -> None:
        """Saves the state of its step; the one saved or restored before stays, all others go.

        UserError where a weight is not finite; nothing is saved.
        """
        numerics.check_weights(self.model, self.step)
        with distribute.folder_to_save_in(self.model.distribute_strategy, self._folder) as folder:
            # Where the newest is damaged, the one before serves.
            write_checkpoint(self._saved, folder, self.step, kept=self._intact)
        self._intact = self.step
        self._take_what_was_saved()

    def restore(self) -> int:
        """Restores the newest readable state; returns its step, 0 where there is no state.

        An unreadable state, incomplete or damaged, is reported and skipped. What a killed writer
        left is removed.

        Raises:
            UserError: there are states and none is readable, or the processes of a run do not find
                the same one.
        """
        if distribute.is_chief(self.model.distribute_strategy):
            for name in CHECKPOINTS:
                clean_checkpoints(self._workdir / name)
        step = self._restore_newest()
        if not distribute.is_same_for_all(self.model.distribute_strategy, step):
            raise UserError(
                f"{self._folder}: not every process finds the state of step {step} there; "
                "--workdir must be a folder that all of them share"
            )
        return step

    def _take_what_was_saved(self):
        # Where each replica has a value of its own, as in batch norm's running statistics, the mean
        # or sum is saved. A resumed run gives it to all replicas, so this run has to do the same.
        strategy = self.model.distribute_strategy
        if strategy.num_replicas_in_sync == 1:
            return
        with strategy.scope():
            for variable in [*self.model.variables, *running_means(self.model)]:
                if variable.synchronization == tf.VariableSynchronization.ON_READ:
                    variable.assign(variable.numpy())

    def _restore_newest(self):
        for step in saved_steps(self._folder):
            path = checkpoint(self._folder, step)
            try:
                with naming_damage(path, "skipped"):
                    self._saved.read(path).expect_partial()
                    if self.step != step:
                        raise ValueError(f"it is of step {self.step}")
            except UserError as error:
                tqdm.tqdm.write(str(error), file=sys.stderr)
                continue
            self._intact = step
            return step
        if any(self._folder.glob("*.index")):
            raise UserError(
                f"{self._folder}: no state is readable; restore a copy, or take another --workdir"
            )
        return 0


def running_means(trained: model.HQC) -> list[tf.Variable]:
    """The variables of the metrics that Keras averages over an epoch."""
    return [variable for metric in trained.metrics for variable in metric.variables]


class KeepState(tf.keras.callbacks.Callback):
    """Saves the state at intervals of steps or minutes, and when the process is told to stop.

    A state due at the end of an epoch waits until the callbacks before this one have closed the
    epoch. Within `handling_signals` SIGTERM and SIGINT let the step end, save, and end the process
    with status 128 + signal; a second one ends it at once. Where several processes train together
    only steps count, since all have to save at once.

    Args:
        state: of the run.
        every_steps: steps between two states.
        every_minutes: minutes after which a state is saved though the steps are fewer.
        per_epoch: steps per epoch.
        last_step: of the run.
    """

    def __init__(
        self,
        state: RunState,
        every_steps: int,
        every_minutes: float,
        per_epoch: int,
        last_step: int,
    ):
        super().__init__()
        self._state = state
        self._every_steps, self._every_seconds = every_steps, 60 * every_minutes
        self._alone = not distribute.has_other_processes(state.model.distribute_strategy)
        self._per_epoch, self._last_step = per_epoch, last_step
        self._signal = None
        self._note_saved()
        within = self._step % per_epoch
        self._restored_means = [v.numpy() for v in running_means(state.model)] if within else []

    @contextlib.contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Answers signals as said above; after it they are answered as before."""
        # Python lets only the main thread handle signals.
        handles = self._alone and threading.current_thread() is threading.main_thread()
        handled = (signal.SIGTERM, signal.SIGINT) if handles else ()
        self._before = {number: signal.signal(number, self._note_signal) for number in handled}
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def on_epoch_begin(self, epoch, logs=None):
        # Keras has just reset the running means; a resumed epoch continues with the saved ones.
        for variable, value in zip(running_means(self.model), self._restored_means, strict=False):
            variable.assign(value)
        self._restored_means = []

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        if self._step % self._per_epoch:
            self._save_if_due()

    def on_epoch_end(self, epoch, logs=None):
        self._save_if_due()

    def _note_signal(self, number, frame):
        self._signal = number
        signal.signal(number, self._before[number])

    def _save_if_due(self):
        late = self._alone and time.monotonic() - self._saved_at >= self._every_seconds
        many = self._step - self._saved_step >= self._every_steps
        if late or many or self._signal or self._step == self._last_step:
            self._state.save()
            self._note_saved()
        if self._signal and self._step < self._last_step:
            stopped = f"stopped after step {self._step} of {self._last_step}"
            text = f"{signal.Signals(self._signal).name}: {stopped}; the same command resumes there"
            tqdm.tqdm.write(text, file=sys.stderr)
            sys.exit(128 + self._signal)

    def _note_saved(self):
        self._step = self._saved_step = self._state.step
        self._saved_at = time.monotonic()
