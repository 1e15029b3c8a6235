"""What TensorBoard shows of a run beside the curves: its speed, and the held-out images.

It stands in folders of its own, since speed is never twice the same and the curves always are.
"""

import pathlib
import shutil

import numpy as np
import tensorflow as tf
from tensorboard.plugins import projector

from hqc_tf import distribute, files, retrieval
from hqc_tf.data import pictures
from hqc_tf.data.pictures import spread
from hqc_tf.workdir import HELD_OUT_RUN

MOST_EMBEDDINGS = 1000
_QUERIES, _NEIGHBORS = 16, 10


# Of a tile, in pixels.
_SIDE = 48


def show_held_out(trained, held, workdir):
    """Shows images kept from training in TensorBoard: neighbours as a picture, and the projector.

    Each row of the picture is an image and those nearest to it by code, itself left out. The
    projector has the embeddings and the codewords that stand for them, with the images' ids, labels
    where there are any, and pictures. All lies in `workdir`'s tensorboard/held_out, replaced whole.

    Args:
      trained: `HQC`. Of several processes all have to call this, and the chief writes.
      held: `data.Images`, of which 1,000 are shown; nothing is done without any.
      workdir: folder of the run.
    """
    if not len(held):
        return
    shown = held.take(spread(len(held), MOST_EMBEDDINGS))
    encoded = trained.encode_images(shown)
    if not distribute.is_chief(trained.distribute_strategy):
        return
    folder = pathlib.Path(workdir, HELD_OUT_RUN)
    shutil.rmtree(folder, ignore_errors=True)
    tiles = pictures.squares(shown, _SIDE)
    codebooks = trained.quantizer.codebooks.numpy()
    picture = _neighbor_picture(tiles, encoded, codebooks, trained.settings.distance)
    with tf.summary.create_file_writer(str(folder)).as_default(trained.settings.epochs):
        tf.summary.image("neighbours", picture[None], description="left: the query")
    quantized = trained.quantizer.decode(encoded.codes).numpy()
    tensors = {"embedding": encoded.embeddings, "quantized": quantized}
    _write_projector(folder, tensors, shown, tiles)


def _neighbor_picture(tiles, encoded, codebooks, distance):
    rows = spread(len(tiles), _QUERIES)
    k = min(_NEIGHBORS + 1, len(tiles))
    found = retrieval.nearest(encoded.embeddings[rows], encoded.codes, codebooks, k, distance)
    lines = []
    for own, others in zip(rows, found.rows.numpy(), strict=True):
        # An image is not always the first to itself: others may have the same code.
        others = others[others != own][: k - 1]
        lines += [own, *others]
    return pictures.mosaic(tiles[lines], k)


def _write_projector(folder, tensors, shown, tiles):
    config = projector.ProjectorConfig()
    for name, values in tensors.items():
        with (folder / f"{name}.tsv").open("w") as file:
            np.savetxt(file, values, fmt="%.6g", delimiter="\t")
        embedding = config.embeddings.add(tensor_name=name, tensor_path=f"{name}.tsv")
        embedding.metadata_path = "metadata.tsv"
        embedding.sprite.image_path = "sprite.png"
        embedding.sprite.single_image_dim.extend([_SIDE, _SIDE])
    files.replace_text(folder / "metadata.tsv", _metadata(shown))
    columns = int(np.ceil(np.sqrt(len(tiles))))
    (folder / "sprite.png").write_bytes(pictures.png(pictures.mosaic(tiles, columns)))
    projector.visualize_embeddings(str(folder), config)


def _metadata(shown):
    """A line for each image; with labels two columns, which the projector wants named."""
    ids = [pictures.printable(name) for name in shown.ids]
    if shown.labels is None:
        return "".join(f"{name}\n" for name in ids)
    lines = [f"{name}\t{pictures.label_text(shown, row)}\n" for row, name in enumerate(ids)]
    return "id\tlabel\n" + "".join(lines)
