"""The state from which a run resumes, saved as it trains.

A state is the last thing written after a step, behind the weights and figures of an epoch. What was
written after the newest state is trained and written again, bit for bit the same.
"""

import pathlib
import shutil
import sys

import tensorflow as tf
import tqdm

from hqc_tf import distribute, model, numerics
from hqc_tf.errors import UserError
from hqc_tf.workdir import STATES, Folder

# One more than needed: where the newest is damaged, the one before serves.
_KEPT = 2


def newest_step(workdir: Folder) -> int | None:
    """The step of the newest state in `workdir`, or None where there is none."""
    newest = tf.train.latest_checkpoint(pathlib.Path(workdir, STATES))
    return newest and int(newest.rpartition("-")[2])


class RunState:
    """Weights, optimizer and running means of a model in training, saved in a workdir.

    Args:
        trained: the compiled model.
        workdir: folder of the run.

    Attributes:
        model: the model.
    """

    def __init__(self, trained: model.HQC, workdir: Folder):
        self.model = trained
        self._saved = tf.train.Checkpoint(model=trained, optimizer=trained.optimizer)
        self._folder = pathlib.Path(workdir, STATES)

    @property
    def step(self) -> int:
        """Training steps behind the model."""
        return int(self.model.optimizer.iterations.numpy())

    def save(self) -> None:
        """Saves the state under the number of its step; an older one goes once it is complete.

        Raises:
            UserError: a weight is not finite; nothing is saved.
        """
        numerics.check_weights(self.model, self.step)
        with distribute.folder_to_save_in(self.model.distribute_strategy, self._folder) as folder:
            self._manager(folder).save(checkpoint_number=self.step)
        self._take_what_was_saved()

    def restore(self) -> int:
        """Restores the newest readable state; returns its step, 0 where there is no state.

        An unreadable state, incomplete or damaged, is reported and skipped. Other incomplete files
        are removed.

        Raises:
            UserError: there are states and none is readable, or the processes of a run do not find
                the same one.
        """
        if distribute.is_chief(self.model.distribute_strategy):
            self._remove_incomplete()
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
        states = self._manager(self._folder).checkpoints
        for path in reversed(states):
            try:
                self._saved.restore(path).expect_partial()
                return self.step
            except (tf.errors.OpError, LookupError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                tqdm.tqdm.write(f"{path}: cannot be read ({reason}); skipped", file=sys.stderr)
        if states:
            raise UserError(f"{self._folder}: no state is readable; delete it to train again")
        return 0

    def _remove_incomplete(self):
        # TensorFlow writes a checkpoint aside; a kill or a full disk leaves that there.
        for aside in self._folder.parent.glob("*/*_temp"):
            shutil.rmtree(aside, ignore_errors=True)

    def _manager(self, folder):
        return tf.train.CheckpointManager(self._saved, folder, max_to_keep=_KEPT)


def running_means(trained: model.HQC) -> list[tf.Variable]:
    """The variables of the metrics that Keras averages over an epoch."""
    return [variable for metric in trained.metrics for variable in metric.variables]
