"""What a run needs to go on where it was: the whole state after a step, saved as it trains.

A state is the last thing written after a step, behind the weights and figures of an epoch. What was
written beyond the newest state is written again, bit for bit the same.
"""

import pathlib
import shutil
import signal
import sys
import threading
import time

import tensorflow as tf

from hqc_tf import distribute, finite, progress
from hqc_tf.config import UserError

STATES = "checkpoints/state"
# One more than needed: should the newest be damaged, the one before serves.
_KEPT = 2


def newest_step(workdir):
    """The step of the newest state in `workdir`, or None where there is none."""
    newest = tf.train.latest_checkpoint(pathlib.Path(workdir, STATES))
    return newest and int(newest.rpartition("-")[2])


class RunState:
    """Weights, optimizer and running means of a model in training, in a workdir.

    Args:
      trained: compiled `HQC`.
      workdir: folder of the run.
    """

    def __init__(self, trained, workdir):
        self.model = trained
        self._saved = tf.train.Checkpoint(model=trained, optimizer=trained.optimizer)
        self._folder = pathlib.Path(workdir, STATES)

    @property
    def step(self):
        """Steps behind the model."""
        return int(self.model.optimizer.iterations.numpy())

    def save(self):
        """Saves the state under the number of its step; older ones go once it is whole.

        Raises:
          UserError: a weight is not finite; nothing is saved.
        """
        finite.check_weights(self.model, self.step)
        with distribute.folder_to_save_in(self.model.distribute_strategy, self._folder) as folder:
            self._manager(folder).save(checkpoint_number=self.step)
        self._take_what_was_saved()

    def restore(self):
        """Takes the newest state that can be read; returns its step, 0 where there is none.

        A state that cannot be read, half-written or damaged, is named and passed over. What else
        was left half-written is removed.

        Raises:
          UserError: there are states, and none can be read; or the processes of a run do not find
            the same.
        """
        if distribute.is_chief(self.model.distribute_strategy):
            self._remove_half_written()
        step = self._restore_newest()
        if not distribute.is_same_for_all(self.model.distribute_strategy, step):
            raise UserError(
                f"{self._folder}: not every process finds the state of step {step} there; "
                "--workdir must be a folder that all of them share"
            )
        return step

    def _take_what_was_saved(self):
        # Of what each replica has for itself, batch norm's running statistics above all, the mean
        # or sum was saved. A restart would give it to all, so a run that goes on takes it too.
        strategy = self.model.distribute_strategy
        if strategy.num_replicas_in_sync == 1:
            return
        with strategy.scope():
            for variable in [*self.model.variables, *_running_means(self.model)]:
                if variable.synchronization == tf.VariableSynchronization.ON_READ:
                    variable.assign(variable.numpy())

    def _restore_newest(self):
        states = self._manager(self._folder).checkpoints
        for path in reversed(states):
            try:
                self._saved.restore(path).expect_partial()
                return self.step
            except (tf.errors.OpError, LookupError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                progress.say(f"{path}: cannot be read ({reason}); passed over")
        if states:
            raise UserError(f"{self._folder}: no state can be read; delete it to train anew")
        return 0

    def _remove_half_written(self):
        # TensorFlow writes a checkpoint aside; a kill or a full disk leaves that there.
        for aside in self._folder.parent.glob("*/*_temp"):
            shutil.rmtree(aside, ignore_errors=True)

    def _manager(self, folder):
        return tf.train.CheckpointManager(self._saved, folder, max_to_keep=_KEPT)


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
        self._carried = [v.numpy() for v in _running_means(state.model)] if within else []

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
        for variable, value in zip(_running_means(self.model), self._carried, strict=False):
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
            progress.say(
                f"{name}: stopped after step {self._step} of {self._last_step}; the same command "
                "goes on from there"
            )
            self.on_train_end()
            sys.exit(128 + self._told)

    def _note_saved(self):
        self._step = self._saved_step = self._state.step
        self._saved_at = time.monotonic()


def _running_means(model):
    return [variable for metric in model.metrics for variable in metric.variables]
