"""Features that somebody's network made, in place of images: a matrix in a file, and its views.

`features:DIR` is what `hqc_tf.embed` made of images: for each a row of the plain view, and rows of
random ones, of which a step of training takes two.

`features:FILE` is a .npy file of floats [N, E], or an Arrow (.arrow) or Parquet (.parquet) file
with a column of equally long lists of floats, as `tables` reads it. There a column `id` of strings
or whole numbers names the rows, and an integer column `label`, from 0 on, is for evaluation only;
without ids row r is `FILE:r`. The matrix stays on the disk, and a batch is read when it is needed.

A view of a row leaves some of its numbers out, which are then the mean of their column, and adds
noise.
"""

import functools
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from hqc_tf import files
from hqc_tf.data.features import shards
from hqc_tf.data.features.tables import read_table
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError, naming_damage

SUFFIXES = (".npy", ".arrow", ".parquet")
MOST_WIDTH = 4096
_FIX = "write it again"
# TensorFlow does not bring shorter rows to length one.
_LEAST_SQUARE = 1e-12
# Rows in memory at a time where all are read.
CHUNK = 2**14


def read(path: str) -> Images:
    """The rows of a file as `Images` of features.

    Raises:
        UserError: the file cannot be read, is cut short, or is no matrix of floats at most
            `MOST_WIDTH` wide; or a row has a number that is not finite, or only zeros.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"features:{path}: name a file that ends in {', '.join(SUFFIXES)}")
    with naming_damage(f"features:{path}", _FIX):
        files.open_regular(path).close()
        if suffix == ".npy":
            matrix, ids, labels = np.load(path, "r", allow_pickle=False), None, None
        else:
            matrix, ids, labels = read_table(path)
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or not 1 <= matrix.shape[1] <= MOST_WIDTH:
        raise UserError(
            f"features:{path}: holds {matrix.dtype} {[*matrix.shape]}; give floats [N, E], E at "
            f"most {MOST_WIDTH}"
        )
    if not len(matrix):
        raise UserError(f"features:{path}: has no row; give at least one")
    ids = ids or [f"{path}:{row}" for row in range(len(matrix))]
    images = Images.of_features(matrix, ids, labels)
    with np.errstate(over="ignore"):
        _check_rows(path, images)
    return images


def is_folder(name: str) -> bool:
    """Whether `features:name` is what `hqc_tf.embed` has written, not one file."""
    return pathlib.Path(name).is_dir()


class Folder(NamedTuple):
    """What `hqc_tf.embed` has written."""

    images: Images  # features of each image, once
    roles: np.ndarray  # uint8 [N], bits of `shards.ROLES`
    manifest: shards.Manifest

    def play(self, role: str) -> np.ndarray:
        """Rows of the images of a role."""
        return np.flatnonzero(self.roles >> shards.ROLES.index(role) & 1)


def read_folder(folder: str) -> Folder:
    """The features in a folder of `hqc_tf.embed`; UserError as `shards.read_shards` and `read`."""
    manifest, found = shards.read_shards(folder)
    matrix = shards.Matrix([one.vectors.reshape(-1, manifest.width) for one in found])
    ids = [name for one in found for name in one.ids]
    labeled = found[0].labels is not None
    labels = np.concatenate([one.labels for one in found]) if labeled else None
    own = labels, manifest.label_names, manifest.views, manifest.network
    images = Images.of_features(matrix, ids, *own)
    with np.errstate(over="ignore"):
        _check_rows(folder, images)
    return Folder(images, np.concatenate([one.roles for one in found]), manifest)


def _check_rows(path, images):
    for view in range(1 + images.feature_views):
        for number, rows in enumerate(batches(images, CHUNK, view)):
            if bad := bad_row(rows):
                row, kind = bad
                row += number * CHUNK
                name = f"{images.ids[row]}, view {view}," if images.feature_views else f"row {row}"
                raise UserError(f"features:{path}: {name} has {kind}; leave it out")


def bad_row(rows: np.ndarray) -> tuple[int, str] | None:
    """The first row of float [n, E] that is no feature, and what it has; None where all are."""
    # A sum of squares overflows where a number could not be normalized either.
    lengths = np.square(rows, dtype=np.float32).sum(axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths < _LEAST_SQUARE))
    if not len(bad):
        return None
    if np.isfinite(lengths[bad[0]]):
        return int(bad[0]), "a length below 1e-6" if rows[bad[0]].any() else "only zeros"
    return int(bad[0]), "a number that is not finite"


# The norm of the encoder and the views of a training want the same, and it reads every row.
@functools.lru_cache(maxsize=2)
def statistics(images: Images) -> tuple[np.ndarray, float]:
    """Mean float32 [E] and deviation, one number for all columns, of features of length one."""
    total, squares = 0.0, 0.0
    for rows in batches(images, CHUNK):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        total = total + unit.sum(axis=0, dtype=np.float64)
        squares += np.square(unit, dtype=np.float64).sum()
    mean = total / len(images)
    variance = squares / (len(images) * len(mean)) - np.square(mean).mean()
    return mean.astype(np.float32), float(np.sqrt(max(variance, 1e-12)))


def batches(images: Images, size: int, view: int = 0) -> Iterator[np.ndarray]:
    """Yields the features of a view in order, float32 [b, E]; 0 is the plain one."""
    for start in range(0, len(images), size):
        yield gather(images, np.arange(start, min(start + size, len(images))), view)


def digest(images: Images) -> str:
    """SHA-256 of all features, those of random views too, in hexadecimal."""
    found = hashlib.sha256()
    for view in range(1 + images.feature_views):
        for rows in batches(images, CHUNK, view):
            found.update(rows.data)
    return found.hexdigest()


def gather(images: Images, rows: np.ndarray, view: int | np.ndarray = 0) -> np.ndarray:
    """The features at int [n] `rows`, float32 [n, E], read from the disk in their order there.

    `view` is that of all, or int [n] of each; 0 is the plain one.
    """
    places = images.feature_rows[rows] + view
    order = np.argsort(places)
    found = np.empty([len(rows), images.features.shape[1]], np.float32)
    found[order] = images.features[places[order]]
    return found


class Draw(NamedTuple):
    """One random view of each of B rows."""

    uniform: tf.Tensor  # float [B, E] in [0, 1)
    normal: tf.Tensor  # float [B, E]
    choice: tf.Tensor  # float [B] in [0, 1), for `choose`


def draw(seed: tf.Tensor, shape: list[int]) -> Draw:
    """The `Draw` of a batch of this shape, a function of int [2] `seed` alone."""
    kept, noise, choice = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    return Draw(
        tf.random.stateless_uniform(shape, kept),
        tf.random.stateless_normal(shape, noise),
        tf.random.stateless_uniform(shape[:1], choice),
    )


def choose(choices: Sequence[tf.Tensor], views: int) -> list[tf.Tensor]:
    """Which stored view each of one or two views of B images begins with, int64 [B] each.

    Args:
        choices: float [B] in [0, 1) each, `Draw.choice`.
        views: how many random ones are stored, at least 2; or 0: all begin with the plain one.

    Returns:
        Numbers from 1 to `views`, two different ones for an image; or 0.
    """
    if not views:
        return [tf.zeros_like(one, tf.int64) for one in choices]
    first = tf.cast(choices[0] * views, tf.int64)
    apart = [1 + tf.cast(one * (views - 1), tf.int64) for one in choices[1:]]
    return [1 + place % views for place in [first, *(first + step for step in apart)]]


def view(rows: tf.Tensor, drawn: Draw, mean: tf.Tensor, dropout: float, noise: float) -> tf.Tensor:
    """Random views of features of length one.

    Args:
        rows: float [B, E], of any length.
        drawn: of these rows.
        mean: float [E], of unit rows: a number that is left out becomes its column's.
        dropout: share of the numbers that is left out.
        noise: deviation of what is added.

    Returns:
        float [B, E].
    """
    unit = tf.math.l2_normalize(rows, axis=1)
    return tf.where(drawn.uniform >= dropout, unit, mean) + noise * drawn.normal
