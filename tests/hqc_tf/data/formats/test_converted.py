"""Formats that Pillow reads for TensorFlow: the same pixels, in bytes, files and graphs."""

import io
import threading

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from hqc_tf.data import batches, decoding, folder
from hqc_tf.data.formats import converted
from hqc_tf.data.images import Images
from tests.support.pixels import encode, exif_data, over_white

# Those that keep every level.
LOSSLESS = [
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"mode": "L"}),
]


def pixels_of(contents):
    """What TensorFlow is given, read by Pillow."""
    made = decoding.readable(contents)
    assert made.startswith(b"BM")
    return np.asarray(PIL.Image.open(io.BytesIO(made)))


def test_lossless_files_keep_their_pixels(photo):
    for kind, options in LOSSLESS:
        contents = encode(photo, kind, **options)
        expected = PIL.Image.fromarray(photo).convert(options.get("mode", "RGB")).convert("RGB")
        np.testing.assert_array_equal(pixels_of(contents), expected)


def test_others_have_the_pixels_that_pillow_reads(photo):
    for kind, options in [
        ("AVIF", {"quality": 90}), ("WEBP", {"quality": 80}), ("TIFF", {"mode": "CMYK"}),
        ("TIFF", {"mode": "P"}), ("TIFF", {"mode": "1"}),
    ]:  # fmt: skip
        contents = encode(photo, kind, **options)
        expected = PIL.Image.open(io.BytesIO(contents)).convert("RGB")
        np.testing.assert_array_equal(pixels_of(contents), expected)


def test_heic_is_read_where_its_package_is(photo, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener(thumbnails=False)
    lossless = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
    contents = encode(photo, "HEIF", **lossless)
    np.testing.assert_array_equal(pixels_of(contents), photo)
    turned = encode(photo, "HEIF", exif=b"Exif\0\0" + exif_data(6), **lossless)
    np.testing.assert_array_equal(pixels_of(turned), np.rot90(photo, -1))
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    converted._register_heif.cache_clear()
    with pytest.raises(ValueError, match=r"HEIC: pip install 'hqc-tf\[heif\]' reads it"):
        decoding.readable(contents)
    converted._register_heif.cache_clear()


def test_turned_and_transparent_as_pillow_shows_them(photo):
    alpha = np.concatenate([photo, 255 - photo[..., :1]], -1)
    for kind, options in (("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        for value in range(1, 9):
            exif = PIL.Image.Exif()
            exif[0x0112] = value
            contents = encode(alpha, kind, exif=exif, **options)
            shown = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(contents)))
            np.testing.assert_array_equal(pixels_of(contents), over_white(shown))
            assert (shown.width > shown.height) == (value < 5)


def test_the_upper_byte_of_16_bits(photo):
    levels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    found = pixels_of(encode(levels, "TIFF"))
    np.testing.assert_array_equal(found, np.repeat(levels[..., None] >> 8, 3, -1))
    for deep in (levels.astype(np.float32), levels.astype(np.int32)):
        with pytest.raises(ValueError, match="TIFF of 32 bits a color: save it as PNG"):
            decoding.readable(encode(deep, "TIFF"))


def test_the_first_frame_counts(photo):
    frames = [PIL.Image.fromarray(x) for x in (photo, 255 - photo)]
    for kind, options in (("WEBP", {"lossless": True}), ("TIFF", {})):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(pixels_of(file.getvalue()), photo)


def test_other_files_stay_as_they_are(photo):
    for contents in (encode(photo, "JPEG"), encode(photo, "PNG"), b"", b"RIFF1234WAVE", b"text"):
        assert decoding.readable(contents) is contents
        assert bool(decoding.format_of(contents)) == (contents[:1] in (b"\xff", b"\x89"))


def test_broken_files_and_too_large_ones_have_a_reason(photo, monkeypatch):
    files = [encode(photo, kind) for kind in ("WEBP", "TIFF", "AVIF")]
    for contents in files:
        assert decoding.format_of(contents)
        for end in (14, len(contents) // 2, len(contents) - 30):
            with pytest.raises(ValueError, match="^broken or cut short$"):
                decoding.readable(contents[:end])
    with pytest.raises(ValueError, match="^too large: over 100 million pixels$"):
        decoding.readable(encode(np.zeros([20_000, 10_000], bool), "TIFF"))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 31 * 44 - 1)
    for contents in files:
        with pytest.raises(ValueError, match="^too large: sides of 44 and 31 pixels, over"):
            decoding.readable(contents)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_larger_images_that_are_allowed_are_made_smaller(photo, monkeypatch, kind):
    contents = encode(photo, kind)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 22 * 16)
    whole = decoding.why_refused(contents) if kind in ("PNG", "JPEG", "BMP", "GIF") else "too large"
    assert whole.startswith("too large")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 31 * 44)
    monkeypatch.setattr(decoding._Raised, "pixels", 0)
    decoding.raise_max_pixels(31 * 44)
    assert decoding._Raised.pixels == PIL.Image.MAX_IMAGE_PIXELS == 31 * 44
    made = decoding.readable(contents)
    with PIL.Image.open(io.BytesIO(made)) as image:
        assert image.size == (22, 16)
        small = np.asarray(image, float)
    with PIL.Image.open(io.BytesIO(contents)) as image:
        pixels = np.asarray(image.convert("RGB"), float)
    means = pixels[:30, :44].reshape(15, 2, 22, 2, 3).mean(axis=(1, 3))
    assert np.abs(small[:15] - means).mean() < (6 if kind == "JPEG" else 1)
    decoding.raise_max_pixels(5)
    assert decoding._Raised.pixels == 31 * 44
    decoding.raise_max_pixels(31 * 44 - 1)
    if kind == "PNG":
        # In the graph of a training too, where smaller ones stay as they are.
        in_graph = tf.function(decoding.made_readable, [tf.TensorSpec([], tf.string)])
        assert in_graph(contents).numpy() == made
        small = encode(photo[:7], kind)
        assert in_graph(small).numpy() == small


