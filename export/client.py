"""Asks a server that speaks TensorFlow Serving's protocol, over gRPC or REST.

    served = connect("localhost:8500", "hqc")  # "http://localhost:8501" for REST
    for names, encoded in encode_files(served, ["a.jpg", "b.png"]):
        print(names, encoded.codes)

Many files go in batches. A server that is not there, or full, is asked again for a while; all other
errors end the call, and name the files.
"""

import base64
import http.client
import json
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_service_pb2_grpc

from export.encoder import check_valid, read_file, signature_of
from hqc_tf.errors import UserError
from hqc_tf.retrieval import Encoded

# Files of a request: at most so many, and no more once they have this many bytes.
BATCH = 64
BATCH_BYTES = 16 * 2**20
# Times that a server is asked which is not available, and the first pause between, in seconds;
# each is up to twice the one before.
TRIES = 5
FIRST_PAUSE = 0.2
# A lost connection is otherwise not tried again before a second or more has passed.
CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
]


class Unavailable(Exception):
    """The server is not there, or takes no more for the moment."""


def connect(server, model, deadline=30.0):
    """A served model.

    Args:
      server: host:port of gRPC, or http://host:port of REST.
      model: name that the server has it under.
      deadline: for the answer to a request, tries and pauses included, in seconds.

    Returns:
      `GrpcModel` or `RestModel`; nothing is sent yet.

    Raises:
      UserError: `server` is of neither form.
    """
    if re.fullmatch(r"https?://\S+", server):
        return RestModel(server, model, deadline)
    if re.fullmatch(r"[^\s/]+:\d+", server):
        return GrpcModel(server, model, deadline)
    raise UserError(f"{server}: no server; name host:port of gRPC, or http://host:port of REST")


def encode_files(served, paths, fingerprint=None):
    """Embeddings and codes of image files by a served encoder.

    Args:
      served: as `connect` gives it.
      paths: of files, read as they are sent.
      fingerprint: of the encoder that shall answer; None: whichever the server has.

    Yields:
      (names, `hqc_tf.retrieval.Encoded`) for each batch of files, in order.

    Raises:
      UserError: a file cannot be read or is no image, the server has another encoder, or as
        `predict`; the file is named.
    """
    signature = signature_of(fingerprint) if fingerprint else "encode_bytes"
    for names, contents in _batches(paths):
        answer = _ask_about(served, names, signature, {"image_bytes": contents})
        embeddings = answer["embedding"].astype(np.float32)
        yield names, Encoded(embeddings, answer["codes"].astype(np.uint8))


def search_files(served, paths, k):
    """The k nearest images of each file by a served searcher (`export.searcher`).

    Args:
      served: as `connect` gives it.
      paths: of files, read as they are sent.
      k: 1 to the number of images.

    Yields:
      dict of "query", "ids" and "distances" per file, in order, as `export.search` does.

    Raises:
      UserError: a file cannot be read or is no image, or as `predict`; the file is named.
    """
    for names, contents in _batches(paths):
        inputs = {"image_bytes": contents, "k": np.int32(k)}
        answer = _ask_about(served, names, "search_bytes", inputs)
        ids, distances = answer["ids"].tolist(), answer["distances"].tolist()
        for name, own_ids, own_distances in zip(names, ids, distances, strict=True):
            yield {"query": name, "ids": [*map(_text, own_ids)], "distances": own_distances}


def _ask_about(served, names, signature, inputs):
    try:
        answer = served.predict(signature, inputs)
    except UserError as error:
        # The two protocols say so in different words.
        if re.search(rf"{signature}\W+not found", str(error)):
            raise UserError(
                f"{served.server}: model {served.model} has no signature {signature}, so it is "
                "another encoder or searcher than the one asked for; serve that one"
            ) from error
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(f"{names[0]}{others}: {error}") from error
    check_valid(names, answer["valid"])
    return answer


def _batches(paths):
    """Lists of names with the contents of their files, object [B] of bytes."""
    names, contents = [], []
    for path in paths:
        names.append(path)
        contents.append(read_file(path))
        if len(names) == BATCH or sum(map(len, contents)) >= BATCH_BYTES:
            yield names, np.array(contents, object)
            names, contents = [], []
    if names:
        yield names, np.array(contents, object)


def _text(value):
    return value if isinstance(value, str) else value.decode("utf-8", "surrogatepass")


class _Model:
    def __init__(self, server, model, deadline):
        self.server, self.model, self.deadline = server, model, deadline

    def predict(self, signature, inputs):
        """Runs a signature, and again where the server is unavailable.

        Args:
          signature: its name.
          inputs: {name: array}; strings as object arrays of bytes.

        Returns:
          {name: array}; strings as bytes over gRPC and as str over REST.

        Raises:
          UserError: the server gives an error, no answer in time, or is not available.
        """
        end = time.monotonic() + self.deadline
        tries = 0
        while True:
            tries += 1
            try:
                return self._ask(signature, inputs, end - time.monotonic())
            except Unavailable as error:
                pause = FIRST_PAUSE * 2 ** (tries - 1) * random.uniform(1, 2)
                if tries == TRIES or time.monotonic() + pause >= end:
                    raise UserError(
                        f"{self.server}: not available, asked {tries} times ({error}); start it, "
                        "wait for it, or name another"
                    ) from error
            time.sleep(pause)

    def _failed(self, why):
        line = " ".join(str(why).split())
        return UserError(f"{self.server}: model {self.model} gives no answer: {line}")

    def _late(self):
        return self._failed(f"none within {self.deadline:g} seconds; allow more, or ask for less")


class GrpcModel(_Model):
    """A model behind PredictionService."""

    def __init__(self, server, model, deadline):
        super().__init__(server, model, deadline)
        channel = grpc.insecure_channel(server, CHANNEL)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def _ask(self, signature, inputs, seconds):
        request = predict_pb2.PredictRequest(
            model_spec=model_pb2.ModelSpec(name=self.model, signature_name=signature),
            inputs={name: tf.make_tensor_proto(value) for name, value in inputs.items()},
        )
        try:
            response = self._stub.Predict(request, timeout=seconds)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(error.details()) from error
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self._late() from error
            raise self._failed(error.details()) from error
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


class RestModel(_Model):
    """A model behind the REST API, in its column format."""

    def _ask(self, signature, inputs, seconds):
        columns = {name: _to_json(np.asarray(value)) for name, value in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        url = f"{self.server.rstrip('/')}/v1/models/{urllib.parse.quote(self.model)}:predict"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:
                outputs = json.load(response)["outputs"]
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            if error.code == 503:
                raise Unavailable(text) from error
            raise self._failed(f"{error.code}, {text}") from error
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise self._lost(getattr(error, "reason", error)) from error
        return {name: np.array(column) for name, column in outputs.items()}

    def _lost(self, reason):
        """What to raise where there is no answer of the protocol."""
        if isinstance(reason, ConnectionError):
            return Unavailable(reason)
        return self._late() if isinstance(reason, TimeoutError) else self._failed(reason)


def _to_json(value):
    if value.dtype == object:
        return [{"b64": base64.b64encode(text).decode()} for text in value]
    return value.tolist()
