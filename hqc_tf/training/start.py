"""What a run begins with: drawn weights, those of another run, or its own of fewer epochs."""

import pathlib

import numpy as np

from hqc_tf import backbones, config, model, optimizers
from hqc_tf.data import features
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError
from hqc_tf.training.state import newest_step
from hqc_tf.workdir import FLAGFILE, STATES, Folder, load, read_epochs, read_settings, saved_step

# Settings that decide which weights a network has.
_OF_WEIGHTS = (
    "backbone",
    "backbone_width",
    "feature_width",
    "feature_norm",
    "projection_norm",
    "num_books",
    "num_words",
    "word_dim",
)


def check_longer(workdir: Folder, settings: config.Config) -> None:
    """Raises `UserError` where a run gets more epochs, and none of its states is left."""
    if not read_epochs(workdir) or newest_step(workdir) is not None:
        return
    if settings.epochs > read_settings(workdir).epochs:
        raise UserError(
            f"--epochs={settings.epochs}: {pathlib.Path(workdir, STATES)} has no state to train "
            f"on from; take another --workdir with --init_from={workdir}"
        )


def describe_longer(workdir: Folder, settings: config.Config, steps_per_epoch: int) -> str:
    """What more epochs than in the settings of `workdir` change, in a line; "" where not more."""
    step = newest_step(workdir)
    before = read_settings(workdir) if step else settings
    if settings.epochs <= before.epochs:
        return ""
    old, new = (optimizers.make_schedule(each, steps_per_epoch) for each in (before, settings))
    last = settings.epochs * steps_per_epoch - 1
    return (
        f"--epochs={settings.epochs}, {before.epochs} before: the schedule is stretched over all "
        f"of them; after step {step} the learning rate goes from {float(old(step - 1)):.3g} to "
        f"{float(new(step)):.3g}, and ends at {float(new(last)):.3g}"
    )


def read_weights(settings: config.Config, workdir: Folder) -> list[np.ndarray] | None:
    """The weights of --init_from with which a run begins; None without it, and of a resumed one.

    They are those that an export of that run takes: the best, refitted where that was better and
    added no layer.

    Raises:
        UserError: --init_from has none, or of a network of other settings.
    """
    folder = settings.init_from
    if not folder or newest_step(workdir) is not None:
        return None
    if not pathlib.Path(folder, FLAGFILE).is_file() or saved_step(folder, "best") is None:
        raise UserError(f"--init_from={folder}: no trained run there; name the --workdir of one")
    settings_of_folder = read_settings(folder)
    before, now = map(_network, (settings_of_folder, settings))
    differing = [name for name in _OF_WEIGHTS if before[name] != now[name]]
    if differing:
        told = ", ".join(f"--{name}={before[name]}, not {now[name]}" for name in differing)
        raise UserError(
            f"--init_from={folder}: its weights are of {told}; give the same, or leave it out"
        )
    found = load(folder, refitted=not settings_of_folder.refit_changes_graph)
    return [weight.numpy() for weight in _weights(found)]


def assign(trained: model.HQC, weights: list[np.ndarray]) -> None:
    """Gives a model the weights that `read_weights` read."""
    for own, value in zip(_weights(trained), weights, strict=True):
        own.assign(value)


def draw(settings: config.Config, images: Images) -> model.HQC:
    """A model as its seed draws it, before any training on `images`."""
    trained = model.build_model(settings)
    adapt(trained, images)
    return trained


def adapt(trained: model.HQC, images: Images) -> None:
    """Gives a model of features the statistics of the training features, where it takes them."""
    if trained.settings.feature_norm == "standard" and trained.settings.feature_width:
        trained.encoder.get_layer("feature_norm").adapt(*features.statistics(images))


def _network(settings):
    """What decides the weights; a saved network is known by its digest, wherever it is."""
    values = {name: getattr(settings, name) for name in _OF_WEIGHTS}
    if settings.backbone_digest:
        values["backbone"] = f"saved_model:PATH of SHA-256 {settings.backbone_digest[:16]}"
    return values


def _weights(trained):
    """Those of the encoder and the codebooks, in an order that does not depend on what trains."""
    layers = backbones.flat_layers(trained.encoder)
    return [*(weight for layer in layers for weight in layer.weights), trained.quantizer.codebooks]
