"""Decoding image files, and making the views that are encoded, in a graph that no file can fail.

TensorFlow's decoders raise an error for a broken file, a graph cannot catch it, and one bad image
would fail a server's batch. A tf.data map drops an error together with its element, and decodes in
parallel as well. The size of the decoded image is read off the header first.

A format that TensorFlow decodes is a row of `FORMATS`, any other one of `converted.KINDS`, which
`readable` makes decodable before a graph has it. It makes images of over `MAX_PIXELS` smaller too,
where `raise_max_pixels` allows them.
"""

import functools
import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf

from hqc_tf.data import augment
from hqc_tf.data.formats import converted, exif
from hqc_tf.data.formats.bmp import describe, open_bmp
from hqc_tf.data.formats.gif import decode_gif, open_gif
from hqc_tf.data.formats.jpeg import MAX_SCANS, decode_jpeg, open_jpeg
from hqc_tf.data.formats.on_demand import FILE
from hqc_tf.data.formats.png import are_bare, decode_png, open_png

# Changes with the pixels of any file: 2 turns photos and shows what is transparent over white.
VERSION = 2
# Enough for today's cameras and their panoramas: 300 MB decoded. TensorFlow lets a PNG of 60 KB
# unpack to five times it.
MAX_PIXELS = 100_000_000
# Those of the largest phone have 200 million. Pillow needs up to 12 bytes for each.
MOST_PIXELS = 1_000_000_000
# Resizing the shorter side enlarges the longer one with it, before the crop.
MAX_RATIO = 100
# Small files whose pixels are read together.
_TOGETHER = 250
# Files of a request that are decoded at once, however many cores there are.
PARALLEL = 8
# But one at a time of more pixels, so that all together have no more than two of the largest.
# Most phones' photos have 12.2 million.
LARGE_PIXELS = MAX_PIXELS // 8
# The views of a request take no more, but so many images are always allowed.
_VIEW_BYTES = 512 * 2**20
_ALWAYS = 256


def _decode_other(contents):
    return tf.io.decode_image(contents, channels=3, expand_animations=False)


class _Raised:
    """The limit of this process, if it is above `MAX_PIXELS`; Pillow's own is of a process too."""

    pixels = 0


class Format(NamedTuple):
    """A row: how files of a format are recognized and decoded."""

    name: str  # as users know it
    suffixes: tuple[str, ...]  # endings of file names, lower case
    magic: bytes  # the first bytes of a file
    # File contents, string scalar, to (contents to decode, the two sides of the image, int32 [2],
    # read off the header, and its EXIF orientation, int32 scalar); raises, when run, where the
    # header is broken. The contents are empty where files of the kind are refused.
    open: Callable
    decode: Callable  # what `open` gives, string scalar, to uint8 [H, W, 3]
    refused: Callable[[bytes], str]  # which kind was refused, in words


FORMATS = (
    Format(
        "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), b"\xff\xd8\xff", open_jpeg, decode_jpeg,
        lambda _: f"JPEG of over {MAX_SCANS} scans",
    ),
    Format(
        "PNG", (".png",), b"\x89PNG\r\n\x1a\n", open_png, decode_png,
        lambda _: "PNG of too many small chunks, or bytes beyond its pixels",
    ),
    Format("BMP", (".bmp",), b"BM", open_bmp, _decode_other, describe),
    Format(
        "GIF", (".gif",), b"GIF8", open_gif, decode_gif, lambda _: "GIF of too many small blocks"
    ),
)  # fmt: skip
_ALL = *FORMATS, *converted.KINDS
SUFFIXES = tuple(suffix for row in _ALL for suffix in row.suffixes)
NAMES = ", ".join(row.name for row in _ALL[:-1]) + f" or {_ALL[-1].name}"


