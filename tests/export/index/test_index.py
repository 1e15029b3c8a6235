"""The index finds exactly what a full scan finds, and is written whole or not at all."""

import json
import multiprocessing
import re
import shutil
import time

import numpy as np
import pytest

from export import arrays, folders
from export.arrays import pack_ids, unpack_id
from export.codes import Shard, start, write_shard
from export.encoder import encode_images
from export.index import __main__ as index_command
from export.index import collection, load_index, neighbors, scann, store, write_index
from hqc_tf.data import catalog
from hqc_tf.retrieval import asymmetric_distances
from tests.support import commands

ENCODER = {"fingerprint": "abc", "path": "serving/hqc/1"}


def random_set(num_books, num_images, num_words=16, word_dim=4, num_queries=6, seed=0):
    rng = np.random.default_rng(seed)
    codebooks = rng.normal(size=[num_books, num_words, word_dim]).astype(np.float32)
    codes = rng.integers(0, num_words, [num_images, num_books], dtype=np.uint8)
    queries = rng.normal(size=[num_queries, num_books * word_dim]).astype(np.float32)
    return codebooks, codes, queries


def names(count):
    return [f"{row}.jpg" for row in range(count)]


def write_and_load(path, codebooks, codes, **leaves):
    write_index(path, codebooks, codes, names(len(codes)), ENCODER, **leaves)
    return load_index(path)


def full_scan(codebooks, codes, queries, k):
    distances = asymmetric_distances(queries, codes, codebooks, "squared").numpy()
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distances, rows, axis=1)


def assert_equals_full_scan(index, codebooks, codes, queries, k):
    rows, distances, codes_found = index.rows(queries, k)
    expected_rows, expected_distances = full_scan(codebooks, codes, queries, k)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(index.distinct_codes[codes_found], codes[rows])


@pytest.mark.parametrize(
    ("num_books", "num_images", "k"),
    [(1, 50, 10), (3, 300, 10), (4, 5, 5), (4, 1, 1), (8, 5000, 10), (8, 5000, 700), (16, 5000, 1)],
)
def test_top_k_equals_full_scan(tmp_path, num_books, num_images, k):
    codebooks, codes, queries = random_set(num_books, num_images)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    assert_equals_full_scan(index, codebooks, codes, queries, k)


@pytest.mark.parametrize("num_words", [2, 4, 8, 32, 256])
def test_other_numbers_of_words_are_scanned_in_full(tmp_path, num_words):
    codebooks, codes, queries = random_set(4, 2000, num_words)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    assert index.manifest["kind"] == "scan"
    assert_equals_full_scan(index, codebooks, codes, queries, 10)


def test_by_hand(tmp_path):
    codebooks = np.arange(16, dtype=np.float32).reshape(1, 16, 1)
    write_index(tmp_path / "i", codebooks, np.uint8([[9], [3], [5], [3]]), list("dabc"), ENCODER)
    ids, distances = load_index(tmp_path / "i").search(np.float32([[3.5], [9.0]]), 3)
    assert ids == [["a", "c", "b"], ["d", "b", "a"]]
    np.testing.assert_allclose(distances, [[0.25, 0.25, 2.25], [0, 16, 36]])


@pytest.mark.parametrize("num_books", [4, 8, 16])
def test_thousands_of_equal_codes(tmp_path, num_books):
    """500 codes in pairs one word apart, 60 images each: int8 tables alone cut the wrong ones."""
    codebooks, codes, queries = random_set(num_books, 500, num_queries=50)
    rng = np.random.default_rng(1)
    codes[:250, 1:] = codes[250:, 1:]
    codes = codes[rng.integers(0, 500, 30_000)]
    index = write_and_load(tmp_path / "index", codebooks, codes)
    assert_equals_full_scan(index, codebooks, codes, queries, 10)
    assert_equals_full_scan(index, codebooks, codes, queries[:5], 1000)


def test_equal_words_tie_different_codes(tmp_path):
    """Every book is collapsed to two words: 4**4 distances for 16**4 codes, so ties abound."""
    codebooks, codes, queries = random_set(4, 3000)
    codebooks = codebooks[:, np.arange(16) % 2]
    index = write_and_load(tmp_path / "index", codebooks, codes)
    assert_equals_full_scan(index, codebooks, codes, queries, 10)


