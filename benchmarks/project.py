"""A separate copy of this project with its own Prefect server and service, for demonstrations of the whole loop."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from flows.ports import HOST
from pipeline.settings import apply

ROOT = Path(__file__).parent.parent
FLOW = "from flows.{name} import {name}; state = {name}({arguments}return_state=True); print('ended as', state.name, '|', state.message)"


def make(project: Path, settings: dict[str, Any]) -> None:
    """Copy this project, with other settings, into its own git and DVC repository."""
    project.mkdir(parents=True)
    for name in ("pipeline", "flows", "serving", "web"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "bentofile.yaml", "service.py", ".bentoignore", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, project / name)
    apply(settings, project / "params.yaml")
    author = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    for command in (("init", "--quiet"), ("add", "--all"), (*author, "commit", "--quiet", "--message", "start")):
        subprocess.run(["git", *command], cwd=project, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=project, check=True)


@contextmanager
def prefect(folder: Path) -> Iterator[dict[str, str]]:
    """Run a Prefect server; yields the environment for everything that uses it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "UNMASK_", "PREFECT_"))}
    inherited |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}
    inherited |= {"PREFECT_HOME": str(folder / "prefect"), "BENTOML_HOME": str(folder / "bentoml")}
    port = free_port()
    url = f"http://{HOST}:{port}/api"
    with _started(folder, "prefect", inherited, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)):
        wait(lambda: answers(f"{url}/health"), 300)
        yield inherited | {"PREFECT_API_URL": url}


@contextmanager
def service(project: Path, environment: dict[str, str]) -> Iterator[httpx.Client]:
    """Run `bentoml serve`, which follows MLflow's champion; yields a client."""
    port = free_port()
    url = f"http://{HOST}:{port}"
    with _started(project, "service", environment, "-m", "bentoml", "serve", "service:Unmask", "--host", HOST, "--port", str(port)):
        wait(lambda: answers(f"{url}/readyz"), 300)
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client


@contextmanager
def _started(folder: Path, name: str, environment: dict[str, str], *arguments: str) -> Iterator[None]:
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


def flow(project: Path, environment: dict[str, str], name: str, **arguments: str) -> str:
    """Run a flow. Returns the name and message of its final state."""
    given = "".join(f"{key}={value!r}, " for key, value in arguments.items())
    printed = call(project, environment, "-c", FLOW.format(name=name, arguments=given))
    line = next(line for line in reversed(printed.splitlines()) if line.startswith("ended as "))
    state, _, message = line.removeprefix("ended as ").partition(" | ")
    return f"{state}: {message}"


def call(project: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run this Python in the project. Returns its output; raises RuntimeError with the output if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def answers(url: str) -> bool:
    """Whether a server answers there with success."""
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def wait(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds. Raises RuntimeError if that takes longer."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"still not so after {seconds:g} s")
        time.sleep(0.2)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])
