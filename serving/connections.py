"""Connections: how long and how large a request may be before its first route sees it, which uvicorn leaves open."""

import asyncio
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 65_536
"""What uvicorn's other parser, h11, takes. This one would go on collecting, and copy all of it with each packet."""

HEADER_SECONDS = 30.0
"""From the connection, or from a request's first byte, to the end of its headers. After them the settings' limits hold."""

REST_SECONDS = 120.0
"""From an answer to the next request: as long as an upload may take, for a client that reads the answer only after it sent everything."""


class Bounded(HttpToolsProtocol):
    """HTTP whose headers end: a client that says nothing, or goes on for ever, is hung up on."""

    _clock: asyncio.TimerHandle | None = None
    _headed = False
    """Whether the headers of the newest request are there."""
    _received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait(HEADER_SECONDS)

    def on_message_begin(self) -> None:
        """Wait for the headers of the next request of the same connection."""
        super().on_message_begin()
        if self._headed:
            self._received, self._headed = 0, False
            self._wait(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Read on, up to HEADER_BYTES before the body."""
        self._received += len(data)
        super().data_received(data)
        if not self._headed and self._received > HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers of the request are larger than {HEADER_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Hand the request over."""
        self._headed = True
        self._stop()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, or the rest of one that was answered early: uvicorn's own clock stops at the first byte."""
        super().on_response_complete()
        if self._headed and self.cycle.response_complete:  # and no request waits behind it
            self._wait(REST_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for any more."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self, seconds: float) -> None:
        self._stop()
        self._clock = self.loop.call_later(seconds, self.transport.close)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def bound() -> None:
    """Let uvicorn use it, of which BentoML passes no choice on. To be called before a server is made."""
    chosen: dict[Any, str] = HTTP_PROTOCOLS
    chosen["auto"] = f"{Bounded.__module__}:{Bounded.__qualname__}"
