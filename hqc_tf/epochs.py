"""What the end of an epoch leaves: weights, a line of figures, TensorBoard's curves."""

import pathlib
import shutil

import tensorflow as tf

from hqc_tf import distribute, files, label_free, model, progress

EPOCHS = "epochs.jsonl"
TENSORBOARD = "tensorboard"


class CloseEpoch(tf.keras.callbacks.Callback):
    """At the end of every epoch judges the weights without labels and saves them.

    They become the "last" weights, and the "best" ones where the recall is above that of all epochs
    before; without images kept from training the last are the best. `epochs.jsonl` gets a line, and
    TensorBoard its scalars. Lines and curves of epochs that are trained again are replaced.

    Args:
      workdir: folder of the run.
      held: `data.Images` kept from training, possibly none.
      per_epoch: steps of an epoch.
      first_epoch: the one that training begins or goes on with, from 0.
    """

    def __init__(self, workdir, held, per_epoch, first_epoch):
        super().__init__()
        self._workdir = workdir
        self._held = held
        self._per_epoch = per_epoch
        self._lines = [line for line in read_epochs(workdir) if line["epoch"] < first_epoch]
        self._curves = None

    def on_train_begin(self, logs=None):
        if self._curves or not distribute.is_chief(self.model.distribute_strategy):
            return
        # What a killed run had not yet written out is missing, or would stand there twice.
        folder = pathlib.Path(self._workdir, TENSORBOARD)
        shutil.rmtree(folder, ignore_errors=True)
        self._curves = tf.summary.create_file_writer(str(folder))
        for line in self._lines:
            self._draw(line)

    def on_epoch_end(self, epoch, logs=None):
        step = (epoch + 1) * self._per_epoch
        line = {"epoch": epoch, "step": step, **{name: float(x) for name, x in logs.items()}}
        rate = self.model.optimizer.learning_rate
        # Keras' legacy optimizers, LAMB among them, hold the schedule, the others its last value.
        line["learning_rate"] = float((rate(step - 1) if callable(rate) else rate).numpy())
        if len(self._held):
            line |= self._judge(logs)
        # Without images kept from training, the newest weights are the best there are.
        best = all(
            line.get("recall_at_1", 1) > other.get("recall_at_1", 0) for other in self._lines
        )
        for weights in ["best", "last"] if best else ["last"]:
            model.save_weights(self.model, self._workdir, step, weights)
        self._lines.append(line)
        if self._curves:
            files.replace_lines(pathlib.Path(self._workdir, EPOCHS), self._lines)
            self._draw(line)

    def _judge(self, logs):
        judged = label_free.judge(self.model, self._held)
        # Keras shows them beside the losses.
        logs["recall_at_1"] = judged.recall_at_1
        logs["least_perplexity"] = judged.perplexity.min()
        warning = label_free.collapse_warning(judged.perplexity, self.model.settings.num_words)
        if warning:
            progress.say(warning)
        return judged.as_json()

    def _draw(self, line):
        with self._curves.as_default(line["epoch"]):
            for name, value in line.items():
                if name == "perplexity":
                    for book, words in enumerate(value):
                        tf.summary.scalar(f"perplexity/book_{book:02d}", words)
                elif name not in ("epoch", "step", "held_out"):
                    tf.summary.scalar(f"epoch_{name}", value)
        self._curves.flush()


def read_epochs(workdir):
    """The lines of `epochs.jsonl`, a dict per epoch; empty before the first has ended."""
    judged = {"recall_at_1": float, "perplexity": [float]}
    path = pathlib.Path(workdir, EPOCHS)
    return files.read_lines(path, {"epoch": int, "step": int}, judged, rest=float)
