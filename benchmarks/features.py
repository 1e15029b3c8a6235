"""Codes of a network's features: this project's beside those that people use, at the same bytes.

    python -m benchmarks.features --features=train.npy --feature_labels=train_labels.npy \
        --query_features=test.npy --query_labels=test_labels.npy --bits=16,32,64 --seeds=1,2,3 \
        --runs=runs/features --output=runs/features.jsonl

All methods are fitted to the searched features, without labels, and rank them for the same queries.
Each line of OUTPUT has the method, its bits, mAP@1000 and P@1 by the labels, recall@10 of the ten
neighbors of the floats themselves, and the seconds that fitting took. Further flags are settings of
`hqc_tf.train`, for this project's codes alone; each of `--refits`, such as neighbors:0.3, adds a
line of the same training refitted, with the `--refit` and the `--input_share` that it names.
"""

import json
import pathlib
import time

import faiss
import numpy as np
import scann
from absl import flags

from benchmarks import machine
from benchmarks.studies.refit import refitted
from hqc_tf import commands, config, metrics, retrieval
from hqc_tf.baselines import opq
from hqc_tf.data.images import Images
from hqc_tf.train import train_and_evaluate
from hqc_tf.workdir import load

TOP_K = 1000
_COMPONENTS = 128
_WORD_BITS = 4
_NEAR = 10


def _unit(x):
    return np.float32(x / np.linalg.norm(x, axis=1, keepdims=True))


def _principal(database, queries, count):
    """Both without the mean, in their first `count` principal components, of length one."""
    pca = faiss.PCAMatrix(database.shape[1], count)
    pca.train(database)
    return [_unit(pca.apply(x)) for x in (database, queries)]


def _order(index, database, queries):
    index.train(database)
    index.add(database)
    return index.search(queries, TOP_K)[1]


def by_floats(database, queries, bits):
    index = faiss.IndexFlatIP(database.shape[1])
    index.add(database)
    return index.search(queries, TOP_K)[1]


