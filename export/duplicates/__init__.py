"""Groups of images that an index has twice: `python -m export.duplicates --index=index/ ...`

Images of equal codes are candidates, and those whose codes are near. Without their files,
candidates are a group; with them, those whose pixels agree. A group is all that pairs lead to.
"""

import collections
import dataclasses
import itertools
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
from scipy import sparse
from tqdm import tqdm

from export.arrays import unpack_id
from export.duplicates import pixels
from export.index import Index
from export.results import name_finder
from hqc_tf.data.folder import read_items
from hqc_tf.errors import UserError, printable

# Pairs of images that are looked at roughly, and closely, at a time.
ROUGHLY, CLOSELY = 2**20, 2**10


@dataclasses.dataclass(frozen=True)
class Group:
    """A line of groups.jsonl."""

    ids: list[str]  # in the order of the index
    largest: str | None = None  # the id of most pixels, of these of most bytes
    sides: list[list[int]] | None = None  # width and height of each, in pixels
    bytes: list[int] | None = None  # of each file


class Partition:
    """Things that pairs join: `labels`, int [n], are equal where any number of pairs leads."""

    def __init__(self, count: int):
        self.labels = np.arange(count)

    def join(self, pairs: np.ndarray) -> None:
        """Joins int [P, 2] things."""
        # Else each call would go through all things.
        if not len(pairs):
            return
        ends = self.labels[pairs.T]
        shape = len(self.labels), len(self.labels)
        graph = sparse.coo_array((np.ones(len(pairs), bool), tuple(ends)), shape)
        self.labels = sparse.csgraph.connected_components(graph, directed=False)[1][self.labels]


class Files:
    """The files of some images of an index, as small as they are compared.

    Args:
        index: it has the ids.
        places: int [C] of the images in `Index.grouped_rows`.
        root: folder of the files.
        folder: a folder for C times 3 KiB.
    """

    def __init__(self, index: Index, places: np.ndarray, root: str, folder: str):
        shape = (len(places), pixels.SIDE, pixels.SIDE, 3)
        name = pathlib.Path(folder, "squares")
        self.squares = np.lib.format.open_memmap(name, "w+", np.uint8, shape)
        self.rough = np.zeros([len(places), pixels.ROUGH_SIDE**2], np.float16)
        self.sides, self.sizes = (np.zeros(n, np.int64) for n in ([len(places), 2], len(places)))
        for place, name, length, small in _read_small(index, places, root):
            if isinstance(small, str):
                print(f"left out: {printable(name)}: {small}", file=sys.stderr)
                continue
            self.squares[place], self.sides[place] = small.square, small.sides[::-1]
            self.rough[place] = pixels.rough(small.square[None])
            self.sizes[place] = length
        if len(places) and not self.sizes.any():
            raise UserError(f"--images=folder:{root}: has none of the images; name their folder")

    def copies(self, pairs: np.ndarray, known: Partition) -> Iterator[np.ndarray]:
        """Yields those of int [P, 2] that are copies, without pairs that `known` joins already."""
        pairs = pairs[(self.sizes[pairs] > 0).all(axis=1)]
        pairs = pairs[pixels.may_be_copies(*(self.rough[part] for part in pairs.T))]
        while len(pairs):
            pairs = pairs[known.labels[pairs[:, 0]] != known.labels[pairs[:, 1]]]
            some, pairs = pairs[:CLOSELY], pairs[CLOSELY:]
            yield some[pixels.are_copies(*(self.squares[part] for part in some.T))]


def _read_small(index, places, root):
    """Yields number, id, bytes and `pixels.Small` (or why there is none) of images at `places`."""
    name_of = name_finder(index.manifest.get("inputs", []), root)
    # In the order of the folder.
    rows = index.grouped_rows[places]
    order = np.argsort(rows)
    # The next ones are read ahead.
    ids, lengths = collections.deque(), collections.deque()

    def names():
        for place in order:
            name = unpack_id(index.ids[int(rows[place])].as_py())
            ids.append((place, name))
            # No file has an empty name.
            yield name_of(name) or ""

    def noted():
        for item in read_items(root, names()):
            lengths.append(len(item.contents))
            yield item

    for item, small in pixels.read_small(noted()):
        (place, name), length = ids.popleft(), lengths.popleft()
        yield place, name, length, small if item.id else "not of this folder"


def usual_radius(index: Index) -> float:
    """The distance of two codes that have neighboring words in a quarter of their books."""
    apart = np.square(index.codebooks[:, :, None] - index.codebooks[:, None]).sum(axis=3)
    apart[:, *np.diag_indices(apart.shape[1])] = np.inf
    return float(np.median(apart.min(axis=2)) * max(1, len(apart) / 4))


def find_by_code(index: Index, radius: float) -> Iterator[Group]:
    """Yields groups of images whose codes are equal or near, the largest first.

    Args:
        index: of the images.
        radius: most squared distance of two codes that are near.
    """
    labels = _near(index, radius, lambda pairs: None)
    sizes = np.diff(index.group_starts.astype(np.int64))
    for places in _groups(index, np.repeat(labels, sizes)):
        yield Group(_ids(index, places))


