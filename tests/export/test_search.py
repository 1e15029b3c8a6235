"""Queries of every kind find what the index finds, and answers are written atomically."""

import csv
import dataclasses
import json
import shutil
import sys

import numpy as np
import PIL.Image
import pytest
from pyarrow import parquet

from export import results, search
from export.encode import streaming
from export.encoder import encode_images, load_encoder_of
from export.index import neighbors
from hqc_tf.data import catalog
from hqc_tf.errors import UserError
from tests.support import commands


@pytest.fixture(scope="module")
def images(photos):
    return catalog.load_images(f"folder:{photos}")


@pytest.fixture(scope="module")
def embeddings(encoder, images):
    return encode_images(encoder, images).embeddings


def test_files_a_data_set_and_embeddings_find_the_same(
    index, encoder, images, embeddings, tmp_path, monkeypatch
):
    np.save(tmp_path / "e.npy", embeddings.astype(np.float64))
    of_files = [*search.search_files(index, encoder, images.paths, 4)]
    monkeypatch.setattr(search, "BATCH", 7)
    of_images = [*search.search_images(index, encoder, images, 4)]
    of_rows = [*search.search_embeddings(index, tmp_path / "e.npy", 4)]
    ids, distances = index.search(embeddings, 4)
    for row, found in enumerate(zip(of_files, of_images, of_rows, strict=True)):
        assert {tuple(answer["ids"]) for answer in found} == {tuple(ids[row])}
        for answer in found:
            np.testing.assert_allclose(answer["distances"], distances[row], rtol=1e-5)
    assert [answer["query"] for answer in of_files] == images.paths
    assert [answer["query"] for answer in of_images] == images.ids
    assert of_rows[17]["query"] == f"{tmp_path}/e.npy:17"


def test_few_results_are_in_memory_together(index, embeddings, monkeypatch):
    expected = [*search.answers(index, [([*"abcdefgh"], embeddings[:8])], 4)]
    sizes, rows = [], neighbors.Index.rows
    monkeypatch.setattr(search, "RESULTS", 12)
    monkeypatch.setattr(
        neighbors.Index, "rows", lambda *own: sizes.append(len(own[1])) or rows(*own)
    )
    found = [*search.answers(index, [([*"abcdefgh"], embeddings[:8])], 4)]
    assert sizes == [3, 3, 2]
    for one, other in zip(found, expected, strict=True):
        assert (one["query"], one["ids"]) == (other["query"], other["ids"])


def test_books_explain_the_distance(index, embeddings):
    found = [*search.answers(index, [(["a", "b"], embeddings[:2])], 5, explain=True)]
    for row, answer in enumerate(found):
        np.testing.assert_allclose(
            np.sum(answer["books"], axis=1), answer["distances"], rtol=1e-5, atol=1e-6
        )
        places = [index.ids_of(np.arange(60)[None])[0].index(name) for name in answer["ids"]]
        words = index.codebooks[np.arange(2), index.codes[places]]
        parts = embeddings[row].reshape(2, 3)
        expected = np.square(parts - words).sum(axis=2)
        np.testing.assert_allclose(answer["books"], expected, rtol=1e-5, atol=1e-6)


def test_lines_and_table_hold_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "BATCH", 2)
    found = [
        {"query": f"q{row}", "ids": ["a\u00e4", f"{row}\n"], "distances": [0.5, float(row)],
         "books": [[0.25, 0.25], [float(row), 0.0]]}
        for row in range(5)
    ]  # fmt: skip
    search.write_answers(found, tmp_path / "found.jsonl")
    search.write_answers(found, tmp_path / "found.parquet")
    search.write_answers(found, "")
    lines = (tmp_path / "found.jsonl").read_text()
    assert lines == capsys.readouterr().out
    assert [json.loads(line) for line in lines.splitlines()] == found
    assert parquet.read_table(tmp_path / "found.parquet").to_pylist() == found


