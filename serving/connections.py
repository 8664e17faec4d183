"""Connections: how long and how large a request may be before its first route sees it, which uvicorn leaves open; and offers of HTTP/2."""

import asyncio
import sys
from typing import Any

from httptools import HttpParserUpgrade
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 65_536
"""What uvicorn's other parser, h11, takes. This one would go on collecting, and copy all of it with each packet."""

HEADER_SECONDS = 30.0
"""From the connection, or from a request's first byte, to the end of its headers. After them the settings' limits hold."""

REST_SECONDS = 120.0
"""From an answer to the next request: as long as an upload may take, for a client that reads the answer only after it sent everything."""

OFFER = {b"connection", b"upgrade", b"http2-settings"}
"""Headers that offer HTTP/2. Java's client sends them with every first request, unless it is told to speak HTTP/1.1."""


class Bounded(HttpToolsProtocol):
    """HTTP whose headers end: a client that says nothing, or goes on for ever, is hung up on. Offers of HTTP/2 are passed over."""

    _clock: asyncio.TimerHandle | None = None
    _headed = False
    """Whether the headers of the newest request are there."""
    _last = False
    """Whether the connection shall end with the newest request."""
    _received = 0
    """Bytes since the newest request began."""
    _data = b""
    """The packet that is being read."""

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
        self._received, self._data = self._received + len(data), data
        super().data_received(data)
        self._data = b""
        if not self._headed and self._received > HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers of the request are larger than {HEADER_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Hand the request over."""
        self._headed = True
        self._stop()
        if not self._offered():
            super().on_headers_complete()
            # Closed with bytes unread, the connection is reset, and the client never sees why its upload was refused.
            self._last, self.cycle.keep_alive = not self.cycle.keep_alive, True

    def on_message_complete(self) -> None:
        """Hand the end of its body over."""
        if not self._offered():
            if self._last and self.cycle.response_complete:
                self.transport.close()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, or the rest of one that was answered early: uvicorn's own clock stops at the first byte."""
        super().on_response_complete()
        if not self.cycle.response_complete:  # the newest request, which waited for the answer to this one
            return
        if self._last and not self.cycle.more_body:
            self.transport.close()
        elif self._headed:
            self._wait(REST_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for any more."""
        self._stop()
        super().connection_lost(exc)

    def _offered(self) -> bool:
        """Whether the client offers another protocol than HTTP/1.1 and WebSocket."""
        return self.parser.should_upgrade() and any(name == b"upgrade" and value.lower() != b"websocket" for name, value in self.headers)

    def _unsupported_upgrade_warning(self) -> None:
        """Read the request again without the offer: the parser has passed over its body, which it took for the other protocol."""
        upgrade = sys.exception()
        if self._offered() and isinstance(upgrade, HttpParserUpgrade):
            lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
            lines += [name + b": " + value for name, value in self.headers if name not in OFFER]
            self.data_received(b"\r\n".join([*lines, b"", self._data[upgrade.args[0] :]]))

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
