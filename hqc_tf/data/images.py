"""A set of images, or of features of them, and which of them are held out from training."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

Names = Sequence[str] | None
Labels = np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A set of images; made by `of_files`, `of_pixels`, `of_contents` or `of_features`.

    Exactly one of pixels, paths, contents and features is not None.
    """

    pixels: np.ndarray | None  # uint8 [N, H, W, 3]
    paths: list[str] | None  # N file names
    contents: np.ndarray | None  # N bytes objects, each the contents of an image file
    ids: list[str]  # N names by which search results tell images apart
    # Int [N], or uint8 [N, C] of 0 and 1 where an image has several, or None where nothing is
    # known; only evaluation reads them.
    labels: np.ndarray | None
    label_names: list[str] | None  # name of each label
    features: np.ndarray | None = None  # float [F, E], possibly on the disk; its rows are read late
    feature_rows: np.ndarray | None = None  # int [N], which of them these are
    feature_views: int = 0  # each of these rows is followed by so many, of random views
    network: str = ""  # digest of the network that made the features, where it is known

    @classmethod
    def of_files(
        cls, paths: Sequence, ids: Names = None, labels: Labels = None, label_names: Names = None
    ) -> Self:
        """The images in files; without `ids`, their paths are their ids."""
        paths = [str(path) for path in paths]
        return cls(None, paths, None, list(ids or paths), labels, label_names)

    @classmethod
    def of_pixels(
        cls, pixels: np.ndarray, ids: Names = None, labels: Labels = None, label_names: Names = None
    ) -> Self:
        """The images uint8 [N, H, W, 3]; without `ids`, their rows "0", "1", ... are their ids."""
        ids = list(ids or map(str, range(len(pixels))))
        return cls(pixels, None, None, ids, labels, label_names)

    @classmethod
    def of_contents(
        cls, files: Sequence[bytes], ids: Names, labels: Labels = None, label_names: Names = None
    ) -> Self:
        """The images in the contents of files, which stay encoded in memory."""
        contents = np.empty(len(files), object)
        contents[:] = files
        return cls(None, None, contents, list(ids), labels, label_names)

    @classmethod
    def of_features(
        cls,
        matrix: np.ndarray,
        ids: Names,
        labels: Labels = None,
        label_names: Names = None,
        views: int = 0,
        network: str = "",
    ) -> Self:
        """Rows of float [N * (1 + views), E] in place of N images: each, then random views of it.

        `network` is the digest of what made them, if it is known.
        """
        rows = np.arange(0, len(matrix), 1 + views)
        return cls(None, None, None, list(ids), labels, label_names, matrix, rows, views, network)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        """The images at int [n] `rows`."""
        rows = np.asarray(rows, np.int64)
        arrays = ("pixels", "contents", "labels", "feature_rows")
        found = {name: getattr(self, name) for name in arrays}
        found = {name: values[rows] for name, values in found.items() if values is not None}
        if self.paths is not None:
            found["paths"] = [self.paths[row] for row in rows]
        return dataclasses.replace(self, ids=[self.ids[row] for row in rows], **found)


def numbered(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Labels int [N] of the names of N images, and the name of each label, sorted."""
    # NumPy's own would give each name the room of the longest.
    known = sorted(set(names))
    numbers = {name: number for number, name in enumerate(known)}
    return np.array([numbers[name] for name in names], np.int64), known


def joined(parts: Sequence[Images]) -> Images:
    """The images of several sets of one kind, one after the other."""
    first, found = parts[0], {}
    for name in ("pixels", "contents", "labels"):
        if getattr(first, name) is not None:
            found[name] = np.concatenate([getattr(part, name) for part in parts])
    if first.paths is not None:
        found["paths"] = [path for part in parts for path in part.paths]
    return dataclasses.replace(first, ids=[name for part in parts for name in part.ids], **found)


def hold_out(images: Images, count: int) -> tuple[Images, Images]:
    """Divides training images into (those trained on, those held out to choose weights by).

    `count`, `--held_out`, are held out, a tenth of fewer than ten times as many images; the
    division is the same for every seed.
    """
    trained_on, held = _divided(images, count)
    return images.take(trained_on), images.take(held)


def held_out(images: Images, count: int) -> Images:
    """The second of what `hold_out` returns, without a copy of the first."""
    _, held = _divided(images, count)
    return images.take(held)


def _divided(images, count):
    count = min(count, len(images) // 10)
    shuffled = np.random.RandomState(0).permutation(len(images))
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])
