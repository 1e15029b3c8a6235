"""What goes into an index: shards of codes and ids, read one at a time, some images left out."""

import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from export.arrays import text_of, unpack_id
from export.codes import Shard
from hqc_tf.errors import UserError

CHUNK = 2**20


class Collection:
    """The images of an index, in the order of its rows; iterating gives `Shard`s.

    Args:
      shards: sequence of `Shard`; an item is asked for whenever it is needed, and let go.
      sources: list of {"sha256", "images"}, where the rows come from, in order. The digest is
        empty where not all images of a source are left.
    """

    def __init__(self, shards, sources):
        self.sources = sources
        self._shards = shards
        self.num_images = sum(len(shard.codes) for shard in self)

    def __iter__(self):
        return iter(self._shards)

    def __add__(self, other):
        """This collection and behind it another.

        Raises:
          UserError: a source of the other is in this one already.
        """
        known = {source["sha256"] for source in self.sources if source["sha256"]}
        if any(source["sha256"] in known for source in other.sources):
            raise UserError(
                "--append: the index holds these codes already; name others, or leave it out"
            )
        return Collection(_Joined(self._shards, other._shards), self.sources + other.sources)

    def without(self, ids):
        """The collection but for every image with one of `ids`; UserError if there is none of one.

        Args:
          ids: strings.
        """
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
        sources = _left(self.sources, rows)
        return Collection(_Thinned(self._shards, kept), sources)


class _OfIndex(Sequence):
    """The images of an `Index` as shards of up to `CHUNK` images."""

    def __init__(self, index):
        self._codes, self._ids = index.codes, index.ids

    def __len__(self):
        return -(-len(self._codes) // CHUNK)

    def __getitem__(self, number):
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * CHUNK
        ids = self._ids.slice(start, CHUNK).combine_chunks()
        return Shard(self._codes[start : start + CHUNK], ids)


def of_index(index):
    """The `Collection` of an `Index`."""
    return Collection(_OfIndex(index), index.manifest["sources"])


def of_shards(shards):
    """The `Collection` of all images of a sequence of `Shard`, which are one source."""
    digest, count = hashlib.sha256(), 0
    for codes, ids in shards:
        for array in (codes, *text_of(ids)):
            digest.update(np.ascontiguousarray(array).data)
        count += len(codes)
    return Collection(shards, [{"sha256": digest.hexdigest(), "images": count}])


def read_ids(path):
    """The ids in a file, one a line.

    Raises:
      UserError: it cannot be read, or is empty.
    """
    try:
        lines = pathlib.Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"--remove={path}: {error.strerror}; name a file of ids") from error
    ids = [line.decode("utf-8", "surrogateescape") for line in lines if line]
    if not ids:
        raise UserError(f"--remove={path}: holds no id; write one a line")
    return ids


class _Joined(Sequence):
    def __init__(self, first, second):
        self._first, self._second = first, second

    def __len__(self):
        return len(self._first) + len(self._second)

    def __getitem__(self, number):
        start = len(self._first)
        return self._first[number] if number < start else self._second[number - start]


class _Thinned(Sequence):
    def __init__(self, shards, kept):
        self._shards, self._kept = shards, kept

    def __len__(self):
        return len(self._shards)

    def __getitem__(self, number):
        shard, kept = self._shards[number], self._kept[number]
        return Shard(shard.codes[kept], shard.ids.filter(pa.array(kept)))


def _left(sources, kept):
    ends = np.cumsum([source["images"] for source in sources])
    counts = [int(np.sum(part)) for part in np.split(kept, ends[:-1])]
    return [
        {"sha256": source["sha256"] if count == source["images"] else "", "images": count}
        for source, count in zip(sources, counts, strict=True)
        if count
    ]
