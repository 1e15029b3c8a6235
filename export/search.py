"""Finds the nearest images of queries: `python -m export.search --index=... a.jpg b.png`.

Queries are image files, a data set (`--dataset`) or embeddings in a .npy file (`--embeddings`). The
answer to each is a line of JSON: {"query": name, "ids": [...], "distances": [...]}, nearest first,
with squared asymmetric distances, or, where the index keeps embeddings, the squared distances of
the first 100 to these; `--output` takes the lines, or the same as a Parquet table. With
`--server` the index's encoder runs there, not here.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from absl import flags

from export.arrays import map_array
from export.encode import streaming
from export.encoder import Encoder, encode_features, encode_images, load_encoder_of
from export.index import Index, load_index
from export.index.collection import read_ids
from export.index.neighbors import RESCORED
from export.index.subset import Subset, Within, make_mask
from export.results import FORMATS, Answers, path_finder, write_answers
from hqc_tf import commands, files
from hqc_tf.data import catalog, decoding
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError, counted

# Queries that are searched together, and results in memory at a time: 256 each of so many.
BATCH = 1024
RESULTS = 2**18


def search_files(index: Index, encoder: Encoder, paths: list[str], k: int, **options) -> Answers:
    """Yields the k nearest images of each image file: "query", "ids" and "distances", in order.

    Args:
        encoder: the one that the index belongs to.
        paths: image files.
        k: 1 to the number of images.
        **options: of `answers`.

    Raises:
        UserError: the index is of another encoder, or a file is not an image.
    """
    return search_images(index, encoder, Images.of_files(paths), k, **options)


def search_images(index: Index, encoder: Encoder, images: Images, k: int, **options) -> Answers:
    """As `search_files`, of a set of images."""
    index.check_encoder(encoder.manifest["fingerprint"])
    parts = (images.take(rows) for rows in _batches(len(images)))
    batches = ((part.ids, encode_images(encoder, part).embeddings) for part in parts)
    return answers(index, batches, k, **options)


def search_dataset(
    index: Index,
    encoder: Encoder,
    dataset: str,
    k: int,
    data_dir: str = "",
    on_bad_image: str = "skip",
    **options,
) -> Answers:
    """As `search_images`, of what `--dataset` names; files are read as they are searched.

    Args:
        dataset, data_dir: as in `catalog.load_images`.
        on_bad_image: of files that are not images: "skip" names them on stderr, "stop" raises.
    """
    source = catalog.parse(dataset)
    if not source.is_files:
        images = catalog.load_images(dataset, data_dir)
        return search_images(index, encoder, images, k, **options)
    index.check_encoder(encoder.manifest["fingerprint"])
    return answers(index, _embed_files(encoder, source, on_bad_image), k, **options)


def _embed_files(encoder, source, on_bad_image):
    """Yields ids and embeddings of the images in files."""
    found = 0
    for batch in streaming.encode_batches(encoder, source.items()):
        streaming.check_rejects(batch.rejects, on_bad_image)
        streaming.name_rejects(batch.rejects)
        found += len(batch.ids)
        if batch.ids:
            yield batch.ids, batch.embeddings
    if not found:
        raise UserError(f"--dataset={source.name}: no image in it; name one that has some")


def search_with_server(index: Index, served: Any, paths: list[str], k: int, **options) -> Answers:
    """As `search_files`, embedded by the index's encoder at `served` (`export.client.connect`).

    UserError where the server has another encoder or gives no answer, or a file is not an image.
    """
    # It needs gRPC, which nothing else here does.
    from export import client

    fingerprint = index.manifest["encoder"]["fingerprint"]
    encoded = client.encode_files(served, paths, fingerprint)
    return answers(index, ((names, batch.embeddings) for names, batch in encoded), k, **options)


def search_embeddings(
    index: Index,
    path: str | os.PathLike,
    k: int,
    load: Callable[[], Encoder] | None = None,
    **options,
) -> Answers:
    """As `search_files`, of the rows of a .npy file; row r has the name path:r.

    They are embeddings, [Q, M*D] float, or what the encoder that `load` gives makes embeddings of:
    features [Q, E] of the network that it was trained on. UserError where they are neither, or
    could be both.
    """
    rows = map_array(path, f"--embeddings={path}", "name a .npy file of floats")
    width = index.codebooks.shape[0] * index.codebooks.shape[2]
    if load and index.manifest["encoder"].get("feature_width") == width:
        raise UserError(
            f"--embeddings={path}: features and embeddings of index {index.path} both have {width} "
            f"numbers; give features as --dataset=features:{path}, embeddings to Index.search"
        )
    fits, encoder = rows.dtype.kind == "f" and rows.ndim == 2, None
    if fits and rows.shape[1] != width and load:
        encoder = load()
        index.check_encoder(encoder.manifest["fingerprint"])
    if not fits or rows.shape[1] != (encoder.feature_width if encoder else width):
        # An encoder of images alone takes no features.
        features = encoder and encoder.feature_width
        wanted = f"[Q, {width}]" + (f" or [Q, {features}]" if features else "")
        raise UserError(
            f"--embeddings={path}: holds {rows.dtype} {rows.shape}, but index {index.path} needs "
            f"floats {wanted}; embed the queries with its encoder"
        )

    _check_rows(rows, path)

    def embed(chosen):
        values = np.asarray(rows[chosen.start : chosen.stop])
        return encode_features(encoder, values)["embedding"].numpy() if encoder else values

    batches = (([f"{path}:{row}" for row in part], embed(part)) for part in _batches(len(rows)))
    return answers(index, batches, k, **options)


def _check_rows(rows, path):
    """UserError where a .npy file has no query, or one that no distance can be computed of."""
    if not len(rows):
        raise UserError(f"--embeddings={path}: has no row; name a file that has some")
    for part in _batches(len(rows)):
        with np.errstate(over="ignore"):
            values = np.asarray(rows[part.start : part.stop], np.float32)
            good = np.isfinite(np.square(values).sum(axis=1))
        if not good.all():
            raise UserError(
                f"--embeddings={path}: row {part.start + good.argmin()} holds NaN or infinity, or "
                "numbers whose squares are; fix or remove it"
            )


def answers(
    index: Index,
    batches: Iterable[tuple[list[str], np.ndarray]],
    k: int,
    rerank: int | None = None,
    leaves_to_search: int | None = None,
    explain: bool = False,
    within: Within | None = None,
    rescore: int = 0,
) -> Answers:
    """The k nearest images of each query.

    Args:
        index: what is searched.
        batches: names and [Q, M*D] float embeddings of queries.
        k: 1 to the number of images.
        rerank, leaves_to_search, within, rescore: as in `Index.rows`.
        explain: whether to say what each book adds to a distance.

    Yields:
        dict of "query", "ids", "distances" and, to explain them, "books", k lists of M distances.
    """
    keys = ["query", "ids", "distances", *(["books"] if explain else [])]
    a_result = len(index.codebooks) if explain else 1
    step = max(1, RESULTS // max(1, k * a_result, rescore))
    for names, embeddings in _in_parts(batches, step):
        found = index.rows(embeddings, k, rerank, leaves_to_search, within, rescore)
        columns = [names, index.ids_of(found.rows), found.distances.tolist()]
        if explain:
            columns.append(index.book_distances(embeddings, found).tolist())
        for row in zip(*columns, strict=True):
            yield dict(zip(keys, row, strict=True))


def _in_parts(batches, step):
    for names, embeddings in batches:
        for start in range(0, len(names), step):
            rows = slice(start, start + step)
            yield names[rows], embeddings[rows]


def _batches(count):
    return (range(start, min(start + BATCH, count)) for start in range(0, count, BATCH))


def _check_flags(values, paths):
    sources = [bool(paths), bool(values.dataset), bool(values.embeddings)]
    if not any(sources):
        raise UserError("no query; give image files after the flags, --dataset or --embeddings")
    if sum(sources) > 1:
        raise UserError("image files, --dataset and --embeddings: queries of one kind; choose one")
    if values.server and not paths:
        raise UserError("--server: encodes image files; name some after the flags, or leave it out")
    files.check_parent(values.output, "--output=")


def _found(index, values, paths):
    options = {key: getattr(values, key) for key in ("rerank", "leaves_to_search", "explain")}
    options["within"] = _subset(index, values.within, values.without)
    default = min(index.default_rescore, values.rerank or RESCORED)
    options["rescore"] = default if values.rescore is None else values.rescore
    k = _most_results(index, options["within"], values.k)
    load = functools.partial(load_encoder_of, index.manifest, values.saved_model)
    if values.embeddings:
        return search_embeddings(index, values.embeddings, k, load, **options)
    if values.server:
        from export import client

        decoding.raise_max_pixels(values.max_pixels)
        served = client.connect(values.server, values.model, values.deadline)
        return search_with_server(index, served, paths, k, **options)
    encoder = load()
    if values.dataset:
        bad = values.data_dir, values.on_bad_image
        return search_dataset(index, encoder, values.dataset, k, *bad, **options)
    return search_files(index, encoder, paths, k, **options)


def _subset(index: Index, within: str, without: str) -> Subset | None:
    """The images that the flags let through, None for all; UserError where they are none."""
    if not (within or without):
        return None
    mask = make_mask(index.ids, within)
    if not mask.any():
        raise UserError(f"--within={within}: no id in {index.path} begins so; correct it")
    if without:
        left_out = _listed(index, without)
        mask = mask & ~left_out
        if not mask.any():
            raise UserError(f"--without={without}: no image is left; list fewer ids")
    return index.subset(mask)


def _listed(index: Index, without: str) -> np.ndarray:
    """Which images --without lists, bool [N]; a line on stderr where the index lacks some."""
    ids = read_ids(without, "--without")
    mask = make_mask(index.ids, ids)
    listed = len(set(ids))
    unknown = listed - len(set(index.ids.values(np.flatnonzero(mask))))
    if unknown:
        told = f"{unknown} of {listed} ids are not in {index.path}"
        print(f"--without={without}: {told}", file=sys.stderr)
    return mask


def _most_results(index: Index, within: Subset | None, k: int) -> int:
    """How many images a query can find, `k` at most; a line on stderr where there are fewer."""
    count = within.num_images if within else index.num_images
    if k > count:
        are = "is" if count == 1 else "are"
        told = f"--k={k}: there {are} {counted(count, 'image')} to find, and all are given"
        print(told, file=sys.stderr)
    return min(k, count)


def main(paths: list[str]) -> None:
    values = flags.FLAGS
    _check_flags(values, paths)
    index = load_index(values.index)
    path_of = path_finder(index.manifest.get("inputs", []))
    write_answers(_found(index, values, paths), values.output, values.format, path_of)


if __name__ == "__main__":
    flags.DEFINE_string("index", None, "folder that export.index wrote", required=True)
    flags.DEFINE_integer("k", 10, "results per query", lower_bound=1)
    flags.DEFINE_string("dataset", "", "queries instead of files: a data set, as in hqc_tf.train")
    flags.DEFINE_string("data_dir", "", "folder of prepared TFDS data; empty: TFDS's own")
    flags.DEFINE_enum(
        "on_bad_image",
        "skip",
        ["skip", "stop"],
        "skip and name undecodable images of --dataset, or stop at one",
    )
    flags.DEFINE_string(
        "embeddings",
        "",
        "queries: .npy file of float [Q, M*D], or of the encoder's features [Q, E]",
    )
    flags.DEFINE_string(
        "output", "", "file for the answers, by its ending .jsonl, .csv or .parquet; empty: stdout"
    )
    text = "form of the answers; empty: by the ending, a table on a terminal, else jsonl"
    flags.DEFINE_enum("format", "", ["", *FORMATS], text)
    flags.DEFINE_bool("explain", False, "also give what each book adds to each distance")
    flags.DEFINE_integer(
        "rerank", None, "candidates ranked exactly; default: the larger of 64 and 2.5 k", 1
    )
    flags.DEFINE_integer(
        "rescore",
        None,
        "images, nearest by code, that are put in order of the embeddings kept in the index; "
        f"default: {RESCORED} where it keeps some; 0: the order of codes",
        0,
    )
    flags.DEFINE_integer("leaves_to_search", None, "leaves per query; default: as it was built", 1)
    flags.DEFINE_string("within", "", "only images whose ids begin so, as holiday/2019/")
    flags.DEFINE_string(
        "without", "", "file of ids that are not searched, in the forms of export.index --remove"
    )
    flags.DEFINE_string("saved_model", "", "the index's encoder, if it has moved since")
    flags.DEFINE_string(
        "server",
        "",
        "a TensorFlow Serving that has the encoder: host:port of gRPC, http://host:port of REST; "
        "empty: the encoder runs here",
    )
    flags.DEFINE_string("model", "hqc", "the encoder's name on --server")
    text = "with --server: pixels of the largest file, which is made smaller before it is sent"
    flags.DEFINE_integer("max_pixels", decoding.MAX_PIXELS, text, upper_bound=decoding.MOST_PIXELS)
    flags.DEFINE_float("deadline", 30, "seconds for --server's answer to a batch of files", 0)
    commands.run(main, takes_arguments=True)
