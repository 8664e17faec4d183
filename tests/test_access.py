"""Access control: keys, loopback only, rate limits, queues."""

import asyncio
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import bentoml
import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.datastructures import State
from starlette.requests import Request

from pipeline.errors import StageError
from serving.access import RateLimiter, check, is_loopback
from serving.errors import ApiError
from serving.front import Front
from serving.settings import Settings
from tests.service_helpers import ROOT, free_port, served, wait_for

KEY, OTHER = "first-key-0123456789", "schlüssel"
BEARER = {"Authorization": f"Bearer {KEY}"}


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def locked(folder, package) -> Iterator[httpx.Client]:
    with served(folder, UNMASK_PACKAGE=str(package), UNMASK_API_KEYS=f"{KEY}, {OTHER}", UNMASK_RATE="30") as client:
        wait_for(lambda: client.get("/readyz").is_success)
        yield client


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def opened(alone, package) -> Iterator[httpx.Client]:
    with served(alone, UNMASK_PACKAGE=str(package), UNMASK_QUEUE="2", UNMASK_UPLOAD_TIMEOUT="20") as client:
        wait_for(lambda: client.get("/readyz").is_success)
        yield client


def test_with_keys_only_health_and_the_page_are_open(locked):
    for path in ("/livez", "/readyz", "/", "/app.js", "/status", "/status.html"):
        assert locked.get(path).is_success, path
    for path in ("/model", "/model/card", "/metrics", "/openapi.json", "/schema.json", "/docs.json", "/drift"):
        answer = locked.get(path)
        assert refusal(answer) == (401, "unauthorized"), path
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/predict", "/predict/batch", "/explain", "/feedback"):
        assert refusal(locked.post(path, files={"image": png()})) == (401, "unauthorized")


def test_a_key_opens_in_either_header_and_a_wrong_one_does_not(locked):
    assert locked.get("/model", headers=BEARER).is_success
    assert locked.get("/model", headers={"X-API-Key": KEY}).is_success
    assert locked.get("/model", headers={"X-API-Key": OTHER.encode()}).is_success
    assert locked.get("/model", headers={"X-API-Key": KEY, "Authorization": "Bearer a-proxys-own"}).is_success
    wrong = (
        {"Authorization": f"Basic {KEY}"},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": ""},
        {"Authorization": "Bearer"},
        {"X-API-Key": f"{KEY}, x"},
    )
    for headers in wrong:
        assert refusal(locked.get("/model", headers=headers)) == (401, "unauthorized"), headers


def test_a_key_keeps_its_name_when_another_one_is_taken_out():
    def name(*keys: str) -> str:
        scope = {"type": "http", "headers": [(b"x-api-key", KEY.encode())], "client": ("10.0.0.1", 1)}
        return check(Request(scope), Settings.from_environment({"UNMASK_API_KEYS": ",".join(keys)}))

    assert name("gone", KEY) == name(KEY) and KEY not in name(KEY)


def test_bentos_own_client_sends_the_key(locked, tmp_path):
    (tmp_path / "photo.png").write_bytes(png())
    with bentoml.SyncHTTPClient(str(locked.base_url), token=KEY) as own:
        assert own.predict(image=tmp_path / "photo.png")["verdict"] in ("real", "fake", "uncertain")


def test_a_client_that_asks_too_often_is_told_when_to_come_back(locked):
    answers = [locked.post("/predict", files={"image": png()}, headers={"X-API-Key": OTHER.encode()}) for _ in range(40)]
    late = [answer for answer in answers if answer.status_code != 200]
    assert late and refusal(late[0]) == (429, "too_many_requests") and int(late[0].headers["retry-after"]) >= 1
    assert locked.post("/predict", files={"image": png()}, headers=BEARER).is_success  # another client is not held up


@pytest.mark.parametrize("size", [1000, 99_000_000])  # half of the places, half of the memory
def test_a_client_that_keeps_slow_uploads_open_does_not_shut_out_the_others(folder, package, size):
    head = f"POST /predict/batch HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\nContent-Length: {size}\r\n".encode()
    head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
    keys = {"UNMASK_API_KEYS": f"{KEY},other", "UNMASK_QUEUE": "12"}
    with served(folder, UNMASK_PACKAGE=str(package), **keys) as client, ExitStack() as slow:
        wait_for(lambda: client.get("/readyz").is_success)
        for _ in range(9):
            last = slow.enter_context(socket.create_connection(("127.0.0.1", client.base_url.port), timeout=20))
            last.sendall(head)
        answer = b""
        while b"of this client are under way" not in answer:
            answer += (part := last.recv(4096))
            assert part, answer
        assert b" 429 " in answer.split(b"\r\n")[0]
        assert client.post("/predict", files={"image": png()}, headers={"X-API-Key": "other"}).is_success


