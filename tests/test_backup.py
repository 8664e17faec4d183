"""Backup and restore: after everything is made, backed up, wiped and restored, people see what they saw before."""

import fcntl
import io
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import yaml

from flows import cli, promotion, registry
from flows.backup import INDEX, backup
from flows.materialise import workspace_lock
from flows.restore import relocate, restore
from pipeline.champion_source import Registry
from pipeline.errors import StageError
from pipeline.monitoring import feedback
from tests.conftest import ROOT, run
from tests.package_helpers import tiny_package
from tests.service_helpers import free_port

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


def test_what_was_wiped_is_as_before(project: Path, tmp_path: Path):
    before, served = cli.status(), Registry(f"sqlite:///{project}/mlflow.db", tmp_path / "cache").wanted()
    assert before["champion"]["version"] == 1 and before["last_promotion"]["by"] == "Ada" and before["data_version"]
    file = tmp_path / "kept" / "monday.tar.gz"
    with closing(sqlite3.connect("var/prefect/prefect.db")) as server:
        server.execute("INSERT INTO flow_run VALUES ('committed')")
        server.commit()
        server.execute("INSERT INTO flow_run VALUES ('half done')")  # a server in the middle of a transaction
        made_of = backup(file)
    assert made_of["elsewhere"] == {} and file.stat().st_mode & 0o077 == 0
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]

    wipe(project)
    nothing = unmask("status")  # it creates nothing that a restore would have to overwrite
    assert nothing["champion"] is None and nothing["last_run"]["run_id"] is None and not (project / "mlflow.db").exists()
    unmask("restore", str(file))
    assert unmask("status") == before
    with closing(sqlite3.connect("var/prefect/prefect.db")) as server:
        assert server.execute("SELECT name FROM flow_run").fetchall() == [("committed",)]
    source = Registry(f"sqlite:///{project}/mlflow.db", tmp_path / "cache")
    assert source.wanted() == served and served is not None
    assert (source.fetch(served) / "card.md").is_file()
    assert [said.id for said in feedback.read(project / "var" / feedback.FOLDER)] == ["an answer"]
    assert not (project / "var/served").exists() and not (project / "var/cache").exists()
    run(project, sys.executable, "-m", "dvc", "checkout", "--quiet")
    assert (project / "data/raw/a").read_text() == "face\n"
    assert not list(project.rglob(".restore-*"))
    (project / "reports/evaluation.json").write_text('{"auc": 0.75}')
    compared = subprocess.run(
        [sys.executable, "-m", "dvc", "metrics", "diff", "HEAD", "--json"], text=True, capture_output=True, check=True
    )
    assert json.loads(compared.stdout) == {"reports/evaluation.json": {"auc": {"old": 0.5, "new": 0.75, "diff": 0.25}}}


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
        monkeypatch.setattr("flows.restore.relocate", lambda *_: run.enter_context(workspace_lock("run", print)))
        with pytest.raises(StageError, match=r"a run is active in this folder \(run\)"):
            restore(tmp_path / "a.tar.gz", force=True)
    assert content(project) == before | {project / "var/run.lock": b""}


def test_what_killed_backups_and_restores_left_goes_or_is_told(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    left, busy = (made(tmp_path / f".unmask-backup-{name}/archive") for name in ("killed", "at-work"))
    for file in (left, busy):
        file.touch()
    at_work = os.open(busy.parent, os.O_RDONLY)
    fcntl.flock(at_work, fcntl.LOCK_EX)
    backup(tmp_path / "a.tar.gz")
    os.close(at_work)
    assert not left.parent.exists() and busy.exists()

    cli.main(["status"])
    assert "restore" not in capsys.readouterr().out
    (project / ".restore-killed").mkdir()
    cli.main(["status"])
    assert f"{project}/.restore-killed: interrupted or still running" in capsys.readouterr().out


def test_a_project_moves_to_another_folder(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backup(tmp_path / "a.tar.gz")
    shutil.copytree(project, tmp_path / "moved", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts", "var", "reports", "cache"))
    shutil.rmtree(project)
    monkeypatch.chdir(tmp_path / "moved")
    restore(tmp_path / "a.tar.gz")
    source = Registry(f"sqlite:///{tmp_path}/moved/mlflow.db", tmp_path / "cache")
    version = source.wanted()
    assert version is not None and (source.fetch(version) / "card.md").is_file()


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


def test_the_command_reads_the_settings_file_and_shows_no_password(project: Path, tmp_path: Path):
    (project / ".env").write_text("MLFLOW_BACKEND_STORE_URI=mysql://unmask:hidden@localhost/mlflow\n")
    error = unmask("backup", str(tmp_path / "a.tar.gz"), ok=False)["error"]
    assert error.startswith("error: ") and "is mysql" in error and "hidden" not in error


def test_a_wrong_address_is_named_without_its_password(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "unmask:hidden@localhost")
    with pytest.raises(StageError, match="is not a URL like") as caught:
        backup(tmp_path / "a.tar.gz")
    assert "hidden" not in str(caught.value)


def test_data_on_a_remote_is_pushed_and_stays_there(project: Path, tmp_path: Path):
    run(project, sys.executable, "-m", "dvc", "remote", "add", "-d", "storage", str(tmp_path / "remote"))
    made_of = backup(tmp_path / "a.tar.gz")
    assert made_of["elsewhere"] == {"cache": "DVC remote storage"} and "cache" not in made_of["files"]
    assert any(path.is_file() for path in (tmp_path / "remote").rglob("*"))


def test_what_was_moved_to_another_disk_is_backed_up(project: Path, tmp_path: Path):
    shutil.move("var/feedback", tmp_path / "disk")
    Path("var/feedback").symlink_to(tmp_path / "disk")
    Path("var/circle").symlink_to("..")
    backup(tmp_path / "a.tar.gz")
    (tmp_path / "links").mkdir()
    for name in ("feedback", "circle"):
        shutil.move(f"var/{name}", tmp_path / "links")
    wipe(project)
    shutil.move(tmp_path / "links", "var")
    with pytest.raises(StageError, match=r"there is state already: var\. "):
        restore(tmp_path / "a.tar.gz")
    shutil.rmtree(tmp_path / "disk")
    restore(tmp_path / "a.tar.gz", force=True)
    assert [said.id for said in feedback.read(Path("var/feedback"))] == ["an answer"] and list(Path("var/feedback/images").iterdir())


def content(folder: Path) -> dict[Path, bytes]:
    """Every file, except the internals of git and DVC."""
    paths = {path: path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()}
    return {path: path.read_bytes() for path, parts in paths.items() if parts[0] != ".git" and parts[:2] != (".dvc", "tmp")}
