"""Which images a run trains on, searches and searches for, and their labels.

Within a data set `catalog.load_split` decides. `--queries` takes the queries from another one, and
`--labels` the labels from a file.
"""

import csv
import dataclasses
import functools
import os
import pathlib
import sys

import numpy as np

from hqc_tf import config
from hqc_tf.data import catalog, screening
from hqc_tf.data.folder import divide
from hqc_tf.data.images import Images, numbered
from hqc_tf.errors import UserError, printable

_SHOWN = 3
_ID_COLUMNS = "id", "path"
_COLUMNS = "it must have id (or path) and label, with commas between"


def load_role(
    settings: config.Config, role: str, rejected: frozenset[str] = frozenset()
) -> Images | None:
    """The images that play a role under the settings of a run.

    With queries of their own, all images of the other data set are trained on and searched. With
    labels of a file, roles are as in a folder of labeled images.

    Args:
        settings: dataset, data_dir, queries, labels and on_bad_image are read.
        role: "train", "database" or "query".
        rejected: ids of images in the data set's files that are left out.

    Raises:
        UserError: as `catalog.load_split`, labels are missing, or the queries have none in common
            with the other images.
    """
    c = settings
    if c.queries and role == "query":
        return _matched(_load_queries(c), load_role(c, "database", rejected), c)
    source = catalog.parse(c.dataset)
    own = source.is_files or source.kind == "features"
    if not (own and (c.queries or c.labels)):
        if c.labels and not own:
            raise UserError(f"--labels={c.labels}: {c.dataset} has labels of its own; leave it out")
        return catalog.load_split(c.dataset, role, c.data_dir, rejected)
    images = _labeled(catalog.load_images(c.dataset, c.data_dir, rejected), c.labels, c.dataset)
    return images if c.queries else divide(images, role)


def check(settings: config.Config) -> None:
    """Raises `UserError` where queries or labels cannot be read; decodes no image."""
    if settings.labels:
        read_labels(settings.labels)
    # Others are decoded to be listed.
    if settings.queries and catalog.parse(settings.queries).kind in (
        "folder",
        "pattern",
        "features",
    ):
        catalog.load_images(settings.queries, settings.data_dir)


def protocol(settings: config.Config) -> str:
    """The name under which results under these settings are reported."""
    own = catalog.protocol(settings.dataset)
    if settings.queries:
        own = f"{own.partition(', 1 in')[0]}, queries of {settings.queries}"
    if not settings.labels:
        return own
    return f"{own.removesuffix(' without labels')}, labels of {pathlib.Path(settings.labels).name}"


def read_labels(path: str) -> dict[str, str]:
    """The label of each id, or path, in a CSV file with a line of names of its columns.

    UserError where it cannot be read, lacks a column or a label, or has an id twice.
    """
    try:
        with pathlib.Path(path).open(encoding="utf-8-sig", newline="") as file:
            return _rows(path, csv.DictReader(file, skipinitialspace=True))
    except FileNotFoundError as error:
        fix = "give a CSV file with the columns id and label"
        raise UserError(f"--labels={path}: no such file; {fix}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--labels={path}: no CSV in UTF-8 ({error}); save it as such") from error


def _rows(path, reader):
    reader.fieldnames = names = [name.strip() for name in reader.fieldnames or []]
    column = next((name for name in _ID_COLUMNS if name in names), None)
    if column is None or "label" not in names:
        raise UserError(
            f"--labels={path}: its columns are {', '.join(names) or 'none'}; {_COLUMNS}"
        )
    found = {}
    for row in reader:
        if any(row.get(None, ())):
            raise UserError(
                f"--labels={path}: line {reader.line_num} has more values than there are columns; "
                "put quotes around one with a comma"
            )
        name, label = row[column], (row["label"] or "").strip()
        if not name or not label:
            empty = column if not name else "label"
            raise UserError(f"--labels={path}: line {reader.line_num} has no {empty}; give one")
        if name in found:
            raise UserError(
                f"--labels={path}: {name} is there twice, last in line {reader.line_num}; leave one"
            )
        found[name] = label
    return found


