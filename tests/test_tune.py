"""The flow `tune` with real Prefect, DVC, Optuna and MLflow."""

import json
import sys
from pathlib import Path

import pytest

from pipeline.settings import apply
from tests.conftest import run

FLOW = "from flows.tune import tune; state = tune(return_state=True); print(state.name, state.message)"


@pytest.mark.long
def test_the_flow_says_what_it_found(finished: Path, copy_workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    folder = copy_workspace(finished)
    space = {"train.lr": {"low": 0.0001, "high": 0.01, "log": True}, "train.ema": {"choices": [None, 0.9]}}
    apply({"tune.trials": 2, "tune.space": space}, folder / "params.yaml")
    before = (folder / "params.yaml").read_text()
    assert "Completed" in run(folder, sys.executable, "-c", FLOW)

    found = json.loads((folder / "reports/sweep.json").read_text())
    assert found["trials"] == 2 and set(found["best"]["values"]) == set(space)
    assert (folder / "params.yaml").read_text() == before
    run(folder, *found["best"]["command"].replace("python", sys.executable, 1).split())
    assert (folder / "params.yaml").read_text() != before

    apply({"tune.space": {"train.rate": {"choices": [1, 2]}}}, folder / "params.yaml")
    printed = run(folder, sys.executable, "-c", FLOW)
    assert "StageFailed" in printed and "train.rate" in printed
