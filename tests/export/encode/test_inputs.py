"""What `--input` names: the images of each shard, in order, and why some cannot be read."""

import os
import pathlib
import pickle
import re
import threading

import numpy as np
import pytest
import tensorflow as tf

from export.codes import start
from export.encode import inputs
from export.encode.inputs import make_plan, read
from hqc_tf.data import catalog, decoding, folder
from hqc_tf.data.batches import read_pixels
from hqc_tf.data.folder import READERS, overlapped
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError
from tests.support.pixels import random_pixels


def begin(plan, folder):
    """The plan once `folder` is begun with it, as another process gets it."""
    encoder = {"fingerprint": "abc", "path": "serving/hqc/1"}
    codebooks = np.zeros([2, 4, 3], np.float32)
    start(folder, codebooks, encoder, len(plan.shards), plan.job, plan.names)
    return pickle.loads(pickle.dumps(plan.shards))


def read_all(source, folder, **options):
    parts = begin(make_plan(source, folder, **options), folder)
    return [item for part in parts for item in read(part)]


def write_records(path, features):
    """Writes a TFRecord file of examples, or of bytes where they are no dict."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as file:
        for each in features:
            file.write(each if isinstance(each, bytes) else example(each))


def example(features):
    made = tf.train.Example()
    for name, values in features.items():
        values = values if isinstance(values, list) else [values]
        kind = "int64_list" if isinstance(values[0], int) else "bytes_list"
        getattr(made.features.feature[name], kind).value.extend(values)
    return made.SerializeToString()


@pytest.mark.parametrize("num_shards", [1, 7, 60])
def test_a_folder_has_the_ids_and_the_order_of_the_dataset(photos, tmp_path, num_shards):
    images = catalog.load_images(f"folder:{photos}")
    items = read_all(f"folder:{photos}", tmp_path, num_shards=num_shards)
    assert [item.id for item in items] == images.ids
    for item, path in zip(items, images.paths, strict=True):
        with open(path, "rb") as file:  # noqa: PTH123
            assert (item.contents, item.reason) == (file.read(), "")


def test_names_of_every_kind_in_the_order_of_the_dataset(tmp_path):
    names = [
        "b/x.jpg",
        "b.jpg",
        "b-c/x.PNG",
        "a/b/c.gif",
        "ä.bmp",
        "new\nline.jpeg",
        "no \udcff.jpg",
    ]
    others = ["note.txt", ".jpg", "c/.png", "x.jpg.part", ".hidden/y.jpg", ".z.jpg"]
    for name in names + others:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    items = read_all(f"folder:{tmp_path}/photos", tmp_path / "codes")
    assert [item.id for item in items] == catalog.load_images(f"folder:{tmp_path}/photos").ids
    assert {item.id for item in items} == {*names}
    assert all(item.contents == os.fsencode(item.id) for item in items)


def test_a_pattern_is_the_shells_and_ids_are_the_matches(tmp_path, monkeypatch):
    for name in ["photos/a.jpg", "photos/b/c.jpg", "photos/b/d.png", "photos/.b/e.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    relative = begin(make_plan("photos/**/*.jpg", "codes"), "codes")
    absolute = make_plan(f"{tmp_path}/photos/**/*.jpg", "others")
    monkeypatch.chdir("/")
    items = [*read(relative[0])]
    assert [item.id for item in items] == ["photos/a.jpg", "photos/b/c.jpg"]
    assert [item.contents.decode() for item in items] == ["photos/a.jpg", "photos/b/c.jpg"]
    items = [*read(begin(absolute, tmp_path / "others")[0])]
    assert [item.id for item in items] == [f"{tmp_path}/photos/a.jpg", f"{tmp_path}/photos/b/c.jpg"]
    assert items[0].contents == b"photos/a.jpg"


def test_what_cannot_be_read_has_its_reason(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    (photos / "folder.jpg").mkdir(parents=True)
    (photos / "folder.jpg/inside.jpg").write_text("an image")
    (photos / "dangling.jpg").symlink_to("nowhere")
    (photos / "itself.jpg").symlink_to("itself.jpg")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "zero.jpg").symlink_to("/dev/zero")
    (photos / "large.jpg").write_bytes(bytes(11))
    monkeypatch.setattr("hqc_tf.data.folder.MAX_FILE_BYTES", 10)
    items = read_all(f"folder:{photos}", tmp_path / "codes")
    assert {item.id: item.reason for item in items} == {
        "dangling.jpg": "No such file or directory",
        "folder.jpg": "Is a directory",
        "folder.jpg/inside.jpg": "",
        "itself.jpg": "Too many levels of symbolic links",
        "large.jpg": "11 bytes, over 10",
        "pipe.jpg": "no regular file",
        "zero.jpg": "no regular file",
    }
    assert all(bool(item.contents) == (not item.reason) for item in items)


def test_without_permission_a_file_and_a_folder_are_listed(tmp_path, monkeypatch):
    """As nothing is forbidden to root, the calls answer what others would get."""
    photos = tmp_path / "photos"
    for name in ["a.jpg", "closed/b.jpg", "closed.jpg"]:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_text("an image")

    def refusing(of):
        def call(path, *arguments):
            if "closed" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return of(path, *arguments)

        return call

    monkeypatch.setattr(os, "open", refusing(os.open))
    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    plan = make_plan(f"folder:{photos}", tmp_path / "codes")
    items = [*read(begin(plan, tmp_path / "codes")[0])]
    assert [item.id for item in items] == ["a.jpg", "closed/", "closed.jpg"]
    assert [item.reason for item in items] == ["", "Permission denied", "Permission denied"]


def test_a_folder_that_is_begun_keeps_its_list(tmp_path):
    photos, codes = tmp_path / "photos", tmp_path / "codes"
    photos.mkdir()
    for name in ("a.jpg", "c.jpg"):
        (photos / name).write_text(name)
    begin(make_plan(f"folder:{photos}", codes), codes)
    (photos / "b.jpg").write_text("new")
    (photos / "c.jpg").unlink()
    items = read_all(f"folder:{photos}", codes)
    assert [(item.id, item.reason) for item in items] == [
        ("a.jpg", ""),
        ("c.jpg", "No such file or directory"),
    ]
    with pytest.raises(UserError, match="belongs to another job: what is encoded was"):
        begin(make_plan(f"{photos}/*.jpg", codes), codes)


@pytest.mark.parametrize("split", ["test[:60]", "test[1000:1060]", "test[20:30]+train[:50]"])
def test_tfds_has_the_ids_and_the_pixels_of_the_dataset(fashion_mnist_dir, tmp_path, split):
    images = catalog.load_images(f"fashion_mnist/{split}", fashion_mnist_dir)
    items = read_all(
        f"tfds:fashion_mnist/{split}", tmp_path, num_shards=4, data_dir=fashion_mnist_dir
    )
    assert [item.id for item in items] == images.ids
    for item, pixels in zip(items, images.pixels, strict=True):
        np.testing.assert_array_equal(decoding.decode_known(item.contents), pixels)


@pytest.mark.parametrize("name", ["cifar10_protocol2/query", "flickr25k/query", "nuswide"])
def test_a_data_set_with_fixed_roles_is_encoded_as_it_is_loaded(
    photos, tmp_path, monkeypatch, name
):
    files = catalog.load_images(f"folder:{photos}")
    images = Images.of_pixels(random_pixels(60, 4, 5)) if "cifar10" in name else files

    def read(role, data_dir):
        assert (role, data_dir) == (name.partition("/")[2] or "database", str(tmp_path / "data"))
        return images

    row = catalog.DataSet(read, "a protocol")
    monkeypatch.setitem(catalog.DATA_SETS, name.partition("/")[0], row)
    monkeypatch.chdir(tmp_path)
    inputs._load.cache_clear()
    items = read_all(name, "codes", num_shards=7, data_dir="data")
    inputs._load.cache_clear()
    assert [item.id for item in items] == images.ids
    for row, item in enumerate(items):
        found = decoding.decode_image(item.contents).numpy()
        np.testing.assert_array_equal(found, read_pixels(images, row))


def test_a_name_without_a_prefix_is_the_same_job(fashion_mnist_dir, tmp_path):
    source = "fashion_mnist/test[:60]"
    one, other = (
        make_plan(prefix + source, tmp_path, 4, fashion_mnist_dir) for prefix in ("", "tfds:")
    )
    assert one == other


def test_tfrecords_go_in_the_order_of_names_and_records(tmp_path):
    for part in range(3):
        features = [{"image/encoded": b"%d %d" % (part, row)} for row in range(4)]
        write_records(tmp_path / f"photos-{part}.tfrecord", features)
    source = f"tfrecord:{tmp_path}/photos-*.tfrecord"
    assert len(make_plan(source, tmp_path / "codes").shards) == 3
    items = read_all(source, tmp_path / "codes", num_shards=2)
    pairs = [(part, row) for part in range(3) for row in range(4)]
    assert [item.id for item in items] == [f"photos-{part}.tfrecord:{row}" for part, row in pairs]
    assert [item.contents for item in items] == [b"%d %d" % pair for pair in pairs]


def test_ids_are_taken_from_a_feature(tmp_path):
    names = ["a/b.jpg", "ä \udcff", 7]
    encoded = [os.fsencode(name) if isinstance(name, str) else name for name in names]
    write_records(tmp_path / "p.tfrecord", [{"jpeg": b"x", "key": name} for name in encoded])
    options = {"image_feature": "jpeg", "id_feature": "key"}
    items = read_all(f"tfrecord:{tmp_path}/p.tfrecord", tmp_path / "codes", **options)
    assert [item.id for item in items] == [*names[:2], "7"]


def test_records_without_one_image_have_their_reason(tmp_path):
    of = "image/encoded has {} values of bytes_list, not one".format
    written = [
        ({"image/encoded": b"good"}, ""),
        (b"\xff no example", "Error parsing message"),
        ({"image": b"elsewhere"}, of(0)),
        ({"image/encoded": [b"two", b"images"]}, of(2)),
        ({"image/encoded": 7}, of(0)),
        ({"image/encoded": b"also good"}, ""),
    ]
    write_records(tmp_path / "p.tfrecord", [each for each, _ in written])
    items = read_all(f"tfrecord:{tmp_path}/*.tfrecord", tmp_path / "codes")
    assert [item.id for item in items] == [f"p.tfrecord:{row}" for row in range(6)]
    assert [
        item.reason[: len(reason)] for item, (_, reason) in zip(items, written, strict=True)
    ] == [reason for _, reason in written]
    assert [item.contents for item in items if item.contents] == [b"good", b"also good"]


def test_of_a_broken_file_the_records_before_count(tmp_path):
    for name in ("a", "b", "c", "f"):
        write_records(tmp_path / f"{name}.tfrecord", [{"image/encoded": b"x" * 50}] * 5)
    whole = (tmp_path / "a.tfrecord").read_bytes()
    each = len(whole) // 5
    (tmp_path / "a.tfrecord").write_bytes(whole[: 3 * each + 9])
    (tmp_path / "f.tfrecord").write_bytes(whole[: 4 * each + 20])
    (tmp_path / "b.tfrecord").write_bytes(whole[: each + 30] + b"?" + whole[each + 31 :])
    (tmp_path / "d.tfrecord").mkdir()
    (tmp_path / "e.tfrecord").write_text("no records at all")
    (tmp_path / "f.tfrecord").rename(tmp_path / "f\udcff.tfrecord")
    items = read_all(f"tfrecord:{tmp_path}/*.tfrecord", tmp_path / "codes", num_shards=2)
    good = {"a": range(3), "b": range(1), "c": range(5), "f\udcff": range(4)}
    names = [f"{name}.tfrecord:{row}" for name in good for row in good[name]]
    assert [item.id for item in items if not item.reason] == names
    reasons = {item.id: item.reason for item in items if item.reason}
    assert [pathlib.Path(name).stem for name in reasons] == [*"abde", "f\udcff"]
    said = [*reasons.values()]
    assert said[0] == "not read from record 3 on: the file ends"
    assert said[1].startswith("not read from record 1 on: corrupted record at")
    assert said[2] == "not read from record 0 on: no such file"
    assert said[3].startswith("not read from record 0 on: truncated or damaged, a record of 82459")
    assert said[4] == (
        f"not read from record 4 on: truncated or damaged, a record of {each - 16} bytes where 4 "
        "are left"
    )
    assert not [text for text in said if "\n" in text or "{{" in text or "[Op" in text]


@pytest.mark.parametrize("length", [2**40, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize(("left", "said"), [(3, "the file ends"), (30, "where 26 are left")])
def test_a_length_beyond_the_file_is_not_believed(tmp_path, length, left, said):
    """TensorFlow took so much memory first that the process ended; the check of 2^40 is right."""
    path = tmp_path / "p.tfrecord"
    write_records(path, [{"image/encoded": b"x"}] * 2)
    with path.open("ab") as file:
        file.write(length.to_bytes(8, "little") + bytes.fromhex("aa3d6be4") + bytes(left))
    items = read_all(f"tfrecord:{path}", tmp_path / "codes")
    assert [item.contents for item in items] == [b"x", b"x", b""]
    assert items[-1].id == str(path)
    assert re.fullmatch(f"not read from record 2 on: .*{said}", items[-1].reason)


def test_a_record_larger_than_any_image_is_not_read(tmp_path, monkeypatch):
    write_records(tmp_path / "p.tfrecord", [{"image/encoded": b"x" * size} for size in (9, 999)])
    monkeypatch.setattr("hqc_tf.data.records.MAX_FILE_BYTES", 500)
    items = read_all(f"tfrecord:{tmp_path}/p.tfrecord", tmp_path / "codes")
    assert items[0].contents == b"x" * 9
    assert re.fullmatch(
        r"not read from record 1 on: a record of 10\d\d bytes, over 500", items[1].reason
    )


@pytest.mark.parametrize("kind", ["GZIP", "ZLIB"])
def test_a_compressed_file_of_records_is_said_to_be_one(tmp_path, kind):
    with tf.io.TFRecordWriter(str(tmp_path / "p.tfrecord"), kind) as file:
        for row in range(20):
            file.write(example({"image/encoded": b"x" * row}))
    items = read_all(f"tfrecord:{tmp_path}/p.tfrecord", tmp_path / "codes")
    said = f"not read from record 0 on: compressed with {kind}; decompress it"
    assert [item.reason for item in items] == [said]


def test_large_files_are_read_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("hqc_tf.data.folder.LARGE_BYTES", 100)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(9):
        (photos / f"{number}.jpg").write_bytes(b"\xff\xd8\xff" + bytes(200))
    (photos / "page.png").write_bytes(b"<html>" + bytes(200))
    read_ahead = []
    read_item = folder._read_item

    def noting(root, name, most):
        item = read_item(root, name, most)
        read_ahead.append(name) if item else None
        return item

    monkeypatch.setattr(folder, "_read_item", noting)
    items = folder.read_items(photos, sorted(path.name for path in photos.iterdir()))
    for number in range(9):
        assert next(items).id == f"{number}.jpg"
        assert [name for name in read_ahead if name[0].isdigit()] == [
            f"{row}.jpg" for row in range(number + 1)
        ]
    last = next(items)
    assert (last.contents, last.reason) == (
        b"",
        "no JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF or HEIC image",
    )


def test_a_large_file_is_alone_in_its_batch_and_encoded_alone(monkeypatch):
    monkeypatch.setattr("hqc_tf.data.folder.LARGE_BYTES", 100)
    items = [folder.Item(str(row), bytes(200 if row in (2, 3, 6) else 9)) for row in range(8)]
    held = [*folder.in_batches(iter(items), 4)]
    assert [[item.id for item in batch] for batch in held] == [
        ["0", "1"], ["2"], ["3"], ["4", "5"], ["6"], ["7"],
    ]  # fmt: skip
    running, lock = [], threading.Lock()

    def work(batch):
        with lock:
            running.append(batch[0].id)
            assert len(running) == 1 or batch[0].id not in ("2", "3", "6")
        threading.Event().wait(0.002)
        with lock:
            running.remove(batch[0].id)
        return batch[0].id

    ordered = overlapped(work, held, 2, lambda batch: len(batch[0].contents) > 100)
    assert [*ordered] == ["0", "2", "3", "4", "6", "7"]


def test_images_of_a_shard_are_read_only_as_they_are_asked_for(photos, tmp_path, monkeypatch):
    opened = []
    open_file = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest: opened.append(path) or open_file(path, *rest)
    )
    part = begin(make_plan(f"folder:{photos}", tmp_path), tmp_path)[0]
    assert isinstance(part, inputs.Files)
    for _, _ in zip(range(5), read(part), strict=False):
        pass
    assert len(opened) <= 6 + READERS


def test_overlapped_keeps_order_and_bounds_what_runs():
    running, most, lock = [0], [0], threading.Lock()

    def work(value):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.001 * (value % 5))
        with lock:
            running[0] -= 1
        return -value

    assert [*overlapped(work, range(200), 4)] == [-value for value in range(200)]
    assert 1 < most[0] <= 4
    with pytest.raises(ZeroDivisionError):
        list(overlapped(lambda value: 1 / value, [1, 0, 1], 2))


def test_how_many_images_there_are(photos, fashion_mnist_dir, tmp_path):
    plan = make_plan(f"folder:{photos}", tmp_path, num_shards=7)
    assert inputs.count_images(plan.shards) == 60
    assert inputs.count_images(plan.shards[2:4]) in (17, 18)
    plan = make_plan("tfds:fashion_mnist/test[:33]", tmp_path, 4, data_dir=fashion_mnist_dir)
    assert inputs.count_images(plan.shards) == 33
    write_records(tmp_path / "a.tfrecord", [{"image/encoded": b"x"}])
    assert inputs.count_images(make_plan(f"tfrecord:{tmp_path}/*", tmp_path).shards) is None


def test_the_number_of_shards_follows_the_images(photos, tmp_path, monkeypatch):
    assert len(make_plan(f"folder:{photos}", tmp_path).shards) == 1
    monkeypatch.setattr(inputs, "IMAGES", 25)
    parts = make_plan(f"folder:{photos}", tmp_path).shards
    assert [(part.first, part.last) for part in parts] == [(0, 20), (20, 40), (40, 60)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none/*.jpg", r"none/\*.jpg: no file of this name; give a data set's name, a"),
        ("", "'': no file of this name"),
        ("folder:none", "folder:none: no such folder; name one that holds images"),
        (
            "folder:empty",
            "folder:empty: no file of this name; .* with .jpg, .* files below",
        ),
        ("empty", "empty: a folder; write folder:empty, or a pattern of files"),
        ("tfrecord:none*", r"tfrecord:none\*: no file of this name"),
        ("tfds:no_such_set/train", "dataset no_such_set: TFDS has no such data set; take"),
        ("cifar10_protocol1/test", "cifar10_protocol1/test: no such role; take one of train, data"),
        ("flickr25k", "--data_dir=empty: no such|empty/img.txt: no such list; put it there"),
        ("tfds:mnist/train", "dataset mnist: not prepared in empty; "),
        (
            "tfrecord:*.tfrecord",
            r"--image_feature=image/encoded: not in the first record .*; name one of jpeg, key$",
        ),
    ],
)
def test_an_input_that_is_nothing_is_named(tmp_path, monkeypatch, source, message):
    (tmp_path / "empty").mkdir()
    write_records(tmp_path / "p.tfrecord", [{"key": b"a", "jpeg": b"x"}])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        make_plan(source, "codes", data_dir="empty")


def test_what_does_not_fit_the_input_is_named(photos, fashion_mnist_dir, tmp_path):
    with pytest.raises(UserError, match="--num_shards=61: there are only 60 images; lower it"):
        make_plan(f"folder:{photos}", tmp_path, num_shards=61)
    write_records(tmp_path / "p.tfrecord", [{"jpeg": b"x"}])
    source = f"tfrecord:{tmp_path}/p.tfrecord"
    with pytest.raises(UserError, match="=2: there are only 1 files, and none is divided; lower"):
        make_plan(source, tmp_path, 2, image_feature="jpeg")
    with pytest.raises(UserError, match="--id_feature=key: not in the first .*; name one of jpeg$"):
        make_plan(source, tmp_path, image_feature="jpeg", id_feature="key")
    for split, message in [("test[5:5]", "no image in it"), ("none", "split none of fashion")]:
        with pytest.raises(UserError, match=message):
            make_plan(f"tfds:fashion_mnist/{split}", tmp_path, data_dir=fashion_mnist_dir)