def _labeled(images, path, source):
    """The images with the labels that a file has of their ids, or of their paths."""
    if not path:
        return images
    by_name = read_labels(path)
    by_path = {}
    for name, label in by_name.items():
        if by_path.setdefault(os.path.abspath(name), label) != label:  # noqa: PTH100
            raise UserError(f"--labels={path}: {name} is there with another label; leave one")
    paths = images.paths or images.ids
    found = [
        by_name.get(own) or by_path.get(os.path.abspath(place))  # noqa: PTH100
        for own, place in zip(images.ids, paths, strict=True)
    ]
    if missing := [own for own, label in zip(images.ids, found, strict=True) if label is None]:
        first = ", ".join(printable(name) for name in missing[:_SHOWN])
        more = ", ..." if len(missing) > _SHOWN else ""
        raise UserError(
            f"--labels={path}: no label for {len(missing)} of the {len(images)} images of "
            f"{source} ({first}{more}); add a line for each, with its id as it is here"
        )
    labels, names = numbered(found)
    return dataclasses.replace(images, labels=labels, label_names=names)


def _load_queries(settings):
    c = settings
    rejected = find_rejects("queries", c.queries, c.on_bad_image)
    images = catalog.load_images(c.queries, c.data_dir, rejected)
    return _labeled(images, c.labels, c.queries)


# A command reads its images several times.
@functools.lru_cache(maxsize=2)
def find_rejects(flag: str, dataset: str, on_bad_image: str) -> frozenset[str]:
    """Ids of the images of `--flag=dataset` that are left out; says how many, if any."""
    found = screening.find_rejects(dataset, on_bad_image)
    if found:
        first = f"{found[0].id}: {found[0].reason}"
        print(
            printable(f"--{flag}={dataset}: {len(found)} of them left out, the first {first}"),
            file=sys.stderr,
        )
    return frozenset(reject.id for reject in found)


def _matched(queries, images, settings):
    """Queries whose labels have the numbers that the same names have among the other images."""
    asked = f"--queries={settings.queries}"
    kinds = ["features" if one.features is not None else "images" for one in (queries, images)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{asked}: {kinds[0]}, and --dataset are {kinds[1]}; give {kinds[1]} too")
    if queries.features is not None:
        _check_vectors(queries, images, asked)
    if queries.labels is None and images.labels is None:
        return queries
    if queries.labels is None or images.labels is None:
        which = asked if queries.labels is None else f"--dataset={settings.dataset}"
        raise UserError(
            f"{which}: no labels there, and the other images have some; put the images into "
            "sub-folders that are named alike, or give --labels=FILE.csv"
        )
    if queries.label_names == images.label_names:
        return queries
    if queries.labels.ndim > 1 or images.labels.ndim > 1 or None in _names(queries, images):
        raise UserError(f"{asked}: labels of another kind than --dataset's; give such as those")
    return _renumbered(queries, images, asked)


def _check_vectors(queries, images, asked):
    widths = [one.features.shape[1] for one in (queries, images)]
    if widths[0] != widths[1]:
        raise UserError(
            f"{asked}: {widths[0]} numbers a row, and --dataset has {widths[1]}; give vectors of "
            "the same network"
        )
    networks = {one.network for one in (queries, images) if one.network}
    if len(networks) > 1:
        raise UserError(f"{asked}: of another network than --dataset; embed them by the same")


def _names(*some):
    return [images.label_names for images in some]


def _renumbered(queries, images, asked):
    own, known = _names(queries, images)
    if not set(own) & set(known):
        raise UserError(
            f"{asked}: its labels ({', '.join(own[:_SHOWN])}) are none of --dataset's "
            f"({', '.join(known[:_SHOWN])}); name them alike"
        )
    names = [*known, *(name for name in own if name not in set(known))]
    numbers = {name: number for number, name in enumerate(names)}
    places = np.array([numbers[name] for name in own])
    return dataclasses.replace(queries, labels=places[queries.labels], label_names=names)
