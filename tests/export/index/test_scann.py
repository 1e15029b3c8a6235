"""Leaves: every code lies in that of the nearest center, and all leaves together are exact."""

import numpy as np
import pytest

from export.index import load_index, scann, write_index
from tests.export.index.test_index import (
    ENCODER,
    assert_equals_full_scan,
    full_scan,
    names,
    random_set,
)
from tests.support import commands


def clustered_set(num_images=20_000, num_queries=50):
    """Codes of points around 100 centers, by nearest words, and queries around the same."""
    rng = np.random.default_rng(0)
    codebooks = rng.normal(size=[8, 16, 4]).astype(np.float32)
    centers = rng.normal(size=[100, 32])
    rows = rng.integers(0, 100, num_images + num_queries)
    points = centers[rows] + 0.4 * rng.normal(size=[len(rows), 32])
    parts = points[:num_images].reshape(-1, 8, 1, 4)
    codes = np.square(parts - codebooks).sum(axis=-1).argmin(axis=-1).astype(np.uint8)
    return codebooks, codes, points[num_images:].astype(np.float32)


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    codebooks, codes, queries = clustered_set()
    path = tmp_path_factory.mktemp("clustered") / "index"
    write_index(path, codebooks, codes, names(len(codes)), ENCODER, num_leaves=50)
    return load_index(path), codebooks, codes, queries


def test_codes_lie_with_the_nearest_center(monkeypatch):
    codebooks, codes, _ = random_set(4, 3000)
    centers = scann.centers_of(scann.train_tree(codebooks, codes, 30))
    assert centers.shape == (30, 16)
    vectors = codebooks[np.arange(4), codes].reshape(len(codes), 16)
    expected = np.square(vectors[:, None] - centers).sum(axis=-1).argmin(axis=1)
    monkeypatch.setattr(scann, "CHUNK_ELEMENTS", 1000 * 30)
    chunks = [*scann.leaf_chunks(centers, codebooks, codes)]
    assert [len(chunk) for chunk in chunks] == [1000] * 3
    found = np.concatenate(chunks)
    assert found.dtype == np.int32
    assert np.mean(found == expected) > 0.999  # all but ties in float32


def test_all_leaves_are_exact(clustered):
    index, codebooks, codes, queries = clustered
    expected_rows, expected_distances = full_scan(codebooks, codes, queries, 10)
    rows, distances, _ = index.rows(queries, 10, leaves_to_search=50)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-5, atol=1e-5)


def test_some_leaves_find_most(clustered):
    index, codebooks, codes, queries = clustered
    exact = full_scan(codebooks, codes, queries, 10)[1]
    recalls = [
        np.mean(index.rows(queries, 10, leaves_to_search=count).distances <= exact[:, -1:] * 1.0001)
        for count in (1, 5, 25)
    ]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.9 < 0.95 < recalls[2]
    assert index.manifest["leaves_to_search"] == 3
    as_built, as_said = index.rows(queries, 10), index.rows(queries, 10, leaves_to_search=3)
    np.testing.assert_array_equal(as_built.rows, as_said.rows)


def test_leaves_that_hold_too_few_images_give_way_to_all(clustered):
    index, codebooks, codes, queries = clustered
    found = index.rows(queries[:4], 15_000, leaves_to_search=1)
    expected, _ = full_scan(codebooks, codes, queries[:4], 15_000)
    np.testing.assert_array_equal(found.rows, expected)


def test_stock_scann_loads_the_leaves(clustered):
    from scann.scann_ops.py import scann_ops_pybind

    index, _, _, queries = clustered
    found, _ = scann_ops_pybind.load_searcher(str(index.path)).search_batched(queries, 10)
    assert found.shape == (50, 10)


