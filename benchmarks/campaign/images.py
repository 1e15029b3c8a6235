"""Mutated image files in batches beside sound ones, and files that are made to cost much."""

import contextlib
import io
import pathlib
import time

import numpy as np
import PIL.Image
import PIL.ImageOps
import tensorflow as tf

from benchmarks import hostile_images
from benchmarks.campaign.row import Row, in_time, must
from hqc_tf.data import decoding
from hqc_tf.data.formats import converted

BATCH = 64
SIZES = 36, 32
# Of a batch, as SECURITY.md has it, and of a file that Pillow reads.
MOST_MIB, MOST_SECONDS = 20 * decoding.MAX_PIXELS / 2**20, 60
MOST_CONVERTED_MIB = 24 * decoding.MAX_PIXELS / 2**20


def encode_everyhow(contents):
    """An image file again in each format and many of their kinds."""
    image = PIL.Image.open(io.BytesIO(contents)).convert("RGB")
    frames = {"save_all": True, "append_images": [PIL.ImageOps.invert(image)]}
    kinds = [
        ("JPEG", "RGB", {}), ("JPEG", "L", {"progressive": True}), ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}), ("PNG", "P", {}), ("PNG", "LA", {}), ("PNG", "1", {}),
        ("BMP", "RGB", {}), ("BMP", "L", {}), ("GIF", "P", {}), ("GIF", "P", frames),
    ]  # fmt: skip
    for kind, mode, options in kinds:
        file = io.BytesIO()
        image.convert(mode).save(file, kind, **options)
        yield file.getvalue()
    yield tf.io.encode_png(np.asarray(image).astype(np.uint16) * 257).numpy()


def mutate(rng, seeds):
    """A byte string that may or may not be an image any more."""
    content = bytearray(seeds[rng.integers(len(seeds))])
    way = rng.integers(5)
    if way == 0:  # noise, after the first bytes of a format in half of all cases
        start = content[: rng.integers(12) * rng.integers(2)]
        return bytes(start) + rng.bytes(rng.integers(2000))
    if way == 1:
        return bytes(content[: rng.integers(len(content))])
    if way == 2:
        other = seeds[rng.integers(len(seeds))]
        return bytes(content[: rng.integers(len(content))]) + other[rng.integers(len(other)) :]
    # The head is where sizes and kinds stand.
    end = len(content) if way == 3 else 64
    for place in rng.integers(0, end, 1 + rng.integers(4)):
        content[place] = rng.integers(256)
    return bytes(content)


def mutated(folder: pathlib.Path, seed: int, count: int, ends: float) -> Row:
    """Rows of sound files are the same beside whatever neighbors, in bounded memory and time."""
    row, rng = Row(f"mutated images, {BATCH} in a batch"), np.random.default_rng(seed)
    photos = sorted((folder / "photos").rglob("*.png"))
    seeds = [file for path in photos[:3] for file in encode_everyhow(path.read_bytes())]
    decode = tf.function(
        lambda files: decoding.decode_views(files, *SIZES),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    expected = decode(tf.constant(seeds))[0].numpy()
    must(np.ptp(expected, axis=(1, 2, 3)).all(), "sound files are decoded")
    sound = 4
    for _ in in_time(range(0, count, BATCH - sound), ends):
        files = [mutate(rng, seeds) for _ in range(BATCH)]
        places = rng.choice(BATCH, sound, replace=False)
        kinds = rng.integers(len(seeds), size=sound)
        for place, kind in zip(places, kinds, strict=True):
            files[place] = seeds[kind]
        with row.case("batch"):
            views, valid = (part.numpy() for part in decode(tf.constant(files)))
            must(valid[places].all(), "a sound image is called bad beside others")
            must((views[places] == expected[kinds]).all(), "a sound image has other pixels")
            must(not views[~valid].any() and np.isfinite(views).all(), "a bad row is not zeros")
        # A case is an image.
        row.tried += BATCH - sound - 1
    row.bound(MOST_MIB, MOST_SECONDS)
    return row


def converted_files(folder: pathlib.Path, seed: int, count: int, ends: float) -> Row:
    """Mutated files of the formats that Pillow reads become an image, or have a reason."""
    row, rng = Row("mutated files for Pillow"), np.random.default_rng(seed)
    photo = PIL.Image.open(next((folder / "photos").rglob("*.png"))).convert("RGB")
    seeds = []
    for kind in converted.KINDS:
        file = io.BytesIO()
        with contextlib.suppress(KeyError, OSError):  # what it is not built to write
            photo.save(file, kind.reader)
            seeds.append(file.getvalue())
    must(len(seeds) > 1, "Pillow writes WebP and TIFF")
    for number in in_time(range(count), ends):
        with row.case(f"file {number}"), contextlib.suppress(ValueError):
            readable = decoding.readable(mutate(rng, seeds))
            must(isinstance(readable, bytes), "no contents of a file")
    row.bound(MOST_CONVERTED_MIB, MOST_SECONDS)
    return row


def costly(folder: pathlib.Path, seed: int, count: int, ends: float) -> Row:
    """Files that are made to cost much, as in `hostile_images`, each beside the honest one."""
    del folder, seed, count
    row = Row("images made to cost much")
    for found in in_time(hostile_images.measured(), ends):
        row.tried += 1
        row.worst_mib = max(row.worst_mib, found.mib)
        row.worst_seconds = max(row.worst_seconds, found.seconds)
        if found.is_over:
            row.fail(f"{found.format}, {found.name}: {found.seconds:.1f} s, {found.mib:.0f} MiB")
    return row


def large_request(folder: pathlib.Path, seed: int, count: int, ends: float) -> Row:
    """Eight of the largest images in a request take at most three times the memory of one."""
    del folder, seed, count, ends
    largest = hostile_images.honest_jpeg()
    row = Row(f"8 images of {decoding.MAX_PIXELS // 10**6} million pixels in a request")
    tf.config.threading.set_inter_op_parallelism_threads(decoding.PARALLEL)
    decode = tf.function(lambda files: decoding.decode_views(files, *SIZES))
    decode(tf.constant([b"", b""]))
    with row.case("one"):
        must(decode(tf.constant([largest]))[1].numpy().all(), "decoded")
    alone = row.worst_mib
    with row.case("eight"):
        began = time.monotonic()
        must(decode(tf.constant([largest] * 8))[1].numpy().all(), "decoded")
        row.worst_seconds = time.monotonic() - began
    if row.worst_mib > hostile_images.TIMES * alone:
        row.fail(f"{row.worst_mib:.0f} MiB, {alone:.0f} alone")
    return row
