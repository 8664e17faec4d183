"""The MLflow store in a plain SQLite file."""

import os
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

from pipeline import tracking
from tests.conftest import ROOT

CONNECT = "from pipeline.tracking import connect; connect()"
NO_ROOM = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"


def test_a_store_that_finds_no_room_is_not_left_half_made(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")} | {"PYTHONPATH": str(ROOT)}

    def connect(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True, capture_output=True)

    failed = connect(f"{NO_ROOM}; {CONNECT}")
    assert failed.returncode and "sqlite3.OperationalError" in failed.stderr
    assert not list(tmp_path.iterdir())
    done = connect(CONNECT)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_deleted_experiment_is_restored_and_records_again(new_store, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store())
    experiment, client = tracking.connect("unmask-monitoring"), MlflowClient()
    before = client.create_run(experiment).info.run_id
    client.delete_experiment(experiment)
    assert tracking.connect("unmask-monitoring") == experiment and "unmask-monitoring had been deleted" in caplog.text
    assert {run.info.run_id for run in client.search_runs([experiment])} == {before}
    client.create_run(experiment)
    caplog.clear()
    assert tracking.connect("unmask-monitoring") == experiment and not caplog.text


def test_a_store_that_does_not_answer_is_named_without_its_password(tmp_path: Path):
    uri = "http://ada:s3cret@127.0.0.1:9"
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "flows.cli", "rollback"], cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.stderr.startswith("error: MLflow at http://127.0.0.1:9") and "s3cret" not in done.stderr
    asked = """
from flows import registry
from flows.store import trouble
try:
    registry.holder("champion")
except Exception as error:
    print(trouble(error))
"""
    done = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert "MLflow at http://127.0.0.1:9 does not answer" in done.stdout and "s3cret" not in done.stdout
