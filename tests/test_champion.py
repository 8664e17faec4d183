"""Which package is served: the promoted one, unless it cannot be trusted; the previous one, if MLflow does not answer."""

import asyncio
import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import mlflow
import pytest

from benchmarks.load import photograph
from pipeline import champion_source
from pipeline.champion import RETRY_SECONDS, Champion
from pipeline.champion import champion as chosen
from pipeline.champion_source import KEEP, Pinned, Registry, UnavailableError, UntilPromoted
from pipeline.package import GOLDEN, GRAPH, seal, verify
from pipeline.servable import OVERRIDE, SMOKE_TEST
from serving import app
from serving.context import Context
from serving.front import Front
from serving.settings import Settings
from tests.conftest import ROOT
from tests.package_helpers import META, tiny_package
from tests.service_helpers import client, register, wait_for

LET_GO = """
import os, signal, sys, threading
from pathlib import Path
from pipeline.runtime import OpenVinoRuntime

held = [OpenVinoRuntime(Path(sys.argv[1]))]
other = threading.Thread(target=held.clear)
other.start()
other.join()
signal.signal(signal.SIGCHLD, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGCHLD)
"""


def test_without_mlflow_the_last_champion_is_served_after_a_restart(tmp_path, package, new_store):
    store = new_store("mlflow")
    register(store, package)
    before = Champion(Registry(store, tmp_path / "served"))
    before.refresh()
    assert before.served is not None and before.trouble is None

    after = Champion(Registry("http://127.0.0.1:9", tmp_path / "served"), seconds=0.1)
    after.start()
    wait_for(lambda: after.served is not None)
    after.stop()
    assert after.served is not None and after.served.version == "1"
    assert after.trouble is not None and "does not answer" in after.trouble[0]


def test_the_champion_goes_on_when_its_alias_is_removed_and_changes_when_the_store_is_made_anew(tmp_path, package, new_store):
    store = new_store("mlflow")
    register(store, package)
    champion = Champion(Registry(store, tmp_path / "served"))
    champion.refresh()
    first = champion.served
    mlflow.MlflowClient(store, store).delete_registered_model_alias("unmask", "champion")
    champion.refresh()
    assert champion.served is first and champion.trouble is not None and "No model is promoted" in champion.trouble[0]

    anew = new_store("anew")
    shutil.copytree(package, tmp_path / "other" / "package")
    register(anew, tmp_path / "other" / "package")
    champion.source = Registry(anew, tmp_path / "served")
    champion.refresh()
    assert champion.served is not first and champion.served is not None and champion.served.version == "1" and champion.trouble is None


def test_a_damaged_download_is_fetched_again_and_old_ones_go(tmp_path, package, new_store):
    store = new_store("mlflow")
    folder = tmp_path / "served"
    for _ in range(KEEP + 1):
        register(store, package)
        Champion(Registry(store, folder)).refresh()
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [str(number) for number in range(2, KEEP + 2)]
    newest = folder / str(KEEP + 1)
    (newest / "preprocess.json").write_text("{}")
    champion = Champion(Registry(store, folder))
    champion.refresh()
    assert champion.served is not None and champion.trouble is None
    assert (newest / "preprocess.json").read_bytes() == (package / "preprocess.json").read_bytes()


def test_workers_that_want_the_same_version_download_it_once(tmp_path, package, new_store, monkeypatch):
    store = new_store("mlflow")
    register(store, package)
    workers, downloads, download = [Registry(store, tmp_path / "served") for _ in range(3)], [], champion_source._download

    def slow(*args: object) -> Path:
        downloads.append(args)
        time.sleep(0.5)
        return download(*args)

    monkeypatch.setattr(champion_source, "_download", slow)
    with ThreadPoolExecutor() as pool:
        folders = list(pool.map(lambda worker: worker.fetch(worker.wanted()), workers))
    assert len(downloads) == 1 and set(folders) == {tmp_path / "served" / "1"} and verify(folders[0]).golden


def test_a_package_whose_golden_answers_are_others_is_refused_and_the_old_one_goes_on(tmp_path, package, new_store):
    store = new_store("mlflow")
    register(store, package)
    champion = Champion(Registry(store, tmp_path / "served"))
    champion.refresh()
    before = champion.served

    changed = tmp_path / "changed" / "package"
    shutil.copytree(package, changed)
    listed = json.loads((changed / GOLDEN / "golden.json").read_text())
    (changed / GOLDEN / "golden.json").write_text(
        json.dumps({name: example | {"probability_fake": example["probability_fake"] - 0.05} for name, example in listed.items()})
    )
    seal(changed, META)
    register(store, changed)
    champion.refresh()
    assert champion.served is before and before is not None and before.version == "1"
    assert champion.trouble is not None and "Version 2 was refused: the golden example 0.png" in champion.trouble[0]


def test_a_refused_package_is_tried_again_once_the_cause_may_be_gone(tmp_path, package, monkeypatch):
    champion = Champion(Pinned(package), faces=tmp_path / "not-mounted-yet.onnx")
    champion.refresh()
    assert champion.trouble is not None and "was refused: face detector" in champion.trouble[0]
    champion.faces = None
    champion.refresh()
    assert champion.served is None  # loading a model every second would take the cores from the answers
    later = time.monotonic() + RETRY_SECONDS + 1
    monkeypatch.setattr("pipeline.champion.time.monotonic", lambda: later)
    champion.refresh()
    assert champion.served is not None and champion.trouble is None


def test_a_package_without_golden_examples_is_served(tmp_path, package):
    bare = tmp_path / "bare"
    shutil.copytree(package, bare)
    (bare / GOLDEN / "golden.json").write_text("{}")
    seal(bare, META)
    champion = Champion(Pinned(bare))
    champion.refresh()
    assert champion.served is not None and champion.trouble is None and verify(bare).golden == {}


