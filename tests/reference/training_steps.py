"""Writes training_steps.npz: some steps of training as PyTorch takes them.

    pip install torch==2.13.0 && python -m tests.reference.training_steps

The network, terms and optimizer of benchmarks/pytorch_training.py at a small size; the other files
here are results of the authors' program, this one is not. It holds the settings (`meta`), initial
weights in the order in which layers are made, the two views of each step, the loss and its terms
before each step, and what the network makes of the first view after the last step, with its running
statistics.
"""

import json
import pathlib

import numpy as np
import torch
from torch import nn

from benchmarks import pytorch_training
from hqc_tf import config

BATCH, SIDE, STEPS, PER_EPOCH = 8, 8, 6, 2
SETTINGS = {"backbone_width": 4, "num_books": 2, "num_words": 4, "word_dim": 3}
SETTINGS |= {"batch_size": BATCH, "image_size": SIDE, "num_neighbors": 3}
RATES = {"learning_rate": 5e-4, "epochs": 3, "warmup_epochs": 1, "final_fraction": 0.1}


def initial_weights(network):
    """Arrays as Keras shapes them: kernels [H, W, in, out] and [in, out], codebooks [M, K, D]."""
    kinds = nn.Conv2d, nn.Linear
    kernels = {kind: [m for m in network.modules() if isinstance(m, kind)] for kind in kinds}
    found = {
        f"convolution_{n}": m.weight.permute(2, 3, 1, 0) for n, m in enumerate(kernels[kinds[0]])
    }
    for n, layer in enumerate(kernels[kinds[1]]):
        found |= {f"dense_{n}": layer.weight.T, f"bias_{n}": layer.bias}
    words = network.words()
    return {n: x.detach().numpy().copy() for n, x in (found | {"codebooks": words}).items()}


def main():
    torch.manual_seed(1)
    settings = config.Config(**SETTINGS, **RATES)
    network = pytorch_training.Network(settings)
    arrays = initial_weights(network)
    views = torch.rand(STEPS, 2, BATCH, SIDE, SIDE, 3)
    # The second view of an image is near the first.
    views[:, 1] = 0.7 * views[:, 0] + 0.3 * views[:, 1]
    optimizer = pytorch_training.make_optimizer(network)
    losses = [
        pytorch_training.take_step(
            network,
            optimizer,
            pair.permute(0, 1, 4, 2, 3),
            pytorch_training.rate(settings, step, PER_EPOCH),
        )
        for step, pair in enumerate(views)
    ]
    network.eval()
    with torch.no_grad():
        embedding = network(views[0, 0].permute(0, 3, 1, 2))[0].numpy()
    meta = SETTINGS | RATES | {"per_epoch": PER_EPOCH}
    results = {"views": views.numpy(), "losses": np.array(losses), "embedding": embedding}
    path = pathlib.Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, **arrays, **results, meta=json.dumps(meta))


if __name__ == "__main__":
    main()
