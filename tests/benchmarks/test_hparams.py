"""An ablation study as TensorBoard's own HParams plugin reads it."""

import pytest
import tensorflow as tf
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from benchmarks import hparams


def record(preset, seed, score, **settings):
    last = {"step": 7, "mean_average_precision": score, "recall_at_1": 0.5}
    best = {"step": 5, "mean_average_precision": 0.25}
    shared = {"epochs": 3, "joint_views": False, "consistency_weight": 0.4}
    return {
        "preset": preset,
        "settings": shared | {"seed": seed} | settings,
        "results": {"last": last, "best": best},
    }


RECORDS = [record("base", 1, 0.75), record("none", 1, 0.5, consistency_weight=0.0)]


def summaries(folder):
    """(tag, step, value or what the plugin reads) of the event files of a folder."""
    for file in folder.glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                content = value.metadata.plugin_data.content
                if value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME:
                    read = plugin_data_pb2.HParamsPluginData.FromString(content)
                    yield value.tag, event.step, read
                else:
                    yield value.tag, event.step, float(tf.make_ndarray(value.tensor))


@pytest.fixture
def written(tmp_path):
    hparams.write_hparams([record("gone", 1, 0.1)], tmp_path / "study")
    hparams.write_hparams(RECORDS, tmp_path / "study")
    return tmp_path / "study"


def test_settings_that_differ():
    settings = [{"a": 1, "b": "y"}, {"a": 1, "b": "x", "c": 2}]
    assert hparams.differing(settings) == {"b": ["x", "y"]}


def test_the_study_names_what_differs_and_what_is_measured(written):
    ((_, _, read),) = summaries(written)
    domains = {one.name: list(one.domain_discrete) for one in read.experiment.hparam_infos}
    assert domains == {"preset": ["base", "none"], "consistency_weight": [0.0, 0.4]}
    shown = {one.name.tag: one.display_name for one in read.experiment.metric_infos}
    assert shown["mean_average_precision/best"] == "mAP, best weights"
    assert len(shown) == 4


def test_a_run_has_its_settings_and_figures(written):
    assert {path.name for path in written.iterdir() if path.is_dir()} == {
        "base_seed1",
        "none_seed1",
    }
    (_, _, read), *scalars = summaries(written / "none_seed1")
    values = read.session_start_info.hparams
    assert values["preset"].string_value == "none"
    assert values["consistency_weight"].number_value == 0.0
    assert sorted(scalars) == [
        ("mean_average_precision/best", 5, 0.25),
        ("mean_average_precision/last", 7, 0.5),
        ("recall_at_1/last", 7, 0.5),
    ]
