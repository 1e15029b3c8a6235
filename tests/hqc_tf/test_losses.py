"""The loss terms: the authors' numbers, values by hand, double loops, and shares of a batch."""

import math

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import losses
from hqc_tf.config import FUSIONS
from hqc_tf.quantizer import ProductQuantizer

pytestmark = pytest.mark.usefixtures("same_random_numbers")

CASES = ["losses_8x16_sum", "losses_4x16_concat_positives", "losses_16x16_cross"]
BOOKS, WORDS, DIM = 3, 4, 5


def random_batch(batch=6, dtype=np.float64, seed=0):
    """f_a, f_b, z_a, z_b [B, M*D] and s_a, s_b [B, M, K]; the second view is near the first."""
    rng = np.random.default_rng(seed)
    shapes = [[batch, BOOKS * DIM]] * 2 + [[batch, BOOKS, WORDS]]
    firsts = [rng.standard_normal(shape) for shape in shapes]
    pairs = [(x, x + 0.5 * rng.standard_normal(x.shape)) for x in firsts]
    return [view.astype(dtype) for pair in pairs for view in pair]


def book_log_probs(quantized):
    """Log-probabilities [B*M, M] that depend on every number of z."""
    guess = np.random.default_rng(1).standard_normal([DIM, BOOKS])
    parts = tf.reshape(quantized, [-1, DIM])
    return tf.nn.log_softmax(tf.linalg.matmul(parts, tf.constant(guess, parts.dtype)))


def everyone_of(everyone, first, count):
    return None if everyone is None else tuple(everyone[first : first + count])


def consistency(fusion):
    def term(x, everyone=None, offset=0):
        return losses.consistency_loss(*x[:4], 0.2, fusion, everyone_of(everyone, 0, 4), offset)

    return term


def part_neighbor(**settings):
    def term(x, everyone=None, offset=0):
        extra = {"everyone": everyone_of(everyone, 2, 2), "offset": offset}
        return losses.part_neighbor_loss(*x[2:4], BOOKS, 0.5, **settings, **extra)

    return term


def book_classification(x, everyone=None, offset=0):
    rows = None if everyone is None else BOOKS * everyone[0].shape[0]
    return losses.book_classification_loss(*map(book_log_probs, x[2:4]), everyone_rows=rows)


def features_of(quantized):
    """Float [n, E] that depend on every number of z."""
    guess = np.random.default_rng(2).standard_normal([BOOKS * DIM, 7])
    return tf.math.tanh(tf.linalg.matmul(quantized, tf.constant(guess, quantized.dtype)))


def reconstruction(x, everyone=None, offset=0):
    shared = everyone_of(everyone, 2, 2)
    shared = shared and (*shared, *map(features_of, shared))
    return losses.reconstruction_loss(*x[:4], *map(features_of, x[2:4]), shared)


# Each term as a function of a `random_batch`, and of what its replica is told of everyone's.
TERMS = {
    "instance": lambda x, everyone=None, offset=0: losses.instance_contrastive_loss(
        *x[:2], 0.5, everyone_of(everyone, 0, 2), offset
    ),
    "part_neighbor": part_neighbor(num_neighbors=3),
    "part_neighbor with all": part_neighbor(num_neighbors=3, include_positive=True),
    "codeword_diversity": lambda x, everyone=None, offset=0: losses.codeword_diversity_loss(
        *x[4:], 0.3, everyone_of(everyone, 4, 2)
    ),
    "decorrelation": lambda x, everyone=None, offset=0: losses.decorrelation_loss(
        *x[:2], everyone_of(everyone, 0, 2)
    ),
    "reconstruction": reconstruction,
    "book_classification": book_classification,
    "cross_quantized": lambda x, everyone=None, offset=0: losses.cross_quantized_loss(
        *x[:4], 0.5, everyone_of(everyone, 0, 4), offset
    ),
} | {f"consistency of {fusion}": consistency(fusion) for fusion in FUSIONS}


@pytest.fixture(params=TERMS.values(), ids=TERMS.keys())
def term(request):
    return request.param


def cosine(x, y):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def softmax(logits):
    weights = np.exp(np.asarray(logits))
    return weights / weights.sum()


