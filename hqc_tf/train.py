"""Trains on unlabelled images: `python -m hqc_tf.train --flagfile=... --workdir=...`.

The same command again goes on from the last saved state, or does nothing once training is done.
"""

import concurrent.futures
import dataclasses
import pathlib
import sys

import tensorflow as tf
from absl import flags

from hqc_tf import config, data, distribute, evaluate, model, optimizers
from hqc_tf.config import UserError

STATE = "checkpoints/state"

# Where the data lies is no setting of the model: a run may go on after a move.
_MAY_CHANGE = ("data_dir",)


def train_and_evaluate(settings, workdir):
    """Trains from the start or from the last saved state, then judges the codes.

    Leaves flags.txt, checkpoints/, tensorboard/ and metrics.jsonl in `workdir`.

    Args:
      settings: `Config`.
      workdir: folder, made where it is missing.

    Returns:
      The result as in metrics.jsonl, or None where the images have no labels.

    Raises:
      UserError: `workdir` belongs to a run of other settings, or the data cannot be read.
    """
    workdir = pathlib.Path(workdir)
    settings = _with_worthwhile_precision(settings)
    _check_workdir(settings, workdir)
    with (
        concurrent.futures.ThreadPoolExecutor(1) as reader,
        distribute.make_strategy(settings.strategy).scope(),
    ):
        # Images are read while the network is built.
        reading = reader.submit(data.load_split, settings.dataset, "train", settings.data_dir)
        trained = model.build_model(settings)
        images, held = data.hold_out(reading.result(), settings.held_out)
        per_epoch = data.steps_per_epoch(images, settings)
        trained.compile(optimizer=optimizers.make_optimizer(settings, per_epoch))
    _claim_workdir(settings, workdir)
    last_step = settings.epochs * per_epoch
    if model.saved_step(workdir) != last_step:
        _fit(trained, images, per_epoch, workdir)
    trained = model.load(workdir)
    result = evaluate.evaluate(trained, last_step)
    if result:
        evaluate.record(workdir, result)
    return result


class SaveWeights(tf.keras.callbacks.Callback):
    """Saves what encoding needs at the end of every epoch."""

    def __init__(self, workdir, per_epoch):
        super().__init__()
        self.workdir = workdir
        self.per_epoch = per_epoch

    def on_epoch_end(self, epoch, logs=None):
        model.save_weights(self.model, self.workdir, (epoch + 1) * self.per_epoch)


def _with_worthwhile_precision(settings):
    if settings.precision != "mixed_bfloat16" or distribute.gains_from_bfloat16():
        return settings
    print("--precision=mixed_bfloat16: no faster on this device; taking float32", file=sys.stderr)
    return dataclasses.replace(settings, precision="float32")


def _fit(trained, images, per_epoch, workdir):
    settings = trained.settings
    first_step, last_step = _state_step(workdir), settings.epochs * per_epoch
    if first_step:
        print(f"going on after step {first_step} of {last_step}", file=sys.stderr)
    trained.fit(
        data.training_views(images, settings, first_step, last_step),
        epochs=settings.epochs,
        steps_per_epoch=per_epoch,
        verbose=1 if sys.stdout.isatty() else 2,
        callbacks=[
            tf.keras.callbacks.BackupAndRestore(
                str(workdir / STATE), save_freq=settings.checkpoint_steps, delete_checkpoint=False
            ),
            SaveWeights(workdir, per_epoch),
            tf.keras.callbacks.TensorBoard(workdir / "tensorboard", write_graph=False),
        ],
    )
    if model.saved_step(workdir) != last_step:
        # Killed between the last state and the last weights: the state is restored by now.
        model.save_weights(trained, workdir, last_step)


def _state_step(workdir):
    """Steps behind the saved state that Keras will restore; 0 where there is none."""
    newest = tf.train.latest_checkpoint(workdir / STATE / "chief")
    if newest is None:
        return 0
    names = [name for name, _ in tf.train.list_variables(newest) if "iterations" in name]
    return int(tf.train.load_variable(newest, min(names, key=len)))


def _check_workdir(settings, workdir):
    if not (workdir / config.FLAGFILE).exists():
        return
    before, now = dataclasses.asdict(config.from_workdir(workdir)), dataclasses.asdict(settings)
    for name in before:
        if before[name] != now[name] and name not in _MAY_CHANGE:
            raise UserError(
                f"--workdir={workdir}: made with --{name}={before[name]}, not {now[name]}; "
                f"take another --workdir, or --flagfile={workdir / config.FLAGFILE}"
            )


def _claim_workdir(settings, workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    aside = workdir / f".{config.FLAGFILE}"
    aside.write_text(config.to_flagfile(settings))
    aside.replace(workdir / config.FLAGFILE)


def main(_):
    settings = config.from_flags()
    result = train_and_evaluate(settings, flags.FLAGS.workdir)
    print(evaluate.describe(result) if result else "trained; no labels to judge by")


if __name__ == "__main__":
    config.define_flags()
    flags.DEFINE_string("workdir", None, "folder of this run: again = resume", required=True)
    flags.adopt_module_key_flags(config)
    config.run(main)
