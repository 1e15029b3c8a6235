"""Fits rotation and codebooks anew to a trained network's embeddings, without labels.

Training compares softly quantized embeddings, search compares hard codes. After it, optimized
product quantization (`baselines.opq`) finds the rotation and the codebooks that lose least of the
embeddings as they are. The rotation goes into the encoder's last layer, so that export, index and
search see an encoder and codebooks as before. Before that `--refit=neighbors` fits the last layer
anew to images of a kind (`neighbors`), `--mirror_mean` has it take the mean of an image and its
mirror image, and `--input_share` puts one behind it that keeps a share for the network's input
(`joining`).
"""

import numpy as np
import tensorflow as tf

from hqc_tf import config, label_free, model
from hqc_tf.baselines import opq
from hqc_tf.data.batches import plain_batches
from hqc_tf.data.images import Images
from hqc_tf.data.pictures import spread
from hqc_tf.errors import UserError
from hqc_tf.training import joining, neighbors
from hqc_tf.workdir import WEIGHTS, Folder, load, save_weights, saved_step

# Those that a layer is fitted to.
_FEW_IMAGES = 2**14


def check(settings: config.Config, num_images: int) -> None:
    """Raises `UserError` before the training where `--refit` could not be done after it."""
    if settings.refit == "none":
        return
    if not opq.is_installed():
        raise UserError(
            f"--refit={settings.refit}: FAISS is missing; {opq.FIX}, or take --refit=none"
        )
    if num_images < settings.num_words:
        raise UserError(
            f"--refit={settings.refit}: {num_images} training images for {settings.num_words} "
            "words a book; give more images, or take --refit=none"
        )


def refit_workdir(workdir: Folder, images: Images, held: Images) -> list[str]:
    """Refits the best and the last weights of a trained run, where that makes better codes.

    Better is a smaller quantization error and no lower recall@1 of the images held out from
    training; without any, a smaller error of the training images. With "neighbors", which trades
    this recall for images of a kind, the error alone decides. With `--input_share`, whose
    embeddings hold more and so lose more, and with `--mirror_mean` they are kept. Weights that
    were refitted before stay.

    Args:
        workdir: folder of the run.
        images: the training images.
        held: those held out, possibly none.

    Returns:
        A line for a person on each set of weights that was tried.
    """
    lines, tried = [], {}
    for weights in WEIGHTS:
        step = saved_step(workdir, weights)
        if saved_step(workdir, weights, refitted=True) == step:
            continue
        # The best weights may be the last.
        if step not in tried:
            tried[step] = _refitted(load(workdir, weights, refitted=False), images, held)
        trained, before, after = tried[step]
        kept = _is_kept(before, after, trained.settings)
        if kept:
            save_weights(trained, workdir, step, weights, refitted=True)
        lines.append(_describe(weights, before, after, kept))
    return lines


def _is_kept(before, after, settings):
    if settings.refit_changes_graph:
        return True
    return after[0] < before[0] and (settings.refit == "neighbors" or after[1] >= before[1])


def _refitted(trained, images, held):
    """The model refitted, and its `_scores` before and after."""
    sample = images.take(spread(len(images), opq.MOST_VECTORS))
    before = _scores(trained, sample, held)
    refit_model(trained, images)
    return trained, before, _scores(trained, sample, held)


def refit_model(trained: model.HQC, images: Images) -> None:
    """Refits a model to some images as its settings of a refit say."""
    few, sample = (images.take(spread(len(images), n)) for n in (_FEW_IMAGES, opq.MOST_VECTORS))
    if trained.settings.mirror_mean:
        trained.add_mirror()
    if trained.settings.refit == "neighbors":
        turn_to_neighbors(trained, few)
    if trained.settings.input_share:
        join_input(trained, few)
    refit(trained, trained.encode_images(sample).embeddings)


def turn_to_neighbors(trained: model.HQC, images: Images) -> None:
    """Changes a model's last layer into that of `neighbors.fit_layer` of some images."""
    layer = trained.last_layer()
    hidden = _outputs(tf.keras.Model(trained.encoder.input, layer.input), images, trained.settings)
    layer.set_weights(neighbors.fit_layer(hidden, trained.encode_images(images).embeddings))


def join_input(trained: model.HQC, images: Images) -> None:
    """Gives a model the layer of `HQC.join_input`, fitted to some images by `joining.fit_layer`."""
    c = trained.settings
    width = c.num_books * c.word_dim
    both = _outputs(trained.join_input(), images, c)
    trained.last_layer().set_weights(joining.fit_layer(both, width, c.input_share))


def _outputs(network, images, settings):
    """What a network gives of the plain views, float32 [N, any]."""
    call = tf.function(lambda views: tf.cast(network(views, training=False), tf.float32))
    views = plain_batches(images, *settings.plain_sizes, model.ENCODE_BATCH)
    return np.concatenate([call(batch).numpy() for batch in views])[: len(images)]


def refit(trained: model.HQC, embeddings: np.ndarray) -> None:
    """Changes a model's last layer and codebooks by float [N, M*D] embeddings that it gave."""
    c = trained.settings
    fit = opq.fit(embeddings, c.num_books, c.num_words)
    layer = trained.last_layer()
    # A length that is set after this layer is not changed by a rotation.
    layer.set_weights([values @ fit.rotation for values in layer.get_weights()])
    trained.quantizer.codebooks.assign(fit.codebooks)


def _scores(trained, sample, held):
    """Quantization error and recall@1, 0 without held-out images; a rotation leaves lengths."""
    if len(held):
        scores = label_free.evaluate(trained, held)
        return scores.quantization_error, scores.recall_at_1
    encoded = trained.encode_images(sample)
    codebooks = trained.quantizer.codebooks.numpy()
    return label_free.quantization_error(*encoded, codebooks), 0.0


def _describe(weights, before, after, kept):
    recall = f", recall@1 {before[1]:.3f} to {after[1]:.3f}" if before[1] or after[1] else ""
    return (
        f"refit of the {weights} weights: quantization error {before[0]:.3f} to {after[0]:.3f}"
        f"{recall}: {'kept' if kept else 'not better, not kept'}"
    )
