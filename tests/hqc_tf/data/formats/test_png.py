"""PNG files without what pixels do not need, equal to Pillow's."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tensorflow as tf

from hqc_tf.data import decoding
from hqc_tf.data.formats import png
from tests.support import serving
from tests.support.pixels import encode, over_white

decode_image = tf.function(
    decoding.decode_image, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
)


@pytest.fixture(autouse=True)
def walked(monkeypatch):
    """No file is too small for the walk."""
    monkeypatch.setattr(png, "_SMALL_BYTES", 0)
    # A limit that a test changes gets into no graph that others share.
    monkeypatch.setattr(decoding, "_traced", lambda function: function)


def chunk(name, content):
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def parts(contents):
    """(before the first chunk of pixels, the pixels' content, after the last one)."""
    place, before, pixels, after = 8, contents[:8], b"", b""
    while place < len(contents):
        length, name = struct.unpack(">I4s", contents[place : place + 8])
        whole = contents[place : place + 12 + length]
        if name == b"IDAT":
            pixels += whole[8:-4]
        elif pixels:
            after += whole
        else:
            before += whole
        place += len(whole)
    return before, pixels, after


def in_chunks(contents, lengths):
    """The file with its pixels in chunks of these lengths, the last one over and over."""
    before, pixels, after = parts(contents)
    place, cut = 0, b""
    while place < len(pixels):
        length = lengths.pop(0) if len(lengths) > 1 else lengths[0]
        cut += chunk(b"IDAT", pixels[place : place + length])
        place += length
    return before + cut + after


def decode(contents):
    return decode_image(contents).numpy()


def test_text_that_is_not_shown_takes_no_memory():
    """64 chunks of 8 MiB in 0.5 MB, before the pixels and after them."""
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**23), 9)) * 32
    before, pixels, after = parts(encode(np.zeros([10, 10, 3], np.uint8), "PNG"))
    contents = before + text + chunk(b"IDAT", pixels) + text + after
    found = []
    assert serving.added_memory(lambda: found.append(decode(contents))) < 100
    assert found[0].shape == (10, 10, 3) and not found[0].any()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_what_says_nothing_of_pixels_changes_none(photo, mode):
    image = PIL.Image.fromarray(photo).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = PIL.Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    options = {"transparency": 1} if mode in ("L", "P") else {}
    file = io.BytesIO()
    image.save(file, "PNG", icc_profile=profile, dpi=(72, 72), **options)
    before, pixels, after = parts(file.getvalue())
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"cHRM", bytes(32))
    head, rest = before[:33], before[33:]
    unknown = chunk(b"vpAg", b"anything") + chunk(b"fdAT", bytes(9))
    contents = head + gamma + rest + chunk(b"IDAT", pixels) + unknown + after
    plain = image if mode != "I;16" else PIL.Image.fromarray(photo).convert("L")
    shown = plain if mode == "I;16" else PIL.Image.open(file)
    np.testing.assert_array_equal(decode(contents), over_white(shown))


@pytest.mark.parametrize("lengths", [[1], [7, 1, 2, 1, 30, 64], [0, 5, 0, 0, 9], [10**6]])
def test_pixels_in_chunks_of_any_length(photo, lengths):
    contents = encode(photo, "PNG", compress_level=0)
    np.testing.assert_array_equal(decode(in_chunks(contents, lengths)), photo)


def test_the_walk_is_bounded_and_passes_chunks_of_a_length_quickly(photo, monkeypatch):
    """As many as a file of the largest image has, and none of a file that needs more steps."""
    contents = encode(np.repeat(np.repeat(photo, 4, 0), 4, 1), "PNG", compress_level=0)
    before, pixels, after = parts(contents)
    steps = 4 + len(pixels) // (8 * png._STRIDE)
    monkeypatch.setattr(png, "_STEPS", steps)
    assert decoding.decode_image(tf.constant(in_chunks(contents, [8]))).numpy().any()
    turns = b"".join(chunk(b"teXt", bytes(row % 2)) for row in range(steps))
    turned = before + turns + chunk(b"IDAT", pixels) + after
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoding.decode_image(tf.constant(turned))
    monkeypatch.setattr(decoding, "_look", decoding._look.python_function)
    assert decoding.why_refused(turned) == (
        "PNG of too many small chunks, or bytes beyond its pixels"
    )


def test_far_more_bytes_than_the_pixels_need_are_refused():
    """A megabyte of chunks of pixels behind those of a small image; after its end it is ignored."""
    contents = encode(np.zeros([10, 10, 3], np.uint8), "PNG")
    before, pixels, end = parts(contents)
    noise = chunk(b"IDAT", np.random.default_rng(0).bytes(2**20))
    more = before + chunk(b"IDAT", pixels) + noise + end
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(more)
    assert decoding.why_refused(more).endswith("or bytes beyond its pixels")
    assert decode(contents + noise).shape == (10, 10, 3)


