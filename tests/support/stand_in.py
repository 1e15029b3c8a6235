"""A stand-in for TensorFlow Serving: its protocol, gRPC and REST, on SavedModels in this process.

It is not the server. Requests, answers and errors have the published form, and the model runs in
TensorFlow's Python. What it adds is for the tests: `refuse` and `delay` of the coming requests.
"""

import base64
import concurrent.futures
import contextlib
import http.server
import json
import re
import threading
import time

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

# HTTP status of each code, as Serving maps them.
STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNAVAILABLE: 503,
}


class Refused(Exception):
    """A request that gets an error: its code and text."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code, self.text = code, text


class StandIn(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Serves folders of SavedModels.

    Args:
        models: name -> folder of one version.
        grpc_port, rest_port: to listen on; 0: any.

    Attributes:
        grpc_address, rest_address: where it listens, as `export.client.connect` takes them.
        refuse: how many of the coming requests are answered UNAVAILABLE.
        delay: seconds before an answer.
        asked: (model, signature, number of images) of the requests so far.
    """

    def __init__(self, models, grpc_port=0, rest_port=0):
        self.refuse, self.delay, self.asked = 0, 0, []
        # The signatures do not keep what they belong to alive.
        self._loaded = {name: tf.saved_model.load(str(path)) for name, path in models.items()}
        self._grpc = grpc.server(
            concurrent.futures.ThreadPoolExecutor(2),
            options=[("grpc.max_receive_message_length", -1)],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._grpc)
        self.grpc_address = f"localhost:{self._grpc.add_insecure_port(f'localhost:{grpc_port}')}"
        self._grpc.start()
        self._rest = http.server.ThreadingHTTPServer(("localhost", rest_port), _handler(self))
        self.rest_address = f"http://localhost:{self._rest.server_port}"
        threading.Thread(target=self._rest.serve_forever, daemon=True).start()

    def stop(self):
        self._grpc.stop(None).wait()
        self._rest.shutdown()
        self._rest.server_close()

    def signature(self, model, name):
        """A function of {name: tensor}; raises Refused where there is none."""
        if model not in self._loaded:
            raise Refused(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({model})"
            )
        signatures = self._loaded[model].signatures
        name = name or "serving_default"
        if name not in signatures:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            )
        return signatures[name]

    def answer(self, model, name, inputs):
        """{name: tensor} of a request; raises Refused."""
        images = inputs.get("image_bytes", inputs.get("images"))
        self.asked.append((model, name, len(images)))
        time.sleep(self.delay)
        if self.refuse:
            self.refuse -= 1
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the batch scheduling queue is full")
        wanted = self.signature(model, name).structured_input_signature[1]
        if inputs.keys() != wanted.keys():
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "input size does not match signature")
        try:
            return self.signature(model, name)(**inputs)
        except tf.errors.InvalidArgumentError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, error.message) from error

    def Predict(self, request, context):  # noqa: N802 - the service's name for it
        spec = request.model_spec
        inputs = {n: tf.constant(tf.make_ndarray(x)) for n, x in request.inputs.items()}
        try:
            answer = self.answer(spec.name, spec.signature_name, inputs)
        except Refused as error:
            context.abort(error.code, error.text)
        outputs = {name: tf.make_tensor_proto(value) for name, value in answer.items()}
        return predict_pb2.PredictResponse(model_spec=spec, outputs=outputs)

    def predict_json(self, model, body):
        """The REST form of `Predict`, in columns."""
        name = body.get("signature_name", "")
        wanted = self.signature(model, name).structured_input_signature[1]
        inputs = {
            key: tf.constant(_from_json(value), wanted[key].dtype)
            for key, value in body["inputs"].items()
        }
        answer = self.answer(model, name, inputs)
        return {"outputs": {key: _to_json(value.numpy()) for key, value in answer.items()}}


def _from_json(value):
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return [*map(_from_json, value)] if isinstance(value, list) else value


def _to_json(array):
    if array.dtype == object:
        return [[text.decode() for text in row] for row in array]
    return array.tolist()


def _handler(stand_in):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802 - the base class's name for it
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            model = re.fullmatch(r"/v1/models/([^/:]+):predict", self.path)[1]
            try:
                self._reply(200, stand_in.predict_json(model, body))
            except Refused as error:
                self._reply(STATUS[error.code], {"error": error.text})

        def _reply(self, status, content):
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            with contextlib.suppress(BrokenPipeError):  # who asked waits no longer
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, *_):
            pass

    return Handler
