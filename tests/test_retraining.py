"""Retraining on drift: first nothing new, then new labels, then the cooldown. With real Prefect, MLflow and DVC."""

import json
import sys
from pathlib import Path

import mlflow
import pytest

from pipeline import manifest
from pipeline.monitoring import feedback
from pipeline.settings import apply
from tests.conftest import SMALL, run
from tests.data_helpers import picture

pytestmark = pytest.mark.long

TRAIN = """
from flows.train import train
state = train(reason="drift", evidence={"p_value": 0.002, "kind": "new generator"}, return_state=True)
print(f"ended as {state.name}: {state.message}")
"""


def test_a_drift_trains_on_new_labels_and_on_nothing_else(finished: Path, copy_workspace, prefect_home, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home()))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    workspace = copy_workspace(finished)
    sources = [*SMALL["data.sources"], {"kind": "feedback", "name": "users"}]
    apply({"data.sources": sources, "retrain.cooldown_hours": 1.0}, workspace / "params.yaml")
    drifted = (sys.executable, "-c", TRAIN)
    said = {"version": "1", "verdict": "real", "probability_fake": 0.45}

    run(workspace, sys.executable, "-c", "from flows.train import train; train(reason='a person')")
    assert "ended as Skipped: skipped: nothing new since version 1; there are no unlabelled images" in run(workspace, *drifted)

    for number in range(8):
        picture(tmp_path / "upload.jpg", seed=number, quality=95)
        feedback.record(workspace / "var/feedback", id=str(number), label="fake", image=(tmp_path / "upload.jpg").read_bytes(), **said)
    assert "ended as Completed: version 2 of unmask is registered" in run(workspace, *drifted)
    uri = f"sqlite:///{workspace / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    version = client.get_model_version("unmask", "2")
    tags = client.get_run(version.run_id).data.tags
    for found in (version.tags, tags):
        assert found["reason"] == "drift" and json.loads(found["evidence"]) == {"p_value": 0.002, "kind": "new generator"}
    assert client.get_model_version("unmask", "1").tags["reason"] == "a person"

    assert "ended as Skipped: skipped: the last one began" in run(workspace, *drifted)
    apply({"retrain.cooldown_hours": 0.0}, workspace / "params.yaml")
    ended = run(workspace, *drifted)
    assert "nothing new since version 2; label the images in var/labelling/" in ended
    (folder,) = (workspace / "var/labelling").iterdir()
    assert len(list(folder.glob("*.jpeg"))) == 8

    picture(tmp_path / "upload.jpg", seed=8, quality=95)
    feedback.record(workspace / "var/feedback", id="8", label="fake", image=(tmp_path / "upload.jpg").read_bytes(), **said)
    run(workspace, sys.executable, "-c", "from flows.train import train; train(reason='a person')")
    assert (manifest.read(workspace / manifest.MANIFEST)["source"] == "users").sum() == 9
