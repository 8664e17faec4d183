"""`make up` for real: all servers under one supervisor, a deployment run from the command line, and nothing left after ctrl-C."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.automation import NAME
from flows.ports import PORTS
from flows.promotion import SOMEBODY
from tests.conftest import ROOT, at_work_in
from tests.service_helpers import free_port, wait_for

UP = (sys.executable, "-m", "flows.up")


TAKE = (sys.executable, "-c", "from flows.ports import take; print(take('MLFLOW_PORT'), flush=True); input()")


@pytest.fixture(scope="module")
def ports() -> dict[str, str]:
    return {name: str(free_port()) for name in PORTS}


@pytest.fixture(scope="module")
def environment(ports: dict[str, str], prefect_home, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    homes = {"PREFECT_HOME": str(prefect_home()), "BENTOML_HOME": str(tmp_path_factory.mktemp("bentoml"))}
    inherited = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    return inherited | homes | ports


@pytest.fixture(scope="module")
def workspace(finished: Path, copy_workspace) -> Path:
    folder = copy_workspace(finished)
    shutil.copy(ROOT / "prefect.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def up(workspace: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    log = (workspace / "up.log").open("w+")
    process = subprocess.Popen(UP, cwd=workspace, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_for(lambda: "Worker" in (workspace / "up.log").read_text(), process, log.name, seconds=240)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


def test_a_run_from_the_command_line_is_registered_and_seen_everywhere(up, workspace: Path, environment: dict[str, str], ports):
    api, mlflow_uri = f"http://127.0.0.1:{ports['PREFECT_PORT']}/api", f"http://127.0.0.1:{ports['MLFLOW_PORT']}"
    command = [sys.executable, "-m", "prefect", "deployment", "run", "train/default", "--watch"]
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        assert client.read_automations_by_name(NAME)[0].enabled
        assert {deployment.name for deployment in client.read_deployments()} == {"default"}
        for name in ("deploy/default", "score/default", "tune/default", "leave-one-out/default"):
            assert client.read_deployment_by_name(name)
        drift = client.read_deployment_by_name("drift/default")
        assert [schedule.schedule.cron for schedule in drift.schedules] == ["0 * * * *"]
        wait_for(lambda: any(run.deployment_id == drift.id and run.auto_scheduled for run in client.read_flow_runs()))
        done = subprocess.run(command, env=environment | {"PREFECT_API_URL": api}, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr + (workspace / "up.log").read_text()
        trained = client.read_deployment_by_name("train/default").id
        runs = [run for run in client.read_flow_runs() if run.deployment_id == trained]
        assert [run.state_name for run in runs if run.state and run.state.is_completed()] == ["Completed"]
        tasks = {task.name: task.state_name for task in client.read_task_runs()}
    assert {stage: tasks[stage] for stage in ("ingest", "validate", "split", "train", "evaluate", "export")} == dict.fromkeys(
        ("ingest", "validate", "split", "train", "evaluate", "export"), "Cached"
    )
    query = {"name": "unmask", "alias": "challenger"}
    version = httpx.get(f"{mlflow_uri}/api/2.0/mlflow/registered-models/alias", params=query).json()["model_version"]
    assert version["version"] == "1"

    # A person promotes; the service follows.
    service = f"http://127.0.0.1:{ports['SERVICE_PORT']}"
    assert httpx.get(f"{service}/readyz").status_code == 503
    body = {"name": "unmask", "alias": "champion", "version": "1"}
    httpx.post(f"{mlflow_uri}/api/2.0/mlflow/registered-models/alias", json=body).raise_for_status()
    wait_for(lambda: httpx.get(f"{service}/readyz").status_code == 200)
    face = next((workspace / "data/raw").rglob("*.jpg"))
    answer = httpx.post(f"{service}/predict", files={"image": face.read_bytes()}).json()
    # This training ran before there was a server: its run names the one that it replays.
    record = httpx.get(f"{mlflow_uri}/api/2.0/mlflow/runs/get", params={"run_id": version["run_id"]}).json()["run"]
    replayed = next(tag["value"] for tag in record["data"]["tags"] if tag["key"] == "replayed_from")
    assert answer["model"]["version"] == "1" and answer["model"]["run_id"] == replayed
    # The flow `deploy` runs every minute, and records what was promoted.
    promotions = workspace / "var/promotions.jsonl"
    wait_for(lambda: promotions.is_file() and promotions.read_text(), seconds=180)
    line = json.loads(promotions.read_text())
    assert line["version"] == 1 and line["bento"].startswith("unmask:") and line["by"] == SOMEBODY


def test_what_a_person_paused_stays_so_when_a_worker_starts_again(up, workspace: Path, environment: dict[str, str], ports):
    api = f"http://127.0.0.1:{ports['PREFECT_PORT']}/api"
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        deploy, drift = (client.read_deployment_by_name(f"{name}/default") for name in ("deploy", "drift"))
        client.update_deployment_schedule(deploy.id, deploy.schedules[0].id, active=False)
        client.pause_deployment(drift.id)
        subprocess.run([sys.executable, "-m", "flows.deployments"], cwd=workspace, env=environment | {"PREFECT_API_URL": api}, check=True)
        deploy, drift = (client.read_deployment_by_name(f"{name}/default") for name in ("deploy", "drift"))
    assert not deploy.paused and [schedule.active for schedule in deploy.schedules] == [False]
    assert drift.paused and [schedule.active for schedule in drift.schedules] == [True]


def test_a_taken_port_is_named(up, workspace: Path, environment: dict[str, str], ports):
    again = subprocess.run(UP, cwd=workspace, env=environment, text=True, capture_output=True)
    assert again.returncode == 1 and f"port {ports['MLFLOW_PORT']}" in again.stderr and "MLFLOW_PORT=" in again.stderr


def test_a_port_is_taken_before_its_server_listens():
    environment = os.environ | {"MLFLOW_PORT": str(free_port())}
    first = subprocess.Popen(TAKE, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout and first.stdout.readline()
    again = subprocess.run(TAKE, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert again.returncode == 1 and "another `make up`; choose another with MLFLOW_PORT=" in again.stderr
    first.communicate("\n")
    assert first.returncode == 0 and subprocess.run(TAKE, cwd=ROOT, env=environment, input=b"\n").returncode == 0


def test_ctrl_c_stops_all_of_it(up, workspace: Path, ports):
    os.kill(up.pid, signal.SIGINT)
    assert up.wait(timeout=60) == 0
    for port in ports.values():
        with closing(socket.socket()) as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0
    assert not at_work_in(workspace)
