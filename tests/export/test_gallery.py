"""What is marked right is right, whatever labels images have, and the picture is drawn."""

import shutil
import types

import numpy as np
import PIL.Image
import pytest

from export import gallery
from export.arrays import pack_ids
from hqc_tf.data import catalog, pictures
from hqc_tf.data.images import Images
from tests.support import commands

PIXELS = np.random.default_rng(0).integers(0, 256, [4, 8, 8, 3], np.uint8)


def images(labels, label_names=None):
    ids = [f"{row}" for row in range(4)]
    return Images.of_pixels(PIXELS, ids, None if labels is None else np.array(labels), label_names)


@pytest.mark.parametrize(
    ("labels", "names", "marks", "titles"),
    [
        ([1, 0, 1, 0], ["cat", "dog"], "✗✓✗", ["dog", "cat", "dog", "cat"]),
        ([1, 0, 1, 0], None, "✗✓✗", ["1", "0", "1", "0"]),
        ([[1, 1, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]], None, "✗✓✗", ["0, 1", "2", "1, 2", ""]),
        (None, None, ["", "", ""], ["", "", "", ""]),
    ],
)
def test_marks_and_names(labels, names, marks, titles):
    found = images(labels, names)
    query = found.take([0])
    assert [gallery._verdict(query, found, place)[1] for place in (1, 2, 3)] == [*marks]
    assert [pictures.label_text(found, row) for row in range(4)] == titles


def test_picture_is_drawn_whole(tmp_path):
    # What Matplotlib would read as a broken formula is a folder's name as good as any.
    found = images([1, 0, 1, 0], ["cat", "$\\frac$"])
    ids = [["1", "2", "removed"], ["0"]]
    gallery.draw_gallery(found.take([0, 1]), ids, found, tmp_path / "g.png")
    with PIL.Image.open(tmp_path / "g.png") as picture:
        assert picture.width > picture.height > 100
    assert [file.name for file in tmp_path.iterdir()] == ["g.png"]


def test_a_picture_in_no_folder_is_refused_before_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "load_index", lambda _: 1 / 0)
    arguments = "--index=none", "--dataset=folder:none", f"--output={tmp_path}/no/n.png"
    done = commands.run("export.gallery", *arguments)
    assert done.status == 2 and f"n.png: there is no folder {tmp_path}/no; make it" in done.stderr


def test_a_query_is_not_its_own_neighbor(index, encoder, photos, tmp_path, monkeypatch):
    drawn = []
    shutil.copytree(photos, tmp_path / "é")
    found = catalog.load_images(f"folder:{tmp_path}")
    monkeypatch.setattr(gallery, "draw_gallery", lambda *given: drawn.append(given))
    queries = found.take([5, 9])
    gallery.make_gallery(index, encoder, found, queries, tmp_path / "g.png", 60)
    others = [sorted(set(found.ids) - {own}) for own in queries.ids]
    assert [sorted(names) for names in drawn[0][1]] == others


def test_files_are_queries_and_what_the_data_set_lacks_has_its_name(index, photos, tmp_path):
    # As after a removal of files, and with an index of more than this folder.
    part = tmp_path / "é"
    shutil.copytree(photos, part)
    for path in sorted(part.rglob("*.png"))[10:]:
        path.unlink()
    query = min(part.rglob("*.png"))
    asked = f"--index={index.path}", f"--dataset=folder:{tmp_path}", f"--output={tmp_path}/g.png"
    done = commands.run("export.gallery", *asked, query)
    assert done.status == 0, done.stderr
    assert (tmp_path / "g.png").stat().st_size > 1000
    (tmp_path / "empty").mkdir()
    shutil.copy(query, tmp_path / "empty")
    asked = asked[0], f"--dataset=folder:{tmp_path}/empty"
    done = commands.run("export.gallery", *asked)
    assert done.status == 2 and f"empty: has no image of index {index.path}; name" in done.stderr


@pytest.mark.long
def test_an_image_that_broke_since_is_named(index, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder / "é")
    broken = sorted(folder.rglob("*.png"))[7]
    # TensorFlow's error has these bytes, which are no text.
    broken.write_bytes(b"BM\xff")
    asked = f"--index={index.path}", f"--dataset=folder:{folder}", "--queries=1", "--k=60"
    done = commands.run("export.gallery", *asked, f"--output={tmp_path}/g.png")
    assert done.status == 2 and str(broken.relative_to(folder)) in done.stderr.splitlines()[-1]
    assert not (tmp_path / "g.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed=-1"], "flag --seed=-1: -1 is not a non-negative integer"),
        (["--output="], "'.': a folder, not a file to write; name a file"),
    ],
)
def test_flags_that_name_no_seed_and_no_file_are_one_line(index, photos, tmp_path, words, said):
    shutil.copytree(photos, tmp_path / "é")
    asked = f"--index={index.path}", f"--dataset=folder:{tmp_path}"
    done = commands.run("export.gallery", *asked, *words)
    assert done.status == 2 and done.stderr.startswith(f"error: {said}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_images_of_an_index_with_a_prefix_are_found(photos):
    inputs = [{"folder": str(photos), "id_prefix": "phone/"}]
    names = [f"phone/{name}" for name in catalog.load_images(f"folder:{photos}").ids]
    index = types.SimpleNamespace(manifest={"inputs": inputs}, ids=pack_ids(names[:30]))
    assert gallery.load_indexed(index, f"folder:{photos}").ids == names
    drawn = gallery.draw_queries(index, f"folder:{photos}", count=60)
    assert drawn.ids and set(drawn.ids) <= set(names[:30])
