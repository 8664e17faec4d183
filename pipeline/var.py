"""UNMASK_VAR: the folder that the service and the flows write to."""

import os
from pathlib import Path

DRIFT_REPORT = Path("drift/report.json")
"""Inside it: the result of the last drift check."""


def var_folder() -> Path:
    """Path of the folder; an empty variable counts as unset, as in deploy/env.example."""
    return Path(os.environ.get("UNMASK_VAR") or "var")
