"""The chain from an answer to a new training: the flow `drift`, its event and the automation, with real Prefect and MLflow."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import mlflow
import numpy as np
import pandas as pd
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from sklearn.metrics import f1_score

from benchmarks.project import answers
from flows import automation, monitoring, registry
from flows.drift import check, f1
from flows.train import train
from pipeline.detector import Prediction
from pipeline.monitoring import feedback, labelling
from pipeline.monitoring.predictions import FILE, PredictionLog, newest
from pipeline.package import Package, seal
from serving.gauges import drift
from tests.drift_helpers import SETTINGS, record, sample
from tests.service_helpers import ROOT, free_port, promote, register, wait_for

CHECKS = """
import sys
from flows.drift import drift
for _ in sys.stdin:
    state = drift(return_state=True)
    print(f"{state.name}: {state.message}", flush=True)
"""


@contextmanager
def running(folder: Path, name: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process in a folder; its output goes to `<name>.out` and `<name>.log` there."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "UNMASK_", "PREFECT_API"))}
    with (folder / f"{name}.out").open("w") as out, (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=inherited | environment,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@contextmanager
def prefect(folder: Path, home: Path) -> Iterator[str]:
    """A Prefect server; yields the address of its API."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    arguments = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with running(folder, "server", *arguments, PREFECT_HOME=str(home)) as process:
        wait_for(lambda: answers(f"{url}/health"), process, str(folder / "server.log"), seconds=120)
        yield url


@contextmanager
def drift_checks(folder: Path, **environment: str) -> Iterator[Callable[[], str]]:
    """Yields a function that runs the flow `drift` in another process, and returns the name and message of its final state."""
    with running(folder, "checks", "-c", CHECKS, **environment) as process:
        states = folder / "checks.out"

        def check() -> str:
            before = states.read_text().count("\n")
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            wait_for(lambda: states.read_text().count("\n") > before, process, str(folder / "checks.log"), seconds=120)
            return states.read_text().splitlines()[-1]

        yield check


def put_out_two_years_ago(var: Path) -> Path:
    """A copy, in a folder for labelling, of an image that a user let us keep."""
    folder = var / feedback.FOLDER
    said = feedback.record(folder, id="old", label="fake", version="1", verdict="fake", probability_fake=0.9, image=b"a picture")
    old = said.model_copy(update={"time": said.time - timedelta(days=730)})
    (folder / feedback.FILE).write_text(old.model_dump_json() + "\n")
    copy = var / labelling.FOLDER / "day" / f"{said.image}.png"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"a picture")
    return copy


@pytest.mark.parametrize("fakes", [0.05, 0.5, 0.8])
def test_figures_without_labels_hold_whatever_share_of_fakes_the_probabilities_and_the_reference_have(fakes: float):
    rng = np.random.default_rng(4)

    def judged(fakes: float) -> tuple[pd.DataFrame, np.ndarray]:
        """Probabilities that are calibrated where four fifths are fakes."""
        labels = (rng.random(1500) < fakes).astype(int)
        evidence = 2 * rng.normal(2 * labels - 1)
        table = sample(rng, 1500).assign(probability_fake=1 / (1 + np.exp(-evidence) / 4))
        return table.assign(verdict=np.where(table["probability_fake"] > 0.5, "fake", "real")), labels

    (reference, _), (window, labels) = judged(0.5), judged(fakes)  # the reference has as many of either class
    package = SimpleNamespace(meta=SimpleNamespace(thresholds=SimpleNamespace(f1=0.3), figures={}, fake_share=0.8))
    _, report = check([reference], window, SETTINGS, 0.8)
    assert report["share_of_fakes"] == pytest.approx(fakes, abs=0.03) and report["drift"] == (fakes != 0.5)
    assert not report["drift"] or report["kind"]["kind"] == "share of fakes"
    found = f1(package, reference, window, report)
    assert found["expected"]["value"] == pytest.approx(f1_score(labels, window["probability_fake"] >= 0.3), abs=0.03)


