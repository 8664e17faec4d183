"""A workspace with the servers of `make up`, each of which can be killed and restarted alone."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import mlflow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from ruamel.yaml import YAML

from benchmarks.project import answers
from flows.ports import HOST, PORTS
from flows.up import DEFAULTS, commands
from pipeline.package import verify
from pipeline.settings import apply
from tests.conftest import ROOT, at_work_in
from tests.service_helpers import free_port, wait_for

LONGER = {"train.epochs": 6, "train.checkpoints_per_epoch": 2, "train.batch_size": 4}
"""Settings for a training of some seconds, with checkpoints between which to kill it."""


class Machine:
    """What `make up` starts, on its own ports. Logs are in the workspace's folder `var`."""

    def __init__(self, folder: Path, homes: Path) -> None:
        self.folder, self.ports = folder, {name: free_port() for name in PORTS}
        self.api = f"http://{HOST}:{self.ports['PREFECT_PORT']}/api"
        self.store = f"http://{HOST}:{self.ports['MLFLOW_PORT']}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "UNMASK_"))}
        self.environment = inherited | {
            **DEFAULTS,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "PREFECT_HOME": str(homes / "prefect"),
            "BENTOML_HOME": str(homes / "bentoml"),
            "PREFECT_API_URL": self.api,
            "MLFLOW_TRACKING_URI": self.store,
            **{name: str(port) for name, port in self.ports.items()},
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        deployments = YAML().load((ROOT / "prefect.yaml").read_text())
        for deployment in deployments["deployments"]:
            deployment.pop("schedules", None)  # a flow that runs every minute would interfere with the tests
        with (folder / "prefect.yaml").open("w") as file:
            YAML().dump(deployments, file)

    def start(self, *names: str) -> None:
        """Start servers one by one, and wait until each answers."""
        ready = {
            "mlflow": lambda: answers(f"{self.store}/health"),
            "prefect": lambda: answers(f"{self.api}/health"),
            "worker": lambda: "started!" in self._log("worker").read_text(),
        }
        for name in names:
            command = ["sh", "-c", commands(self.ports)[name]]
            self._log(name).parent.mkdir(exist_ok=True)
            with self._log(name).open("w") as log:
                self.processes[name] = subprocess.Popen(
                    command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            wait_for(ready[name], self.processes[name], str(self._log(name)), seconds=600)

    def kill(self, name: str) -> None:
        """`kill -9` a server; of the worker, only itself and not what it started."""
        process = self.processes.pop(name)
        (os.kill if name == "worker" else os.killpg)(process.pid, signal.SIGKILL)
        process.wait()

    def power_off(self) -> None:
        """`kill -9` the servers and every process that works in the folder."""
        for name in tuple(self.processes):
            self.kill(name)
        while found := at_work_in(self.folder):
            for number in found:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the folder; returns its output."""
        done = subprocess.run(command, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0 or not check, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def ask(self, client: SyncPrefectClient, deployment: str = "train/default") -> UUID:
        """Start a run of a deployment, as `prefect deployment run` does."""
        return client.create_flow_run_from_deployment(client.read_deployment_by_name(deployment).id).id

    def ended(self, client: SyncPrefectClient, run: UUID, seconds: float = 900) -> FlowRun:
        """Wait for the run to end, and return it."""
        wait_for(lambda: _final(client.read_flow_run(run)), log=str(self._log("worker")), seconds=seconds)
        return client.read_flow_run(run)

    def trains(self, **settings: object) -> None:
        """Change settings, so that there is something to train."""
        apply(LONGER | {name.replace("__", "."): value for name, value in settings.items()}, self.folder / "params.yaml")

    def wait_for_training(self, before: set[Path]) -> None:
        """Wait until a training has written two checkpoints that were not there before."""
        wait_for(lambda: len(self.checkpoints() - before) >= 2, log=str(self._log("worker")), seconds=900)

    def checkpoints(self) -> set[Path]:
        """The checkpoints of all trainings so far."""
        return set(self.folder.glob("var/checkpoints/*/checkpoint-*/trainer_state.json"))

    def _log(self, name: str) -> Path:
        return self.folder / "var" / f"{name}.log"


def registered_once(folder: Path, store: str) -> mlflow.entities.model_registry.ModelVersion:
    """Check that the folder's package has exactly one version, with the one run of its training, and that every run has a version."""
    package, client = verify(folder / "models/package"), mlflow.MlflowClient(store, store)
    versions = list(client.search_model_versions("name='unmask'"))
    (version,) = (found for found in versions if found.tags["package"] == package.digest)
    experiment = client.get_experiment_by_name("unmask")
    assert experiment is not None
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {found.run_id for found in versions} and len(runs) == len(versions)
    run = runs[version.run_id]
    assert run.info.status == "FINISHED" and run.data.tags["package"] == package.digest
    assert json.loads((folder / "reports/train.json").read_text())["run_id"] == version.run_id == package.meta.lineage["run_id"]
    assert {"test_f1", "val_f1"} <= set(run.data.metrics) and run.data.params["train.epochs"] == str(LONGER["train.epochs"])
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"train", "val", "test"}
    assert {artifact.path for artifact in client.list_artifacts(version.run_id)} == {"package", "reports"}
    for tag in ("git_commit", "git_dirty", "dvc_lock", "prefect_flow_run", "reason"):
        assert version.tags[tag] not in ("", "None"), tag
    assert version.tags["gate"] == "passed" and version.tags["data_md5"] == package.meta.lineage["data_md5"]
    assert version.description and client.get_registered_model("unmask").aliases["challenger"] == version.version
    return version


def _final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()
