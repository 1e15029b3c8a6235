"""A filtered search finds what a full scan of the images that are let through finds."""

import numpy as np
import pytest

from export.arrays import pack_ids
from export.index import load_index, neighbors, subset, write_index
from tests.export.index.test_index import ENCODER, full_scan, names, random_set


def assert_equals_scan_of(index, codebooks, codes, queries, k, within, mask):
    found = index.rows(queries, k, within=within)
    rows = np.flatnonzero(mask)
    expected, distances = full_scan(codebooks, codes[rows], queries, k)
    np.testing.assert_array_equal(found.rows, rows[expected])
    np.testing.assert_allclose(found.distances, distances, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(index.distinct_codes[found.codes], codes[found.rows])


@pytest.fixture(scope="module", params=["scann", "scan", "leaves", "ties"])
def made(request, tmp_path_factory):
    """An index of 6,000 images, many of equal codes, and what it was made of."""
    codebooks, codes, queries = random_set(8, 2000, num_queries=9)
    codes = codes[np.random.default_rng(3).integers(0, 2000, 6000)]
    if request.param == "ties":
        codebooks = codebooks[:, np.arange(16) % 2]
    path = tmp_path_factory.mktemp("index") / "i"
    leaves = {"num_leaves": 20} if request.param == "leaves" else {}
    kind = "scan" if request.param == "scan" else "scann"
    write_index(path, codebooks, codes, names(6000), ENCODER, kind=kind, **leaves)
    return load_index(path), codebooks, codes, queries


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.03, 0.2, 0.97, 1])
def test_equals_the_full_scan_of_what_is_let_through(made, share, monkeypatch):
    monkeypatch.setattr(neighbors, "MIN_CANDIDATES", 20)
    index, codebooks, codes, queries = made
    mask = np.random.default_rng(4).random(6000) < share
    leaves = index.manifest["num_leaves"]
    if leaves:
        index.manifest["leaves_to_search"] = leaves
    for k in (1, 10, 5000):
        assert_equals_scan_of(index, codebooks, codes, queries, k, mask, mask)


def test_a_narrow_filter_scans_only_what_it_lets_through(made):
    index = made[0]
    mask = np.arange(6000) < 40
    narrow = index.subset(mask)
    assert len(narrow.index.proposer.codes) == len(narrow.places) <= 40
    assert (index.subset(~mask).places is None) == (index.manifest["kind"] == "scann")


def test_ids_and_what_they_begin_with(tmp_path):
    codebooks, codes, queries = random_set(4, 6)
    ids = ["a/1", "a/2", "ab", "é/3", "\udcff/4", "a/1"]
    write_index(tmp_path / "i", codebooks, codes, ids, ENCODER)
    index = load_index(tmp_path / "i")
    for within, rows in [
        ("a/", [0, 1, 5]), ("a", [0, 1, 2, 5]), ("", range(6)), ("é/", [3]), ("\udcff", [4]),
        ({"a/1", "ab", "gone"}, [0, 2, 5]), (["\udcff/4"], [4]), ("b", []), ((), []),
    ]:  # fmt: skip
        found = index.rows(queries, 9, within=within)
        assert [sorted(row) for row in found.rows.tolist()] == [[*rows]] * len(queries)
        assert found.distances.shape == found.codes.shape == (len(queries), len([*rows]))
    assert index.search(queries[:1], 3, within={"ab"})[0] == [["ab"]]


def test_books_explain_what_a_filter_finds(made):
    index, _, _, queries = made
    found = index.rows(queries, 3, within=np.arange(6000) % 500 == 0)
    parts = index.book_distances(queries, found)
    np.testing.assert_allclose(parts.sum(axis=2), found.distances, rtol=1e-5)


@pytest.mark.parametrize("mask", [np.ones(3, bool), np.ones(2, int), np.ones([2, 1], bool)])
def test_other_arrays_are_refused(mask):
    with pytest.raises(ValueError, match=r"must be bool \[2\], one for each image"):
        subset.make_mask(pack_ids("ab"), mask)


def test_no_k_below_1(made):
    with pytest.raises(ValueError, match="k is 0, but must be"):
        made[0].rows(made[3], 0, within="")
