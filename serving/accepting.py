"""Shares new connections among workers: the fewer a worker has, the sooner it accepts the next one.

uvloop accepts whatever waits in one go. Of 32 clients that connected at once and stayed connected, one worker of four was seen to get
30: many of their requests took over a second, while the others had next to nothing to do.
"""

import asyncio
import errno
import logging
import socket
import ssl as tls
from collections.abc import Callable, Collection
from typing import Any

import uvloop
from uvicorn.config import LOOP_FACTORIES

EACH_SECONDS, MOST_SECONDS = 0.0002, 0.002
"""How long a worker leaves a new connection to the others, for each open one that it has, and at most."""

OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
PAUSE_SECONDS = 1.0
"""How long to accept nothing when the system can open no more connections, as asyncio does."""

log = logging.getLogger(__name__)


class Acceptor:
    """A listening socket that this process shares with other workers; they take one connection at a time from it. A server, to uvicorn."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol], listener: socket.socket, ssl: tls.SSLContext | None
    ) -> None:
        self._loop, self._protocol, self._listener, self._ssl = loop, protocol, listener, ssl
        self._opening: set[asyncio.Task[None]] = set()
        self._connections: Collection[Any] = ()
        self._next: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept nothing more. Open connections stay; what waits is left to the other workers."""
        self._loop.remove_reader(self._listener)
        if self._next:
            self._next.cancel()

    async def wait_closed(self) -> None:
        """Do nothing: uvicorn waits for the connections itself."""

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._wait)

    def _wait(self) -> None:
        if seconds := min(EACH_SECONDS * len(self._connections), MOST_SECONDS):
            self._later(seconds, self._accept)
        else:
            self._accept()

    def _later(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener)
        self._next = self._loop.call_later(seconds, then)

    def _accept(self) -> None:
        self._listen()
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):  # another worker was faster, or the client has gone
            return
        except OSError as error:
            if error.errno not in OUT_OF_RESOURCES:
                raise
            log.warning("no connection can be accepted: %s", error)
            self._later(PAUSE_SECONDS, self._listen)
            return
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)  # the loop keeps no strong reference
        task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, protocol = await self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._ssl)
            self._connections = protocol.connections  # type: ignore[attr-defined] # all that this process has
        except OSError as error:  # gone already, or its TLS handshake failed
            log.debug("a connection was not opened: %s", error)
            connection.close()


class Loop(uvloop.Loop):
    """uvloop, except that a server on a given socket is an Acceptor."""

    async def create_server(self, protocol_factory: Any, *args: Any, **options: Any) -> Any:
        """See asyncio."""
        if options.get("sock") is None:
            return await super().create_server(protocol_factory, *args, **options)
        return Acceptor(self, protocol_factory, options["sock"], options.get("ssl"))


def new_loop(use_subprocess: bool = False) -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of event loops, in the form that uvicorn asks for."""
    return Loop


def install_loop() -> None:
    """Make uvicorn use `Loop`, for which BentoML has no option. To be called before a server is created."""
    LOOP_FACTORIES["auto"] = f"{new_loop.__module__}:{new_loop.__qualname__}"
