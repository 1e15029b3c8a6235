"""Evaluates the codes of a trained model: `python -m hqc_tf.evaluate --workdir=runs/cifar10`."""

import dataclasses
import time
from typing import Any

from absl import flags

from hqc_tf import commands, config, label_free, metrics, model
from hqc_tf.data import catalog
from hqc_tf.data.images import held_out
from hqc_tf.workdir import (
    Folder,
    Result,
    append_metrics,
    load,
    read_settings,
    rejected_ids,
    saved_step,
)

_PLACES = 1, 10, 100, 1000


def evaluate(
    trained: model.HQC,
    step: int,
    weights: str = "last",
    rejected: frozenset[str] = frozenset(),
) -> Result:
    """mAP@R and P@k of a model's codes under its data set's protocol, and the label-free scores.

    Args:
        trained: the model.
        step: training steps behind it.
        weights: "best", "last" or "untrained", for the result.
        rejected: ids of images of a folder that are left out.

    Raises:
        UserError: the data cannot be read.
    """
    c = trained.settings
    result = Result(
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        weights=weights,
        step=step,
        protocol=catalog.protocol(c.dataset),
        bits=c.bits,
        distance=c.distance,
        **_label_scores(trained, rejected),
    )
    scores = label_free_scores(trained, rejected)
    return dataclasses.replace(result, **scores.as_fields()) if scores else result


def label_free_scores(
    trained: model.HQC, rejected: frozenset[str] = frozenset()
) -> label_free.Scores | None:
    """The scores of a model on the images held out from its training; None without any."""
    c = trained.settings
    images = catalog.load_split(c.dataset, "train", c.data_dir, rejected)
    held = held_out(images, c.held_out)
    return label_free.evaluate(trained, held) if len(held) else None


def _label_scores(trained, rejected):
    c = trained.settings
    query = catalog.load_split(c.dataset, "query", c.data_dir, rejected)
    if query is None:
        return {}
    database = catalog.load_split(c.dataset, "database", c.data_dir, rejected)
    top_k = min(c.top_k, len(database))
    codes = trained.encode_images(database, "database").codes
    embeddings = trained.encode_images(query, "queries").embeddings
    books = trained.quantizer.codebooks
    found = metrics.evaluate_codes(
        books, codes, database.labels, embeddings, query.labels, top_k, c.distance
    )
    at = found.precision_at_k
    return {
        "queries": len(query),
        "database": len(database),
        "top_k": top_k,
        "mean_average_precision": found.mean_average_precision,
        "chance": metrics.chance_level(database.labels, query.labels, top_k),
        "precision_at_k": {str(k): float(at[k - 1]) for k in _PLACES if k <= top_k},
    }


def evaluate_workdir(workdir: Folder, **changed: Any) -> list[Result]:
    """Evaluates the last and the best weights of a run, once where they are of the same step.

    Args:
        workdir: folder that a training left.
        **changed: settings of the evaluation that differ from the run's.

    Raises:
        UserError: `workdir` has no trained model, or the data cannot be read.
    """
    results = []
    for weights in ("last", "best"):
        step = saved_step(workdir, weights)
        if results and results[0].step == step:
            results.append(dataclasses.replace(results[0], weights=weights))
            continue
        trained = load(workdir, weights)
        trained.settings = dataclasses.replace(trained.settings, **changed)
        results.append(evaluate(trained, step, weights, rejected_ids(workdir)))
    return results


def describe(result: Result) -> str:
    """One line for a person."""
    parts = []
    if result.precision_at_k:
        at = ", ".join(f"P@{k} {value:.3f}" for k, value in result.precision_at_k.items())
        parts.append(
            f"mAP@{result.top_k} {result.mean_average_precision:.4f} "
            f"({result.distance}, {result.bits} bits; chance {result.chance:.4f}), {at} "
            f"[{result.protocol}: {result.queries} queries, {result.database} images]"
        )
    if result.perplexity:
        parts.append(
            f"without labels: recall@1 {result.recall_at_1:.3f} of {result.held_out}, "
            f"perplexity {min(result.perplexity):.1f} to {max(result.perplexity):.1f}, "
            f"quantization error {result.quantization_error:.3f}"
        )
    nothing = f"{result.protocol}: neither labels nor held-out images (--held_out=0) to evaluate"
    return f"{result.weights}, step {result.step}: {'; '.join(parts) or nothing}"


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("workdir", None, "folder that a training left", required=True)
    flags.DEFINE_string("data_dir", None, "where the data is now, if it moved since training")
    flags.DEFINE_enum("distance", None, config.DISTANCES, "asymmetric distance, if not the run's")
    flags.DEFINE_integer("top_k", None, "R of mAP@R, results per query, if not the run's")
    flags.DEFINE_bool("untrained", False, "evaluate the network before its training too")


def main(_: list[str]) -> None:
    values = flags.FLAGS
    names = ("data_dir", "distance", "top_k")
    changed = {name: values[name].value for name in names if values[name].value is not None}
    results = evaluate_workdir(values.workdir, **changed)
    if values.untrained:
        settings = dataclasses.replace(read_settings(values.workdir), **changed)
        untrained = model.build_model(settings)
        results.append(evaluate(untrained, 0, "untrained", rejected_ids(values.workdir)))
    for result in results:
        append_metrics(values.workdir, result)
        print(describe(result))


if __name__ == "__main__":
    define_flags()
    commands.run(main)
