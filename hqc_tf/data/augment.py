"""Views of images: the random ones that training compares, and the plain one that is encoded.

Images are float32 [B, H, W, 3] in [0, 1] unless noted; the color operations take the three
channels as a list. Each operation takes parameters per image, which `draw` makes from a seed alone.
Source: torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale and
GaussianBlur, in this order, with the authors' settings.
"""

from typing import NamedTuple

import tensorflow as tf

CROP_TRIES = 10
JITTER_PROBABILITY = 0.8
LEAST_SIGMA = 0.1
LUMA = 0.2989, 0.587, 0.114

# Operations in the jitter's order.
BRIGHTNESS, CONTRAST, SATURATION, HUE_SHIFT, NOTHING = range(5)

Tensor = tf.Tensor
Channels = list[Tensor]


class Strength(NamedTuple):
    """How far views are from their image; the defaults are the authors'."""

    area: float = 0.08  # least area of the crop, as a fraction of the image
    ratio: float = 4 / 3  # most ratio of its sides, in either direction
    flip: float = 0.5  # probability of mirroring
    jitter: float = 0.4  # most change of brightness, contrast and saturation, as a factor
    hue: float = 0.1  # most shift of the hue, in turns
    gray: float = 0.2  # probability of losing color
    sigma: float = 2.0  # most sigma of the blur, in pixels


AUTHORS = Strength()


class Draw(NamedTuple):
    """One random view of each of B images."""

    crop: Tensor  # float [B, 2 * CROP_TRIES + 2] in [0, 1), for `crop_boxes`
    flip: Tensor  # bool [B], mirrored left to right
    order: Tensor  # int32 [B, 4], the jitter's operations in order; NOTHING in all four: no jitter
    factors: Tensor  # float [B, 4], of brightness, contrast, saturation, and hue's shift in turns
    gray: Tensor  # bool [B]
    sigma: Tensor  # float [B], of the blur, in pixels


