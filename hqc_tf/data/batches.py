"""Images in their order, in batches: what is encoded, and how images that are held are read."""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from hqc_tf.data import augment, decoding, features
from hqc_tf.data.formats.on_demand import FILE
from hqc_tf.data.images import Images

# Nothing here branches on tensors, and autograph's parsing of the source delays every start.
no_autograph = tf.autograph.experimental.do_not_convert


def plain_batches(
    images: Images, resize_size: int, size: int, batch_size: int
) -> Iterable[tf.Tensor]:
    """Yields plain views in order: float32 [b, size, size, 3] in [0, 1], or features [b, E]."""
    if images.features is not None:
        starts = tf.data.Dataset.range(0, len(images), batch_size)
        count = len(images)
        rows = starts.map(lambda start: tf.range(start, tf.minimum(start + batch_size, count)))
        read = feature_reader(images)
        return rows.map(lambda row: read(row, tf.zeros_like(row))).prefetch(2)
    if images.pixels is not None:
        held, views = images.pixels, _plain_views_of_pixels(resize_size, size)
    else:
        held, read = reader_of(images)
        views = _plain_views_of_files(read, resize_size, size)
    starts = range(0, len(images), batch_size)
    return made_ahead(lambda start: views(held[start : start + batch_size]), starts)


def raw_batches(images: Images, batch_size: int) -> tf.data.Dataset:
    """In-memory images in order: Dataset of uint8 [b, H, W, 3], cut from the array as needed."""
    starts = tf.data.Dataset.range(0, len(images), batch_size)
    pixels = tf.constant(images.pixels)
    return starts.map(lambda start: pixels[start : start + batch_size])


def read_pixels(images: Images, row: int) -> np.ndarray:
    """An image of a set, uint8 [H, W, 3]."""
    if images.pixels is not None:
        return images.pixels[row]
    held, read = reader_of(images.take([row]))
    return read(held[0]).numpy()


# Both are shared by all data sets of files, so that decoding is traced once.
_traced_once = tf.function(input_signature=[FILE], autograph=False)


@_traced_once
def _decode(contents):
    return decoding.decode_image(decoding.made_readable(contents))


@_traced_once
def read_image(path: tf.Tensor) -> tf.Tensor:
    """The file at string scalar `path`, of any format -> uint8 [H, W, 3]."""
    return _decode(tf.io.read_file(path))


def reader_of(images: Images) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """N images as they are held, and the function of one of them to uint8 [H, W, 3], in a graph."""
    if images.pixels is not None:
        return tf.constant(images.pixels), tf.identity
    if images.contents is not None:
        return tf.constant(images.contents.tolist(), tf.string), _decode
    # Names of files are bytes, not always text.
    return tf.constant([os.fsencode(path) for path in images.paths], tf.string), read_image


def feature_reader(images: Images) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A function of rows and views, int64 [b], to features, float32 [b, E], in a graph."""
    width = images.features.shape[1]

    @no_autograph
    def read(rows, views):
        found = tf.numpy_function(
            lambda chosen, view: features.gather(images, chosen, view), [rows, views], tf.float32
        )
        return tf.ensure_shape(found, [rows.shape[0], width])

    return read


# An iterator of tf.data optimizes and instantiates decoding anew, which takes longer than a few
# hundred images; these are instantiated once.
@functools.cache
def _plain_views_of_pixels(resize_size, size):
    """A function of uint8 [b, H, W, 3] to float32 [b, size, size, 3]."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)], autograph=False)
    def views(pixels):
        return augment.plain_view(pixels, resize_size, size)

    return views


@functools.cache
def _plain_views_of_files(read, resize_size, size):
    """A function of string [b] files, as `read` takes them, to float32 [b, size, size, 3]."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def views(files):
        return each_of(lambda file: augment.plain_view(read(file), resize_size, size), files, size)

    return views


def each_of(view: Callable, items: tuple | tf.Tensor, size: int) -> tf.Tensor:
    """The views, float32 [size, size, 3], of all items along their first axis, on all cores."""
    made = tf.TensorSpec([size, size, 3], tf.float32)
    cores = len(os.sched_getaffinity(0))
    return tf.map_fn(view, items, fn_output_signature=made, parallel_iterations=cores)


def made_ahead(make: Callable[[int], tf.Tensor], starts: Iterable[int]) -> Iterator[tf.Tensor]:
    """Yields what `make` gives for each start; the next is made while one is used."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        coming = None
        for start in starts:
            made, coming = coming, thread.submit(make, start)
            if made:
                yield made.result()
        if coming:
            yield coming.result()
