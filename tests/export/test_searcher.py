"""The served search finds what `export.index` finds, in the same order."""

import numpy as np
import pytest
import tensorflow as tf

from export import folders, searcher, versions
from export.encoder import load_encoder
from export.index import load_index, write_index
from hqc_tf import retrieval
from hqc_tf.data import decoding
from hqc_tf.errors import UserError
from tests.support import serving


@pytest.fixture(scope="module")
def exported(encoder, index, tmp_path_factory):
    output = tmp_path_factory.mktemp("searcher")
    return searcher.export_searcher(encoder.path, index.path, output)


@pytest.fixture(scope="module")
def queries(photos):
    """Contents of 12 real images."""
    return [path.read_bytes() for path in sorted(photos.rglob("*.png"))[::5]]


def texts(ids):
    return [[name.decode() for name in row] for row in ids]


def random_set(num_books, num_words, num_codes, num_queries=5, word_dim=4):
    rng = np.random.default_rng(0)
    codebooks = rng.normal(size=[num_books, num_words, word_dim]).astype(np.float32)
    codes = rng.integers(0, num_words, [num_codes, num_books], dtype=np.uint8)
    embeddings = rng.normal(size=[num_queries, num_books * word_dim]).astype(np.float32)
    return embeddings, codes, codebooks


def in_a_graph(codebooks):
    spec = tf.TensorSpec
    return tf.function(
        lambda embeddings, codes, k: searcher.nearest(embeddings, codes, codebooks, k),
        input_signature=[
            spec([None, codebooks.shape[0] * codebooks.shape[2]]),
            spec([None, codebooks.shape[0]], tf.uint8),
            spec([], tf.int32),
        ],
    )


def test_by_hand():
    codebooks = np.arange(16, dtype=np.float32).reshape(1, 16, 1)
    codes = np.uint8([[9], [3], [5], [3]])
    rows, distances = searcher.nearest(np.float32([[3.5], [9]]), codes, codebooks, 3)
    np.testing.assert_array_equal(rows, [[1, 3, 2], [0, 2, 1]])
    np.testing.assert_array_equal(distances, [[0.25, 0.25, 2.25], [0, 16, 36]])


@pytest.mark.parametrize("chunk", [1, 7, 500, 5000])
@pytest.mark.parametrize(
    ("num_books", "num_words", "k"),
    [(1, 16, 10), (3, 4, 1), (8, 16, 1), (8, 16, 100), (16, 16, 10), (16, 256, 20)],
)
def test_order_and_distances_are_the_index_s_in_chunks_of_any_size(
    tmp_path, monkeypatch, chunk, num_books, num_words, k
):
    embeddings, codes, codebooks = random_set(num_books, num_words, 3000)
    write_index(
        tmp_path / "i", codebooks, codes, [str(row) for row in range(3000)],
        {"fingerprint": "a", "path": "b"},
    )  # fmt: skip
    expected = load_index(tmp_path / "i").rows(embeddings, k)
    monkeypatch.setattr(searcher, "MIN_CHUNK", chunk)
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", 1)
    rows, distances = in_a_graph(codebooks)(embeddings, codes, k)
    np.testing.assert_array_equal(rows, expected.rows)
    np.testing.assert_allclose(distances, expected.distances, rtol=1e-6)


def test_equal_distances_go_to_the_image_indexed_first(monkeypatch):
    embeddings, codes, codebooks = random_set(4, 16, 999)
    monkeypatch.setattr(searcher, "MIN_CHUNK", 100)
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", 1)
    rows, _ = in_a_graph(0 * codebooks)(embeddings, codes, 250)
    np.testing.assert_array_equal(rows, np.tile(np.arange(250), [len(embeddings), 1]))


def test_memory_does_not_grow_with_the_collection():
    """The distances of all 4 million codes at once would take 700 MB."""
    embeddings, _, codebooks = random_set(8, 16, 1)
    codes = tf.constant(np.random.default_rng(0).integers(0, 16, [4_000_000, 8], np.uint8))
    scan = in_a_graph(codebooks)
    scan(embeddings, codes[:100_000], 10)
    assert serving.added_memory(lambda: scan(embeddings, codes, 10)) < 150


