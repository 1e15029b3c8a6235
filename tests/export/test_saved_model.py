import io
import json
import re

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from benchmarks.campaign import images as attack
from export import encoder, folders, saved_model, versions
from export.encoder import encode_images, load_encoder
from hqc_tf.data import augment, catalog, decoding
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError
from hqc_tf.training import refit
from hqc_tf.workdir import load
from tests.support import serving


@pytest.fixture(scope="module")
def workdir(make_workdir, small_config, photos):
    """A workdir of a ResNet, which is exported nowhere else."""
    return make_workdir(small_config(dataset=f"folder:{photos}", top_k=10))


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    return saved_model.export_encoder(workdir, tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def loaded(exported):
    return load_encoder(exported)


@pytest.fixture(scope="module")
def trained(workdir):
    return load(workdir)


@pytest.fixture(scope="module")
def files(photos):
    """Contents of 20 real images."""
    return [path.read_bytes() for path in sorted(photos.rglob("*.png"))[:20]]


def as_model(trained, views):
    """What the Keras model makes of a batch of views."""
    embedding, codes = trained.encode(tf.stack(views))
    return embedding.numpy(), codes.numpy()


def test_codes_and_embeddings_equal_those_of_the_model(trained, loaded, photos):
    images = catalog.load_images(f"folder:{photos}")
    ours = trained.encode_images(images)
    served = encode_images(loaded, images)
    np.testing.assert_array_equal(served.codes, ours.codes)
    np.testing.assert_allclose(served.embeddings, ours.embeddings, rtol=1e-5, atol=1e-6)
    assert len(np.unique(ours.codes, axis=0)) > 1


def test_without_python_a_server_gives_the_codes_of_the_model(trained, exported, files, tmp_path):
    """Through the C API, on which TensorFlow Serving stands; each batch as the model gets it."""
    pixels = np.stack([decoding.decode_known(contents) for contents in files])
    mixed = [*files[:3], b"no image", *files[3:5], files[5][:-30]]
    requests = [
        ("serving_default", {"images": pixels}),
        ("encode_bytes", {"image_bytes": np.array(files, object)}),
        ("encode_bytes", {"image_bytes": np.array(mixed, object)}),
        ("encode_bytes", {"image_bytes": np.array(files[:1], object)}),
    ]
    by_pixels, by_bytes, partly, single = serving.run_through_c_api(
        exported, requests, tmp_path / "jobs.json"
    )
    sizes = trained.settings.plain_sizes
    views = [augment.plain_view(decoding.decode_known(contents), *sizes) for contents in files]
    embedding, codes = as_model(trained, views)
    for answer in (by_pixels, by_bytes):
        np.testing.assert_array_equal(answer["codes"], codes)
        np.testing.assert_allclose(answer["embedding"], embedding, rtol=1e-5, atol=1e-6)
    assert by_bytes["valid"].all() and "valid" not in by_pixels
    valid = [True, True, True, False, True, True, False]
    assert partly["valid"].tolist() == valid
    nothing = tf.zeros_like(views[0])
    codes = as_model(trained, [*views[:3], nothing, *views[3:5], nothing])[1]
    np.testing.assert_array_equal(partly["codes"], codes * np.array(valid)[:, None])
    assert not partly["embedding"][[3, 6]].any()
    np.testing.assert_array_equal(single["codes"], as_model(trained, views[:1])[1])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_both_signatures_agree_on_one_image(loaded, photos, kind):
    file = io.BytesIO()
    PIL.Image.open(sorted(photos.rglob("*.png"))[0]).save(file, kind)
    signatures = loaded.signatures
    pixels = np.asarray(PIL.Image.open(file).convert("RGB"))[None]
    by_pixels = signatures["serving_default"](images=tf.constant(pixels))
    by_bytes = signatures["encode_bytes"](image_bytes=tf.constant([file.getvalue()]))
    assert sorted(by_pixels) == ["codes", "embedding"]
    assert sorted(by_bytes) == ["codes", "embedding", "valid"]
    np.testing.assert_array_equal(by_pixels["codes"], by_bytes["codes"])
    np.testing.assert_allclose(by_pixels["embedding"], by_bytes["embedding"], rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_random_and_mutated_files_crash_nothing(trained, exported, files, tmp_path):
    """1,000 byte strings among real images: each is refused, or has the code of its pixels."""
    rng = np.random.default_rng(0)
    seeds = [*attack.encode_everyhow(files[0]), *attack.encode_everyhow(files[1])]
    strings = [attack.mutate(rng, seeds) for _ in range(1_000)]
    batches = [strings[start : start + 250] for start in range(0, len(strings), 250)]
    requests = [
        ("encode_bytes", {"image_bytes": np.array([*batch, *files[:6]], object)})
        for batch in batches
    ]
    answers = serving.run_through_c_api(exported, requests, tmp_path / "jobs.json")
    decodable = 0
    for batch, answer in zip(batches, answers, strict=True):
        views, valid = serving.decode_apart([*batch, *files[:6]], trained.settings.plain_sizes)
        np.testing.assert_array_equal(answer["valid"], valid)
        codes = as_model(trained, views)[1] * valid[:, None]
        np.testing.assert_array_equal(answer["codes"], codes)
        decodable += valid[:250].sum()
    assert 100 < decodable < 900


@pytest.mark.parametrize("size", [(20, 31), (97, 33), (1, 1), (1, 100)])
def test_images_of_any_size_are_served(loaded, size):
    answer = loaded.signatures["serving_default"](images=tf.zeros([3, *size, 3], tf.uint8))
    assert answer["codes"].dtype == tf.uint8 and answer["codes"].shape == [3, 2]
    assert np.isfinite(answer["embedding"]).all()


def test_pixels_of_an_extreme_ratio_are_refused(loaded):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"ratio of at most 100\] \[1 101\]"):
        loaded.signatures["serving_default"](images=tf.zeros([1, 1, 101, 3], "uint8"))


def test_the_graph_holds_no_python_function_and_no_foreign_op(exported):
    ops = serving.read_ops(exported)
    assert {"Conv2D", "DecodeImage", "IgnoreErrorsDataset"} <= ops
    assert not [op for op in ops if "PyFunc" in op or "Addons" in op or "Scann" in op]


def test_saved_model_cli_shows_and_runs_it(exported, loaded, tmp_path):
    folder = ["--dir", exported, "--tag_set", "serve"]
    shown = serving.run_cli("show", *folder, "--signature_def", "encode_bytes")
    assert re.search(r"inputs\['image_bytes'\].*\n.*DT_STRING\n.*shape: \(-1\)", shown)
    assert re.search(r"outputs\['codes'\].*\n.*DT_UINT8\n.*shape: \(-1, 2\)", shown)
    assert re.search(r"outputs\['valid'\].*\n.*DT_BOOL\n.*shape: \(-1\)", shown)
    pixels = np.random.default_rng(0).integers(0, 256, [2, 9, 13, 3], np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    serving.run_cli(
        "run", *folder, "--signature_def", "serving_default",
        "--inputs", f"images={tmp_path}/images.npy", "--outdir", tmp_path,
    )  # fmt: skip
    answer = loaded.signatures["serving_default"](images=tf.constant(pixels))
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), answer["codes"])


