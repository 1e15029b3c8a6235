"""Images to vectors of a frozen network, once: what `python -m hqc_tf.embed` is made of.

Training on the folder that it writes needs no network: `--dataset=features:DIR`.
"""

import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Callable, Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from hqc_tf import backbones, config, files
from hqc_tf.data import features
from hqc_tf.data.features import shards
from hqc_tf.data.screening import naming_a_bad_file
from hqc_tf.data.views import BLOCK, numbered_views
from hqc_tf.embed.plan import Plan, make_plan
from hqc_tf.errors import UserError, naming_a_full_disk
from hqc_tf.training import inputs

# Views that the network sees together.
BATCH = 64
# What a shard has at most, which is in memory until it is written.
SHARD_BYTES = 64 * 2**20


class Job(NamedTuple):
    """What the shards of a folder are made of."""

    apply: Callable[[tf.Tensor], tf.Tensor]  # vectors of views [`BATCH`, ...], by the network
    plan: Plan
    settings: config.Config
    manifest: shards.Manifest
    folder: pathlib.Path


def embed_dataset(
    settings: config.Config,
    output: str,
    views: int = 8,
    dtype: str = "float16",
    run: Callable[..., None] | None = None,
) -> shards.Manifest:
    """Writes the vectors of every image of a data set; stopped, the same call resumes.

    Args:
        settings: dataset, data_dir, on_bad_image, the image's sizes, the backbone, seed and the
            strength of augmentation are read.
        output: folder of shards; missing, empty, or begun by this function with the same settings;
            a folder of images may have moved since.
        views: random views of each image beside its plain one; 0, or at least 2.
        dtype: "float16" or "float32", of the numbers on the disk.
        run: writes the missing shards; default `embed_here`.

    Raises:
        UserError: the data or the backbone cannot be read, the backbone gives no usable vectors,
            `output` holds something else, or the disk is full.
    """
    files.check_folder_name(output, "--output=")
    if views == 1:
        raise UserError("--views=1: training compares two random views; give 0, or 2 and more")
    settings = inputs.from_anywhere(settings)
    folder = pathlib.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"--output={output}: another process is writing it; wait until it has ended"
    with files.sole_holder(folder / ".lock", refusal), naming_a_full_disk(folder):
        _check_empty(folder)
        network = build_network(settings)
        plan = make_plan(settings, folder)
        if warning := inputs.check_backbone(network, plan.images, settings):
            print(warning, file=sys.stderr)
        manifest = _describe(settings, plan, network, views, dtype)
        _begin(folder, manifest)
        if missing := _missing(folder, manifest):
            job = Job(traced(network), plan, settings, manifest, folder)
            (run or embed_here)(job, missing)
    return manifest


def count_shards(folder: str | PathLike) -> tuple[int, int]:
    """How many shards a folder of features has, and of how many; 0 and 0 before it is begun."""
    manifest = shards.read_manifest(folder)
    if manifest is None:
        return 0, 0
    return manifest.shards - len(_missing(folder, manifest)), manifest.shards


def build_network(settings: config.Config) -> tf.keras.Model:
    """The backbone of some settings, its random weights, if it has any, drawn from their seed."""
    tf.keras.mixed_precision.set_global_policy(settings.precision)
    tf.keras.utils.set_random_seed(settings.seed)
    c = settings
    own = c.backbone_width, c.image_size, c.backbone_weights, False, c.backbone_pixels
    return backbones.build_backbone(c.backbone, *own)


def bounds(manifest: shards.Manifest) -> list[tuple[int, int]]:
    """First and last row, exclusive, of each shard."""
    size = _images_per_shard(manifest.views, manifest.width, manifest.dtype)
    starts = range(0, manifest.images, size)
    return [(start, min(start + size, manifest.images)) for start in starts]


