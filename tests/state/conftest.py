"""A project with everything that a backup holds."""

import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from flows.state.restore import relocate
from tests.conftest import ROOT, run
from tests.service_helpers import free_port
from tests.state.use import alone, made, registered

PORTS = ("MLFLOW_PORT", "PREFECT_PORT", "SERVICE_PORT")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a registered champion, a record of its promotion, feedback, answers, Prefect's database and DVC's cache."""
    folder = tmp_path_factory.mktemp("origin") / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / ".gitignore").write_text("/mlflow.db\n/mlartifacts/\n/var/\n/reports/\n")
    run(folder, "git", "init", "--quiet")
    run(folder, sys.executable, "-m", "dvc", "init", "--quiet")
    judged = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["evaluate"]["metrics"]
    command = "mkdir -p data/raw reports && echo face > data/raw/a && echo face > data/manifest.parquet"
    command += " && echo '{\"auc\": 0.5}' > reports/evaluation.json"
    ingest = {"cmd": command, "outs": ["data/raw", "data/manifest.parquet"], "metrics": judged}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"ingest": ingest}}))
    run(folder, sys.executable, "-m", "dvc", "repro", "--quiet")
    run(folder, "git", "add", "--all")
    run(folder, "git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        alone(patch)
        registered(folder, folder.parent)
    with closing(sqlite3.connect(made(folder / "var/prefect/prefect.db"))) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE flow_run (name)")
        database.commit()
    made(folder / "var/served/1/weights").write_text("downloaded again")
    made(folder / "var/cache/pixels.npy").write_text("decoded again")
    made(folder / "reports/train.json").write_text('{"run_id": "0123"}')
    return folder


@pytest.fixture
def project(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it for each test."""
    folder = shutil.copytree(origin, tmp_path / "project")
    relocate(folder / "mlflow.db", origin, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in PORTS:
        monkeypatch.setenv(name, str(free_port()))
    for name in ("PREFECT_API_URL", "SERVICE_URL"):
        monkeypatch.delenv(name, raising=False)
    alone(monkeypatch)
    return folder
