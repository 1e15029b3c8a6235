"""A plan of shards of what `export.encode --input=...` names, and the images of each shard.

    plan = make_plan("folder:photos/", "codes/")
    for item in read(plan.shards[0]):
        print(item.id, len(item.contents), item.reason)

A plan's shards are small and can be pickled; a process that reads one needs the folder of codes and
the images under the same paths.
"""

import pathlib
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import NamedTuple

import pyarrow as pa

from export.arrays import pack_ids, unpack_id
from export.codes import is_begun, read_names
from hqc_tf.data import catalog, records, tfds
from hqc_tf.data.folder import SUFFIXES, Item, match, pattern_root, read_items
from hqc_tf.errors import UserError

# Images per shard where the number of shards is not given.
IMAGES = 50_000


class Files(NamedTuple):
    """A shard: the files in rows `first` to `last`, exclusive, of the list in a folder of codes."""

    codes: str  # absolute path of the folder, begun by `codes.start`
    root: str  # absolute path of the folder that the names in the list are relative to
    first: int
    last: int


class Plan(NamedTuple):
    """What is to be encoded."""

    job: dict[str, str]  # identifies it
    names: pa.LargeBinaryArray | None  # of files, kept with the codes; None where there are none
    shards: list[Files | records.Records]  # as `read` takes them


def make_plan(
    source: str,
    codes: str | PathLike,
    num_shards: int | None = None,
    data_dir: str = "",
    image_feature: str = "image/encoded",
    id_feature: str = "",
) -> Plan:
    """The plan for `--input`; a folder of codes that has begun keeps its list of files.

    Args:
        source: pattern of files, folder:PATH, tfds:NAME/SPLIT or tfrecord:PATTERN.
        codes: folder that `codes.start` has begun or will begin.
        num_shards: None: one per 50,000 images, or per TFRecord file.
        data_dir: folder of prepared TFDS data; empty: TFDS's default.
        image_feature: as in `records.Records`, with tfrecord.
        id_feature: as in `records.Records`, with tfrecord.

    Raises:
        UserError: the input is missing or empty, or there are more shards than images or files.
    """
    kind, name, split = parsed = catalog.parse(source)
    if kind == "name" and catalog.DATA_SETS[name].default != "train":
        raise UserError(f"--input={source}: is not encoded in shards; give {catalog.FORMS}")
    if kind in ("name", "tfds"):
        return _plan_tfds(name, split or "train", data_dir, num_shards)
    if kind == "tfrecord":
        return _plan_tfrecords(name, codes, num_shards, image_feature, id_feature)
    return _plan_listed(source, parsed, codes, num_shards)


def read(part: Files | records.Records) -> Iterator[Item]:
    """Yields each image of a shard of a `Plan`, read lazily."""
    if isinstance(part, records.Records):
        return records.read_records(part)
    names = read_names(part.codes)
    rows = names.slice(part.first, part.last - part.first)
    return read_items(part.root, (unpack_id(name.as_py()) for name in rows))


def count_images(parts: Sequence[Files | records.Records]) -> int | None:
    """The number of images in shards of a `Plan`; None where only reading tells."""
    counts = [
        part.last - part.first
        if isinstance(part, Files)
        else sum(piece.take for piece in part.pieces)
        for part in parts
    ]
    return None if min(counts, default=0) < 0 else sum(counts)


def _plan_listed(source, parsed, codes, num_shards):
    try:
        root, found = catalog.files_of(parsed)
    except UserError as error:
        raise UserError(f"--input={error}") from error
    root = root.absolute()
    own = {"pattern": parsed.name, "root": str(root)}
    job = {"folder": str(root)} if parsed.kind == "folder" else own
    names = _keep_names(source, codes, job, found)
    return _plan_files(job, names, root, codes, num_shards)


def _plan_files(job, names, root, codes, num_shards):
    parts = [
        Files(str(pathlib.Path(codes).absolute()), str(root), *bounds)
        for bounds in _bounds(len(names), num_shards, IMAGES, "images")
    ]
    return Plan(job, names, parts)


def _plan_tfds(name, split, data_dir, num_shards):
    builder, instructions = tfds.open_tfds(name, split, data_dir)
    pieces = records.pieces_of(name, split, instructions)
    count = sum(piece.take for piece in pieces)
    if not count:
        raise UserError(f"--input=tfds:{name}/{split}: no image in it; take another split")
    image = tfds.image_feature(builder)
    parts = [
        records.Records(records.cut(pieces, *bounds), image)
        for bounds in _bounds(count, num_shards, IMAGES, "images")
    ]
    return Plan({"tfds": f"{name}/{split}", "version": str(builder.version)}, None, parts)


def _plan_tfrecords(pattern, codes, num_shards, image_feature, id_feature):
    root = pattern_root(pattern).absolute()
    features = {"image_feature": image_feature, "id_feature": id_feature}
    job = {"tfrecords": pattern, "root": str(root)} | features
    names = _keep_names(f"tfrecord:{pattern}", codes, job, match(pattern))
    pieces = [records.whole_file(str(root / unpack_id(name))) for name in names.to_pylist()]
    parts = [
        records.Records(pieces[first:last], **features)
        for first, last in _bounds(len(names), num_shards, 1, "files, and none is divided")
    ]
    records.check_features(parts[0])
    return Plan(job, names, parts)


def _keep_names(source, codes, job, found):
    names = read_names(codes) if is_begun(codes, job) else pack_ids(found)
    if not len(names):
        raise UserError(
            f"--input={source}: no file of this name; give a pattern of files in quotes, "
            f"folder:PATH with {', '.join(SUFFIXES)} files below, tfds:NAME/SPLIT or "
            "tfrecord:PATTERN"
        )
    return names


def _bounds(count, num_shards, each, what):
    """First and last row of each shard."""
    number = num_shards or -(-count // each)
    if number > count:
        raise UserError(f"--num_shards={number}: there are only {count} {what}; lower it")
    return [(k * count // number, (k + 1) * count // number) for k in range(number)]