def find_by_pixels(index: Index, radius: float, root: str) -> Iterator[Group]:
    """As `find_by_code`, of those pairs that are copies by the pixels of the files below `root`.

    An image that cannot be read is named on stderr and left out. UserError where none can be.
    """
    starts = index.group_starts.astype(np.int64)
    sizes = np.diff(starts)
    with tempfile.TemporaryDirectory() as folder:
        near = pathlib.Path(folder, "near")
        with near.open("wb") as file:
            labels = _near(index, radius, lambda pairs: file.write(pairs.tobytes()))
        several = np.bincount(labels, sizes)[labels] > 1
        places = np.flatnonzero(np.repeat(several, sizes))
        files = Files(index, places, root, folder)
        number = np.cumsum(np.repeat(several, sizes)) - 1
        copies = Partition(len(places))
        for pairs in _told(starts, near):
            for found in files.copies(number[pairs], copies):
                copies.join(found)
        own = np.full(index.num_images, -1)
        own[places] = copies.labels
        for group in _groups(index, own):
            yield _described(index, group, files, number[group])


def _told(starts, near):
    """`_image_pairs` of equal codes and of those in the file `near`, with a bar of progress."""
    several = np.flatnonzero(np.diff(starts) > 1)
    equal = np.stack([several, several], axis=1)
    parts = itertools.chain([equal], _parts_of(near))
    count = sum(_counts(starts, codes).sum() for codes in parts)
    with tqdm(total=count, desc="comparing", unit="pair", disable=None) as progress:
        for codes in itertools.chain([equal], _parts_of(near)):
            for pairs in _image_pairs(starts, codes):
                yield pairs
                progress.update(len(pairs))


def _near(index, radius, keep):
    """Labels of the distinct codes by which near ones are joined; `keep` takes the pairs."""
    codes = Partition(len(index.distinct_codes))
    for pairs in index.near_codes(radius) if radius > 0 else ():
        keep(pairs)
        codes.join(pairs)
    return codes.labels


def _parts_of(file):
    """Pairs that were written to a file, part by part."""
    step = 2 * ROUGHLY
    for start in range(0, file.stat().st_size // 8, step):
        yield np.fromfile(file, np.int64, step, offset=8 * start).reshape(-1, 2)


def _image_pairs(starts, codes):
    """Yields places of the pairs of images, [P, 2], of int [n, 2] pairs of codes; each once."""
    firsts, sizes, counts = starts[codes], starts[codes + 1] - starts[codes], _counts(starts, codes)
    ends = np.cumsum(counts)
    for start in range(0, ends[-1] if len(ends) else 0, ROUGHLY):
        number = np.arange(start, min(start + ROUGHLY, ends[-1]))
        of = np.searchsorted(ends, number, "right")
        own = number - ends[of] + counts[of]
        is_equal = codes[of, 0] == codes[of, 1]
        pairs = np.stack(np.divmod(own, sizes[of, 1]), axis=1)
        pairs[is_equal] = _of_equal(own[is_equal], sizes[of[is_equal], 0])
        yield firsts[of] + pairs


def _counts(starts, codes):
    """How many pairs of images each of int [n, 2] pairs of codes has."""
    one, other = (starts[codes + 1] - starts[codes]).T
    return np.where(codes[:, 0] == codes[:, 1], one * (one - 1) // 2, one * other)


def _of_equal(number, size):
    """The pairs of `size` things, the first below the second, with these numbers in their order."""
    left = size * (size - 1) // 2 - 1 - number
    row = (np.sqrt(8 * left + 1).astype(np.int64) - 1) // 2
    return np.stack([size - 2 - row, size - 1 - left + row * (row + 1) // 2], axis=1)


def _groups(index, labels):
    """Yields places of the images of each label, int [N] in `Index.grouped_rows`, but -1's.

    Labels of one image are left out. The largest group is first, of these that of the first row.
    """
    places = np.flatnonzero(labels >= 0)
    _, labels, sizes = np.unique(labels[places], return_inverse=True, return_counts=True)
    several = sizes[labels] > 1
    places, labels = places[several], labels[several]
    rows = index.grouped_rows[places].astype(np.int64)
    first = np.full(len(sizes), index.num_images)
    np.minimum.at(first, labels, rows)
    places = places[np.lexsort((rows, first[labels], -sizes[labels]))]
    ends = np.cumsum(-np.sort(-sizes[sizes > 1]))
    yield from (places[start:end] for start, end in zip([0, *ends], ends, strict=False))


def _described(index, places, files, numbers):
    sides, sizes, ids = files.sides[numbers], files.sizes[numbers], _ids(index, places)
    largest = ids[np.lexsort((-sizes, -sides.prod(axis=1)))[0]]
    return Group(ids, largest, sides.tolist(), sizes.tolist())


def _ids(index, places):
    return index.ids_of(index.grouped_rows[places][None])[0]
