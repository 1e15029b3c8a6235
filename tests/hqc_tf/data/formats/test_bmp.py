"""BMP files: Pillow's pixels, or refused by kind."""

import io
import struct

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from hqc_tf.data import decoding
from tests.support.pixels import encode

decode_image = tf.function(
    decoding.decode_image, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
)


def decode(contents):
    return decode_image(tf.constant(contents)).numpy()


def pillow(contents):
    return np.asarray(PIL.Image.open(io.BytesIO(contents)).convert("RGB"))


def header(width, height, bits, packing, start, colors=0):
    return b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 0, 0, 0, start, 40, width, height, 1, bits, packing, 0, 0, 0, colors, 0
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("width", [1, 2, 3, 31])
def test_accepted_kinds_equal_pillow(photo, mode, width):
    contents = encode(photo[:, :width], "BMP", mode=mode)
    np.testing.assert_array_equal(decode(contents), pillow(contents))


def test_colors_of_32_bits_with_the_usual_masks_equal_pillow(photo):
    masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    rows = np.pad(photo[..., ::-1], [(0, 0), (0, 0), (0, 1)]).tobytes()
    height, width = photo.shape[:2]
    contents = header(width, -height, 32, 3, 66) + masks + rows
    np.testing.assert_array_equal(decode(contents), photo)
    np.testing.assert_array_equal(pillow(contents), photo)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(header(width, -height, 32, 3, 66) + masks[::-1] + rows)


def other_kinds():
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, [256, 4], np.uint8).tobytes()
    for bits, count in ((1, 2), (4, 16), (8, 256)):
        rows = rng.bytes(4 * -(-12 * bits // 32) * 10)
        yield (
            header(12, 10, bits, 0, 54 + 4 * count, count) + colors[: 4 * count] + rows,
            f"BMP of {bits} bits a pixel with a palette: save it as PNG",
        )
    run = b"\x0c\x05\0\0" * 10 + b"\0\x01"
    packed = header(12, 10, 8, 1, 54 + 1024, 256) + colors + run
    yield packed, "BMP of 8 bits a pixel with a palette, compressed: save it as PNG"
    yield (
        header(12, 10, 16, 0, 54) + rng.bytes(240),
        "BMP of 16 bits a pixel: save it as PNG",
    )
    older = b"BM" + struct.pack("<IHHIIHHHH", 0, 0, 0, 26, 12, 12, 10, 1, 24) + rng.bytes(360)
    yield older, "BMP of OS/2: save it as PNG"


@pytest.mark.parametrize(("contents", "reason"), other_kinds(), ids=lambda x: str(x)[:24])
def test_other_kinds_are_refused_with_the_reason(contents, reason):
    assert pillow(contents).shape == (10, 12, 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(contents)
    assert decoding.why_refused(contents) == reason


def test_a_palette_of_almost_all_grays_is_refused(photo):
    contents = bytearray(encode(photo, "BMP", mode="L"))
    contents[54 + 4 * 200] ^= 1
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(bytes(contents))


def test_a_changed_head_gives_the_same_pixels_or_none(photo):
    rng, same = np.random.default_rng(0), 0
    seeds = [encode(photo, "BMP", mode=mode) for mode in ("RGB", "RGBA", "L", "P", "1")]
    usual = 0, 1, 3, 8, 16, 24, 32, 40, 255
    for number in range(1000):
        contents = bytearray(seeds[number % 5])
        contents[rng.integers(2, 70)] = usual[rng.integers(len(usual))]
        try:
            found = decode(bytes(contents))
            expected = pillow(bytes(contents))
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError, OSError, ValueError):
            continue
        np.testing.assert_array_equal(found, expected)
        same += 1
    assert same > 200
