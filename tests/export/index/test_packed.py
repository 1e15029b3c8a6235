import numpy as np
import pytest

from export.arrays import write_array
from export.index import packed


@pytest.mark.parametrize("num_books", [1, 2, 5, 8])
def test_codes_of_any_places_are_those_of_the_file(tmp_path, monkeypatch, num_books):
    monkeypatch.setattr(packed, "CHUNK", 7)
    random = np.random.default_rng(num_books)
    codes = random.integers(0, 16, [30, num_books], np.uint8)
    write_array(tmp_path / "c.npy", codes.shape, np.uint8, [codes])
    held = packed.read(tmp_path / "c.npy", *codes.shape)
    assert held.pairs.nbytes == 30 * ((num_books + 1) // 2)
    assert (len(held), held.shape) == (30, codes.shape)
    none = np.zeros(0, int)
    for places in (slice(None), slice(3, 9), none, 4, random.integers(0, 30, [4, 5])):
        assert held[places].dtype == np.uint8
        np.testing.assert_array_equal(held[places], codes[places])
    np.testing.assert_array_equal(np.asarray(held), codes)


def test_by_hand():
    held = packed.Packed(np.array([[0x1F, 0x20]], np.uint8), 3)
    assert held[0].tolist() == [1, 15, 2]
