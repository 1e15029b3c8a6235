"""Answers image files with their nearest images: `python -m export.search --index=... a.jpg b.png`.

One line of JSON per query: {"query": file, "ids": [...], "distances": [...]}, nearest first, the
distances squared asymmetric ones.
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
        embeddings = encode_images(encoder, Images(None, names, names, None, None)).embeddings
        for name, ids, distances in zip(names, *index.search(embeddings, k), strict=True):
            yield {"query": name, "ids": ids, "distances": distances.tolist()}


def main(paths):
    values = flags.FLAGS
    if not paths:
        raise UserError("no query; name image files after the flags")
    index = load_index(values.index)
    encoder = load_encoder(values.saved_model or index.manifest["encoder"]["path"])
    for answer in search_files(index, encoder, paths, values.k):
        print(json.dumps(answer))


if __name__ == "__main__":
    flags.DEFINE_string("index", None, "folder that export.index wrote", required=True)
    flags.DEFINE_integer("k", 10, "results per query", lower_bound=1)
    flags.DEFINE_string(
        "saved_model", "", "the index's encoder, if it lies elsewhere than when it was indexed"
    )
    config.run(main)
