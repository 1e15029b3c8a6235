"""An ablation study for TensorBoard's HParams: what its runs differ in, and what came of it."""

import pathlib
import shutil

import tensorflow as tf
from tensorboard.plugins.hparams import api

TENSORBOARD = "tensorboard"
_METRICS = {"mean_average_precision": "mAP", "recall_at_1": "recall@1 without labels"}
_WEIGHTS = "last", "best"


def write_hparams(records, folder):
    """Writes of each run its preset, the settings that are not the same in all, and its figures.

    Args:
        records: of finished runs, at least one, as RUNS/PRESET_seedS.json holds them.
        folder: what lies there is replaced; each run is a folder below it.
    """
    folder = pathlib.Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    known = [{"preset": record["preset"], **record["settings"]} for record in records]
    domains = differing(known)
    with tf.summary.create_file_writer(str(folder)).as_default():
        api.hparams_config(
            hparams=[api.HParam(name, api.Discrete(found)) for name, found in domains.items()],
            metrics=[
                api.Metric(f"{name}/{weights}", display_name=f"{shown}, {weights} weights")
                for name, shown in _METRICS.items()
                for weights in _WEIGHTS
            ],
        )
    for record, settings in zip(records, known, strict=True):
        run = f"{record['preset']}_seed{record['settings']['seed']}"
        with tf.summary.create_file_writer(str(folder / run)).as_default():
            api.hparams({n: x for n, x in settings.items() if n in domains}, trial_id=run)
            _write_figures(record["results"])


def differing(settings):
    """The values of each setting that has not the same in all of some dicts: name -> sorted."""
    values = {}
    for one in settings:
        for name, value in one.items():
            values.setdefault(name, set()).add(value)
    return {name: sorted(found) for name, found in values.items() if len(found) > 1}


def _write_figures(results):
    for weights, result in results.items():
        for name in _METRICS:
            if name in result:
                tf.summary.scalar(f"{name}/{weights}", result[name], result["step"])
