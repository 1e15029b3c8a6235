"""Evaluates the codes of a trained model: `python -m hqc_tf.evaluate --workdir=runs/cifar10`."""

import dataclasses
import sys
import time
from collections.abc import Mapping
from typing import Any

from absl import flags

from hqc_tf import commands, config, label_free, metrics, model, retrieval
from hqc_tf.baselines import opq, pixels
from hqc_tf.data import roles
from hqc_tf.data.images import held_out, hold_out
from hqc_tf.errors import printable
from hqc_tf.training import inputs, start
from hqc_tf.workdir import (
    Baseline,
    Folder,
    Result,
    append_metrics,
    load_newest,
    read_files,
    read_settings,
    rejected_ids,
    saved_step,
)

_PLACES = 1, 10, 100, 1000
# Settings that an evaluation may have and its training had not.
_LATER = "queries", "labels"


def evaluate(
    trained: model.HQC,
    step: int,
    weights: str = "last",
    rejected: frozenset[str] = frozenset(),
    raw_pixels: Baseline | None = None,
    settings: config.Config | None = None,
) -> Result:
    """mAP@R and P@k of a model's codes under its data set's protocol, and the label-free scores.

    Args:
        trained: the model.
        step: training steps behind it.
        weights: "best", "last" or "untrained", for the result.
        rejected: ids of images of a folder that are left out.
        raw_pixels: what `evaluate_pixels` gave, for the result.
        settings: of the evaluation with labels, if not the model's. Those tell which images were
            held out from training.

    Raises:
        UserError: the data cannot be read.
    """
    c = settings or trained.settings
    result = Result(
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        weights=weights,
        step=step,
        protocol=roles.protocol(c),
        bits=c.bits,
        distance=c.distance,
        evaluated_on=inputs.evaluated_on(c),
        **_label_scores(trained, c, rejected, raw_pixels),
    )
    scores = label_free_scores(trained, rejected)
    return dataclasses.replace(result, **scores.as_fields()) if scores else result


def label_free_scores(
    trained: model.HQC, rejected: frozenset[str] = frozenset()
) -> label_free.Scores | None:
    """The scores of a model on the images held out from its training; None without any."""
    c = trained.settings
    images = roles.load_role(c, "train", rejected)
    held = held_out(images, c.held_out)
    return label_free.evaluate(trained, held) if len(held) else None


def draw(settings: config.Config, rejected: frozenset[str] = frozenset()) -> model.HQC:
    """A run's model before its training, as `start.draw` gives it, of the images trained on."""
    images, _ = hold_out(roles.load_role(settings, "train", rejected), settings.held_out)
    return start.draw(settings, images)


def evaluate_pixels(
    settings: config.Config, rejected: frozenset[str] = frozenset()
) -> Baseline | None:
    """PCA and OPQ of raw pixels under a data set's protocol; None without labels or FAISS.

    Args:
        settings: the data's, image_size, the code's length and top_k are read.
        rejected: as in `evaluate`.
    """
    c = settings
    query = roles.load_role(c, "query", rejected)
    if query is None or query.labels is None or not opq.is_installed():
        return None
    train, database = (roles.load_role(c, role, rejected) for role in ("train", "database"))
    top_k = min(c.top_k, len(database))
    sizes = c.image_size, c.num_books, c.num_words
    found = pixels.evaluate(train, database, query, *sizes, top_k)
    return found and _baseline(found)


def _label_scores(trained, c, rejected, raw_pixels):
    query = roles.load_role(c, "query", rejected)
    if query is None or query.labels is None:
        return {}
    database = roles.load_role(c, "database", rejected)
    top_k = min(c.top_k, len(database))
    searched = trained.encode_images(database, "database")
    embeddings = trained.encode_images(query, "queries").embeddings
    books = trained.quantizer.codebooks
    found = metrics.evaluate_codes(
        books, searched.codes, database.labels, embeddings, query.labels, top_k, c.distance
    )
    unquantized = metrics.evaluate_rankings(
        retrieval.nearest_embeddings_by_chunk(embeddings, searched.embeddings, top_k),
        database.labels,
        query.labels,
    )
    name = "pixels" if database.features is None else "features"
    baselines = {"embedding": _baseline(unquantized), name: raw_pixels}
    return {
        "queries": len(query),
        "database": len(database),
        "top_k": top_k,
        "mean_average_precision": found.mean_average_precision,
        "chance": metrics.chance_level(database.labels, query.labels, top_k),
        "precision_at_k": _at_places(found),
        "baselines": {name: one for name, one in baselines.items() if one},
    }


def _baseline(found):
    return Baseline(found.mean_average_precision, _at_places(found))


def _at_places(found):
    at = found.precision_at_k
    return {str(k): float(at[k - 1]) for k in _PLACES if k <= found.top_k}


def evaluate_workdir(workdir: Folder, **changed: Any) -> list[Result]:
    """Evaluates the last and the best weights of a run, once where they are of the same step.

    Args:
        workdir: folder that a training left.
        **changed: settings of the evaluation that differ from the run's.

    Raises:
        UserError: `workdir` has no trained model, or the data cannot be read.
    """
    run, settings = changed_settings(workdir, changed)
    results, rejected = [], find_rejects(workdir, settings)
    raw_pixels = evaluate_pixels(settings, rejected)
    for weights in ("last", "best"):
        if results and results[0].step == saved_step(workdir, weights):
            results.append(dataclasses.replace(results[0], weights=weights))
            continue
        trained, step = load_newest(workdir, weights)
        trained.settings = run
        result = evaluate(trained, step, weights, rejected, raw_pixels, settings)
        results.append(dataclasses.replace(result, changed=changes(workdir, settings)))
    return results


