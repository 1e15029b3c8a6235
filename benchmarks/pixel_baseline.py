"""What raw pixels give at the same number of bits: `python -m benchmarks.pixel_baseline`

Flattens the images of a benchmark, keeps 64 principal components of their pixels and trains FAISS's
optimized product quantization (OPQ, Ge et al., CVPR 2013) on the training images: no network, no
labels. Codes and protocol are those of `hqc_tf.evaluate`: the same splits, the same number of bits
and asymmetric distances, here squared, which OPQ's rotation keeps. Prints mAP@R of the codes, and
of the unquantized pixels.
"""

import faiss
import numpy as np
from absl import flags

from benchmarks import machine
from hqc_tf import commands, metrics
from hqc_tf.data import catalog
from hqc_tf.errors import UserError

COMPONENTS = 64
WORD_BITS = 4


def load_pixels(dataset: str, role: str, data_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [N, H*W*C] in 0 to 1, labels) of the images in a role of `catalog.load_split`."""
    images = catalog.load_split(dataset, role, data_dir)
    return images.pixels.reshape(len(images), -1).astype(np.float32) / 255, images.labels


def train_codes(
    train: np.ndarray, database: np.ndarray, queries: np.ndarray, num_books: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal components, OPQ's rotation and codebooks from `train`, applied to the others.

    Args:
        train, database, queries: float32 [N, pixels].
        num_books: books of 16 words, M; a divisor of `COMPONENTS`.

    Returns:
        codebooks float32 [M, 16, D], codes uint8 [N, M] of the database, and the rotated queries
        float32 [Q, M*D].
    """
    components = faiss.PCAMatrix(train.shape[1], COMPONENTS)
    components.train(train)
    rotation = faiss.OPQMatrix(COMPONENTS, num_books, COMPONENTS)
    rotation.pq = faiss.ProductQuantizer(COMPONENTS, num_books, WORD_BITS)
    rotation.train(components.apply(train))
    rotated = [rotation.apply(components.apply(x)) for x in (train, database, queries)]
    quantizer = faiss.ProductQuantizer(COMPONENTS, num_books, WORD_BITS)
    quantizer.train(rotated[0])
    codebooks = faiss.vector_to_array(quantizer.centroids).reshape(num_books, 2**WORD_BITS, -1)
    # FAISS packs two codes in a byte, the first in the low bits.
    packed = quantizer.compute_codes(rotated[1])
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    return codebooks, codes[:, :num_books], rotated[2]


def exact_order(database: np.ndarray, queries: np.ndarray, top_k: int) -> np.ndarray:
    """[Q, top_k] rows of the database by squared distance, nearest first."""
    index = faiss.IndexFlatL2(database.shape[1])
    index.add(database)
    return index.search(queries, top_k)[1]


def main(_):
    values = flags.FLAGS
    if COMPONENTS % values.num_books:
        raise UserError(
            f"--num_books={values.num_books}: must divide {COMPONENTS} components; take 4, 8 or 16"
        )
    loaded = {
        role: load_pixels(values.dataset, role, values.data_dir)
        for role in ("train", "database", "query")
    }
    (train, _), (database, labels), (queries, query_labels) = loaded.values()
    codebooks, codes, rotated = train_codes(train, database, queries, values.num_books)
    found = metrics.evaluate_codes(
        codebooks, codes, labels, rotated, query_labels, values.top_k, "squared"
    )
    unquantized = metrics.average_precision(
        metrics.relevance(labels[exact_order(database, queries, values.top_k)], query_labels)
    )
    print(
        f"{catalog.protocol(values.dataset)}, {WORD_BITS * values.num_books} bits, "
        f"mAP@{values.top_k}: raw pixels with PCA-{COMPONENTS} and OPQ "
        f"{found.mean_average_precision:.4f}; unquantized pixels {unquantized.mean():.4f}"
    )
    print(machine.describe(machine.hardware()))


if __name__ == "__main__":
    flags.DEFINE_string("dataset", "fashion_mnist", "a labeled data set, as in hqc_tf.train")
    flags.DEFINE_string("data_dir", "data/tfds", "folder of the prepared data")
    flags.DEFINE_integer("num_books", 8, "books of 16 words: 4 bits of a code each", lower_bound=1)
    flags.DEFINE_integer("top_k", 1000, "R of mAP@R: results counted per query", lower_bound=1)
    commands.run(main)
