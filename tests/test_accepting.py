"""Several workers share one listening socket: who accepts, and what happens when nobody can."""

import asyncio
import resource
import socket
import ssl
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from serving.accepting import Loop
from tests.conftest import ROOT
from tests.service_helpers import wait_for

WORKER = """
import os, socket, sys
import uvicorn
from starlette.responses import PlainTextResponse
from serving.accepting import install_loop
from serving.connections import install_protocol

install_loop()
install_protocol()
config = uvicorn.Config(PlainTextResponse(str(os.getpid())), log_level="warning")
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""


def ask(connection: HTTPConnection) -> str:
    """The process that answers on the connection."""
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def test_clients_that_connect_at_once_are_shared_among_the_workers_and_a_lost_worker_costs_none():
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))

        def connect() -> HTTPConnection:
            connection = stack.enter_context(closing(HTTPConnection(*listener.getsockname(), timeout=20)))
            connection.connect()
            return connection

        command = (sys.executable, "-c", WORKER, str(listener.fileno()))
        workers = [stack.enter_context(subprocess.Popen(command, cwd=ROOT, pass_fds=[listener.fileno()])) for _ in range(2)]
        for worker in workers:
            stack.callback(worker.kill)
        seen: set[str] = set()

        def met() -> bool:
            with closing(connect()) as connection:
                seen.add(ask(connection))
            return len(seen) == len(workers)

        wait_for(met, seconds=60)
        answered = Counter(ask(connection) for connection in [connect() for _ in range(40)])
        assert min(answered.values()) >= 8, answered
        workers[0].terminate()
        workers[0].wait(timeout=60)
        assert {ask(connect()) for _ in range(10)} == {str(workers[1].pid)}


class Greeting(asyncio.Protocol):
    """Says hello."""

    connections: ClassVar[set[Any]] = set()

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        """Say it, and hang up."""
        transport.write(b"hello")
        transport.close()


def test_a_process_without_room_for_connections_accepts_them_later(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("serving.accepting.PAUSE_SECONDS", 0.1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def attempt() -> bytes:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            server = await loop.create_server(Greeting, sock=listener)
            client.setblocking(False)
            used = client.fileno() + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
            try:
                await loop.sock_connect(client, listener.getsockname())
                with suppress(TimeoutError):
                    await asyncio.wait_for(loop.sock_recv(client, 10), 0.3)
                assert "no connection can be accepted" in caplog.text
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            received = await asyncio.wait_for(loop.sock_recv(client, 10), 20)
            server.close()
            return received

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(attempt()) == b"hello"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a certificate for localhost, signed by itself, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "both.pem").write_bytes(private + made.sign(key, SHA256()).public_bytes(Encoding.PEM))
    return tmp_path / "both.pem"


def test_connections_are_encrypted_if_asked_and_one_that_is_not_disturbs_no_other(certificate: Path):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def attempt() -> list[bytes]:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = await loop.create_server(Greeting, sock=listener, ssl=context)
            plain, plain_writer = await asyncio.open_connection(*listener.getsockname())
            plain_writer.write(b"GET / HTTP/1.1\r\n\r\n")
            trusting = ssl.create_default_context(cafile=certificate)
            secret, _ = await asyncio.open_connection(*listener.getsockname(), ssl=trusting, server_hostname="localhost")
            received = [await asyncio.wait_for(reader.read(), 20) for reader in (plain, secret)]
            server.close()
            return received

    with asyncio.Runner(loop_factory=Loop) as runner:
        plain, secret = runner.run(attempt())
    assert b"hello" not in plain and secret == b"hello"
