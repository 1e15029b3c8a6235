"""A last layer that keeps a share of an embedding for the network's input.

Contrast keeps of an image what its random views have in common, and drops the rest: images of a
kind draw together, and the order of the very nearest is lost. The input still has it. Both are
brought to one length, without their means and in principal components, weighed, and joined.
"""

import numpy as np

from hqc_tf.baselines.pixels import principal


def fit_layer(both: np.ndarray, width: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Kernel float32 [E+P, E] and bias float32 [E] of the layer.

    Args:
        both: float32 [n, E+P], the layer's inputs of n images: their embeddings of length one, and
            the network's inputs of length one.
        width: E.
        share: 0 to 1, the part of the mean squared distance between two images that their inputs
            make.
    """
    of_embedding = _weighed(both[:, :width], width, 1 - share)
    of_input = _weighed(both[:, width:], width, share)
    kernel = np.zeros([both.shape[1], of_embedding.shape[1] + of_input.shape[1]], np.float32)
    kernel[:width, : of_embedding.shape[1]] = of_embedding
    kernel[width:, of_embedding.shape[1] :] = of_input
    mean, axes = principal(both @ kernel, width)
    return kernel @ axes, -mean @ axes


def _weighed(values, most, share):
    """[P, at most `most`]: axes on which [n, P] values have the mean square `share`."""
    mean, axes = principal(values, most)
    square = np.square((values - mean) @ axes).sum(axis=1).mean()
    # What hardly differs has no share; its vectors are of length one.
    return axes * np.sqrt(share / max(square, 1e-6))