def test_all_images_equally_near(tmp_path):
    codebooks, codes, queries = random_set(4, 3000)
    index = write_and_load(tmp_path / "index", 0 * codebooks, codes)
    rows = index.rows(queries, 7).rows
    np.testing.assert_array_equal(rows, np.tile(np.arange(7), [len(queries), 1]))


@pytest.mark.parametrize(("num_books", "word_dim"), [(1, 1), (8, 4), (70, 2)])
def test_scann_distances_are_never_too_large(tmp_path, num_books, word_dim):
    """What makes the search exact: ScaNN's tables are rounded down."""
    codebooks, codes, queries = random_set(num_books, 1000, word_dim=word_dim)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    count = len(index.distinct_codes)
    found, bounds = index.proposer.searcher.search_batched(queries, final_num_neighbors=count)
    exact = asymmetric_distances(queries, index.distinct_codes, codebooks, "squared").numpy()
    exact = np.take_along_axis(exact, found.astype(int), axis=1)
    assert (bounds <= exact * (1 + 1e-6) + 1e-5).all()
    assert (np.sort(found, axis=1) == np.arange(count)).all()


def test_too_few_candidates_are_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbors, "MIN_CANDIDATES", 1)
    codebooks, codes, queries = random_set(16, 20_000, num_queries=300)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    codes_of_two, distances_of_two, _ = index.candidates(queries, 2, None)
    best_of_two = codes_of_two[np.arange(300), distances_of_two.argmin(axis=1)]
    nearest = full_scan(codebooks, index.distinct_codes, queries, 1)[0][:, 0]
    assert (best_of_two != nearest).any()  # else the next line would prove nothing
    assert_equals_full_scan(index, codebooks, codes, queries, 1)


def test_chunks_of_queries_change_nothing(tmp_path, monkeypatch):
    codebooks, codes, queries = random_set(8, 5000, num_queries=300)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    at_once = index.rows(queries, 10)
    monkeypatch.setattr(neighbors.retrieval, "CHUNK_ELEMENTS", 7 * 8 * 100)
    chunked = index.rows(queries, 10)
    one_by_one = [index.rows(query[None], 10).rows[0] for query in queries[:20]]
    np.testing.assert_array_equal(at_once.rows, chunked.rows)
    np.testing.assert_array_equal(at_once.rows[:20], one_by_one)
    assert at_once.distances.dtype == np.float32


@pytest.mark.parametrize("leaves", [0, 20])
def test_ranking_queries_after_each_other_changes_nothing(tmp_path, monkeypatch, leaves):
    codebooks, codes, queries = random_set(8, 5000, num_queries=300)
    index = write_and_load(tmp_path / "index", codebooks, codes, num_leaves=leaves)
    found = []
    for words in (10**9, 7 * 8 * 250, 1):
        monkeypatch.setattr(neighbors, "RANKED", words)
        # With leaves some of what ScaNN proposes is missing.
        found.append(index.rows(queries, 100, leaves_to_search=1 if leaves else None))
    for parts in zip(*found, strict=True):
        np.testing.assert_array_equal(parts[0], parts[1])
        np.testing.assert_array_equal(parts[0], parts[2])


def test_queries_at_once_are_fewer_where_each_finds_many(tmp_path, monkeypatch):
    """Of few distinct codes, k is what takes the memory."""
    codebooks, codes, queries = random_set(4, 3)
    codes = codes[np.arange(900) % 3]
    index = write_and_load(tmp_path / "index", codebooks, codes)
    sizes, rank = [], neighbors.Index._nearest_in_chunk
    monkeypatch.setattr(neighbors.retrieval, "CHUNK_ELEMENTS", 2 * 8 * 900)
    monkeypatch.setattr(
        neighbors.Index,
        "_nearest_in_chunk",
        lambda *own: sizes.append(len(own[1])) or rank(*own),
    )
    assert_equals_full_scan(index, codebooks, codes, queries, 900)
    assert sizes == [2, 2, 2]


