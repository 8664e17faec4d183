"""UNMASK_VAR: the folder of what the service and the flows leave behind."""

import os
from pathlib import Path

DRIFT_REPORT = Path("drift/report.json")
"""Inside it: what the drift flow found when it last ran."""


def var_folder() -> Path:
    """The folder; an empty variable counts as unset, as in deploy/env.example."""
    return Path(os.environ.get("UNMASK_VAR") or "var")