def find_rejects(workdir: Folder, settings: config.Config) -> frozenset[str]:
    """Ids that are left out of the data of an evaluation: the run's own of the run's own files."""
    own, run = rejected_ids(workdir), read_settings(workdir)
    files_of = read_files(workdir)
    if settings.dataset == run.dataset or (
        files_of and not inputs.describe_changes(settings.dataset, files_of, own)
    ):
        return own
    return roles.find_rejects("dataset", settings.dataset, settings.on_bad_image)


def changes(workdir: Folder, settings: config.Config) -> dict[str, str] | None:
    """`Result.changed` of an evaluation with `settings` of the run in `workdir`."""
    run, own = read_settings(workdir), inputs.from_anywhere(settings)
    names = "dataset", *_LATER
    found = {name: getattr(own, name) for name in names if getattr(own, name) != getattr(run, name)}
    return found or None


def changed_settings(
    workdir: Folder, changed: Mapping[str, Any]
) -> tuple[config.Config, config.Config]:
    """The settings of a run where its data is now, and those of an evaluation.

    What was trained on follows from the first: queries and labels that come later change no roles.
    """
    before = read_settings(workdir)
    settings = dataclasses.replace(before, **changed)
    given = {name: getattr(before, name) and getattr(settings, name) for name in _LATER}
    return dataclasses.replace(settings, **given), settings


def describe(result: Result) -> str:
    """One line for a person."""
    parts = []
    if result.precision_at_k:
        at = ", ".join(f"P@{k} {value:.3f}" for k, value in result.precision_at_k.items())
        parts.append(
            f"mAP@{result.top_k} {result.mean_average_precision:.4f} "
            f"({result.distance}, {result.bits} bits{_beside(result)}), {at} "
            f"[{result.protocol}: {result.queries} queries, {result.database} images]"
        )
    if result.perplexity:
        parts.append(
            f"without labels: recall@1 {result.recall_at_1:.3f} of {result.held_out}, "
            f"perplexity {min(result.perplexity):.1f} to {max(result.perplexity):.1f}, "
            f"quantization error {result.quantization_error:.3f}"
        )
    nothing = f"{result.protocol}: no labels and no held-out images to evaluate"
    return f"{result.weights}, step {result.step}: {'; '.join(parts) or nothing}"


def _beside(result):
    named = {
        "embedding": "unquantized",
        "pixels": "raw pixels with PCA and OPQ",
        "features": "raw features with PCA and OPQ",
    }
    known = result.baselines or {}
    found = [
        f"; {text} {known[name].mean_average_precision:.4f}"
        for name, text in named.items()
        if name in known
    ]
    return "".join([*found, f"; chance {result.chance:.4f}"])


def show(results: list[Result]) -> None:
    """Prints a line for each result, and a last one where raw pixels find more than the codes."""
    for result in results:
        print(describe(result))
    trained = [result for result in results if result.weights != "untrained"]
    known = [result.baselines or {} for result in trained]
    raw = [each[name] for each in known for name in ("pixels", "features") if name in each]
    raw_map = max((one.mean_average_precision for one in raw), default=0)
    best = max((result.mean_average_precision or 0 for result in trained), default=0)
    if best < raw_map:
        print(
            f"worse than no training: these codes have mAP@{trained[0].top_k} {best:.4f}, PCA and "
            f"OPQ of the raw input {raw_map:.4f} at the same {trained[0].bits} bits; train longer, "
            'or see "Short trainings" in docs/train.md'
        )


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("workdir", None, "folder that a training left", required=True)
    define_data_flags()
    flags.DEFINE_enum("distance", None, config.DISTANCES, "asymmetric distance, if not the run's")
    flags.DEFINE_integer("top_k", None, "R of mAP@R, results per query, if not the run's")
    flags.DEFINE_bool("untrained", False, "evaluate the network before its training too")


def define_data_flags() -> None:
    """Defines the flags of what is searched and of the queries, if they are not the run's."""
    text = "folder:PATH where the photos are now, if they moved, or other images to evaluate on"
    flags.DEFINE_string("dataset", None, text)
    flags.DEFINE_string("data_dir", None, "where the data is now, if it moved since training")
    flags.DEFINE_string("queries", None, "queries, in the forms of --dataset, if not the run's")
    flags.DEFINE_string("labels", None, "CSV file with the columns id (or path) and label")


def given_settings(*names: str) -> dict[str, Any]:
    """The settings that are given as flags."""
    found = {name: flags.FLAGS[name].value for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _report_other_files(workdir, dataset):
    before = read_files(workdir)
    listed = inputs.list_files(dataset) if dataset and before else []
    if dataset and not {file.name for file in before} & {file.name for file in listed}:
        return  # other images, not the run's in another place
    dataset = dataset or read_settings(workdir).dataset
    if changes := inputs.describe_changes(dataset, before, rejected_ids(workdir)):
        # Which images are held out follows from the list of all.
        rule = "the figures are of the files as they are now, with other images held out"
        said = f"{dataset}: changed since training: {changes}; {rule}"
        print(printable(said), file=sys.stderr)


def main(_: list[str]) -> None:
    values = flags.FLAGS
    changed = given_settings("dataset", "data_dir", "queries", "labels", "distance", "top_k")
    _report_other_files(values.workdir, values.dataset)
    results = evaluate_workdir(values.workdir, **changed)
    if values.untrained:
        run, settings = changed_settings(values.workdir, changed)
        rejected = find_rejects(values.workdir, settings)
        found = evaluate(draw(run, rejected), 0, "untrained", rejected, settings=settings)
        results.append(dataclasses.replace(found, changed=changes(values.workdir, settings)))
    # The folder may not be writable.
    show(results)
    for result in results:
        append_metrics(values.workdir, result)


if __name__ == "__main__":
    define_flags()
    commands.run(main)
