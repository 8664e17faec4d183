"""Runs a study: a pipeline module that trains on the split data for a report, not for serving."""

import json
import sys
from typing import Any

from prefect import get_run_logger

from flows.materialise import materialise, workspace_lock
from flows.process import environment, stream
from flows.registry import REPORTS
from flows.store import find_store
from pipeline.errors import StageError
from pipeline.params import load_params


def study(module: str) -> dict[str, Any]:
    """Run `pipeline.<module>`, or resume it if it was interrupted, and return its report. Call it in a flow.

    Raises:
        StageError: if the module or a stage before it fails, with its message.
        ParamsError: if params.yaml is wrong.
    """
    load_params()
    find_store()
    with workspace_lock():
        materialise(last="split")
        ended = stream([sys.executable, "-m", f"pipeline.{module}"], get_run_logger().info, environment())
    if ended.returncode:
        raise StageError(ended.message())
    found: dict[str, Any] = json.loads((REPORTS / f"{module}.json").read_text())
    return found
