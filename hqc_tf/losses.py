"""The loss terms of the paper, each a pure function from two views of a batch to a scalar.

`TERMS` names them all, as functions of a `Pair` of encodings and the settings of a run.

Shapes: b images in this replica's batch, B in the batch of all replicas, M books of D-dimensional
parts. Row i of `a` and row i of `b` are two views of one image; its negatives are the 2B-2 views of
the other images. Every loss is a float scalar.

On one replica b = B, and `everyone` and `offset` keep their defaults. On several, `everyone` holds
the same tensors, in the order of the arguments, for all B images, this replica's rows among them
from row `offset` on: a loss then takes local anchors against the whole batch and returns this
replica's share, so that the sum over replicas is the loss of the whole batch.

Similarities are matrix products of normalized rows: nothing larger than the local anchors times
the global batch is built, per book where the term is per book.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from hqc_tf.config import FUSIONS, Config

Tensor = tf.Tensor
Tensors = tuple[Tensor, ...] | None
Offset = int | Tensor

# exp() of it is zero in float32 and wider, and unlike -inf it leaves no NaN in a difference.
_MASKED = -1e9
_SHORTEST = 1e-12


class Encoding(NamedTuple):
    """What the model makes of a batch of images."""

    embedding: Tensor  # float [B, M*D], f
    quantized: Tensor  # float [B, M*D], z, softly quantized
    similarity: Tensor  # float [B, M, K], cosine of each part with each codeword


class Pair(NamedTuple):
    """Both views of a batch, encoded: all that a loss term may look at."""

    a: Encoding  # of each view of this replica's b images
    b: Encoding
    all_a: Encoding  # of each view of the B images of all replicas
    all_b: Encoding
    offset: Offset = 0  # row of the global batch at which this replica's rows begin
    # Float [b, E] and [B, E] of each view, what the network in front made of it; empty where the
    # reconstruction term has no weight.
    features: Tensors = ()
    all_features: Tensors = ()
    # Float [n, D] parts -> float [n, M] logits of the book each came from; None where the book
    # classification term has no weight.
    classify_books: Callable[[Tensor], Tensor] | None = None

    def views(self, *names: str) -> tuple[Tensor, ...]:
        """The named tensors of this replica's images, both views of each in turn."""
        return tuple(getattr(view, name) for name in names for view in (self.a, self.b))

    def everyone(self, *names: str) -> tuple[Tensor, ...]:
        """As `views`, of the images of all replicas."""
        return tuple(getattr(view, name) for name in names for view in (self.all_a, self.all_b))


def instance_contrastive_loss(
    a: Tensor, b: Tensor, temperature: float, everyone: Tensors = None, offset: Offset = 0
) -> Tensor:
    """NT-Xent over the 2B items: mean cross-entropy with the other view as the positive.

    Source: the paper's instance contrast, on quantized and on raw embeddings.

    Args:
        a, b: float [b, dim], the two views.
        temperature: divides the cosines; the authors' is 0.5.
    """
    all_a, all_b = everyone or (a, b)
    negatives = _negatives(_cosines(a, b, all_a, all_b) / temperature, offset)
    positive = tf.reduce_sum(_unit(a) * _unit(b), -1) / temperature
    # Cross-entropy with one positive: log(1 + sum exp(negatives) / exp(positive)).
    each = tf.nn.softplus(tf.reduce_logsumexp(negatives, -1) - positive)
    return tf.reduce_sum(each) / (2 * _rows(all_a))