def by_pq(database, queries, bits):
    own = _principal(database, queries, _COMPONENTS)
    return _order(faiss.IndexPQ(_COMPONENTS, bits // _WORD_BITS, _WORD_BITS), *own)


def by_opq(database, queries, bits):
    own, others = _principal(database, queries, _COMPONENTS)
    fit = opq.fit(own, bits // _WORD_BITS, 2**_WORD_BITS)
    codes = opq.encode(own @ fit.rotation, fit.codebooks)
    found = retrieval.nearest(others @ fit.rotation, codes, fit.codebooks, TOP_K, "squared")
    return found.rows.numpy()


def by_residuals(database, queries, bits):
    own = _principal(database, queries, _COMPONENTS)
    index = faiss.IndexResidualQuantizer(_COMPONENTS, bits // _WORD_BITS, _WORD_BITS)
    return _order(index, *own)


def by_itq(database, queries, bits):
    width = database.shape[1]
    itq = faiss.ITQTransform(width, bits, bits < width)
    itq.train(database)
    signs = [np.packbits(itq.apply(x) > 0, axis=1) for x in (database, queries)]
    index = faiss.IndexBinaryFlat(bits)
    index.add(signs[0])
    return index.search(signs[1], TOP_K)[1]


def by_rabitq(database, queries, bits):
    """A bit a component, and 8 bytes of factors that belong to the code."""
    own = _principal(database, queries, bits - 64)
    return _order(faiss.IndexRaBitQ(bits - 64, faiss.METRIC_L2), *own)


def by_scann(database, queries, bits):
    own, others = _principal(database, queries, _COMPONENTS)
    builder = scann.scann_ops_pybind.builder(own, TOP_K, "dot_product")
    hashed = builder.score_ah(
        _COMPONENTS * _WORD_BITS // bits, anisotropic_quantization_threshold=0.2
    )
    return hashed.build().search_batched(others)[0]


METHODS = {
    "floats": by_floats,
    "PQ": by_pq,
    "OPQ": by_opq,
    "residual quantizer": by_residuals,
    "ITQ": by_itq,
    "RaBitQ": by_rabitq,
    "ScaNN hashing": by_scann,
}


def by_training(settings, workdir):
    """The model of the last weights, and the seconds that training took."""
    began = time.monotonic()
    train_and_evaluate(settings, workdir)
    return load(workdir, "last"), time.monotonic() - began


def by_refit(kind_and_share, workdir, database):
    """The model of the last weights, refitted as one of --refits says, and the seconds."""
    began = time.monotonic()
    trained = refitted(workdir, kind_and_share, _images(database))
    return trained, time.monotonic() - began


def by_codes(trained, database, queries):
    """Ranking by a model's codes, as an index of them searches and as the others are ranked."""
    own, others = (trained.encode_images(_images(x)) for x in (database, queries))
    codebooks = trained.quantizer.codebooks.numpy()
    found = retrieval.nearest(others.embeddings, own.codes, codebooks, TOP_K, "squared")
    return found.rows.numpy()


def _images(features):
    return Images.of_features(features, [str(row) for row in range(len(features))])


def score(order, near, labels, query_labels):
    relevant = metrics.relevance(labels[order], query_labels)
    found = [
        len(np.intersect1d(a, b)) for a, b in zip(order[:, :_NEAR], near[:, :_NEAR], strict=True)
    ]
    return {
        "map": round(float(metrics.average_precision(relevant).mean()), 4),
        "p_at_1": round(float(relevant[:, 0].mean()), 4),
        "recall_at_10": round(float(np.mean(found)) / _NEAR, 4),
    }


def main(_):
    values = flags.FLAGS
    raw = [np.load(values[name].value) for name in ("features", "query_features")]
    named = "feature_labels", "query_labels"
    labels, query_labels = (np.load(values[name].value) for name in named)
    database, queries = map(_unit, raw)
    near = by_floats(database, queries, 0)
    output = pathlib.Path(values.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    done = output.read_text().splitlines() if output.exists() else []
    known = {
        (one["method"], one["bits"], one["seed"], one.get("refit")) for one in map(json.loads, done)
    }
    hardware = machine.describe(machine.hardware())

    def note(method, bits, seed, order, seconds, **more):
        line = {"method": method, "bits": bits, "seed": seed} | more
        line |= score(order, near, labels, query_labels)
        line |= {"seconds": round(seconds, 1), "machine": hardware}
        with output.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    for bits in map(int, values.bits):
        for name, method in METHODS.items():
            fits = name != "RaBitQ" or bits > 64
            if fits and (name, bits, 0, None) not in known:
                began = time.monotonic()
                order = method(database, queries, bits)
                note(name, bits, 0, order, time.monotonic() - began)
        for seed in map(int, values.seeds):
            refits = [None, *values.refits]
            wanted = [one for one in refits if ("hqc_tf", bits, seed, one) not in known]
            if not wanted:
                continue
            given = {"dataset": f"features:{values.features}", "num_books": bits // _WORD_BITS}
            own = config.from_flags()
            changed = {name: getattr(own, name) for name in config.Config.__dataclass_fields__}
            settings = config.Config(**(changed | given | {"seed": seed}))
            workdir = pathlib.Path(values.runs, f"{bits}bits_seed{seed}")
            found = by_training(settings, workdir)
            for one in wanted:
                trained, seconds = by_refit(one, workdir, raw[0]) if one else found
                more = {"refit": one} if one else {}
                note("hqc_tf", bits, seed, by_codes(trained, *raw), seconds, **more)


if __name__ == "__main__":
    config.define_flags()
    flags.DEFINE_string("features", None, ".npy file of float [N, E]", required=True)
    flags.DEFINE_string("feature_labels", None, ".npy file of int [N]", required=True)
    flags.DEFINE_string("query_features", None, ".npy file of float [Q, E]", required=True)
    flags.DEFINE_string("query_labels", None, ".npy file of int [Q]", required=True)
    flags.DEFINE_list("bits", ["16", "32", "64", "128"], "code lengths")
    flags.DEFINE_list("seeds", ["1", "2", "3"], "of this project's trainings")
    flags.DEFINE_list("refits", [], "KIND:SHARE of refits, whose seconds are theirs alone")
    flags.DEFINE_string("runs", "runs/features", "folder of the trainings")
    flags.DEFINE_string("output", None, "JSON lines", required=True)
    flags.adopt_module_key_flags(config)
    commands.run(main)
