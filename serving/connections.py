"""Limits on the time and size of request headers, which uvicorn does not set, and handling of offers to upgrade to HTTP/2."""

import asyncio
import sys
from typing import Any

from httptools import HttpParserUpgrade
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 65_536
"""The limit of uvicorn's other parser, h11. This one would collect without limit, and copy all of it with each packet."""

HEADER_SECONDS = 30.0
"""From the connection, or from a request's first byte, to the end of its headers. After that the limits of Settings apply."""

REST_SECONDS = 120.0
"""From a response to the next request: as long as an upload may take, for clients that read the response only after sending everything."""

OFFER = {b"connection", b"upgrade", b"http2-settings"}
"""Headers that offer HTTP/2. Java's client sends them with every first request, unless it is set to HTTP/1.1."""


class BoundedProtocol(HttpToolsProtocol):
    """HTTP with limited headers: a client that sends nothing, or headers without end, is disconnected. Offers of HTTP/2 are ignored."""

    _clock: asyncio.TimerHandle | None = None
    _headed = False
    """Whether the headers of the newest request are complete."""
    _last = False
    """Whether the connection is to be closed after the newest request."""
    _received = 0
    """Bytes since the newest request began."""
    _data = b""
    """The packet that is being parsed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout for the first request."""
        super().connection_made(transport)
        self._wait(HEADER_SECONDS)

    def on_message_begin(self) -> None:
        """Start the timeout for the headers of the next request on the connection."""
        super().on_message_begin()
        if self._headed:
            self._received, self._headed = 0, False
            self._wait(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Parse a packet; before the body, at most HEADER_BYTES are accepted."""
        self._received, self._data = self._received + len(data), data
        super().data_received(data)
        self._data = b""
        if not self._headed and self._received > HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers of the request are larger than {HEADER_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Start the request, unless it has to be parsed again without its offer."""
        self._headed = True
        self._stop()
        if not self._offered():
            super().on_headers_complete()
            # If uvicorn closed it with bytes unread, the connection would be reset, and the client not see why its upload was refused.
            self._last, self.cycle.keep_alive = not self.cycle.keep_alive, True

    def on_message_complete(self) -> None:
        """End the request's body, and close the connection if nothing follows."""
        if not self._offered():
            if self._last and self.cycle.response_complete:
                self.transport.close()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the timeout for the next request, or the rest of one answered early: uvicorn's own timer stops at the first byte."""
        super().on_response_complete()
        if not self.cycle.response_complete:  # that of a pipelined request, which waited for this response
            return
        if self._last and not self.cycle.more_body:
            self.transport.close()
        elif self._headed:
            self._wait(REST_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout."""
        self._stop()
        super().connection_lost(exc)

    def _offered(self) -> bool:
        """Whether the client offers to upgrade to anything but WebSocket."""
        return self.parser.should_upgrade() and any(name == b"upgrade" and value.lower() != b"websocket" for name, value in self.headers)

    def _unsupported_upgrade_warning(self) -> None:
        """Parse the request again without the offer: the parser skipped its body, which it took for the other protocol."""
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


def install_protocol() -> None:
    """Make uvicorn use `BoundedProtocol`, for which BentoML has no option. To be called before a server is created."""
    chosen: dict[Any, str] = HTTP_PROTOCOLS
    chosen["auto"] = f"{BoundedProtocol.__module__}:{BoundedProtocol.__qualname__}"
