"""Prefect flows: they decide when and whether the pipeline runs.

Three settings must be made before the tools are imported: no telemetry; few silent retries in MLflow's client, because Prefect's
retries are visible; and enough time for Prefect's ephemeral server to create its database on a small machine.
"""

import os

from pipeline import telemetry

telemetry.off()
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
