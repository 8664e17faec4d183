"""When and whether: Prefect flows around the pipeline.

Two things of the tools are set here, before any of them is imported: no telemetry, and few silent retries of MLflow's client, because
Prefect retries where everyone can see it.
"""

import os

from pipeline import telemetry

telemetry.off()
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
