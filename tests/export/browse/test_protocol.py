"""Clients that do not finish what they begin, at the protocol itself."""

import asyncio
import contextlib
import socket

import pytest
import uvicorn
from uvicorn.server import ServerState

from export.browse import protocol

BODY = b"Content-Length: 100\r\n"


async def answer(scope, receive, send):
    """Answers without reading the body, with as much as the address says."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(int(scope["path"][1:])):
        await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})
    await send({"type": "http.response.body", "body": b"answered"})


class Noted:
    """A loop that keeps what it is asked to call later: (seconds, handle)."""

    def __init__(self, loop):
        self._loop, self.later = loop, []

    def __getattr__(self, name):
        return getattr(self._loop, name)

    def call_later(self, seconds, *called):
        self.later.append((seconds, self._loop.call_later(seconds, *called)))
        return self.later[-1][1]


@contextlib.asynccontextmanager
async def connected(path, head=b""):
    """A server's side of a connection, and the socket of a client that sent a request's head."""
    config = uvicorn.Config(answer, http=protocol.Protocol, log_level="error", lifespan="off")
    loop = asyncio.get_running_loop()
    served = protocol.Protocol(config, ServerState(), {}, Noted(loop))
    listening = socket.create_server(("127.0.0.1", 0))
    # The system takes little from the server, and little for the client.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    await loop.create_server(lambda: served, sock=listening)
    with listening, socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        own.setblocking(False)
        await loop.sock_connect(own, listening.getsockname())
        request = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n"
        await loop.sock_sendall(own, request)
        yield served, own


async def read(own, end=b""):
    """What arrives before the connection ends, or until it ends so."""
    found = b""
    while more := await asyncio.get_running_loop().sock_recv(own, 2**16):
        found += more
        if end and found.endswith(end):
            break
    return found


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


async def until_ended(served):
    await until(lambda: served.transport)
    await until(lambda: not (served.connections or served.tasks))


@pytest.mark.parametrize("rest", [b"a", b"a" * 100])
def test_the_rest_of_an_answered_body_holds_no_connection(monkeypatch, rest):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)

    async def run():
        loop = asyncio.get_running_loop()
        async with connected(b"/0", BODY) as (served, own):
            await read(own, b"answered\r\n0\r\n\r\n")
            await loop.sock_sendall(own, rest)
            left = await read(own)
            await until_ended(served)
        return left

    # A client that is not in a body is told.
    assert asyncio.run(run()) == (protocol._LATE if len(rest) == 100 else b"")


def test_the_rest_of_an_answered_body_may_come_later():
    async def run():
        loop = asyncio.get_running_loop()
        async with connected(b"/0", BODY) as (_, own):
            for _ in range(2):
                await read(own, b"answered\r\n0\r\n\r\n")
                next_one = b"GET /0 HTTP/1.1\r\nHost: localhost\r\n" + BODY + b"\r\n"
                await loop.sock_sendall(own, b"a" * 100 + next_one)
            assert await read(own, b"answered\r\n0\r\n\r\n")

    asyncio.run(run())


# The second is answered as a whole before the client has read any of it.
@pytest.mark.parametrize("path", [b"/500", b"/1"])
def test_an_answer_that_is_not_read_holds_no_connection(monkeypatch, path):
    monkeypatch.setattr(protocol, "READ_SECONDS", 0.3)

    async def run():
        async with connected(path, b"Connection: close\r\n") as (served, _):
            await until_ended(served)
            assert protocol.READ_SECONDS in [seconds for seconds, _ in served.loop.later]

    asyncio.run(run())


def test_an_answer_that_is_read_has_no_limit_as_a_whole():
    async def run():
        async with connected(b"/9", b"Connection: close\r\n") as (served, own):
            await until(lambda: served.flow and served.flow.write_paused)
            assert (await read(own)).endswith(b"answered\r\n0\r\n\r\n")
            await until_ended(served)
            limits = [one for seconds, one in served.loop.later if seconds == protocol.READ_SECONDS]
            assert len(limits) > 1
            assert all(one.cancelled() for one in limits)

    asyncio.run(run())
