"""The whole loop, from one family of forgeries to two, as `python -m benchmarks.continual` shows it."""

from pathlib import Path

import pytest

from benchmarks.continual import PAIRS, page, scenario


@pytest.mark.long
def test_a_second_family_is_learnt_and_the_first_is_not_forgotten(tmp_path: Path):
    result = scenario(tmp_path)
    seen = [row["seen"] for row in result["seen"]]
    first, quiet, drift, feedback, forgot, learnt, follows, quiet_again = seen
    assert first.endswith("version 1 is the champion")
    assert quiet.startswith("NoDrift") and drift.startswith("Drift")
    assert feedback.startswith(f"{2 * PAIRS} pictures")
    assert forgot.startswith("GateFailed: version 2") and forgot.endswith("the service answers with version 1")
    assert learnt.startswith("Completed: version 3") and "promoted (promotion.auto: if_better" in learnt
    assert follows.startswith("answers with version 3") and quiet_again.startswith(f"NoDrift: the newest {2 * PAIRS} answers of version 3")

    auc = {(version, family): found["value"] for version, figures in result["figures"].items() for family, found in figures.items()}
    assert auc["2", "old"] < auc["1", "old"] - 0.1  # forgotten without rehearsal
    assert auc["3", "old"] > auc["1", "old"] - 0.03
    assert auc["3", "new"] > auc["1", "new"] + 0.1
    assert "| 3 | both" in page(result)
