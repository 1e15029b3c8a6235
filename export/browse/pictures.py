"""The files of an index's images: which may be opened, and small pictures of them.

An id reaches a file below the folder and nothing else, whatever links are in it and whoever changes
them meanwhile.
"""

import collections
import contextlib
import hashlib
import io
import os
import pathlib
import stat
import threading
import uuid
from collections.abc import Callable
from typing import BinaryIO

import PIL.Image
import tensorflow as tf

from hqc_tf import files
from hqc_tf.data import decoding
from hqc_tf.data.folder import MAX_FILE_BYTES
from hqc_tf.data.formats.converted import HEAD_BYTES
from hqc_tf.errors import UserError

# Of the longer side of a small picture, in pixels, and JPEG's quality of it.
SIDE, QUALITY = 256, 82
# Of files of over `decoding.LARGE_PIXELS` one is decoded at a time.
_LARGE = threading.Lock()


class Missing(UserError):
    """An image of the index has no file that may be shown."""


class Folder:
    """The folder of an index's files.

    Args:
        root: of the folder.
        name_of: gives an id's name below it; None where it is the id of another folder's image.
    """

    def __init__(
        self, root: str | os.PathLike, name_of: Callable[[str], str | None] = lambda name: name
    ):
        self._root, self._name_of = pathlib.Path(root).resolve(), name_of

    def open(self, name: str) -> tuple[BinaryIO, str]:
        """An image file and its type, such as image/png; `Missing` where it may not be shown.

        Refused are names that lead out of the folder, also by links, pipes and devices, files that
        are too large, and those that do not begin as an image does.
        """
        try:
            below = self._name_of(name)
            if below is None or "\0" in below or pathlib.PurePath(below).is_absolute():
                raise FileNotFoundError
            file = files.open_regular(self._root / below)
        except (OSError, ValueError) as error:
            raise Missing(f"{name}: no such file in the folder of images") from error
        try:
            # Of the file that was opened, not of what the name means by now.
            real = pathlib.Path(f"/proc/self/fd/{file.fileno()}").readlink()
            if not real.is_relative_to(self._root):
                raise Missing(f"{name}: no such file in the folder of images")
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise Missing(f"{name}: larger than {MAX_FILE_BYTES} bytes")
            kind = decoding.format_of(os.pread(file.fileno(), HEAD_BYTES, 0))
            if not kind:
                raise Missing(f"{name}: no {decoding.NAMES} image")
            return file, f"image/{kind.lower()}"
        except BaseException:
            file.close()
            raise


class Thumbnails:
    """Small JPEGs of the images in a folder, made when they are wanted and kept on the disk.

    Args:
        folder: of the images.
        cache: folder to keep them in; what other programs put there is left alone.
        most_bytes: that are kept; those that were not wanted for longest go first.
    """

    def __init__(self, folder: Folder, cache: str | os.PathLike, most_bytes: int):
        self._folder, self._cache, self._most = folder, pathlib.Path(cache), most_bytes
        self._cache.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        kept = [(file.stat(), file.name) for file in self._cache.glob("*.thumb")]
        kept = [(s.st_mtime, n, s.st_size) for s, n in kept if stat.S_ISREG(s.st_mode)]
        self._sizes = collections.OrderedDict((name, size) for _, name, size in sorted(kept))
        self._bytes = sum(self._sizes.values())
        self._forget()

    def of(self, name: str) -> bytes:
        """The JPEG of an image; `Missing` where there is none, or it cannot be decoded."""
        file, _ = self._folder.open(name)
        with file:
            found = os.fstat(file.fileno())
            key = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {SIDE}"
            key += f" {decoding.VERSION}"
            path = self._cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.thumb"
            try:
                jpeg = path.read_bytes()
            except OSError:
                with _LARGE if _is_large(file) else contextlib.nullcontext():
                    file.seek(0)
                    jpeg = make_small(name, file.read())
                self._keep(path, jpeg)
        with self._lock:
            if path.name in self._sizes:
                self._sizes.move_to_end(path.name)
        return jpeg

    def _keep(self, path, jpeg):
        # Two requests may make the same one at once.
        aside = path.with_name(f".{uuid.uuid4().hex}")
        try:
            aside.write_bytes(jpeg)
            aside.replace(path)
        except OSError:
            # It is made again, where the disk is full.
            aside.unlink(missing_ok=True)
            return
        with self._lock:
            self._bytes += len(jpeg) - self._sizes.pop(path.name, 0)
            self._sizes[path.name] = len(jpeg)
            self._forget()

    def _forget(self):
        while self._bytes > self._most:
            oldest, size = self._sizes.popitem(last=False)
            self._bytes -= size
            (self._cache / oldest).unlink(missing_ok=True)


def make_small(name: str, contents: bytes) -> bytes:
    """A small JPEG of an image file; `Missing`, with its name, where it cannot be decoded.

    The first call takes seconds.
    """
    try:
        picture = PIL.Image.fromarray(_decode(decoding.readable(contents)).numpy())
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:
        raise Missing(f"{name}: {decoding.why_refused(contents)}") from error
    except ValueError as error:
        raise Missing(f"{name}: {error}") from error
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=QUALITY)
    return file.getvalue()


def _is_large(file):
    """Whether the image of an open file has many pixels, or Pillow cannot tell."""
    try:
        width, height = PIL.Image.open(file).size
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return True
    return width * height > decoding.LARGE_PIXELS


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _decode(contents):
    return decoding.decode_image(contents)
