"""Cost of a step by replicas and batch: `python -m benchmarks.scaling --backbone_width=64`

Traces the train step of --replicas=1,2,4 on as many logical CPUs, for global batches of --batches,
and counts in its graph what one replica does and exchanges; no step is run, so the figures are
exact and the same everywhere. Beside each is what the formula of docs/scale.md gives: a row is
marked where the two differ.
"""

import dataclasses
import json
import math
import pathlib
import re
from typing import NamedTuple

import tensorflow as tf
from absl import flags

from benchmarks import machine
from hqc_tf import commands, config, model, optimizers

_PRODUCTS = ("MatMul", "BatchMatMulV2", "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter")
# Forward and backward of the losses, as `HQC.train_step` names them.
_LOSSES = re.compile(r"(gradient_tape/)?losses/")


class Cost(NamedTuple):
    """What one replica does in one step.

    Attributes:
        gathered_bytes: of the tensors of the global batch that it gets, its own among them.
        loss_flops: of matrix products in the losses, forward and backward.
        gradient_bytes: of the gradients that are added over replicas; 0 for one replica.
    """

    gathered_bytes: int
    loss_flops: int
    gradient_bytes: int


def formula(settings, replicas, weights):
    """The `Cost` by the formulas of docs/scale.md.

    Args:
        settings: `Config`, float32.
        replicas: how many share the batch.
        weights: numbers that are learned.
    """
    c = settings
    width = c.num_books * c.word_dim
    row = 2 * (2 * width + c.num_books * c.num_words)
    gathered = 4 * c.batch_size * row if replicas > 1 else 0
    # Products of 2b anchors with 2B items, in numbers per item.
    wide = {"concat": 2, "cross": 2}.get(c.consistency_fusion, 1)
    compared = {
        "instance_quantized": width,
        "instance_embedding": width,
        "consistency": wide * width,
        "part_neighbor": width,
        "cross_quantized": 2 * width,
    }
    numbers = sum(compared.get(name, 0) for name in c.term_weights())
    anchors = 2 * c.batch_size // replicas
    products = anchors * 2 * c.batch_size * numbers
    if "book_classification" in c.term_weights():
        products += anchors * c.num_books * 4 * c.word_dim * (c.word_dim + c.num_books)
    # Forward one product of 2 FLOPs an element, backward two.
    return Cost(gathered, 3 * 2 * products, 4 * weights if replicas > 1 else 0)


def measure(settings, devices):
    """Traces the step on `devices`; returns (`Cost`, network FLOPs, loss bytes, weights).

    The bytes are those of all tensors that the losses make, forward and backward, and all four are
    of the first replica.
    """
    strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
        trained = model.build_model(settings)
        trained.compile(optimizer=optimizers.make_optimizer(settings, 100))
    size, batch = settings.image_size, settings.batch_size // len(devices)
    view = tf.TensorSpec([batch, size, size, 3])

    @tf.function(autograph=False)
    def step(*views):
        return strategy.run(trained.train_step, args=(views,))

    operations = step.get_concrete_function(view, view).graph.get_operations()
    first = [op for op in operations if "replica_" not in op.name]
    losses = [op for op in first if _LOSSES.match(op.name)]
    several = len(devices) > 1
    cost = Cost(
        sum(_bytes(op) for op in losses if several and op.name == "losses/split"),
        sum(_flops(op) for op in losses),
        sum(_bytes(op) for op in first if several and op.name == "update/concat"),
    )
    network = sum(_flops(op) for op in first) - cost.loss_flops
    made = sum(_bytes(op) for op in losses if op.type not in ("Const", "Identity", "Reshape"))
    weights = sum(math.prod(v.shape) for v in trained.trainable_variables)
    return cost, network, made, weights


def _flops(operation):
    """Two for each multiplication and addition of a matrix product or a convolution."""
    if operation.type not in _PRODUCTS:
        return 0
    shapes = [tensor.shape for tensor in (*operation.inputs, *operation.outputs)]
    if operation.type == "Conv2DBackpropFilter":
        _, _, gradient, kernel = shapes
        return 2 * math.prod(gradient) * math.prod(kernel[:3])
    if operation.type == "Conv2DBackpropInput":
        _, kernel, gradient, _ = shapes
        return 2 * math.prod(gradient) * math.prod(kernel[:3])
    left, right, product = shapes
    if operation.type == "Conv2D":
        return 2 * math.prod(product) * math.prod(right[:3])
    turned = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
    return 2 * math.prod(product) * left[-2 if turned else -1]


def _bytes(operation):
    shapes = [(tensor.shape, tensor.dtype.size) for tensor in operation.outputs]
    return sum(math.prod(shape) * size for shape, size in shapes if shape.is_fully_defined())


def _print(rows):
    print("| replicas | batch | gathered, MB | losses, GFLOP | network, GFLOP | gradients, MB "
          "| losses hold, MB | as the formula |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        cost = Cost(**r["measured"])
        right = "yes" if r["measured"] == r["formula"] else f"no: {r['formula']}"
        print(
            f"| {r['replicas']} | {r['batch']} | {cost.gathered_bytes / 1e6:.2f} "
            f"| {cost.loss_flops / 1e9:.3f} | {r['network_flops'] / 1e9:.1f} "
            f"| {cost.gradient_bytes / 1e6:.2f} | {r['loss_bytes'] / 1e6:.1f} | {right} |"
        )


def main(_):
    values = flags.FLAGS
    settings = config.from_flags()
    replicas = [int(n) for n in values.replicas]
    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * max(replicas)
    tf.config.set_logical_device_configuration(cpu, logical)
    rows = []
    for count in replicas:
        for batch in map(int, values.batches):
            now = dataclasses.replace(settings, batch_size=batch)
            devices = [f"CPU:{index}" for index in range(count)]
            cost, network, made, weights = measure(now, devices)
            rows.append(
                {
                    "replicas": count,
                    "batch": batch,
                    "measured": cost._asdict(),
                    "formula": formula(now, count, weights)._asdict(),
                    "network_flops": network,
                    "loss_bytes": made,
                    "weights": weights,
                }
            )
    print(f"{machine.hardware()}\n{settings.backbone} of width {settings.backbone_width}, "
          f"{rows[0]['weights']} weights, {settings.bits} bits\n")  # fmt: skip
    _print(rows)
    if values.output:
        pathlib.Path(values.output).write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(r["measured"] != r["formula"] for r in rows))


if __name__ == "__main__":
    config.define_flags()
    flags.DEFINE_list("replicas", "1,2,4", "numbers of replicas")
    flags.DEFINE_list("batches", "256,1024", "global batches")
    flags.DEFINE_string("output", "", "JSON file to write the figures to")
    flags.adopt_module_key_flags(config)
    commands.run(main)
