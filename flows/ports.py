"""Where the servers and the worker find each other: ports, from the environment, and the names that several of them use."""

import os
import socket
import sys

HOST = "127.0.0.1"
PORTS = {"MLFLOW_PORT": 5000, "PREFECT_PORT": 4200, "SERVICE_PORT": 3000}
"""Environment variable -> port without it."""

HOOK = {"HOOK_PORT": 3100}
"""The same for the receiver of MLflow's webhooks, which runs where HOOK_SECRET is set."""

HOOK_SECRET = "UNMASK_WEBHOOK_SECRET"  # noqa: S105 - the name of the variable that holds it
POOL = "unmask"
"""The work pool of every deployment, unless `train` has one of its own."""


def number(name: str) -> int:
    """The port that the variable names. Ends the process with a message if it is no port."""
    value = os.environ.get(name) or str((PORTS | HOOK)[name])
    if not value.isdecimal() or not 0 < int(value) < 65536:
        sys.exit(f"error: {name}={value} is not a port: a number from 1 to 65535")
    return int(value)


def free(name: str) -> int:
    """The same, and ends the process with a message if the port is taken."""
    port = number(name)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            sys.exit(f"error: port {port} cannot be used ({error.strerror}); stop what listens there, or choose another with {name}=...")
    return port


if __name__ == "__main__":
    print(free(sys.argv[1]))
