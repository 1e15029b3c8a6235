"""Which pairs of images are copies, by their pixels: small once one is laid over the other.

An image is compared as a small square of its colors. One of a pair is scaled and shifted until it
fits the other (Lucas and Kanade 1981, with a scale and a shift along each side), so that a copy may
be cut at its edges; what is left of the difference decides. All pairs are aligned together.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy import ndimage

from hqc_tf.data.decoding import PARALLEL, decode_image, why_refused
from hqc_tf.data.folder import Item, in_batches, readable

SIDE = 32
# Sides of the squares that rule out most pairs, and the least squared distance of those ruled out.
ROUGH_SIDE, ROUGH_DISTANCE = 8, 0.5
# What a copy may differ by: levels of 255 anywhere, and pixels of a square by which it is shifted,
# which shows most at edges. In units of both, the root of the mean square of the worst part is at
# most so much; more where one had to be scaled or shifted by over SHIFTED.
LEVELS, PIXELS = 3.0, 0.3
MOST_DIFFERENT, MOST_DIFFERENT_SHIFTED, SHIFTED = 0.8, 1.8, 0.02
# What counts as contrast at least, in levels of 255: flat images are compared by their colors.
LEAST_CONTRAST = 8.0
# A copy that is cut at its edges has at least so much of each side, and shows nothing beyond the
# other but so much of half a side; else it is another window of the same scene.
LEAST_SHARED, BEYOND = 0.8, 0.06
_BATCH = 64
_STEPS, _BLURS = 6, (2.0, 1.0)
_PARTS = 8


class Small(NamedTuple):
    """What is kept of an image to compare it."""

    square: np.ndarray  # uint8 [SIDE, SIDE, 3]
    sides: np.ndarray  # int32 [2], height and width in pixels


def read_small(items: Iterable[Item]) -> Iterator[tuple[Item, Small | str]]:
    """Yields each image with its `Small`, or with why it cannot be read."""
    for batch in in_batches(readable(items), _BATCH):
        rows, squares, sides = _decode([item.contents for item in batch])
        found = {row: Small(*both) for row, *both in zip(rows, squares, sides, strict=True)}
        for row, item in enumerate(batch):
            yield item, found.get(row) or item.reason or why_refused(item.contents)


def rough(squares: np.ndarray) -> np.ndarray:
    """Vectors that are near each other where images may be copies.

    uint8 [n, SIDE, SIDE, 3] -> float32 [n, ROUGH_SIDE**2], gray, without mean and contrast.
    """
    gray = squares.astype(np.float32).mean(axis=3)
    step = SIDE // ROUGH_SIDE
    small = gray.reshape(len(gray), ROUGH_SIDE, step, ROUGH_SIDE, step).mean(axis=(2, 4))
    small = small.reshape(len(gray), -1)
    small -= small.mean(axis=1, keepdims=True)
    length = np.linalg.norm(small, axis=1, keepdims=True)
    return small / np.maximum(length, LEAST_CONTRAST * ROUGH_SIDE)


def may_be_copies(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether pairs of `rough` vectors, [P, R] each, are near: bool [P]."""
    return np.square(one - other).sum(axis=1) <= ROUGH_DISTANCE