def instance_by_loop(a, b, temperature):
    items, count = [*a, *b], len(a)
    total = 0.0
    for i, anchor in enumerate(items):
        others = [j for j in range(2 * count) if j != i]
        scores = {j: math.exp(cosine(anchor, items[j]) / temperature) for j in others}
        total -= math.log(scores[(i + count) % (2 * count)] / sum(scores.values()))
    return total / (2 * count)


def spread_by_loop(anchor, items, image, temperature):
    """softmax of the anchor's cosines to the items that are no view of its own image."""
    count = len(items) // 2
    negatives = [j for j in range(2 * count) if j % count != image]
    return softmax([cosine(anchor, items[j]) / temperature for j in negatives])


def divergence_by_loop(first, second, temperature):
    """Mean over images of the symmetric KL of view a in one space and view b in another."""
    (first_a, first_b), (second_a, second_b) = first, second
    total = 0.0
    for image in range(len(first_a)):
        p = spread_by_loop(first_a[image], [*first_a, *first_b], image, temperature)
        q = spread_by_loop(second_b[image], [*second_a, *second_b], image, temperature)
        total += (np.sum(p * np.log(p / q)) + np.sum(q * np.log(q / p))) / 2
    return total / len(first_a)


def consistency_by_loop(f_a, f_b, z_a, z_b, temperature, fusion):
    f, z = (f_a, f_b), (z_a, z_b)
    if fusion == "cross":
        return divergence_by_loop(z, f, temperature) + divergence_by_loop(f, z, temperature)
    fuse = {
        "sum": lambda f, z: f + z,
        "concat": lambda f, z: np.concatenate([f, z], 1),
        "max": np.maximum,
        "quantized": lambda f, z: z,
        "embedding": lambda f, z: f,
    }[fusion]
    r = fuse(f_a, z_a), fuse(f_b, z_b)
    return divergence_by_loop(r, r, temperature)


def part_neighbor_by_loop(z_a, z_b, temperature, num_neighbors, include_positive):
    items, count, total = np.concatenate([z_a, z_b]), len(z_a), 0.0
    for m in range(BOOKS):
        parts = items[:, m * DIM : (m + 1) * DIM]
        for i, j_all in enumerate([range(2 * count)] * (2 * count)):
            compared = [j for j in j_all if include_positive or (i - j) % count]
            scores = sorted(math.exp(cosine(parts[i], parts[j]) / temperature) for j in compared)
            total -= math.log(sum(scores[-num_neighbors:]) / sum(scores))
    return total / (BOOKS * 2 * count)


def diversity_by_loop(s_a, s_b, temperature):
    total = 0.0
    for m in range(BOOKS):
        usage = np.mean([softmax(item[m] / temperature) for item in [*s_a, *s_b]], axis=0)
        total += sum(p * math.log(p + 1e-5) for p in usage)
    return total / BOOKS


def value_and_gradients(function, tensors):
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(tensors)
    gradients = tape.gradient(value, tensors, unconnected_gradients="zero")
    return value.numpy(), [g.numpy() for g in gradients]


def reference_terms(arrays, meta, f_a, f_b, z_a, z_b, s_a, s_b):
    fusion = "concat" if meta["fusion"] == "concatenate" else meta["fusion"]
    log_probs = (arrays[f"codebook_log_probs_{view}"].astype(f_a.dtype.name) for view in "ab")
    return {
        "instance_quantized": losses.instance_contrastive_loss(z_a, z_b, meta["tau_instance"]),
        "instance_embedding": losses.instance_contrastive_loss(f_a, f_b, meta["tau_instance"]),
        "consistency": losses.consistency_loss(f_a, f_b, z_a, z_b, meta["tau_consistency"], fusion),
        "part_neighbor": losses.part_neighbor_loss(
            z_a,
            z_b,
            meta["books"],
            meta["tau_part_neighbor"],
            meta["top_neighbors"],
            meta["neighbors_include_positive"],
        ),
        "codeword_diversity": losses.codeword_diversity_loss(s_a, s_b),
        "codebook_classification": losses.book_classification_loss(*map(tf.constant, log_probs)),
        "cross_quantized": losses.cross_quantized_loss(
            f_a, f_b, z_a, z_b, meta["tau_cross_quantized"]
        ),
    }


