"""hqc_tf.prepare: restored gzip headers, the Debian package, and the messages without data."""

import gzip
import hashlib
import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from hqc_tf import prepare
from hqc_tf.errors import UserError
from tests.support import ROOT
from tests.support.photo_folders import write_nuswide_list, write_photos

DEBIAN_DIRS = [prepare.DEBIAN_DIR, ROOT / "data/debian"]  # the second is `make data`'s


@pytest.fixture
def unreachable_host(monkeypatch):
    """A machine without a network and without apt-get."""
    monkeypatch.setenv("PATH", "")

    def refuse(url, timeout):
        raise OSError(f"no way to {url} in {timeout} s")

    monkeypatch.setattr(prepare.urllib.request, "urlopen", refuse)


def bare_gzip(content, flags=0):
    packed = bytearray(gzip.compress(content, mtime=1591347949))
    packed[3] = flags
    return bytes(packed)


def write_prepared(data_dir, dataset="fashion_mnist", version="3.0.1"):
    folder = data_dir / dataset / version
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    return folder


def run_command(*arguments):
    command = [sys.executable, "-m", "hqc_tf.prepare", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)


def test_restored_header_holds_name_and_time():
    bare = bare_gzip(b"ten coats")
    restored = prepare.restore_gzip_header(bare, "coats-idx3-ubyte", 0x01020304)
    assert restored[:8] == b"\x1f\x8b\x08\x08\x04\x03\x02\x01"
    assert restored[8:10] == bare[8:10]
    assert restored[10:27] == b"coats-idx3-ubyte\x00"
    assert restored[27:] == bare[10:]
    assert gzip.decompress(restored) == b"ten coats"


def test_header_with_a_name_stays():
    named = prepare.restore_gzip_header(bare_gzip(b"ten coats"), "coats", 7)
    assert prepare.restore_gzip_header(named, "other", 8) == named


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "coats.gz is no gzip file"),
        (b"\x1f\x8b\x08\x00", "coats.gz is no gzip file"),
        (b"PK\x03\x04" + bytes(20), "coats.gz is no gzip file"),
        (bare_gzip(b"ten coats", flags=0x04), "coats.gz has gzip flags 0x04"),
    ],
)
def test_header_of_another_kind_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        prepare.restore_gzip_header(content, "coats", 7)


def test_restored_debian_files_have_the_registered_sums(tmp_path):
    debian_dir = next((path for path in DEBIAN_DIRS if prepare.has_debian_files(path)), None)
    if debian_dir is None:
        pytest.skip(
            "Debian's package dataset-fashion-mnist is neither installed nor in data/debian"
        )
    import tensorflow_datasets as tfds

    prepare.restore_debian_files(debian_dir, tmp_path)
    registered = tfds.builder_cls("fashion_mnist").url_infos.values()
    assert {info.filename: info.checksum for info in registered} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()
    }


def test_debian_files_count_only_together(tmp_path):
    *first, last = prepare.FASHION_MNIST_MTIMES
    for name in first:
        (tmp_path / name).touch()
    assert not prepare.has_debian_files(tmp_path)
    (tmp_path / last).touch()
    assert prepare.has_debian_files(tmp_path)


