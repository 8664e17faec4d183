"""Restore: all or nothing, never from under a run or a server, never from an archive that is not whole."""

import io
import os
import socket
import tarfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows import promotion
from flows.materialise import workspace_lock
from flows.state.backup import INDEX, backup
from flows.state.restore import restore
from pipeline.errors import StageError
from tests.state.use import content, made, unmask


def test_a_restore_does_not_take_the_files_from_under_a_run(project: Path, tmp_path: Path):
    backup(tmp_path / "a.tar.gz")
    before = content(project)
    with workspace_lock("run", print), pytest.raises(StageError, match=r"a run is active in this folder \(run\)"):
        restore(tmp_path / "a.tar.gz", force=True)
    assert content(project) == before | {project / "var/run.lock": b""}
    restore(tmp_path / "a.tar.gz", force=True)


def test_a_run_that_starts_while_an_archive_is_unpacked_keeps_its_files(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backup(tmp_path / "a.tar.gz")
    before = content(project)
    with ExitStack() as run:
        monkeypatch.setattr("flows.state.restore.relocate", lambda *_: run.enter_context(workspace_lock("run", print)))
        with pytest.raises(StageError, match=r"a run is active in this folder \(run\)"):
            restore(tmp_path / "a.tar.gz", force=True)
    assert content(project) == before | {project / "var/run.lock": b""}


def test_state_that_is_here_goes_only_with_force(project: Path, tmp_path: Path):
    file = tmp_path / "a.tar.gz"
    backup(file)
    (project / "params.yaml").write_text("# changed by hand\n")
    (project / "var/promotions.jsonl").unlink()
    said = unmask("restore", str(file), ok=False)["error"]
    assert said.startswith("error: there is state already") and "--force" in said and "params.yaml" in said and "var" in said
    assert "dvc.lock" not in said  # git has it
    assert not promotion.history() and (project / "params.yaml").read_text() == "# changed by hand\n"
    with pytest.raises(StageError, match="already exists"):
        backup(file)
    restore(file, force=True)
    assert promotion.history()[-1]["by"] == "Ada" and "changed" not in (project / "params.yaml").read_text()


def test_a_restore_that_fails_half_way_changes_nothing(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.tar.gz"
    backup(file)
    made(project / "var/feedback/later").write_text("later")
    everything = content(project)
    rename, renamed = Path.rename, []

    def full_disk(source: Path, target: Path) -> None:
        renamed.append(target)
        if len(renamed) == 8:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(OSError, match="No space"):
        restore(file, force=True)
    assert len(renamed) > 8 and content(project) == everything


def test_a_running_server_and_a_wrong_archive_are_refused(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.tar.gz"
    backup(file)
    everything = content(project)
    whole = file.read_bytes()
    cut, damaged = tmp_path / "cut.tar.gz", tmp_path / "damaged.tar.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    damaged.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])  # in the checksum
    outside = tmp_path / "outside.tar.gz"
    with tarfile.open(outside, "w:gz") as archive:
        for name in ("../escaped", INDEX):
            member = tarfile.TarInfo(name)
            member.size = 2
            archive.addfile(member, io.BytesIO(b"{}"))
    with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("mlflow.db")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "text.tar.gz").write_text("no archive")
    for name in ("cut", "damaged", "outside", "link", "text", "missing"):
        with pytest.raises(StageError, match=name):
            restore(tmp_path / f"{name}.tar.gz", force=True)
    assert not (tmp_path / "escaped").exists() and not (project / "escaped").exists()
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://unmask@localhost/mlflow")
    with pytest.raises(StageError, match=r"holds mlflow\.db"):
        restore(file, force=True)
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI")
    with socket.create_server(("127.0.0.1", int(os.environ["PREFECT_PORT"]))), pytest.raises(StageError, match="PREFECT_PORT"):
        restore(file, force=True)
    assert content(project) == everything


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "PREFECT_API_URL", "SERVICE_URL"])
def test_a_server_that_an_address_names_is_found_on_any_port(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    file = tmp_path / "a.tar.gz"
    backup(file)
    everything = content(project)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"localhost:{server.getsockname()[1]}"
        monkeypatch.setenv(name, f"http://ada:hidden@{place}/api")
        with pytest.raises(StageError, match=f"{place} \\({name}\\)") as caught:
            restore(file, force=True)
    assert "hidden" not in str(caught.value) and content(project) == everything
    restore(file, force=True)  # it was stopped
