"""Images and their batches: data sets through TFDS, folders of files, and the two views of a step.

What a step sees is a function of the step alone (its number and the seed): a run that starts again
in the middle reads on exactly where it was, and nothing has to be replayed.
"""

import functools
import os
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from hqc_tf import augment, decoding, folders, photo_sets
from hqc_tf.config import UserError

# Nothing here branches on tensors, and autograph's reading of the source delays every start.
no_autograph = tf.autograph.experimental.do_not_convert

# One in so many images of a labelled folder, in the order of names, is a query.
FOLDER_QUERY_EVERY = 10
ROLES = ("train", "database", "query")
CIFAR10_PROTOCOLS = ("cifar10_protocol1", "cifar10_protocol2")
_QUERIES_PER_CLASS, _TRAIN_PER_CLASS = 1000, 500
# Of the images kept from training, how they are changed: away from every step's seed.
_HELD_OUT_SEED = -1
_READ_BATCH = 250
_FEATURES = {"image": tf.string, "label": tf.int64}


class Images(NamedTuple):
    """A set of images, in memory or as files.

    Attributes:
      pixels: uint8 [N, H, W, 3], or None where the images are files.
      paths: N file names, or None where the pixels are in memory.
      ids: N names by which search results tell images apart.
      labels: int [N], or uint8 [N, C] of 0 and 1 where an image has several, or None where nothing
        is known; only evaluation looks at them.
      label_names: name of each label, or None.
    """

    pixels: np.ndarray | None
    paths: list | None
    ids: list
    labels: np.ndarray | None
    label_names: list | None

    def __len__(self):
        return len(self.ids)

    def take(self, rows):
        """The images at int [n] `rows`."""
        return Images(
            pixels=None if self.pixels is None else self.pixels[rows],
            paths=None if self.paths is None else [self.paths[row] for row in rows],
            ids=[self.ids[row] for row in rows],
            labels=None if self.labels is None else self.labels[rows],
            label_names=self.label_names,
        )


def load_split(dataset, role, data_dir="", rejected=frozenset()):
    """The images that play a role in the benchmark of `--dataset`.

    For `fashion_mnist` and `cifar10` the official train split is learned from and searched, the
    test split asks. Of CIFAR-10's 60,000 images pooled, in protocols I and II 1,000 of each class
    ask and the others are searched; protocol I learns from all of these, protocol II from 500 of
    each class. For `flickr25k` and `nuswide` see `photo_sets`. In a folder with sub-folders for
    labels every tenth image asks and the others are learned from and searched; in one without, all
    are learned from and there is no query.

    Args:
      dataset: `--dataset`.
      role: "train" (learned from), "database" (searched) or "query" (asks).
      data_dir: where prepared TFDS data lies; empty: TFDS's own place.
      rejected: ids of images of a folder that are left out, as if they were not there.

    Returns:
      `Images`, or None for the queries of images without labels.

    Raises:
      UserError: unknown data set, not prepared, no such folder, no image in it.
    """
    if dataset.startswith("folder:"):
        return _folder_split(_read_folder(_root(dataset), rejected), role)
    if dataset in photo_sets.PHOTO_SETS:
        photos = photo_sets.read_list(dataset, role, data_dir)
        return Images(None, photos.paths, photos.ids, photos.labels, None)
    if dataset in CIFAR10_PROTOCOLS:
        return _cifar10_split(dataset, role, data_dir)
    return load_images(f"{dataset}/{'test' if role == 'query' else 'train'}", data_dir)


def hold_out(images, count):
    """Divides training images into those learned from and those kept to choose weights by.

    Args:
      images: `Images` of the role "train".
      count: how many are kept, `--held_out`; of fewer than ten times as many images, a tenth is.

    Returns:
      (learned, held), `Images` each; the same division for every seed.
    """
    learned, held = _divided(images, count)
    return images.take(learned), images.take(held)


def held_out(images, count):
    """The second of what `hold_out` returns, without a copy of the first."""
    _, held = _divided(images, count)
    return images.take(held)


