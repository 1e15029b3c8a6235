"""What an index is made of: shards of codes and ids, read one at a time, some images left out."""

import functools
import hashlib
import json
import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from export.arrays import text_of, unpack_id
from export.codes import Shard
from export.index.neighbors import Index
from hqc_tf import files
from hqc_tf.errors import UserError

CHUNK = 2**20
# Ids whose hashes are computed together.
_HASHED = 2**16
_BASE = np.uint64(0x9E3779B97F4A7C15)
POLICIES = ("error", "replace", "keep")


class Collection:
    """The images of an index, in the order of its rows; iterating gives `Shard`s.

    Args:
        parts: functions that each give a `Shard`, called whenever it is needed.
        sizes: images of each part.
        inputs: what the images were made of, each as JSON has it.
        keep: how embeddings are kept beside the codes, one of `kept.KINDS`.
    """

    def __init__(
        self,
        parts: Sequence[Callable[[], Shard]],
        sizes: Sequence[int],
        inputs: Sequence[Any] = (),
        keep: str = "none",
    ):
        self.inputs, self._parts, self._sizes = list(inputs), list(parts), list(sizes)
        self.keep = keep
        self.num_images = sum(self._sizes)

    def __iter__(self) -> Iterator[Shard]:
        return (part() for part in self._parts)

    def __add__(self, other: "Collection") -> "Collection":
        """This collection, then another that keeps embeddings alike."""
        new = [each for each in other.inputs if each not in self.inputs]
        sizes = self._sizes + other._sizes
        return Collection(self._parts + other._parts, sizes, self.inputs + new, self.keep)

    def keeping(self, keep: str, name: str) -> "Collection":
        """The collection with embeddings kept so, or dropped.

        UserError, which names the collection `name`, where it has none of this kind.
        """
        if keep == self.keep:
            return self
        if keep != "none":
            own = f"embeddings as {self.keep}" if self.keep != "none" else "no embeddings"
            raise UserError(
                f"{name}: keeps {own}, not as {keep}; encode it anew with --keep={keep}, or give "
                "--keep=none, and the index keeps none"
            )
        parts = [functools.partial(_codes_of, part) for part in self._parts]
        return Collection(parts, self._sizes, self.inputs)

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
        if not any(mask.any() for mask in kept):
            raise UserError("--remove: no image would be left; remove the index itself")
        return self._thinned(np.concatenate(kept))

    def once(self, on_duplicate_id: str = "error") -> "Collection":
        """The collection with one image of each id.

        Of images with equal ids, codes and kept embeddings the first stays.

        Args:
            on_duplicate_id: of equal ids with different codes: "replace" keeps the last, "keep" the
                first, "error" neither. Where only the kept embeddings differ, "replace" keeps the
                last and the others the first.

        Raises:
            UserError: an id has different codes, and `on_duplicate_id` is "error".
        """
        hashes = np.concatenate([_hashes(shard.ids) for shard in self] or [np.zeros(0, np.uint64)])
        ordered = np.sort(hashes)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(repeated):
            return self
        # Hashes may meet by chance: ids decide.
        rows_of = defaultdict(list)
        for start, shard in zip(self._starts(), self, strict=True):
            own = hashes[start : start + len(shard.codes)]
            for row in np.flatnonzero(np.isin(own, repeated)):
                rows_of[shard.ids[row].as_py()].append((start + row, *_contents_of(shard, row)))
        stays, differ = np.ones(self.num_images, bool), []
        for name, images in rows_of.items():
            rows, codes, embeddings = zip(*images, strict=True)
            if len(set(codes)) > 1:
                differ.append(name)
            alike = len(set(codes)) == len(set(embeddings)) == 1
            last = on_duplicate_id == "replace" and not alike
            stays[list(rows[:-1] if last else rows[1:])] = False
        if differ and on_duplicate_id == "error":
            raise UserError(
                f"{len(differ)} ids have several images with different codes, the first is "
                f"{unpack_id(differ[0])!r}; give --on_duplicate_id=replace for the newest of each, "
                "or keep for the oldest; other images of a second folder get --id_prefix"
            )
        return self._thinned(stays)

    def _starts(self):
        return np.cumsum([0, *self._sizes])[:-1]

    def _thinned(self, stays):
        """The images of which bool [N] `stays` is true."""
        masks = np.split(stays, self._starts()[1:])
        pairs = zip(self._parts, masks, strict=True)
        parts = [functools.partial(_of_rows, part, mask) for part, mask in pairs]
        return Collection(parts, [int(mask.sum()) for mask in masks], self.inputs, self.keep)