def test_what_is_needed_and_unknown_and_what_ends_early_is_refused(photo):
    contents = encode(photo, "PNG")
    before, pixels, after = parts(contents)
    for broken in (
        before + chunk(b"NEED", b"") + chunk(b"IDAT", pixels) + after,
        contents[:-12],
        contents[:-4],
        before + chunk(b"teXt", b"x")[:-2],
        before + struct.pack(">I", 2**32 - 1) + b"teXt" + bytes(99),
        before + struct.pack(">I", 2**31) + b"IDAT" + bytes(99),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode_image(tf.constant(broken))
        assert decoding.why_refused(broken).startswith("broken or cut short")


def test_a_small_file_is_decoded_as_it_is(photo, monkeypatch):
    contents = encode(photo, "PNG")
    monkeypatch.setattr(png, "_SMALL_BYTES", len(contents) + 1)
    monkeypatch.setattr(png, "_without_ancillary", lambda *_: (tf.constant(""), 1))
    np.testing.assert_array_equal(decoding.decode_image(tf.constant(contents)), photo)
    monkeypatch.setattr(png, "_SMALL_BYTES", len(contents))
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoding.decode_image(tf.constant(contents))


def test_transparent_pixels_are_shown_over_white(photo):
    """Every level of every alpha, palettes and keys, small and large files."""
    alpha, color = np.meshgrid(np.arange(256), np.arange(256))
    levels = PIL.Image.fromarray(np.stack([color, 255 - color, 0 * color, alpha], -1).astype("u1"))
    image = PIL.Image.fromarray(photo)
    gray, palette = image.convert("L"), image.quantize(16)
    grays = gray.point(lambda value: value // 64 * 64)
    cases = [
        (levels, {}),
        (levels.convert("LA"), {}),
        (palette, {"transparency": 3}),
        (palette, {"transparency": bytes(range(0, 256, 16))}),
        (grays, {"transparency": 64}),
        (image, {"transparency": tuple(map(int, photo[5, 5]))}),
        (gray.convert("1"), {"transparency": 0}),
    ]
    for image, options in cases:
        file = io.BytesIO()
        image.save(file, "PNG", **options)
        shown = over_white(PIL.Image.open(file))
        np.testing.assert_array_equal(decode(file.getvalue()), shown)
        assert (shown != image.convert("RGB")).any()


def test_hidden_colors_decide_nothing_and_blocks_meet(photo, monkeypatch):
    monkeypatch.setattr(png, "_BLENDED", 100)
    alpha = np.where(photo[..., :1] > 99, 255, 0).astype(np.uint8)
    hidden = [np.concatenate([np.where(alpha, photo, x), alpha], -1) for x in (photo, 7, 255)]
    found = [decoding.decode_image(encode(x.astype(np.uint8), "PNG")).numpy() for x in hidden]
    np.testing.assert_array_equal(found[0], np.where(alpha, photo, 255))
    np.testing.assert_array_equal(found[1:], found[:1] * 2)


def test_a_bare_file_has_a_header_one_chunk_of_pixels_and_an_end():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    bare = tf.io.encode_png(pixels).numpy()
    before, inside, after = parts(bare)
    alpha = tf.io.encode_png(np.dstack([pixels, pixels[..., :1]])).numpy()
    palette = encode(pixels, "PNG", "P")
    text = chunk(b"tEXt", b"a\0b")
    jpeg = tf.io.encode_jpeg(pixels).numpy()
    others = [
        alpha, palette, jpeg, in_chunks(bare, [9, 99]), bare[:-1], bare + b"a", bare[:20], b"",
        before + text + chunk(b"IDAT", inside) + after, bare[: -len(after)] + text + after,
    ]  # fmt: skip
    assert png.are_bare([bare, tf.io.encode_png(pixels[..., :1]).numpy()]).numpy().all()
    assert not png.are_bare(others).numpy().any()


@pytest.mark.parametrize("others", [[], [0, 2]])
def test_files_decoded_together_are_those_decoded_alone(others):
    """Also where some have more than pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, [4, 5, 7, 3], np.uint8)
    files = [tf.io.encode_png(one).numpy() for one in pixels]
    for place in others:
        alpha = np.full([5, 7, 1], 255 * (place > 0), np.uint8)
        files[place] = tf.io.encode_png(np.dstack([pixels[place], alpha])).numpy()
    alone = [decoding.decode_known(file) for file in files]
    np.testing.assert_array_equal(decoding.decode_known_alike(np.array(files, object)), alone)
    assert others or (np.stack(alone) == pixels).all()
