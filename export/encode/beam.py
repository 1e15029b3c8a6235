"""`export.encode` on a cluster: a shard of the plan at a time, on any runner of Apache Beam.

Workers have this project and its requirements, and see the images, the SavedModel and the folder of
codes under the same paths.
"""

from export.codes import is_done, write_shard
from export.encode.streaming import encode_shard
from export.encoder import load_encoder
from hqc_tf.errors import UserError

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners import create_runner
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
except ModuleNotFoundError as error:
    raise UserError(
        f"--runner: Apache Beam is missing ({error}); pip install -r requirements-beam.txt, or "
        "take local"
    ) from error


class EncodeShard(beam.DoFn):
    """Encodes and writes a shard, given as (number, part of the plan); gives its number."""

    def __init__(self, saved_model, fingerprint, folder, num_shards, batch_size):
        super().__init__()
        self._saved_model, self._fingerprint = saved_model, fingerprint
        self._folder, self._num_shards, self._batch_size = folder, num_shards, batch_size
        self._images = beam.metrics.Metrics.counter("export.encode", "images")
        self._rejects = beam.metrics.Metrics.counter("export.encode", "rejects")

    def setup(self):
        self._encoder = load_encoder(self._saved_model)
        found = self._encoder.manifest["fingerprint"]
        if found != self._fingerprint:
            raise UserError(
                f"{self._saved_model}: is encoder {found} here and {self._fingerprint} where the "
                "command runs; let all see the same"
            )

    def process(self, element):
        number, part = element
        # A runner may give out a shard twice, such as after a failure elsewhere.
        if not is_done(self._folder, number, self._num_shards):
            shard, rejects = encode_shard(self._encoder, part, self._batch_size, self._count)
            write_shard(self._folder, number, self._num_shards, shard, rejects)
        yield number

    def _count(self, batch):
        self._images.inc(len(batch.ids))
        self._rejects.inc(len(batch.rejects))


def encode_on_beam(encoder, plan, folder, numbers, batch_size, runner, arguments=()):
    """Encodes shards of a plan with a runner of Beam, and waits for it.

    Args:
      encoder: `Encoder` that all workers load from its path.
      plan: `inputs.Plan`.
      folder: what `shards.start` made for it, absolute.
      numbers: of the shards.
      batch_size: images that are encoded together.
      runner: its name, such as direct, flink, spark or dataflow.
      arguments: Beam's own flags, strings.

    Raises:
      UserError: Beam knows no such runner.
    """
    encode = EncodeShard(
        str(encoder.path),
        encoder.manifest["fingerprint"],
        folder,
        len(plan.shards),
        batch_size,
    )
    elements = [(number, plan.shards[number]) for number in numbers]
    with beam.Pipeline(**_runner(runner, arguments)) as pipeline:
        # Without the shuffle a runner may take all shards one after the other.
        _ = pipeline | beam.Create(elements) | beam.Reshuffle() | beam.ParDo(encode)


def _runner(name, arguments):
    # Beam's own DirectRunner fetches a program from the net first.
    if name == "direct":
        return {"runner": FnApiRunner(), "options": PipelineOptions(arguments)}
    try:
        create_runner(name)
    except (ValueError, ImportError) as error:
        raise UserError(f"--runner={name}: {error}; take another, or install it") from error
    return {"options": PipelineOptions([f"--runner={name}", *arguments])}
