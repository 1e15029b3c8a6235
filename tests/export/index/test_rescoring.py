import dataclasses

import numpy as np
import pytest

from export import kept
from export.arrays import pack_ids
from export.codes import Shard, start, write_shard
from export.index import load_index, write_index
from export.index.rescoring import rescore
from hqc_tf import retrieval
from hqc_tf.errors import UserError
from tests.support import commands

ENCODER = {"fingerprint": "f" * 64, "path": "serving/1"}
WIDTH = 8 * 4


def collapsed(count=120, seed=0):
    """Embeddings of which many have equal codes: codebooks, codes, embeddings and ids."""
    random = np.random.default_rng(seed)
    codebooks = random.normal(size=[8, 16, 4]).astype(np.float32)
    words = random.integers(0, 16, [3, 8]).astype(np.uint8)
    codes = words[random.integers(0, 3, count)]
    embeddings = codebooks[np.arange(8), codes].reshape(count, WIDTH)
    embeddings = embeddings + random.normal(size=[count, WIDTH], scale=0.05).astype(np.float32)
    return codebooks, codes, embeddings, [f"{row}.jpg" for row in range(count)]


def written(path, keep="int8", **changed):
    codebooks, codes, embeddings, ids = collapsed(**changed)
    write_index(path, codebooks, codes, ids, ENCODER, embeddings=embeddings, keep=keep)
    return load_index(path), embeddings, ids


def test_order_by_hand():
    rows = kept.pack(np.float32([[0, 127], [127, 0], [0, 126], [127, 0]]), "int8")
    places, distances = rescore(np.float32([[120, 0]]), np.int64([[0, 3, 1]]), rows, "int8", 2)
    assert places.tolist() == [[2, 1]] and distances.tolist() == [[49, 49]]


@pytest.mark.parametrize("keep", ["int8", "float16"])
def test_each_image_finds_itself_first_among_equal_codes(tmp_path, keep):
    index, embeddings, ids = written(tmp_path / "index", keep)
    by_codes, _ = index.search(embeddings, 1)
    assert np.mean([found == [own] for found, own in zip(by_codes, ids, strict=True)]) < 0.1
    found, distances = index.search(embeddings, 3, rescore=120)
    assert [names[0] for names in found] == ids
    values = kept.unpack(index.kept, keep)
    all_distances = ((values[None] - embeddings[:, None]) ** 2).sum(-1)
    np.testing.assert_allclose(distances, np.sort(all_distances, 1)[:, :3], rtol=1e-4, atol=1e-6)


def test_only_the_first_images_by_code_change_places(tmp_path):
    index, embeddings, _ = written(tmp_path / "index")
    queries = embeddings[:20] + 0.1
    by_codes = index.rows(queries, 30)
    found = index.rows(queries, 10, rescore=30)
    values = kept.unpack(index.kept, "int8")
    for query, first, rows in zip(queries, by_codes.rows, found.rows, strict=True):
        order = sorted((float(((values[row] - query) ** 2).sum()), row) for row in first)
        assert rows.tolist() == [row for _, row in order[:10]]
    codes = index.distinct_codes[found.codes]
    np.testing.assert_array_equal(codes, index.codes[found.rows])


def test_chunks_of_queries_change_nothing(tmp_path, monkeypatch):
    index, embeddings, _ = written(tmp_path / "index")
    expected = index.rows(embeddings, 5, rescore=40)
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", 40 * WIDTH * 7)
    for found, own in zip(index.rows(embeddings, 5, rescore=40), expected, strict=True):
        np.testing.assert_array_equal(found, own)


def test_a_filter_is_kept_to_and_more_than_there_is_is_all(tmp_path):
    index, embeddings, ids = written(tmp_path / "index")
    found, _ = index.search(embeddings[:50], 4, within="1", rescore=1000)
    assert all(name.startswith("1") for names in found for name in names)
    assert found[10][0] == "10.jpg"
    found, _ = index.search(embeddings[:2], len(ids), rescore=1000)
    assert sorted(found[0]) == sorted(ids)