def reference_total(arrays, meta, embedding_a, embedding_b, codebooks):
    """All terms and their weighted sum, from embeddings and codebooks on."""
    quantizer = ProductQuantizer(
        *codebooks.shape, meta["tau_soft_quantization"], dtype=codebooks.dtype.name
    )
    quantizer.build([None, embedding_a.shape[1]])
    quantizer.codebooks = codebooks
    a, b = quantizer(embedding_a), quantizer(embedding_b)
    views = (embedding_a, embedding_b, a.quantized, b.quantized, a.similarity, b.similarity)
    terms = reference_terms(arrays, meta, *views)
    return terms, tf.add_n([weight * terms[name] for name, weight in meta["weights"].items()])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_terms_total_and_gradients_are_the_authors(load_reference, name, dtype):
    arrays, meta = load_reference(name)
    names = ["embedding_a", "embedding_b", "codebooks"]
    inputs = [tf.constant(arrays[n], dtype) for n in names]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        terms, total = reference_total(arrays, meta, *inputs)
    assert float(total) == pytest.approx(arrays["total"], rel=1e-5)
    for term_name, value in terms.items():
        assert float(value) == pytest.approx(arrays[f"loss_{term_name}"], rel=1e-5), term_name
    for input_name, gradient in zip(names, tape.gradient(total, inputs), strict=True):
        expected = arrays[f"grad_{input_name}"]
        tolerance = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=tolerance)


def test_instance_contrast_by_hand():
    a = tf.constant([[1.0, 0.0], [0.0, 2.0]])
    b = tf.constant([[0.0, 3.0], [0.0, 1.0]])
    # Cosines to (positive; negatives): a0 (0; 0, 0), b0 (0; 1, 1), a1 and b1 (1; 0, 1).
    e = math.e
    expected = (math.log(3) + math.log(1 + 2 * e) + 2 * math.log((1 + 2 * e) / e)) / 4
    assert float(losses.instance_contrastive_loss(a, b, 1.0)) == pytest.approx(expected)


def test_consistency_by_hand():
    a = tf.constant([[1.0, 0.0], [1.0, 0.0]])
    b = tf.constant([[0.0, 1.0], [0.0, 1.0]])
    # Both views of either image see the other image's at cosines (1, 0) and (0, 1).
    loss = losses.consistency_loss(a, b, a, b, 0.5, fusion="embedding")
    assert float(loss) == pytest.approx(math.tanh(1.0) / 0.5)


def test_part_neighbor_by_hand():
    # Book 0: cosines of a0 and of b0 to (a1, b1) are (1, 0), of a1 (1, 1), of b1 (0, 0).
    # Book 1: everything is alike.
    a = tf.constant([[1.0, 0.0, 5.0, 5.0], [2.0, 0.0, 5.0, 5.0]])
    b = tf.constant([[3.0, 0.0, 5.0, 5.0], [0.0, 1.0, 5.0, 5.0]])
    first = (2 * math.log((math.e + 1) / math.e) + 2 * math.log(2)) / 4
    loss = losses.part_neighbor_loss(a, b, num_books=2, temperature=1.0, num_neighbors=1)
    assert float(loss) == pytest.approx((first + math.log(2)) / 2)


def test_part_neighbor_with_all_by_hand():
    # Of a0, b0 and a1 three are alike, b1 is alone; the item itself is its nearest.
    a = tf.constant([[1.0, 0.0], [2.0, 0.0]])
    b = tf.constant([[3.0, 0.0], [0.0, 1.0]])
    e = math.e
    expected = (3 * math.log((3 * e + 1) / (2 * e)) + math.log((e + 3) / (e + 1))) / 4
    loss = losses.part_neighbor_loss(a, b, 1, 1.0, num_neighbors=2, include_positive=True)
    assert float(loss) == pytest.approx(expected)


