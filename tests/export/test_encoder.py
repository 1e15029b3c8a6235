"""What the loaded encoder imports and reads; test_saved_model covers what it encodes."""

import os
import pathlib
import subprocess
import sys

import pytest

from export.encoder import Encoder, read_file
from hqc_tf.errors import UserError
from tests.support import ROOT


def test_search_needs_neither_serving_nor_training():
    foreign = [
        "tensorflow_serving", "hqc_tf.model", "hqc_tf.train", "hqc_tf.training",
        "hqc_tf.losses", "hqc_tf.backbones", "hqc_tf.optimizers", "export.saved_model",
    ]  # fmt: skip
    program = f"import sys, export.search; print([m for m in {foreign} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_what_is_encoded_tells_the_width_of_features():
    manifest = {"fingerprint": "abc", "settings": {"feature_width": 12}}
    own = {"fingerprint": "abc", "path": "serving/1"}
    encoder = Encoder(pathlib.Path("serving/1"), manifest, None, None)
    assert encoder.identity == own | {"feature_width": 12}
    assert encoder._replace(manifest={"fingerprint": "abc", "settings": {}}).identity == own


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_a_pipe_or_device_as_an_image_is_refused_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no regular file; name an image file"):
        read_file(tmp_path / name)
