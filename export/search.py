"""Answers image files with their nearest images: `python -m export.search --index=... a.jpg b.png`.

One line of JSON per query: {"query": file, "ids": [...], "distances": [...]}, nearest first, the
distances squared asymmetric ones. With `--server` the index's encoder runs there, not here.
"""

import json

from absl import flags

from export.encode import encode_images, load_encoder
from export.index import load_index
from hqc_tf import config
from hqc_tf.config import UserError
from hqc_tf.data import Images

BATCH = 1024


def search_files(index, encoder, paths, k):
    """The k nearest images of each file.

    Args:
      index: `Index`.
      encoder: `Encoder` that the index belongs to.
      paths: image files.
      k: 1 to the number of images.

    Yields:
      dict of "query", "ids" and "distances" per file, in order.

    Raises:
      UserError: the index is of another encoder, or a file is no image.
    """
    index.check_encoder(encoder.manifest["fingerprint"])
    for start in range(0, len(paths), BATCH):
        names = list(paths[start : start + BATCH])
        encoded = encode_images(encoder, Images(None, names, names, None, None))
        yield from _answers(index, names, encoded.embeddings, k)


def search_with_server(index, served, paths, k):
    """As `search_files`, with the embeddings made by a server.

    Args:
      index: `Index`.
      served: the index's encoder, as `export.client.connect` gives it.
      paths: image files.
      k: 1 to the number of images.

    Yields:
      dict of "query", "ids" and "distances" per file, in order.

    Raises:
      UserError: the server has another encoder or gives no answer, or a file is no image.
    """
    # It takes gRPC, which nothing else here needs.
    from export import client

    fingerprint = index.manifest["encoder"]["fingerprint"]
    for names, encoded in client.encode_files(served, paths, fingerprint):
        yield from _answers(index, names, encoded.embeddings, k)


def _answers(index, names, embeddings, k):
    for name, ids, distances in zip(names, *index.search(embeddings, k), strict=True):
        yield {"query": name, "ids": ids, "distances": distances.tolist()}


def main(paths):
    values = flags.FLAGS
    if not paths:
        raise UserError("no query; name image files after the flags")
    index = load_index(values.index)
    if values.server:
        from export import client

        served = client.connect(values.server, values.model, values.deadline)
        answers = search_with_server(index, served, paths, values.k)
    else:
        encoder = load_encoder(values.saved_model or index.manifest["encoder"]["path"])
        answers = search_files(index, encoder, paths, values.k)
    for answer in answers:
        print(json.dumps(answer))


if __name__ == "__main__":
    flags.DEFINE_string("index", None, "folder that export.index wrote", required=True)
    flags.DEFINE_integer("k", 10, "results per query", lower_bound=1)
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
    config.run(main)
