"""The layer that joins embedding and input: distances of both, weighed."""

import numpy as np
import pytest

from hqc_tf.training import joining

RANDOM = np.random.default_rng(1)


def distances(vectors):
    return np.square(vectors[:, None] - vectors).sum(-1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_distances_are_the_weighed_sum_of_both(share):
    embeddings = 5 * RANDOM.normal(size=[20, 6]).astype(np.float32)
    # Of rank two, so that all of both fits into six components' worth of axes with the others.
    inputs = RANDOM.normal(size=[20, 2]) @ RANDOM.normal(size=[2, 9])
    embeddings[:, 4:] = 0
    both = np.concatenate([embeddings, inputs], axis=1).astype(np.float32)
    kernel, bias = joining.fit_layer(both, 6, share)
    found = distances(both @ kernel + bias)
    parts = [
        distances(x) / np.square(x - x.mean(axis=0)).sum(1).mean() for x in (embeddings, inputs)
    ]
    np.testing.assert_allclose(found, (1 - share) * parts[0] + share * parts[1], atol=1e-4)


def test_values_of_two_numbers_each():
    """Embeddings +-2 and inputs +-3 both become +-1, times the root of their share."""
    both = np.float32([[2, 3], [2, -3], [-2, 3], [-2, -3]])
    kernel, bias = joining.fit_layer(both, 1, 0.25)
    # The larger part, the embedding's three quarters, is the one component.
    np.testing.assert_allclose(np.abs(both @ kernel + bias).ravel(), [0.75**0.5] * 4, atol=1e-6)
    assert kernel.shape == (2, 1) and bias.shape == (1,)


def test_fewer_inputs_than_numbers_of_an_embedding():
    both = RANDOM.normal(size=[50, 4 + 2]).astype(np.float32)
    kernel, bias = joining.fit_layer(both, 4, 0.5)
    joined = both @ kernel + bias
    assert joined.shape == (50, 4)
    np.testing.assert_allclose(joined.mean(axis=0), 0, atol=1e-5)


def test_what_never_changes_has_no_share():
    both = np.ones([10, 5], np.float32)
    kernel, bias = joining.fit_layer(both, 2, 0.5)
    np.testing.assert_allclose(both @ kernel + bias, 0, atol=1e-3)