def are_copies(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether pairs of squares, uint8 [P, SIDE, SIDE, 3] each, are of copies: bool [P]."""
    one, other = (squares.astype(np.float32) for squares in (one, other))
    found = _left_over(one, other, np.zeros([len(one), 4], np.float32)) <= MOST_DIFFERENT
    rest = np.flatnonzero(~found)
    if len(rest):
        one, other = one[rest], other[rest]
        warp = _align(one, other)
        is_shifted = np.abs(warp).max(axis=1) > SHIFTED
        most = np.where(is_shifted, MOST_DIFFERENT_SHIFTED, MOST_DIFFERENT)
        found[rest] = _left_over(one, other, warp) <= most
    return found


def _align(one, other):
    """Scale less 1 and shift along y and x, [P, 4], that lay `other` over `one`; halves are 1."""
    warp = np.zeros([len(one), 4], np.float32)
    y, x = np.meshgrid(*2 * [_PLACES], indexing="ij")
    for blur in _BLURS:
        fixed, moving = (_blurred(squares.mean(axis=3), blur) for squares in (one, other))
        # Per unit of the places, not per pixel.
        slopes = np.stack(np.gradient(moving, axis=(1, 2)), axis=3) * (SIDE / 2)
        for _ in range(_STEPS):
            layers, inside = _warped(np.concatenate([moving[..., None], slopes], axis=3), warp)
            down, right = layers[..., 1], layers[..., 2]
            effects = np.stack([down * y, down, right * x, right], axis=3) * inside[..., None]
            left = (fixed - layers[..., 0]) * inside
            normal = np.einsum("pyxi,pyxj->pij", effects, effects)
            normal += np.eye(4) * (1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1)
            wanted = np.einsum("pyxi,pyx->pi", effects, left)
            warp = warp + np.linalg.solve(normal, wanted[..., None])[..., 0]
            warp = np.clip(warp, LEAST_SHARED - 1, 1 / LEAST_SHARED - 1)
    return warp


# Centers of the pixels of a square whose half side is 1.
_PLACES = (np.arange(SIDE, dtype=np.float32) + 0.5) * (2 / SIDE) - 1


def _warped(layers, warp):
    """float [P, SIDE, SIDE, L] at scaled and shifted places, and which of them are inside."""
    weights, inside = [], []
    for axis in range(2):
        scale, shift = warp[:, 2 * axis, None], warp[:, 2 * axis + 1, None]
        at = (1 + scale) * _PLACES + shift
        pixel = (at + 1) * (SIDE / 2) - 0.5
        inside.append((at >= -1) & (at <= 1))
        # Linear interpolation, as the matrix [P, SIDE, SIDE] of each pixel's part in each place.
        pixel = np.clip(pixel, 0, SIDE - 1)
        weights.append(np.maximum(0, 1 - np.abs(pixel[..., None] - np.arange(SIDE))))
    rows, columns = (matrix.astype(np.float32) for matrix in weights)
    moved = rows @ layers.reshape(len(layers), SIDE, -1)
    moved = moved.reshape(layers.shape).swapaxes(1, 2).reshape(len(layers), SIDE, -1)
    moved = (columns @ moved).reshape(layers.shape).swapaxes(1, 2)
    return moved, inside[0][:, :, None] & inside[1][:, None, :]


def _left_over(one, other, warp):
    """What is left of a pair's difference in its worst part, [P], in what a copy may differ by.

    Infinite where neither image shows a part of the other.
    """
    one, other = _blurred(one, 0.6), _blurred(other, 0.6)
    layers, inside = _warped(other, warp)
    slopes = sum(np.square(slope).mean(axis=3) for slope in np.gradient(one, axis=(1, 2)))
    allowed = LEVELS**2 + PIXELS**2 * ndimage.uniform_filter(slopes * inside, (0, 3, 3))
    squared = np.square(one - layers).mean(axis=3) / allowed * inside
    of_parts, in_parts = (
        values.reshape(len(one), _PARTS, SIDE // _PARTS, _PARTS, -1).sum(axis=(2, 4))
        for values in (squared, inside)
    )
    worst = (of_parts / np.maximum(in_parts, (SIDE // _PARTS) ** 2 / 4)).max(axis=(1, 2))
    return np.where(_is_part(warp), np.sqrt(worst), np.inf)


def _is_part(warp):
    """Whether one of each pair shows a part of the other, or all of it: bool [P]."""
    scale, shift = 1 + warp[:, ::2], warp[:, 1::2]
    most = 1 + BEYOND
    within = (scale + np.abs(shift) <= most).all(axis=1)
    around = ((1 + np.abs(shift)) / scale <= most).all(axis=1)
    return within | around


def _blurred(squares, width):
    sigma = (0, width, width) + (0,) * (squares.ndim - 3)
    return ndimage.gaussian_filter(squares, sigma, mode="nearest")


def _decode(contents):
    """Rows of the files that can be decoded, their squares and their sides."""

    def small(row, file):
        image = decode_image(file)
        square = tf.image.resize(image, [SIDE, SIDE], tf.image.ResizeMethod.AREA)
        return row, tf.cast(tf.round(square), tf.uint8), tf.shape(image)[:2]

    files = tf.data.Dataset.from_tensor_slices(contents).enumerate()
    found = [*files.map(small, num_parallel_calls=PARALLEL).ignore_errors().as_numpy_iterator()]
    rows, squares, sides = zip(*found, strict=True) if found else ((), (), ())
    return rows, squares, sides
