"""The service, packed into a bento."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.load import photograph
from pipeline.runtime import has_gpu
from tests.package_helpers import tiny_package
from tests.service_helpers import ROOT, served, wait_for

UNWANTED = ("mlflow", "prefect", "dvc")
PACKAGES = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"]
HIDING = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, *arguments):
        return None if name.partition(".")[0] in {hidden} else super().find_spec(name, *arguments)

sys.meta_path = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""


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


def hiding(folder: Path, *more: str) -> Path:
    """A folder that, on a Python's path, hides all installed packages that the bento's list does not need, and `more`."""
    needed = {"unmask"}  # its modules are inside the bento
    waiting = [Requirement(package) for package in PACKAGES]
    while waiting:
        one = waiting.pop()
        if canonicalize_name(one.name) in needed or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        needed.add(canonicalize_name(one.name))
        waiting += map(Requirement, importlib.metadata.requires(one.name) or [])
    installed = importlib.metadata.packages_distributions()
    hidden = {module for module, owners in installed.items() if not needed & {canonicalize_name(owner) for owner in owners}}
    assert {*UNWANTED, "scipy", "pandas"} <= hidden
    hidden |= set(more)
    (folder / "hiding").mkdir()
    (folder / "hiding" / "sitecustomize.py").write_text(HIDING.format(hidden=sorted(hidden)))
    return folder / "hiding"


def answers(folder: Path, bento: str, home: Path, python: Path | str = sys.executable, path: str = "") -> None:
    """Serve the bento from a folder, and use it."""
    with served(folder, bento, python, BENTOML_HOME=str(home), PYTHONPATH=path, UNMASK_VAR=str(folder / "var")) as client:
        wait_for(lambda: client.get("/readyz").is_success)
        picture = {"image": photograph(64, 0)}
        assert client.post("/predict", files=picture).raise_for_status().json()["model"]["version"] == "7"
        assert client.post("/explain", files=picture).is_success
        assert client.get("/").is_success and b"unmask_predictions_total" in client.get("/metrics").content


def explains_with_gradients(home: Path, python: Path | str = sys.executable, path: str = "") -> None:
    """Import the bento's PyTorch code, which runs networks on a GPU and explains those whose graph cannot."""
    sources = next(home.glob("bentos/*/*/src"))
    command = [python, "-c", "import pipeline.explanation.explain; print(pipeline.explanation.explain.__file__)"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([path, str(sources)])}
    done = subprocess.run(command, cwd=sources, env=environment, text=True, capture_output=True)
    assert done.returncode == 0 and str(sources) in done.stdout, done.stderr


def test_a_bento_runs_with_nothing_but_what_it_lists(tmp_path, bento, home):
    # On a CPU neither a verdict nor a heat map needs PyTorch, which takes seconds to import.
    answers(tmp_path, bento, home, path=str(hiding(tmp_path, *(() if has_gpu() else ("torch", "transformers")))))


@pytest.mark.long  # it has to import PyTorch once more
def test_a_bento_can_explain_with_gradients_too(tmp_path, bento, home):
    explains_with_gradients(home, path=str(hiding(tmp_path)))


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
    explains_with_gradients(home, python)


def test_a_bento_lists_the_versions_that_are_tested():
    for package in PACKAGES:
        name, version = package.split("==")
        assert importlib.metadata.version(name).split("+")[0] == version