def test_without_python_a_server_answers_as_the_index(exported, encoder, index, queries, tmp_path):
    pixels = np.stack([decoding.decode_known(contents) for contents in queries])
    mixed = np.array([queries[0], b"no image", queries[1][:-30], queries[1]], object)
    requests = [
        ("search", {"images": pixels, "k": np.int32(7)}),
        ("search_bytes", {"image_bytes": np.array(queries, object), "k": np.int32(60)}),
        ("search_bytes", {"image_bytes": mixed, "k": np.int32(3)}),
    ]
    by_pixels, by_bytes, partly = serving.run_through_c_api(exported, requests, tmp_path / "j")
    embeddings = encoder.signatures["serving_default"](images=pixels)["embedding"].numpy()
    for answer, k in [(by_pixels, 7), (by_bytes, 60)]:
        ids, distances = index.search(embeddings, k)
        assert texts(answer["ids"]) == ids and ids[0][0].startswith("é/class")
        np.testing.assert_allclose(answer["distances"], distances, rtol=1e-5)
    assert by_bytes["valid"].all() and "valid" not in by_pixels
    assert partly["valid"].tolist() == [True, False, False, True]
    assert texts(partly["ids"][1:3]) == [[""] * 3] * 2
    assert np.isinf(partly["distances"][1:3]).all()
    ids, _ = index.search(embeddings[:2], 3)
    assert texts(partly["ids"][[0, 3]]) == ids


@pytest.mark.parametrize("k", [0, 61, -1])
def test_k_beyond_the_collection_is_refused(exported, queries, k):
    search = tf.saved_model.load(str(exported)).signatures["search_bytes"]
    rule = f"k must lie in 1 to 60, the number of images, but is\\] \\[{k}\\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=rule):
        search(image_bytes=tf.constant(queries[:1]), k=tf.constant(k))


def test_warm_up_requests_are_real_and_run(exported, tmp_path):
    requests = serving.read_warmup(exported)
    assert {signature for signature, _ in requests} == {"search", "search_bytes"}
    assert len(requests) == 2 * len(versions.WARMUP_SHAPES)
    for answer in serving.run_through_c_api(exported, requests, tmp_path / "jobs.json"):
        assert answer["ids"].all() and np.isfinite(answer["distances"]).all()


def test_saved_model_cli_runs_it(exported, index, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros([2, 9, 13, 3], np.uint8))
    np.save(tmp_path / "k.npy", np.int32(4))
    serving.run_cli(
        "run", "--dir", exported, "--tag_set", "serve", "--signature_def", "search",
        "--inputs", f"images={tmp_path}/images.npy;k={tmp_path}/k.npy", "--outdir", tmp_path,
    )  # fmt: skip
    assert np.load(tmp_path / "distances.npy").shape == (2, 4)


def test_the_graph_holds_no_python_function_and_no_foreign_op(exported):
    ops = serving.read_ops(exported)
    assert {"TopKV2", "GatherV2", "DecodeImage"} <= ops
    assert not [op for op in ops if "PyFunc" in op or "Addons" in op or "Scann" in op]


def test_the_manifest_names_encoder_and_size(exported, encoder):
    found = folders.read_manifest(exported, searcher.FORMAT)
    assert found["encoder"] == {"fingerprint": encoder.manifest["fingerprint"]}
    assert (found["num_images"], found["bits"], found["distance"]) == (60, 4, "squared")
    with pytest.raises(UserError, match="no encoder with a manifest.json there"):
        load_encoder(exported)


def test_an_index_of_another_encoder_is_refused(encoder, index, tmp_path):
    other = {"fingerprint": "other", "path": "elsewhere"}
    write_index(tmp_path / "i", index.codebooks, index.codes, ["id"] * 60, other)
    with pytest.raises(UserError, match="belongs to encoder other .* rebuild it"):
        searcher.export_searcher(encoder.path, tmp_path / "i", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_it_is_written_as_a_free_version_or_not_at_all(encoder, index, exported, monkeypatch):
    output = exported.parent
    with pytest.raises(UserError, match="--version=1: exists in .*, and a server"):
        searcher.export_searcher(encoder.path, index.path, output, version=1)
    monkeypatch.setattr(versions, "write_warmup", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        searcher.export_searcher(encoder.path, index.path, output)
    assert versions.versions(output) == [1] and not list(output.glob(".*"))
