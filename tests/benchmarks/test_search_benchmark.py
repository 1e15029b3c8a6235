"""The rivals of the search benchmark have the same codes, and an exact answer has recall 1."""

import numpy as np
import pytest

from benchmarks import made_codes, search
from export.index import load_index


@pytest.fixture(scope="module", params=["random", "clustered"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    made_codes.make_codes(folder, request.param, 3000, 4, 60)
    search.build(folder, 10)
    search.scan(folder / "index", folder)
    return folder


def test_exact_ways_find_everything(made):
    path = made / "index"
    assert search.measure_index(path, made, 10, 1)["recall@10"] == 1.0
    assert search.measure_faiss(path, made, 0, 500, 1)["recall@10"] == 1.0
    assert search.measure_faiss(path, made, 10, 500, 1)["recall@10"] == 1.0


def test_one_leaf_finds_as_much_in_both(made):
    path = made / "index"
    ours = search.measure_index(path, made, 1, 1)["recall@10"]
    theirs = search.measure_faiss(path, made, 1, 500, 1)["recall@10"]
    assert 0.1 < ours < 1
    assert abs(ours - theirs) < 0.02


def test_clusters_are_clusters(tmp_path):
    made_codes.make_codes(tmp_path, "clustered", 3000, 4, 60)
    search.build(tmp_path, 0)
    index = load_index(tmp_path / "index")
    assert index.num_images == 3000
    assert index.ids[1234].as_py() == b"000001234"
    likely = np.bincount(index.codes[:, 0], minlength=16) / 3000
    assert likely.max() > 2 * likely.min()
