"""Formats that TensorFlow cannot decode: Pillow reads them and hands their pixels over as BMP.

The first frame, turned by its EXIF orientation, over white, with 8 bits a color. BMP is ten times
as fast to write as PNG. HEIC needs the package pillow-heif.
"""

import functools
import io
import math
import re
import threading
import warnings
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps


class Kind(NamedTuple):
    """A row: how files of a format are recognized."""

    name: str  # as users know it
    reader: str  # as Pillow knows it
    suffixes: tuple[str, ...]  # endings of file names, lower case
    begins: re.Pattern  # the first bytes of a file


KINDS = (
    Kind("WebP", "WEBP", (".webp",), re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    Kind("TIFF", "TIFF", (".tif", ".tiff"), re.compile(rb"II[*+]\0|MM\0[*+]")),
    # The brands of the file; HEIC's may be in either place too, and is what is left.
    Kind("AVIF", "AVIF", (".avif",), re.compile(rb".{4}ftyp(.{4})*?avi[fs]", re.DOTALL)),
    Kind("HEIC", "HEIF", (".heic", ".heif"), re.compile(rb".{4}ftyp(he[iv]|mif1|msf1)", re.DOTALL)),
)
# Bytes by which a file is recognized.
HEAD_BYTES = 64
# Larger images are converted one at a time.
LARGE_PIXELS = 2**24
_LARGE = threading.Lock()
# Levels of 16 bits, in Pillow's words.
_DEEP = "I;16", "I;16L", "I;16B", "I;16N"
# Tags of a TIFF: bits of a level, and what the lowest level shows.
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
# Pillow's remarks on a file, such as one on its EXIF data, concern nobody: pixels count.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)


def kind_of(begin: bytes) -> str:
    """The name of the format of a file by its first `HEAD_BYTES`; "" of any other."""
    kind = _find(begin)
    return kind.name if kind else ""


def open_image(contents: bytes) -> PIL.Image.Image | None:
    """A file of one of `KINDS` before its pixels are decoded; None of any other.

    Raises:
        PIL.Image.DecompressionBombError: it has over twice as many pixels as Pillow finds usual.
        ValueError: it is broken, or its package is missing; in words.
    """
    kind = _find(contents)
    if not kind:
        return None
    if kind.reader == "HEIF":
        _register_heif()
    with _naming_breaks():
        return PIL.Image.open(io.BytesIO(contents), formats=[kind.reader])


def to_bmp(image: PIL.Image.Image, most: int) -> bytes:
    """The pixels of an image as a BMP file, where there are over `most` each the mean of several.

    ValueError, in words, where it is broken.
    """
    if image.width * image.height <= LARGE_PIXELS:
        return _to_bmp(image, most)
    with _LARGE:
        return _to_bmp(image, most)


def _find(begin):
    return next((kind for kind in KINDS if kind.begins.match(begin[:HEAD_BYTES])), None)


class _naming_breaks:  # noqa: N801 - read as the statement that it is
    """Turns any error of a decoder into a ValueError: what it raises depends on the damage."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        passed = PIL.Image.DecompressionBombError, MemoryError
        if isinstance(error, Exception) and not isinstance(error, passed):
            raise ValueError("broken or cut short") from error


def _to_bmp(image, most):
    if image.mode in ("I", "F"):
        raise ValueError(f"{image.format} of 32 bits a color: save it as PNG")
    with _naming_breaks():
        # A copy of an image that is turned has no tags.
        tags = dict(getattr(image, "tag_v2", {}))
        # A JPEG is decoded at a half, a quarter or an eighth of its sides where that is enough.
        if (parts := _parts(image, most)) > 1:
            image.draft(None, (image.width // parts, image.height // parts))
        image = PIL.ImageOps.exif_transpose(image)
        if image.mode in _DEEP:
            image = PIL.Image.fromarray(_eight_bits(np.asarray(image), tags))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            white = PIL.Image.new("RGB", image.size, "white")
            white.paste(image, mask=image)
            image = white
        image = image.convert("RGB")
        if (parts := _parts(image, most)) > 1:
            image = image.reduce(parts)
        file = io.BytesIO()
        image.save(file, "BMP")
        return file.getvalue()


def _eight_bits(levels, tags):
    """Levels of a deep gray image, by the tags of a TIFF if it is one, as uint8."""
    bits = max(np.atleast_1d(tags.get(_BITS, 16)))
    made = (levels >> (bits - 8)).astype(np.uint8)
    return 255 - made if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else made


def _parts(image, most):
    """By how much both sides are divided, so that there are no more than `most` pixels."""
    parts = math.ceil(math.sqrt(image.width * image.height / most))
    # What is left of a division is a pixel of its own.
    while -(-image.width // parts) * -(-image.height // parts) > most:
        parts += 1
    return parts


@functools.cache
def _register_heif():
    try:
        import pillow_heif
    except ModuleNotFoundError as error:
        raise ValueError("HEIC: pip install 'hqc-tf[heif]' reads it") from error
    pillow_heif.register_heif_opener(thumbnails=False)
