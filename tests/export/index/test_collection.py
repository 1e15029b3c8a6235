"""Images join an index and leave it, and it equals one built anew from those that remain."""

import os

import numpy as np
import pytest

from export.arrays import pack_ids, unpack_id
from export.codes import Shard
from export.index import collection, load_index, write_collection

ENCODER = {"fingerprint": "abc", "path": "serving/hqc/1"}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(collection, "CHUNK", 64)


def shards(count, seed, prefix):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, [count, 4], np.uint8)
    ids = [f"{prefix}/{row}\u00e4\udcff" for row in range(count)]
    cuts = range(0, count, 50)
    return [Shard(codes[a : a + 50], pack_ids(ids[a : a + 50])) for a in cuts]


def ids_of(images):
    return [unpack_id(name) for shard in images for name in shard.ids.to_pylist()]


def codes_of(images):
    return np.concatenate([shard.codes for shard in images])


def written(path, images):
    codebooks = np.random.default_rng(9).normal(size=[4, 16, 2]).astype(np.float32)
    write_collection(path, codebooks, images, ENCODER)
    return load_index(path)


def test_an_index_gives_back_its_images(tmp_path):
    images = collection.of_shards(shards(170, 0, "a"), {"folder": "a"})
    again = collection.of_index(written(tmp_path / "index", images))
    assert ids_of(again) == ids_of(images)
    np.testing.assert_array_equal(codes_of(again), codes_of(images))
    assert again.inputs == images.inputs == [{"folder": "a"}]
    assert again.num_images == images.num_images


def test_append_and_remove_equal_an_index_built_anew(tmp_path):
    first, second = shards(170, 0, "a"), shards(90, 1, "b")
    old = collection.of_index(written(tmp_path / "index", collection.of_shards(first)))
    both = old + collection.of_shards(second)
    gone = [f"{name}\u00e4\udcff" for name in ("a/3", "a/169", "b/0")]
    left = collection.of_index(written(tmp_path / "index", both)).without(gone)
    index = written(tmp_path / "index", left)

    kept = [name not in gone for name in ids_of(first) + ids_of(second)]
    codes = codes_of(first + second)[kept]
    ids = [name for name in ids_of(first) + ids_of(second) if name not in gone]
    anew = collection.of_shards([Shard(codes, pack_ids(ids))])
    queries = np.random.default_rng(2).normal(size=[20, 8]).astype(np.float32)
    expected = written(tmp_path / "anew", anew).search(queries, 257)
    found = index.search(queries, 257)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


def test_the_same_images_cut_differently_are_there_once(tmp_path):
    first = collection.of_shards(shards(170, 0, "a"))
    old = collection.of_index(written(tmp_path / "index", first))
    whole = Shard(codes_of(first), pack_ids(ids_of(first)))
    grown = (old + collection.of_shards([whole])).once()
    assert ids_of(grown) == ids_of(first) and grown.num_images == 170
    np.testing.assert_array_equal(codes_of(grown), codes_of(first))
    thinned = old.without(["a/7\u00e4\udcff"])
    again = (thinned + collection.of_shards(shards(170, 0, "a"))).once()
    assert sorted(ids_of(again)) == sorted(ids_of(first))


def test_an_id_with_another_code_is_an_error_or_follows_the_policy():
    codes = np.arange(24, dtype=np.uint8).reshape(6, 4) % 16
    names = ["x", "y", "x", "z", "y", "x"]
    codes[4] = codes[1]
    images = collection.of_shards(
        [Shard(codes[:3], pack_ids(names[:3])), Shard(codes[3:], pack_ids(names[3:]))]
    )
    with pytest.raises(ValueError, match="1 ids have several images with different codes, .* 'x'"):
        images.once()
    newest, oldest = images.once("replace"), images.once("keep")
    assert ids_of(newest) == ["y", "z", "x"] and ids_of(oldest) == ["x", "y", "z"]
    np.testing.assert_array_equal(codes_of(newest), codes[[1, 3, 5]])
    np.testing.assert_array_equal(codes_of(oldest), codes[[0, 1, 3]])