def traced(network: tf.keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """A network as a function of views."""
    return tf.function(lambda views: network(views, training=False))


def embed_here(job: Job, numbers: Sequence[int]) -> None:
    """Writes the shards `numbers` of a job in this process, with a bar of progress."""
    limits = bounds(job.manifest)
    total = sum(limits[number][1] - limits[number][0] for number in numbers)
    with tqdm.tqdm(total=total, unit=" images", disable=None) as progress:
        for number in numbers:
            progress.update(write_shard(job, number))


def write_shard(job: Job, number: int) -> int:
    """Embeds the images of a shard and writes it; returns how many they are.

    UserError where an image has no usable vector.
    """
    shard = _embed_shard(job, number)
    shards.write_shard(job.folder, number, job.manifest.shards, shard)
    return len(shard.ids)


def _missing(folder, manifest):
    count = manifest.shards
    return [number for number in range(count) if not shards.is_done(folder, number, count)]


def _embed_shard(job, number):
    apply, plan, settings, manifest, _ = job
    first, last = bounds(manifest)[number]
    shape = (last - first) * (1 + manifest.views), manifest.width
    vectors, done = np.empty(shape, manifest.dtype), 0
    views = numbered_views(plan.images, settings, first, last, manifest.views, BATCH)
    with naming_a_bad_file(plan.images.take(range(first, last))), np.errstate(over="ignore"):
        for batch in views:
            vectors[done : done + BATCH] = np.float32(apply(batch))[: shape[0] - done]
            done += BATCH
    _check(vectors, plan, first, manifest)
    rows = slice(first, last)
    labels = None if plan.images.labels is None else plan.images.labels[rows]
    own = vectors.reshape(last - first, 1 + manifest.views, manifest.width)
    return shards.Shard(plan.images.ids[rows], plan.roles[rows], labels, own)


def _check(vectors, plan, first, manifest):
    for start in range(0, len(vectors), features.CHUNK):
        if bad := features.bad_row(np.float32(vectors[start : start + features.CHUNK])):
            row, kind = bad
            image, view = divmod(start + row, 1 + manifest.views)
            fix = "give --dtype=float32" if manifest.dtype == "float16" else "leave the image out"
            raise UserError(
                f"{plan.images.ids[first + image]}, view {view}: its vector has {kind} in "
                f"{manifest.dtype}; {fix} and name another --output"
            )


def _check_empty(folder):
    own = {"files.jsonl", "rejects.jsonl"}
    if (folder / shards.MANIFEST).exists():
        return
    # Hidden ones are the lock, and what a killed process was writing.
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if others := sorted(names - own):
        raise UserError(f"--output={folder}: holds {others[0]}; name a new folder")


def _describe(settings, plan, network, views, dtype):
    width, values = network.output_shape[-1], dataclasses.asdict(settings)
    per_shard = _images_per_shard(views, width, dtype)
    return shards.Manifest(
        format=shards.FORMAT,
        dataset=settings.dataset,
        images=len(plan.images),
        shards=-(-len(plan.images) // per_shard),
        views=views,
        width=width,
        dtype=dtype,
        network=backbones.digest_of(network, settings.backbone, settings.backbone_pixels),
        settings={name: values[name] for name in (*shards.OF_NETWORK, *shards.OF_VIEWS)},
        label_names=plan.images.label_names,
        precision=settings.precision,
        roles_and_labels=_digest_of(plan),
    )


def _digest_of(plan):
    """SHA-256 of the ids, roles and labels of a plan, in hexadecimal."""
    found = hashlib.sha256("\0".join(plan.images.ids).encode("utf-8", "surrogatepass"))
    found.update(plan.roles.tobytes())
    if plan.images.labels is not None:
        found.update(plan.images.labels.tobytes())
    return found.hexdigest()


def _images_per_shard(views, width, dtype):
    most = SHARD_BYTES // ((1 + views) * width * np.dtype(dtype).itemsize)
    return max(1, most // BLOCK) * BLOCK


def _begin(folder, manifest):
    before = shards.read_manifest(folder)
    if before is not None:
        _check_begun(folder, before, manifest)
    if before is None or before.dataset != manifest.dataset:
        shards.write_manifest(folder, manifest)


def _check_begun(folder, before, manifest):
    """UserError where a folder was begun with something else."""
    if all(each.dataset.startswith("folder:") for each in (before, manifest)):
        # The plan has compared the files, which may have moved.
        before = dataclasses.replace(before, dataset=manifest.dataset)
    old, new = dataclasses.asdict(before), dataclasses.asdict(manifest)
    old, new = (values.pop("settings") | values for values in (old, new))
    digests = [values.pop("roles_and_labels") for values in (old, new)]
    for name in new:
        if old[name] != new[name]:
            raise UserError(
                f"--output={folder}: was begun with {name} {old[name]}, not {new[name]}; name "
                "another folder"
            )
    if all(digests) and digests[0] != digests[1]:
        raise UserError(
            f"--output={folder}: was begun with other labels or roles of the images; restore them, "
            "or name another folder"
        )
