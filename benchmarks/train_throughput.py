"""Training speed: `python -m benchmarks.train_throughput --flagfile=configs/demo.flags`

Prints a table of images/s (an image is two views) of the input pipeline alone, of the bare network
(forward and backward of the same two views with a mean-squared loss, no update), of the train step
alone (both on a batch that lies ready), and of pipeline and step together; medians of rounds in
which the four take turns. Then the share of each part of a step, by TensorFlow's profiler, and what
the loss terms hold in memory. --output keeps the figures, --against compares with kept ones.
"""

import collections
import json
import pathlib
import resource
import statistics
import tempfile
import time

import tensorflow as tf
from absl import flags

from benchmarks import machine
from hqc_tf import commands, config, losses, model, optimizers
from hqc_tf.data import catalog
from hqc_tf.data.views import recolor_views, training_views

_PIPELINE_BATCHES = 32
# More than the pipeline makes ahead while the others have their turn.
_WAITING = 16


def measure(settings, rounds, steps):
    """Images/s of the four, a list of `rounds` figures each, every round `steps` batches."""
    images = catalog.load_split(settings.dataset, "train", settings.data_dir)
    trained = model.build_model(settings)
    trained.compile(optimizer=optimizers.make_optimizer(settings, 10**6))
    train = tf.function(trained.train_step)
    network = tf.function(lambda batch: _bare_step(trained, batch))
    batches = iter(training_views(images, settings, 0, 10**6))
    ready = next(batches)
    views = recolor_views(*ready) if settings.augment_on == "device" else ready
    # Pipeline and step come right after the pipeline alone, which leaves no batch waiting.
    parts = {
        "bare network": (lambda: network(views), steps),
        "train step alone": (lambda: train(ready), steps),
        "pipeline alone": (lambda: next(batches), _PIPELINE_BATCHES),
        "pipeline and step": (lambda: train(next(batches)), steps),
    }
    found = collections.defaultdict(list)
    for counted in range(-1, rounds):
        for name, (part, times) in parts.items():
            if part is parts["pipeline alone"][0]:
                _seconds(part, _WAITING)
            rate = settings.batch_size * times / _seconds(part, times)
            if counted >= 0:
                found[name].append(rate)
    return found, _shares(lambda: train(ready))


def loss_memory(settings, batch_size):
    """Bytes of all tensors that the loss terms make, per anchor row (2B of them) of a batch."""
    trained = model.HQC(settings)
    width, books = settings.num_books * settings.word_dim, settings.num_books
    view = [[batch_size, width], [batch_size, width], [batch_size, books, settings.num_words]]

    @tf.function
    def terms(a, b):
        return trained.loss_terms(losses.Encoding(*a), losses.Encoding(*b))

    specs = [tf.TensorSpec(shape) for shape in view]
    graph = terms.get_concrete_function(specs, specs).graph
    sizes = [
        tensor.shape.num_elements() * tensor.dtype.size
        for operation in graph.get_operations()
        if operation.type not in ("Placeholder", "Const", "Identity", "Reshape")
        for tensor in operation.outputs
        if tensor.shape.is_fully_defined()
    ]
    return sum(sizes) / (2 * batch_size)


def _bare_step(trained, views):
    weights = trained.encoder.trainable_variables
    with tf.GradientTape() as tape:
        embeddings = [trained.encoder(view, training=True) for view in views]
        loss = tf.add_n([tf.reduce_mean(tf.square(f - 1)) for f in embeddings])
    return [tf.reduce_sum(g) for g in tape.gradient(loss, weights)]


def _seconds(part, times):
    start = time.perf_counter()
    for _ in range(times):
        result = part()
    # The last result read: on an accelerator a call returns before it is done.
    tf.nest.map_structure(lambda tensor: tensor.numpy(), tf.nest.flatten(result)[0])
    return time.perf_counter() - start


def _shares(step):
    """Share of each part in the operations' time of three steps."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            _seconds(step, 3)
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(pathlib.Path(folder).rglob("*.xplane.pb")).read_bytes())
    spent = collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name, _, kind = plane.event_metadata[event.metadata_id].name.partition(":")
                if kind and "/" in name:
                    spent[_part(name)] += event.duration_ps
    spent.pop(None, None)
    total = sum(spent.values())
    return {part: duration / total for part, duration in spent.most_common()}


def _part(name):
    backward = name.startswith("gradient_tape/")
    scope = name.removeprefix("gradient_tape/").split("/")[0]
    if scope == "losses" or (scope == "forward" and "product_quantizer" in name):
        return "losses and quantizer, both ways"
    if scope in ("views", "update"):
        return scope
    if scope == "forward":
        return "network, backward" if backward else "network, forward"
    return None


def main(_):
    values = flags.FLAGS
    settings = config.from_flags()
    found, shares = measure(settings, values.rounds, values.steps)
    memory = {b: loss_memory(settings, b) for b in (64, 128, 256, 512)}
    result = {
        "hardware": machine.hardware(),
        "settings": {
            name: values[name].value
            for name in ("dataset", "backbone", "backbone_width", "batch_size", "precision")
        },
        "images_per_second": {name: statistics.median(rates) for name, rates in found.items()},
        "spread": {name: [min(rates), max(rates)] for name, rates in found.items()},
        "shares": shares,
        "loss_bytes_per_anchor_row": memory,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    before = json.loads(pathlib.Path(values.against).read_text()) if values.against else None
    _print(result, before)
    if values.output:
        pathlib.Path(values.output).write_text(json.dumps(result, indent=2) + "\n")


def _print(result, before):
    print(f"{result['hardware']}\n{result['settings']}\n")
    against = " to --against |" if before else ""
    print(f"| part | images/s, median (range) | to the bare network |{against}")
    print("|---|---|---|" + ("---|" if before else ""))
    rates = result["images_per_second"]
    for name, rate in rates.items():
        low, high = result["spread"][name]
        row = f"| {name} | {rate:.0f} ({low:.0f}-{high:.0f}) | {rate / rates['bare network']:.2f} |"
        print(row + (f" {rate / before['images_per_second'][name]:.2f} |" if before else ""))
    print("\n" + ", ".join(f"{part} {share:.1%}" for part, share in result["shares"].items()))
    sizes = result["loss_bytes_per_anchor_row"].items()
    print("losses hold " + ", ".join(f"{n / 1024:.0f} KiB a row at B = {b}" for b, n in sizes))
    print(f"peak memory {result['peak_rss_mib']:.0f} MiB")


if __name__ == "__main__":
    config.define_flags()
    flags.DEFINE_integer("rounds", 5, "times that the four take turns", lower_bound=1)
    flags.DEFINE_integer("steps", 5, "batches in a turn", lower_bound=1)
    flags.DEFINE_string("output", "", "JSON file to write the figures to")
    flags.DEFINE_string("against", "", "JSON file of an earlier run on this machine")
    flags.adopt_module_key_flags(config)
    commands.run(main)