def test_an_equal_code_with_another_embedding_follows_the_policy():
    codes, names = np.zeros([4, 4], np.uint8), ["x", "y", "x", "y"]
    embeddings = np.uint8([[1, 2], [3, 4], [5, 6], [3, 4]])
    images = collection.of_shards([Shard(codes, pack_ids(names), embeddings)], keep="int8")
    for policy, expected in [("replace", [1, 2]), ("keep", [0, 1]), ("error", [0, 1])]:
        (found,) = images.once(policy)
        np.testing.assert_array_equal(found.kept, embeddings[expected])


def test_hashes_that_meet_by_chance_merge_nothing(monkeypatch):
    monkeypatch.setattr(collection, "_hashes", lambda ids: np.zeros(len(ids), np.uint64))
    images = collection.of_shards(shards(170, 0, "a"))
    assert ids_of(images.once()) == ids_of(images)


def test_equal_ids_have_equal_hashes_wherever_they_are(monkeypatch):
    names = ["", "a", "ab", "ba", "a", "b" * 300, "", "\0", "\0\0"]
    found = collection._hashes(pack_ids(names))
    assert len(set(found.tolist())) == len(set(names)) and found[1] == found[4]
    monkeypatch.setattr(collection, "_HASHED", 2)
    np.testing.assert_array_equal(collection._hashes(pack_ids(names)), found)
    np.testing.assert_array_equal(collection._hashes(pack_ids(names).slice(3, 4)), found[3:7])
    assert len(collection._hashes(pack_ids([]))) == 0


def test_every_image_of_an_id_leaves():
    codes = np.arange(20, dtype=np.uint8).reshape(5, 4) % 16
    images = collection.of_shards([Shard(codes, pack_ids(["x", "y", "", "x", "z"]))])
    left = images.without(["x", ""])
    assert ids_of(left) == ["y", "z"]
    np.testing.assert_array_equal(codes_of(left), codes[[1, 4]])


def test_ids_that_are_not_there_are_refused():
    images = collection.of_shards(shards(170, 0, "a"))
    with pytest.raises(ValueError, match="1 of 2 ids are not in the index, the first is 'a/1'"):
        images.without(["a/1", "a/1\u00e4\udcff"])
    with pytest.raises(ValueError, match="no image would be left; remove the index itself"):
        images.without(ids_of(images))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "ids.jsonl: maximum recursion depth .*; write an id as JSON on each line"),
        (f'["{"a" * 5000}"]', r"ids.jsonl: \['a+\.\.\.a+'\]: not an id; write \"ID\""),
    ],
)
def test_a_line_that_is_no_id_is_one_short_line(tmp_path, line, message):
    (tmp_path / "ids.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message) as raised:
        collection.read_ids(str(tmp_path / "ids.jsonl"))
    assert len(str(raised.value)) < 300


def test_read_ids(tmp_path):
    file = tmp_path / "ids.txt"
    file.write_bytes(b"a/1.jpg\nb\xff.png\r\n\n c \n")
    assert collection.read_ids(file) == ["a/1.jpg", "b\udcff.png", " c "]
    file.write_bytes(b"\xef\xbb\xbfa.jpg\n")
    assert collection.read_ids(file) == ["a.jpg"]
    file.write_bytes(b"two\nlines.jpg\0b.jpg\0")
    assert collection.read_ids(file) == ["two\nlines.jpg", "b.jpg"]
    lines = tmp_path / "ids.jsonl"
    lines.write_text('"two\\nlines.jpg"\n{"id": "b\\udcff", "reason": "x"}\n')
    assert collection.read_ids(lines) == ["two\nlines.jpg", "b\udcff"]
    lines.write_text("7\n")
    with pytest.raises(ValueError, match="7: not an id; write"):
        collection.read_ids(lines)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: no regular file; name a file of ids"):
        collection.read_ids(tmp_path / "pipe")
    file.write_bytes(b"\n")
    with pytest.raises(ValueError, match="holds no id; write one a line"):
        collection.read_ids(file)
    with pytest.raises(ValueError, match="No such file or directory; name a file of ids"):
        collection.read_ids(tmp_path / "none")
