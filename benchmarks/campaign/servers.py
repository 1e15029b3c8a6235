"""Servers that answer nonsense, drip or never end: one line of error in time, or an answer.

Over REST and gRPC, by `export.client`, and by `export.search --server` now and then.
"""

import concurrent.futures
import contextlib
import http.server
import json
import pathlib
import threading
import time
from collections.abc import Iterator

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from benchmarks.campaign.in_process import run
from benchmarks.campaign.row import Row, in_time, must
from export import client
from hqc_tf.errors import UserError

DEADLINE_SECONDS = 1.0
# What a case may take: connecting, the deadline and a second for the answer that comes then.
MOST_SECONDS = 10 * DEADLINE_SECONDS
# The bytes of an answer, and what they say; JSON's lists take several times as much.
MOST_MIB = 8 * client.ANSWER_BYTES / 2**20
_ODD = (
    None, True, -1, 256, 2**63, 1e999, "", "x", "\udcff", [], {}, [[]], [None], [[1, 2], [3]],
    [[[0]]], {"b64": "!"}, ["true"], [[0.5] * 4] * 2,
)  # fmt: skip
_SHAPES = ([], [0], [1], [2, 2], [1, 0], [30_000, 30_000], [2**20, 2**40], [-1], [1, 2, 3])
_DTYPES = (tf.float32, tf.int64, tf.uint8, tf.string, tf.bool, tf.complex64, tf.half, tf.variant)
GOOD = {"embedding": [[0.5, 1.0]], "codes": [[3, 15]], "valid": [True]}


def malformed(rng: np.random.Generator) -> bytes:
    """An answer of REST with a few values replaced, of another form, or cut."""
    outputs = dict(GOOD)
    for _ in range(1 + rng.integers(2)):
        name = (*GOOD, "other")[rng.integers(4)]
        outputs[name] = _ODD[rng.integers(len(_ODD))]
    if rng.integers(4) == 0:
        outputs.pop((*GOOD,)[rng.integers(3)], None)
    forms = {"outputs": outputs}, outputs, [outputs], {"outputs": [outputs]}, "[" * 9000
    text = json.dumps(forms[rng.integers(5) * (rng.integers(4) == 0)])
    end = rng.integers(len(text)) if rng.integers(6) == 0 else len(text)
    return text[:end].encode()


def malformed_tensors(rng: np.random.Generator) -> predict_pb2.PredictResponse:
    """An answer of gRPC whose tensors have other types, shapes or values than they say."""
    answer = predict_pb2.PredictResponse()
    for name, value in GOOD.items():
        kind = {"embedding": np.float32, "codes": np.uint8, "valid": bool}[name]
        tensor = tf.make_tensor_proto(np.array(value, kind))
        way = rng.integers(5)
        if way == 0:
            tensor.dtype = _DTYPES[rng.integers(len(_DTYPES))].as_datatype_enum
        elif way == 1:
            shape = _SHAPES[rng.integers(len(_SHAPES))]
            tensor.tensor_shape.CopyFrom(tf.TensorShape(None).as_proto())
            tensor.tensor_shape.unknown_rank = False
            for side in shape:
                tensor.tensor_shape.dim.add(size=side)
            # One value stands for all that the shape has.
            if rng.integers(2):
                tensor.tensor_content = b""
        elif way == 2:
            tensor.tensor_content = rng.bytes(rng.integers(40))
        if way != 3:
            answer.outputs[name].CopyFrom(tensor)
    return answer


@contextlib.contextmanager
def _rest(rng) -> Iterator[str]:
    """Address of a server that drips, never ends, breaks off, or answers what is malformed."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802 - the base class's name for it
            self.rfile.read(int(self.headers["Content-Length"]))
            with contextlib.suppress(OSError):
                self.answer(rng.integers(20))

        def answer(self, way):
            text = malformed(rng)
            self.send_response((500, 404, 301)[rng.integers(3)] if way == 0 else 200)
            # More than comes, where it breaks off.
            length = len(text) + (way == 1)
            if way > 3:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            while way in (2, 3):
                self.wfile.write(b"[" * (2**16 if way == 2 else 1))
                time.sleep(0 if way == 2 else DEADLINE_SECONDS / 20)
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def _grpc(rng) -> Iterator[str]:
    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802 - the service's name for it
            return malformed_tensors(rng)

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(None).wait()


def attack(folder: pathlib.Path, seed: int, count: int, ends: float, protocol: str) -> Row:
    """Answers of a bad server; every tenth reaches `export.search`."""
    row, rng = Row(f"bad servers: {protocol}"), np.random.default_rng(seed)
    photo = str(next((folder / "photos").rglob("*.png")))
    serve = {"REST": _rest, "gRPC": _grpc}[protocol]
    with serve(rng) as address:
        for number in in_time(range(count), ends):
            with row.case(f"answer {number}"):
                if number % 10:
                    _encode(address, photo)
                else:
                    flags = [f"--index={folder}/index", f"--server={address}", "--k=1"]
                    done = run("export.search", *flags, f"--deadline={DEADLINE_SECONDS}", photo)
                    lines = done.stderr.splitlines()
                    must(done.status == 2 and len(lines) == 1, f"{done.status}: {done.stderr}")
    row.bound(MOST_MIB, MOST_SECONDS)
    return row


def _encode(address, photo):
    served = client.connect(address, "hqc", DEADLINE_SECONDS)
    try:
        [(names, encoded)] = client.encode_files(served, [photo])
    except UserError as error:
        must("\n" not in str(error), "more than a line")
        return
    must(names == [photo] and len(encoded.codes) == len(encoded.embeddings) == 1, "other rows")