APT_GET = """
echo "$@" >> calls-of-apt-get; cp calls-of-apt-get "$0.calls"
case "$*" in *update) touch "$0.updated"; exit;; esac
[ -e "$0.updated" ] || { echo "E: Unable to locate" "package" >&2; exit 100; }
touch dataset-fashion-mnist_0.0~git_all.deb
"""
DPKG_DEB = """
[ "$*" = "-x dataset-fashion-mnist_0.0~git_all.deb ." ] || exit 9
mkdir -p ./usr/share/datasets/fashion-mnist; cd ./usr/share/datasets/fashion-mnist
for name in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do
    echo $name > $name-ubyte.gz
done
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Folder of an apt-get and a dpkg-deb that come first on PATH; the package is not known."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in {"apt-get": APT_GET, "dpkg-deb": DPKG_DEB}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    return folder


def test_debian_package_is_fetched_into_its_folder(tmp_path, programs):
    (programs / "apt-get.updated").touch()
    assert prepare.fetch_debian_files(tmp_path / "data/debian") == ""
    assert prepare.has_debian_files(tmp_path / "data/debian")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["debian"]
    assert "download dataset-fashion-mnist" in (programs / "apt-get.calls").read_text()


def test_only_root_updates_the_lists_of_packages(tmp_path, programs, monkeypatch):
    assert prepare.fetch_debian_files(tmp_path / "debian") == "E: Unable to locate package"
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert prepare.fetch_debian_files(tmp_path / "debian") == ""
    calls = (programs / "apt-get.calls").read_text().splitlines()
    assert [line.split()[-2:] for line in calls] == [
        ["download", "dataset-fashion-mnist"],
        ["Acquire::http::Timeout=20", "update"],
        ["download", "dataset-fashion-mnist"],
    ]
    assert prepare.has_debian_files(tmp_path / "debian")


@pytest.mark.parametrize("script", ["exit 1", "true", "mkdir -p usr/share/datasets"])
def test_package_that_does_not_unpack_leaves_nothing(tmp_path, programs, script):
    (programs / "apt-get.updated").touch()
    (programs / "dpkg-deb").write_text(f"#!/bin/sh\n{script}\n")
    assert prepare.fetch_debian_files(tmp_path / "debian")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_folder_that_cannot_be_written_says_why(tmp_path, programs):
    (programs / "apt-get.updated").touch()
    (tmp_path / "file").touch()
    assert "file" in prepare.fetch_debian_files(tmp_path / "file/debian")


def test_without_apt_get_nothing_is_fetched(tmp_path, unreachable_host):
    assert prepare.fetch_debian_files(tmp_path / "debian") == ""
    assert list(tmp_path.iterdir()) == []


def test_failed_fetch_falls_back_to_the_download(tmp_path, programs, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "_check_connection", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare.prepare("fashion_mnist", tmp_path / "tfds", debian_dir=tmp_path / "debian")
    said = "dataset-fashion-mnist not fetched: E: Unable to locate package; trying TFDS\n"
    assert capsys.readouterr().err.endswith(said)


def test_prepared_data_set_is_found_without_tensorflow(tmp_path):
    folder = write_prepared(tmp_path)
    code = (
        "import sys; from hqc_tf import prepare\n"
        f"print(prepare.prepare('fashion_mnist', {str(tmp_path)!r}))\n"
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"{(folder, False)}\n"


def test_command_says_that_data_is_there(tmp_path):
    folder = write_prepared(tmp_path)
    done = run_command("--dataset=fashion_mnist", f"--data_dir={tmp_path}")
    assert (done.returncode, done.stdout) == (0, f"fashion_mnist already prepared in {folder}\n")


def test_broken_off_preparation_is_not_taken_for_data(tmp_path):
    write_prepared(tmp_path, version="incomplete.4XR72E_3.0.1")
    (tmp_path / "fashion_mnist/3.0.1").mkdir()
    assert prepare.find_prepared("fashion_mnist", tmp_path) is None


@pytest.mark.parametrize(
    "dataset", ["fashion_mnits", "", "cifar10_protocol1", "nuswide_10500", "fashion_mnist:9.9"]
)
def test_unknown_data_set_is_named_and_the_known_ones_too(tmp_path, dataset):
    with pytest.raises(UserError) as caught:
        prepare.prepare(dataset, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"dataset={dataset}: TFDS has no data set of this name")
    assert "fashion_mnist, cifar10, flickr25k and nuswide are prepared here" in message


def test_a_data_set_with_configurations_is_known(tmp_path, unreachable_host):
    with pytest.raises(UserError, match="dataset=imagenet_resized: .* cannot be reached"):
        prepare.prepare("imagenet_resized/8x8", tmp_path)
    message = (
        "imagenet_resized/9x9: TFDS has no data set of this name .*BuilderConfig 9x9 not found"
    )
    with pytest.raises(UserError, match=message):
        prepare.prepare("imagenet_resized/9x9", tmp_path)


def test_command_fails_in_one_line(tmp_path):
    done = run_command("--dataset=fashion_mnits", f"--data_dir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: dataset=fashion_mnits: TFDS has no")
    assert "Traceback" not in done.stderr


def test_no_source_says_what_to_install_or_place(tmp_path, unreachable_host):
    with pytest.raises(UserError) as caught:
        prepare.prepare("fashion_mnist", tmp_path / "tfds", debian_dir=tmp_path)
    message = str(caught.value)
    assert f"dataset-fashion-mnist are not in {tmp_path}: install it" in message
    assert "--debian_dir" in message
    assert "\n" not in message
    assert not (tmp_path / "tfds").exists()


def test_no_source_of_another_data_set_says_where_it_belongs(tmp_path, unreachable_host):
    with pytest.raises(UserError, match="cannot be reached") as caught:
        prepare.prepare("cifar10", tmp_path)
    assert str(caught.value).endswith(f"place the prepared data set in {tmp_path / 'cifar10'}")


def test_command_prepares_photos_and_names_the_splits(tmp_path):
    write_nuswide_list(tmp_path / "photos", "test", ["a/1.jpg", "b/1.jpg"])
    write_photos(tmp_path / "photos/images", ["a/1.jpg", "b/1.jpg"])
    places = [f"--manual_dir={tmp_path / 'photos'}", f"--data_dir={tmp_path / 'tfds'}"]
    done = run_command("--dataset=nuswide", *places)
    folder = tmp_path / "tfds/nuswide/1.0.0"
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"\nnuswide prepared in {folder}\nsplits: test\n")
    (split,) = json.loads((folder / "dataset_info.json").read_text())["splits"]
    assert split["shardLengths"] == ["2100"]
    assert prepare.prepare("nuswide", tmp_path / "tfds") == (folder, False)


def test_photos_have_to_be_placed(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("", tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(UserError) as caught:
            prepare.prepare("flickr25k", tmp_path / "tfds", manual_dir=str(folder))
        message = str(caught.value)
        assert message.startswith(f"manual_dir={folder}: no folder, or an empty one; name another.")
        assert "manual_dir holds img.txt, targets.txt in flickr25k/" in message
        assert "\n" not in message


@pytest.mark.parametrize("error", ["NotFoundError", "AssertionError", "FileNotFoundError"])
def test_a_file_that_a_data_set_misses_is_one_line(tmp_path, error):
    class Manual(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = """
        manual_dir holds a.zip,
        of the authors.
        """

        def _info(self):
            features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            path = dl_manager.manual_dir / "a.zip"
            if error == "NotFoundError":
                tf.io.read_file(str(path))
            elif error == "AssertionError":
                raise AssertionError(f"You must download a.zip to {path}\nby hand")
            path.read_bytes()

        def _generate_examples(self):
            yield from ()

    (tmp_path / "manual").mkdir()
    (tmp_path / "manual/b.zip").write_bytes(b"another")
    with pytest.raises(UserError) as caught:
        prepare._prepare_from_manual(Manual(data_dir=tmp_path / "tfds"), str(tmp_path / "manual"))
    message = str(caught.value)
    assert message.startswith(f"manual_dir={tmp_path}/manual: ") and "a.zip" in message
    fix = "; put there what is missing. manual_dir holds a.zip, of the authors."
    assert message.endswith(fix) and "\n" not in message


def test_lists_are_asked_for_in_one_line(tmp_path):
    (tmp_path / "photos/nuswide").mkdir(parents=True)
    with pytest.raises(
        UserError, match="nuswide: none of database.txt, .* is there; put"
    ) as caught:
        prepare.prepare("nuswide", tmp_path / "tfds", manual_dir=str(tmp_path / "photos"))
    assert "\n" not in str(caught.value)
    assert prepare.find_prepared("nuswide", tmp_path / "tfds") is None


def test_files_with_other_content_are_refused(tmp_path):
    for name in prepare.FASHION_MNIST_MTIMES:
        (tmp_path / name).write_bytes(bare_gzip(b"no coats"))
    with pytest.raises(UserError, match="not the files that TFDS has registered"):
        prepare.prepare("fashion_mnist", tmp_path / "tfds", debian_dir=tmp_path)
    assert prepare.find_prepared("fashion_mnist", tmp_path / "tfds") is None


def test_files_that_are_no_gzip_are_refused(tmp_path):
    for name in prepare.FASHION_MNIST_MTIMES:
        (tmp_path / name).write_bytes(b"404: not found")
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz is no gzip"):
        prepare.prepare("fashion_mnist", tmp_path / "tfds", debian_dir=tmp_path)
