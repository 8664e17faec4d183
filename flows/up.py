"""`make up`: MLflow, Prefect, a worker and the service under one supervisor. Ctrl-C stops all of them."""

import os
import shlex
import sys
from collections.abc import Mapping

from honcho.manager import Manager

from flows.ports import HOOK, HOOK_SECRET, HOST, POOL, PORTS, take
from flows.process import environment
from flows.state.contents import ARTIFACTS, BACKEND

WELCOME = """Prefect  http://{host}:{PREFECT_PORT}
MLflow   http://{host}:{MLFLOW_PORT}
Unmask   http://{host}:{SERVICE_PORT}

In another terminal, after `source .venv/bin/activate`:
export PREFECT_API_URL=http://{host}:{PREFECT_PORT}/api MLFLOW_TRACKING_URI=http://{host}:{MLFLOW_PORT}
prefect deployment run train/default
"""

DEFAULTS = {
    BACKEND: "sqlite:///mlflow.db",
    ARTIFACTS: "./mlartifacts",
    # Nothing here uses MLflow's jobs, whose workers would take 2 GB.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # In memory, concurrency leases would be lost when the server restarts: runs would be ended, or hold their slot for ever.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # `deploy` runs every minute: its runs alone would grow Prefect's database by tens of megabytes a day, for ever.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(14 * 24 * 3600),
}
"""Settings of the servers, unless the environment says otherwise."""


def main() -> None:
    """Start everything; end when one of the processes ends. Exits with 0 only if the user stops it."""
    secret = os.environ.get(HOOK_SECRET)
    ports = {name: take(name) for name in (PORTS | HOOK if secret else PORTS)}
    uris = {"MLFLOW_TRACKING_URI": f"http://{HOST}:{ports['MLFLOW_PORT']}", "PREFECT_API_URL": f"http://{HOST}:{ports['PREFECT_PORT']}/api"}
    stores = {name: os.environ.get(name) or value for name, value in DEFAULTS.items()}
    env = environment(**stores, **uris)
    if secret:
        from flows.hook import mlflow_environment  # slow: imports Prefect and MLflow

        env |= mlflow_environment(secret)
    manager = Manager()
    for name, command in commands(ports).items():
        manager.add_process(name, command, env=env)
    print(WELCOME.format(host=HOST, **ports), flush=True)
    manager.loop()
    # 130 and 143 mean that the user stops it. A server that ends by itself has failed, even with 0, as MLflow does if its port is taken.
    sys.exit(0 if manager.returncode in (130, 143) else manager.returncode or 1)


def commands(ports: Mapping[str, int]) -> dict[str, str]:
    """Name of each process -> its shell command."""
    python = shlex.quote(sys.executable)
    # MLflow takes some seconds to start: its client retries, with exponential backoff.
    receiver = f"MLFLOW_HTTP_REQUEST_MAX_RETRIES=7 exec {python} -m flows.hook {ports['HOOK_PORT']}" if "HOOK_PORT" in ports else None
    return ({"hook": receiver} if receiver else {}) | {
        # Its stores are set in its environment: everybody on the machine can see a command line, and with it a password.
        # The service polls the alias once a second, which would fill the log.
        "mlflow": f"exec {python} -m mlflow server --host {HOST} --port {ports['MLFLOW_PORT']} --workers 1 "
        "--uvicorn-opts '--log-level warning'",
        "prefect": f"exec {python} -m prefect server start --host {HOST} --port {ports['PREFECT_PORT']}",
        "worker": f"{python} -m flows.deployments && "
        f"exec {python} -m prefect worker start --pool {POOL} --type process --install-policy never",
        "service": f"exec {python} -m bentoml serve service:Unmask --host {HOST} --port {ports['SERVICE_PORT']}",
    }


if __name__ == "__main__":
    main()
