"""The folder of a run: the name, the type, the reader and the writer of every file in it.

flags.txt            settings, as a flagfile          tensorboard/         curves and pictures
checkpoints/best     weights chosen without labels    epochs.jsonl         a line per epoch
checkpoints/last     weights of the last epoch        speed.jsonl          a line per epoch
checkpoints/state    states to resume training from   metrics.jsonl        a line per evaluation
files.jsonl          files that are trained on        rejects.jsonl        images left out
.lock                while a training runs

checkpoints/best_refitted and last_refitted have the weights after --refit, where that was better.
A checkpoint is the files ckpt-STEP.*; TensorFlow's file `checkpoint` is written for other programs.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import re
import shutil
from collections.abc import Collection, Iterator
from typing import Annotated, NamedTuple

import msgspec
import tensorflow as tf

from hqc_tf import config, distribute, files, model, numerics
from hqc_tf.data import catalog, decoding
from hqc_tf.data.screening import Reject
from hqc_tf.errors import UserError, naming_a_full_disk, naming_damage

FLAGFILE = "flags.txt"
WEIGHTS = {"best": "checkpoints/best", "last": "checkpoints/last"}
STATES = "checkpoints/state"
TENSORBOARD = "tensorboard"
# TensorBoard shows each folder as a run of this name.
SPEED_RUN, HELD_OUT_RUN = f"{TENSORBOARD}/speed", f"{TENSORBOARD}/held_out"
EPOCHS, SPEED, METRICS, REJECTS = "epochs.jsonl", "speed.jsonl", "metrics.jsonl", "rejects.jsonl"
FILES, _LOCK = "files.jsonl", ".lock"
# Folders of checkpoints, and what else a training replaces in folders that others may have too.
CHECKPOINTS = STATES, *WEIGHTS.values(), *(f"{each}_refitted" for each in WEIGHTS.values())
_REPLACED = *CHECKPOINTS, SPEED_RUN, HELD_OUT_RUN
_FIX = "restore a copy, or train again"
_CHECKPOINT_FILE = re.compile(r"ckpt-(0|[1-9]\d*)\.(index|data-\d+-of-\d+)")

Folder = str | os.PathLike
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Perplexity = Annotated[list[float], msgspec.Meta(min_length=1)]
_PrecisionAtK = Annotated[dict[str, float], msgspec.Meta(min_length=1)]


@dataclasses.dataclass(frozen=True)
class EpochLine:
    """A line of epochs.jsonl; what needs held-out images is None without them."""

    epoch: _Count  # from 0
    step: _Count  # training steps before its end
    # Means over the epoch of "loss" and of each unweighted term.
    losses: dict[str, float] = dataclasses.field(default_factory=dict, metadata=files.REST)
    learning_rate: float | None = None  # of its last step
    held_out: _Count | None = None  # images behind the label-free figures
    recall_at_1: float | None = None  # share of changed views that find their own image first
    perplexity: _Perplexity | None = None  # words of each book in use, [M]
    quantization_error: float | None = None  # share of the embeddings' squared length

    def __post_init__(self):
        _check_together(self, "recall_at_1", "perplexity")


@dataclasses.dataclass(frozen=True)
class SpeedLine:
    """A line of speed.jsonl: images per second over all replicas, in epoch `epoch` from 0."""

    epoch: _Count
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What another search finds under a result's protocol: mAP@R and, with k as text, P@k."""

    mean_average_precision: float
    precision_at_k: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Result:
    """A line of metrics.jsonl, an evaluation; None for what needs labels or held-out images."""

    time: str  # UTC, as 2024-01-31T12:00:00Z
    weights: str  # "best", "last" or "untrained"
    step: _Count  # training steps behind the weights
    protocol: str  # name of the data set's protocol
    bits: _Count  # of a code
    distance: str  # "l2" or "squared"
    queries: _Count | None = None  # how many queries
    database: _Count | None = None  # how many images are searched
    top_k: _Count | None = None  # R of mAP@R
    mean_average_precision: float | None = None  # mAP@R, 0 to 1
    chance: float | None = None  # mAP@R of a random ranking
    precision_at_k: _PrecisionAtK | None = None  # k, as text -> P@k
    # "embedding": the same without quantization; "pixels": PCA and OPQ of raw pixels, by FAISS.
    baselines: dict[str, Baseline] | None = None
    # Settings of the data, --dataset, --queries and --labels, that were not the run's.
    changed: dict[str, str] | None = None
    # --queries, --labels and "labels_sha256" of the latter's file, those that there were.
    evaluated_on: dict[str, str] | None = None
    # As in `EpochLine`.
    held_out: _Count | None = None
    recall_at_1: float | None = None
    perplexity: _Perplexity | None = None
    quantization_error: float | None = None

    def __post_init__(self):
        scores = "top_k", "mean_average_precision", "chance", "precision_at_k"
        _check_together(self, "queries", "database", *scores)
        _check_together(self, "held_out", "recall_at_1", "perplexity", "quantization_error")


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A line of files.jsonl, a file of `--dataset`, by its name there."""

    name: str
    bytes: _Count
    sha256: str | None = None  # of its numbers, where it holds features


@contextlib.contextmanager
def claim(workdir: Folder) -> Iterator[None]:
    """Makes `workdir` and holds it for one training; an empty one that it made is removed again.

    UserError where another process holds it. A kill frees it.
    """
    workdir = pathlib.Path(workdir)
    new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    refusal = f"--workdir={workdir}: another training runs there; wait for its end, or take another"
    try:
        with files.sole_holder(workdir / _LOCK, refusal):
            yield
    finally:
        if new:
            with contextlib.suppress(OSError):
                workdir.rmdir()


def check_name(workdir: Folder) -> None:
    """Raises `UserError` where `workdir` is empty, or TensorFlow could not read what is there."""
    if not os.fspath(workdir):
        raise UserError("--workdir=: empty; name a folder, or . for the current one")
    files.check_folder_name(workdir, "--workdir=")


def check_unused(workdir: Folder) -> None:
    """Raises `UserError` where `workdir` has no run, but what a training would remove."""
    if pathlib.Path(workdir, FLAGFILE).exists():
        return
    for folder in (pathlib.Path(workdir, name) for name in ("checkpoints", TENSORBOARD)):
        found = {path.relative_to(workdir).as_posix() for path in folder.glob("*")}
        # A training that ended early has left curves.
        own = {name for name in found if SPEED_RUN in found and "/events." in name}
        if others := sorted(found - own - {*_REPLACED}):
            raise UserError(
                f"--workdir={workdir}: no run there, and a training would remove {others[0]}; "
                "take another folder, or move that"
            )


def saved_steps(folder: Folder) -> list[int]:
    """Steps of the checkpoints in `folder`, newest first; reading one shows whether it is intact.

    UserError where the folder cannot be read.
    """
    found = _checkpoint_files(folder).items()
    return sorted((step for step, endings in found if "index" in endings), reverse=True)


def checkpoint(folder: Folder, step: int) -> str:
    """The name by which TensorFlow reads the checkpoint of a step."""
    return str(pathlib.Path(folder, f"ckpt-{step}"))


def write_checkpoint(
    saved: tf.train.Checkpoint, folder: Folder, step: int, kept: int | None = None
) -> None:
    """Writes the checkpoint of `step`, then removes all others but that of step `kept`, if any.

    It appears complete or not at all, and is on the disk before others are removed.
    """
    folder = pathlib.Path(folder)
    aside = folder / f"ckpt-{step}_temp"
    shutil.rmtree(aside, ignore_errors=True)
    # Of a file that is too large TensorFlow says OutOfRange, which Keras takes for an epoch's end.
    with naming_a_full_disk(folder):
        saved.write(checkpoint(aside, step))
    # No index of an older checkpoint may meet the new data.
    (folder / f"ckpt-{step}.index").unlink(missing_ok=True)
    # A checkpoint is there once its index is, which comes last in the order of names.
    for path in sorted(aside.iterdir()):
        files.sync(path)
        path.rename(folder / path.name)
    files.sync(folder)
    stay = [one for one in reversed(saved_steps(folder)) if one in (step, kept)]
    text = "".join(f'all_model_checkpoint_paths: "ckpt-{one}"\n' for one in stay)
    files.replace_text(folder / "checkpoint", f'model_checkpoint_path: "ckpt-{step}"\n{text}')
    clean_checkpoints(folder, stay)


def clean_checkpoints(folder: Folder, kept: Collection[int] | None = None) -> None:
    """Removes what killed writers left in `folder`, and checkpoints of steps not in `kept`, if any.

    No process may be writing there.
    """
    folder = pathlib.Path(folder)
    for aside in folder.glob("*_temp"):
        shutil.rmtree(aside, ignore_errors=True)
    # TensorFlow's own, of older versions.
    for aside in folder.glob("checkpoint.tmp*"):
        aside.unlink(missing_ok=True)
    for step, endings in _checkpoint_files(folder).items():
        if "index" not in endings or not (kept is None or step in kept):
            # The index first: what is left after a kill is no checkpoint.
            for ending in sorted(endings, reverse=True):
                (folder / f"ckpt-{step}.{ending}").unlink(missing_ok=True)


def _checkpoint_files(folder):
    """Step -> endings of the names of its files."""
    folder, found = pathlib.Path(folder), {}
    # What cannot be listed must not look empty.
    with naming_damage(folder, "make it a folder that can be read"):
        names = [path.name for path in folder.iterdir()] if os.path.lexists(folder) else []
    for name in names:
        if match := _CHECKPOINT_FILE.fullmatch(name):
            found.setdefault(int(match[1]), []).append(match[2])
    return found


def read_settings(workdir: Folder) -> config.Config:
    """The settings that a training left in `workdir`; UserError where none can be read."""
    check_name(workdir)
    path = pathlib.Path(workdir, FLAGFILE)
    if not path.is_file():
        raise UserError(f"--workdir={workdir}: no {FLAGFILE} there; train into it first")
    try:
        settings, rest = config.parse([f"--flagfile={path}"])
    except UserError as error:
        raise UserError(f"{path}: {error}, or train again") from error
    if rest:
        raise UserError(f"{path}: {rest[0]}: not a flag; fix the line or train again")
    return settings


def check_settings(workdir: Folder, settings: config.Config) -> None:
    """Raises `UserError` where `workdir` has other settings.

    Data and network may have moved, epochs may be more, queries and labels others. A network is the
    same by its digest. Of a folder that has moved the run's list of files decides, which the caller
    compares.
    """
    if not pathlib.Path(workdir, FLAGFILE).exists():
        return
    before, now = (
        dataclasses.asdict(each)
        | {
            "dataset": catalog.absolute(each.dataset),
            "backbone_weights": absolute_weights(each.backbone_weights),
        }
        for each in (read_settings(workdir), settings)
    )
    folders = all(each["dataset"].startswith("folder:") for each in (before, now))
    may_move = {"data_dir"} | ({"dataset"} if folders and read_files(workdir) else set())
    may_change = {"backbone"} if before["backbone_digest"] else set()
    if now["epochs"] > before["epochs"]:
        may_change.add("epochs")
    # Whether there are any decides what is trained on, and not which.
    may_change |= {name for name in ("queries", "labels") if before[name] and now[name]}
    for name in before:
        if before[name] != now[name] and name not in may_move | may_change:
            raise UserError(
                f"--workdir={workdir}: made with --{name}={before[name]}, not {now[name]}; "
                f"take another --workdir, or --flagfile={pathlib.Path(workdir, FLAGFILE)}"
            )


def absolute_weights(name: str) -> str:
    """`--backbone_weights` so that it names the same file from anywhere."""
    return name if name in ("none", "imagenet") else str(files.absolute(name))


def write_settings(workdir: Folder, settings: config.Config) -> None:
    """Writes the flagfile that repeats the run of `settings`."""
    files.replace_text(pathlib.Path(workdir, FLAGFILE), config.to_flagfile(settings))


def save_weights(
    trained: model.HQC, workdir: Folder, step: int, weights: str, refitted: bool = False
) -> None:
    """Saves the weights that encoding needs, `step` training steps behind them.

    They replace `weights`, "best" or "last", or are `refitted` ones beside those; UserError where
    one is not finite, and those saved before stay. Every process of a run has to call this, and the
    chief writes.
    """
    numerics.check_weights(trained, step)
    saved = tf.train.Checkpoint(
        encoder=trained.encoder, quantizer=trained.quantizer, step=tf.Variable(step, dtype=tf.int64)
    )
    folder = _weights_folder(workdir, weights, refitted)
    with distribute.folder_to_save_in(trained.distribute_strategy, folder) as folder:
        write_checkpoint(saved, folder, step)


def saved_step(workdir: Folder, weights: str = "last", refitted: bool = False) -> int | None:
    """Training steps behind the "best" or "last" weights of `workdir`; None where it has none."""
    return next(iter(saved_steps(_weights_folder(workdir, weights, refitted))), None)


class Loaded(NamedTuple):
    """A model and the training steps behind its weights."""

    model: model.HQC
    step: int


def load(workdir: Folder, weights: str = "best", refitted: bool = True) -> model.HQC:
    """The model that a training left in `workdir`, ready to encode.

    Its weights are the "best", chosen without labels, or the "last", as `--refit` left them where
    it did, unless `refitted` is false; UserError where `workdir` has none, or damaged ones.
    """
    return load_newest(workdir, weights, refitted).model


def load_newest(workdir: Folder, weights: str = "best", refitted: bool = True) -> Loaded:
    """As `load`, with the step: a training that runs there may save others at any moment."""
    settings, made = read_settings(workdir), {}
    decoding.raise_max_pixels(settings.max_pixels)
    while True:
        step, is_refitted = newest = _newest(workdir, weights, refitted)
        if is_refitted not in made:
            # It takes seconds, after which others may be the newest.
            made[is_refitted] = _blank(settings, is_refitted)
            continue
        try:
            _read_weights(made[is_refitted], _weights_folder(workdir, weights, is_refitted), step)
        except UserError:
            if _newest(workdir, weights, refitted) == newest:
                raise
        else:
            return Loaded(made[is_refitted], step)


def _newest(workdir, weights, refitted):
    """The step of the weights to load, and whether they are the refitted ones."""
    step = saved_step(workdir, weights)
    if step is None:
        raise UserError(f"--workdir={workdir}: no weights there yet; train into it first")
    # Weights that were trained again since are of another step.
    return step, refitted and saved_step(workdir, weights, True) == step


def _blank(settings, is_refitted):
    # Weights to start from are replaced anyway, and their file may be gone.
    blank = model.blank_model(dataclasses.replace(settings, backbone_weights="none"))
    blank.settings = settings
    if is_refitted:
        blank.prepare_refit()
    return blank


def _read_weights(blank, folder, step):
    saved = tf.train.Checkpoint(encoder=blank.encoder, quantizer=blank.quantizer)
    with naming_damage(folder, _FIX):
        read = saved.read(checkpoint(folder, step))
        read.assert_existing_objects_matched().expect_partial()


def read_epochs(workdir: Folder) -> list[EpochLine]:
    """The lines of epochs.jsonl; empty before the end of the first epoch."""
    return files.read_lines(pathlib.Path(workdir, EPOCHS), EpochLine)


def write_epochs(workdir: Folder, lines: list[EpochLine]) -> None:
    """Replaces epochs.jsonl."""
    files.write_lines(pathlib.Path(workdir, EPOCHS), lines)


def read_speed(workdir: Folder) -> list[SpeedLine]:
    """The lines of speed.jsonl; empty before the end of the first epoch."""
    return files.read_lines(pathlib.Path(workdir, SPEED), SpeedLine)


def write_speed(workdir: Folder, lines: list[SpeedLine]) -> None:
    """Replaces speed.jsonl."""
    files.write_lines(pathlib.Path(workdir, SPEED), lines)


def read_metrics(workdir: Folder) -> list[Result]:
    """The lines of metrics.jsonl; empty before the first evaluation."""
    return files.read_lines(pathlib.Path(workdir, METRICS), Result)


def append_metrics(workdir: Folder, result: Result) -> None:
    """Adds a line to metrics.jsonl, on the disk before this returns; others may do so at once."""
    path = pathlib.Path(workdir, METRICS)
    with _waiting_for_others(workdir):
        before = path.read_text() if path.exists() else ""
        files.replace_text(path, before + files.to_text([result]))


@contextlib.contextmanager
def _waiting_for_others(folder):
    """Holds a folder against others that call this, where its file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_rejects(workdir: Folder) -> list[Reject]:
    """The lines of rejects.jsonl, the images of a folder that the run leaves out."""
    return files.read_lines(pathlib.Path(workdir, REJECTS), Reject)


def rejected_ids(workdir: Folder) -> frozenset[str]:
    """The ids in rejects.jsonl."""
    return frozenset(reject.id for reject in read_rejects(workdir))


def write_rejects(workdir: Folder, rejects: list[Reject]) -> None:
    """Replaces rejects.jsonl; an empty file records that nothing is left out."""
    files.write_lines(pathlib.Path(workdir, REJECTS), rejects)


def read_files(workdir: Folder) -> list[InputFile]:
    """The lines of files.jsonl; empty of a data set by name, and of runs of older versions."""
    return files.read_lines(pathlib.Path(workdir, FILES), InputFile)


def write_files(workdir: Folder, found: list[InputFile]) -> None:
    """Replaces files.jsonl."""
    files.write_lines(pathlib.Path(workdir, FILES), found)


def _weights_folder(workdir, weights, refitted):
    return pathlib.Path(workdir, WEIGHTS[weights] + ("_refitted" if refitted else ""))


def _check_together(line, *names):
    missing = [name for name in names if getattr(line, name) is None]
    if 0 < len(missing) < len(names):
        raise ValueError(f"{', '.join(missing)} missing, though {', '.join(names)} belong together")
