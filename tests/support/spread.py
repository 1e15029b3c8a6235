"""Embeddings that spread over the codewords without a training, which tests have no time for."""

import tensorflow as tf


def spread(model, images):
    """Changes the last two layers so that the images' embeddings are about as long as codewords.

    Those of a network that has hardly learned are all alike, and so are its codes. Most of what
    they have in common is the bias, beside which their differences would be lost to rounding.
    """
    hidden, last = model.encoder.layers[-2:]
    hidden.bias.assign(tf.zeros_like(hidden.bias))
    embeddings = model.encode_images(images).embeddings
    middle = embeddings.mean(0)
    length = (embeddings - middle).std() / tf.math.reduce_std(model.quantizer.codebooks)
    last.kernel.assign(last.kernel / length)
    last.bias.assign((last.bias - middle) / length)
