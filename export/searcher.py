"""Encoder and index in one SavedModel for TensorFlow Serving: images in, nearest images out.

`python -m export.searcher --saved_model=serving/hqc --index=index/ --output=serving/searcher`
writes serving/searcher/<version>/. A product-quantized search is table look-ups and a top-k, which
every server has: no op of ScaNN is inside. The codes are scanned in full, so it suits collections
of up to a few million images.
"""

import pathlib

import numpy as np
import tensorflow as tf
from absl import flags

from export import folders, versions
from export.encoder import load_encoder
from export.index import load_index
from hqc_tf import _keras2, commands, retrieval
from hqc_tf.errors import counted

FORMAT = "hqc-searcher"
FORMAT_VERSION = 1
# Fewest codes scanned at a time; more where few queries leave room.
MIN_CHUNK = 1024
K = tf.TensorSpec([], tf.int32, "k")


class Searcher(tf.Module):
    """An encoder and the codes of N images as the signatures of a SavedModel.

    Both signatures give `ids` string [B, k] and `distances` float32 [B, k], nearest first: squared
    asymmetric distances, ties to the image indexed first, as `export.index` ranks them. They fail
    unless k is 1 to N.
    """

    def __init__(self, encoder, index):
        super().__init__()
        self._encoder = encoder.module
        self._codebooks = index.codebooks
        self._codes = tf.Variable(index.codes, trainable=False, name="codes")
        self._ids = tf.Variable(index.ids.to_pylist(), trainable=False, name="ids")

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images"), K])
    def search(self, images: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        """uint8 [B, H, W, 3], and k int32."""
        encoded = self._encoder.signatures["serving_default"](images=images)
        return self._search(encoded["embedding"], k)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes"), K])
    def search_bytes(self, image_bytes: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        """string [B], the contents of image files, and k int32.

        Also gives `valid` bool [B]; a file that is not an image has ids "" at distance infinity.
        """
        encoded = self._encoder.signatures["encode_bytes"](image_bytes=image_bytes)
        found, valid = self._search(encoded["embedding"], k), encoded["valid"]
        ids = tf.where(valid[:, None], found["ids"], "")
        distances = tf.where(valid[:, None], found["distances"], np.inf)
        return {"ids": ids, "distances": distances, "valid": valid}

    def _search(self, embeddings, k):
        count = self._codes.shape[0]
        rule = f"k must lie in 1 to {count}, the number of images, but is"
        checked = tf.debugging.Assert((k >= 1) & (k <= count), [rule, k])
        with tf.control_dependencies([checked]):
            k = tf.identity(k)
        rows, distances = nearest(embeddings, self._codes, self._codebooks, k)
        return {"ids": tf.gather(self._ids, rows), "distances": distances}


def nearest(
    embeddings: tf.Tensor, codes: tf.Tensor | tf.Variable, codebooks: np.ndarray, k: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The k nearest codes of each query, in a graph whose memory does not grow with N.

    Args:
        embeddings: [Q, M*D] float32.
        codes: [N, M] uint8.
        codebooks: [M, K, D] float32.
        k: int32 scalar, 1 to N.

    Returns:
        rows: [Q, k] int32, nearest first, ties to the lower row.
        distances: [Q, k] float32, squared asymmetric ones.
    """
    tables = retrieval.distance_tables(embeddings, codebooks, "squared")
    by_book = tf.transpose(tables, [1, 2, 0])
    num_queries, count = tf.shape(tables)[0], tf.shape(codes)[0]
    step = tf.maximum(MIN_CHUNK, retrieval.CHUNK_ELEMENTS // (num_queries * len(codebooks)))

    def scan(start, rows, distances):
        words = tf.cast(tf.transpose(codes[start : start + step]), tf.int32)
        # Books are added in their order, as `retrieval` does: other roundings would break ties.
        chunk = tf.reduce_sum(tf.gather(by_book, words, batch_dims=1), axis=0)
        joined = tf.concat([distances, tf.transpose(chunk)], axis=1)
        # Of equal values top_k takes the lower place first, and the rows held so far come first.
        negated, places = tf.math.top_k(-joined, k)
        held = tf.gather(rows, tf.minimum(places, k - 1), batch_dims=1)
        return start + step, tf.where(places < k, held, start + places - k), -negated

    none_yet = tf.zeros([num_queries, k], tf.int32), tf.fill([num_queries, k], np.inf)
    _, rows, distances = tf.while_loop(
        lambda start, rows, distances: start < count,
        scan,
        [0, *none_yet],
        shape_invariants=[tf.TensorShape([])] + 2 * [tf.TensorShape([None, None])],
        parallel_iterations=1,
    )
    return rows, distances


def export_searcher(
    encoder_path: str, index_path: str, output: str, version: int | None = None
) -> pathlib.Path:
    """Writes encoder and index as a version under `output`, atomically; returns its path.

    Args:
        encoder_path: what `export.saved_model` wrote; its newest version, or one of them.
        index_path: what `export.index` wrote with that encoder.
        output: folder of versions.
        version: number of the version; None: the next.

    Raises:
        UserError: the version exists, encoder or index is missing, or they do not belong together.
    """
    version = versions.free_version(output, version)
    index, encoder = load_index(index_path), load_encoder(encoder_path)
    index.check_encoder(encoder.manifest["fingerprint"])
    searcher = Searcher(encoder, index)
    signatures = {"search": searcher.search, "search_bytes": searcher.search_bytes}
    contents = {
        "format_version": FORMAT_VERSION,
        "encoder": {"fingerprint": encoder.manifest["fingerprint"]},
        "num_images": index.num_images,
        "bits": encoder.manifest["bits"],
        "distance": "squared",
        "versions": _keras2.versions(),
    }
    with versions.new_version(output, version) as folder:
        tf.saved_model.save(searcher, str(folder), signatures=signatures)
        k = np.int32(min(10, index.num_images))
        versions.write_warmup(folder, "search", "search_bytes", {"k": k})
        folders.write_manifest(folder, FORMAT, contents)
    return pathlib.Path(output, str(version))


def main(_: list[str]) -> None:
    values = flags.FLAGS
    version = export_searcher(values.saved_model, values.index, values.output, values.version)
    found = folders.read_manifest(version, FORMAT)
    identity = found["encoder"]["fingerprint"][:16]
    images = counted(found["num_images"], "image")
    print(f"{version}: {images} at {found['bits']} bits, encoder {identity}")


if __name__ == "__main__":
    flags.DEFINE_string(
        "saved_model", None, "what export.saved_model wrote; its newest version", required=True
    )
    flags.DEFINE_string("index", None, "folder that export.index wrote", required=True)
    flags.DEFINE_string("output", None, "folder of versions", required=True)
    flags.DEFINE_integer("version", None, "number of the version; the next, if none", lower_bound=1)
    commands.run(main)
