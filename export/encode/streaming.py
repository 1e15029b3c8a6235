"""Encodes the shards of a plan, a few batches at a time."""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from export.arrays import pack_ids
from export.codes import Shard, write_shard
from export.encode import inputs
from export.encoder import Encoder, encode_images
from export.kept import pack
from hqc_tf.data.decoding import most_images, why_refused
from hqc_tf.data.folder import LARGE_BYTES, Item, in_batches, overlapped, readable
from hqc_tf.data.screening import Reject
from hqc_tf.errors import UserError, printable

BATCH = 256
# Batches encoded at once: one is decoded while another is in the network.
ENCODERS = 2


class EncodedBatch(NamedTuple):
    """A few images of a shard, in the order of the input."""

    ids: list[str]
    embeddings: np.ndarray  # [n, M*D] float32
    codes: np.ndarray  # [n, M] uint8
    rejects: list[Reject]  # the other images


def encode_shard(
    encoder: Encoder,
    part: Any,
    batch_size: int = BATCH,
    report: Callable[[EncodedBatch], None] = lambda batch: None,
    keep: str = "none",
) -> tuple[Shard, list[Reject]]:
    """Encodes a shard of a plan; a few batches of its images are in memory at a time.

    Args:
        part: one of `inputs.Plan.shards`.
        batch_size: images encoded together, at least 1; fewer where a request takes fewer.
        report: called with each batch.
        keep: how embeddings are kept, one of `kept.KINDS`.

    Returns:
        The shard and its rejects, as `codes.write_shard` takes them.
    """
    rows = inputs.features_of(part)
    if rows is not None:
        encoded = encode_images(encoder, rows)
        report(EncodedBatch(rows.ids, *encoded, []))
        return Shard(encoded.codes, pack_ids(rows.ids), _keep(encoded.embeddings, keep)), []
    return encode_items(encoder, inputs.read(part), batch_size, report, keep)


def encode_items(
    encoder: Encoder,
    items: Iterable[Item],
    batch_size: int = BATCH,
    report: Callable[[EncodedBatch], None] = lambda batch: None,
    keep: str = "none",
) -> tuple[Shard, list[Reject]]:
    """As `encode_shard`, of images that are read as they are encoded."""
    num_books, _, word_dim = encoder.codebooks.shape
    ids, codes, rejects = [], [np.zeros([0, num_books], np.uint8)], []
    kept = [_keep(np.zeros([0, num_books * word_dim]), keep)]
    for batch in encode_batches(encoder, items, batch_size):
        report(batch)
        ids += batch.ids
        codes.append(batch.codes)
        kept.append(_keep(batch.embeddings, keep))
        rejects += batch.rejects
    own = None if keep == "none" else np.concatenate(kept)
    return Shard(np.concatenate(codes), pack_ids(ids), own), rejects


def encode_batches(
    encoder: Encoder, items: Iterable[Item], batch_size: int = BATCH
) -> Iterator[EncodedBatch]:
    """Yields images encoded in order, a few batches at once; they are read as they are encoded."""
    encode = functools.partial(_encode_batch, encoder)
    most = most_images(encoder.manifest["settings"]["image_size"])
    batches = in_batches(readable(items), min(batch_size, most))
    return overlapped(encode, batches, ENCODERS, _is_large)


def encode_here(
    encoder: Encoder,
    plan: inputs.Plan,
    folder: str | PathLike,
    numbers: Sequence[int],
    batch_size: int = BATCH,
    on_bad_image: str = "skip",
) -> None:
    """Encodes shards of a plan in this process, one after the other, with a progress bar.

    Args:
        folder: prepared for the plan by `codes.start`.
        numbers: of the shards.
        batch_size: images encoded together.
        on_bad_image: "skip" to list images that cannot be decoded, "stop" for a UserError that
            names the first.
    """
    total = inputs.count_images([plan.shards[number] for number in numbers])
    with tqdm.tqdm(total=total, unit=" images", disable=None) as progress:

        def report(batch):
            progress.update(len(batch.ids) + len(batch.rejects))
            check_rejects(batch.rejects, on_bad_image)

        for number in numbers:
            part = plan.shards[number]
            shard, rejects = encode_shard(encoder, part, batch_size, report, plan.keep)
            write_shard(folder, number, len(plan.shards), shard, rejects)


def check_rejects(rejects: Sequence[Reject], on_bad_image: str) -> None:
    """UserError that names the first of some images where `on_bad_image` is "stop"."""
    if rejects and on_bad_image == "stop":
        name, reason = rejects[0].id, rejects[0].reason
        raise UserError(f"{name}: {reason}; fix or remove it, or give --on_bad_image=skip")


def name_rejects(rejects: Iterable[Reject]) -> None:
    """Names images that are left out on stderr, with the reason."""
    for reject in rejects:
        print(f"left out: {printable(reject.id)}: {reject.reason}", file=sys.stderr)


def _is_large(items):
    return len(items[0].contents) > LARGE_BYTES


def _keep(embeddings, keep):
    return None if keep == "none" else pack(embeddings, keep)


def _encode_batch(encoder: Encoder, items: list[Item]) -> EncodedBatch:
    # An unreadable image has empty contents, which are not an image: every item has its row.
    contents = tf.constant([item.contents for item in items])
    answer = encoder.signatures["encode_bytes"](image_bytes=contents)
    valid = answer["valid"].numpy()
    ids = [item.id for item, fits in zip(items, valid, strict=True) if fits]
    bad = [item for item, fits in zip(items, valid, strict=True) if not fits]
    rejects = [Reject(item.id, item.reason or why_refused(item.contents)) for item in bad]
    embeddings, codes = (answer[name].numpy()[valid] for name in ("embedding", "codes"))
    return EncodedBatch(ids, embeddings, codes, rejects)
