"""Which way up a photo is: the orientation in its EXIF data, and pixels turned by it, in a graph.

Source: Exif 2.32. The data are those of a TIFF file: an order of bytes, the place of a directory,
and there the number of entries and 12 bytes each: tag, type, count and value.
"""

import tensorflow as tf

from hqc_tf.data.formats.on_demand import on_demand

UPRIGHT = 1
# Of the data no more is read: a JPEG's segment holds no more.
_MOST_BYTES = 2**16
_ENTRY_BYTES = 12
_TAG, _SHORT = 0x0112, 3
# The orientations whose pixels are mirrored, after rows and columns are exchanged from 5 on.
_EXCHANGED_FROM = 5
_LEFT_RIGHT, _TOP_BOTTOM = (2, 3, 6, 7), (3, 4, 7, 8)


def orientation(data: tf.Tensor) -> tf.Tensor:
    """The orientation in EXIF data, string scalar -> int32 scalar, 1 to 8; 1 where it is broken."""
    data = tf.strings.substr(data, 0, _MOST_BYTES)
    values = tf.cast(tf.io.decode_raw(data + bytes(8), tf.uint8), tf.int64)
    is_big = tf.strings.substr(data, 0, 4) == b"MM\0*"
    known = is_big | (tf.strings.substr(data, 0, 4) == b"II*\0")

    def number(parts):
        """Numbers of the bytes in the last axis."""
        weights = 256 ** tf.range(parts.shape[-1], dtype=tf.int64)
        return tf.reduce_sum(parts * tf.where(is_big, weights[::-1], weights), axis=-1)

    place = tf.minimum(number(tf.ensure_shape(values[4:8], [4])), _MOST_BYTES)
    count = number(tf.ensure_shape(tf.pad(values, [[0, _MOST_BYTES]])[place : place + 2], [2]))
    size = tf.cast(tf.strings.length(data), tf.int64)
    count = tf.clip_by_value((size - place - 2) // _ENTRY_BYTES, 0, count)
    entries = values[place + 2 : place + 2 + _ENTRY_BYTES * count]
    entries = tf.reshape(entries, [-1, _ENTRY_BYTES])
    fits = (number(entries[:, :2]) == _TAG) & (number(entries[:, 2:4]) == _SHORT)
    fits &= known & (number(entries[:, 4:8]) == 1)
    # A value of two bytes begins its field in either order.
    found = tf.cast(tf.boolean_mask(number(entries[:, 8:10]), fits), tf.int32)
    first = tf.concat([found, [UPRIGHT]], 0)[0]
    return tf.where((first >= 1) & (first <= 8), first, UPRIGHT)


def holds(text: tf.Tensor, word: str) -> tf.Tensor:
    """Whether a word of letters is anywhere in a string scalar of any bytes; bool scalar."""
    without = tf.strings.regex_replace(text, word, "", replace_global=False)
    return tf.strings.length(without) < tf.strings.length(text)


def turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Pixels [H, W, C] as they are seen with an orientation, int32 scalar, 1 to 8."""

    return tf.cond(orientation == UPRIGHT, lambda: image, lambda: _turn(image, orientation))


@on_demand(tf.TensorSpec([None, None, None], tf.uint8), tf.TensorSpec([], tf.int32))
def _turn(image, orientation):
    exchanged = orientation >= _EXCHANGED_FROM
    seen = tf.cond(exchanged, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    mirrored = [tf.reduce_any(orientation == some) for some in (_TOP_BOTTOM, _LEFT_RIGHT)]
    return tf.reverse(seen, tf.boolean_mask([0, 1], mirrored))
