"""Folders and patterns of image files: their names, labels and roles."""

import os
import pathlib
import subprocess

import numpy as np
import pytest

from hqc_tf.data import catalog
from hqc_tf.data.folder import finds, match, read_files, walk
from hqc_tf.errors import UserError
from tests.support.pixels import encode, random_pixels, write_images


def labeled_folder(folder, counts):
    """Sub-folders named by their keys with so many images each."""
    for name, count in counts.items():
        write_images(folder / name, random_pixels(count, 4, 4))
    return f"folder:{folder}"


def test_folder_without_labels_is_all_one_set(tmp_path):
    write_images(tmp_path, random_pixels(3, 4, 4), "{}.png")
    write_images(tmp_path / "sub/deep", random_pixels(2, 4, 4), "{}.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    images = catalog.load_images(f"folder:{tmp_path}")
    assert images.ids == ["0.png", "1.png", "2.png", "sub/deep/0.PNG", "sub/deep/1.PNG"]
    assert images.paths == [str(tmp_path / name) for name in images.ids]
    assert (images.pixels, images.labels, images.label_names) == (None, None, None)
    assert len(images) == 5


def test_sub_folders_are_labels(tmp_path):
    folder = labeled_folder(tmp_path, {"dog": 2, "cat": 1, "cow/old": 2})
    images = catalog.load_images(folder)
    assert images.label_names == ["cat", "cow", "dog"]
    assert images.ids[:2] == ["cat/000.png", "cow/old/000.png"]
    np.testing.assert_array_equal(images.labels, [0, 1, 1, 2, 2])


def test_a_single_sub_folder_is_no_label(tmp_path):
    assert catalog.load_images(labeled_folder(tmp_path, {"all": 3})).labels is None


def test_every_tenth_of_a_labeled_folder_is_a_query(tmp_path):
    folder = labeled_folder(tmp_path, {"cat": 12, "dog": 13})
    everything = catalog.load_images(folder)
    query, train, database = (catalog.load_split(folder, r) for r in ("query", "train", "database"))
    assert query.ids == [everything.ids[9], everything.ids[19]]
    assert train.ids == [name for name in everything.ids if name not in query.ids]
    assert database.ids == train.ids
    np.testing.assert_array_equal(query.labels, [0, 1])
    assert len(train.labels) == len(train.paths) == 23
    assert catalog.protocol(folder) == "folder, 1 in 10 is a query"


@pytest.mark.parametrize("counts", [{".": 12}, {"cat": 4, "dog": 5}])
def test_folder_without_labels_or_with_few_images_has_no_query(tmp_path, counts):
    folder = labeled_folder(tmp_path, counts)
    assert catalog.load_split(folder, "query") is None
    assert len(catalog.load_split(folder, "train")) == sum(counts.values())
    assert len(catalog.load_split(folder, "database")) == sum(counts.values())


def test_slashes_alone_make_no_other_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("folder:a/b", "folder:./a//b/", "folder:a/./b"):
        assert catalog.parse(text) == catalog.parse("folder:a/b")
        assert catalog.absolute(text) == f"folder:{tmp_path}/a/b"
    assert catalog.parse("./a//*.jpg") == catalog.parse("a/*.jpg")
    for text in ("a/*.jpg", "cifar10", "tfrecord:a*", "tfds:cifar10/test[:5]"):
        assert catalog.absolute(text) == text


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"folder:.*none: no such folder; name one that holds"):
        catalog.load_images(f"folder:{tmp_path / 'none'}")


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "looks_like.png").mkdir()
    with pytest.raises(
        UserError, match="no image in it or below; put .jpg, .jpeg, .jpe, .jfif, .png"
    ):
        catalog.load_images(f"folder:{tmp_path}")


