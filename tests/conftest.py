"""Fixtures that several test files share."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock

from benchmarks import project
from pipeline.params import Params, load_params
from pipeline.settings import apply, folder_source
from tests.data_helpers import picture

ROOT = Path(__file__).parent.parent
# Not the folders of the user's own runs. BentoML keeps the one that its process started with.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="unmask-prefect-")
os.environ["BENTOML_HOME"] = tempfile.mkdtemp(prefix="unmask-bentoml-")
# Or the starter model would fetch one, where there is a network.
os.environ["UNMASK_FACE_DETECTOR"] = "none"
# Three files are tested at a time, perhaps on two cores: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SMALL = {
    "data.sources": [
        {"kind": "procedural", "name": "procedural", "reals": 48, "size": 48, "seed": 7, "jpeg_quality": [90, 98]}
        | {"generators": {"self_blend": 0.4, "swap": 0.35, "resynthesis": 0.25}}
    ],
    "validate.min_images": 20,
    "validate.shortcut.warn": 1.0,  # a few dozen images say nothing about shortcuts
    "validate.shortcut.refuse": 1.0,
    "model.config": {"image_size": 48, "patch_size": 8, "stem_width": 8}
    | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    # Half of the patches and small steps, so that there is time for a kill between two checkpoints.
    "train.epochs": 4,
    "train.batch_size": 4,
    "train.checkpoints_per_epoch": 2,
    "train.patch_dropout": 0.5,
    "evaluate.bootstrap": 100,
    "evaluate.attack_images": 4,
    "evaluate.robustness_images": 8,
    "evaluate.baseline_images": 60,
    "evaluate.explain_images": 4,
    "export.golden": 2,
    "gates": {"test.f1.value": {"min": 0.0}},
}
"""Settings for a run of seconds."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that make the first run, which takes longest, and with those that wait for it only later.

    Otherwise the last file would keep a worker busy for minutes after the others are done.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def using(fixture: str) -> set[Path]:
        return {path for path, tests in files.items() if any(fixture in test.fixturenames for test in tests)}  # type: ignore[attr-defined]

    waiting = using("finished")
    making = using("first_run") - waiting
    others = sorted(files.keys() - making - waiting)
    half = len(others) // 2
    items[:] = [test for path in (*sorted(making), *others[:half], *sorted(waiting), *others[half:]) for test in files[path]]


@pytest.fixture(scope="session")
def make_workspace() -> Callable[[Path], Path]:
    """A function that copies the project, with small settings, into its own git and DVC repository in a folder."""

    def make(folder: Path) -> Path:
        project.make(folder, SMALL)
        return folder

    return make


