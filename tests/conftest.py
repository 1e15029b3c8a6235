"""What several test files share."""

# ruff: noqa: I001
# First, since it sets how TensorFlow loads.
import hqc_tf  # noqa: F401

import functools
import gc
import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.support import ROOT
from tests.support import spread
import tensorflow as tf

from hqc_tf.data import catalog
from hqc_tf import prepare
from hqc_tf.config import Config, to_flagfile
from hqc_tf.model import build_model
from hqc_tf.workdir import save_weights
from tests.support.networks import TWO_CONVOLUTIONS


# The longest start first, so that no process of pytest-xdist is left with one at the end.
LONG = (
    "test_docs", "test_distribute", "test_pipeline", "test_client", "test_dask", "test_train",
    "test_saved", "test_collection", "test_encode", "test_state", "test_decoding", "test_pixels",
    "test_report", "test_stacks", "test_model", "test_saved_model", "test_pretrained", "test_field",
    "test_fuzz", "test_evaluate", "test_embed", "test_screening", "test_update", "test_app",
    "test_start", "test_views", "test_pictures", "test_wheel", "test_searcher",
)  # fmt: skip


def pytest_collection_finish():
    """Modules leave a million objects; to look for garbage among them took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture
def same_random_numbers():
    """For tests of networks that no seed of a run makes; TensorFlow instantiates functions anew."""
    tf.keras.utils.set_random_seed(1)


@pytest.fixture
def set_policy():
    """Sets Keras' global precision for one test."""
    before = tf.keras.mixed_precision.global_policy()
    yield tf.keras.mixed_precision.set_global_policy
    tf.keras.mixed_precision.set_global_policy(before)


@pytest.fixture(scope="session")
def small_config():
    """Makes the `Config` of a network that trains in seconds, with some settings changed."""
    settings = {
        "image_size": 8,
        "backbone_width": 2,
        "num_books": 2,
        "num_words": 4,
        "word_dim": 3,
        "num_neighbors": 3,
        "batch_size": 4,
        "epochs": 2,
        "warmup_epochs": 0,
    }
    return lambda **changes: Config(**(settings | changes))


@pytest.fixture(scope="session")
def tiny_config(small_config):
    """`small_config` with two convolutions for a backbone, which are traced sooner."""
    return functools.partial(small_config, backbone=TWO_CONVOLUTIONS)


@pytest.fixture(scope="session")
def quick_config(tiny_config):
    """`tiny_config` with one term and one pass for both views, which is traced sooner still."""
    fewer = {
        "joint_views": True,
        "instance_embedding_weight": 0.0,
        "consistency_weight": 0.0,
        "part_neighbor_weight": 0.0,
        "codeword_diversity_weight": 0.0,
    }
    return lambda **changes: tiny_config(**(fewer | changes))


@pytest.fixture(scope="session")
def features(tmp_path_factory):
    """The data set of 60 labeled rows of features about 6 centers."""
    random = np.random.default_rng(1)
    labels = np.arange(60) % 6
    rows = random.normal(size=[6, 12])[labels] + 0.2 * random.normal(size=[60, 12])
    ids = [f"row{number}" for number in range(60)]
    path = tmp_path_factory.mktemp("features") / "x.parquet"
    vectors = pa.array(list(rows.astype(np.float32)), pa.list_(pa.float32()))
    parquet.write_table(pa.table({"id": ids, "label": labels, "vector": vectors}), path)
    return f"features:{path}"


@pytest.fixture(scope="session")
def feature_config(quick_config, features):
    """`quick_config` of features: no convolution and no decoder is traced, and 2 s are enough."""
    return functools.partial(quick_config, dataset=features, feature_width=12, top_k=10)


@pytest.fixture
def load_reference():
    """Reads one of the authors' results: its arrays, and its settings from `meta`."""

    def load(name):
        with np.load(ROOT / "tests/reference" / f"{name}.npz", allow_pickle=False) as arrays:
            return dict(arrays), json.loads(str(arrays["meta"]))

    return load


@pytest.fixture(scope="session")
def fashion_mnist_dir():
    data_dir = ROOT / "data/tfds"
    if prepare.find_prepared("fashion_mnist", data_dir) is None:
        pytest.skip("Fashion-MNIST is not prepared in data/tfds: `make data` does it")
    return str(data_dir)


@pytest.fixture(scope="session")
def photos(fashion_mnist_dir, tmp_path_factory):
    """A folder of 60 real images, 28x28 grey PNG, in a sub-folder per class."""
    images = catalog.load_images("fashion_mnist/test[:60]", fashion_mnist_dir)
    folder = tmp_path_factory.mktemp("photos")
    for row, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        path = folder / f"class{label}" / f"{row}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels).convert("L").save(path)
    return folder


@pytest.fixture(scope="session")
def make_workdir(tmp_path_factory):
    """Makes what a training leaves, without the training: weights as drawn, said to be of step 7.

    Embeddings are spread over the codewords, as learned ones are.
    """

    def make(settings):
        folder = tmp_path_factory.mktemp("workdir")
        (folder / "flags.txt").write_text(to_flagfile(settings))
        model = build_model(settings)
        spread.spread(model, catalog.load_images(settings.dataset))
        for weights in ("best", "last"):
            save_weights(model, folder, 7, weights)
        return folder

    return make


@pytest.fixture(scope="session")
def workdir(make_workdir, tiny_config, photos):
    """A workdir of `photos`."""
    return make_workdir(tiny_config(dataset=f"folder:{photos}", top_k=10))


@pytest.fixture(scope="session")
def encoder(workdir, tmp_path_factory):
    """The encoder of `workdir`, exported and loaded."""
    # The served protocol takes a second to import, and few tests need it.
    from export.encoder import load_encoder
    from export import saved_model

    path = saved_model.export_encoder(workdir, tmp_path_factory.mktemp("serving"))
    return load_encoder(path)


@pytest.fixture(scope="session")
def index(encoder, photos, tmp_path_factory):
    """The index of `photos` with `encoder`."""
    from tests.support import serving

    return serving.index_photos(encoder, photos, tmp_path_factory.mktemp("index") / "i")
