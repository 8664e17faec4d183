"""The flows `tune` and `leave-one-out` with real Prefect, DVC, Optuna and MLflow."""

import json
import sys
from pathlib import Path

import pytest

from pipeline.settings import apply
from tests.conftest import run

FLOW = "from flows.{name} import {name}; state = {name}(return_state=True); print(state.name, state.message)"


@pytest.fixture
def folder(finished: Path, copy_workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace after `make run`, with its own Prefect."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return copy_workspace(finished)


@pytest.mark.long
def test_a_search_says_what_it_found(folder: Path):
    space = {"train.lr": {"low": 0.0001, "high": 0.01, "log": True}, "train.ema": {"choices": [None, 0.9]}}
    apply({"tune.trials": 2, "tune.space": space}, folder / "params.yaml")
    before = (folder / "params.yaml").read_text()
    assert "Completed" in run(folder, sys.executable, "-c", FLOW.format(name="tune"))

    found = json.loads((folder / "reports/sweep.json").read_text())
    assert found["trials"] == 2 and set(found["best"]["values"]) == set(space)
    assert (folder / "params.yaml").read_text() == before
    run(folder, *found["best"]["command"].replace("python", sys.executable, 1).split())
    assert (folder / "params.yaml").read_text() != before

    apply({"tune.space": {"train.rate": {"choices": [1, 2]}}}, folder / "params.yaml")
    printed = run(folder, sys.executable, "-c", FLOW.format(name="tune"))
    assert "StageFailed" in printed and "train.rate" in printed


@pytest.mark.long
def test_leaving_out_says_what_was_not_known(folder: Path):
    before = (folder / "models/trained/model.safetensors").read_bytes()
    printed = run(folder, sys.executable, "-c", FLOW.format(name="leave_one_out"))
    found = json.loads((folder / "reports/leave_one_out.json").read_text())
    assert len(found["generators"]) >= 2 and f"worst {found['worst_auc']:.3f} ({found['worst']})" in printed and "Completed" in printed
    assert (folder / "models/trained/model.safetensors").read_bytes() == before

    apply({"split.holdout_generators": ["resynthesis", "swap"]}, folder / "params.yaml")
    printed = run(folder, sys.executable, "-c", FLOW.format(name="leave_one_out"))
    assert "StageFailed" in printed and "two are needed" in printed
