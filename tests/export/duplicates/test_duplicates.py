"""Groups are those of a search through all pairs, by codes and by pixels."""

import itertools
import json

import numpy as np
import PIL.Image
import pytest

from export import duplicates
from export.arrays import pack_ids, unpack_id
from export.codes import Shard
from export.duplicates import Group, Partition
from export.encoder import encode_images
from export.index import collection, load_index, neighbors, write_collection, write_index
from hqc_tf import files
from hqc_tf.data import catalog
from tests.export.index.test_index import ENCODER, random_set
from tests.support import commands


def all_pairs(codebooks, codes, radius):
    """Groups of rows, by a loop over all pairs."""
    vectors = codebooks[np.arange(len(codebooks)), codes].reshape(len(codes), -1)
    distances = np.square(vectors[:, None] - vectors).sum(axis=2)
    own = list(range(len(codes)))
    for one, other in itertools.combinations(range(len(codes)), 2):
        if distances[one, other] <= radius:
            own = [own[one] if label == own[other] else label for label in own]
    groups = [[row for row, label in enumerate(own) if label == of] for of in dict.fromkeys(own)]
    return sorted((g for g in groups if len(g) > 1), key=lambda g: (-len(g), g[0]))


@pytest.mark.parametrize(
    ("kind", "radius"), [("scann", 0), ("scann", 3), ("scan", 3), ("scann", 99)]
)
def test_by_code_as_by_all_pairs(tmp_path, monkeypatch, kind, radius):
    monkeypatch.setattr(neighbors, "PAIRED", 50)
    monkeypatch.setattr(neighbors, "FIRST_NEAR", 2)
    codebooks, codes, _ = random_set(4, 150)
    codes = codes[np.random.default_rng(1).integers(0, 150, 200)]
    names = [f"{row}" for row in range(200)]
    write_index(tmp_path / "i", codebooks, codes, names, ENCODER, kind=kind)
    found = [*duplicates.find_by_code(load_index(tmp_path / "i"), radius)]
    expected = all_pairs(codebooks, codes, radius)
    assert [group.ids for group in found] == [[str(row) for row in rows] for rows in expected]


def test_partition_joins_what_pairs_lead_to():
    parts = Partition(6)
    for pairs in ([[0, 1], [4, 5]], [[1, 4]], np.zeros([0, 2], int)):
        parts.join(np.array(pairs))
    labels = parts.labels
    assert len({*labels[[0, 1, 4, 5]]}) == 1
    assert len({*labels}) == 3


def test_no_pairs_leave_a_partition_as_it_is():
    parts = Partition(6)
    labels = parts.labels
    parts.join(np.zeros([0, 2], int))
    # Not even a pass over the things, of which there may be a hundred million.
    assert parts.labels is labels


def test_pairs_of_images_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(duplicates, "ROUGHLY", 5)
    starts = np.array([0, 3, 4, 8])
    codes = np.array([[0, 0], [2, 2], [0, 2], [1, 2]])
    found = np.concatenate([*duplicates._image_pairs(starts, codes)]).tolist()
    expected = [
        [one, other]
        for a, b in codes
        for one in range(starts[a], starts[a + 1])
        for other in range(starts[b], starts[b + 1])
        if one < other
    ]
    assert found == expected


def test_no_pair_of_ten_million_images_of_one_code_is_lost():
    size, ends = 10**7, 10**7 * (10**7 - 1) // 2
    number = np.array([0, size - 2, size - 1, ends - 4, ends - 3, ends - 2, ends - 1])
    expected = [[0, 1], [0, -1], [1, 2], [-4, -1], [-3, -2], [-3, -1], [-2, -1]]
    found = duplicates._of_equal(number, size)
    np.testing.assert_array_equal(found, np.array(expected) % size)