def consistency_loss(
    embedding_a: Tensor,
    embedding_b: Tensor,
    quantized_a: Tensor,
    quantized_b: Tensor,
    temperature: float,
    fusion: str = "sum",
    everyone: Tensors = None,
    offset: Offset = 0,
) -> Tensor:
    """Consistent contrastive regularization: both views see the same negatives alike.

    For image i, the cosines of r_a,i and of r_b,i to the same 2B-2 negatives become two
    distributions; the loss is their symmetric KL divergence, half each way, mean over B. Source:
    the paper's consistency term.

    Args:
        embedding_a, embedding_b, quantized_a, quantized_b: float [b, M*D].
        temperature: divides the cosines; the authors' is 0.2, and 2.0 (weight 40) for "cross".
        fusion: what r is: "sum" f + z, "concat" [f; z], "max" elementwise, "quantized" z,
            "embedding" f, or "cross": z_a's distribution over the negatives' z against f_b's over
            their f, plus f_a's against z_b's; ValueError for another.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"fusion={fusion!r}: not one of {', '.join(FUSIONS)}; take one of these")
    local = embedding_a, embedding_b, quantized_a, quantized_b
    views = zip(_fuse(fusion, *local), _fuse(fusion, *(everyone or local)), strict=True)
    log_probs = [_log_neighborhood(*r, *all_r, temperature, offset) for r, all_r in views]
    if fusion == "cross":
        (z_a, z_b), (f_a, f_b) = log_probs
        divergence = _symmetric_divergence(z_a, f_b) + _symmetric_divergence(f_a, z_b)
    else:
        divergence = _symmetric_divergence(*log_probs[0])
    return divergence / _rows((everyone or local)[0])


def part_neighbor_loss(
    quantized_a: Tensor,
    quantized_b: Tensor,
    num_books: int,
    temperature: float,
    num_neighbors: int = 20,
    include_positive: bool = False,
    everyone: Tensors = None,
    offset: Offset = 0,
) -> Tensor:
    """Part neighbor consistency: in each book an item keeps its nearest neighbors near.

    Per book, the mean over the 2B anchors of
    -log(sum over the `num_neighbors` largest of exp(cos/t) / sum over all of exp(cos/t)), cosines
    taken between parts of z; then the mean over books. Source: the paper's part neighbor term.

    Args:
        quantized_a, quantized_b: float [b, M*D], of M = `num_books` parts.
        temperature: divides the cosines; the authors' is 0.5.
        num_neighbors: how many of the largest count as neighbors.
        include_positive: keep the other view and the anchor itself, as the authors can.
    """
    local = [_by_book(z, num_books) for z in (quantized_a, quantized_b)]
    all_a, all_b = (_by_book(z, num_books) for z in everyone) if everyone else local
    logits = _cosines(*local, all_a, all_b) / temperature
    if not include_positive:
        logits = _negatives(logits, offset)
    largest = tf.math.top_k(logits, tf.minimum(num_neighbors, tf.shape(logits)[-1]), sorted=False)
    each = tf.reduce_logsumexp(logits, -1) - tf.reduce_logsumexp(largest.values, -1)
    return tf.reduce_sum(each) / (2 * num_books * _rows(all_a))


def codeword_diversity_loss(
    similarity_a: Tensor, similarity_b: Tensor, temperature: float = 1.0, everyone: Tensors = None
) -> Tensor:
    """Codeword diversity: negative entropy of the mean use of each book's words.

    p = softmax over words of similarity / temperature, averaged over the 2B items; the loss is
    sum_k p_k log(p_k + 1e-5), mean over books. Source: the paper's diversity term. The authors have
    no temperature: cosines then bound it to -2.77..-2.45 for K = 16, so it hardly acts.

    Args:
        similarity_a, similarity_b: float [b, M, K], cosines of parts and codewords.
        temperature: divides the cosines.
    """
    all_a, all_b = everyone or (similarity_a, similarity_b)
    usage = tf.reduce_mean(tf.nn.softmax(tf.concat([all_a, all_b], 0) / temperature), 0)
    negative_entropy = tf.reduce_mean(tf.reduce_sum(usage * tf.math.log(usage + 1e-5), -1))
    # Each replica holds the whole term, and gradients are summed over replicas.
    return negative_entropy * tf.cast(tf.shape(similarity_a)[0] / tf.shape(all_a)[0], usage.dtype)


def decorrelation_loss(
    embedding_a: Tensor, embedding_b: Tensor, everyone: Tensors = None
) -> Tensor:
    """Decorrelation: squared correlations between different numbers of f over a view's batch.

    Their sum over all pairs of numbers of `embedding_a`, and `embedding_b`, float [b, M*D] each,
    divided by how many numbers there are; mean of both views. Source: VICReg's covariance term
    (Bardes, Ponce and LeCun, ICLR 2022) on standardized numbers. Not the paper's: contrast alone
    leaves most of f's variance in a few directions for many epochs.
    """
    all_a, all_b = everyone or (embedding_a, embedding_b)
    both = tf.stack([all_a, all_b])
    centered = both - tf.reduce_mean(both, 1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centered), 1, keepdims=True)
    standard = centered * tf.math.rsqrt(variance + 1e-4)
    squared = tf.square(tf.matmul(standard, standard, transpose_a=True) / _rows(all_a))
    apart = tf.reduce_sum(squared, [1, 2]) - tf.linalg.trace(squared)
    term = tf.reduce_mean(apart) / tf.cast(tf.shape(all_a)[1], apart.dtype)
    # Each replica holds the whole term, and gradients are summed over replicas.
    return term * tf.cast(tf.shape(embedding_a)[0] / tf.shape(all_a)[0], term.dtype)


def reconstruction_loss(
    embedding_a: Tensor,
    embedding_b: Tensor,
    quantized_a: Tensor,
    quantized_b: Tensor,
    features_a: Tensor,
    features_b: Tensor,
    everyone: Tensors = None,
) -> Tensor:
    """Reconstruction: an item's cosines to all others order them as its features' cosines do.

    Of each of the 2B items f_i, the correlation of cos(f_i, z_j) and cos(x_i, x_j) over all 2B
    items j, itself among them; the loss is 1 less their mean. The features x stay. Not the paper's:
    contrast draws classes together and leaves the order of the nearest open.

    Args:
        embedding_a, embedding_b, quantized_a, quantized_b: float [b, M*D].
        features_a, features_b: float [b, E], what the embeddings were made of.
    """
    local = quantized_a, quantized_b, features_a, features_b
    all_z_a, all_z_b, all_x_a, all_x_b = everyone or local
    found = _all_cosines(embedding_a, embedding_b, all_z_a, all_z_b)
    wanted = tf.stop_gradient(_all_cosines(features_a, features_b, all_x_a, all_x_b))
    found, wanted = (x - tf.reduce_mean(x, 1, keepdims=True) for x in (found, wanted))
    each = 1 - tf.reduce_sum(_unit(found) * _unit(wanted), 1)
    return tf.reduce_sum(each) / (2 * _rows(all_z_a))


def book_classification_loss(
    log_probs_a: Tensor, log_probs_b: Tensor, everyone_rows: Offset | None = None
) -> Tensor:
    """Book classification: from which book a part came; both views' mean NLL added.

    Source: the authors' program, an auxiliary term of weight 0 by default.

    Args:
        log_probs_a, log_probs_b: float [b*M, M], the M parts of one image in a row.
        everyone_rows: B*M, the rows of the global batch; default: those given.
    """
    num_books = log_probs_a.shape[-1]
    right = tf.reshape(log_probs_a + log_probs_b, [-1, num_books, num_books])
    rows = tf.shape(log_probs_a)[0] if everyone_rows is None else everyone_rows
    return -tf.reduce_sum(tf.linalg.trace(right)) / tf.cast(rows, right.dtype)


def cross_quantized_loss(
    embedding_a: Tensor,
    embedding_b: Tensor,
    quantized_a: Tensor,
    quantized_b: Tensor,
    temperature: float = 0.5,
    everyone: Tensors = None,
    offset: Offset = 0,
) -> Tensor:
    """Cross quantized contrast: NT-Xent of {f_a; z_b} plus NT-Xent of {f_b; z_a}.

    Source: SPQ (Jang and Cho, ICCV 2021), an auxiliary term of weight 0 by default.

    Args:
        embedding_a, embedding_b, quantized_a, quantized_b: float [b, M*D].
        temperature: divides the cosines.
    """
    local = embedding_a, embedding_b, quantized_a, quantized_b
    f_a, f_b, z_a, z_b = everyone or local
    pairs = ((embedding_a, quantized_b), (f_a, z_b)), ((embedding_b, quantized_a), (f_b, z_a))
    one, other = (instance_contrastive_loss(*own, temperature, both, offset) for own, both in pairs)
    return one + other


@tf.custom_gradient
def _unit(x):
    """Rows of length one; rows shorter than 1e-6 are divided by that."""
    # Its gradient written out uses x once, so that TensorFlow has nothing to add up.
    squared = tf.reduce_sum(tf.square(x), -1, keepdims=True)
    scale = tf.math.rsqrt(tf.maximum(squared, _SHORTEST))
    unit = x * scale

    def gradient(dy):
        along = tf.reduce_sum(dy * unit, -1, keepdims=True)
        return scale * (dy - tf.where(squared > _SHORTEST, along, 0.0) * unit)

    return unit, gradient


def _rows(x):
    return tf.cast(tf.shape(x)[-2], x.dtype)


def _cosines(a, b, all_a, all_b):
    """Cosines of both views' rows with everyone's: [..., b, d] -> [2, ..., b, 2B], a's first."""
    keys = _unit(tf.concat([all_a, all_b], -2))
    return tf.matmul(_unit(tf.stack([a, b])), keys, transpose_b=True)


