"""Image files to pixels, and to the views that are encoded, in a graph that no file can fail.

TensorFlow's decoders raise on a broken file, a graph has no try, and one bad image would sink a
server's batch. A tf.data map drops an error together with its element, and decodes side by side as
well. What a file would take is read off its header first.
"""

import tensorflow as tf

from hqc_tf.data import augment

# Room for today's cameras: 150 MB decoded. TensorFlow lets a PNG of 60 KB unpack to ten times that.
MAX_PIXELS = 50_000_000
# Resizing the shorter side enlarges the longer one with it, before the crop.
MAX_RATIO = 100
# Files of a request that are decoded at once, however many cores there are.
PARALLEL = 8
# What a JPEG file begins with.
_JPEG = b"\xff\xd8\xff"
# Steps to the end of a GIF's first frame, and full blocks of 255 bytes passed in one.
_GIF_STEPS = 2**16
_GIF_STRIDE = 64


def decode_views(image_bytes, resize_size, size):
    """The plain views of image files, as `decode_image` and `augment.plain_view` make them.

    Args:
      image_bytes: string [B], contents of files, or anything else.
      resize_size, size: as in `augment.plain_view`, in pixels.

    Returns:
      (views, valid): float32 [B, size, size, 3] in [0, 1] and bool [B]. The row of what
      `decode_image` refuses is zeros and false.
    """
    count = tf.size(image_bytes, tf.int64)

    def view(row, contents):
        return row, augment.plain_view(decode_image(contents), resize_size, size)

    views = _of_decodable(image_bytes, view)
    # A row beyond the last, cut off below, so that there always is one to batch.
    beyond = tf.data.Dataset.from_tensors((count, tf.zeros([size, size, 3])))
    batch = views.concatenate(beyond).batch(count + 1)
    rows, views = batch.get_single_element()
    views = tf.scatter_nd(rows[:, None], views, [count + 1, size, size, 3])
    valid = tf.scatter_nd(rows[:, None], tf.ones_like(rows), [count + 1]) > 0
    return views[:-1], valid[:-1]


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def decodable(image_bytes):
    """Which of some image files `decode_image` decodes: string [B], B at least 1 -> bool [B]."""
    count = tf.size(image_bytes, tf.int64)
    # The sum of the pixels, so that none of the decoding is left out.
    sums = _of_decodable(image_bytes, lambda row, file: (row, tf.reduce_sum(decode_image(file))))
    rows = sums.map(lambda row, _: row).concatenate(tf.data.Dataset.from_tensors(count))
    rows = rows.batch(count + 1).get_single_element()
    return tf.scatter_nd(rows[:, None], tf.ones_like(rows), [count + 1])[:-1] > 0


def decode_image(contents):
    """As `decode_known`, but refuses an image of over `MAX_PIXELS` or `MAX_RATIO`.

    Args:
      contents: string scalar, the contents of a JPEG, PNG, BMP or GIF file; of a GIF the first
        frame is decoded.

    Returns:
      uint8 [H, W, 3].

    Raises:
      tf.errors.InvalidArgumentError: it is no image or too large a one.
    """
    contents, sides = _open(contents)
    # A choice, not an assertion: those can be stripped, and the decoder would not wait for one.
    return decode_known(tf.where(fits(sides), contents, ""))


def decode_known(contents):
    """JPEG, PNG, BMP or GIF bytes of a source that is known to be sound -> uint8 [H, W, 3]."""
    # TensorFlow's default is a coarser transform, whose red and blue are a level of 255 too dark on
    # average. This is libjpeg's own default, what Pillow and most others read.
    image = tf.cond(
        tf.strings.substr(contents, 0, len(_JPEG)) == _JPEG,
        lambda: tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(contents, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, [None, None, 3])


def why_refused(contents):
    """Why `decode_image` refuses the contents of a file, bytes, in a few words."""
    if not contents:
        return "empty file"
    try:
        sides = _read_sides(contents).numpy()
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
        # TensorFlow's message may hold bytes of the file, which Python then cannot read.
        return "broken or cut short before its size"
    if not sides.any():
        return "no JPEG, PNG, BMP or GIF image"
    if not fits(sides):
        return "sides of {} and {} pixels, over {} million or {}:1".format(
            *sides, MAX_PIXELS // 10**6, MAX_RATIO
        )
    return "broken or cut short"


def fits(sides):
    """Whether an image of these two sides, int [2], is within the limits; bool scalar."""
    longer, shorter = (tf.cast(pick(sides), tf.int64) for pick in (tf.reduce_max, tf.reduce_min))
    return (shorter > 0) & (longer * shorter <= MAX_PIXELS) & (longer <= MAX_RATIO * shorter)


def _of_decodable(image_bytes, make):
    """Dataset of what `make` makes of each row number and file, without those that fail."""
    files = tf.data.Dataset.from_tensor_slices(image_bytes).enumerate()
    return files.map(make, num_parallel_calls=PARALLEL).ignore_errors()


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def _read_sides(contents):
    return _open(contents)[1]


def _open(contents):
    """What there is to decode of a file, and the two sides of the image, int32 [2].

    Both sides are 0 where it is of no known kind; raises, when run, where a header is broken.
    """
    kinds = {_JPEG: _jpeg, b"\x89PNG\r\n\x1a\n": _png, b"BM": _bmp, b"GIF8": _gif}
    begins = [tf.strings.substr(contents, 0, len(magic)) == magic for magic in kinds]
    kind = tf.argmax(tf.stack([*begins, True]), output_type=tf.int32)
    readers = [*kinds.values(), _unknown]
    return tf.switch_case(kind, [lambda read=read: read(contents) for read in readers])


# Each reads the two sides of an image, int32 [2], off the header, and passes the contents on.


def _jpeg(contents):
    return contents, tf.io.extract_jpeg_shape(contents)[:2]


def _png(contents):
    sides = tf.strings.substr(contents, 16, 8)
    return contents, tf.io.decode_raw(sides, tf.int32, little_endian=False)


def _bmp(contents):
    # The height is negative where the top row comes first.
    return contents, tf.abs(tf.io.decode_raw(tf.strings.substr(contents, 18, 8), tf.int32))


def _gif(contents):
    """Cuts off what follows the first frame: the decoder would unpack thousands of frames."""
    frame, end = _first_frame(tf.io.decode_raw(contents, tf.uint8))
    sides = tf.io.decode_raw(tf.strings.substr(contents, frame + 5, 4), tf.uint16)
    return tf.strings.substr(contents, 0, end) + ";", tf.cast(sides, tf.int32)


def _unknown(contents):
    return contents, tf.zeros([2], tf.int32)


def _first_frame(values):
    """Where a GIF's first frame begins and ends; raises, when run, where there is none.

    Source: the GIF89a specification. A file is a header and a table of colours, then extensions
    and frames, each with a head of its own and a chain of blocks that an empty block ends.

    Args:
      values: uint8 [bytes] of the file.
    """
    values = tf.pad(values, [[0, 10]])

    def colors(flags):
        return tf.where(flags & 0x80 > 0, 6 * 2 ** (flags & 7), 0)

    def step(place, frame, inside):
        # Most blocks are full: those are passed many at a time.
        lengths = values[place : place + 256 * _GIF_STRIDE : 256]
        full = tf.reduce_sum(tf.math.cumprod(tf.cast(lengths == 255, tf.int32)))
        place += tf.where(inside, 256 * full, 0)
        # Fails beyond the end, where a part of no known kind leads as well.
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
        maximum_iterations=_GIF_STEPS,
    )
    return frame, end
