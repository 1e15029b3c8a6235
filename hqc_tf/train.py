"""Trains on unlabelled images: `python -m hqc_tf.train --flagfile=... --workdir=...`.

The same command again goes on from the last saved state, or does nothing once training is done.
"""

import concurrent.futures
import dataclasses
import pathlib

from absl import flags

from hqc_tf import commands, config, distribute, evaluate, files, model, optimizers, progress
from hqc_tf.data import catalog, screening
from hqc_tf.data.batches import steps_per_epoch, training_views
from hqc_tf.data.images import hold_out
from hqc_tf.errors import UserError, naming_a_full_disk
from hqc_tf.training import tensorboard
from hqc_tf.training.callbacks import (
    CloseEpoch,
    KeepState,
    MeasureSpeed,
    ShowTraining,
    StopAtNonFinite,
    read_epochs,
)
from hqc_tf.training.state import RunState, newest_step

# Where the data lies is no setting of the model: a run may go on after a move.
_MAY_CHANGE = ("data_dir",)


def train_and_evaluate(settings, workdir, callbacks=()):
    """Trains from the start or from the last saved state, then judges the codes.

    Leaves flags.txt, checkpoints/, tensorboard/, epochs.jsonl, speed.jsonl and metrics.jsonl in
    `workdir`, and of a folder of images rejects.jsonl, those that were left out.

    Args:
      settings: `Config`.
      workdir: folder, made where it is missing.
      callbacks: Keras callbacks to call too, when an epoch is closed and before its state is
        saved: what a kill lost is trained and called again.

    Returns:
      list of two results as in metrics.jsonl: of the last and of the best weights. Of several
      processes the chief judges, and the others return an empty list, unless all was done before.

    Raises:
      UserError: the strategy is none this machine has, its replicas cannot share the batch,
        `workdir` belongs to a run of other settings, its disk is full, the data cannot be read, or
        a loss is not finite.
    """
    workdir = pathlib.Path(workdir)
    settings = _with_worthwhile_precision(settings)
    _check_workdir(settings, workdir)
    # Before the other processes are waited for, which may have ended for good.
    if results := _results_of_finished(settings, workdir):
        return results
    strategy = distribute.make_strategy(settings.strategy, settings.tpu)
    distribute.check_batch(strategy, settings.batch_size)
    with concurrent.futures.ThreadPoolExecutor(1) as reader, strategy.scope():
        # Images are read while the network is built.
        reading = reader.submit(_read, settings, workdir)
        trained = model.build_model(settings)
        read, rejects = reading.result()
        images, held = hold_out(read, settings.held_out)
        per_epoch = steps_per_epoch(images, settings)
        trained.compile(optimizer=optimizers.make_optimizer(settings, per_epoch))
    chief = distribute.is_chief(strategy)
    with naming_a_full_disk(workdir):
        if chief:
            workdir.mkdir(parents=True, exist_ok=True)
            files.replace_text(workdir / config.FLAGFILE, config.to_flagfile(settings))
            _keep_rejects(rejects, settings, workdir)
        with screening.naming_a_bad_file(images):
            _fit(trained, images, held, per_epoch, workdir, callbacks)
        tensorboard.show_held_out(trained, held, workdir)
        results = _judge(settings, workdir) if chief else []
    # A chief that has to begin again needs the others, so none ends before it.
    distribute.wait_for_all(strategy)
    return results


def _read(settings, workdir):
    """The images to learn from, and the rejects of a folder of them."""
    rejects = screening.rejects_of(settings, workdir)
    known = settings.dataset, "train", settings.data_dir, screening.ids_of(rejects)
    return catalog.load_split(*known), rejects


def _keep_rejects(rejects, settings, workdir):
    if settings.dataset.startswith("folder:"):
        screening.keep_rejects(rejects, workdir)
    if rejects:
        progress.say(
            f"files that cannot be decoded, left out: {len(rejects)}; "
            f"{workdir / screening.REJECTS} says why"
        )


def _with_worthwhile_precision(settings):
    # All processes of a run must decide alike, and a TPU has its own kernels.
    sure = settings.strategy in ("multi_worker", "tpu")
    if settings.precision != "mixed_bfloat16" or sure or distribute.gains_from_bfloat16():
        return settings
    progress.say("--precision=mixed_bfloat16: no faster on this device; taking float32")
    return dataclasses.replace(settings, precision="float32")


def _fit(trained, images, held, per_epoch, workdir, more_callbacks):
    settings = trained.settings
    last_step = settings.epochs * per_epoch
    state = RunState(trained, workdir)
    step = state.restore()
    if step == last_step:
        return
    if step:
        progress.say(f"going on after step {step} of {last_step}")
    first_epoch = step // per_epoch
    callbacks = [
        StopAtNonFinite(step),
        ShowTraining(step, last_step, per_epoch),
        CloseEpoch(workdir, held, per_epoch, first_epoch),
        MeasureSpeed(workdir, first_epoch),
        *more_callbacks,
        KeepState(
            state, settings.checkpoint_steps, settings.checkpoint_minutes, per_epoch, last_step
        ),
    ]
    # An epoch gone on with has fewer steps, which Keras takes only for all epochs of a `fit`.
    rest_ends = (first_epoch + 1) * per_epoch if step % per_epoch else step
    for first, last in [(step, rest_ends), (rest_ends, last_step)]:
        if first < last:
            trained.fit(
                _views(trained, images, first, last),
                initial_epoch=first // per_epoch,
                epochs=-(-last // per_epoch),
                steps_per_epoch=min(per_epoch, last - first),
                verbose=2,
                callbacks=callbacks,
            )


def _views(trained, images, first_step, last_step):
    """What each replica sees in steps `first_step` up to `last_step`, for `fit`."""
    return trained.distribute_strategy.distribute_datasets_from_function(
        lambda context: training_views(images, trained.settings, first_step, last_step, context)
    )


def _judge(settings, workdir):
    results = evaluate.evaluate_workdir(workdir, data_dir=settings.data_dir)
    for result in results:
        evaluate.record(workdir, result)
    return results


def _results_of_finished(settings, workdir):
    """The results of a run that is at its end and judged; empty where something is left to do."""
    lines = read_epochs(workdir)
    evaluate.read_metrics(workdir)  # before a training that could not add to them
    last_step = lines[-1]["step"] if len(lines) == settings.epochs else None
    if last_step is None or newest_step(workdir) != last_step:
        return []
    return evaluate.recorded(workdir, last_step, settings)


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


def main(_):
    settings = config.from_flags()
    for result in train_and_evaluate(settings, flags.FLAGS.workdir):
        print(evaluate.describe(result))


if __name__ == "__main__":
    config.define_flags()
    flags.DEFINE_string("workdir", None, "folder of this run: again = resume", required=True)
    flags.adopt_module_key_flags(config)
    commands.run(main)