def test_a_table_spells_out_names_that_are_no_text(tmp_path):
    found = [{"query": "\udcff.jpg", "ids": ["b\udc80"], "distances": [1.0]}]
    search.write_answers(found, tmp_path / "found.parquet")
    row = parquet.read_table(tmp_path / "found.parquet").to_pylist()[0]
    assert (row["query"], row["ids"]) == ("\\udcff.jpg", ["b\\udc80"])


@pytest.mark.parametrize("name", ["found.jsonl", "found.parquet"])
def test_failure_leaves_an_older_file(tmp_path, name):
    (tmp_path / name).write_text("old")

    def failing():
        yield {"query": "a", "ids": ["b"], "distances": [1.0]}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        search.write_answers(failing(), tmp_path / name)
    assert (tmp_path / name).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros([3, 5], np.float32), r"float32 \(3, 5\), but index .* needs floats \[Q, 6\]"),
        (np.zeros([3, 6], int), r"holds int64 \(3, 6\)"),
        (np.zeros([0, 6], np.float32), "has no row; name a file that has some"),
        (np.diag([0, 0, 0, 0, 1e30, np.nan]), "row 4 holds NaN or infinity, or numbers whose sq"),
        (np.array([{}]), "name a .npy file of floats"),
        (None, "name a .npy file of floats"),
    ],
)  # fmt: skip
def test_embeddings_that_do_not_fit_are_refused(index, tmp_path, monkeypatch, array, message):
    path = tmp_path / "e.npy"
    path.write_bytes(b"no array") if array is None else np.save(path, array)
    monkeypatch.setattr(search, "BATCH", 3)
    with pytest.raises(ValueError, match=message):
        search.search_embeddings(index, path, 1)


def test_features_are_offered_only_where_the_encoder_takes_some(index, encoder, tmp_path):
    np.save(tmp_path / "e.npy", np.zeros([3, 5], np.float32))
    assert not encoder.feature_width
    with pytest.raises(UserError, match=r"needs floats \[Q, 6\]; embed the queries"):
        search.search_embeddings(index, tmp_path / "e.npy", 1, lambda: encoder)


def test_features_as_wide_as_embeddings_are_not_guessed(index, embeddings, tmp_path):
    path = tmp_path / "e.npy"
    np.save(path, embeddings[:2])
    own = index.manifest["encoder"] | {"feature_width": 6}
    alike = dataclasses.replace(index, manifest=index.manifest | {"encoder": own})
    with pytest.raises(UserError, match=rf"both have 6 numbers; .* --dataset=features:{path}, emb"):
        search.search_embeddings(alike, path, 1, lambda: 1 / 0)
    # Without an encoder they are embeddings, as are those of images.
    for searched, load in [(alike, None), (index, lambda: 1 / 0)]:
        found = [*search.search_embeddings(searched, path, 1, load)]
        assert [answer["ids"] for answer in found] == index.search(embeddings[:2], 1)[0]


def test_rerank_below_k_is_refused(index, embeddings):
    with pytest.raises(ValueError, match="rerank is 2, but must be at least k, 3: raise it"):
        index.rows(embeddings, 3, rerank=2)


def command(*arguments, status=0):
    done = commands.run("export.search", *arguments)
    assert done.status == status, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_as_a_command(index, embeddings, tmp_path):
    np.save(tmp_path / "e.npy", embeddings)
    asked = [f"--index={index.path}", f"--embeddings={tmp_path}/e.npy", "--k=3"]
    command(*asked, "--explain", f"--output={tmp_path}/found.parquet")
    rows = parquet.read_table(tmp_path / "found.parquet").to_pylist()
    assert [row["ids"] for row in rows] == index.search(embeddings, 3)[0]
    assert np.shape(rows[0]["books"]) == (3, 2)
    _, error = command(*asked, "a.jpg", status=2)
    assert error.strip() == (
        "error: image files, --dataset and --embeddings: queries of one kind; choose one"
    )


