"""Which images of a data set are embedded, each once, and what each is for."""

import pathlib
from typing import NamedTuple

import numpy as np

from hqc_tf import config
from hqc_tf.data import catalog, decoding, roles, screening
from hqc_tf.data.features.shards import MANIFEST, ROLES
from hqc_tf.data.images import Images, joined
from hqc_tf.errors import UserError
from hqc_tf.training import inputs
from hqc_tf.workdir import FILES, REJECTS, read_files, read_rejects, write_files, write_rejects


class Plan(NamedTuple):
    """The images of a data set."""

    images: Images  # of all roles; the database first, in its own order
    roles: np.ndarray  # uint8 [N], bits of `ROLES`


def make_plan(settings: config.Config, folder: pathlib.Path) -> Plan:
    """The plan for `--dataset`; a folder that has begun keeps its lists of files and rejects.

    Args:
        settings: of the command.
        folder: of the features; its files.jsonl and rejects.jsonl are written or read.

    Raises:
        UserError: the data set cannot be read, or its files are not those that the folder began
            with.
    """
    if catalog.parse(settings.dataset).kind == "features":
        raise UserError(f"--dataset={settings.dataset}: are features already; name images")
    decoding.raise_max_pixels(settings.max_pixels)
    if settings.queries:
        fix = "embed them into another folder, and give training --queries=features:THAT"
        raise UserError(f"--queries={settings.queries}: are another data set; {fix}")
    roles.check(settings)
    rejected = frozenset(reject.id for reject in _find_rejects(settings, folder))
    return _united({role: roles.load_role(settings, role, rejected) for role in ROLES})


def _find_rejects(settings, folder):
    """The images that are left out, kept in the folder as soon as they are known."""
    before, dataset = read_files(folder), settings.dataset
    if (folder / MANIFEST).exists():
        rejects = read_rejects(folder)
        inputs.check_files(dataset, before, frozenset(reject.id for reject in rejects))
        return rejects
    is_screened = (folder / FILES).exists() and (folder / REJECTS).exists()
    # Before the first vector, files may still change.
    if is_screened and not inputs.describe_changes(dataset, before, frozenset()):
        return read_rejects(folder)
    rejects = screening.find_rejects(dataset, settings.on_bad_image)
    # The list of files last: it says that the other one is of them.
    write_rejects(folder, rejects)
    write_files(folder, inputs.list_files(dataset))
    return rejects


def _united(by_role):
    places, parts = {}, []
    for role in ("database", "train", "query"):
        images = by_role[role]
        # A list may name an image twice.
        first = {}
        for row, name in enumerate(images.ids if images else ()):
            first.setdefault(name, row)
        if new := [row for name, row in first.items() if name not in places]:
            places |= {images.ids[row]: len(places) + at for at, row in enumerate(new)}
            parts.append(images.take(new))
    roles = np.zeros(len(places), np.uint8)
    for bit, role in enumerate(ROLES):
        images = by_role[role]
        roles[[places[name] for name in (images.ids if images else ())]] |= 1 << bit
    return Plan(joined(parts), roles)
