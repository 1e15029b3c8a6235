"""Embeddings that spread over the codewords without a training, which tests have no time for."""

import tensorflow as tf

from hqc_tf.encode import encode_images


def spread(model, images):
    """Changes the last layer so that the images' embeddings are about as long as codewords are.

    Those of a network that has hardly learned are all alike, and so are its codes.
    """
    embeddings = encode_images(model, images).embeddings
    middle = embeddings.mean(0)
    length = (embeddings - middle).std() / tf.math.reduce_std(model.quantizer.codebooks)
    last = model.encoder.get_layer("embedding")
    last.kernel.assign(last.kernel / length)
    last.bias.assign((last.bias - middle) / length)
