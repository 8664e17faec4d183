"""Where a model comes from: the hashes in dvc.lock, the git commit, the MLflow run of its training."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

DATA = ("ingest", "data/manifest.parquet")
SPLITS = ("split", "data/splits")


def lineage() -> dict[str, Any]:
    """Identify the current data, code and training of this workspace.

    Returns:
        data_md5: DVC's hash of data/manifest.parquet, which holds the SHA-256, label and group of each image: other labels make
        another data version. splits_md5: that of data/splits. git_commit, git_dirty: dirty means that a file differs from the commit,
        untracked ones included; dvc.lock does not count, because each run writes it. dvc_lock: SHA-256 of dvc.lock.
        run_id: the MLflow run in reports/train.json. Missing values are None.
    """
    lock, report = Path("dvc.lock"), Path("reports/train.json")
    content = lock.read_bytes() if lock.is_file() else None
    stages = (YAML(typ="safe").load(content) or {}).get("stages", {}) if content else {}
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)dvc.lock")
    return {
        "data_md5": _md5(stages, *DATA),
        "splits_md5": _md5(stages, *SPLITS),
        "git_commit": commit,
        "git_dirty": None if commit is None else bool(changes),
        "dvc_lock": hashlib.sha256(content).hexdigest() if content else None,
        "run_id": json.loads(report.read_text()).get("run_id") if report.is_file() else None,
    }


def _md5(stages: dict[str, Any], stage: str, path: str) -> str | None:
    return next((out.get("md5") for out in stages.get(stage, {}).get("outs", []) if out["path"] == path), None)


def _git(*arguments: str) -> str | None:
    """What git prints, or None without git, outside a repository or before the first commit."""
    try:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
