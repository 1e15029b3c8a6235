"""Data sets in TFDS form, made once.

Fashion-MNIST comes from Debian's package dataset-fashion-mnist, from `--debian_dir` or, without
root, from a package mirror: that serves a machine that does not reach the data set's own host.
FLICKR25K and NUS-WIDE are made from the lists and photos in `--manual_dir`. Everything else, and
Fashion-MNIST without the package, is TFDS's own download.
"""

import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import urllib.request

from hqc_tf.errors import UserError, first_line

DEBIAN_DIR = "/usr/share/datasets/fashion-mnist"
DEBIAN_PACKAGE = "dataset-fashion-mnist"

# Debian's package keeps the original deflate streams and drops name and time from the gzip headers
# (`gzip -n`). These are the times of the files that Zalando published: with them and the names put
# back, the SHA-256 sums are those that TFDS has registered (url_checksums/fashion_mnist.txt).
FASHION_MNIST_MTIMES = {
    "train-images-idx3-ubyte.gz": 1504176606,
    "train-labels-idx1-ubyte.gz": 1504176606,
    "t10k-images-idx3-ubyte.gz": 1504176627,
    "t10k-labels-idx1-ubyte.gz": 1504176627,
}

# RFC 1952: magic number and method, flags, time, level and system.
_GZIP_HEADER_BYTES = 10
_GZIP_DEFLATE = b"\x1f\x8b\x08"
_GZIP_HAS_NAME = 0x08  # FNAME
_CONNECT_SECONDS = 10
_APT_GET = ["apt-get", "-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]


def restore_gzip_header(content: bytes, name: str, mtime: int) -> bytes:
    """A gzip file with the original name, without .gz, and time in its header; its data unchanged.

    A file whose header has a name is returned as it is: it is as published. ValueError where
    content is no gzip file, or its header has other optional fields.
    """
    magic_and_method, level_and_system = content[:3], content[8:_GZIP_HEADER_BYTES]
    if magic_and_method != _GZIP_DEFLATE or len(content) < _GZIP_HEADER_BYTES:
        raise ValueError(f"{name}.gz is no gzip file")
    if content[3] == _GZIP_HAS_NAME:
        return content
    if content[3] != 0:
        raise ValueError(f"{name}.gz has gzip flags {content[3]:#04x}, not 0x00 or 0x08")
    header = magic_and_method + struct.pack("<BI", _GZIP_HAS_NAME, mtime) + level_and_system
    return header + name.encode("latin-1") + b"\0" + content[_GZIP_HEADER_BYTES:]


def has_debian_files(debian_dir: str | os.PathLike) -> bool:
    """Whether all four files of Debian's package are in `debian_dir`."""
    return all((pathlib.Path(debian_dir) / name).is_file() for name in FASHION_MNIST_MTIMES)


def fetch_debian_files(debian_dir: str | os.PathLike) -> str:
    """Unpacks Debian's package into `debian_dir`, without root, where apt-get and dpkg-deb exist.

    The folder appears complete or not at all. Returns why it could not be fetched; empty where it
    was, or where these programs are missing.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return ""
    target = pathlib.Path(debian_dir).absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".debian-") as aside:
            _download_package(aside)
            (package,) = pathlib.Path(aside).glob(f"{DEBIAN_PACKAGE}_*.deb")
            _run(["dpkg-deb", "-x", package.name, "."], aside)
            pathlib.Path(aside + DEBIAN_DIR).rename(target)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return " ".join((getattr(error, "stderr", "") or str(error)).split())
    return ""


def _download_package(folder):
    download = [*_APT_GET, "download", DEBIAN_PACKAGE]
    try:
        _run(download, folder)
    except subprocess.CalledProcessError:
        # A new container has no lists of packages; only root may fetch them.
        if os.getuid():
            raise
        _run([*_APT_GET, "update"], folder)
        _run(download, folder)


def _run(command, folder):
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def restore_debian_files(debian_dir: str | os.PathLike, output_dir: str | os.PathLike) -> None:
    """Writes the files of Debian's package as first published; as `restore_gzip_header` raises."""
    for name, mtime in FASHION_MNIST_MTIMES.items():
        content = (pathlib.Path(debian_dir) / name).read_bytes()
        restored = restore_gzip_header(content, name.removesuffix(".gz"), mtime)
        (pathlib.Path(output_dir) / name).write_bytes(restored)


def find_prepared(dataset: str, data_dir: str | os.PathLike) -> pathlib.Path | None:
    """The folder of the prepared data set, or None."""
    # TFDS writes to `incomplete.*` and renames, so a version's folder with this file is complete.
    found = pathlib.Path(data_dir, dataset).glob("[0-9]*.*.*/dataset_info.json")
    return max((path.parent for path in found), default=None)


def prepare(
    dataset: str,
    data_dir: str | os.PathLike,
    debian_dir: str | os.PathLike = DEBIAN_DIR,
    manual_dir: str = "",
) -> tuple[pathlib.Path, bool]:
    """Makes `tfds.load(dataset, data_dir=data_dir, download=False)` work.

    Returns the data set's folder, and whether this call made it.

    Args:
        dataset: a data set's name in TFDS, such as fashion_mnist or imagenet_resized/8x8.
        data_dir: folder of the prepared data sets.
        debian_dir: folder of the files of Debian's package, put there if they are missing.
        manual_dir: folder with the lists and photos that `data.photo_sets` describes.

    Raises:
        UserError: TFDS has no such data set, its files are not the registered ones or cannot be
            had, or lists or photos are not as published.
        OSError: data_dir cannot be written to, or a download broke off.
    """
    folder = find_prepared(dataset, data_dir)
    if folder:
        return folder, False
    builder = _builder(dataset, data_dir)
    if builder.is_prepared():  # its default configuration
        return pathlib.Path(builder.data_dir), False
    if dataset == "fashion_mnist" and _get_debian_files(debian_dir):
        _prepare_from_debian(builder, debian_dir)
    elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        _prepare_from_manual(builder, manual_dir)
    else:
        _check_connection(builder, debian_dir)
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir), True


