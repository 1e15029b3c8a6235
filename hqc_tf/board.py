"""What TensorBoard shows of a run beside the curves: its speed, and the held-out images.

It stands in folders of its own, since speed is never twice the same and the curves always are.
"""

import pathlib
import shutil
import time

import numpy as np
import tensorflow as tf
from tensorboard.plugins import projector

from hqc_tf import distribute, files, pictures, retrieval
from hqc_tf.encode import encode_images
from hqc_tf.epochs import TENSORBOARD
from hqc_tf.pictures import spread

SPEED = "speed.jsonl"
# TensorBoard shows each folder as a run of this name.
SPEED_RUN, HELD_OUT_RUN = "speed", "held_out"
MOST_EMBEDDINGS = 1000
_QUERIES, _NEIGHBORS = 16, 10
# Of a tile, in pixels.
_SIDE = 48


class MeasureSpeed(tf.keras.callbacks.Callback):
    """Measures how many images a second each epoch learns from, over all replicas.

    `speed.jsonl` gets a line per epoch, and TensorBoard the scalar `images_per_second`. The clock
    runs from the end of the epoch's first step in this process, which may compile, to that of its
    last; an epoch of one step has no speed. Lines of epochs that are trained again are replaced.
    It has to stand behind `epochs.CloseEpoch`, which empties TensorBoard's folder.

    Args:
      workdir: folder of the run.
      first_epoch: the one that training begins or goes on with, from 0.
    """

    def __init__(self, workdir, first_epoch):
        super().__init__()
        self._workdir = workdir
        self._lines = [line for line in read_speed(workdir) if line["epoch"] < first_epoch]
        self._curve = None

    def on_train_begin(self, logs=None):
        if self._curve or not distribute.is_chief(self.model.distribute_strategy):
            return
        folder = pathlib.Path(self._workdir, TENSORBOARD, SPEED_RUN)
        self._curve = tf.summary.create_file_writer(str(folder))
        for line in self._lines:
            self._draw(line)

    def on_epoch_begin(self, epoch, logs=None):
        self._ends = []

    def on_train_batch_end(self, batch, logs=None):
        self._ends.append(time.perf_counter())

    def on_epoch_end(self, epoch, logs=None):
        steps = len(self._ends) - 1
        if not self._curve or steps < 1:
            return
        images = steps * self.model.settings.batch_size
        line = {"epoch": epoch, "images_per_second": images / (self._ends[-1] - self._ends[0])}
        self._lines.append(line)
        files.replace_lines(pathlib.Path(self._workdir, SPEED), self._lines)
        self._draw(line)

    def _draw(self, line):
        with self._curve.as_default(line["epoch"]):
            tf.summary.scalar("images_per_second", line["images_per_second"])
        self._curve.flush()


def read_speed(workdir):
    """The lines of `speed.jsonl`, a dict per epoch; empty where there is none."""
    kinds = {"epoch": int, "images_per_second": float}
    return files.read_lines(pathlib.Path(workdir, SPEED), kinds)


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
    encoded = encode_images(trained, shown)
    if not distribute.is_chief(trained.distribute_strategy):
        return
    folder = pathlib.Path(workdir, TENSORBOARD, HELD_OUT_RUN)
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
