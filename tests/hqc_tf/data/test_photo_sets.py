"""Roles by the published lists, places of photos, and the messages about bad lists."""

import subprocess
import sys

import numpy as np
import pytest

from hqc_tf.data import photo_sets
from hqc_tf.errors import UserError
from tests.support.photo_folders import (
    ROOT,
    copy_published,
    label_lines,
    write_flickr25k_lists,
    write_nuswide_list,
    write_photos,
)

ROLES = ("train", "database", "query")
ZEROS_AND_ONE = " ".join("0" * 20 + "1")


@pytest.fixture(scope="module")
def flickr25k(tmp_path_factory):
    """data_dir with the published lists and 25,000 photos, as the archive unpacks."""
    data_dir = tmp_path_factory.mktemp("flickr25k")
    copy_published("flickr25k", data_dir / "flickr25k")
    names = (data_dir / "flickr25k/img.txt").read_text().split()
    write_photos(data_dir / "flickr25k/mirflickr", names)
    return data_dir


@pytest.fixture(scope="module")
def nuswide(tmp_path_factory):
    """data_dir with the published lists, a database.txt of their photos, and the photos."""
    data_dir = tmp_path_factory.mktemp("nuswide")
    folder = data_dir / "nuswide"
    copy_published("nuswide", folder)
    names = [
        line.split()[0]
        for file in ("train_10500.txt", "test.txt")
        for line in (folder / file).read_text().splitlines()
    ]
    write_photos(folder / "images", names)
    write_nuswide_list(folder, "database", names)
    return data_dir


@pytest.fixture
def small_nuswide(tmp_path):
    """data_dir with a test.txt of 2,100 lines that name three photos."""
    names = ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    write_nuswide_list(tmp_path / "nuswide", "test", names)
    write_photos(tmp_path / "nuswide/images", names)
    return tmp_path


