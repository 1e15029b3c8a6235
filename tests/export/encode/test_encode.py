"""export.encode: every good image gets its code, and every bad one is listed."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf

from export import folders
from export.arrays import unpack_id
from export.codes import is_done, read_rejects, read_shards
from export.encode import __main__ as command
from export.encode import encode_plan, inputs, streaming
from export.encoder import encode_images
from hqc_tf.data import catalog, decoding
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError
from tests.support import ROOT, commands, odd_images, serving


def encode_input(encoder, source, folder, runner=streaming.encode_here, **options):
    """Runs a plan; returns ids, codes uint8 [N, M], and reason by id."""
    encode_plan(encoder, inputs.make_plan(source, folder, **options), folder, runner)
    read = [*read_shards(folder).shards]
    ids = [unpack_id(name) for shard in read for name in shard.ids.to_pylist()]
    rejects = [(reject.id, reject.reason) for reject in read_rejects(folder)]
    assert len(dict(rejects)) == len(rejects)
    return ids, np.concatenate([shard.codes for shard in read]), dict(rejects)


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def identities(paths):
    """What changes when a file is written again."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def of_files(encoder, paths):
    """The codes of image files by `encode_images`."""
    names = [*map(str, paths)]
    return encode_images(encoder, Images.of_files(names)).codes


@pytest.fixture(scope="module")
def expected(encoder, photos):
    """Ids and codes of `photos` by `encode_images`."""
    images = catalog.load_images(f"folder:{photos}")
    codes = encode_images(encoder, images).codes
    assert len(np.unique(codes, axis=0)) > 3
    return images.ids, codes


@pytest.mark.parametrize(("num_shards", "batch_size"), [(1, 256), (3, 7), (9, 1)])
def test_codes_are_those_of_the_dataset(
    encoder, photos, expected, tmp_path, num_shards, batch_size
):
    runner = functools.partial(streaming.encode_here, batch_size=batch_size)
    ids, codes, rejects = encode_input(
        encoder, f"folder:{photos}", tmp_path, runner, num_shards=num_shards
    )
    assert (ids, rejects) == (expected[0], {})
    np.testing.assert_array_equal(codes, expected[1])
    read = read_shards(tmp_path)
    np.testing.assert_array_equal(read.codebooks, encoder.codebooks)
    assert read.encoder == {
        "fingerprint": encoder.manifest["fingerprint"],
        "path": str(encoder.path),
    }


def test_all_inputs_of_the_same_images_give_the_same_codes(
    encoder, photos, expected, fashion_mnist_dir, tmp_path
):
    pattern = encode_input(encoder, f"{photos}/**/*.png", tmp_path / "pattern")
    assert [*map(pathlib.Path, pattern[0])] == [photos / name for name in expected[0]]
    np.testing.assert_array_equal(pattern[1], expected[1])
    source, options = "tfds:fashion_mnist/test[:60]", {"data_dir": fashion_mnist_dir}
    rows = [int(pathlib.Path(name).stem) for name in expected[0]]
    tfds = encode_input(encoder, source, tmp_path / "tfds", num_shards=2, **options)
    assert [tfds[0][row] for row in rows] == [f"fashion_mnist/test[:60]/{row:05d}" for row in rows]
    np.testing.assert_array_equal(tfds[1][rows], expected[1])
    with tf.io.TFRecordWriter(str(tmp_path / "p.tfrecord")) as file:
        for name in expected[0]:
            example = tf.train.Example()
            values = {"image/encoded": (photos / name).read_bytes(), "name": os.fsencode(name)}
            for key, value in values.items():
                example.features.feature[key].bytes_list.value.append(value)
            file.write(example.SerializeToString())
    source = f"tfrecord:{tmp_path}/*.tfrecord"
    records = encode_input(encoder, source, tmp_path / "records", id_feature="name")
    assert records[0] == expected[0]
    np.testing.assert_array_equal(records[1], expected[1])


