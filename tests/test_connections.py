"""Limits on connections: a request's headers must arrive soon and be short."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from benchmarks.load import photograph
from serving.connections import HEADER_BYTES, BoundedProtocol
from tests.package_helpers import tiny_package
from tests.service_helpers import free_port, served, wait_for


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Iterator[httpx.Client]:
    package = tiny_package(tmp_path_factory.mktemp("packages") / "tiny")
    with served(tmp_path_factory.mktemp("workspace"), UNMASK_PACKAGE=str(package)) as client:
        wait_for(lambda: client.get("/readyz").is_success)
        yield client


def test_headers_that_go_on_for_ever_are_refused(opened):
    with socket.create_connection(("127.0.0.1", opened.base_url.port), timeout=20) as connection, suppress(ConnectionError):
        connection.sendall(b"GET /model HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        for _ in range(1000):
            connection.sendall(b"x" * 10_000)
    with socket.create_connection(("127.0.0.1", opened.base_url.port), timeout=20) as connection:
        connection.sendall(b"GET /model HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 2 * HEADER_BYTES)
        assert b" 400 " in connection.recv(1000).partition(b"\r\n")[0] and closed(connection)
    whole = {f"x-{number}": "x" * 1000 for number in range(50)}
    assert opened.get("/model", headers=whole).is_success and opened.post("/model", content=bytes(2 * HEADER_BYTES)).status_code == 405


def test_a_client_that_offers_http2_as_javas_does_is_answered_in_http1(opened):
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA"}
    for _ in range(2):  # requests after an offer are read, too
        assert "verdict" in opened.post("/predict", files={"image": photograph(96, 0)}, headers=offer).json()
    assert opened.get("/model", headers=offer).is_success


def test_a_client_that_wants_its_connection_closed_hears_why_its_upload_is_refused(opened):
    with closing(HTTPConnection("127.0.0.1", opened.base_url.port, timeout=60)) as connection:
        headers = {"Connection": "close", "Content-Type": "multipart/form-data; boundary=x"}
        connection.request("POST", "/predict", bytes(30_000_000), headers)
        assert connection.getresponse().status == 413


def test_requests_that_are_sent_at_once_are_all_answered_before_the_connection_ends(opened):
    first, last = (b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % header for header in (b"", b"Connection: close\r\n"))
    with socket.create_connection(("127.0.0.1", opened.base_url.port), timeout=20) as connection:
        connection.sendall(first + first + last)
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 3


def test_whoever_says_nothing_is_hung_up_on(monkeypatch):
    monkeypatch.setattr("serving.connections.HEADER_SECONDS", 0.5)
    monkeypatch.setattr("serving.connections.REST_SECONDS", 0.5)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(1)
        await PlainTextResponse("late")(scope, receive, send)

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(slow, port=port, http=BoundedProtocol, lifespan="off", timeout_keep_alive=60))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        silent, unfinished, waiting, unread, blank = (socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(5))
        unfinished.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        waiting.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        unread.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        blank.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert closed(silent) and closed(unfinished)
        assert b"late" in waiting.recv(4096)
        waiting.sendall(b"GET / HT")  # the next request on a kept-alive connection
        assert closed(waiting)
        assert b"late" in unread.recv(4096) and b"late" in blank.recv(4096)
        with suppress(ConnectionError):
            unread.sendall(b"x" * 500)  # the body of a request that was answered already
            blank.sendall(b"\r\n")  # allowed before a request, but not the start of one
        assert closed(unread) and closed(blank)
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def closed(connection: socket.socket) -> bool:
    """Whether the other side closes it within the connection's timeout."""
    with suppress(ConnectionError):
        while connection.recv(4096):
            pass
    return True