def refused(dataset, role, data_dir):
    with pytest.raises(UserError) as caught:
        photo_sets.read_photos(dataset, role, data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def replace_line(path, line, text):
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")


def test_flickr25k_queries_are_the_published_draw(flickr25k):
    query = photo_sets.read_photos("flickr25k", "query", flickr25k)
    published = np.loadtxt(flickr25k / "flickr25k/targets.txt", dtype=np.uint8)
    numbers = [int(name.removeprefix("im").removesuffix(".jpg")) for name in query.ids]
    assert numbers[:3] == [14712, 21080, 13196]
    assert len(set(numbers)) == len(query.paths) == 2000
    assert query.labels.dtype == np.uint8
    np.testing.assert_array_equal(query.labels, published[np.array(numbers) - 1])
    assert query.paths[0] == f"{flickr25k}/flickr25k/mirflickr/im14712.jpg"


def test_flickr25k_trains_on_and_searches_the_rest_in_order(flickr25k):
    train, database, query = (photo_sets.read_photos("flickr25k", r, flickr25k) for r in ROLES)
    listed = (flickr25k / "flickr25k/img.txt").read_text().split()
    published = np.loadtxt(flickr25k / "flickr25k/targets.txt", dtype=np.uint8)
    queries = set(query.ids)
    rest = [row for row, name in enumerate(listed) if name not in queries]
    assert database.ids == [listed[row] for row in rest]
    assert len(database.ids) == 23_000
    np.testing.assert_array_equal(database.labels, published[rest])
    assert (train.ids, train.paths) == (database.ids, database.paths)
    np.testing.assert_array_equal(train.labels, database.labels)


@pytest.mark.parametrize(
    ("dataset", "role", "file", "lines"),
    [
        ("nuswide", "train", "database.txt", 193_734),
        ("nuswide", "database", "database.txt", 193_734),
        ("nuswide", "query", "test.txt", 2_100),
        ("nuswide_10500", "train", "train_10500.txt", 10_500),
        ("nuswide_10500", "database", "database.txt", 193_734),
        ("nuswide_10500", "query", "test.txt", 2_100),
    ],
)
def test_nuswide_roles_are_the_lists_line_by_line(nuswide, dataset, role, file, lines):
    photos = photo_sets.read_photos(dataset, role, nuswide)
    assert (len(photos.ids), photos.labels.shape) == (lines, (lines, 21))
    assert photos.labels.dtype == np.uint8
    written = map(" ".join, zip(photos.ids, label_lines(photos.labels), strict=True))
    assert (nuswide / "nuswide" / file).read_text().splitlines() == list(written)
    folder = f"{nuswide}/nuswide/images/"
    assert photos.paths == [folder + name for name in photos.ids]


def test_published_first_lines_of_nuswide(nuswide):
    query = photo_sets.read_photos("nuswide", "query", nuswide)
    assert query.ids[0] == "grassland/0451_1307521289.jpg"
    assert np.flatnonzero(query.labels[0]).tolist() == [0, 5, 14]
    train = photo_sets.read_photos("nuswide_10500", "train", nuswide)
    assert train.ids[2] == "valley/0338_1670636239.jpg"
    assert np.flatnonzero(train.labels[2]).tolist() == [3, 5, 7]


def test_a_role_needs_its_own_list_only(small_nuswide):
    assert len(photo_sets.read_photos("nuswide_10500", "query", small_nuswide).ids) == 2100
    message = refused("nuswide_10500", "train", small_nuswide)
    assert message == (
        f"{small_nuswide}/nuswide/train_10500.txt: no such list; put it there: 10500 lines, each "
        "with a name without blanks and 21 columns of 0 or 1"
    )
    assert "database.txt: no such list" in refused("nuswide", "train", small_nuswide)


def test_splits_are_those_whose_lists_are_there(small_nuswide):
    splits = photo_sets.nuswide_splits(small_nuswide)
    assert {name: len(photos.ids) for name, photos in splits.items()} == {"test": 2100}
    (small_nuswide / "nuswide/test.txt").unlink()
    with pytest.raises(UserError, match="none of database.txt, train_10500.txt, test.txt is there"):
        photo_sets.nuswide_splits(small_nuswide)


def test_protocol_names_what_a_result_rests_on():
    assert [photo_sets.protocol(dataset) for dataset in photo_sets.PHOTO_SETS] == [
        "flickr25k: 2,000 queries by RandomState(2022), 24 labels",
        "nuswide: 2,100 queries of test.txt, trained on database.txt, 21 labels",
        "nuswide_10500: 2,100 queries of test.txt, trained on train_10500.txt, 21 labels",
    ]


@pytest.mark.parametrize("place", ["flickr25k/mirflickr", "flickr25k/images", "flickr25k"])
def test_photos_of_flickr25k_lie_in_any_of_three_places(tmp_path, place):
    labels = write_flickr25k_lists(tmp_path / "flickr25k", ["im1.jpg", "im2.jpg"])
    write_photos(tmp_path / place, ["im1.jpg", "im2.jpg"])
    query = photo_sets.read_photos("flickr25k", "query", tmp_path)
    # Rows 14711 and 21079 of the lists, both odd.
    assert query.paths[:2] == [f"{tmp_path}/{place}/im2.jpg"] * 2
    np.testing.assert_array_equal(query.labels[:2], labels[[14711, 21079]])


def test_lists_may_lie_in_data_dir_itself(small_nuswide, monkeypatch):
    monkeypatch.chdir(small_nuswide / "nuswide")
    query = photo_sets.read_photos("nuswide", "query", ".")
    assert query.paths[:3] == ["images/a/1.jpg", "images/a/2.jpg", "images/b/1.jpg"]


def test_the_first_place_with_the_first_photo_is_taken(small_nuswide):
    write_photos(small_nuswide / "nuswide", ["a/1.jpg", "a/2.jpg", "b/1.jpg"])
    query = photo_sets.read_photos("nuswide", "query", small_nuswide)
    assert query.paths[0] == f"{small_nuswide}/nuswide/a/1.jpg"


def test_other_ends_of_lines_and_blanks_say_the_same(small_nuswide):
    path = small_nuswide / "nuswide/test.txt"
    before = photo_sets.read_photos("nuswide", "query", small_nuswide)
    changed = path.read_text().replace(" ", "\t").replace("\n", " \r\n")
    path.write_bytes(b"\xef\xbb\xbf" + changed.encode())
    after = photo_sets.read_photos("nuswide", "query", small_nuswide)
    assert after.ids == before.ids
    np.testing.assert_array_equal(after.labels, before.labels)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"a/1.jpg {ZEROS_AND_ONE} 0", "23 columns, not 22; fix it: a name without blanks and"),
        (f"a/1.jpg {ZEROS_AND_ONE[2:]}", "21 columns, not 22; fix it"),
        (f"a/1.jpg {ZEROS_AND_ONE[:-1]}2", "column 22 is 2, not 0 or 1; fix it"),
        (f"a/1.jpg {ZEROS_AND_ONE[:-1]}10", "column 22 is 10, not 0 or 1; fix it"),
        (f"a/1.jpg x{ZEROS_AND_ONE[1:]}", "column 2 is x, not 0 or 1; fix it"),
        (f" {ZEROS_AND_ONE}", "the name is empty; fix it"),
        ("", "0 columns, not 22; fix it"),
    ],
)
def test_bad_line_is_named_by_its_number(small_nuswide, text, said):
    path = small_nuswide / "nuswide/test.txt"
    replace_line(path, 1700, text)
    assert refused("nuswide", "query", small_nuswide).startswith(f"{path} line 1700: {said}")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("img.txt", "", "the name is empty; fix it: a name without blanks"),
        ("img.txt", "my photo.jpg", "2 columns, not 1; fix it: a name without blanks"),
        ("targets.txt", "0 1 0", "3 columns, not 24; fix it: 24 columns of 0 or 1"),
        ("targets.txt", " ".join("0" * 23 + "?"), "column 24 is ?, not 0 or 1; fix it"),
    ],
)
def test_bad_line_of_flickr25k_is_named(tmp_path, file, text, said):
    write_flickr25k_lists(tmp_path, ["im1.jpg"])
    replace_line(tmp_path / file, 25_000, text)
    assert refused("flickr25k", "train", tmp_path) == f"{tmp_path / file} line 25000: {said}"


