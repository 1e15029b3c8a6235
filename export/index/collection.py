"""What an index is made of: shards of codes and ids, read one at a time, some images left out."""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from export.arrays import text_of, unpack_id
from export.codes import Shard
from export.index.neighbors import Index
from hqc_tf.errors import UserError

CHUNK = 2**20


class Collection:
    """The images of an index, in the order of its rows; iterating gives `Shard`s.

    Args:
        parts: functions that each give a `Shard`, called whenever it is needed.
        sources: {"sha256", "images"} of each source of rows, in order. The digest is empty where
            some images of a source are left out.
    """

    def __init__(self, parts: Sequence[Callable[[], Shard]], sources: list[dict]):
        self.sources, self._parts = sources, parts
        self.num_images = sum(source["images"] for source in sources)

    def __iter__(self) -> Iterator[Shard]:
        return (part() for part in self._parts)

    def __add__(self, other: "Collection") -> "Collection":
        """This collection, then another; UserError where they have a source in common."""
        known = {source["sha256"] for source in self.sources if source["sha256"]}
        if any(source["sha256"] in known for source in other.sources):
            raise UserError(
                "--append: the index already has these codes; name others, or leave it out"
            )
        return Collection([*self._parts, *other._parts], self.sources + other.sources)

    def without(self, ids: Iterable[str]) -> "Collection":
        """The collection without the images of `ids`; UserError where an id has no image."""
        wanted = {name.encode("utf-8", "surrogatepass") for name in ids}
        kept, found = [], set()
        for shard in self:
            names = shard.ids.to_pylist()
            mask = np.fromiter((name not in wanted for name in names), bool, len(names))
            found.update(names[row] for row in np.flatnonzero(~mask))
            kept.append(mask)
        if found != wanted:
            missing = unpack_id(min(wanted - found))
            raise UserError(
                f"--remove: {len(wanted - found)} of {len(wanted)} ids are not in the index, the "
                f"first is {missing!r}; list ids that it has"
            )
        rows = np.concatenate(kept)
        if not rows.any():
            raise UserError("--remove: no image would be left; remove the index itself")
        pairs = zip(self._parts, kept, strict=True)
        parts = [functools.partial(_thinned, part, mask) for part, mask in pairs]
        return Collection(parts, _left(self.sources, rows))


def of_index(index: Index) -> Collection:
    """The images of an index."""
    codes, starts = index.codes, range(0, index.num_images, CHUNK)
    parts = [functools.partial(_cut, codes, index.ids, start) for start in starts]
    return Collection(parts, index.manifest["sources"])


def of_shards(shards: Sequence[Shard]) -> Collection:
    """All images of a sequence of shards, which are one source."""
    digest, count = hashlib.sha256(), 0
    for codes, ids in shards:
        for array in (codes, *text_of(ids)):
            digest.update(np.ascontiguousarray(array).data)
        count += len(codes)
    parts = [functools.partial(shards.__getitem__, number) for number in range(len(shards))]
    return Collection(parts, [{"sha256": digest.hexdigest(), "images": count}])


def read_ids(path: str) -> list[str]:
    """The ids in the file of `--remove`, one a line; UserError where it has none."""
    try:
        lines = pathlib.Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"--remove={path}: {error.strerror}; name a file of ids") from error
    ids = [line.decode("utf-8", "surrogateescape") for line in lines if line]
    if not ids:
        raise UserError(f"--remove={path}: holds no id; write one a line")
    return ids


def _cut(codes, ids, start):
    return Shard(codes[start : start + CHUNK], ids.slice(start, CHUNK).combine_chunks())


def _thinned(part, mask):
    codes, ids = part()
    return Shard(codes[mask], ids.filter(pa.array(mask)))


def _left(sources, kept):
    ends = np.cumsum([source["images"] for source in sources])
    counts = [int(np.sum(part)) for part in np.split(kept, ends[:-1])]
    return [
        {"sha256": source["sha256"] if count == source["images"] else "", "images": count}
        for source, count in zip(sources, counts, strict=True)
        if count
    ]