def _get_debian_files(debian_dir):
    if not has_debian_files(debian_dir):
        failure = fetch_debian_files(debian_dir)
        if failure:
            print(f"{DEBIAN_PACKAGE} not fetched: {failure}; trying TFDS", file=sys.stderr)
    return has_debian_files(debian_dir)


def _builder(dataset, data_dir):
    # Imported late: a data set already prepared need not wait for TFDS and TensorFlow.
    import tensorflow_datasets as tfds

    from hqc_tf.data import photo_builders  # noqa: F401  (TFDS then knows the photo sets)

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    name, reason = re.split("[/:]", dataset)[0], ""
    if name in tfds.list_builders(with_community_datasets=False):
        try:
            return tfds.builder(dataset, data_dir=str(data_dir))
        except (ValueError, AssertionError, tfds.core.DatasetNotFoundError) as error:
            reason = f" ({first_line(error)})"
    raise UserError(
        f"dataset={dataset}: TFDS has no data set of this name{reason}; fashion_mnist, cifar10, "
        "flickr25k and nuswide are prepared here, each for all of its protocols"
    )


def _prepare_from_debian(builder, debian_dir):
    import tensorflow_datasets as tfds

    # Everything that TFDS writes beside the data set itself is deleted afterwards.
    with tempfile.TemporaryDirectory() as scratch:
        try:
            restore_debian_files(debian_dir, scratch)
        except ValueError as error:
            raise _unregistered_files(debian_dir, error) from error
        try:
            _download_and_prepare(builder, scratch, scratch)
        except tfds.core.download.download_manager.NonMatchingChecksumError as error:
            raise _unregistered_files(debian_dir, "their SHA-256 sums differ") from error


def _unregistered_files(debian_dir, reason):
    return UserError(
        f"debian_dir={debian_dir}: not the files that TFDS has registered ({reason}); install "
        f"Debian's package {DEBIAN_PACKAGE} afresh, or name another folder as --debian_dir"
    )


def _prepare_from_manual(builder, manual_dir):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder, download = pathlib.Path(manual_dir), tfds.core.download
    instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    if not manual_dir or not folder.is_dir() or not any(folder.iterdir()):
        fix = f"name another. {instructions}"
        raise UserError(f"manual_dir={manual_dir}: no folder, or an empty one; {fix}")
    # What data sets raise where a file that they read there is missing or another.
    missing = (
        tf.errors.OpError, AssertionError, FileNotFoundError, tfds.download.DownloadError,
        download.extractor.ExtractError, download.download_manager.NonMatchingChecksumError,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _download_and_prepare(builder, scratch, manual_dir)
        except missing as error:
            reason = f"manual_dir={manual_dir}: {first_line(error)}"
            raise UserError(f"{reason}; put there what is missing. {instructions}") from error


def _download_and_prepare(builder, scratch, manual_dir):
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    builder.download_and_prepare(download_dir=scratch, download_config=config)


def _check_connection(builder, debian_dir):
    """Raises UserError where the download's host does not answer; TFDS itself tries for minutes."""
    for url in list(builder.url_infos or ())[:1]:
        try:
            urllib.request.urlopen(url, timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            fix = f"place the prepared data set in {pathlib.Path(builder.data_dir).parent}"
            if builder.name == "fashion_mnist":
                fix = (
                    f"the files of Debian's package {DEBIAN_PACKAGE} are not in {debian_dir}: "
                    "install it, or give the folder of its four .gz files (or the ones that "
                    "Zalando published) as --debian_dir"
                )
            reason = f"{url} cannot be reached ({getattr(error, 'reason', error)})"
            raise UserError(f"dataset={builder.name}: {reason}; {fix}") from error
