"""The first frame of a GIF, found in a graph: its decoder would unpack thousands of frames.

Source: the GIF89a specification. A file is a header and a color table, then extensions and frames,
each with a head of its own and a chain of blocks that an empty block ends.
"""

import tensorflow as tf

from hqc_tf.data.formats import exif

# Steps to the end of the first frame, and blocks of one length passed in one step. Encoders fill
# all blocks but the last: an image of 75 MB takes 1,200 steps.
_STEPS = 2**13
_STRIDE = 256


def open_gif(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, int]:
    """The first frame of the file string `contents` as a file, and the sides of its canvas.

    The file has no extensions, so all pixels of the frame have a color; that of transparent ones is
    white. Its background color is the one that Pillow gives the canvas beside the frame: the
    transparent one, else the first.

    Returns:
        (string scalar, int32 [2], upright); an empty string where there are over `_STEPS` steps.
    """
    begin, end, transparent = _first_frame(tf.io.decode_raw(contents, tf.uint8))
    background = tf.where(transparent > 0, tf.strings.substr(contents, transparent, 1), "\0")
    colors = _table_bytes(_byte(contents, 10))
    head = tf.strings.substr(contents, 0, 11) + background
    head += tf.strings.substr(contents, 12, 1 + colors)
    # Where there is none, its box is zeros.
    frame = tf.where(end > 0, tf.strings.substr(contents, begin, end - begin), bytes(10))
    own = _table_bytes(_byte(frame, 9))
    place = tf.where(transparent > 0, 3 * tf.cast(_byte(background, 0), tf.int32), 2**30)
    opened = tf.where(
        own > 0,
        head + _with_white(frame, 10 + place, 10 + own),
        _with_white(head, 13 + place, 13 + colors) + frame,
    )
    opened = tf.where(end > 0, opened + ";", "")
    return opened, _canvas(contents, _box(frame)), exif.UPRIGHT


def _with_white(text, place, end):
    """Text whose color at `place` is white, where that is in a table that ends at `end`."""
    within = place < end
    place = tf.where(within, place, 0)
    white = (
        tf.strings.substr(text, 0, place) + b"\xff\xff\xff" + tf.strings.substr(text, place + 3, -1)
    )
    return tf.where(within, white, text)


def decode_gif(contents: tf.Tensor) -> tf.Tensor:
    """A file of `open_gif`, string scalar -> uint8 [H, W, 3], the whole canvas."""
    begin = 13 + _table_bytes(_byte(contents, 10))
    frame = tf.strings.substr(contents, begin, -1)
    box = _box(frame)
    # TensorFlow cuts off what is beyond a canvas of the frame's size.
    cornered = tf.strings.substr(contents, 0, begin + 1) + "\0\0\0\0"
    image = tf.io.decode_gif(cornered + tf.strings.substr(frame, 5, -1))[0]
    canvas = _canvas(contents, box)

    def fill():
        own = _table_bytes(_byte(frame, 9))
        table = tf.where(
            own > 0, tf.strings.substr(frame, 10, own), tf.strings.substr(contents, 13, begin - 13)
        )
        place = 3 * tf.cast(_byte(contents, 11), tf.int32)
        color = tf.io.decode_raw(tf.strings.substr(table, place, 3), tf.uint8)
        left, top, width, height = tf.unstack(box, 4)
        pads = [[top, canvas[1] - top - height], [left, canvas[0] - left - width], [0, 0]]
        inside = tf.pad(tf.ones_like(image[..., :1], tf.bool), pads)
        return tf.where(inside, tf.pad(image, pads), color)

    return tf.cond(tf.reduce_all(box[2:] == canvas), lambda: image, fill)


def _first_frame(values):
    """Where the first frame of a file, uint8 [bytes], begins and ends, and its transparent color.

    Fails where there is no frame; the end is 0 where it is not found in time, and the place of the
    color where there is none.
    """
    values = tf.pad(values, [[0, 10]])

    def step(place, frame, transparent, inside):
        length = tf.cast(values[place], tf.int32) + 1
        lengths = values[place : place + length * _STRIDE : length]
        alike = tf.cast(lengths == lengths[0], tf.int32)
        # Fails beyond the end, to which a part of an unknown kind leads.
        ahead = tf.cast(values[place : place + 10], tf.int32)
        is_frame = ~inside & (ahead[0] == 0x2C)
        is_control = ~inside & (ahead[0] == 0x21) & (ahead[1] == 0xF9) & (ahead[3] & 1 > 0)
        head = tf.where(ahead[0] == 0x21, 2, tf.where(is_frame, 11 + _table_bytes(ahead[9]), 2**30))
        passed = tf.where(length > 1, length * tf.reduce_sum(tf.math.cumprod(alike)), 1)
        return (
            place + tf.where(inside, passed, head),
            tf.where(is_frame, place, frame),
            tf.where(is_control, place + 6, transparent),
            ~inside | (length > 1),
        )

    start = 13 + _table_bytes(values[10])
    end, frame, transparent, inside = tf.while_loop(
        lambda place, frame, transparent, inside: inside | (frame == 0),
        step,
        (start, 0, 0, tf.constant(False)),
        maximum_iterations=_STEPS,
    )
    return frame, tf.where(inside | (frame == 0), 0, end), transparent


def _table_bytes(flags):
    """The bytes of the color table after a field of flags."""
    flags = tf.cast(flags, tf.int32)
    return tf.where(flags & 0x80 > 0, 6 * 2 ** (flags & 7), 0)


def _byte(text, place):
    return tf.io.decode_raw(tf.strings.substr(text, place, 1), tf.uint8)[0]


def _box(frame):
    """Left, top, width and height of a frame, int32 [4]."""
    return tf.cast(tf.io.decode_raw(tf.strings.substr(frame, 1, 8), tf.uint16), tf.int32)


def _canvas(contents, box):
    """Width and height, int32 [2]: the screen, or more where the frame goes beyond it."""
    screen = tf.io.decode_raw(tf.strings.substr(contents, 6, 4), tf.uint16)
    return tf.maximum(tf.cast(screen, tf.int32), box[:2] + box[2:])
