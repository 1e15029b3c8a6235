"""How much a collection finds beside a color histogram.

    python -m benchmarks.collection --images=folder:photos/ --album=album/

ALBUM is what `hqc_tf.collection` made of the images, which have sub-folders for labels. Every image
queries the others; P@1 is the share whose nearest has its label. Beside the collection stand what
needs no training: a color histogram, and the picture itself made small.
"""

import json

import numpy as np
from absl import flags

from benchmarks import machine
from export.encoder import encode_images, load_encoder
from export.index import load_index
from hqc_tf import commands
from hqc_tf.data import catalog, pictures
from hqc_tf.errors import UserError

# Of each color channel.
BINS = 8
# Sides in pixels: of what a histogram counts, and of the small picture.
COUNTED, SMALL = 64, 8


def histograms(images) -> np.ndarray:
    """Shares of the pixels in each of BINS^3 colors, float32 [N, BINS^3]."""
    found = []
    for row in range(len(images)):
        colors = pictures.thumbnail(images, row, COUNTED).reshape(-1, 3) // (256 // BINS)
        places = colors @ np.array([BINS * BINS, BINS, 1])
        found.append(np.bincount(places, minlength=BINS**3) / len(places))
    return np.float32(found)


def small_pictures(images) -> np.ndarray:
    """Pixels of each image made SMALL, float32 [N, SMALL * SMALL * 3]."""
    tiles = np.stack([pictures.squares(images.take([row]), SMALL)[0] for row in range(len(images))])
    return np.float32(tiles.reshape(len(images), -1))


def nearest_others(vectors: np.ndarray, power: int) -> np.ndarray:
    """The row of the nearest other vector of each, by the sum of powers of differences: int [N]."""
    found = []
    for row, vector in enumerate(vectors):
        distances = (np.abs(vectors - vector) ** power).sum(axis=1)
        distances[row] = np.inf
        found.append(distances.argmin())
    return np.array(found)


def main(_: list[str]) -> None:
    values = flags.FLAGS
    images = catalog.load_images(values.images)
    if images.labels is None:
        raise UserError(f"--images={values.images}: has no sub-folders for labels; name one with")
    index, encoder = load_index(f"{values.album}/index"), load_encoder(f"{values.album}/serving")
    row_of = {name: row for row, name in enumerate(images.ids)}
    # As indexed: what cannot be decoded is not there.
    indexed = index.ids_of(np.arange(index.num_images)[None])[0]
    images = images.take([row_of[name] for name in indexed])
    embeddings = encode_images(encoder, images).embeddings
    rows, found = np.arange(len(images)), {}
    for name, rescore in (("codes", 0), ("collection", index.default_rescore)):
        first = index.rows(embeddings, 2, rescore=rescore).rows
        found[f"{name}, itself first"] = np.mean(first[:, 0] == rows)
        others = np.where(first[:, 0] == rows, first[:, 1], first[:, 0])
        found[f"{name}, P@1"] = np.mean(images.labels[others] == images.labels)
    for name, vectors, power in (
        ("color histogram, P@1", histograms(images), 1),
        (f"{SMALL} x {SMALL} pixels, P@1", small_pictures(images), 2),
        ("embeddings, P@1", embeddings, 2),
    ):
        found[name] = np.mean(images.labels[nearest_others(vectors, power)] == images.labels)
    shares = {name: round(float(value), 3) for name, value in found.items()}
    print(json.dumps({"images": len(images), **shares, "machine": machine.hardware()}))


if __name__ == "__main__":
    flags.DEFINE_string("images", None, "labeled by sub-folders: folder:PATH", required=True)
    flags.DEFINE_string("album", None, "what hqc_tf.collection made of them", required=True)
    commands.run(main)
