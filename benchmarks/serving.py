"""Serving speed: `python -m benchmarks.serving --saved_model=serving/hqc --image=photo.jpg`

Prints, for both signatures of the encoder and each batch size, images/s, the median and the 99th
percentile of a request's time, and the share of it that decoding takes. The SavedModel runs as
`tf.saved_model.load` gives it, one request after the other: no network, and none beside. Then the
scan of `export.searcher` beside `export.index`, which uses ScaNN, both exact: random codes of the
encoder's books, each measured in a process of its own, so that its memory is its own.
"""

import pathlib
import tempfile
import time

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import machine
from export import searcher
from export.encoder import load_encoder, read_file
from export.index import load_index, write_index
from hqc_tf import commands, config
from hqc_tf.data import decoding

K = 10
WAYS = "searcher", "index"


def measure_encoder(encoder, contents, batch_sizes, calls):
    """Rows of the first table: one of `contents`, an image file, as a batch of each size."""
    settings = encoder.manifest["settings"]
    sizes = config.Config(**settings).plain_sizes
    decode = tf.function(lambda files: decoding.decode_views(files, *sizes))
    pixels = decoding.decode_image(tf.constant(contents))
    by_pixels, by_bytes = (encoder.signatures[s] for s in ("serving_default", "encode_bytes"))
    for batch in batch_sizes:
        images, files = tf.stack([pixels] * batch), tf.constant([contents] * batch)
        queries = {
            "serving_default": lambda images=images: by_pixels(images=images),
            "encode_bytes": lambda files=files: by_bytes(image_bytes=files),
            "decoding": lambda files=files: decode(files),
        }
        found = times(queries, calls)
        for signature in ("serving_default", "encode_bytes"):
            middle, late = np.percentile(found[signature], [50, 99])
            share = f"{np.median(found['decoding']) / middle:.0%}"
            yield (
                f"| {signature} | {batch} | {batch / middle:.0f} | {1e3 * middle:.1f} "
                f"| {1e3 * late:.1f} | {share if signature == 'encode_bytes' else '-'} |"
            )


def compare_search(codebooks, num_codes, batch_sizes, calls):
    """Rows of the second table."""
    num_books, num_words, _ = codebooks.shape
    codes = np.random.default_rng(0).integers(0, num_words, [num_codes, num_books], np.uint8)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.save(folder / "codebooks.npy", codebooks)
        np.save(folder / "codes.npy", codes)
        ids = [str(row) for row in range(num_codes)]
        write_index(folder / "index", codebooks, codes, ids, {"fingerprint": "", "path": ""})
        for batch in batch_sizes:
            found = [machine.apart(measure_search, way, folder, batch, calls) for way in WAYS]
            figures = " | ".join(f"{rate:.0f} | {mib:.0f}" for rate, mib in found)
            yield f"| {num_codes:,} x {num_books} books | {batch} | {figures} |"


def measure_search(way, folder, num_queries, calls):
    """Queries/s of one way to search, and the MiB that its process takes for it at most."""
    codebooks = np.load(folder / "codebooks.npy")
    num_books, _, word_dim = codebooks.shape
    queries = np.random.default_rng(1).normal(size=[num_queries, num_books * word_dim])
    queries = queries.astype(np.float32)
    before = machine.memory_mib()
    if way == "index":
        search = load_index(folder / "index").search
    else:
        codes = tf.Variable(np.load(folder / "codes.npy"))
        search = tf.function(lambda queries, k: searcher.nearest(queries, codes, codebooks, k))
    seconds = times({way: lambda: search(queries, K)}, calls)[way]
    return num_queries / np.median(seconds), machine.memory_mib() - before


def times(queries, calls):
    """Seconds of `calls` calls of each of {name: function}, in turns, after three not counted."""
    found = {name: [] for name in queries}
    for _ in range(3 + calls):
        for name, search in queries.items():
            start = time.perf_counter()
            tf.nest.map_structure(np.asarray, search())
            found[name].append(time.perf_counter() - start)
    return {name: seconds[3:] for name, seconds in found.items()}


def main(_):
    values = flags.FLAGS
    encoder = load_encoder(values.saved_model)
    contents = read_file(values.image)
    print(f"{machine.hardware()}\n{encoder.path}, {values.image}\n")
    print("| signature | batch | images/s | p50, ms | p99, ms | decoding |")
    print("|---|---|---|---|---|---|", flush=True)
    for row in measure_encoder(encoder, contents, values.batch_size, values.calls):
        print(row, flush=True)
    print("\n| codes | queries | searcher, queries/s | MiB | index, queries/s | MiB |")
    print("|---|---|---|---|---|---|", flush=True)
    for num_codes in values.num_codes:
        rows = compare_search(encoder.codebooks, num_codes, values.batch_size, values.search_calls)
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("saved_model", None, "what export.saved_model wrote", required=True)
    flags.DEFINE_string("image", None, "a file, sent as each image of a batch", required=True)
    flags.DEFINE_multi_integer(
        "batch_size", [1, 8, 32], "images of a request, and queries of a search; may be repeated", 1
    )
    flags.DEFINE_integer("calls", 200, "requests that count for each row", lower_bound=1)
    flags.DEFINE_multi_integer(
        "num_codes", [100_000, 1_000_000], "images of a searched collection; may be repeated", 1
    )
    flags.DEFINE_integer("search_calls", 10, "searches that count for each row", lower_bound=1)
    commands.run(main)