def of_index(index: Index) -> Collection:
    """The images of an index."""
    codes, starts = index.codes, range(0, index.num_images, CHUNK)
    parts = [functools.partial(_cut, codes, index.ids, index.kept, start) for start in starts]
    sizes = [min(CHUNK, index.num_images - start) for start in starts]
    return Collection(parts, sizes, index.manifest.get("inputs", []), index.keep)


def of_shards(shards: Sequence[Shard], source: Any = None, keep: str = "none") -> Collection:
    """All images of a sequence of shards, made of `source`, which JSON can hold."""
    parts = [functools.partial(shards.__getitem__, number) for number in range(len(shards))]
    inputs = [] if source is None else [source]
    return Collection(parts, [len(shard.codes) for shard in shards], inputs, keep)


def read_ids(path: str, flag: str = "--remove") -> list[str]:
    """The ids in the file that `flag` names; UserError where it has none, or cannot be read.

    One a line; or JSON, a line each, where the name ends in .jsonl; or ended by NUL characters.
    """
    try:
        text = files.read_regular(path).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"{flag}={path}: {error.strerror}; name a file of ids") from error
    if str(path).endswith(".jsonl"):
        ids = [_id_of_line(f"{flag}={path}", line) for line in text.splitlines() if line.strip()]
    else:
        lines = text.split(b"\0") if b"\0" in text else text.splitlines()
        ids = [line.decode("utf-8", "surrogateescape") for line in lines if line]
    if not ids:
        raise UserError(f"{flag}={path}: holds no id; write one a line")
    return ids


def _id_of_line(file, line):
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: {error}; write an id as JSON on each line") from error
    name = found.get("id") if isinstance(found, dict) else found
    if not isinstance(name, str):
        raise UserError(f'{file}: {reprlib.repr(found)}: not an id; write "ID" or {{"id": "ID"}}')
    return name


def _hashes(ids):
    """A hash of each packed id, uint64 [n]: a polynomial of its bytes."""
    found = []
    for start in range(0, len(ids), _HASHED):
        text, starts = text_of(ids.slice(start, _HASHED))
        lengths = np.diff(starts)
        powers = np.cumprod(np.full(lengths.max(initial=0), _BASE))
        places = np.arange(len(text)) - np.repeat(starts[:-1], lengths)
        sums = np.cumsum((text + np.uint64(1)) * powers[places], dtype=np.uint64)
        ends = np.append(np.uint64(0), sums)[starts]
        found.append(ends[1:] - ends[:-1])
    return np.concatenate(found) if found else np.zeros(0, np.uint64)


def _contents_of(shard, row):
    """The code of an image, and a digest of its kept embedding, which is long; both bytes."""
    kept = b"" if shard.kept is None else hashlib.sha256(shard.kept[row]).digest()
    return shard.codes[row].tobytes(), kept


def _cut(codes, ids, kept, start):
    rows = slice(start, start + CHUNK)
    own = None if kept is None else kept[rows]
    return Shard(codes[rows], ids.slice(start, CHUNK), own)


def _of_rows(part, mask):
    codes, ids, kept = part()
    return Shard(codes[mask], ids.filter(pa.array(mask)), None if kept is None else kept[mask])


def _codes_of(part):
    return part()._replace(kept=None)
