"""MLflow's webhook: only signed messages start the flow `deploy`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import mlflow
import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from starlette.testclient import TestClient

from flows import hook
from flows.deploy import deploy
from flows.ports import HOOK_SECRET
from tests.conftest import ROOT
from tests.service_helpers import free_port, wait_for


def message(secret: str = "secret", age: int = 0, **data: str) -> dict:
    """A message as MLflow sends it."""
    body = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": "unmask", "alias": "challenger"} | data})
    sent = str(int(time.time()) - age)
    headers = {"X-MLflow-Delivery-Id": "one", "X-MLflow-Timestamp": sent, "Content-Type": "application/json"}
    return {"content": body, "headers": headers | {"X-MLflow-Signature": _generate_hmac_signature(secret, "one", sent, body)}}


def test_only_what_mlflow_signed_lately_is_listened_to():
    client = TestClient(hook.app("secret"))
    assert client.post("/", **message()).status_code == 204  # signed, and about another alias
    assert client.post("/", **message(name="another")).status_code == 204
    for wrong in (message("another secret"), message(age=400), message(age=-400)):
        assert client.post("/", **wrong).status_code == 401
    good = message()
    assert client.post("/", content=good["content"].replace("challenger", "champion"), headers=good["headers"]).status_code == 401
    for header in ("X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"):
        assert client.post("/", content=good["content"], headers=good["headers"] | {header: "1"}).status_code == 401
    assert client.post("/", content=b"x" * (hook.LARGEST + 1), headers=good["headers"]).status_code == 413


@pytest.mark.long
def test_moving_the_alias_in_mlflow_starts_the_flow(tmp_path: Path):
    ports = {name: str(free_port()) for name in ("mlflow", "prefect", "hook")}
    uri, api = f"http://127.0.0.1:{ports['mlflow']}", f"http://127.0.0.1:{ports['prefect']}/api"
    environment = os.environ | hook.mlflow_environment("secret")
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": api, "PYTHONPATH": str(ROOT)}
    environment |= {"MLFLOW_TRACKING_URI": uri, HOOK_SECRET: "secret", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    commands = {
        "mlflow": ("mlflow", "server", "--port", ports["mlflow"], "--workers", "1", "--backend-store-uri", "sqlite:///mlflow.db"),
        "prefect": ("prefect", "server", "start", "--host", "127.0.0.1", "--port", ports["prefect"]),
        "hook": ("flows.hook", ports["hook"]),
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in commands.items():
            with (tmp_path / f"{name}.log").open("w") as log:
                started.append(subprocess.Popen([sys.executable, "-m", *command], cwd=tmp_path, env=environment, stdout=log, stderr=log))
            url = {"mlflow": f"{uri}/health", "prefect": f"{api}/health", "hook": f"http://127.0.0.1:{ports['hook']}/"}[name]
            wait_for(lambda url=url: answers(url), started[-1], str(tmp_path / f"{name}.log"), seconds=180)
        with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
            client.create_work_pool(WorkPoolCreate(name="local", type="process"))
            deploy.to_deployment("default", work_pool_name="local").apply()
            store = mlflow.MlflowClient(uri, uri)
            store.create_registered_model("unmask")
            store.create_model_version("unmask", "s3://nowhere/package", None)
            store.set_registered_model_alias("unmask", "challenger", "1")
            store.set_registered_model_alias("unmask", "champion", "1")
            wait_for(lambda: len(client.read_flow_runs()) == 1, seconds=30)
            store.delete_registered_model_alias("unmask", "champion")
            wait_for(lambda: len(client.read_flow_runs()) == 2, seconds=30)
    finally:
        for process in started:
            process.terminate()
            process.wait(timeout=30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code < 500
    except httpx.TransportError:
        return False
