"""Small files that once broke a command, each as users met it."""

import io
import shutil
import subprocess

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from export.codes import read_rejects
from hqc_tf.data import decoding, folder
from tests.support import SHARED, commands

FIELD = SHARED / "field"
pytestmark = pytest.mark.skipif(not FIELD.is_dir(), reason="../shared/field is not here")


@pytest.mark.parametrize(
    "name",
    [
        "camera_size_8192x6144_refused.jpg",
        "gif_first_frame_smaller_than_canvas.gif",
        "phone_jpeg_exif_orientation_6.jpg",
        "same_photo_saved_by_a_browser.jfif",
        "transparent_cutout_hidden_scene.png",
    ],
)
def test_an_image_is_what_a_viewer_shows(name):
    contents = (FIELD / name).read_bytes()
    assert decoding.decodable(tf.constant([contents]))[0]
    shown = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(contents))).convert("RGBA")
    paper = PIL.Image.new("RGBA", shown.size, "white")
    paper.alpha_composite(shown)
    np.testing.assert_array_equal(decoding.decode_image(contents), paper.convert("RGB"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bmp_8bit_palette_decoded_as_garbage.bmp", "BMP of 8 bits a pixel with a palette"),
        ("valid_bmp_palette4_called_broken.bmp", "BMP of 4 bits a pixel with a palette"),
        ("empty_scans_1000.jpg", "JPEG of over 100 scans"),
        ("one_byte_blocks.gif", "broken or cut short"),
    ],
)
def test_an_image_is_refused_by_its_kind(name, why):
    contents = (FIELD / name).read_bytes()
    assert not decoding.decodable(tf.constant([contents]))[0]
    assert decoding.why_refused(contents).startswith(why)


def test_texts_of_a_png_are_not_unpacked():
    contents = (FIELD / "text_chunks_100.png").read_bytes()
    assert decoding.decodable(tf.constant([contents]))[0]
    # One is within Pillow's own limit of texts.
    bare = io.BytesIO()
    PIL.Image.fromarray(decoding.decode_image(contents).numpy()).save(bare, "PNG")
    assert PIL.Image.open(bare).size == (10, 10)


def test_a_record_that_claims_a_terabyte_is_listed(encoder, tmp_path):
    shutil.copy(FIELD / "length_2_40.tfrecord", tmp_path)
    asked = f"--saved_model={encoder.path}", f"--input=tfrecord:{tmp_path}/*.tfrecord"
    done = commands.run("export.encode", *asked, f"--output={tmp_path}/codes")
    assert done.status == 0 and "0 images in 1 shard, 1 rejected" in done.stdout, done.stderr
    (reject,) = read_rejects(tmp_path / "codes")
    assert "length_2_40.tfrecord" in str(reject)


def test_links_and_hidden_folders_add_no_image(tmp_path):
    photo = FIELD / "same_photo_upright.jpg"
    for script, wanted in {
        "make_linked_folders.sh": ["lib/2019/a.jpg", "other/b.jpg"],
        "make_hidden_class.sh": [
            f"cls/{part}/{number}.jpg" for part in "ab" for number in range(5)
        ],
    }.items():
        here = tmp_path / script
        here.mkdir()
        subprocess.run(["sh", FIELD / script, photo], cwd=here, check=True)
        assert sorted(folder.walk(here)) == wanted
        found = {path.removeprefix(f"{here}/") for path in folder.match(f"{here}/**/*.jpg")}
        assert found == set(wanted)
