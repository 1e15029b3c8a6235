"""The product quantizer against the authors' arrays, values by hand and NumPy's nearest."""

import math

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf.quantizer import ProductQuantizer

pytestmark = pytest.mark.usefixtures("same_random_numbers")

CASES = ["losses_8x16_sum", "losses_4x16_concat_positives", "losses_16x16_cross"]


def with_codebooks(codebooks, temperature=0.2, **kwargs):
    codebooks = np.asarray(codebooks)
    num_books, num_words, word_dim = codebooks.shape
    quantizer = ProductQuantizer(num_books, num_words, word_dim, temperature, **kwargs)
    quantizer.build([None, num_books * word_dim])
    quantizer.codebooks.assign(codebooks)
    return quantizer


def assert_near(result, expected):
    """Equal to 1e-5 of the largest; small numbers are differences of large ones."""
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def random_case(num_books=3, num_words=8, word_dim=5, batch=20, dtype=np.float32):
    rng = np.random.default_rng(0)
    codebooks = rng.standard_normal([num_books, num_words, word_dim]).astype(dtype)
    embedding = rng.standard_normal([batch, num_books * word_dim]).astype(dtype)
    return codebooks, embedding


def squared_distances(embedding, codebooks):
    parts = embedding.reshape(-1, codebooks.shape[0], 1, codebooks.shape[2])
    return np.sum((parts - codebooks) ** 2, axis=-1)


def hard_error(vectors, num_books, num_words):
    """Mean squared error of codes whose words are the parts of the first `num_words` vectors."""
    words = vectors[:num_words].reshape(num_words, num_books, -1).transpose(1, 0, 2)
    quantizer = with_codebooks(words)
    return np.mean((quantizer.decode(quantizer.encode(vectors)).numpy() - vectors) ** 2)


@pytest.mark.parametrize("name", CASES)
def test_soft_values_similarity_and_codes_are_the_authors(load_reference, name):
    arrays, meta = load_reference(name)
    quantizer = with_codebooks(arrays["codebooks"], meta["tau_soft_quantization"])
    for view in "ab":
        result = quantizer(arrays[f"embedding_{view}"])
        assert_near(result.quantized, arrays[f"soft_{view}"])
        assert_near(result.similarity, arrays[f"similarity_{view}"])
    np.testing.assert_array_equal(quantizer.encode(arrays["embedding_a"]), arrays["codes_a"])


def test_softness_by_hand():
    # Squared distances 1/16 and 9/16 over 0.5 differ by 1: weights are sigmoid(1) and sigmoid(-1).
    quantizer = with_codebooks([[[0.0], [1.0]]], temperature=0.5)
    quantized = quantizer(tf.constant([[0.25], [0.5]])).quantized
    np.testing.assert_allclose(quantized, [[1 / (1 + math.e)], [0.5]], rtol=1e-6)


def test_similarity_by_hand():
    quantizer = with_codebooks([[[3.0, 4.0], [0.0, 2.0]], [[1.0, 0.0], [-1.0, 0.0]]])
    similarity = quantizer(tf.constant([[0.0, 5.0, 1.0, 1.0]])).similarity
    half = math.sqrt(0.5)
    np.testing.assert_allclose(similarity, [[[0.8, 1.0], [half, -half]]], rtol=1e-6)


def test_codes_and_words_by_hand():
    quantizer = with_codebooks([[[0.0], [4.0]], [[10.0], [20.0]]])
    codes = quantizer.encode(tf.constant([[1.9, 14.9], [2.1, 15.1]]))
    assert codes.dtype == tf.uint8
    np.testing.assert_array_equal(codes, [[0, 0], [1, 1]])
    np.testing.assert_array_equal(quantizer.decode(codes), [[0, 10], [4, 20]])


@pytest.mark.parametrize("shape", [(1, 2, 1), (3, 8, 5), (8, 16, 16), (4, 256, 2)])
def test_codes_are_the_nearest_words(shape):
    codebooks, embedding = random_case(*shape, batch=200, dtype=np.float64)
    codes = with_codebooks(codebooks, dtype="float64").encode(embedding)
    np.testing.assert_array_equal(codes, squared_distances(embedding, codebooks).argmin(-1))


def test_soft_values_are_the_weighted_words():
    codebooks, embedding = random_case(dtype=np.float64)
    weights = np.exp(-squared_distances(embedding, codebooks) / 0.7)
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bmk,mkd->bmd", weights, codebooks).reshape(len(embedding), -1)
    quantizer = with_codebooks(codebooks, temperature=0.7, dtype="float64")
    np.testing.assert_allclose(quantizer(embedding).quantized, expected, rtol=1e-12)


def test_words_come_back_exactly():
    codebooks, _ = random_case()
    quantizer = with_codebooks(codebooks)
    codes = np.stack([np.arange(8), np.arange(8)[::-1], np.full(8, 3)], 1).astype(np.uint8)
    words = np.concatenate([codebooks[m, codes[:, m]] for m in range(3)], axis=1)
    np.testing.assert_array_equal(quantizer.decode(codes), words)
    np.testing.assert_array_equal(quantizer.encode(words), codes)


def test_more_words_and_more_books_mean_less_error():
    vectors = np.random.default_rng(0).standard_normal([200, 8]).astype(np.float32)
    by_words = [hard_error(vectors, 2, num_words) for num_words in (2, 4, 8, 16, 32, 64)]
    by_books = [hard_error(vectors, num_books, 16) for num_books in (1, 2, 4, 8)]
    assert by_words == sorted(by_words, reverse=True)
    assert by_books == sorted(by_books, reverse=True)
    assert by_words[-1] < by_words[0] / 2
    assert by_books[-1] < by_books[0] / 2


