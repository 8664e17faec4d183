"""The service packed into a bento."""

import importlib.metadata
import os
import shutil
import subprocess
import sys

import yaml

from benchmarks.load import photograph
from tests.package_helpers import tiny_package
from tests.service_helpers import ROOT, served, wait_for


def test_a_bento_runs_without_mlflow_prefect_and_dvc(tmp_path):
    source, home = tmp_path / "source", tmp_path / "bentoml"
    source.mkdir()
    for name in ("service.py", "bentofile.yaml", ".bentoignore"):
        shutil.copy(ROOT / name, source / name)
    for name in ("pipeline", "serving", "web"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    tiny_package(source / "models" / "champion")
    environment = os.environ | {"BENTOML_HOME": str(home), "PYTHONPATH": ""}
    build = [sys.executable, "-m", "bentoml", "build", "--label", "model_version=7", "--output", "tag"]
    built = subprocess.run(build, cwd=source, env=environment, text=True, capture_output=True)
    assert built.returncode == 0, built.stderr
    tag = built.stdout.strip().splitlines()[-1].removeprefix("__tag__:")

    blocker = tmp_path / "blocker"
    blocker.mkdir()
    for name in ("mlflow", "prefect", "dvc"):
        (blocker / f"{name}.py").write_text("raise ImportError(__name__)\n")
    with served(tmp_path, tag, BENTOML_HOME=str(home), PYTHONPATH=str(blocker), UNMASK_VAR=str(tmp_path / "var")) as client:
        wait_for(lambda: client.get("/readyz").is_success)
        assert client.post("/predict", files={"image": photograph(64, 0)}).json()["model"]["version"] == "7"
        assert client.post("/explain", files={"image": photograph(64, 0)}).is_success
        assert client.get("/").is_success


def test_a_bento_lists_the_versions_that_are_tested():
    packages = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"]
    for package in packages:
        name, version = package.split("==")
        assert importlib.metadata.version(name).split("+")[0] == version
