"""Images of random pixels, in memory and as files."""

import io

import numpy as np
import PIL.Image


def random_pixels(count, height=12, width=10, seed=0):
    return np.random.default_rng(seed).integers(0, 256, [count, height, width, 3], np.uint8)


def write_images(folder, pixels, pattern="{:03d}.png"):
    """Lossless files, so that both sources hold the same pixels."""
    for row, image in enumerate(pixels):
        path = folder / pattern.format(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    return folder


def encode(pixels, kind, mode=None, **options):
    file = io.BytesIO()
    image = PIL.Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()
