"""A real `bentoml serve`, and packages registered in a real MLflow."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import mlflow

from benchmarks.project import answers, free_port

ROOT = Path(__file__).parent.parent


@contextmanager
def served(folder: Path, target: str = "service:Unmask", python: str | Path = sys.executable, **environment: str) -> Iterator[httpx.Client]:
    """Run `bentoml serve` in a folder with the service's sources until the block ends. Yields a client for it."""
    for name in ("service.py", "serving", "web", "pipeline"):
        if not (folder / name).exists() and target == "service:Unmask":
            (folder / name).symlink_to(ROOT / name)
    port = free_port()
    command = [python, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "UNMASK_"))}
    inherited |= {"BENTOML_HOME": str(folder / "bentoml"), "UNMASK_FACE_DETECTOR": "none"}  # nothing is fetched
    log = (folder / "service.log").open("w+")
    process = subprocess.Popen(command, cwd=folder, env=inherited | environment, stdout=log, stderr=log, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_for(lambda: answers(f"{client.base_url}/livez"), process, log.name)
            yield client
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
        log.close()


def register(uri: str, package: Path, *, champion: bool = True) -> str:
    """Log a package to MLflow, register it as a new version of `unmask`, and promote it. Returns the version."""
    client = mlflow.MlflowClient(uri, uri)
    if not client.search_registered_models():
        client.create_registered_model("unmask")
    if client.get_experiment_by_name("unmask") is None:
        client.create_experiment("unmask", artifact_location=(package.parent / "artifacts").as_uri())
    experiment = client.get_experiment_by_name("unmask")
    assert experiment is not None
    run = client.create_run(experiment.experiment_id)
    client.log_artifacts(run.info.run_id, str(package), "package")
    source = f"{run.info.artifact_uri}/package"
    version = str(client.create_model_version("unmask", source, run.info.run_id, tags={"gate": "passed"}).version)
    if champion:
        promote(uri, version)
    return version


def versions(store: str, package: Path, *gates: str) -> None:
    """Register the package once for each gate."""
    for gate in gates:
        number = register(store, package, champion=False)
        client(store).set_model_version_tag("unmask", number, "gate", gate)
        client(store).set_model_version_tag("unmask", number, "package", f"digest {number}")


def client(store: str) -> mlflow.MlflowClient:
    """A client for the store with this URI."""
    return mlflow.MlflowClient(store, store)


def aliases(store: str) -> dict[str, str]:
    """Alias -> number of the version that has it."""
    return {alias: str(version) for alias, version in client(store).get_registered_model("unmask").aliases.items()}


def promote(uri: str, version: str) -> None:
    """Move the alias, as a person does in MLflow's UI."""
    mlflow.MlflowClient(uri, uri).set_registered_model_alias("unmask", "champion", version)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, log: str = "", seconds: float = 60) -> None:
    """Wait until a condition holds; fail if the process ends or time runs out."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, Path(log).read_text()
        assert time.monotonic() < end, f"still not so after {seconds} s\n{Path(log).read_text() if log else ''}"
        time.sleep(0.1)
