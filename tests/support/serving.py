"""What the tests of served SavedModels share: their tensors, and running them as a server does."""

import base64
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from export import index, versions
from export.encoder import encode_images
from hqc_tf.data import augment, catalog, decoding
from tests.support import commands

C_API = pathlib.Path(__file__).with_name("c_api.py")
LIBRARY = pathlib.Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"


def index_photos(encoder, photos, path):
    """Writes the index of a folder of images, their ids not all ASCII, and loads it."""
    images = catalog.load_images(f"folder:{photos}")
    ids = [f"é/{name}" for name in images.ids]
    identity = {"fingerprint": encoder.manifest["fingerprint"], "path": str(encoder.path)}
    codes = encode_images(encoder, images).codes
    index.write_index(path, encoder.codebooks, codes, ids, identity)
    return index.load_index(path)


def read_signatures(folder):
    """Signature -> (inputs, outputs), each name -> `TensorInfo`, as the file says it."""
    file = saved_model_pb2.SavedModel()
    file.ParseFromString((pathlib.Path(folder) / "saved_model.pb").read_bytes())
    signatures = file.meta_graphs[0].signature_def.items()
    return {
        name: (dict(signature.inputs), dict(signature.outputs))
        for name, signature in signatures
        if signature.method_name
    }


def read_ops(folder):
    """Every op of the SavedModel's graph and functions."""
    file = saved_model_pb2.SavedModel()
    file.ParseFromString((pathlib.Path(folder) / "saved_model.pb").read_bytes())
    graph = file.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return {node.op for node in nodes}


def run_through_c_api(folder, requests, path):
    """Answers to requests by a process that loads the SavedModel through the C API.

    Args:
        folder: of the SavedModel.
        requests: (signature, {name: array}) pairs.
        path: of a file to write, the jobs of the process.

    Returns:
        A list of {name: array}, or of the error's text where a request failed.
    """
    signatures = read_signatures(folder)
    outputs = [{name: info.name for name, info in signatures[s][1].items()} for s, _ in requests]
    jobs = [
        {
            "feeds": {signatures[s][0][name].name: _pack(x) for name, x in inputs.items()},
            "fetches": [*names.values()],
        }
        for (s, inputs), names in zip(requests, outputs, strict=True)
    ]
    request = {"library": str(LIBRARY), "saved_model": str(folder), "jobs": jobs}
    path.write_text(json.dumps(request))
    done = subprocess.run([sys.executable, C_API, path], capture_output=True, text=True)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return [
        answer.get("error") or {name: _unpack(answer[at]) for name, at in names.items()}
        for answer, names in zip(json.loads(done.stdout), outputs, strict=True)
    ]


def _pack(array):
    array = np.asarray(array)
    if array.dtype == object:
        data = [base64.b64encode(text).decode() for text in array.ravel()]
        return {"dtype": "string", "shape": array.shape, "data": data}
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": array.shape, "data": data}


def _unpack(array):
    if array["dtype"] == "string":
        texts = [base64.b64decode(text) for text in array["data"]]
        return np.array(texts, object).reshape(array["shape"])
    content = base64.b64decode(array["data"])
    return np.frombuffer(content, array["dtype"]).reshape(array["shape"])


def run_cli(*arguments):
    """What TensorFlow's `saved_model_cli` prints."""
    done = commands.run("tensorflow.python.tools.saved_model_cli", *arguments)
    assert done.status == 0, done.stderr
    return done.stdout


def read_warmup(folder):
    """The requests of the SavedModel's warm-up file, as `run_through_c_api` takes them."""
    requests = []
    for record in tf.data.TFRecordDataset(str(folder / versions.REQUESTS)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        request = log.predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        requests.append((request.model_spec.signature_name, inputs))
    return requests


def added_memory(call):
    """MiB that `call` takes at most, beyond what the process holds before; Linux tells."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    call()
    return (_memory("VmHWM") - before) / 1024


def _memory(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


def decode_apart(files, sizes):
    """Views and validity of files that are decoded one by one, as training does; zeros for none."""
    resize_size, size = sizes
    view = tf.function(
        lambda pixels: augment.plain_view(pixels, resize_size, size),
        input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)],
    )
    # Op by op it would take ten times as long.
    text = tf.TensorSpec([], tf.string)
    decode = tf.function(decoding.decode_known, input_signature=[text], autograph=False)
    views = np.zeros([len(files), size, size, 3], np.float32)
    valid = np.zeros(len(files), bool)
    for row, contents in enumerate(files):
        try:
            pixels = decode(_first_frame(contents))
        except (tf.errors.InvalidArgumentError, IndexError, UnicodeDecodeError):
            continue
        valid[row] = decoding.fits(pixels.shape[:2])
        if valid[row]:
            views[row] = view(pixels)
    return views, valid


def _first_frame(contents):
    """A GIF without what follows its first frame, whose sizes do not count; else all of a file."""
    if not contents.startswith(b"GIF8"):
        return contents

    def after_colors(place, flags):
        return place + (3 << (1 + (contents[flags] & 7)) if contents[flags] & 0x80 else 0)

    place, is_frame = after_colors(13, 10), False
    while not is_frame:
        is_frame = contents[place] == 0x2C
        if not is_frame and contents[place] != 0x21:
            raise IndexError(f"nothing of a GIF at {place}")
        place = after_colors(place + 11, place + 9) if is_frame else place + 2
        while contents[place]:
            place += 1 + contents[place]
        place += 1
    return contents[:place] + b";"
