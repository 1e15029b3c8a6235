"""Encodes images into shards of codes with an exported SavedModel.

`python -m export.encode --saved_model=serving/hqc --input=folder:photos/ --output=codes/` streams
any number of images into shards of codes, here or on a cluster, and resumes where it was stopped.
"""

import contextlib
import functools
import os
import pathlib
import signal
import sys
import time

from absl import flags

from export import folders
from export.codes import read_rejects, read_shards
from export.encode import encode_plan, inputs, streaming
from export.encode.update import update_codes
from export.encoder import load_encoder
from export.kept import KINDS
from hqc_tf import commands
from hqc_tf.errors import UserError, counted


def main(arguments: list[str]) -> None:
    values = flags.FLAGS
    _end_on_signals()
    runner = _runner(values, arguments)
    encoder = load_encoder(values.saved_model)
    if values.update:
        _update(values, encoder)
        return
    names = "num_shards", "data_dir", "image_feature", "id_feature", "id_prefix"
    options = {name: values[name].value for name in names}
    plan = inputs.make_plan(values.input, values.output, **options)._replace(keep=values.keep)
    folder = pathlib.Path(values.output).absolute()
    began = time.monotonic()
    try:
        with _sole_encoder(values, folder):
            numbers = encode_plan(encoder, plan, folder, runner)
    except OSError as error:
        raise UserError(f"{error}; fix that, and run the same command to resume") from error
    done = "" if numbers else ", all done already"
    print(_describe(folder, numbers, time.monotonic() - began) + done)
    if done:
        _tell_changes(values.input, folder)


def _tell_changes(source, folder):
    # The images themselves need not be there any more.
    with contextlib.suppress(UserError):
        if inputs.has_changed(source, folder):
            told = "has other files by now; --update encodes those that are new"
            print(f"--input={source}: {told}", file=sys.stderr)


def _update(values, encoder):
    if values.runner != "local":
        raise UserError("--update: needs --runner=local; give that, or encode anew")
    folder, began = pathlib.Path(values.output).absolute(), time.monotonic()
    names = "num_shards", "batch_size", "on_bad_image", "id_prefix"
    own = {name: values[name].value for name in names}
    _check_as_before(values, folder)
    read = update_codes(encoder, values.input, folder, **own)
    print(f"{_describe(folder, [], time.monotonic() - began)}; {read} images read")


def _check_as_before(values, folder):
    """UserError where a flag is given that an update cannot follow."""
    for name in ("data_dir", "image_feature", "id_feature"):
        if values[name].value != values[name].default:
            raise UserError(
                f"--{name}={values[name].value}: --update takes folder:PATH or a pattern, which "
                "have none; leave it out, or encode anew"
            )
    keep = read_shards(folder).keep
    if values["keep"].present and values.keep != keep:
        raise UserError(
            f"--keep={values.keep}: {folder} has --keep={keep}, which an update does not change; "
            "leave it out, or encode anew"
        )


@contextlib.contextmanager
def _sole_encoder(values, folder):
    """Keeps other processes of this machine from encoding into the same folder."""
    folder = folder.resolve()
    # Where nothing can be written beside a mount point, it is encoded into nevertheless.
    has_room = folder.name and (not folder.parent.exists() or os.access(folder.parent, os.W_OK))
    # Workers of a cluster write together.
    is_locked = values.runner == "local" and has_room
    with folders.sole_writer(folder) if is_locked else contextlib.nullcontext():
        yield


def _runner(values, arguments):
    """The `runner` of `encode_plan` that --runner names."""
    if values.runner == "local":
        if arguments:
            raise UserError(
                f"{arguments[0]}: not a flag; put a pattern of files in quotes, and give flags of "
                "Beam only with a --runner of Beam"
            )
        options = {"batch_size": values.batch_size, "on_bad_image": values.on_bad_image}
        return functools.partial(streaming.encode_here, **options)
    if values.on_bad_image == "stop":
        raise UserError("--on_bad_image=stop: needs --runner=local; give that, or skip")
    # Beam is an optional package.
    from export.encode.beam import encode_on_beam

    options = {"runner": values.runner, "arguments": arguments, "batch_size": values.batch_size}
    return functools.partial(encode_on_beam, **options)


def _describe(folder, numbers, seconds):
    """What a complete folder holds, and the rate of the shards `numbers` encoded in `seconds`."""
    lengths = [len(shard.codes) for shard in read_shards(folder).shards]
    rate = sum(lengths[number] for number in numbers) / seconds
    rejects = sum(1 for _ in read_rejects(folder))
    images, shards = counted(sum(lengths), "image"), counted(len(lengths), "shard")
    return (
        f"{folder}: {images} in {shards}, {rejects} rejected"
        + (f" ({folder}/rejects-*.jsonl have the reasons)" if rejects else "")
        + (f", {rate:.0f} images/s" if numbers else "")
    )


def _end_on_signals():
    def end(number, _):
        name = signal.Signals(number).name
        print(f"\n{name}: stopped; run the same command to resume", file=sys.stderr)
        # At once, whatever is being encoded: no file under its final name is incomplete.
        sys.stderr.flush()
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


if __name__ == "__main__":
    flags.DEFINE_string(
        "saved_model", None, "output of export.saved_model; its newest version", required=True
    )
    flags.DEFINE_string(
        "input",
        None,
        "images: a data set's name, a pattern of files in quotes ('photos/**/*.jpg'), folder:PATH, "
        "tfds:NAME/SPLIT or tfrecord:PATTERN",
        required=True,
    )
    flags.DEFINE_string("output", None, "folder of shards; the same command resumes", required=True)
    flags.DEFINE_integer(
        "num_shards", None, "shards; default: one per 50,000 images, or per TFRecord file", 1
    )
    flags.DEFINE_bool(
        "update",
        False,
        "encode what a folder has more than the codes at --output, and drop the rest",
    )
    flags.DEFINE_enum(
        "keep",
        "none",
        KINDS,
        "also keep embeddings, by which export.search tells images of equal codes apart: int8, a "
        "byte a number, float16 or none",
    )
    flags.DEFINE_integer("batch_size", streaming.BATCH, "images encoded together", lower_bound=1)
    flags.DEFINE_enum(
        "on_bad_image", "skip", ["skip", "stop"], "skip and list undecodable images, or stop at one"
    )
    flags.DEFINE_string("data_dir", "", "folder of prepared TFDS data or of photo lists")
    flags.DEFINE_string("image_feature", "image/encoded", "with tfrecord: the image's feature")
    flags.DEFINE_string("id_feature", "", "with tfrecord: the id's feature; empty: FILE:NUMBER")
    flags.DEFINE_string("id_prefix", "", "put before every id, such as phone/: ids stay unique")
    flags.DEFINE_string(
        "runner",
        "local",
        "local, or Apache Beam's direct, dask, flink, ...; its flags follow after --",
    )
    commands.run(main, takes_arguments=True)
