"""A picture of some queries and their nearest images, right and wrong ones marked.

`python -m export.gallery --index=index/ --dataset=fashion_mnist --output=neighbors.png` draws some
of the images themselves as queries, or the image files that are named after the flags.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from export.arrays import unpack_id
from export.encoder import Encoder, encode_images, load_encoder_of
from export.index import Index, load_index
from export.results import id_prefix
from hqc_tf import commands, files, metrics
from hqc_tf.data import catalog, pictures, screening
from hqc_tf.data.batches import read_pixels
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError, printable

RIGHT, WRONG, UNKNOWN = "#2a8f3c", "#c8342b", "#888888"
_MOST_CHARACTERS = 18


def make_gallery(
    index: Index,
    encoder: Encoder,
    images: Images,
    queries: Images,
    path: str | os.PathLike,
    k: int = 10,
) -> None:
    """Searches an index for each query, and draws what is found with `draw_gallery`.

    A query is left out of its own neighbors.

    Args:
        index: what is searched.
        encoder: the one that it belongs to.
        images: those that were indexed, with their ids; one that is not there has no picture.
        queries: at least one.
        path: file to write.
        k: neighbors of each query, if there are so many.

    Raises:
        UserError: the index is of another encoder, or a file is not an image.
    """
    index.check_encoder(encoder.manifest["fingerprint"])
    embeddings = encode_images(encoder, queries).embeddings
    most = min(k + 1, index.num_images)
    found, _ = index.search(embeddings, most, rescore=index.default_rescore)
    others = [
        [name for name in names if name != own][:k]
        for names, own in zip(found, queries.ids, strict=True)
    ]
    with screening.naming_a_bad_file(images):
        draw_gallery(queries, others, images, path)


def draw_gallery(
    queries: Images, found: Sequence[Sequence[str]], images: Images, path: str | os.PathLike
) -> None:
    """Writes a PNG, atomically, with a row for each of Q queries: it, then its nearest images.

    A frame is green with a tick where the image has a label of the query, red with a cross where it
    has not, gray where there are no labels.

    Args:
        queries: Q images.
        found: Q lists of ids, nearest first.
        images: those with these ids; one that is not there has its name alone.
        path: file to write.
    """
    # Matplotlib is slow to import, and only this command draws.
    from matplotlib.figure import Figure

    row_of = {name: row for row, name in enumerate(images.ids)}
    columns = 1 + max(map(len, found))
    figure = Figure(figsize=(max(3, columns * 0.95), 0.4 + len(queries) * 1.16))
    axes = figure.subplots(len(queries), columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for row, names in enumerate(found):
        query = queries.take([row])
        _show(axes[row][0], query, "black", _title(query), width=2.5)
        for axis, name in zip(axes[row][1:], names, strict=False):
            _show_neighbor(axis, query, name, images.take([row_of[name]] if name in row_of else []))
    figure.suptitle(f"Query (left) and its {columns - 1} nearest images", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.98), pad=0.4)
    save = functools.partial(figure.savefig, format="png", dpi=110)
    files.write_atomically(pathlib.Path(path), save)


def _show_neighbor(axis, query, name, found):
    if not len(found):
        _frame(axis, UNKNOWN, _short(name))
        return
    color, mark = _verdict(query, found, 0)
    _show(axis, found, color, f"{mark} {_title(found)}")


def _verdict(query, found, place):
    if query.labels is None or found.labels is None:
        return UNKNOWN, ""
    right = metrics.relevance(found.labels[None, [place]], query.labels[:1])[0, 0]
    return (RIGHT, "✓") if right else (WRONG, "✗")


def _title(image):
    """The labels of one image, or its name where it has none."""
    return pictures.label_text(image, 0) or _short(image.ids[0])


def _short(name):
    name = printable(pathlib.PurePath(name).name)
    return name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…"


def _show(axis, image, color, title, width=2.0):
    axis.imshow(read_pixels(image, 0))
    _frame(axis, color, title, width)


def _frame(axis, color, title, width=2.0):
    axis.set_axis_on()
    # A label's name is not a formula, even where it has "$".
    axis.set_title(title, fontsize=6, color=color, pad=3.5, parse_math=False)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(edgecolor=color, linewidth=width)


def load_indexed(index: Index, dataset: str, data_dir: str = "") -> Images:
    """The images of a data set, with the ids that they have in an index of them."""
    return _prefixed(index, dataset, catalog.load_images(dataset, data_dir))


def _prefixed(index, dataset, images):
    source = catalog.parse(dataset)
    prefix = id_prefix(index.manifest.get("inputs", []), source.root) if source.is_files else ""
    return dataclasses.replace(images, ids=[prefix + name for name in images.ids])


def draw_queries(
    index: Index, dataset: str, data_dir: str = "", count: int = 8, seed: int = 1
) -> Images:
    """Some of the queries of a data set, or of its images where none is a query.

    UserError where the index has no image of it.
    """
    images = load_indexed(index, dataset, data_dir)
    candidates = catalog.load_split(dataset, "query", data_dir)
    candidates = _prefixed(index, dataset, candidates) if candidates else images
    if catalog.parse(dataset).is_files:
        # The others may be those that could not be decoded, or were removed.
        indexed = set(map(unpack_id, index.ids.to_pylist()))
        known = [row for row, name in enumerate(candidates.ids) if name in indexed]
        candidates = candidates.take(known)
    if not len(candidates):
        raise UserError(
            f"--dataset={dataset}: has no image of index {index.path}; name those that were indexed"
        )
    random = np.random.default_rng(seed)
    most = min(count, len(candidates))
    return candidates.take(random.choice(len(candidates), most, replace=False))


def main(paths: list[str]) -> None:
    values = flags.FLAGS
    if catalog.parse(values.dataset).kind == "features":
        raise UserError(f"--dataset={values.dataset}: has no pictures; take export.search")
    files.check_parent(values.output, "--output=")
    index = load_index(values.index)
    encoder = load_encoder_of(index.manifest, values.saved_model)
    if paths:
        queries = Images.of_files(paths)
    else:
        own = values.data_dir, values.queries, values.seed
        queries = draw_queries(index, values.dataset, *own)
    images = load_indexed(index, values.dataset, values.data_dir)
    make_gallery(index, encoder, images, queries, values.output, values.k)
    print(values.output)


if __name__ == "__main__":
    flags.DEFINE_string("index", None, "folder that export.index wrote", required=True)
    flags.DEFINE_string("dataset", None, "the images that were indexed", required=True)
    flags.DEFINE_string("data_dir", "", "folder of prepared TFDS data; empty: TFDS's own")
    flags.DEFINE_string("output", "neighbors.png", "picture to write")
    flags.DEFINE_string("saved_model", "", "the index's encoder, if it has moved since")
    flags.DEFINE_integer(
        "queries", 8, "how many queries to draw, if no files are named", lower_bound=1
    )
    flags.DEFINE_integer("k", 10, "neighbors per query", lower_bound=1)
    flags.DEFINE_integer("seed", 1, "which queries are drawn", lower_bound=0)
    commands.run(main, takes_arguments=True)
