"""The end of a GIF's first frame, found in a graph: its decoder would unpack thousands of frames.

Source: the GIF89a specification. A file is a header and a color table, then extensions and frames,
each with a head of its own and a chain of blocks that an empty block ends.
"""

import tensorflow as tf

# Steps to the end of the first frame, and full blocks of 255 bytes passed in one step.
_STEPS = 2**16
_STRIDE = 64


def open_gif(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The file string `contents` cut after its first frame, and the sides of that, int32 [2]."""
    frame, end = _first_frame(tf.io.decode_raw(contents, tf.uint8))
    sides = tf.io.decode_raw(tf.strings.substr(contents, frame + 5, 4), tf.uint16)
    return tf.strings.substr(contents, 0, end) + ";", tf.cast(sides, tf.int32)


def _first_frame(values):
    """Where the first frame of a file, uint8 [bytes], begins and ends; fails where it has none."""
    values = tf.pad(values, [[0, 10]])

    def colors(flags):
        return tf.where(flags & 0x80 > 0, 6 * 2 ** (flags & 7), 0)

    def step(place, frame, inside):
        # Most blocks are full: those are passed many at a time.
        lengths = values[place : place + 256 * _STRIDE : 256]
        full = tf.reduce_sum(tf.math.cumprod(tf.cast(lengths == 255, tf.int32)))
        place += tf.where(inside, 256 * full, 0)
        # Fails beyond the end, to which a part of an unknown kind leads.
        ahead = tf.cast(values[place : place + 10], tf.int32)
        is_frame = ~inside & (ahead[0] == 0x2C)
        head = tf.where(ahead[0] == 0x21, 2, tf.where(is_frame, 11 + colors(ahead[9]), 2**30))
        return (
            place + tf.where(inside, 1 + ahead[0], head),
            tf.where(is_frame, place, frame),
            ~inside | (ahead[0] > 0),
        )

    start = 13 + colors(tf.cast(values[10], tf.int32))
    end, frame, _ = tf.while_loop(
        lambda place, frame, inside: inside | (frame == 0),
        step,
        (start, 0, tf.constant(False)),
        maximum_iterations=_STEPS,
    )
    return frame, end
