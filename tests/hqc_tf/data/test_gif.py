"""The first frame of a GIF."""

import io

import numpy as np
import PIL.Image
import tensorflow as tf

from hqc_tf.data import decoding
from tests.support.pixels import encode


def animate(frames):
    file = io.BytesIO()
    images = [PIL.Image.fromarray(frame) for frame in frames]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:])
    return file.getvalue()


def test_of_an_animation_the_first_frame_is_taken(photo):
    contents = animate([photo, 255 - photo, photo // 2])
    frames = tf.io.decode_gif(contents)
    assert len(frames) == 3 and np.any(frames[0] != frames[1])
    np.testing.assert_array_equal(decoding.decode_image(tf.constant(contents)), frames[0])


def test_a_gif_whose_blocks_are_not_full(photo):
    contents = encode(photo, "GIF", comment=b"a comment " * 60)
    place = start = contents.index(b"\x2c\0\0\0\0") + 11
    pixels = b""
    while contents[place]:
        pixels += contents[place + 1 : place + 1 + contents[place]]
        place += 1 + contents[place]
    parts = [pixels[at : at + 3] for at in range(0, len(pixels), 3)]
    blocks = b"".join(bytes([len(part)]) + part for part in parts)
    again = contents[:start] + blocks + b"\0;"
    np.testing.assert_array_equal(
        decoding.decode_image(tf.constant(again)), decoding.decode_known(contents)
    )


def test_first_frame_of_a_gif_counts():
    frames = [PIL.Image.new("RGB", [6, 5], color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    decoded = decoding.decode_known(buffer.getvalue())
    np.testing.assert_array_equal(decoded, np.full([5, 6, 3], [255, 0, 0]))
