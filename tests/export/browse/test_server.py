"""The command as a process: what it prints, and clients that do not finish what they begin."""

import contextlib
import json
import signal
import socket
import threading
import urllib.parse
import urllib.request

import pytest
import uvicorn

from export.browse import pictures
from hqc_tf.data import decoding
from tests.support import commands

# Ends the head of a request.
LAST = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def connect(server):
    own = socket.create_connection(urllib.parse.urlsplit(server).netloc.split(":"), 30)
    own.settimeout(30)
    return own


def read(own):
    found = b""
    with contextlib.suppress(ConnectionError):
        while more := own.recv(2**16):
            found += more
    return found


def send(own, contents):
    with contextlib.suppress(ConnectionError):
        own.sendall(contents)


def is_well(server):
    with urllib.request.urlopen(f"{server}healthz") as answer:
        return json.load(answer)["status"] == "ok"


@pytest.mark.long
def test_slow_senders_are_told_and_harm_nobody(server):
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    begun = [connect(server) for _ in range(40)]
    for number, own in enumerate(begun):
        # Half of a head, no body, a body that ends early, and nothing.
        sent = [
            head,
            head + b"Content-Length: 50\r\n\r\n",
            head + b"Content-Length: 50\r\n\r\nabc",
            b"",
        ]
        own.sendall(sent[number % 4])
    assert is_well(server)
    for own in begun:
        with own:
            answer = read(own)
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert b'"error"' in answer
    assert is_well(server)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\0\xff\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 10**6 + b"\r\n\r\n", 400),
        (b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /api/image/../../etc/passwd" + LAST, 404),
        (b"GET //etc/passwd" + LAST, 404),
        (b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
         b"Content-Length: 3000000\r\n\r\n" + bytes(3_000_000), 413),
        (b"GET /none" + LAST.replace(b"close", b"Upgrade, close\r\nUpgrade: websocket"), 404),
    ],
)  # fmt: skip
def test_requests_that_are_none(server, sent, status):
    with connect(server) as own:
        # The answer may come, and the connection end, before all is sent; and what is sent after
        # the end may drop the answer: it is read meanwhile.
        sender = threading.Thread(target=send, args=(own, sent))
        sender.start()
        answer = read(own)
        sender.join()
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert is_well(server)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--images=cifar10", "--images=cifar10: not a folder of images; give folder:PATH"),
        ("--port={port}", "give another port, or 0 for any"),
        ("--host=example.invalid", "--host=example.invalid --port=0"),
        ("--duplicates=none", "none: cannot be read"),
    ],
)
def test_flags_that_do_not_fit_are_refused(browsed, collection, flag, message):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flag = flag.format(port=taken.getsockname()[1])
        images = [] if flag.startswith("--images") else [f"--images=folder:{collection}"]
        asked = [f"--index={browsed.path}", *images, "--port=0", flag]
        done = commands.run("export.browse", *asked)
    assert done.status == 2
    assert message in done.stderr


@pytest.fixture
def run_until(browsed, collection, monkeypatch):
    """Runs the command in this process, with what is done in place of serving."""
    # Its logging would close that of the tests.
    monkeypatch.setattr(uvicorn, "Config", lambda *_, **__: None)

    def run(served, *asked):
        monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: served())
        own = f"--index={browsed.path}", f"--images=folder:{collection}", "--port=0"
        return commands.run("export.browse", *own, "--server=localhost:1", *asked)

    return run


def test_a_picture_is_made_before_the_page_is_ready(run_until, monkeypatch):
    done, made = [], pictures.make_small
    monkeypatch.setattr(pictures, "make_small", lambda *file: done.append("small") or made(*file))
    monkeypatch.setattr(decoding, "raise_max_pixels", done.append)
    run_until(lambda: done.append("serves"), "--max_pixels=200000000")
    # Files that are sent are made smaller here, not at the server.
    assert done == [200_000_000, "small", "serves"]


def test_a_signal_removes_the_temporary_pictures(run_until, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = []

    def end():
        found.extend(tmp_path.iterdir())
        assert callable(signal.getsignal(signal.SIGTERM))
        signal.raise_signal(signal.SIGTERM)

    done = run_until(end)
    assert (done.status, done.stderr) == (143, "")
    assert [path.exists() for path in found] == [False]