def test_beam_leaves_the_same_files(encoder, photos, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed")
    from export.encode.beam import encode_on_beam

    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/note.png").write_text("no image")
    source, options = f"{tmp_path}/*/**/*.png", {"num_shards": 5}
    local = encode_input(encoder, source, tmp_path / "local", **options)
    runner = functools.partial(encode_on_beam, batch_size=256, runner="direct")
    # A shard that is done is not encoded again.
    plan = inputs.make_plan(source, tmp_path / "beam", **options)
    encode_plan(
        encoder, plan, tmp_path / "beam", lambda *a: streaming.encode_here(*a[:3], a[3][2:3])
    )
    done = identities((tmp_path / "beam").glob("codes-*"))
    assert len(done) == 1
    assert encode_input(encoder, source, tmp_path / "beam", runner, **options)[0] == local[0]
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert identities(done) == done
    assert list(local[2]) == [f"{tmp_path}/bad/note.png"]


def test_a_runner_that_beam_does_not_know_is_named(encoder, photos, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed")
    from export.encode.beam import encode_on_beam

    runner = functools.partial(encode_on_beam, batch_size=1, runner="nonsense")
    with pytest.raises(UserError, match="--runner=nonsense: Unexpected pipeline runner"):
        encode_input(encoder, f"folder:{photos}", tmp_path, runner)


def test_without_beam_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    for name in ("export.encode.beam", "hqc_tf.runners"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    values = types.SimpleNamespace(runner="direct", on_bad_image="skip", batch_size=1)
    with pytest.raises(UserError, match="Apache Beam is missing .* 'hqc-tf.beam.', or"):
        command._runner(values, [])
    values.on_bad_image = "stop"
    with pytest.raises(UserError, match="--on_bad_image=stop: needs --runner=local; give that"):
        command._runner(values, [])
    values.runner = "local"
    with pytest.raises(UserError, match="b.jpg: not a flag; put a pattern of files in q"):
        command._runner(values, ["b.jpg"])


@pytest.fixture
def odd_photos(photos, tmp_path):
    """(folder, good names, reason by bad name) of images as they come."""
    folder = tmp_path / "odd"
    return folder, *odd_images.write_odd(folder, photos)


def test_odd_images_are_encoded_and_bad_ones_listed(encoder, odd_photos, tmp_path):
    folder, good, bad = odd_photos
    ids, codes, rejects = encode_input(
        encoder, f"folder:{folder}", tmp_path / "codes", num_shards=4
    )
    assert (ids, rejects) == (good, bad)
    np.testing.assert_array_equal(codes, of_files(encoder, [folder / name for name in good]))


def test_a_bad_image_stops_it_on_request(encoder, odd_photos, tmp_path, monkeypatch):
    folder, _, bad = odd_photos
    runner = functools.partial(streaming.encode_here, batch_size=1, on_bad_image="stop")
    with pytest.raises(UserError, match="^corrupt.png: broken or cut short; fix or remove it, or"):
        encode_input(encoder, f"folder:{folder}", tmp_path / "codes", runner, num_shards=20)
    done = contents(tmp_path / "codes")
    numbers = [number for number in range(20) if is_done(tmp_path / "codes", number, 20)]
    assert numbers == list(range(sorted([*bad, *odd_photos[1]]).index("corrupt.png")))
    ids, _, rejects = encode_input(encoder, f"folder:{folder}", tmp_path / "codes", num_shards=20)
    assert (ids, rejects) == (odd_photos[1], bad)
    assert done.items() <= contents(tmp_path / "codes").items()


def test_why_too_many_pixels_are_refused(photos, monkeypatch):
    file = sorted(photos.rglob("*.png"))[0].read_bytes()
    monkeypatch.setattr(decoding, "MAX_PIXELS", 28 * 28 - 1)
    assert (
        decoding.why_refused(file)
        == "too large: sides of 28 and 28 pixels, over 0 million or 100:1"
    )


def test_of_500_mutated_images_none_is_lost(encoder, photos, tmp_path):
    folder = tmp_path / "photos"
    good, bad = odd_images.write_mutated(folder, photos, 500)
    assert 50 < len(good) < 450
    ids, codes, rejects = encode_input(
        encoder, f"folder:{folder}", tmp_path / "codes", num_shards=3
    )
    assert ids == good
    assert set(rejects) == bad and all(rejects.values())
    np.testing.assert_array_equal(codes, of_files(encoder, [folder / name for name in good]))


def test_nothing_but_bad_images(encoder, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    ids, codes, rejects = encode_input(encoder, f"folder:{tmp_path}/photos", tmp_path / "codes")
    assert (ids, codes.shape, rejects) == ([], (0, 2), {"a.jpg": "empty file"})


@pytest.fixture
def warm_encoder(encoder, tmp_path):
    """The encoder once it has been used: its graphs take memory that no images take."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"\xff\xd8\xff")
    encode_plan(encoder, inputs.make_plan(f"folder:{folder}", tmp_path / "once"), tmp_path / "once")
    return encoder


def test_memory_is_bounded_by_the_bytes_of_a_batch(warm_encoder, tmp_path, monkeypatch):
    """Of 100 files of 4 MiB no more are in memory than fill a few batches and the readers."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(bytes(4 * 2**20))
    for number in range(1, 100):
        os.link(folder / "0.jpg", folder / f"{number}.jpg")
    monkeypatch.setattr("hqc_tf.data.folder.BATCH_BYTES", 8 * 2**20)
    monkeypatch.setattr("hqc_tf.data.folder.READERS", 2)
    plan = inputs.make_plan(f"folder:{folder}", tmp_path / "codes")
    assert serving.added_memory(lambda: encode_plan(warm_encoder, plan, tmp_path / "codes")) < 150
    assert len([*read_rejects(tmp_path / "codes")]) == 100


@pytest.mark.long
def test_large_files_are_in_memory_one_at_a_time(warm_encoder, tmp_path):
    """12 sparse files that begin as images, and 12 that do not, which are not read at all."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(24):
        with (folder / f"{number:02d}.jpg").open("wb") as file:
            file.write(b"\xff\xd8\xff" if number % 2 else b"?")
            file.truncate(100 * 2**20)
    plan = inputs.make_plan(f"folder:{folder}", tmp_path / "codes")
    assert serving.added_memory(lambda: encode_plan(warm_encoder, plan, tmp_path / "codes")) < 900
    rejects = [reject.reason for reject in read_rejects(tmp_path / "codes")]
    assert rejects[::2] == ["no JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF or HEIC image"] * 12
    assert rejects[1::2] == ["broken or cut short before its size"] * 12


@pytest.mark.parametrize("signature", ["encode_bytes", "serving_default"])
def test_a_request_of_too_many_images_is_refused_before_it_takes_memory(encoder, signature):
    most = decoding.most_images(encoder.manifest["settings"]["image_size"])
    images = {
        "encode_bytes": lambda count: {"image_bytes": tf.fill([count], "")},
        "serving_default": lambda count: {"images": tf.zeros([count, 1, 1, 3], tf.uint8)},
    }[signature]
    call = encoder.signatures[signature]
    call(**images(2))

    def refused():
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"has at most {most} images; div"):
            call(**images(most + 1))

    assert serving.added_memory(refused) < 100


def test_as_many_images_as_fit_are_allowed_and_256_always():
    assert [decoding.most_images(size) for size in (32, 224, 1024)] == [43690, 891, 256]


def test_batches_are_as_large_as_a_request_may_be(encoder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("export.encode.streaming.most_images", lambda size: 7)
    sizes = []
    part = inputs.make_plan(f"folder:{photos}", tmp_path / "codes")
    runner = functools.partial(streaming.encode_here, batch_size=1000)
    encode_batch = streaming._encode_batch
    monkeypatch.setattr(
        streaming,
        "_encode_batch",
        lambda e, items: sizes.append(len(items)) or encode_batch(e, items),
    )
    encode_plan(encoder, part, tmp_path / "codes", runner)
    assert sorted(sizes) == [4, *[7] * 8]


def arguments_of(encoder, source, folder):
    """Flags of the command, slowed down by batches of one image."""
    flags = {
        "saved_model": encoder.path,
        "input": source,
        "output": folder,
        "num_shards": 12,
        "batch_size": 1,
    }
    return [f"--{name}={value}" for name, value in flags.items()]


def start_command(encoder, source, folder):
    return subprocess.Popen(
        [sys.executable, "-m", "export.encode", *arguments_of(encoder, source, folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_a_killed_command_resumes(encoder, photos, tmp_path):
    """With the files of a run that was never stopped; those of complete shards stay."""
    many = tmp_path / "photos"
    many.mkdir()
    for row, path in enumerate(2 * sorted(photos.rglob("*.png"))):
        os.link(path, many / f"{row:04d}.png")
    source, codes = f"folder:{many}", tmp_path / "codes"
    killed = start_command(encoder, source, codes)
    deadline = time.monotonic() + 180
    while len(list(codes.glob("codes-*"))) < 3:
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline, "no 3 shards in 180 s"
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    whole = identities(codes.glob("codes-*"))
    assert killed.returncode == -signal.SIGKILL and 3 <= len(whole) < 12
    (codes / ".codes-00011-of-00012.arrow.0123.partial").write_text("half")
    status, printed, said = commands.run("export.encode", *arguments_of(encoder, source, codes))
    assert status == 0, said
    assert printed.startswith(f"{codes}: 120 images in 12 shards, 0 rejected, ")
    assert printed.endswith(" images/s\n") and "\r" not in said
    assert identities(whole) == whole
    encode_input(encoder, source, tmp_path / "at once", num_shards=12)
    assert contents(codes) == contents(tmp_path / "at once")
    again = commands.run("export.encode", *arguments_of(encoder, source, codes))
    assert again.stdout.endswith("12 shards, 0 rejected, all done already\n")


def test_a_second_command_on_one_folder_is_refused(encoder, photos, tmp_path, monkeypatch):
    codes = tmp_path / "codes"
    encode_input(encoder, f"folder:{photos}", codes, num_shards=2)
    # The first has begun this file, and the other shard is done.
    (codes / "codes-00001-of-00002.arrow").unlink()
    partial = codes / ".codes-00001-of-00002.arrow.0123.partial"
    partial.touch()
    arguments = (
        f"--saved_model={encoder.path}", f"--input=folder:{photos}", f"--output={codes}",
        "--num_shards=2",
    )  # fmt: skip
    with folders.sole_writer(codes):
        done = commands.run("export.encode", *arguments)
        assert done.status == 2 and partial.exists()
        assert f"{codes}: another process is writing it; wait until it has ended" in done.stderr
        # As on a disk of which a mount point alone can be written.
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert commands.run("export.encode", *arguments).status == 0
    assert not partial.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once_and_tells_how_to_resume(number, status, monkeypatch, capsys):
    monkeypatch.setattr(os, "_exit", sys.exit)
    before = [(each, signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGTERM)]
    try:
        command._end_on_signals()
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(number)
    finally:
        for each, handler in before:
            signal.signal(each, handler)
    assert ended.value.code == status
    assert f"{number.name}: stopped; run the same command to resume" in capsys.readouterr().err


def test_an_encoder_of_another_fingerprint_is_refused(encoder, photos, tmp_path):
    encode_input(encoder, f"folder:{photos}", tmp_path / "codes")
    before = contents(tmp_path / "codes")
    other = encoder._replace(manifest=encoder.manifest | {"fingerprint": "other"})
    with pytest.raises(UserError, match="the encoder was .* and now is other; name another folder"):
        encode_input(other, f"folder:{photos}", tmp_path / "codes")
    assert contents(tmp_path / "codes") == before