def test_a_filter_that_lets_nothing_through_finds_nothing(tmp_path):
    index, embeddings, _ = written(tmp_path / "index")
    ids, distances = index.search(embeddings[:2], 3, within=set(), rescore=100)
    assert ids == [[], []] and distances.shape == (2, 0)


def test_without_embeddings_it_is_refused(tmp_path):
    codebooks, codes, embeddings, ids = collapsed()
    write_index(tmp_path / "index", codebooks, codes, ids, ENCODER)
    index = load_index(tmp_path / "index")
    assert index.default_rescore == 0 and index.keep == "none"
    with pytest.raises(UserError, match=r"rescore is 9, but index .* keeps no embeddings: rebuild"):
        index.search(embeddings, 3, rescore=9)
    with pytest.raises(ValueError, match=r"embeddings have the shape \(3, 32\), but must be \[120"):
        write_index(tmp_path, codebooks, codes, ids, ENCODER, embeddings=embeddings[:3])
    # An index of before embeddings were kept does not say so.
    manifest = {key: index.manifest[key] for key in index.manifest if key != "keep"}
    assert dataclasses.replace(index, manifest=manifest).keep == "none"


def command(*arguments, status=0):
    done = commands.run("export.index", *arguments)
    assert done.status == status, done.stdout + done.stderr
    return done


def write_codes(folder, codebooks, codes, ids, embeddings=None, keep="none"):
    start(folder, codebooks, ENCODER, 1, {"input": folder.name}, keep=keep)
    own = None if embeddings is None else kept.pack(embeddings, keep)
    write_shard(folder, 0, 1, Shard(codes, pack_ids(ids), own), [])


def test_append_and_remove_keep_them(tmp_path):
    codebooks, codes, embeddings, ids = collapsed()
    output = f"--output={tmp_path}/index"
    for name, rows in {"first": slice(0, 70), "second": slice(70, 120)}.items():
        own = codes[rows], ids[rows], embeddings[rows]
        write_codes(tmp_path / name, codebooks, *own, keep="int8")
    write_codes(tmp_path / "bare", codebooks, codes[:9], [f"new{row}" for row in range(9)])
    done = command(f"--codes={tmp_path}/first", output)
    assert "3 distinct codes, embeddings kept as int8 (36 bytes an image)" in done.stdout
    assert done.stderr.startswith("3 distinct codes for 70 images: many images have equal codes.")
    command(f"--codes={tmp_path}/second", output, "--append")
    (tmp_path / "gone").write_text("\n".join(ids[:10]))
    command(f"--remove={tmp_path}/gone", output)
    index = load_index(tmp_path / "index")
    np.testing.assert_array_equal(index.kept, kept.pack(embeddings[10:], "int8"))
    assert [names[0] for names in index.search(embeddings[10:], 1, rescore=120)[0]] == ids[10:]

    asked = f"--codes={tmp_path}/bare", output, "--append", "--keep=int8"
    said = command(*asked, status=2).stderr
    assert "bare: keeps no embeddings, not as int8; encode it anew with --keep=int8, or" in said
    other = f"--output={tmp_path}/other"
    said = command(f"--codes={tmp_path}/first", other, "--keep=float16", status=2).stderr
    assert "keeps embeddings as int8, not as float16; encode it anew with --keep=float16" in said
    done = command(f"--codes={tmp_path}/bare", output, "--append")
    assert "bare: keeps no embeddings as int8, so the index keeps none any more" in done.stderr
    assert "embeddings kept" not in done.stdout and "; --keep=int8 tells images" in done.stderr
    index = load_index(tmp_path / "index")
    assert index.num_images == 119 and index.kept is None


def test_a_damaged_file_of_them_is_named(tmp_path):
    written(tmp_path / "index")
    file = tmp_path / "index/embeddings.npy"
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)
    with pytest.raises(UserError, match=r"embeddings.npy is damaged: rebuild the index"):
        load_index(tmp_path / "index")
