"""A connection before its request is known: how long its headers may take, and how large they are.

Uvicorn waits for a request's headers for ever and keeps whatever comes of them, so that a handful
of silent clients would hold its connections and one talkative client its memory. Bodies are
bounded by `evergreen.serving.security.Door`.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Seconds that a client gets to send its headers, from connecting or from their first byte.
HEADER_SECONDS = 10.0
#: Bytes of a request line and its headers.
HEADER_BYTES = 32 << 10


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP, with bounds on what comes before a body.

    Headers that are too large are answered 431; a client that is too slow gets no answer, since it
    has asked nothing. Either connection is closed.
    """

    _timer: asyncio.TimerHandle | None = None
    _reading = True  # of headers; False while a body, or a request's answer, is under way
    _size = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the headers have become too large."""
        if self._reading:
            self._wait()
            self._size += len(data)
        super().data_received(data)
        if self._reading and self._size > HEADER_BYTES and not self.transport.is_closing():
            self._stop()
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
                b"content-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()

    def on_headers_complete(self) -> None:
        """The request is known: its body has bounds of its own."""
        self._stop()
        self._reading, self._size = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes next are another request's headers."""
        super().on_message_complete()
        self._reading = True

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()