def test_contents_survive_moving_the_folder(tmp_path):
    codebooks, codes, queries = random_set(8, 300)
    ids = [f"photos/{row % 40}\n\u00e4\U0001f600\udcff\0" for row in range(299)] + [""]
    write_index(tmp_path / "first", codebooks, codes, ids, ENCODER)
    (tmp_path / "first").rename(tmp_path / 'elsewhere "\u00e4"')
    index = load_index(tmp_path / 'elsewhere "\u00e4"')
    found, _ = index.search(queries, 300)
    rows, _ = full_scan(codebooks, codes, queries, 300)
    assert found == [[ids[row] for row in query] for query in rows]
    np.testing.assert_array_equal(index.codes, codes)
    np.testing.assert_array_equal(index.codebooks, codebooks)
    assert index.num_images == 300
    assert index.manifest["bits"] == 32
    assert index.manifest["distance"] == "squared"
    assert index.manifest["encoder"] == ENCODER


def test_all_ids_empty(tmp_path):
    codebooks, codes, queries = random_set(2, 4)
    write_index(tmp_path / "index", codebooks, codes, [""] * 4, ENCODER)
    assert load_index(tmp_path / "index").search(queries[:1], 2)[0] == [["", ""]]


def test_stock_scann_loads_the_folder_where_it_was_written(tmp_path):
    from scann.scann_ops.py import scann_ops_pybind

    codebooks, codes, queries = random_set(8, 300)
    write_index(tmp_path / "index", codebooks, codes, names(300), ENCODER)
    found, _ = scann_ops_pybind.load_searcher(str(tmp_path / "index")).search_batched(queries)
    assert found.shape == (len(queries), 100)


def test_failed_write_leaves_the_old_index(tmp_path, monkeypatch):
    codebooks, codes, queries = random_set(8, 300)
    before = write_and_load(tmp_path / "index", codebooks, codes).rows(queries, 5)

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(scann, "write", fail)
    with pytest.raises(OSError, match="No space"):
        write_index(tmp_path / "index", codebooks, codes[::-1], names(300), ENCODER)
    after = load_index(tmp_path / "index").rows(queries, 5)
    np.testing.assert_array_equal(after.rows, before.rows)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_failed_move_leaves_the_old_index(tmp_path, monkeypatch):
    codebooks, codes, _ = random_set(8, 300)
    write_index(tmp_path / "index", codebooks, codes, names(300), ENCODER)

    def fail(*_):
        raise OSError("Input/output error")

    monkeypatch.setattr(folders, "_exchange", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_index(tmp_path / "index", codebooks, codes[:9], names(9), ENCODER)
    assert load_index(tmp_path / "index").num_images == 300
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_index_is_replaced(tmp_path):
    codebooks, codes, _ = random_set(8, 300)
    open_index = write_and_load(tmp_path / "index", codebooks, codes)
    (tmp_path / ".index.partial").mkdir()
    (tmp_path / ".index.partial" / "left by a killed write").touch()
    assert write_and_load(tmp_path / "index", codebooks, codes[:9]).num_images == 9
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    np.testing.assert_array_equal(open_index.codes, codes)


@pytest.mark.parametrize("manifest", [None, "{}", '{"format": "another"}', "[1]", "{"])
def test_foreign_folder_is_left_alone(tmp_path, manifest):
    message = "manifest.json: cannot be read" if manifest == "{" else f"{tmp_path} is not an index"
    codebooks, codes, _ = random_set(2, 5)
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match=message):
        write_index(tmp_path, codebooks, codes, names(5), ENCODER)
    with pytest.raises(ValueError, match=message):
        load_index(tmp_path)
    assert (tmp_path / "photo.jpg").read_bytes() == b"precious"


