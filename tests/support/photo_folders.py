"""Folders of lists and photos: the published lists, or smaller ones, and tiny JPEGs as photos."""

import itertools
import os

import numpy as np
import PIL.Image
import pytest

from hqc_tf.data import photo_sets
from tests.support import ROOT

PUBLISHED = ROOT.parent / "shared/data/splits"


def copy_published(dataset, folder):
    """Copies the published lists of `dataset` to `folder`, or skips the test."""
    if not (PUBLISHED / dataset).is_dir():
        pytest.skip(f"the published lists of {dataset} are not in {PUBLISHED}")
    folder.mkdir(parents=True, exist_ok=True)
    for path in (PUBLISHED / dataset).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def write_photos(folder, names):
    """Makes JPEGs of 16x12 under `names`: eight different ones, linked."""
    for parent in {name.rpartition("/")[0] for name in names}:
        (folder / parent).mkdir(parents=True, exist_ok=True)
    first, rest = names[:8], names[8:]
    random = np.random.RandomState(0)
    for name in first:
        pixels = random.randint(0, 256, (12, 16, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / name)
    # A file system takes some tens of thousands of links to one file, not more.
    for name, of in zip(rest, itertools.cycle(first), strict=False):
        os.link(f"{folder}/{of}", f"{folder}/{name}")


def label_lines(labels):
    """uint8 [N, C] of 0 and 1 -> N lines of C columns."""
    cells = np.full((len(labels), 2 * labels.shape[1]), ord(" "), np.uint8)
    cells[:, ::2] = labels + ord("0")
    return [line.decode().rstrip() for line in cells.view(f"S{cells.shape[1]}")[:, 0]]


def write_nuswide_list(folder, split, names):
    """Writes a list of NUS-WIDE at its full length, `names` again and again, labels drawn."""
    of = photo_sets.NUSWIDE_LISTS[split]
    labels = np.random.RandomState(0).randint(0, 2, (of.lines, of.labels), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    rows = zip(itertools.cycle(names), label_lines(labels), strict=False)
    (folder / of.file).write_text("".join(f"{name} {line}\n" for name, line in rows))


def write_flickr25k_lists(folder, names):
    """Writes both lists of FLICKR25K in the same way; returns the labels, uint8 [25000, 24]."""
    lines = photo_sets.FLICKR_NAMES.lines
    count = (lines, photo_sets.FLICKR_LABELS.labels)
    labels = np.random.RandomState(0).randint(0, 2, count, dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    named = itertools.islice(itertools.cycle(names), lines)
    (folder / "img.txt").write_text("".join(f"{name}\n" for name in named))
    (folder / "targets.txt").write_text("".join(f"{line} \n" for line in label_lines(labels)))
    return labels