def test_the_log_holds_no_key_and_no_picture(locked, folder):
    locked.post("/predict", files={"image": ("secret-name.png", png())}, headers=BEARER)
    log = (folder / "service.log").read_bytes()
    assert KEY.encode() not in log and OTHER.encode() not in log and b"secret-name" not in log and b"IDAT" not in log


def test_without_keys_only_this_machine_is_answered(opened, alone):
    assert opened.get("/model").is_success
    # Requests that a proxy on this machine forwards, and DNS rebinding, where the host is another name.
    for headers in ({"X-Forwarded-For": "203.0.113.9"}, {"Host": "evil.example"}, {"Host": "192.0.2.1:3000"}, {"Host": "["}):
        assert refusal(opened.get("/model", headers=headers)) == (403, "loopback_only"), headers
        assert refusal(opened.get("/", headers=headers)) == (403, "loopback_only"), headers
        assert opened.get("/livez", headers=headers).is_success
    assert opened.get("/model", headers={"Host": "localhost:3000"}).is_success
    assert "UNMASK_API_KEYS is not set: only this machine is answered" in (alone / "service.log").read_text()


@pytest.mark.parametrize(
    ("host", "settings", "message"),
    [
        (["--host", "0.0.0.0"], {}, "without UNMASK_API_KEYS the service listens only on this machine, and not on 0.0.0.0"),
        ([], {}, "without UNMASK_API_KEYS the service listens only on this machine, and not on 0.0.0.0"),
        (["--host", "127.0.0.1"], {"UNMASK_QUEUE": "many"}, "UNMASK_QUEUE"),
    ],
)
def test_a_wrong_start_ends_at_once_and_takes_nothing_from_who_runs(opened, alone, host, settings, message):
    assert opened.post("/predict", files={"image": png()}).is_success
    counted = opened.get("/metrics").text
    assert "unmask_predictions_total{" in counted
    command = [sys.executable, "-m", "bentoml", "serve", "service:Unmask", *host, "--port", str(free_port())]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")} | settings
    environment["BENTOML_HOME"] = str(alone / "bentoml")  # that of the running service, as both belong to one user
    ended = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=60)
    assert ended.returncode and message in " ".join(ended.stderr.split()) and "Traceback" not in ended.stderr
    assert opened.get("/metrics").text == counted


def test_what_is_this_machine():
    assert is_loopback("127.8.9.1") and is_loopback("::1") and is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("10.0.0.1") and not is_loopback("::ffff:10.0.0.1") and not is_loopback("localhost.evil.example")


def test_another_sites_page_is_refused_and_gets_no_cors(opened):
    foreign = {"Origin": "https://evil.example"}
    for headers in (foreign, {"Origin": "http://["}, {"Origin": "null"}, {"Origin": "https://evil.example", "Host": "["}):
        assert refusal(opened.post("/predict", files={"image": png()}, headers=headers)) == (403, "cross_origin")
    assert "Host" in opened.post("/predict", headers=foreign).json()["error"]["hint"]  # a proxy may have to pass it on
    asked = opened.options("/predict", headers=foreign | {"Access-Control-Request-Method": "POST"})
    assert not asked.is_success and "access-control-allow-origin" not in asked.headers
    own = {"Origin": str(opened.base_url).rstrip("/")}
    assert opened.post("/predict", files={"image": png()}, headers=own).is_success


def test_what_fails_outside_the_routes_is_answered_and_logged(caplog):
    async def broken(*_: object) -> None:
        raise RuntimeError("it broke")

    counted: list[str] = []
    metrics = SimpleNamespace(refused=counted.append)
    context = SimpleNamespace(settings=Settings(), rate=RateLimiter(0), metrics=metrics)

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(Front(broken, State({"context": context})))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/model")

    answer = asyncio.run(asked())
    assert refusal(answer) == (500, "internal") and counted == ["internal"]
    assert answer.headers["connection"] == "close"  # and the server does close it
    assert "it broke" in caplog.text