def write_all(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("an image")


def both(folder):
    """The names that `folder:` and a pattern of all depths give, relative to the folder."""
    found = [name.removeprefix(f"{folder}/") for name in match(f"{folder}/**/*.jpg")]
    assert sorted(walk(folder)) == found
    return [*walk(folder)]


def test_hidden_names_and_previews_are_left_out_and_counted(tmp_path, capsys):
    names = ["a/0.jpg", "b/0.jpg"]
    hidden = [".ipynb_checkpoints/0-checkpoint.jpg", "a/@eaDir/0.jpg", "a/._0.jpg"]
    write_all(tmp_path, [*names, *hidden, "__MACOSX/a/0.jpg", "b/.DS_Store"])
    assert both(tmp_path) == names
    said = "left out (hidden or preview folders: 3, hidden images: 1)\n"
    # Once each, however often they are read.
    assert capsys.readouterr().err == f"{tmp_path}/**/*.jpg: {said}folder:{tmp_path}: {said}"
    assert catalog.load_images(f"folder:{tmp_path}").label_names == ["a", "b"]
    for name in hidden:
        parent = f"{tmp_path}/{name}".rpartition("/")[0]
        assert [*match(f"{parent}/*.jpg")] or name == "a/._0.jpg"
    assert [*match(f"{tmp_path}/*/._*.jpg")] == [f"{tmp_path}/a/._0.jpg"]
    assert [*match(f"{tmp_path}/*/@*/*")] == [f"{tmp_path}/a/@eaDir/0.jpg"]


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, capsys):
    write_all(tmp_path, ["a/0.jpg"])
    assert both(tmp_path) == ["a/0.jpg"]
    assert capsys.readouterr().err == ""


def test_what_is_left_out_is_counted_by_kind_in_a_line(tmp_path, capsys):
    names = ["0.jpg", "1.JFIF", "2.jpe", "3.webp", "4.Avif", "5.tif", "6.TIFF", "7.heic"]
    others = ["b.txt", "c.TXT", "a.mov", "Thumbs.db", "README", ".x.png", ".DS_Store", "d.txt~"]
    write_all(tmp_path, [*names, *others])
    (tmp_path / "sub").mkdir()
    (tmp_path / "again").symlink_to("sub")
    for _ in range(2):
        assert [*walk(tmp_path)] == names
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"folder:{tmp_path}: left out (hidden images")
    found = dict(part.rsplit(": ", 1) for part in said[said.index("(") + 1 : -2].split(", "))
    assert found == {
        "hidden images": "1", "links to folders found elsewhere": "1", ".txt": "2", ".mov": "1",
        ".db": "1", "no suffix and no image": "1", ".txt~": "1",
    }  # fmt: skip


def test_of_many_kinds_the_most_frequent_are_named(tmp_path, capsys):
    write_all(tmp_path, [*(f"{kind}.x{kind}" for kind in range(12)), "again.x7", "0.jpg"])
    assert [*walk(tmp_path)] == ["0.jpg"]
    said = capsys.readouterr().err
    assert "left out (.x7: 2, " in said and said.endswith("other files: 4)\n")


def test_a_file_without_a_suffix_is_an_image_where_it_begins_as_one(tmp_path, photo):
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF"):
        (tmp_path / f"a {kind}").write_bytes(encode(photo, kind))
        (tmp_path / f"{kind}.bin").write_bytes(encode(photo, kind))
    write_all(tmp_path, ["notes", "folder/notes"])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("none")
    found = [*walk(tmp_path)]
    assert len(found) == 7 and {name[:2] for name in found} == {"a "}
    assert [*match(f"{tmp_path}/a*")] == [f"{tmp_path}/{name}" for name in found]


def test_suffixes_of_a_pattern_match_in_any_case(tmp_path):
    write_all(tmp_path, ["a.jpg", "b.JPG", "c.Jpg", "D.jpg", "e.jpeg", "Jpg"])
    for pattern, found in {
        "*.jpg": "abcD", "*.JPG": "abcD", "**/*.jp*g": "abcDe", "[a-c].jpG": "abc", "d.*": "",
        "*.[jJ][Pp][gG]": "abcD", "jpg": "",
    }.items():  # fmt: skip
        names = [name.removeprefix(f"{tmp_path}/")[0] for name in match(f"{tmp_path}/{pattern}")]
        assert sorted(names) == sorted(found), pattern