def decode_views(
    image_bytes: tf.Tensor, resize_size: int, size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The plain views of image files, as `decode_image` and `augment.plain_view` make them.

    Args:
        image_bytes: string [B], contents of files, or anything else.
        resize_size, size: as in `augment.plain_view`, in pixels.

    Returns:
        (views, valid): float32 [B, size, size, 3] in [0, 1] and bool [B]. The row of a file that
        `decode_image` refuses is zeros and false.
    """
    count = tf.size(image_bytes, tf.int64)

    def view(opened, orientation):
        return augment.plain_view(_decode(opened, orientation), resize_size, size)

    views = _of_decodable(image_bytes, view, tf.zeros([size, size, 3]))
    # A row after the last, cut off below, so that there always is one to batch.
    beyond = tf.data.Dataset.from_tensors((count, tf.zeros([size, size, 3])))
    batch = views.concatenate(beyond).batch(count + 1)
    rows, views = batch.get_single_element()
    views = tf.scatter_nd(rows[:, None], views, [count + 1, size, size, 3])
    valid = tf.scatter_nd(rows[:, None], tf.ones_like(rows), [count + 1]) > 0
    return views[:-1], valid[:-1]


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def decodable(image_bytes: tf.Tensor) -> tf.Tensor:
    """Which of some image files `decode_image` decodes: string [B], B at least 1 -> bool [B]."""
    count = tf.size(image_bytes, tf.int64)
    # The sum of the pixels, so that no part of the decoding is left out.
    sums = _of_decodable(image_bytes, lambda *file: tf.reduce_sum(_decode(*file)), np.uint8(0))
    rows = sums.map(lambda row, _: row).concatenate(tf.data.Dataset.from_tensors(count))
    rows = rows.batch(count + 1).get_single_element()
    return tf.scatter_nd(rows[:, None], tf.ones_like(rows), [count + 1])[:-1] > 0


def decode_image(contents: tf.Tensor) -> tf.Tensor:
    """The contents of an image file, string scalar -> uint8 [H, W, 3]; a GIF's first frame.

    Pixels are as a person sees them: turned by the orientation in EXIF data, and over white.

    The work is bounded by the pixels and the bytes: what they do not need is not unpacked.

    Raises:
        tf.errors.InvalidArgumentError: no image, over `MAX_PIXELS` or `MAX_RATIO`, or of a kind
            that is refused.
    """
    opened, _, orientation = _open_fitting(contents)
    return _decode(opened, orientation)


def raise_max_pixels(count: int) -> None:
    """Lets `readable` take images of up to `count` pixels, at most `MOST_PIXELS`, in this process.

    It is never lowered. Graphs keep to `MAX_PIXELS`: larger images are made smaller before them.
    """
    if count > _most_pixels():
        _Raised.pixels = PIL.Image.MAX_IMAGE_PIXELS = count


def format_of(begin: bytes) -> str:
    """The name of the format of an image by the first `converted.HEAD_BYTES` of it; else ""."""
    row = _row_of(begin)
    return row.name if row else converted.kind_of(begin)


def readable(contents: bytes) -> bytes:
    """Contents that `decode_image` decodes, of a file that it does not or that Pillow reads.

    An image of over `MAX_PIXELS` that `raise_max_pixels` allows is made smaller.

    Raises:
        ValueError: Pillow should read it and cannot, or it is over the limits; in words.
    """
    try:
        image = converted.open_image(contents) or _open_larger(contents)
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"too large: over {_most_pixels() // 10**6} million pixels") from error
    if image is None:
        return contents
    if not fits(np.array(image.size), _most_pixels()):
        raise ValueError(_too_large(image.size))
    return converted.to_bmp(image, MAX_PIXELS)


def grows(contents: bytes) -> bool:
    """Whether `readable` takes a while, and makes much of the contents of a file."""
    try:
        image = converted.open_image(contents) or _open_larger(contents)
    except (ValueError, PIL.Image.DecompressionBombError):
        return False
    return image is not None and image.width * image.height > converted.LARGE_PIXELS


def made_readable(contents: tf.Tensor) -> tf.Tensor:
    """`readable` in the graph of a tf.data pipeline, string scalar; empty where it raises."""

    def convert(contents):
        try:
            return readable(contents)
        except ValueError:
            return b""

    begins = [tf.strings.substr(contents, 0, len(row.magic)) == row.magic for row in FORMATS]
    known = tf.reduce_any(begins)
    if _most_pixels() > MAX_PIXELS:
        known = tf.cond(known, lambda: fits(_open(contents)[1]), lambda: False)
    made = tf.cond(
        known,
        lambda: contents,
        lambda: tf.numpy_function(convert, [contents], tf.string),
    )
    return tf.ensure_shape(made, [])


def decode_known(contents: tf.Tensor) -> tf.Tensor:
    """Image bytes of a source that is known to be sound, string scalar -> uint8 [H, W, 3]."""
    opened, _, orientation = _open(contents)
    return _decode(opened, orientation)


def decode_known_alike(files: np.ndarray) -> np.ndarray:
    """Files of `decode_known` of one size together: N bytes objects -> uint8 [N, H, W, 3]."""
    some = tf.data.Dataset.from_tensor_slices(files).batch(_TOGETHER)
    # What is asked of any other file takes twenty times as long as a few pixels.
    bare = some.map(are_bare).rebatch(len(files)).get_single_element().numpy().all()
    decode = functools.partial(tf.io.decode_png, channels=3) if bare else decode_known
    made = tf.TensorSpec([None, None, 3], tf.uint8)
    images = some.map(
        lambda files: tf.map_fn(decode, files, fn_output_signature=made),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    # As one element: each that Python takes waits for its other threads.
    return images.rebatch(len(files)).get_single_element().numpy()


def why_refused(contents: bytes) -> str:
    """Why `decode_image` refuses the contents of a file, in a few words."""
    if not contents:
        return "empty file"
    row = _row_of(contents)
    if row is None:
        return f"no {NAMES} image"
    try:
        sides, opened = _look(contents)
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
        # TensorFlow's message may hold bytes of the file, which Python then cannot read.
        return "broken or cut short before its size"
    if not opened:
        return row.refused(contents)
    if not fits(sides):
        return _too_large(sides)
    return "broken or cut short"


def most_images(size: int) -> int:
    """How many images a request may have whose views have sides of `size` pixels."""
    return max(_ALWAYS, _VIEW_BYTES // (size * size * 3 * np.dtype(np.float32).itemsize))


def fits(sides: tf.Tensor | np.ndarray, most: int | None = None) -> tf.Tensor:
    """Whether an image of these two sides, int [2], is within the limits; bool scalar.

    `most` pixels are by default `MAX_PIXELS`.
    """
    most = most or MAX_PIXELS
    longer, shorter = (tf.cast(pick(sides), tf.int64) for pick in (tf.reduce_max, tf.reduce_min))
    return (shorter > 0) & (longer * shorter <= most) & (longer <= MAX_RATIO * shorter)


def _row_of(contents):
    return next((row for row in FORMATS if contents.startswith(row.magic)), None)


def _most_pixels():
    return max(MAX_PIXELS, _Raised.pixels)


def _open_larger(contents):
    """An image of `FORMATS` that is allowed and over `MAX_PIXELS`, not decoded; else None."""
    if _most_pixels() == MAX_PIXELS or _row_of(contents) is None:
        return None
    try:
        image = PIL.Image.open(io.BytesIO(contents), formats=[row.name for row in FORMATS])
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return None  # the graph says why
    sides = np.array(image.size)
    return image if not fits(sides) and fits(sides, _most_pixels()) else None


def _too_large(sides):
    limits = f"{_most_pixels() // 10**6} million or {MAX_RATIO}:1"
    return f"too large: sides of {sides[0]} and {sides[1]} pixels, over {limits}"


def _of_decodable(image_bytes, make, blank):
    """Dataset of (row number, what `make` makes of the opened file), without those that fail.

    `make` takes the file's orientation too; `blank` has the shape of what it makes.
    """

    # Traced once for both.
    opened_file = [tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)]
    make = tf.function(make, opened_file, autograph=False)

    def make_small(row, contents):
        opened, pixels, orientation = _open_fitting(contents)
        is_large = pixels > LARGE_PIXELS
        made = tf.cond(is_large, lambda: blank, lambda: make(opened, orientation))
        return row, made, tf.cond(is_large, lambda: opened, lambda: ""), orientation

    def make_large(row, made, left, orientation):
        is_left = tf.strings.length(left) > 0
        return row, tf.cond(is_left, lambda: make(left, orientation), lambda: made)

    files = tf.data.Dataset.from_tensor_slices(image_bytes).enumerate()
    small = files.map(make_small, num_parallel_calls=PARALLEL).ignore_errors()
    # A map without a number may be made parallel.
    return small.map(make_large, num_parallel_calls=1).ignore_errors()


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def _look(contents):
    """Both sides, int32 [2], and whether `open` gives contents."""
    opened, sides, _ = _open(contents)
    return sides, tf.strings.length(opened) > 0


def _decode(opened, orientation):
    image = _by_format(opened, [*(row.decode for row in FORMATS), _decode_other])
    return tf.ensure_shape(exif.turned(image, orientation), [None, None, 3])


def _open_other(contents):
    return contents, tf.zeros([2], tf.int32), exif.UPRIGHT


def _open(contents):
    """`Format.open` of a file; both sides are 0 where its format is unknown."""
    return _by_format(contents, [*(row.open for row in FORMATS), _open_other])


def _open_fitting(contents):
    """What `Format.open` gives of a file, the first "" where it is not within the limits.

    The second are its pixels, int64.
    """
    opened, sides, orientation = _open(contents)
    # A choice, not an assertion: those can be stripped, and the decoder would not wait for one.
    # Between branches, not values: it would copy them.
    opened = tf.cond(fits(sides), lambda: opened, lambda: "")
    pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
    return opened, tf.where(tf.strings.length(opened) > 0, pixels, 0), orientation


def _by_format(contents, functions):
    """The result of one of `functions`: one for each format, and the last for all other files."""
    begins = [tf.strings.substr(contents, 0, len(row.magic)) == row.magic for row in FORMATS]
    kind = tf.argmax(tf.stack([*begins, True]), output_type=tf.int32)
    return tf.switch_case(kind, [functools.partial(_traced(run), contents) for run in functions])


@functools.cache
def _traced(function):
    """`function` of a file, traced once for all graphs."""
    return tf.function(function, [FILE], autograph=False)
