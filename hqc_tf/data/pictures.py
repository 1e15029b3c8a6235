"""Images as a person sees them: small pictures, and their labels as text that shows anywhere."""

import io
from collections.abc import Iterator

import numpy as np
import PIL.Image

from hqc_tf.data.batches import read_pixels
from hqc_tf.data.folder import Item, read_items
from hqc_tf.data.images import Images
from hqc_tf.errors import printable

# In place of the picture that features do not have.
_GRAY = 128


def thumbnail(images: Images, row: int, side: int) -> np.ndarray:
    """The image at `row`, uint8 [h, w, 3], made smaller where a side is over `side` pixels."""
    if images.features is not None:
        return np.full([1, 1, 3], _GRAY, np.uint8)
    picture = PIL.Image.fromarray(read_pixels(images, row))
    picture.thumbnail((side, side))
    return np.asarray(picture)


def squares(images: Images, side: int) -> np.ndarray:
    """N uncropped images, each in the middle of a black square -> uint8 [N, side, side, 3]."""
    tiles = np.zeros([len(images), side, side, 3], np.uint8)
    for row in range(len(images)):
        small = thumbnail(images, row, side)
        height, width = small.shape[:2]
        top, left = (side - height) // 2, (side - width) // 2
        tiles[row, top : top + height, left : left + width] = small
    return tiles


def mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """uint8 [N, side, side, 3] -> one picture in rows of `columns`, black where no tile is."""
    count, side = tiles.shape[:2]
    rows = -(-count // columns)
    filled = np.zeros([rows * columns, side, side, 3], np.uint8)
    filled[:count] = tiles
    by_place = filled.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    return by_place.reshape(rows * side, columns * side, 3)


def spread(count: int, most: int) -> np.ndarray:
    """int rows, up to `most` of 0 to `count` - 1, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def png(pixels: np.ndarray) -> bytes:
    """uint8 [h, w, 3] -> the bytes of a PNG file."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def as_files(images: Images) -> Iterator[Item]:
    """Yields each image as the contents of a file, read lazily; pixels become PNG."""
    if images.paths is not None:
        for name, item in zip(images.ids, read_items("", images.paths), strict=True):
            yield item._replace(id=name)
    else:
        contents = images.contents if images.pixels is None else map(png, images.pixels)
        yield from map(Item, images.ids, contents)


def label_text(images: Images, row: int) -> str:
    """The names of an image's labels with commas; "" without labels."""
    if images.labels is None:
        return ""
    label = images.labels[row]
    numbers = [label] if np.ndim(label) == 0 else np.flatnonzero(label)
    names = images.label_names
    return ", ".join(printable(names[number] if names else number) for number in numbers)