def test_a_folder_is_entered_once_however_many_links_lead_to_it(tmp_path):
    write_all(tmp_path, ["lib/2019/a.jpg", "other/b.jpg", "other/deep/c.jpg"])
    library = tmp_path / "lib"
    for name, to in {
        "loop": ".", "up": "..", "0": "2019", "2019/again": "../2019", "2020": "../other",
        "2021": "../other", "3": "../other/deep", "itself": "itself", "nowhere": "none",
        "b.jpg": "2019/a.jpg",
    }.items():  # fmt: skip
        (library / name).symlink_to(to)
    (tmp_path / "other/back").symlink_to(library)
    assert both(library) == ["2019/a.jpg", "2020/b.jpg", "2020/deep/c.jpg", "b.jpg"]


def test_a_pattern_is_as_deep_as_it_says(tmp_path, monkeypatch):
    names = ["0.jpg", "a/1.jpg", "a/b/2.jpg", "a/b/c/3.jpg", "a[1]/4.jpg", "a/5.png"]
    write_all(tmp_path, names)
    monkeypatch.chdir(tmp_path)
    for pattern, rows in {
        "*.jpg": [0], "*/*.jpg": [1, 4], "a/*/?.jpg": [2], "**/[1-3].jpg": [1, 2, 3],
        "a/**/b/**/*.jpg": [2, 3], "./a/*.*": [1, 5], "a[1]/4.jpg": [4], "[!a]*": [0],
        "none/*": [], "a/1.jpg": [1], "a/1.jpg/*": [], "**/c/../*": [],
    }.items():  # fmt: skip
        found = [name.removeprefix("./") for name in match(pattern)]
        assert found == [names[row] for row in rows], pattern


@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [
        ("photos", "photos/run/x.png", True),
        ("photos", "runs/x.png", False),
        ("photos", "photos/.run/x.png", False),
        ("link", "photos/run/x.png", True),
        ("photos/*.png", "photos/run/x.png", False),
        ("photos/**/*.PNG", "photos/a/run/x.png", True),
        ("photos/**", "photos/run/x.txt", True),
        ("photos/**/*.png", "photos/run/x.txt", False),
        ("photos/*/.*/*", "photos/run/.a/x", True),
        ("*/*/*.png", "photos/run/x.png", True),
        ("*.png", "photos/x.png", False),
    ],
)
def test_a_file_is_known_to_be_found_before_it_exists(
    tmp_path, monkeypatch, source, path, expected
):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("link").symlink_to("photos")
    is_folder = "*" not in source
    assert finds(source, is_folder, path) is expected
    assert finds(source, is_folder, tmp_path / path) is expected
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    found = walk(source) if is_folder else match(source)
    assert any(name.endswith(file.name) for name in found) == expected


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """A folder 2,100 folders deep, which Python itself could not remove."""
    for depth in range(2100):
        monkeypatch.chdir(tmp_path if depth == 0 else "d")
        os.mkdir("d")  # noqa: PTH102
        if depth == 1500:
            os.mknod("x.jpg")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "d"
    subprocess.run(["rm", "-r", "d"], check=True)


def test_a_folder_of_any_depth_is_walked(deep):
    """One whose path is longer than the system takes is listed as any that cannot be read."""
    unreadable, image = walk(deep)
    assert image == 1499 * "d/" + "x.jpg"
    assert unreadable.endswith("d/d/") and len(f"{deep}/{unreadable}") > 4000
    assert [*match(f"{deep}/**/*.jpg")] == [f"{deep}/{unreadable}", f"{deep}/{image}"]


def test_what_is_rejected_is_not_looked_at(deep):
    unreadable, image = walk(deep)
    found = read_files(str(deep), deep, [unreadable, image], True, frozenset([unreadable]))
    assert found.ids == [image]
    with pytest.raises(UserError, match=r"in it or below \(1 files that cannot be decoded"):
        read_files(str(deep), deep, [unreadable], True, frozenset([unreadable]))