def test_no_request_writes_a_line_of_its_own_into_the_log(opened, alone):
    assert refusal(opened.get("/x%0a2026-01-01 forged%1b[2K")) == (404, "not_found")
    log = alone / "service.log"
    wait_for(lambda: "forged" in log.read_text(), seconds=10)
    assert refusal(opened.post("/predict", content=b"", headers={"Content-Type": b"\xff"})) == (415, "not_multipart")
    wait_for(lambda: "path=/predict" in log.read_text().split("forged")[1], seconds=10)
    line = next(line for line in log.read_text().split("\n") if "forged" in line)
    assert "path=/x\\n2026-01-01 forged\\x1b[2K" in line


def test_a_full_queue_is_answered_at_once(opened):
    address = ("127.0.0.1", opened.base_url.port)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n\r\n--x"
    slow = [socket.create_connection(address) for _ in range(2)]
    for connection in slow:
        connection.sendall(head)
    time.sleep(1)  # a request that arrived before them would take one of their places

    def full() -> bool:
        answer = opened.post("/predict", files={"image": png()})
        return answer.status_code == 429 and refusal(answer) == (429, "busy") and answer.headers["retry-after"] == "1"

    wait_for(full, seconds=20)
    assert b"408" in slow[0].recv(4096).split(b"\r\n")[0]  # an upload that never ends is ended
    for connection in slow:
        connection.close()
    wait_for(lambda: opened.post("/predict", files={"image": png()}).is_success, seconds=10)
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda _: opened.post("/predict", files={"image": png()}).is_success, range(6)))


def test_uploads_that_would_fill_the_memory_together_are_refused_while_the_first_goes_on(opened):
    head = b"POST /predict/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with socket.create_connection(("127.0.0.1", opened.base_url.port), timeout=20) as first:
        first.sendall(head + b"Content-Length: 60000000\r\n\r\n--x")

        def full() -> bool:  # two places in the queue, and room for one batch of 100 MB
            with socket.create_connection(("127.0.0.1", opened.base_url.port), timeout=20) as second:
                second.sendall(head + b"Content-Length: 60000000\r\n\r\n--x")
                return b" 429 " in second.recv(100)

        wait_for(full, seconds=20)
        assert b" 408 " in first.recv(100)
    wait_for(lambda: opened.post("/predict", files={"image": png()}).is_success, seconds=10)


def test_a_bucket_fills_again(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("serving.access.time.monotonic", lambda: now[0])
    limit = RateLimiter(60)
    for _ in range(60):
        limit.acquire("a")
    with pytest.raises(ApiError) as caught:
        limit.acquire("a")
    assert caught.value.headers == {"Retry-After": "2"}
    limit.acquire("b")
    now[0] = 2.0
    limit.acquire("a")
    now[0] = 3600.0
    for _ in range(60):  # an hour's silence saves up no more than a minute's worth
        limit.acquire("a")
    with pytest.raises(ApiError):
        limit.acquire("a")
    RateLimiter(0).acquire("a")


def test_settings_name_the_variable_that_is_wrong():
    assert Settings.from_environment({"UNMASK_API_KEYS": ""}).api_keys == ()
    keys = Settings.from_environment({"UNMASK_API_KEYS": " a ,b,"})
    assert [key.get_secret_value() for key in keys.api_keys] == ["a", "b"] and "a" not in repr(keys.api_keys)
    assert Settings.from_environment({"UNMASK_MAX_MEGABYTES": "3.5"}).images.max_bytes == 3_500_000
    wrong = {"UNMASK_QUEUE": "0", "UNMASK_TIMEOUT": "soon", "UNMASK_RATE": "-1"}
    wrong |= {"UNMASK_MAX_MEGABYTES": "inf", "UNMASK_MAX_MEGAPIXELS": "inf", "UNMASK_MAX_BATCH_MEGABYTES": "nan", "UNMASK_FORMATS": ","}
    for name, value in wrong.items():
        with pytest.raises(StageError, match=name):
            Settings.from_environment({name: value})
    assert Settings.from_environment({"UNMASK_FORMATS": "png, Jpeg"}).images.formats == ("PNG", "JPEG")
    with pytest.raises(StageError, match=r"UNMASK_FORMATS: .*JPG.* of JPEG, PNG, WEBP"):
        Settings.from_environment({"UNMASK_FORMATS": "JPG,PNG"})
