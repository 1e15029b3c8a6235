"""Both clients against the protocol: a stand-in in this process, and the server itself where it is.

The stand-in (tests/support/stand_in.py) is not TensorFlow Serving; tests that need no say over
the server's behavior run against `tensorflow_model_server` as well, where PATH has one.
"""

import contextlib
import http.server
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from export import client, searcher
from export.encoder import encode_images
from export.search import search_files, search_with_server
from hqc_tf.data.batches import read_image
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError
from tests.support import ROOT, commands
from tests.support.stand_in import StandIn

SERVER = "tensorflow_model_server"


@pytest.fixture(scope="module")
def models(encoder, index, tmp_path_factory):
    """Name -> folder of the version that is served."""
    output = tmp_path_factory.mktemp("searcher")
    found = searcher.export_searcher(encoder.path, index.path, output)
    return {"hqc": encoder.path, "searcher": found}


@pytest.fixture(scope="module")
def stand_in(models):
    served = StandIn(models)
    yield served
    served.stop()


@pytest.fixture(scope="module", params=["stand-in", SERVER])
def addresses(request):
    """Where a server listens: gRPC and REST."""
    if request.param == "stand-in":
        served = request.getfixturevalue("stand_in")
        yield served.grpc_address, served.rest_address
    elif shutil.which(SERVER) is None:
        pytest.skip(f"no {SERVER} on the PATH, and no package of pip brings one")
    else:
        folder = request.getfixturevalue("tmp_path_factory").mktemp("server")
        with _model_server(request.getfixturevalue("models"), folder) as found:
            yield found


@pytest.fixture(params=["gRPC", "REST"])
def address(request, addresses):
    return addresses[request.param == "REST"]


@pytest.fixture(params=["gRPC", "REST"])
def patient(request, stand_in, monkeypatch):
    """The stand-in's address, with short pauses between tries."""
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    stand_in.asked.clear()
    yield stand_in.rest_address if request.param == "REST" else stand_in.grpc_address
    stand_in.refuse, stand_in.delay = 0, 0


@pytest.fixture(scope="module")
def files(photos):
    return [str(path) for path in sorted(photos.rglob("*.png"))[:11]]


