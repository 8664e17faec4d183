"""Ports of the servers, from the environment, and names that servers and worker share."""

import os
import socket
import sys
from contextlib import suppress
from urllib.parse import urlsplit

HOST = "127.0.0.1"
PORTS = {"MLFLOW_PORT": 5000, "PREFECT_PORT": 4200, "SERVICE_PORT": 3000}
"""Environment variable -> default port."""

ADDRESSES = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "SERVICE_URL")
"""Environment variables with the URL of a server that is on another port or host than PORTS say."""

HTTP = {"http": 80, "https": 443}
"""Scheme of such a URL -> default port."""

HOOK = {"HOOK_PORT": 3100}
"""Like PORTS, for the receiver of MLflow's webhooks, which runs only if HOOK_SECRET is set."""

HOOK_SECRET = "UNMASK_WEBHOOK_SECRET"  # noqa: S105 - the name of the variable that holds it
POOL = "unmask"
"""The work pool of every deployment, unless those that train have their own."""

_taken: list[socket.socket] = []
"""What `take` holds on to."""


def number(name: str) -> int:
    """The port that the variable sets, or its default. Exits with a message if it is not a port."""
    value = os.environ.get(name) or str((PORTS | HOOK)[name])
    if not value.isdecimal() or not 0 < int(value) < 65536:
        sys.exit(f"error: {name}={value} is not a port: a number from 1 to 65535")
    return int(value)


def free(name: str) -> int:
    """Like `number`; also exits with a message if the port is taken."""
    port = number(name)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            sys.exit(f"error: port {port} cannot be used ({error.strerror}); stop what listens there, or choose another with {name}=...")
    return port


def take(name: str) -> int:
    """Like `free`; also exits with a message if another process took the port in this way and has not ended.

    Its server may listen only after many seconds. Until then both would start, and the servers of one would talk to those of the other.
    """
    port = free(name)
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0unmask-port-{port}")  # a name without a file, which ends with this process
    except OSError:
        sys.exit(f"error: port {port} is taken by another server of this or another `make up`; choose another with {name}=...")
    _taken.append(mark)
    return port


def running() -> dict[str, str]:
    """Variable -> HOST:PORT of each server that the settings name and that accepts connections now."""
    places = {name: (HOST, number(name)) for name in PORTS}
    for name in ADDRESSES:
        try:
            address = urlsplit(os.environ.get(name) or "")
            if address.hostname and address.scheme in HTTP:
                places[name] = (address.hostname, address.port or HTTP[address.scheme])
        except ValueError:  # its message would show the password
            sys.exit(f"error: {name} is not a URL like http://{HOST}:5000")
    found = {}
    for name, place in places.items():
        with suppress(OSError), socket.create_connection(place, timeout=5):
            found[name] = f"{place[0]}:{place[1]}"
    return found


if __name__ == "__main__":
    print(free(sys.argv[1]))
