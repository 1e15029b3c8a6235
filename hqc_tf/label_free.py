"""What can be said of codes without labels: recall of an image by its other view, use of the words.

The images are kept from training. Each is encoded as it is and as training changes it, and the
changed view searches the codes of the plain ones: good codes find the image it came from.
"""

from typing import NamedTuple

import numpy as np

from hqc_tf import retrieval
from hqc_tf.data.batches import changed_views

# Below this part of its words a book is called collapsed.
_COLLAPSED = 1 / 4


class Judgement(NamedTuple):
    """How good codes are, as far as images alone tell.

    Attributes:
      held_out: how many images it rests on.
      recall_at_1: share of the changed views whose nearest code is their own image's.
      perplexity: float [M], words of each book in use: exp of the entropy of their shares, 1 to K.
      quantization_error: squared distance from embedding to codewords, as a part of the squared
        length of the embedding; both are means over images.
    """

    held_out: int
    recall_at_1: float
    perplexity: np.ndarray
    quantization_error: float

    def as_json(self):
        """What JSON can hold of it."""
        return self._asdict() | {"perplexity": self.perplexity.tolist()}


def judge(model, held):
    """Judges a model by images that it has not learned from.

    Args:
      model: `HQC`.
      held: `data.Images`, N at least 1; their labels are not looked at.

    Returns:
      `Judgement`; the same images are changed in the same way every time.
    """
    plain = model.encode_images(held)
    changed = model.encode_views(changed_views(held, model.settings), len(held))
    codebooks = model.quantizer.codebooks.numpy()
    return Judgement(
        len(held),
        recall_at_1(changed.embeddings, plain.codes, codebooks, model.settings.distance),
        perplexity(plain.codes, model.settings.num_words),
        quantization_error(plain.embeddings, plain.codes, codebooks),
    )


def recall_at_1(embeddings, codes, codebooks, distance):
    """Share of queries whose nearest code is the one of their own row.

    Where n codes are equally near, the own one counts 1/n: a collapsed codebook, whose codes are
    all alike, has the recall of chance.

    Args:
      embeddings: float [N, M*D]; row i asks for row i of the codes.
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


def word_shares(codes, num_words):
    """uint8 [N, M] -> float64 [M, K]: how often each word of each book is taken, of 1."""
    count, num_books = codes.shape
    words = codes + num_words * np.arange(num_books)
    taken = np.bincount(words.ravel(), minlength=num_books * num_words)
    return taken.reshape(num_books, num_words) / count


def perplexity(codes, num_words):
    """uint8 [N, M] -> float64 [M]: exp of the entropy of how often each word is taken."""
    shares = word_shares(codes, num_words)
    return np.exp(-np.sum(shares * np.log(np.maximum(shares, 1 / len(codes))), axis=1))


def quantization_error(embeddings, codes, codebooks):
    """Squared distance of [N, M*D] from the words of [N, M], over the squared length; the means."""
    words = codebooks[np.arange(codes.shape[1]), codes].reshape(embeddings.shape)
    return float(np.sum(np.square(embeddings - words)) / np.sum(np.square(embeddings)))


def collapse_warning(perplexities, num_words):
    """One line that names the books of which under a quarter of the words is used, or None."""
    books = np.flatnonzero(np.asarray(perplexities) < _COLLAPSED * num_words)
    if not len(books):
        return None
    named = ", ".join(f"{book} ({perplexities[book]:.1f})" for book in books)
    return (
        f"warning: codebook collapse: perplexity under a quarter of {num_words} words in book "
        f"{named}; lower --codeword_diversity_temperature (0.1 acts) or raise "
        "--codeword_diversity_weight"
    )
