"""The whole graph with real DVC, on a few dozen images."""

import hashlib
import json
import sys
from pathlib import Path

import boto3
import pandas as pd
import pytest
from moto.server import ThreadedMotoServer
from sklearn.metrics import roc_auc_score

from flows import gates
from pipeline.evaluate import calibrate
from pipeline.manifest import COLUMNS, read_parts
from pipeline.package import ONNX, verify
from pipeline.params import Bound, load_params
from pipeline.settings import apply
from tests.conftest import run

DVC = (sys.executable, "-m", "dvc")


@pytest.fixture(scope="module")
def finished(finished: Path, copy_workspace) -> Path:
    """A copy for this file, whose tests delete results and pull them back."""
    return copy_workspace(finished)


def test_every_promised_file_is_there(finished: Path):
    manifest = pd.read_parquet(finished / "data/manifest.parquet")
    assert list(COLUMNS) == list(manifest.columns[: len(COLUMNS)])
    report = json.loads((finished / "reports/evaluation.json").read_text())
    for name in ("precision", "recall", "f1", "accuracy", "auc", "ap", "eer", "ece", "brier"):
        assert set(report["test"][name]) >= {"value", "low", "high"}
    assert sum(report["confusion_matrix"][cell] for cell in ("tn", "fp", "fn", "tp")) == report["n"]
    for name in ("validation", "split", "train", "export"):
        json.loads((finished / f"reports/{name}.json").read_text())
    assert "<html" in (finished / "reports/evaluation.html").read_text()
    content = (finished / "data/manifest.parquet").read_bytes()
    assert verify(finished / "models/package").meta.lineage["data_md5"] == hashlib.md5(content).hexdigest()


def test_figures_of_the_report_can_be_gated(finished: Path):
    report = json.loads((finished / "reports/evaluation.json").read_text())
    examples = ("test.f1.low", "unseen.auc.value", "robustness.jpeg40.drop", "robustness.jpeg40_half.auc", "calibration.ece")
    examples += ("vs_baseline.auc", "test.ece.value", "golden.broken", "operating_points.fpr5.fpr", "unseen_worst_auc")
    verdicts = gates.judge({name: Bound(min=-1) for name in examples}, report)
    assert all(verdict.passed for verdict in verdicts)
    page = (finished / "reports/evaluation.html").read_text()
    for title in (
        "Compared with simple models",
        "Operating points",
        "Calibration",
        "Do the heat maps show what matters?",
        "Degraded pictures",
    ):
        assert title in page


def test_the_package_carries_what_was_measured(finished: Path):
    report = json.loads((finished / "reports/export.json").read_text())
    assert report["golden"]["n"] == 4 and report["golden"]["largest_probability_difference"] < 1e-3
    package = verify(finished / "models/package")
    assert package.meta.bf16 is report["precision"]["bf16"]["allowed"] and report["precision"]["int8"] is None
    assert max(report["parity"]["largest_logit_difference"].values()) < 1e-4 and (package.path / ONNX).is_file()
    card = (finished / "models/package/card.md").read_text()
    for heading in ("## Intended use", "## Data", "## Figures", "## Limits", "## Licences"):
        assert heading in card
    assert "rendered by this program" in card and "reports/data_card.md" in card


def test_thresholds_are_of_the_validation_part_and_figures_of_the_test_part(finished: Path):
    scores = pd.read_parquet(finished / "reports/scores.parquet")
    val, test = (scores[scores["part"] == part] for part in ("val", "test"))
    calibration, thresholds = calibrate(val, load_params(finished / "params.yaml").evaluate)
    kept = json.loads((finished / "models/calibration.json").read_text())
    assert kept.pop("thresholds") == pytest.approx(thresholds.model_dump()) and kept == pytest.approx(calibration.model_dump())
    report = json.loads((finished / "reports/evaluation.json").read_text())
    assert report["n"] == len(test) and report["thresholds"] == pytest.approx(thresholds.model_dump())
    assert report["test"]["auc"]["value"] == pytest.approx(roc_auc_score(test["label"] == "fake", test["score"]), abs=1e-5)


def test_no_group_stands_in_two_parts(finished: Path):
    parts = read_parts(finished / "data/splits")
    groups = {name: set(part["group"]) for name, part in parts.items()}
    assert not groups["train"] & (groups["val"] | groups["test"])
    assert not groups["val"] & groups["test"]
    assert "resynthesis" not in set(parts["train"]["generator"]) | set(parts["val"]["generator"])
    assert set(parts["unseen"]["generator"]) == {"none", "resynthesis"}


def test_a_second_repro_runs_nothing(finished: Path):
    assert "up to date" in run(finished, *DVC, "status")
    assert "Running stage" not in run(finished, *DVC, "repro")


def test_other_weights_in_the_watched_folder_are_trained_anew(finished: Path, tmp_path: Path):
    settings = (finished / "params.yaml").read_text()
    apply({"model.watch": str(tmp_path)}, finished / "params.yaml")
    assert str(tmp_path) in run(finished, *DVC, "status", "train")
    (finished / "params.yaml").write_text(settings)
    assert "up to date" in run(finished, *DVC, "status", "train")


def test_metrics_and_plots_are_shown(finished: Path):
    assert "test.f1.value" in run(finished, *DVC, "metrics", "show")
    run(finished, *DVC, "metrics", "diff")
    page = run(finished, *DVC, "plots", "show").strip()
    assert Path(page.removeprefix("file://")).is_file()


def push_and_pull(workspace: Path) -> None:
    run(workspace, *DVC, "push")
    before = {path.name: path.read_bytes() for path in (workspace / "data/splits").iterdir()}
    run(workspace, "rm", "-rf", "data/splits", ".dvc/cache")
    run(workspace, *DVC, "pull")
    assert {path.name: path.read_bytes() for path in (workspace / "data/splits").iterdir()} == before


def test_data_comes_back_from_a_folder(finished: Path, tmp_path: Path):
    run(finished, *DVC, "remote", "add", "--force", "--default", "--local", "storage", str(tmp_path / "storage"))
    push_and_pull(finished)


def test_a_clone_that_pulls_has_nothing_to_make(finished: Path, tmp_path: Path):
    remote = (*DVC, "remote", "add", "--force", "--default", "--local", "storage", str(tmp_path / "storage"))
    run(finished, *remote)
    run(finished, *DVC, "push")
    run(finished, "git", "add", "--all")
    run(finished, "git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "what was made")
    run(finished, "git", "clone", "--quiet", str(finished), str(tmp_path / "clone"))
    run(tmp_path / "clone", *remote)
    run(tmp_path / "clone", *DVC, "pull")
    assert "Running stage" not in run(tmp_path / "clone", *DVC, "repro")
    assert verify(tmp_path / "clone/models/package").digest == verify(finished / "models/package").digest


@pytest.mark.long  # only DVC's own code differs from a remote in a folder
def test_data_comes_back_from_s3(finished: Path, monkeypatch: pytest.MonkeyPatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="unmask")
        run(finished, *DVC, "remote", "add", "--force", "--default", "--local", "storage", "s3://unmask/data")
        run(finished, *DVC, "remote", "modify", "--local", "storage", "endpointurl", endpoint)
        push_and_pull(finished)
    finally:
        server.stop()


def test_a_wrong_setting_is_named(finished: Path):
    params = finished / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("epochs:", "epoch:"))
    try:
        message = run(finished, sys.executable, "-m", "pipeline.ingest", check=False)
    finally:
        params.write_text(text)
    assert "train.epoch" in message and "epochs" in message and "Traceback" not in message
