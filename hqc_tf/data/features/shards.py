"""Folders of features in shards: `hqc_tf.embed` writes them, `features:DIR` reads them.

A folder of S shards holds

    manifest.json                   what was embedded by which network; the folder has begun with it
    files.jsonl, rejects.jsonl      files of the data set, and images left out, as in a workdir
    features-00000-of-0000S.arrow   columns `id` (large_binary), `roles` (uint8), `label` (int64, or
                                    a list of uint8), `vectors`: of the plain view, then of each
                                    random one, together a list of floats

Each file is written atomically. Arrow files are memory-mapped.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from os import PathLike
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from hqc_tf import files
from hqc_tf.errors import UserError, naming_a_full_disk, naming_damage

FORMAT = "hqc-features"
MANIFEST = "manifest.json"
# Bits of the column `roles`, in this order.
ROLES = ("train", "database", "query")
# Settings that make the features of an image's plain view, with those of its random ones.
OF_NETWORK = (
    "image_size", "resize_size", "backbone", "backbone_width", "backbone_weights",
    "backbone_pixels",
)  # fmt: skip
OF_VIEWS = (
    "seed", "crop_area", "crop_ratio", "flip_probability", "jitter", "hue_shift",
    "gray_probability", "blur_sigma",
)  # fmt: skip
_ID = pa.large_binary()
_AGAIN = "embed into a new folder"
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**40)]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder holds, and what made it."""

    format: str
    dataset: str  # the images
    images: _Count
    shards: _Count
    views: Annotated[int, msgspec.Meta(ge=0, le=2**16)]  # random ones of each image
    width: _Count  # numbers of a vector, E
    dtype: Literal["float16", "float32"]
    network: str  # digest of the backbone
    settings: dict[str, Any]  # those of a `Config` named in `OF_NETWORK` and `OF_VIEWS`
    label_names: list[str] | None = None
    precision: str = "float32"  # in which the network ran
    roles_and_labels: str = ""  # SHA-256 of them; empty in folders of older versions


class Shard(NamedTuple):
    """Some images of a folder."""

    ids: Sequence[str]  # [n]
    roles: np.ndarray  # uint8 [n]
    labels: np.ndarray | None  # int [n], or uint8 [n, C]
    vectors: np.ndarray  # float [n, 1 + views, E]


