"""Held-out images of a run in TensorBoard: neighbors as a picture, and the projector."""

import pathlib
import shutil

import numpy as np
import tensorflow as tf
from tensorboard.plugins import projector

from hqc_tf import distribute, files, model, retrieval
from hqc_tf.data import pictures
from hqc_tf.data.images import Images
from hqc_tf.workdir import HELD_OUT_RUN, Folder

MOST_EMBEDDINGS = 1000
_QUERIES, _NEIGHBORS = 16, 10
_TILE_SIDE_PIXELS = 48


def show_held_out(trained: model.HQC, held: Images, workdir: Folder) -> None:
    """Shows held-out images in TensorBoard.

    Each row of the picture is an image and its nearest neighbors by code, without itself. The
    projector has the embeddings and their quantized form, with the images' ids, labels where there
    are any, and pictures. The files are in `workdir`'s tensorboard/held_out, which is replaced.

    Of `held` 1,000 images are shown; without any nothing is done. Every process of a run has to
    call this, and the chief writes.
    """
    if not len(held) or held.features is not None:
        return
    shown = held.take(pictures.spread(len(held), MOST_EMBEDDINGS))
    encoded = trained.encode_images(shown)
    if not distribute.is_chief(trained.distribute_strategy):
        return
    folder = pathlib.Path(workdir, HELD_OUT_RUN)
    shutil.rmtree(folder, ignore_errors=True)
    tiles = pictures.squares(shown, _TILE_SIDE_PIXELS)
    codebooks = trained.quantizer.codebooks.numpy()
    picture = _neighbor_picture(tiles, encoded, codebooks, trained.settings.distance)
    with tf.summary.create_file_writer(str(folder)).as_default(trained.settings.epochs):
        tf.summary.image("neighbors", picture[None], description="left: the query")
    quantized = trained.quantizer.decode(encoded.codes).numpy()
    tensors = {"embedding": encoded.embeddings, "quantized": quantized}
    _write_projector(folder, tensors, shown, tiles)


def _neighbor_picture(tiles, encoded, codebooks, distance):
    rows = pictures.spread(len(tiles), _QUERIES)
    k = min(_NEIGHBORS + 1, len(tiles))
    found = retrieval.nearest(encoded.embeddings[rows], encoded.codes, codebooks, k, distance)
    lines = []
    for own, others in zip(rows, found.rows.numpy(), strict=True):
        # An image is not always its own first neighbor: others may have the same code.
        lines += [own, *others[others != own][: k - 1]]
    return pictures.mosaic(tiles[lines], k)


def _write_projector(folder, tensors, shown, tiles):
    config = projector.ProjectorConfig()
    for name, values in tensors.items():
        with (folder / f"{name}.tsv").open("w") as file:
            np.savetxt(file, values, fmt="%.6g", delimiter="\t")
        embedding = config.embeddings.add(tensor_name=name, tensor_path=f"{name}.tsv")
        embedding.metadata_path = "metadata.tsv"
        embedding.sprite.image_path = "sprite.png"
        embedding.sprite.single_image_dim.extend([_TILE_SIDE_PIXELS, _TILE_SIDE_PIXELS])
    files.replace_text(folder / "metadata.tsv", _metadata(shown))
    columns = int(np.ceil(np.sqrt(len(tiles))))
    (folder / "sprite.png").write_bytes(pictures.png(pictures.mosaic(tiles, columns)))
    projector.visualize_embeddings(str(folder), config)


def _metadata(shown):
    """A line for each image; with labels two columns, which need a header in the projector."""
    ids = [pictures.printable(name) for name in shown.ids]
    if shown.labels is None:
        return "".join(f"{name}\n" for name in ids)
    lines = [f"{name}\t{pictures.label_text(shown, row)}\n" for row, name in enumerate(ids)]
    return "id\tlabel\n" + "".join(lines)
