"""All that a report says, gathered from trained runs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hqc_tf import config, evaluate, label_free, metrics
from hqc_tf.data import roles
from hqc_tf.errors import UserError
from hqc_tf.report import gallery, numbers
from hqc_tf.training import inputs
from hqc_tf.workdir import (
    EpochLine,
    Result,
    SpeedLine,
    load_newest,
    read_epochs,
    read_metrics,
    read_settings,
    read_speed,
)


class Run(NamedTuple):
    """A finished training; results are the newest of each weights, distance, R and protocol."""

    workdir: str
    settings: config.Config
    results: list[Result]


class Report(NamedTuple):
    """What the page shows; the first workdir is the one that is looked into."""

    workdir: str
    settings: config.Config
    step: int  # training steps of its best weights, which all figures are of
    runs: list[Run]  # of all workdirs
    epochs: list[EpochLine]
    speed: list[SpeedLine]
    without_labels: dict[str, label_free.Scores]  # by name of the model
    queries: int  # how many there are
    word_shares: np.ndarray  # [M, K] float, how often each word of each book stands for an image
    perplexity: np.ndarray  # [M] float, of these
    plane: numbers.Plane
    label_names: list[str] | None  # of the plane's labels
    gallery: list[gallery.Neighbors]
    search: numbers.Search
    # What needs labels.
    rankings: Sequence[numbers.Ranking] = ()
    chance: float | None = None  # mAP of a random order
    pairs: Sequence[numbers.Pairs] = ()
    book_precision: np.ndarray | None = None  # [M] float, of each book alone


def read_runs(workdirs: Sequence[str]) -> list[Run]:
    """The runs in some workdirs, those of fewer bits first.

    UserError where one of them holds no run, or one of another data set than the first.
    """
    runs = [Run(name, read_settings(name), _newest_results(name)) for name in workdirs]
    for run in runs:
        if run.settings.dataset != runs[0].settings.dataset:
            raise UserError(
                f"--workdir={run.workdir}: trained on {run.settings.dataset}, and "
                f"{runs[0].workdir} on {runs[0].settings.dataset}; give runs of one data set"
            )
    return sorted(runs, key=lambda run: run.settings.bits)


def _newest_results(workdir):
    lines = read_metrics(workdir)
    newest = {}
    for line in lines:
        data = str(line.changed), str(line.evaluated_on)
        newest[line.weights, line.distance, line.top_k, line.protocol, *data] = line
    return list(newest.values())


def gather(workdirs: Sequence[str], untrained: bool = True, **changed: Any) -> Report:
    """The report of the first of some workdirs, beside the results of the others.

    Args:
        workdirs: folders of trainings on one data set, at least one.
        untrained: whether to encode with the network before training too, which takes as long.
        **changed: settings of the data and the evaluation that differ from the run's.

    Raises:
        UserError: a workdir holds no trained run, or one of another data set; or the data cannot
            be read.
    """
    workdir = workdirs[0]
    protocol = roles.protocol(evaluate.changed_settings(workdir, changed)[1])
    runs = [_with_results_of(run, protocol, changed) for run in read_runs(workdirs)]
    # A damaged file is reported before minutes are spent on the images.
    lines, speed = read_epochs(workdir), read_speed(workdir)
    trained, step = load_newest(workdir)
    trained.settings, settings = evaluate.changed_settings(workdir, changed)
    rejected = evaluate.find_rejects(workdir, settings)
    seen = numbers.make_scene(trained, rejected, settings)
    before = None
    if untrained:
        drawn = evaluate.draw(trained.settings, rejected)
        before = numbers.make_scene(drawn, rejected, settings)
    labeled = seen.queries.labels is not None
    codes, words = seen.database.codes, trained.settings.num_words
    models = {"trained": seen, "before training": before}
    return Report(
        workdir=workdir,
        settings=settings,
        step=step,
        runs=runs,
        epochs=lines,
        speed=speed,
        without_labels={
            name: evaluate.label_free_scores(one.trained, rejected)
            for name, one in models.items()
            if one
        },
        queries=len(seen.queries),
        word_shares=label_free.word_shares(codes, words),
        perplexity=label_free.perplexity(codes, words),
        plane=numbers.plane(seen),
        label_names=_label_names(seen.images),
        search=numbers.measure_search(seen),
        **(_with_labels(seen, before) if labeled else {"gallery": gallery.by_distance(seen)}),
    )


def _with_results_of(run, protocol, changed):
    """A run with the results of the data that the report is of."""
    settings = evaluate.changed_settings(run.workdir, changed)[1]
    other = evaluate.changes(run.workdir, settings)
    own = [
        one
        for one in run.results
        if one.protocol == protocol
        and one.changed == other
        and inputs.is_evaluated_on(one.evaluated_on, settings)
    ]
    return run._replace(results=own)


def _label_names(images):
    """Names of the labels; numbers where they have none."""
    if images.labels is None or images.label_names or images.labels.ndim > 1:
        return images.label_names
    return [str(number) for number in np.unique(images.labels)]


def _with_labels(seen, before):
    searches = {"codes": (seen.by_codes, seen), "embeddings": (seen.by_embeddings, seen)}
    if before:
        searches["codes before training"] = (before.by_codes, before)
    rankings = [numbers.rank(name, *search) for name, search in searches.items()]
    top_k = rankings[0].scores.top_k
    return {
        "rankings": rankings,
        "chance": metrics.chance_level(seen.images.labels, seen.queries.labels, top_k),
        "pairs": numbers.compare_pairs(seen),
        "book_precision": numbers.book_precision(seen),
        "gallery": gallery.by_precision(seen, rankings[0].scores.average_precision),
    }