def test_soft_approaches_hard_as_the_temperature_falls():
    codebooks, embedding = random_case()
    gaps = []
    for temperature in (1.0, 0.1, 0.01, 1e-4):
        quantizer = with_codebooks(codebooks, temperature)
        hard = quantizer.decode(quantizer.encode(embedding))
        gaps.append(np.abs(quantizer(embedding).quantized - hard).max())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-5


def test_a_tie_goes_to_the_lower_word():
    quantizer = with_codebooks([[[5.0], [1.0], [-1.0], [1.0]]])
    np.testing.assert_array_equal(quantizer.encode(tf.constant([[0.0], [1.0]])), [[1], [1]])


def test_a_part_of_zeros_is_similar_to_nothing_and_has_gradients():
    codebooks, _ = random_case()
    quantizer = with_codebooks(codebooks)
    embedding = tf.zeros([2, 15])
    with tf.GradientTape() as tape:
        tape.watch(embedding)
        result = quantizer(embedding)
        total = tf.reduce_sum(result.similarity) + tf.reduce_sum(result.quantized)
    np.testing.assert_array_equal(result.similarity, np.zeros([2, 3, 8]))
    for gradient in tape.gradient(total, [embedding, quantizer.codebooks]):
        assert np.isfinite(gradient).all()


def test_codebooks_start_within_the_authors_bounds():
    quantizer = ProductQuantizer(8, 16, 16)
    quantizer.build([None, 128])
    limit = math.sqrt(6 / (16 + 128))
    assert 0.95 * limit < np.abs(quantizer.codebooks).max() <= limit


def test_double_precision_stays_double(set_policy):
    set_policy("float64")
    quantizer = ProductQuantizer(3, 8, 5)
    quantized, similarity = quantizer(tf.zeros([2, 15], tf.float64))
    assert {quantized.dtype, similarity.dtype, quantizer.codebooks.dtype} == {tf.float64}
    assert quantizer.decode(np.zeros([2, 3], np.uint8)).dtype == tf.float64


def test_bfloat16_network_leaves_the_quantizer_in_single_precision(set_policy):
    codebooks, embedding = random_case()
    narrow = tf.cast(embedding, tf.bfloat16)
    expected = with_codebooks(codebooks)(tf.cast(narrow, tf.float32))
    set_policy("mixed_bfloat16")
    quantizer = with_codebooks(codebooks)
    result = quantizer(narrow)
    assert {t.dtype for t in (*result, quantizer.codebooks)} == {tf.float32}
    np.testing.assert_allclose(result.quantized, expected.quantized, rtol=1e-6)
    assert quantizer.encode(narrow).dtype == tf.uint8


def test_encode_alone_builds_the_layer():
    quantizer = ProductQuantizer(3, 8, 5)
    assert quantizer.encode(tf.zeros([4, 15])).shape == [4, 3]
    assert quantizer.built


def test_config_makes_the_same_layer():
    config = ProductQuantizer(3, 8, 5, temperature=0.7, dtype="float64", name="pq").get_config()
    again = ProductQuantizer.from_config(config)
    assert again.get_config() == config
    assert (again.num_books, again.num_words, again.word_dim) == (3, 8, 5)
    assert (again.temperature, again.dtype, again.name) == (0.7, "float64", "pq")


@pytest.mark.parametrize("name", ["model.keras", "saved_model"])
def test_saved_model_quantizes_alike(tmp_path, name):
    image = tf.keras.Input([4])
    result = ProductQuantizer(2, 4, 3, temperature=0.3)(tf.keras.layers.Dense(6)(image))
    model = tf.keras.Model(image, [result.quantized, result.similarity])
    model.save(tmp_path / name)
    again = tf.keras.models.load_model(
        tmp_path / name, custom_objects={"ProductQuantizer": ProductQuantizer}
    )
    inputs = np.random.default_rng(0).standard_normal([5, 4]).astype(np.float32)
    for expected, got in zip(model(inputs), again(inputs), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert again.layers[-1].temperature == 0.3


@pytest.mark.parametrize("num_words", [0, 1, 12, 512])
def test_a_number_of_words_that_is_no_code_is_refused(num_words):
    with pytest.raises(ValueError, match=rf"num_words={num_words}: .*power of two from 2 to 256"):
        ProductQuantizer(2, num_words, 3)


@pytest.mark.parametrize("change", [{"num_books": 0}, {"word_dim": -1}, {"temperature": 0.0}])
def test_what_is_not_positive_is_refused(change):
    settings = {"num_books": 2, "num_words": 4, "word_dim": 3, "temperature": 0.2} | change
    (name, value), *_ = change.items()
    with pytest.raises(ValueError, match=rf"{name}={value}.*each must be above zero"):
        ProductQuantizer(**settings)


def test_an_embedding_of_another_width_is_refused():
    message = "embedding of width 7: 2 books of 3 numbers need 6"
    with pytest.raises(ValueError, match=message):
        ProductQuantizer(2, 4, 3)(tf.zeros([1, 7]))
    with pytest.raises(ValueError, match=message):
        ProductQuantizer(2, 4, 3).encode(tf.zeros([1, 7]))
