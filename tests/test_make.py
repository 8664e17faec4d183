"""What `make` does before there is a .venv."""

import shutil
from pathlib import Path

from tests.conftest import ROOT, run

PYTHON = """#!/bin/sh
mkdir -p "$3/bin" && touch "$3/bin/python" && chmod +x "$3/bin/python"
[ -e ensurepip ] || exit 1
printf '#!/bin/sh\\necho installs "$@"\\n' > "$3/bin/pip" && chmod +x "$3/bin/pip"
"""
"""Stands for Debian's Python, whose `-m venv` fails half-way, after its `python`, until the package python3.11-venv is there."""


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
