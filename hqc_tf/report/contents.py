"""All that a report says, gathered from trained runs."""

import dataclasses
from typing import NamedTuple

import numpy as np

from hqc_tf import config, evaluate, label_free, metrics, model
from hqc_tf.report import gallery, numbers, scene
from hqc_tf.workdir import load, read_epochs, read_speed, rejected_ids, saved_step


class Report(NamedTuple):
    """What the page shows; the first workdir is the one that is looked into.

    Attributes:
      workdir: its name.
      settings: `Config`.
      step: training steps behind its best weights, which all figures are of.
      runs: `scene.Run`s of all workdirs.
      epochs, speed: `workdir.EpochLine`s and `workdir.SpeedLine`s.
      without_labels: name of a model -> its `label_free.Scores`, or None.
      queries: how many ask.
      rankings: `numbers.Ranking`s; empty without labels, as all of the next three.
      chance: mAP of a random order, or None.
      pairs: `numbers.Pairs`.
      book_precision: float [M], or None.
      word_shares: float [M, K], how often each word of each book stands for an image.
      perplexity: float [M], of these.
      plane: `numbers.Plane`.
      label_names: of the plane's labels, or None.
      gallery: `gallery.Neighbors`.
      search: `numbers.Search`.
    """

    workdir: str
    settings: config.Config
    step: int
    runs: list
    epochs: list
    speed: list
    without_labels: dict
    queries: int
    rankings: list
    chance: float | None
    pairs: list
    book_precision: np.ndarray | None
    word_shares: np.ndarray
    perplexity: np.ndarray
    plane: numbers.Plane
    label_names: list | None
    gallery: list
    search: numbers.Search


def gather(workdirs, data_dir=None, untrained=True):
    """The `Report` of the first of some workdirs, beside the results of the others.

    Args:
      workdirs: names of folders that trainings on one data set left, at least one.
      data_dir: where the data lies now, if not where it was trained.
      untrained: whether the network before training is encoded with too, which takes as long again.

    Raises:
      UserError: a workdir holds no trained run, or one of another data set; or the data cannot be
        read.
    """
    workdir = workdirs[0]
    runs = scene.read_runs(workdirs)
    # A damaged file is told of before minutes are spent on the images.
    lines, speed = read_epochs(workdir), read_speed(workdir)
    trained = load(workdir, "best")
    if data_dir is not None:
        trained.settings = dataclasses.replace(trained.settings, data_dir=data_dir)
    rejected = rejected_ids(workdir)
    seen = scene.show_to(trained, rejected)
    before = scene.show_to(model.build_model(trained.settings), rejected) if untrained else None
    labelled = seen.queries.labels is not None
    codes, words = seen.database.codes, trained.settings.num_words
    models = {"trained": seen, "before training": before}
    return Report(
        workdir=workdir,
        settings=trained.settings,
        step=saved_step(workdir, "best"),
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
        label_names=seen.images.label_names,
        search=numbers.measure_search(seen),
        **(_with_labels(seen, before) if labelled else _without_labels(seen)),
    )


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


def _without_labels(seen):
    return {
        "rankings": [],
        "chance": None,
        "pairs": [],
        "book_precision": None,
        "gallery": gallery.by_distance(seen),
    }
