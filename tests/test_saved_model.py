import json

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from export import saved_model
from export.encode import encode_images, load_encoder
from hqc_tf import data, encode, model
from hqc_tf.config import UserError


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    return saved_model.export_encoder(workdir, tmp_path_factory.mktemp("serving"))


def test_codes_and_embeddings_equal_those_of_the_model(workdir, exported, photos):
    images = data.load_images(f"folder:{photos}")
    ours = encode.encode_images(model.load(workdir), images)
    served = encode_images(load_encoder(exported), images)
    np.testing.assert_array_equal(served.codes, ours.codes)
    np.testing.assert_allclose(served.embeddings, ours.embeddings, rtol=1e-5, atol=1e-6)
    assert len(np.unique(ours.codes, axis=0)) > 1


def test_both_signatures_agree_on_one_image(exported, photos):
    path = sorted(photos.rglob("*.png"))[0]
    signatures = load_encoder(exported).signatures
    pixels = np.asarray(PIL.Image.open(path).convert("RGB"))[None]
    by_pixels = signatures["serving_default"](images=tf.constant(pixels))
    by_bytes = signatures["encode_bytes"](image_bytes=tf.constant([path.read_bytes()]))
    assert sorted(by_pixels) == ["codes", "embedding"]
    np.testing.assert_array_equal(by_pixels["codes"], by_bytes["codes"])
    np.testing.assert_allclose(by_pixels["embedding"], by_bytes["embedding"], rtol=1e-5)


@pytest.mark.parametrize("size", [(20, 31), (97, 33), (1, 1)])
def test_images_of_any_size_are_served(exported, size):
    answer = load_encoder(exported).signatures["serving_default"](
        images=tf.zeros([3, *size, 3], tf.uint8)
    )
    assert answer["codes"].dtype == tf.uint8 and answer["codes"].shape == [3, 2]
    assert np.isfinite(answer["embedding"]).all()


def test_the_graph_holds_no_python_function_and_no_foreign_op(exported):
    meta = tf.compat.v1.saved_model.load
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = meta(session, ["serve"], str(exported)).graph_def
    ops = {node.op for node in graph.node}
    ops |= {node.op for function in graph.library.function for node in function.node_def}
    assert "Conv2D" in ops
    assert not [op for op in ops if "PyFunc" in op or "Addons" in op or "Scann" in op]


def test_versions_count_up_and_the_newest_is_loaded(workdir, exported):
    second = saved_model.export_encoder(workdir, exported.parent)
    assert (exported.name, second.name) == ("1", "2")
    assert load_encoder(exported.parent).path == second.resolve()
    assert load_encoder(exported).path == exported.resolve()
    assert not list(exported.parent.glob(".*"))


def test_a_failed_export_leaves_no_version(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(saved_model, "_manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        saved_model.export_encoder(workdir, tmp_path / "s")
    assert saved_model.versions(tmp_path / "s") == []


def test_the_fingerprint_follows_the_weights(workdir, exported):
    trained = model.load(workdir)
    written = json.loads((exported / "manifest.json").read_text())
    assert written["fingerprint"] == saved_model.fingerprint(trained)
    assert written["bits"] == 4 and written["step"] == 7
    trained.quantizer.codebooks.assign_add(tf.ones_like(trained.quantizer.codebooks) * 1e-3)
    assert written["fingerprint"] != saved_model.fingerprint(trained)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no encoder with a manifest.json there; write it with"):
        load_encoder(tmp_path)
    with pytest.raises(UserError, match="no flags.txt there; train into it first"):
        saved_model.export_encoder(tmp_path, tmp_path / "s")


def test_a_file_that_is_no_image_is_named(exported, tmp_path):
    (tmp_path / "note.png").write_text("no image")
    images = data.Images(None, [str(tmp_path / "note.png")], ["note"], None, None)
    with pytest.raises(UserError, match="note.png: no JPEG, PNG, BMP or GIF image"):
        encode_images(load_encoder(exported), images)
    images = data.Images(None, [str(tmp_path / "none.png")], ["none"], None, None)
    with pytest.raises(UserError, match="none.png: No such file"):
        encode_images(load_encoder(exported), images)
