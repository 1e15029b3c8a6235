"""Judges the codes of a trained model: `python -m hqc_tf.evaluate --workdir=runs/cifar10`."""

import dataclasses
import json
import os
import pathlib
import time

from absl import flags

from hqc_tf import config, data, metrics, model
from hqc_tf.config import UserError
from hqc_tf.encode import encode_images

METRICS = "metrics.jsonl"
_PLACES = 1, 10, 100, 1000


def evaluate(trained, step, weights="last"):
    """mAP@R and P@k of a model's codes under the protocol of its data set.

    Args:
      trained: `HQC`.
      step: training steps behind it.
      weights: what the result is of: "last", or "untrained".

    Returns:
      dict that JSON can hold, one line of metrics.jsonl; None where the images have no labels.

    Raises:
      UserError: the data cannot be read, or `top_k` is larger than the database.
    """
    c = trained.settings
    query = data.load_split(c.dataset, "query", c.data_dir)
    if query is None:
        return None
    database = data.load_split(c.dataset, "database", c.data_dir)
    top_k = min(c.top_k, len(database))
    codes = encode_images(trained, database, "database").codes
    embeddings = encode_images(trained, query, "queries").embeddings
    books = trained.quantizer.codebooks
    found = metrics.evaluate_codes(
        books, codes, database.labels, embeddings, query.labels, top_k, c.distance
    )
    at = found.precision_at_k
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "weights": weights,
        "step": step,
        "protocol": data.protocol(c.dataset),
        "queries": len(query),
        "database": len(database),
        "bits": c.bits,
        "distance": c.distance,
        "top_k": top_k,
        "mean_average_precision": found.mean_average_precision,
        "chance": metrics.chance_level(database.labels, query.labels, top_k),
        "precision_at_k": {str(k): float(at[k - 1]) for k in _PLACES if k <= top_k},
    }


def record(workdir, result):
    """Appends a line to the metrics of `workdir`, on the disk before this returns."""
    with pathlib.Path(workdir, METRICS).open("a") as file:
        file.write(json.dumps(result) + "\n")
        file.flush()
        os.fsync(file.fileno())


def describe(result):
    """One line for a person."""
    at = ", ".join(f"P@{k} {value:.3f}" for k, value in result["precision_at_k"].items())
    return (
        f"{result['weights']}, step {result['step']}: "
        f"mAP@{result['top_k']} {result['mean_average_precision']:.4f} "
        f"({result['distance']}, {result['bits']} bits; chance {result['chance']:.4f}), {at} "
        f"[{result['protocol']}: {result['queries']} queries, {result['database']} images]"
    )


def define_flags():
    """Flags of this command."""
    flags.DEFINE_string("workdir", None, "folder that a training left", required=True)
    flags.DEFINE_string("data_dir", None, "where the data lies now, if not where it was trained")
    flags.DEFINE_enum("distance", None, config.DISTANCES, "asymmetric distance, if not the run's")
    flags.DEFINE_integer("top_k", None, "R of mAP@R, if not the run's")
    flags.DEFINE_bool("untrained", False, "judge the network before its training too")


def main(_):
    values = flags.FLAGS
    trained = model.load(values.workdir)
    names = ("data_dir", "distance", "top_k")
    changed = {name: values[name].value for name in names if values[name].value is not None}
    settings = dataclasses.replace(trained.settings, **changed)
    trained.settings = settings
    subjects = [(trained, model.saved_step(values.workdir), "last")]
    if values.untrained:
        subjects.append((model.build_model(settings), 0, "untrained"))
    for subject in subjects:
        result = evaluate(*subject)
        if result is None:
            raise UserError(
                f"--workdir={values.workdir}: {settings.dataset} has no labels to judge by; "
                "put the images into a folder per label, or look at searches"
            )
        record(values.workdir, result)
        print(describe(result))


if __name__ == "__main__":
    define_flags()
    config.run(main)
