"""The first frame of a GIF."""

import io
import struct

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from hqc_tf.data import decoding
from tests.support.pixels import encode, over_white

decode_image = tf.function(
    decoding.decode_image, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
)


def animate(frames):
    file = io.BytesIO()
    images = [PIL.Image.fromarray(frame) for frame in frames]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:])
    return file.getvalue()


def test_of_an_animation_the_first_frame_is_taken(photo):
    contents = animate([photo, 255 - photo, photo // 2])
    frames = tf.io.decode_gif(contents)
    assert len(frames) == 3 and np.any(frames[0] != frames[1])
    np.testing.assert_array_equal(decode_image(tf.constant(contents)), frames[0])


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
    np.testing.assert_array_equal(decode_image(tf.constant(again)), decoding.decode_known(contents))


def test_first_frame_of_a_gif_counts():
    frames = [PIL.Image.new("RGB", [6, 5], color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    decoded = decoding.decode_known(buffer.getvalue())
    np.testing.assert_array_equal(decoded, np.full([5, 6, 3], [255, 0, 0]))


def canvas(contents, size, corner, transparent=None):
    """A GIF without extensions, its first frame at a corner of a canvas of some size."""
    colors = 13 + (3 << (contents[10] & 7) + 1)
    frame = bytearray(contents[contents.index(b"\x2c\0\0\0\0", colors) :])
    frame[1:5] = struct.pack("<HH", *corner)
    control = b"" if transparent is None else b"\x21\xf9\x04\x01\0\0%c\0" % transparent
    return contents[:6] + struct.pack("<HH", *size) + contents[10:colors] + control + frame


def pillow(contents):
    return over_white(PIL.Image.open(io.BytesIO(contents)))


@pytest.mark.parametrize("transparent", [None, 0, 9, 255])
@pytest.mark.parametrize(
    ("size", "corner"),
    [
        ((44, 31), (0, 0)), ((90, 70), (5, 30)), ((90, 70), (46, 39)), ((50, 31), (6, 0)),
        ((44, 40), (0, 0)), ((10, 10), (0, 0)), ((44, 31), (9, 5)), ((0, 0), (0, 0)),
    ],
)  # fmt: skip
def test_the_canvas_of_the_first_frame_equals_pillow(photo, size, corner, transparent):
    image = PIL.Image.fromarray(photo).quantize(256)
    file = io.BytesIO()
    image.save(file, "GIF")
    contents = canvas(file.getvalue(), size, corner, transparent)
    decoded = decode_image(tf.constant(contents))
    np.testing.assert_array_equal(decoded, pillow(contents))


def test_transparent_pixels_are_white_and_the_others_as_they_are(photo):
    image = PIL.Image.fromarray(photo).quantize(4)
    file = io.BytesIO()
    image.save(file, "GIF", transparency=2)
    hidden = np.asarray(image) == 2
    assert hidden.sum() > 20
    # A visible color may be the hidden one.
    image.putpalette(np.uint8([[9, 9, 9], [9, 9, 9], [9, 9, 9], [80, 1, 2]]).tobytes())
    alike = io.BytesIO()
    image.save(alike, "GIF", transparency=2, optimize=False)
    for contents in (file.getvalue(), alike.getvalue()):
        decoded = decode_image(contents).numpy()
        np.testing.assert_array_equal(decoded, pillow(contents))
        assert (decoded[hidden] == 255).all() and (decoded[~hidden] < 255).any()


def test_a_transparent_color_in_a_table_of_the_frame(photo):
    file = io.BytesIO()
    PIL.Image.fromarray(photo).quantize(256).save(file, "GIF")
    contents = canvas(file.getvalue(), (60, 50), (5, 7), 9)
    begin = contents.index(b"\x2c\x05\0\x07\0")
    table = contents[13 : 13 + 768]
    control, frame = contents[13 + 768 : begin], contents[begin:]
    head = contents[:10] + b"\x70" + contents[11:13]
    local = head + control + frame[:9] + bytes([frame[9] | 0x87]) + table + frame[10:]
    decoded = decode_image(local).numpy()
    np.testing.assert_array_equal(decoded, pillow(local))
    np.testing.assert_array_equal(decoded, decode_image(contents))


def test_the_pixels_of_the_canvas_count(monkeypatch):
    frame = encode(np.zeros([10, 10], np.uint8), "GIF")
    contents = canvas(frame, (60_000, 60_000), (0, 0))
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(tf.constant(contents))
    said = "too large: sides of 60000 and 60000 pixels, over 100 million or 100:1"
    assert decoding.why_refused(contents) == said


def test_blocks_of_a_byte_are_passed_many_at_a_time_and_the_walk_is_bounded(photo):
    contents = encode(photo, "GIF")
    colors = 13 + (3 << (contents[10] & 7) + 1)
    turns = b"\x21\xfe" + b"\x01\0\x02\0\0" * 5000 + b"\0"
    alike = b"\x21\xfe" + b"\x01\0" * 65_000 + b"\0"
    passed = contents[:colors] + alike + contents[colors:]
    np.testing.assert_array_equal(
        decode_image(tf.constant(passed)), decode_image(tf.constant(contents))
    )
    refused = contents[:colors] + turns + contents[colors:]
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(tf.constant(refused))
    assert decoding.why_refused(refused) == "GIF of too many small blocks"
