"""Backup: after everything is made, backed up, wiped and restored, people see what they saw before."""

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows import cli
from flows.state.backup import backup
from flows.state.restore import restore
from pipeline.champion_source import Registry
from pipeline.errors import StageError
from pipeline.monitoring import feedback
from tests.conftest import run
from tests.state.use import made, unmask, wipe


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


def test_another_folder_is_not_backed_up_as_if_it_were_the_project(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # as cron does without `cd`
    with pytest.raises(StageError, match="is not the project's folder"):
        backup(tmp_path / "a.tar.gz")
    assert not (tmp_path / "a.tar.gz").exists()


def test_a_project_moves_to_another_folder(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backup(tmp_path / "a.tar.gz")
    shutil.copytree(project, tmp_path / "moved", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts", "var", "reports", "cache"))
    shutil.rmtree(project)
    monkeypatch.chdir(tmp_path / "moved")
    restore(tmp_path / "a.tar.gz")
    source = Registry(f"sqlite:///{tmp_path}/moved/mlflow.db", tmp_path / "cache")
    version = source.wanted()
    assert version is not None and (source.fetch(version) / "card.md").is_file()


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