def _all_cosines(a, b, all_a, all_b):
    """[2b, 2B]: of the rows of both views with those of everyone's."""
    rows = _unit(tf.concat([a, b], 0))
    return tf.matmul(rows, _unit(tf.concat([all_a, all_b], 0)), transpose_b=True)


def _negatives(logits, offset):
    """Masks, in [..., b, 2B], the two columns of each row that are views of the row's own image."""
    count, columns = tf.shape(logits)[-2], tf.shape(logits)[-1]
    same_image = tf.one_hot(tf.range(count) + offset, columns // 2, dtype=logits.dtype)
    return logits + _MASKED * tf.concat([same_image, same_image], 1)


def _log_neighborhood(a, b, all_a, all_b, temperature, offset):
    """Log of how each view's row spreads over its negatives: [b, 2B] for a, the same for b."""
    logits = _negatives(_cosines(a, b, all_a, all_b) / temperature, offset)
    return tf.unstack(tf.nn.log_softmax(logits))


def _symmetric_divergence(log_p, log_q):
    return tf.reduce_sum(0.5 * (tf.exp(log_p) - tf.exp(log_q)) * (log_p - log_q))


def _fuse(fusion, f_a, f_b, z_a, z_b):
    """The spaces (r_a, r_b) in which `fusion` compares neighbors; "cross" has two."""
    if fusion == "cross":
        return [(z_a, z_b), (f_a, f_b)]
    fuse = {
        "sum": tf.add,
        "concat": lambda f, z: tf.concat([f, z], -1),
        "max": tf.maximum,
        "quantized": lambda f, z: z,
        "embedding": lambda f, z: f,
    }[fusion]
    return [(fuse(f_a, z_a), fuse(f_b, z_b))]


def _by_book(z, num_books):
    """[n, M*D] -> [M, n, D]."""
    parts = tf.reshape(z, [tf.shape(z)[0], num_books, z.shape[-1] // num_books])
    return tf.transpose(parts, [1, 0, 2])


# The setting NAME_weight weighs the term NAME.
TERMS: dict[str, Callable[[Pair, Config], Tensor]] = {
    "instance_quantized": lambda pair, c: instance_contrastive_loss(
        *pair.views("quantized"), c.instance_temperature, pair.everyone("quantized"), pair.offset
    ),
    "instance_embedding": lambda pair, c: instance_contrastive_loss(
        *pair.views("embedding"), c.instance_temperature, pair.everyone("embedding"), pair.offset
    ),
    "consistency": lambda pair, c: consistency_loss(
        *pair.views("embedding", "quantized"),
        c.consistency_temperature,
        c.consistency_fusion,
        pair.everyone("embedding", "quantized"),
        pair.offset,
    ),
    "part_neighbor": lambda pair, c: part_neighbor_loss(
        *pair.views("quantized"),
        c.num_books,
        c.part_neighbor_temperature,
        c.num_neighbors,
        c.include_positive,
        pair.everyone("quantized"),
        pair.offset,
    ),
    "codeword_diversity": lambda pair, c: codeword_diversity_loss(
        *pair.views("similarity"), c.codeword_diversity_temperature, pair.everyone("similarity")
    ),
    "decorrelation": lambda pair, c: decorrelation_loss(
        *pair.views("embedding"), pair.everyone("embedding")
    ),
    "reconstruction": lambda pair, c: reconstruction_loss(
        *pair.views("embedding", "quantized"),
        *pair.features,
        (*pair.everyone("quantized"), *pair.all_features),
    ),
    "book_classification": lambda pair, c: book_classification_loss(
        *(
            tf.nn.log_softmax(pair.classify_books(tf.reshape(f, [-1, c.word_dim])))
            for f in pair.views("embedding")
        ),
        everyone_rows=tf.shape(pair.all_a.embedding)[0] * c.num_books,
    ),
    "cross_quantized": lambda pair, c: cross_quantized_loss(
        *pair.views("embedding", "quantized"),
        c.cross_quantized_temperature,
        pair.everyone("embedding", "quantized"),
        pair.offset,
    ),
}