def test_within_and_without(index, embeddings, tmp_path):
    np.save(tmp_path / "e.npy", embeddings[:2])
    ids, prefix = index.ids_of(np.arange(60)[None])[0], "é/class1/"
    left_out = next(name for name in ids if name.startswith(prefix))
    (tmp_path / "ids.txt").write_text(f"{left_out}\ngone\n")
    asked = [f"--index={index.path}", f"--embeddings={tmp_path}/e.npy", "--k=50"]
    out, said = command(*asked, f"--within={prefix}", f"--without={tmp_path}/ids.txt")
    assert f"--without={tmp_path}/ids.txt: 1 of 2 ids are not in {index.path}\n" in said
    wanted = {name for name in ids if name.startswith(prefix)} - {left_out}
    for line, query in zip(out.splitlines(), embeddings, strict=False):
        found = json.loads(line)
        assert set(found["ids"]) == wanted
        assert found["ids"] == index.search(query[None], 50, within=wanted)[0][0]
    _, error = command(*asked, "--within=holidya/", status=2)
    assert f"--within=holidya/: no id in {index.path} begins so; correct it" in error
    _, error = command(*asked, f"--without={tmp_path}/none.txt", status=2)
    assert "--without=" in error and "name a file of ids" in error


@pytest.mark.long
def test_bad_images_of_a_data_set_are_left_out_and_named(
    index, encoder, images, embeddings, photos, tmp_path
):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "a.jpg").write_bytes(b"no image")
    (folder / "zz.png").mkdir()
    asked = [f"--index={index.path}", "--k=3"]
    found, said = command(*asked, f"--dataset=folder:{folder}")
    assert said == (
        "left out: a.jpg: no JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF or HEIC image\n"
        "left out: zz.png: Is a directory\n"
    )
    answers = [json.loads(line) for line in found.splitlines()]
    assert [answer["query"] for answer in answers] == images.ids
    assert [answer["ids"] for answer in answers] == index.search(embeddings, 3)[0]
    _, said = command(*asked, f"--dataset={folder}/*.jpg", status=2)
    assert said.endswith(
        f"error: --dataset={folder}/*.jpg: no image in it; name one that has some\n"
    )
    stopped = f"--dataset=folder:{folder}", f"--output={tmp_path}/found.jsonl"
    _, said = command(*asked, *stopped, "--on_bad_image=stop", status=2)
    assert said.startswith("error: a.jpg: no JPEG") and "give --on_bad_image=skip" in said
    assert not (tmp_path / "found.jsonl").exists()


