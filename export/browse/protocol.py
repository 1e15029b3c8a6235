"""HTTP/1.1 as uvicorn speaks it, for clients that may never finish a request's head."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds for the head of a request, from its first byte or the opening of the connection.
HEAD_SECONDS = 10.0
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b'content-length: 40\r\n\r\n{"error":"no complete request in time"}\n'
)


class Protocol(H11Protocol):
    """Ends a connection whose next request does not begin or arrive in time.

    Between two requests uvicorn's own shorter limit holds; the body has its limit in the app.
    """

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._arrived()

    def _wait(self):
        self._head = self._head or self.loop.call_later(HEAD_SECONDS, self._late)

    def _arrived(self):
        if self._head:
            self._head.cancel()
            self._head = None

    def _late(self):
        if not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()
