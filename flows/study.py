"""Trainings that are not for serving: a module of the pipeline on the split data, whose report is for a person to read."""

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
    """Run `pipeline.<module>`, or go on with what was cut short of it, and return its report. To be called in a flow.

    Raises:
        StageError: with the message of the module, or of a stage before it.
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
