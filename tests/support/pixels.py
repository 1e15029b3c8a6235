"""Images of random pixels, in memory and as files."""

import io
import struct

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


def exif_data(orientation, order="<"):
    """EXIF data of an orientation alone, in an order of bytes as `struct` names it."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return head + struct.pack(f"{order}H", 1) + entry + bytes(4)


def over_white(image):
    """An image of Pillow as it is seen on white: uint8 [H, W, 3]."""
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    return np.asarray(PIL.Image.alpha_composite(white, image).convert("RGB"))
