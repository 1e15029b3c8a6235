"""Folders of images of every kind that people have, whole ones and others."""

import io
import os

import numpy as np
import PIL.Image
import PIL.ImageOps
import tensorflow as tf

from benchmarks.campaign import images as attack
from tests.support import serving


def _save(path, pixels, mode=None, **options):
    image = PIL.Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)


def write_odd(folder, photos):
    """Makes `folder` with images as they come; returns good names, sorted, and reason by bad name.

    All of the good ones are made of the first of `photos`, but of several sizes and kinds.
    """
    folder.mkdir()
    photo = sorted(photos.rglob("*.png"))[0]
    colors = np.asarray(PIL.ImageOps.colorize(PIL.Image.open(photo), (20, 0, 60), (255, 240, 180)))
    inverse = PIL.Image.fromarray(255 - colors)
    _save(folder / "animated.gif", colors, save_all=True, append_images=[inverse])
    _save(folder / "cmyk.jpg", colors, "CMYK")
    _save(folder / "grey.bmp", colors, "L")
    _save(folder / "palette.png", colors, "P")
    _save(folder / "alpha.png", colors, "RGBA")
    _save(folder / "one pixel.png", colors[:1, :1])
    _save(folder / "wide.png", np.resize(colors, [30, 3_000, 3]))
    _save(folder / "new\nline.jpeg", colors)
    _save(os.fsdecode(bytes(folder) + b"/no \xff utf-8.png"), colors)
    (folder / "deep.png").write_bytes(tf.io.encode_png(colors.astype(np.uint16) * 257).numpy())
    (folder / "a png.jpg").write_bytes(photo.read_bytes())
    good = [path.name for path in folder.iterdir()]
    jpeg = io.BytesIO()
    PIL.Image.fromarray(colors).save(jpeg, "JPEG")
    (folder / "truncated.jpg").write_bytes(jpeg.getvalue()[:-100])
    (folder / "headless.jpg").write_bytes(jpeg.getvalue()[:20])
    (folder / "corrupt.png").write_bytes(photo.read_bytes()[:-40] + bytes(40))
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to("nowhere")
    # A regular file that opens and cannot be read, by root either.
    (folder / "unreadable.jpg").symlink_to("/proc/self/mem")
    os.mkfifo(folder / "pipe.png")
    _save(folder / "too wide.png", np.resize(colors, [29, 3_000, 3]))
    bad = {
        "truncated.jpg": "broken or cut short",
        "headless.jpg": "broken or cut short before its size",
        "corrupt.png": "broken or cut short",
        "empty.jpg": "empty file",
        "page.jpg": "no JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF or HEIC image",
        "folder.jpg": "Is a directory",
        "dangling.jpg": "No such file or directory",
        "unreadable.jpg": "Input/output error",
        "pipe.png": "no regular file",
        "too wide.png": "too large: sides of 3000 and 29 pixels, over 100 million or 100:1",
    }
    return sorted(good), bad


def write_mutated(folder, photos, count):
    """Makes `folder` with so many mutated images, in seven sub-folders.

    Returns:
        (good, bad): names of those that TensorFlow decodes one by one, sorted, and a set of others.
    """
    rng = np.random.default_rng(0)
    first, second = (path.read_bytes() for path in sorted(photos.rglob("*.png"))[:2])
    seeds = [*attack.encode_everyhow(first), *attack.encode_everyhow(second)]
    files = [attack.mutate(rng, seeds) for _ in range(count)]
    names = [f"{row % 7}/{row:04d}.jpg" for row in range(count)]
    for name, file in zip(names, files, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(file)
    valid = serving.decode_apart(files, (8, 8))[1]
    good = [name for name, fine in zip(names, valid, strict=True) if fine]
    return sorted(good), set(names).difference(good)
