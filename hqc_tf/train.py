"""Trains on unlabeled images: `python -m hqc_tf.train --flagfile=... --workdir=...`.

The same command again resumes from the last saved state, or does nothing once training is done;
with more --epochs it trains on.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
import tqdm
from absl import flags

from hqc_tf import backbones, commands, config, distribute, evaluate, model, optimizers
from hqc_tf.data import catalog, decoding, features, roles, screening
from hqc_tf.data.features import shards
from hqc_tf.data.images import Images, hold_out
from hqc_tf.data.views import steps_per_epoch, training_views
from hqc_tf.errors import UserError, counted, naming_a_full_disk
from hqc_tf.training import inputs, refit, start, tensorboard
from hqc_tf.training.callbacks import make_callbacks
from hqc_tf.training.state import RunState, newest_step
from hqc_tf.workdir import (
    FILES,
    FLAGFILE,
    REJECTS,
    STATES,
    Folder,
    InputFile,
    Result,
    append_metrics,
    check_name,
    check_settings,
    check_unused,
    claim,
    load,
    read_epochs,
    read_files,
    read_metrics,
    read_rejects,
    read_settings,
    rejected_ids,
    saved_step,
    write_files,
    write_rejects,
    write_settings,
)

# Reasons to leave files out that are counted one by one.
_REASONS = 5


def train_and_evaluate(
    settings: config.Config,
    workdir: Folder,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
) -> list[Result]:
    """Trains from the start or from the last saved state, then evaluates the codes.

    Args:
        settings: of the run.
        workdir: folder of the run, made where it is missing; `hqc_tf.workdir` lists its files.
        callbacks: called too, after an epoch's weights and figures are written and before its state
            is saved: what a kill lost is trained and called again.

    Returns:
        Two lines of metrics.jsonl, of the last and of the best weights. In a run of several
        processes the chief evaluates; the others return an empty list, unless the run was complete.

    Raises:
        UserError: this machine lacks the strategy, the replicas cannot share the batch, `workdir`
            has a run of other settings or files, states that cannot be read, another training or a
            name that TensorFlow cannot read, the disk is full, the data cannot be read, or a loss
            is not finite.
    """
    check_name(workdir)
    workdir = pathlib.Path(workdir)
    decoding.raise_max_pixels(settings.max_pixels)
    settings = inputs.from_anywhere(_with_worthwhile_precision(settings, workdir))
    settings = _with_network(_with_features(settings, workdir))
    check_settings(workdir, settings)
    _check_moved(settings, workdir)
    # Before waiting for the other processes, which may have ended for good.
    if results := _results_of_finished(settings, workdir):
        return results
    inputs.check_outside(workdir, settings)
    check_unused(workdir)
    start.check_longer(workdir, settings)
    strategy = distribute.make_strategy(settings.strategy, settings.tpu)
    distribute.check_batch(strategy, settings.batch_size)
    with claim(workdir) if distribute.is_chief(strategy) else contextlib.nullcontext():
        return _train(settings, workdir, strategy, callbacks)


def _check_moved(settings, workdir):
    """UserError where a run's folder is given in another place, and its files are others."""
    if not (workdir / FLAGFILE).exists():
        return
    if catalog.absolute(read_settings(workdir).dataset) != settings.dataset:
        inputs.check_files(settings.dataset, read_files(workdir), rejected_ids(workdir))


def _train(settings, workdir, strategy, callbacks):
    weights = start.read_weights(settings, workdir)
    trained, read = _build_and_read(settings, workdir, strategy)
    images, held = hold_out(read.images, settings.held_out)
    with strategy.scope():
        _fit_network(trained, images, weights)
        per_epoch = steps_per_epoch(images, settings)
        refit.check(settings, len(images))
        trained.compile(optimizer=optimizers.make_optimizer(settings, per_epoch))
    chief = distribute.is_chief(strategy)
    with naming_a_full_disk(workdir):
        if chief:
            if longer := start.describe_longer(workdir, settings, per_epoch):
                _report(longer)
            write_settings(workdir, settings)
            _keep_inputs(read, settings, workdir)
        with screening.naming_a_bad_file(images):
            if chief:
                _describe_start(trained, images, held, len(read.rejects), per_epoch)
            _fit(trained, images, held, per_epoch, workdir, callbacks)
        # A run whose states are gone was not trained here, and shows what it showed.
        if settings.refit == "none" and trained.optimizer.iterations.numpy():
            tensorboard.show_held_out(trained, held, workdir)
        results = _evaluate(settings, workdir, images, held) if chief else []
    # A chief that has to restart needs the others, so none ends before it.
    distribute.wait_for_all(strategy)
    return results


def _build_and_read(settings, workdir, strategy):
    """The network, and the `_Inputs`, which are read meanwhile where no file is screened."""
    screened = catalog.parse(settings.dataset).is_files
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # A screening takes long: a network that cannot be built, and Ctrl-C, come before its end.
        ahead = None if screened else pool.submit(_read, settings, workdir)
        with strategy.scope():
            trained = model.build_model(settings)
    return trained, _read(settings, workdir) if screened else ahead.result()


