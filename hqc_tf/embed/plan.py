"""Which images of a data set are embedded, each once, and what each is for."""

import pathlib
from typing import NamedTuple

import numpy as np

from hqc_tf import config
from hqc_tf.data import catalog, decoding, roles, screening
from hqc_tf.data.features.shards import ROLES
from hqc_tf.data.images import Images, joined
from hqc_tf.errors import UserError
from hqc_tf.training import inputs
from hqc_tf.workdir import FILES, REJECTS, read_files, read_rejects, write_files, write_rejects


class Plan(NamedTuple):
    """The images of a data set."""

    images: Images  # of all roles; the database first, in its own order
    roles: np.ndarray  # uint8 [N], bits of `ROLES`


def make_plan(settings: config.Config, folder: pathlib.Path) -> Plan:
    """The plan for `--dataset`; a folder that has begun keeps its list of files.

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
    if (folder / REJECTS).exists():
        rejects = read_rejects(folder)
    else:
        rejects = screening.find_rejects(settings.dataset, settings.on_bad_image)
    rejected = frozenset(reject.id for reject in rejects)
    inputs.check_files(settings.dataset, read_files(folder), rejected)
    plan = _united({role: roles.load_role(settings, role, rejected) for role in ROLES})
    if not (folder / FILES).exists():
        write_rejects(folder, rejects)
        write_files(folder, inputs.list_files(settings.dataset))
    return plan


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
