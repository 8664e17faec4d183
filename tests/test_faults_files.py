"""Faults without servers: two runs at once, a missing remote, a full disk. A rerun ends in one version with one run."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.settings import apply
from tests.conftest import run
from tests.fault_helpers import LONGER, registered_once

pytestmark = pytest.mark.long

RUN = (sys.executable, "-m", "flows.run")
DVC = (sys.executable, "-m", "dvc")


@pytest.fixture
def workspace(finished: Path, copy_workspace: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with something to train."""
    for name in ("PREFECT_HOME", "BENTOML_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    folder = copy_workspace(finished)
    apply(LONGER, folder / "params.yaml")
    return folder


def store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def test_two_runs_at_once(workspace: Path):
    logs = [workspace / "var/first.log", workspace / "var/second.log"]
    processes = []
    for log in logs:
        log.parent.mkdir(exist_ok=True)
        with log.open("w") as out:
            processes.append(subprocess.Popen(RUN, cwd=workspace, stdout=out, stderr=out))
    for process, log in zip(processes, logs, strict=True):
        assert process.wait(timeout=600) == 0, log.read_text()
    said = "".join(log.read_text() for log in logs)
    assert said.count("another run is active in this folder (run)") == 1
    assert said.count("Running stage 'train'") == 1
    assert registered_once(workspace, store(workspace)).version == 1


@pytest.mark.parametrize("remote", ["s3", "folder"])
def test_a_remote_that_is_gone_stops_no_training(workspace: Path, tmp_path: Path, remote: str):
    url = "s3://bucket/faces" if remote == "s3" else str(tmp_path / "unmounted" / "storage")
    run(workspace, *DVC, "remote", "add", "--default", "storage", url)
    if remote == "s3":
        for name, value in {"endpointurl": "http://127.0.0.1:9", "access_key_id": "none", "secret_access_key": "none"}.items():
            run(workspace, *DVC, "remote", "modify", "storage", name, value)
    else:
        (tmp_path / "unmounted").touch()  # where a disk was mounted
    run(workspace, *RUN)
    registered_once(workspace, store(workspace))
    assert "ERROR" in run(workspace, *DVC, "push", check=False)
    run(workspace, *DVC, "remote", "add", "--force", "--default", "storage", str(tmp_path / "storage"))
    run(workspace, *DVC, "push")
    shutil.rmtree(workspace / ".dvc/cache")
    shutil.rmtree(workspace / "models")
    run(workspace, *DVC, "pull")
    run(workspace, *RUN)
    registered_once(workspace, store(workspace))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)]).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [0, 300, 1000, 2000, 4000])
def test_a_full_disk(workspace: Path, disk: Path, kilobytes: int):
    folder = shutil.move(workspace, disk / "workspace")
    filler = disk / "filler"
    free = shutil.disk_usage(disk).free - kilobytes * 1000
    with filler.open("wb") as file:
        file.write(b"\0" * free)
    full = run(folder, *RUN, check=False)
    assert "error:" in full and "is full" in full and "free some space and run again" in full, full
    filler.unlink()
    run(folder, *RUN)
    assert registered_once(folder, store(folder)).version == 1
