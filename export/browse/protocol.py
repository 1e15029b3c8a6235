"""HTTP/1.1 as uvicorn speaks it, for clients that may never finish what they send or read."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds for the head of a request, from its first byte or the opening of the connection, and for
# the rest of a body whose request is answered already.
HEAD_SECONDS = 10.0
# Seconds in which a client reads what waits for it, at most a chunk of a file.
READ_SECONDS = 30.0
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b'content-length: 40\r\n\r\n{"error":"no complete request in time"}\n'
)


class Protocol(H11Protocol):
    """Ends a connection whose client does not begin, complete or read in time.

    Between two requests uvicorn's own shorter limit holds; a body that is read has its limit in the
    app.
    """

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        # Any byte that waits then pauses writing, which has the limit.
        transport.set_write_buffer_limits(0)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        self._read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self._has_rest():
            self._wait()
        else:
            self._arrived()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._has_rest():
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._read()
        super().resume_writing()

    def _has_rest(self):
        """Whether a request is answered whose body has not arrived."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _wait(self):
        self._head = self._head or self.loop.call_later(HEAD_SECONDS, self._late)

    def _arrived(self):
        if self._head:
            self._head.cancel()
            self._head = None

    def _read(self):
        if self._unread:
            self._unread.cancel()
            self._unread = None

    def _late(self):
        if not self.transport.is_closing():
            if not self._has_rest():
                self.transport.write(_LATE)
            self.transport.close()
