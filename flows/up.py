"""`make up`: MLflow, Prefect, a worker and the service under one supervisor. Ctrl-C stops all of them."""

import os
import shlex
import sys
from collections.abc import Mapping

from honcho.manager import Manager

from flows.ports import HOOK, HOOK_SECRET, HOST, POOL, PORTS, free
from flows.process import environment
from flows.state import ARTIFACTS, BACKEND

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
    # Jobs are a feature of MLflow that nothing here uses; their workers would take 2 GB.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # In memory, a server that starts anew would know nothing of the runs that hold a place: they would be ended, or hold it for ever.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # `deploy` looks every minute: of its runs alone Prefect's database would grow by tens of megabytes a day, for ever.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(14 * 24 * 3600),
}
"""Where the servers keep things, unless the environment says otherwise."""


def main() -> None:
    """Start everything; end when one of the processes ends."""
    secret = os.environ.get(HOOK_SECRET)
    ports = {name: free(name) for name in (PORTS | HOOK if secret else PORTS)}
    uris = {"MLFLOW_TRACKING_URI": f"http://{HOST}:{ports['MLFLOW_PORT']}", "PREFECT_API_URL": f"http://{HOST}:{ports['PREFECT_PORT']}/api"}
    stores = {name: os.environ.get(name) or value for name, value in DEFAULTS.items()}
    env = environment(**stores, **uris)
    if secret:
        from flows.hook import mlflow_environment  # with Prefect and MLflow, for which nobody should wait who asks for nothing of it

        env |= mlflow_environment(secret)
    manager = Manager()
    for name, command in commands(ports).items():
        manager.add_process(name, command, env=env)
    print(WELCOME.format(host=HOST, **ports), flush=True)
    manager.loop()
    sys.exit(0 if manager.returncode in (0, 130, 143) else manager.returncode)  # stopped by the user is no failure


def commands(ports: Mapping[str, int]) -> dict[str, str]:
    """Name of each process -> its shell command."""
    python = shlex.quote(sys.executable)
    # MLflow takes some seconds to start: its client tries again, waiting twice as long each time.
    receiver = f"MLFLOW_HTTP_REQUEST_MAX_RETRIES=7 exec {python} -m flows.hook {ports['HOOK_PORT']}" if "HOOK_PORT" in ports else None
    return ({"hook": receiver} if receiver else {}) | {
        # Where it keeps things is in its environment: a command line with a password is seen by everybody on the machine.
        # The service asks for the alias once a second, which is not worth a line of the log each.
        "mlflow": f"exec {python} -m mlflow server --host {HOST} --port {ports['MLFLOW_PORT']} --workers 1 "
        "--uvicorn-opts '--log-level warning'",
        "prefect": f"exec {python} -m prefect server start --host {HOST} --port {ports['PREFECT_PORT']}",
        "worker": f"{python} -m flows.deployments && "
        f"exec {python} -m prefect worker start --pool {POOL} --type process --install-policy never",
        "service": f"exec {python} -m bentoml serve service:Unmask --host {HOST} --port {ports['SERVICE_PORT']}",
    }


if __name__ == "__main__":
    main()
