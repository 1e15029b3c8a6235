"""The random views of images: the two of a training step, and those of images held out.

The images of a step are a function of its number and the seed alone, so a resumed run continues
exactly where it stopped without a replay.
"""

import functools
from collections.abc import Iterable

import tensorflow as tf

from hqc_tf.config import Config
from hqc_tf.data import augment, features
from hqc_tf.data.batches import each_of, feature_reader, made_ahead, no_autograph, reader_of
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError

# Seeds the views of held-out images; no step has this seed.
_HELD_OUT_SEED = -1
# Images whose numbered views are drawn together.
BLOCK = 64


def training_views(
    images: Images,
    config: Config,
    first_step: int,
    last_step: int,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """The two views of each batch of steps `first_step` up to `last_step`.

    Each replica has its rows of a step's batch; the content of a row does not depend on the number
    of replicas. Each epoch has its own shuffled order and drops the images after the last full
    batch.

    Args:
        images: the training images.
        config: batch_size, image_size, augment_on, seed and the strength of augmentation are read.
        first_step, last_step: counted from the start of the run, from 0; the last one exclusive.
        context: of this process, whose replicas take elements in turn; None: one replica.

    Returns:
        Dataset of (view_a, view_b), float32 [b, size, size, 3] in [0, 1], b a replica's share of
        the global batch; with augment_on="device", of the arguments of `recolor_views`. Of features
        float32 [b, E].

    Raises:
        UserError: fewer images than a batch takes.
    """
    per_epoch = steps_per_epoch(images, config)
    context = context or tf.distribute.InputContext()
    own = context.num_replicas_in_sync // context.num_input_pipelines
    batch = config.batch_size
    share = batch // context.num_replicas_in_sync

    @no_autograph
    def plan(element):
        step, replica = element // own, context.input_pipeline_id * own + element % own
        epoch, place = step // per_epoch, step % per_epoch
        places = replica * share + tf.range(share, dtype=tf.int64)
        rows = shuffled_rows(place * batch + places, len(images), config.seed, epoch)
        seeds = tf.stack([config.seed, 2 * step]), tf.stack([config.seed, 2 * step + 1])
        return rows, _draws(seeds, places, images, config)

    elements = tf.data.Dataset.range(own * first_step, own * last_step).map(plan)
    batches = _crops(elements, images, share, config)
    if config.augment_on == "host" and images.features is None:
        batches = batches.map(recolor_views, num_parallel_calls=tf.data.AUTOTUNE)
    # The first batch is made while the step is traced, not after.
    options = tf.data.Options()
    options.experimental_warm_start = True
    # Two ahead: an automatic number grows until it fills memory, and takes cores from the step.
    return batches.prefetch(2).with_options(options)


def shuffled_rows(places: tf.Tensor, count: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Rows at int64 [b] `places` of the shuffled order of `count` images in an epoch."""
    # `tf.random.experimental.index_shuffle` takes four rounds, after which the images of a batch
    # meet again in other epochs: of a million images 7 times as often as by chance.
    last = tf.constant(count - 1, tf.int64)
    return tf.raw_ops.RandomIndexShuffle(
        index=places, seed=tf.stack([0, seed, epoch]), max_index=last, rounds=8
    )


def changed_views(images: Images, config: Config) -> Iterable[tf.Tensor]:
    """Yields a training view of each image in order: float32 [b, size, size, 3], or of features.

    The draws are the same for every seed and step. Batches have training's size, so that its
    compiled functions serve here; the last one is filled with the first images.
    """
    batch, strength = config.batch_size, _strength(config)
    if images.features is None and images.pixels is None:
        held, read = reader_of(images)
        views = _changed_views_of_files(read, batch, config.image_size, strength)

        def make(start):
            rows = tf.range(start, start + batch) % len(images)
            return views(tf.gather(held, rows), start // batch)

        return made_ahead(make, range(0, len(images), batch))

    @no_autograph
    def plan(step):
        places = tf.range(batch, dtype=tf.int64)
        seeds = (tf.stack([_HELD_OUT_SEED, step]),)
        return (step * batch + places) % len(images), _draws(seeds, places, images, config)

    steps = tf.data.Dataset.range(-(-len(images) // batch)).map(plan)
    if images.features is not None:
        return _feature_views(steps, images, config).map(no_autograph(lambda view: view))
    views = _crops_of_pixels(steps, images, batch, config.image_size, strength)
    recolor = no_autograph(lambda crops, draws: augment.recolor(crops[0], draws[0]))
    return views.map(recolor, num_parallel_calls=tf.data.AUTOTUNE)


def numbered_views(
    images: Images, config: Config, first: int, last: int, count: int, batch_size: int
) -> tf.data.Dataset:
    """The plain view and random views 1 to `count` of images `first` to `last`, exclusive.

    A view is a function of the seed, the image's row and the view's number alone.

    Args:
        images: all images.
        config: as of `training_views`.
        first: a multiple of `BLOCK`.
        last: a row; the views of the image before it repeat until a batch is full.
        count: random views of an image.
        batch_size: views in a batch.

    Returns:
        Dataset of float32 [batch_size, size, size, 3], image after image.
    """
    views, strength = 1 + count, _strength(config)
    batches = -(-(last - first) * views // batch_size)
    needed = -(-batches * batch_size // views)
    held, read = reader_of(images.take(range(first, last)))

    @no_autograph
    def plan(block):
        rows = tf.minimum(block * BLOCK + tf.range(BLOCK, dtype=tf.int64), last - 1)
        own = tf.stack([tf.constant(config.seed, tf.int64), block])
        numbers = tf.unstack(tf.range(views, dtype=tf.int64))
        seeds = [tf.random.experimental.stateless_fold_in(own, view) for view in numbers]
        return rows, tuple(augment.draw(seed, BLOCK, strength) for seed in seeds)

    @no_autograph
    def cut(row, drawn):
        pixels = read(held[row - first])
        crops = _crops_of_file(pixels, drawn[1:], config.image_size, strength)
        plain = augment.plain_view(pixels, *config.plain_sizes)
        each = tf.nest.map_structure(lambda *values: tf.stack(values), *drawn)
        return tf.stack([plain, *crops]), each, tf.range(views) == 0

    @no_autograph
    def recolor(crops, drawn, is_plain):
        if not count:
            return crops
        return tf.where(is_plain[:, None, None, None], crops, augment.recolor(crops, drawn))

    blocks = tf.data.Dataset.range(first // BLOCK, -(-(first + needed) // BLOCK)).map(plan)
    items = blocks.unbatch().map(cut, num_parallel_calls=tf.data.AUTOTUNE)
    made = items.unbatch().batch(batch_size, drop_remainder=True).take(batches)
    return made.map(recolor).prefetch(1)


@no_autograph
def recolor_views(
    crops: tuple[tf.Tensor, tf.Tensor], draws: tuple[augment.Draw, augment.Draw]
) -> tuple[tf.Tensor, tf.Tensor]:
    """The two views, made of their crops and draws as augment_on="device" has them."""
    return tuple(map(augment.recolor, crops, draws))


def steps_per_epoch(images: Images, config: Config) -> int:
    """Full batches in one pass over `images`; UserError where there are too few images."""
    if len(images) < config.batch_size:
        raise UserError(
            f"--batch_size={config.batch_size}: there are only {len(images)} images to train on; "
            "lower it or add images"
        )
    return len(images) // config.batch_size


@functools.cache
def _changed_views_of_files(read, batch, size, strength):
    """A function of string [batch] files and a step to float32 [batch, size, size, 3]."""

    @tf.function(
        input_signature=[tf.TensorSpec([batch], tf.string), tf.TensorSpec([], tf.int64)],
        autograph=False,
    )
    def views(files, step):
        drawn = augment.draw(tf.stack([_HELD_OUT_SEED, step]), batch, strength)

        def cut(item):
            return _crops_of_file(read(item[0]), item[1:], size, strength)[0]

        return augment.recolor(each_of(cut, (files, drawn), size), drawn)

    return views


def _strength(c):
    """The augmentation that the settings `c` want."""
    return augment.Strength(
        c.crop_area, c.crop_ratio, c.flip_probability, c.jitter, c.hue_shift, c.gray_probability,
        c.blur_sigma,
    )  # fmt: skip


def _draws(seeds, places, images, config):
    """What makes a view with each of `seeds`, of the images at int `places` of a step's batch."""
    batch = config.batch_size
    if images.features is not None:
        shape = [batch, images.features.shape[1]]
        drawn = tuple(features.draw(seed, shape) for seed in seeds)
    else:
        drawn = tuple(augment.draw(seed, batch, _strength(config)) for seed in seeds)
    # A row's draws do not depend on how many replicas share the batch.
    return tf.nest.map_structure(lambda values: tf.gather(values, places), drawn)


def _crops(steps, images, batch, config):
    """Dataset of (rows, draws of each view) -> Dataset of (crops of each view, the draws).

    Of features -> Dataset of the views.
    """
    if images.features is not None:
        return _feature_views(steps, images, config)
    cut = _crops_of_files if images.pixels is None else _crops_of_pixels
    return cut(steps, images, batch, config.image_size, _strength(config))


def _feature_views(steps, images, config):
    mean, deviation = features.statistics(images)
    read = feature_reader(images)

    @no_autograph
    def views(rows, drawn):
        strength = config.feature_dropout, config.feature_noise * deviation
        places = features.choose([one.choice for one in drawn], images.feature_views)
        own = [read(rows, place) for place in (places if images.feature_views else places[:1])]
        pairs = zip(own * (len(drawn) // len(own)), drawn, strict=True)
        return tuple(features.view(row, one, mean, *strength) for row, one in pairs)

    return steps.map(views, num_parallel_calls=tf.data.AUTOTUNE)


def _crops_of_pixels(steps, images, batch, size, strength):
    pixels = tf.constant(images.pixels)
    height, width = images.pixels.shape[1:3]

    @no_autograph
    def cut(rows, drawn):
        batch_pixels = tf.cast(tf.gather(pixels, rows), tf.float32) / 255.0
        boxes = [augment.crop_boxes(d.crop, height, width, strength) for d in drawn]
        pairs = zip(boxes, drawn, strict=True)
        return tuple(augment.crop(batch_pixels, box, d.flip, size) for box, d in pairs), drawn

    return steps.map(cut, num_parallel_calls=tf.data.AUTOTUNE)


def _crops_of_file(pixels, drawn, size, strength):
    image = tf.cast(pixels, tf.float32) / 255.0
    height, width = tf.unstack(tf.shape(image)[:2])
    boxes = [augment.crop_boxes(d.crop[None], height, width, strength) for d in drawn]
    boxes = [augment.Boxes(*(side[0] for side in box)) for box in boxes]
    pairs = zip(boxes, drawn, strict=True)
    return tuple(augment.crop_one(image, box, d.flip, size) for box, d in pairs)


def _crops_of_files(steps, images, batch, size, strength):
    held, read = reader_of(images)

    @no_autograph
    def cut(row, drawn):
        return _crops_of_file(read(held[row]), drawn, size, strength), drawn

    items = steps.unbatch().map(cut, num_parallel_calls=tf.data.AUTOTUNE)
    return items.batch(batch, drop_remainder=True)
