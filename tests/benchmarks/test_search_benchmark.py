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
    search.scan(folder / "index", folder, 10)
    return folder


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """A process of its own, as memory is measured, takes seconds to start."""
    monkeypatch.setattr(search.machine, "apart", lambda function, *given: function(*given))


def recall(folder, opener, *arguments):
    """By a contender in this process."""
    path = folder / "index"
    started = search._start(folder, opener, path, *arguments)
    assert started["load, s"] > 0
    single, batched = search.turn(1, 30)
    assert len(single) == 2 and len(batched) == 1
    return search.recalls(path, folder)["recall"]


def test_exact_ways_find_everything(made):
    assert recall(made, search.open_index, 10, 10) == 1.0
    assert recall(made, search.open_faiss, 0, 500, 10) == 1.0
    assert recall(made, search.open_faiss, 10, 500, 10) == 1.0


def test_one_leaf_finds_as_much_in_both(made):
    ours = recall(made, search.open_index, 1, 10)
    theirs = recall(made, search.open_faiss, 1, 500, 10)
    assert 0.1 < ours < 1
    assert abs(ours - theirs) < 0.02


def test_a_graph_finds_most(made):
    pytest.importorskip("usearch")
    assert 0.9 < recall(made, search.open_graph, "usearch", 10) <= 1


def test_codes_of_real_vectors_are_compared_with_the_floats(tmp_path):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=[40, 24])
    images, queries = (
        (centers[rng.integers(0, 40, count)] + 0.3 * rng.normal(size=[count, 24])).astype("f4")
        for count in (2000, 60)
    )
    made_codes.encode_real(tmp_path, images, queries, 4)
    search.keep_nearest_floats(tmp_path, images, queries, 10)
    search.build(tmp_path, 0)
    search.scan(tmp_path / "index", tmp_path, 10)
    assert recall(tmp_path, search.open_index, None, 10) == 1.0
    floats = search.recalls(tmp_path / "index", tmp_path)["recall of floats"]
    assert 10 / 2000 < 0.2 < floats < 1


def test_clusters_are_clusters(tmp_path):
    made_codes.make_codes(tmp_path, "clustered", 3000, 4, 60)
    search.build(tmp_path, 0)
    index = load_index(tmp_path / "index")
    assert index.num_images == 3000
    assert index.ids[1234].as_py() == b"000001234"
    likely = np.bincount(index.codes[:, 0], minlength=16) / 3000
    assert likely.max() > 2 * likely.min()