@pytest.mark.parametrize("keeps", [False, True])
def test_images_of_equal_codes_choose_no_fewer_leaves(tmp_path, keeps):
    """The nearest codes of a code are looked for, however many images have it."""
    codebooks, codes, _ = clustered_set()
    codes = np.unique(codes, axis=0)[::15]
    chosen = []
    for times in (1, 30):
        each = np.repeat(codes, times, axis=0)
        vectors = codebooks[np.arange(8), each].reshape(len(each), -1)
        own = {"embeddings": vectors} if keeps else {}
        path, ids = tmp_path / str(times), names(len(each))
        write_index(path, codebooks, each, ids, ENCODER, num_leaves=50, recall=0.9, **own)
        chosen.append(load_index(path).manifest["leaves_to_search"])
    # The images that are queries differ.
    assert chosen[0] > 3 and abs(chosen[1] - chosen[0]) <= 2


@pytest.mark.parametrize("keeps", [False, True])
def test_a_recall_chooses_the_leaves(tmp_path, keeps):
    codebooks, codes, queries = clustered_set()
    vectors = codebooks[np.arange(8), codes].reshape(len(codes), -1)
    own = {"embeddings": vectors} if keeps else {}
    chosen = []
    for recall in (0.6, 0.95, 1.0):
        path = tmp_path / str(recall)
        ids = names(len(codes))
        write_index(path, codebooks, codes, ids, ENCODER, num_leaves=50, recall=recall, **own)
        index = load_index(path)
        assert index.manifest["recall"] == recall
        chosen.append(index.manifest["leaves_to_search"])
        exact = index.rows(queries, 10, leaves_to_search=50).distances[:, -1:]
        reached = np.mean(index.rows(queries, 10).distances <= exact * (1 + 1e-5))
        assert reached >= recall - 0.05
    assert chosen == sorted(chosen) and chosen[0] < chosen[2] <= 50


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recall": 0.9}, "--recall=0.9: an index without leaves finds all; add --num_leaves"),
        ({"num_leaves": 4, "recall": 1.5}, "--recall=1.5: must be above 0 and at most 1"),
        (
            {"num_leaves": 4, "recall": 0.5, "leaves_to_search": 2},
            "--recall=0.5: chooses --leaves_to_search, 2; give one of them",
        ),
        (
            {"num_leaves": 10**6},
            "--num_leaves=1000000: there are only .* distinct codes; lower it, such as ",
        ),
        ({"leaves_to_search": 3}, r"--leaves_to_search=3: must be 1 to --num_leaves, 0"),
        ({"num_leaves": 4, "leaves_to_search": 5}, "--leaves_to_search=5: must be 1 to"),
    ],
)
def test_impossible_leaves_are_refused(tmp_path, given, message):
    codebooks, codes, _ = random_set(4, 300)
    with pytest.raises(ValueError, match=message):
        write_index(tmp_path / "index", codebooks, codes, names(300), ENCODER, **given)
    assert not list(tmp_path.iterdir())


def test_too_few_codes_for_leaves_name_the_flag(tmp_path):
    codebooks, codes, _ = random_set(4, 60)
    path = tmp_path / "index"
    write_index(path, codebooks, codes, names(60), ENCODER, num_leaves=20)
    (tmp_path / "gone").write_text("\n".join(names(60)[10:]))
    remove = f"--output={path}", f"--remove={tmp_path}/gone"
    done = commands.run("export.index", *remove)
    assert done.status == 2 and "are only 10 distinct codes; lower it, such as --num_leaves=10" in (
        done.stderr
    )
    assert commands.run("export.index", *remove, "--num_leaves=10").status == 0
    with pytest.raises(ValueError, match="=1: there is only 1 distinct code; .* --num_leaves=0$"):
        write_index(tmp_path / "one", codebooks, codes[:1], names(1), ENCODER, num_leaves=1)


def test_other_numbers_of_words_have_no_leaves(tmp_path):
    codebooks, codes, queries = random_set(4, 300, num_words=8)
    with pytest.raises(
        ValueError, match="--num_leaves=4: needs --kind=scann, and this is scan of 8 words"
    ):
        write_index(tmp_path / "index", codebooks, codes, names(300), ENCODER, num_leaves=4)
    write_index(tmp_path / "index", codebooks, codes, names(300), ENCODER)
    index = load_index(tmp_path / "index")
    assert_equals_full_scan(index, codebooks, codes, queries, 10)
    with pytest.raises(ValueError, match="leaves_to_search is 2, but the index has no leaves"):
        index.rows(queries, 1, leaves_to_search=2)
