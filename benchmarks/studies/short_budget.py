"""Which settings make the best codes after a short training: one run, figured without test data.

    python -m benchmarks.studies.short_budget --output=runs/short_budget.jsonl --name=decorrelated \
        --flagfile=configs/cifar10_32bit.flags --backbone_width=16 --epochs=3 --warmup_epochs=1 \
        --decorrelation_weight=0.2

A tenth of the training images is kept apart. The network trains on the others without labels; then
the labels of the training set, never those of the test set, score the codes: the images kept apart
query the others. A line of OUTPUT has mAP@1000 of the codes, of the codes after an OPQ refit and of
the unquantized embeddings. `--variant` names a change that is no setting, one of `VARIANTS`. A name
that OUTPUT has is not run again.
"""

import json
import math
import pathlib
import time

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import machine
from hqc_tf import commands, config, losses, metrics, model, optimizers, retrieval
from hqc_tf.baselines import opq
from hqc_tf.data import catalog
from hqc_tf.data.images import Images
from hqc_tf.data.views import steps_per_epoch, training_views
from hqc_tf.errors import UserError

_APART = 10  # one image in so many is kept apart
_MOST_QUERIES = 2000
_AVERAGE_STEPS = 100


def _decoupled(settings):
    """DCL (Yeh and others, ECCV 2022): no positive in the denominator."""

    def loss(a, b, temperature, everyone=None, offset=0):
        all_a, all_b = everyone or (a, b)
        cosines = losses._cosines(a, b, all_a, all_b) / temperature
        negatives = losses._negatives(cosines, offset)
        positive = tf.reduce_sum(losses._unit(a) * losses._unit(b), -1) / temperature
        each = tf.reduce_logsumexp(negatives, -1) - positive
        return tf.reduce_sum(each) / (2 * losses._rows(all_a))

    losses.instance_contrastive_loss = loss


class _Average(tf.keras.callbacks.Callback):
    """Weights averaged over the last steps, exponentially, taken at the end."""

    def on_train_begin(self, logs=None):
        self._kept = [tf.identity(v) for v in self.model.trainable_variables]

    def on_train_batch_end(self, batch, logs=None):
        rest = 1 - 1 / _AVERAGE_STEPS
        pairs = zip(self._kept, self.model.trainable_variables, strict=True)
        self._kept = [rest * kept + (1 - rest) * v for kept, v in pairs]

    def on_train_end(self, logs=None):
        for v, kept in zip(self.model.trainable_variables, self._kept, strict=True):
            v.assign(kept)


def _zero_scales(trained):
    """The last scale of each residual block starts at zero."""
    for layer in trained.encoder.layers:
        if isinstance(layer, tf.keras.layers.Add):
            layer.input[0]._keras_history.layer.gamma.assign(
                tf.zeros_like(layer.input[0]._keras_history.layer.gamma)
            )


def _sgd(schedule, settings):
    return tf.keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=None)


def _adamw(schedule, settings):
    return tf.keras.optimizers.AdamW(schedule, weight_decay=0.05)


# Name -> what it changes: the losses, the optimizer, the new model or the training.
VARIANTS = {
    "none": {},
    "decoupled": {"before": _decoupled},
    "average": {"callback": _Average},
    "zero_scales": {"start": _zero_scales},
    "sgd": {"optimizer": _sgd},
    "adamw": {"optimizer": _adamw},
}


def divide(everything: Images, most: int = 0) -> tuple[Images, Images]:
    """Training images, drawn, up to `most` where it is not 0: (to search, to query them)."""
    rows = np.random.RandomState(1).permutation(len(everything))[: most or None]
    cut = math.ceil(len(rows) / _APART)
    apart = everything.take(np.sort(rows[:cut][:_MOST_QUERIES]))
    return everything.take(np.sort(rows[cut:])), apart