def test_codeword_diversity_by_hand():
    # One book of two words; softmax of (log 3, 0) is (3/4, 1/4), so the mean use is (5/8, 3/8).
    leaning, even = [[math.log(3), 0.0]], [[0.0, 0.0]]
    a, b = tf.constant([leaning, even]), tf.constant([leaning, even])
    expected = sum(p * math.log(p + 1e-5) for p in (5 / 8, 3 / 8))
    assert float(losses.codeword_diversity_loss(a, b)) == pytest.approx(expected)
    assert float(losses.codeword_diversity_loss(2 * a, 2 * b, 2.0)) == pytest.approx(expected)


def test_reconstruction_by_hand():
    # Cosines of a0 and a1 to z of (a0, a1, b0, b1) are (1, 0, 1, 0), of b0 and b1 (0, 1, 0, 1).
    f_a, f_b = tf.constant([[1.0, 0.0], [2.0, 0.0]]), tf.constant([[0.0, 3.0], [0.0, 1.0]])
    z_a = z_b = tf.constant([[5.0, 0.0], [0.0, 1.0]])
    # Those of x_a0 to x are (1, 0, 1, 0): correlation 1. Of x_a1, x_b1 (0, 1, 0, 1): -1, 1. Of x_b0
    # (1, 0, 1, 0): -1.
    x_a, x_b = tf.constant([[2.0, 0.0], [0.0, 2.0]]), tf.constant([[1.0, 0.0], [0.0, 7.0]])
    loss = losses.reconstruction_loss(f_a, f_b, z_a, z_b, x_a, x_b)
    assert float(loss) == pytest.approx(1)
    assert float(losses.reconstruction_loss(x_a, x_b, x_a, x_b, x_a, x_b)) == pytest.approx(0)


def reconstruction_by_loop(f, z, x):
    total = 0.0
    for i in range(len(f)):
        found = [cosine(f[i], z[j]) for j in range(len(f))]
        wanted = [cosine(x[i], x[j]) for j in range(len(f))]
        total += 1 - np.corrcoef(found, wanted)[0, 1]
    return total / len(f)


