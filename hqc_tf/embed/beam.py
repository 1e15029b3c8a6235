"""`hqc_tf.embed` on a cluster: a shard at a time, on any runner of Apache Beam."""

import pathlib
from collections.abc import Iterator, Sequence

from hqc_tf import backbones, config
from hqc_tf.data.features import shards
from hqc_tf.embed import Job, build_network, traced, write_shard
from hqc_tf.embed.plan import make_plan
from hqc_tf.errors import UserError
from hqc_tf.runners import beam, run_parts


class EmbedShard(beam.DoFn):
    """Embeds and writes a shard, given by its number, which it yields."""

    def __init__(self, settings: config.Config, folder: str):
        super().__init__()
        self._settings, self._folder = settings, pathlib.Path(folder)

    def setup(self) -> None:
        own, manifest = self._settings, shards.read_manifest(self._folder)
        plan, network = make_plan(own, self._folder), build_network(own)
        found = backbones.digest_of(network, own.backbone, own.backbone_pixels)
        if found != manifest.network:
            raise UserError(
                f"--backbone={own.backbone}: is {found} here and {manifest.network} where the "
                "command runs; give all machines the same"
            )
        self._job = Job(traced(network), plan, own, manifest, self._folder)

    def process(self, number: int) -> Iterator[int]:
        # A runner may hand out a shard twice, for example after a failure elsewhere.
        if not shards.is_done(self._folder, number, self._job.manifest.shards):
            write_shard(self._job, number)
        yield number


def embed_on_beam(
    job: Job, numbers: Sequence[int], runner: str, arguments: Sequence[str] = ()
) -> None:
    """As `embed.embed_here`, with a runner of Beam, for which it waits.

    Args:
        job: each worker makes its own, from the settings and the list of files in the folder.
        numbers: of the shards that are missing.
        runner: such as direct, dask, flink or dataflow; UserError where Beam has none of the name.
        arguments: Beam's own flags.
    """
    run_parts(EmbedShard(job.settings, str(job.folder.absolute())), numbers, runner, arguments)