def train(settings: config.Config, variant: str, images) -> tuple[model.HQC, float]:
    """A model trained on `images`, and the seconds that took after the first step."""
    change = VARIANTS[variant]
    change.get("before", lambda _: None)(settings)
    trained = model.build_model(settings)
    change.get("start", lambda _: None)(trained)
    per_epoch = steps_per_epoch(images, settings)
    optimizer = optimizers.make_optimizer(settings, per_epoch)
    if "optimizer" in change:
        optimizer = change["optimizer"](optimizer._learning_rate, settings)
    trained.compile(optimizer=optimizer)
    callbacks = [change["callback"]()] if "callback" in change else []
    began = []
    clock = lambda batch, logs: began.append(time.monotonic())  # noqa: E731
    callbacks.append(tf.keras.callbacks.LambdaCallback(on_batch_end=clock))
    trained.fit(
        training_views(images, settings, 0, settings.epochs * per_epoch),
        epochs=settings.epochs,
        steps_per_epoch=per_epoch,
        verbose=2,
        callbacks=callbacks,
    )
    return trained, began[-1] - began[0]


def score(trained: model.HQC, images, apart) -> dict[str, float]:
    """mAP@1000 of codes, refitted codes and embeddings, and the participation ratio of f."""
    c = trained.settings
    database, query = trained.encode_images(images), trained.encode_images(apart)
    books = trained.quantizer.codebooks.numpy()

    def codes_map(codebooks, codes, embeddings):
        found = metrics.evaluate_codes(
            codebooks, codes, images.labels, embeddings, apart.labels, c.top_k, c.distance
        )
        return round(found.mean_average_precision, 4), round(float(found.precision_at_k[0]), 4)

    fit = opq.fit(database.embeddings, c.num_books, c.num_words)
    codes = opq.encode(database.embeddings @ fit.rotation, fit.codebooks)
    own = codes_map(books, database.codes, query.embeddings)
    refitted = codes_map(fit.codebooks, codes, query.embeddings @ fit.rotation)
    unit = [_unit(x.embeddings) for x in (database, query)]
    chunks = retrieval.nearest_embeddings_by_chunk(unit[1], unit[0], c.top_k)
    found = metrics.evaluate_rankings(chunks, images.labels, apart.labels)
    spread = np.linalg.eigvalsh(np.cov(database.embeddings.T))
    return {
        "codes": own[0],
        "refitted": refitted[0],
        "embedding": round(found.mean_average_precision, 4),
        "codes_p1": own[1],
        "refitted_p1": refitted[1],
        "embedding_p1": round(float(found.precision_at_k[0]), 4),
        "rank": round(float(spread.sum() ** 2 / np.square(spread).sum()), 1),
    }


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def main(_):
    values, settings = flags.FLAGS, config.from_flags()
    output = pathlib.Path(values.output)
    if output.exists():
        known = [json.loads(line)["name"] for line in output.read_text().splitlines()]
        if values.name in known:
            print(f"{values.name}: in {output} already")
            return
    everything = catalog.load_split(settings.dataset, "train", settings.data_dir)
    if everything.labels is None:
        raise UserError(f"--dataset={settings.dataset}: has no labels to score by; take another")
    images, apart = divide(everything, values.images)
    trained, seconds = train(settings, values.variant, images)
    line = {
        "name": values.name,
        **score(trained, images, apart),
        "seconds": round(seconds, 1),
        "images": len(images),
        "queries": len(apart),
        "variant": values.variant,
        "changed": _changed(settings),
        "machine": machine.describe(machine.hardware()),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


def _changed(settings):
    names = config.Config.__dataclass_fields__
    given = {n: getattr(settings, n) for n in names if getattr(settings, n) != names[n].default}
    return {n: v for n, v in given.items() if n != "data_dir"}


if __name__ == "__main__":
    config.define_flags()
    flags.DEFINE_string("output", None, "JSON lines of all runs", required=True)
    flags.DEFINE_string("name", None, "of this run in the output", required=True)
    flags.DEFINE_enum("variant", "none", list(VARIANTS), "change that is no setting")
    flags.DEFINE_integer("images", 0, "of the training set that are used, drawn; 0: all")
    flags.adopt_module_key_flags(config)
    commands.run(main)
