"""Image files to pixels and views, equal to Pillow's, and what is refused."""

import io
import itertools
import struct
import threading
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from hqc_tf.data import augment, decoding
from tests.support import serving
from tests.support.pixels import encode, over_white


def decode_views(files, size=8):
    """Through a graph, as a server decodes."""
    graph = tf.function(lambda contents: decoding.decode_views(contents, size + 2, size))
    views, valid = graph(tf.constant(files, tf.string))
    return views.numpy(), valid.numpy()


def png(width, height, depth, color, rows):
    """A PNG file of raw rows, its filter bytes among them."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "mode": "L"}),
        ("JPEG", {"mode": "CMYK"}),
        ("PNG", {}),
        ("BMP", {}),
        ("BMP", {"mode": "L"}),
        ("GIF", {}),
        ("GIF", {"interlace": 1}),
    ],
)
def test_views_are_those_of_the_pipeline(photo, kind, options):
    contents = encode(photo, kind, **options)
    views, valid = decode_views([contents])
    assert valid.all()
    expected = augment.plain_view(decoding.decode_known(contents), 10, 8)
    np.testing.assert_array_equal(views[0], expected)
    assert len(np.unique(views)) > 20


@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 2}, {"quality": 95}, {"progressive": True}, {"mode": "L"}],
)
def test_jpeg_equals_pillow(photo, options):
    contents = encode(photo, "JPEG", **options)
    expected = PIL.Image.open(io.BytesIO(contents)).convert("RGB")
    np.testing.assert_array_equal(decoding.decode_image(tf.constant(contents)), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_equals_pillow(photo, mode):
    image = PIL.Image.fromarray(photo).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(PIL.Image.linear_gradient("L").resize(image.size))
    options = {"transparency": bytes(range(256))} if mode == "P" else {}
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    decoded = decoding.decode_image(tf.constant(file.getvalue()))
    np.testing.assert_array_equal(decoded, over_white(PIL.Image.open(file)))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_png_of_few_bits_has_all_of_its_grays(depth):
    values = np.arange(8, dtype=np.uint8) % 2**depth
    packed = np.packbits(np.unpackbits(values[:, None], axis=1)[:, -depth:].ravel()).tobytes()
    decoded = decoding.decode_image(tf.constant(png(8, 1, depth, 0, b"\0" + packed)))
    expected = values.astype(int) * 255 // (2**depth - 1)
    np.testing.assert_array_equal(decoded, np.repeat(expected, 3).reshape(1, 8, 3))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_keeps_the_upper_byte(channels):
    values = np.random.default_rng(0).integers(0, 2**16, [9, 7, channels], np.uint16)
    decoded = decoding.decode_image(tf.io.encode_png(values))
    upper = (values >> 8).astype(np.uint8)
    colors = np.broadcast_to(upper[..., : 3 if channels > 2 else 1], [9, 7, 3])
    if channels in (2, 4):
        colors = over_white(PIL.Image.fromarray(np.concatenate([colors, upper[..., -1:]], -1)))
    np.testing.assert_array_equal(decoded, colors)


def test_bad_rows_are_zeros_and_the_others_right(photo):
    good = [encode(photo, kind) for kind in ("JPEG", "PNG", "BMP", "GIF")]
    bad = [b"", b"no image", *(contents[:-40] for contents in good), *(c[:11] for c in good)]
    order = np.random.default_rng(0).permutation(len(good) + len(bad))
    files = [(good + bad)[place] for place in order]
    views, valid = decode_views(files)
    np.testing.assert_array_equal(valid, order < len(good))
    for contents, view, place in zip(files, views, order, strict=True):
        whole = place < len(good)
        expected = augment.plain_view(decoding.decode_known(contents), 10, 8) if whole else 0 * view
        np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize("files", [[], [b""], [b"x", b"\xff\xd8\xff", b"BM", b"GIF89a"]])
def test_no_good_row_at_all(files):
    views, valid = decode_views(files)
    assert views.shape == (len(files), 8, 8, 3) and not views.any()
    assert valid.tolist() == [False] * len(files)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF"])
def test_the_limit_is_on_the_pixels_of_each_format(photo, kind, monkeypatch):
    contents = encode(photo, kind)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 31 * 44)
    assert decode_views([contents])[1].all()
    monkeypatch.setattr(decoding, "MAX_PIXELS", 31 * 44 - 1)
    assert not decode_views([contents])[1].any()


def test_the_limit_is_on_the_ratio_of_the_sides():
    files = [encode(np.zeros([*sides, 3], np.uint8), "PNG") for sides in [(1, 100), (1, 101)]]
    files += [encode(np.zeros([*sides, 3], np.uint8), "PNG") for sides in [(100, 1), (101, 1)]]
    assert decode_views(files)[1].tolist() == [True, False, True, False]


def test_a_bmp_from_top_to_bottom(photo):
    contents = bytearray(encode(photo, "BMP"))
    contents[22:26] = struct.pack("<i", -31)
    decoded = decoding.decode_image(tf.constant(bytes(contents)))
    np.testing.assert_array_equal(decoded, photo[::-1])


def test_large_images_are_decoded_one_at_a_time_beside_small_ones(photo, monkeypatch):
    """A large one waits until the small one behind it is decoded, and no other begins meanwhile."""
    small, large = encode(photo[:8, :8], "PNG"), encode(photo, "PNG")
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 31 * 44 - 1)
    decode, small_is_done, begun, at_once = decoding._decode, threading.Event(), set(), []

    def begin(opened):
        if opened == large:
            begun.add(len(at_once))
            at_once.append(len(begun))
            small_is_done.wait(60)
        return opened

    def end(pixels):
        begun.clear()
        small_is_done.set() if len(pixels) == 8 else None
        return pixels

    def watched(opened, orientation):
        opened = tf.ensure_shape(tf.numpy_function(begin, [opened], tf.string), [])
        pixels = decode(opened, orientation)
        return tf.ensure_shape(tf.numpy_function(end, [pixels], tf.uint8), [None, None, 3])

    monkeypatch.setattr(decoding, "_decode", watched)
    files = [large, b"no image", large, small, large]
    views, valid = decode_views(files)
    assert at_once == [1, 1, 1] and small_is_done.is_set()
    monkeypatch.undo()
    expected, sound = decode_views(files)
    np.testing.assert_array_equal(views, expected)
    assert valid.tolist() == sound.tolist() == [True, False, True, True, True]


def test_a_broken_large_image_is_left_out(photo, monkeypatch):
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 31 * 44 - 1)
    whole = encode(photo, "PNG")
    assert decode_views([whole[:-40], whole, whole[:-40]])[1].tolist() == [False, True, False]
    assert not decode_views([whole[:-40]])[1].any()


def test_small_files_of_much_memory_take_none():
    """A PNG of 1.2 GB decoded, and a GIF whose frames are 4 GB, each in under 8 MB."""
    side = 20_000
    bomb = png(side, side, 1, 0, bytes((1 + side // 8) * side))
    frame = encode(np.zeros([1000, 1000], np.uint8), "GIF")
    begin, end = frame.index(b"\x2c\0\0\0\0"), frame.rindex(b";")
    long = frame[:begin] + 4000 * frame[begin:end] + b";"
    assert max(len(bomb), len(long)) < 8 * 2**20
    found = []
    assert serving.added_memory(lambda: found.append(decode_views([bomb, long])[1])) < 300
    assert found[0].tolist() == [False, True]


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind, **{"JPEG": {"subsampling": 0}}.get(kind, {}))
    return buffer.getvalue()


KINDS = [*itertools.product(["RGB", "L", "RGBA"], ["PNG", "BMP", "GIF"])]


@pytest.mark.parametrize(("mode", "kind"), [*KINDS, ("RGB", "JPEG"), ("L", "JPEG")])
def test_images_of_all_kinds_are_decoded(mode, kind):
    # Two flat halves, which a JPEG keeps within a few levels and a palette exactly.
    pixels = np.full([16, 32, 3], [200, 40, 90], np.uint8)
    pixels[:, 16:] = [10, 220, 60]
    image = PIL.Image.fromarray(pixels).convert(mode)
    decoded = decoding.decode_known(encoded(image, kind))
    assert decoded.dtype == tf.uint8
    expected = np.asarray(image.convert("RGB"), int)
    np.testing.assert_allclose(decoded, expected, atol=8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["P", "1", "LA", "I;16"])
def test_rarer_pngs_are_decoded(mode):
    pixels = np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[None], 16, 0)
    gray = PIL.Image.fromarray(pixels)
    image = PIL.Image.fromarray(pixels.astype(np.uint16) * 257)
    image = image if mode == "I;16" else gray.convert(mode)
    decoded = decoding.decode_known(encoded(image, "PNG"))
    expected = gray if mode == "I;16" else image.convert("RGB").convert("L")
    np.testing.assert_array_equal(decoded, np.stack([np.asarray(expected)] * 3, -1))