def test_empty_folder_is_used_and_a_file_is_not(tmp_path):
    codebooks, codes, _ = random_set(2, 5)
    (tmp_path / "empty").mkdir()
    assert write_and_load(tmp_path / "empty", codebooks, codes).num_images == 5
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, but an index is a folder"):
        write_index(tmp_path / "file", codebooks, codes, names(5), ENCODER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.zeros([5, 2], np.int64)}, r"codes are int64 \(5, 2\), but must be uint8"),
        ({"codes": np.zeros([5, 3], np.uint8)}, r"must be uint8 \[N, 2\]"),
        ({"codes": np.zeros([0, 2], np.uint8), "ids": []}, "N must be at least 1"),
        ({"codes": np.full([5, 2], 16, np.uint8)}, "name word 16, but .* words 0 to 15"),
        ({"codebooks": np.zeros([2, 16, 4])}, "codebooks are float64"),
        ({"codebooks": np.full([2, 16, 4], np.nan, np.float32)}, "must be finite"),
        ({"ids": names(4)}, "4 ids for 5 codes: pass one id for each code"),
        ({"encoder": {"path": "p"}}, "must have fingerprint and path"),
    ],
)
def test_contents_that_do_not_fit_are_refused(tmp_path, change, message):
    codebooks, codes, _ = random_set(2, 5)
    contents = {"codebooks": codebooks, "codes": codes, "ids": names(5), "encoder": ENCODER}
    with pytest.raises(ValueError, match=message):
        write_index(tmp_path / "index", **(contents | change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("embeddings", "k", "message"),
    [
        (np.zeros([1, 8]), 6, "k is 6, but must be 1 to 5"),
        (np.zeros([1, 8]), 0, "k is 0"),
        (np.zeros([1, 9]), 1, r"shape \(1, 9\), but index .* needs \[Q, 8\]"),
        (np.zeros([8]), 1, r"shape \(8,\)"),
        (np.zeros([0, 8]), 1, "Q at least 1"),
        (np.full([1, 8], np.nan), 1, "NaN or infinity"),
    ],
)
def test_queries_that_do_not_fit_are_refused(tmp_path, embeddings, k, message):
    codebooks, codes, _ = random_set(2, 5)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    with pytest.raises(ValueError, match=message):
        index.search(embeddings, k)


def test_load_refuses_another_format(tmp_path):
    path = tmp_path / "index"
    with pytest.raises(ValueError, match="is not a folder"):
        load_index(path)
    codebooks, codes, _ = random_set(2, 300)
    write_index(path, codebooks, codes, names(300), ENCODER)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 9}))
    with pytest.raises(ValueError, match="format version 9, but this program reads 4"):
        load_index(path)


def test_an_index_that_may_not_be_read_is_said_to_be_there(tmp_path):
    (tmp_path / "index").symlink_to("index")
    with pytest.raises(ValueError, match="/index: Too many levels of symbolic links; make it read"):
        load_index(tmp_path / "index")


def test_an_index_that_a_killed_writer_had_moved_away_is_loaded(tmp_path):
    codebooks, codes, _ = random_set(2, 300)
    write_index(tmp_path / "index", codebooks, codes, names(300), ENCODER)
    (tmp_path / "index").rename(tmp_path / ".index.old")
    assert load_index(tmp_path / "index").num_images == 300
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_index_of_the_format_before_is_read(tmp_path):
    """Version 3 had the ids as they are."""
    codebooks, codes, queries = random_set(4, 300)
    path = tmp_path / "index"
    found = write_and_load(path, codebooks, codes).search(queries, 10)
    with (path / "ids.arrow").open("wb") as file:
        arrays.write_ids(file, [pack_ids(names(300))])
    contents = json.loads((path / "manifest.json").read_text()) | {"format_version": 3}
    contents["sha256"] = store._digests(path, contents["sha256"])
    contents = {name: contents[name] for name in contents if name not in ("format", "own_sha256")}
    digest = store._own_digest(contents)
    folders.write_manifest(path, store.FORMAT, contents | {"own_sha256": digest})
    before = load_index(path).search(queries, 10)
    assert before[0] == found[0]
    np.testing.assert_array_equal(before[1], found[1])


def test_a_flipped_bit_anywhere_is_refused_by_name(tmp_path):
    codebooks, codes, _ = random_set(2, 300)
    path = tmp_path / "index"
    write_index(path, codebooks, codes, names(300), ENCODER, num_leaves=4)
    files = sorted(path.iterdir())
    assert len(files) == 11
    for file in files:
        whole_contents = file.read_bytes()
        for place in np.linspace(0, len(whole_contents) - 1, 7).astype(int):
            contents = bytearray(whole_contents)
            contents[place] ^= 1
            file.write_bytes(contents)
            with pytest.raises(ValueError, match=rf"{re.escape(file.name)}"):
                load_index(path)
        file.write_bytes(whole_contents)
    load_index(path)


@pytest.mark.parametrize(
    "name", ["hashed_dataset.npy", "grouped_rows.npy", "ids.arrow", "codebooks.npy"]
)
def test_load_refuses_a_file_cut_short_or_missing(tmp_path, name):
    codebooks, codes, _ = random_set(2, 300)
    write_index(tmp_path / "index", codebooks, codes, names(300), ENCODER)
    file = tmp_path / "index" / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{name} is damaged: rebuild"):
        load_index(tmp_path / "index")
    file.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing or unreadable: rebuild"):
        load_index(tmp_path / "index")