class Matrix:
    """The vectors of all shards as one float [F, E], of which int [n] rows are read when indexed.

    Args:
        parts: float [n, E] each, possibly on the disk.
    """

    def __init__(self, parts: Sequence[np.ndarray]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape = int(self._ends[-1]), parts[0].shape[1]
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty([len(rows), self.shape[1]], self.dtype)
        places = np.searchsorted(self._ends, rows, "right")
        for number in np.unique(places):
            own, part = places == number, self._parts[number]
            found[own] = part[rows[own] - (self._ends[number] - len(part))]
        return found


def read_manifest(folder: str | PathLike) -> Manifest | None:
    """The manifest of a folder; None where it has none. UserError where it is damaged."""
    path = pathlib.Path(folder, MANIFEST)
    lines = files.read_lines(path, Manifest)
    if not lines:
        return None
    missing = {*OF_NETWORK, *OF_VIEWS} - lines[0].settings.keys()
    if lines[1:] or lines[0].format != FORMAT or missing:
        raise UserError(f"{path}: is no manifest of hqc_tf.embed; name a folder that it wrote")
    return lines[0]


def write_manifest(folder: str | PathLike, manifest: Manifest) -> None:
    """Begins a folder of shards."""
    files.write_lines(pathlib.Path(folder, MANIFEST), [manifest])


def is_done(folder: str | PathLike, number: int, count: int) -> bool:
    """Whether shard `number` of `count` is complete."""
    return _path(folder, number, count).exists()


def write_shard(folder: str | PathLike, number: int, count: int, shard: Shard) -> None:
    """Writes shard `number` of `count` atomically."""
    columns = {
        "id": pa.array([name.encode("utf-8", "surrogatepass") for name in shard.ids], _ID),
        "roles": pa.array(shard.roles, pa.uint8()),
    }
    if shard.labels is not None:
        is_one = shard.labels.ndim == 1
        columns["label"] = pa.array(shard.labels, pa.int64()) if is_one else _lists(shard.labels)
    columns["vectors"] = _lists(shard.vectors)
    batch = pa.record_batch(columns)
    path = _path(folder, number, count)

    def write(file):
        with pa.ipc.new_file(pa.PythonFile(file), batch.schema) as writer:
            writer.write_batch(batch)

    with naming_a_full_disk(path):
        # Workers of a cluster may make a shard twice.
        files.write_shared(path, write)


def read_shards(folder: str | PathLike) -> tuple[Manifest, list[Shard]]:
    """The manifest and the shards of a complete folder, the vectors memory-mapped.

    UserError where it is not one, or a shard is damaged or of another width.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"features:{folder}: no {MANIFEST} there; name a folder of hqc_tf.embed")
    count = manifest.shards
    existing = {path.name for path in pathlib.Path(folder).glob("features-*.arrow")}
    names = (_path(folder, number, count).name for number in range(count))
    # A damaged manifest may count more shards than could ever be looked for.
    if first := next((name for name in names if name not in existing), None):
        raise UserError(
            f"features:{folder}: at least {max(1, count - len(existing))} of {count} shards are "
            f"missing, the first is {first}; run the same hqc_tf.embed again, which writes them"
        )
    found = [_read_shard(_path(folder, number, count), manifest) for number in range(count)]
    kinds = {None if one.labels is None else one.labels.shape[1:] for one in found}
    if len(kinds) > 1:
        raise UserError(f"features:{folder}: its shards have labels of several kinds; {_AGAIN}")
    if (total := sum(len(shard.ids) for shard in found)) != manifest.images:
        raise UserError(
            f"features:{folder}: has {total} images, but its {MANIFEST} says {manifest.images}; "
            f"{_AGAIN}"
        )
    return manifest, found


def _read_shard(path, manifest):
    with naming_damage(path, _AGAIN):
        files.open_regular(path).close()
        # Closed, the buffers stay mapped, without a file descriptor each.
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            batch = reader.get_batch(0)
            if reader.num_record_batches != 1 or any(one.null_count for one in batch.columns):
                raise ValueError("not one batch without gaps")
        batch.validate(full=True)
        if batch.schema.field("roles").type != pa.uint8():
            raise ValueError("its roles are no bytes")
        ids = [name.decode("utf-8", "surrogatepass") for name in batch.column("id").to_pylist()]
        roles, vectors = batch.column("roles").to_numpy(), _matrix(batch.column("vectors"))
        labels = batch.column("label") if "label" in batch.schema.names else None
        if labels is not None:
            is_list = pa.types.is_fixed_size_list(labels.type)
            labels = _matrix(labels) if is_list else labels.to_numpy()
    views, width = manifest.views + 1, manifest.width
    if vectors.shape[1] != views * width or vectors.dtype != manifest.dtype:
        raise UserError(
            f"{path}: holds {vectors.dtype} {vectors.shape[1]} numbers an image, but {MANIFEST} "
            f"says {manifest.dtype} {views} x {width}; {_AGAIN}"
        )
    return Shard(ids, roles, labels, vectors.reshape(-1, views, width))


def _lists(values):
    """Float or int [n, ...] -> Arrow's lists of one length."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))


def _matrix(lists):
    """Arrow's lists of one length -> a view of them, [n, length]."""
    return lists.flatten().to_numpy().reshape(len(lists), lists.type.list_size)


def _path(folder, number, count):
    return pathlib.Path(folder, f"features-{number:05d}-of-{count:05d}.arrow")
