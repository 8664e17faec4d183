"""Promotions, killed workers and a stop of a service in use: none of it costs a client an answer."""

import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.load import photograph
from tests.package_helpers import META, tiny_package
from tests.service_helpers import register, served, wait_for

pytestmark = pytest.mark.long

CLIENTS = 32
TWO_WORKERS = {"BENTOML_CONFIG_OPTIONS": "services.unmask.workers=2"}
SMALL = photograph(96, 0)


def workers(client: httpx.Client) -> list[psutil.Process]:
    """The processes that answer on the client's port."""
    server = next(process for process in psutil.Process().children(recursive=True) if str(client.base_url.port) in process.cmdline())
    living = [process for process in server.children(recursive=True) if process.status() != psutil.STATUS_ZOMBIE]
    return [process for process in living if "_bentoml_impl.worker.service" in process.cmdline()]


def predict(client: httpx.Client) -> dict:
    answer = client.post("/predict", files={"image": SMALL}).raise_for_status()
    return dict(answer.json())


def alone(address: httpx.URL) -> dict:
    """An answer over a new connection, which any worker may accept."""
    with httpx.Client(base_url=address, timeout=60) as client:
        return predict(client)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def store(workspace) -> str:
    return f"sqlite:///{workspace / 'mlflow.db'}"


@pytest.fixture(scope="module")
def service(workspace, store) -> Iterator[httpx.Client]:
    """Two workers that follow an alias."""
    register(store, tiny_package(workspace / "first" / "package"))
    with served(workspace, **TWO_WORKERS) as client:
        wait_for(lambda: len(workers(client)) == 2 and client.get("/readyz").is_success, seconds=120)
        yield client


def test_a_promotion_under_load_fails_no_request_and_all_workers_change_over(service, store, workspace):
    bounds = {"1": META["thresholds"]["real_below"], "2": 0.25}
    package = tiny_package(workspace / "second" / "package", thresholds=META["thresholds"] | {"real_below": bounds["2"]})
    end, seen = threading.Event(), []

    def use(_: int) -> list[dict]:
        answers = []
        with httpx.Client(base_url=service.base_url, timeout=60) as client:
            while not end.is_set():
                answers.append(predict(client))
                seen.append(answers[-1]["model"]["version"])
        return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        using = pool.map(use, range(CLIENTS))
        try:
            wait_for(lambda: len(seen) > 2 * CLIENTS)
            register(store, package)
            promoted = time.monotonic()
            wait_for(lambda: len(seen) > CLIENTS and set(seen[-4 * CLIENTS :]) == {"2"}, seconds=60)
            passed = time.monotonic() - promoted
        finally:
            end.set()
        for answers in using:
            versions = [answer["model"]["version"] for answer in answers]
            assert [version for version, _ in itertools.groupby(versions)] in (["1"], ["1", "2"], ["2"])  # a client stays with one worker
            assert all(answer["thresholds"]["real_below"] == bounds[answer["model"]["version"]] for answer in answers)
    print(f"all workers changed over {passed:.1f} s after the promotion, while {len(seen)} requests were answered")
    assert all(alone(service.base_url)["model"]["version"] == "2" for _ in range(16))


def test_a_refused_package_leaves_the_old_one_serving_under_load(service, store, workspace):
    broken = workspace / "third" / "package"
    shutil.copytree(workspace / "second" / "package", broken)
    (broken / "graph" / "openvino.bin").write_bytes(b"\0" * 100)
    register(store, broken)
    with ThreadPoolExecutor(CLIENTS) as pool:
        wait_for(lambda: "Version 3 was refused" in (service.get("/readyz").json()["trouble"] or ""), seconds=60)
        assert {answer["model"]["version"] for answer in pool.map(lambda _: predict(service), range(200))} == {"2"}


def test_a_killed_worker_comes_back_and_the_other_one_serves_on(service):
    killed = workers(service)[0]
    killed.send_signal(signal.SIGKILL)
    answered = 0
    for _ in range(20):
        try:
            answered += alone(service.base_url)["verdict"] in ("real", "fake", "uncertain")
        except httpx.TransportError:  # a connection that the killed one had taken
            continue
    assert answered >= 18
    wait_for(lambda: len(workers(service)) == 2 and killed.pid not in [worker.pid for worker in workers(service)], seconds=60)
    assert all(alone(service.base_url)["model"]["version"] == "2" for _ in range(16))


def test_a_stop_lets_what_is_under_way_end(tmp_path):
    large = photograph(3464, 0)
    package = tiny_package(tmp_path / "tiny")
    with served(tmp_path, UNMASK_PACKAGE=str(package)) as client:
        wait_for(lambda: client.get("/readyz").is_success)
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(client.post, "/predict", files={"image": large}) for _ in range(8)]
            wait_for(lambda: not any(answer.done() for answer in answers))
            time.sleep(0.5)  # until they are received
            os.kill(workers(client)[0].ppid(), signal.SIGTERM)
            assert [answer.result().status_code for answer in answers] == [200] * 8
