"""`export.encode` on a cluster: a shard of the plan at a time, on any runner of Apache Beam."""

from collections.abc import Iterator, Sequence
from typing import Any

from export.codes import is_done, write_shard
from export.encode.inputs import Plan
from export.encode.streaming import encode_shard
from export.encoder import Encoder, load_encoder
from hqc_tf.errors import UserError
from hqc_tf.runners import beam, run_parts


class EncodeShard(beam.DoFn):
    """Encodes and writes a shard, given as (number, part of the plan); yields its number."""

    def __init__(
        self,
        saved_model: str,
        fingerprint: str,
        folder: str,
        num_shards: int,
        batch_size: int,
        keep: str,
    ):
        super().__init__()
        self._keep = keep
        self._saved_model, self._fingerprint = saved_model, fingerprint
        self._folder, self._num_shards, self._batch_size = folder, num_shards, batch_size
        self._images = beam.metrics.Metrics.counter("export.encode", "images")
        self._rejects = beam.metrics.Metrics.counter("export.encode", "rejects")

    def setup(self) -> None:
        self._encoder = load_encoder(self._saved_model)
        found = self._encoder.manifest["fingerprint"]
        if found != self._fingerprint:
            raise UserError(
                f"{self._saved_model}: is encoder {found} here and {self._fingerprint} where the "
                "command runs; give all machines the same"
            )

    def process(self, element: tuple[int, Any]) -> Iterator[int]:
        number, part = element
        # A runner may hand out a shard twice, for example after a failure elsewhere.
        if not is_done(self._folder, number, self._num_shards):
            own = self._batch_size, self._count, self._keep
            shard, rejects = encode_shard(self._encoder, part, *own)
            write_shard(self._folder, number, self._num_shards, shard, rejects)
        yield number

    def _count(self, batch):
        self._images.inc(len(batch.ids))
        self._rejects.inc(len(batch.rejects))


def encode_on_beam(
    encoder: Encoder,
    plan: Plan,
    folder: str,
    numbers: Sequence[int],
    batch_size: int,
    runner: str,
    arguments: Sequence[str] = (),
) -> None:
    """As `streaming.encode_here`, with a runner of Beam, for which it waits.

    Args:
        encoder: loaded by all workers from its path.
        folder: absolute path, prepared for the plan by `codes.start`.
        runner: such as direct, dask, flink or dataflow; UserError where Beam has none of the name.
        arguments: Beam's own flags.
    """
    identity, own = encoder.identity, (len(plan.shards), batch_size, plan.keep)
    encode = EncodeShard(identity["path"], identity["fingerprint"], folder, *own)
    run_parts(encode, [(number, plan.shards[number]) for number in numbers], runner, arguments)
