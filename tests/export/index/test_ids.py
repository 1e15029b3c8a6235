"""Ids in blocks: every one comes back, by row, in pieces and all at once, and damage is named."""

import numpy as np
import pytest

from export import arrays
from export.arrays import pack_ids
from export.index import ids
from hqc_tf.errors import UserError

NAMES = [f"2019/{row // 30}/IMG_{row:05d}.jpg" for row in range(700)]
ODD = ["", "a\n\0", "\u00e4\U0001f600", "\udcff", "x" * 70_000, ""]


def written(tmp_path, *parts):
    packed = [pack_ids(part) for part in parts]
    with (tmp_path / "ids").open("wb") as file:
        ids.write(file, packed)
    return ids.read(tmp_path / "ids", sum(map(len, packed)), "fix")


@pytest.mark.parametrize(
    "parts", [[NAMES], [NAMES[:100], [], NAMES[100:]], [ODD], [NAMES[:128]], [[""]], [[]]]
)
def test_ids_come_back(tmp_path, parts):
    found, whole = written(tmp_path, *parts), pack_ids(sum(parts, []))
    assert found.to_pylist() == whole.to_pylist() and len(found) == len(whole)
    for start, count in ((0, 0), (0, 3), (100, 200), (127, 2), (600, 500)):
        assert found.slice(start, count).equals(whole.slice(start, count)), (start, count)
    rows = np.random.default_rng(0).integers(0, max(1, len(whole)), min(50, len(whole)))
    assert found.take(rows).equals(whole.take(rows))
    assert [found[row].as_py() for row in rows] == found.values(rows)


def test_the_first_row_of_an_id_is_found(tmp_path):
    found = written(tmp_path, [*NAMES, *NAMES])
    assert [found.find(name.encode()) for name in (NAMES[0], NAMES[699], NAMES[130])] == [
        0,
        699,
        130,
    ]
    # A part of an id, or of two, is none.
    assert found.find(b"IMG_00001.jpg") is None
    assert found.find(b"01.jpg2019/0/IMG") is None


def test_uncompressed_ids_are_read_alike(tmp_path):
    with (tmp_path / "old").open("wb") as file:
        arrays.write_ids(file, [pack_ids(NAMES[:300]), pack_ids(NAMES[300:])])
    found = ids.of_array(arrays.read_ids(tmp_path / "old", "fix"))
    assert found.to_pylist() == [name.encode() for name in NAMES]
    assert found.values([299, 300, 699]) == [NAMES[row].encode() for row in (299, 300, 699)]


def test_ids_in_order_take_less_than_half(tmp_path):
    written(tmp_path, [f"holiday/2019/IMG_{row:06d}.jpg" for row in range(50_000)])
    assert (tmp_path / "ids").stat().st_size / 50_000 < 6


@pytest.mark.parametrize("size", [0, 5, 2**20, 2**60, -1])
def test_a_block_that_says_otherwise_is_refused(tmp_path, size):
    written(tmp_path, NAMES[:9])
    contents = (tmp_path / "ids").read_bytes()
    right = np.int64(sum(map(len, NAMES[:9])) + 4 * 9).tobytes()
    assert contents.count(right) == 1
    (tmp_path / "ids").write_bytes(contents.replace(right, np.int64(size).tobytes()))
    found = ids.read(tmp_path / "ids", 9, "fix")
    with pytest.raises(UserError, match="ids: cannot be read .*; fix"):
        found.values([0])
