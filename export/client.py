"""Queries a server that speaks TensorFlow Serving's protocol, over gRPC or REST.

    served = connect("localhost:8500", "hqc")  # "http://localhost:8501" for REST
    for names, encoded in encode_files(served, ["a.jpg", "b.png"]):
        print(names, encoded.codes)

Files are sent in batches. A server that is unavailable or overloaded is tried again, by gRPC's own
retry policy and by urllib3's; any other error ends the call and names the files.
"""

import base64
import concurrent.futures
import json
import math
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import grpc
import numpy as np
import tensorflow as tf
import urllib3
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_service_pb2_grpc

from export.arrays import unpack_id
from export.encoder import check_valid, read_file, signature_of
from hqc_tf.data.folder import Item, in_batches
from hqc_tf.errors import UserError
from hqc_tf.retrieval import Encoded

# Files of a request; fewer where they have more bytes than a batch of `in_batches`.
BATCH = 64
# An answer has at most so many bytes.
ANSWER_BYTES = 2**28
# How often an unavailable server is tried (gRPC's most is 5), and the pause after the first try in
# seconds; each later pause is twice the one before.
TRIES = 5
FIRST_PAUSE = 0.3
# What reading an answer of another form raises.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def connect(server: str, model: str, deadline: float = 30.0) -> "GrpcModel | RestModel":
    """A served model; nothing is sent yet.

    Args:
        server: host:port of gRPC, or http://host:port of REST; UserError where it has neither form.
        model: name that the server has it under.
        deadline: for the answer to a request, all tries included, in seconds.
    """
    if re.fullmatch(r"https?://\S+", server):
        return RestModel(server, model, deadline)
    if re.fullmatch(r"[^\s/]+:\d+", server):
        return GrpcModel(server, model, deadline)
    raise UserError(f"{server}: not a server; name host:port of gRPC, or http://host:port of REST")


def encode_files(
    served: "GrpcModel | RestModel", paths: Iterable[str], fingerprint: str | None = None
) -> Iterator[tuple[list[str], Encoded]]:
    """Yields names and `Encoded` of a batch of image files after the other; each is read as sent.

    Args:
        served: an encoder, as `connect` gives it.
        fingerprint: of the encoder that must answer; None: whichever the server has.

    Raises:
        UserError: a file cannot be read or is not an image, the server has another encoder, or as
            `predict`; the file is named.
    """
    for names, contents in _batches(paths):
        encoded, valid = encode_contents(served, names, contents, fingerprint)
        check_valid(names, valid)
        yield names, encoded


def encode_contents(
    served: "GrpcModel | RestModel",
    names: list[str],
    contents: np.ndarray,
    fingerprint: str | None = None,
) -> tuple[Encoded, np.ndarray]:
    """As `encode_files`, of object [B] of bytes, the contents of files that errors call `names`.

    Returns:
        `Encoded` of B rows, and bool [B], which of them are of images.
    """
    signature = signature_of(fingerprint) if fingerprint else "encode_bytes"
    inputs = {"image_bytes": contents}
    answer = _query(served, names, signature, inputs, {"embedding": None, "codes": None})
    encoded = Encoded(answer["embedding"].astype(np.float32), answer["codes"].astype(np.uint8))
    return encoded, answer["valid"]


def search_files(
    served: "GrpcModel | RestModel", paths: Iterable[str], k: int
) -> Iterator[dict[str, Any]]:
    """Yields the k nearest images of each file by a served searcher (`export.searcher`).

    A dict of "query", "ids" and "distances" per file, in order, as `export.search` does; k is 1 to
    the number of images. UserError as in `encode_files`.
    """
    for names, contents in _batches(paths):
        inputs = {"image_bytes": contents, "k": np.int32(k)}
        answer = _query(served, names, "search_bytes", inputs, {"ids": k, "distances": k})
        check_valid(names, answer["valid"])
        ids, distances = answer["ids"].tolist(), answer["distances"].tolist()
        for name, own_ids, own_distances in zip(names, ids, distances, strict=True):
            texts = [x if isinstance(x, str) else unpack_id(x) for x in own_ids]
            yield {"query": name, "ids": texts, "distances": own_distances}


def _query(served, names, signature, inputs, outputs):
    """The answer for some files; `outputs` have the number of columns of each, None for any."""
    try:
        answer = served.predict(signature, inputs)
    except UserError as error:
        # The two protocols word it differently.
        if re.search(rf"{signature}\W+not found", str(error)):
            raise UserError(
                f"{served.server}: model {served.model} has no signature {signature}, so it is "
                "another encoder or searcher than the one expected; serve that one"
            ) from error
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(f"{names[0]}{others}: {error}") from error
    for name, columns in {"valid": 0, **outputs}.items():
        _check_output(served, name, answer.get(name), len(names), columns)
    return answer


def _check_output(served, name, values, rows, columns):
    """UserError unless an output has a row for each file, and values of its kind."""
    kinds = {"valid": "b", "codes": "iu", "ids": "OSU"}.get(name, "fiu")
    wanted = f"[{rows}]" if columns == 0 else f"[{rows}, {columns or 'any'}]"
    if values is None:
        found = "nothing"
    elif values.dtype.kind not in kinds:
        found = f"{values.dtype} {[*values.shape]}"
    elif not _has_shape(values, rows, columns):
        found = f"{[*values.shape]}"
    elif name == "codes" and not 0 <= values.min() <= values.max() <= 255:
        found = f"words {values.min()} to {values.max()}"
    elif name == "embedding" and not np.isfinite(values.astype(np.float32)).all():
        found = "numbers that are not finite"
    else:
        return
    raise UserError(
        f"{served.server}: model {served.model} answered {found} for {name}, not {wanted}; serve "
        "what export.saved_model or export.searcher wrote"
    )


