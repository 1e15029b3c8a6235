"""A plan of shards of what `export.encode --input=...` names, and the images of each shard.

    plan = make_plan("folder:photos/", "codes/")
    for item in read(plan.shards[0]):
        print(item.id, len(item.contents), item.reason)

A plan's shards are small and can be pickled; a process that reads one needs the folder of codes and
the images under the same paths.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from os import PathLike
from typing import NamedTuple

import pyarrow as pa

from export.arrays import pack_ids, unpack_id
from export.codes import is_begun, read_names
from hqc_tf import files
from hqc_tf.data import catalog, features, pictures, records, tfds
from hqc_tf.data.folder import SUFFIXES, Item, read_items
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError

# Images per shard where the number of shards is not given.
IMAGES = 50_000


class Files(NamedTuple):
    """A shard: the files in rows `first` to `last`, exclusive, of the list in a folder of codes."""

    codes: str  # absolute path of the folder, begun by `codes.start`
    root: str  # absolute path of the folder that the names in the list are relative to
    first: int
    last: int
    id_prefix: str = ""  # before the names, in ids


class Rows(NamedTuple):
    """A shard: rows `first` to `last`, exclusive, of features or a data set with fixed roles."""

    dataset: str  # as `catalog.load_images` takes it
    data_dir: str  # absolute path; empty: TFDS's default
    first: int
    last: int
    id_prefix: str = ""  # before the ids


Part = Files | Rows | records.Records


class Plan(NamedTuple):
    """What is to be encoded."""

    job: dict[str, str]  # identifies it
    names: pa.LargeBinaryArray | None  # of files, kept with the codes; None where there are none
    shards: list[Part]  # as `read` takes them
    keep: str = "none"  # how embeddings are kept beside the codes, one of `kept.KINDS`


def make_plan(
    source: str,
    codes: str | PathLike,
    num_shards: int | None = None,
    data_dir: str = "",
    image_feature: str = "image/encoded",
    id_feature: str = "",
    id_prefix: str = "",
) -> Plan:
    """The plan for `--input`; a folder of codes that has begun keeps its list of files.

    Args:
        source: every form of `catalog.parse`.
        codes: folder that `codes.start` has begun or will begin.
        num_shards: None: one per 50,000 images, or per TFRecord file.
        data_dir: folder of prepared TFDS data, empty: TFDS's default; or of lists and photos.
        image_feature, id_feature: as in `records.Records`, with tfrecord.
        id_prefix: put before every id, which keeps those of several inputs apart.

    Raises:
        UserError: the input is missing or empty, or there are more shards than images or files.
    """
    parsed, named = catalog.parse(source), {"id_prefix": id_prefix} if id_prefix else {}
    if parsed.kind in ("name", "features"):
        plan = _plan_rows(source, data_dir, num_shards, named)
    elif parsed.kind == "tfds":
        plan = _plan_tfds(parsed.name, parsed.split or "train", data_dir, num_shards, named)
    elif parsed.kind == "tfrecord":
        plan = _plan_tfrecords(parsed, codes, num_shards, image_feature, id_feature, named)
    else:
        plan = _plan_files(source, parsed, codes, num_shards, named)
    return plan._replace(shards=[part._replace(**named) for part in plan.shards])


def has_changed(source: str, codes: str | PathLike) -> bool:
    """Whether `source` has other files than a folder of codes that has begun.

    False of what is no folder or pattern of images; UserError where the folder of images is gone.
    """
    parsed = catalog.parse(source)
    if parsed.kind not in ("folder", "pattern"):
        return False
    return not read_names(codes).equals(pack_ids(parsed.files()))


def read(part: Part) -> Iterator[Item]:
    """Yields each image of a shard of a `Plan`, read lazily."""
    return named_by(part, _read(part))


def named_by(part: Part, items: Iterable[Item]) -> Iterator[Item]:
    """Items with the prefix of a shard before their ids."""
    return (item._replace(id=part.id_prefix + item.id) for item in items)


def _read(part):
    if isinstance(part, records.Records):
        return records.read_records(part)
    if isinstance(part, Rows):
        images = _load(part.dataset, part.data_dir)
        return pictures.as_files(images.take(range(part.first, part.last)))
    return read_items(part.root, (unpack_id(name.as_py()) for name in names_of(part)))


def names_of(part: Files) -> pa.LargeBinaryArray:
    """The packed names of a shard's files."""
    return read_names(part.codes).slice(part.first, part.last - part.first)