def test_reconstruction_equals_the_double_loop_and_leaves_the_features():
    f_a, f_b, z_a, z_b, *_ = random_batch(5)
    x = [tf.constant(features_of(z)) for z in (z_a, z_b)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = losses.reconstruction_loss(f_a, f_b, z_a, z_b, *x)
    stacked = [np.concatenate(pair) for pair in ((f_a, f_b), (z_a, z_b), x)]
    assert float(value) == pytest.approx(reconstruction_by_loop(*stacked), rel=1e-9)
    assert tape.gradient(value, x) == [None, None]


def test_book_classification_by_hand():
    # Rows: books 0 and 1 of the first image, then of the second.
    a = tf.math.log([[0.5, 0.5], [0.2, 0.8], [1.0, 1e-9], [0.9, 0.1]])
    b = tf.math.log([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    expected = -math.log(0.5 * 0.8 * 1.0 * 0.1) / 4 + math.log(2)
    assert float(losses.book_classification_loss(a, b)) == pytest.approx(expected)


def test_cross_quantized_contrast_by_hand():
    f_a, f_b = tf.constant([[1.0, 0.0], [0.0, 1.0]]), tf.constant([[1.0, 0.0], [1.0, 0.0]])
    z_a, z_b = tf.constant([[0.0, 1.0], [0.0, 1.0]]), tf.constant([[1.0, 0.0], [0.0, 1.0]])
    # {f_a; z_b}: each pair alike, the other pair at right angles. {f_b; z_a}: the other way round.
    apart = math.log((math.e + 2) / math.e)
    mixed = math.log(2 + math.e)
    loss = losses.cross_quantized_loss(f_a, f_b, z_a, z_b, temperature=1.0)
    assert float(loss) == pytest.approx(apart + mixed)


@pytest.mark.parametrize("batch", [2, 5])
def test_instance_contrasts_equal_the_double_loop(batch):
    f_a, f_b, z_a, z_b, *_ = random_batch(batch)
    value = losses.instance_contrastive_loss(f_a, f_b, 0.5)
    assert float(value) == pytest.approx(instance_by_loop(f_a, f_b, 0.5), rel=1e-12)
    crossed = losses.cross_quantized_loss(f_a, f_b, z_a, z_b, 0.7)
    expected = instance_by_loop(f_a, z_b, 0.7) + instance_by_loop(f_b, z_a, 0.7)
    assert float(crossed) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_consistency_equals_the_double_loop(fusion):
    pairs = random_batch(5)[:4]
    expected = consistency_by_loop(*pairs, 0.3, fusion)
    assert float(losses.consistency_loss(*pairs, 0.3, fusion)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("include_positive", [False, True])
@pytest.mark.parametrize("num_neighbors", [1, 3, 7])
def test_part_neighbor_equals_the_double_loop(num_neighbors, include_positive):
    _, _, z_a, z_b, *_ = random_batch(5)
    settings = 0.5, num_neighbors, include_positive
    value = losses.part_neighbor_loss(z_a, z_b, BOOKS, *settings)
    assert float(value) == pytest.approx(part_neighbor_by_loop(z_a, z_b, *settings), rel=1e-12)


def test_codeword_diversity_equals_the_double_loop():
    s_a, s_b = random_batch(5)[4:]
    value = losses.codeword_diversity_loss(s_a, s_b, 0.3)
    assert float(value) == pytest.approx(diversity_by_loop(s_a, s_b, 0.3), rel=1e-12)


def test_book_classification_equals_the_loop():
    a, b = (book_log_probs(z).numpy() for z in random_batch(5)[2:4])
    expected = -sum(a[row, row % BOOKS] + b[row, row % BOOKS] for row in range(5 * BOOKS))
    value = losses.book_classification_loss(a, b)
    assert float(value) == pytest.approx(expected / (5 * BOOKS), rel=1e-12)


def test_swapped_views_change_nothing(term):
    batch = random_batch()
    swapped = [batch[place ^ 1] for place in range(6)]
    assert float(term(swapped)) == pytest.approx(float(term(batch)), rel=1e-12)


def test_order_of_images_changes_nothing(term):
    batch = random_batch()
    order = np.random.default_rng(2).permutation(6)
    shuffled = [view[order] for view in batch]
    assert float(term(shuffled)) == pytest.approx(float(term(batch)), rel=1e-12)


def test_order_of_one_views_images_matters(term):
    batch = random_batch()
    turned = [np.roll(view, place % 2, axis=0) for place, view in enumerate(batch)]
    pairs_do_not_count = {
        TERMS[name]
        for name in (
            "codeword_diversity",
            "decorrelation",
            "book_classification",
            "part_neighbor with all",
            "reconstruction",
        )
    }
    same = float(term(turned)) == pytest.approx(float(term(batch)), rel=1e-9)
    assert same == (term in pairs_do_not_count)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_of_the_input_is_kept(term, dtype):
    value, gradients = value_and_gradients(term, random_batch(dtype=dtype))
    assert {value.dtype.name, *(g.dtype.name for g in gradients)} == {dtype}
    exact, _ = value_and_gradients(term, random_batch())
    assert value == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 5], [1, 2, 1, 2]])
def test_shares_of_replicas_add_up_to_the_whole(term, sizes):
    ends = np.cumsum(sizes)

    def summed(views):
        return tf.add_n(
            [
                term([view[end - size : end] for view in views], tuple(views), int(end - size))
                for size, end in zip(sizes, ends, strict=True)
            ]
        )

    batch = random_batch()
    whole, gradients = value_and_gradients(term, batch)
    total, summed_gradients = value_and_gradients(summed, batch)
    assert total == pytest.approx(whole, rel=1e-12)
    for expected, got in zip(gradients, summed_gradients, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_nothing_is_larger_than_anchors_times_everyone(term):
    local, everyone = 16, 32
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        views = [tf.constant(view) for view in random_batch(everyone)]
        replica = [view[local:] for view in views]
        tf.gradients(term(replica, tuple(views), local), views)
        tensors = [t for op in graph.get_operations() for t in op.outputs]
        largest = max(value.size for value in session.run(tensors))
    assert largest <= BOOKS * 2 * local * 2 * everyone
    assert BOOKS * 2 * local * 2 * everyone < 2 * local * 2 * everyone * DIM


@pytest.mark.parametrize("include_positive", [False, True])
def test_more_neighbors_than_there_are_cost_nothing(include_positive):
    _, _, z_a, z_b, *_ = random_batch(3)
    for num_neighbors in (6, 20):
        value = losses.part_neighbor_loss(z_a, z_b, BOOKS, 0.5, num_neighbors, include_positive)
        assert float(value) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("batch", [2, 7])
def test_identical_embeddings_give_closed_forms(batch):
    same = tf.ones([batch, BOOKS * DIM])
    instance = losses.instance_contrastive_loss(same, same, 0.5)
    assert float(instance) == pytest.approx(math.log(2 * batch - 1), rel=1e-6)
    crossed = losses.cross_quantized_loss(same, same, same, same)
    assert float(crossed) == pytest.approx(2 * math.log(2 * batch - 1), rel=1e-6)
    neighbors = losses.part_neighbor_loss(same, same, BOOKS, 0.5, num_neighbors=1)
    assert float(neighbors) == pytest.approx(math.log(2 * batch - 2), rel=1e-6)
    for fusion in FUSIONS:
        assert float(losses.consistency_loss(same, same, same, same, 0.2, fusion)) == 0


def test_even_use_of_words_and_a_single_word_are_the_bounds_of_diversity():
    even = tf.zeros([4, BOOKS, WORDS])
    assert float(losses.codeword_diversity_loss(even, even)) == pytest.approx(
        math.log(1 / WORDS + 1e-5)
    )
    single = tf.one_hot(tf.ones([4, BOOKS], tf.int32), WORDS)
    assert float(losses.codeword_diversity_loss(single, single, 0.01)) == pytest.approx(
        math.log(1 + 1e-5), rel=0.01
    )
    # Each item leans on one word, and together they use all alike.
    spread = tf.one_hot(tf.tile(tf.range(4)[:, None], [1, BOOKS]), WORDS)
    assert float(losses.codeword_diversity_loss(spread, spread, 0.01)) == pytest.approx(
        math.log(1 / WORDS + 1e-5)
    )


def test_guessing_evenly_costs_log_books_for_each_view():
    even = tf.nn.log_softmax(tf.zeros([4 * BOOKS, BOOKS]))
    value = losses.book_classification_loss(even, even)
    assert float(value) == pytest.approx(2 * math.log(BOOKS))


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_values_and_gradients_stay_finite(term, scale):
    batch = [view * np.float32(scale) for view in random_batch(dtype=np.float32)[:4]]
    value, gradients = value_and_gradients(term, batch + random_batch(dtype=np.float32)[4:])
    assert all(np.isfinite(x).all() for x in [value, *gradients])


def test_sharp_temperatures_stay_finite():
    f_a, f_b, z_a, z_b, *_ = random_batch(dtype=np.float32)
    for function in (
        lambda x: losses.instance_contrastive_loss(*x[:2], 1e-3),
        lambda x: losses.consistency_loss(*x, 1e-3),
        lambda x: losses.part_neighbor_loss(*x[:2], BOOKS, 1e-3, 3),
    ):
        value, gradients = value_and_gradients(function, [f_a, f_b, z_a, z_b])
        assert all(np.isfinite(x).all() for x in [value, *gradients])


def test_a_single_image_has_no_negatives():
    batch = random_batch(1)
    for name in ("instance", "part_neighbor", "cross_quantized"):
        assert float(TERMS[name](batch)) == pytest.approx(0, abs=1e-12)


def test_decorrelation_by_hand():
    # Two numbers that are equal in the first view, and independent in the second.
    equal = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    apart = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    # The correlation counts in both directions, over two numbers: 1 and 0, whose mean is a half.
    assert float(losses.decorrelation_loss(equal, apart)) == pytest.approx(0.5, rel=1e-3)


def test_decorrelation_equals_numpy():
    f_a, f_b, *_ = random_batch(20)
    total = 0.0
    for view in (f_a, f_b):
        correlation = np.corrcoef(view.T)
        total += np.sum(correlation**2) - len(correlation)
    expected = total / 2 / f_a.shape[1]
    assert float(losses.decorrelation_loss(f_a, f_b)) == pytest.approx(expected, rel=1e-2)


def test_unknown_fusion_is_refused():
    pairs = random_batch()[:4]
    with pytest.raises(ValueError, match="fusion='mean': not one of sum, concat, max, quantized"):
        losses.consistency_loss(*pairs, 0.2, fusion="mean")
