"""Kills and full disks at each instant of a command that writes: nothing lost, the rerun ends well.

An attack runs its command once in a folder of its own and keeps each state that a kill could leave
(`instants`). In each, what was there before must be complete, and the same command must succeed
and leave what a run that nothing stopped leaves.
"""

import dataclasses
import functools
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from unittest import mock

import tensorflow as tf

from benchmarks import kill_test
from benchmarks.campaign import stage
from benchmarks.campaign.in_process import Done, run
from benchmarks.campaign.instants import Instants, files_of_at_most, spread
from benchmarks.campaign.row import Row, in_time, must
from export.encoder import load_encoder
from export.index import load_index
from hqc_tf import workdir

# Stands in flags for the folder in which a command runs.
_HERE = "HERE"
# TensorBoard's files are named by the time.
_BY_TIME = "tensorboard"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that writes, and how its results are read.

    Attributes:
        module: as `python -m` takes it.
        flags: with `_HERE`.
        needs: folders of the stage that it reads or changes.
        read: of the folder, each complete part of its results by name; raises where one is damaged.
        again: exit statuses of the same command where it has ended before.
        is_slow: whether it takes many seconds.
        loads_once: whether the encoder that it reads, always the same, is loaded but once.
    """

    module: str
    flags: tuple[str, ...]
    needs: tuple[str, ...]
    read: Callable[[pathlib.Path], dict[str, object]]
    again: tuple[int, ...] = (0,)
    is_slow: bool = False
    loads_once: bool = False

    def run(self, here: pathlib.Path) -> Done:
        """Runs it in `here`."""
        arguments = [flag.replace(_HERE, str(here)) for flag in self.flags]
        load = _load_once if self.loads_once else tf.saved_model.load
        with mock.patch.object(tf.saved_model, "load", load):
            return run(self.module, *arguments)


_load_once = functools.cache(tf.saved_model.load)


def _read_index(here):
    index = load_index(here / "index")
    return {"index": (index.ids.to_pylist(), index.codes.tobytes())}


def _read_codes(here):
    return {path.name: path.read_bytes() for path in (here / "codes").glob("codes-*")}


def _read_serving(here):
    versions = [path for path in (here / "serving").iterdir() if path.name.isdigit()]
    encoders = map(load_encoder, versions)
    return {e.path.name: (e.manifest["fingerprint"], e.codebooks.tobytes()) for e in encoders}


def _read_run(here):
    lines = [*workdir.read_epochs(here / "run"), *workdir.read_metrics(here / "run")]
    values = [dataclasses.asdict(line) | {"time": ""} for line in lines]
    return {f"{type(line).__name__} {line.step}": x for line, x in zip(lines, values, strict=True)}


COMMANDS = {
    "index, replaced": Command(
        "export.index",
        (f"--codes={_HERE}/more_codes", f"--output={_HERE}/index", "--replace"),
        ("index", "more_codes"),
        _read_index,
    ),
    "index, appended": Command(
        "export.index",
        (f"--codes={_HERE}/more_codes", f"--output={_HERE}/index", "--append"),
        ("index", "more_codes"),
        _read_index,
    ),
    "encode": Command(
        "export.encode",
        (f"--saved_model={_HERE}/serving", f"--input=folder:{_HERE}/photos")
        + (f"--output={_HERE}/codes", "--num_shards=4"),
        ("serving", "photos"),
        _read_codes,
        loads_once=True,
    ),
    "saved_model": Command(
        "export.saved_model",
        (f"--workdir={_HERE}/run", f"--output={_HERE}/serving", "--version=2"),
        ("serving", "run"),
        _read_serving,
        (0, 2),
        is_slow=True,
    ),
    "training": Command(
        "hqc_tf.train",
        (f"--dataset=folder:{_HERE}/photos", f"--workdir={_HERE}/run", *stage.TRAINING),
        ("photos",),
        _read_run,
        is_slow=True,
    ),
}


def kills(folder: pathlib.Path, seed: int, count: int, ends: float, name: str) -> Row:
    """A kill at each instant of the command `name`, or at `count` of them."""
    del seed
    row, command = Row(f"kills: {name}"), COMMANDS[name]
    with tempfile.TemporaryDirectory() as own:
        here, whole = pathlib.Path(own, "here"), pathlib.Path(own, "whole")
        _lay(folder, command, here)
        old = command.read(here)
        instants = Instants(here, pathlib.Path(own, "copies"))
        with instants.watching():
            done = command.run(here)
        must(done.status == 0, done.stderr)
        new, names = command.read(here), _names(here)
        stage.lay(here, whole)
        for copy in in_time(spread(instants.found, count), ends):
            with row.case(f"instant {copy.name} of {len(instants.found)}"):
                stage.lay(copy, here)
                _check(command.read(here), old, new)
                _run_again(command, here, new)
                must(_names(here) == names, lambda: f"left: {_names(here) ^ names}")
                if name == "training":
                    differ = kill_test.differences(whole / "run", here / "run")
                    must(not differ, f"differ: {differ}")
    return row


def full_disks(folder: pathlib.Path, seed: int, count: int, ends: float, name: str) -> Row:
    """A disk that is full at each file of the command `name`, or at `count` of the sizes."""
    del seed
    row, command = Row(f"full disk: {name}"), COMMANDS[name]
    with tempfile.TemporaryDirectory() as own:
        here = pathlib.Path(own, "here")
        _lay(folder, command, here)
        old = command.read(here)
        must(command.run(here).status == 0, "it fails without a limit")
        new = command.read(here)
        sizes = {path.stat().st_size for path in here.rglob("*") if path.is_file()} - {0}
        limits = sorted({limit for size in sizes for limit in (0, size // 2, size - 1)})
        for limit in in_time(spread(limits, count), ends):
            with row.case(f"files of {limit} bytes"):
                _lay(folder, command, here)
                with files_of_at_most(limit):
                    done = command.run(here)
                said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
                good = (done.status, len(said)) in ((0, 0), (2, 1))
                must(good, f"status {done.status}: {done.stderr[-300:]}")
                _check(command.read(here), old, new)
                _run_again(command, here, new)
    return row


def _run_again(command, here, new):
    done = command.run(here)
    must(done.status in command.again, f"the rerun ends with {done.status}: {done.stderr[-300:]}")
    must(command.read(here) == new, "the rerun leaves something else")


def _check(found, old, new):
    """Every part that is there is the old or the new one, and no old one is lost."""
    must(old.keys() <= found.keys(), lambda: f"lost: {old.keys() - found.keys()}")
    odd = [name for name, value in found.items() if value not in (old.get(name), new.get(name))]
    must(not odd, f"neither the old nor the new: {odd}")


def _lay(folder, command, here):
    """Makes `here` a folder of what the command needs alone."""
    shutil.rmtree(here, ignore_errors=True)
    for name in command.needs:
        stage.lay(folder / name, here / name)


def _names(here):
    found = (path.relative_to(here) for path in here.rglob("*"))
    return {str(path) for path in found if _BY_TIME not in path.parts}