def test_drifted_answers_start_a_training_once(tmp_path, prefect_home, new_store):
    home = prefect_home()
    rng = np.random.default_rng(9)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    package, store, var = (
        package_with_reference(tmp_path / "package", sample(rng, 300)),
        new_store(),
        tmp_path / "var",
    )
    version = register(store, package.path, champion=False)

    with prefect(tmp_path, home) as url, temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="local", type="process"))
        deployment = train.to_deployment("train", work_pool_name="local").apply()
        automation.retrain_on_drift(uuid.uuid4())
        client.pause_automation(client.read_automations_by_name(automation.NAME)[0].id)
        automation.retrain_on_drift(deployment)
        (made,) = client.read_automations_by_name(automation.NAME)
        assert [action.deployment_id for action in made.actions] == [deployment] and not made.enabled
        client.resume_automation(made.id)

        environment = {
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(home),
            "MLFLOW_TRACKING_URI": store,
            "UNMASK_VAR": str(var),
            "PYTHONPATH": str(ROOT),
        }
        with drift_checks(tmp_path, **environment) as check:
            copy = put_out_two_years_ago(var)
            brought = tmp_path / "data/raw/labelled" / copy.name
            brought.parent.mkdir(parents=True)
            shutil.copy(copy, brought)
            with (var / "materialise.lock").open("w") as training:
                fcntl.flock(training, fcntl.LOCK_EX)
                assert check().startswith("NotEnoughData: no version of unmask is the champion")
                assert copy.exists() and brought.exists()  # the other run may be reading them
            assert check().startswith("NotEnoughData: no version of unmask is the champion")
            assert not copy.exists() and not brought.exists()  # kept for a year, by params.yaml: feedback.retention_days
            promote(store, version)
            assert check().startswith("StageFailed: version 1 of unmask has no tag `package`")
            mlflow.MlflowClient(store, store).set_model_version_tag("unmask", version, registry.DIGEST, package.digest)

            seen = sample(rng, 37)
            record(var / FILE, package.digest, seen)
            assert check() == "NotEnoughData: 37 of the 100 answers needed: not enough data"
            record(var / FILE, package.digest, pd.concat([seen, seen]))
            assert check() == "NotEnoughData: 37 different pictures in 111 answers, of the 100 answers needed: not enough data"
            record(var / FILE, package.digest, sample(rng, 100))
            log = PredictionLog(var / FILE)
            for id in newest(var / FILE, package.digest, 60)["id"]:
                log.shadow(id=id, package="challenger", version="2", prediction=Prediction(0.7, "fake", [], np.zeros(1), {}))
            log.close()
            assert check().startswith("NoDrift: the newest 211 answers of version 1, on 137 different pictures, look like its reference")
            report = json.loads((var / "drift" / "report.json").read_text())
            assert report["window"] == 137
            assert (report["challenger"]["version"], report["challenger"]["n"], report["challenger"]["agreement"]) == ("2", 60, 0)
            assert "Version 2 as a shadow" in (var / "drift" / "report.html").read_text()
            gauges = {sample.name: sample.value for family in drift(var / "drift" / "report.json") for sample in family.samples}
            assert gauges["unmask_drift"] == 0 and gauges["unmask_drift_window"] == 137
            assert gauges["unmask_drift_p_value"] == report["p_value"] > gauges["unmask_drift_alpha"] == 0.01
            assert time.time() - 60 < gauges["unmask_drift_checked_timestamp_seconds"] <= time.time()

            record(var / FILE, package.digest, sample(rng, 200).assign(brightness=10.0))
            answer = newest(var / FILE, package.digest, 1)["id"].item()
            for client_name, label in (("one", "fake"), ("another", "real")):  # a tie, which measures nothing
                said = {"version": "1", "verdict": "fake", "probability_fake": 0.9, "client": client_name}
                feedback.record(var / feedback.FOLDER, id=answer, label=label, **said)
            assert check().startswith(
                "Drift: the newest 411 answers of version 1, on 337 different pictures, differ from its reference (p = 0.002), "
                "above all in brightness"
            )
            wait_for(lambda: len(runs(client, deployment)) == 1)
            (run,) = runs(client, deployment)
            assert run.state is not None and run.state.is_scheduled()
            evidence = run.parameters["evidence"]
            assert run.parameters == {"reason": "drift", "evidence": evidence}
            assert evidence.pop("shifted")[0] == "brightness"
            assert evidence == {"version": 1, "window": 337, "p_value": pytest.approx(1 / 501), "kind": "camera or compression"}
            assert {"drift", "drift-result"} <= {artifact.key for artifact in client.read_artifacts()}

            report = json.loads((var / "drift" / "report.json").read_text())
            assert report["f1"]["expected"]["value"] > 0 and report["f1"]["measured"] is None
            checks = monitoring_runs(store)
            assert (
                len(checks) == 2
                and checks[0].data.tags["drift"] == "camera or compression"
                and checks[0].data.metrics["psi_brightness"] > 1
            )
            assert "brightness" in mlflow.artifacts.load_text(f"{checks[0].info.artifact_uri}/report.html")

            # Events are handled in order: had the second check sent one, its run would come before that of the third.
            assert check().startswith("Drift: the newest 411 answers")
            written = var / "drift" / "report.json"  # as the first release wrote it
            written.write_text(json.dumps({key: value for key, value in json.loads(written.read_text()).items() if key != "kind"}))
            record(var / FILE, package.digest, sample(rng, 1))
            assert check().startswith("Drift: the newest 412 answers")
            wait_for(lambda: any(found.parameters["evidence"]["window"] == 338 for found in runs(client, deployment)))
            assert len(runs(client, deployment)) == 2


def test_a_check_that_is_recorded_at_the_second_try_leaves_no_run_that_never_ends(store, tmp_path):
    figures = {"p_value": 0.5, "window": 100, "share_of_fakes": 0.5, "statistics": [], "f1": {}, "challenger": None}
    report = figures | {"version": 1, "drift": False}
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(OSError):
        monitoring.record.fn(report, tmp_path)  # there is no page to log yet
    (tmp_path / "report.html").touch()
    monitoring.record.fn(report, tmp_path)
    assert [run.info.status for run in monitoring_runs(store)] == ["FINISHED", "FAILED"]


def package_with_reference(folder: Path, reference: pd.DataFrame) -> Package:
    """A package that has only a reference."""
    folder.mkdir()
    reference.to_parquet(folder / "reference.parquet", index=False)
    thresholds = {"f1": 0.5, "fpr1": 0.9, "fpr5": 0.8, "real_below": 0.4, "fake_above": 0.6}
    about = {"created": "2026-01-01T00:00:00+00:00", "labels": {"0": "real", "1": "fake"}, "figures": {}, "lineage": {}}
    return seal(folder, {**about, "temperature": 1.0, "thresholds": thresholds})


def monitoring_runs(store: str) -> list[mlflow.entities.Run]:
    """Runs of the monitoring experiment, newest first."""
    client = mlflow.MlflowClient(store, store)
    experiment = client.get_experiment_by_name("unmask-monitoring")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def runs(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    return client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])))
