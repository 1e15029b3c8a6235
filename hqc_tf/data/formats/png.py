"""A PNG without its ancillary chunks, made in a graph: its decoder would unpack and keep them all.

What is transparent is shown over white, as a person sees it: hidden colors decide nothing.

Source: the PNG specification. A file is a signature and chunks: the length of the content, a name
whose first letter is a capital where the pixels need the chunk, the content and a check.
"""

import tensorflow as tf

from hqc_tf.data.formats import exif
from hqc_tf.data.formats.on_demand import on_demand

# Steps to the end of a file, and chunks of one name and length passed in one step. Encoders write
# pixels in chunks of one length, mostly 8 KiB: a file of 300 MB takes 600 steps.
_STEPS = 2**13
_STRIDE = 64
# It comes before the pixels: in a file of `open_png` within so many bytes.
_HEAD_BYTES = 2**16
# Pixels whose colors are blended together.
_BLENDED = 2**18
# Of chunks with a small letter only this one belongs to the pixels.
_TRANSPARENCY = b"tRNS"
_EXIF = b"eXIf"
# Less than this unpacks to 64 MiB at most, and is not worth a walk.
_SMALL_BYTES = 2**16
# What is kept has at most so many bytes a pixel and row: eight times the largest, for encoders that
# write short chunks.
_PIXEL_BYTES = 64
_FEW_BYTES = 2**16


def open_png(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The file string `contents` with the chunks of pixels alone, its sides and its orientation.

    A small file as it is where it has no EXIF data; an empty string where the walk takes over
    `_STEPS` steps, or the chunks that are kept have far more bytes than so many pixels need. Sides
    are int32 [2], the orientation is an int32 scalar.
    """
    sides = tf.io.decode_raw(tf.strings.substr(contents, 16, 8), tf.int32, little_endian=False)
    is_small = tf.strings.length(contents) < _SMALL_BYTES
    most = _FEW_BYTES + _PIXEL_BYTES * tf.reduce_prod(tf.cast(sides, tf.int64) + 1)
    begin = tf.strings.substr(contents, 0, _SMALL_BYTES)
    opened, orientation = tf.cond(
        is_small & ~exif.holds(begin, _EXIF.decode()),
        lambda: (contents, exif.UPRIGHT),
        lambda: _without_ancillary(contents, most),
    )
    return opened, sides, orientation


def decode_png(contents: tf.Tensor) -> tf.Tensor:
    """A file of `open_png`, string scalar -> uint8 [H, W, 3], what is transparent over white.

    Source: the PNG specification, 13.16. A level is rounded to the nearest one, as by Pillow.
    """
    has_alpha = tf.io.decode_raw(tf.strings.substr(contents, 25, 1), tf.uint8)[0] & 4 > 0
    begin = tf.strings.substr(contents, 0, _HEAD_BYTES)
    return tf.cond(
        has_alpha | exif.holds(begin, _TRANSPARENCY.decode()),
        lambda: _over_white(tf.io.decode_png(contents, channels=4)),
        lambda: tf.io.decode_png(contents, channels=3),
    )


def are_bare(files: tf.Tensor) -> tf.Tensor:
    """Whether files are a PNG's header, one chunk of pixels without alpha, and the end: bool [n].

    TFDS writes small images so. Source: the PNG specification, 5.3 and 11.2.

    Args:
        files: string [n], of any format.
    """
    values = tf.cast(tf.io.decode_raw(files, tf.uint8, fixed_length=44), tf.int64)
    begins = values[:, :16] == [*b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"]
    has_alpha = values[:, 25] & 4 > 0
    is_pixels = values[:, 37:41] == [*b"IDAT"]
    length = tf.linalg.matvec(values[:, 33:37], tf.constant([2**24, 2**16, 2**8, 1], tf.int64))
    ends = tf.cast(tf.strings.length(files), tf.int64) == 33 + 12 + length + 12
    whole = tf.reduce_all(begins, axis=1) & tf.reduce_all(is_pixels, axis=1)
    return whole & ~has_alpha & ends


@on_demand(tf.TensorSpec([None, None, 4], tf.uint8))
def _over_white(image):
    """uint8 [H, W, 4] -> [H, W, 3]; some pixels at a time, for the copies are four times wider."""
    pixels = tf.reshape(image, [-1, 4])
    count = tf.shape(pixels)[0]
    parts = tf.TensorArray(
        tf.uint8, 0, dynamic_size=True, infer_shape=False, element_shape=[None, 3]
    )

    def step(number, parts):
        start = number * _BLENDED
        part = tf.cast(pixels[start : start + _BLENDED], tf.float32)
        blended = tf.round(255 + (part[:, :3] - 255) * part[:, 3:] / 255)
        return number + 1, parts.write(number, tf.cast(blended, tf.uint8))

    _, parts = tf.while_loop(
        lambda number, _: number * _BLENDED < count, step, (0, parts), parallel_iterations=1
    )
    return tf.reshape(parts.concat(), [tf.shape(image)[0], tf.shape(image)[1], 3])


def _without_ancillary(contents, most):
    values = tf.io.decode_raw(contents, tf.uint8)
    size = tf.cast(tf.strings.length(contents), tf.int64)
    parts = tf.TensorArray(tf.string, 0, dynamic_size=True, element_shape=[])
    parts, zero = parts.write(0, ""), tf.constant(0, tf.int64)

    def step(number, place, start, kept, parts, data, _):
        # Fails beyond the end.
        length = tf.io.decode_raw(tf.strings.substr(contents, place, 4), tf.int32, False)[0]
        length = 12 + tf.cast(tf.bitcast(length, tf.uint32), tf.int64)
        starts = tf.minimum(place + length * tf.range(_STRIDE, dtype=tf.int64), size - 8)
        heads = tf.gather(values, starts[:, None] + tf.range(8, dtype=tf.int64))
        same = tf.reduce_all(heads == heads[0], axis=1)
        run = length * tf.reduce_sum(tf.math.cumprod(tf.cast(same, tf.int64)))
        end = tf.minimum(place + run, size)
        name = tf.strings.substr(contents, place + 4, 4)
        keep = (heads[0, 4] & 0x20 == 0) | (name == _TRANSPARENCY)
        # What lies between two chunks that are left out is a part.
        part = tf.strings.substr(contents, start, tf.where(keep, zero, place - start))
        start = tf.where(keep, start, end)
        kept += tf.where(keep, end - place, zero)
        data = tf.where(name == _EXIF, tf.stack([place + 8, length - 12]), data)
        return number + 1, end, start, kept, parts.write(number, part), data, name == b"IEND"

    _, place, start, kept, parts, data, ended = tf.while_loop(
        lambda _, place, start, kept, parts, data, ended: ~ended & (place < size) & (kept <= most),
        step,
        (1, zero + 8, zero, zero, parts, tf.stack([zero, zero]), tf.constant(False)),
        maximum_iterations=_STEPS,
    )

    def join():
        rest = tf.strings.substr(contents, start, place - start)
        return tf.strings.reduce_join(parts.stack()) + rest

    # Branches, since a choice between values copies them.
    complete = (ended | (place >= size)) & (kept <= most)
    opened = tf.cond(complete, lambda: tf.cond(start > 0, join, lambda: contents), lambda: "")
    return opened, exif.orientation(tf.strings.substr(contents, data[0], data[1]))
