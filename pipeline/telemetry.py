"""Turns off the telemetry of every tool, in one place."""

import os
import sys

OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "BENTOML_DO_NOT_TRACK": "True",  # BentoML does not understand `1`
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
NEVER = ("openvino_telemetry",)
"""Packages whose import is blocked: OpenVINO and NNCF report to Intel through it, have no variable to stop that, and work without it."""


def off() -> None:
    """Set the variables for this process and its children, before the tools are imported; values that the user has set stay."""
    for name, value in OFF.items():
        os.environ.setdefault(name, value)
    for name in NEVER:
        sys.modules[name] = None  # type: ignore[assignment]