def _divided(images, count):
    count = min(count, len(images) // 10)
    shuffled = np.random.RandomState(0).permutation(len(images))
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


def protocol(dataset):
    """The name under which results on `--dataset` stand."""
    if dataset.startswith("folder:"):
        return f"folder, 1 in {FOLDER_QUERY_EVERY} asks"
    if dataset in photo_sets.PHOTO_SETS:
        return photo_sets.protocol(dataset)
    if dataset in CIFAR10_PROTOCOLS:
        return f"cifar10 protocol {'I' * int(dataset[-1])}"
    return f"{dataset} official"


def load_images(dataset, data_dir=""):
    """One set of images: `folder:PATH`, or `name` or `name/split` of a data set.

    A split of a TFDS data set may be a slice in TFDS's form, such as `cifar10/test[:500]`, and is
    `train` where none is given. Of CIFAR-10's protocols, FLICKR25K and NUS-WIDE it is a role of
    `load_split`, and `database` where none is given.

    Raises:
      UserError: unknown data set or split, not prepared, no such folder, no image in it.
    """
    if dataset.startswith("folder:"):
        return _read_folder(_root(dataset))
    name, _, split = dataset.partition("/")
    if name in (*photo_sets.PHOTO_SETS, *CIFAR10_PROTOCOLS):
        role = split or "database"
        if role not in ROLES:
            raise UserError(f"split {role} of {name}: unknown; take one of {', '.join(ROLES)}")
        return load_split(name, role, data_dir)
    return _read_tfds(name, split or "train", data_dir)


def training_views(images, config, first_step, last_step, context=None):
    """The batches of steps `first_step` up to `last_step`: a tf.data.Dataset of two views.

    Each replica has its rows of a step's batch, and what is in a row does not depend on the number
    of replicas.

    An epoch goes through the images in a shuffled order of its own and drops the rest that fills no
    batch.

    Args:
      images: `Images`.
      config: `Config`; its batch_size, image_size, augment_on and seed are read.
      first_step, last_step: steps counted from the start of the run, from 0.
      context: the tf.distribute.InputContext of this process, whose replicas take elements in turn;
        None: there is one replica.

    Returns:
      Dataset of (view_a, view_b), float32 [b, size, size, 3] in [0, 1], b a replica's share of the
      global batch; with augment_on="device", of ((crop_a, crop_b), (draw_a, draw_b)), which
      `augment.recolor` makes views of.

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
        draws = [augment.draw(seed, batch) for seed in seeds]
        return rows, tf.nest.map_structure(lambda drawn: tf.gather(drawn, places), tuple(draws))

    elements = tf.data.Dataset.range(own * first_step, own * last_step).map(plan)
    batches = _crops(elements, images, share, config.image_size)
    if config.augment_on == "host":
        batches = batches.map(recolor_views, num_parallel_calls=tf.data.AUTOTUNE)
    # The first batch is made while the step is traced, not after.
    options = tf.data.Options()
    options.experimental_warm_start = True
    # Two ahead: an automatic number grows until it fills memory, and takes cores from the step.
    return batches.prefetch(2).with_options(options)


def shuffled_rows(places, count, seed, epoch):
    """Rows that stand at int64 [b] `places` of the shuffled order of `count` images in an epoch."""
    # `tf.random.experimental.index_shuffle` takes four rounds, after which the images of a batch
    # meet again in other epochs: of a million images 7 times as often as by chance.
    last = tf.constant(count - 1, tf.int64)
    return tf.raw_ops.RandomIndexShuffle(
        index=places, seed=tf.stack([0, seed, epoch]), max_index=last, rounds=8
    )


def changed_views(images, config):
    """Each of the images as training changes it: a tf.data.Dataset of float32 [b, size, size, 3].

    In the order of the images, by draws that are the same for every seed and step. All batches have
    the size of training's, so that what is compiled for it serves here; the last one goes on with
    the first images.
    """
    batch = config.batch_size

    @no_autograph
    def plan(step):
        rows = (step * batch + tf.range(batch, dtype=tf.int64)) % len(images)
        return rows, (augment.draw(tf.stack([_HELD_OUT_SEED, step]), batch),)

    steps = tf.data.Dataset.range(-(-len(images) // batch)).map(plan)
    crops = _crops(steps, images, batch, config.image_size)

    @no_autograph
    def recolor_view(crops, draws):
        return augment.recolor(crops[0], draws[0])

    return crops.map(recolor_view, num_parallel_calls=tf.data.AUTOTUNE)


@no_autograph
def recolor_views(crops, draws):
    """Crops and draws of two views, as with augment_on="device" -> (view_a, view_b)."""
    return tuple(map(augment.recolor, crops, draws))


def steps_per_epoch(images, config):
    """Whole batches in one pass over `images`; UserError where there is none."""
    if len(images) < config.batch_size:
        raise UserError(
            f"--batch_size={config.batch_size}: there are only {len(images)} images to learn from; "
            "lower it or add images"
        )
    return len(images) // config.batch_size


def plain_batches(images, resize_size, size, batch_size):
    """The images in order as they are encoded: Dataset of float32 [b, size, size, 3] in [0, 1]."""

    @no_autograph
    def view(pixels):
        return augment.plain_view(pixels, resize_size, size)

    if images.paths is None:
        batches = raw_batches(images, batch_size)
        return batches.map(view, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
    files = tf.data.Dataset.from_tensor_slices(_in_bytes(images.paths))
    views = files.map(lambda path: view(read_image(path)), num_parallel_calls=tf.data.AUTOTUNE)
    return views.batch(batch_size).prefetch(2)


def raw_batches(images, batch_size):
    """In-memory images in order: Dataset of uint8 [b, H, W, 3], cut from the array as needed."""
    starts = tf.data.Dataset.range(0, len(images), batch_size)
    pixels = tf.constant(images.pixels)
    return starts.map(lambda start: pixels[start : start + batch_size])


# Every data set of files has it, and none traces the decoding anew.
@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def read_image(path):
    """The file at string scalar `path` -> uint8 [H, W, 3], as `decoding.decode_image`."""
    return decoding.decode_image(tf.io.read_file(path))


def _in_bytes(paths):
    # Names of files are bytes, not always text.
    return tf.constant([os.fsencode(path) for path in paths])


def _crops(steps, images, batch, size):
    """(rows, draws of each view) of `batch` images -> (crops of each view, the draws)."""
    cut = _crops_of_pixels if images.paths is None else _crops_of_files
    return cut(steps, images, batch, size)


def _crops_of_pixels(steps, images, batch, size):
    pixels = tf.constant(images.pixels)
    height, width = images.pixels.shape[1:3]

    @no_autograph
    def cut(rows, drawn):
        batch_pixels = tf.cast(tf.gather(pixels, rows), tf.float32) / 255.0
        return tuple(
            augment.crop(batch_pixels, augment.crop_boxes(d.crop, height, width), d.flip, size)
            for d in drawn
        ), drawn

    return steps.map(cut, num_parallel_calls=tf.data.AUTOTUNE)


def _crops_of_files(steps, images, batch, size):
    paths = _in_bytes(images.paths)

    @no_autograph
    def cut(row, drawn):
        image = tf.cast(read_image(paths[row]), tf.float32) / 255.0
        height, width = tf.unstack(tf.shape(image)[:2])
        crops = []
        for d in drawn:
            box = augment.Boxes(
                *(side[0] for side in augment.crop_boxes(d.crop[None], height, width))
            )
            crops.append(augment.crop_one(image, box, d.flip, size))
        return tuple(crops), drawn

    items = steps.unbatch().map(cut, num_parallel_calls=tf.data.AUTOTUNE)
    return items.batch(batch, drop_remainder=True)


def _cifar10_split(protocol_name, role, data_dir):
    pooled = _cifar10_pooled(data_dir)
    # Places within an image's class, in the order that FLICKR25K's split has its queries from.
    order = np.random.RandomState(2022).permutation(len(pooled))
    by_class = order[np.argsort(pooled.labels[order], kind="stable")]
    counts = np.bincount(pooled.labels)
    places = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = places < _QUERIES_PER_CLASS if role == "query" else places >= _QUERIES_PER_CLASS
    if role == "train" and protocol_name == "cifar10_protocol2":
        chosen &= places < _QUERIES_PER_CLASS + _TRAIN_PER_CLASS
    return pooled.take(np.sort(by_class[chosen]))


def _cifar10_pooled(data_dir):
    train, test = (_read_tfds("cifar10", split, data_dir) for split in ("train", "test"))
    return Images(
        pixels=np.concatenate([train.pixels, test.pixels]),
        paths=None,
        ids=train.ids + test.ids,
        labels=np.concatenate([train.labels, test.labels]),
        label_names=train.label_names,
    )


def open_tfds(name, split, data_dir=""):
    """The builder of a prepared data set of TFDS, and the pieces of its files that `split` is.

    Returns:
      (builder, list of TFDS's FileInstruction); a split has its images in the order of the pieces.

    Raises:
      UserError: TFDS knows none of this name, it is not prepared, or has no such split.
    """
    # TFDS takes seconds to import, and a folder of files does not need it.
    import tensorflow_datasets as tfds

    where = data_dir or "TFDS's own place"
    mend = (
        f"`python -m hqc_tf.prepare --dataset={name} --data_dir=DIR` makes it, or --data_dir "
        "names where it is"
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(f"dataset {name}: TFDS knows none of this name; take another") from error
    if not builder.is_prepared():
        raise UserError(f"dataset {name}: not prepared in {where}; {mend}")
    try:
        return builder, builder.info.splits[split].file_instructions
    except ValueError as error:
        raise UserError(f"split {split} of {name}: {error}; take one that it has") from error


@functools.lru_cache(maxsize=2)
def _read_tfds(name, split, data_dir):
    builder, pieces = open_tfds(name, split, data_dir)
    read = [_read_records(piece) for piece in pieces]
    pixels, labels = (np.concatenate(parts) for parts in zip(*read, strict=True))
    ids = [f"{name}/{split}/{row:05d}" for row in range(len(pixels))]
    return Images(pixels, None, ids, labels, builder.info.features["label"].names)


def _read_records(piece):
    """Images of one size, uint8 [n, H, W, 3], and their labels, from a TFRecord file of TFDS.

    TFDS's own reader takes the examples apart one by one; in batches it is six times faster.
    """
    features = {name: tf.io.FixedLenFeature([], kind) for name, kind in _FEATURES.items()}
    uniform = tf.TensorSpec([None, None, 3], tf.uint8)

    def parse(records):
        examples = tf.io.parse_example(records, features)
        images = tf.map_fn(decoding.decode_known, examples["image"], fn_output_signature=uniform)
        return images, examples["label"]

    records = tf.data.TFRecordDataset(piece.filename).skip(piece.skip).take(piece.take)
    batches = records.batch(_READ_BATCH).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _root(dataset):
    return pathlib.Path(dataset.removeprefix("folder:"))


def _read_folder(root, rejected=frozenset()):
    if not root.is_dir():
        raise UserError(f"folder:{root}: no such folder; name one that holds images")
    found = [name for name in folders.walk(root) if (root / name).is_file()]
    ids = [name for name in found if name not in rejected]
    if not ids:
        bad = f" ({len(found)} files that cannot be decoded)" if found else ""
        raise UserError(
            f"folder:{root}: no image in it or below{bad}; put {', '.join(folders.SUFFIXES)} "
            "files there"
        )
    paths = [str(root / name) for name in ids]
    tops = [name.partition("/")[0] for name in ids]
    if any("/" not in name for name in ids) or len(set(tops)) < 2:
        return Images(None, paths, ids, None, None)
    names, labels = np.unique(tops, return_inverse=True)
    return Images(None, paths, ids, labels, names.tolist())


def _folder_split(images, role):
    if images.labels is None or len(images) < FOLDER_QUERY_EVERY:
        return None if role == "query" else images
    asks = np.arange(len(images)) % FOLDER_QUERY_EVERY == FOLDER_QUERY_EVERY - 1
    return images.take(np.flatnonzero(asks if role == "query" else ~asks))
