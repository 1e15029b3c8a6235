"""Queries of another data set than the one that is searched, and labels of a file."""

import shutil

import numpy as np
import pytest

from hqc_tf.config import Config
from hqc_tf.data import catalog, roles
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError


@pytest.fixture
def sets(photos, tmp_path):
    """The settings of photos in sub-folders, and of some of them as queries in others."""
    images = catalog.load_images(f"folder:{photos}")
    for row in range(0, 60, 7):
        own = tmp_path / "queries" / images.label_names[images.labels[row]]
        own.mkdir(parents=True, exist_ok=True)
        shutil.copy(images.paths[row], own)
    return Config(dataset=f"folder:{photos}", queries=f"folder:{tmp_path / 'queries'}"), images


def flat(images, folder):
    """The photos of some images without sub-folders, as a data set, and their labels by id."""
    folder.mkdir()
    labels = {}
    for row, path in enumerate(images.paths):
        name = shutil.copy(path, folder).rpartition("/")[2]
        labels[name] = images.label_names[images.labels[row]]
    return f"folder:{folder}", labels


def write_csv(path, labels, head="id,label"):
    path.write_text("\n".join([head, *(f"{name},{label}" for name, label in labels.items())]))
    return str(path)


def test_all_images_are_searched_by_queries_of_another_set(sets):
    settings, images = sets
    for role in ("train", "database"):
        assert roles.load_role(settings, role).ids == images.ids
    found = roles.load_role(settings, "query")
    assert len(found) == 9
    names = [images.label_names[label] for label in found.labels]
    assert names == [name.partition("/")[0] for name in found.ids]
    less = roles.load_role(settings, "database", frozenset(images.ids[:5]))
    assert less.ids == images.ids[5:]
    queries = settings.queries
    assert roles.protocol(settings) == f"folder, queries of {queries}"


def test_labels_of_queries_are_known_by_name(sets, tmp_path):
    settings, images = sets
    (tmp_path / "queries/another").mkdir()
    shutil.copy(images.paths[0], tmp_path / "queries/another")
    found = roles.load_role(settings, "query")
    # Its number is that of no other image.
    assert found.label_names == [*images.label_names, "another"]
    row = next(row for row, name in enumerate(found.ids) if name.startswith("another/"))
    assert found.labels[row] == len(images.label_names)