def test_large_queries_are_read_one_at_a_time(index, encoder, tmp_path, monkeypatch):
    """As in an encoding: a file of over 4 MiB is alone, and the next one is not read beside it."""
    for row in range(3):
        pixels = np.full([1300, 1300, 3], 50 * row, np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{row}.bmp")
    seen = []
    encode = streaming._encode_batch
    monkeypatch.setattr(
        streaming, "_encode_batch", lambda *given: seen.append(len(given[1])) or encode(*given)
    )
    found = [*search.search_dataset(index, encoder, f"folder:{tmp_path}", 1)]
    assert [answer["query"] for answer in found] == ["0.bmp", "1.bmp", "2.bmp"]
    assert seen == [1, 1, 1]


def test_csv_and_a_table_for_a_person(tmp_path, monkeypatch, capsys):
    (tmp_path / "a\tb.jpg").touch()
    path_of = results.path_finder([{"tfrecords": "x"}, {"folder": str(tmp_path)}])
    found = [
        {"query": f"q{row}", "ids": ["a\tb.jpg", 'c"d,e.jpg'], "distances": [0.5, 12.25]}
        for row in range(2)
    ]
    results.write_answers(found, tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = [*csv.reader(file)]
    assert rows[0] == ["query", "rank", "id", "distance"] and len(rows) == 5
    assert rows[1:3] == [["q0", "1", "a\tb.jpg", "0.5"], ["q0", "2", 'c"d,e.jpg', "12.25"]]
    results.write_answers(found, "", "table", path_of)
    assert capsys.readouterr().out.splitlines() == [
        "q0", f"    1  0.5         {tmp_path}/a\\tb.jpg", '    2  12.25       c"d,e.jpg', "",
        "q1", f"    1  0.5         {tmp_path}/a\\tb.jpg", '    2  12.25       c"d,e.jpg',
    ]  # fmt: skip
    results.write_answers(found, "")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    results.write_answers(found, "")
    assert capsys.readouterr().out.startswith("q0\n    1  0.5")
    with pytest.raises(UserError, match="--format=csv: .*x.parquet is a Parquet table; leave one"):
        results.write_answers(found, tmp_path / "x.parquet", "csv")


def test_a_prefix_and_several_folders_give_paths(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").touch()
    inputs = [{"folder": f"{tmp_path}/one"}, {"folder": f"{tmp_path}/two", "id_prefix": "b/"}]
    path_of = results.path_finder(inputs)
    names = ["one.jpg", "b/two.jpg", "two.jpg", "b/one.jpg", "cifar10/0001"]
    assert [path_of(name) for name in names] == [
        f"{tmp_path}/one/one.jpg", f"{tmp_path}/two/two.jpg", *names[2:],
    ]  # fmt: skip


def test_the_prefix_of_a_folder_is_known(tmp_path):
    two = [{"folder": f"{tmp_path}/one"}, {"folder": f"{tmp_path}/two", "id_prefix": "b/"}]
    for inputs, name, prefix in [
        (two, "one", ""),
        (two, "two", "b/"),
        (two, "moved", ""),
        (two[1:], "moved", "b/"),
        ([], "one", ""),
    ]:
        assert results.id_prefix(inputs, tmp_path / name) == prefix


def test_an_id_is_the_name_of_a_file_in_one_folder(tmp_path):
    one, phone = {"folder": f"{tmp_path}/one"}, {"folder": f"{tmp_path}/p", "id_prefix": "p/"}
    old = {"pattern": "old/*", "root": f"{tmp_path}/old", "id_prefix": "p/old/"}
    for inputs, folder, expected in [
        ([one, phone, old], "one", ["a", None, None]),
        ([one, phone, old], "p", [None, "a", None]),
        ([one, phone, old], "old", [None, None, "a"]),
        # Nothing says whose they are.
        ([one, phone, old], "moved", ["a", "p/a", "p/old/a"]),
        ([phone], "moved", [None, "a", "old/a"]),
        ([phone, old], "", ["a", "p/a", "p/old/a"]),
        ([phone, phone | {"id_prefix": "p/old/"}], "p", [None, "a", "a"]),
        ([], "any", ["a", "p/a", "p/old/a"]),
    ]:
        name_of = results.name_finder(inputs, tmp_path / folder)
        assert [*map(name_of, ["a", "p/a", "p/old/a"])] == expected
    (tmp_path / "one/p").mkdir(parents=True)
    (tmp_path / "p").mkdir()
    for folder in ("one/p", "p"):
        (tmp_path / folder / "a").touch()
    assert results.path_finder([one, phone])("p/a") == f"{tmp_path}/p/a"


def test_more_results_than_images_are_all_of_them(index, images, encoder):
    own = f"--index={index.path}", f"--saved_model={encoder.path}"
    done = commands.run("export.search", *own, "--k=100", images.paths[0], images.paths[1])
    assert done.status == 0, done.stderr
    assert done.stderr.endswith("--k=100: there are 60 images to find, and all are given\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(set(answer["ids"])) for answer in answers] == [60, 60]


def test_a_moved_encoder_is_named_by_a_flag(index, images, encoder, monkeypatch):
    manifest = {"encoder": {"path": "/nowhere/serving/1"}}
    with pytest.raises(UserError, match=r"^/nowhere.*no longer there; give --saved_model=DIR"):
        load_encoder_of(manifest)
    assert load_encoder_of(manifest, encoder.path).path == encoder.path