def test_warm_up_requests_are_real_and_run(exported, tmp_path):
    requests = serving.read_warmup(exported)
    assert {signature for signature, _ in requests} == {"serving_default", "encode_bytes"}
    shapes = {inputs["images"].shape for _, inputs in requests if "images" in inputs}
    assert shapes == {(count, h, w, 3) for count, h, w in versions.WARMUP_SHAPES}
    for answer in serving.run_through_c_api(exported, requests, tmp_path / "jobs.json"):
        assert np.isfinite(answer["embedding"]).all() and answer.get("valid", np.True_).all()


@pytest.mark.long
def test_versions_count_up_and_the_newest_is_loaded(workdir, exported):
    second = saved_model.export_encoder(workdir, exported.parent, weights="last")
    assert (exported.name, second.name) == ("1", "2")
    assert load_encoder(exported.parent).path == second.resolve()
    assert load_encoder(exported.parent).manifest["weights"] == "last"
    assert load_encoder(exported).path == exported.resolve()
    assert not list(exported.parent.glob(".*"))


def test_a_version_that_stands_is_refused_before_any_work(workdir, exported, monkeypatch):
    monkeypatch.setattr(saved_model, "load_newest", lambda *_: 1 / 0)
    with pytest.raises(UserError, match="--version=1: exists in "):
        saved_model.export_encoder(workdir, exported.parent, version=1)


