"""When and whether: Prefect flows around the pipeline.

Three things of the tools are set here, before any of them is imported: no telemetry; few silent retries of MLflow's client, because
Prefect retries where everyone can see it; and time for Prefect's own server to make its database, which a small machine needs.
"""

import os

from pipeline import telemetry

telemetry.off()
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
