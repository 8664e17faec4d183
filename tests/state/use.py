"""Makes, wipes and reads the state of a project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import promotion, registry
from pipeline.monitoring import feedback
from tests.package_helpers import tiny_package


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment says where the state is."""
    for name in ("MLFLOW_BACKEND_STORE_URI", "UNMASK_VAR", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # not deleted: MLflow's client sets it, which must be undone


def registered(folder: Path, scratch: Path) -> None:
    package = tiny_package(scratch / "package")
    experiment = registry.connect()
    client = registry.MlflowClient()
    client.create_registered_model("unmask")
    run_id = client.create_run(experiment).info.run_id
    client.log_artifacts(run_id, str(package), "package")
    uri = client.get_run(run_id).info.artifact_uri
    client.create_model_version("unmask", f"{uri}/package", run_id, tags={"gate": "passed", "package": "a digest"})
    version = registry.known(1)
    assert version
    registry.move("champion", version)
    promotion.record(version, "Ada")
    said = {"id": "an answer", "label": "real", "version": "1", "verdict": "fake", "probability_fake": 0.9}
    feedback.record(folder / "var" / feedback.FOLDER, **said, image=b"a picture")


def made(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def wipe(folder: Path) -> None:
    for name in ("mlartifacts", "var", "reports", ".dvc/cache", "data"):
        shutil.rmtree(folder / name)
    (folder / "mlflow.db").unlink()


def unmask(*arguments: str, ok: bool = True) -> dict:
    done = subprocess.run([sys.executable, "-m", "flows.cli", *arguments, "--json"], text=True, capture_output=True, env=dict(os.environ))
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return json.loads(done.stdout) if ok else {"error": done.stderr}


def content(folder: Path) -> dict[Path, bytes]:
    """Every file, except the internals of git and DVC."""
    paths = {path: path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()}
    return {path: path.read_bytes() for path, parts in paths.items() if parts[0] != ".git" and parts[:2] != (".dvc", "tmp")}