@pytest.mark.long
def test_a_failed_export_leaves_nothing(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "write_warmup", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        saved_model.export_encoder(workdir, tmp_path / "s")
    assert not any((tmp_path / "s").iterdir())


def test_the_fingerprint_follows_the_weights_and_names_a_signature(workdir, exported):
    trained = load(workdir)
    written = json.loads((exported / "manifest.json").read_text())
    assert written["fingerprint"] == saved_model.fingerprint(trained)
    assert (written["bits"], written["step"], written["weights"]) == (4, 7, "best")
    own = "encode_bytes_" + written["fingerprint"][:16]
    names = {"serving_default", "encode_bytes", "encode_embedding", own}
    assert serving.read_signatures(exported).keys() == names
    trained.quantizer.codebooks.assign_add(tf.ones_like(trained.quantizer.codebooks) * 1e-3)
    assert written["fingerprint"] != saved_model.fingerprint(trained)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no encoder with a manifest.json there; write it with"):
        load_encoder(tmp_path)
    folders.write_manifest(tmp_path, encoder.FORMAT, {"fingerprint": "of an older program"})
    with pytest.raises(UserError, match="format version 1, but this program reads 2; export it"):
        load_encoder(tmp_path)
    with pytest.raises(UserError, match="no flags.txt there; train into it first"):
        saved_model.export_encoder(tmp_path, tmp_path / "s")


def test_a_file_that_is_no_image_is_named(loaded, photos, tmp_path):
    (tmp_path / "note.png").write_text("no image")
    names = [str(path) for path in [*photos.rglob("*.png")][:3]] + [str(tmp_path / "note.png")]
    with pytest.raises(
        UserError, match="^[^ ]*note.png: not a JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF or HEIC image"
    ):
        encode_images(loaded, Images.of_files(names))
    images = Images.of_files([tmp_path / "none.png"], ["none"])
    with pytest.raises(UserError, match="none.png: No such file"):
        encode_images(loaded, images)


@pytest.mark.parametrize(
    "changes",
    [{"input_share": 0.5}, {"mirror_mean": True}, {"input_share": 0.5, "mirror_mean": True}],
)
@pytest.mark.long
def test_pixels_that_an_embedding_needs_are_exported(
    make_workdir, tiny_config, photos, tmp_path, changes
):
    dataset = f"folder:{photos}"
    folder = make_workdir(tiny_config(dataset=dataset, refit="opq", **changes))
    images = catalog.load_images(dataset)
    refit.refit_workdir(folder, images, images.take([]))
    loaded = load_encoder(saved_model.export_encoder(folder, tmp_path / "serving"))
    ours, served = load(folder).encode_images(images), encode_images(loaded, images)
    np.testing.assert_array_equal(served.codes, ours.codes)
    np.testing.assert_allclose(served.embeddings, ours.embeddings, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="takes no features, .*pixels .*; give images"):
        encoder.encode_features(loaded, np.ones([1, 8], np.float32))
