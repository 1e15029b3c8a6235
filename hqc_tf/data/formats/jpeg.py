"""JPEG files, but none of more scans than an encoder writes: each takes a pass over the image.

Source: ITU-T T.81. Before the image are segments: FF, a kind, and the length of the rest in two
bytes. A scan begins with FF DA, the length of its header, 6 + 2n in two bytes, and the number n of
its components, 1 to 4.
"""

import tensorflow as tf

from hqc_tf.data.formats import exif
from hqc_tf.data.formats.on_demand import FILE, on_demand

# Encoders write up to about 20; a small picture within the file has as many again.
MAX_SCANS = 100
# Bytes searched in one step.
_WINDOW = 2**20
# Where EXIF data are looked for, which by the standard come first: so many bytes, so many segments.
_HEAD_BYTES = 2**18
_SEGMENTS = 2**8


def open_jpeg(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The file string `contents`, its sides, int32 [2], and its orientation, int32 scalar.

    An empty string where there are over `MAX_SCANS` scans.
    """
    sides = tf.io.extract_jpeg_shape(contents)[:2]
    head = tf.strings.substr(contents, 0, _HEAD_BYTES)
    orientation = tf.cond(exif.holds(head, "Exif"), lambda: _find(head), lambda: exif.UPRIGHT)
    return tf.where(_count_scans(contents) > MAX_SCANS, "", contents), sides, orientation


def decode_jpeg(contents: tf.Tensor) -> tf.Tensor:
    """A JPEG file, string scalar -> uint8 [H, W, 3]."""
    # TensorFlow's default is a coarser transform, whose red and blue are a level of 255 too dark on
    # average. This is libjpeg's own default, which Pillow and most others use.
    return tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")


@on_demand(FILE)
def _find(head):
    """The orientation in the first segment of EXIF data; upright where there is none."""
    size, padded = tf.strings.length(head), head + bytes(10)

    def step(place, _, length, ended):
        begin = tf.strings.substr(padded, place, 10)
        mark, kind, high, low = tf.unstack(tf.io.decode_raw(begin, tf.uint8)[:4], 4)
        is_filler = kind == 0xFF
        length = 256 * tf.cast(high, tf.int32) + tf.cast(low, tf.int32)
        found = (kind == 0xE1) & (tf.strings.substr(begin, 4, 6) == b"Exif\0\0") & (length >= 8)
        # The image itself, or what is no segment.
        ended = (mark != 0xFF) | (kind == 0xDA) | (kind == 0xD9) | (~is_filler & (length < 2))
        found &= ~ended
        start = tf.where(found, place + 10, 0)
        return place + tf.where(is_filler, 1, 2 + length), start, length - 8, ended | found

    _, start, length, _ = tf.while_loop(
        lambda place, start, length, ended: ~ended & (place < size),
        step,
        (2, 0, 0, tf.constant(False)),
        maximum_iterations=_SEGMENTS,
    )
    return exif.orientation(tf.strings.substr(head, start, tf.where(start > 0, length, 0)))


def _count_scans(contents):
    """How often the head of a scan is found: not less often than there are scans.

    No other bytes of an honest file are likely to be equal to one, not even a film after the image.
    """
    size = tf.strings.length(contents)

    def step(place, count):
        window = tf.strings.substr(contents, place, _WINDOW + 4)
        values = tf.io.decode_raw(window, tf.uint8)
        mark, kind, high, low, components = (
            values[at : tf.size(values) - 4 + at] for at in range(5)
        )
        begins = (mark == 0xFF) & (kind == 0xDA) & (high == 0) & (low == 6 + 2 * components)
        begins &= (components >= 1) & (components <= 4)
        return place + _WINDOW, count + tf.reduce_sum(tf.cast(begins, tf.int32))

    return tf.while_loop(lambda place, _: place + 4 < size, step, (0, 0))[1]
