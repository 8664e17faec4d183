"""Every tool's telemetry off, in one place."""

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
"""Packages that cannot be imported: OpenVINO and NNCF report to Intel through this one, have no variable against it, and go on without."""


def off() -> None:
    """Set the variables for this process and its children, before the tools are imported; what the user has set stays."""
    for name, value in OFF.items():
        os.environ.setdefault(name, value)
    for name in NEVER:
        sys.modules[name] = None  # type: ignore[assignment]
