"""Features in files: read as written, refused in one line, and their views as they are defined."""

import os

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from pyarrow import parquet

from hqc_tf.data import catalog, features
from hqc_tf.data.batches import plain_batches
from hqc_tf.data.images import Images
from hqc_tf.data.views import changed_views, training_views
from hqc_tf.errors import UserError


@pytest.fixture
def matrix():
    return np.random.default_rng(1).normal(size=[40, 6]).astype(np.float32)


def write(path, matrix, **columns):
    table = pa.table({"vector": [*matrix], **columns})
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=7)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            for batch in table.to_batches(max_chunksize=7):
                file.write_batch(batch)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_npy_file_is_read_by_row(tmp_path, matrix, dtype):
    np.save(tmp_path / "x.npy", matrix.astype(dtype))
    found = features.read(str(tmp_path / "x.npy"))
    assert found.ids[7] == f"{tmp_path}/x.npy:7" and found.labels is None
    rows = np.array([7, 3, 39])
    expected = matrix.astype(dtype)[rows].astype(np.float32)
    np.testing.assert_array_equal(features.gather(found, rows), expected)
    some = found.take([5, 3]).take([1])
    np.testing.assert_array_equal(features.gather(some, np.array([0])), matrix.astype(dtype)[[3]])


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_tables_have_ids_and_labels(tmp_path, matrix, suffix):
    path = tmp_path / f"x{suffix}"
    write(path, matrix)
    assert features.read(str(path)).ids[2] == f"{path}:2"
    write(path, matrix, id=[f"é{row}" for row in range(40)], label=np.arange(40) % 3)
    found = features.read(str(path))
    assert found.ids[2] == "é2"
    np.testing.assert_array_equal(features.gather(found, np.arange(40)), matrix)
    np.testing.assert_array_equal(found.labels, np.arange(40) % 3)
    train = catalog.load_split(f"features:{path}", "train")
    queries = catalog.load_split(f"features:{path}", "query")
    assert (len(train), len(queries)) == (36, 4)


def test_what_is_no_matrix_of_floats_is_one_line(tmp_path, matrix):
    def refused(name, message):
        with pytest.raises(UserError, match=message):
            features.read(str(tmp_path / name))

    np.save(tmp_path / "int.npy", np.ones([3, 4], int))
    refused("int.npy", r"holds int64 \[3, 4\]; give floats \[N, E\]")
    np.save(tmp_path / "flat.npy", matrix[0])
    refused("flat.npy", r"holds float32 \[6\]")
    np.save(tmp_path / "none.npy", matrix[:0])
    refused("none.npy", "has no row")
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    refused("object.npy", "cannot be read .*Python objects in dtype")
    kinds = (
        (np.nan, "a number that is not finite"),
        (0, "only zeros"),
        (1e-8, "a length below 1e-6"),
    )
    for value, kind in kinds:
        spoiled = matrix.copy()
        spoiled[33] = value
        np.save(tmp_path / "bad.npy", spoiled)
        refused("bad.npy", f"row 33 has {kind}; leave it out")
    np.save(tmp_path / "short.npy", matrix)
    os.truncate(tmp_path / "short.npy", (tmp_path / "short.npy").stat().st_size - 1)
    refused("short.npy", "cannot be read")
    os.mkfifo(tmp_path / "pipe.npy")
    refused("pipe.npy", "no regular file")
    refused("x.csv", "name a file that ends in .npy, .arrow, .parquet")
    parquet.write_table(pa.table({"vector": [[1.0], [1.0, 2.0]]}), tmp_path / "mixed.parquet")
    refused("mixed.parquet", "vector has lists of several lengths")
    for labels, message in ([[0, None], "row 1 has no label"], [["a", "b"], "its labels are <U1"]):
        table = pa.table({"vector": [[1.0, 2.0]] * 2, "label": labels})
        parquet.write_table(table, tmp_path / "label.parquet")
        refused("label.parquet", message)
    parquet.write_table(pa.table({"a": [1.0]}), tmp_path / "scalar.parquet")
    refused("scalar.parquet", "one must be lists of floats")


