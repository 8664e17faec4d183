"""The stores of a real installation: MLflow and Prefect in Postgres, artifacts and data on S3, all set in one file."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy.engine import make_url

from benchmarks.project import answers
from flows.ports import PORTS
from flows.state import postgres as programs
from pipeline.errors import StageError
from tests.conftest import ROOT
from tests.service_helpers import free_port, wait_for
from tests.store_helpers import BIN, postgres, sql

pytestmark = [pytest.mark.long, pytest.mark.skipif(BIN is None, reason="needs Postgres: apt-get install postgresql")]
WITH_ENV = (sys.executable, "-m", "dotenv", "run", "--no-override", "--")
STORES = ("MLFLOW_BACKEND", "MLFLOW_ARTIFACTS", "MLFLOW_TRACKING", "PREFECT_API_", "PREFECT_SERVER_API", "PREFECT_SERVER_DATABASE", "AWS_")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


def bucket(endpoint: str) -> "boto3.client":
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=endpoint, **keys)


@pytest.fixture
def project(finished: Path, copy_workspace, tmp_path: Path) -> Path:
    folder = copy_workspace(finished)
    shutil.copy(ROOT / "prefect.yaml", folder)
    return folder


def called(project: Path) -> dict[str, str]:
    """An environment without settings of stores: they come from the file."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(STORES)}
    return inherited | {"PREFECT_HOME": str(project / "var/prefect"), "BENTOML_HOME": str(project.parent / "bentoml")}


@contextmanager
def up(project: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """Run `make up` by hand, with the settings of the file."""
    with (project / "up.log").open("w+") as log:
        process = subprocess.Popen(
            [*WITH_ENV, sys.executable, "-m", "flows.up"], cwd=project, env=called(project), stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(ready, process, log.name, seconds=480)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def test_the_loop_runs_on_postgres_and_s3_and_comes_back_from_a_backup(project: Path, endpoint: str, tmp_path: Path):
    bucket(endpoint).create_bucket(Bucket="unmask")
    with postgres("mlflow", "prefect") as place:
        ports = {name: str(free_port()) for name in PORTS}
        settings = ports | {
            "MLFLOW_BACKEND_STORE_URI": f"postgresql://{place}/mlflow",
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://unmask/mlflow",
            "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{place}/prefect",
            "PREFECT_SERVER_API_AUTH_STRING": "unmask:secret",
            "PREFECT_API_AUTH_STRING": "unmask:secret",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        (project / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        databases = {name: make_url(settings["MLFLOW_BACKEND_STORE_URI"]).set(database=name) for name in ("mlflow", "prefect")}
        mlflow, service = (f"http://127.0.0.1:{ports[name]}" for name in ("MLFLOW_PORT", "SERVICE_PORT"))

        def call(*command: str, **more: str) -> str:
            done = subprocess.run([*WITH_ENV, *command], cwd=project, env=called(project) | more, text=True, capture_output=True)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        def status() -> dict:
            found = json.loads(call(sys.executable, "-m", "flows.cli", "status", "--json"))
            return {name: found[name] for name in ("data_version", "last_run", "champion", "challenger")}

        def keys(prefix: str) -> list[str]:
            return [entry["Key"] for entry in bucket(endpoint).list_objects_v2(Bucket="unmask", Prefix=prefix).get("Contents", [])]

        api = f"http://127.0.0.1:{ports['PREFECT_PORT']}/api"
        dvc = (sys.executable, "-m", "dvc")
        call(*dvc, "remote", "add", "--force", "--default", "storage", "s3://unmask/data")
        with up(project, lambda: "Worker" in (project / "up.log").read_text()):
            call(sys.executable, "-m", "prefect", "deployment", "run", "train/default", "--watch", PREFECT_API_URL=api)
            body = {"name": "unmask", "alias": "champion", "version": "1"}
            httpx.post(f"{mlflow}/api/2.0/mlflow/registered-models/alias", json=body).raise_for_status()
            wait_for(lambda: httpx.get(f"{service}/readyz").json().get("version") == "1", seconds=120)
            before = status()
            call(sys.executable, "-m", "flows.cli", "backup", str(tmp_path / "backup.tar.gz"))
        assert any("/package/" in key for key in keys("mlflow/")) and keys("data/files/md5/")
        assert not (project / "mlflow.db").exists() and not (project / "mlartifacts").exists()
        assert not (project / "var/prefect/prefect.db").exists()

        assert "there is state already" in refused(project, tmp_path / "backup.tar.gz")
        for database in databases.values():
            sql(database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        shutil.rmtree(project / "var")
        shutil.rmtree(project / "reports")
        call(sys.executable, "-m", "flows.cli", "restore", str(tmp_path / "backup.tar.gz"))
        with up(project, lambda: all(map(answers, (f"{mlflow}/health", f"{api}/health", f"{service}/livez")))):
            wait_for(lambda: httpx.get(f"{service}/readyz").json().get("version") == "1", seconds=120)
            assert status() == before
            assert httpx.post(f"{api}/flow_runs/filter", json={}).status_code == 401
            runs = httpx.post(f"{api}/flow_runs/filter", json={}, auth=("unmask", "secret")).json()
            assert any(run["name"] and run["state_type"] == "COMPLETED" for run in runs)
        # Once more, over existing state, and with a table of a newer release.
        sql(databases["mlflow"], "CREATE TABLE newer (id int)")
        tables = programs.tables(databases["mlflow"])
        call(sys.executable, "-m", "flows.cli", "restore", str(tmp_path / "backup.tar.gz"), "--force")
        assert programs.tables(databases["mlflow"]) == tables - 1


def refused(project: Path, file: Path) -> str:
    command = [*WITH_ENV, sys.executable, "-m", "flows.cli", "restore", str(file)]
    return subprocess.run(command, cwd=project, env=called(project), text=True, capture_output=True).stderr


def test_a_database_that_cannot_be_restored_stays_as_it_is(tmp_path: Path):
    with postgres("mlflow") as place:
        url = make_url(f"postgresql://{place}/mlflow")
        sql(url, "CREATE TABLE kept (id int)", "INSERT INTO kept SELECT generate_series(1, 1000)")
        programs.dump(url, tmp_path / "whole.dump")
        (tmp_path / "cut.dump").write_bytes((tmp_path / "whole.dump").read_bytes()[:-20])
        sql(url, "CREATE TABLE later (id int)")
        with pytest.raises(StageError, match="pg_restore"):
            programs.load(url, tmp_path / "cut.dump")
        assert programs.tables(url) == 2
        programs.load(url, tmp_path / "whole.dump")
        assert programs.tables(url) == 1
        with pytest.raises(StageError, match="password authentication failed") as failed:
            programs.tables(url.set(password="wrong-secret"))
        assert "wrong-secret" not in str(failed.value)
