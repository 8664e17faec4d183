"""Every tool's telemetry off, in one place."""

import os

OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "BENTOML_DO_NOT_TRACK": "True",  # BentoML does not understand `1`
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def off() -> None:
    """Set the variables for this process and its children. Call it before the tools are imported; what the user has set stays."""
    for name, value in OFF.items():
        os.environ.setdefault(name, value)
