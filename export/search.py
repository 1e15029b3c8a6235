"""Answers queries with their nearest images: `python -m export.search --index=... a.jpg b.png`.

Queries are image files, a data set (`--dataset`) or embeddings in a .npy file (`--embeddings`). One
line of JSON per query: {"query": name, "ids": [...], "distances": [...]}, nearest first, the
distances squared asymmetric ones; `--output` takes the lines, or the same as a Parquet table. With
`--server` the index's encoder runs there, not here.
"""

import pathlib

import numpy as np
from absl import flags

from export.answers import write_answers
from export.arrays import map_array
from export.encoder import encode_images, load_encoder
from export.index import load_index
from hqc_tf import commands
from hqc_tf.data import catalog
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError

BATCH = 1024


def search_files(index, encoder, paths, k, **options):
    """The k nearest images of each file.

    Args:
      index: `Index`.
      encoder: `Encoder` that the index belongs to.
      paths: image files.
      k: 1 to the number of images.
      **options: of `answers`.

    Yields:
      dict of "query", "ids" and "distances" per file, in order.

    Raises:
      UserError: the index is of another encoder, or a file is no image.
    """
    return search_images(index, encoder, Images.of_files(paths), k, **options)


def search_images(index, encoder, images, k, **options):
    """As `search_files`, of `data.Images`."""
    index.check_encoder(encoder.manifest["fingerprint"])
    return answers(index, _embedded(encoder, images), k, **options)


def search_with_server(index, served, paths, k, **options):
    """As `search_files`, with the embeddings made by a server.

    Args:
      index: `Index`.
      served: the index's encoder, as `export.client.connect` gives it.
      paths: image files.
      k: 1 to the number of images.
      **options: of `answers`.

    Yields:
      dict of "query", "ids" and "distances" per file, in order.

    Raises:
      UserError: the server has another encoder or gives no answer, or a file is no image.
    """
    # It takes gRPC, which nothing else here needs.
    from export import client

    fingerprint = index.manifest["encoder"]["fingerprint"]
    encoded = client.encode_files(served, paths, fingerprint)
    return answers(index, ((names, batch.embeddings) for names, batch in encoded), k, **options)


def search_embeddings(index, path, k, **options):
    """As `search_files`, of the rows of a .npy file, float [Q, M*D]; they are called path:row.

    Raises:
      UserError: the file is no such array.
    """
    embeddings = map_array(path, f"--embeddings={path}", "name a .npy file of floats")
    width = index.codebooks.shape[0] * index.codebooks.shape[2]
    if embeddings.dtype.kind != "f" or embeddings.ndim != 2 or embeddings.shape[1] != width:
        raise UserError(
            f"--embeddings={path}: holds {embeddings.dtype} {embeddings.shape}, but index "
            f"{index.path} needs floats [Q, {width}]; embed the queries with its encoder"
        )
    starts = range(0, len(embeddings), BATCH)
    batches = (np.asarray(embeddings[start : start + BATCH]) for start in starts)
    named = (
        ([f"{path}:{start + row}" for row in range(len(batch))], batch)
        for start, batch in zip(starts, batches, strict=True)
    )
    return answers(index, named, k, **options)


def answers(index, batches, k, rerank=None, leaves_to_search=None, explain=False):
    """The k nearest images of each query.

    Args:
      index: `Index`.
      batches: iterable of (names, float [Q, M*D] embeddings).
      k: 1 to the number of images.
      rerank: as in `Index.rows`.
      leaves_to_search: as in `Index.rows`.
      explain: also say what each book adds to a distance.

    Yields:
      dict of "query", "ids", "distances" and, to explain them, "books", k lists of M distances.
    """
    for names, embeddings in batches:
        found = index.rows(embeddings, k, rerank, leaves_to_search)
        columns = [names, index.ids_of(found.rows), found.distances.tolist()]
        keys = ["query", "ids", "distances"]
        if explain:
            columns.append(index.book_distances(embeddings, found).tolist())
            keys.append("books")
        for row in zip(*columns, strict=True):
            yield dict(zip(keys, row, strict=True))


def _embedded(encoder, images):
    for start in range(0, len(images), BATCH):
        part = images.take(range(start, min(start + BATCH, len(images))))
        yield part.ids, encode_images(encoder, part).embeddings


def _check_flags(values, paths):
    sources = [bool(paths), bool(values.dataset), bool(values.embeddings)]
    if not any(sources):
        raise UserError(
            "no query; name image files after the flags, or give --dataset or --embeddings"
        )
    if sum(sources) > 1:
        raise UserError("image files, --dataset and --embeddings: queries of one kind; choose one")
    if values.server and not paths:
        raise UserError("--server: encodes image files; name some after the flags, or leave it out")
    folder = pathlib.Path(values.output or ".").parent
    if not folder.is_dir():
        raise UserError(f"--output={values.output}: there is no folder {folder}; make it")


def _found(values, paths):
    index = load_index(values.index)
    options = {
        "rerank": values.rerank,
        "leaves_to_search": values.leaves_to_search,
        "explain": values.explain,
    }
    if values.embeddings:
        return search_embeddings(index, values.embeddings, values.k, **options)
    if values.server:
        from export import client

        served = client.connect(values.server, values.model, values.deadline)
        return search_with_server(index, served, paths, values.k, **options)
    encoder = load_encoder(values.saved_model or index.manifest["encoder"]["path"])
    if values.dataset:
        images = catalog.load_images(values.dataset, values.data_dir)
        return search_images(index, encoder, images, values.k, **options)
    return search_files(index, encoder, paths, values.k, **options)


def main(paths):
    values = flags.FLAGS
    _check_flags(values, paths)
    write_answers(_found(values, paths), values.output)


if __name__ == "__main__":
    flags.DEFINE_string("index", None, "folder that export.index wrote", required=True)
    flags.DEFINE_integer("k", 10, "results per query", lower_bound=1)
    flags.DEFINE_string(
        "dataset", "", "queries: folder:PATH, name or name/split, instead of image files"
    )
    flags.DEFINE_string("data_dir", "", "where prepared TFDS data lies; empty: TFDS's own place")
    flags.DEFINE_string("embeddings", "", "queries: .npy file of float [Q, M*D], instead of images")
    flags.DEFINE_string(
        "output", "", "file for the answers, lines of JSON or by .parquet a table; empty: stdout"
    )
    flags.DEFINE_bool("explain", False, "also give what each book adds to each distance")
    flags.DEFINE_integer(
        "rerank", None, "candidates ranked by exact tables; 100 or twice k, if not given", 1
    )
    flags.DEFINE_integer(
        "leaves_to_search", None, "leaves a query asks; as the index was built, if not given", 1
    )
    flags.DEFINE_string(
        "saved_model", "", "the index's encoder, if it lies elsewhere than when it was indexed"
    )
    flags.DEFINE_string(
        "server",
        "",
        "a TensorFlow Serving that has the encoder: host:port of gRPC, http://host:port of REST; "
        "empty: the encoder runs here",
    )
    flags.DEFINE_string("model", "hqc", "the encoder's name on --server")
    flags.DEFINE_float(
        "deadline", 30, "for an answer of --server to a batch of files, in seconds", lower_bound=0
    )
    commands.run(main)
