"""Judges the codes of a trained model: `python -m hqc_tf.evaluate --workdir=runs/cifar10`."""

import dataclasses
import json
import pathlib
import time

from absl import flags

from hqc_tf import commands, config, files, label_free, metrics, model
from hqc_tf.data import catalog, screening
from hqc_tf.data.images import held_out

METRICS = "metrics.jsonl"
_PLACES = 1, 10, 100, 1000
# Of the values in a line, what each is; scores with labels and without are there whole or not.
_JUDGED = {"weights": str, "step": int, "protocol": str, "bits": int, "distance": str}
_SCORED = {
    "queries": int,
    "database": int,
    "top_k": int,
    "mean_average_precision": float,
    "chance": float,
    "precision_at_k": {str: float},
}
_WITHOUT_LABELS = {
    "held_out": int,
    "recall_at_1": float,
    "perplexity": [float],
    "quantization_error": float,
}


def evaluate(trained, step, weights="last", rejected=frozenset()):
    """mAP@R and P@k of a model's codes under its data set's protocol, and what needs no labels.

    Args:
      trained: `HQC`.
      step: training steps behind it.
      weights: what the result is of: "best", "last", or "untrained".
      rejected: ids of images of a folder that are left out.

    Returns:
      dict that JSON can hold, one line of metrics.jsonl. Images without labels leave out what needs
      them, and a run without images kept from training what needs these.

    Raises:
      UserError: the data cannot be read.
    """
    c = trained.settings
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    result = {
        "time": now,
        "weights": weights,
        "step": step,
        "protocol": catalog.protocol(c.dataset),
        "bits": c.bits,
        "distance": c.distance,
    }
    return result | _with_labels(trained, rejected) | without_labels(trained, rejected)


def _with_labels(trained, rejected):
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


def without_labels(trained, rejected=frozenset()):
    """What `evaluate` says of a model by the images kept from training; {} without any."""
    c = trained.settings
    images = catalog.load_split(c.dataset, "train", c.data_dir, rejected)
    held = held_out(images, c.held_out)
    return label_free.judge(trained, held).as_json() if len(held) else {}


def recorded(workdir, step, settings):
    """The lines of metrics.jsonl in which the weights after training stand, judged by `settings`.

    Empty where training has not ended, or was killed before its end was judged.
    """
    lines = read_metrics(workdir)
    found = {line["weights"]: line for line in lines if line["distance"] == settings.distance}
    ended = "best" in found and found.get("last", {}).get("step") == step
    return [found["last"], found["best"]] if ended else []


def read_metrics(workdir):
    """The lines of `metrics.jsonl`, a dict per evaluation; empty before the first."""
    return files.read_lines(pathlib.Path(workdir, METRICS), _JUDGED, _SCORED, _WITHOUT_LABELS)


def evaluate_workdir(workdir, **changed):
    """Judges the last and the best weights of a run, once where they are the same.

    Args:
      workdir: folder that a training left.
      **changed: settings to judge by, if not the run's.

    Returns:
      list of two results as of `evaluate`.
    """
    results = []
    for weights in ("last", "best"):
        step = model.saved_step(workdir, weights)
        if results and results[0]["step"] == step:
            results.append(results[0] | {"weights": weights})
            continue
        trained = model.load(workdir, weights)
        trained.settings = dataclasses.replace(trained.settings, **changed)
        results.append(evaluate(trained, step, weights, screening.ids_rejected(workdir)))
    return results


def record(workdir, result):
    """Adds a line to the metrics of `workdir`, on the disk before this returns."""
    path = pathlib.Path(workdir, METRICS)
    before = path.read_text() if path.exists() else ""
    files.replace_text(path, before + json.dumps(result) + "\n")


def describe(result):
    """One line for a person."""
    parts = []
    if "mean_average_precision" in result:
        at = ", ".join(f"P@{k} {value:.3f}" for k, value in result["precision_at_k"].items())
        parts.append(
            f"mAP@{result['top_k']} {result['mean_average_precision']:.4f} "
            f"({result['distance']}, {result['bits']} bits; chance {result['chance']:.4f}), {at} "
            f"[{result['protocol']}: {result['queries']} queries, {result['database']} images]"
        )
    if "recall_at_1" in result:
        parts.append(
            f"without labels: recall@1 {result['recall_at_1']:.3f} of {result['held_out']}, "
            f"perplexity {min(result['perplexity']):.1f} to {max(result['perplexity']):.1f}, "
            f"quantization error {result['quantization_error']:.3f}"
        )
    said = (
        "; ".join(parts) or f"no labels and --held_out=0: nothing to judge {result['protocol']} by"
    )
    return f"{result['weights']}, step {result['step']}: {said}"


def define_flags():
    """Flags of this command."""
    flags.DEFINE_string("workdir", None, "folder that a training left", required=True)
    flags.DEFINE_string("data_dir", None, "where the data lies now, if not where it was trained")
    flags.DEFINE_enum("distance", None, config.DISTANCES, "asymmetric distance, if not the run's")
    flags.DEFINE_integer("top_k", None, "R of mAP@R, if not the run's")
    flags.DEFINE_bool("untrained", False, "judge the network before its training too")


def main(_):
    values = flags.FLAGS
    names = ("data_dir", "distance", "top_k")
    changed = {name: values[name].value for name in names if values[name].value is not None}
    results = evaluate_workdir(values.workdir, **changed)
    if values.untrained:
        settings = dataclasses.replace(config.from_workdir(values.workdir), **changed)
        rejected = screening.ids_rejected(values.workdir)
        results.append(evaluate(model.build_model(settings), 0, "untrained", rejected))
    for result in results:
        record(values.workdir, result)
        print(describe(result))


if __name__ == "__main__":
    define_flags()
    commands.run(main)
