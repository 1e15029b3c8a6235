"""EXIF orientation: pixels as Pillow turns them, and broken data that turn nothing."""

import io
import itertools
import struct

import numpy as np
import PIL.Image
import PIL.ImageOps
import tensorflow as tf

from hqc_tf.data import decoding
from hqc_tf.data.formats import exif
from tests.support.pixels import exif_data

decode_image = tf.function(
    decoding.decode_image, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
)
orientation = tf.function(
    exif.orientation, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
)
ORDERS = "<>"


def save(photo, kind, data, **options):
    file = io.BytesIO()
    PIL.Image.fromarray(photo).save(file, kind, exif=b"Exif\0\0" + data, **options)
    return file.getvalue()


def pillow(contents):
    return np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(contents))))


# A test's first call of a function optimizes its graph, so each tries all of its cases.
def test_turned_pixels_equal_pillow(photo):
    for kind, order in itertools.product(["JPEG", "PNG"], ORDERS):
        seen = set()
        for value in range(1, 9):
            contents = save(photo, kind, exif_data(value, order))
            decoded = decode_image(contents).numpy()
            np.testing.assert_array_equal(decoded, pillow(contents))
            seen.add((decoded.shape, decoded.tobytes()))
        assert len(seen) == 8
        np.testing.assert_array_equal(decoding.decode_known(contents), decoded)


def test_the_tag_may_be_anywhere_in_the_directory(photo):
    image = PIL.Image.fromarray(photo)
    data = image.getexif()
    for tag, value in {0x010F: "a maker", 0x0110: "a model", 0x0112: 6, 0x0132: "2024"}.items():
        data[tag] = value
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        image.save(file, kind, exif=data, dpi=(72, 72))
        decoded = decode_image(file.getvalue())
        assert decoded.shape == (44, 31, 3)
        np.testing.assert_array_equal(decoded, pillow(file.getvalue()))


def test_large_png_and_chunk_after_the_pixels(photo):
    large = np.random.default_rng(0).integers(0, 256, [200, 150, 3], np.uint8)
    for pixels in (photo, large):
        contents = save(pixels, "PNG", exif_data(8, ">"))
        np.testing.assert_array_equal(decode_image(contents), pillow(contents))
        begin = contents.index(b"eXIf") - 4
        end = begin + 12 + struct.unpack(">I", contents[begin : begin + 4])[0]
        moved = contents[:begin] + contents[end:-12] + contents[begin:end] + contents[-12:]
        np.testing.assert_array_equal(decode_image(moved), pillow(contents))


def broken():
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    yield from (b"", b"II", b"II*\0", b"II*\0\x08\0\0\0", b"II*\0\x08\0\0\0\x01\0")
    yield b"II*\0\x08\0\0\0\x01\0" + entry[:-1]
    yield b"II*\0\xff\xff\xff\xff\x01\0" + entry
    yield b"MM*\0\x08\0\0\0\x01\0" + entry
    yield b"II*\0\x08\0\0\0\0\0" + entry
    for value in (0, 9, 255, 65535):
        yield exif_data(value, "<")
    for kind, count in ((2, 1), (3, 2), (3, 0), (3, 2**32 - 1)):
        yield b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, kind, count, 6, 0)


def test_broken_data_turn_nothing(photo):
    for data in broken():
        assert orientation(data) == exif.UPRIGHT, data
        contents = save(photo, "PNG", data)
        np.testing.assert_array_equal(decode_image(contents), photo)


def test_any_bytes_are_an_orientation_and_never_fail():
    rng = np.random.default_rng(0)
    seeds = [exif_data(6, order) for order in ORDERS]
    for number in range(500):
        data = bytearray(seeds[number % 2] + rng.bytes(rng.integers(40)))
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        found = orientation(bytes(data[: rng.integers(len(data) + 1)]))
        assert 1 <= int(found) <= 8


def test_a_directory_of_more_entries_than_there_are(photo):
    """What is there counts, as for Pillow."""
    data = exif_data(6, "<")
    assert orientation(data[:8] + b"\xff\xff" + data[10:]) == 6


def segments(contents, *others):
    """A JPEG with other segments before its own."""
    made = [b"\xff" + bytes([kind]) + struct.pack(">H", 2 + len(x)) + x for kind, x in others]
    return contents[:2] + b"".join(made) + contents[2:]


def test_segments_before_the_data_and_what_only_looks_like_them(photo):
    plain, data = save(photo, "JPEG", b""), b"Exif\0\0" + exif_data(6, "<")
    upright = decode_image(plain)
    for before in (
        [(0xE0, b"JFIF"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0Exif"), (0xE2, bytes(65_000))],
        [(0xFE, b"Exif\0\0" + exif_data(3, "<"))],
    ):
        turned = decode_image(segments(plain, *before, (0xE1, data)))
        np.testing.assert_array_equal(turned, np.rot90(upright, -1))
        np.testing.assert_array_equal(decode_image(segments(plain, *before)), upright)
    filled = plain[:2] + b"\xff\xff" + segments(plain, (0xE1, data))[2:]
    np.testing.assert_array_equal(decode_image(filled), np.rot90(upright, -1))


def test_the_walk_is_bounded(photo):
    plain, data = save(photo, "JPEG", b""), b"Exif\0\0" + exif_data(6, "<")
    for before in ([(0xEC, bytes(65_000))] * 5, [(0xEC, b"")] * 300):
        turned = decode_image(segments(plain, *before, (0xE1, data)))
        np.testing.assert_array_equal(turned, decode_image(plain))