class Boxes(NamedTuple):
    """Whole-pixel rectangles, int32 [B] each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def draw(seed: Tensor, batch_size: int, strength: Strength = AUTHORS) -> Draw:
    """Parameters of one view of each of `batch_size` images.

    Row i is a function of int [2] `seed` and of i alone: a larger batch begins with the same rows.
    """
    columns = 2 * CROP_TRIES + 2
    uniform = tf.random.stateless_uniform([batch_size, columns + 12], seed)
    crop, chances, ranks, factors = tf.split(uniform, [columns, 4, 4, 4], axis=1)
    flip, jitter, gray, sigma = tf.unstack(chances, axis=1)
    order = tf.where(jitter[:, None] < JITTER_PROBABILITY, tf.argsort(ranks), NOTHING)
    spread = tf.constant([*3 * [strength.jitter], strength.hue])
    middle = tf.constant([1.0, 1.0, 1.0, 0.0])
    return Draw(
        crop=crop,
        flip=flip < strength.flip,
        order=order,
        factors=middle + spread * (2 * factors - 1),
        gray=gray < strength.gray,
        sigma=_between(sigma, LEAST_SIGMA, strength.sigma),
    )


def crop_boxes(
    uniform: Tensor, height: int | Tensor, width: int | Tensor, strength: Strength = AUTHORS
) -> Boxes:
    """RandomResizedCrop's boxes: a uniform area of the image, a log-uniform ratio of the sides.

    The first of ten tries that fits is taken; else the largest centered box of a permitted ratio.

    Args:
        uniform: `Draw.crop`.
        height, width: of the images in pixels, int scalar or [B].
        strength: its `area` and `ratio` count.
    """
    full_h, full_w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    tries = uniform[:, : 2 * CROP_TRIES]
    area = _between(tries[:, ::2], strength.area, 1.0) * tf.reshape(full_h * full_w, [-1, 1])
    most = strength.ratio
    ratio = tf.exp(_between(tries[:, 1::2], *(tf.math.log(r) for r in (1 / most, most))))
    tried_w, tried_h = tf.round(tf.sqrt(area * ratio)), tf.round(tf.sqrt(area / ratio))
    fits_w = (tried_w > 0) & (tried_w <= tf.reshape(full_w, [-1, 1]))
    fits = fits_w & (tried_h > 0) & (tried_h <= tf.reshape(full_h, [-1, 1]))
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1)
    found = tf.reduce_any(fits, axis=1)
    box_w = tf.where(found, tf.gather(tried_w, first, batch_dims=1), _limit(full_w, most * full_h))
    box_h = tf.where(found, tf.gather(tried_h, first, batch_dims=1), _limit(full_h, most * full_w))
    place_h, place_w = uniform[:, -2], uniform[:, -1]
    top = tf.where(found, place_h * (full_h - box_h + 1), (full_h - box_h) / 2)
    left = tf.where(found, place_w * (full_w - box_w + 1), (full_w - box_w) / 2)
    return Boxes(*(tf.cast(x, tf.int32) for x in (tf.floor(top), tf.floor(left), box_h, box_w)))


@tf.function(jit_compile=True, autograph=False)
def crop(images: Tensor, boxes: Boxes, flip: Tensor, size: int) -> Tensor:
    """Cuts a box out of each image, mirrors it where bool [B] `flip` is true and resizes it.

    Float [B, H, W, 3] -> [B, size, size, 3]. Bilinear with anti-aliasing, pixels outside the box
    unused, as `crop_one`. Resampling is a matrix per image and axis, so a batch takes two matrix
    products.
    """
    rows = _resampling(boxes.top, boxes.height, size, images.shape[1])
    columns = _resampling(boxes.left, boxes.width, size, images.shape[2])
    columns = tf.where(flip[:, None, None], columns[:, ::-1], columns)
    return tf.einsum("bih,bhwc,bjw->bijc", rows, images, columns)


def crop_one(image: Tensor, box: Boxes, flip: Tensor, size: int) -> Tensor:
    """`crop` of a single image of any size, float [H, W, 3] -> [size, size, 3]."""
    cut = tf.slice(image, [box.top, box.left, 0], [box.height, box.width, 3])
    square = tf.image.resize(cut, [size, size], antialias=True)
    return tf.where(flip, square[:, ::-1], square)


def recolor(crops: Tensor, drawn: Draw) -> Tensor:
    """Color jitter, gray and blur of crops, float [B, H, W, 3]; the shape stays."""
    planes = _jitter_and_gray(crops, drawn.order, drawn.factors, drawn.gray)
    return tf.transpose(blur(planes, drawn.sigma), [1, 2, 3, 0])


# Compiled, an operation takes one pass over the pixels instead of ten. The blur is compiled apart:
# fused with these, it would compute the colors anew for each of its nine pixels.
@tf.function(jit_compile=True, autograph=False)
def _jitter_and_gray(images, order, factors, gray):
    """[B, H, W, 3] -> [3, B, H, W]."""
    channels = color_jitter(tf.unstack(images, axis=-1), order, factors)
    return tf.stack(grayscale(channels, gray))


def color_jitter(channels: Channels, order: Tensor, factors: Tensor) -> Channels:
    """Brightness, contrast, saturation and hue, in each image's own order.

    Brightness f: f x. Contrast f: f x + (1 - f) mean(gray(x)). Saturation f: f x + (1 - f) gray(x).
    Each is clipped to [0, 1]. Hue h: turns the hue by h of a full circle, at most half of one.

    Args:
        channels: red, green and blue, float [B, H, W] each, like the result.
        order, factors: those of a `Draw`.
    """
    for slot in range(4):
        operation = order[:, slot]
        blended = _blend(channels, operation, factors)
        turned = _turn_hue(channels, factors[:, HUE_SHIFT, None, None])
        is_hue = (operation == HUE_SHIFT)[:, None, None]
        channels = [tf.where(is_hue, t, b) for t, b in zip(turned, blended, strict=True)]
    return channels


def grayscale(channels: Channels, chosen: Tensor) -> Channels:
    """Gray where bool [B] `chosen` is true: 0.2989 R + 0.587 G + 0.114 B in all three channels."""
    gray = _gray(channels)
    return [tf.where(chosen[:, None, None], gray, channel) for channel in channels]


@tf.function(jit_compile=True, autograph=False)
def blur(planes: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of 3x3 pixels, mirrored at the border: weights exp(-d^2 / 2 sigma^2), sum 1.

    Float [3, B, H, W] -> the same, with float [B] `sigma` in pixels.
    """
    side = tf.exp(-0.5 / tf.square(sigma))[:, None, None]
    middle = 1 / (1 + 2 * side)
    side *= middle
    padded = tf.pad(planes, [[0, 0], [0, 0], [1, 1], [0, 0]], "REFLECT")
    planes = middle * planes + side * (padded[:, :, :-2] + padded[:, :, 2:])
    padded = tf.pad(planes, [[0, 0], [0, 0], [0, 0], [1, 1]], "REFLECT")
    return middle * planes + side * (padded[..., :-2] + padded[..., 2:])


