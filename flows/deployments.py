"""Tells a Prefect server what there is to run: the work pool, the deployments of prefect.yaml and the automation. Safe to repeat."""

import os
import subprocess
import sys
import time

from prefect.client.orchestration import get_client

from flows.automation import retrain_on_drift
from flows.ports import POOL
from pipeline.params import load_params

TRAIN_POOL = "UNMASK_TRAIN_POOL"
"""The work pool of the flows that train, where those have machines of their own."""

WAIT_SECONDS = 180


def main() -> None:
    """Wait for the server that PREFECT_API_URL names, then deploy everything to it."""
    _wait()
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    subprocess.run([*prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"], check=True)
    # prefect.yaml takes these from the environment, so that there is one place where each is set.
    settings = {"UNMASK_DRIFT_CRON": load_params().drift.cron, TRAIN_POOL: os.environ.get(TRAIN_POOL) or POOL}
    subprocess.run([*prefect, "deploy", "--all"], check=True, env=os.environ | settings)
    with get_client(sync_client=True) as client:
        retrain_on_drift(client.read_deployment_by_name("train/default").id)


def _wait() -> None:
    with get_client(sync_client=True) as client:
        end = time.monotonic() + WAIT_SECONDS
        while (problem := client.api_healthcheck()) is not None:
            if time.monotonic() > end:
                sys.exit(f"error: the Prefect server at {client.api_url} does not answer: {problem}")
            time.sleep(0.5)


if __name__ == "__main__":
    main()
