"""A picture of some queries and their nearest images, right and wrong ones marked.

`python -m export.gallery --index=index/ --dataset=fashion_mnist --output=neighbors.png`
"""

import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from export.arrays import unpack_id
from export.encoder import encode_images, load_encoder
from export.index import load_index
from hqc_tf import commands, files, metrics
from hqc_tf.data import catalog, pictures, screening
from hqc_tf.data.batches import read_pixels
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError

RIGHT, WRONG, UNKNOWN = "#2a8f3c", "#c8342b", "#888888"


def draw_gallery(queries: Images, neighbors: Sequence[Images], path: str | os.PathLike) -> None:
    """Writes a PNG, atomically, with a row for each of Q queries: it, then its k nearest images.

    A frame is green with a tick where the image has a label of the query, red with a cross where it
    has not, gray where there are no labels.
    """
    # Matplotlib is slow to import, and only this command draws.
    from matplotlib.figure import Figure

    columns = 1 + len(neighbors[0])
    figure = Figure(figsize=(columns * 0.95, len(queries) * 1.16))
    axes = figure.subplots(len(queries), columns, squeeze=False)
    for row, found in enumerate(neighbors):
        query = queries.take([row])
        _show(axes[row][0], query, 0, "black", pictures.label_text(query, 0), width=2.5)
        for place in range(len(found)):
            color, mark = _verdict(query, found, place)
            title = f"{mark} {pictures.label_text(found, place)}"
            _show(axes[row][place + 1], found, place, color, title)
    figure.suptitle(f"Query (left) and its {columns - 1} nearest images", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.98), pad=0.4)
    save = functools.partial(figure.savefig, format="png", dpi=110)
    files.write_atomically(pathlib.Path(path), save)


def _verdict(query, found, place):
    if query.labels is None or found.labels is None:
        return UNKNOWN, ""
    right = metrics.relevance(found.labels[None, [place]], query.labels[:1])[0, 0]
    return (RIGHT, "✓") if right else (WRONG, "✗")


def _show(axis, images, row, color, title, width=2.0):
    axis.imshow(read_pixels(images, row))
    # A label's name is not a formula, even where it has "$".
    axis.set_title(title, fontsize=6, color=color, pad=3.5, parse_math=False)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(edgecolor=color, linewidth=width)


def main(_: list[str]) -> None:
    values = flags.FLAGS
    if catalog.parse(values.dataset).kind == "features":
        raise UserError(f"--dataset={values.dataset}: has no pictures; take export.search")
    index = load_index(values.index)
    encoder = load_encoder(values.saved_model or index.manifest["encoder"]["path"])
    index.check_encoder(encoder.manifest["fingerprint"])
    images = catalog.load_images(values.dataset, values.data_dir)
    row_of = {name: row for row, name in enumerate(images.ids)}
    candidates = catalog.load_split(values.dataset, "query", values.data_dir) or images
    if catalog.parse(values.dataset).is_files:
        # The others may be those that could not be decoded.
        indexed = set(map(unpack_id, index.ids.to_pylist()))
        known = [row for row, name in enumerate(candidates.ids) if name in indexed]
        candidates = candidates.take(known)
    count, random = len(candidates), np.random.default_rng(values.seed)
    queries = candidates.take(random.choice(count, min(values.queries, count), replace=False))
    found = []
    if count:
        embeddings = encode_images(encoder, queries).embeddings
        found, _ = index.search(embeddings, values.k, rescore=index.default_rescore)
    missing = next((name for names in found for name in names if name not in row_of), None)
    if missing is not None or not count:
        raise UserError(
            f"--dataset={values.dataset}: does not have {missing or 'images'} of --index="
            f"{values.index}; name the images that were indexed"
        )
    neighbors = [images.take([row_of[name] for name in names]) for names in found]
    with screening.naming_a_bad_file(images):
        draw_gallery(queries, neighbors, values.output)
    print(values.output)


if __name__ == "__main__":
    flags.DEFINE_string("index", None, "folder that export.index wrote", required=True)
    flags.DEFINE_string("dataset", None, "the images that were indexed", required=True)
    flags.DEFINE_string("data_dir", "", "folder of prepared TFDS data; empty: TFDS's own")
    flags.DEFINE_string("output", "neighbors.png", "picture to write")
    flags.DEFINE_string("saved_model", "", "the index's encoder, if it has moved since")
    flags.DEFINE_integer("queries", 8, "how many queries to draw", lower_bound=1)
    flags.DEFINE_integer("k", 10, "neighbors per query", lower_bound=1)
    flags.DEFINE_integer("seed", 1, "which queries are drawn", lower_bound=0)
    commands.run(main)
