"""A copy is told from a look-alike by its pixels."""

import io

import numpy as np
import PIL.Image
import pytest

from export.duplicates import pixels
from hqc_tf.data.folder import Item

WIDTH, HEIGHT = 160, 120


def scene(seed, width=WIDTH, height=HEIGHT):
    """A picture of soft shapes: noise of several sizes."""
    random, sizes = np.random.default_rng(seed), (3, 6, 12)
    layers = [
        PIL.Image.fromarray(random.integers(0, 256, (rows, rows * 4 // 3, 3), np.uint8))
        for rows in sizes
    ]
    grown = [
        np.asarray(layer.resize((width, height), PIL.Image.BICUBIC), float) for layer in layers
    ]
    return PIL.Image.fromarray(np.average(grown, axis=0, weights=(3, 2, 1)).astype(np.uint8))


def file(picture, kind="png", **options):
    opened = io.BytesIO()
    picture.save(opened, kind, **options)
    return opened.getvalue()


def squares(files):
    found = [small for _, small in pixels.read_small(Item("", one) for one in files)]
    return np.stack([small.square for small in found])


def patched(picture):
    changed = picture.copy()
    changed.paste(picture.crop((0, 0, 40, 30)).transpose(PIL.Image.Transpose.ROTATE_180), (60, 45))
    return changed


COPIES = {
    "png": lambda p: file(p),
    "jpeg": lambda p: file(p, "jpeg", quality=60),
    "half": lambda p: file(p.resize((WIDTH // 2, HEIGHT // 2), PIL.Image.BICUBIC)),
    "double": lambda p: file(p.resize((WIDTH * 2, HEIGHT * 2), PIL.Image.NEAREST), "jpeg"),
    "cut": lambda p: file(p.crop((5, 4, WIDTH - 3, HEIGHT - 4)), "jpeg"),
}
LOOK_ALIKES = {
    "mirrored": lambda p: file(p.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)),
    "patched": lambda p: file(patched(p)),
    "brighter": lambda p: file(p.point(lambda level: min(255, level * 1.3))),
    "flat": lambda p: file(PIL.Image.new("RGB", p.size, (128, 128, 128))),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found(kind):
    pictures = [scene(seed) for seed in range(12)]
    one, other = squares(map(file, pictures)), squares(map(COPIES[kind], pictures))
    assert pixels.may_be_copies(pixels.rough(one), pixels.rough(other)).all()
    # An image cut at its edges is a part of the whole one, and the whole one has it as a part.
    assert pixels.are_copies(one, other).mean() >= 11 / 12
    assert pixels.are_copies(other, one).mean() >= 11 / 12


@pytest.mark.parametrize("kind", LOOK_ALIKES)
def test_look_alikes_are_not(kind):
    pictures = [scene(seed) for seed in range(12)]
    one, other = squares(map(file, pictures)), squares(map(LOOK_ALIKES[kind], pictures))
    assert not pixels.are_copies(one, other).any()


def test_another_window_of_a_scene_is_no_copy():
    wide = [scene(seed, 2 * WIDTH) for seed in range(12)]
    windows = [
        squares(file(p.crop((left, 0, left + WIDTH, HEIGHT))) for p in wide) for left in (40, 56)
    ]
    assert not pixels.are_copies(*windows).any()


def test_flat_images_are_told_by_color():
    flat = squares(
        file(PIL.Image.new("RGB", (9, 9), (level,) * 3)) for level in (100, 100, 101, 140)
    )
    assert pixels.are_copies(flat[[0, 0, 0]], flat[1:]).tolist() == [True, True, False]


def test_reading_gives_sides_and_reasons():
    files = [file(scene(1)), b"", b"no image", file(scene(2))[:500], file(scene(3), "jpeg")]
    found = [small for _, small in pixels.read_small(Item("", one) for one in files)]
    assert found[0].sides.tolist() == found[4].sides.tolist() == [HEIGHT, WIDTH]
    assert found[1:4] == [
        "empty file",
        "no JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF or HEIC image",
        "broken or cut short",
    ]
    gray = np.asarray(scene(1), float).mean()
    assert abs(found[0].square.mean() - gray) < 1
