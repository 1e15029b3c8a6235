"""JPEG files, but none of more scans than an encoder writes: each takes a pass over the image.

Source: ITU-T T.81. A scan begins with FF DA, the length of its header, 6 + 2n in two bytes, and
the number n of its components, 1 to 4.
"""

import tensorflow as tf

# Encoders write up to about 20; a small picture within the file has as many again.
MAX_SCANS = 100
# Bytes searched in one step.
_WINDOW = 2**20


def open_jpeg(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The file string `contents` and its sides, int32 [2].

    An empty string where there are over `MAX_SCANS` scans.
    """
    sides = tf.io.extract_jpeg_shape(contents)[:2]
    return tf.where(_count_scans(contents) > MAX_SCANS, "", contents), sides


def decode_jpeg(contents: tf.Tensor) -> tf.Tensor:
    """A JPEG file, string scalar -> uint8 [H, W, 3]."""
    # TensorFlow's default is a coarser transform, whose red and blue are a level of 255 too dark on
    # average. This is libjpeg's own default, which Pillow and most others use.
    return tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")


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
