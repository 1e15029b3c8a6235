"""What the tests of served SavedModels share: their tensors, and running them as a server does."""

import base64
import json
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

C_API = pathlib.Path(__file__).with_name("c_api.py")
LIBRARY = pathlib.Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"


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
