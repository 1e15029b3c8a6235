"""A bag of photos as people have them goes through encoding, index and search."""

import json
import os
import shutil

import numpy as np
import PIL.Image
import pytest

from export.arrays import unpack_id
from export.codes import read_rejects, read_shards
from export.encoder import encode_images
from export.index import load_index
from hqc_tf.data import catalog, screening
from hqc_tf.data.batches import read_pixels
from hqc_tf.data.images import Images
from tests.support import ROOT, commands, odd_bag

FIELD = ROOT.parent / "shared/field"


@pytest.mark.long
def test_one_picture_has_one_code_in_all_its_files(encoder, photos, tmp_path, capsys):
    photo = PIL.Image.open(sorted(photos.rglob("*.png"))[0]).convert("RGB")
    bag, codes, index = (tmp_path / name for name in ("bag", "codes", "index"))
    bag.mkdir()
    alike, others, bad = odd_bag.write_bag(bag, np.asarray(photo))
    assert len(alike) + len(others) + len(bad) > 50
    own = f"--saved_model={encoder.path}"
    done = commands.run("export.encode", own, f"--input=folder:{bag}/.", f"--output={codes}")
    assert done.status == 0, done.stderr
    counts = dict(
        part.rsplit(": ", 1) for part in done.stderr.split("(")[1].split(")")[0].split(", ")
    )
    assert counts == {
        "hidden or preview folders": "1", "hidden images": "1", "links to folders found elsewhere":
        "1", ".db": "1", ".mov": "1", ".txt": "1",
    }  # fmt: skip
    (shard,) = read_shards(codes).shards
    ids = [unpack_id(name) for name in shard.ids.to_pylist()]
    assert ids == sorted(alike + others, key=lambda name: name.split("/"))
    found = dict(zip(ids, map(bytes, shard.codes), strict=True))
    assert len({found[name] for name in alike}) == 1
    rejects = {reject.id: reject.reason for reject in read_rejects(codes)}
    assert rejects.keys() == bad.keys()
    assert [name for name in bad if not rejects[name].startswith(bad[name])] == []
    # Training reads the same pixels.
    screened = {r.id: r.reason for r in screening.find_rejects(f"folder:{bag}", "skip")}
    assert screened == rejects
    images = catalog.load_split(f"folder:{bag}", "train", rejected=frozenset(bad))
    first = read_pixels(images, images.ids.index("same.png"))
    for row, name in enumerate(images.ids):
        if name in alike:
            np.testing.assert_array_equal(read_pixels(images, row), first, err_msg=name)
    done = commands.run("export.index", f"--codes={codes}", f"--output={index}")
    assert done.status == 0, done.stderr
    queries = [bag / name for name in ("turned 6.png", "same.webp", "black under.tif", "no suffix")]
    done = commands.run("export.search", f"--index={index}", own, "--k=99", *queries)
    assert done.status == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert {len(answer["ids"]) for answer in answers} == {len(ids)}
    same = [
        name
        for name in load_index(index).ids.to_pylist()
        if found[unpack_id(name)] == found["same.png"]
    ]
    for answer in answers:
        assert answer["ids"][: len(same)] == [unpack_id(name) for name in same]


def test_photos_from_the_field(encoder, tmp_path):
    if not FIELD.is_dir():
        return
    names = [
        "phone_jpeg_exif_orientation_6.jpg", "same_photo_upright.jpg",
        "transparent_cutout_hidden_scene.png", "transparent_cutout_as_shown_on_white.jpg",
        "same_photo_saved_by_a_browser.jfif", "camera_size_8192x6144_refused.jpg",
    ]  # fmt: skip
    for name in names:
        shutil.copy(FIELD / name, tmp_path / os.path.basename(name))  # noqa: PTH119
    embeddings = encode_images(encoder, Images.of_files([tmp_path / n for n in names])).embeddings
    turned, upright, cut, shown, browser, _ = embeddings
    far = np.square(upright - shown).sum()
    assert np.square(turned - upright).sum() < far / 10
    assert np.square(cut - shown).sum() < far / 10
    np.testing.assert_array_equal(browser, upright)
