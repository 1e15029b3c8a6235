"""BMP files of the kinds that TensorFlow decodes as others do; it reads any other as garbage.

Source: Microsoft's BITMAPINFOHEADER. After 14 bytes comes a header, whose length is its first
field; then, where there are at most 8 bits a pixel, a palette of blue, green, red and 0.
"""

import numpy as np
import tensorflow as tf

from hqc_tf.data.formats import exif

_GRAYS = bytes(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1) * np.uint8([1, 1, 1, 0]))
# Where blue, green and red of 32 bits are, as a header that gives these says it.
_MASKS = np.array([0xFF0000, 0xFF00, 0xFF], "<u4").tobytes()


def open_bmp(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, int]:
    """The file string `contents`, its sides, int32 [2], and that it is upright.

    An empty string for what is not plain colors of 24 or 32 bits, or all 256 grays of 8 bits.
    """

    def field(place, kind):
        length = tf.dtypes.as_dtype(kind).size
        return tf.io.decode_raw(tf.strings.substr(contents, place, length), kind)[0]

    start, header, bits = field(10, tf.int32), field(14, tf.int32), field(28, tf.uint16)
    packing = field(30, tf.int32)
    masked = (packing == 3) & (tf.strings.substr(contents, 54, 12) == _MASKS)
    grays = tf.strings.substr(contents, 14 + header, 1024) == _GRAYS
    known = (
        ((bits == 24) & (packing == 0))
        | ((bits == 32) & ((packing == 0) | masked))
        | ((bits == 8) & (packing == 0) & grays & (start >= 14 + header + 1024))
    )
    # The older header of 12 bytes has other fields at these places.
    known &= header >= 40
    # The height is negative where the top row comes first.
    sides = tf.abs(tf.io.decode_raw(tf.strings.substr(contents, 18, 8), tf.int32))
    return tf.where(known, contents, ""), sides, exif.UPRIGHT


def describe(contents: bytes) -> str:
    """The kind of a BMP that `open_bmp` refuses, in words."""
    if int.from_bytes(contents[14:18], "little") < 40:
        return "BMP of OS/2: save it as PNG"
    packed = ", compressed" if any(contents[30:34]) else ""
    colors = " with a palette" if contents[28] <= 8 else ""
    return f"BMP of {contents[28]} bits a pixel{colors}{packed}: save it as PNG"
