"""Figures of codes that need no labels: recall of an image by its other view, use of the words.

The images are held out from training. Each is encoded twice, as it is and as an augmented view; the
views query the codes of the plain images: good codes find the image that the view was made from.
"""

from typing import Any, NamedTuple

import numpy as np

from hqc_tf import model, retrieval
from hqc_tf.data.images import Images
from hqc_tf.data.views import changed_views

# A book that uses a smaller share of its words is called collapsed.
_COLLAPSED = 1 / 4


class Scores(NamedTuple):
    """How good codes are, as far as images alone tell.

    Attributes:
        held_out: number of images behind the figures.
        recall_at_1: share of the augmented views whose nearest code is that of their own image.
        perplexity: float64 [M], words of each book in use: exp of the entropy of their shares, 1 to
            K.
        quantization_error: squared distance from embeddings to their codewords, as a share of the
            squared length of the embeddings; both are means over images.
    """

    held_out: int
    recall_at_1: float
    perplexity: np.ndarray
    quantization_error: float

    def as_fields(self) -> dict[str, Any]:
        """The same with lists for arrays, as the dataclasses of `workdir` have it."""
        return self._asdict() | {"perplexity": self.perplexity.tolist()}


def evaluate(trained: model.HQC, held: Images) -> Scores:
    """Evaluates a model on images that it was not trained on.

    Args:
        trained: the model.
        held: at least one image; labels are not used. The same images are augmented in the same way
            every time.
    """
    plain = trained.encode_images(held)
    changed = trained.encode_views(changed_views(held, trained.settings), len(held))
    codebooks = trained.quantizer.codebooks.numpy()
    return Scores(
        len(held),
        recall_at_1(changed.embeddings, plain.codes, codebooks, trained.settings.distance),
        perplexity(plain.codes, trained.settings.num_words),
        quantization_error(plain.embeddings, plain.codes, codebooks),
    )


def recall_at_1(
    embeddings: np.ndarray, codes: np.ndarray, codebooks: np.ndarray, distance: str
) -> float:
    """Share of queries whose nearest code is that of their own row.

    Where n codes are equally near, the own one counts 1/n: a collapsed codebook, whose codes are
    all alike, has the recall of chance.

    Args:
        embeddings: float [N, M*D]; query i should find row i of the codes.
        codes: uint8 [N, M].
        codebooks: float [M, K, D].
        distance: "l2" or "squared", as in `retrieval.asymmetric_distances`.
    """
    step = max(1, retrieval.CHUNK_ELEMENTS // len(codes))
    found = 0.0
    for start in range(0, len(codes), step):
        queries = embeddings[start : start + step]
        distances = retrieval.asymmetric_distances(queries, codes, codebooks, distance).numpy()
        own = distances[np.arange(len(queries)), start + np.arange(len(queries))]
        nearest = distances.min(axis=1)
        found += np.sum((own == nearest) / np.sum(distances == nearest[:, None], axis=1))
    return float(found / len(codes))


def word_shares(codes: np.ndarray, num_words: int) -> np.ndarray:
    """uint8 [N, M] -> float64 [M, K], the share of images with each word of each book."""
    count, num_books = codes.shape
    words = codes + num_words * np.arange(num_books)
    taken = np.bincount(words.ravel(), minlength=num_books * num_words)
    return taken.reshape(num_books, num_words) / count


def perplexity(codes: np.ndarray, num_words: int) -> np.ndarray:
    """uint8 [N, M] -> float64 [M], exp of the entropy of each book's `word_shares`."""
    shares = word_shares(codes, num_words)
    return np.exp(-np.sum(shares * np.log(np.maximum(shares, 1 / len(codes))), axis=1))


def quantization_error(embeddings: np.ndarray, codes: np.ndarray, codebooks: np.ndarray) -> float:
    """Mean squared distance from embeddings to codewords over the mean squared length.

    Args:
        embeddings: float [N, M*D].
        codes: uint8 [N, M].
        codebooks: float [M, K, D].
    """
    words = codebooks[np.arange(codes.shape[1]), codes].reshape(embeddings.shape)
    return float(np.sum(np.square(embeddings - words)) / np.sum(np.square(embeddings)))


def collapse_warning(perplexities: np.ndarray, num_words: int) -> str | None:
    """One line that names the books that use less than a quarter of their words, or None."""
    books = np.flatnonzero(np.asarray(perplexities) < _COLLAPSED * num_words)
    if not len(books):
        return None
    named = ", ".join(f"{book} ({perplexities[book]:.1f})" for book in books)
    return (
        f"warning: codebook collapse: perplexity under a quarter of {num_words} words in book "
        f"{named}; lower --codeword_diversity_temperature (try 0.1) or raise "
        "--codeword_diversity_weight"
    )
