"""mAP that the method reaches in PyTorch, for a comparison with ours at an equal budget.

    pip install torch==2.13.0 torchvision==0.28.0
    python -m benchmarks.pytorch_training --flagfile=configs/cifar10_32bit.flags \
        --backbone_width=16 --epochs=10 --warmup_epochs=1 --held_out=0 --seed=2 --data_dir=DIR

Trains by the flags of `hqc_tf.train` with PyTorch's own layers, start, cross-entropy, KL divergence
and Adam, and torchvision's views of Pillow images, which is what the authors' program is made of;
of ours are the reading of the images and mAP@R. It knows `resnet18_cifar`, Adam, and the five terms
that the authors' flagfiles weigh, with the sum of f and z. Prints a line of JSON.
"""

import itertools
import json
import math
import os
import time

import numpy as np
import PIL.Image
import torch
from torch import nn
from torch.nn import functional

from hqc_tf import commands, config, metrics
from hqc_tf.data import catalog
from hqc_tf.data.images import hold_out
from hqc_tf.errors import UserError

PROJECTION = 512
TERMS = (
    "instance_quantized",
    "instance_embedding",
    "consistency",
    "part_neighbor",
    "codeword_diversity",
)
# What is another value here, this program does not know.
_KNOWN = {
    "backbone": "resnet18_cifar",
    "optimizer": "adam",
    "consistency_fusion": "sum",
    "include_positive": False,
    "joint_views": False,
    "precision": "float32",
}
_ENCODED_AT_ONCE = 500


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
    """ResNet-18 for small images, projection and soft product quantization.

    A call takes float [B, 3, H, W] in [0, 1] and returns f [B, M*D], z [B, M*D], the cosines of
    parts and codewords [B, M, K] and their squared distances [B, M, K].
    """

    def __init__(self, settings):
        super().__init__()
        self.settings = c = settings
        blocks, channels = [], c.backbone_width
        for stage in range(4):
            for place in range(2):
                stride = 2 if stage and not place else 1
                blocks.append(Block(channels, c.backbone_width * 2**stage, stride))
                channels = c.backbone_width * 2**stage
        stem = nn.Conv2d(3, c.backbone_width, 3, 1, 1, bias=False)
        norm = nn.BatchNorm2d(c.backbone_width)
        self.backbone = nn.Sequential(stem, norm, nn.ReLU(), *blocks)
        self.hidden = nn.Linear(channels, PROJECTION)
        self.embedding = nn.Linear(PROJECTION, c.num_books * c.word_dim)
        self.codebooks = nn.Parameter(torch.empty(c.num_words, c.num_books * c.word_dim))
        nn.init.normal_(self.hidden.weight, 0, 0.01)
        nn.init.xavier_uniform_(self.embedding.weight)
        nn.init.xavier_uniform_(self.codebooks)

    def words(self):
        """Codebooks, float [M, K, D]."""
        c = self.settings
        return self.codebooks.view(c.num_words, c.num_books, c.word_dim).transpose(0, 1)

    def forward(self, images):
        c, words = self.settings, self.words()
        f = self.embedding(functional.relu(self.hidden(self.backbone(images).mean((2, 3)))))
        parts = f.view(-1, c.num_books, 1, c.word_dim)
        distances = (parts - words).square().sum(-1)
        shares = (-distances / c.quantizer_temperature).softmax(-1)
        z = torch.einsum("bmk,mkd->bmd", shares, words).flatten(1)
        return f, z, functional.cosine_similarity(parts, words, dim=-1), distances


def loss_terms(settings, a, b):
    """The `TERMS` of what the network makes of two views, float [5], unweighted."""
    c, ((f_a, z_a, s_a, _), (f_b, z_b, s_b, _)) = settings, (a, b)
    return torch.stack(
        [
            _instance_contrast(z_a, z_b, c.instance_temperature),
            _instance_contrast(f_a, f_b, c.instance_temperature),
            _consistency(f_a + z_a, f_b + z_b, c.consistency_temperature),
            _part_neighbors(c, z_a, z_b),
            _diversity(torch.cat([s_a, s_b]) / c.codeword_diversity_temperature),
        ]
    )


