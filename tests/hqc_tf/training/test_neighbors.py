import numpy as np

from hqc_tf.training import neighbors


def test_by_hand(monkeypatch):
    """Two pairs of images: each embedding becomes the mean of its pair, which the inputs tell."""
    monkeypatch.setattr(neighbors, "_LEAST", 2)
    monkeypatch.setattr(neighbors, "_RIDGE", 0.0)
    embeddings = np.float32([[3, 4, 0], [4, 3, 0], [0, 0, 5], [0, 3, 4]])
    hidden = np.float32([[1, 0], [1, 0.1], [-1, 0], [-1, 0.1]])
    kernel, bias = neighbors.fit_layer(hidden, embeddings)
    pairs = np.float32([[3.5, 3.5, 0]] * 2 + [[0, 1.5, 4.5]] * 2)
    assert kernel.shape == (2, 3) and kernel.dtype == bias.dtype == np.float32
    np.testing.assert_allclose(hidden @ kernel + bias, pairs, atol=1e-5)


def test_regression_is_that_of_numpy():
    random = np.random.default_rng(0)
    inputs, targets = random.normal(size=[50, 4]) + 3, random.normal(size=[50, 3])
    kernel, bias = neighbors._regress(inputs, targets)
    squares = np.square(inputs - inputs.mean(0)).sum() / 4
    rows = np.concatenate([inputs - inputs.mean(0), np.sqrt(1e-3 * squares) * np.eye(4)])
    wanted = np.linalg.lstsq(
        rows, np.concatenate([targets - targets.mean(0), np.zeros([4, 3])]), rcond=None
    )[0]
    np.testing.assert_allclose(kernel, wanted, rtol=1e-4)
    np.testing.assert_allclose(
        bias, targets.mean(0) - inputs.mean(0) @ wanted, rtol=1e-4, atol=1e-5
    )


def test_inputs_that_are_all_alike_leave_the_mean():
    embeddings = np.float32([[3, 4], [4, 3], [0, 5]])
    for hidden in (np.zeros([3, 4]), np.ones([3, 4])):
        kernel, bias = neighbors.fit_layer(hidden, embeddings)
        np.testing.assert_array_equal(kernel, np.zeros([4, 2]))
        np.testing.assert_allclose(bias, embeddings.mean(axis=0), rtol=1e-6)