def test_a_pinned_folder_that_is_not_whole_is_read_again_when_a_file_in_it_changes(tmp_path, package):
    source = Pinned(tmp_path / "package")
    with pytest.raises(UnavailableError, match=r"has no package\.json"):
        source.wanted()
    graph = shutil.copytree(package, tmp_path / "package") / GRAPH
    whole, then = graph.read_bytes(), graph.stat().st_mtime_ns
    for content in (whole[::-1], whole):
        graph.write_bytes(content)
        os.utime(graph, ns=(then, then))
        with pytest.raises(UnavailableError, match="was changed after the package was made"):
            source.wanted()  # the second time from memory, as it is asked every second and a package may have gigabytes
    os.utime(graph)
    assert source.wanted().number == verify(package).digest[:12]


def test_a_folder_that_is_named_is_served_whatever_is_packed_with_the_service(package, tmp_path, monkeypatch):
    monkeypatch.setenv("UNMASK_PACKAGE", str(package))
    assert chosen(bundled=tmp_path / "packed", version="7").source.wanted().number == verify(package).digest[:12]
    monkeypatch.delenv("UNMASK_PACKAGE")
    assert chosen(bundled=package, version="7").source.wanted().number == "7"


def test_the_starter_answers_until_the_first_promotion_and_never_after_it(tmp_path, package, new_store):
    starter = tiny_package(tmp_path / "starter", created="2026-02-03T04:05:06+00:00")
    store = new_store("mlflow")
    champion = Champion(UntilPromoted(Registry(store, tmp_path / "served"), starter))
    champion.refresh()
    assert champion.served is not None and champion.served.version == "starter" and champion.trouble is None
    register(store, package)
    champion.refresh()
    assert champion.served.version == "1"
    mlflow.MlflowClient(store, store).delete_registered_model_alias("unmask", "champion")
    champion.refresh()
    assert champion.served.version == "1" and champion.trouble is not None and "No model is promoted" in champion.trouble[0]


def test_the_old_model_is_freed_once_its_last_answer_is_given(tmp_path, package, new_store):
    store = new_store("mlflow")
    register(store, package)
    shutil.copytree(package, tmp_path / "second" / "package")
    champion = Champion(Registry(store, tmp_path / "served"))
    champion.refresh()
    routes = app.make()
    routes.state.context = context = Context(Settings(var=tmp_path / "var"), champion)
    assert champion.served is not None
    old = weakref.ref(champion.served.detector)
    files = {"image": photograph(96, 0)}

    async def use() -> list[str]:
        transport = httpx.ASGITransport(Front(routes, routes.state))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            (await client.post("/explain", files=files)).raise_for_status()
            under_way = [asyncio.create_task(client.post("/predict", files=files)) for _ in range(32)]
            await asyncio.to_thread(register, store, tmp_path / "second" / "package")
            under_way += [asyncio.create_task(client.post("/predict", files=files)) for _ in range(32)]
            await asyncio.sleep(0.01)
            await asyncio.to_thread(champion.refresh)
            versions = [answer.raise_for_status().json()["model"]["version"] for answer in await asyncio.gather(*under_way)]
            return [*versions, (await client.post("/predict", files=files)).json()["model"]["version"]]

    versions = asyncio.run(use())
    assert "1" in versions and versions[-1] == "2"
    gc.collect()
    assert old() is None
    context.log.close()


def test_signals_are_heard_after_another_thread_let_go_of_a_model(package: Path):
    done = subprocess.run([sys.executable, "-c", LET_GO, package / GRAPH], cwd=ROOT, text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_a_password_in_mlflows_address_is_percent_encoded(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    heard = []

    class Asked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode())
            self.send_error(401)

    with HTTPServer(("127.0.0.1", 0), Asked) as server:
        asking = threading.Thread(target=server.handle_request)
        asking.start()
        with pytest.raises(UnavailableError, match="401"):
            Registry(f"http://a%40b:p%40ss%3A@127.0.0.1:{server.server_port}", tmp_path).wanted()
        asking.join()
    assert heard == ["a@b:p@ss:"]  # as MLflow's own client reads it


def test_why_a_version_is_not_served_does_not_reveal_mlflows_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    version = {"version": "3", "creation_timestamp": 1, "tags": [{"key": "gate", "value": "passed"}]}

    class OnlyTheAlias(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "alias=" in self.path:  # any other connection is closed without an answer
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"model_version": version}).encode())

    with HTTPServer(("127.0.0.1", 0), OnlyTheAlias) as server:
        answering = threading.Thread(target=server.serve_forever)
        answering.start()
        champion = Champion(Registry(f"http://ada:s3@cret@127.0.0.1:{server.server_port}", tmp_path))
        champion.refresh()
        server.shutdown()
        answering.join()
    assert champion.trouble is not None and f"http://127.0.0.1:{server.server_port}/api" in champion.trouble[0]
    assert "cret" not in champion.trouble[0]


def test_what_deploy_refuses_is_not_served(tmp_path: Path, package: Path, new_store):
    store = new_store()
    register(store, package)
    source = Registry(store, tmp_path / "served")
    assert source.wanted()
    client(store).delete_model_version_tag("unmask", "1", "gate")
    with pytest.raises(UnavailableError, match="Version 1 did not pass its gate: it has none"):
        source.wanted()
    client(store).set_model_version_tag("unmask", "1", OVERRIDE, "Ada: registered by hand")
    assert source.wanted()
    client(store).set_model_version_tag("unmask", "1", SMOKE_TEST, "failed: it does not start")
    with pytest.raises(UnavailableError, match="Version 1 did not pass its smoke test"):
        source.wanted()
