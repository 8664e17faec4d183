"""The service packed into a bento."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.load import photograph
from tests.package_helpers import tiny_package
from tests.service_helpers import ROOT, served, wait_for

UNWANTED = ("mlflow", "prefect", "dvc")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bentoml")


@pytest.fixture(scope="module")
def bento(tmp_path_factory, home) -> str:
    """The tag of a bento that `bentoml build` made, as the deploy flow does."""
    source = tmp_path_factory.mktemp("source")
    for name in ("service.py", "bentofile.yaml", ".bentoignore"):
        shutil.copy(ROOT / name, source / name)
    for name in ("pipeline", "serving", "web"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    tiny_package(source / "models" / "champion")
    environment = os.environ | {"BENTOML_HOME": str(home), "PYTHONPATH": ""}
    build = [sys.executable, "-m", "bentoml", "build", "--label", "model_version=7", "--output", "tag"]
    built = subprocess.run(build, cwd=source, env=environment, text=True, capture_output=True)
    assert built.returncode == 0, built.stderr
    return built.stdout.strip().splitlines()[-1].removeprefix("__tag__:")


def answers(folder: Path, bento: str, home: Path, python: Path | str = sys.executable, path: str = "") -> None:
    """Serve it from a folder, and use it."""
    with served(folder, bento, python, BENTOML_HOME=str(home), PYTHONPATH=path, UNMASK_VAR=str(folder / "var")) as client:
        wait_for(lambda: client.get("/readyz").is_success)
        picture = {"image": photograph(64, 0)}
        assert client.post("/predict", files=picture).raise_for_status().json()["model"]["version"] == "7"
        assert client.post("/explain", files=picture).is_success
        assert client.get("/").is_success and b"unmask_predictions_total" in client.get("/metrics").content


def test_a_bento_runs_without_mlflow_prefect_and_dvc(tmp_path, bento, home):
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    for name in UNWANTED:
        (blocker / f"{name}.py").write_text("raise ImportError(__name__)\n")
    answers(tmp_path, bento, home, path=str(blocker))


@pytest.mark.long
def test_a_bento_runs_where_only_what_it_lists_is_installed(tmp_path, bento, home):
    requirements = next(home.glob("bentos/*/*/env/python/requirements.txt"))
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    installed = subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], text=True, capture_output=True)
    if installed.returncode and "No matching distribution" in installed.stderr:
        pytest.skip(f"there is no package index that has everything: {installed.stderr}")
    assert not installed.returncode, installed.stderr
    listed = subprocess.run([python, "-m", "pip", "list", "--format", "json"], text=True, capture_output=True, check=True).stdout
    names = {package["name"].lower() for package in json.loads(listed)}
    assert not set(UNWANTED) & names and "bentoml" in names
    answers(tmp_path, bento, home, python)


def test_a_bento_lists_the_versions_that_are_tested():
    packages = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"]
    for package in packages:
        name, version = package.split("==")
        assert importlib.metadata.version(name).split("+")[0] == version
