"""A set of images, in memory or as files, and which of them are held out from training."""

from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    """A set of images, in memory or as files.

    Attributes:
      pixels: uint8 [N, H, W, 3], or None where the images are files.
      paths: N file names, or None where the pixels are in memory.
      ids: N names by which search results tell images apart.
      labels: int [N], or uint8 [N, C] of 0 and 1 where an image has several, or None where nothing
        is known; only evaluation looks at them.
      label_names: name of each label, or None.
    """

    pixels: np.ndarray | None
    paths: list | None
    ids: list
    labels: np.ndarray | None
    label_names: list | None

    def __len__(self):
        return len(self.ids)

    def take(self, rows):
        """The images at int [n] `rows`."""
        return Images(
            pixels=None if self.pixels is None else self.pixels[rows],
            paths=None if self.paths is None else [self.paths[row] for row in rows],
            ids=[self.ids[row] for row in rows],
            labels=None if self.labels is None else self.labels[rows],
            label_names=self.label_names,
        )


def hold_out(images, count):
    """Divides training images into those learned from and those kept to choose weights by.

    Args:
      images: `Images` of the role "train".
      count: how many are kept, `--held_out`; of fewer than ten times as many images, a tenth is.

    Returns:
      (learned, held), `Images` each; the same division for every seed.
    """
    learned, held = _divided(images, count)
    return images.take(learned), images.take(held)


def held_out(images, count):
    """The second of what `hold_out` returns, without a copy of the first."""
    _, held = _divided(images, count)
    return images.take(held)


def _divided(images, count):
    count = min(count, len(images) // 10)
    shuffled = np.random.RandomState(0).permutation(len(images))
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])