@pytest.fixture(scope="session")
def first_run(
    make_workspace: Callable[..., Path], prefect_home: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Path:
    """A folder that is made once for all test processes.

    `run` is a workspace whose first `make run` was killed during training, and whose second finished; `printed` is the output of the
    second, and `bentoml` the store of its bento. `finished` is a copy of the workspace from before anything else was done with it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "first-run"
    with FileLock(folder.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
        if not (folder / "finished").exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a process that failed to make it
            patch.setenv("PREFECT_HOME", str(prefect_home()))
            patch.setenv("BENTOML_HOME", str(folder / "bentoml"))
            patch.delenv("PREFECT_API_URL", raising=False)
            workspace, command = make_workspace(folder / "run"), (sys.executable, "-m", "flows.run")
            kill_when_training(command, workspace)
            (folder / "printed").write_text(run(workspace, *command))
            ignored = shutil.ignore_patterns("mlflow.db*", "mlartifacts", "var", "champion", "killed.log", "tmp", "__pycache__")
            shutil.copytree(workspace, folder / "copying", symlinks=True, ignore=ignored)
            (folder / "copying").rename(folder / "finished")
    return folder


@pytest.fixture(scope="session")
def finished(first_run: Path) -> Path:
    """A workspace after a whole run, but without its records. Tests that change anything take a copy."""
    return first_run / "finished"


@pytest.fixture(scope="session")
def copy_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that copies a workspace with all that was made in it, except the MLflow store."""

    def copy(origin: Path) -> Path:
        folder = tmp_path_factory.mktemp("copy") / "workspace"
        shutil.copytree(origin, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", "__pycache__", "tmp"))
        return folder

    return copy


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model package of an untrained network, shared by the tests of a file."""
    from tests.package_helpers import tiny_package

    return tiny_package(tmp_path_factory.mktemp("packages") / "tiny")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def new_store(tmp_path: Path, empty_store: Path) -> Callable[..., str]:
    """A function that returns the URI of a new MLflow store: a copy, because making one takes seconds."""
    return lambda name="mlflow": f"sqlite:///{shutil.copyfile(empty_store, tmp_path / f'{name}.db')}"


@pytest.fixture
def store(tmp_path, monkeypatch, new_store) -> str:
    """The test's own empty MLflow store, in its folder, which becomes the working directory."""
    uri = new_store()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("UNMASK_VAR", str(tmp_path / "var"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return uri


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[], Path]:
    """A function that returns a new PREFECT_HOME with a complete database: a copy, because making one takes more than ten seconds."""
    base = tmp_path_factory.getbasetemp()
    made = (base if worker_id == "master" else base.parent) / "prefect-home"
    with FileLock(made.with_suffix(".lock")):
        if not made.exists():
            folder = tmp_path_factory.mktemp("prefect")
            command = (sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes")
            subprocess.run(command, env=os.environ | {"PREFECT_HOME": str(folder)}, check=True, capture_output=True)
            folder.rename(made)

    def home() -> Path:
        return Path(shutil.copytree(made, tmp_path_factory.mktemp("home") / "prefect"))

    return home


@pytest.fixture(scope="module")
def prefect_server(prefect_home: Callable[[], Path]) -> Iterator[None]:
    """A Prefect server for flows that the tests of a file call directly."""
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    before = list(threading._threading_atexits)  # type: ignore[attr-defined]
    with temporary_settings({PREFECT_HOME: prefect_home()}):
        server = SubprocessASGIServer()
        server.start(timeout=180)
        with temporary_settings({PREFECT_API_URL: server.api_url}):
            yield
        server.stop()
    # Every process forked from now on (by a DataLoader) would run Prefect's exit hooks, which fail there, and exit with 1.
    threading._threading_atexits[:] = before  # type: ignore[attr-defined]


def kill_when_training(command: tuple[str, ...], folder: Path) -> None:
    """Start a command in the folder, `kill -9` it once its training has written two checkpoints, and wait until its children ended."""
    pattern = "var/checkpoints/*/checkpoint-*/trainer_state.json"
    before = set(folder.glob(pattern))
    with (folder / "killed.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, env=_environment(), stdout=log, stderr=log)
        end = time.monotonic() + 300
        while len(set(folder.glob(pattern)) - before) < 2:
            assert process.poll() is None and time.monotonic() < end, (folder / "killed.log").read_text()
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        while at_work_in(folder):
            assert time.monotonic() < end, f"{at_work_in(folder)} goes on"
            time.sleep(0.1)


def at_work_in(folder: Path) -> list[int]:
    """Processes whose working folder this is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(int(process.name))
    return found


def run(folder: Path, *command: str, check: bool = True) -> str:
    """Run a command in the folder with this Python first on PATH; return its output."""
    done = subprocess.run(command, cwd=folder, env=_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 or not check, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def _environment() -> dict[str, str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    # `make test` hands its own options to every make that a test starts, which then also says where it is.
    for name in ("MLFLOW_TRACKING_URI", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        environment.pop(name, None)
    return environment


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """30 reals and 30 fakes, all different, in one format."""
    for number, label in enumerate(("real", "fake")):
        for index in range(30):
            picture(tmp_path / "faces" / label / f"{index}.jpg", seed=1000 * number + index, quality=90)
    return tmp_path / "faces"


@pytest.fixture
def prepare(tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Params]:
    """A function that makes a workspace for the folder of faces and returns its settings."""

    def make(**values: object) -> Params:
        folder = tmp_path / "workspace"
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / "params.yaml", folder)
        settings = {"validate.min_images": 5, "split.holdout_generators": [], "split.shares": {"train": 0.6, "val": 0.2, "test": 0.2}}
        settings |= folder_source(faces) | {name.replace("__", "."): value for name, value in values.items()}
        apply(settings, folder / "params.yaml")
        monkeypatch.chdir(folder)
        return load_params()

    return make
