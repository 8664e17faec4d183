"""The loop without a server: `python -m flows.run` on a workspace, with real Prefect, MLflow, DVC and BentoML."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from prefect.client.orchestration import get_client

from benchmarks.project import free_port
from flows import gates
from flows.materialise import workspace_lock
from flows.run import run as loop
from flows.score import score
from pipeline.errors import StageError
from pipeline.monitoring.drift import references
from pipeline.package import INT8, REFERENCE, verify
from pipeline.params import Bound
from pipeline.settings import apply
from tests.conftest import ROOT, run
from tests.service_helpers import aliases, client


@pytest.fixture(scope="module")
def workspace(first_run: Path) -> Path:
    """A workspace whose first `make run` was killed during training, and whose second was not. Only the tests of this file use it."""
    return first_run / "run"


@pytest.fixture(scope="module")
def first(first_run: Path) -> str:
    """Output of the first `make run` that finishes."""
    return (first_run / "printed").read_text()


@pytest.fixture
def here(workspace: Path, first_run: Path, prefect_server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The workspace after its first run, as the working directory. Changes of a test to params.yaml are undone."""
    shutil.copytree(first_run / "bentoml/bentos", Path(os.environ["BENTOML_HOME"]) / "bentos", dirs_exist_ok=True)
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(workspace))
    yield workspace
    run(workspace, "git", "checkout", "--quiet", "params.yaml")


def store(workspace: Path) -> str:
    return f"sqlite:///{workspace / 'mlflow.db'}"


def recorded(workspace: Path) -> list[mlflow.entities.Run]:
    experiment = client(store(workspace)).get_experiment_by_name("unmask")
    assert experiment is not None
    return list(client(store(workspace)).search_runs([experiment.experiment_id]))


def test_the_first_run_registers_promotes_packs_and_says_so(workspace: Path, first: str):
    version = client(store(workspace)).get_model_version("unmask", "1")
    package = verify(workspace / "models/package")
    assert aliases(store(workspace)) == {"champion": "1", "challenger": "1"}
    assert version.tags["gate"] == "passed" and version.tags["gate.test.f1.value"].startswith("passed: ")
    for tag in ("git_commit", "git_dirty", "dvc_lock", "data_md5", "prefect_flow_run", "bento"):
        assert version.tags[tag] not in ("", "None"), tag
    assert version.tags["package"] == package.digest
    for text in (
        package.meta.lineage["data_md5"],
        "test F1",
        "test AUC",
        "95% interval",
        "passed",
        "1 of unmask",
        version.tags["bento"],
        "make serve",
    ):
        assert text in first, text


def test_killed_during_training_it_goes_on_and_registers_once(workspace: Path, first: str):
    assert json.loads((workspace / "reports/train.json").read_text())["resumed_from_step"] > 0
    assert re.findall(r"Running stage '(\w+)'", first) == ["train", "evaluate", "export"]
    assert len(client(store(workspace)).search_model_versions("name='unmask'")) == 1
    assert len(recorded(workspace)) == 1


def test_the_training_run_is_the_record(workspace: Path, first: str):
    version = client(store(workspace)).get_model_version("unmask", "1")
    record = client(store(workspace)).get_run(version.run_id)
    assert json.loads((workspace / "reports/train.json").read_text())["run_id"] == version.run_id
    assert record.info.status == "FINISHED"
    assert {"val_f1", "val_loss", "val_accuracy", "loss", "test_f1", "test_f1_low", "test_f1_high"} <= set(record.data.metrics)
    assert {point.step for point in client(store(workspace)).get_metric_history(version.run_id, "val_f1")} == {1, 2, 3, 4}
    assert record.data.params["train.epochs"] == "4"
    inputs = {entry.dataset.name: entry.dataset.digest for entry in record.inputs.dataset_inputs}
    for part in ("train", "test"):
        content = (workspace / f"data/splits/{part}.parquet").read_bytes()
        assert inputs[part] == hashlib.md5(content).hexdigest()  # DVC's name for the file
    for tag in ("git_commit", "git_dirty", "prefect_flow_run", "dvc_lock"):
        assert record.data.tags[tag], tag
    assert record.data.tags["data_md5"] in (workspace / "dvc.lock").read_text()
    assert {artifact.path for artifact in client(store(workspace)).list_artifacts(version.run_id)} == {"package", "reports"}


