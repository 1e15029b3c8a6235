"""Makes a data set in TFDS form, once: `python -m hqc_tf.prepare --dataset=fashion_mnist`.

Fashion-MNIST comes from Debian's package dataset-fashion-mnist where its files are at hand, so
that a machine that reaches a package mirror but not the data set's own host has real images too.
FLICKR25K and NUS-WIDE are made from the lists and photos in `--manual_dir`. Everything else, and
Fashion-MNIST without the package, is TFDS's own download.
"""

import json
import pathlib
import struct
import sys
import tempfile
import urllib.request

from absl import flags

from hqc_tf import commands
from hqc_tf.errors import UserError

DEBIAN_DIR = "/usr/share/datasets/fashion-mnist"

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


def restore_gzip_header(content, name, mtime):
    """Returns a gzip file with the original name and time in its header, its data untouched.

    Args:
        content: bytes of a gzip file. Where its header has a name it is returned as it is, so
            that the files as first published serve as well.
        name: the original file's name, without .gz.
        mtime: the original file's time of change, in seconds since 1970.

    Raises:
        ValueError: content is no gzip file, or its header has other optional fields.
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


def has_debian_files(debian_dir):
    """Says whether all four files of Debian's package dataset-fashion-mnist lie in debian_dir."""
    return all((pathlib.Path(debian_dir) / name).is_file() for name in FASHION_MNIST_MTIMES)


def restore_debian_files(debian_dir, output_dir):
    """Writes the four files of Debian's package to output_dir as they were first published.

    Raises:
        ValueError: a file is none that `restore_gzip_header` can restore.
    """
    for name, mtime in FASHION_MNIST_MTIMES.items():
        content = (pathlib.Path(debian_dir) / name).read_bytes()
        restored = restore_gzip_header(content, name.removesuffix(".gz"), mtime)
        (pathlib.Path(output_dir) / name).write_bytes(restored)


def find_prepared(dataset, data_dir):
    """Returns the folder of the prepared data set, or None.

    TFDS writes to `incomplete.*` beside the version's folder and renames at the end, so a version's
    folder with a dataset_info.json is whole.
    """
    found = pathlib.Path(data_dir, dataset).glob("[0-9]*.*.*/dataset_info.json")
    return max((path.parent for path in found), default=None)


def prepare(dataset, data_dir, debian_dir=DEBIAN_DIR, manual_dir=""):
    """Makes `tfds.load(dataset, data_dir=data_dir, download=False)` work.

    Args:
        dataset: a data set's name in TFDS, such as fashion_mnist or cifar10.
        data_dir: folder of the prepared data sets.
        debian_dir: folder with the files of Debian's package dataset-fashion-mnist, if there.
        manual_dir: folder with what the user has to place, for data sets that TFDS does not fetch;
            `hqc_tf.data.photo_builders` says what that is for flickr25k and nuswide.

    Returns:
        (folder, new): the data set's folder, and whether this call made it.

    Raises:
        UserError: TFDS does not know the data set, its files are not the registered ones,
            or they can neither be found nor downloaded; lists or photos are not as they should be.
        OSError: data_dir cannot be written to, or a download broke off.
    """
    folder = find_prepared(dataset, data_dir)
    if folder:
        return folder, False
    builder = _builder(dataset, data_dir)
    if dataset == "fashion_mnist" and has_debian_files(debian_dir):
        _prepare_from_debian(builder, debian_dir)
    elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        _prepare_from_manual(builder, manual_dir)
    else:
        _check_connection(builder, debian_dir)
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir), True


def _builder(dataset, data_dir):
    # Imported late: a data set already prepared need not wait for TFDS and TensorFlow.
    import tensorflow_datasets as tfds

    from hqc_tf.data import photo_builders  # noqa: F401  (TFDS then knows the photo sets)

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if dataset not in tfds.list_builders(with_community_datasets=False):
        raise UserError(
            f"dataset={dataset}: TFDS has no data set of this name; fashion_mnist, cifar10, "
            "flickr25k and nuswide are prepared here, each for all of its protocols"
        )
    return tfds.builder(dataset, data_dir=str(data_dir))


def _prepare_from_debian(builder, debian_dir):
    import tensorflow_datasets as tfds

    # All that TFDS writes besides the data set itself goes where it is deleted afterwards.
    with tempfile.TemporaryDirectory() as scratch:
        download = tfds.download.DownloadConfig(manual_dir=scratch)
        try:
            restore_debian_files(debian_dir, scratch)
        except ValueError as error:
            raise _unregistered_files(debian_dir, error) from error
        try:
            builder.download_and_prepare(download_dir=scratch, download_config=download)
        except tfds.core.download.download_manager.NonMatchingChecksumError as error:
            raise _unregistered_files(debian_dir, "their SHA-256 sums differ") from error


def _prepare_from_manual(builder, manual_dir):
    import tensorflow_datasets as tfds

    folder = pathlib.Path(manual_dir)
    if not manual_dir or not folder.is_dir() or not any(folder.iterdir()):
        placed = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise UserError(
            f"manual_dir={manual_dir}: no folder, or an empty one; name another. {placed}"
        )
    download = tfds.download.DownloadConfig(manual_dir=manual_dir)
    with tempfile.TemporaryDirectory() as scratch:
        builder.download_and_prepare(download_dir=scratch, download_config=download)


def _unregistered_files(debian_dir, reason):
    return UserError(
        f"debian_dir={debian_dir}: not the files that TFDS has registered ({reason}); install "
        "Debian's package dataset-fashion-mnist afresh, or name another folder as --debian_dir"
    )


def _check_connection(builder, debian_dir):
    """Asks the download's host for a sign of life, as TFDS itself tries for minutes."""
    for url in list(builder.url_infos or ())[:1]:
        try:
            urllib.request.urlopen(url, timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise UserError(_no_source(builder, url, reason, debian_dir)) from error


def _no_source(builder, url, reason, debian_dir):
    if builder.name == "fashion_mnist":
        mend = (
            f"the files of Debian's package dataset-fashion-mnist are not in {debian_dir}: "
            "install it, or give the folder of its four .gz files (or the ones that Zalando "
            "published) as --debian_dir"
        )
    else:
        mend = f"place the prepared data set in {pathlib.Path(builder.data_dir).parent}"
    return f"dataset={builder.name}: {url} cannot be reached ({reason}); {mend}"


def define_flags():
    """Defines this command's flags; by a call, as `hqc_tf.config` has flags of the same names."""
    flags.DEFINE_string("dataset", "fashion_mnist", "The data set's name in TFDS.")
    flags.DEFINE_string("data_dir", "data/tfds", "Folder of the prepared data sets.")
    flags.DEFINE_string(
        "debian_dir", DEBIAN_DIR, "Folder with the files of Debian's package dataset-fashion-mnist."
    )
    flags.DEFINE_string(
        "manual_dir", "", "Folder with the lists and photos of flickr25k or nuswide."
    )


def main(rest):
    values = flags.FLAGS
    if rest:
        raise UserError(f"{' '.join(rest)}: no flag; this command takes only flags")
    try:
        folder, new = prepare(values.dataset, values.data_dir, values.debian_dir, values.manual_dir)
    except OSError as error:
        raise UserError(f"{error}; try again, or see to {values.data_dir}") from error
    print(f"{values.dataset} {'prepared' if new else 'already prepared'} in {folder}")
    if new:
        splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
        print("splits:", ", ".join(split["name"] for split in splits))


if __name__ == "__main__":
    define_flags()
    commands.run(main)