@contextlib.contextmanager
def _model_server(models, folder):
    config = "".join(
        f'config {{ name: "{name}" base_path: "{path.parent}" model_platform: "tensorflow" }}\n'
        for name, path in models.items()
    )
    (folder / "models.config").write_text(f"model_config_list {{\n{config}}}\n")
    ports = [_free_port(), _free_port()]
    process = subprocess.Popen(
        [SERVER, f"--port={ports[0]}", f"--rest_api_port={ports[1]}"]
        + [f"--model_config_file={folder}/models.config"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_ready(process, [f"http://localhost:{ports[1]}/v1/models/{m}" for m in models])
        yield f"localhost:{ports[0]}", f"http://localhost:{ports[1]}"
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(process, urls):
    deadline = time.monotonic() + 120
    while urls:
        assert process.poll() is None, f"{SERVER} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{SERVER} not ready in 120 s"
        with contextlib.suppress(OSError), urllib.request.urlopen(urls[0]) as status:
            if b"AVAILABLE" in status.read():
                urls = urls[1:]
                continue
        time.sleep(0.2)


def _free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def as_served(encoder, files):
    return encode_images(encoder, Images.of_files(files))


def joined(batches):
    names, encoded = zip(*batches, strict=True)
    names = [name for batch in names for name in batch]
    return names, *(np.concatenate(part) for part in zip(*encoded, strict=True))


def test_files_are_encoded_as_here(address, encoder, files):
    served = client.connect(address, "hqc", deadline=60)
    names, embeddings, codes = joined(client.encode_files(served, files))
    here = as_served(encoder, files)
    assert names == files and codes.dtype == np.uint8 and embeddings.dtype == np.float32
    np.testing.assert_array_equal(codes, here.codes)
    np.testing.assert_allclose(embeddings, here.embeddings, rtol=1e-5, atol=1e-6)


def test_pixels_are_encoded_over_the_protocol(address, encoder, files):
    pixels = np.stack([read_image(name) for name in files[:3]])
    answer = client.connect(address, "hqc", deadline=60).predict(
        "serving_default", {"images": pixels}
    )
    np.testing.assert_array_equal(answer["codes"], as_served(encoder, files[:3]).codes)


def test_a_searcher_answers_as_the_index(address, encoder, index, files):
    served = client.connect(address, "searcher", deadline=60)
    answers = [*client.search_files(served, files, 4)]
    expected = [*search_files(index, encoder, files, 4)]
    for answer, other in zip(answers, expected, strict=True):
        assert (answer["query"], answer["ids"]) == (other["query"], other["ids"])
        np.testing.assert_allclose(answer["distances"], other["distances"], rtol=1e-5)
    json.dumps(answers)


def test_the_encoder_there_and_the_index_here(address, encoder, index, files):
    served = client.connect(address, "hqc", deadline=60)
    answers = [*search_with_server(index, served, files, 5)]
    expected = [*search_files(index, encoder, files, 5)]
    assert [a["ids"] for a in answers] == [a["ids"] for a in expected]


def test_another_encoder_than_the_index_s_is_refused(address, files):
    served = client.connect(address, "hqc", deadline=60)
    rule = "model hqc has no signature encode_bytes_0123456789abcdef, so it is another encoder"
    with pytest.raises(UserError, match=rule):
        next(client.encode_files(served, files, fingerprint="0123456789abcdef" * 4))


def test_errors_name_the_file(address, files, tmp_path):
    served = client.connect(address, "hqc", deadline=60)
    (tmp_path / "note.jpg").write_text("no image")
    with pytest.raises(
        UserError, match="^[^ ]*note.jpg: not a JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF or HEIC image"
    ):
        [*client.encode_files(served, [*files[:2], tmp_path / "note.jpg"])]
    with pytest.raises(UserError, match="none.jpg: No such file"):
        [*client.encode_files(served, [tmp_path / "none.jpg"])]
    served = client.connect(address, "searcher", deadline=60)
    rule = f"{files[0]} and 1 more: .*k must lie in 1 to 60, the number of images, but is"
    with pytest.raises(UserError, match=rule):
        [*client.search_files(served, files[:2], 61)]
    served = client.connect(address, "no_model", deadline=60)
    with pytest.raises(
        UserError, match=f"{files[0]}: .*model no_model gives no answer: .*Servable"
    ):
        [*client.encode_files(served, files[:1])]


def test_many_files_go_in_batches_by_count_and_by_bytes(patient, stand_in, files, monkeypatch):
    monkeypatch.setattr(client, "BATCH", 4)
    served = client.connect(patient, "hqc")
    assert joined(client.encode_files(served, files))[0] == files
    assert [count for _, _, count in stand_in.asked] == [4, 4, 3]
    stand_in.asked.clear()
    monkeypatch.setattr("hqc_tf.data.folder.BATCH_BYTES", 1 + pathlib.Path(files[0]).stat().st_size)
    assert joined(client.encode_files(served, files[:4]))[0] == files[:4]
    assert [count for _, _, count in stand_in.asked] == [2, 2]
    assert [*client.encode_files(served, [])] == []


def test_an_unavailable_server_is_tried_again(patient, stand_in, files):
    stand_in.refuse = client.TRIES - 1
    assert joined(client.encode_files(client.connect(patient, "hqc"), files))[0] == files
    assert len(stand_in.asked) == client.TRIES


def test_in_the_end_it_is_given_up(patient, stand_in, files):
    stand_in.refuse = 10
    rule = f"{files[0]} and 10 more: {patient}: not available after 5 tries .*queue is full"
    with pytest.raises(UserError, match=rule):
        [*client.encode_files(client.connect(patient, "hqc"), files)]
    assert len(stand_in.asked) == client.TRIES


def test_other_errors_are_not_tried_again(patient, stand_in, files):
    with pytest.raises(UserError, match="number of images, but is"):
        [*client.search_files(client.connect(patient, "searcher"), files, 61)]
    assert len(stand_in.asked) == 1


def test_where_nothing_listens_it_is_given_up(patient, files):
    address = re.sub(r"\d+$", str(_free_port()), patient)
    with pytest.raises(UserError, match="not available after 5 tries .*start it, wait for it"):
        [*client.encode_files(client.connect(address, "hqc"), files)]


@pytest.mark.parametrize("kind", ["gRPC", "REST"])
def test_a_server_that_comes_later_is_waited_for(models, files, kind):
    port = _free_port()
    served = client.connect(f"{'http://' if kind == 'REST' else ''}localhost:{port}", "hqc", 60)
    ports = {"grpc_port": port} if kind == "gRPC" else {"rest_port": port}
    later = []
    start = threading.Timer(0.5, lambda: later.append(StandIn({"hqc": models["hqc"]}, **ports)))
    start.start()
    try:
        assert joined(client.encode_files(served, files))[0] == files
    finally:
        start.join()
        later[0].stop()


def test_the_deadline_ends_tries_and_slow_answers(patient, stand_in, files, monkeypatch):
    stand_in.delay = 3
    with pytest.raises(UserError, match="gives no answer: none within 0.5 seconds; allow more"):
        [*client.encode_files(client.connect(patient, "hqc", deadline=0.5), files)]
    stand_in.delay, stand_in.refuse = 0, 10
    monkeypatch.setattr(client, "FIRST_PAUSE", 1)
    with pytest.raises(UserError, match="gives no answer: none within 0.9 seconds"):
        [*client.encode_files(client.connect(patient, "hqc", deadline=0.9), files)]


def test_a_dripping_answer_ends_at_the_deadline_and_an_endless_one_at_its_bytes(monkeypatch, files):
    class Endless(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802 - the base class's name for it
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"[" * (2**16 if self.path.count("fast") else 1))
                    time.sleep(0 if self.path.count("fast") else 0.05)

    with http.server.ThreadingHTTPServer(("localhost", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://localhost:{server.server_port}"
        with pytest.raises(UserError, match="gives no answer: none within 0.5 seconds"):
            [*client.encode_files(client.connect(address, "slow", deadline=0.5), files)]
        monkeypatch.setattr(client, "ANSWER_BYTES", 2**20)
        with pytest.raises(UserError, match="model fast gives no answer: "):
            [*client.encode_files(client.connect(address, "fast"), files)]
        server.shutdown()


@contextlib.contextmanager
def answering(text):
    """Address of a server whose every answer is `text`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802 - the base class's name for it
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


GOOD = {"embedding": [[0.5, 1]], "codes": [[3, 255]], "valid": [True]}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"valid": None}, "nothing for valid, not [1]"),
        ({"codes": None}, "nothing for codes, not [1, any]"),
        ({"valid": [True, True]}, "[2] for valid, not [1]"),
        ({"valid": [[True]]}, "[1, 1] for valid, not [1]"),
        ({"valid": True}, "[] for valid, not [1]"),
        ({"valid": [1]}, "int64 [1] for valid, not [1]"),
        ({"valid": ["true"]}, "<U4 [1] for valid, not [1]"),
        ({"codes": [[3, 256]]}, "words 3 to 256 for codes"),
        ({"codes": [[-1, 2]]}, "words -1 to 2 for codes"),
        ({"codes": [[0.5, 2]]}, "float64 [1, 2] for codes"),
        ({"codes": [3, 255]}, "[2] for codes"),
        ({"codes": [[3, 255]] * 2}, "[2, 2] for codes"),
        ({"codes": [[]]}, "float64 [1, 0] for codes"),
        ({"embedding": [["a", "b"]]}, "<U1 [1, 2] for embedding"),
        ({"embedding": [[1e999, 1]]}, "numbers that are not finite for embedding"),
        ({"embedding": [[[1.0]]]}, "[1, 1, 1] for embedding"),
    ],
)
def test_an_answer_of_another_form_is_one_line(files, changed, found):
    outputs = {name: x for name, x in (GOOD | changed).items() if x is not None}
    with answering(json.dumps({"outputs": outputs}).encode()) as address:
        message = re.escape(f"{address}: model hqc answered {found}")
        with pytest.raises(UserError, match=message):
            [*client.encode_files(client.connect(address, "hqc"), files[:1])]


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"null", b"{}", b"7", b'{"outputs": 7}', b'{"outputs": [1]}', b"\xff",
        b"[" * 9999,
        b'{"outputs": {"codes": [[1], [1, 2]], "valid": [true]}}',
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_one_line(files, text):
    with (
        answering(text) as address,
        pytest.raises(UserError, match="model hqc gives no answer: a malformed one"),
    ):
        [*client.encode_files(client.connect(address, "hqc"), files[:1])]


def test_a_small_answer_of_a_large_shape_takes_no_memory(files):
    """One value stands for all that a shape has: here 2^60 of them, in 30 bytes."""
    codes = tf.make_tensor_proto(np.zeros([1, 1], np.uint8))
    codes.tensor_shape.dim[0].size = codes.tensor_shape.dim[1].size = 2**30
    response = predict_pb2.PredictResponse(outputs={"codes": codes})
    served = client.connect("localhost:1", "hqc")
    served._stub = types.SimpleNamespace(Predict=lambda request, timeout: response)
    with pytest.raises(UserError, match="a malformed one .a tensor of shape .1073741824, 107"):
        [*client.encode_files(served, files[:1])]


def test_a_searcher_must_answer_k_ids_and_distances(files):
    outputs = {"valid": [True], "ids": [["a", "b"]], "distances": [[0, 0.5]]}
    with answering(json.dumps({"outputs": outputs}).encode()) as address:
        served = client.connect(address, "searcher")
        assert [*client.search_files(served, files[:1], 2)][0]["ids"] == ["a", "b"]
        with pytest.raises(UserError, match=re.escape("answered [1, 2] for ids, not [1, 3]")):
            [*client.search_files(served, files[:1], 3)]


@pytest.mark.parametrize(
    ("scheme", "end"),
    [("", r"; gRPC goes by the proxy in http_proxy unless no_proxy excepts it"), ("http://", "")],
)
def test_a_proxy_is_named_where_one_may_not_reach_the_server(files, monkeypatch, scheme, end):
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    for name in ("grpc_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://user:secret@localhost:{_free_port()}")
    address = f"{scheme}localhost:{_free_port()}"
    with pytest.raises(UserError, match=f"or name another{end}$") as raised:
        [*client.encode_files(client.connect(address, "hqc"), files[:1])]
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("server", ["localhost", "http://", "localhost:http", "a b:8500", ""])
def test_a_server_of_no_known_form_is_refused(server):
    with pytest.raises(
        UserError, match=f"^{re.escape(server)}: not a server; name host:port of gRPC"
    ):
        client.connect(server, "hqc")


def test_search_as_a_command_asks_the_server(stand_in, index, encoder, files):
    """The encoder's folder is not read: --saved_model names none."""
    arguments = [f"--index={index.path}", f"--server={stand_in.grpc_address}", "--k=3"]
    done = commands.run("export.search", *arguments, "--saved_model=nowhere", *files[:2])
    assert done.status == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [*search_files(index, encoder, files[:2], 3)]
    assert [answer["ids"] for answer in answers] == [answer["ids"] for answer in expected]


def test_without_a_server_search_takes_no_grpc():
    code = "import sys, export.search; assert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