def features_of(part: Part) -> Images | None:
    """The rows of a shard of features; None of images."""
    if not isinstance(part, Rows):
        return None
    images = _load(part.dataset, part.data_dir)
    if images.features is None:
        return None
    rows = images.take(range(part.first, part.last))
    return dataclasses.replace(rows, ids=[part.id_prefix + name for name in rows.ids])


def count_images(parts: Sequence[Part]) -> int | None:
    """The number of images in shards of a `Plan`; None where only reading tells."""
    of_records = [piece.take for p in parts if isinstance(p, records.Records) for piece in p.pieces]
    of_rows = [part.last - part.first for part in parts if not isinstance(part, records.Records)]
    counts = of_records + of_rows
    return None if min(counts, default=0) < 0 else sum(counts)


# The shards of a process share the images, or their list.
@lru_cache(maxsize=1)
def _load(dataset, data_dir):
    return catalog.load_images(dataset, data_dir)


def _plan_rows(dataset, data_dir, num_shards, named):
    data_dir = data_dir and str(files.absolute(data_dir))
    images = _load(dataset, data_dir)
    count = len(images)
    parts = [Rows(dataset, data_dir, *bounds) for bounds in _bounds(count, num_shards)]
    job = {"dataset": dataset, "data_dir": data_dir} | named
    # A matrix that changed since is another one.
    if images.features is not None:
        job |= {"rows": count, "sha256": features.digest(images)}
    return Plan(job, None, parts)


def _plan_files(source, parsed, codes, num_shards, named):
    folder, root = str(pathlib.Path(codes).absolute()), str(files.absolute(parsed.root))
    own = {"pattern": parsed.name, "root": root}
    job = ({"folder": root} if parsed.kind == "folder" else own) | named
    names = _keep_names(source, parsed, codes, job)
    parts = [Files(folder, root, *bounds) for bounds in _bounds(len(names), num_shards)]
    return Plan(job, names, parts)


def _plan_tfds(name, split, data_dir, num_shards, named):
    builder, instructions = tfds.open_tfds(name, split, data_dir)
    pieces = records.pieces_of(name, split, instructions)
    count = sum(piece.take for piece in pieces)
    if not count:
        raise UserError(f"tfds:{name}/{split}: no image in it; take another split")
    image = tfds.image_feature(builder)
    shards = [records.cut(pieces, *bounds) for bounds in _bounds(count, num_shards)]
    parts = [records.Records(shard, image) for shard in shards]
    job = {"tfds": f"{name}/{split}", "version": str(builder.version)} | named
    return Plan(job, None, parts)


def _plan_tfrecords(parsed, codes, num_shards, image_feature, id_feature, named):
    root = files.absolute(parsed.root)
    features = {"image_feature": image_feature, "id_feature": id_feature}
    job = {"tfrecords": parsed.name, "root": str(root)} | features | named
    names = _keep_names(f"tfrecord:{parsed.name}", parsed, codes, job)
    paths = (str(root / unpack_id(name)) for name in names.to_pylist())
    pieces = records.whole_files(paths, has_ids=bool(id_feature))
    bounds = _bounds(len(names), num_shards or len(names), "files, and none is divided")
    parts = [records.Records(pieces[first:last], **features) for first, last in bounds]
    records.check_features(parts[0])
    return Plan(job, names, parts)


def _keep_names(source, parsed, codes, job):
    names = read_names(codes) if is_begun(codes, job) else pack_ids(parsed.files())
    if not len(names):
        raise UserError(
            f"{source or repr(source)}: no file of this name; give a data set's name, a pattern of "
            f"files in quotes, folder:PATH with {', '.join(SUFFIXES)} files below, "
            "tfds:NAME/SPLIT or tfrecord:PATTERN"
        )
    return names


def _bounds(count, num_shards, what="images"):
    """First and last row of each shard."""
    number = num_shards or -(-count // IMAGES)
    if number > count:
        raise UserError(f"--num_shards={number}: there are only {count} {what}; lower it")
    return [(k * count // number, (k + 1) * count // number) for k in range(number)]
