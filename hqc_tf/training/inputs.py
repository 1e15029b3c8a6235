"""What a run begins with: the files, which must be the same when it resumes, and the backbone."""

import dataclasses
import hashlib
import pathlib
import stat

import numpy as np
import tensorflow as tf

from hqc_tf import backbones, config, files
from hqc_tf.backbones import saved
from hqc_tf.data import batches, catalog, features, pictures, roles, screening
from hqc_tf.data.folder import finds
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError
from hqc_tf.workdir import FLAGFILE, HELD_OUT_RUN, Folder, InputFile, absolute_weights

_SHOWN = 3
# Images that show whether a network suits the data.
_FEW = 8
_DIGEST = "labels_sha256"
# A file of a run that is an image by its name.
_PICTURE = f"{HELD_OUT_RUN}/sprite.png"


def from_anywhere(settings: config.Config) -> config.Config:
    """The settings with paths that do not depend on the current folder, as flags.txt keeps them."""
    paths = {name: getattr(settings, name) for name in ("data_dir", "init_from", "labels")}
    found = {name: str(files.absolute(path)) for name, path in paths.items() if path}
    if settings.queries:
        found["queries"] = catalog.absolute(settings.queries)
    found["dataset"] = catalog.absolute(settings.dataset)
    found["backbone"] = backbones.absolute(settings.backbone)
    found["backbone_weights"] = absolute_weights(settings.backbone_weights)
    return dataclasses.replace(settings, **found)


def check_outside(workdir: Folder, settings: config.Config) -> None:
    """Raises `UserError` where the files of a run would be among its own images or queries."""
    found = [pathlib.Path(workdir, name) for name in ("", FLAGFILE, _PICTURE)]
    for flag in ("dataset", "queries"):
        source = catalog.parse(getattr(settings, flag))
        is_folder = source.kind == "folder"
        if source.is_files and any(finds(source.name, is_folder, path) for path in found):
            begun = pathlib.Path(workdir, FLAGFILE).exists()
            raise UserError(
                f"--workdir={workdir}: lies in --{flag}={getattr(settings, flag)}, where the run's "
                f"pictures would be images; {'move it' if begun else 'take a folder'} outside"
                f"{', and name it there' if begun else ''}"
            )


def list_files(dataset: str) -> list[InputFile]:
    """The files of `--dataset` and their sizes; empty for a data set by name."""
    source = catalog.parse(dataset)
    if source.kind == "features":
        images = catalog.load_images(dataset)
        size = images.features.shape[0] * images.features.shape[1] * images.features.dtype.itemsize
        return [InputFile(source.name, size, features.digest(images))]
    found = []
    for name in source.files() if source.is_files else ():
        try:
            status = (source.root / name).stat()
        except OSError:
            continue  # listed in rejects.jsonl
        if stat.S_ISREG(status.st_mode):
            found.append(InputFile(name, status.st_size))
    return found


def load_listed(
    settings: config.Config, listed: list[InputFile], rejected: frozenset[str]
) -> tuple[Images, list[InputFile]]:
    """The training images, and the files that they are in.

    A folder may fill meanwhile: images that have arrived since it was `listed` are left out, since
    no one has checked them.

    Args:
        settings: of the run.
        listed: what `list_files` gave of a user's own files.
        rejected: ids that the run leaves out.

    Raises:
        UserError: as `roles.load_role`, or a file of records has arrived.
    """
    source, known = catalog.parse(settings.dataset), {file.name for file in listed}
    while True:
        images = roles.load_role(settings, "train", rejected)
        now = list_files(settings.dataset) if source.is_files else []
        arrived = {file.name for file in now} - known
        if not arrived - rejected:
            return images, [file for file in now if file.name in known]
        if source.kind == "tfrecord":
            raise UserError(
                f"--dataset={settings.dataset}: files have arrived while they were read "
                f"({_first(arrived)}); run the same command again"
            )
        rejected |= arrived


def evaluated_on(settings: config.Config) -> dict[str, str] | None:
    """`Result.evaluated_on` of an evaluation with some settings."""
    own = from_anywhere(settings)
    found = {name: getattr(own, name) for name in ("queries", "labels") if getattr(own, name)}
    # A finished run does not need the file, which may be gone.
    if own.labels and pathlib.Path(own.labels).is_file():
        found[_DIGEST] = hashlib.sha256(pathlib.Path(own.labels).read_bytes()).hexdigest()
    return found or None


def is_evaluated_on(before: dict[str, str] | None, settings: config.Config) -> bool:
    """Whether a result's `evaluated_on` is of the queries and labels of some settings."""
    now, before = evaluated_on(settings) or {}, before or {}
    return now == {name: before[name] for name in before if name in now or name != _DIGEST}


def describe_changes(dataset: str, before: list[InputFile], rejected: frozenset[str]) -> str:
    """How many files were added, are missing or have another size, with names; "" where none.

    Args:
        dataset: `--dataset`.
        before: what `list_files` gave when the run began; empty: not known.
        rejected: ids that the run leaves out; such files may be fixed or removed.
    """
    if not before:
        return ""
    if catalog.parse(dataset).kind == "tfrecord":
        rejected = frozenset()  # a file has other records, which are trained on
    old, new = (
        {file.name: file for file in listed if file.name not in rejected}
        for listed in (before, list_files(dataset))
    )
    both = [(name, old[name], new[name]) for name in old.keys() & new.keys()]
    resized = {name for name, was, now in both if was.bytes != now.bytes}
    changes = {
        "added": new.keys() - old.keys(),
        "missing": old.keys() - new.keys(),
        "of another size": resized,
        "of other contents": {name for name, was, now in both if was != now} - resized,
    }
    return ", ".join(f"{len(x)} {how} ({_first(x)})" for how, x in changes.items() if x)


def check_files(dataset: str, before: list[InputFile], rejected: frozenset[str]) -> None:
    """Raises `UserError` where `describe_changes` finds any."""
    if changes := describe_changes(dataset, before, rejected):
        raise UserError(
            f"--dataset={dataset}: not the files that this run began with: {changes}; restore "
            "them, or take another --workdir"
        )


def check_backbone(network: tf.keras.Model, images: Images, settings: config.Config) -> str:
    """Passes a few images through a pretrained network, before the long work.

    Args:
        network: float [B, size, size, 3] in [0, 1] -> float [B, E].
        images: of the data.
        settings: of the run.

    Returns:
        A warning where it hardly tells them apart; else "".

    Raises:
        UserError: it gives no usable vectors, or an image cannot be decoded.
    """
    few = images.take(pictures.spread(len(images), _FEW))
    views = batches.plain_batches(few, *settings.plain_sizes, _FEW)
    with screening.naming_a_bad_file(few):
        # Not by `predict`, which would divide them among the processes of a run.
        vectors = np.concatenate([network(view).numpy() for view in views])
    return saved.check_vectors(settings.backbone, vectors)


def _first(names):
    shown = sorted(names)[:_SHOWN]
    return ", ".join(shown + ["..."] * (len(names) > _SHOWN))