def plain_view(images: Tensor, resize_size: int, size: int) -> Tensor:
    """The view that is encoded: shorter side to `resize_size`, then the center square.

    Uint8 or float in [0, 255], [H, W, 3] or [B, H, W, 3] -> float32 in [0, 1], [size, size, 3] or
    [B, size, size, 3]; both sizes in pixels, `resize_size` at least `size`.
    """
    height, width = tf.unstack(tf.shape(images)[-3:-1])
    shorter = tf.minimum(height, width)
    new = [resize_size * height // shorter, resize_size * width // shorter]
    resized = tf.image.resize(images, new, antialias=True) / 255.0
    # To even where the margin is odd, as torchvision's center crop rounds.
    top, left = (tf.cast(tf.round((side - size) / 2), tf.int32) for side in new)
    square = resized[..., top : top + size, left : left + size, :]
    return tf.ensure_shape(square, [*images.shape[:-3], size, size, 3])


def _between(uniform, low, high):
    return low + (high - low) * uniform


def _limit(side, most):
    """The longest length up to `side` that the ratio to the other side permits."""
    return tf.minimum(side, tf.round(most))


def _resampling(start, length, size, full):
    """[B, size, full]: row i holds the weights that make output pixel i from a box's pixels."""
    start, length = (tf.cast(x, tf.float32)[:, None, None] for x in (start, length))
    scale = length / size
    centers = start + scale * (tf.range(size, dtype=tf.float32)[:, None] + 0.5)
    pixels = tf.range(full, dtype=tf.float32)
    weights = tf.nn.relu(1 - tf.abs(pixels + 0.5 - centers) / tf.maximum(scale, 1.0))
    weights = tf.where((pixels >= start) & (pixels < start + length), weights, 0.0)
    return weights / tf.reduce_sum(weights, -1, keepdims=True)


def _gray(channels):
    return sum(weight * channel for weight, channel in zip(LUMA, channels, strict=True))


def _blend(channels, operation, factors):
    """One of the three blends per image: factor * x + (1 - factor) * level."""
    own = tf.gather(factors, tf.minimum(operation, SATURATION), batch_dims=1)
    factor = tf.where(operation <= SATURATION, own, 1.0)[:, None, None]
    operation = operation[:, None, None]
    gray = _gray(channels)
    level = tf.where(operation == CONTRAST, tf.reduce_mean(gray, [1, 2], keepdims=True), 0.0)
    level = tf.where(operation == SATURATION, gray, level)
    return [tf.clip_by_value(factor * x + (1 - factor) * level, 0.0, 1.0) for x in channels]


def _turn_hue(channels, turns):
    """Turns the hue as HSV has it, by at most half a circle.

    Hue runs here from 0 to 6 chroma instead of 0 to 1: no division, and gray is no special case.
    """
    red, green, blue = channels
    high = tf.maximum(tf.maximum(red, green), blue)
    low = tf.minimum(tf.minimum(red, green), blue)
    chroma = high - low
    hue = tf.where(high == green, 2 * chroma + blue - red, 4 * chroma + red - green)
    hue = tf.where(high == red, green - blue, hue)
    hue += 6 * turns * chroma
    hue = tf.where(hue < 0, hue + 6 * chroma, hue)
    hue = tf.where(hue > 6 * chroma, hue - 6 * chroma, hue)
    red = tf.abs(hue - 3 * chroma) - chroma
    green, blue = (2 * chroma - tf.abs(hue - peak * chroma) for peak in (2, 4))
    return [low + tf.clip_by_value(x, 0.0, chroma) for x in (red, green, blue)]
