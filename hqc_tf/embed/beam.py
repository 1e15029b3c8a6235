"""`hqc_tf.embed` on a cluster: a shard at a time, on any runner of Apache Beam."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

import tensorflow as tf

from hqc_tf import backbones, config
from hqc_tf.data.features import shards
from hqc_tf.embed import build_network, embed_shard
from hqc_tf.embed.plan import Plan, make_plan
from hqc_tf.errors import UserError
from hqc_tf.runners import beam, run_parts


class EmbedShard(beam.DoFn):
    """Embeds and writes a shard, given by its number, which it yields."""

    def __init__(self, settings: config.Config, folder: str):
        super().__init__()
        self._settings, self._folder = settings, pathlib.Path(folder)

    def setup(self) -> None:
        own = self._settings
        self._manifest = shards.read_manifest(self._folder)
        self._plan = make_plan(own, self._folder)
        network = build_network(own)
        found = backbones.digest_of(network, own.backbone, own.backbone_pixels)
        if found != self._manifest.network:
            raise UserError(
                f"--backbone={own.backbone}: is {found} here and {self._manifest.network} where "
                "the command runs; give all machines the same"
            )
        self._apply = tf.function(lambda views: network(views, training=False))

    def process(self, number: int) -> Iterator[int]:
        # A runner may hand out a shard twice, for example after a failure elsewhere.
        if not shards.is_done(self._folder, number, self._manifest.shards):
            own = self._plan, self._settings, self._manifest
            shard = embed_shard(self._apply, *own, number)
            shards.write_shard(self._folder, number, self._manifest.shards, shard)
        yield number


def embed_on_beam(
    network: tf.keras.Model,
    plan: Plan,
    settings: config.Config,
    manifest: shards.Manifest,
    folder: pathlib.Path,
    numbers: Sequence[int],
    runner: str,
    arguments: Sequence[str] = (),
) -> None:
    """As `embed.embed_here`, with a runner of Beam, for which it waits.

    Args:
        network: made anew by each worker.
        plan: made anew by each worker, from the list of files in `folder`.
        settings: of the command.
        manifest: in `folder`.
        folder: of the features.
        numbers: of the shards that are missing.
        runner: such as direct, dask, flink or dataflow; UserError where Beam has none of the name.
        arguments: Beam's own flags.
    """
    del network, plan, manifest
    data_dir = settings.data_dir and os.path.abspath(settings.data_dir)  # noqa: PTH100
    settings = dataclasses.replace(settings, data_dir=data_dir)
    run_parts(EmbedShard(settings, str(folder.absolute())), numbers, runner, arguments)
