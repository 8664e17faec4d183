"""`make` before there is a .venv, and what `make clean` keeps."""

import fcntl
import shutil
from pathlib import Path

from tests.conftest import ROOT, run

PYTHON = """#!/bin/sh
mkdir -p "$3/bin" && touch "$3/bin/python" && chmod +x "$3/bin/python"
[ -e ensurepip ] || exit 1
printf '#!/bin/sh\\necho installs "$@"\\n' > "$3/bin/pip" && chmod +x "$3/bin/pip"
"""
"""Mimics Debian's Python without the package python3.11-venv: `-m venv` fails after it has made `bin/python`."""


def test_a_venv_that_was_made_by_half_is_made_anew(tmp_path: Path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    assert "installs" not in run(tmp_path, "make", "install", "PYTHON=./python", check=False)
    (tmp_path / "ensurepip").touch()
    assert "installs install" in run(tmp_path, "make", "install", "PYTHON=./python")
    assert "installs" not in run(tmp_path, "make", "install", "PYTHON=./python")


def test_make_clean_keeps_what_users_said_people_labelled_and_brought(tmp_path: Path):
    run(tmp_path, "make", "--file", str(ROOT / "Makefile"), "clean")  # works without the folders, too
    brought = ("var/feedback/feedback.jsonl", "var/labelling/2026-01-31/manifest.csv", "data/faces/real/a.jpg")
    kept = {tmp_path / name for name in brought}
    gone = {tmp_path / name for name in ("var/predictions.db", "var/.hidden", "var/checkpoints/1/weights", "data/raw/a", "mlflow.db")}
    for file in kept | gone:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("something")
    run(tmp_path, "make", "--file", str(ROOT / "Makefile"), "clean")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_make_clean_takes_nothing_from_a_run_that_is_active(tmp_path: Path):
    raw, lock = tmp_path / "data/raw/a", tmp_path / "var/materialise.lock"
    for file in (raw, lock):
        file.parent.mkdir(parents=True)
        file.write_text("something")
    clean = ("make", "--file", str(ROOT / "Makefile"), "clean")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "error: a run is active here (materialise)" in run(tmp_path, *clean, check=False)
    assert raw.exists()
    run(tmp_path, *clean)
    assert not raw.exists()


def test_make_runs_in_a_folder_of_any_name(tmp_path: Path):
    folder = tmp_path / "My Projects" / "Ünmask d'été"
    (folder / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("requirements.lock", "pyproject.toml", ".venv/.installed"):
        (folder / name).touch()
    (folder / ".venv/bin/python").write_text('#!/bin/sh\necho "$@" in "$PREFECT_HOME"\n')
    (folder / ".venv/bin/python").chmod(0o755)
    assert run(folder, "env", "--unset=PREFECT_HOME", "make", "up").strip() == f"-m flows.up in {folder}/var/prefect"
    assert (folder / "var/prefect").is_dir() and len(list(folder.iterdir())) == 5