def rate(settings, step, per_epoch):
    """The rise of the first epochs by steps, then the cosine by epochs."""
    c, last = settings, settings.learning_rate * settings.final_fraction

    def cosine(epoch):
        return last + (c.learning_rate - last) * (1 + math.cos(math.pi * epoch / c.epochs)) / 2

    steps = c.warmup_epochs * per_epoch
    if step < steps:
        return c.warmup_from + step / steps * (cosine(c.warmup_epochs) - c.warmup_from)
    return cosine(step // per_epoch + 1)


def take_step(network, optimizer, views, learning_rate):
    """One update by two views, float [B, 3, H, W] each: the loss and its terms before it."""
    c = network.settings
    optimizer.param_groups[0]["lr"] = learning_rate
    terms = loss_terms(c, *map(network, views))
    weights = torch.tensor([getattr(c, f"{name}_weight") for name in TERMS])
    loss = (weights * terms).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return [loss.item(), *terms.tolist()]


def make_optimizer(network):
    return torch.optim.Adam(network.parameters(), weight_decay=network.settings.weight_decay)


class TwoViews(torch.utils.data.Dataset):
    """uint8 [N, H, W, 3] -> two random views of an image, uint8 [2, 3, size, size]."""

    def __init__(self, pixels, size):
        # The rest of this module, which tests/reference uses, does without.
        from torchvision import transforms

        self._pixels = pixels
        self._view = transforms.Compose(
            [
                transforms.RandomResizedCrop(size),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(0.2),
                transforms.GaussianBlur(3, (0.1, 2.0)),
                transforms.PILToTensor(),
            ]
        )

    def __len__(self):
        return len(self._pixels)

    def __getitem__(self, row):
        image = PIL.Image.fromarray(self._pixels[row])
        return torch.stack([self._view(image), self._view(image)])


def train(settings, pixels):
    """A network trained on uint8 [N, H, W, 3], and the mean loss of its last epoch."""
    c = settings
    torch.manual_seed(c.seed)
    network = Network(c).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network)
    batches = torch.utils.data.DataLoader(
        TwoViews(pixels, c.image_size), c.batch_size, shuffle=True, drop_last=True, num_workers=1
    )
    steps = itertools.count()
    for _ in range(c.epochs):
        losses = [
            take_step(network, optimizer, _scaled(batch), rate(c, next(steps), len(batches)))[0]
            for batch in batches
        ]
    return network, float(np.mean(losses))


def evaluate_codes(network):
    """mAP@R as `hqc_tf.evaluate` has it."""
    c = network.settings
    database, query = (catalog.load_split(c.dataset, x, c.data_dir) for x in ("database", "query"))
    _, codes = _encode(network, database.pixels)
    embeddings, _ = _encode(network, query.pixels)
    found = metrics.evaluate_codes(
        network.words().detach().numpy(),
        codes,
        database.labels,
        embeddings,
        query.labels,
        c.top_k,
        c.distance,
    )
    return found.mean_average_precision


def _scaled(batch):
    """uint8 [B, 2, 3, H, W] -> two views."""
    shaped = (view.contiguous(memory_format=torch.channels_last) for view in batch.unbind(1))
    return [view / 255 for view in shaped]


def _encode(network, pixels):
    """uint8 [N, H, W, 3] -> embeddings float32 [N, M*D] and codes uint8 [N, M]."""
    network.eval()
    embeddings, codes = [], []
    with torch.no_grad():
        for images in torch.from_numpy(pixels).split(_ENCODED_AT_ONCE):
            f, _, _, distances = network(images.permute(0, 3, 1, 2) / 255)
            embeddings.append(f.numpy())
            codes.append(distances.argmin(-1).numpy().astype(np.uint8))
    return np.concatenate(embeddings), np.concatenate(codes)


def _cosines(a, b):
    """Between all 2B items, float [..., 2B, 2B], and the mask of each one's negatives."""
    both = functional.normalize(torch.cat([a, b], -2), dim=-1)
    same = torch.eye(a.shape[-2], dtype=torch.bool).repeat(2, 2)
    return both @ both.transpose(-1, -2), ~same


def _instance_contrast(a, b, temperature):
    similarity, negative = _cosines(a, b)
    positive = torch.cat([similarity.diag(len(a)), similarity.diag(-len(a))])[:, None]
    others = similarity[negative].view(len(positive), -1)
    logits = torch.cat([positive, others], 1) / temperature
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


def _consistency(a, b, temperature):
    similarity, negative = _cosines(a, b)
    p, q = (similarity[negative].view(2, len(a), -1) / temperature).log_softmax(-1)
    ways = [
        functional.kl_div(*pair, reduction="batchmean", log_target=True)
        for pair in [(p, q), (q, p)]
    ]
    return sum(ways) / 2


def _part_neighbors(settings, a, b):
    c = settings
    parts = (z.view(-1, c.num_books, c.word_dim).transpose(0, 1) for z in (a, b))
    similarity, negative = _cosines(*parts)
    logits = similarity[:, negative].view(c.num_books, 2 * len(a), -1)
    logits = logits / c.part_neighbor_temperature
    nearest = logits.topk(c.num_neighbors, -1).values
    return (logits.logsumexp(-1) - nearest.logsumexp(-1)).mean()


def _diversity(logits):
    mean = logits.softmax(-1).mean(0)
    return (mean * (mean + 1e-5).log()).sum(-1).mean()


def _check(settings):
    for name, known in _KNOWN.items():
        if (value := getattr(settings, name)) != known:
            raise UserError(f"--{name}={value}: PyTorch's training knows {known} alone; take that")
    if unknown := settings.term_weights().keys() - set(TERMS):
        raise UserError(f"--{min(unknown)}_weight: PyTorch's training has no such term; set 0")


def main(_):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    settings = config.from_flags()
    _check(settings)
    images = catalog.load_split(settings.dataset, "train", settings.data_dir)
    images, _ = hold_out(images, settings.held_out)
    if images.pixels is None:
        raise UserError(f"--dataset={settings.dataset}: PyTorch's training takes images in memory")
    start = time.perf_counter()
    network, loss = train(settings, images.pixels)
    line = {"seed": settings.seed, "loss": loss, "mean_average_precision": evaluate_codes(network)}
    print(json.dumps(line | {"seconds": round(time.perf_counter() - start)}))


if __name__ == "__main__":
    config.define_flags()
    commands.run(main)