@pytest.mark.parametrize(
    ("ids", "texts"),
    [
        ([7, 5], ["7", "5"]),
        ([b"\xff.jpg", b"b"], ["\udcff.jpg", "b"]),
        (pa.array(["é", "b"]).dictionary_encode(), ["é", "b"]),
    ],
)
def test_ids_are_text(tmp_path, ids, texts):
    write(tmp_path / "x.parquet", np.eye(2, dtype=np.float32), id=ids)
    assert features.read(str(tmp_path / "x.parquet")).ids == texts


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [*"abcdefgh", None]}, "row 8 has no id; give each row one"),
        ({"id": [0.5] * 9}, "its id is double; give strings or whole numbers"),
        ({"label": [*range(8), -1]}, "row 8 has the label -1; give numbers from 0 on"),
        ({"other": [[1.0]] * 9}, "vector, other are lists of numbers; leave one of them"),
        ({"vector": [[1.0, 2.0]] * 8 + [None]}, "row 8 has no vector; give each row one"),
        (
            {"vector": [[[1.0]]] * 9},
            r"its columns are vector \(list<.*; one must be lists of floats",
        ),
        ({"vector": [["a"]] * 9}, r"its columns are vector \(list<.*string>\); one must be lists"),
        (
            {"vector": pa.array([[]] * 9, pa.list_(pa.float32()))},
            r"holds float32 \[9, 0\]; give floats",
        ),
    ],
)
def test_a_column_of_another_kind_is_named(tmp_path, suffix, columns, message):
    write(tmp_path / f"x{suffix}", np.ones([9, 2], np.float32), **columns)
    with pytest.raises(UserError, match=message):
        features.read(str(tmp_path / f"x{suffix}"))


def test_lists_of_texts_are_no_features(tmp_path, matrix):
    write(tmp_path / "x.parquet", matrix, tags=[["a", "b"]] * 40)
    assert features.read(str(tmp_path / "x.parquet")).features.shape == (40, 6)


def test_a_parquet_file_of_one_group_of_rows_is_read_in_parts(tmp_path):
    rows = np.random.default_rng(1).normal(size=[40_000, 200]).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(rows.ravel(), 200).cast(pa.list_(pa.float32()))
    table = pa.table({"vector": lists})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=len(rows))
    pa.set_memory_pool(counting := pa.proxy_memory_pool(own := pa.default_memory_pool()))
    try:
        found = features.read(str(tmp_path / "x.parquet"))
    finally:
        pa.set_memory_pool(own)
    np.testing.assert_array_equal(found.features[:], rows)
    assert 0 < counting.max_memory() < rows.nbytes / 2


def test_statistics_are_those_of_unit_rows(matrix, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 7)
    mean, deviation = features.statistics(Images.of_features(matrix, [*map(str, range(40))]))
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    np.testing.assert_allclose(mean, unit.mean(0), atol=1e-6)
    assert deviation == pytest.approx((unit - unit.mean(0)).std(), rel=1e-5)


def test_a_view_leaves_numbers_out_and_adds_noise(matrix):
    drawn = features.draw(tf.constant([1, 2]), [40, 6])
    mean = tf.range(6.0)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    found = features.view(matrix, drawn, mean, 0.25, 0.5).numpy()
    expected = np.where(drawn.uniform.numpy() < 0.25, np.arange(6.0), unit)
    np.testing.assert_allclose(found, expected + 0.5 * drawn.normal.numpy(), atol=1e-6)
    again = features.draw(tf.constant([1, 2]), [40, 6])
    np.testing.assert_array_equal(drawn.normal, again.normal)


def test_steps_do_not_depend_on_how_many_replicas_share_them(small_config, matrix):
    images = Images.of_features(matrix, [*map(str, range(40))])
    settings = small_config(batch_size=8, feature_width=6, feature_noise=0.1)
    whole = [*training_views(images, settings, 3, 7)]
    halves = [
        [*training_views(images, settings, 3, 7, tf.distribute.InputContext(2, part, 2))]
        for part in range(2)
    ]
    for step, (one, other) in zip(whole, zip(*halves, strict=True), strict=True):
        for view in range(2):
            joined = tf.concat([one[view], other[view]], 0)
            np.testing.assert_allclose(joined, step[view], atol=1e-6)
    assert np.abs(whole[0][0] - whole[0][1]).max() > 0.1
    plain = np.concatenate([*plain_batches(images, 0, 0, 7)])
    np.testing.assert_array_equal(plain, matrix)
    changed = [*changed_views(images.take(range(5)), settings)]
    assert changed[0].shape == (8, 6)
