"""Writes training_steps.npz: some steps of training as PyTorch takes them.

    pip install torch==2.13.0 numpy && python tests/reference/training_steps.py

The method by its definitions and with PyTorch's own layers, start, cross-entropy and Adam, at a
small size; the other files here are results of the authors' program, this one is not. It holds the
settings (`meta`), initial weights in the order in which layers are made, the two views of each
step, the loss and its terms before each step, and what the network makes of the first view after
the last step, with its running statistics.
"""

import json
import math
import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional

WIDTH, BOOKS, WORDS, DIM = 4, 2, 4, 3
BATCH, SIDE, STEPS, NEIGHBORS = 8, 8, 6, 3
RATES = {"base": 5e-4, "epochs": 3, "warmup_epochs": 1, "per_epoch": 2, "final_fraction": 0.1}
WEIGHTS = (1.0, 1.0, 0.4, 0.1, 0.2)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity()
        if stride != 1 or before != after:
            convolution = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(after))

    def forward(self, x):
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class Network(nn.Module):
    """ResNet-18 for small images, projection and soft product quantization."""

    def __init__(self):
        super().__init__()
        blocks, channels = [], WIDTH
        for stage in range(4):
            for place in range(2):
                stride = 2 if stage and not place else 1
                blocks.append(Block(channels, WIDTH * 2**stage, stride))
                channels = WIDTH * 2**stage
        stem = nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()
        self.backbone = nn.Sequential(*stem, *blocks)
        self.hidden = nn.Linear(channels, 512)
        self.embedding = nn.Linear(512, BOOKS * DIM)
        self.codebooks = nn.Parameter(torch.empty(WORDS, BOOKS * DIM))
        nn.init.normal_(self.hidden.weight, 0, 0.01)
        nn.init.xavier_uniform_(self.embedding.weight)
        nn.init.xavier_uniform_(self.codebooks)

    def forward(self, images):
        features = self.backbone(images.permute(0, 3, 1, 2)).mean((2, 3))
        f = self.embedding(functional.relu(self.hidden(features)))
        parts = f.view(-1, BOOKS, 1, DIM)
        words = self.codebooks.view(WORDS, BOOKS, DIM).transpose(0, 1)
        shares = (-(parts - words).square().sum(-1) / 0.2).softmax(-1)
        z = torch.einsum("bmk,mkd->bmd", shares, words).flatten(1)
        return f, z, functional.cosine_similarity(parts, words, dim=-1)


def cosines(a, b):
    """Between all 2B items, and the mask of each one's negatives."""
    both = torch.cat([a, b])
    same = torch.eye(len(a), dtype=torch.bool).repeat(2, 2)
    return functional.cosine_similarity(both[:, None], both[None], dim=-1), ~same


def instance_contrast(a, b):
    similarity, negative = cosines(a, b)
    positive = torch.cat([similarity.diag(len(a)), similarity.diag(-len(a))])[:, None]
    logits = torch.cat([positive, similarity[negative].view(len(positive), -1)], 1) / 0.5
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


def consistency(a, b):
    similarity, negative = cosines(a, b)
    p, q = (similarity[negative].view(2, len(a), -1) / 0.2).log_softmax(-1)
    ways = [
        functional.kl_div(*pair, reduction="batchmean", log_target=True)
        for pair in [(p, q), (q, p)]
    ]
    return sum(ways) / 2


def part_neighbors(a, b):
    losses = []
    for part_a, part_b in zip(a.split(DIM, 1), b.split(DIM, 1), strict=True):
        similarity, negative = cosines(part_a, part_b)
        logits = similarity[negative].view(2 * len(a), -1) / 0.5
        nearest = logits.topk(NEIGHBORS, 1).values
        losses.append((logits.logsumexp(1) - nearest.logsumexp(1)).mean())
    return sum(losses) / BOOKS


def diversity(a, b):
    mean = torch.cat([a, b]).softmax(-1).mean(0)
    return (mean * (mean + 1e-5).log()).sum(-1).mean()


def rate(step):
    """The rise of the first epoch by steps, then the cosine by epochs."""
    base, last = RATES["base"], RATES["base"] * RATES["final_fraction"]

    def cosine(epoch):
        return last + (base - last) * (1 + math.cos(math.pi * epoch / RATES["epochs"])) / 2

    steps = RATES["warmup_epochs"] * RATES["per_epoch"]
    if step < steps:
        return 1e-5 + step / steps * (cosine(RATES["warmup_epochs"]) - 1e-5)
    return cosine(step // RATES["per_epoch"] + 1)


def initial_weights(network):
    """Arrays as Keras shapes them: kernels [H, W, in, out] and [in, out], codebooks [M, K, D]."""
    kinds = nn.Conv2d, nn.Linear
    kernels = {kind: [m for m in network.modules() if isinstance(m, kind)] for kind in kinds}
    found = {
        f"convolution_{n}": m.weight.permute(2, 3, 1, 0) for n, m in enumerate(kernels[kinds[0]])
    }
    for n, layer in enumerate(kernels[kinds[1]]):
        found |= {f"dense_{n}": layer.weight.T, f"bias_{n}": layer.bias}
    words = network.codebooks.view(WORDS, BOOKS, DIM).transpose(0, 1)
    return {n: x.detach().numpy().copy() for n, x in (found | {"codebooks": words}).items()}


def main():
    torch.manual_seed(1)
    network = Network()
    arrays = initial_weights(network)
    views = torch.rand(STEPS, 2, BATCH, SIDE, SIDE, 3)
    # The second view of an image is near the first.
    views[:, 1] = 0.7 * views[:, 0] + 0.3 * views[:, 1]
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=1e-5)
    losses = []
    for step, (view_a, view_b) in enumerate(views):
        optimizer.param_groups[0]["lr"] = rate(step)
        (f_a, z_a, s_a), (f_b, z_b, s_b) = network(view_a), network(view_b)
        terms = torch.stack(
            [
                instance_contrast(z_a, z_b),
                instance_contrast(f_a, f_b),
                consistency(f_a + z_a, f_b + z_b),
                part_neighbors(z_a, z_b),
                diversity(s_a, s_b),
            ]
        )
        loss = (torch.tensor(WEIGHTS) * terms).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append([loss.item(), *terms.tolist()])
    network.eval()
    with torch.no_grad():
        embedding = network(views[0, 0])[0].numpy()
    meta = {"backbone_width": WIDTH, "num_books": BOOKS, "num_words": WORDS, "word_dim": DIM}
    meta |= {"batch_size": BATCH, "image_size": SIDE, "num_neighbors": NEIGHBORS, "rates": RATES}
    results = {"views": views.numpy(), "losses": np.array(losses), "embedding": embedding}
    path = pathlib.Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, **arrays, **results, meta=json.dumps(meta))


if __name__ == "__main__":
    main()