def test_mutated_files_are_read_or_have_a_reason(photo):
    rng, read = np.random.default_rng(0), 0
    seeds = [encode(photo, kind) for kind in ("WEBP", "TIFF", "AVIF")]
    for number in range(600):
        contents = bytearray(seeds[number % 3])
        for place in rng.integers(4, len(contents) if number % 2 else 64, 2):
            contents[place] = rng.integers(256)
        try:
            read += decoding.readable(bytes(contents)) != bytes(contents)
        except ValueError as error:
            assert str(error).startswith(("broken or cut", "too large", "TIFF of 32", "HEIC"))
    assert read > 200


def test_large_images_are_converted_one_at_a_time(photo, monkeypatch):
    monkeypatch.setattr(converted, "LARGE_PIXELS", 100)
    inside, most, made = [], [], converted._to_bmp

    def count(image, pixels):
        inside.append(image)
        most.append(len(inside))
        try:
            return made(image, pixels)
        finally:
            inside.remove(image)

    monkeypatch.setattr(converted, "_to_bmp", count)
    contents = encode(photo, "WEBP")
    threads = [threading.Thread(target=decoding.readable, args=[contents]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6
    assert decoding.grows(contents) and not decoding.grows(encode(photo, "PNG"))


def test_files_items_and_graphs_give_the_same_pixels(photo, tmp_path):
    kinds = [("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {}), ("AVIF", {})]
    names = [f"{row}.{kind.lower()}" for row, (kind, _) in enumerate(kinds)]
    for name, (kind, options) in zip(names, kinds, strict=True):
        (tmp_path / name).write_bytes(encode(photo, kind, **options))
    (tmp_path / "cut.webp").write_bytes(encode(photo, "WEBP")[:40])
    files = Images.of_files([tmp_path / name for name in names])
    held = Images.of_contents([(tmp_path / name).read_bytes() for name in names], names)
    items = [*folder.readable(folder.read_items(tmp_path, [*names, "cut.webp"]))]
    assert items[-1] == ("cut.webp", b"", "broken or cut short")
    for row, item in enumerate(items[:-1]):
        found = decoding.decode_known(item.contents).numpy()
        np.testing.assert_array_equal(batches.read_pixels(files, row), found)
        np.testing.assert_array_equal(batches.read_pixels(held, row), found)
        if row < 3:
            np.testing.assert_array_equal(found, photo)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, [0, 15, 128, 255]),
        ({258: (16,), 262: 1}, [0, 15, 128, 255]),
        ({258: (12,)}, [0, 255, 0, 255]),
        ({258: (16,), 262: 0}, [255, 240, 127, 0]),
    ],
)
def test_deep_levels_are_read_by_their_bits_and_from_black(tags, expected):
    levels = np.uint16([0, 4095, 32768, 65535])
    np.testing.assert_array_equal(converted._eight_bits(levels, tags), expected)