def _fit_network(trained, images, weights):
    """Checks a network by a few images, and gives it what it has before the first step."""
    settings = trained.settings
    if settings.backbone_digest and not settings.feature_width:
        warning = inputs.check_backbone(trained.build_backbone(), images, settings)
        if warning:
            _report(warning)
    if weights:
        start.assign(trained, weights)
    else:
        start.adapt(trained, images)


class _Inputs(NamedTuple):
    """What a run begins with."""

    images: Images  # to train on, and those to be held out
    files: list[InputFile]  # of the user's own that these are in
    rejects: list[screening.Reject]  # that are left out


def _read(settings, workdir):
    """The `_Inputs` of a run; what needs no look at every image is checked before."""
    source = catalog.parse(settings.dataset)
    inputs.check_files(settings.dataset, read_files(workdir), rejected_ids(workdir))
    listed = inputs.list_files(settings.dataset) if source.is_files else []
    _check_before_reading(settings, listed if source.kind != "tfrecord" else [])
    # A resumed run has to leave out the same files.
    if (workdir / REJECTS).exists():
        rejects = read_rejects(workdir)
    else:
        rejects = screening.find_rejects(settings.dataset, settings.on_bad_image)
    ids = frozenset(reject.id for reject in rejects)
    if settings.queries or settings.labels:
        roles.load_role(settings, "query", ids)  # what is wrong with them is said before training
    return _Inputs(*inputs.load_listed(settings, listed, ids), rejects)


def _check_before_reading(settings, listed):
    """Raises `UserError` where the packages, the labels or the number of files will not do."""
    optimizers.make_optimizer(settings, steps_per_epoch=1)
    roles.check(settings)
    if listed:
        refit.check(settings, len(listed))
        steps_per_epoch(listed, settings)


def _keep_inputs(read, settings, workdir):
    rejects = read.rejects
    if catalog.parse(settings.dataset).is_files:
        write_rejects(workdir, rejects)
    if not (workdir / FILES).exists() and (
        files_of := read.files or inputs.list_files(settings.dataset)
    ):
        write_files(workdir, files_of)
    if rejects:
        kinds = collections.Counter(re.split(r": sides|: over", each.reason)[0] for each in rejects)
        counts = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common(_REASONS))
        are = "is" if len(rejects) == 1 else "are"
        said = f"{counted(len(rejects), 'file')} cannot be decoded and {are} left out ({counts})"
        _report(f"{said}: {workdir / REJECTS}")


def _with_worthwhile_precision(settings, workdir):
    # All processes of a run must choose alike, and a TPU has its own kernels.
    fixed = settings.strategy in ("multi_worker", "tpu")
    if settings.precision != "mixed_bfloat16" or fixed:
        return settings
    if (workdir / FLAGFILE).exists():
        # Another machine, or a busy one, may measure otherwise, and that would be another run.
        precision = read_settings(workdir).precision
        if precision != settings.precision:
            _report(f"--precision=mixed_bfloat16: {workdir} began with {precision} and keeps it")
        return dataclasses.replace(settings, precision=precision)
    if distribute.gains_from_bfloat16():
        return settings
    _report("--precision=mixed_bfloat16: no faster on this device; using float32")
    return dataclasses.replace(settings, precision="float32")


def _with_features(settings, workdir):
    """The settings with what a folder of features, or a file of them, says of itself."""
    source = catalog.parse(settings.dataset)
    if source.kind != "features":
        if settings.feature_width:
            raise UserError(
                f"--feature_width={settings.feature_width}: {settings.dataset} has images, no "
                "features; leave it out"
            )
        return settings
    begun = read_settings(workdir) if (workdir / FLAGFILE).exists() else None
    if begun and begun.dataset == settings.dataset:
        # A finished run does not need its features, which may be gone.
        width, known = begun.feature_width, begun
    else:
        width, known = catalog.load_images(settings.dataset).features.shape[1], None
    if settings.feature_width not in (0, width):
        raise UserError(
            f"--feature_width={settings.feature_width}: {settings.dataset} has {width} numbers a "
            "row; leave it out, or name the features it was"
        )
    made = _of_network(source, known)
    for name, value in made.items():
        given = getattr(settings, name)
        if given not in (getattr(config.Config, name), value):
            raise UserError(
                f"--{name}={given}: {settings.dataset} was made with {value}; leave it out"
            )
    return dataclasses.replace(settings, feature_width=width, **made)


def _of_network(source, known):
    """Settings of the network that made a folder of features, which a run begun with has too."""
    names = *shards.OF_NETWORK, "backbone_digest"
    if known:
        return {name: getattr(known, name) for name in names}
    if not features.is_folder(source.name):
        return {}
    manifest = shards.read_manifest(source.name)
    return {name: manifest.settings[name] for name in shards.OF_NETWORK} | {
        "backbone_digest": manifest.network
    }