def test_a_second_run_changes_nothing(here: Path, first: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        loop()
    assert ended.value.code == 0
    assert len(client(store(here)).search_model_versions("name='unmask'")) == 1
    assert len(recorded(here)) == 1
    tag = re.search(r"unmask:\w+", first)
    assert tag and tag[0] in capsys.readouterr().out
    with get_client(sync_client=True) as prefect:
        states = {task.name: task.state_name for task in prefect.read_task_runs()}
    assert [states[stage] for stage in ("ingest", "validate", "split", "train", "evaluate", "export")] == ["Cached"] * 6


def test_a_failed_gate_is_registered_and_not_promoted(here: Path, capsys: pytest.CaptureFixture[str]):
    before = verify(here / "models/package").digest
    apply({"gates": {"test.f1.low": {"min": 0.999}}, "export.int8": True}, here / "params.yaml")
    with pytest.raises(SystemExit) as ended:
        loop()
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "failed: test.f1.low" in printed and "at least 0.999" in printed
    package = verify(here / "models/package")
    measured = json.loads((here / "reports/export.json").read_text())["precision"]["int8"]
    assert package.digest != before
    assert package.meta.int8 is measured["allowed"] is (package.path / INT8).is_file()
    assert all((example.int8 is not None) is measured["allowed"] for example in package.golden.values())
    assert (package.path / REFERENCE.format("-int8")).is_file() is measured["allowed"] and len(references(package.path)[0]) > 0
    version = client(store(here)).get_model_version("unmask", "2")
    assert version.tags["gate"] == "failed" and version.tags["gate.test.f1.low"].startswith("failed: ")
    assert aliases(store(here)) == {"champion": "1", "challenger": "1"}


def test_a_failed_stage_names_itself_and_its_reason(here: Path):
    apply({"split.holdout_generators": ["nobody"]}, here / "params.yaml")
    with pytest.raises(SystemExit, match=r"^error: stage split failed.*no image has the generator nobody"):
        loop()


def test_settings_of_a_second_run_wait_until_the_first_ends(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    command = [sys.executable, "-m", "flows.run", "-S"]
    before = (here / "params.yaml").read_text()
    with (
        workspace_lock(say=print),
        subprocess.Popen([*command, "train.epochs=9"], stdout=subprocess.PIPE, text=True) as second,
    ):
        assert second.stdout and "another run is active" in second.stdout.readline()
        second.kill()
    assert (here / "params.yaml").read_text() == before
    refused = subprocess.run([*command, "train.epoch=9"], capture_output=True, text=True)
    assert refused.returncode == 1 and "train.epoch: " in refused.stderr
    assert (here / "params.yaml").read_text() == before


def test_gates_bound_any_figure_and_name_those_there_are():
    evaluation = {"test": {"f1": {"value": 0.8, "low": 0.7}}, "n": 9, "unseen_worst": "swap"}
    verdicts = gates.judge({"test.f1.low": Bound(min=0.7), "n": Bound(max=8)}, evaluation)
    assert [verdict.passed for verdict in verdicts] == [True, False]
    (undefined,) = gates.judge({"test.f1.low": Bound(min=0.1)}, {"test": {"f1": {"low": None}}})
    assert not undefined.passed and str(undefined).startswith("failed: not defined")
    for wrong in ("test.f2.low", "test", "unseen_worst"):
        with pytest.raises(StageError, match=r"test\.f1\.low|low"):
            gates.judge({wrong: Bound(min=0.1)}, evaluation)


def test_a_folder_is_scored_on_a_fresh_clone_by_the_model_that_ships(prefect_server, package: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(package, tmp_path / "models/starter")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ended = score([str(package / "golden")], return_state=True)
    assert ended.is_completed(), ended.message
    rows = (tmp_path / "reports/scores.csv").read_text().splitlines()
    assert len(rows) == 1 + len(list((package / "golden").iterdir())) and str(tmp_path / "reports/scores.csv") in ended.message
    ended = score(["golden"], package="nowhere", return_state=True)
    assert ended.name == "StageFailed" and "nowhere" in ended.message


def test_a_run_says_that_the_prefect_server_it_was_told_of_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PREFECT_API_URL", f"http://user:secret@127.0.0.1:{free_port()}/api")
    said = run(tmp_path, sys.executable, "-m", "flows.run", check=False)
    assert "error: no Prefect server answers at PREFECT_API_URL=http://127.0.0.1:" in said
    assert "unset PREFECT_API_URL" in said and "Traceback" not in said and "secret" not in said
