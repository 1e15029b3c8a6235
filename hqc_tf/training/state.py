"""What a run needs to go on where it was: the whole state after a step, saved as it trains.

A state is the last thing written after a step, behind the weights and figures of an epoch. What was
written beyond the newest state is written again, bit for bit the same.
"""

import pathlib
import shutil

import tensorflow as tf

from hqc_tf import distribute, numerics
from hqc_tf.errors import UserError
from hqc_tf.progress import say

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
        numerics.check_weights(self.model, self.step)
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
            for variable in [*self.model.variables, *running_means(self.model)]:
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
                say(f"{path}: cannot be read ({reason}); passed over")
        if states:
            raise UserError(f"{self._folder}: no state can be read; delete it to train anew")
        return 0

    def _remove_half_written(self):
        # TensorFlow writes a checkpoint aside; a kill or a full disk leaves that there.
        for aside in self._folder.parent.glob("*/*_temp"):
            shutil.rmtree(aside, ignore_errors=True)

    def _manager(self, folder):
        return tf.train.CheckpointManager(self._saved, folder, max_to_keep=_KEPT)


def running_means(model):
    return [variable for metric in model.metrics for variable in metric.variables]
