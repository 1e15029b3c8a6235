"""Images of a plan to shards of codes, a few batches at a time."""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from export.arrays import pack_ids
from export.codes import Shard, write_shard
from export.encode import inputs
from hqc_tf.data.decoding import why_refused
from hqc_tf.data.folder import in_batches, overlapped
from hqc_tf.errors import UserError
from hqc_tf.progress import Progress

BATCH = 256
# Batches that are encoded at once: one is decoded while another is in the network.
ENCODERS = 2


class EncodedBatch(NamedTuple):
    """A few images of a shard, in the order of the input.

    Attributes:
      ids: list of n strings.
      codes: uint8 [n, M].
      rejects: list of {"id", "reason"} of the other images.
    """

    ids: list
    codes: np.ndarray
    rejects: list


def encode_shard(encoder, part, batch_size=BATCH, tell=lambda batch: None):
    """Encodes a shard of a plan; a few batches of its images are in memory at a time.

    Args:
      encoder: `encode.Encoder`.
      part: one of `inputs.Plan.shards`.
      batch_size: images that are encoded together, at least 1.
      tell: called with each `EncodedBatch`.

    Returns:
      (`shards.Shard`, list of rejects), as `shards.write_shard` takes them.
    """
    ids, codes, rejects = [], [np.zeros([0, len(encoder.codebooks)], np.uint8)], []
    batches = in_batches(inputs.read(part), batch_size)
    encode = functools.partial(_encode_batch, encoder)
    for batch in overlapped(encode, batches, ENCODERS):
        tell(batch)
        ids += batch.ids
        codes.append(batch.codes)
        rejects += batch.rejects
    return Shard(np.concatenate(codes), pack_ids(ids)), rejects


def _encode_batch(encoder, items):
    # What could not be read has empty contents, which are no image: every item has its row.
    contents = tf.constant([item.contents for item in items])
    answer = encoder.signatures["encode_bytes"](image_bytes=contents)
    valid = answer["valid"].numpy()
    rejects = [
        {"id": item.id, "reason": item.reason or why_refused(item.contents)}
        for item, fits in zip(items, valid, strict=True)
        if not fits
    ]
    ids = [item.id for item, fits in zip(items, valid, strict=True) if fits]
    return EncodedBatch(ids, answer["codes"].numpy()[valid], rejects)


def encode_here(encoder, plan, folder, numbers, batch_size=BATCH, on_bad_image="skip"):
    """Encodes shards of a plan in this process, one after the other, and shows how far it is.

    Args:
      encoder: `encode.Encoder`.
      plan: `inputs.Plan`.
      folder: what `shards.start` made for it.
      numbers: of the shards.
      batch_size: images that are encoded together.
      on_bad_image: "skip" to list those that are none, "stop" to end at the first.

    Raises:
      UserError: `on_bad_image` is "stop", and there is one; it is named.
    """
    progress = Progress(inputs.count_images([plan.shards[number] for number in numbers]))

    def tell(batch):
        progress.add(len(batch.ids) + len(batch.rejects))
        if batch.rejects and on_bad_image == "stop":
            raise UserError(
                "{id}: {reason}; mend or remove it, or take --on_bad_image=skip".format(
                    **batch.rejects[0]
                )
            )

    with progress:
        for number in numbers:
            shard, rejects = encode_shard(encoder, plan.shards[number], batch_size, tell)
            write_shard(folder, number, len(plan.shards), shard, rejects)