@pytest.fixture(scope="module")
def copied(encoder, photos, tmp_path_factory):
    """A folder with copies of some photos, and its index."""
    folder = tmp_path_factory.mktemp("copied")
    for number, path in enumerate(sorted(photos.rglob("*.png"))[:20]):
        with PIL.Image.open(path) as picture:
            picture.save(folder / f"{number:02}.png")
            if number % 5 == 0:
                picture.save(folder / f"{number:02}_again.jpg", quality=95)
                picture.resize((56, 56)).save(folder / f"{number:02}_large.png")
    images = catalog.load_images(f"folder:{folder}")
    codes = encode_images(encoder, images).codes
    # The index is older than the damage.
    (folder / "00_broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ids, codes = [*images.ids, "00_broken.png"], np.concatenate([codes, codes[:1]])
    path = tmp_path_factory.mktemp("index") / "i"
    write_index(path, encoder.codebooks, codes, ids, encoder.identity)
    return folder, path


def test_by_pixels_copies_alone(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "CLOSELY", 7)
    folder, path = copied
    asked = [f"--index={path}", f"--images=folder:{folder}", f"--output={tmp_path}/g.jsonl"]
    done = commands.run("export.duplicates", *asked, "--max_distance=1000")
    assert done.status == 0, done.stderr
    assert done.stdout.strip() == f"{tmp_path}/g.jsonl: 4 groups of 12 of 29 images"
    assert "left out: 00_broken.png: broken or cut short before its size" in done.stderr
    groups = files.read_lines(tmp_path / "g.jsonl", Group)
    for group, number in zip(groups, (0, 5, 10, 15), strict=True):
        name = f"{number:02}"
        assert group.ids == [f"{name}.png", f"{name}_again.jpg", f"{name}_large.png"]
        assert group.largest == f"{name}_large.png"
        assert group.sides == [[28, 28], [28, 28], [56, 56]]
        assert group.bytes == [(folder / one).stat().st_size for one in group.ids]


def test_by_pixels_of_a_folder_with_a_prefix(copied, tmp_path, encoder, capsys):
    folder, path = copied
    (tmp_path / "other").mkdir()
    one, other = ({"folder": f"{folder}", "id_prefix": "phone/"}, {"folder": f"{tmp_path}/other"})
    index = load_index(path)
    names = [unpack_id(name) for name in index.ids.to_pylist()]
    # The other folder's images have the names of files in this one.
    ids = [*(f"phone/{name}" for name in names), *names[:2]]
    shards = [Shard(np.concatenate([index.codes, index.codes[:2]]), pack_ids(ids))]
    images = collection.Collection([lambda: shards[0]], [len(ids)], [one, other])
    write_collection(tmp_path / "i", encoder.codebooks, images, encoder.identity)
    groups = [*duplicates.find_by_pixels(load_index(tmp_path / "i"), 1000, str(folder))]
    assert len(groups) == 4
    assert all(name.startswith("phone/") for group in groups for name in group.ids)
    said = capsys.readouterr().err
    assert "left out: phone/00_broken.png: broken" in said
    assert f"left out: {names[0]}: not of this folder" in said


def test_by_code_as_a_command(copied, tmp_path):
    _, path = copied
    done = commands.run("export.duplicates", f"--index={path}", f"--output={tmp_path}/g.jsonl")
    assert done.status == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "g.jsonl").read_text().splitlines()]
    assert lines and all(line.keys() == {"ids"} for line in lines)
    sizes = [len(line["ids"]) for line in lines]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--images=cifar10", "--images=cifar10: not a folder of images; give folder:PATH"),
        ("--images=folder:{}/none", "not a folder of images"),
        ("--images=folder:{}", "has none of the images; name their folder"),
        ("--output={}/none/g.jsonl", "there is no folder"),
        ("--max_distance=-1", "--max_distance"),
    ],
)
def test_flags_that_do_not_fit_are_refused(copied, tmp_path, flag, message):
    asked = [f"--index={copied[1]}", f"--output={tmp_path}/g.jsonl", flag.format(tmp_path)]
    done = commands.run("export.duplicates", *asked)
    assert done.status == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
