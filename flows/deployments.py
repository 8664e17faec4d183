"""Registers the work pool, the deployments of prefect.yaml and the automation with a Prefect server. Safe to repeat.

It runs whenever a worker starts, so what somebody paused stays paused.
"""

import os
import subprocess
import sys
import time

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import DeploymentResponse

from flows.automation import retrain_on_drift
from flows.ports import POOL
from pipeline.params import load_params

TRAIN_POOL = "UNMASK_TRAIN_POOL"
"""Environment variable: work pool of the flows that train, if they have their own machines."""

WAIT_SECONDS = 180


def main() -> None:
    """Wait for the server at PREFECT_API_URL, then deploy everything to it."""
    _wait()
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    subprocess.run([*prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"], check=True)
    # prefect.yaml reads these from the environment, so that each is set in one place only.
    settings = {"UNMASK_DRIFT_CRON": load_params().drift.cron, TRAIN_POOL: os.environ.get(TRAIN_POOL) or POOL}
    with get_client(sync_client=True) as client:
        before = client.read_deployments()
    subprocess.run([*prefect, "deploy", "--all"], check=True, env=os.environ | settings)
    with get_client(sync_client=True) as client:
        for known in before:
            _pause_again(client, known)
        retrain_on_drift(client.read_deployment_by_name("train/default").id)


def _pause_again(client: SyncPrefectClient, known: DeploymentResponse) -> None:
    """Pause the deployment or its schedules again, if they were paused before it was deployed again."""
    if known.paused:
        client.pause_deployment(known.id)
    if known.schedules and not any(schedule.active for schedule in known.schedules):
        for schedule in client.read_deployment_schedules(known.id):
            client.update_deployment_schedule(known.id, schedule.id, active=False)


def _wait() -> None:
    with get_client(sync_client=True) as client:
        end = time.monotonic() + WAIT_SECONDS
        while (problem := client.api_healthcheck()) is not None:
            if time.monotonic() > end:
                sys.exit(f"error: the Prefect server at {client.api_url} does not answer: {problem}")
            time.sleep(0.5)


if __name__ == "__main__":
    main()