def _batches(paths):
    """Lists of names with the contents of their files, object [B] of bytes."""
    for batch in in_batches((Item(path, read_file(path)) for path in paths), BATCH):
        yield [item.id for item in batch], np.array([item.contents for item in batch], object)


def _has_shape(values, rows, columns):
    if columns == 0 or values.ndim != 2:
        return columns == 0 and values.shape == (rows,)
    return values.shape == (rows, columns or values.shape[1]) and values.size > 0


class _Model:
    """A served model; each protocol has its own `_answer`."""

    def __init__(self, server: str, model: str, deadline: float):
        self.server, self.model, self.deadline = server, model, deadline

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
            signature: its name.
            inputs: name -> array; strings as object arrays of bytes.

        Returns:
            Name -> array; strings are bytes over gRPC and str over REST.

        Raises:
            UserError: the server gives an error or no answer in time, or is unavailable.
        """
        try:
            return _in_time(lambda: self._answer(signature, inputs), self.deadline)
        except TimeoutError:
            self._fail(f"none within {self.deadline:g} seconds; allow more, or send less")
        except UserError:
            raise
        except _MALFORMED as error:
            self._fail(f"a malformed one ({error})")

    def _hint(self):
        """What else to look at where the server is not reached."""
        return ""

    def _fail(self, why, unavailable=False) -> NoReturn:
        line = " ".join(str(why).split())
        if unavailable:
            raise UserError(
                f"{self.server}: not available after {TRIES} tries ({line}); start it, wait for "
                f"it, or name another{self._hint()}"
            )
        raise UserError(f"{self.server}: model {self.model} gives no answer: {line}")


class GrpcModel(_Model):
    """A model behind PredictionService."""

    def __init__(self, server: str, model: str, deadline: float):
        super().__init__(server, model, deadline)
        retry = {
            "maxAttempts": TRIES,
            "initialBackoff": f"{FIRST_PAUSE}s",
            "maxBackoff": f"{FIRST_PAUSE * 2**TRIES}s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        service = [{"service": "tensorflow.serving.PredictionService"}]
        config = {"methodConfig": [{"name": service, "retryPolicy": retry}]}
        options = {
            "grpc.max_send_message_length": -1,
            "grpc.max_receive_message_length": ANSWER_BYTES,
            "grpc.service_config": json.dumps(config),
            # A lost connection is otherwise not tried again before a second has passed.
            "grpc.initial_reconnect_backoff_ms": 100,
            "grpc.min_reconnect_backoff_ms": 100,
        }
        channel = grpc.insecure_channel(server, [*options.items()])
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def _hint(self):
        # Without its value, which may have a password.
        names = ("grpc_proxy", "https_proxy", "http_proxy")
        name = next((name for name in names if os.environ.get(name)), None)
        return f"; gRPC goes by the proxy in {name} unless no_proxy excepts it" if name else ""

    def _answer(self, signature, inputs):
        request = predict_pb2.PredictRequest(
            model_spec=model_pb2.ModelSpec(name=self.model, signature_name=signature),
            inputs={name: tf.make_tensor_proto(value) for name, value in inputs.items()},
        )
        try:
            response = self._stub.Predict(request, timeout=self.deadline)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from error
            self._fail(error.details(), error.code() is grpc.StatusCode.UNAVAILABLE)
        return {name: _from_proto(value) for name, value in response.outputs.items()}


class RestModel(_Model):
    """A model behind the REST API, in its column format."""

    def __init__(self, server: str, model: str, deadline: float):
        super().__init__(server, model, deadline)
        rule = {"allowed_methods": None, "status_forcelist": [503], "raise_on_status": False}
        retry = urllib3.Retry(TRIES - 1, redirect=0, backoff_factor=FIRST_PAUSE, **rule)
        self._pool = urllib3.PoolManager(retries=retry, timeout=deadline)
        self._url = f"{server.rstrip('/')}/v1/models/{urllib.parse.quote(model)}:predict"

    def _answer(self, signature, inputs):
        columns = {name: _to_json(np.asarray(value)) for name, value in inputs.items()}
        body = {"signature_name": signature, "inputs": columns}
        try:
            response = self._pool.request("POST", self._url, json=body, preload_content=False)
            text = response.read(ANSWER_BYTES)
        except urllib3.exceptions.MaxRetryError as error:
            self._fail(error.reason, unavailable=True)
        except urllib3.exceptions.HTTPError as error:
            self._fail(error)
        if response.status != 200:
            said = f"{response.status}, {text.decode('utf-8', 'replace')}"
            self._fail(said, unavailable=response.status == 503)
        return {name: np.array(x) for name, x in json.loads(text)["outputs"].items()}


def _in_time(call: Callable[[], Any], seconds: float) -> Any:
    """What `call` returns; TimeoutError after so many seconds, whatever drips in meanwhile."""
    answer = concurrent.futures.Future()

    def run():
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)

    # A pool would wait for a late one; this thread ends with the process.
    threading.Thread(target=run, daemon=True).start()
    return answer.result(seconds)


def _from_proto(value):
    """The array of a TensorProto; ValueError where its shape, which costs nothing, is too large."""
    sides = [dim.size for dim in value.tensor_shape.dim]
    if math.prod(sides) * tf.as_dtype(value.dtype).size > ANSWER_BYTES:
        raise ValueError(f"a tensor of shape {sides}")
    return tf.make_ndarray(value)


def _to_json(value):
    if value.dtype == object:
        return [{"b64": base64.b64encode(text).decode()} for text in value]
    return value.tolist()