def test_lists_that_do_not_belong_together_are_refused(tmp_path):
    write_flickr25k_lists(tmp_path, ["im1.jpg"])
    lines = (tmp_path / "targets.txt").read_text().splitlines(keepends=True)
    (tmp_path / "targets.txt").write_text("".join(lines[1:]))
    assert "img.txt has 25000 lines and targets.txt 24999" in refused(
        "flickr25k", "train", tmp_path
    )


@pytest.mark.parametrize("found", [0, 2099, 2101])
def test_another_number_of_lines_is_another_protocol(small_nuswide, found):
    path = small_nuswide / "nuswide/test.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join((lines + lines)[:found]))
    said = f"{path}: {found} lines, but the protocol has 2100; take the list as published"
    assert refused("nuswide", "query", small_nuswide) == said


def test_list_that_is_no_text_is_refused(small_nuswide):
    path = small_nuswide / "nuswide/test.txt"
    path.write_bytes(b"\xff\xd8\xff\xe0 JFIF")
    message = refused("nuswide", "query", small_nuswide)
    assert message.startswith(f"{path}: cannot be read ('utf-8'")


def test_missing_photos_are_counted_and_the_first_named(small_nuswide):
    folder = small_nuswide / "nuswide"
    (folder / "images/a/2.jpg").unlink()
    (folder / "images/b/1.jpg").unlink()
    (folder / "images/b/1.jpg").mkdir()  # is there, and no file
    assert refused("nuswide", "query", small_nuswide) == (
        f"{folder}/test.txt line 2: no photo {folder}/images/a/2.jpg; 1400 of 2100 are missing; "
        f"put them into {folder} or {folder}/images"
    )


def test_missing_first_photo_is_missed_in_the_folder_of_photos(small_nuswide):
    folder = small_nuswide / "nuswide"
    (folder / "images/a/1.jpg").unlink()
    message = refused("nuswide", "query", small_nuswide)
    assert f"test.txt line 1: no photo {folder}/images/a/1.jpg; 700 of 2100 are" in message


def test_no_photos_at_all(tmp_path):
    write_flickr25k_lists(tmp_path, ["im1.jpg"])
    message = refused("flickr25k", "query", tmp_path)
    assert f"img.txt line 1: no photo {tmp_path}/im1.jpg; 25000 of 25000 are missing" in message
    assert message.endswith(
        f"put them into {tmp_path} or {tmp_path}/images or {tmp_path}/mirflickr"
    )


def test_links_count_where_they_lead_to_a_photo(small_nuswide):
    photo = small_nuswide / "nuswide/images/a/2.jpg"
    photo.rename(small_nuswide / "elsewhere.jpg")
    photo.symlink_to(small_nuswide / "elsewhere.jpg")
    assert len(photo_sets.read_photos("nuswide", "query", small_nuswide).ids) == 2100
    (small_nuswide / "elsewhere.jpg").unlink()
    assert "a/2.jpg; 700 of 2100 are missing" in refused("nuswide", "query", small_nuswide)


def test_data_dir_is_asked_for(tmp_path):
    assert refused("nuswide_10500", "train", "") == (
        "--data_dir=: nuswide_10500 needs a folder of lists and photos"
    )
    missing = tmp_path / "none"
    assert refused("flickr25k", "train", missing).startswith(
        f"--data_dir={missing}: no such folder"
    )
    assert f"{tmp_path}/img.txt: no such list" in refused("flickr25k", "train", tmp_path)


def test_lists_are_read_without_tensorflow():
    code = "import sys; from hqc_tf.data import photo_sets; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
