"""A clock that was ahead for a while, so that files have times in the future."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from flows import retraining
from pipeline.monitoring import predictions
from pipeline.params_loop import Retrain
from tests.drift_helpers import record, sample

SETTINGS = Retrain(on="always", cooldown_hours=12, a_day=2, label_next=0)


@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNMASK_VAR", str(tmp_path))
    return tmp_path


def noted(var: Path, *hours: float) -> None:
    """Record trainings that began this many hours from now."""
    times = [datetime.now(UTC) + timedelta(hours=hour) for hour in hours]
    lines = [json.dumps({"time": time.isoformat(timespec="seconds"), "reason": "drift", "evidence": None}) for time in times]
    (var / "retrainings.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_trainings_noted_in_the_future_hold_none_back(var: Path):
    noted(var, 24 * 365 * 9, 24 * 365 * 9 + 1)
    assert retraining.held_back(SETTINGS) is None
    retraining.begin("drift", None)
    assert "retrain.cooldown_hours ends" in str(retraining.held_back(SETTINGS))


def test_the_cooldown_counts_from_the_newest_that_has_begun(var: Path):
    noted(var, -1, -20, 24 * 365)  # not in order, as the clock was put back in between
    assert "retrain.cooldown_hours ends" in str(retraining.held_back(SETTINGS))
    noted(var, -13, -14, 24 * 365)
    assert "2 began within 24 hours" in str(retraining.held_back(SETTINGS))


def test_answers_of_the_future_do_not_stay_the_newest(tmp_path: Path):
    file, rng = tmp_path / predictions.FILE, np.random.default_rng(3)
    record(file, "digest", sample(rng, 60).assign(brightness=200.0))
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE predictions SET time = '2099' || substr(time, 5)")
    record(file, "digest", sample(rng, 50).assign(brightness=10.0))
    window = predictions.newest(file, "digest", 55)
    assert window["brightness"].tolist() == [200.0] * 5 + [10.0] * 50