def test_check_encoder(tmp_path):
    codebooks, codes, _ = random_set(2, 5)
    index = write_and_load(tmp_path / "index", codebooks, codes)
    index.check_encoder("abc")
    with pytest.raises(ValueError, match="belongs to encoder abc .*, not xyz: rebuild it with"):
        index.check_encoder("xyz")


@pytest.mark.long
def test_killed_at_any_moment_the_old_index_stands(tmp_path):
    """Real SIGKILLs, all through the time that a write takes."""
    path = tmp_path / "index"
    codebooks, codes, queries = random_set(4, 200_000)
    before = write_and_load(path, codebooks, codes).rows(queries, 5)
    arguments = path, codebooks, codes[::-1], names(len(codes)), ENCODER
    start = time.monotonic()
    write_index(*arguments)
    seconds = time.monotonic() - start
    after = load_index(path).rows(queries, 5)
    assert (before.rows != after.rows).any()
    # Not forks of this process: without the threads of TensorFlow they may wait for ever.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["export.index"])
    inside = []
    for moment in np.linspace(0, 1.5 * seconds, 12):
        write_index(path, codebooks, codes, names(len(codes)), ENCODER)
        writer = context.Process(target=write_index, args=arguments)
        writer.start()
        time.sleep(moment)
        writer.kill()
        writer.join()
        inside.append((tmp_path / ".index.partial").exists())
        found = load_index(path).rows(queries, 5).rows
        assert (found == before.rows).all() or (found == after.rows).all()
    assert any(inside)
    write_index(*arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


def test_an_index_replaced_while_it_is_loaded_is_loaded_anew(tmp_path, monkeypatch):
    codebooks, codes, _ = random_set(8, 300)
    write_index(tmp_path / "index", codebooks, codes, names(300), ENCODER)
    digests, turns = store._digests, []

    def replace_first(folder, files):
        turns.append(folder)
        if len(turns) == 1:
            write_index(tmp_path / "index", codebooks, codes[:9], names(9), ENCODER)
        return digests(folder, files)

    monkeypatch.setattr(store, "_digests", replace_first)
    assert load_index(tmp_path / "index").num_images == 9


@pytest.mark.parametrize("error", [RuntimeError, OSError, ValueError])
def test_any_failure_while_an_index_is_replaced_means_loading_anew(tmp_path, monkeypatch, error):
    codebooks, codes, _ = random_set(8, 300)
    write_index(tmp_path / "index", codebooks, codes, names(300), ENCODER)
    read, turns = store.read_files, []

    def fail_first(*arguments):
        turns.append(arguments)
        if len(turns) == 1:
            write_index(tmp_path / "index", codebooks, codes[:9], names(9), ENCODER)
            raise error("a file is gone")
        return read(*arguments)

    monkeypatch.setattr(store, "read_files", fail_first)
    assert load_index(tmp_path / "index").num_images == 9
    turns.clear()
    monkeypatch.setattr(store, "read_files", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_index(tmp_path / "index")


def write_codes(folder, codebooks, codes, ids, source="here"):
    start(folder, codebooks, ENCODER, 1, {"input": source})
    write_shard(folder, 0, 1, Shard(codes, pack_ids(ids)), [])


def test_nobody_else_writes_between_reading_an_index_and_replacing_it(tmp_path, monkeypatch):
    codebooks, codes, _ = random_set(8, 60)
    for number, name in enumerate(["first", "second", "third"]):
        rows = slice(20 * number, 20 * number + 20)
        write_codes(tmp_path / name, codebooks, codes[rows], names(60)[rows], name)
    output = f"--output={tmp_path}/index"
    command(f"--codes={tmp_path}/first", output)
    of_index, refused = collection.of_index, []

    def meanwhile(index):
        refused.append(index)
        with (
            pytest.raises(ValueError, match="another process is writing it; wait until it has"),
            folders.sole_writer(tmp_path / "index"),
        ):
            pass
        return of_index(index)

    monkeypatch.setattr(collection, "of_index", meanwhile)
    command(f"--codes={tmp_path}/second", output, "--append")
    assert load_index(tmp_path / "index").num_images == 40 and len(refused) == 1
    command(f"--codes={tmp_path}/third", output, "--append")
    assert load_index(tmp_path / "index").num_images == 60


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    codebooks, codes, _ = random_set(8, 20)
    write_codes(tmp_path / "codes", codebooks, codes, names(20))
    monkeypatch.setattr("os.path.ismount", lambda path: str(path).endswith("mounted"))
    monkeypatch.setattr(index_command, "_contents", lambda *_: 1 / 0)
    said = command(f"--codes={tmp_path}/codes", f"--output={tmp_path}/mounted", status=2)
    assert "mounted: a mount point cannot be replaced; name a folder in it" in said
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_a_folder_whose_name_scann_cannot_write_is_refused_before_the_work(tmp_path, monkeypatch):
    codebooks, codes, _ = random_set(8, 20)
    write_codes(tmp_path / "codes", codebooks, codes, names(20))
    (tmp_path / "\udce9").mkdir()
    # A command refuses flags that are not UTF-8, but not the folder that it is in.
    monkeypatch.chdir(tmp_path / "\udce9")
    monkeypatch.setattr(index_command, "_contents", lambda *_: 1 / 0)
    said = command(f"--codes={tmp_path}/codes", "--output=index", status=2)
    assert r"\udce9/index: a folder's name must be UTF-8; rename it, or take another" in said
    assert not list((tmp_path / "\udce9").iterdir())


def test_codes_that_are_updated_meanwhile_are_not_indexed(tmp_path, monkeypatch):
    codebooks, codes, _ = random_set(8, 40)
    write_codes(tmp_path / "codes", codebooks, codes[:20], names(20))
    write_codes(tmp_path / "aside", codebooks, codes[20:], names(20))
    find = store.find_distinct

    def meanwhile(*arguments):
        found = find(*arguments)
        folders.replace(tmp_path / "aside", tmp_path / "codes")
        return found

    monkeypatch.setattr(store, "find_distinct", meanwhile)
    said = command(f"--codes={tmp_path}/codes", f"--output={tmp_path}/index", status=2)
    assert said == f"error: {tmp_path}/codes: replaced while it was read; run this again"
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_an_index_of_other_images_is_replaced_only_when_asked(tmp_path):
    codebooks, codes, _ = random_set(8, 30)
    write_codes(tmp_path / "all", codebooks, codes, names(30))
    write_codes(tmp_path / "less", codebooks, codes[:20], names(30)[:20])
    write_codes(tmp_path / "other", codebooks, codes[:9], names(9), "elsewhere")
    output = f"--output={tmp_path}/index"
    command(f"--codes={tmp_path}/all", output)
    assert command(f"--codes={tmp_path}/less", output).endswith("; 10 fewer than before")
    said = command(f"--codes={tmp_path}/other", output, status=2)
    assert "has 20 images of [{'input': 'here'}], not of {'input': 'elsewhere'}; give" in said
    assert load_index(tmp_path / "index").num_images == 20
    command(f"--codes={tmp_path}/other", output, "--replace")
    assert load_index(tmp_path / "index").num_images == 9
    said = command(f"--codes={tmp_path}/all", "append", output, status=2)
    assert said.startswith("error: append: not a flag; give --append (")
    said = command(f"--codes={tmp_path}/other", "--output=/", status=2)
    assert said.startswith("error: / is not an index") and "\n" not in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--recall=0.95"], "--recall=0.95: an index without leaves finds all; add --num_leaves"),
        (["--recall=1.5"], "--recall=1.5: must be above 0 and at most 1"),
        (["--leaves_to_search=5"], "--leaves_to_search=5: must be 1 to --num_leaves, 0"),
        (["--num_leaves=5"], "--num_leaves=5: needs --kind=scann"),
        (["--append", "--keep=float16"], "not as float16; encode it anew with --keep=float16"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_the_images_are_encoded(
    encoder, index, photos, monkeypatch, given, message
):
    monkeypatch.setattr(index_command, "encode_plan", lambda *_: 1 / 0)
    own = f"--saved_model={encoder.path}", f"--dataset=folder:{photos}", f"--output={index.path}"
    assert message in command(*own, *given, "--replace", status=2)


def test_codes_with_other_codebooks_are_not_appended(tmp_path):
    codebooks, codes, _ = random_set(8, 20)
    write_codes(tmp_path / "first", codebooks, codes[:9], names(9))
    flipped = np.copy(codebooks)
    flipped[0, 0, 0] += 1
    write_codes(tmp_path / "second", flipped, codes[9:], names(20)[9:], "elsewhere")
    output = f"--output={tmp_path}/index"
    command(f"--codes={tmp_path}/first", output)
    said = command(f"--codes={tmp_path}/second", output, "--append", status=2)
    assert f"{tmp_path}/second: its codebooks are not those of index {tmp_path}/index" in said
    assert load_index(tmp_path / "index").num_images == 9


@pytest.mark.parametrize("change", ['"num_imagez": 20', '"num_images": null'])
def test_an_index_whose_manifest_has_no_number_of_images_is_replaced(tmp_path, change):
    codebooks, codes, _ = random_set(8, 20)
    write_codes(tmp_path / "codes", codebooks, codes, names(20))
    write_codes(tmp_path / "other", codebooks, codes, names(20), "elsewhere")
    output = f"--output={tmp_path}/index"
    command(f"--codes={tmp_path}/codes", output)
    manifest = tmp_path / "index/manifest.json"
    manifest.write_text(manifest.read_text().replace('"num_images": 20', change))
    said = command(f"--codes={tmp_path}/other", output, status=2)
    assert (
        "has an unknown number of images of [{'input': 'here'}], not of {'input': 'elsewhere'}"
        in said
    )
    assert "20 images" in command(f"--codes={tmp_path}/codes", output)
    assert load_index(tmp_path / "index").num_images == 20


@pytest.mark.long
def test_bad_images_are_left_out_and_named(encoder, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "a.jpg").write_bytes(b"no image")
    arguments = f"--saved_model={encoder.path}", f"--dataset=folder:{folder}"
    done = commands.run("export.index", *arguments, f"--output={tmp_path}/index")
    assert done.status == 0 and ": 60 images at 4 bits" in done.stdout
    assert "left out: a.jpg: no JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF or HEIC image" in done.stderr
    found = load_index(tmp_path / "index")
    images = catalog.load_images(f"folder:{photos}")
    assert [unpack_id(name) for name in found.ids.to_pylist()] == images.ids
    np.testing.assert_array_equal(found.codes, encode_images(encoder, images).codes)
    said = command(*arguments, f"--output={tmp_path}/other", "--on_bad_image=stop", status=2)
    assert said.startswith("error: a.jpg: no JPEG") and not (tmp_path / "other").exists()
    # The grown folder has its images once.
    shutil.copy(folder / images.ids[0], folder / "new.png")
    assert ": 61 images" in command(*arguments, f"--output={tmp_path}/index", "--append")


def command(*arguments, status=0):
    done = commands.run("export.index", *arguments)
    assert done.status == status, done.stdout + done.stderr
    return (done.stderr if status else done.stdout).strip()


def test_as_a_command(tmp_path):
    codebooks, codes, queries = random_set(8, 300)
    for name, part in {"first": slice(0, 200), "second": slice(200, 300)}.items():
        start(tmp_path / name, codebooks, ENCODER, 2, {"input": name})
        for number, rows in enumerate(np.split(np.arange(300)[part], [30])):
            ids = pack_ids([f"{row}.jpg" for row in rows])
            write_shard(tmp_path / name, number, 2, Shard(codes[rows], ids), [])
    output = f"--output={tmp_path}/index"
    said = command(f"--codes={tmp_path}/first", output, "--num_leaves=5")
    assert said == f"{tmp_path}/index: 200 images at 32 bits, 200 distinct codes, 5 leaves"
    (tmp_path / "gone.txt").write_text("7.jpg\n199.jpg\n")
    added = f"--codes={tmp_path}/second"
    assert command(added, output, "--append").startswith(f"{tmp_path}/index: 300 images")
    assert command(f"--remove={tmp_path}/gone.txt", output).endswith("298 distinct codes, 5 leaves")
    index = load_index(tmp_path / "index")
    kept = np.delete(np.arange(300), [7, 199])
    expected = full_scan(codebooks, codes[kept], queries, 10)[0]
    found = index.search(queries, 10, leaves_to_search=5)[0]
    assert found == [[f"{kept[row]}.jpg" for row in rows] for rows in expected]
    assert command(added, output, "--append").startswith(f"{tmp_path}/index: 298 images")
    # 199.jpg was removed from the first codes, and stays so.
    assert command(added, output, "--append").startswith(f"{tmp_path}/index: 298 images")