def test_labels_come_from_a_file(photos, tmp_path):
    images = catalog.load_images(f"folder:{photos}")
    dataset, labels = flat(images, tmp_path / "flat")
    file = write_csv(tmp_path / "labels.csv", {**labels, "unknown.png": "x"})
    settings = Config(dataset=dataset, labels=file)
    query, rest = (roles.load_role(settings, role) for role in ("query", "train"))
    assert (len(query), len(rest)) == (6, 54)
    for some in (query, rest):
        assert [some.label_names[n] for n in some.labels] == [labels[name] for name in some.ids]
    assert roles.protocol(settings) == "folder, 1 in 10 is a query, labels of labels.csv"
    write_csv(tmp_path / "labels.csv", {f"{name}": f" {label}" for name, label in labels.items()})
    assert roles.load_role(settings, "query").label_names == query.label_names
    by_path = {f"{tmp_path}/./flat/{name}": label for name, label in labels.items()}
    write_csv(tmp_path / "labels.csv", by_path, "\ufeffpath,label")
    again = roles.load_role(settings, "query")
    np.testing.assert_array_equal(again.labels, query.labels)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("id;label\na;b", "its columns are id;label; it must have id .or path. and label, with"),
        ("", "its columns are none; it must have"),
        ("id,label\na,\n", "line 2 has no label; give one"),
        ("id,label\na,b, c\n", "line 2 has more values than there are columns; put quotes around"),
        ("id,label\na,1\n./a,2\n", "./a is there with another label; leave one"),
        ("id,label\na,1\na,1\n", "a is there twice, last in line 3; leave one"),
        ("id,label\n0.png,1\n", "no label for 59 of the 60 images of .*[.]png, [.][.][.]"),
        ("id,label\n\xe9,1", "no CSV in UTF-8"),
        (None, "no such file; give a CSV file with the columns id and label"),
    ],
)
def test_a_file_that_gives_no_labels_is_refused(photos, tmp_path, text, error):
    dataset, _ = flat(catalog.load_images(f"folder:{photos}"), tmp_path / "flat")
    if text is not None:
        (tmp_path / "x.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=f"--labels=.*x.csv: {error}"):
        roles.load_role(Config(dataset=dataset, labels=f"{tmp_path}/x.csv"), "query")


def test_blanks_beside_labels_and_names_of_columns_count_for_nothing(tmp_path):
    (tmp_path / "x.csv").write_text("id , label \na.jpg,beach \nb.jpg,\tbeach\n")
    assert roles.read_labels(str(tmp_path / "x.csv")) == {"a.jpg": "beach", "b.jpg": "beach"}


def test_quotes_hold_a_comma_and_a_last_one_counts_for_nothing(tmp_path):
    (tmp_path / "x.csv").write_text('id,label\n"a,b.jpg", "beach, sunny"\nc,town,\n')
    found = roles.read_labels(str(tmp_path / "x.csv"))
    assert found == {"a,b.jpg": "beach, sunny", "c": "town"}


def test_queries_that_do_not_fit_are_refused(sets, photos, features, tmp_path):
    _, images = sets
    unlabeled, _ = flat(images, tmp_path / "flat")
    (tmp_path / "strange").mkdir()
    for number in range(2):
        (tmp_path / f"strange/{number}").mkdir()
        shutil.copy(images.paths[number], tmp_path / f"strange/{number}")
    searched = f"folder:{photos}"
    for dataset, queries, error in [
        (searched, unlabeled, "--queries=folder:.*flat: no labels there"),
        (unlabeled, searched, "--dataset=folder:.*flat: no labels there"),
        (searched, features, "--queries=features:.*: features, and --dataset are images; give im"),
        (
            searched,
            f"folder:{tmp_path}/strange",
            r"its labels \(0, 1\) are none of --dataset's \(c",
        ),
    ]:
        with pytest.raises(UserError, match=error):
            roles.load_role(Config(dataset=dataset, queries=queries), "query")
    with pytest.raises(UserError, match="--labels=x.csv: cifar10 has labels of its own; leave"):
        roles.load_role(Config(dataset="cifar10", labels="x.csv"), "train")


def test_features_that_do_not_fit_are_refused():
    def of(width, network=""):
        return Images.of_features(np.ones([2, width], np.float32), ["a", "b"], network=network)

    roles._check_vectors(of(3), of(3, "a"), "--queries=q")
    with pytest.raises(UserError, match="--queries=q: 4 numbers a row, and --dataset has 3; give"):
        roles._check_vectors(of(4), of(3), "--queries=q")
    with pytest.raises(UserError, match="--queries=q: of another network than --dataset; embed"):
        roles._check_vectors(of(3, "b"), of(3, "a"), "--queries=q")


def test_queries_without_labels_search_images_without(sets, tmp_path):
    _, images = sets
    dataset, _ = flat(images, tmp_path / "flat")
    shutil.copytree(tmp_path / "flat", tmp_path / "asked")
    (tmp_path / "asked/bad.png").write_bytes(b"no image")
    settings = Config(dataset=dataset, queries=f"folder:{tmp_path}/asked")
    assert len(roles.load_role(settings, "query")) == 60


def test_unreadable_queries_are_left_out_and_told_once(sets, tmp_path, capsys):
    settings, _ = sets
    (tmp_path / "queries/bad.png").write_bytes(b"no image")
    for _ in range(2):
        assert len(roles.load_role(settings, "query")) == 9
    said = capsys.readouterr().err
    assert said.count("1 of them left out, the first bad.png: no JPEG, ") == 1
