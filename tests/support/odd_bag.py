"""A bag of photos as people have them: formats, orientations, transparency, names and damage."""

import io

import numpy as np
import PIL.Image

from tests.support.pixels import encode, exif_data

# Sides that differ.
SIZE = 44, 31
_WEBP = {"lossless": True, "exact": True}
_HEIF = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
# Formats that keep every level, and how they are written.
_LOSSLESS = {
    "same.png": ("PNG", {}),
    "same.bmp": ("BMP", {}),
    "same.gif": ("GIF", {}),
    "same.webp": ("WEBP", _WEBP),
    "same.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "same.tiff": ("TIFF", {}),
}
_COLORS = 200


def has_heif():
    """Whether Pillow reads HEIC here, by the package of the extra `heif`."""
    try:
        import pillow_heif
    except ModuleNotFoundError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False)
    return True


def write_bag(folder, photo):
    """Fills `folder`.

    Args:
        photo: uint8 [H, W, 3].

    Returns:
        alike: names of files that are one picture, as a person sees it.
        others: names of other images that can be read.
        bad: how the reason begins, by name.
    """
    pixels = _of_few_colors(photo)
    alike = {name: _save(pixels, kind, **options) for name, (kind, options) in _LOSSLESS.items()}
    bad = {f"cut.{name}": contents[: len(contents) // 2] for name, contents in alike.items()}
    bad |= {"empty.webp": b"", "page.avif": b"<html>404</html>"}
    alike |= _turned(pixels) | _transparent(pixels)
    if has_heif():
        alike["same.heic"] = _save(pixels, "HEIF", **_HEIF)
    for name in ("no suffix", "SHOUTED.PNG", "sub/deep/\u00e9t\u00e9 \u2600.png", "a\nb.png"):
        alike[name] = alike["same.png"]
    jpeg = encode(pixels, "JPEG", quality=90)
    others = {"a.jfif": jpeg, "b.JPE": jpeg, "c.jpeg": jpeg, "d.avif": encode(pixels, "AVIF")}
    passed = ["Thumbs.db", "film.mov", "notes.txt", ".hidden.png", "@eaDir/same.png"]
    files = alike | others | bad | dict.fromkeys(passed, alike["same.png"])
    for name, contents in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents)
    (folder / "link.png").symlink_to("same.png")
    (folder / "again").symlink_to("sub")
    reasons = dict.fromkeys(bad, "broken or cut short")
    reasons |= {"empty.webp": "empty file", "page.avif": "no JPEG, PNG"}
    return sorted([*alike, "link.png"]), sorted(others), reasons


def _of_few_colors(photo):
    """A picture that a GIF holds, with a white frame for what is transparent."""
    image = PIL.Image.fromarray(photo).resize(SIZE).quantize(_COLORS).convert("RGB")
    pixels = np.array(image)
    pixels[:4] = 255
    return pixels


def _save(pixels, kind, **options):
    file = io.BytesIO()
    image = PIL.Image.fromarray(pixels)
    if kind == "GIF":
        image = image.quantize(256)
        assert (np.asarray(image.convert("RGB")) == pixels).all()
    image.save(file, kind, **options)
    return file.getvalue()


def _turned(pixels):
    """Files whose pixels lie on their side, and say so: each kind in eight orientations."""
    found = {}
    for value in range(1, 9):
        turned = pixels
        if value in (2, 3, 6, 7):
            turned = turned[:, ::-1]
        if value in (3, 4, 7, 8):
            turned = turned[::-1]
        if value > 4:
            turned = turned.swapaxes(0, 1)
        data = PIL.Image.Exif()
        data[0x0112] = value
        raw = b"Exif\0\0" + exif_data(value, "<>"[value % 2])
        for suffix, kind, exif, options in [
            ("png", "PNG", raw, {}), ("webp", "WEBP", raw, _WEBP), ("tif", "TIFF", data, {}),
        ]:  # fmt: skip
            found[f"turned {value}.{suffix}"] = _save(turned, kind, exif=exif, **options)
        if has_heif() and value == 6:
            found["turned 6.heic"] = _save(turned, "HEIF", exif=raw, **_HEIF)
    return found


def _transparent(pixels):
    """Files whose white frame is transparent, with other colors under it."""
    white = (pixels == 255).all(-1, keepdims=True)
    found = {}
    for name, hidden in (("black", 0), ("noise", pixels[::-1, ::-1] // 2)):
        colors = np.where(white, hidden, pixels).astype(np.uint8)
        cut = np.concatenate([colors, np.where(white, 0, 255).astype(np.uint8)], -1)
        for suffix, kind, options in [
            ("png", "PNG", {}),
            ("webp", "WEBP", _WEBP),
            ("tif", "TIFF", {}),
        ]:
            found[f"{name} under.{suffix}"] = _save(cut, kind, **options)
    places = np.asarray(PIL.Image.fromarray(pixels).quantize(256))
    palette = PIL.Image.fromarray(pixels).quantize(256)
    for suffix in ("gif", "png"):
        file = io.BytesIO()
        palette.save(file, suffix, transparency=int(places[0, 0]))
        found[f"palette under.{suffix}"] = file.getvalue()
    return found