def _with_network(settings):
    if settings.backbone_digest or settings.feature_width:
        return settings
    found = backbones.digest(settings.backbone, settings.backbone_pixels)
    return dataclasses.replace(settings, backbone_digest=found)


def _describe_start(trained, images, held, left_out, per_epoch):
    """Says what is trained on, how long, and on what."""
    kind = next((k for k in ("TPU", "GPU") if tf.config.list_logical_devices(k)), "CPU")
    count, epochs = trained.distribute_strategy.num_replicas_in_sync, trained.settings.epochs
    _report(
        f"training on {counted(len(images), 'image')} ({len(held)} held out, {left_out} left out): "
        f"{counted(per_epoch, 'step')} an epoch, {epochs * per_epoch} in all, on {count} {kind}"
    )


def _fit(trained, images, held, per_epoch, workdir, more_callbacks):
    last_step = trained.settings.epochs * per_epoch
    state = RunState(trained, workdir)
    step = state.restore()
    if step == last_step or (not step and _trained_steps(trained.settings, workdir)):
        return
    if step:
        _report(f"resuming after step {step} of {last_step}")
    elif read_epochs(workdir):
        _report(f"{workdir / STATES}: no state to resume from; training again from the first step")
    callbacks = make_callbacks(state, workdir, held, per_epoch, more_callbacks)
    # A resumed epoch has fewer steps, and Keras takes one number for all epochs of a `fit`.
    rest_ends = (step // per_epoch + 1) * per_epoch if step % per_epoch else step
    with callbacks[-1].handling_signals():
        for first, last in [(step, rest_ends), (rest_ends, last_step)]:
            if first < last:
                trained.fit(
                    _views(trained, images, first, last),
                    initial_epoch=first // per_epoch,
                    epochs=-(-last // per_epoch),
                    steps_per_epoch=min(per_epoch, last - first),
                    verbose=0,
                    callbacks=callbacks,
                )


def _views(trained, images, first_step, last_step):
    """Each replica's share of the views of steps `first_step` up to `last_step`, for `fit`."""
    return trained.distribute_strategy.distribute_datasets_from_function(
        lambda context: training_views(images, trained.settings, first_step, last_step, context)
    )


def _evaluate(settings, workdir, images, held):
    if settings.refit != "none":
        for line in refit.refit_workdir(workdir, images, held):
            _report(line)
        tensorboard.show_held_out(load(workdir, "last"), held, workdir)
    names = "data_dir", "queries", "labels"
    changed = {name: getattr(settings, name) for name in names}
    results = evaluate.evaluate_workdir(workdir, **changed)
    try:
        for result in results:
            append_metrics(workdir, result)
    except (OSError, UserError):
        evaluate.show(results)
        raise
    return results


def _results_of_finished(settings, workdir):
    """The results of a run that is trained and evaluated; empty where something is left to do."""
    results = _results_of_trained(settings, workdir)
    # Only refitted weights of another graph are always kept.
    needed = results if settings.refit_changes_graph else []
    if any(saved_step(workdir, one.weights, refitted=True) != one.step for one in needed):
        return []
    return results


def _trained_steps(settings, workdir):
    """The steps of the "best" and "last" weights of a run that is trained to its end; else None."""
    epochs = read_epochs(workdir)
    last_step = epochs[-1].step if len(epochs) == settings.epochs else None
    # A person may have removed the states of a finished run to save space.
    if last_step is None or newest_step(workdir) not in (None, last_step):
        return None
    steps = {name: saved_step(workdir, name) for name in ("best", "last")}
    return steps if steps["last"] == last_step else None


def _results_of_trained(settings, workdir):
    """The results of a run that was evaluated after its last step; else empty."""
    results = read_metrics(workdir)  # read before training, whose results could not be added
    steps = _trained_steps(settings, workdir)
    run = read_settings(workdir) if steps else settings
    if not steps or (run.queries, run.labels) != (settings.queries, settings.labels):
        return []
    found = {one.weights: one for one in results if _is_own(one, settings)}
    # Results may be of fewer epochs.
    ended = all(name in found and found[name].step == step for name, step in steps.items())
    return [found["last"], found["best"]] if ended else []


def _is_own(result, settings):
    """Whether a result is of the run's own data, distance and R, with its queries and labels."""
    has_r = result.top_k is None or result.top_k == min(settings.top_k, result.database)
    same_data = result.changed is None and inputs.is_evaluated_on(result.evaluated_on, settings)
    return has_r and result.distance == settings.distance and same_data


def _report(text):
    tqdm.tqdm.write(text, file=sys.stderr)


def main(_: list[str]) -> None:
    evaluate.show(train_and_evaluate(config.from_flags(), flags.FLAGS.workdir))


if __name__ == "__main__":
    config.define_flags()
    flags.DEFINE_string(
        "workdir", None, "folder of this run; the same command resumes it", required=True
    )
    flags.adopt_module_key_flags(config)
    commands.run(main)
